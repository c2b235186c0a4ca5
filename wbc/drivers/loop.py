"""Runs a controller against a driver: ticks computed ahead, commands at the driver's own rate, every miss counted.

Times are seconds since `start`; they advance by one driver period a command, so that a late period delays the
motion and never makes it jump. At time t:

    ... sent | now t | buffered ticks, the look-ahead | next tick, being computed
    measured ^       ^ command of this period, sampled between two ticks

A chunk that is taken over at t changes the motion from the end of the look-ahead on; its poses are due at their own
times all the same.
"""

from __future__ import annotations

import math
from collections import Counter
from typing import Protocol

import numpy as np

from ...contracts import ControlTrajectory, JointCommand
from ...errors import ConfigError, ControlError
from ..limits import shortest_turn
from ..robot.robots import RobotModel
from ..robot.transforms import Array
from ..status import EMERGENCY_STOP, PROTECTIVE_STOP
from ..validation import REJECTED_STOPPED
from .driver import Driver, Measurement
from .lookahead import LookAhead

STOPPED = "stopped"
"""Status of the commands with which the loop itself brakes the arm."""

CONTROLLER_STOPS = (EMERGENCY_STOP, PROTECTIVE_STOP)
"""Status names with which a controller reports that it brakes for good; the loop then drops what is buffered."""

_SPEED_TOLERANCE = 1e-3
"""Share by which a tick may exceed a velocity limit before the loop stops the arm."""


class Controller(Protocol):
    """What the loop needs of a controller; see `WholeBodyController`."""

    robot: RobotModel
    dt: float

    def reset(self, joint_positions: Array, gripper: float, time: float) -> None:
        """Start from the measured state, at rest."""

    def accept(self, trajectory: ControlTrajectory) -> str:
        """Take over a chunk and return what became of it."""

    def step(self, time: float, measured: Array | None = None) -> JointCommand:
        """Compute the tick that begins at `time`, knowing where the arm is while it should be at the last tick."""

    def emergency_stop(self) -> None:
        """Brake and stay stopped until `reset`."""


