"""Read Ego4D: narrated moments of long first-person videos, `narration.json`, as windows of time.

`narration.json` is `{<uid>: {"narration_pass_1": {"narrations": [{"timestamp_sec", "narration_text"}]}, ...}}`, at the
top or below "videos"; one of the two passes may be absent. `ego4d.json`, else `manifest.csv`, gives the durations.

A narration is a point in time. Its window is that of EgoClip: `[t - b / 2a, t + b / 2a]`, where b is the mean gap
between neighboring narrations of the video (of one pass), and a the mean of b over all videos. A video with one
narration has no gap and takes b = a, a window of one second.
Source: Lin et al., Egocentric Video-Language Pretraining, NeurIPS 2022, section 3.2.
"""

from __future__ import annotations

import itertools
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import DataError
from ..files import sample_key
from .corpus_files import (
    DUPLICATE_ID,
    VIDEO_MISSING,
    check_json,
    index_videos,
    json_entries,
    read_rows,
    table_columns,
    unusable,
)
from .record import Record, VideoSpan

DATASET = "ego4d"
LICENSE = "signed Ego4D license, no redistribution"
"""Source: the Ego4D license agreement."""

VIDEO_FOLDERS = ("full_scale", "video_540ss", "clips")
"""Where `<uid>.mp4` is looked for first; a video in another folder is found too."""

PASSES = ("narration_pass_1", "narration_pass_2")
_FOLDERS = ("", "v2", "v1", "annotations", "v2/annotations", "v1/annotations")
_MANIFESTS = ("manifest.csv", "full_scale/manifest.csv", "v2/full_scale/manifest.csv")


@dataclass(frozen=True, slots=True, kw_only=True)
class Ego4dVideo:
    """What the metadata state about a video: duration [s], infinite where they do not, and facts to keep."""

    duration: float = math.inf
    facts: Mapping[str, Any] = field(default_factory=dict)


def find_ego4d(path: Path) -> list[Path]:
    """Find the narrations, and the metadata after them; empty where the folder is of another layout."""
    folders = [path / folder for folder in _FOLDERS]
    narrations = [folder / "narration.json" for folder in folders if (folder / "narration.json").is_file()][:1]
    metadata = [folder / "ego4d.json" for folder in folders if (folder / "ego4d.json").is_file()][:1]
    manifests = [path / name for name in _MANIFESTS if "video_uid" in table_columns(path / name)][:1]
    return [*narrations, *(metadata or (manifests if narrations else []))]


