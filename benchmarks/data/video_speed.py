"""Video shards beside bare decord on the same clips, and what each stage of curation costs."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TypeVar

import numpy as np

from ...contracts import Array
from ...data_pipeline.curation.cuts import find_cuts
from ...data_pipeline.curation.filters import probe_video
from ...data_pipeline.curation.hands import SkinMotionHands
from ...data_pipeline.curation.near_duplicates import clip_hash, group_duplicates
from ...data_pipeline.curation.quality import measure_quality
from ...data_pipeline.loading.clip_windows import ClipWindows
from ...data_pipeline.loading.loader import BatchLoader
from ...data_pipeline.video.decord_decoder import load_decord
from ...data_pipeline.video.reader import open_video
from ..metrics.rounds import Rate, compare_rates

T = TypeVar("T")

WINDOW_FRAMES, WINDOW_STRIDE = 16, 16
CLIPS_OF_GR2 = 38_000_000
"""Clips that GR-2 was pretrained on. Source: Cheang et al., GR-2, 2024, section 2.1."""

PROBE_SIDE, PROBE_FRAMES = 160, 12


def open_clips(shards: Path, size: int) -> BatchLoader:
    """Open a loader that gives every window of 16 frames once an epoch, one a batch."""
    windows = ClipWindows([shards], ["static"], num_frames=WINDOW_FRAMES, stride=WINDOW_STRIDE, size=size)
    return BatchLoader(windows, batch_size=1, seed=0)


def loader_rates(shards: Path, videos: list[Path], size: int, rounds: int) -> dict[str, Rate]:
    """Collect all windows of 16 frames from shards, resized, beside decord; rates are frames a second."""
    loader = open_clips(shards, size)

    def ours() -> int:
        return sum(batch["frames"]["static"].shape[1] for batch in islice(loader, len(loader)))

    reference = f"decord, files at {size} px"
    return compare_rates(
        {f"gr2, batches from shards at {size} px": ours, reference: partial(_bare, videos, size)}, rounds, reference
    )


def decoder_rates(videos: list[Path], rounds: int) -> dict[str, Rate]:
    """Decode the same windows at full size by `open_video`, beside decord; rates are frames a second."""

    def ours() -> int:
        return sum(len(_read(video, indices)) for video, indices in _windows(videos))

    return compare_rates(
        {"gr2, open_video at full size": ours, "decord, files at full size": partial(_bare, videos, -1)},
        rounds,
        "decord, files at full size",
    )


def _read(video: Path, indices: list[int]) -> Array:
    with open_video(video) as reader:
        return reader.get_batch(indices)


def _windows(videos: list[Path]) -> Iterator[tuple[Path, list[int]]]:
    """List the windows that `ClipWindows` makes of the videos; each is read from a reader of its own."""
    for video in videos:
        with open_video(video) as reader:
            count = len(reader)
        for start in range(0, max(count - WINDOW_FRAMES, 0) + 1, WINDOW_STRIDE):
            yield video, np.minimum(np.arange(start, start + WINDOW_FRAMES), count - 1).tolist()


def _bare(videos: list[Path], size: int) -> int:
    decord, frames = load_decord(), 0
    for video, indices in _windows(videos):
        reader = decord.VideoReader(str(video), num_threads=1, width=size, height=size)
        frames += len(reader.get_batch(indices).asnumpy())
    return frames


def stage_costs(videos: list[Path]) -> dict[str, float]:
    """Measure the seconds that each stage of curation takes for a clip, on one core."""
    costs: dict[str, float] = {}

    def timed(name: str, work: Callable[[], T]) -> T:
        begin = time.perf_counter()
        result = work()
        costs[name] = costs.get(name, 0.0) + (time.perf_counter() - begin) / len(videos)
        return result

    hashes = []
    detector = SkinMotionHands()
    for video in videos:
        timed("ingest: open, probe 12 frames", partial(probe_video, video, 12))
        frames = timed("decode every frame at 160 px", partial(_decode_small, video))
        probe = frames[np.unique(np.linspace(0, len(frames) - 1, PROBE_FRAMES).round().astype(int))]
        timed("scene cuts", partial(find_cuts, frames))
        timed("motion, sharpness, light, text", partial(measure_quality, probe))
        timed("hands", partial(detector, probe))
        hashes.append(timed("hash", partial(clip_hash, probe)))
    many = np.random.default_rng(0).integers(0, 2**64, (50_000, len(hashes[0])), dtype=np.uint64)
    begin = time.perf_counter()
    group_duplicates(many)
    costs["near-duplicates (50,000 clips)"] = (time.perf_counter() - begin) / len(many)
    return costs


def _decode_small(video: Path) -> Array:
    with open_video(video) as reader:
        height, width = reader.shape[1:]
    scale = min(PROBE_SIDE / min(height, width), 1.0)
    with open_video(video, height=round(height * scale), width=round(width * scale)) as reader:
        return reader.get_batch(range(len(reader)))


def mean_seconds(videos: list[Path]) -> float:
    """Return the mean duration of videos [s]."""
    durations = []
    for video in videos:
        with open_video(video) as reader:
            durations.append(len(reader) / reader.fps)
    return float(np.mean(durations))


def cost_table(costs: Mapping[str, float]) -> list[str]:
    """Lay out clips a second and the core-hours of GR-2's 38 million clips, a line for each stage."""
    lines = [f"{'stage, one core':<36}{'ms a clip':>12}{'clips/s':>12}{'core-hours of 38 M':>20}"]
    for name, seconds in [*costs.items(), ("all", sum(costs.values()))]:
        hours = seconds * CLIPS_OF_GR2 / 3600
        lines.append(f"{name:<36}{seconds * 1e3:>12.2f}{1 / seconds:>12,.0f}{hours:>20,.0f}")
    return lines
