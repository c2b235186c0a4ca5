"""Which row of which trajectory is due at a control step; the next trajectory may still be on its way."""

from __future__ import annotations

import math
from typing import Generic, TypeVar

from ...contracts import Trajectory

T = TypeVar("T", bound=Trajectory)


def delay_steps(delay: float, control_hz: float) -> int:
    """Return the control steps that begin before a delay [s] is over."""
    return math.ceil(delay * control_hz - 1e-6)


_ROUNDED = 0.02
"""How far a dt may be from whole control steps and still count as them: 0.033 s for a thirtieth of a second is 1 %."""


def steps_between(dt: float, control_hz: float) -> float:
    """Return the control steps between two rows that are `dt` [s] apart; a dt that was rounded means whole steps."""
    steps = dt * control_hz
    whole = max(round(steps), 1)
    return whole if abs(steps / whole - 1) <= _ROUNDED else steps


class Timeline(Generic[T]):
    """Trajectories one after another on the clock of a simulator's control steps."""

    def __init__(self, control_hz: float) -> None:
        self.control_hz = control_hz
        self.reset()

    def reset(self) -> None:
        """Forget the trajectories."""
        self._trajectory: T | None = None
        self._coming: tuple[int, int, T] | None = None  # steps of its arrival and of its start
        self._step = self._start = 0

    def follow(self, trajectory: T, delay: float) -> None:
        """Begin `trajectory` now, or `delay` [s] later at the row that is due then.

        A trajectory that has not arrived by then is dropped for a newer one.
        """
        self._receive()
        self._coming = (self._step + delay_steps(delay, self.control_hz), self._step, trajectory)

    def advance(self) -> tuple[T, int] | None:
        """Begin a control step; return the trajectory that is followed and the index of its row that is due.

        The index may lie past the end. None where nothing has arrived yet. Rows keep their trajectory's own clock.
        """
        self._receive()
        self._step += 1
        if self._trajectory is None:
            return None
        rows = (self._step - self._start) / steps_between(self._trajectory.dt, self.control_hz)
        return self._trajectory, max(math.ceil(rows - 1e-6), 1) - 1

    def _receive(self) -> None:
        """Take over the trajectory that has arrived."""
        if self._coming is not None and self._coming[0] <= self._step:
            (_, self._start, self._trajectory), self._coming = self._coming, None
