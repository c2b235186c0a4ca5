"""The xArm driver against a stand-in for the vendor's SDK, with the signatures and answers of its version 1.18."""

from __future__ import annotations

import sys
import types
from typing import Any

import numpy as np
import pytest
from wbc_cases import Clock, short_arm, stretched

from gr2.contracts import JointCommand
from gr2.errors import ControlError, EnvironmentMissing
from gr2.wbc.drivers.streaming import StreamingDriver
from gr2.wbc.drivers.xarm import XArmEndpoint, xarm_driver

ARM = short_arm("joint1", "joint2", "joint3", "joint4", "joint5", "joint6")


class Sdk:
    """The controller as `XArmAPI` shows it: codes first, seven joints whatever the arm, radians on request."""

    axis, connected = 6, True

    def __init__(self, port: str | None = None, is_radian: bool = False, do_not_open: bool = False, **kwargs: Any):
        self.log: list[tuple[Any, ...]] = []
        self.q = np.zeros(7)
        self.q[:6] = ARM.home
        self.mode, self.state, self.enabled, self.error_code = 0, 4, False, 0
        self.gripper, self.degrees_wrong, self.code = 425.0, False, 0

    def set_timeout(self, timeout: float) -> None:
        self.log.append(("timeout", timeout))

    def get_servo_angle(self, servo_id: Any = None, is_radian: Any = None, is_real: bool = False) -> Any:
        return 0, (self.q if is_radian or self.degrees_wrong else np.degrees(self.q)).tolist()

    def get_joint_states(self, is_radian: Any = None, num: int = 3) -> Any:
        assert is_radian is True and num == 2
        return self.code, [self.q.tolist(), [0.0] * 7]

    def motion_enable(self, enable: bool = True, servo_id: Any = None) -> int:
        self.enabled = enable
        return 0

    def set_mode(self, mode: int = 0, detection_param: int = 0) -> int:
        self.mode = mode
        return 0

    def set_state(self, state: int = 0) -> int:
        self.state = state
        self.log.append(("state", state))
        return 0

    def set_servo_angle_j(
        self,
        angles: Any,
        speed: Any = None,
        mvacc: Any = None,
        mvtime: Any = None,
        is_radian: Any = None,
        **kwargs: Any,
    ) -> int:
        assert (self.mode, self.state, self.enabled, is_radian) == (1, 0, True, True) and len(angles) == 6
        if self.error_code:
            return 1
        self.q[:6] = angles
        return 0

    def set_gripper_enable(self, enable: bool, **kwargs: Any) -> int:
        return 0

    def set_gripper_mode(self, mode: int, **kwargs: Any) -> int:
        return 0

    def get_gripper_position(self, **kwargs: Any) -> Any:
        return 0, self.gripper

    def set_gripper_position(
        self,
        pos: float,
        wait: bool = False,
        speed: Any = None,
        auto_enable: bool = False,
        timeout: Any = None,
        **kwargs: Any,
    ) -> int:
        assert not wait
        self.gripper = pos
        self.log.append(("gripper", pos))
        return 0

    def disconnect(self) -> None:
        self.log.append(("disconnect",))


def _driver(sdk: Sdk, **options: Any) -> StreamingDriver:
    endpoint = XArmEndpoint("10.0.0.2", 6, connect=lambda host: sdk, **options)
    return StreamingDriver(ARM, endpoint, pacer=Clock().pacer(100.0))


def test_an_arm_follows_a_chunk_in_servo_mode_and_is_stopped() -> None:
    sdk = Sdk()
    with _driver(sdk) as driver:
        loop, target = stretched(driver)
        assert loop.stop_reason == "" and loop.max_following_error < 1e-9
        np.testing.assert_allclose(sdk.q[:6], target, atol=5e-3)
    assert sdk.log == [("timeout", 0.1), ("state", 0), ("state", 4), ("disconnect",)]


def test_the_gripper_is_commanded_where_it_changes() -> None:
    sdk = Sdk()
    with _driver(sdk, gripper=(0.0, 850.0)) as driver:
        assert driver.read().gripper == 1.0
        for gripper in (0.5, 0.505, 0.2, 0.2):
            driver.send(JointCommand(positions=ARM.home, velocities=0.0 * ARM.home, gripper=gripper, status="track"))
        assert [entry[1] for entry in sdk.log if entry[0] == "gripper"] == [pytest.approx(170.0)]
        assert driver.read().gripper == pytest.approx(0.2)


def test_an_arm_that_cannot_be_the_models_is_refused() -> None:
    sdk = Sdk()
    sdk.axis = 7
    with pytest.raises(ControlError, match="has 7; load its URDF"):
        _driver(sdk).connect()
    sdk = Sdk()
    sdk.degrees_wrong = True
    with pytest.raises(ControlError, match="expected the same"):
        _driver(sdk).connect()
    sdk = Sdk()
    sdk.error_code = 22
    with pytest.raises(ControlError, match="controller error C22"):
        _driver(sdk).connect()
    assert not sdk.enabled and sdk.log[-1] == ("disconnect",)
    sdk = Sdk()
    sdk.connected = False
    with pytest.raises(ControlError, match="did not answer"):
        _driver(sdk).connect()

    def unreachable(host: str) -> Any:
        raise Exception("connect socket failed")

    with pytest.raises(ControlError, match=r"10\.0\.0\.2 cannot be reached \(connect socket failed\)"):
        XArmEndpoint("10.0.0.2", 6, connect=unreachable).open()


def test_errors_and_lost_answers_stop_the_arm() -> None:
    sdk = Sdk()
    with _driver(sdk) as driver:
        loop, _ = stretched(driver, duration=0.2)
        sdk.error_code = 31
        with pytest.raises(ControlError, match="code 1: controller error C31"):
            loop.run(0.2)
        assert loop.over and sdk.state == 4
    sdk = Sdk()
    with _driver(sdk) as driver:
        loop, _ = stretched(driver, duration=0.2)
        sdk.code = -8
        with pytest.raises(ControlError, match="get_joint_states with code -8"):
            loop.run(0.2)
        assert sdk.state == 4


def test_the_sdk_is_found_or_its_absence_named(monkeypatch: pytest.MonkeyPatch) -> None:
    wrapper: Any = types.ModuleType("xarm.wrapper")
    wrapper.XArmAPI = Sdk
    monkeypatch.setitem(sys.modules, "xarm", types.ModuleType("xarm"))
    monkeypatch.setitem(sys.modules, "xarm.wrapper", wrapper)
    driver = xarm_driver(ARM, "10.0.0.2", pacer=Clock().pacer(100.0))
    with driver:
        np.testing.assert_allclose(driver.read().positions, ARM.home)
    monkeypatch.setitem(sys.modules, "xarm.wrapper", None)
    with pytest.raises(EnvironmentMissing, match=r"pip install 'gr2\[xarm\]'"):
        xarm_driver(ARM, "10.0.0.2")
