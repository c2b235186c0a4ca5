"""Every frame of a video and its time, read from the packets without decoding: the same for each decoder.

Where packets carry no usable time stamps (program streams, B-frames in AVI) the frames are decoded once and counted.
"""

from __future__ import annotations

import io
import itertools
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...contracts import Array
from ...errors import DataError

Source = Path | bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyFrame:
    """A place where decoding can start.

    frame: the first frame shown from here on.
    pts, dts: time stamps of presentation and of decoding [ticks]; pts is where the file has no dts.
    number: how many packets with frames to show come before it.
    """

    frame: int
    pts: int
    dts: int
    number: int


@dataclass(frozen=True, slots=True, kw_only=True)
class VideoIndex:
    """All frames of one video stream in the order they are shown.

    stream: number of the stream in the file; video_streams: how many the file holds.
    container, codec: as FFmpeg names them.
    tick: time base of the stream [s].
    stamps: presentation time stamps, rising [ticks]; None where the packets do not have them.
    times: presentation times relative to the first frame, float64 `[f]` [s].
    keys: places to start from, by frame; at least one where `stamps` are known.
    hidden: frames that an edit list hides.
    fps: the stated rate where the times agree with it within 1 %, else the mean rate of the times [frames a second].
    """

    stream: int
    video_streams: int
    container: str
    codec: str
    tick: float
    stamps: Sequence[int] | None
    times: Array
    keys: Sequence[KeyFrame]
    hidden: int
    fps: float

    @property
    def num_frames(self) -> int:
        """Count the frames."""
        return len(self.times)

    @property
    def is_constant_rate(self) -> bool:
        """Return whether all frames follow each other at one rate, but for the rounding of time stamps."""
        if self.num_frames < 3:
            return True
        steps = np.diff(self.times)
        even = np.linspace(0.0, self.times[-1], self.num_frames)
        drift = float(np.abs(self.times - even).max())
        return drift <= 1.5 * self.tick and float(np.ptp(steps)) <= 0.5 * float(np.median(steps))

    def key_before(self, frame: int) -> int:
        """Return the number of the last key from which `frame` can be reached; 0 where none comes before it."""
        return max(bisect_right(self.keys, frame, key=lambda key: key.frame) - 1, 0)


def open_container(source: Source) -> Any:
    """Open a video with PyAV; metadata that is no UTF-8 is passed over."""
    import av

    lenient: dict[str, Any] = (
        {} if int(av.__version__.split(".")[0]) >= 19 else {"metadata_errors": "ignore"}
    )  # 19 always is
    return av.open(str(source) if isinstance(source, Path) else io.BytesIO(source), **lenient)


def video_stream(container: Any) -> Any:
    """Choose FFmpeg's best video stream and decode it in one thread.

    Raises:
        DataError: the file holds no video, or a cover image alone.
    """
    import av

    stream = container.streams.best("video")
    if stream is None:
        raise DataError("the file holds no video stream, expected one.")
    if stream.disposition & av.stream.Disposition.attached_pic:
        raise DataError("the file holds no video stream but a cover image, expected a video.")
    stream.thread_count = 1
    return stream


