"""Re-captioning: each window is shown to the model as it is, its answer lands where it belongs, and nothing is lost."""

from __future__ import annotations

import base64
import io
import json
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from stage_cases import contents, run_and_kill

from gr2.cli.main import main
from gr2.data_pipeline.curation.caption import STAGE, caption
from gr2.data_pipeline.curation.caption_choice import NO_ACTION, PROMPT, choose_caption, clean_answer, judge_answer
from gr2.data_pipeline.curation.captioners import open_captioner
from gr2.data_pipeline.curation.endpoint_captioner import AskConfig, check_endpoint, read_answer
from gr2.data_pipeline.curation.ingest import video_row, write_video_shards
from gr2.data_pipeline.store.shards import ShardWriter, list_shards, read_dropped, read_indexed
from gr2.data_pipeline.store.stages import Tally, begin_stage, finish_stage
from gr2.data_pipeline.tokens import write_token_shards
from gr2.data_pipeline.video.reader import write_video
from gr2.errors import ConfigError, DataError, EnvironmentMissing

QUICK = AskConfig(attempts=4, first_wait_seconds=0.01, timeout_seconds=20)
LEVELS = 12
"""Frames of a clip; each is of one gray level, so that the server can infer clip and frame from the image."""


def gray_of(clip: int, frame: int) -> int:
    return 20 + 36 * clip + 3 * frame


