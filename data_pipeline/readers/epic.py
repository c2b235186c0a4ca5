"""Read EPIC-KITCHENS-100: narrated parts of long kitchen videos, `EPIC_100_{train,validation}.csv` and the like.

Parts are cut by the time stamps: `start_frame` counts the frames of an image set extracted at another rate. The test
split has times alone. Videos are `P01/videos/P01_01.MP4`, `P01/P01_01.MP4` or `P01_01.MP4`, the suffix in any case.
"""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ...errors import DataError
from ..files import sample_key
from .corpus_files import DUPLICATE_ID, VIDEO_MISSING, check_columns, index_videos, read_rows, unusable
from .record import Record, VideoSpan

DATASET = "epic-kitchens-100"
LICENSE = "CC BY-NC 4.0"
"""Source: license.txt of epic-kitchens-100-annotations; the videos have the same terms."""

TABLES = {
    "train": "EPIC_100_train.csv",
    "validation": "EPIC_100_validation.csv",
    "test": "EPIC_100_test_timestamps.csv",
}
VIDEO_INFO = "EPIC_100_video_info.csv"
_FOLDERS = ("", "annotations", "epic-kitchens-100-annotations")
_COLUMNS = ("narration_id", "video_id", "start_timestamp", "stop_timestamp")
_LISTS = ("all_nouns", "all_noun_classes")
_PLAIN_FACTS = ("narration_id", "video_id", "participant_id", "verb", "verb_class", "noun", "noun_class")


def find_epic(path: Path) -> dict[str, Path]:
    """Find the table of each split; empty where the folder is of another layout."""
    found = {}
    for split, name in TABLES.items():
        files = [path / folder / name for folder in _FOLDERS if (path / folder / name).is_file()]
        if files:
            found[split] = files[0]
    return found


class EpicSource:
    """The annotated parts, split by split in the order of the tables; a part whose video is not there is a problem.

    camera: name given to the one camera of these videos.

    Raises:
        DataError: there is no table, or it lacks columns.
    """

    kind = "epic"

    def __init__(self, path: Path, camera: str = "static") -> None:
        self.path = path
        self.camera = camera
        self.tables = find_epic(path)
        if not self.tables:
            expected = " or ".join(TABLES.values())
            raise DataError(f"{path}: expected {expected}, found none; copy the annotations there.")
        for split, file in self.tables.items():
            check_columns(file, _COLUMNS if split == "test" else (*_COLUMNS, "narration"))

    def __iter__(self) -> Iterator[Record]:
        videos = index_videos(self.path)
        seen: Counter[str] = Counter()
        for split, table in self.tables.items():
            lengths = read_lengths(table.with_name(VIDEO_INFO))
            for number, row in enumerate(read_rows(table), start=2):
                where = f"{table.name}: row {number}"
                facts = {"dataset": DATASET, "license": LICENSE, "split": split}
                facts |= {fact: row[fact] for fact in _PLAIN_FACTS if row.get(fact)}
                name = row["narration_id"]
                seen[name] += 1
                if seen[name] > 1 or not name:
                    problem = DUPLICATE_ID if name else "the narration_id is empty; repair the row"
                    yield unusable(where, where, facts, problem)
                    continue
                try:
                    yield self._record(row, facts, where, videos, lengths)
                except DataError as error:
                    yield unusable(name, where, facts, str(error))

    def _record(
        self,
        row: Mapping[str, str],
        facts: Mapping[str, Any],
        where: str,
        videos: Mapping[str, Path],
        lengths: Mapping[str, tuple[float, float]],
    ) -> Record:
        name, video = row["narration_id"], row["video_id"]
        start, stop = seconds_of(row["start_timestamp"]), seconds_of(row["stop_timestamp"])
        if start >= stop:
            raise DataError(f"expected the start before the stop, got {start:.2f} and {stop:.2f} s; repair the row.")
        if video in lengths:
            duration, frame = lengths[video]
            # Annotators stop at the last frame; rounded, that may lie a part of a frame behind the end.
            if start >= duration or stop > duration + frame:
                raise DataError(
                    f"the part ends at {stop:.2f} s, {video} lasts {duration:.2f} s; correct the times or leave it out."
                )
            stop = min(stop, duration)
        lists = {fact: _list_of(fact, row[fact]) for fact in _LISTS if row.get(fact)}
        if video not in videos:
            return unusable(name, where, facts, VIDEO_MISSING)
        return Record(
            key=sample_key(name),
            videos={self.camera: VideoSpan(file=videos[video], start=start, stop=stop)},
            caption=row.get("narration", ""),
            source=f"{videos[video].relative_to(self.path).as_posix()} {start:.2f}..{stop:.2f} s",
            facts={**facts, **lists},
        )


def seconds_of(timestamp: str) -> float:
    """Convert `HH:MM:SS.mmm` to seconds [s].

    Raises:
        DataError: the text is no time of day.
    """
    try:
        hours, minutes, seconds = timestamp.split(":")
        total = 3600 * int(hours) + 60 * int(minutes) + float(seconds)
    except ValueError as error:
        raise DataError(f"expected a time HH:MM:SS.mmm, got {timestamp!r}; repair the row.") from error
    if not 0 <= total < float("inf"):
        raise DataError(f"expected a time from 00:00:00 on, got {timestamp!r}; repair the row.")
    return total


def read_lengths(table: Path) -> dict[str, tuple[float, float]]:
    """Read duration and time of one frame [s] of each video; empty without the table.

    Raises:
        DataError: the table lacks columns, or a number is none.
    """
    if not table.is_file():
        return {}
    check_columns(table, ("video_id", "duration", "fps"))
    try:
        return {row["video_id"]: (float(row["duration"]), 1 / float(row["fps"])) for row in read_rows(table)}
    except (ValueError, ZeroDivisionError) as error:
        raise DataError(f"{table}: expected numbers as duration and fps ({error}); download it again.") from error


def _list_of(name: str, text: str) -> list[Any]:
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, RecursionError, MemoryError) as error:
        raise DataError(f"{name}: expected a list, got {text[:80]!r}; repair the row.") from error
    if not isinstance(value, list) or not all(isinstance(item, str | int) for item in value):
        raise DataError(f"{name}: expected a list of words or numbers, got {text[:80]!r}; repair the row.")
    return value
