"""A Kinova Gen3 by way of its Kortex interface: joint positions at 1 kHz in low-level servoing.

In low-level servoing the base checks nothing and knows no kinematics; the actuators alone watch their following error.
This driver therefore refuses commands that do not continue the last one. The vendor does not
warrant 1 kHz from Python: give the process a core of its own and watch `pacer.late` and `lost_frames`.

Source: Kinova Kortex API 2.6 documentation; Kinova Gen3 user guide (following error 3 and 5 deg).
"""

from __future__ import annotations

import math
import os
from types import TracebackType
from typing import TYPE_CHECKING

import numpy as np

from ...contracts import JointCommand
from ...errors import ControlError, EnvironmentMissing
from ..robot.robots import RobotModel
from ..robot.transforms import Array
from .driver import Measurement, Pacer
from .kortex_endpoint import IN_FAULT, SERVOING_LOW_LEVEL, Feedback, Frame, KortexEndpoint, vendor_endpoint

if TYPE_CHECKING:
    from typing import Self

HOST, USER, PASSWORD = "KORTEX_HOST", "KORTEX_USER", "KORTEX_PASSWORD"
"""Environment variables that name the arm and the account."""

DEFAULT_HOST = "192.168.1.10"
"""Address of an arm as delivered."""

MAX_JUMP = 0.05
"""Farthest [rad] the first command may lie from the measured joints."""

MAX_SPEED_RATIO = 2.0
"""Greatest speed between two commands, as a multiple of the robot's limit."""

NUM_FRAME_IDS = 65536
_MODE_POLLS = 1000
"""Frames to wait for the change of mode."""


def to_degrees(positions: Array) -> tuple[float, ...]:
    """Return joint positions `[j]` [rad] as the actuators count them: float32 in [0, 360) [deg]."""
    wrapped = np.mod(np.degrees(positions), 360.0).astype(np.float32)
    return tuple(float(value) for value in np.where(wrapped >= 360.0, np.float32(0.0), wrapped))


def unwrapped(degrees: tuple[float, ...], near: Array) -> Array:
    """Return angles [deg] as joint positions `[j]` [rad], each within half a turn of `near` `[j]` [rad]."""
    turns = np.mod(np.radians(degrees) - near + math.pi, 2.0 * math.pi) - math.pi
    return near + turns