def write_clips(root: Path, count: int) -> None:
    """Write `clip_0.mp4` and so on, 96 x 128 px, 12 frames at 4 Hz, with captions."""
    for clip in range(count):
        frames = np.stack([np.full((96, 128, 3), gray_of(clip, frame), np.uint8) for frame in range(LEVELS)])
        write_video(root / f"clip_{clip}.mp4", frames, fps=4)
    names = {f"clip_{clip}.mp4": f"original {clip}" for clip in range(count)}
    (root / "captions.json").write_text(json.dumps(names))


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six clips of two windows each, in three shards or more."""
    root = tmp_path_factory.mktemp("videos")
    write_clips(root / "in", 6)
    size = (root / "in/clip_0.mp4").stat().st_size
    manifest = write_video_shards(
        source=str(root / "in"), out=root / "shards", window_seconds=1.5, shard_megabytes=2.5 * size / 1e6
    )
    assert len(manifest["shards"]) >= 3 and manifest["counts"]["windows"] == 12
    return root / "shards"


@dataclass
class FakeServer:
    """What a test sets and sees of the server.

    reply: request number, request -> status, body, headers.
    """

    reply: Callable[[int, dict], tuple[int, bytes, dict]]
    requests: list[dict] = field(default_factory=list)
    headers: list[dict] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    in_flight: int = 0
    most_in_flight: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)
    url: str = ""


def completion(text: str | None, finish: str = "stop", refusal: str | None = None) -> bytes:
    message = {"role": "assistant", "content": text, "refusal": refusal}
    answer = {"model": "fake-2026-01-01", "choices": [{"index": 0, "message": message, "finish_reason": finish}]}
    return json.dumps(answer).encode()


@contextmanager
def serve(reply: Callable[[int, dict], tuple[int, bytes, dict]]) -> Iterator[FakeServer]:
    state = FakeServer(reply)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with state.lock:
                number = len(state.requests)
                state.requests.append(body)
                state.headers.append(dict(self.headers))
                state.paths.append(self.path)
                state.in_flight += 1
                state.most_in_flight = max(state.most_in_flight, state.in_flight)
            try:
                status, answer, headers = state.reply(number, body)
            finally:
                with state.lock:
                    state.in_flight -= 1
            self.send_response(status)
            for name, value in {"Content-Length": str(len(answer)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(answer)

        do_GET = do_POST

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    state.url = f"http://127.0.0.1:{server.server_port}/v1"
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()


def images_of(request: dict) -> list[Image.Image]:
    """Decode the images of a request, each a JPEG file in a data URI."""
    images = []
    for part in request["messages"][0]["content"]:
        if part["type"] == "image_url":
            head, _, data = part["image_url"]["url"].partition(",")
            assert head == "data:image/jpeg;base64"
            images.append(Image.open(io.BytesIO(base64.b64decode(data, validate=True)), formats=("JPEG",)))
    return images


def text_of(request: dict) -> str:
    return "".join(part["text"] for part in request["messages"][0]["content"] if part["type"] == "text")


def frames_of(request: dict) -> list[tuple[int, int]]:
    """Return (clip, frame) of every image of a request from its gray level."""
    levels = [round((float(np.asarray(image).mean()) - 20) / 3) for image in images_of(request)]
    return [divmod(level, LEVELS) for level in levels]


def describe(number: int, request: dict) -> tuple[int, bytes, dict]:
    """Answer with what the images are."""
    (clip, first), (_, last) = frames_of(request)[0], frames_of(request)[-1]
    return 200, completion(f"push block {clip} from {first} to {last}"), {}


def windows_in(folder: Path) -> list[dict]:
    """List the windows of all samples, each with its `source`."""
    found = []
    for shard in list_shards(folder):
        for _, members in read_indexed(shard):
            description = json.loads(members["json"])
            found += [{"source": description["source"], **window} for window in description["windows"]]
    return found


def test_each_window_is_shown_as_it_is_and_gets_its_own_answer(shards: Path, tmp_path: Path) -> None:
    def slow_first(number: int, request: dict) -> tuple[int, bytes, dict]:
        time.sleep(0.2 if number % 4 == 0 else 0.0)  # later requests overtake
        return describe(number, request)

    with serve(slow_first) as server:
        manifest = caption(
            shards=str(shards), out=tmp_path, model="fake", endpoint=server.url, num_frames=4, short_side=48, ask=QUICK
        )
    assert 1 < server.most_in_flight <= QUICK.requests_at_once
    for request, path in zip(server.requests, server.paths, strict=True):
        assert path == "/v1/chat/completions"
        assert (request["model"], request["temperature"], request["max_tokens"]) == ("fake", 0, 128)
        assert text_of(request) == PROMPT
        assert [image.size for image in images_of(request)] == [(64, 48)] * 4
    shown = sorted(frames_of(request) for request in server.requests)
    assert shown == sorted(
        [(clip, frame) for frame in frames] for clip in range(6) for frames in ((0, 2, 3, 5), (6, 8, 9, 11))
    )
    before, after = windows_in(shards), windows_in(tmp_path)
    assert len(before) == len(after) == 12
    for old, new in zip(before, after, strict=True):
        clip = int(re.sub(r"\D", "", old["source"].removesuffix(".mp4")))
        words = f"push block {clip} from {old['start']} to {old['stop'] - 1}"
        made = {"kind": "generated", "model": "fake", "revision": "fake-2026-01-01", "prompt": PROMPT}
        captions = [{"text": old["caption"], "kind": "original"}, {"text": words, **made}]
        assert new == {**old, "captions": captions, "caption": words}
    assert manifest["generated"] == 12 and manifest["unused_answers"] == {}
    assert manifest["counts"]["dropped"] == {} and manifest["counts"]["kept"] == 12
    assert manifest["counts"]["seconds"] == 18.0 and manifest["counts"]["captioned"] == 12
    wanted = {"model": "fake", "prompt": PROMPT, "num_frames": 4, "short_side": 48, "keep": "generated"}
    assert manifest["parameters"] | wanted == manifest["parameters"]


def test_videos_and_steps_keep_their_bytes_and_tokens_take_the_new_caption(shards: Path, tmp_path: Path) -> None:
    with serve(describe) as server:
        caption(shards=str(shards), out=tmp_path / "out", model="fake", endpoint=server.url, ask=QUICK)
    for old, new in zip(list_shards(shards), list_shards(tmp_path / "out"), strict=True):
        for (key, before), (same, after) in zip(read_indexed(old), read_indexed(new), strict=True):
            assert key == same
            assert {**before, "json": b""} == {**after, "json": b""}
    manifest = write_token_shards(
        shards=tmp_path / "out",
        out=tmp_path / "tokens",
        encode_images=lambda frames: frames[:, 8::16, 8::16, 0].reshape(len(frames), 16).astype(np.int64),
        encode_texts=None,
        tokenizer_facts={"codebook_size": 256, "grid": [4, 4]},
        image_size=64,
    )
    found = {
        json.loads(members["json"])["caption"]
        for shard in list_shards(tmp_path / "tokens")
        for _, members in read_indexed(shard)
    }
    assert manifest["num_texts"] == 12 and found == {window["caption"] for window in windows_in(tmp_path / "out")}


UNUSED = {
    "empty": completion("  \n"),
    "refused": completion("I'm sorry, but I can't help with that."),
    "overlong": completion("push " * 61),
    "no_action": completion("None."),
    "cut": completion("Push the block and then", finish="length"),
    "filtered": completion("", finish="content_filter"),
    "refusal": completion(None, refusal="This shows a face."),
}


def test_answers_that_are_none_are_counted_and_the_original_stays(shards: Path, tmp_path: Path) -> None:
    bad = list(UNUSED.values())

    def reply(number: int, request: dict) -> tuple[int, bytes, dict]:
        clip, first = frames_of(request)[0]
        window = 2 * clip + (first > 0)
        return (200, bad[window], {}) if window < len(bad) else describe(number, request)

    with serve(reply) as server:
        manifest = caption(shards=str(shards), out=tmp_path, model="fake", endpoint=server.url, ask=QUICK)
    assert manifest["unused_answers"] == {"empty": 1, "no_action": 1, "overlong": 2, "refused": 3}
    assert manifest["generated"] == 5 and manifest["counts"]["dropped"] == {}
    assert manifest["counts"]["kept"] == manifest["counts"]["windows"] == 12
    entries = [entry for shard in list_shards(tmp_path) for entry in read_dropped(shard)]
    assert len(entries) == 7 and all(entry["detail"] and "stop" in entry for entry in entries)
    for number, window in enumerate(sorted(windows_in(tmp_path), key=lambda one: (one["source"], one["start"]))):
        assert window["captions"][0] == {"text": f"original {number // 2}", "kind": "original"}
        assert len(window["captions"]) == (1 if number < 7 else 2)
        assert window["caption"] == window["captions"][-1]["text"]


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("Pick up the cup.", ""),
        ('"**Pick up the cup**"', ""),
        ("None of the drawers is opened; push the block", ""),
        (NO_ACTION, "no_action"),
        ("...", "empty"),
        ("", "empty"),
        ("I cannot see any image.", "refused"),
        ("As an AI, I have no eyes.", "refused"),
        ("Sorry, no.", "refused"),
        ("No images were provided.", "refused"),
        ("Sort the blocks.", ""),
        ("a " * 61, "overlong"),
        ("a " * 60, ""),
    ],
)
def test_answers_are_judged_by_what_they_say(answer: str, reason: str) -> None:
    text = clean_answer(answer)
    assert judge_answer(text, "stop", 60)[0] == reason
    assert "\n" not in text and text == text.strip("\"'* ")


def test_busy_and_failing_endpoint_is_asked_again_with_the_same_result(shards: Path, tmp_path: Path) -> None:
    with serve(describe) as server:
        caption(shards=str(shards), out=tmp_path / "smooth", model="fake", endpoint=server.url, ask=QUICK)
    trouble = [
        (429, b'{"error": {"message": "slow down"}}', {"Retry-After": "0.01"}),
        (503, b"<html>busy</html>", {}),
        (200, b"not json", {}),
    ]
    met: dict[str, int] = {}

    def reply(number: int, request: dict) -> tuple[int, bytes, dict]:
        name = str(frames_of(request))
        met[name] = met.get(name, 0) + 1
        return trouble[met[name] - 1] if met[name] <= len(trouble) else describe(number, request)

    with serve(reply) as server:
        caption(shards=str(shards), out=tmp_path / "rough", model="fake", endpoint=server.url, ask=QUICK)
    assert len(server.requests) == 4 * 12
    assert contents(tmp_path / "rough") == contents(tmp_path / "smooth")


@pytest.mark.parametrize(
    "nonsense",
    [b"", b"[]", b'{"choices": []}', b'{"choices": [{"message": null}]}', b'{"choices": 3}', b"\xff\xfe", b"null"],
)
def test_nonsense_is_one_sentence(nonsense: bytes) -> None:
    with pytest.raises(DataError, match=r"answer: expected a chat completion as JSON, got .*; check the endpoint\.$"):
        read_answer(nonsense)


def test_answers_of_other_servers_are_read() -> None:
    parts = {"choices": [{"message": {"content": [{"type": "text", "text": "push"}, {"type": "text", "text": " it"}]}}]}
    assert read_answer(json.dumps(parts).encode()).text == "push it"
    assert read_answer(completion("<think>a hand?\nyes</think>Push it")).text == "Push it"
    assert read_answer(completion("Push it")).revision == "fake-2026-01-01"


def test_a_failed_shard_leaves_the_others_and_is_the_only_one_done_again(shards: Path, tmp_path: Path) -> None:
    def reply(number: int, request: dict) -> tuple[int, bytes, dict]:
        broken = frames_of(request)[0] == (3, 0)
        return (500, b'{"error": {"message": "out of memory"}}', {}) if broken else describe(number, request)

    with serve(reply) as server, pytest.raises(DataError, match=r"1 of \d shards failed .*500 out of memory") as raised:
        caption(shards=str(shards), out=tmp_path, model="fake", endpoint=server.url, ask=QUICK)
    assert "\n" not in str(raised.value)
    finished = {path.name: path.stat().st_mtime_ns for path in list_shards(tmp_path)}
    assert len(finished) == len(list_shards(shards)) - 1
    with serve(describe) as server:  # another port: the address is no parameter of the result
        manifest = caption(shards=str(shards), out=tmp_path, model="fake", endpoint=server.url, ask=QUICK)
        assert len(server.requests) <= 6
    assert manifest["generated"] == 12
    assert {name: (tmp_path / name).stat().st_mtime_ns for name in finished} == finished


@pytest.mark.parametrize(("status", "words"), [(401, "set the key"), (404, "check the address"), (400, "too many")])
def test_an_endpoint_that_refuses_ends_the_stage_at_once(
    shards: Path, tmp_path: Path, status: int, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GR2_API_KEY", "secret-key-1")
    answer = b'{"error": {"message": "too many images", "code": null}}'
    one = AskConfig(attempts=4, first_wait_seconds=0.01, requests_at_once=1)
    with (
        serve(lambda number, request: (status, answer, {})) as server,
        pytest.raises(ConfigError, match=words) as raised,
    ):
        caption(shards=str(shards), out=tmp_path, model="fake", endpoint=server.url, ask=one)
    assert len(server.requests) <= 2  # the next one may be on its way
    assert server.headers[0]["Authorization"] == "Bearer secret-key-1"
    written = str(raised.value).encode() + b"".join(contents(tmp_path).values())
    assert b"secret-key-1" not in written


def test_the_key_follows_no_redirect(shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTHER_KEY", "secret-key-2")
    config = AskConfig(attempts=2, first_wait_seconds=0.01, key_variable="OTHER_KEY")
    with serve(describe) as other:
        moved = {"Location": f"{other.url}/chat/completions"}
        with serve(lambda number, request: (302, b"", moved)) as server, pytest.raises(ConfigError, match="302"):
            caption(shards=str(shards), out=tmp_path, model="fake", endpoint=server.url, ask=config)
    assert server.headers[0]["Authorization"] == "Bearer secret-key-2"
    assert other.requests == []


def test_nobody_at_the_address_is_one_sentence(shards: Path, tmp_path: Path) -> None:
    with serve(describe) as server:
        gone = server.url
    config = AskConfig(attempts=2, first_wait_seconds=0.01, timeout_seconds=2)
    with pytest.raises(ConfigError, match=r"nobody answers after 2 attempts .*run the same command again") as raised:
        caption(shards=str(shards), out=tmp_path, model="fake", endpoint=gone, ask=config)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("address", ["localhost:8000/v1", "file:///etc/passwd", "http://", "http://h/v1?key=1"])
def test_addresses_that_are_none_are_refused(address: str) -> None:
    with pytest.raises(ConfigError, match="expected an address"):
        check_endpoint(address)


def test_passwords_and_broken_keys_are_refused_without_being_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError) as raised:
        check_endpoint("https://me:hunter2@host/v1")
    assert "hunter2" not in str(raised.value)
    monkeypatch.setenv("GR2_API_KEY", "hunter2\r\nX-Other: 1")
    with pytest.raises(ConfigError) as raised:
        open_captioner("fake", "http://host/v1", AskConfig(attempts=3))
    assert "hunter2" not in str(raised.value)
    assert (
        check_endpoint("http://host:1/v1/chat/completions") == check_endpoint("http://host:1/v1/") == "http://host:1/v1"
    )


@pytest.mark.parametrize("after", [0, 3, 5])
def test_a_killed_run_goes_on_to_the_same_bytes(shards: Path, tmp_path: Path, after: int) -> None:
    with serve(describe) as server:
        common = {"shards": str(shards), "model": "fake", "endpoint": server.url, "ask": QUICK}
        whole = caption(out=tmp_path / "whole", **common)
        run_and_kill(caption, after, {"out": tmp_path / "killed", **common})
        asked = len(server.requests)
        assert caption(out=tmp_path / "killed", **common) == whole
        assert after == 0 or len(server.requests) - asked < 12
        assert contents(tmp_path / "killed") == contents(tmp_path / "whole")
        assert caption(out=tmp_path / "killed", **common) == whole
        with pytest.raises(DataError, match="prompt changed"):
            caption(out=tmp_path / "killed", **common, prompt="What is done?")


def test_worker_processes_write_the_same_bytes(shards: Path, tmp_path: Path) -> None:
    with serve(describe) as server:
        common = {"shards": str(shards), "model": "fake", "endpoint": server.url, "ask": QUICK}
        caption(out=tmp_path / "one", **common)
        caption(out=tmp_path / "two", **common, num_workers=2)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def write_described(out: Path, samples: dict[str, tuple[bytes, dict, str]]) -> None:
    """Write video shards by hand: key -> video, facts, caption; 12 frames at 4 Hz, one window."""
    begin_stage(out, "video_shards", {"source": "made"}, False)
    with ShardWriter(out, 1 << 30) as writer:
        for key, (video, facts, words) in samples.items():
            description = {
                "caption": words,
                "fps": 4.0,
                "videos": {"static": {"member": "static.mp4", "height": 96, "width": 128}},
                "windows": [{"start": 0, "stop": LEVELS, "caption": words}],
                "source": key,
                "facts": facts,
            }
            members = {"static.mp4": video, "json": json.dumps(description).encode()}
            writer.write(key, members, video_row(description))
        name = writer.finish_shard({"tally": {}}).name
    finish_stage(out, "video_shards", {"source": "made"}, Tally(kept=len(samples)), {"shards": [name], "columns": []})


def test_speech_is_told_to_the_model_and_keeps_its_kind(tmp_path: Path) -> None:
    write_clips(tmp_path / "in", 2)
    clips = [(tmp_path / f"in/clip_{i}.mp4").read_bytes() for i in range(2)]
    spoken = 'so "now" we\ncut ' + "it " * 400
    samples = {
        "heard": (clips[0], {"caption_kind": "asr"}, spoken),
        "silent": (clips[1], {"caption_kind": "asr"}, ""),
        "broken": (clips[1][:1500], {}, "stays out"),
    }
    write_described(tmp_path / "shards", samples)
    with serve(describe) as server:
        common = {"model": "fake", "endpoint": server.url, "ask": QUICK, "prompt": "What?"}
        manifest = caption(shards=str(tmp_path / "shards"), out=tmp_path / "out", **common)
        heard, silent = sorted(map(text_of, server.requests), key=len, reverse=True)
        assert silent == "What?"
        assert heard.startswith("What?\nThe speaker said: \"so 'now' we cut it it") and len(heard) < 800
        assert manifest["counts"]["dropped"] == {"undecodable": 1} and manifest["counts"]["kept"] == 2
        found = {window["source"]: window for window in windows_in(tmp_path / "out")}
        assert [one["kind"] for one in found["heard"]["captions"]] == ["asr", "generated"]
        assert [one["kind"] for one in found["silent"]["captions"]] == ["generated"]
        again = caption(shards=str(tmp_path / "out"), out=tmp_path / "again", keep="original", **common)
    assert again["generated"] == 2
    found = {window["source"]: window for window in windows_in(tmp_path / "again")}
    assert [one["kind"] for one in found["heard"]["captions"]] == ["asr", "generated", "generated"]
    assert found["heard"]["caption"] == spoken
    assert "The speaker said" in max(map(text_of, server.requests[2:]), key=len)


def test_keep_decides_which_caption_is_trained_on() -> None:
    original, generated = {"text": "cut.", "kind": "asr"}, {"text": "Cut the onion.", "kind": "generated"}
    table = {
        ("generated", 2): "Cut the onion.",
        ("original", 2): "cut.",
        ("both", 2): "cut. Cut the onion.",
        ("generated", 1): "cut.",
        ("original", 1): "cut.",
        ("both", 1): "cut.",
        ("generated", 0): "",
    }
    for (keep, count), wanted in table.items():
        assert choose_caption([original, generated][:count], keep) == wanted
    assert choose_caption([generated], "original") == choose_caption([generated], "both") == "Cut the onion."


def test_options_that_cannot_be_used_are_refused_before_anything_is_written(shards: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    for wrong in ({"num_frames": 0}, {"prompt": " "}, {"model": ""}, {"short_side": 0}):
        with pytest.raises(ConfigError, match="expected at least 1 and some text"):
            caption(**{"shards": str(shards), "out": out, "model": "fake", "endpoint": "http://host/v1"} | wrong)
    for name in ("max_tokens", "requests_at_once", "attempts"):
        with pytest.raises(ConfigError, match=name):
            AskConfig(**{name: 0})
    with pytest.raises(DataError):
        caption(shards=str(tmp_path / "none"), out=out, model="fake", endpoint="http://host/v1")
    assert not out.exists()


def test_a_local_model_without_transformers_names_the_extra(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(EnvironmentMissing, match="the extra `caption`"):
        caption(shards=str(shards), out=tmp_path / "out", model=str(tmp_path))
    assert not (tmp_path / "out").exists()


def test_the_command_line_captions(shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with serve(describe) as server:
        words = f"data caption --shards {shards} --out {tmp_path / 'out'} --model fake --endpoint {server.url}"
        assert main([*words.split(), "--keep", "both", "--num-frames", "2", "--ask.requests-at-once", "3"]) == 0
    assert server.most_in_flight <= 3
    assert "12 of 12 windows captioned; answers not used: none" in capsys.readouterr().out
    manifest = json.loads((tmp_path / "out/manifest.json").read_text())
    assert manifest["stage"] == STAGE and manifest["status"] == "complete"
    assert all(re.fullmatch(r"original \d\. push block .*", one["caption"]) for one in windows_in(tmp_path / "out"))


@pytest.mark.nightly
def test_a_tiny_local_model_captions_and_says_its_revision(shards: Path, tmp_path: Path) -> None:
    pytest.importorskip("transformers", reason="transformers comes with the extra 'caption'")
    save_tiny_model(tmp_path / "model")
    common = {"shards": str(shards), "model": str(tmp_path / "model"), "num_frames": 2, "short_side": 32}
    config = AskConfig(max_tokens=6, device="cpu")
    manifest = caption(out=tmp_path / "one", ask=config, **common)
    assert re.fullmatch("sha256:[0-9a-f]{64}", manifest["parameters"]["revision"])
    assert manifest["generated"] + sum(manifest["unused_answers"].values()) == 12 and manifest["generated"] > 0
    caption(out=tmp_path / "two", ask=config, **common)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    made = [one for window in windows_in(tmp_path / "one") for one in window["captions"] if one["kind"] == "generated"]
    assert {one["revision"] for one in made} == {manifest["parameters"]["revision"]}
    assert len(made) == manifest["generated"]
    (tmp_path / "model/extra.json").write_text("{}")
    with pytest.raises(DataError, match="revision changed"):
        caption(out=tmp_path / "one", ask=config, **common)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="expected a folder or hub name"):
        caption(out=tmp_path / "three", ask=config, **{**common, "model": str(tmp_path / "empty")})


def save_tiny_model(folder: Path) -> None:
    """Save a randomly initialized LLaVA of a few thousand weights with its processor and chat template."""
    import torch
    import transformers

    from tokenizers import Tokenizer, models, pre_tokenizers

    words = ["<unk>", "<pad>", "</s>", "<image>", *PROMPT.replace("'", " ").split(), *"abcdefghijklmnopqrstuvwxyz"]
    vocabulary = {word: i for i, word in enumerate(dict.fromkeys(words))}
    raw = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=raw,
        unk_token="<unk>",
        pad_token="<pad>",
        eos_token="</s>",
        additional_special_tokens=["<image>"],
    )
    image = {"height": 28, "width": 28}
    processor = transformers.LlavaProcessor(
        image_processor=transformers.CLIPImageProcessor(size={"shortest_edge": 28}, crop_size=image),
        tokenizer=tokenizer,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=(
            "{% for message in messages %}{% for part in message['content'] %}"
            "{% if part['type'] == 'image' %}<image>{% else %}{{ part['text'] }}{% endif %}"
            "{% endfor %}{% endfor %}"
        ),
    )
    torch.manual_seed(0)
    layers = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = transformers.LlavaConfig(
        vision_config=transformers.CLIPVisionConfig(image_size=28, patch_size=14, **layers),
        text_config=transformers.LlamaConfig(
            vocab_size=len(vocabulary), eos_token_id=2, pad_token_id=1, bos_token_id=None, **layers
        ),
        image_token_index=vocabulary["<image>"],
    )
    network = transformers.LlavaForConditionalGeneration(config)
    network.generation_config.forced_eos_token_id = 2  # so that an answer ends, as a trained model ends it
    network.save_pretrained(folder)
    processor.save_pretrained(folder)
