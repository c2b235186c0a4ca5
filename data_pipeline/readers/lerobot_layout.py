"""Find the episodes of a LeRobot dataset: what `meta/` states about them, and the files that are there in truth.

v2.0 and v2.1 keep one parquet file and one video a camera for each episode, listed in `meta/episodes.jsonl`; v3.0 keeps
several episodes in each file, listed in `meta/episodes/*/*.parquet`. Files lie where the patterns of `meta/info.json`
state, or where the format does, in `videos` or `video`: there are datasets whose patterns are wrong.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from ...errors import DataError
from ..files import read_json

_DATA = {
    2: "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
    3: "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
}
_VIDEOS = {
    2: "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4",
    3: "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4",
}
"""Patterns by major version. Source: huggingface/lerobot, `datasets/utils.py` of v0.1 (v2.1) and v0.4 (v3.0)."""

EMBODIMENT_FILE = "gr2_embodiment.json"
"""In which `meta` keeps what the numbers are, where gr2 wrote the dataset."""

_TWICE = "listed twice"
"""Marks a row of the metadata that came again."""

_CHUNK_SIZE = 1000
"""Episodes of a chunk folder (v2) where `info.json` does not state it. Source: the same."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EpisodeVideo:
    """Where the images of one camera lie; start, stop: as the metadata state [s], both None for the whole file.

    counted: frames before the first one and in the whole file, by the lengths of its episodes; None where not counted.
    """

    file: Path
    start: float | None = None
    stop: float | None = None
    counted: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class EpisodeEntry:
    """One episode as the metadata describe it; length: steps; videos: feature -> video; repairs: of the metadata."""

    index: int
    length: int
    tasks: tuple[str, ...]
    data: Path
    videos: Mapping[str, EpisodeVideo]
    repairs: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class LeRobotLayout:
    """The metadata of a dataset, nothing of its episodes read yet.

    version: 2 or 3, by the files of `meta`; fps: images and steps a second; features: as `info.json` has them;
    tasks: index -> instruction; info: the whole `info.json`; rows: one for each episode, for `entry`.
    """

    root: Path
    version: int
    fps: float
    robot: str
    features: Mapping[str, Mapping[str, Any]]
    tasks: Mapping[int, str]
    info: Mapping[str, Any]
    rows: Sequence[Mapping[str, Any]]

    def entry(
        self,
        row: Mapping[str, Any],
        cameras: Sequence[str] = (),
        counted: Mapping[str, Mapping[int, Any]] | None = None,
    ) -> EpisodeEntry:
        """Find the files of one of the `rows`; cameras: features kept as video files; counted: their `frames_before`.

        Raises:
            DataError: the row does not state where its files are.
        """
        index = row["episode_index"]
        chunk = index // int(self.info.get("chunks_size") or _CHUNK_SIZE)
        values = {"chunk_index": chunk, **row, "episode_chunk": chunk}  # some recorders of v2 use v3's name
        tasks = row.get("tasks")
        return EpisodeEntry(
            index=index,
            length=row["length"],
            tasks=tuple(str(task) for task in tasks) if isinstance(tasks, list | tuple) else (),
            data=self._file(_DATA, "data_path", values if self.version == 2 else _file_numbers(row, "data")),
            videos={key: self._video(key, values, row, (counted or {}).get(key, {}).get(index)) for key in cameras},
            repairs=self._repairs(row),
        )

    def _repairs(self, row: Mapping[str, Any]) -> tuple[str, ...]:
        newer = self.version == 2 and self._has_newer_names()
        found = (("chunk_index in patterns of v2", newer), ("episode listed twice in meta", row.get(_TWICE)))
        return tuple(repair for repair, needed in found if needed)

    def not_listed(self) -> list[Path]:
        """List the parquet files of steps that the metadata do not name: forgotten episodes, or ones left out."""
        named = set()
        for row in self.rows:
            try:
                named.add(self.entry(row).data)
            except DataError:  # the problem of its own record
                continue
        found = (file for file in (self.root / "data").rglob("*.parquet") if not file.name.startswith("."))
        return sorted(file for file in found if file not in named)

    def _has_newer_names(self) -> bool:
        return any("{chunk_index" in str(self.info.get(name)) for name in ("data_path", "video_path"))

    def _video(
        self, key: str, values: Mapping[str, Any], row: Mapping[str, Any], counted: tuple[int, int] | None
    ) -> EpisodeVideo:
        if self.version == 2:
            return EpisodeVideo(file=self._file(_VIDEOS, "video_path", {**values, "video_key": key}))
        prefix = f"videos/{key}"
        file = self._file(_VIDEOS, "video_path", {**_file_numbers(row, prefix), "video_key": key})
        start, stop = (_seconds(row.get(f"{prefix}/{end}_timestamp")) for end in ("from", "to"))
        if start is None or stop is None:
            raise DataError(f"expected times in {prefix}/from_timestamp and to_timestamp, got none; copy meta again")
        return EpisodeVideo(file=file, start=start, stop=stop, counted=counted)

    def _file(self, patterns: Mapping[int, str], name: str, values: Mapping[str, Any]) -> Path:
        """Return the first of the possible files that is there, else the one that should be."""
        standard = patterns[self.version]
        stated = self.info.get(name)
        names = [fill_pattern(p, values) for p in (stated, standard) if isinstance(p, str) and p]
        names += [re.sub(r"^videos/", "video/", n) for n in names]
        return next((self.root / n for n in names if (self.root / n).is_file()), self.root / names[0])


