"""Joint commands computed ahead of time, read at any instant between their ticks.

Between two ticks the joints follow a cubic Hermite polynomial through both positions. A tick's velocity is
the mean over the interval before it, so the slope at a tick is the mean of the velocities before and after it:
motion with constant acceleration is reproduced exactly. Slopes are then clipped to boxes within which the cubic
keeps the velocity limits (the condition of Fritsch and Carlson, applied to the distance from the limit) and the
position limits (its Bezier points stay inside). What was read once never changes, so the motion stays continuous in
velocity whatever follows.

Source: Fritsch and Carlson, Monotone piecewise cubic interpolation, 1980.
"""

from __future__ import annotations

import math
import threading

import numpy as np

from ...contracts import JointCommand
from ..robot.robots import RobotModel
from ..robot.transforms import Array

_EXACT = 1e-9
"""Share of a tick below which an instant counts as the tick itself."""


class LookAhead:
    """A queue of ticks; tick i is due at `i * dt`, tick 0 is the arm at rest.

    One thread may append while another one samples.
    """

    def __init__(self, robot: RobotModel, dt: float, first: JointCommand) -> None:
        """Start at rest at `first`; `dt` is the time between ticks [s].

        Positions keep to the limits or, for a joint that begins beyond one, to where it begins.
        """
        self._robot, self._dt = robot, dt
        self._lower = np.minimum(robot.lower, first.positions)
        self._upper = np.maximum(robot.upper, first.positions)
        self._ticks: dict[int, JointCommand] = {0: first}
        self._slopes: dict[int, Array] = {0: np.zeros(robot.num_joints)}
        self._last = self._sampled = 0
        self._closed = False
        self._lock = threading.RLock()

    @property
    def last(self) -> int:
        """Index of the last tick."""
        return self._last

    @property
    def closed(self) -> bool:
        """Whether a brake ends the queue."""
        return self._closed

    def tick(self, index: int) -> JointCommand:
        """Return a tick that is still kept; behind a brake the last one lasts indefinitely."""
        with self._lock:
            return self._ticks[min(index, self._last)]

    def append(self, command: JointCommand) -> bool:
        """Add the next tick; return False, without adding it, once a brake ends the queue."""
        with self._lock:
            if not self._closed:
                self._last += 1
                self._ticks[self._last] = command
            return not self._closed

    def covers(self, time: float) -> bool:
        """Return whether the ticks that `sample` needs for `time` [s] are there."""
        return self._closed or self._right(time) < self._last

    def at_rest(self, time: float) -> bool:
        """Return whether a brake has ended by `time` [s]."""
        return self._closed and time >= self._last * self._dt - _EXACT

    def sample(self, time: float) -> JointCommand:
        """Return the command for `time` [s], which does not lie before the last one that was sampled.

        Raises:
            ValueError: a time that is not covered, or already forgotten.
        """
        with self._lock:
            right = self._right(time)
            left = right - 1
            if not self.covers(time) or left < self._sampled - 1:
                raise ValueError(
                    f"sample: expected a time within ticks {self._sampled - 1} to {self._last}, got {time} s; "
                    "sample in order, and only what `covers` names."
                )
            share = min(max(time / self._dt - left, 0.0), 1.0)
            begin, end = self.tick(left), self.tick(right)
            slope, next_slope = self._slope(left) * self._dt, self._slope(right) * self._dt
            self._forget(right)
        change = end.positions - begin.positions
        square = share * share
        positions = (
            begin.positions
            + slope * (share * (1.0 - share) ** 2)
            + change * (square * (3.0 - 2.0 * share))
            - next_slope * (square * (1.0 - share))
        )
        velocities = (
            slope * (1.0 - 4.0 * share + 3.0 * square)
            + change * (6.0 * (share - square))
            + next_slope * (3.0 * square - 2.0 * share)
        ) / self._dt
        return JointCommand(
            positions=np.clip(positions, self._lower, self._upper),
            velocities=velocities,
            gripper=(1.0 - share) * begin.gripper + share * end.gripper,
            status=end.status,
        )

    def brake(self, acceleration: Array, *, keep: bool, status: str) -> None:
        """End the queue with a stop and refuse further ticks; a second call changes nothing.

        Args:
            acceleration: `[j]` by which each joint slows down [rad/s^2].
            keep: stop behind the buffered ticks rather than as soon as possible.
            status: name given to the commands of the stop.
        """
        with self._lock:
            if self._closed:
                return
            if not keep:
                self._last = min(self._last, self._sampled)
                self._ticks = {i: tick for i, tick in self._ticks.items() if i <= self._last}
            # Constant deceleration from the slope that was already followed, or else from the last tick's velocity.
            change = acceleration * self._dt
            followed = self._slopes.get(self._last)
            velocity = self._mean_velocity(self._last) if followed is None else followed
            less = change if followed is None else 0.5 * change
            moving = True
            while moving:
                moving = bool(np.any(velocity))
                velocity = np.sign(velocity) * np.maximum(np.abs(velocity) - less, 0.0)
                less, before = change, self._ticks[self._last]
                positions = np.clip(before.positions + velocity * self._dt, self._lower, self._upper)
                self._last += 1
                self._ticks[self._last] = JointCommand(
                    positions=positions, velocities=velocity, gripper=before.gripper, status=status
                )
            self._closed = True

    def _right(self, time: float) -> int:
        """Return the index of the tick that ends the interval in which `time` lies."""
        return max(math.ceil(time / self._dt - _EXACT), 1)

    def _mean_velocity(self, index: int) -> Array:
        """Return `[j]`: mean velocity in the interval that ends with a tick [rad/s]; rest before the first."""
        if index <= 0:
            return np.zeros(self._robot.num_joints)
        return (self.tick(index).positions - self.tick(index - 1).positions) / self._dt

    def _slope(self, index: int) -> Array:
        """Return `[j]`: the velocity at a tick [rad/s], the same one at every call."""
        if index not in self._slopes:
            before, after = self._mean_velocity(index), self._mean_velocity(index + 1)
            limit = np.maximum(self._robot.velocity, np.maximum(np.abs(before), np.abs(after)))
            least = 3.0 * np.maximum(before, after) - 2.0 * limit
            greatest = 3.0 * np.minimum(before, after) + 2.0 * limit
            slope = np.clip(np.minimum(np.maximum(0.5 * (before + after), least), greatest), -limit, limit)
            q = self.tick(index).positions
            margin = 3.0 / self._dt * np.maximum(np.minimum(q - self._lower, self._upper - q), 0.0)
            self._slopes[index] = np.clip(slope, -margin, margin)
        return self._slopes[index]

    def _forget(self, right: int) -> None:
        """Drop what no later sample needs: everything before the interval in front of the one that ends at `right`."""
        self._sampled = max(self._sampled, min(right, self._last))
        for kept in (self._ticks, self._slopes):
            for index in [i for i in kept if i < self._sampled - 2]:
                del kept[index]
