"""Re-captioning: video shards in, video shards out, where every window has a caption from a vision-language model.

Shard i becomes shard i; the bytes of the videos stay. Every window keeps all its captions, and the one to train on:

    "captions": [{"text": ..., "kind": "original"},             or "asr", heard by a speech recognizer
                 {"text": ..., "kind": "generated", "model": ..., "revision": ..., "prompt": ...}]
    "caption":  the chosen one

An answer that is empty, refused, too long or reports that nobody acts is not used: it is counted in the manifest as
`unused_answers`, stands in the shard's list of what was dropped, and the window keeps the caption that it had.
"""

from __future__ import annotations

import io
import itertools
import json
from collections import Counter, deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ...errors import ConfigError, DataError
from ..executors import Executor, ExecutorKind
from ..locations import Location, as_location
from ..store.columns import video_columns, write_columns
from ..store.shards import ShardWriter, read_index, read_indexed
from ..store.stages import (
    ShardTask,
    Tally,
    abandon_stage,
    begun_or_finished,
    expect_video_shards,
    finish_stage,
    map_shards,
)
from ..video.reader import open_video
from .caption_choice import (
    PROMPT,
    Keep,
    choose_caption,
    clean_answer,
    judge_answer,
    original_captions,
    speech_hint,
)
from .captioners import Captioner, answering_model, open_captioner
from .endpoint_captioner import Answer, AskConfig
from .ingest import video_row

STAGE = "captioned_shards"

_JPEG_QUALITY = 90


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """What the model sees of a window, in its first camera.

    num_frames: frames spread over the window, the first and the last among them.
    short_side: greatest length of their shorter side [px].
    """

    num_frames: int
    short_side: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """One window to be captioned.

    number: of its sample in the shard; images: JPEG files; problem: why they could not be made.
    """

    number: int
    key: str
    members: Mapping[str, bytes]
    description: dict[str, Any]
    window: dict[str, Any]
    images: list[bytes] = field(default_factory=list)
    problem: str = ""


def caption(
    *,
    shards: str,
    out: Path,
    model: str,
    endpoint: str = "",
    prompt: str = PROMPT,
    num_frames: int = 8,
    short_side: int = 336,
    max_words: int = 60,
    keep: Keep = "generated",
    ask: AskConfig = AskConfig(),  # noqa: B008  (frozen)
    executor: ExecutorKind = "local",
    num_workers: int = 1,
    overwrite: bool = False,
) -> Mapping[str, Any]:
    """Describe every window of video shards with a vision-language model; the captions it had stay beside.

    A killed run resumes with the shards that are missing. What a speech recognizer heard is part of the question.

    Args:
        shards: folder of video shards, its URL, or tars by pattern (`https://host/shard-{000000..000127}.tar`).
        out: folder of the captioned shards.
        model: name that the endpoint knows; without an endpoint the folder or hub name of a `transformers` model, or a
            folder of `gr2 caption train`.
        endpoint: OpenAI-compatible address (`http://localhost:8000/v1`), as vLLM serves it.
        prompt: what the model is asked with the frames.
        num_frames: frames shown to the model, spread over the window.
        short_side: greatest length of their shorter side [px].
        max_words: a longer answer is not used.
        keep: the caption to train on: `generated` where there is one, `original` where there is one, or `both`, the
            original and then the generated one.
        ask: revision, requests at a time, retries, key and device.
        executor: `local`, or `ray` for the cluster at RAY_ADDRESS.
        num_workers: shards worked on at a time.
        overwrite: replace an earlier result.

    Returns:
        The manifest.

    Raises:
        DataError: the shards are not finished, some of them failed, or nothing is left.
        ConfigError: the model or endpoint cannot be used, or no frames are asked for.
        EnvironmentMissing: `transformers` is not installed.
    """
    if min(num_frames, short_side, max_words) < 1 or not prompt.strip() or not model.strip():
        raise ConfigError(
            "num_frames, short_side, max_words, prompt, model: expected at least 1 and some text, got "
            f"{num_frames}, {short_side}, {max_words}, {prompt!r}, {model!r}; set them."
        )
    location = as_location(shards)
    expect_video_shards(location)
    identity = answering_model(model, endpoint, ask)
    view = View(num_frames=num_frames, short_side=short_side)
    parameters = {
        "shards": str(shards),
        **identity,
        "prompt": prompt,
        **asdict(view),
        "max_words": max_words,
        "max_tokens": ask.max_tokens,
        "keep": keep,
    }
    if (finished := begun_or_finished(out, STAGE, parameters, overwrite)) is not None:
        return finished
    write_shard = partial(
        _caption_shard,
        model=model,
        endpoint=endpoint,
        ask=ask,
        prompt=prompt,
        view=view,
        max_words=max_words,
        keep=keep,
    )
    workers = Executor(kind=executor, num_workers=num_workers)
    tally, names = map_shards(write_shard, location, out, workers, "captioned shards")
    return _finish(out, parameters, tally, names)


