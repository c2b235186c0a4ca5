"""UFACTORY xArm, 850 and Lite 6 by way of the vendor's SDK: joint positions in servo mode.

In servo mode the controller goes straight for the last position it was sent, with checks of its own on limits and
collisions; where nothing more comes it stands there. Source: xArm-Python-SDK 1.18 (`wrapper/xarm_api.py`).
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from ...errors import ControlError, EnvironmentMissing
from ..robot.robots import RobotModel
from ..robot.transforms import Array
from .driver import Pacer
from .streaming import ArmState, StreamingDriver

SERVO_MODE, READY, STOPPED = 1, 0, 4
"""Mode of the controller, and its states."""

COMMAND_TIMEOUT = 0.1
"""How long [s] the controller may take to answer."""

GRIPPER_CHANGE = 0.01
"""Change of the opening from which on it is sent: a call of the gripper takes longer than one of the arm."""

_UNIT_SLACK = 1e-3


class XArmEndpoint:
    """The wire to a UFACTORY arm."""

    rate_hz = 100.0

    def __init__(
        self,
        host: str,
        num_joints: int,
        *,
        gripper: tuple[float, float] | None = None,
        connect: Callable[[str], Any] | None = None,
    ) -> None:
        """Prepare.

        Args:
            host: address of the controller.
            num_joints: of the robot model.
            gripper: positions of the xArm gripper closed and open (0 and 850 as delivered); None for none.
            connect: makes the SDK's object from the address, None for `XArmAPI`.

        Raises:
            EnvironmentMissing: the SDK is not installed.
        """
        self._host, self._num_joints, self._range = host, num_joints, gripper
        self._connect = connect or _sdk()
        self._arm: Any = None
        self._opening: float | None = None

    def open(self) -> None:
        """Connect, and compare number and unit of the joints."""
        try:
            self._arm = arm = self._connect(self._host)
        except Exception as error:  # the SDK raises bare Exception
            raise ControlError(
                f"The arm at {self._host} cannot be reached ({error}); check the address and the network."
            ) from error
        if not arm.connected:
            raise ControlError(f"The arm at {self._host} did not answer; check the address and the network.")
        arm.set_timeout(COMMAND_TIMEOUT)
        if arm.axis != self._num_joints:
            raise ControlError(f"The robot model has {self._num_joints} joints, the arm has {arm.axis}; load its URDF.")
        radians = np.array(self._value(arm.get_servo_angle(is_radian=True), "get_servo_angle")[: self._num_joints])
        degrees = np.array(self._value(arm.get_servo_angle(is_radian=False), "get_servo_angle")[: self._num_joints])
        if not np.allclose(np.degrees(radians), degrees, atol=math.degrees(_UNIT_SLACK)):
            raise ControlError(f"The SDK reports {radians} rad and {degrees} degrees; expected the same; update it.")

    def read(self) -> ArmState:
        """Ask for joints and speeds."""
        arm = self._connected()
        positions, velocities = self._value(arm.get_joint_states(is_radian=True, num=2), "get_joint_states")[:2]
        return ArmState(
            positions=np.array(positions[: self._num_joints], dtype=np.float64),
            velocities=np.array(velocities[: self._num_joints], dtype=np.float64),
            gripper=self._opening,
            fault=self._fault(),
        )

    def begin(self, state: ArmState) -> None:
        """Switch on the motors and enter servo mode."""
        arm = self._connected()
        self._done(arm.motion_enable(enable=True), "motion_enable")
        if self._range is not None:
            self._done(arm.set_gripper_enable(True), "set_gripper_enable")
            self._done(arm.set_gripper_mode(0), "set_gripper_mode")
            closed, opened = self._range
            position = float(self._value(arm.get_gripper_position(), "get_gripper_position"))
            self._opening = (position - closed) / (opened - closed)
        self._done(arm.set_mode(SERVO_MODE), "set_mode")
        self._done(arm.set_state(READY), "set_state")

    def write(self, positions: Array, gripper: float) -> None:
        """Send joint positions; the gripper's where it has changed."""
        arm = self._connected()
        self._done(arm.set_servo_angle_j(positions.tolist(), is_radian=True), "set_servo_angle_j")
        if self._range is not None and (self._opening is None or abs(gripper - self._opening) >= GRIPPER_CHANGE):
            closed, opened = self._range
            self._done(
                arm.set_gripper_position(closed + gripper * (opened - closed), wait=False), "set_gripper_position"
            )
            self._opening = gripper

    def hold(self) -> None:
        """Stop the arm; its brakes stay open and it holds."""
        self._done(self._connected().set_state(STOPPED), "set_state")

    def close(self) -> None:
        """Disconnect."""
        if self._arm is not None:
            arm, self._arm = self._arm, None
            arm.disconnect()

    def _connected(self) -> Any:
        if self._arm is None:
            raise ControlError("There is no connection to the arm; call connect first.")
        return self._arm

    def _fault(self) -> str:
        """Return the controller's error, if there is one."""
        error = self._connected().error_code
        return f"controller error C{error}; clear it in UFACTORY Studio or by clean_error()" if error else ""

    def _value(self, answer: tuple[int, Any], call: str) -> Any:
        """Return what came with code 0."""
        code, value = answer
        self._done(code, call)
        return value

    def _done(self, code: int | None, call: str) -> None:
        """Refuse a code that is not 0."""
        if code not in (0, None):
            fault = self._fault()
            raise ControlError(f"The arm answered {call} with code {code}{': ' + fault if fault else ''}.")


def _sdk() -> Callable[[str], Any]:
    """Return what connects by the vendor's SDK.

    Raises:
        EnvironmentMissing: it is not installed.
    """
    try:
        wrapper = importlib.import_module("xarm.wrapper")
    except ImportError as error:
        raise EnvironmentMissing("The xArm driver needs the vendor's SDK: pip install 'gr2[xarm]'.") from error
    return lambda host: wrapper.XArmAPI(host, is_radian=True)


def xarm_driver(
    robot: RobotModel,
    host: str,
    *,
    gripper: tuple[float, float] | None = None,
    pacer: Pacer | None = None,
    max_lost: int = 0,
) -> StreamingDriver:
    """Return a driver of a UFACTORY arm.

    Args:
        robot: the arm's model.
        host: address of the controller.
        gripper: positions of the xArm gripper closed and open (0 and 850 as delivered); None for none.
        pacer: sets the rate, None for 100 Hz.
        max_lost: answers in a row that may be missing.

    Raises:
        EnvironmentMissing: the SDK is not installed.
    """
    endpoint = XArmEndpoint(host, robot.num_joints, gripper=gripper)
    return StreamingDriver(robot, endpoint, pacer=pacer, max_lost=max_lost)
