"""The last stage: video shards -> token shards. Each image is encoded once, each text once.

Video shard i becomes token shard i, so a killed run resumes with the first shard that is missing.

    {key}.codes.{camera}.npy   smallest unsigned integer that holds the codebook, [f n]
    {key}.states.npy           float32 [t s]      } where the video shard has them, cut to the window
    {key}.actions.npy          float32 [t a]      }
    {key}.json                 caption, fps, frame_stride, control_hz, cameras, num_frames, video (its key),
                               embodiment (where there are states and actions)
    texts.safetensors          features float32 [texts l d], mask bool [texts l]
    columns/                   what a loader must know of every episode, and the texts
    manifest.json              `embodiments` of the episodes, in the order of the column `embodiment`; `is_square`: all
                               images were squares, so that `image_fit` of the tokenizer's facts changed nothing
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from ..contracts import Array
from ..embodiment import Embodiment
from ..errors import ConfigError, DataError
from ..fingerprints import differing_facts
from .contacts import read_contacts, target_contact
from .embodiments import EmbodimentTally, kept_embodiment
from .executors import ONE_PROCESS, Executor, ExecutorKind, ordered_map
from .files import array_bytes, load_array, write_bytes
from .loading.augment import AugmentConfig, augment_frames, sample_augmentation
from .locations import Location, as_location
from .store.columns import ABSENT, token_columns, write_columns
from .store.shards import ShardWriter, read_index, read_indexed
from .store.stages import (
    ShardTask,
    Tally,
    abandon_stage,
    begun_or_finished,
    begun_parameters,
    expect_video_shards,
    finish_stage,
    map_shards,
)
from .video.frames import ImageFit, resize_frames, stated_fit
from .video.reader import open_video

STAGE = "token_shards"
NUM_BATCH_FRAMES = 256

EncodeImages = Callable[[Array], Array]
"""uint8 `[f h w 3]` -> integer codes `[f n]`."""

EncodeTexts = Callable[[list[str]], tuple[Array, Array]]
"""Texts -> features float32 `[b l d]`, mask bool `[b l]`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodedWindow:
    """One window of a video sample, decoded and resized, or the reason why it could not be.

    images: camera -> uint8 `[f size size 3]`.
    is_square: whether all images were squares before.
    """

    key: str
    images: Mapping[str, Array]
    members: Mapping[str, bytes]
    description: Mapping[str, Any]
    embodiment: Embodiment | None = None
    is_square: bool = True
    problem: str = ""


def write_token_shards(
    *,
    shards: Location,
    out: Path,
    encode_images: EncodeImages,
    encode_texts: EncodeTexts | None,
    tokenizer_facts: Mapping[str, Any],
    image_size: int,
    image_fit: ImageFit = "crop",
    target_fps: float | None = None,
    jitter: float = 0.0,
    seed: int = 0,
    executor: ExecutorKind = "local",
    num_workers: int = 1,
    num_gpus: int = 0,
    shard_each: bool = False,
    overwrite: bool = False,
) -> Mapping[str, Any]:
    """Encode every image and text of video shards.

    Args:
        shards: folder, URL or pattern of video shards.
        out: folder of the token shards.
        encode_images: frozen image tokenizer; gets up to 256 frames of `image_size` at a time.
        encode_texts: frozen text encoder; every different text is encoded once, the empty one too. None keeps the
            texts alone, for corpora whose features would not fit.
        tokenizer_facts: JSON values that identify the tokenizers; `codebook_size` and `grid` (rows, columns)
            are needed, `image_fingerprint` and `text_fingerprint` distinguish equal ones from different ones.
        image_size: height and width [px]; images are resized by area.
        image_fit: how images that are no squares become such.
        target_fps: keep every m-th frame, so that about this many frames a second remain; None keeps all.
        jitter: greatest relative change of brightness, contrast and saturation, sampled for each clip.
        seed: of the jitter.
        executor: `local` encodes in this process, `ray` one shard in each worker.
        num_workers: processes that decode for this process; workers of Ray.
        num_gpus: GPUs that each worker of Ray gets.
        shard_each: local workers encode a shard each, as Ray's do: faster where the encoder runs on a CPU.
        overwrite: replace an earlier result.

    Returns:
        The manifest.

    Raises:
        DataError: where the video shards are not finished, or nothing could be decoded.
        ConfigError: where the tokenizer contradicts its facts, a rate that is none, or too large a jitter.
    """
    _check_numbers(jitter, target_fps)
    facts = _checked_facts(tokenizer_facts, image_size, image_fit)
    stated = begun_parameters(out, STAGE).get("tokenizer")
    if stated is not None and not set(differing_facts(stated, facts)) - (set() if overwrite else {"image_fit"}):
        if stated_fit(stated) != image_fit:
            if "image_fit" in stated or image_fit != "crop":
                raise ConfigError(
                    f"{out}: holds tokens with --image-fit {stated_fit(stated)}, asked for {image_fit}; choose another "
                    "folder or pass overwrite."
                )
            print(f"{out}: begun by an earlier version, so images that are no squares stay squeezed")
        facts = dict(stated)  # the fingerprints of one encoder are not the same letters on every machine and version
    shards = as_location(shards)
    expect_video_shards(shards)
    parameters: dict[str, Any] = {"shards": str(shards), "tokenizer": facts, "target_fps": target_fps}
    parameters |= {"texts": encode_texts is not None}
    if jitter:
        parameters |= {"jitter": jitter, "seed": seed}
    if (finished := begun_or_finished(out, STAGE, parameters, overwrite)) is not None:
        return finished
    changes: dict[str, Any] = {"image_fit": stated_fit(facts), "jitter": jitter, "seed": seed}
    decode = partial(decode_sample, image_size=image_size, target_fps=target_fps, **changes)
    spread = executor == "ray" or shard_each
    decoders = ONE_PROCESS if spread else Executor(num_workers=num_workers)
    encoder: dict[str, Any] = {"encode_images": encode_images, "facts": facts, "quiet": spread}
    write_shard = partial(_write_shard, decode=decode, decoders=decoders, **encoder)
    runner = Executor(kind=executor, num_workers=num_workers, num_gpus=num_gpus) if spread else ONE_PROCESS
    tally, names = map_shards(write_shard, shards, out, runner, "token shards")
    if tally.windows == 0:
        abandon_stage(out)
        raise DataError(
            f"{shards}: expected at least one decodable clip, {tally.num_dropped} failed: {tally.examples}."
        )
    return finish_token_shards(out, parameters, tally, names, facts, encode_texts)