def _finish(out: Path, parameters: Mapping[str, Any], tally: Tally, names: list[str]) -> Mapping[str, Any]:
    """Add up what the shards note of their answers, and write the columns and the manifest."""
    if tally.kept == 0:
        abandon_stage(out)
        raise DataError(f"{out}: no frame of {tally.records} windows could be decoded; curate the shards first.")
    written = [out / name for name in names]
    notes = [read_index(shard)["note"] for shard in written]
    unused = dict(sorted(sum((Counter(note["unused_answers"]) for note in notes), Counter()).items()))
    generated = sum(note["generated"] for note in notes)
    result = {"shards": names, "columns": write_columns(out, video_columns(written)), "generated": generated}
    manifest = finish_stage(out, STAGE, parameters, tally, {**result, "unused_answers": unused})
    kept_out = ", ".join(f"{reason} {count}" for reason, count in unused.items()) or "none"
    print(f"{out}: {generated} of {tally.records} windows captioned; answers not used: {kept_out}")
    return manifest


def _caption_shard(
    task: ShardTask, *, model: str, endpoint: str, ask: AskConfig, prompt: str, view: View, max_words: int, keep: Keep
) -> None:
    captioner = open_captioner(model, endpoint, ask)
    tally, unused, generated = Tally(), Counter[str](), 0
    with ShardWriter(task.out, max_bytes=1 << 62, first_number=task.number) as writer:
        answered = _answers(_questions(task.source, view), captioner, prompt)
        for _, group in itertools.groupby(answered, key=lambda pair: pair[0].number):
            windows, sample = [], None
            for sample, answer in group:
                tally.records += 1
                entry = {"key": sample.key, "source": sample.description["source"]}
                if answer is None:
                    tally.drop("undecodable", sample.key, entry["source"], sample.problem)
                    writer.drop({**entry, "reason": "undecodable", "detail": sample.problem, **sample.window})
                    continue
                text = clean_answer(answer.text)
                reason, detail = judge_answer(text, answer.finish, max_words)
                if reason:
                    unused[reason] += 1
                    writer.drop({**entry, "reason": reason, "detail": detail, **sample.window})
                made = {"text": text, "kind": "generated", "model": model, "revision": answer.revision}
                found = original_captions(sample.window, sample.description["facts"])
                captions = found if reason else [*found, {**made, "prompt": prompt}]
                windows.append({**sample.window, "captions": captions, "caption": choose_caption(captions, keep)})
                generated += not reason
            if windows and sample is not None:
                _write_sample(writer, tally, sample, windows)
        writer.finish_shard({"tally": asdict(tally), "unused_answers": dict(unused), "generated": generated})


def _write_sample(writer: ShardWriter, tally: Tally, sample: Question, windows: list[dict[str, Any]]) -> None:
    description = {**sample.description, "windows": windows}
    content = json.dumps(description, ensure_ascii=False).encode()
    writer.write(sample.key, {**sample.members, "json": content}, video_row(description))
    frames = sum(window["stop"] - window["start"] for window in windows)
    tally.kept += len(windows)
    tally.windows += len(windows)
    tally.frames += frames
    tally.seconds = round(tally.seconds + frames / description["fps"], 4)
    tally.captioned += sum(bool(window["caption"]) for window in windows)
    tally.with_actions += "actions.npy" in sample.members


def _questions(shard: Location, view: View) -> Iterator[Question]:
    for number, (key, members) in enumerate(read_indexed(shard)):
        description = json.loads(members["json"])
        for window in description["windows"]:
            asked = {"number": number, "key": key, "members": members, "description": description, "window": window}
            try:
                yield Question(**asked, images=show_window(description, members, window, view))
            except DataError as error:
                yield Question(**asked, problem=str(error))


def show_window(
    description: Mapping[str, Any], members: Mapping[str, bytes], window: Mapping[str, Any], view: View
) -> list[bytes]:
    """Decode frames spread over a window of a video sample, in the first camera, as JPEG files.

    Raises:
        DataError: the video cannot be decoded.
    """
    video = next(iter(description["videos"].values()))
    scale = view.short_side / min(video["height"], video["width"])
    size = {} if scale >= 1 else {side: max(2, round(video[side] * scale)) for side in ("height", "width")}
    spread = np.linspace(window["start"], window["stop"] - 1, view.num_frames)
    with open_video(members[video["member"]], **size) as reader:
        frames = reader.get_batch(np.unique(spread.round().astype(int)))
    return [jpeg_bytes(Image.fromarray(frame), _JPEG_QUALITY) for frame in frames]


def jpeg_bytes(image: Image.Image, quality: int) -> bytes:
    """Encode an image as JPEG."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def _answers(
    questions: Iterator[Question], captioner: Captioner, prompt: str
) -> Iterator[tuple[Question, Answer | None]]:
    """Ask several questions at a time and yield the answers in order; None for a window without images."""
    waiting: deque[tuple[Question, Future[Answer] | None]] = deque()
    pool = ThreadPoolExecutor(captioner.at_once, thread_name_prefix="caption")
    try:
        for question in questions:
            if question.problem:
                waiting.append((question, None))
            else:
                words = prompt + speech_hint(question.window, question.description["facts"])
                waiting.append((question, pool.submit(captioner.ask, question.images, words)))
            if len(waiting) >= 2 * captioner.at_once:
                asked, answer = waiting.popleft()
                yield asked, answer.result() if answer is not None else None
        while waiting:
            asked, answer = waiting.popleft()
            yield asked, answer.result() if answer is not None else None
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
