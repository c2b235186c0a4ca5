"""The reference that the arm follows: the tool's motion as polynomial pieces in time."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .transforms import Array, rotation_exp, rotation_vector_rates


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolState:
    """Motion of the tool at one instant, base frame, in m, s, rad: a `[3 3]` rotation, the others `[3]`."""

    position: Array
    rotation: Array
    velocity: Array
    angular_velocity: Array
    acceleration: Array
    angular_acceleration: Array


@dataclass(frozen=True, slots=True, kw_only=True)
class SmoothTrajectory:
    """A reference in time.

    start: state it begins with; start_time [s]; span: duration of one polynomial piece [s].
    coefficients: `[spans 6 6]` powers of the time within a piece (in pieces), then position [m] and rotation
        vector [rad].
    stretch: factor by which time was stretched, 1 where the caps hold.
    due: `[k]` times [s] at which the waypoints are reached, after stretching.
    """

    start: ToolState
    start_time: float
    span: float
    coefficients: Array
    stretch: float
    due: Array

    @property
    def end_time(self) -> float:
        """Time [s] from which the reference rests."""
        return self.start_time + self.span * len(self.coefficients)

    def _locate(self, time: float) -> tuple[Array, float]:
        count = len(self.coefficients)
        phase = min(max((time - self.start_time) / self.span, 0.0), float(count))
        piece = min(int(phase), count - 1)
        return self.coefficients[piece], phase - piece

    def pose(self, time: float) -> tuple[Array, Array]:
        """Return position `[3]` [m] and rotation `[3 3]` at `time` [s]; constant before and after."""
        coefficients, x = self._locate(time)
        powers = np.array([1.0, x, x * x, x**3, x**4, x**5])
        value = powers @ coefficients
        return self.start.position + value[:3], rotation_exp(value[3:]) @ self.start.rotation

    def state(self, time: float) -> ToolState:
        """Return the motion at `time` [s]; at rest from the end on."""
        position, rotation = self.pose(time)
        if time >= self.end_time:
            return resting(position, rotation)
        coefficients, x = self._locate(time)
        value, first, second = power_rows(np.array([x]))[:, 0] @ coefficients
        first, second = first / self.span, second / self.span**2
        angular_velocity, angular_acceleration = rotation_vector_rates(value[3:], first[3:], second[3:])
        return ToolState(
            position=position,
            rotation=rotation,
            velocity=first[:3],
            angular_velocity=angular_velocity,
            acceleration=second[:3],
            angular_acceleration=angular_acceleration,
        )


def resting(position: Array, rotation: Array) -> ToolState:
    """Return the state of a tool that stands still at `position` [m] and `rotation`."""
    zero = np.zeros(3)
    return ToolState(
        position=position,
        rotation=rotation,
        velocity=zero,
        angular_velocity=zero,
        acceleration=zero,
        angular_acceleration=zero,
    )


def power_rows(x: Array) -> Array:
    """Return `[3 s 6]`: rows that evaluate a piece, its first and its second derivative at `x` `[s]`."""
    exponents = np.arange(6)
    value = x[:, None] ** exponents
    first = exponents * x[:, None] ** np.maximum(exponents - 1, 0)
    second = exponents * (exponents - 1) * x[:, None] ** np.maximum(exponents - 2, 0)
    return np.stack([value, first, second])