def _check_numbers(jitter: float, target_fps: float | None) -> None:
    if not 0 <= jitter < 1:
        raise ConfigError(f"--jitter: expected a relative change from 0 to below 1, got {jitter:g}; take 0.3, say.")
    if target_fps is not None and not target_fps > 0:
        raise ConfigError(
            f"--target-fps: expected a rate above 0 [1/s], got {target_fps:g}; leave it out for all images."
        )


def finish_token_shards(
    out: Path,
    parameters: Mapping[str, Any],
    tally: Tally,
    names: Sequence[str],
    facts: Mapping[str, Any],
    encode_texts: EncodeTexts | None,
) -> Mapping[str, Any]:
    """Encode the texts of finished shards, write the columns of all episodes, and the manifest."""
    written = [out / name for name in names]
    notes = [read_index(shard)["note"] for shard in written]
    texts = sorted({text for note in notes for text in note["sentences"]})
    embodiments = EmbodimentTally()
    embodiment_ids = [embodiments.join(note.get("embodiments", ())) for note in notes]
    if encode_texts is not None:
        _write_texts(out, texts, encode_texts)
    parts = sorted({part for note in notes for part in note.get("contact_parts", ())})
    columns = token_columns(written, {text: i for i, text in enumerate(texts)}, embodiment_ids, parts)
    result = {
        "shards": list(names),
        "tokenizer": dict(facts),
        "num_texts": len(texts),
        "is_square": all(note.get("is_square", False) for note in notes),
        "cameras": list(dict.fromkeys(camera for note in notes for camera in note.get("cameras", ()))),
        "embodiments": [embodiment.to_dict() for embodiment in embodiments.result()],
        "columns": write_columns(out, columns | _text_columns(texts)),
        **({"contact_parts": parts} if parts else {}),
    }
    manifest = finish_stage(out, STAGE, parameters, tally, result)
    print(f"{out}: {tally.summary()}; {len(texts)} texts")
    return manifest


def _text_columns(texts: Sequence[str]) -> dict[str, Array]:
    encoded = [text.encode() for text in texts]
    ends = np.cumsum([len(text) for text in encoded], dtype=np.int64)
    return {"sentence_bytes": np.frombuffer(b"".join(encoded), np.uint8), "sentence_ends": ends}


def decode_sample(
    sample: tuple[str, Mapping[str, bytes]],
    image_size: int,
    target_fps: float | None,
    image_fit: ImageFit = "crop",
    *,
    jitter: float = 0.0,
    seed: int = 0,
) -> list[DecodedWindow]:
    """Decode the windows of one video sample; a broken video gives one window with a problem."""
    resize = partial(resize_frames, size=image_size, fit=image_fit)
    key, members = sample
    try:
        description = json.loads(members["json"])
        windows = description["windows"]
        decoded = []
        for i, window in enumerate(windows):
            name = key if len(windows) == 1 else f"{key}-w{i:03d}"
            found = _decode_window(name, key, members, description, window, resize, target_fps)
            decoded.append(_jittered(found, jitter, seed) if jitter else found)
        return decoded
    except (DataError, KeyError, ValueError) as error:
        return [DecodedWindow(key=key, images={}, members={}, description={}, problem=str(error))]


