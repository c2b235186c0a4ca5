"""The arithmetic of normalization: statistics of rows in bounded memory, and the map that they give.

Everything that normalizes goes through here: the table of `gr2 data statistics`, what a checkpoint stores of its data,
and the buffers of the model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from ...contracts import Array
from ...errors import DataError, ShapeError

Mode = Literal["moments", "quantiles"]
"""Mean to 0 and standard deviation to 1, or the 1 % and 99 % quantiles to -1 and 1."""

QUANTILES = {"q01": 0.01, "q05": 0.05, "q50": 0.5, "q95": 0.95, "q99": 0.99}

CONSTANT_BELOW = 1e-5
"""Standard deviation under which a dimension counts as constant and is only centered."""

SAMPLE_ROWS = 100_000
"""Rows from which quantiles are taken: all of them up to this number, from there on a uniform sample of this size. The
rank of a quantile p then errs by about `sqrt(p (1 - p) / SAMPLE_ROWS)`, 0.0016 at the median, 0.0003 at 1 %."""

_BLOCK_ROWS = 4096
"""Rows that are gathered before they are counted: numpy's cost for each call is shared by short episodes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RowStatistics:
    """Statistics of each dimension of some rows, each float64 `[d]`.

    rows: how many were measured.
    mean, std, min, max: exact.
    quantiles: name in `QUANTILES` -> quantile, exact up to `SAMPLE_ROWS` rows.
    """

    rows: int
    mean: Array
    std: Array
    min: Array
    max: Array
    quantiles: Mapping[str, Array]

    @property
    def width(self) -> int:
        """Return the number of dimensions."""
        return len(self.mean)

    @property
    def constant(self) -> Array:
        """Return which dimensions do not change, bool `[d]`."""
        return self.std < CONSTANT_BELOW

    def to_dict(self) -> dict[str, Any]:
        """Return plain lists, for JSON; `from_dict` gives the same numbers back to the last bit."""
        columns = {"mean": self.mean, "std": self.std, "min": self.min, "max": self.max, **self.quantiles}
        return {"rows": self.rows} | {name: column.tolist() for name, column in columns.items()}

    @classmethod
    def from_dict(cls, value: Any) -> RowStatistics:
        """Read what `to_dict` gave.

        Raises:
            DataError: a field is missing, holds no finite numbers, or has another length.
        """
        names = ("mean", "std", "min", "max", *QUANTILES)
        try:
            columns = {name: np.asarray(value[name], np.float64) for name in names}
            rows = int(value["rows"])
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(
                f"statistics: expected rows and lists of numbers {list(names)}, got others ({error}); measure again."
            ) from error
        shapes = {column.shape for column in columns.values()}
        if len(shapes) != 1 or columns["mean"].ndim != 1 or not all(np.isfinite(c).all() for c in columns.values()):
            raise DataError(
                f"statistics: expected finite lists of one length, got shapes {sorted(shapes)}; measure again."
            )
        quantiles = {name: columns.pop(name) for name in QUANTILES}
        return cls(rows=rows, quantiles=quantiles, **columns)


