"""Measure every clip once: cut it at its scene cuts, probe each part, and keep the numbers.

The result is a folder of shards beside the curated ones, one JSON for each clip. Thresholds are applied afterwards, so
that they can be changed without decoding anything again.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ...contracts import Array
from ...errors import DataError
from ..executors import Executor
from ..locations import Location
from ..store.shards import ShardWriter, read_indexed
from ..store.stages import ShardTask, Tally, begin_stage, finish_stage, map_shards, read_manifest
from ..video.reader import VideoReader, open_video
from .cuts import find_cuts, scenes
from .hands import HandDetector, MediapipeHands, SkinMotionHands
from .ingest import cut_windows
from .near_duplicates import clip_hash
from .quality import measure_quality

STAGE = "clip_measures"

_SHORT_SIDE = 160
"""Size of the decoded frames [px, shorter side]; the thresholds were chosen at it."""

_DECODED_AT_ONCE = 256


@dataclass(frozen=True, kw_only=True)
class MeasureConfig:
    """What is measured.

    Args:
        cut_scenes: look at every frame for scene cuts; without, only the probed frames are decoded.
        window_seconds: longest window [s]; a longer scene is divided into equal windows.
        probe_frames: frames measured in each window, spread evenly.
        hands: `skin` (no weights), `none`, or the path of a MediaPipe `hand_landmarker.task`.
    """

    cut_scenes: bool = True
    window_seconds: float = 10.0
    probe_frames: int = 12
    hands: str = "skin"


def measure_shards(
    shards: Location, out: Path, config: MeasureConfig, executor: Executor, overwrite: bool
) -> list[Path]:
    """Measure the clips of video shards; a finished run with the same configuration is skipped.

    Returns:
        The shards of measures, one for each video shard.
    """
    parameters = {"shards": str(shards), **asdict(config)}
    if begin_stage(out, STAGE, parameters, overwrite):
        tally, names = map_shards(partial(_measure_shard, config=config), shards, out, executor, "measure clips")
        finish_stage(out, STAGE, parameters, tally, {"shards": names})
    return [out / name for name in read_manifest(out, STAGE)["shards"]]


def measured_windows(shard: Path) -> Iterator[tuple[str, str, list[dict[str, Any]]]]:
    """Yield key, problem and windows (`start`, `stop`, `caption`, `measures`) of each clip of a shard of measures."""
    for key, members in read_indexed(shard):
        found = json.loads(members["json"])
        yield key, found["problem"], found["windows"]


def _measure_shard(task: ShardTask, *, config: MeasureConfig) -> None:
    detector = _hand_detector(config.hands)
    tally = Tally()
    with ShardWriter(task.out, max_bytes=1 << 62, first_number=task.number) as writer:
        for key, members in read_indexed(task.source):
            description, windows, problem = json.loads(members["json"]), [], ""
            try:
                windows = measure_clip(description, members, config, detector)
            except DataError as error:
                problem = str(error)
                tally.drop("undecodable", key, key, problem)
            tally.records += 1
            tally.windows += len(windows)
            content = json.dumps({"problem": problem, "windows": windows}, ensure_ascii=False).encode()
            writer.write(key, {"json": content})
        writer.finish_shard({"tally": asdict(tally)})


def measure_clip(
    description: Mapping[str, Any], members: Mapping[str, bytes], config: MeasureConfig, detector: HandDetector | None
) -> list[dict[str, Any]]:
    """Cut the windows of a video sample at its scene cuts and measure each part, in the first camera.

    Episodes of a robot (samples with actions) are not cut, and get no hash: demonstrations of one task look alike, and
    each of them counts.

    Raises:
        DataError: the video cannot be decoded.
    """
    is_episode = "actions.npy" in members
    video = next(iter(description["videos"].values()))
    scale = _SHORT_SIDE / min(video["height"], video["width"])
    size = {} if scale >= 1 else {side: max(2, round(video[side] * scale)) for side in ("height", "width")}
    windows = []
    with open_video(members[video["member"]], **size) as reader:
        for window in description["windows"]:
            start, stop = window["start"], window["stop"]
            frames = _decode(reader, range(start, stop)) if config.cut_scenes and not is_episode else None
            parts = [(0, stop - start)] if is_episode else _parts(frames, stop - start, reader.fps, config)
            for first, last in parts:
                spread = np.unique(np.linspace(first, last - 1, config.probe_frames).round().astype(int))
                probe = frames[spread] if frames is not None else reader.get_batch(start + spread)
                measures = _measures(probe, detector) | {"seconds": round((last - first) / reader.fps, 4)}
                if not is_episode:
                    measures["hash"] = clip_hash(probe).tolist()
                windows.append({**window, "start": start + first, "stop": start + last, "measures": measures})
    return windows


def _parts(frames: Array | None, num_frames: int, fps: float, config: MeasureConfig) -> list[tuple[int, int]]:
    """Divide a window at its scene cuts, and what is still too long into equal windows."""
    cuts = find_cuts(frames) if frames is not None else []
    # scenes of any length: what is too short is dropped later, with that reason
    shots = scenes(cuts, num_frames)
    return [
        (start + first, start + last)
        for start, stop in shots
        for first, last in cut_windows(stop - start, fps, config.window_seconds)
    ]


def _decode(reader: VideoReader, indices: range) -> Array:
    pieces = [indices[i : i + _DECODED_AT_ONCE] for i in range(0, len(indices), _DECODED_AT_ONCE)]
    return np.concatenate([reader.get_batch(piece) for piece in pieces])


def _measures(probe: Array, detector: HandDetector | None) -> dict[str, Any]:
    numbers = {name: round(value, 5) for name, value in asdict(measure_quality(probe)).items()}
    hands = {} if detector is None else {"hands": round(float(detector(probe)), 5)}
    return numbers | hands


def _hand_detector(name: str) -> HandDetector | None:
    if name == "none":
        return None
    return SkinMotionHands() if name == "skin" else MediapipeHands(Path(name))