def frames_before(rows: Sequence[Mapping[str, Any]], key: str) -> dict[int, tuple[int, int]]:
    """Return the frames before each episode in its file of a camera, and in the whole file, by all lengths there.

    Nothing of files whose stated starts do not rise from episode to episode.
    """
    files: dict[tuple[Any, Any], list[tuple[float, int, int]]] = {}
    for row in rows:
        start = _seconds(row.get(f"videos/{key}/from_timestamp"))
        place = (row.get(f"videos/{key}/chunk_index"), row.get(f"videos/{key}/file_index"))
        if start is not None:
            files.setdefault(place, []).append((start, row["episode_index"], row["length"]))
    found = {}
    for episodes in files.values():
        starts = [start for start, _, _ in episodes]
        if starts != sorted(starts):
            continue
        before, total = 0, sum(length for _, _, length in episodes)
        for _, index, length in episodes:
            found[index] = (before, total)
            before += length
    return found


def is_lerobot(path: Path) -> bool:
    """Return whether a folder is a LeRobot dataset: `meta/info.json` is there."""
    return (path / "meta" / "info.json").is_file()


def read_layout(root: Path) -> LeRobotLayout:
    """Read the metadata of a dataset.

    Raises:
        DataError: they are missing, broken, or of another version.
    """
    info = read_json(root / "meta" / "info.json")
    where = f"{root}/meta/info.json"
    fps = _seconds(info.get("fps")) if isinstance(info, dict) else None
    features = info.get("features") if isinstance(info, dict) else None
    if fps is None or fps <= 0:
        got = repr(info.get("fps")) if isinstance(info, dict) else "another layout"
        raise DataError(f"{where}: expected `fps`, a number above 0 [Hz], got {got}; correct the file.")
    if not isinstance(features, dict) or not all(map(_is_dict, features.values())):
        raise DataError(
            f"{where}: expected `features`, each with its dtype and shape, got others; copy the file again."
        )
    listing, folder = root / "meta/episodes.jsonl", root / "meta/episodes"
    if listing.is_file():
        version, rows, tasks = 2, _read_lines(listing), _tasks_of_lines(root / "meta/tasks.jsonl")
    elif folder.is_dir():
        version, rows, tasks = 3, _read_rows(folder), _tasks_of_table(root / "meta/tasks.parquet")
    else:
        raise DataError(
            f"{where}: expected meta/episodes.jsonl (v2.0, v2.1) or meta/episodes/ (v3.0), got neither (the file "
            f"states {info.get('codebase_version')!r}); copy the folder meta, or convert the dataset with lerobot."
        )
    rows = [_with_whole_numbers(row) for row in rows]
    if not all(_is_count(number) for row in rows for number in (row.get("episode_index"), row.get("length"))):
        raise DataError(f"{root}/meta: expected `episode_index` and `length` for each episode; copy meta again.")
    rows = _each_once(root, rows)
    example = {"episode_chunk": 0, "episode_index": 0, "chunk_index": 0, "file_index": 0, "video_key": "camera"}
    for name in ("data_path", "video_path"):
        fill_pattern(str(info.get(name) or ""), example)
    if not _is_count(info.get("chunks_size") or _CHUNK_SIZE):
        raise DataError(f"{where}: expected a number as chunks_size, got {info['chunks_size']!r}; correct the file.")
    return LeRobotLayout(
        root=root,
        version=version,
        fps=fps,
        robot=str(info.get("robot_type") or ""),
        features=features,
        tasks=tasks,
        info=info,
        rows=rows,
    )


def fill_pattern(pattern: str, values: Mapping[str, Any]) -> str:
    """Fill a pattern such as `data/chunk-{chunk_index:03d}/{video_key}.mp4`; nothing but names and widths is known.

    Raises:
        DataError: a name has no value, or the path leaves the dataset.
    """

    def value_of(match: re.Match[str]) -> str:
        value = values.get(match[1])
        if value is None or (match[2] and not isinstance(value, int)):
            raise DataError(
                f"info.json: {pattern!r}: expected a value for {match[1]!r}, got none; correct the pattern."
            )
        return f"{value:0{int(match[2])}d}" if match[2] else str(value)

    filled = re.sub(r"\{(\w+)(?::0?(\d{1,2})d)?\}", value_of, pattern)
    path = PurePosixPath(filled)
    if path.is_absolute() or ".." in path.parts or "{" in filled:
        raise DataError(f"info.json: expected a pattern of files in the dataset, got {pattern!r}; correct it.")
    return filled


