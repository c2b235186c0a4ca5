"""How jerkily an arm moves: the third difference of its joints."""

from __future__ import annotations

from collections import deque

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
        self._last: deque[Array] = deque(maxlen=_POINTS)
        self._sum, self._count = 0.0, 0

    def begin(self) -> None:
        """Forget where the joints were, as after a reset; what was counted stays."""
        self._last.clear()

    def see(self, positions: Array) -> None:
        """Add an instant: positions `[j]` [rad]."""
        self._last.append(np.array(positions, dtype=np.float64))
        if len(self._last) == _POINTS:
            jerk = np.diff(np.stack(self._last), n=3, axis=0) * self.hz**3
            self._sum += float(np.square(jerk).sum())
            self._count += jerk.size

    @property
    def mean_square(self) -> float | None:
        """Mean over instants and joints [rad^2/s^6]; None before four instants."""
        return self._sum / self._count if self._count else None
