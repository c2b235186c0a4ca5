"""Intervals for rates, means and differences: every metric of a report carries one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from ...errors import ShapeError

CONFIDENCE = 0.95
RESAMPLES = 4000

Numbers = Sequence[float] | npt.NDArray[np.floating] | npt.NDArray[np.integer]


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """An estimate with its confidence interval, in the unit of the estimate, over `count` observations."""

    value: float
    low: float
    high: float
    count: int

    def as_metric(self) -> tuple[float, float, float]:
        """Return (value, low, high), the form that `EvaluationReport.metrics` holds."""
        return (self.value, self.low, self.high)

    def excludes_zero(self) -> bool:
        """Return whether the whole interval lies on one side of zero."""
        return self.low > 0.0 or self.high < 0.0


def wilson_interval(successes: int, total: int, *, confidence: float = CONFIDENCE) -> Interval:
    """Estimate a success rate in [0, 1] with Wilson's score interval.

    Unlike the normal approximation it stays inside [0, 1] and keeps a width at 0 and at 100 %.

    Raises:
        ShapeError: `total` is not positive, or `successes` lies outside `[0, total]`.

    Source: E. B. Wilson, Journal of the American Statistical Association 22, 1927, pages 209-212.
    """
    if total <= 0 or not 0 <= successes <= total:
        raise ShapeError(
            f"Success rate: expected 0 <= successes <= total and total > 0, got {successes} of {total}; "
            "count the trials again."
        )
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    rate = successes / total
    shrink = 1 + z * z / total
    center = (rate + z * z / (2 * total)) / shrink
    half = z * math.sqrt(rate * (1 - rate) / total + z * z / (4 * total * total)) / shrink
    low = 0.0 if successes == 0 else center - half
    high = 1.0 if successes == total else center + half
    return Interval(value=rate, low=low, high=high, count=total)


def rate_difference(
    successes: int, total: int, other_successes: int, other_total: int, *, confidence: float = CONFIDENCE
) -> Interval:
    """Estimate the difference of two independent rates (first minus other) by Newcombe's score interval.

    Raises:
        ShapeError: A count is impossible, see `wilson_interval`.

    Source: R. G. Newcombe, Statistics in Medicine 17, 1998, pages 873-890, method 10.
    """
    first = wilson_interval(successes, total, confidence=confidence)
    other = wilson_interval(other_successes, other_total, confidence=confidence)
    value = first.value - other.value
    below = math.hypot(first.value - first.low, other.high - other.value)
    above = math.hypot(first.high - first.value, other.value - other.low)
    return Interval(value=value, low=value - below, high=value + above, count=min(total, other_total))


def bootstrap_mean(
    values: Numbers, *, seed: int = 0, resamples: int = RESAMPLES, confidence: float = CONFIDENCE
) -> Interval:
    """Estimate a mean with a percentile bootstrap interval; the same seed gives the same interval.

    Values that are all equal give an interval of no width: a statement about the sample, not about the world.

    Raises:
        ShapeError: `values` is empty, not one-dimensional or not finite.
    """
    sample = _finite_vector(values)
    rng = np.random.default_rng(seed)
    means = np.empty(resamples)
    block = max(1, 1_000_000 // len(sample))
    for start in range(0, resamples, block):
        stop = min(start + block, resamples)
        picks = rng.integers(0, len(sample), size=(stop - start, len(sample)))
        means[start:stop] = sample[picks].mean(axis=1)
    tail = (1 - confidence) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return Interval(value=float(sample.mean()), low=float(low), high=float(high), count=len(sample))


def paired_difference(
    values: Numbers,
    others: Numbers,
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
    confidence: float = CONFIDENCE,
) -> Interval:
    """Estimate the mean of `values - others`, paired by position, by bootstrapping the pairs.

    Raises:
        ShapeError: The two differ in length, are empty or are not finite.
    """
    first, second = _finite_vector(values), _finite_vector(others)
    if len(first) != len(second):
        raise ShapeError(
            f"Paired difference: expected two samples of one length, got {len(first)} and {len(second)}; "
            "pair each value with its own counterpart."
        )
    return bootstrap_mean(first - second, seed=seed, resamples=resamples, confidence=confidence)


def _finite_vector(values: Numbers) -> npt.NDArray[np.float64]:
    vector = np.asarray(values, dtype=np.float64)
    if vector.ndim != 1 or len(vector) == 0 or not np.all(np.isfinite(vector)):
        raise ShapeError(
            f"Interval: expected a non-empty vector of finite numbers, got shape {vector.shape}; "
            "leave out the trials that have no value."
        )
    return vector


def over_seeds(values: Sequence[Sequence[float]], *, seed: int = 0) -> Interval:
    """Estimate a mean over seeds and starts; the bootstrap draws seeds, and starts in each of them.

    Args:
        values: for each seed the values of its starts.
        seed: of the bootstrap.
    """
    sample = np.asarray(values, np.float64)
    rng = np.random.default_rng(seed)
    means = np.empty(RESAMPLES)
    for i in range(RESAMPLES):
        drawn = sample[rng.integers(0, len(sample), len(sample))]
        starts = rng.integers(0, sample.shape[1], sample.shape)
        means[i] = np.take_along_axis(drawn, starts, axis=1).mean()
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return Interval(value=float(sample.mean()), low=float(low), high=float(high), count=sample.size)
