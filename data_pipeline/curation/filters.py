"""Filters: decide from a few decoded frames whether a clip is worth keeping, and give the reason where not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ...contracts import Array
from ...errors import DataError
from ..contacts import misses_target
from ..readers.record import Record, Video, VideoBytes
from ..video.reader import open_video

MISSING = "missing"
"""Reason of an annotated clip that was not downloaded: no fault, a corpus is rarely there in full."""


@dataclass(frozen=True, kw_only=True)
class FilterConfig:
    """Thresholds of the filters.

    Args:
        min_frames: a clip with fewer frames is dropped as `too_short`.
        min_seconds: a clip that lasts less [s] is dropped as `too_short`.
        min_motion: a clip whose probed frames differ less on average [gray levels of 255] is dropped as `static`.
        target_touched: drop as `target_untouched` an episode that says what its hand touched, and that this is nothing
            of what its instruction is about (contact labels, docs/policies.md).
        probe_frames: frames decoded for the probe, spread evenly, the first and the last among them.
    """

    min_frames: int = 2
    min_seconds: float = 0.5
    min_motion: float = 0.2
    target_touched: bool = True
    probe_frames: int = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class VideoFacts:
    """What opening a video shows.

    height, width: [px]; backend: decoder in use; motion: mean frame difference [gray levels of 255].
    """

    frames: int
    fps: float
    height: int
    width: int
    backend: str
    motion: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """The result of all filters on one record; `reason` is empty for a record to keep.

    videos: camera -> facts, for the cameras that could be opened.
    """

    reason: str
    detail: str
    videos: Mapping[str, VideoFacts]


def probe_video(video: Video, probe_frames: int) -> VideoFacts:
    """Open a video and decode a few frames of it.

    Raises:
        DataError: where the file cannot be opened or the frames cannot be decoded.
    """
    if not isinstance(video, Path | VideoBytes):
        video = video.encode()
    with open_video(video.data if isinstance(video, VideoBytes) else video) as reader:
        num_frames, height, width = reader.shape
        indices = np.unique(np.linspace(0, num_frames - 1, max(probe_frames, 2)).round().astype(int))
        frames = reader.get_batch(indices)
        return VideoFacts(
            frames=num_frames,
            fps=reader.fps,
            height=height,
            width=width,
            backend=reader.backend,
            motion=mean_frame_difference(frames),
        )


def mean_frame_difference(frames: Array) -> float:
    """Average the absolute difference of successive frames [gray levels of 255] of uint8 `[f h w 3]`."""
    if len(frames) < 2:
        return 0.0
    pairs = zip(frames[1:].astype(np.int16), frames[:-1].astype(np.int16), strict=True)
    return float(np.mean([np.abs(later - earlier).mean() for later, earlier in pairs]))


def examine(record: Record, config: FilterConfig) -> Verdict:
    """Apply all filters to one record; a broken video is a verdict, never an error."""
    if record.problem:
        reason = MISSING if record.missing else "unreadable"
        return Verdict(reason=reason, detail=record.problem, videos={})
    videos = {}
    for camera, video in record.videos.items():
        try:
            videos[camera] = probe_video(video, config.probe_frames)
        except DataError as error:
            return Verdict(reason="undecodable", detail=f"{camera}: {error}", videos=videos)
    facts = list(videos.values())
    reason, detail = first_fault(record, facts, config)
    return Verdict(reason=reason if detail else "", detail=detail, videos=videos)


def first_fault(record: Record, videos: Sequence[VideoFacts], config: FilterConfig) -> tuple[str, str]:
    """Return the first filter that a record does not pass, and why; the reason is empty where it passes all."""
    if not videos:
        return "no_video", "the record has no video: its states and actions alone are good for `gr2 data statistics`"
    return next(
        filter(lambda fault: fault[1], (
            mismatched(record, videos), too_short(videos, config), static(videos, config), untouched(record, config)
        )),
        ("", ""),
    )  # fmt: skip


def mismatched(record: Record, videos: Sequence[VideoFacts]) -> tuple[str, str]:
    """Find cameras, or images and steps, of different length."""
    lengths = sorted({video.frames for video in videos})
    if len(lengths) > 1:
        return "mismatched", f"the cameras have {lengths} frames"
    if record.states is not None and lengths[0] != -(-len(record.states) // record.frame_stride):
        detail = f"{lengths[0]} frames for {len(record.states)} steps, one frame each {record.frame_stride}"
        return "mismatched", detail
    return "mismatched", ""


def too_short(videos: Sequence[VideoFacts], config: FilterConfig) -> tuple[str, str]:
    """Find a clip of too few frames or too little time."""
    frames = min(video.frames for video in videos)
    seconds = min(video.frames / video.fps for video in videos)
    if frames < config.min_frames or seconds < config.min_seconds:
        detail = f"{frames} frames, {seconds:.2f} s (limits {config.min_frames}, {config.min_seconds} s)"
        return "too_short", detail
    return "too_short", ""


def static(videos: Sequence[VideoFacts], config: FilterConfig) -> tuple[str, str]:
    """Find a clip in which no camera sees anything move."""
    motion = max(video.motion for video in videos)
    if motion < config.min_motion:
        return "static", f"mean frame difference {motion:.3f} (limit {config.min_motion})"
    return "static", ""


def untouched(record: Record, config: FilterConfig) -> tuple[str, str]:
    """Find an episode whose hand touches nothing of what its instruction is about."""
    if config.target_touched and misses_target(record.facts):
        return "target_untouched", f"the hand touches nothing of {', '.join(map(str, record.facts['target']))}"
    return "target_untouched", ""
