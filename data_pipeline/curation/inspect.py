"""Look at a dataset before hours of training: durations, frame rates, codecs, captions, broken files."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from ...gr_model.errors import DataError
from ..executors import ordered_map
from ..readers.calvin import CalvinSource
from ..readers.record import Record
from ..readers.source import open_source
from ..video import video_codec
from .calvin import inspect_calvin
from .filters import FilterConfig, Verdict, examine


def inspect_source(
    *,
    source: Path,
    camera: str = "static",
    filters: FilterConfig = FilterConfig(),  # noqa: B008  (frozen)
    num_workers: int = 1,
    json: bool = False,
) -> Mapping[str, Any]:
    """Count what a dataset holds and name what would be dropped, without writing anything.

    Args:
        source: recorded episodes, CALVIN, the annotation layout, a folder of videos, or one video.
        camera: name given to the camera of datasets that have one without a name.
        filters: thresholds of the filters.
        num_workers: processes that probe the videos.
        json: print JSON in place of a table.

    Returns:
        The counts printed.

    Raises:
        DataError: where the source cannot be opened or holds nothing.
    """
    records = open_source(source, camera)
    if isinstance(records, CalvinSource):
        summary = inspect_calvin(source)
        print(_as_json(summary) if json else _as_text(summary))
        return summary
    judged = ordered_map(partial(_examined, config=filters), iter(records), num_workers)
    found = list(tqdm(judged, desc=f"looking at {source.name}", unit="clip"))
    if not found:
        raise DataError(f"{source}: expected videos or episodes, found none; check the path and the suffixes.")
    summary = _summary(str(source), records.kind, found)
    print(_as_json(summary) if json else _as_text(summary))
    return summary


def _examined(record: Record, config: FilterConfig) -> tuple[Record, Verdict, list[str]]:
    verdict = examine(record, config)
    files = [record.videos[camera] for camera in verdict.videos]
    return record, verdict, [video_codec(file) for file in files if isinstance(file, Path)]


def _summary(source: str, kind: str, found: Sequence[tuple[Record, Verdict, list[str]]]) -> dict[str, Any]:
    videos = [facts for _, verdict, _ in found for facts in verdict.videos.values()]
    seconds = [facts.frames / facts.fps for facts in videos] or [0.0]
    captions = [record.caption for record, _, _ in found if record.caption]
    return {
        "source": source,
        "reader": kind,
        "records": len(found),
        "videos": len(videos),
        "cameras": dict(Counter(camera for record, _, _ in found for camera in record.videos)),
        "frames": sum(facts.frames for facts in videos),
        "seconds": {
            "total": round(sum(seconds), 2),
            "shortest": round(min(seconds), 2),
            "median": round(float(np.median(seconds)), 2),
            "longest": round(max(seconds), 2),
        },
        "fps": _counted(f"{facts.fps:g}" for facts in videos),
        "sizes": _counted(f"{facts.width}x{facts.height}" for facts in videos),
        "codecs": _counted(codec for _, _, codecs in found for codec in codecs),
        "decoders": _counted(facts.backend for facts in videos),
        "captioned": len(captions),
        "different_captions": len(set(captions)),
        "with_actions": sum(record.actions is not None for record, _, _ in found),
        "would_be_dropped": _counted(verdict.reason for _, verdict, _ in found if verdict.reason),
        "problems": [
            {"source": record.source, "reason": verdict.reason, "detail": verdict.detail}
            for record, verdict, _ in found
            if verdict.reason
        ],
    }


def _counted(values: Any) -> dict[str, int]:
    return dict(Counter(values).most_common())


def _as_json(summary: Mapping[str, Any]) -> str:
    return json.dumps(summary, indent=1, ensure_ascii=False)


def _as_text(summary: Mapping[str, Any]) -> str:
    lines, width = [], max(len(name) for name in summary) + 2
    for name, value in summary.items():
        if name == "problems":
            continue
        if isinstance(value, dict):
            value = ", ".join(f"{key} {count}" for key, count in value.items()) or "none"
        lines.append(f"{name.replace('_', ' '):<{width}}{value}")
    lines += [f"  {problem['reason']}: {problem['source']}: {problem['detail']}" for problem in summary["problems"]]
    return "\n".join(lines)
