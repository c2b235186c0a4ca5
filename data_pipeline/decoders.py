"""Two video decoders behind one interface: decord (fast) and PyAV (opens everything FFmpeg opens).

Both give identical pixels for 8-bit video (10-bit differs in how colour is upsampled). PyAV finds a frame by
its time stamp: the time stamps of all packets are read once, without decoding; each request seeks to the key
frame before it. Where decoded time stamps do not rise one by one, frames are counted from the start instead.
"""

from __future__ import annotations

import io
import os
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

import numpy as np

from ..gr_model.contracts import Array
from ..gr_model.errors import DataError, EnvironmentMissing

Source = Path | bytes


class Decoder(Protocol):
    """What `video.VideoReader` needs: `num_frames`, `fps`, size, frames by index.

    height, width: size of the frames given [px], after rotation and resizing.
    """

    name: str
    num_frames: int
    fps: float
    height: int
    width: int

    def frames(self, indices: Sequence[int]) -> Array:
        """Decode uint8 `[f h w 3]` in the order of `indices`."""
        ...

    def close(self) -> None:
        """Release the file."""
        ...


def load_decord() -> ModuleType:
    """Import decord with its C++ log silenced and its endless retries at a broken end bounded.

    Raises:
        EnvironmentMissing: where decord is not installed (no wheel on this platform).
    """
    os.environ.setdefault("DECORD_EOF_RETRY_MAX", "512")
    try:
        import decord
    except (ImportError, OSError) as error:
        raise EnvironmentMissing(
            f"decord cannot be imported ({error}); install it with `pip install decord` (x86-64 only), "
            "or use backend='pyav'."
        ) from error
    decord.logging.set_level(decord.logging.QUIET)
    return decord


def quarter_turns(frame: Any) -> int:
    """Return how often `np.rot90` must turn a decoded frame so that it stands as the file says."""
    return round(frame.rotation / 90) % 4


class DecordDecoder:
    """Decode with decord, one thread, without its (thread-local) bridges."""

    name = "decord"

    def __init__(self, source: Source, width: int | None, height: int | None) -> None:
        decord = load_decord()
        opened = str(source) if isinstance(source, Path) else io.BytesIO(source)
        self._reader: Any = decord.VideoReader(opened, num_threads=1, width=width or -1, height=height or -1)
        self.num_frames = len(self._reader)
        self.fps = float(self._reader.get_avg_fps())
        if self.num_frames == 0:
            raise DataError("the video stream holds no frames, expected at least one.")
        self.height, self.width = (int(size) for size in self._reader[0].shape[:2])

    def frames(self, indices: Sequence[int]) -> Array:
        """Decode uint8 `[f h w 3]` in the order of `indices`."""
        decoded: Array = self._reader.get_batch(list(indices)).asnumpy()
        return decoded

    def close(self) -> None:
        """Release the file."""
        self._reader = None


class AvDecoder:
    """Decode with PyAV: any codec of FFmpeg, exact seeking, rotation applied as decord applies it."""

    name = "pyav"

    def __init__(self, source: Source, width: int | None, height: int | None) -> None:
        import av

        opened = str(source) if isinstance(source, Path) else io.BytesIO(source)
        self._container: Any = av.open(opened)
        try:
            self._prepare(width, height)
        except BaseException:
            self._container.close()
            raise

    def _prepare(self, width: int | None, height: int | None) -> None:
        self._stream: Any = self._container.streams.best("video")
        if self._stream is None:
            raise DataError("the file holds no video stream, expected one.")
        self._stream.thread_count = 1
        self._index_packets()
        rate = self._stream.average_rate or self._stream.guessed_rate
        if not rate:
            raise DataError("the video stream states no frame rate, expected frames a second.")
        self.fps = float(rate)
        self._size: tuple[int, int] | None = None
        self.height: int
        self.width: int
        first = self._convert(next(self._decode_from(0))[1])
        if width is not None or height is not None:
            self._size = (height or first.shape[0], width or first.shape[1])
        self.height, self.width = self._size or first.shape[:2]

    def _index_packets(self) -> None:
        times, keys = [], []
        for packet in self._container.demux(self._stream):
            if packet.pts is None or packet.is_discard:
                continue
            times.append(packet.pts)
            if packet.is_keyframe:
                keys.append(packet.pts)
        stated = self._stream.frames
        if not times or stated > len(times) + 1:
            raise DataError(f"the video is truncated: expected {stated or 'some'} frames, found {len(times)}.")
        self._times = sorted(times)
        self._index_of = {time: i for i, time in enumerate(self._times)}
        self._keys = sorted(self._index_of[time] for time in keys) or [0]
        self._times_are_true = len(self._index_of) == len(times)
        self.num_frames = len(times)

    def frames(self, indices: Sequence[int]) -> Array:
        """Decode uint8 `[f h w 3]` in the order of `indices`."""
        out = np.empty((len(indices), self.height, self.width, 3), np.uint8)
        stream: Iterator[tuple[int, Any]] | None = None
        position, pixels = -1, None
        for slot in np.argsort(indices, kind="stable"):
            index = indices[slot]
            if index != position or pixels is None:
                if stream is None or self._key_before(index) > position:
                    stream = self._decode_from(self._key_before(index))
                frame = next((frame for position, frame in stream if position == index), None)
                if frame is None:
                    raise DataError(f"frame {index} of {self.num_frames} cannot be decoded.")
                position, pixels = index, self._convert(frame)
            out[slot] = pixels
        return out

    def _key_before(self, index: int) -> int:
        return self._keys[max(bisect_right(self._keys, index) - 1, 0)] if self._times_are_true else 0

    def _decode_from(self, index: int) -> Iterator[tuple[int, Any]]:
        """Yield (index, frame) from a key frame on; restart by counting where the time stamps lie."""
        self._container.seek(self._times[index], stream=self._stream, backward=True)
        previous = None
        for count, frame in enumerate(self._container.decode(self._stream)):
            found = self._index_of.get(frame.pts) if self._times_are_true else count
            if found is None or (previous is not None and found != previous + 1):
                # AVI with packed B-frames: decoding order is right, its time stamps are not.
                self._times_are_true = False
                for found, frame in self._decode_from(0):
                    if previous is None or found > previous:
                        yield found, frame
                return
            yield found, frame
            previous = found

    def _convert(self, frame: Any) -> Array:
        turns = quarter_turns(frame)
        if self._size is None:
            pixels = frame.to_ndarray(format="rgb24")
        else:
            height, width = self._size[::-1] if turns % 2 else self._size
            pixels = frame.to_ndarray(format="rgb24", width=width, height=height)
        return np.rot90(pixels, turns) if turns else pixels

    def close(self) -> None:
        """Release the file."""
        self._container.close()
