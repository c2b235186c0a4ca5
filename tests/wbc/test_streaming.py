"""The driver that arms with a stream of joint positions share: what it refuses, and when it stops the arm."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from wbc_cases import Clock, short_arm, stretched

from gr2.contracts import JointCommand
from gr2.errors import ControlError
from gr2.wbc.drivers.streaming import ArmState, StreamingDriver
from gr2.wbc.robot.robots import kinova_gen3

ARM = short_arm("a", "b", "c", "d", "e", "f")


class Endpoint:
    """An arm that is where it was told to be, and notes what was asked of it."""

    rate_hz = 200.0

    def __init__(self, start: np.ndarray = ARM.home) -> None:
        self.positions, self.velocities = start.copy(), 0.0 * start
        self.calls: list[str] = []
        self.gripper: float | None = None
        self.fault, self.lose = "", 0
        self.interrupted = False

    def open(self) -> None:
        self.calls.append("open")

    def read(self) -> ArmState:
        if self.lose:
            self.lose -= 1
            raise ControlError("no answer")
        return ArmState(positions=self.positions, velocities=self.velocities, gripper=self.gripper, fault=self.fault)

    def begin(self, state: ArmState) -> None:
        self.calls.append("begin")

    def write(self, positions: np.ndarray, gripper: float) -> None:
        if self.interrupted:
            raise KeyboardInterrupt
        self.calls.append("write")
        self.positions = positions.copy()

    def hold(self) -> None:
        self.calls.append("hold")

    def close(self) -> None:
        self.calls.append("close")


def _driver(endpoint: Endpoint, robot: Any = ARM, **options: Any) -> StreamingDriver:
    return StreamingDriver(robot, endpoint, pacer=Clock().pacer(200.0), **options)


def _command(positions: np.ndarray, gripper: float = 1.0) -> JointCommand:
    return JointCommand(positions=positions, velocities=0.0 * positions, gripper=gripper, status="track")


def test_an_arm_follows_a_chunk_and_holds_at_the_end() -> None:
    endpoint = Endpoint()
    with _driver(endpoint) as driver:
        loop, target = stretched(driver)
        assert loop.stop_reason == "" and loop.max_following_error < 1e-9
        np.testing.assert_allclose(driver.read().positions, target, atol=5e-3)
    assert endpoint.calls[:2] == ["open", "begin"] and endpoint.calls[-2:] == ["hold", "close"]


def test_ctrl_c_makes_the_arm_hold() -> None:
    endpoint = Endpoint()
    endpoint.interrupted = True
    with pytest.raises(KeyboardInterrupt), _driver(endpoint) as driver:
        driver.send(_command(ARM.home))
    assert endpoint.calls[-2:] == ["hold", "close"]


@pytest.mark.parametrize(
    ("positions", "velocities", "fault", "match"),
    [
        (np.degrees(ARM.home), 0.0, "", "in radians"),
        (ARM.home[[0, 1, 2, 5, 4, 3]], 0.0, "", "the order of its joints"),
        (ARM.home[:5], 0.0, "", "reports 5"),
        (np.full(6, np.nan), 0.0, "", "finite"),
        (ARM.home, 0.2, "", "moves at 0.20"),
        (ARM.home, 0.0, "too hot", "fault: too hot"),
    ],
)
def test_what_cannot_be_this_arm_is_refused_before_anything_is_switched_on(
    positions: np.ndarray, velocities: float, fault: str, match: str
) -> None:
    endpoint = Endpoint(positions)
    endpoint.velocities, endpoint.fault = np.full(len(positions), velocities), fault
    driver = _driver(endpoint)
    with pytest.raises(ControlError, match=match):
        driver.connect()
    assert endpoint.calls == ["open", "close"]
    with pytest.raises(ControlError, match="connect first"):
        driver.send(_command(ARM.home))


def test_commands_that_are_no_continuation_or_beyond_a_limit_are_not_sent() -> None:
    start = ARM.home.copy()
    start[1] = ARM.upper[1] + 0.02
    endpoint = Endpoint(start)
    with _driver(endpoint) as driver:
        beyond = start.copy()
        beyond[1] += 0.01
        for bad in (start + 0.051, start[:5], np.full(6, np.nan), beyond):
            with pytest.raises(ControlError, match="send: expected"):
                driver.send(_command(bad))
        with pytest.raises(ControlError, match="gripper"):
            driver.send(_command(start, gripper=np.nan))
        assert "write" not in endpoint.calls
        driver.send(_command(start))
        with pytest.raises(ControlError, match="within"):
            driver.send(_command(start - 2.1 * ARM.velocity / 200.0))


def test_a_lost_answer_stops_the_arm_unless_some_are_borne() -> None:
    endpoint = Endpoint()
    with _driver(endpoint) as driver:
        endpoint.lose = 1
        with pytest.raises(ControlError, match="no answer"):
            driver.send(_command(ARM.home))
        assert endpoint.calls[-1] == "hold"
        with pytest.raises(ControlError, match="connect first"):
            driver.send(_command(ARM.home))
    endpoint = Endpoint()
    with _driver(endpoint, max_lost=2) as driver:
        endpoint.lose = 2
        for _ in range(3):
            driver.send(_command(ARM.home))
        assert driver.lost == 2 and "hold" not in endpoint.calls


def test_a_fault_ends_the_motion_and_is_named() -> None:
    endpoint = Endpoint()
    with _driver(endpoint) as driver:
        loop, _ = stretched(driver, duration=0.2)
        endpoint.fault = "overload"
        assert "overload" in loop.run(0.2)
        assert endpoint.calls[-1] == "hold"
        assert driver.read().fault == "overload"


def test_joints_without_stops_go_on_past_a_turn() -> None:
    robot = kinova_gen3()
    start = robot.home.copy()
    start[6] = 3.1
    endpoint = Endpoint(start)
    with _driver(endpoint, robot) as driver:
        turned = start.copy()
        turned[6] = 3.11
        driver.send(_command(turned))
        endpoint.positions[6] -= 2.0 * np.pi
        driver.send(_command(turned))
        endpoint.write = lambda positions, gripper: None  # type: ignore[method-assign]
        endpoint.positions = turned - 2.0 * np.pi * np.eye(7)[6]
        driver.send(_command(turned))
        np.testing.assert_allclose(driver.read().positions, turned)
