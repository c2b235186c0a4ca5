"""Read Something-Something V2: `<id>.webm` anywhere below the folder, and a JSON list for each split.

The lists are `something-something-v2-{train,validation,test}.json`, or `labels/{train,validation,test}.json` as the
later download names them, with entries `{"id", "label", "template", "placeholders"}`; those of test have an id alone.
The caption is the label, which has the placeholders filled in.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ...errors import DataError
from ..files import sample_key
from .corpus_files import DUPLICATE_ID, VIDEO_MISSING, check_json, index_videos, json_entries, unusable
from .record import Record

DATASET = "something-something-v2"
LICENSE = "research only, no redistribution"
"""Source: the data license agreement of Something-Something V2 (Qualcomm)."""

SPLITS = ("train", "validation", "test")
_FOLDERS = ("", "labels", "annotations", "20bn-something-something-v2")


def find_something(path: Path) -> dict[str, Path]:
    """Find the lists of the splits; empty where the folder is of another layout."""
    lists = {}
    for split in SPLITS:
        named = [path / folder / f"{DATASET}-{split}.json" for folder in _FOLDERS]
        listed = path / "labels" / f"{split}.json"
        if _begins_like_a_list(listed):
            named.append(listed)
        found = next((file for file in named if file.is_file()), None)
        if found is not None:
            lists[split] = found
    return lists


def _begins_like_a_list(file: Path) -> bool:
    # `labels/train.json` is a name that other datasets use too.
    if not file.is_file():
        return False
    with file.open(encoding="utf-8-sig", errors="replace") as opened:
        head = opened.read(4096).lstrip()
    return head.startswith("[") and '"id"' in head and ('"template"' in head or "test" in file.stem)


class SomethingSource:
    """The annotated clips, split by split in the order of the lists; an annotation without video is a problem.

    camera: name given to the one camera of these videos.

    Raises:
        DataError: there is no list, or one is truncated.
    """

    kind = "something"

    def __init__(self, path: Path, camera: str = "static") -> None:
        self.path = path
        self.camera = camera
        self.lists = find_something(path)
        if not self.lists:
            expected = f"{DATASET}-train.json or labels/train.json"
            raise DataError(f"{path}: expected {expected}, found neither; copy the annotations there.")
        for file in self.lists.values():
            check_json(file, "[]")

    def __iter__(self) -> Iterator[Record]:
        videos = index_videos(self.path)
        seen: Counter[str] = Counter()
        for split, file in self.lists.items():
            for number, entry in json_entries(file):
                yield self._record(entry, split, f"{file.name}: entry {number}", videos, seen)

    def _record(self, entry: Any, split: str, where: str, videos: Mapping[str, Path], seen: Counter[str]) -> Record:
        facts: dict[str, Any] = {"dataset": DATASET, "license": LICENSE, "split": split}
        name = entry.get("id") if isinstance(entry, dict) else None
        caption = entry.get("label", "") if isinstance(entry, dict) else None
        if not isinstance(name, str | int) or not isinstance(caption, str):
            return unusable(where, where, facts, "expected an entry with an id and a label in words; repair it")
        name = str(name)
        seen[name] += 1
        if seen[name] > 1:
            return unusable(f"{name}#{seen[name]}", where, facts | {"id": name}, DUPLICATE_ID)
        facts["id"] = name
        facts |= {fact: entry[fact] for fact in ("template", "placeholders") if fact in entry}
        if name not in videos:
            return unusable(name, where, facts, VIDEO_MISSING)
        return Record(
            key=sample_key(name),
            videos={self.camera: videos[name]},
            caption=caption.strip(),
            source=videos[name].relative_to(self.path).as_posix(),
            facts=facts,
        )
