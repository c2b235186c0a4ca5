"""A driver for any arm that follows a stream of joint positions: what is checked before each of them is sent.

The arms differ in their wire, which is an `ArmEndpoint`: an SO-101 (`so101`), Universal Robots (`universal_robots`),
UFACTORY xArm (`xarm`), whatever ROS 2 controls (`ros2`). The checks do not.
"""

from __future__ import annotations

import math
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Protocol

import numpy as np

from ...contracts import JointCommand
from ...errors import ControlError
from ..robot.robots import RobotModel
from ..robot.transforms import Array
from .driver import Measurement, Pacer

if TYPE_CHECKING:
    from typing import Self

MAX_JUMP = 0.05
"""Farthest [rad] the first command may lie from the measured joints."""

MAX_SPEED_RATIO = 2.0
"""Greatest speed between two commands, as a multiple of the robot's limit."""

LIMIT_SLACK = 1e-6
"""How far [rad] a command may lie beyond a limit, for rounding."""

START_TOLERANCE = math.radians(10.0)
"""How far [rad] a joint may be measured beyond its limits; farther, its unit, its order or its zero is wrong."""

STANDING = 0.05
"""Joint speed [rad/s] up to which an arm counts as standing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ArmState:
    """What an arm reports.

    positions: `[j]` [rad], in the order of the robot model; velocities: `[j]` [rad/s].
    gripper: opening, 0 closed to 1 open; None for an arm without one.
    fault: why the arm takes no commands, empty where it does.
    """

    positions: Array
    velocities: Array
    gripper: float | None = None
    fault: str = ""


class ArmEndpoint(Protocol):
    """The wire to one arm. Every call returns within a time of its own or raises `ControlError`."""

    rate_hz: float
    """Commands a second that suit the arm."""

    def open(self) -> None:
        """Reach the arm and check that it is the one that was meant; nothing moves, nothing is enabled."""

    def read(self) -> ArmState:
        """Return a state that is not older than the arm's own period allows."""

    def begin(self, state: ArmState) -> None:
        """Make the arm follow what is written, from `state`, where it stands."""

    def write(self, positions: Array, gripper: float) -> None:
        """Send joint positions `[j]` [rad] and the opening of the gripper, 0 to 1."""

    def hold(self) -> None:
        """Make the arm stop and hold, by its own means."""

    def close(self) -> None:
        """Let go of the arm; may be called twice, and after `open` has failed."""


