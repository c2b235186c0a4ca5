"""Read the rows of one episode from a parquet file of a LeRobot dataset, and check what they hold."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...contracts import Array
from ...errors import DataError, refuse_lfs_pointer
from .record import FileMissing, ImageBytes, lacks_last_action

_TIME_TOLERANCE = 0.1
"""How far a time stamp may lie from its step [steps]. float32 seconds are this far off after half a day at 30 Hz."""

_TRUST = "take its rows for steps at that rate with --times order"

_TIME_OF_DAY = 1e8
"""Times above this are counted from 1970 or from the start of a machine, not from that of an episode [s]."""

_HALF_STEP = 0.5
"""How far a measured time may lie from its step, so that no other step is meant [steps]."""


class EpisodeRows:
    """A parquet file, opened to read some columns of one episode at a time; some row groups are in memory.

    columns: those to read; the ones that the file has not are left out.
    """

    def __init__(self, path: Path, columns: Sequence[str]) -> None:
        """Open a file.

        Raises:
            DataError: it is missing, truncated or no parquet file.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        self.path = path
        if not path.is_file():
            raise FileMissing(
                "no such file, expected the steps of the episode; copy it, or take the episode out of meta"
            )
        refuse_lfs_pointer(path)
        try:
            self._file = pq.ParquetFile(path)
            self.names = tuple(self._file.schema_arrow.names)
            self._columns = [name for name in columns if name in self.names]
            counts = [self._file.metadata.row_group(i).num_rows for i in range(self._file.num_row_groups)]
            self._starts = np.cumsum([0, *counts])
            self._groups: tuple[list[int], Any] = ([], None)
            self._episodes: Array | None = None
            if "episode_index" in self.names:
                column = self._file.read(["episode_index"]).column(0)
                self._episodes = numbers_of("episode_index", column).reshape(-1)
        except (OSError, pa.ArrowException) as error:
            raise _unreadable(error) from error

    def only_episode(self) -> Any:
        """Read the rows of a file of one episode, whatever number the rows state.

        Raises:
            DataError: there are rows of several episodes, or they cannot be read.
        """
        found = np.unique(self._episodes) if self._episodes is not None else [0]
        if len(found) > 1:
            raise DataError(f"expected the rows of one episode, got those of {len(found)}; write the file again")
        return self._between(0, int(self._starts[-1]))

    def episode(self, index: int) -> Any:
        """Read the rows of one of several episodes.

        Raises:
            DataError: it has no rows, or not one after the other, or they cannot be read.
        """
        if self._episodes is None:
            raise DataError(f"expected the column episode_index, got {sorted(self.names)}; write the file again")
        rows = np.flatnonzero(self._episodes == index)
        if not len(rows) or rows[-1] - rows[0] != len(rows) - 1:
            raise DataError(f"expected rows of episode {index} one after the other, got {len(rows)}; copy it again")
        return self._between(int(rows[0]), int(rows[-1]) + 1)

    def _between(self, start: int, stop: int) -> Any:
        import pyarrow as pa

        first = max(int(np.searchsorted(self._starts, start, side="right")) - 1, 0)
        groups = [i for i in range(first, len(self._starts) - 1) if self._starts[i] < stop]
        if groups != self._groups[0] or self._groups[1] is None:
            try:
                self._groups = (groups, self._file.read_row_groups(groups, columns=self._columns))
            except (OSError, pa.ArrowException) as error:
                raise _unreadable(error) from error
        return self._groups[1].slice(start - int(self._starts[first]), stop - start)


def numbers_of(name: str, column: Any) -> Array:
    """Turn a column of numbers, or of lists of one length, nested or not, into `[t n]`.

    Raises:
        DataError: values are missing, of different lengths, or no numbers.
    """
    import pyarrow as pa

    array = column.combine_chunks() if column.num_chunks != 1 else column.chunk(0)
    array = array.storage if isinstance(array, pa.ExtensionArray) else array
    num_rows = len(array)
    while pa.types.is_list(array.type) or pa.types.is_large_list(array.type) or pa.types.is_fixed_size_list(array.type):
        lengths = {array.type.list_size} if pa.types.is_fixed_size_list(array.type) else set(_lengths(array))
        if array.null_count or len(lengths) > 1:
            got = "nothing in some" if array.null_count else f"lists of {sorted(lengths)[:5]} numbers"
            raise DataError(f"{name}: expected equally many numbers in each row, got {got}; write the file again")
        array = array.flatten()
    kind = array.type
    if not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)):
        raise DataError(f"{name}: expected numbers, got {kind}; correct the names in the spec")
    if array.null_count:
        raise DataError(f"{name}: expected equally many numbers in each row, got nothing in some; write the file again")
    values: Array = np.asarray(array.to_numpy(zero_copy_only=False))
    return values.reshape(num_rows, -1 if len(values) else 0)


def _lengths(array: Any) -> list[int]:
    return [int(length) for length in np.unique(array.value_lengths().to_numpy(zero_copy_only=False)) if length >= 0]


