"""Read parquet files whose rows hold whole videos, as datasets of the Hugging Face Hub do (its `Video` feature).

A column holds a video's bytes, or a struct of `bytes` and `path`. The caption is in one of `CAPTION_COLUMNS`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ...errors import DataError, refuse_lfs_pointer
from ..files import sample_key
from .caption_tables import CAPTION_COLUMNS
from .record import Record, Video, VideoBytes

_MARKS = ((4, b"ftyp", ".mp4"), (0, b"\x1aE\xdf\xa3", ".mkv"), (8, b"AVI ", ".avi"), (0, b"OggS", ".ogv"))
"""Where in a file of which kind which bytes stand."""

_ROWS = 8
"""Rows that are in memory at once."""


class VideoRowsSource:
    """Parquet files of videos, in sorted order, row after row; each column of videos is a camera.

    camera: name given to the camera where there is one column.
    """

    kind = "videos in parquet"

    def __init__(self, path: Path, camera: str = "static") -> None:
        self.path = path
        self.camera = camera

    def __iter__(self) -> Iterator[Record]:
        import pyarrow.parquet as pq

        for file in _parquet_files(self.path):
            name = file.relative_to(self.path).as_posix() if file != self.path else file.name
            number = 0
            try:
                refuse_lfs_pointer(file)
                for batch in pq.ParquetFile(file).iter_batches(batch_size=_ROWS):
                    for row in batch.to_pylist():
                        yield self._record(f"{name}: {number}", row, file.parent)
                        number += 1
            except (OSError, ValueError, DataError) as error:
                yield Record(key=sample_key(name), videos={}, source=name, problem=f"cannot be read ({error})")

    def _record(self, source: str, row: Mapping[str, Any], folder: Path) -> Record:
        videos = {column: video for column, value in row.items() if (video := _video(value, folder)) is not None}
        if len(videos) == 1:
            videos = {self.camera: next(iter(videos.values()))}
        texts = (row[column] for column in CAPTION_COLUMNS if isinstance(row.get(column), str))
        return Record(key=sample_key(source), videos=videos, caption=next(texts, "").strip(), source=source)


def find_video_rows(path: Path) -> bool:
    """Return whether the first parquet file of a folder, or a file, has videos in its first row."""
    import pyarrow.parquet as pq

    for file in _parquet_files(path):
        try:
            batches = pq.ParquetFile(file).iter_batches(batch_size=1)
            rows = next(batches, None)
        except (OSError, ValueError):
            return False
        return rows is not None and any(
            _video(value, file.parent) for row in rows.to_pylist() for value in row.values()
        )
    return False


def _parquet_files(path: Path) -> list[Path]:
    files = [path] if path.is_file() else sorted(path.rglob("*.parquet"))
    return [file for file in files if file.suffix == ".parquet"]


def _video(value: Any, folder: Path) -> Video | None:
    """Return the video in a cell, None where there is none."""
    data, path = (value.get("bytes"), value.get("path")) if isinstance(value, dict) else (value, None)
    if isinstance(data, bytes):
        suffix = next((suffix for at, mark, suffix in _MARKS if data[at : at + len(mark)] == mark), None)
        return None if suffix is None else VideoBytes(data=data, suffix=suffix)
    file = folder / path if isinstance(path, str) else None
    return file if file is not None and file.is_file() else None
