"""Read the files that video corpora come with: tables, JSON of gigabytes, and folders of videos named by an id."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from ...errors import DataError
from ..files import sample_key, text_encoding
from ..video.reader import is_video
from .record import Record

VIDEO_MISSING = "video missing"
"""The problem of an annotated entry whose video is not on the disk."""

DUPLICATE_ID = "duplicate id: an earlier entry has it; keep one of the two"

_PIECE, _LONGEST_ENTRY = 1 << 20, 1 << 26
"""Characters: what is read at once, and what one entry of a JSON file may hold."""


def unusable(name: str, source: str, facts: Mapping[str, Any], problem: str) -> Record:
    """Make the record of an entry that cannot be used."""
    missing = problem == VIDEO_MISSING
    return Record(key=sample_key(name), videos={}, source=source, facts=facts, problem=problem, missing=missing)


def index_videos(root: Path, first_in: Sequence[str] = ()) -> dict[str, Path]:
    """Find the videos below a folder by name without suffix; of two of one name the first in sorted order is taken.

    Args:
        root: folder; links to folders are followed, hidden ones left out.
        first_in: names of folders whose videos go before others of the same name, the best first.
    """
    ranks = {folder: rank for rank, folder in enumerate(first_in)}
    found = sorted(_walk(root), key=lambda file: (min(ranks.get(part, len(ranks)) for part in file.parts), file))
    videos: dict[str, Path] = {}
    for file in found:
        videos.setdefault(file.stem, file)
    return videos


def _walk(root: Path) -> Iterator[Path]:
    for folder, _, files in walk_links(root):
        yield from (Path(folder, name) for name in files if is_video(name) and not name.startswith("."))


def walk_links(root: Path) -> Iterator[tuple[str, list[str], list[str]]]:
    """Walk the folders below one in sorted order, as `os.walk` does: links are followed once, hidden ones left out."""
    seen = set()
    for folder, names, files in os.walk(root, followlinks=True):
        status = os.stat(folder)
        if (status.st_dev, status.st_ino) in seen:  # a link to a folder above would never end
            names.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        names[:] = sorted(name for name in names if not name.startswith("."))
        yield folder, names, files


def table_columns(path: Path) -> list[str]:
    """Read the column names of a CSV file; none where it cannot be read."""
    try:
        with path.open(newline="", encoding="utf-8-sig", errors="replace") as file:
            return [name.strip() for name in next(csv.reader(file), [])]
    except (OSError, csv.Error):
        return []


def check_columns(path: Path, columns: Collection[str]) -> None:
    """Check the header of a CSV file.

    Raises:
        DataError: where columns are missing.
    """
    found = table_columns(path)
    missing = [column for column in columns if column not in found]
    if missing:
        raise DataError(f"{path}: expected the columns {missing}, got {found}; download the table again.")


def read_rows(path: Path) -> Iterator[dict[str, str]]:
    """Read the rows of a CSV file, one at a time; what a short row lacks is empty.

    Raises:
        DataError: where the file cannot be read, or a quote is never closed.
    """
    try:
        with path.open(newline="", encoding=text_encoding(path)) as file:
            for row in csv.DictReader(file):
                yield {name.strip(): (value or "").strip() for name, value in row.items() if isinstance(name, str)}
    except (OSError, csv.Error) as error:
        raise DataError(f"{path}: cannot be read as a table ({error}); download it again.") from error


def check_json(path: Path, brackets: str) -> None:
    """Check by its first and its last character that a JSON file is whole and of the kind expected.

    Args:
        path: the file.
        brackets: `{}` for an object, `[]` for a list.

    Raises:
        DataError: where the file is missing, truncated, or of another kind.
    """
    kind = {"{}": "object", "[]": "list"}[brackets]
    try:
        with path.open("rb") as file:
            head = file.read(4096).decode("utf-8-sig", errors="replace").lstrip()
            file.seek(max(path.stat().st_size - 4096, 0))
            tail = file.read().decode(errors="replace").rstrip()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error}); download it again.") from error
    got = f"{head[:1]!r} ... {tail[-1:]!r}"
    if head[:1] != brackets[0]:
        raise DataError(f"{path}: expected a JSON {kind}, got {got}; check the file.")
    if tail[-1:] != brackets[1]:
        raise DataError(f"{path}: expected a JSON {kind}, got {got}: it is truncated; download it again.")


def json_entries(path: Path, inside: str = "") -> Iterator[tuple[str, Any]]:
    """Read the entries of a JSON object (or list) one at a time: a file of gigabytes needs the memory of one entry.

    Args:
        path: the file.
        inside: name of an entry of the object that is entered in place of being yielded.

    Yields:
        Name (or number in the list) and value.

    Raises:
        DataError: where the file is truncated or no JSON.
    """
    try:
        with path.open(encoding="utf-8-sig") as file:
            yield from _entries(_JsonText(file), inside)
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: cannot be read as JSON ({error}); download it again.") from error


def _entries(text: _JsonText, inside: str) -> Iterator[tuple[str, Any]]:
    opening = text.mark()
    closing = {"{": "}", "[": "]"}.get(opening)
    if closing is None:
        raise ValueError(f"expected an object or a list, got {opening!r}")
    count = 0
    text.skip()
    while text.mark() != closing:
        if count:
            text.expect(",")
        name = str(count)
        if opening == "{":
            name = text.value()
            if not isinstance(name, str):
                raise ValueError(f"expected a name in quotes, got {name!r}")
            text.expect(":")
        if name == inside and inside and text.mark() in ("{", "["):
            yield from _entries(text, "")
        else:
            yield name, text.value()
        count += 1
    text.skip()


class _JsonText:
    """The part of a JSON text that is being parsed."""

    def __init__(self, file: TextIO) -> None:
        self._file = file
        self._text = ""
        self._at = 0
        self._decoder = json.JSONDecoder()

    def mark(self) -> str:
        """Return the next character that is no white space, empty at the end."""
        while True:
            while self._at < len(self._text):
                if not self._text[self._at].isspace():
                    return self._text[self._at]
                self._at += 1
            if not self._read():
                return ""

    def skip(self) -> None:
        """Step over the character that `mark` has returned."""
        self._at += 1

    def expect(self, wanted: str) -> None:
        """Step over one certain character."""
        if self.mark() != wanted:
            raise ValueError(f"expected {wanted!r}, got {self.mark() or 'the end'!r}")
        self.skip()

    def value(self) -> Any:
        """Parse the next value, reading on as far as it needs."""
        self.mark()  # steps over white space
        while True:
            try:
                value, end = self._decoder.raw_decode(self._text, self._at)
            except json.JSONDecodeError as error:
                unfinished = error.pos > len(self._text) - 16 or error.msg.startswith("Unterminated string")
                if not unfinished or len(self._text) - self._at > _LONGEST_ENTRY or not self._read():
                    near = self._text[max(error.pos - 20, 0) : error.pos + 20]
                    raise ValueError(f"{error.msg}, near {near!r}") from error
                continue
            # A number may continue behind the part that has been read: "1e" of "1e-7" is a whole one, and a letter.
            goes_on = not self._text[end : end + 32].strip("0123456789+-.eE")
            if not goes_on or not self._read():
                self._at = end
                return value

    def _read(self) -> bool:
        # As much again as is held: the parts of a long value cost a constant number of attempts each.
        piece = self._file.read(max(_PIECE, len(self._text) - self._at))
        self._text, self._at = self._text[self._at :] + piece, 0
        return bool(piece)