def _decode_window(
    name: str,
    video: str,
    members: Mapping[str, bytes],
    description: Mapping[str, Any],
    window: Mapping[str, Any],
    resize: Callable[[Array], Array],
    target_fps: float | None,
) -> DecodedWindow:
    skip = max(1, round(description["fps"] / target_fps)) if target_fps else 1
    indices = np.arange(window["start"], window["stop"], skip)
    images, is_square = {}, True
    for camera, facts in description["videos"].items():
        parts = []
        with open_video(members[facts["member"]]) as reader:
            for piece in np.array_split(indices, -(-len(indices) // 64)):  # bounds the full-size frames
                frames = reader.get_batch(piece)
                is_square &= frames.shape[1] == frames.shape[2]
                parts.append(resize(frames))
        images[camera] = np.concatenate(parts)
    stride = description["frame_stride"]
    steps = slice(window["start"] * stride, window["stop"] * stride)
    arrays = {
        name: load_array(members[f"{name}.npy"])[steps].astype(np.float32)
        for name in ("states", "actions")
        if f"{name}.npy" in members
    }
    embodiment = kept_embodiment(description, list(images), arrays.get("states"), arrays.get("actions"))
    return DecodedWindow(
        key=name,
        images=images,
        members={f"{member}.npy": array_bytes(values) for member, values in arrays.items()},
        embodiment=embodiment,
        is_square=is_square,
        description={
            "caption": window["caption"],
            "fps": description["fps"] / skip,
            "frame_stride": stride * skip,
            "control_hz": description["control_hz"],
            "cameras": list(images),
            "num_frames": len(indices),
            "video": video,
            "source": description["source"],
            "facts": _shifted(description["facts"], steps.start),
            **({"embodiment": embodiment.to_dict()} if embodiment else {}),
        },
    )


def _shifted(facts: Mapping[str, Any], start: int) -> Mapping[str, Any]:
    """Count the steps of contacts from the beginning of a window that begins at a step of its episode."""
    contacts = read_contacts(facts) if start else None
    return facts if contacts is None else {**facts, "contacts": [[part, step - start] for part, step in contacts]}


def _jittered(window: DecodedWindow, jitter: float, seed: int) -> DecodedWindow:
    """Change the colors of a clip, of all its frames and cameras alike; equal keys and seeds give equal changes."""
    digest = hashlib.sha256(f"{seed} {window.key}".encode()).digest()
    config = AugmentConfig(min_crop=1.0, brightness=jitter, contrast=jitter, saturation=jitter)
    change = sample_augmentation(config, np.random.default_rng(np.frombuffer(digest, np.uint32)))
    images = {name: augment_frames(frames, change, frames.shape[1]) for name, frames in window.images.items()}
    return replace(window, images=images)


def _write_shard(
    task: ShardTask,
    *,
    decode: Callable[[tuple[str, Mapping[str, bytes]]], list[DecodedWindow]],
    encode_images: EncodeImages,
    facts: Mapping[str, Any],
    decoders: Executor,
    quiet: bool,
) -> None:
    tally, texts, embodiments = Tally(), dict[str, int](), EmbodimentTally()
    cameras: dict[str, None] = {}
    parts: dict[str, None] = {}
    is_square = True
    total = len(read_index(task.source)["samples"])
    progress = tqdm(total=total, desc=f"shard {task.number}", unit="clip", leave=False, disable=quiet)
    with ShardWriter(task.out, max_bytes=1 << 62, first_number=task.number) as writer, progress:
        samples = ordered_map(decode, read_indexed(task.source), decoders)
        for group in _groups(samples, NUM_BATCH_FRAMES):
            windows = [window for sample in group for window in sample if not window.problem]
            clips = [frames for window in windows for frames in window.images.values()]
            codes = iter(_encode(clips, encode_images, facts))
            for window in windows:
                members = {f"codes.{camera}.npy": array_bytes(next(codes)) for camera in window.images}
                members.update(window.members)
                members["json"] = json.dumps(window.description, ensure_ascii=False).encode()
                text = texts.setdefault(window.description["caption"], len(texts))
                cameras |= dict.fromkeys(window.images)
                is_square &= window.is_square
                row = _row(window, text, facts, embodiments)
                parts |= {row["contact_part"]: None} if "contact_part" in row else {}
                writer.write(window.key, members, row)
            for sample in group:
                _count(tally, sample)
                if sample[0].problem:
                    entry = {"key": sample[0].key, "reason": "undecodable", "detail": sample[0].problem}
                    writer.drop(entry)
            progress.update(len(group))
        note = {"tally": asdict(tally), "sentences": list(texts), "is_square": is_square}
        note |= {"contact_parts": list(parts)} if parts else {}
        writer.finish_shard(note | {"cameras": list(cameras), "embodiments": embodiments.to_list()})


def _row(window: DecodedWindow, text: int, facts: Mapping[str, Any], embodiments: EmbodimentTally) -> dict[str, Any]:
    """Return what `columns.token_columns` reads of a sample, whose embodiment is counted."""
    steps = {name: load_array(window.members[f"{name}.npy"]) for name in ("states", "actions") if window.members}
    shapes = {name: values.shape for name, values in steps.items()}
    number = ABSENT
    if window.embodiment is not None:
        number = embodiments.add(window.embodiment, list(window.images), **steps)
    contact = target_contact(window.description["facts"])
    return {
        "frames": window.description["num_frames"],
        "stride": window.description["frame_stride"],
        "steps": shapes["actions"][0] if shapes else 0,
        "state_dim": shapes["states"][1] if shapes else 0,
        "action_dim": shapes["actions"][1] if shapes else 0,
        "cameras": list(window.images),
        "code_bytes": facts["grid"][0] * facts["grid"][1] * np.min_scalar_type(facts["codebook_size"] - 1).itemsize,
        "text": text,
        "video": window.description["video"],
        "embodiment": number,
        **({} if contact is None else {"contact_part": contact.part, "contact_step": contact.step}),
    }


def _groups(samples: Iterator[list[DecodedWindow]], num_frames: int) -> Iterator[list[list[DecodedWindow]]]:
    group: list[list[DecodedWindow]] = []
    waiting = 0
    for sample in samples:
        group.append(sample)
        waiting += sum(len(frames) for window in sample for frames in window.images.values())
        if waiting >= num_frames:
            yield group
            group, waiting = [], 0
    if group:
        yield group


def _encode(clips: Sequence[Array], encode_images: EncodeImages, facts: Mapping[str, Any]) -> list[Array]:
    """Encode several clips in full batches and divide the codes again."""
    if not clips:
        return []
    frames = np.concatenate(list(clips))
    codes = np.concatenate(
        [np.asarray(encode_images(frames[i : i + NUM_BATCH_FRAMES])) for i in range(0, len(frames), NUM_BATCH_FRAMES)]
    )
    tokens = facts["grid"][0] * facts["grid"][1]
    if codes.shape != (len(frames), tokens) or codes.min() < 0 or codes.max() >= facts["codebook_size"]:
        raise ConfigError(
            f"encode_images: expected codes ({len(frames)}, {tokens}) in [0, {facts['codebook_size']}), "
            f"got shape {codes.shape}, range {codes.min()} to {codes.max()}; give the tokenizer's own facts."
        )
    codes = codes.astype(np.min_scalar_type(facts["codebook_size"] - 1))
    return np.split(codes, np.cumsum([len(clip) for clip in clips])[:-1])


def _write_texts(out: Path, texts: list[str], encode_texts: EncodeTexts) -> None:
    from safetensors.numpy import save

    parts = [encode_texts(texts[i : i + 256]) for i in range(0, len(texts), 256)]
    features = np.concatenate([np.asarray(features, np.float32) for features, _ in parts])
    mask = np.concatenate([np.asarray(mask, bool) for _, mask in parts])
    if features.ndim != 3 or mask.shape != features.shape[:2] or len(features) != len(texts):
        raise ConfigError(
            f"encode_texts: expected features ({len(texts)}, l, d) and mask ({len(texts)}, l), got "
            f"{features.shape} and {mask.shape}; check the text encoder."
        )
    write_bytes(out / "texts.safetensors", save({"features": features, "mask": mask}))


def _checked_facts(facts: Mapping[str, Any], image_size: int, image_fit: ImageFit) -> dict[str, Any]:
    missing = [name for name in ("codebook_size", "grid") if name not in facts]
    if missing:
        raise ConfigError(f"tokenizer_facts: expected {missing}, got {sorted(facts)}; describe the tokenizer.")
    checked: dict[str, Any] = json.loads(json.dumps({**facts, "image_size": image_size, "image_fit": image_fit}))
    return checked


def _count(tally: Tally, sample: Sequence[DecodedWindow]) -> None:
    tally.records += 1
    problem = next((window.problem for window in sample if window.problem), "")
    if problem:
        tally.drop("undecodable", sample[0].key, sample[0].key, problem)
        return
    tally.kept += 1
    tally.windows += len(sample)
    for window in sample:
        tally.frames += window.description["num_frames"]
        tally.seconds += window.description["num_frames"] / window.description["fps"]
    tally.captioned += bool(sample[0].description["caption"])
    tally.with_actions += "actions.npy" in sample[0].members