class KortexDriver:
    """Drives a Kinova arm; every `send` is one frame, sent when its period begins.

    pacer: the pace of the frames, with the number of late ones.
    lost_frames: frames without an answer since `connect`.
    """

    def __init__(
        self,
        robot: RobotModel,
        *,
        host: str | None = None,
        user: str | None = None,
        password: str | None = None,
        endpoint: KortexEndpoint | None = None,
        pacer: Pacer | None = None,
        gripper_force: float = 0.5,
        max_lost_frames: int = 5,
    ) -> None:
        """Prepare; `connect` reaches the arm.

        Args:
            robot: the arm's model; its joints are the actuators in order.
            host: address, None for the variable KORTEX_HOST or else the address of an arm as delivered.
            user, password: account, None for the variables KORTEX_USER and KORTEX_PASSWORD.
            endpoint: another wire to the arm, then no account is needed; None for the vendor's package.
            pacer: sets the rate, None for 1 kHz on the monotonic clock.
            gripper_force: share of the gripper's greatest force, 0 to 1; recent firmware ignores it.
            max_lost_frames: frames in a row that may stay without an answer.

        Raises:
            EnvironmentMissing: no account, or the vendor's package is not installed.
        """
        self.robot = robot
        self.pacer = pacer or Pacer(1000.0)
        self.rate_hz = 1.0 / self.pacer.period
        self.lost_frames = 0
        self._endpoint = endpoint or _endpoint_from(host, user, password)
        self._force, self._max_lost = 100.0 * gripper_force, max_lost_frames
        self._open = self._connected = False
        self._frame_id = self._frames = self._lost_in_a_row = 0
        self._fault, self._resting = "", True
        self._positions, self._commanded = robot.home.copy(), robot.home.copy()
        self._feedback = Feedback(positions=(), velocities=(), gripper_position=None, arm_state=0)

    def connect(self) -> None:
        """Open the sessions, enter low-level servoing and command the measured joints.

        Raises:
            ControlError: another number of joints, a fault, or a base that does not change its mode.
        """
        self._endpoint.open()
        self._open = True
        try:
            count = self._endpoint.num_actuators()
            if count != self.robot.num_joints:
                raise ControlError(f"{self.robot.name} has {self.robot.num_joints} joints, the arm has {count}.")
            self._positions = np.zeros(count)
            self._enter_low_level()
        except BaseException:
            self.close()
            raise

    def read(self) -> Measurement:
        """Return the state that came with the last frame; read it again while nothing is sent.

        Raises:
            ControlError: the arm does not answer, or is not connected.
        """
        if not self._open:
            raise ControlError("There is no session with the arm; call connect first.")
        if not self._connected:
            self._take(self._endpoint.feedback())
        feedback = self._feedback
        opening = 1.0 if feedback.gripper_position is None else 1.0 - feedback.gripper_position / 100.0
        return Measurement(
            time=self._frames * self.pacer.period,
            positions=self._positions.copy(),
            velocities=np.radians(feedback.velocities),
            gripper=min(max(opening, 0.0), 1.0),
            fault=self._fault,
        )

    def send(self, command: JointCommand) -> None:
        """Wait for the period to begin and send one frame.

        While the arm has a fault nothing is commanded and the state is read instead.

        Raises:
            ControlError: a fault, a jump, numbers that are not finite, too many frames lost, or no connection.
        """
        if not self._connected:
            raise ControlError("The arm takes no commands now; call connect first.")
        self.pacer.wait()
        if self._fault:
            self._take(self._endpoint.feedback())
            raise ControlError(f"The arm reports a fault: {self._fault}; fix its cause, then call recover.")
        self._judge(command)
        self._exchange(command.positions, command.gripper)

    def recover(self) -> None:
        """Clear the faults and continue from the measured joints, at rest.

        Raises:
            ControlError: the fault stays.
        """
        self._endpoint.clear_faults()
        try:
            self._enter_low_level()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Give the arm back to its base, which holds it; `connect` or `recover` take it again."""
        if self._connected:
            self._connected = False
            self._endpoint.set_low_level(False)

    def close(self) -> None:
        """Give the arm back to its base and close the sessions, the latter whatever happens."""
        try:
            self.stop()
        finally:
            self._open = self._connected = False
            self._endpoint.close()

    def __enter__(self) -> Self:
        """Connect."""
        self.connect()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close."""
        self.close()

    def _enter_low_level(self) -> None:
        """Switch the mode, wait until the arm is in it, and command where it is."""
        self._connected, self._fault = False, ""
        self._take(self._endpoint.feedback())
        if self._fault:
            raise ControlError(f"The arm reports a fault: {self._fault}; fix its cause and clear it.")
        self._endpoint.set_low_level(True)
        self._connected = True
        self.pacer.restart()
        for _ in range(_MODE_POLLS):
            if self._feedback.arm_state == SERVOING_LOW_LEVEL:
                break
            self.pacer.wait()
            self._feedback = self._endpoint.feedback()
        else:
            raise ControlError(f"The arm stays in state {self._feedback.arm_state}; expected low-level servoing.")
        self._take(self._feedback)
        self._frame_id = self.lost_frames = self._lost_in_a_row = 0
        position = self._feedback.gripper_position
        self._exchange(self._positions, 1.0 if position is None else 1.0 - position / 100.0)
        self._resting = True

    def _judge(self, command: JointCommand) -> None:
        """Refuse what is no continuation of the last command: the base would try to follow it."""
        near = MAX_JUMP if self._resting else MAX_SPEED_RATIO * self.robot.velocity * self.pacer.period
        fits = command.positions.shape == self._commanded.shape and math.isfinite(command.gripper)
        if not (fits and np.all(np.abs(command.positions - self._commanded) <= near)):
            raise ControlError(
                f"send: expected {self.robot.num_joints} joints within {np.max(near):.4f} rad of {self._commanded}, "
                f"got {command.positions}, gripper {command.gripper}; start from the measured joints."
            )
        self._resting = False

    def _exchange(self, positions: Array, gripper: float) -> None:
        """Send one frame and take its answer; bear a few lost ones."""
        self._frame_id = (self._frame_id + 1) % NUM_FRAME_IDS
        closed = 100.0 * (1.0 - min(max(gripper, 0.0), 1.0))
        frame = Frame(
            frame_id=self._frame_id,
            positions=to_degrees(positions),
            gripper_position=None if self._feedback.gripper_position is None else closed,
            gripper_force=self._force,
        )
        self._commanded = positions.copy()
        self._frames += 1
        try:
            answer = self._endpoint.exchange(frame)
        except ControlError:
            self.lost_frames += 1
            self._lost_in_a_row += 1
            if self._lost_in_a_row > self._max_lost:
                raise
            return
        self._lost_in_a_row = 0
        self._take(answer)

    def _take(self, feedback: Feedback) -> None:
        """Keep a feedback: joints continued from the last ones, and the first fault until it is recovered from."""
        self._feedback = feedback
        self._positions = unwrapped(feedback.positions, self._positions)
        fault = "; ".join(feedback.faults)
        if not fault and feedback.arm_state == IN_FAULT:
            fault = "the arm is in its fault state"
        if not fault and self._connected and feedback.arm_state != SERVOING_LOW_LEVEL:
            fault = f"the arm left low-level servoing for state {feedback.arm_state}"
        self._fault = self._fault or fault


def _endpoint_from(host: str | None, user: str | None, password: str | None) -> KortexEndpoint:
    """Return the vendor's endpoint for an account given or named by the environment."""
    user, password = user or os.environ.get(USER), password or os.environ.get(PASSWORD)
    if not user or not password:
        raise EnvironmentMissing(
            f"The Kinova driver needs an account of the arm: pass user and password or set {USER} and {PASSWORD}."
        )
    return vendor_endpoint(host or os.environ.get(HOST) or DEFAULT_HOST, user, password)
