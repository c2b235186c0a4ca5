"""Curation: video shards in, video shards out, without what teaches nothing; every dropped window keeps its reason.

Clips are cut at their scene cuts and measured (`measure`), then judged by thresholds and by whether an earlier clip
shows the same (`near_duplicates`). Shard i becomes shard i. The bytes of the videos stay; what changes is the list of
windows in each sample's JSON, where every kept window now has its measures.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ...contracts import Array
from ...errors import DataError
from ..executors import Executor, ExecutorKind
from ..files import array_bytes, load_array, write_bytes
from ..locations import as_location
from ..store.columns import video_columns, write_columns
from ..store.shards import ShardWriter, read_indexed
from ..store.stages import (
    ShardTask,
    Tally,
    abandon_stage,
    begun_or_finished,
    expect_video_shards,
    finish_stage,
    map_shards,
    read_manifest,
)
from .ingest import video_row
from .measure import MeasureConfig, measure_shards, measured_windows
from .near_duplicates import group_duplicates

STAGE = "curated_shards"


@dataclass(frozen=True, kw_only=True)
class CurationThresholds:
    """What a window must be to stay; None switches a filter off.

    The defaults keep all of eleven real clips of robots, hands and web video that last half a second (motion 2.6 to
    53, sharpness 0.036 to 0.4), and drop stills, black, washed-out and out-of-focus images, title cards and pans.

    Args:
        min_seconds: shorter windows [s] are dropped as `too_short`.
        min_motion: mean difference of probed frames [gray levels of 255]; less is `static`.
        max_camera_motion: share of the motion that is the camera's; more is `camera_motion`.
        min_sharpness: variance of the Laplacian over that of the image; less is `blurred`.
        min_brightness: brightness that 1 % of the pixels exceed [gray levels]; less is `dark`.
        max_brightness: brightness that 99 % of the pixels exceed [gray levels]; more is `bright`.
        min_contrast: between those two brightnesses [gray levels]; less is `flat`.
        max_text: share of the image under laid-over text; more is `text_overlay`.
        min_hands: score of the hand detector; less is `no_hands`. Off by default: robots have none.
        duplicate_bits: bits of the 512 of both clips' hashes that may differ in a `duplicate`, at most 31. Episodes of
            a robot are never duplicates.
    """

    min_seconds: float = 0.5
    min_motion: float | None = 1.0
    max_camera_motion: float | None = 0.5
    min_sharpness: float | None = 0.01
    min_brightness: float | None = 40.0
    max_brightness: float | None = 220.0
    min_contrast: float | None = 30.0
    max_text: float | None = 0.05
    min_hands: float | None = None
    duplicate_bits: int | None = 20


def curate(
    *,
    shards: str,
    out: Path,
    measure: MeasureConfig = MeasureConfig(),  # noqa: B008  (frozen)
    thresholds: CurationThresholds = CurationThresholds(),
    executor: ExecutorKind = "local",
    num_workers: int = 1,
    overwrite: bool = False,
) -> Mapping[str, Any]:
    """Cut video shards at scene cuts and drop windows that teach nothing, with a reason for each.

    A killed run resumes with the shards that are missing. With `overwrite` and the same `measure`, clips are judged
    again by other thresholds without being decoded again.

    Args:
        shards: folder of video shards, its URL, or tars by pattern (`https://host/shard-{000000..000127}.tar`).
        out: folder for the shards that are left, and for the measures.
        measure: what is measured.
        thresholds: what a window must be to stay.
        executor: `local`, or `ray` for the cluster at RAY_ADDRESS.
        num_workers: shards worked on at a time.
        overwrite: replace an earlier result.

    Returns:
        The manifest.

    Raises:
        DataError: the shards are not finished, some of them failed, or nothing is left.
    """
    location = as_location(shards)
    expect_video_shards(location)
    parameters = {"shards": str(shards), "measure": asdict(measure), "thresholds": asdict(thresholds)}
    if (finished := begun_or_finished(out, STAGE, parameters, overwrite)) is not None:
        return finished
    workers = Executor(kind=executor, num_workers=num_workers)
    folder = out / "measures"
    measures = measure_shards(location, folder, measure, workers, _measured_otherwise(folder, shards, measure))
    duplicates, starts = _find_duplicates(folder, measures, thresholds)
    select = partial(_select_shard, measures=measures, thresholds=thresholds, duplicates=duplicates, starts=starts)
    tally, names = map_shards(select, location, out, workers, "curated shards")
    if tally.kept == 0:
        abandon_stage(out)  # the measures stay: other thresholds need them
        first = next(iter(tally.examples.values()), [{"key": "none", "detail": "there are no windows"}])[0]
        raise DataError(
            f"{shards}: all of {tally.records} windows were dropped ({tally.dropped}), expected one to be left; the "
            f"first is {first['key']}: {first['detail'].rstrip('.')}. Loosen the thresholds."
        )
    columns = write_columns(out, video_columns([out / name for name in names]))
    manifest = finish_stage(out, STAGE, parameters, tally, {"shards": names, "columns": columns})
    print(f"{out}: {tally.summary()}")
    return manifest


def _measured_otherwise(folder: Path, shards: str, measure: MeasureConfig) -> bool:
    """Return whether the folder holds measures of other shards, or of another kind, which are to be replaced."""
    try:
        return bool(read_manifest(folder, "clip_measures")["parameters"] != {"shards": shards, **asdict(measure)})
    except DataError:
        return False


def _find_duplicates(folder: Path, measures: Sequence[Path], thresholds: CurationThresholds) -> tuple[Path, Array]:
    """Write which window each window repeats (-1 for none), int64 `[w]`, for the workers to read.

    Only windows that no threshold drops take part: one that is dropped must not take its copies with it.
    """
    hashes, chosen, starts = [], [], [0]
    for shard in measures:
        count = starts[-1]
        for _, _, windows in measured_windows(shard):
            for number, window in enumerate(windows, start=count):
                if "hash" in window["measures"] and not judge(window["measures"], thresholds, -1)[0]:
                    hashes.append(window["measures"]["hash"])
                    chosen.append(number)
            count += len(windows)
        starts.append(count)
    repeated = np.full(starts[-1], -1, np.int64)
    if thresholds.duplicate_bits is not None and chosen:
        found = group_duplicates(np.array(hashes, np.uint64), thresholds.duplicate_bits)
        repeated[chosen] = np.where(found < 0, -1, np.array(chosen)[found])
    path = folder / "duplicate_of.npy"
    write_bytes(path, array_bytes(repeated))
    return path, np.array(starts)


def _select_shard(
    task: ShardTask, *, measures: Sequence[Path], thresholds: CurationThresholds, duplicates: Path, starts: Array
) -> None:
    tally = Tally()
    repeated = load_array(duplicates)[starts[task.number] : starts[task.number + 1]].tolist()
    found = measured_windows(measures[task.number])
    at = 0
    with ShardWriter(task.out, max_bytes=1 << 62, first_number=task.number) as writer:
        for (key, members), (_, problem, windows) in zip(read_indexed(task.source), found, strict=True):
            description = json.loads(members["json"])
            kept = []
            if problem:
                tally.records += 1
                tally.drop("undecodable", key, description["source"], problem)
                entry = {"key": key, "source": description["source"], "reason": "undecodable", "detail": problem}
                writer.drop(entry)
            for window in windows:
                reason, detail = judge(window["measures"], thresholds, repeated[at])
                at += 1
                tally.records += 1
                if reason:
                    tally.drop(reason, key, description["source"], detail)
                    writer.drop(
                        {"key": key, "source": description["source"], "reason": reason, "detail": detail, **window}
                    )
                else:
                    kept.append(window)
            if kept:
                description["windows"] = kept
                content = json.dumps(description, ensure_ascii=False).encode()
                writer.write(key, {**members, "json": content}, video_row(description))
                _count_kept(tally, kept, members)
        writer.finish_shard({"tally": asdict(tally)})


def _count_kept(tally: Tally, kept: Sequence[Mapping[str, Any]], members: Mapping[str, bytes]) -> None:
    tally.kept += len(kept)
    tally.windows += len(kept)
    tally.frames += sum(window["stop"] - window["start"] for window in kept)
    tally.seconds = round(tally.seconds + sum(window["measures"]["seconds"] for window in kept), 4)
    tally.captioned += sum(bool(window["caption"]) for window in kept)
    tally.with_actions += "actions.npy" in members


def judge(measures: Mapping[str, float], thresholds: CurationThresholds, repeats: int) -> tuple[str, str]:
    """Give the first reason to drop a window and its metric; empty for one to keep.

    Args:
        measures: of the window.
        thresholds: what it must be.
        repeats: number of the earlier window that it repeats, -1 for none.
    """
    contrast = measures["luma_high"] - measures["luma_low"]
    rules = (
        ("too_short", "seconds", measures["seconds"], thresholds.min_seconds, None),
        ("dark", "bright pixels", measures["luma_high"], thresholds.min_brightness, None),
        ("bright", "dark pixels", measures["luma_low"], None, thresholds.max_brightness),
        ("flat", "contrast", contrast, thresholds.min_contrast, None),
        ("static", "motion", measures["motion"], thresholds.min_motion, None),
        ("blurred", "sharpness", measures["sharpness"], thresholds.min_sharpness, None),
        ("text_overlay", "share of text", measures["text_overlay"], None, thresholds.max_text),
        ("camera_motion", "share of the camera", measures["camera_motion"], None, thresholds.max_camera_motion),
        ("no_hands", "hands", measures.get("hands", 1.0), thresholds.min_hands, None),
    )
    for reason, name, value, low, high in rules:
        if low is not None and value < low:
            return reason, f"{name} {value:.4g}, expected at least {low:g}"
        if high is not None and value > high:
            return reason, f"{name} {value:.4g}, expected at most {high:g}"
    return ("duplicate", f"repeats window {repeats}") if repeats >= 0 else ("", "")