class RowAccumulator:
    """Measures rows as they come, in memory that does not grow with their number.

    Moments are merged block by block, quantiles come from a reservoir. Both depend on the rows and their order alone.
    Source: Chan, Golub, LeVeque, "Updating Formulae and a Pairwise Algorithm for Computing Sample Variances", 1979;
    Vitter, "Random Sampling with a Reservoir", 1985, algorithm R.

    Args:
        sample_rows: rows kept for the quantiles.
    """

    def __init__(self, sample_rows: int = SAMPLE_ROWS) -> None:
        self.rows = 0
        self.width: int | None = None
        self._sample_rows = sample_rows
        self._waiting: list[Array] = []
        self._num_waiting = 0
        self._random = np.random.default_rng(0)

    def add(self, rows: Array) -> None:
        """Take rows `[t d]`.

        Raises:
            ShapeError: another width than the rows before, or numbers that are not finite.
        """
        rows = np.asarray(rows, np.float64)
        if rows.ndim != 2 or (self.width is not None and rows.shape[1] != self.width):
            expected = "*" if self.width is None else self.width
            raise ShapeError(f"statistics: expected rows (t, {expected}), got shape {rows.shape}; measure them apart.")
        if not np.isfinite(rows).all():
            bad = np.nonzero(~np.isfinite(rows).all(axis=0))[0].tolist()
            raise ShapeError(f"statistics: dimensions {bad} hold NaN or infinity; leave these rows out.")
        self.width = rows.shape[1]
        self._waiting.append(rows)
        self._num_waiting += len(rows)
        if self._num_waiting >= _BLOCK_ROWS:
            self._count_block()

    def _count_block(self) -> None:
        block = np.concatenate(self._waiting) if len(self._waiting) > 1 else self._waiting[0]
        self._waiting, self._num_waiting = [], 0
        if not len(block):
            return
        mean = block.mean(axis=0)
        squares = np.square(block - mean).sum(axis=0)
        low, high = block.min(axis=0), block.max(axis=0)
        before = self.rows
        if before == 0:
            self._mean, self._squares, self._low, self._high = mean, squares, low, high
            self._sample = block[:0]
        else:
            total, delta = before + len(block), mean - self._mean
            self._mean = self._mean + delta * (len(block) / total)
            self._squares = self._squares + squares + np.square(delta) * (before * len(block) / total)
            self._low, self._high = np.minimum(self._low, low), np.maximum(self._high, high)
        self.rows += len(block)
        self._keep_sample(block, before)

    def _keep_sample(self, block: Array, before: int) -> None:
        room = max(0, min(self._sample_rows - before, len(block)))
        if room:
            self._sample = np.concatenate([self._sample, block[:room]])
        late = block[room:]
        places = (self._random.random(len(late)) * np.arange(before + room + 1, self.rows + 1)).astype(np.int64)
        chosen = places < self._sample_rows
        # in order: of two rows for one place the later one stays
        for place, row in zip(places[chosen], np.nonzero(chosen)[0], strict=True):
            self._sample[place] = late[row]

    def result(self) -> RowStatistics:
        """Return the statistics of all rows so far.

        Raises:
            DataError: there were none.
        """
        if self._num_waiting:
            self._count_block()
        if self.rows == 0:
            raise DataError("statistics: expected at least one row, got none; give episodes with states and actions.")
        values = np.quantile(self._sample, list(QUANTILES.values()), axis=0)
        return RowStatistics(
            rows=self.rows,
            mean=self._mean,
            std=np.sqrt(self._squares / self.rows),
            min=self._low,
            max=self._high,
            quantiles=dict(zip(QUANTILES, values, strict=True)),
        )


def measure_rows(rows: Array) -> RowStatistics:
    """Measure rows `[t d]` that are in memory.

    Raises:
        DataError: no rows.
        ShapeError: numbers that are not finite.
    """
    accumulator = RowAccumulator()
    accumulator.add(rows)
    return accumulator.result()


@dataclass(frozen=True, slots=True, kw_only=True)
class Normalizer:
    """The map `(x - offset) / scale`; offset and scale `[.. d]` are arrays or tensors, and so is what it maps."""

    offset: Any
    scale: Any

    @classmethod
    def fit(
        cls,
        statistics: RowStatistics,
        mode: Mode = "moments",
        unchanged: Sequence[int] = (),
        constant_scale: float = 1.0,
    ) -> Normalizer:
        """Choose offset and scale, float64 `[d]`.

        A constant dimension is only centered, unless it has a scale of its own. Where 98 % of a dimension are equal its
        quantiles coincide, and the full range takes their place.

        Args:
            statistics: of the training data.
            mode: what is mapped to where.
            unchanged: dimensions left as they are (gripper commands).
            constant_scale: of constant dimensions.
        """
        if mode == "moments":
            offset, scale = statistics.mean, statistics.std
        else:
            low, high = statistics.quantiles["q01"], statistics.quantiles["q99"]
            flat = high - low < CONSTANT_BELOW
            low, high = np.where(flat, statistics.min, low), np.where(flat, statistics.max, high)
            offset, scale = (low + high) / 2, (high - low) / 2
        offset = np.where(statistics.constant, statistics.mean, offset)
        scale = np.where(statistics.constant, constant_scale, scale)
        offset[list(unchanged)], scale[list(unchanged)] = 0.0, 1.0
        return cls(offset=offset, scale=scale)

    @classmethod
    def stack(cls, normalizers: Sequence[Normalizer]) -> Normalizer:
        """Join normalizers of `[d]`, one for each step of a chunk, into one of `[k d]`."""
        return cls(offset=np.stack([n.offset for n in normalizers]), scale=np.stack([n.scale for n in normalizers]))

    def apply(self, x: Any) -> Any:
        """Normalize an array or tensor `[.. d]`."""
        return (x - self.offset) / self.scale

    def invert(self, x: Any) -> Any:
        """Undo `apply`."""
        return x * self.scale + self.offset
