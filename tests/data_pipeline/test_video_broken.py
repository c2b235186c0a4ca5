"""Broken, truncated and foreign files: frames or one sentence, never the end of the process, never lost memory."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import numpy as np
import pytest
from video_cases import BACKENDS, EVEN, FILES, encode, encode_streams

from gr2.data_pipeline.video import decoders
from gr2.data_pipeline.video.index import _check_whole
from gr2.data_pipeline.video.reader import open_video
from gr2.errors import ConfigError, DataError


def test_sound_and_cover_images_are_no_video() -> None:
    with open_video(encode_streams([(48, 64, 30)], sound=True, cover=True)) as reader:
        assert reader.shape == (30, 48, 64)
    with pytest.raises(DataError, match="holds no video stream, expected one"):
        open_video(encode_streams([], sound=True))
    with pytest.raises(DataError, match="but a cover image"):
        open_video(encode_streams([], sound=True, cover=True))


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_is_no_video_is_refused_in_one_sentence(tmp_path: Path, backend: str) -> None:
    (tmp_path / "folder.mp4").mkdir()
    (tmp_path / "text.mp4").write_text("no video at all\n" * 50)
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "header.mp4").write_bytes(encode()[:40])
    for name, reason in {
        "folder": "folder",
        "text": "corrupt",
        "empty": "empty",
        "header": "video",
        "none": "no such",
    }.items():
        with pytest.raises(DataError, match=reason) as caught:
            open_video(tmp_path / f"{name}.mp4", backend)
        assert str(tmp_path / name) in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(ConfigError, match="got 'opencv'"):
        open_video(tmp_path / "text.mp4", backend="opencv")  # type: ignore[arg-type]


@pytest.mark.parametrize(("container", "muxer", "codec"), [
    ("mp4", {}, "libx264"),
    ("mp4", {"movflags": "faststart"}, "libx264"),
    ("avi", {}, "mpeg4"),
    ("matroska", {}, "libx264"),
    ("webm", {}, "libvpx-vp9"),
])  # fmt: skip
def test_truncated_files_are_refused_at_every_tenth(tmp_path: Path, container: str, muxer: dict, codec: str) -> None:
    path = tmp_path / "whole"
    if muxer:  # the index comes first only in a file
        with (
            av.open(str(path), "w", format=container, options=muxer) as output,
            av.open(io.BytesIO(encode())) as source,
        ):
            stream = output.add_stream_from_template(source.streams.video[0])
            for packet in source.demux(video=0):
                if packet.size:
                    packet.stream = stream
                    output.mux(packet)
    else:
        path.write_bytes(encode(container=container, codec=codec, pixels="yuv420p"))
    whole = path.read_bytes()
    with open_video(whole) as reader:
        everything = reader.get_batch(range(30))
    for tenth in range(1, 10):
        try:
            with open_video(whole[: len(whole) * tenth // 10]) as reader:
                found, numbers = reader.get_batch(range(len(reader))), np.rint(reader.times * 10).astype(int)
        except DataError:
            continue
        # Nothing shows that the last few frames are gone; those that are given are right.
        assert len(found) >= 27 and np.array_equal(found, everything[numbers]), tenth


def test_a_cut_end_shows_by_the_duration_where_pyav_hides_the_index() -> None:
    container: Any = SimpleNamespace(format=SimpleNamespace(name="mov,mp4"), streams=[0], duration=3_000_000)
    stream, times = SimpleNamespace(), np.arange(30) / 10
    _check_whole(container, stream, 30, times, 10.0)
    with pytest.raises(DataError, match=r"expected 3\.00 s, found 1\.90 s"):
        _check_whole(container, stream, 20, times[:20], 10.0)


def test_frames_that_do_not_decode_are_named_and_the_rest_is_given() -> None:
    data = bytearray(encode(container="matroska", pixels="yuv420p", options={"bf": "0"}))
    with av.open(io.BytesIO(bytes(data))) as container:
        packets = [bytes(packet) for packet in container.demux(video=0) if packet.size]
    start = data.index(packets[12])
    data[start : start + len(packets[12])] = bytes(len(packets[12]))
    with open_video(encode(container="matroska", pixels="yuv420p", options={"bf": "0"})) as reader:
        expected = reader.get_batch([0, 11, 25])
    with open_video(bytes(data)) as reader:
        assert np.array_equal(reader.get_batch([0, 11]), expected[:2])
        with pytest.raises(DataError, match=r"frame 12 of 30|corrupt"):
            reader.get_batch([12])
        assert np.array_equal(reader.get_batch([25])[0], expected[2])


def test_frames_of_a_broken_header_do_not_fill_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoders, "MAX_PIXELS", 48 * 64 - 1)
    with pytest.raises(DataError, match="48 x 64 pixels, expected at most 3071"):
        open_video(encode(EVEN[:2]))


FUZZ = """
import random, sys
from pathlib import Path
from gr2.data_pipeline.video.reader import open_video
from gr2.errors import DataError
whole, first, last = Path(sys.argv[1]).read_bytes(), int(sys.argv[2]), int(sys.argv[3])
frames = errors = 0
for seed in range(first, last):
    chance, data = random.Random(seed), bytearray(whole)
    for _ in range(chance.choice([1, 1, 2, 8])):
        data[chance.randrange(len(data))] = chance.randrange(256)
    try:
        with open_video(bytes(data)) as reader:
            wanted = [0, len(reader) // 2, len(reader) - 1, *range(min(len(reader), 40))]
            assert reader.get_batch(wanted).shape[0] == len(wanted) == len(reader.times[wanted])
        frames += 1
    except DataError as error:
        assert "\\n" not in str(error)
        errors += 1
print(frames, errors)
"""


def fuzz(path: Path, first: int, last: int, limit_s: float) -> tuple[int, int]:
    """Change random bytes of a file in a process of its own; count files that gave frames, and a DataError."""
    command = [sys.executable, "-c", FUZZ, str(path), str(first), str(last)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=limit_s, check=False)
    assert result.returncode == 0, result.stderr[-2000:]
    frames, errors = map(int, result.stdout.split())
    return frames, errors


@pytest.mark.parametrize("name", ["B-frames", "vp9, webm", "mpeg4 with B-frames", "mpeg4, avi"])
def test_random_bytes_give_frames_or_a_sentence(tmp_path: Path, name: str) -> None:
    (tmp_path / "video").write_bytes(FILES[name][0]())
    frames, errors = fuzz(tmp_path / "video", 0, 150, limit_s=60)
    assert frames + errors == 150 and frames and errors


@pytest.mark.nightly
@pytest.mark.parametrize("name", ["B-frames", "vp9, webm", "mpeg4 with B-frames", "mpeg4, avi", "transport stream"])
def test_ten_thousand_random_bytes_give_frames_or_a_sentence(tmp_path: Path, name: str) -> None:
    (tmp_path / "video").write_bytes(FILES[name][0]())
    frames, errors = fuzz(tmp_path / "video", 1000, 11_000, limit_s=1200)
    assert frames + errors == 10_000 and frames and errors


def resident_megabytes() -> float:
    """Read the resident memory of this process [MB]."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 1e6


def open_often(data: bytes, backend: str, times: int) -> float:
    """Open, read and close a video again and again; give the growth of the memory after the first tenth [MB]."""
    before = 0.0
    for i in range(times):
        if i == times // 10:
            before = resident_megabytes()
        with open_video(data, backend) as reader:  # type: ignore[arg-type]
            reader.get_batch([0, len(reader) - 1])
    return resident_megabytes() - before


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="resident memory is read from /proc")
@pytest.mark.parametrize("backend", BACKENDS)
def test_opening_again_and_again_keeps_the_memory(backend: str) -> None:
    data = encode(size=(192, 256), options={"bf": "0"})
    # a lost frame each would be 20 every time; other tests of this process move the memory once
    assert min(open_often(data, backend, 150) for _ in range(3)) < 10


@pytest.mark.nightly
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="resident memory is read from /proc")
@pytest.mark.parametrize("backend", BACKENDS)
def test_two_thousand_openings_keep_the_memory(backend: str) -> None:
    assert (
        open_often(encode(size=(192, 256), options={"bf": "0"}), backend, 2000) < 20
    )  # a lost frame each would be 265
