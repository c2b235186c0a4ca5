"""Read a plain folder of videos, with captions from a table, or from a text file beside each video.

`captions.csv` has the columns `file` and `caption`; `captions.json` is `{file: caption}` or a list of
`{"file": ..., "caption": ...}`. Files are named relative to the folder, with or without the suffix.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ...errors import DataError
from ..files import read_json, sample_key
from ..video.reader import is_video
from .record import Record

FILE_COLUMNS = ("file", "file_name", "video", "path", "id")
CAPTION_COLUMNS = ("caption", "text", "label", "instruction", "sentence")


class FolderSource:
    """Videos anywhere below a folder (or one video file), in sorted order.

    camera: name given to the one camera of these videos.
    """

    kind = "folder"

    def __init__(self, path: Path, camera: str = "static") -> None:
        self.path = path
        self.camera = camera

    def __iter__(self) -> Iterator[Record]:
        root = self.path.parent if self.path.is_file() else self.path
        captions = _read_captions(root)
        for video in [self.path] if self.path.is_file() else _walk(root):
            relative = video.relative_to(root)
            yield Record(
                key=sample_key(relative.as_posix()),
                videos={self.camera: video},
                caption=_caption_of(video, relative, captions),
                source=relative.as_posix(),
            )


def _walk(root: Path) -> Iterator[Path]:
    for folder, names, files in os.walk(root):
        names[:] = sorted(name for name in names if not name.startswith("."))
        yield from (Path(folder, name) for name in sorted(files) if is_video(name) and not name.startswith("."))


def _caption_of(video: Path, relative: Path, captions: Mapping[str, str]) -> str:
    for name in (relative.as_posix(), relative.with_suffix("").as_posix(), relative.name, relative.stem):
        if name in captions:
            return captions[name]
    beside = video.with_suffix(".txt")
    return beside.read_text(encoding="utf-8", errors="replace").strip() if beside.is_file() else ""


def _read_captions(root: Path) -> dict[str, str]:
    table = root / "captions.csv"
    if table.is_file():
        with table.open(newline="", encoding="utf-8-sig") as file:
            return _pairs(table, list(csv.DictReader(file)))
    listing = root / "captions.json"
    if not listing.is_file():
        return {}
    content = read_json(listing)
    if isinstance(content, dict):
        return {str(name): str(caption).strip() for name, caption in content.items()}
    return _pairs(listing, content)


def _pairs(path: Path, rows: Any) -> dict[str, str]:
    captions = {}
    for i, row in enumerate(rows if isinstance(rows, list) else [rows]):
        names = row if isinstance(row, dict) else {}
        name = next((names[column] for column in FILE_COLUMNS if column in names), None)
        caption = next((names[column] for column in CAPTION_COLUMNS if column in names), None)
        if name is None or caption is None:
            raise DataError(
                f"{path}: row {i + 1} has the columns {sorted(map(str, names))}, expected one of "
                f"{FILE_COLUMNS} and one of {CAPTION_COLUMNS}; rename the columns."
            )
        captions[str(name)] = str(caption).strip()
    return captions
