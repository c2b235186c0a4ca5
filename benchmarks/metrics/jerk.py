"""How jerkily an arm moves: the third difference of its joints."""

from __future__ import annotations

import numpy as np

from ...contracts import Array

_POINTS = 4
"""Instants that a third difference takes."""


class JerkMeter:
    """Mean squared jerk of joints that are seen at a fixed rate.

    Args:
        hz: instants a second.
    """

    def __init__(self, hz: float) -> None:
        self.hz = hz
        self._differences: list[Array] = []  # the last instant and its differences up to the second
        self._sum, self._count = 0.0, 0

    def begin(self) -> None:
        """Forget where the joints were, as after a reset; what was counted stays."""
        self._differences = []

    def see(self, positions: Array) -> None:
        """Add an instant: positions `[j]` [rad]."""
        differences = [np.array(positions, dtype=np.float64)]
        for before in self._differences:
            differences.append(differences[-1] - before)
        if len(differences) == _POINTS:
            jerk = differences.pop() * self.hz**3
            self._sum += float(np.square(jerk).sum())
            self._count += jerk.size
        self._differences = differences

    @property
    def mean_square(self) -> float | None:
        """Mean over instants and joints [rad^2/s^6]; None before four instants."""
        return self._sum / self._count if self._count else None
