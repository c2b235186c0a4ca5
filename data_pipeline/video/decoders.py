"""One interface of all decoders, and the one that reads by default: PyAV, which opens everything FFmpeg opens.

Every decoder takes the frames and their times from one `VideoIndex` and gives identical pixels for 8-bit video, but for
halved color of odd sizes and interlaced images (less than one gray level on average). 10-bit video differs by a few.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any, Protocol

import numpy as np

from ...contracts import Array
from ...errors import DataError
from .index import Source, VideoIndex, index_video, open_container, video_stream

MAX_PIXELS = 1 << 26
"""Greatest frame that is decoded [px]; 8K has half of it. A broken header must not fill the memory."""

SEEK_COST = 3
"""Frames that are decoded rather than skipped by seeking [frames]; a decoder that starts again must fill up first."""


class Decoder(Protocol):
    """What `video.VideoReader` needs: the index, the size, frames by index.

    size: height and width of the frames given [px], after rotation and resizing.
    """

    name: str
    index: VideoIndex

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the frames given [px]."""
        ...

    def frames(self, indices: Sequence[int]) -> Array:
        """Decode uint8 `[f h w 3]` in the order of `indices`."""
        ...

    def close(self) -> None:
        """Release the file."""
        ...


def quarter_turns(frame: Any) -> int:
    """Return how often `np.rot90` must turn a decoded frame so that it stands as the file states."""
    return round(frame.rotation / 90) % 4


class AvDecoder:
    """Decode with PyAV: any codec of FFmpeg, exact seeking, rotation applied.

    Decoding continues where the last request ended, so reading on costs no seek. Where decoded time stamps are not
    those of the packets (B-frames packed in AVI), frames are counted from the start instead.
    """

    name = "pyav"

    def __init__(self, source: Source, width: int | None, height: int | None) -> None:
        self._source = source
        self._container: Any = open_container(source)
        try:
            self._prepare(width, height)
        except BaseException:
            self._container.close()
            raise

    def _prepare(self, width: int | None, height: int | None) -> None:
        from av.video.reformatter import VideoReformatter

        # One for all frames: it keeps FFmpeg's conversion tables, which cost as much as converting a small frame.
        self._reformatter = VideoReformatter()
        self._stream: Any = video_stream(self._container)
        self.index = index_video(self._source, self._container, self._stream)
        stamps = self.index.stamps
        self._frame_of = None if stamps is None else {stamp: frame for frame, stamp in enumerate(stamps)}
        self._gaps_are_true = False
        self._seek_by_dts = False
        self._decoded: Iterator[tuple[int, Any]] = iter(())
        self._frame: Any = None
        self._position = -1
        first = self._decode(0)
        sides = (first.height, first.width)
        if sides[0] * sides[1] > MAX_PIXELS:
            raise DataError(f"a frame has {sides[0]} x {sides[1]} pixels, expected at most {MAX_PIXELS} in all.")
        stored = sides[::-1] if quarter_turns(first) % 2 else sides
        self.size = (height or stored[0], width or stored[1])

    def frames(self, indices: Sequence[int]) -> Array:
        """Decode uint8 `[f h w 3]` in the order of `indices`."""
        out = np.empty((len(indices), *self.size, 3), np.uint8)
        written: dict[int, int] = {}
        for slot in np.argsort(indices, kind="stable"):
            frame = indices[slot]
            if frame in written:
                out[slot] = out[written[frame]]
            else:
                self._convert(self._decode(frame), out[slot])
                written[frame] = slot
        return out

    def _decode(self, wanted: int) -> Any:
        """Decode one frame, from where decoding stands or from a key frame before it."""
        if wanted == self._position:
            return self._frame
        key = -1 if self._frame_of is None else self.index.key_before(wanted)
        reached = 0 if key < 0 else self.index.keys[key].frame
        if self._position < 0 or not reached - SEEK_COST <= self._position < wanted:
            self._start(key)
        while True:
            before = (self._frame_of, self._gaps_are_true)
            found = next((pair for pair in self._decoded if pair[0] >= wanted), None)
            if found is not None and found[0] == wanted:
                self._position, self._frame = found
                return self._frame
            if before == (self._frame_of, self._gaps_are_true):
                if key < 0:
                    raise DataError(f"frame {wanted} of {self.index.num_frames} cannot be decoded.")
                # FFmpeg went to a later key frame (MP4 without edit list seeks by decoding time), or gave no frame
                # until the image had recovered.
                if self._seek_by_dts or self.index.keys[key].dts >= self.index.keys[key].pts:
                    key -= 1
                else:
                    self._seek_by_dts = True
            self._start(-1 if self._frame_of is None else key)

    def _start(self, key: int) -> None:
        """Decode from a key frame on, or from the start of the file for -1."""
        self._position, self._frame = -1, None
        if key < 0:
            self._container.close()
            self._container = open_container(self._source)
            self._stream = video_stream(self._container)
        else:
            place = self.index.keys[key]
            self._container.seek(place.dts if self._seek_by_dts else place.pts, stream=self._stream, backward=True)
        self._decoded = self._numbered()

    def _numbered(self) -> Iterator[tuple[int, Any]]:
        """Yield frames with their numbers; end early where the numbers prove wrong, with other rules from then on."""
        previous = None
        for count, frame in enumerate(self._container.decode(self._stream)):
            found = count if self._frame_of is None else self._frame_of.get(frame.pts)
            is_next = found is not None and (previous is None or found == previous + 1)
            if not is_next and not self._gaps_are_true:
                self._explain_gap()
                return
            if found is not None:
                yield found, frame
                previous = found

    def _explain_gap(self) -> None:
        """Distinguish wrong time stamps, where all frames decode, from frames that do not decode."""
        from av import FFmpegError

        counted = 0
        with open_container(self._source) as container, suppress(FFmpegError):
            for _ in container.decode(video_stream(container)):
                counted += 1
        if counted == self.index.num_frames:
            self._frame_of = None
        else:
            self._gaps_are_true = True

    def _convert(self, frame: Any, out: Array) -> None:
        """Write a decoded frame as RGB, resized and turned, to `out`, uint8 `[h w 3]`."""
        turns = quarter_turns(frame)
        height, width = out.shape[1::-1] if turns % 2 else out.shape[:2]
        rgb = self._reformatter.reformat(frame, width=width, height=height, format="rgb24")
        plane = rgb.planes[0]
        rows = np.frombuffer(memoryview(plane), np.uint8).reshape(height, plane.line_size)
        out[:] = np.rot90(rows[:, : 3 * width].reshape(height, width, 3), turns)

    def close(self) -> None:
        """Release the file."""
        self._decoded, self._frame = iter(()), None
        self._container.close()
