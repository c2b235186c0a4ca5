"""Read a plain folder of videos, with captions from a table, or from a text file beside each video.

`captions.csv` has the columns `file` and `caption`; `captions.json` is `{file: caption}` or a list of
`{"file": ..., "caption": ...}`. `metadata.csv` and `metadata.jsonl`, in any folder, are those of Hugging Face's
`videofolder`. Files are named relative to the table's folder, with or without the suffix. A row whose video is not
there is a record that says so.
"""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from ...errors import DataError
from ..files import read_json, sample_key, text_encoding
from ..video.reader import is_video
from .corpus_files import VIDEO_MISSING, unusable, walk_links
from .record import AnimatedImage, Record, is_animated_webp

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
        captions, used = read_captions(root), set[str]()
        for video in [self.path] if self.path.is_file() else _walk(root):
            relative = video.relative_to(root)
            names = (relative.as_posix(), relative.with_suffix("").as_posix(), relative.name, relative.stem)
            found = next((name for name in names if name in captions), None)
            used |= {found} if found is not None else set()
            yield Record(
                key=sample_key(relative.as_posix()),
                videos={self.camera: AnimatedImage(file=video) if video.suffix.lower() == ".webp" else video},
                caption=_text_beside(video) if found is None else captions[found],
                source=relative.as_posix(),
            )
        for name in [] if self.path.is_file() else sorted(captions.keys() - used):
            yield unusable(f"{name} (row)", name, {}, VIDEO_MISSING)


def _walk(root: Path) -> Iterator[Path]:
    for folder, _, files in walk_links(root):
        for name in sorted(files):
            file = Path(folder, name)
            if not name.startswith(".") and (
                is_video(name) or (file.suffix.lower() == ".webp" and is_animated_webp(file))
            ):
                yield file


def _text_beside(video: Path) -> str:
    file = video.with_suffix(".txt")
    return file.read_text(encoding=text_encoding(file)).strip() if file.is_file() else ""


def read_captions(root: Path) -> dict[str, str]:
    """Read the table of the folder, and those of Hugging Face in any below it: file, from the root on -> caption."""
    captions: dict[str, str] = {}
    for folder, _, files in walk_links(root):
        place = Path(folder).relative_to(root).as_posix()
        for name in ("captions.csv", "captions.json", "metadata.csv", "metadata.jsonl"):
            if name in files and (place == "." or name.startswith("metadata")):
                found = _read_table(Path(folder, name))
                captions |= found if place == "." else {f"{place}/{file}": text for file, text in found.items()}
    return captions


def _read_table(path: Path) -> dict[str, str]:
    if path.suffix == ".csv":
        with path.open(newline="", encoding=text_encoding(path)) as file:
            rows = csv.DictReader(file)
            _columns(path, "the first line", rows.fieldnames or ())
            return _pairs(path, list(rows))
    if path.suffix == ".jsonl":
        try:
            lines = path.read_text(encoding=text_encoding(path)).splitlines()
            return _pairs(path, [json.loads(line) for line in lines if line.strip()])
        except ValueError as error:
            raise DataError(f"{path}: expected one JSON object a line ({error}); correct the file.") from error
    content = read_json(path)
    if isinstance(content, dict):
        return {str(name): str(caption).strip() for name, caption in content.items()}
    return _pairs(path, content)


def _pairs(path: Path, rows: Any) -> dict[str, str]:
    captions: dict[str, str] = {}
    several = set()
    for i, row in enumerate(rows if isinstance(rows, list) else [rows]):
        names = row if isinstance(row, dict) else {}
        file_column, caption_column = _columns(path, f"row {i + 1}", names)
        name, caption = str(names[file_column]), names[caption_column]
        text = "" if caption is None else str(caption).strip()
        if captions.setdefault(name, text) != text:
            several.add(name)
    if several:
        print(
            f"{path}: {len(several)} files have several captions ({min(several)} and others); the first of each is "
            "used",
            file=sys.stderr,
        )
    return captions


def _columns(path: Path, where: str, names: Iterable[str]) -> tuple[str, str]:
    """Return which columns hold file and caption.

    Raises:
        DataError: one of them is missing.
    """
    known = list(names)
    file = next((column for column in FILE_COLUMNS if column in known), None)
    caption = next((column for column in CAPTION_COLUMNS if column in known), None)
    if file is None or caption is None:
        raise DataError(
            f"{path}: {where} has the columns {sorted(map(str, known))}, expected one of {FILE_COLUMNS} and one of "
            f"{CAPTION_COLUMNS}; rename the columns."
        )
    return file, caption
