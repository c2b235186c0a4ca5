"""Compare rates in one run: everything is timed in every round, so that a busy machine slows all of it alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from .statistics import bootstrap_mean

Work = Callable[[], int]
"""Does some work and gives the number of items done."""


@dataclass(frozen=True, kw_only=True)
class Rate:
    """Items a second over the rounds: median, smallest and largest; ratio to the reference with its 95 % interval."""

    median: float
    low: float
    high: float
    ratio: tuple[float, float, float] | None

    def text(self, unit: str) -> str:
        """Write the rate in one line."""
        rate = f"{self.median:>12,.0f} {unit} ({self.low:,.0f} to {self.high:,.0f})"
        if self.ratio is None:
            return rate
        value, low, high = self.ratio
        return f"{rate}, {value:.2f} [{low:.2f}, {high:.2f}] of the reference"


def compare_rates(works: Mapping[str, Work], rounds: int, reference: str) -> dict[str, Rate]:
    """Time every work in every round, after one round that is not counted.

    Args:
        works: name -> work.
        rounds: rounds counted.
        reference: the name that ratios refer to, round by round.
    """
    rates: dict[str, list[float]] = {name: [] for name in works}
    for number in range(rounds + 1):
        for name, work in works.items():
            begin = time.perf_counter()
            items = work()
            if number:
                rates[name].append(items / (time.perf_counter() - begin))
    found = {}
    for name, values in rates.items():
        ratio = None
        if name != reference:
            interval = bootstrap_mean([a / b for a, b in zip(values, rates[reference], strict=True)])
            ratio = (interval.value, interval.low, interval.high)
        found[name] = Rate(median=float(np.median(values)), low=min(values), high=max(values), ratio=ratio)
    return found
