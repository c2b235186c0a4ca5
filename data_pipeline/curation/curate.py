"""The first stage: a dataset on disk -> filters -> video shards.

A sample keeps the original bytes of its videos; nothing is re-encoded (what is kept as single frames is encoded
once). Long videos are not cut in the file either: the sample's JSON lists windows of frames, and the next stage makes
one episode of each.

    {key}.{camera}.mp4    the original file (or .webm, .gif, ...)
    {key}.states.npy      float32 [t s]      } where the source has them
    {key}.actions.npy     float32 [t a]      }
    {key}.json            caption, fps, videos, windows [{start, stop, caption}] in frames, control_hz,
                          frame_stride, source, facts
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ...gr_model.errors import ConfigError, DataError
from ..executors import ordered_map
from ..files import array_bytes, camera_name
from ..readers.record import Record, VideoBytes, with_video_files
from ..readers.source import open_source
from ..shards import ShardWriter, finished_shards, read_index
from ..stages import Tally, begin_stage, finish_stage, read_manifest
from .filters import FilterConfig, Verdict, examine

STAGE = "video_shards"


def write_video_shards(
    *,
    source: Path,
    out: Path,
    camera: str = "static",
    filters: FilterConfig = FilterConfig(),  # noqa: B008  (frozen)
    window_seconds: float = 60.0,
    shard_megabytes: float = 256.0,
    max_dropped: float = 0.9,
    num_workers: int = 1,
    overwrite: bool = False,
) -> Mapping[str, Any]:
    """Read a dataset, drop what is broken or useless, and write the rest as webdataset shards.

    A finished stage with the same parameters is skipped; a killed one goes on after its last whole shard.

    Args:
        source: recorded episodes, CALVIN, the annotation layout, a folder of videos, or one video.
        out: folder of the shards and their manifest.
        camera: name given to the camera of datasets that have one without a name.
        filters: thresholds of the filters.
        window_seconds: longest window [s]; a longer video is divided into equal windows.
        shard_megabytes: a shard that has reached this size takes no further sample.
        max_dropped: greatest fraction of records that may be dropped before the stage fails.
        num_workers: processes that probe the videos.
        overwrite: replace an earlier result.

    Returns:
        The manifest.

    Raises:
        DataError: where the source cannot be opened, nothing is left, or too much was dropped.
        ConfigError: for a window or a shard of no size.
    """
    if min(window_seconds, shard_megabytes) <= 0:
        got = f"{window_seconds}, {shard_megabytes}"
        raise ConfigError(f"window_seconds and shard_megabytes: expected more than 0, got {got}; raise them.")
    records = open_source(source, camera)
    parameters = {
        "source": str(source),
        "reader": records.kind,
        "camera": camera,
        "filters": asdict(filters),
        "window_seconds": window_seconds,
        "shard_megabytes": shard_megabytes,
    }
    if not begin_stage(out, STAGE, parameters, overwrite):
        manifest = read_manifest(out, STAGE)
        print(f"{out}: finished already, {manifest['counts']['kept']} clips; pass overwrite to write it again")
        return manifest
    tally, remaining = _resume(out, iter(records))
    progress = tqdm(initial=tally.records, desc=f"shards from {source.name}", unit="clip")
    with ShardWriter(out, int(shard_megabytes * 1e6), len(finished_shards(out))) as writer, progress:
        for record, verdict in ordered_map(partial(_examined, config=filters), remaining, num_workers):
            _take(writer, tally, record, verdict, window_seconds)
            progress.update()
            if writer.is_full:
                writer.finish_shard({"last_key": record.key, "tally": asdict(tally)})
    _check_loss(source, tally, max_dropped)
    manifest = finish_stage(out, STAGE, parameters, tally, {"shards": [tar.name for tar in finished_shards(out)]})
    print(f"{out}: {tally.sentence()}")
    return manifest


def _examined(record: Record, config: FilterConfig) -> tuple[Record, Verdict]:
    record = with_video_files(record)
    return record, examine(record, config)


def _resume(out: Path, records: Iterator[Record]) -> tuple[Tally, Iterator[Record]]:
    shards = finished_shards(out)
    if not shards:
        return Tally(), records
    note = read_index(shards[-1])["note"]
    if not note:  # the last shard of a run that was killed before its manifest
        shards[-1].with_suffix(".index.json").unlink()
        shards[-1].unlink()
        return _resume(out, records)
    tally = Tally(**note["tally"])
    seen = list(itertools.islice((record.key for record in records), tally.records))
    if seen[-1:] != [note["last_key"]]:
        raise DataError(
            f"{out}: the source has changed since the stage was stopped (record {tally.records} was "
            f"{note['last_key']!r}, is {seen[-1:]}); pass overwrite to begin again."
        )
    return tally, records


def _take(writer: ShardWriter, tally: Tally, record: Record, verdict: Verdict, window_seconds: float) -> None:
    tally.records += 1
    if verdict.reason:
        tally.drop(verdict.reason, record.key, record.source, verdict.detail)
        return
    first = next(iter(verdict.videos.values()))
    windows = cut_windows(first.frames, first.fps, window_seconds)
    members, videos = {}, {}
    for camera, video in record.videos.items():
        assert isinstance(video, Path | VideoBytes)
        member = f"{camera_name(camera)}{video.suffix.lower()}"
        members[member] = video.read_bytes()
        videos[camera_name(camera)] = {"member": member, **asdict(verdict.videos[camera])}
    if record.states is not None and record.actions is not None:
        members["states.npy"] = array_bytes(record.states)
        members["actions.npy"] = array_bytes(record.actions)
        tally.with_actions += 1
    description = {
        "caption": record.caption,
        "fps": first.fps,
        "videos": videos,
        "windows": [{"start": start, "stop": stop, "caption": record.caption} for start, stop in windows],
        "control_hz": record.control_hz,
        "frame_stride": record.frame_stride,
        "source": record.source,
        "facts": dict(record.facts),
    }
    members["json"] = json.dumps(description, ensure_ascii=False).encode()
    writer.write(record.key, members)
    tally.kept += 1
    tally.windows += len(windows)
    tally.frames += first.frames
    tally.seconds += first.frames / first.fps
    tally.captioned += bool(record.caption)


def cut_windows(num_frames: int, fps: float, window_seconds: float) -> list[tuple[int, int]]:
    """Divide a video into the fewest windows of equal length of at most `window_seconds`.

    Returns:
        (start, stop) in frames; they cover the video without overlap.
    """
    longest = max(int(window_seconds * fps + 1e-6), 1)
    count = -(-num_frames // longest)
    borders = [round(i * num_frames / count) for i in range(count + 1)]
    return list(itertools.pairwise(borders))


def _check_loss(source: Path, tally: Tally, max_dropped: float) -> None:
    if tally.records == 0:
        raise DataError(f"{source}: expected videos or episodes, found none; check the path and the suffixes.")
    if tally.kept == 0 or tally.num_dropped > max_dropped * tally.records:
        reason, examples = next(iter(tally.examples.items()))
        raise DataError(
            f"{source}: {tally.num_dropped} of {tally.records} records were dropped ({tally.dropped}), "
            f"expected at most {max_dropped:.0%} and one left; the first, {reason}: {examples[0]['source']}: "
            f"{examples[0]['detail']}. Loosen the filters or mend the files."
        )