def index_video(source: Source, container: Any, stream: Any) -> VideoIndex:
    """Read all packets of a stream, which leaves the container at its end.

    Raises:
        DataError: the file is truncated, holds no frames, or no times of them.
    """
    shown: list[tuple[int | None, int | None, bool]] = []
    hidden: list[tuple[int | None, int | None, bool]] = []
    for packet in container.demux(stream):
        if packet.size:
            facts = (packet.pts, packet.dts, packet.is_keyframe)
            (hidden if packet.is_discard else shown).append(facts)
    if not shown:
        raise DataError("the video stream holds no frames, expected at least one.")
    stamps: list[int] | None = sorted(pts for pts, _, _ in shown if pts is not None)
    if len(set(stamps or ())) < len(shown):
        stamps = None
    tick = float(stream.time_base or 0)
    rate = float(stream.average_rate or stream.guessed_rate or 0)
    if stamps is not None and tick:
        times = _stamped_times(stamps, tick)
    else:
        stamps, times = None, _counted_times(source, [dts for _, dts, _ in shown], tick, rate)
    start_s = stamps[0] * tick if stamps is not None else 0.0
    _check_whole(container, stream, len(shown) + len(hidden), start_s + times, rate)
    return VideoIndex(
        stream=stream.index,
        video_streams=len(container.streams.video),
        container=container.format.name,
        codec=stream.codec_context.name,
        tick=tick,
        stamps=stamps,
        times=times,
        keys=_keys(stamps, shown, hidden) if stamps is not None else (),
        hidden=len(hidden),
        fps=_rate(times, rate),
    )


def _check_whole(container: Any, stream: Any, packets: int, file_times: Array, rate: float) -> None:
    """Find a cut end by what the header promises; the last frame of an edit list may be left out.

    Transport and program streams, GIF and Matroska with sound promise nothing that could be checked; with PyAV before
    16, which does not show the index, the same goes for MP4.
    """
    name = container.format.name
    entries = getattr(stream, "index_entries", None)
    if "mov" in name and entries is not None:
        promised = len(entries)
        if promised > packets + 1:
            raise DataError(f"the video is truncated: expected {promised} frames, found {packets}.")
        return
    if name == "avi":
        promised_s = stream.frames * float(stream.time_base)
    elif ("matroska" in name or "mov" in name) and len(container.streams) == 1:
        promised_s = (container.duration or 0) / 1e6
    else:
        return
    end_s, longest_s = float(file_times[-1]), float(np.diff(file_times).max(initial=1 / rate if rate else 0.0))
    if promised_s > (end_s + 2 * longest_s) * 1.01 + 0.02:
        raise DataError(f"the video is truncated: expected {promised_s:.2f} s, found {end_s:.2f} s.")


def _stamped_times(stamps: Sequence[int], tick: float) -> Array:
    exact = np.asarray(stamps, dtype=np.int64)
    return (exact - exact[0]).astype(np.float64) * tick


def _counted_times(source: Source, decoding_stamps: Sequence[int | None], tick: float, rate: float) -> Array:
    """Decode the whole video for the number of its frames; take their times from wherever they rise."""
    with open_container(source) as container:
        stamps = [frame.pts for frame in container.decode(video_stream(container))]
    if not stamps:
        raise DataError("no frame of the video can be decoded.")
    for candidates in (stamps, decoding_stamps):
        known = [stamp for stamp in candidates if stamp is not None]
        if tick and len(known) == len(stamps) and all(a < b for a, b in itertools.pairwise(known)):
            return _stamped_times(known, tick)
    if not rate:
        raise DataError("the video states neither a frame rate nor the times of its frames.")
    return np.arange(len(stamps), dtype=np.float64) / rate


def _keys(
    stamps: Sequence[int],
    shown: Sequence[tuple[int | None, int | None, bool]],
    hidden: Sequence[tuple[int | None, int | None, bool]],
) -> list[KeyFrame]:
    keys = [
        KeyFrame(frame=bisect_left(stamps, pts), pts=pts, dts=pts if dts is None else dts, number=number)
        for group in (hidden, shown)
        for number, (pts, dts, is_key) in enumerate(group)
        if is_key and pts is not None
    ]
    first = KeyFrame(frame=0, pts=stamps[0], dts=stamps[0], number=0)
    return sorted(keys, key=lambda key: key.pts) or [first]


def _rate(times: Array, stated: float) -> float:
    if len(times) > 1 and times[-1] > 0:
        mean = (len(times) - 1) / float(times[-1])
        return stated if abs(stated / mean - 1) <= 0.01 else mean
    if not stated:
        raise DataError("the video stream states no frame rate, expected frames a second.")
    return stated
