"""Intervals agree with scipy and the literature, keep their laws, and cover what they promise to cover."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from gr2.benchmarks.metrics.published import ABCD_D
from gr2.benchmarks.metrics.statistics import bootstrap_mean, paired_difference, rate_difference, wilson_interval
from gr2.errors import ShapeError


@pytest.mark.parametrize(("successes", "total"), [(0, 10), (1, 10), (27, 30), (30, 30), (412, 510), (1, 1)])
@pytest.mark.parametrize("confidence", [0.9, 0.95, 0.99])
def test_wilson_equals_scipy(successes: int, total: int, confidence: float) -> None:
    ours = wilson_interval(successes, total, confidence=confidence)
    theirs = stats.binomtest(successes, total).proportion_ci(confidence_level=confidence, method="wilson")
    assert ours.as_metric() == pytest.approx((successes / total, theirs.low, theirs.high), abs=1e-12)


def test_wilson_is_symmetric_and_narrows_with_trials() -> None:
    solved, failed = wilson_interval(3, 20), wilson_interval(17, 20)
    assert (1 - failed.high, 1 - failed.low) == pytest.approx((solved.low, solved.high))
    widths = [one.high - one.low for one in (wilson_interval(9 * n, 10 * n) for n in (1, 4, 16, 64))]
    assert widths == sorted(widths, reverse=True)


@pytest.mark.parametrize(("successes", "total"), [(1, 0), (-1, 5), (6, 5)])
def test_impossible_counts_are_refused(successes: int, total: int) -> None:
    with pytest.raises(ShapeError, match="expected 0 <= successes"):
        wilson_interval(successes, total)


def test_rate_difference_equals_the_published_example() -> None:
    gap = rate_difference(56, 70, 48, 80)
    assert gap.as_metric() == pytest.approx((0.2, 0.0524, 0.3339), abs=5e-5)
    back = rate_difference(48, 80, 56, 70)
    assert (-back.high, -back.low) == pytest.approx((gap.low, gap.high))
    assert gap.excludes_zero() and not rate_difference(5, 10, 4, 10).excludes_zero()


def test_bootstrap_agrees_with_scipy_and_is_reproducible() -> None:
    sample = np.random.default_rng(1).gamma(2.0, size=60)
    ours = bootstrap_mean(sample, seed=3, resamples=20000)
    theirs = stats.bootstrap((sample,), np.mean, method="percentile", n_resamples=20000, rng=0)
    low, high = theirs.confidence_interval
    assert ours.as_metric() == pytest.approx((sample.mean(), low, high), abs=0.02)
    assert bootstrap_mean(sample, seed=3) == bootstrap_mean(sample, seed=3)
    assert bootstrap_mean(sample, seed=3) != bootstrap_mean(sample, seed=4)


def test_bootstrap_covers_the_true_mean_about_as_often_as_promised() -> None:
    rng = np.random.default_rng(0)
    samples = rng.binomial(5, 0.8, size=(400, 40))
    intervals = [bootstrap_mean(sample, resamples=500) for sample in samples]
    covered = np.mean([one.low <= 4.0 <= one.high for one in intervals])
    assert 0.90 <= covered <= 0.98


def test_pairing_removes_what_both_share() -> None:
    rng = np.random.default_rng(2)
    shared = 10 * rng.standard_normal(50)
    first, second = shared + 1 + 0.1 * rng.standard_normal(50), shared
    paired = paired_difference(first, second)
    assert paired.low < 1 < paired.high and paired.high - paired.low < 0.1
    swapped = paired_difference(second, first)
    assert swapped.value == pytest.approx(-paired.value) and swapped.excludes_zero()


@pytest.mark.parametrize("values", [[], [1.0, math.nan], [[1.0, 2.0]]])
def test_samples_that_have_no_mean_are_refused(values: list[float]) -> None:
    with pytest.raises(ShapeError, match="expected a non-empty vector"):
        bootstrap_mean(values)
    with pytest.raises(ShapeError, match="one length"):
        paired_difference([1.0, 2.0], [1.0])


def test_published_rows_are_ordered_and_their_rates_fall() -> None:
    lengths = [row.average_length for row in ABCD_D]
    assert lengths == sorted(lengths, reverse=True)
    for row in ABCD_D:
        rates = [rate for rate in row.rates if rate is not None]
        assert rates == sorted(rates, reverse=True) and row.source and row.evidence in ("primary", "secondary")
        if len(rates) == 5 and "add up" not in row.remark:
            assert sum(rates) / 100 == pytest.approx(row.average_length, abs=0.02)