class ControlLoop:
    """Feeds one arm; single-threaded by itself, see `LiveLoop` for threads.

    Call `produce` until it returns False, then `publish`, over and over; `run` does so.

    stop_reason: why the loop brakes or has stopped, empty while it follows the controller.
    counters: `ticks`, `commands`, `misses`.
    consecutive_misses: ticks in a row, up to now, that were not there in time.
    following_error: `[j]` last command minus the joints measured at its time [rad].
    max_following_error: largest one so far [rad].
    """

    def __init__(
        self, controller: Controller, driver: Driver, *, lookahead: float = 0.035, max_misses: int = 5
    ) -> None:
        """Join a controller and a connected driver of the same robot.

        Args:
            lookahead: span of ticks kept ahead of the arm [s]; 0.035 bridges five ticks that are missed.
            max_misses: consecutive ticks that may be late; with one more, or with nothing left in the buffer, the arm
                is stopped.

        Raises:
            ConfigError: a look-ahead too short to interpolate, or a driver of another arm.
        """
        shortest = controller.dt + 1.0 / driver.rate_hz
        if not shortest <= lookahead <= 1.0:
            raise ConfigError(f"lookahead: expected {shortest:.4f} to 1 s, got {lookahead}; 0.035 is usual.")
        if controller.robot.num_joints != driver.robot.num_joints:
            raise ConfigError(
                f"ControlLoop: expected one arm, got a controller of {controller.robot.name} and a driver of "
                f"{driver.robot.name}."
            )
        self.controller, self.driver = controller, driver
        self.lookahead, self.max_misses = lookahead, max_misses
        self.stop_reason = ""
        self.counters: Counter[str] = Counter()
        self._failure: Exception | None = None
        self._begin(
            JointCommand(
                positions=controller.robot.home, velocities=0.0 * controller.robot.home, gripper=1.0, status=STOPPED
            )
        )
        self._over = True

    def _begin(self, first: JointCommand) -> None:
        """Forget everything but `first`, the arm at rest."""
        self._buffer = LookAhead(self.controller.robot, self.controller.dt, first)
        self._sent = self._checked = self.consecutive_misses = 0
        self.following_error = np.zeros(self.controller.robot.num_joints)
        self.max_following_error = 0.0
        self._latched = self._over = False
        self._failure, self.stop_reason = None, ""

    @property
    def time(self) -> float:
        """Time since `start` [s]: the instant that the last command was for."""
        return self._sent / self.driver.rate_hz

    @property
    def over(self) -> bool:
        """Whether nothing more is sent: never started, or braked to rest, or cut off by the driver."""
        return self._over

    def start(self) -> Measurement:
        """Begin at rest from the measured joints; also the way out of a stop.

        Raises:
            ControlError: the driver reports a fault, or joints from which the controller cannot start.
        """
        measurement = self.driver.read()
        if measurement.fault:
            raise ControlError(f"The arm reports a fault: {measurement.fault}; clear it before starting.")
        first, opening = measurement.positions.copy(), measurement.gripper
        self.controller.reset(first, opening, 0.0)
        self._begin(JointCommand(positions=first, velocities=np.zeros_like(first), gripper=opening, status="hold"))
        while self.produce():
            pass
        return measurement

    def accept(self, trajectory: ControlTrajectory) -> str:
        """Hand a chunk, timed by `time`, to the controller; return what became of it."""
        if self.stop_reason:
            return REJECTED_STOPPED
        return self.controller.accept(trajectory)

    def stop(self, reason: str) -> None:
        """Brake at the emergency acceleration, dropping what is buffered; only the first reason is kept."""
        self._stop(reason, self.controller.robot.emergency_acceleration, keep=False)

    def produce(self) -> bool:
        """Compute the next tick if its time has come; return whether there may be more to compute."""
        if self.stop_reason:
            if not self._latched:
                self._latched = True
                self.controller.emergency_stop()
            return False
        index, dt = self._buffer.last + 1, self.controller.dt
        if index > self._due() + 1:
            return False
        last = self._buffer.tick(index - 1)
        try:
            # The arm is measured now, the last tick is due later: what carries over is the following error.
            command = self.controller.step((index - 1) * dt, last.positions - self.following_error)
            self._check(command, last)
        except Exception as failure:
            if not self.stop_reason:
                self._failure = failure
            self.stop(f"controller: {failure}")
            return False
        if command.status in CONTROLLER_STOPS:
            self.stop(f"the controller stopped ({command.status})")
        self.counters["ticks"] += 1
        return self._buffer.append(command)

    def publish(self) -> Measurement:
        """Send the command of one driver period and measure the arm at its end.

        Raises:
            ControlError: the loop is over.
            Exception: what the driver raised; it is stopped first.
        """
        if self._over:
            raise ControlError(f"The loop is over ({self.stop_reason or 'not started'}); call start.")
        self._count_misses()
        end = (self._sent + 1) / self.driver.rate_hz
        if not self._buffer.covers(end):
            self._stop_after_misses("the look-ahead is used up")
        command = self._buffer.sample(end)
        try:
            self.driver.send(command)
            measurement = self.driver.read()
        except Exception as failure:
            self._cut_off(f"driver: {failure}")
            raise
        self._sent += 1
        self.counters["commands"] += 1
        if measurement.fault or not np.all(np.isfinite(measurement.positions)):
            self._cut_off(f"driver: {measurement.fault or 'joints measured as NaN'}")
            return measurement
        endless = np.isinf(self.controller.robot.upper)
        self.following_error = shortest_turn(command.positions - measurement.positions, endless)
        self.max_following_error = max(self.max_following_error, float(np.abs(self.following_error).max()))
        if self._buffer.at_rest(self.time):
            self._over = True
            self.driver.stop()
        return measurement

    def run(self, duration: float) -> str:
        """Produce and publish for `duration` [s], or until the arm is stopped; return `stop_reason`.

        Raises:
            ControlError: the controller raised, after the arm was braked to rest.
        """
        end = self._sent + round(duration * self.driver.rate_hz)
        while self._sent < end and not self._over:
            while self.produce():
                pass
            self.publish()
        self.check()
        return self.stop_reason

    def check(self) -> None:
        """Raise what the controller raised, if it did and the arm has come to rest.

        Raises:
            ControlError: with the controller's own error as its cause.
        """
        if self._over and self._failure is not None:
            raise ControlError(f"The controller failed and the arm was stopped: {self._failure}") from self._failure

    def _due(self) -> int:
        """Return the index of the last tick that should be there by now."""
        return math.floor((self.time + self.lookahead) / self.controller.dt + 1e-9)

    def _check(self, command: JointCommand, last: JointCommand) -> None:
        """Refuse a tick that no arm must be sent."""
        robot = self.controller.robot
        speed = np.abs(command.positions - last.positions) / self.controller.dt
        if not np.all(speed <= robot.velocity * (1.0 + _SPEED_TOLERANCE)):
            raise ControlError(f"A tick asks for {speed} rad/s; expected at most {robot.velocity}.")

    def _count_misses(self) -> None:
        """Count the ticks whose deadline passed since the last call."""
        due = self._due()
        for index in range(self._checked + 1, due + 1):
            missing = index > self._buffer.last and not self._buffer.closed
            self.counters["misses"] += int(missing)
            self.consecutive_misses = self.consecutive_misses + 1 if missing else 0
        self._checked = max(self._checked, due)
        if self.consecutive_misses > self.max_misses:
            self._stop_after_misses(f"{self.consecutive_misses} ticks in a row were late")

    def _stop_after_misses(self, reason: str) -> None:
        """Follow what is buffered, then brake."""
        self._stop(reason, self.controller.robot.acceleration, keep=True)

    def _stop(self, reason: str, acceleration: Array, *, keep: bool) -> None:
        self.stop_reason = self.stop_reason or reason
        self._buffer.brake(acceleration, keep=keep, status=STOPPED)

    def _cut_off(self, reason: str) -> None:
        """Send nothing more: the arm does not listen."""
        self.stop(reason)
        self._over = True
        self.driver.stop()
