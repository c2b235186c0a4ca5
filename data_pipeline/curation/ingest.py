"""The first stage: a dataset -> what can be decoded -> video shards.

A sample keeps the original bytes of its videos; nothing is re-encoded (what is no file of its own, single frames or a
part of a longer video, is encoded once). Long clips are not cut in the file either: the sample's JSON lists windows of
frames, and the stage that makes tokens makes one episode of each.

    {key}.{camera}.mp4    the original file (or .webm, .gif, ...)
    {key}.states.npy      float32 [t s]      } where the source has them
    {key}.actions.npy     float32 [t a]      }
    {key}.json            caption, fps, videos, windows [{start, stop, caption}] in frames, control_hz,
                          frame_stride, source, facts, embodiment (where there are states and actions)
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ...errors import ConfigError, DataError
from ..embodiments import embodiment_of_record
from ..executors import Executor, ExecutorKind, ordered_map
from ..files import array_bytes, camera_name
from ..locations import as_location, file_name
from ..readers.record import Record, Times, VideoBytes, VideoSpan, with_video_files
from ..readers.source import open_source
from ..readers.spec import spec_text
from ..store.columns import video_columns, write_columns
from ..store.shards import ShardWriter, finished_shards, index_path, read_index, remove_leftovers
from ..store.stages import Tally, abandon_stage, begun_or_finished, finish_stage
from ..video.transcode import video_extent
from .filters import MISSING, FilterConfig, Verdict, examine

STAGE = "video_shards"


def write_video_shards(
    *,
    source: str,
    out: Path,
    camera: str = "static",
    spec: Path | None = None,
    times: Times = "check",
    fps: float | None = None,
    filters: FilterConfig = FilterConfig(),  # noqa: B008  (frozen)
    short_side: int | None = None,
    window_seconds: float = 60.0,
    shard_megabytes: float = 256.0,
    part: str = "0/1",
    max_dropped: float = 0.9,
    executor: ExecutorKind = "local",
    num_workers: int = 1,
    overwrite: bool = False,
) -> Mapping[str, Any]:
    """Read a dataset, drop what is broken or useless, and write the rest as webdataset shards.

    A finished stage with the same parameters is skipped; a killed one resumes after its last whole shard.

    Args:
        source: a dataset in any layout that `gr2 data inspect` recognizes; webdataset tars also by URL or pattern.
        out: folder of the shards and their manifest.
        camera: name given to the camera of datasets that have one without a name.
        spec: where cameras, states and actions lie in a robot dataset of your own (YAML), or libero for its HDF5 files.
        times: "order" takes the rows of a LeRobot episode for steps at its rate, whatever their times.
        fps: frames a second of folders of frames, which state none.
        filters: thresholds of the filters.
        short_side: greatest shorter side [px] of what is encoded (parts of long videos, images); None keeps the size.
        window_seconds: longest window [s]; a longer clip is divided into equal windows, a video file greater than a
            shard into clips of their own.
        shard_megabytes: a shard that has reached this size takes no further sample.
        part: `i/n` takes every n-th record from the i-th on, for n jobs of a cluster with a folder each.
        max_dropped: greatest fraction of records that may be dropped (missing files aside) before the stage fails.
        executor: `local`, or `ray` for the cluster at RAY_ADDRESS.
        num_workers: processes that cut, encode and probe the videos.
        overwrite: replace an earlier result.

    Returns:
        The manifest.

    Raises:
        DataError: where the source cannot be opened, nothing is left, or too much was dropped.
        ConfigError: for a window or a shard of no size, or a part that is none.
    """
    _check_sizes(window_seconds, shard_megabytes)
    first, step = _parse_part(part)
    records = open_source(as_location(source), camera, spec, times, fps)
    parameters = {
        "source": str(source),
        "reader": records.kind,
        "camera": camera,
        "spec": spec_text(spec) if spec is not None else None,
        "filters": asdict(filters),
        "short_side": short_side,
        "window_seconds": window_seconds,
        "shard_megabytes": shard_megabytes,
        "part": part,
    }
    chosen = {"times": None if times == "check" else times, "fps": fps}
    parameters |= {name: value for name, value in chosen.items() if value is not None}  # as manifests of before
    if (finished := begun_or_finished(out, STAGE, parameters, overwrite)) is not None:
        return finished
    pieces = split_long_videos(iter(records), shard_megabytes * 1e6, window_seconds)
    tally, remaining = _resume(out, itertools.islice(pieces, first, None, step))
    progress = tqdm(initial=tally.records, desc=f"shards from {file_name(source)}", unit="clip")
    examined = partial(_examined, config=filters, short_side=short_side)
    with ShardWriter(out, int(shard_megabytes * 1e6), len(finished_shards(out))) as writer, progress:
        for record, verdict in ordered_map(examined, remaining, Executor(kind=executor, num_workers=num_workers)):
            _take(writer, tally, record, verdict, window_seconds)
            progress.update()
            if writer.is_full:
                writer.finish_shard({"last_key": record.key, "tally": asdict(tally)})
    _check_loss(source, out, tally, max_dropped)
    written = finished_shards(out)
    result = {"shards": [tar.name for tar in written], "columns": write_columns(out, video_columns(written))}
    print(f"{out}: {tally.summary()}")
    return finish_stage(out, STAGE, parameters, tally, result)


def split_long_videos(records: Iterator[Record], max_bytes: float, window_seconds: float) -> Iterator[Record]:
    """Turn a long video file that would not fit into a shard into parts of at most `window_seconds`, cut out, encoded.

    Only videos without steps are divided, by the duration that their container states.
    """
    for record in records:
        camera, file = next(iter(record.videos.items()), ("", None))
        alone = len(record.videos) == 1 and record.states is None
        if not alone or not isinstance(file, Path) or not file.is_file() or file.stat().st_size <= max_bytes:
            yield record
            continue
        try:
            begin, end = video_extent(file)
        except DataError as error:
            yield replace(record, videos={}, problem=str(error))
            continue
        count = math.ceil((end - begin) / window_seconds)
        if count == 1:
            yield record
            continue
        borders = [begin + (end - begin) * i / count for i in range(count + 1)]
        for number, (start, stop) in enumerate(itertools.pairwise(borders)):
            span = VideoSpan(file=file, start=start, stop=stop)
            where = f"{record.source} {start:.1f} to {stop:.1f} s"
            yield replace(record, key=f"{record.key}-p{number:05d}", videos={camera: span}, source=where)


def _check_sizes(window_seconds: float, shard_megabytes: float) -> None:
    if min(window_seconds, shard_megabytes) <= 0:
        got = f"{window_seconds}, {shard_megabytes}"
        raise ConfigError(f"window_seconds and shard_megabytes: expected more than 0, got {got}; raise them.")


def _parse_part(part: str) -> tuple[int, int]:
    try:
        first, step = (int(number) for number in part.split("/"))
    except ValueError:
        first, step = 0, 0
    if not 0 <= first < step:
        raise ConfigError(f"part: expected i/n with 0 <= i < n, as in 3/64, got {part!r}; correct it.")
    return first, step


def _examined(record: Record, config: FilterConfig, short_side: int | None) -> tuple[Record, Verdict]:
    record = with_video_files(record, short_side)
    return record, examine(record, config)


def _resume(out: Path, records: Iterator[Record]) -> tuple[Tally, Iterator[Record]]:
    shards = finished_shards(out)
    if not shards:
        return Tally(), records
    note = read_index(shards[-1])["note"]
    if not note:  # the last shard of a run that was killed before its manifest
        index_path(shards[-1]).unlink()
        remove_leftovers(out)
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
        entry = {"key": record.key, "source": record.source, "reason": verdict.reason, "detail": verdict.detail}
        writer.drop(entry)
        return
    first = next(iter(verdict.videos.values()))
    windows = cut_windows(first.frames, first.fps, window_seconds)
    members, videos = {}, {}
    embodiment: dict[str, Any] = {}
    for camera, video in record.videos.items():
        assert isinstance(video, Path | VideoBytes)
        member = f"{camera_name(camera)}{video.suffix.lower()}"
        members[member] = video.read_bytes()
        videos[camera_name(camera)] = {"member": member, **asdict(verdict.videos[camera])}
    if record.states is not None and record.actions is not None:
        members["states.npy"] = array_bytes(record.states)
        members["actions.npy"] = array_bytes(record.actions)
        found = embodiment_of_record(record)
        embodiment = {"embodiment": found.to_dict()} if found else {}
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
        **embodiment,
    }
    members["json"] = json.dumps(description, ensure_ascii=False).encode()
    writer.write(record.key, members, video_row(description))
    tally.repair(record.repairs)
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


def video_row(description: Mapping[str, Any]) -> dict[str, Any]:
    """Return what `columns.video_columns` reads of a sample."""
    return {
        "cameras": {camera: video["member"] for camera, video in description["videos"].items()},
        "windows": [[window["start"], window["stop"]] for window in description["windows"]],
    }


def _check_loss(source: str, out: Path, tally: Tally, max_dropped: float) -> None:
    """Refuse what lost too much, and leave nothing of it: the next try may have other options."""
    if tally.records == 0:
        abandon_stage(out)
        raise DataError(f"{source}: expected videos or episodes, found none; check the path and the suffixes.")
    missing = tally.dropped.get(MISSING, 0)
    if tally.kept == 0 or tally.num_dropped - missing > max_dropped * (tally.records - missing):
        reason, examples = next(
            (e for e in tally.examples.items() if e[0] != MISSING), next(iter(tally.examples.items()))
        )
        detail = examples[0]["detail"].removeprefix(f"{examples[0]['source']}: ").rstrip(".")
        abandon_stage(out)
        raise DataError(
            f"{source}: {tally.num_dropped} of {tally.records} records were dropped ({tally.dropped}), "
            f"expected at most {max_dropped:.0%} and one left; the first, {reason}: {examples[0]['source']}: "
            f"{detail}. Loosen the filters or fix the files."
        )
