"""Encode frames as H.264 in MP4, one at a time, and cut parts out of long videos."""

from __future__ import annotations

import io
import itertools
from collections.abc import Iterable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..gr_model.contracts import Array
from ..gr_model.errors import DataError
from .decoders import quarter_turns

_OPTIONS = {
    "preset": "medium",
    # x264's look-ahead gives other bytes from run to run on some processors; without it, equal frames give equal files.
    "x264-params": "mbtree=0:rc-lookahead=0",
}


def encode_frames(
    frames: Iterable[Array],
    fps: float,
    short_side: int | None = None,
    crf: int = 10,
    pixel_format: str = "yuv444p",
    key_frame_interval: int = 16,
) -> bytes:
    """Encode uint8 `[h w 3]` frames; one is in memory at a time, equal frames give equal bytes.

    The defaults keep things of a few pixels: yuv420p, which browsers need, halves the colour resolution.

    Args:
        frames: RGB frames of one size.
        fps: frames a second.
        short_side: greatest length of the shorter side [px]; None keeps the size.
        crf: constant rate factor, 0 (lossless but for the colour conversion) to 51.
        pixel_format: `yuv444p`, or `yuv420p` (even height and width).
        key_frame_interval: frames between key frames; smaller seeks faster and costs bytes.

    Raises:
        DataError: for frames of another shape or type, none at all, or an odd size with yuv420p.
    """
    import av

    stream_of_frames = iter(frames)
    first = next(stream_of_frames, None)
    if first is None:
        raise DataError("video: expected at least one frame, got none; leave the clip out.")
    _check_frame(first, first.shape)
    height, width = _scaled(first.shape[0], first.shape[1], short_side)
    if pixel_format == "yuv420p" and (height % 2 or width % 2):
        raise DataError(f"video: yuv420p needs an even size, got {height} x {width}; use yuv444p or crop by one pixel.")
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream: Any = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(100_000))
        stream.width, stream.height, stream.pix_fmt = width, height, pixel_format
        stream.codec_context.thread_count = 1
        stream.options = {**_OPTIONS, "crf": str(crf), "g": str(key_frame_interval)}
        for pixels in itertools.chain([first], stream_of_frames):
            _check_frame(pixels, first.shape)
            if pixels.shape[:2] != (height, width):
                resized = Image.fromarray(pixels).resize((width, height), Image.Resampling.HAMMING)
                pixels = np.asarray(resized)
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return buffer.getvalue()


def cut_video(file: Path, start: float, stop: float, short_side: int | None = None) -> bytes:
    """Encode the frames that a video shows in `[start, stop)` [s], at the rate of the file.

    Times are those of the file: a stream that starts late keeps its first time stamp. Frames are decoded from the key
    frame before `start` on, one at a time.

    Raises:
        DataError: the file cannot be read, or shows no frame in that time.
    """
    import av

    try:
        with av.open(str(file)) as container:
            stream = container.streams.best("video")
            if stream is None:
                raise DataError(f"{file}: holds no video stream, expected one; leave it out.")
            stream.codec_context.thread_count = 1
            rate = float(stream.average_rate or stream.guessed_rate or 0)
            if not rate:
                raise DataError(f"{file}: states no frame rate, expected frames a second; encode it again.")
            shown = _frames_between(container, stream, start - 0.5 / rate, stop - 0.5 / rate)
            first = next(shown, None)
            if first is None:
                raise DataError(f"{file}: shows no frame from {start:.3f} to {stop:.3f} s; correct the times.")
            return encode_frames(itertools.chain([first], shown), rate, short_side)
    except (OSError, av.FFmpegError) as error:
        raise DataError(
            f"{file}: the video is truncated or corrupt ({error}); copy it again or leave it out."
        ) from error


def _frames_between(container: Any, stream: Any, start: float, stop: float) -> Iterator[Array]:
    container.seek(int(max(start, 0) / stream.time_base), stream=stream, backward=True)
    for frame in container.decode(stream):
        if frame.time is None or frame.time < start:
            continue
        if frame.time >= stop:
            return
        pixels = frame.to_ndarray(format="rgb24")
        turns = quarter_turns(frame)
        yield np.rot90(pixels, turns) if turns else pixels


def _check_frame(frame: Array, shape: tuple[int, ...]) -> None:
    if frame.ndim != 3 or frame.shape[-1] != 3 or frame.dtype != np.uint8 or frame.shape != shape:
        raise DataError(
            f"video: expected frames uint8 (h, w, 3) of one size, got {frame.dtype} {frame.shape} after {shape}; "
            "convert them first."
        )


def _scaled(height: int, width: int, short_side: int | None) -> tuple[int, int]:
    """Return the size with a shorter side of at most `short_side`; scaled sizes are even."""
    if short_side is None or min(height, width) <= short_side:
        return height, width
    scale = short_side / min(height, width)
    return max(2, 2 * round(height * scale / 2)), max(2, 2 * round(width * scale / 2))