def matrix_of(rows: Any, names: Sequence[str], *, last_may_lack: bool = False) -> Array:
    """Put columns side by side: float32 `[t n]`, n = 0 without names.

    Args:
        rows: of one episode.
        names: of columns.
        last_may_lack: the last row may hold nothing, or no finite numbers; nothing is NaN.

    Raises:
        DataError: a column is missing, or holds what is no finite number.
    """
    parts = [np.zeros((rows.num_rows, 0), np.float32)]
    for name in names:
        if name not in rows.column_names:
            raise DataError(f"expected the column {name}, got {sorted(rows.column_names)}; correct the spec")
        column, lacks = rows.column(name), False
        if last_may_lack and len(column) > 1 and not column[-1].is_valid:
            column, lacks = column.slice(0, len(column) - 1), True
        with np.errstate(over="ignore"):
            values = numbers_of(name, column).astype(np.float32)
        if lacks:
            values = np.concatenate([values, np.full((1, values.shape[1]), np.nan, np.float32)])
        if not np.isfinite(values).all() and not (last_may_lack and lacks_last_action(values)):
            step = int(np.flatnonzero(~np.isfinite(values).all(axis=1))[0])
            raise DataError(f"{name}: expected finite numbers, got NaN or infinity at step {step}; repair the file")
        parts.append(values)
    return np.concatenate(parts, axis=1)


def check_times(rows: Any, fps: float, *, trust_order: bool = False) -> str:
    """Check that step i is at time i / fps [s], and is counted as i where the rows count.

    Args:
        trust_order: take the rows for the steps 0, 1, 2, ... whatever their times.

    Returns:
        What is repaired by taking step i to be at i / fps, empty where it is there.

    Raises:
        DataError: a time is missing, no number, or belongs to another step: steps were lost, or the rate is another.
    """
    steps = np.arange(rows.num_rows)
    counts, begins = "frame_index" in rows.column_names, 0
    if counts:
        counted = _one_number(rows, "frame_index")
        begins = counted[0] if len(counted) else 0
        wrong = np.flatnonzero(counted - begins != steps)
        if len(wrong):
            step = int(wrong[0])
            raise DataError(
                f"frame_index: expected {begins + step} at step {step}, got {counted[step]}; steps are missing or in "
                "another order: record the episode again, or number its rows from 0 on"
            )
    try:
        times = _times_of(rows)
    except DataError:
        if trust_order:
            return "times that are not those of the rate"
        raise
    # The time of day: no place in a video is meant, and which step is which is shown by the count of the rows.
    begun = times[0] if counts and not trust_order and times[0] > _TIME_OF_DAY else 0.0
    if begun and begins:
        raise DataError(
            f"frame_index: expected 0 at step 0, got {begins}, and times of day do not show whether steps are missing: "
            f"number its rows from 0 on, or {_TRUST}"
        )
    away = np.abs((times - begun) * fps - steps)
    late = np.flatnonzero(~(away <= _HALF_STEP))
    if len(late) and not trust_order:
        step = int(late[0])
        raise DataError(
            f"timestamp: expected {step / fps:.4f} s at step {step} ({fps:g} Hz), got {times[step]:.4f}; steps are "
            f"missing or the rate in info.json is wrong: record the episode again, or {_TRUST}"
        )
    if len(late):
        return "times that are not those of the rate"
    if begun:
        return "times of day"
    if begins:
        return f"steps counted from {begins:g}, times from 0"
    return "" if np.all(away <= _TIME_TOLERANCE) else "clock times"


def _times_of(rows: Any) -> Array:
    """Return the time of each row [s], float64 `[t]`.

    Raises:
        DataError: there are none, or they are no numbers.
    """
    if "timestamp" not in rows.column_names:
        raise DataError(f"expected the column timestamp, got none; write the file again, or {_TRUST}")
    try:
        return _one_number(rows, "timestamp").astype(np.float64)
    except DataError as error:
        got = str(error).partition(";")[0]
        raise DataError(f"{got}, each the seconds since the first step; write the file again, or {_TRUST}") from error


def _one_number(rows: Any, name: str) -> Array:
    values = numbers_of(name, rows.column(name))
    if values.shape[1] != 1:
        raise DataError(f"{name}: expected one number in each row, got {values.shape[1]}; write the file again")
    return values[:, 0]


def images_of(name: str, column: Any, root: Path) -> list[bytes]:
    """Read a column of image files: their bytes, or paths below the dataset.

    Raises:
        DataError: an image is missing.
    """
    images = []
    for step, value in enumerate(column.to_pylist()):
        data, path = (value.get("bytes"), value.get("path")) if isinstance(value, dict) else (value, value)
        if not isinstance(data, bytes):
            file = (root / path).resolve() if isinstance(path, str) and path else None
            if file is None or not file.is_relative_to(root.resolve()) or not file.is_file():
                raise DataError(f"{name}: step {step}: expected an image or its path in the dataset, got {path!r}")
            data = file.read_bytes()
        images.append(data)
    return images


def images_below(name: str, folder: Path, length: int, fps: float) -> ImageBytes:
    """Read the images of one episode, a file each in the order of their names.

    Raises:
        DataError: there are not as many as the episode has steps.
    """
    files = sorted(file for file in folder.iterdir() if file.is_file() and not file.name.startswith("."))
    if len(files) != length:
        raise DataError(f"{name}: expected {length} images in {folder}, one a step, got {len(files)}; copy it again")
    return ImageBytes(images=[file.read_bytes() for file in files], fps=fps, source=str(folder))


def _unreadable(error: Exception) -> DataError:
    return DataError(f"cannot be read as parquet ({(str(error).splitlines() or [repr(error)])[0]}); copy it again")
