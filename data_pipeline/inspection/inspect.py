"""`gr2 data inspect`: what a dataset holds and what to fix, before hours of training; nothing in it is fatal.

All records are counted; of their videos a few, spread evenly, are opened.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from ...errors import ConfigError, DataError
from ..curation.filters import FilterConfig
from ..executors import Executor, ordered_map
from ..files import write_json
from ..locations import Location, as_location, file_name, is_url
from ..readers.lerobot import LeRobotSource
from ..readers.record import Record, RecordSource, Times, Video, VideoBytes
from ..readers.recorded import RecordedSource
from ..readers.rlds import RldsSource
from ..readers.source import open_source
from ..statistics.steps import MeasuredSource, measure_steps
from ..statistics.table import summarize
from ..store.calvin_layout import find_splits
from ..store.episodes import FORMAT as EPISODE_FORMAT
from .advice import advise
from .calvin import summarize_calvin
from .own_shards import CheckedShards, count_windows, find_own_shards
from .probe import ProbedRecord, cost_of_decoding, probe_record
from .repeats import ContentIndex, NamedContent
from .source_tally import SourceTally
from .table import as_text

MAX_CLIPS = 500
_NUM_TIMED_CODECS = 3
_NUM_NAMED = 3
_EXPECTED_CODEC = "h264"


def inspect_source(
    *,
    source: str,
    camera: str = "static",
    spec: Path | None = None,
    times: Times = "check",
    fps: float | None = None,
    max_clips: int = MAX_CLIPS,
    num_workers: int = 1,
    json: Path | None = None,
) -> Mapping[str, Any]:
    """Report what a dataset holds, what is broken, and what to fix; nothing is written but the JSON.

    Args:
        source: a dataset in any layout that has a reader, video or token shards of gr2, or webdataset tars by pattern
            or URL.
        camera: name given to the camera of datasets that have one without a name.
        spec: YAML file that states where the parts of an episode lie, for robot datasets that need one, or libero.
        times: "order" takes the rows of a LeRobot episode for steps at its rate, whatever their times.
        fps: frames a second of folders of frames, which state none.
        max_clips: clips whose videos are opened, spread evenly over the dataset; 0 opens all.
        num_workers: processes that open videos.
        json: also write everything here.

    Returns:
        What is written as JSON.

    Raises:
        DataError: the source cannot be opened or holds nothing.
        ConfigError: a count below 0, or a spec that cannot be used.
    """
    if max_clips < 0 or num_workers < 1:
        got = f"{max_clips} and {num_workers}"
        raise ConfigError(f"max_clips and num_workers: expected at least 0 and 1, got {got}; correct them.")
    location = as_location(source)
    if isinstance(location, Path) and location.is_dir() and find_splits(location) and spec is None:
        summary = summarize_calvin(location, max_clips)
    else:
        summary = _summarize(location, _open(location, camera, spec, times, fps), max_clips, num_workers)
    summary["advice"] = advise(summary)
    print(as_text(summary))
    if json is not None:
        write_json(json, summary)
    return summary


def _open(location: Location, camera: str, spec: Path | None, times: Times, fps: float | None = None) -> RecordSource:
    if isinstance(location, Path) and location.exists() and spec is None and find_own_shards(location):
        return CheckedShards(location)
    return open_source(location, camera, spec, times, fps)


def _summarize(location: Location, records: RecordSource, max_clips: int, num_workers: int) -> dict[str, Any]:
    name, tally = file_name(location), SourceTally()
    steps = tally.watch(tqdm(records, desc=f"counting {name}", unit="record"))
    measured = measure_steps(steps, name)
    if not tally.records:
        raise DataError(f"{location}: expected videos or episodes, found none; check the path and the suffixes.")
    wanted = tally.choose(max_clips)
    chosen = _Chosen(records, wanted, tally.contents)
    probes = ordered_map(partial(probe_record, config=FilterConfig()), iter(chosen), Executor(num_workers=num_workers))
    probed = []
    for result in tqdm(probes, desc=f"opening clips of {name}", unit="clip", total=len(wanted)):
        probed.append(result)
        chosen.take_digests(result)
        if result.broken:
            tally.take_broken_video(result.source, result.broken)
    more = _folder_facts(records, tally)
    return (
        {
            "source": str(location),
            **_format_of(records),
            **_counts(tally, len(probed)),
            "license_file": _license_file(location),
        }
        | _video_facts(tally, probed, chosen.first_of_codec)
        | {
            "captions": tally.captions.summary(),
            "steps": tally.step_facts() | {"statistics": _measured(name, measured)},
            "embodiments": tally.robots(),
        }
        | _repeats(tally.contents)
        | {"problems": tally.problems.summary(), "details": more}
    )


class _Chosen:
    """The records to probe, read again; what their results lack is kept: a video to time, arrays to compare.

    first_of_codec: codec -> a whole video of it.
    """

    def __init__(self, records: RecordSource, wanted: set[int], contents: ContentIndex) -> None:
        self._records, self._wanted, self._contents = records, wanted, contents
        self._waiting: list[Record] = []
        self.first_of_codec: dict[str, Path | VideoBytes] = {}

    def __iter__(self) -> Iterator[Record]:
        if isinstance(self._records, CheckedShards):
            chosen: Iterable[Record] = self._records.at(self._wanted)
        else:
            chosen = (record for number, record in enumerate(self._records) if number in self._wanted)
        for record in chosen:
            self._waiting.append(record)
            yield record

    def take_digests(self, result: ProbedRecord) -> None:
        """Take the result of the record that has waited longest."""
        record = self._waiting.pop(0)
        digests = [findings.digest for findings in result.videos.values()]
        if digests and all(digests) and len(digests) == len(record.videos):
            self._contents.add_digests(record, digests)
        for camera, findings in result.videos.items():
            video: Video = record.videos[camera]
            if findings.pixel_format and isinstance(video, Path | VideoBytes) and not result.broken:
                self.first_of_codec.setdefault(findings.codec, video)


def _format_of(records: RecordSource) -> dict[str, str]:
    version = ""
    if isinstance(records, LeRobotSource):
        version = str(records.layout.info.get("codebase_version") or f"v{records.layout.version}")
    elif isinstance(records, RldsSource):
        version = records.dataset.folder.name
    elif isinstance(records, RecordedSource):
        version = EPISODE_FORMAT
    elif isinstance(records, CheckedShards):
        version = records.version
    return {"reader": records.kind, "version": version}


def _folder_facts(records: RecordSource, tally: SourceTally) -> dict[str, Any]:
    """Return what a source states beyond its records; its problems go to the tally."""
    facts: dict[str, Any]
    if isinstance(records, LeRobotSource):
        facts = {"robot": records.layout.robot or "unknown"}
        if left := records.layout.not_listed():
            first = left[0].relative_to(records.path).as_posix()
            facts["not listed in meta"] = f"{len(left)} parquet files, which are not read (the first {first})"
        return facts
    if not isinstance(records, CheckedShards):
        return {}
    for name, reason in records.problems():
        tally.problems.add(name, f"{name}: damaged: {reason}")
    facts = {"shards": len(records.shards), "stage": records.manifest.get("stage") or "unknown"}
    if records.kind == "video_shards":
        return facts | {"windows": count_windows(records)}
    tokenizer = records.manifest.get("tokenizer") or {}
    return facts | {"codebook": tokenizer.get("codebook_size"), "grid": tokenizer.get("grid")}


def _counts(tally: SourceTally, num_probed: int) -> dict[str, Any]:
    return {
        "datasets": dict(tally.datasets.most_common()),
        "licenses": dict(tally.licenses.most_common()),
        "records": tally.records,
        "episodes": tally.episodes,
        "clips": tally.records - tally.episodes - tally.broken - tally.missing,
        "broken": tally.broken + tally.undecodable,
        "broken_share": round(tally.broken_share(num_probed), 4),
        "missing_videos": tally.missing,
        "repaired": dict(tally.repaired.most_common()),
        "without_video": tally.without_video,
        "splits": dict(tally.splits.most_common()),
        "cameras": dict(tally.cameras.most_common()),
        "missing_cameras": tally.missing_cameras,
    }


def _license_file(location: Location) -> str:
    """Return the first line of a license that lies beside the data, empty where there is none."""
    if is_url(location) or not Path(location).is_dir():
        return ""
    for file in sorted(Path(location).iterdir()):
        if file.stem.lower() in ("license", "licence", "copying") and file.is_file():
            lines = file.read_text("utf-8", errors="replace").split("\n")
            return f"{file.name}: {next((line.strip() for line in lines if line.strip()), 'empty')[:80]}"
    return ""


def _video_facts(
    tally: SourceTally, probed: Sequence[ProbedRecord], first_of_codec: Mapping[str, Path | VideoBytes]
) -> dict[str, Any]:
    good = [result for result in probed if not result.broken and result.videos]
    videos = [findings for result in good for findings in result.videos.values()]
    firsts = [next(iter(result.videos.values())).facts for result in good]
    seconds = [facts.frames / facts.fps for facts in firsts] or [0.0]
    share = len(tally.usable) / max(len(probed), 1)
    return {
        "probed": {"records": len(probed), "of": len(tally.usable), "videos": len(videos)},
        "frames": sum(facts.frames for facts in firsts),
        "seconds": {
            "total": round(sum(seconds) * share, 2),
            "is_estimate": len(probed) < len(tally.usable),
            "shortest": round(min(seconds), 2),
            "median": round(float(np.median(seconds)), 2),
            "longest": round(max(seconds), 2),
        },
        "fps": _counted(f"{video.facts.fps:.4g}" for video in videos),
        "sizes": _counted(f"{video.facts.width}x{video.facts.height}" for video in videos),
        "codecs": _counted(video.codec for video in videos),
        "pixel_formats": _counted(video.pixel_format for video in videos if video.pixel_format),
        "containers": _counted(video.container for video in videos if video.container),
        "decoders": _counted(video.facts.backend for video in videos),
        "counted": sum(video.is_counted for video in videos),
        "high_dynamic_range": sum(video.is_high_dynamic_range for video in videos),
        "variable_rate": sum(not video.is_constant_rate for video in videos),
        "decoding_cost": _decoding_costs(first_of_codec),
        "would_be_dropped": _counted(result.dropped for result in probed if result.dropped),
        "dropped_examples": [
            {"source": result.source, "reason": result.dropped, "detail": result.detail}
            for result in probed
            if result.dropped
        ][:_NUM_NAMED],
    }


def _decoding_costs(first_of_codec: Mapping[str, Path | VideoBytes]) -> dict[str, float]:
    """Time one video of each codec but H.264 against the same frames in H.264."""
    costs = {}
    for codec in [codec for codec in first_of_codec if codec != _EXPECTED_CODEC][:_NUM_TIMED_CODECS]:
        try:
            costs[codec] = round(cost_of_decoding(first_of_codec[codec]), 2)
        except DataError:  # only its middle is broken: it stays untimed
            continue
    return costs


def _measured(name: str, measured: MeasuredSource) -> dict[str, Any] | None:
    if not measured.datasets:
        return None
    try:
        return summarize(name, measured)
    except DataError as error:
        return {"datasets": [], "problem": str(error)}


def _repeats(contents: ContentIndex) -> dict[str, Any]:
    groups = contents.repeated()
    shared = [group for group in groups if _is_shared(group)]
    return {
        "repeated": {
            "compared": contents.compared,
            "not_compared": contents.skipped,
            "told_by_size_and_ends": contents.unproven,
            "records": sum(len(group) - 1 for group in groups),
            "examples": [[content.source for content in group[:_NUM_NAMED]] for group in groups[:_NUM_NAMED]],
        },
        "shared_between_splits": {
            "records": sum(len(group) for group in shared),
            "examples": [[f"{c.split}: {c.source}" for c in group[:_NUM_NAMED]] for group in shared[:_NUM_NAMED]],
        },
    }


def _is_shared(group: Sequence[NamedContent]) -> bool:
    splits = {content.split for content in group}
    return "train" in splits and len(splits - {"", "train"}) > 0


def _counted(values: Iterable[str]) -> dict[str, int]:
    return dict(Counter(values).most_common())
