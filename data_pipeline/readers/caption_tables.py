"""Captions of videos in tables beside them.

`captions.csv` has the columns `file` and `caption`; `captions.json` is `{file: caption}` or a list of
`{"file": ..., "caption": ...}`. `metadata.csv` and `metadata.jsonl`, in any folder, are those of Hugging Face's
`videofolder`. Files are named relative to the table's folder, with or without the suffix. A row whose video is not
there is a record that says so.

Where there are none of these, tables of any name are tried (WebVid's, OpenVid's, MSR-VTT's and others): CSV, TSV,
JSON, JSON lines and parquet in the folder itself whose columns name videos that are there, and their captions. Such a
table may name many more videos than were downloaded, and what it gave is told.
"""

from __future__ import annotations

import csv
import io
import json
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from ...errors import DataError
from ..files import read_json, text_encoding
from .corpus_files import walk_links

FILE_COLUMNS = ("file", "file_name", "video", "path", "id")
CAPTION_COLUMNS = ("caption", "text", "label", "instruction", "sentence")

_OTHER_FILE_COLUMNS = (
    "filename",
    "file_path",
    "filepath",
    "video_path",
    "video_file",
    "video_id",
    "videoid",
    "clip_id",
)
_OTHER_CAPTION_COLUMNS = ("captions", "description", "prompt", "name")
_PART_COLUMNS = {"start", "end", "start_time", "end_time", "timestamp", "timestamps"}
"""Columns of a table whose rows are parts of a video, so that their captions are not the video's."""

_SUFFIXES = (".csv", ".tsv", ".json", ".jsonl", ".parquet")
_LARGEST_JSON = 1 << 28
"""Bytes of a JSON file of another name that is read; JSON lines and tables may be of any size."""


def names_of(video: Path) -> tuple[str, ...]:
    """Return what a table may call a video, given by its path from the folder on; the surest first."""
    return (video.as_posix(), video.with_suffix("").as_posix(), video.name, video.stem)


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
        names, rows = _read_csv(path)
        _columns(path, "the first line", names)
        return _pairs(path, rows)
    if path.suffix == ".jsonl":
        try:
            lines = path.read_text(encoding=text_encoding(path)).split("\n")
            return _pairs(path, [json.loads(line) for line in lines if line.strip()])
        except ValueError as error:
            raise DataError(f"{path}: expected one JSON object a line ({error}); correct the file.") from error
    content = read_json(path)
    if isinstance(content, dict):
        return {str(name): str(caption).strip() for name, caption in content.items()}
    return _pairs(path, content)


def _read_csv(path: Path) -> tuple[Sequence[str], list[dict[str, Any]]]:
    """Read a table whose columns are divided by commas, semicolons or tabs: names of the columns, and rows.

    Raises:
        DataError: a quote is opened and never closed, so that rows end up in one caption.
    """
    text = path.read_text(encoding=text_encoding(path))
    delimiter = _delimiter(text)
    try:
        # Stops at other oddities of quotes, too, which have one meaning alone.
        for _ in csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True):
            pass
    except csv.Error as error:
        if "unexpected end" in str(error) or "field larger" in str(error):
            got = f"one that is never closed ({error})"
            raise DataError(f"{path}: expected quotes in pairs, got {got}; close it, or double a quote.") from error
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter)
    return reader.fieldnames or (), list(reader)


def _delimiter(text: str) -> str:
    """Return what divides the columns: Excel writes semicolons where numbers have a decimal comma."""
    head = text.partition("\n")[0]
    return max(",;\t", key=head.count)


def _pairs(path: Path, rows: Any) -> dict[str, str]:
    captions: dict[str, str] = {}
    several = set()
    for i, row in enumerate(rows if isinstance(rows, list) else [rows]):
        names = row if isinstance(row, dict) else {}
        file_column, caption_column = _columns(path, f"row {i + 1}", names)
        name, caption = str(names[file_column]).strip().replace("\\", "/").removeprefix("./"), names[caption_column]
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
    known = {str(name).strip().lower(): name for name in names}
    file = next((known[name] for name in (*FILE_COLUMNS, *_OTHER_FILE_COLUMNS) if name in known), None)
    caption = next((known[name] for name in CAPTION_COLUMNS if name in known), None)
    if file is None or caption is None:
        raise DataError(
            f"{path}: {where} has the columns {sorted(map(str, known))}, expected one of {FILE_COLUMNS} and one of "
            f"{CAPTION_COLUMNS}; rename the columns."
        )
    return file, caption


