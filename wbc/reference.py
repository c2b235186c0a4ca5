"""The reference that the arm follows: the tool's motion as polynomial pieces in time."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .robot.transforms import Array, rotation_exp, rotation_log, rotation_vector_rates
from .splines import Pieces


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolState:
    """Motion of the tool at one instant, base frame, in m, s, rad: a `[3 3]` rotation, the others `[3]`."""

    position: Array
    rotation: Array
    velocity: Array
    angular_velocity: Array
    acceleration: Array
    angular_acceleration: Array


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SmoothTrajectory(Pieces):
    """A reference in time: position [m] and rotation vector [rad] relative to its start.

    start: state it begins with.
    stretch: factor by which time was stretched, 1 where the caps hold.
    due: `[k]` times [s] at which the waypoints are reached, after stretching.
    """

    start: ToolState
    stretch: float
    due: Array

    def pose(self, time: float) -> tuple[Array, Array]:
        """Return position `[3]` [m] and rotation `[3 3]` at `time` [s]; constant before and after."""
        value = self.values(time)
        return self.start.position + value[:3], rotation_exp(value[3:]) @ self.start.rotation

    def state(self, time: float) -> ToolState:
        """Return the motion at `time` [s]; at rest from the end on."""
        position, rotation = self.pose(time)
        if time >= self.end_time:
            return resting(position, rotation)
        value, first, second = self.derivatives(time)
        angular_velocity, angular_acceleration = rotation_vector_rates(value[3:], first[3:], second[3:])
        return ToolState(
            position=position,
            rotation=rotation,
            velocity=first[:3],
            angular_velocity=angular_velocity,
            acceleration=second[:3],
            angular_acceleration=angular_acceleration,
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class StreamedPose:
    """The way from one pose of a stream to the next, passed evenly; the tool stays at the last one.

    start_time, end_time: [s]; before, after: poses `[4 4]` at these times.
    """

    start_time: float
    end_time: float
    before: Array
    after: Array

    def pose(self, time: float) -> tuple[Array, Array]:
        """Return position `[3]` [m] and rotation `[3 3]` at `time` [s]; constant before and after."""
        share = min(max((time - self.start_time) / max(self.end_time - self.start_time, 1e-9), 0.0), 1.0)
        turn = rotation_log(self.after[:3, :3] @ self.before[:3, :3].T)
        position = (1.0 - share) * self.before[:3, 3] + share * self.after[:3, 3]
        return position, rotation_exp(share * turn) @ self.before[:3, :3]


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
