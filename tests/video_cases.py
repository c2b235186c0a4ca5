"""Videos of every kind that the decoders must read, made again for each test."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from gr2.data_pipeline.video.torchcodec_decoder import load_torchcodec
from gr2.errors import EnvironmentMissing

SAMPLES = Path(__file__).parent.parent / "../shared/real_samples"
needs_samples = pytest.mark.skipif(not SAMPLES.is_dir(), reason="real sample videos are not beside the checkout")

MILLISECOND = Fraction(1, 1000)
EVEN = [100 * i for i in range(30)]
UNEVEN = np.cumsum(np.random.default_rng(0).integers(20, 200, 30)).tolist()


def _why_no_torchcodec() -> str:
    try:
        load_torchcodec()
    except EnvironmentMissing as error:
        return str(error)
    return ""


NO_TORCHCODEC = _why_no_torchcodec()
BACKENDS = [
    "pyav",
    "decord",
    pytest.param("torchcodec", marks=pytest.mark.skipif(bool(NO_TORCHCODEC), reason=NO_TORCHCODEC)),
]


def image(number: int, height: int = 48, width: int = 64) -> np.ndarray:
    """Draw a frame that no other number looks like: uint8 `[h w 3]`."""
    frame = np.zeros((height, width, 3), np.uint8)
    frame[:] = (number * 37 % 200 + 20, number * 91 % 200 + 20, 60)
    left = number * 3 % (width - 16)
    frame[4:20, left : left + 16] = (250, 250 - number * 5 % 200, number * 9 % 250)
    return frame


def add_video(container: Any, codec: str, pixels: str, height: int, width: int, options: dict[str, str]) -> Any:
    """Add a video stream with a key frame every 8 frames."""
    stream = container.add_stream(codec, rate=25 if codec.startswith("mpeg1") else 10)
    stream.height, stream.width, stream.pix_fmt = height, width, pixels
    stream.codec_context.thread_count = 1
    stream.options = {"g": "8", **options}
    return stream


def encode(
    stamps: Sequence[int] = EVEN,
    container: str = "mp4",
    codec: str = "libx264",
    pixels: str = "yuv444p",
    size: tuple[int, int] = (48, 64),
    muxer: dict[str, str] | None = None,
    tick: Fraction = MILLISECOND,
    prepare: Callable[[Any], None] = lambda stream: None,
    options: dict[str, str] | None = None,
) -> bytes:
    """Encode one image at each time stamp [ticks]."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=container, options=muxer or {}) as output:
        stream = add_video(output, codec, pixels, *size, options or {})
        stream.codec_context.time_base = tick
        prepare(stream)
        for number, stamp in enumerate(stamps):
            frame = av.VideoFrame.from_ndarray(image(number, *size), format="rgb24")
            frame.pts, frame.time_base = stamp, tick
            output.mux(stream.encode(frame))
        output.mux(stream.encode())
    return buffer.getvalue()


FILES: dict[str, tuple[Callable[[], bytes], list[int]]] = {
    "B-frames": (encode, EVEN),
    "no B-frames": (lambda: encode(options={"bf": "0"}), EVEN),
    "variable rate": (lambda: encode(UNEVEN), UNEVEN),
    "variable rate, mkv": (lambda: encode(UNEVEN, "matroska"), UNEVEN),
    "starts late": (lambda: encode([t + 2000 for t in EVEN]), EVEN),
    "starts late, mkv": (lambda: encode([t + 2000 for t in EVEN], "matroska"), EVEN),
    "edit list hides frames": (lambda: encode([t - 500 for t in EVEN]), EVEN[5:]),
    "edit list, no B-frames": (lambda: encode([t - 500 for t in EVEN], options={"bf": "0"}), EVEN[5:]),
    "negative offsets": (lambda: encode(muxer={"movflags": "negative_cts_offsets"}), EVEN),
    "no edit list": (lambda: encode(muxer={"use_editlist": "0"}), EVEN),
    "fragmented": (lambda: encode(muxer={"movflags": "frag_keyframe+empty_moov"}), EVEN),
    "gradual refresh": (lambda: encode(options={"x264-params": "intra-refresh=1"}), EVEN),
    "open groups": (lambda: encode(options={"x264-params": "open-gop=1:keyint=8:bframes=3:scenecut=0"}), EVEN),
    "mpeg4 with B-frames": (lambda: encode(codec="mpeg4", pixels="yuv420p", options={"bf": "2"}), EVEN),
    "no time stamps, avi": (lambda: encode(container="avi", pixels="yuv420p", options={"bf": "2"}), EVEN),
    "mpeg4, avi": (lambda: encode(container="avi", codec="mpeg4", pixels="yuv420p"), EVEN),
    "transport stream": (lambda: encode(container="mpegts", pixels="yuv420p"), EVEN),
    "program stream": (
        lambda: encode(range(30), "mpeg", "mpeg1video", "yuv420p", tick=Fraction(1, 25)),
        [40 * i for i in range(30)],
    ),
    "vp9, webm": (lambda: encode(container="webm", codec="libvpx-vp9", pixels="yuv420p"), EVEN),
    "gif": (lambda: encode(container="gif", codec="gif", pixels="rgb8"), EVEN),
    "one frame": (lambda: encode([0]), [0]),
    "two frames, mkv": (lambda: encode([0, 100], "matroska"), [0, 100]),
}


def encode_streams(videos: Sequence[tuple[int, int, int]], sound: bool = False, cover: bool = False) -> bytes:
    """Encode streams of (height, width, frames), sound and an attached image into one MP4."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as output:
        streams = [add_video(output, "libx264", "yuv444p", height, width, {}) for height, width, _ in videos]
        voice = output.add_stream("aac", rate=16000, layout="mono") if sound else None
        art: Any = add_video(output, "mjpeg", "yuvj420p", 192, 256, {}) if cover else None
        if art is not None:
            art.disposition = av.stream.Disposition.attached_pic
            frame = av.VideoFrame.from_ndarray(image(5, 192, 256), format="rgb24")
            output.mux([*art.encode(frame.reformat(format="yuvj420p")), *art.encode()])
        for number in range(20 if voice is not None else 0):
            tone = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            tone.sample_rate, tone.pts = 16000, number * 1024
            output.mux(voice.encode(tone))
        for (height, width, count), stream in zip(videos, streams, strict=True):
            for number in range(count):
                output.mux(stream.encode(av.VideoFrame.from_ndarray(image(number, height, width), format="rgb24")))
            output.mux(stream.encode())
    return buffer.getvalue()
