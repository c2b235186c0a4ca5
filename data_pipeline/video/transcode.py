"""Encode frames as H.264 in MP4, one at a time, and cut parts out of long videos."""

from __future__ import annotations

import io
import itertools
from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ...contracts import Array
from ...errors import DataError
from .decoders import quarter_turns

_OPTIONS = {
    "preset": "medium",
    # x264's look-ahead gives other bytes from run to run on some processors; without it, equal frames give equal files.
    "x264-params": "mbtree=0:rc-lookahead=0",
}

_TIME_ROUNDING = 1e-3
"""Error of a time stamp [s]; Matroska keeps milliseconds."""


def encode_frames(
    frames: Iterable[Array],
    fps: float,
    short_side: int | None = None,
    crf: int = 10,
    pixel_format: str = "yuv444p",
    key_frame_interval: int = 16,
) -> bytes:
    """Encode uint8 `[h w 3]` frames; one is in memory at a time, equal frames give equal bytes.

    The defaults keep things of a few pixels: yuv420p, which browsers need, halves the color resolution.

    Args:
        frames: RGB frames of one size.
        fps: frames a second.
        short_side: greatest length of the shorter side [px]; None keeps the size.
        crf: constant rate factor, 0 (lossless but for the color conversion) to 51.
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
    """Encode the frames of a video whose times lie in `[start, stop)` [s], one at a time.

    Times are those of the file: a stream that starts late keeps its first time stamp. The rate is that of the file;
    where its frames come at another pace in that part (a variable frame rate), it is the pace of the part.

    Raises:
        DataError: the file cannot be read, or has no frame in that time.
    """
    import av

    try:
        with av.open(str(file)) as container:
            stream = container.streams.best("video")
            if stream is None:
                raise DataError(f"{file}: holds no video stream, expected one; leave it out.")
            stream.codec_context.thread_count = 1
            begin, end = start - _TIME_ROUNDING, stop - _TIME_ROUNDING
            seek = _seek_before(container, stream, begin)
            times = _times_between(container, stream, begin, end)
            stated = float(stream.average_rate or stream.guessed_rate or 0)
            rate = _pace(times, stated)
            if not rate:
                raise DataError(f"{file}: states no frame rate, expected frames a second; encode it again.")
            container.seek(seek, stream=stream, backward=True)
            shown = _frames_between(container, stream, begin, end)
            first = next(shown, None)
            if first is None:
                raise DataError(f"{file}: shows no frame from {start:.3f} to {stop:.3f} s; correct the times.")
            return encode_frames(itertools.chain([first], shown), rate, short_side)
    except (OSError, av.FFmpegError) as error:
        raise DataError(
            f"{file}: the video is truncated or corrupt ({error}); copy it again or leave it out."
        ) from error


def video_extent(file: Path) -> tuple[float, float]:
    """Return when the video of a file begins and ends [s], in times of the file, from its header alone.

    Raises:
        DataError: the file cannot be opened, holds no video, or does not state how long it is.
    """
    import av

    try:
        with av.open(str(file)) as container:
            stream = container.streams.best("video")
            if stream is None:
                raise DataError(f"{file}: holds no video stream, expected one; leave it out.")
            if stream.duration is not None and stream.time_base is not None:
                unit = float(stream.time_base)
                start, length = (stream.start_time or 0) * unit, stream.duration * unit
            else:
                start, length = (container.start_time or 0) / av.time_base, (container.duration or 0) / av.time_base
    except (OSError, av.FFmpegError) as error:
        raise DataError(
            f"{file}: the video is truncated or corrupt ({error}); copy it again or leave it out."
        ) from error
    if length <= 0:
        raise DataError(f"{file}: states no duration, expected seconds; encode it again.")
    return start, start + length


def _seek_before(container: Any, stream: Any, start: float) -> int:
    """Seek to a key frame at or before `start` [s], or to the first one; return the time stamp that leads there.

    A container without an index (MPEG-TS) may come out behind the time asked for: then it is asked for an earlier one.
    """
    import av

    first, back = float((stream.start_time or 0) * stream.time_base), 0.0
    while True:
        wanted = max(start - back, first)
        stamp = int(wanted / stream.time_base)
        container.seek(stamp, stream=stream, backward=True)
        packets = (packet for packet in container.demux(stream) if packet.is_keyframe and packet.pts is not None)
        key_frame = next(packets, None)
        if wanted == first or (key_frame is not None and key_frame.pts * stream.time_base <= start):
            break
        back = max(2 * back, 1.0)
    if wanted == first:
        try:
            before_first = int((first - 1.0) / stream.time_base)
            container.seek(before_first, stream=stream, backward=True)
            return before_first
        except av.FFmpegError:  # AVI knows no time before the first, and needs none
            pass
    container.seek(stamp, stream=stream, backward=True)
    return stamp


def _times_between(container: Any, stream: Any, start: float, stop: float) -> list[float]:
    """List the times of the frames in `[start, stop)` [s] in order, from where the container stands, undecoded."""
    times = []
    for packet in container.demux(stream):
        if packet.dts is not None and packet.dts * stream.time_base >= stop:
            break
        if packet.pts is not None and start <= packet.pts * stream.time_base < stop:
            times.append(float(packet.pts * stream.time_base))
    return sorted(times)


def _pace(times: Sequence[float], stated: float) -> float:
    """Return the rate of frames at these times [1/s]: the stated one, unless it is off by more than a twentieth."""
    if len(times) < 2 or times[-1] <= times[0]:
        return stated
    pace = (len(times) - 1) / (times[-1] - times[0])
    # A few rounded time stamps hold less than the file does.
    off = abs(pace - stated) - _TIME_ROUNDING * pace / (times[-1] - times[0])
    return pace if off > 0.05 * stated else stated


def _frames_between(container: Any, stream: Any, start: float, stop: float) -> Iterator[Array]:
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
