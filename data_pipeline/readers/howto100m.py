"""Read HowTo100M: instruction videos, and what a speech recognizer heard in them.

`raw_caption.json`, else `caption.json`, is `{<video_id>: {"start": [s], "end": [s], "text": [...]}}`; the raw file is
better, for the other has no stop words. `HowTo100M_v1.csv` adds the categories. Videos are `<video_id>.mp4` (or
.webm, .mkv) anywhere below the folder.

Lines of speech roll: a line stays on the screen while the next one appears, and may repeat its words. They become
windows that do not overlap, by this rule:

1. A line ends where the next one begins; words that repeat the end of the text before are left out.
2. Lines are joined while no pause is longer than `LONGEST_PAUSE` and the window does not exceed `LONGEST_WINDOW`.
3. A window shorter than `SHORTEST_WINDOW` lasts that long; where the next line begins before, it is joined too.
4. A window longer than `LONGEST_WINDOW` is cut to it: nobody speaks one line that long.

Speech describes what is done only roughly, and often early or late. The fact `caption_kind` is "asr", so that later
stages can distinguish these captions from descriptions.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import DataError
from ..files import sample_key
from .corpus_files import (
    DUPLICATE_ID,
    VIDEO_MISSING,
    check_columns,
    check_json,
    index_videos,
    json_entries,
    read_rows,
    unusable,
)
from .record import Record, VideoSpan

DATASET = "howto100m"
LICENSE = "videos of their uploaders, research only, no redistribution"
"""Source: the HowTo100M page; a video keeps the terms of YouTube."""

SHORTEST_WINDOW, LONGEST_WINDOW, LONGEST_PAUSE = 2.0, 10.0, 2.0
"""[s]"""

TABLE = "HowTo100M_v1.csv"
CAPTIONS = ("raw_caption.json", "caption.json")
_FOLDERS = ("", "annotations", "captions")
_TABLE_FACTS = {"category_1": "category", "category_2": "subcategory", "task_id": "task_id", "rank": "rank"}


@dataclass(frozen=True, slots=True, kw_only=True)
class SpokenLine:
    """Words heard in `[start, stop)` [s]."""

    start: float
    stop: float
    text: str


def find_howto100m(path: Path) -> list[Path]:
    """Find the captions, and the table after them; empty where the folder is of another layout."""
    files = [path / folder / name for name in CAPTIONS for folder in _FOLDERS]
    captions = [file for file in files if file.is_file() and _begins_like_captions(file)][:1]
    tables = [path / folder / TABLE for folder in _FOLDERS if (path / folder / TABLE).is_file()][:1]
    return [*captions, *tables]


def _begins_like_captions(file: Path) -> bool:
    # `caption.json` is a name that other datasets use too.
    with file.open(encoding="utf-8-sig", errors="replace") as opened:
        head = "".join(opened.read(4096).split())
    return head.startswith("{") and any(f':{{"{name}":[' in head for name in ("start", "end", "text"))


class HowTo100mSource:
    """Windows of speech in the order of the captions; a video that is not there is one problem.

    The captions are read entry by entry: a file of gigabytes needs the memory of one video.

    camera: name given to the one camera of these videos.

    Raises:
        DataError: the captions are missing or truncated, or the table lacks columns.
    """

    kind = "howto100m"

    def __init__(self, path: Path, camera: str = "static") -> None:
        self.path = path
        self.camera = camera
        found = {file.name: file for file in find_howto100m(path)}
        self.table = found.pop(TABLE, None)
        if not found:
            expected = f"{' or '.join(CAPTIONS)} with start, end and text of each video"
            raise DataError(f"{path}: expected {expected}, found neither; download the captions there.")
        self.captions = next(iter(found.values()))
        check_json(self.captions, "{}")
        if self.table is not None:
            check_columns(self.table, ("video_id",))

    def __iter__(self) -> Iterator[Record]:
        videos = index_videos(self.path)
        categories = self._categories(videos)
        seen: Counter[str] = Counter()
        for video, entry in json_entries(self.captions):
            seen[video] += 1
            facts = {"dataset": DATASET, "license": LICENSE, "video_id": video, "caption_kind": "asr"}
            if seen[video] > 1:
                yield unusable(f"{video}#{seen[video]}", video, facts, DUPLICATE_ID)
            elif video not in videos:
                yield unusable(video, video, facts, VIDEO_MISSING)
            else:
                yield from self._windows(videos[video], entry, {**facts, **categories.get(video, {})})

    def _categories(self, videos: Mapping[str, Path]) -> dict[str, dict[str, str]]:
        """Read what the table states of the videos that are there."""
        rows = read_rows(self.table) if self.table is not None else iter(())
        return {
            row["video_id"]: {fact: row[column] for column, fact in _TABLE_FACTS.items() if row.get(column)}
            for row in rows
            if row["video_id"] in videos
        }

    def _windows(self, file: Path, entry: Any, facts: Mapping[str, Any]) -> Iterator[Record]:
        try:
            windows = speech_windows(spoken_lines(entry))
        except DataError as error:
            yield unusable(file.stem, file.stem, facts, str(error))
            return
        for number, window in enumerate(windows):
            yield Record(
                key=sample_key(f"{file.stem}/{number}"),
                videos={self.camera: VideoSpan(file=file, start=window.start, stop=window.stop)},
                caption=window.text,
                source=f"{file.relative_to(self.path).as_posix()} {window.start:.2f}..{window.stop:.2f} s",
                facts=facts,
            )


def spoken_lines(entry: Any) -> list[SpokenLine]:
    """Read the lines of one video, sorted by start; those without words are left out.

    Raises:
        DataError: the entry is not three lists of one length, or a time is no number.
    """
    columns = [entry.get(name) for name in ("start", "end", "text")] if isinstance(entry, dict) else [None] * 3
    lengths = [len(column) if isinstance(column, list) else None for column in columns]
    if None in lengths or len(set(lengths)) > 1:
        raise DataError(
            f"expected lists start, end and text of one length, got lengths {lengths}; repair the captions."
        )
    lines = []
    for start, stop, text in zip(*columns, strict=True):
        if not isinstance(text, str) or not text.strip():
            continue
        if not _is_time(start) or not _is_time(stop):
            raise DataError(f"expected times in seconds, got {start!r} and {stop!r}; repair the captions.")
        lines.append(SpokenLine(start=float(start), stop=max(float(start), float(stop)), text=" ".join(text.split())))
    return sorted(lines, key=lambda line: line.start)


def _is_time(value: Any) -> bool:
    return isinstance(value, int | float) and 0 <= value < math.inf


def speech_windows(lines: Sequence[SpokenLine]) -> list[SpokenLine]:
    """Join lines, sorted by start, to windows of 2 to 10 s that do not overlap, by the rule of the module."""
    windows: list[SpokenLine] = []
    window: SpokenLine | None = None
    for line, following in itertools.zip_longest(lines, lines[1:]):
        stop = line.stop if following is None else min(line.stop, following.start)
        if window is not None and _joins(window, line.start, stop):
            text = f"{window.text} {new_words(window.text, line.text)}".strip()
            window = SpokenLine(start=window.start, stop=max(window.stop, stop), text=text)
            continue
        if window is not None:
            windows.append(_fitted(window))
        rolls = window is not None and line.start - window.stop <= LONGEST_PAUSE
        before = window.text if window is not None and rolls else ""
        window = SpokenLine(start=line.start, stop=stop, text=new_words(before, line.text))
    if window is not None:
        windows.append(_fitted(window))
    return [window for window in windows if window.text]


def _joins(window: SpokenLine, start: float, stop: float) -> bool:
    if window.stop - window.start < SHORTEST_WINDOW and start < window.start + SHORTEST_WINDOW:
        return True
    return start - window.stop <= LONGEST_PAUSE and stop - window.start <= LONGEST_WINDOW


def _fitted(window: SpokenLine) -> SpokenLine:
    stop = min(max(window.stop, window.start + SHORTEST_WINDOW), window.start + LONGEST_WINDOW)
    return SpokenLine(start=window.start, stop=stop, text=window.text)


def new_words(before: str, line: str) -> str:
    """Return the words of a line without those at its beginning that repeat the end of the text before.

    One repeated word is speech ("very very good"), unless it is the whole line.
    """
    old, new = before.lower().split(), line.lower().split()
    for count in range(min(len(old), len(new)), 0, -1):
        if old[-count:] == new[:count] and (count > 1 or len(new) == 1):
            return " ".join(line.split()[count:])
    return line
