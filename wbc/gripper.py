"""Gripper commands in step with the waypoints: the next due pose's value, rate-limited, without chatter."""

from __future__ import annotations

import math

import numpy as np

from .robot.transforms import Array


class GripperSchedule:
    """Opening commanded over time, 0 closed to 1 open."""

    def __init__(self, opening: float, rate: float, hysteresis: float, dwell: float = 0.0) -> None:
        """Start at `opening`.

        Args:
            opening: 0 to 1.
            rate: fastest change [1/s].
            hysteresis: changes of the target below this are ignored.
            dwell: least time between two reversals of the direction [s]; the first one is never held back.
        """
        self.opening = self.target = min(max(opening, 0.0), 1.0)
        self.rate, self.hysteresis, self.dwell = rate, hysteresis, dwell
        self._direction, self._turned = 0.0, -math.inf
        self._due, self._values = np.empty(0), np.empty(0)

    def follow(self, due: Array, values: Array) -> None:
        """Replace the waypoints: each of `values` `[k]` holds until its `due` time [s], the last one on."""
        self._due, self._values = due, np.clip(values, 0.0, 1.0)

    def hold(self) -> None:
        """Forget the waypoints and keep the present target."""
        self._due, self._values = np.empty(0), np.empty(0)

    def step(self, time: float, dt: float) -> float:
        """Advance to `time` [s], `dt` [s] after the last call, and return the opening."""
        if len(self._values):
            index = min(int(np.searchsorted(self._due, time - 1e-9)), len(self._values) - 1)
            wanted = float(self._values[index])
            if abs(wanted - self.target) >= self.hysteresis or wanted in (0.0, 1.0):
                self._take(wanted, time)
        change = min(max(self.target - self.opening, -self.rate * dt), self.rate * dt)
        self.opening = min(max(self.opening + change, 0.0), 1.0)
        return self.opening

    def _take(self, wanted: float, time: float) -> None:
        """Make `wanted` the target unless that reverses the direction too soon after the last reversal."""
        change = wanted - self.target
        if change == 0.0:
            return
        if change * self._direction < 0.0:
            if time < self._turned + self.dwell:
                return
            self._turned = time
        self._direction, self.target = change, wanted