class StreamingDriver:
    """Drives an arm by way of an endpoint; every `send` writes one command and reads one answer.

    pacer: the pace of the commands, with the number of late ones.
    lost: answers that did not come since `connect`.
    """

    def __init__(
        self, robot: RobotModel, endpoint: ArmEndpoint, *, pacer: Pacer | None = None, max_lost: int = 0
    ) -> None:
        """Prepare; `connect` reaches the arm.

        Args:
            robot: the arm's model.
            endpoint: the wire to the arm.
            pacer: sets the rate, None for the endpoint's on the monotonic clock.
            max_lost: answers in a row that may be missing; one more stops the arm.
        """
        self.robot = robot
        self.pacer = pacer or Pacer(endpoint.rate_hz)
        self.rate_hz = 1.0 / self.pacer.period
        self.lost = 0
        self._endpoint, self._max_lost = endpoint, max_lost
        self._open = self._following = False
        self._resting, self._sent, self._lost_in_a_row = True, 0, 0
        self._gripper = 1.0
        self._commanded = robot.home.copy()
        self._lower, self._upper = robot.lower, robot.upper
        self._state = ArmState(positions=robot.home, velocities=0.0 * robot.home)

    def connect(self) -> None:
        """Reach the arm, check what it reports, and let it follow from where it stands.

        Raises:
            ControlError: an arm that does not answer, moves, has a fault, or whose joints cannot be this robot's.
        """
        self._open = True
        try:
            self._endpoint.open()
            self._state = self._endpoint.read()
            self._take(self._state)
            self._check_start()
            self._endpoint.begin(self._state)
            self._following = True
            self._sent = self.lost = self._lost_in_a_row = 0
            self._commanded, self._resting = self._state.positions.copy(), True
            self._lower = np.minimum(self.robot.lower, self._commanded)
            self._upper = np.maximum(self.robot.upper, self._commanded)
            self.pacer.restart()
        except BaseException:
            self.close()
            raise

    def read(self) -> Measurement:
        """Return the state that came with the last command; read it again while nothing is sent.

        Raises:
            ControlError: the arm does not answer, or is not connected.
        """
        if not self._open:
            raise ControlError("There is no connection to the arm; call connect first.")
        if not self._following:
            self._take(self._endpoint.read())
        state = self._state
        return Measurement(
            time=self._sent * self.pacer.period,
            positions=state.positions.copy(),
            velocities=state.velocities.copy(),
            gripper=self._gripper,
            fault=state.fault,
        )

    def send(self, command: JointCommand) -> None:
        """Wait for the period to begin, write the command and read the answer.

        Raises:
            ControlError: a fault, a jump, a limit, numbers that are not finite, too many answers lost, no connection.
        """
        if not self._following:
            raise ControlError("The arm takes no commands now; call connect first.")
        self.pacer.wait()
        if self._state.fault:
            raise ControlError(f"The arm reports a fault: {self._state.fault}; fix its cause, then connect again.")
        self._judge(command)
        self._endpoint.write(command.positions, min(max(command.gripper, 0.0), 1.0))
        self._commanded, self._resting = command.positions.copy(), False
        self._sent += 1
        try:
            state = self._endpoint.read()
        except ControlError:
            self.lost += 1
            self._lost_in_a_row += 1
            if self._lost_in_a_row > self._max_lost:
                with suppress(ControlError):
                    self.stop()
                raise
            return
        self._lost_in_a_row = 0
        self._gripper = command.gripper
        self._take(state)

    def stop(self) -> None:
        """Make the arm hold; `connect` takes it again."""
        if self._following:
            self._following = False
            self._endpoint.hold()

    def close(self) -> None:
        """Make the arm hold and let go of it, the latter whatever happens."""
        try:
            self.stop()
        finally:
            self._open = self._following = False
            self._endpoint.close()

    def __enter__(self) -> Self:
        """Connect."""
        self.connect()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close, after Ctrl-C as well."""
        self.close()

    def _take(self, state: ArmState) -> None:
        """Keep a state; joints without stops continue from the last one."""
        count = self.robot.num_joints
        if state.positions.shape != (count,) or state.velocities.shape != (count,):
            raise ControlError(
                f"{self.robot.name} has {count} joints, the arm reports {len(state.positions)}; load its own URDF."
            )
        endless = np.isinf(self.robot.upper)
        turns = np.round((self._state.positions - state.positions) / (2.0 * math.pi))
        positions = state.positions + np.where(endless & np.isfinite(turns), 2.0 * math.pi * turns, 0.0)
        self._state = ArmState(
            positions=positions, velocities=state.velocities, gripper=state.gripper, fault=state.fault
        )
        if state.gripper is not None:
            self._gripper = min(max(state.gripper, 0.0), 1.0)

    def _check_start(self) -> None:
        """Refuse an arm that has a fault or moves, and joints that cannot be this robot's."""
        state, robot = self._state, self.robot
        if state.fault:
            raise ControlError(f"The arm reports a fault: {state.fault}; fix its cause and clear it.")
        if not (np.all(np.isfinite(state.positions)) and np.all(np.isfinite(state.velocities))):
            raise ControlError(f"The arm reports joints {state.positions}; expected finite numbers in rad.")
        beyond = np.maximum(robot.lower - state.positions, state.positions - robot.upper)
        worst = int(np.argmax(beyond))
        if beyond[worst] > START_TOLERANCE:
            raise ControlError(
                f"The arm reports {robot.joint_names[worst]} at {state.positions[worst]:.3f} rad; expected "
                f"{robot.lower[worst]:.3f} to {robot.upper[worst]:.3f}. Check that the model is of this arm, the order "
                "of its joints, their zeros, and that they are in radians."
            )
        fastest = float(np.abs(state.velocities).max())
        if fastest > STANDING:
            raise ControlError(f"The arm moves at {fastest:.2f} rad/s; expected it to stand; stop it, then connect.")

    def _judge(self, command: JointCommand) -> None:
        """Refuse what is no continuation of the last command, or beyond a limit."""
        positions = command.positions
        if positions.shape != self._commanded.shape or not math.isfinite(command.gripper):
            raise ControlError(
                f"send: expected {self.robot.num_joints} joints and a gripper, got {positions}, {command.gripper}."
            )
        near = MAX_JUMP if self._resting else MAX_SPEED_RATIO * self.robot.velocity * self.pacer.period
        if not np.all(np.abs(positions - self._commanded) <= near):
            raise ControlError(
                f"send: expected joints within {np.max(near):.4f} rad of {self._commanded}, got {positions}; start "
                "from the measured joints."
            )
        if np.any(positions < self._lower - LIMIT_SLACK) or np.any(positions > self._upper + LIMIT_SLACK):
            raise ControlError(f"send: expected joints from {self._lower} to {self._upper} rad, got {positions}.")
