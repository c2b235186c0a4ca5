"""Read Kinetics-400, -600 and -700: clips named `<youtube_id>_<start>_<end>.mp4`, flat or in folders of a class.

The tables have the columns `label, youtube_id, time_start, time_end, split`, some `is_cc`; those of test may lack the
label. Without a table, the folder of a clip is its label. An id of YouTube may hold and begin with `_` and `-`:
a name is taken apart from the right.
"""

from __future__ import annotations

import itertools
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

from ...errors import DataError
from ..files import sample_key
from ..video.reader import is_video
from .corpus_files import DUPLICATE_ID, VIDEO_MISSING, index_videos, read_rows, table_columns, unusable
from .record import Record

DATASET = "kinetics"
LICENSE = "annotations CC BY 4.0; videos of their uploaders, research only, no redistribution"
"""Source: the Kinetics pages of Google DeepMind; a video keeps the terms of YouTube."""

_COLUMNS = frozenset({"youtube_id", "time_start", "time_end"})
_SPLITS = {"train": "train", "val": "validation", "valid": "validation", "validate": "validation"}
_SPLITS |= {"validation": "validation", "test": "test"}
_CLIP = re.compile(r"(?P<id>.+)_(?P<start>\d{6})_(?P<end>\d{6})")
_FOLDERS_LOOKED_AT, _FILES_LOOKED_AT = 20, 50


def find_kinetics(path: Path) -> list[Path]:
    """Find the tables, or a first class folder with clips; empty where the folder is of another layout."""
    tables = sorted([*path.glob("*.csv"), *path.glob("annotations/*.csv")])
    found = [table for table in tables if set(table_columns(table)) >= _COLUMNS]
    return found or [folder for folder in _first_folders(path) if _holds_clips(folder)][:1]


def _first_folders(path: Path) -> Iterator[Path]:
    """Yield some folders of a class: those below, and those below `train` and the like."""
    if not path.is_dir():
        return
    for folder in itertools.islice(_folders_in(path), _FOLDERS_LOOKED_AT):
        if _split_in(folder.name):
            yield from itertools.islice(_folders_in(folder), _FOLDERS_LOOKED_AT)
        else:
            yield folder


def _folders_in(path: Path) -> list[Path]:
    """Return the folders in a folder, sorted; `glob("*/")` gives files, too, with Python 3.10."""
    return sorted(found for found in path.glob("[!.]*") if found.is_dir())


def _holds_clips(folder: Path) -> bool:
    with os.scandir(folder) as entries:
        names = [Path(entry.name) for entry in itertools.islice(entries, _FILES_LOOKED_AT)]
    return any(is_video(name) and clip_of(name.stem) is not None for name in names)


def clip_of(stem: str) -> tuple[str, int, int] | None:
    """Take the name of a clip apart: id of the video, start and end in it [s]; None for another name."""
    match = _CLIP.fullmatch(stem)
    return None if match is None else (match["id"], int(match["start"]), int(match["end"]))


def _split_in(name: str) -> str:
    """Find the split in a name such as `val`, `kinetics_700_train` or `train_256`, empty without one."""
    return next((_SPLITS[part] for part in re.split(r"[_\-.]+", name.lower()) if part in _SPLITS), "")


class KineticsSource:
    """The clips in the order of the tables (an annotation without video is a problem), or of the class folders.

    camera: name given to the one camera of these videos.

    Raises:
        DataError: there is neither a table nor a class folder.
    """

    kind = "kinetics"

    def __init__(self, path: Path, camera: str = "static") -> None:
        self.path = path
        self.camera = camera
        found = find_kinetics(path)
        self.tables = [file for file in found if file.suffix.lower() == ".csv"]
        if not found:
            raise DataError(
                f"{path}: expected a table with the columns {sorted(_COLUMNS)} or folders of clips "
                "<youtube_id>_<start>_<end>.mp4, found neither; check the path."
            )

    def __iter__(self) -> Iterator[Record]:
        videos = index_videos(self.path)
        if not self.tables:
            yield from self._by_folder(videos)
            return
        seen: Counter[str] = Counter()
        for table in self.tables:
            for number, row in enumerate(read_rows(table), start=2):
                yield self._record(row, table, f"{table.name}: row {number}", videos, seen)

    def _record(
        self, row: Mapping[str, str], table: Path, where: str, videos: Mapping[str, Path], seen: Counter[str]
    ) -> Record:
        facts = {"dataset": DATASET, "license": LICENSE, "split": _split_in(row.get("split") or table.stem)}
        try:
            name = f"{row['youtube_id']}_{_second(row['time_start']):06d}_{_second(row['time_end']):06d}"
        except DataError as error:
            return unusable(where, where, facts, str(error))
        facts |= {"youtube_id": row["youtube_id"], "is_cc": row.get("is_cc", "")}
        seen[name] += 1
        if seen[name] > 1:
            return unusable(f"{name}#{seen[name]}", where, facts, DUPLICATE_ID)
        if name not in videos:
            return unusable(name, where, facts, VIDEO_MISSING)
        return self._clip(videos[name], row.get("label", ""), facts)

    def _by_folder(self, videos: Mapping[str, Path]) -> Iterator[Record]:
        for stem, file in sorted(videos.items()):
            clip = clip_of(stem)
            if clip is None:
                continue
            above = file.relative_to(self.path).parts[:-1]
            label = above[-1] if above and not _split_in(above[-1]) else ""
            split = next((split for part in above if (split := _split_in(part)) and part != label), "")
            facts = {"dataset": DATASET, "license": LICENSE, "split": split, "youtube_id": clip[0]}
            yield self._clip(file, label.replace("_", " "), facts)

    def _clip(self, file: Path, label: str, facts: Mapping[str, str]) -> Record:
        return Record(
            key=sample_key(file.stem),
            videos={self.camera: file},
            caption=label,
            source=file.relative_to(self.path).as_posix(),
            facts={name: fact for name, fact in facts.items() if fact},
        )


def _second(text: str) -> int:
    try:
        number = float(text)
        if not 0 <= number < 1_000_000:
            raise ValueError(text)
    except ValueError as error:
        raise DataError(f"expected a time in seconds from 0 to 999999, got {text!r}; repair the row.") from error
    return int(number)
