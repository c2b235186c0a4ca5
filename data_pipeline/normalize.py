"""Normalise states and actions, number by number, from statistics of arrays alone (no video is touched)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from ..gr_model.contracts import Array
from ..gr_model.errors import DataError, ShapeError

Mode = Literal["mean_std", "quantile"]

CONSTANT_RANGE = 1e-4
"""A dimension whose 1 % to 99 % range is smaller is left as it is: dividing by it would blow up noise."""

OUTLIER_RANGES = 3.0
"""A dimension with values further outside its 1 % to 99 % range than this many ranges gets a warning."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Statistics:
    """Statistics of each dimension, each `[d]`."""

    mean: Array
    std: Array
    q01: Array
    q99: Array
    min: Array
    max: Array
    count: int


def compute_statistics(arrays: Iterable[Array]) -> Statistics:
    """Compute statistics over the rows of all arrays `[t d]`.

    Raises:
        DataError: where there are no rows.
        ShapeError: for arrays of different width, or numbers that are not finite.
    """
    parts = [np.asarray(array, np.float64) for array in arrays]
    widths = {part.shape[1:] for part in parts}
    if len(widths) > 1 or any(part.ndim != 2 for part in parts):
        raise ShapeError(f"normaliser: expected arrays (t, d) of one width, got {sorted(widths)}; fit each source.")
    if sum(map(len, parts)) == 0:
        raise DataError("normaliser: expected at least one row, got none; give labelled episodes.")
    rows = np.concatenate(parts)
    if not np.all(np.isfinite(rows)):
        bad = np.nonzero(~np.all(np.isfinite(rows), axis=0))[0].tolist()
        raise ShapeError(f"normaliser: dimensions {bad} hold NaN or infinity; mend the source.")
    q01, q99 = np.quantile(rows, [0.01, 0.99], axis=0)
    return Statistics(
        mean=rows.mean(0),
        std=rows.std(0),
        q01=q01,
        q99=q99,
        min=rows.min(0),
        max=rows.max(0),
        count=len(rows),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Normalizer:
    """The map `(x - offset) / scale` on the dimensions of `mask`, and x itself on the others.

    offset, scale: float32 `[d]`; mask: bool `[d]`, True where a dimension is normalised.
    mode: `mean_std` gives mean 0 and deviation 1; `quantile` maps the 1 % and 99 % quantiles to -1 and 1.
    """

    offset: Array
    scale: Array
    mask: Array
    mode: Mode

    @classmethod
    def fit(cls, statistics: Statistics, mode: Mode = "mean_std", unchanged: Sequence[int] = ()) -> Normalizer:
        """Choose offset and scale from statistics.

        Args:
            statistics: of the training data.
            mode: `mean_std` or `quantile`.
            unchanged: dimensions left as they are (gripper commands, quaternions), beside constant ones.
        """
        spread = statistics.q99 - statistics.q01
        mask = (spread > CONSTANT_RANGE) | (statistics.std > CONSTANT_RANGE)
        mask[list(unchanged)] = False
        if mode == "mean_std":
            offset, scale = statistics.mean, statistics.std
        else:
            # where 98 % of a dimension are equal its quantiles coincide, and the full range takes their place
            flat = spread <= CONSTANT_RANGE
            low, high = (
                np.where(flat, statistics.min, statistics.q01),
                np.where(flat, statistics.max, statistics.q99),
            )
            offset, scale = (low + high) / 2, (high - low) / 2
        return cls(
            offset=np.where(mask, offset, 0).astype(np.float32),
            scale=np.where(mask, scale, 1).astype(np.float32),
            mask=mask,
            mode=mode,
        )

    def apply(self, x: Any) -> Any:
        """Normalise an array or tensor `[... d]`; it keeps its type and device."""
        offset, scale = self._like(x)
        return (x - offset) / scale

    def invert(self, x: Any) -> Any:
        """Undo `apply`."""
        offset, scale = self._like(x)
        return x * scale + offset

    def _like(self, x: Any) -> tuple[Any, Any]:
        if x.shape[-1] != len(self.offset):
            raise ShapeError(
                f"normaliser: expected {len(self.offset)} numbers in the last axis, got shape "
                f"{tuple(x.shape)}; "
                "use the normaliser of this dataset."
            )
        if isinstance(x, np.ndarray):
            return self.offset, self.scale
        return x.new_tensor(self.offset.tolist()), x.new_tensor(self.scale.tolist())

    def to_dict(self) -> dict[str, Any]:
        """Give plain lists, fit for JSON and checkpoints."""
        return {
            "mode": self.mode,
            "offset": self.offset.tolist(),
            "scale": self.scale.tolist(),
            "mask": self.mask.tolist(),
        }

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> Normalizer:
        """Read what `to_dict` gave.

        Raises:
            DataError: where a field is missing or lengths differ.
        """
        missing = {"mode", "offset", "scale", "mask"} - set(value)
        if missing or len({len(value[name]) for name in ("offset", "scale", "mask")}) != 1:
            raise DataError(
                f"normaliser: expected mode and offset, scale, mask of one length, got {sorted(value)}; "
                "store the statistics again."
            )
        return cls(
            offset=np.asarray(value["offset"], np.float32),
            scale=np.asarray(value["scale"], np.float32),
            mask=np.asarray(value["mask"], bool),
            mode=value["mode"],
        )


def statistics_table(statistics: Statistics, normalizer: Normalizer, names: Sequence[str] = ()) -> str:
    """Lay out one line a dimension, with what was done to it and what looks wrong."""
    lines = [
        f"{statistics.count} rows, {normalizer.mode}",
        f"{'dimension':<16}{'min':>10}{'1 %':>10}{'mean':>10}{'99 %':>10}{'max':>10}{'std':>10}  note",
    ]
    for i in range(len(statistics.mean)):
        columns = (
            statistics.min,
            statistics.q01,
            statistics.mean,
            statistics.q99,
            statistics.max,
            statistics.std,
        )
        numbers = "".join(f"{column[i]:>10.4g}" for column in columns)
        notes = [] if normalizer.mask[i] else ["unchanged"]
        spread = statistics.q99[i] - statistics.q01[i]
        outside = max(statistics.q01[i] - statistics.min[i], statistics.max[i] - statistics.q99[i])
        if normalizer.mask[i] and outside > OUTLIER_RANGES * spread:
            notes.append("OUTLIERS: check units and broken rows")
        if statistics.max[i] - statistics.min[i] <= CONSTANT_RANGE:
            notes.append("constant")
        lines.append(f"{names[i] if i < len(names) else i!s:<16}{numbers}  {', '.join(notes)}".rstrip())
    return "\n".join(lines)