def find_captions(root: Path, videos: Sequence[Path]) -> dict[Path, str]:
    """Read the captions of videos, given by their paths from the folder on, from tables of any name in the folder."""
    owners = Counter(name for video in videos for name in set(names_of(video)))
    names = {name: video for video in videos for name in names_of(video) if owners[name] == 1}
    captions: dict[Path, str] = {}
    files = sorted(root.iterdir()) if names and root.is_dir() else []
    for path in (file for file in files if file.suffix.lower() in _SUFFIXES and not file.name.startswith(".")):
        found: dict[Path, str] = {}
        repeated = elsewhere = 0
        for name, caption in _captions_in(path):
            video = names.get(name)
            if video is None:
                elsewhere += 1
            elif found.setdefault(video, caption) != caption:
                repeated += 1
        if found:
            more = [f"{elsewhere} rows of other videos"] if elsewhere else []
            more += [f"{repeated} further captions of the same ones are left out"] if repeated else []
            _tell(f"{path}: captions of {len(found)} of {len(videos)} videos" + "".join(f"; {text}" for text in more))
        captions = found | captions
    return captions


@lru_cache(maxsize=256)
def _tell(sentence: str) -> None:
    """Print a sentence, once."""
    print(sentence, file=sys.stderr)


def _captions_in(path: Path) -> Iterator[tuple[str, str]]:
    """Yield the names of videos and their captions in a table, none where it is another kind of file."""
    file = caption = ""
    for row in _rows_in(path):
        if not isinstance(row, dict):
            return
        if not file:
            columns = {str(name).strip().lower(): name for name in row}
            if _PART_COLUMNS & columns.keys():
                return
            files = (columns[c] for c in (*FILE_COLUMNS, *_OTHER_FILE_COLUMNS) if c in columns)
            captions = (columns[c] for c in (*CAPTION_COLUMNS, *_OTHER_CAPTION_COLUMNS) if c in columns)
            file, caption = next(files, ""), next(captions, "")
            file = file if caption else ""
        name, text = row.get(file), row.get(caption)
        text = next(iter(text), None) if isinstance(text, list) else text
        if name is not None and text is not None and str(text).strip():
            yield str(name).strip().removeprefix("./"), str(text).strip()


def _rows_in(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the rows of a table; none where it is no table or damaged."""
    suffix = path.suffix.lower()
    try:
        if suffix == ".parquet":
            import pyarrow.parquet as pq

            for batch in pq.ParquetFile(path).iter_batches(columns=_plain_columns(path)):
                yield from batch.to_pylist()
        elif suffix == ".json":
            if path.stat().st_size <= _LARGEST_JSON:
                yield from _tables_in(read_json(path))
        else:
            with path.open(newline="", encoding=text_encoding(path)) as file:
                if suffix == ".jsonl":
                    yield from (json.loads(line) for line in file if line.strip())
                else:
                    delimiter = "\t" if suffix == ".tsv" else _delimiter(file.readline())
                    file.seek(0)
                    yield from csv.DictReader(file, delimiter=delimiter)
    except (OSError, ValueError, csv.Error, DataError):
        return


def _plain_columns(path: Path) -> list[str]:
    """Name the columns of a parquet file that may hold names or captions: no bytes, which may be whole videos."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    def is_plain(kind: Any) -> bool:
        return (pa.types.is_list(kind) and is_plain(kind.value_type)) or not (
            pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_nested(kind)
        )

    return [column.name for column in pq.read_schema(path) if is_plain(column.type)]


def _tables_in(content: Any) -> Iterator[dict[str, Any]]:
    """Yield the rows of a JSON file: of a list, `{file: caption}`, `{file: {...}}`, or a list below a key."""
    if isinstance(content, list):
        yield from (row for row in content if isinstance(row, dict))
        return
    if not isinstance(content, dict):
        return
    for name, value in content.items():
        if isinstance(value, str):
            yield {"file": name, "caption": value}
        elif isinstance(value, dict):
            yield {"file": name, **value}
    lists = [value for value in content.values() if isinstance(value, list) and value and isinstance(value[0], dict)]
    yield from (row for rows in lists if any(c in rows[0] for c in CAPTION_COLUMNS) for row in rows)