class Ego4dSource:
    """The narrated windows, in the order of the file; a video that is not there is one problem.

    camera: name given to the one camera of these videos.

    Raises:
        DataError: the narrations are missing or truncated, or the metadata are.
    """

    kind = "ego4d"

    def __init__(self, path: Path, camera: str = "static") -> None:
        self.path = path
        self.camera = camera
        found = {file.name: file for file in find_ego4d(path)}
        if "narration.json" not in found:
            raise DataError(f"{path}: expected narration.json, found none; download the Ego4D annotations there.")
        self.narrations = found.pop("narration.json")
        self.metadata = next(iter(found.values()), None)
        check_json(self.narrations, "{}")
        if self.metadata is not None and self.metadata.suffix == ".json":
            check_json(self.metadata, "{}")

    def __iter__(self) -> Iterator[Record]:
        files = index_videos(self.path, VIDEO_FOLDERS)
        videos = read_videos(self.metadata)
        gaps = {uid: mean_gap(narrated) for uid, narrated in self._narrated()}
        known = [gap for gap in gaps.values() if gap > 0]
        mean = float(np.mean(known)) if known else 1.0
        seen: Counter[str] = Counter()
        for uid, narrated in self._narrated():
            seen[uid] += 1
            facts = {"dataset": DATASET, "license": LICENSE, "video_uid": uid}
            if seen[uid] > 1:
                yield unusable(f"{uid}#{seen[uid]}", uid, facts, DUPLICATE_ID)
            elif uid not in files:
                yield unusable(uid, uid, facts, VIDEO_MISSING)
            else:
                video = videos.get(uid, Ego4dVideo())
                half = (gaps[uid] or mean) / (2 * mean)
                yield from self._windows(files[uid], video, facts, narrated, half)

    def _narrated(self) -> Iterator[tuple[str, Mapping[str, Any]]]:
        """Yield each narrated video: uid and passes."""
        for uid, entry in json_entries(self.narrations, inside="videos"):
            passes = {name: entry[name] for name in PASSES if name in entry} if isinstance(entry, dict) else {}
            if passes:
                yield uid, passes

    def _windows(
        self, file: Path, video: Ego4dVideo, facts: Mapping[str, Any], narrated: Mapping[str, Any], half: float
    ) -> Iterator[Record]:
        for name in narrated:
            for number, narration in enumerate(_narrations_of(narrated[name])):
                key = f"{facts['video_uid']}/{name}/{number}"
                time = _time_of(narration)
                if time is None or not time < video.duration + half:
                    problem = "expected a time within the video as timestamp_sec; correct it or leave it out"
                    yield unusable(key, key, facts, f"{problem} (got {_stated_time(narration)})")
                    continue
                start, stop = max(time - half, 0.0), min(time + half, video.duration)
                raw = narration.get("narration_text")
                raw = raw if isinstance(raw, str) else ""
                yield Record(
                    key=sample_key(key),
                    videos={self.camera: VideoSpan(file=file, start=start, stop=stop)},
                    caption=plain_caption(raw),
                    source=f"{file.relative_to(self.path).as_posix()} {start:.2f}..{stop:.2f} s",
                    facts={**facts, **video.facts, "pass": name, "timestamp_sec": time, "narration_text": raw},
                )


def mean_gap(narrated: Mapping[str, Any]) -> float:
    """Average the time between neighboring narrations of a pass [s]; 0 where no pass has two at different times."""
    gaps: list[float] = []
    for passed in narrated.values():
        times = sorted(time for entry in _narrations_of(passed) if (time := _time_of(entry)) is not None)
        gaps += [later - earlier for earlier, later in itertools.pairwise(times)]
    return sum(gaps) / len(gaps) if gaps else 0.0


def plain_caption(narration: str) -> str:
    """Take the marks out of a narration.

    `#C C` is the camera wearer and stays `C`, `#O` announces another person, `#unsure` stands for a thing that the
    narrator could not name.
    """
    text = re.sub(r"#\s*unsure\b", "something", narration, flags=re.IGNORECASE)
    text = re.sub(r"#\s*C(\s*C)?\b", "C", text, flags=re.IGNORECASE)
    text = re.sub(r"#[A-Za-z]+", "", text)
    return " ".join(text.replace("#", " ").split())


def read_videos(metadata: Path | None) -> dict[str, Ego4dVideo]:
    """Read durations and facts of the videos from `ego4d.json` or `manifest.csv`; empty for None.

    Raises:
        DataError: the file is truncated.
    """
    if metadata is None:
        return {}
    table = metadata.suffix == ".csv"
    entries = read_rows(metadata) if table else (entry for _, entry in json_entries(metadata, inside="videos"))
    videos = {}
    for entry in entries:
        if not isinstance(entry, dict) or "video_uid" not in entry:
            continue
        facts = {name: entry[name] for name in ("scenarios", "video_source", "device") if entry.get(name)}
        duration = _number(entry.get("duration_sec"))
        videos[str(entry["video_uid"])] = Ego4dVideo(duration=duration or math.inf, facts=facts)
    return videos


def _narrations_of(passed: Any) -> list[Any]:
    narrations = passed.get("narrations") if isinstance(passed, dict) else None
    return narrations if isinstance(narrations, list) else []


def _time_of(narration: Any) -> float | None:
    """Return the time of a narration [s], None where it states none."""
    return _number(narration.get("timestamp_sec")) if isinstance(narration, dict) else None


def _stated_time(narration: Any) -> str:
    return repr(narration.get("timestamp_sec") if isinstance(narration, dict) else narration)[:80]


def _number(value: Any) -> float | None:
    """Convert to a finite number from 0 on, None for anything else."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if 0 <= number < math.inf else None
