"""Decoding by index: each frame is the one asked for, at its time, from every decoder."""

from __future__ import annotations

import io
import random
import subprocess
import sys
import time
from fractions import Fraction
from typing import Any

import av
import numpy as np
import pytest
from video_cases import BACKENDS, EVEN, FILES, SAMPLES, encode, encode_streams, image, needs_samples

from gr2.data_pipeline.video.decord_decoder import load_decord
from gr2.data_pipeline.video.reader import VIDEO_SUFFIXES, open_video
from gr2.errors import DataError, EnvironmentMissing

DECORD_WOULD_ERR = {
    "edit list hides frames",
    "no edit list",
    "fragmented",
    "gradual refresh",
    "mpeg4 with B-frames",
    "no time stamps, avi",
    "mpeg4, avi",
    "transport stream",
    "program stream",
}


def decoded_in_order(data: bytes) -> np.ndarray:
    """Decode everything from the start with bare PyAV: uint8 `[f h w 3]`."""
    with av.open(io.BytesIO(data)) as container:
        container.streams.video[0].thread_count = 1
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


@pytest.mark.parametrize("name", FILES)
def test_each_frame_is_the_one_asked_for_at_its_time(name: str) -> None:
    make, stamps = FILES[name]
    data = make()
    expected, count = decoded_in_order(data), len(stamps)
    backwards, random_order = list(range(count - 1, -1, -1)), random.Random(0).choices(range(count), k=20)
    with open_video(data) as reader:
        assert reader.shape == expected.shape[:3] and len(reader) == count
        assert np.allclose(reader.times, (np.array(stamps) - stamps[0]) / 1000, atol=1e-6) and reader.times[0] == 0
        assert reader.is_constant_rate == ("variable" not in name)
        assert reader.fps == pytest.approx((count - 1) / reader.times[-1] if count > 1 else 10, rel=0.01)
        for wanted in (backwards, random_order, range(count)):
            assert np.array_equal(reader.get_batch(wanted), expected[wanted]), wanted
    for number in {0, count // 3, count // 2, count - 1}:
        with open_video(data) as reader:
            assert np.array_equal(reader.get_batch([number])[0], expected[number]), number


@pytest.mark.parametrize("backend", [b for b in BACKENDS if b != "pyav"])
@pytest.mark.parametrize("name", FILES)
def test_other_decoders_give_the_same_or_refuse(name: str, backend: Any) -> None:
    data = FILES[name][0]()
    with open_video(data) as reader:
        times, fps, everything = reader.times, reader.fps, reader.get_batch(range(len(reader)))
    answered, refusals = 0, []
    for wanted in ([len(times) - 1], list(range(len(times) - 1, -1, -1)), list(range(len(times)))):
        try:
            with open_video(data, backend) as reader:
                assert np.array_equal(reader.times, times) and reader.fps == fps and reader.backend == backend
                assert np.array_equal(reader.get_batch(wanted), everything[wanted])
                answered += 1
        except DataError as error:
            refusals.append(str(error))
    assert all("auto" in refusal or "no more frames left" in refusal for refusal in refusals)
    if backend == "decord":
        assert answered == 0 or name not in DECORD_WOULD_ERR
        assert answered == 3 or name in DECORD_WOULD_ERR | {"gif", "open groups", "starts late"}


@needs_samples
@pytest.mark.parametrize("backend", [b for b in BACKENDS if b != "pyav"])
def test_decoders_agree_on_every_real_file_that_both_open(backend: Any) -> None:
    compared = []
    for path in sorted(p for p in SAMPLES.rglob("*") if p.suffix in VIDEO_SUFFIXES):
        try:
            with open_video(path, backend=backend) as reader:
                wanted = sorted({0, len(reader) // 2, len(reader) - 1})
                other, times, shape = reader.get_batch(wanted), reader.times, reader.shape
        except DataError:
            continue
        with open_video(path, backend="pyav") as reader:
            frames = reader.get_batch(wanted)
            assert np.array_equal(reader.times, times) and reader.shape == shape
        difference = np.abs(frames.astype(int) - other).mean()
        assert difference < 5 if "10bits" in path.name else difference == 0, path.name
        compared.append(path.name)
    assert len(compared) == {"decord": 8, "torchcodec": 12}[backend], compared


@needs_samples
def test_real_files_have_the_times_they_were_made_with() -> None:
    for name, frames, fps in (
        ("web/armwrestling_k400.mp4", 280, 28),
        ("rt1/videos/val/6/rgb.mp4", 29, 3),
        ("hands/cutting_loaf.gif", 40, 10),
        ("edge/av1_video.mkv", 125, 25),
        ("edge/unordered.mov", 4, 32),
        ("web/eye_makeup_ucf.avi", 164, 25),
    ):
        with open_video(SAMPLES / name) as reader:
            assert len(reader) == frames and reader.fps == fps and reader.is_constant_rate
            assert np.allclose(reader.times, np.arange(frames) / fps, atol=0.001), name


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("codec", "size", "options"), [
    ("libvpx-vp9", (47, 63), {}),
    ("libx264", (48, 64), {"x264-params": "tff=1"}),
    ("libx264", (48, 64), {}),
])  # fmt: skip
def test_odd_interlaced_and_stretched_pixels(backend: str, codec: str, size: tuple[int, int], options: dict) -> None:
    def stretch(stream: Any) -> None:
        stream.codec_context.sample_aspect_ratio = Fraction(2, 1)

    data = encode(range(12), "matroska", codec, "yuv420p", size, prepare=stretch, tick=Fraction(1, 10), options=options)
    with open_video(data) as reader:
        expected = reader.get_batch(range(12))
    with open_video(data, backend) as reader:
        assert reader.shape == (12, *size)  # neither stretched to square pixels nor split into fields
        difference = np.abs(reader.get_batch(range(12)).astype(int) - expected).mean()
    assert difference < 1.0 if size == (47, 63) or options else difference == 0


@pytest.mark.parametrize("backend", BACKENDS)
def test_resizing_while_decoding(backend: str) -> None:
    with open_video(encode(EVEN[:4], options={"bf": "0"}), backend, width=32, height=12) as reader:
        assert reader.shape == (4, 12, 32)
        small = reader.get_batch([2])[0]
    blocks = image(2).reshape(12, 4, 32, 2, 3).mean((1, 3))
    assert np.abs(small - blocks).mean() < 6
    with open_video(encode(EVEN[:4], options={"bf": "0"}), backend, height=24) as reader:
        assert reader.get_batch([1]).shape == (1, 24, 64, 3)


@pytest.mark.parametrize("backend", BACKENDS)
def test_of_two_videos_all_decoders_read_the_same(backend: str) -> None:
    for videos in ([(48, 64, 30), (96, 128, 20)], [(96, 128, 20), (48, 64, 30)], [(48, 64, 20), (48, 64, 30)]):
        data = encode_streams(videos)
        with open_video(data) as reader:
            expected = reader.get_batch([len(reader) - 1])
        if backend == "decord":
            with pytest.raises(DataError, match="2 video streams"):
                open_video(data, "decord")
            continue
        with open_video(data, backend) as reader:
            assert np.array_equal(reader.get_batch([len(reader) - 1]), expected)


@pytest.mark.nightly
@needs_samples
@pytest.mark.parametrize(
    "name", ["web/armwrestling_k400.mp4", "rt1/videos/val/10/rgb.mp4", "bridge/videos/val/10/rgb.mp4"]
)
def test_reading_costs_no_more_than_bare_decord(name: str) -> None:
    # Processor time of the whole process: wall time shows little on a machine that is shared.
    decord = load_decord()
    path = SAMPLES / name
    count = len(decord.VideoReader(str(path), num_threads=1))
    for wanted in (range(16), range(count // 2 - 8, count // 2 + 8), np.linspace(0, count - 1, 10).round().astype(int)):
        ratios = []
        for _ in range(11):
            start = time.process_time()
            decord.VideoReader(str(path), num_threads=1).get_batch(list(wanted)).asnumpy()
            middle = time.process_time()
            with open_video(path) as reader:
                reader.get_batch(wanted)
            ratios.append((middle - start) / (time.process_time() - middle))
        assert np.median(ratios) > 0.9, (name, list(wanted), ratios)


def test_torchcodec_is_imported_only_when_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    program = (
        "import sys, gr2.data_pipeline.video.reader as video\n"
        "video.open_video(sys.stdin.buffer.read()).get_batch([0])\n"
        "assert not {'torch', 'torchcodec', 'decord'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], input=encode(EVEN[:2]), check=True, timeout=60)
    monkeypatch.setitem(sys.modules, "torchcodec", None)
    monkeypatch.setitem(sys.modules, "torchcodec.decoders", None)
    with pytest.raises(EnvironmentMissing, match="apt-get install ffmpeg"):
        open_video(encode(EVEN[:2]), backend="torchcodec")
    monkeypatch.setitem(sys.modules, "decord", None)
    with pytest.raises(EnvironmentMissing, match="pip install decord"):
        open_video(encode(EVEN[:2]), backend="decord")