def read_schema(path: Path) -> dict[str, str]:
    """Read the columns of a parquet file: name -> type, as Arrow writes it.

    Raises:
        DataError: it is missing, truncated or no parquet file.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        schema = pq.read_schema(path)
    except (OSError, pa.ArrowException) as error:
        raise _unreadable(path, error) from error
    return {field.name: str(field.type) for field in schema}


def _read_table(path: Path, columns: Sequence[str]) -> Any:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.read_table(path, columns=list(columns), partitioning=None)
    except (OSError, pa.ArrowException) as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> DataError:
    reason = (str(error).strip().splitlines() or [repr(error)])[0]
    return DataError(f"{path}: cannot be read as parquet ({reason}); copy the file again.")


def _each_once(root: Path, rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Leave out rows that come again as they are, as a recorder writes them that was stopped and resumed.

    Raises:
        DataError: two rows of one episode differ.
    """
    found: dict[int, dict[str, Any]] = {}
    twice = set()
    for row in rows:
        index = row["episode_index"]
        if found.setdefault(index, row) != row:
            raise DataError(
                f"{root}/meta: expected each episode_index once, got {index} again with other values; take the wrong "
                "one out of meta."
            )
        if found[index] is not row:
            twice.add(index)
    return [row | {_TWICE: True} if index in twice else row for index, row in found.items()]


def _read_rows(folder: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    files = sorted(folder.glob("**/*.parquet"))
    if not files:
        raise DataError(f"{folder}: expected parquet files that list the episodes, got none; copy the folder meta.")
    for path in files:
        # The statistics of each episode are most of the file.
        rows += _read_table(path, [name for name in read_schema(path) if not name.startswith("stats/")]).to_pylist()
    return rows


def _read_lines(path: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")  # texts may hold other line breaks
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read ({error}); copy the file again.") from error
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(
                f"{path}: line {number}: expected a JSON object, got {line[:40]!r} ({error}); copy the file again, or "
                "take the line out."
            ) from error
        if not isinstance(row, dict):
            raise DataError(f"{path}: line {number}: expected a JSON object, got {line[:40]!r}; copy the file again.")
        rows.append(row)
    return rows


def _tasks_of_lines(path: Path) -> dict[int, str]:
    rows = _read_lines(path) if path.is_file() else []
    numbered = [(whole_number(row.get("task_index")), str(row.get("task", ""))) for row in rows]
    return {number: text for number, text in numbered if _is_count(number)}


def _tasks_of_table(path: Path) -> dict[int, str]:
    """Read the instructions: the column `task`, the index of the pandas table that lerobot writes, or the only text."""
    if not path.is_file():
        return {}
    columns = _read_table(path, list(read_schema(path))).to_pydict()
    numbers = [whole_number(value) for value in columns.get("task_index") or ()]
    texts = {name: column for name, column in columns.items() if column and all(isinstance(v, str) for v in column)}
    known = [name for name in ("task", "__index_level_0__") if name in texts] or list(texts)[: len(texts) == 1]
    if "task_index" not in columns or (numbers and not known):
        raise DataError(
            f"{path}: expected `task_index` and the instructions as `task`, got {sorted(columns)}; copy it again, or "
            "name the column task."
        )
    pairs = zip(numbers, texts[known[0]], strict=True) if numbers else ()
    return {number: text for number, text in pairs if number is not None}


def _file_numbers(row: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    numbers = {name: row.get(f"{prefix}/{name}") for name in ("chunk_index", "file_index")}
    if not all(_is_count(number) for number in numbers.values()):
        got = list(numbers.values())
        raise DataError(f"expected {prefix}/chunk_index and {prefix}/file_index in meta, got {got}; copy meta again")
    return numbers


def _seconds(value: Any) -> float | None:
    """Return a finite number, which may be written as a text, None for anything else."""
    try:
        number = float(value) if isinstance(value, int | float | str) and not isinstance(value, bool) else math.nan
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def whole_number(value: Any) -> Any:
    """Return a float of a whole number as an integer, anything else as it is: tables made by pandas have such."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _with_whole_numbers(row: Mapping[str, Any]) -> dict[str, Any]:
    named = ("episode_index", "length", "chunk_index", "file_index")
    return {k: whole_number(v) if k.rpartition("/")[2] in named else v for k, v in row.items()}


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_dict(value: Any) -> bool:
    return isinstance(value, dict)
