"""Drivers and the loop that feeds them: interpolation, misses, faults, pybullet, and the Kinova protocol."""

from __future__ import annotations

import dataclasses
import math
import sys
import threading
import types
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from gr2.contracts import ActionTrajectory, JointCommand
from gr2.errors import ConfigError, ControlError, EnvironmentMissing
from gr2.wbc.controller import WholeBodyController
from gr2.wbc.drivers.bullet import BulletDriver
from gr2.wbc.drivers.driver import Measurement, Pacer
from gr2.wbc.drivers.kortex import KortexDriver, to_degrees, unwrapped
from gr2.wbc.drivers.kortex_endpoint import Feedback, Frame, describe_faults
from gr2.wbc.drivers.live import LiveLoop
from gr2.wbc.drivers.lookahead import LookAhead
from gr2.wbc.drivers.loop import ControlLoop
from gr2.wbc.limits import velocity_box
from gr2.wbc.robot.kinematics import Kinematics
from gr2.wbc.robot.robots import RobotModel, kinova_gen3, panda
from gr2.wbc.robot.transforms import quaternion_from_matrix

DT = 0.005
GEN3 = kinova_gen3()


def _tick(positions: np.ndarray, velocities: np.ndarray | None = None, status: str = "track") -> JointCommand:
    still = np.zeros_like(positions) if velocities is None else velocities
    return JointCommand(positions=positions, velocities=still, gripper=1.0, status=status)


def _chunk(robot: RobotModel, start: float = 0.0, offset: Any = (0.03, 0.02, -0.02)) -> ActionTrajectory:
    """Ten poses from the home pose on, moving by `offset` [m] to rest in 0.6 s."""
    tool = Kinematics(robot).forward(robot.home).tool
    time = np.linspace(0.1, 1.0, 10)[:, None]
    share = time**3 * (10.0 - 15.0 * time + 6.0 * time**2)
    return ActionTrajectory(
        positions=tool[:3, 3] + share * np.asarray(offset),
        quaternions=np.tile(quaternion_from_matrix(tool[:3, :3]), (10, 1)),
        gripper=np.linspace(1.0, 0.5, 10),
        dt=0.06,
        start_time=start,
    )


class Script:
    """A controller that moves every joint as a function of time [s] from where it was reset."""

    def __init__(self, motion: Callable[[float], float], robot: RobotModel = GEN3) -> None:
        self.robot, self.dt, self.motion = robot, DT, motion
        self.measured: list[np.ndarray] = []
        self.stopped = 0
        self.fails_at = math.inf

    def reset(self, joint_positions: np.ndarray, gripper: float, time: float) -> None:
        self.begin, self.last = np.array(joint_positions), np.array(joint_positions)

    def accept(self, trajectory: ActionTrajectory) -> str:
        return "accepted"

    def step(self, time: float, measured: np.ndarray | None = None) -> JointCommand:
        if time >= self.fails_at:
            raise ControlError("no way out")
        assert measured is not None
        self.measured.append(self.last - measured)
        self.last = self.begin + self.motion(time + self.dt)
        return _tick(self.last)

    def emergency_stop(self) -> None:
        self.stopped += 1


class Arm:
    """A driver that is where it was commanded to be, `lag` commands ago, and notes every command."""

    def __init__(self, rate_hz: float = 1000.0, lag: int = 0, robot: RobotModel = GEN3) -> None:
        self.robot, self.rate_hz, self.lag = robot, rate_hz, lag
        self.commands: list[JointCommand] = [_tick(robot.home)]
        self.stops = 0
        self.fault = ""
        self.breaks_at = -1
        self.jammed: np.ndarray | None = None
        self.pause: Callable[[], None] = lambda: None

    def connect(self) -> None: ...

    def read(self) -> Measurement:
        if self.jammed is not None:
            return Measurement(time=0.0, positions=self.jammed, velocities=0.0 * self.jammed, gripper=1.0)
        at = self.commands[max(len(self.commands) - 1 - self.lag, 0)]
        return Measurement(
            time=0.0, positions=at.positions, velocities=at.velocities, gripper=at.gripper, fault=self.fault
        )

    def send(self, command: JointCommand) -> None:
        if len(self.commands) == self.breaks_at:
            raise ControlError("cable pulled")
        self.pause()
        self.commands.append(command)

    def stop(self) -> None:
        self.stops += 1

    def close(self) -> None: ...

    @property
    def positions(self) -> np.ndarray:
        return np.array([c.positions for c in self.commands])


# Interpolation


def _wild_ticks(robot: RobotModel, count: int, seed: int) -> np.ndarray:
    """Ticks `[count j]` whose speed changes as abruptly as the limits allow, often at a limit."""
    rng = np.random.default_rng(seed)
    q, dq, ticks = robot.home, np.zeros(robot.num_joints), [robot.home]
    wish = dq
    for index in range(count - 1):
        if index % 40 == 0:
            wish = robot.velocity * rng.choice([-1.0, 0.0, 1.0, 3.0, -3.0], robot.num_joints)
        box = velocity_box(q, dq, robot.lower, robot.upper, robot.velocity, robot.acceleration, robot.acceleration, DT)
        dq = np.clip(wish, *box)
        q = q + dq * DT
        ticks.append(q)
    return np.array(ticks)


def _filled(robot: RobotModel, ticks: np.ndarray) -> LookAhead:
    ahead = LookAhead(robot, DT, _tick(ticks[0]))
    for positions in ticks[1:]:
        assert ahead.append(_tick(positions))
    return ahead


@pytest.mark.parametrize("robot", [GEN3, panda()], ids=lambda r: r.name)
@pytest.mark.parametrize("rate_hz", [240.0, 1000.0, 333.0])
def test_interpolation_keeps_ticks_and_limits(robot: RobotModel, rate_hz: float) -> None:
    ticks = _wild_ticks(robot, 1500, seed=2)
    ahead = _filled(robot, ticks)
    assert np.any(np.isclose(np.abs(np.diff(ticks, axis=0)) / DT, robot.velocity))
    limited = np.isfinite(robot.upper)
    assert np.any(np.minimum(ticks - robot.lower, robot.upper - ticks)[:, limited] < 1e-3)
    times = np.arange(1, int((len(ticks) - 2) * DT * rate_hz)) / rate_hz
    commands = [ahead.sample(time) for time in times]
    velocities = np.array([c.velocities for c in commands])
    positions = np.array([c.positions for c in commands])
    assert np.all(np.abs(velocities) <= robot.velocity * (1 + 1e-9))
    assert np.all((positions >= robot.lower) & (positions <= robot.upper))
    assert np.all(np.abs(np.diff(positions, axis=0)) * rate_hz <= robot.velocity * (1 + 1e-9))
    for time, command in zip(times, commands, strict=True):
        index = round(time / DT)
        if abs(time - index * DT) < 1e-9:
            np.testing.assert_allclose(command.positions, ticks[index], atol=1e-9)


def test_interpolation_is_continuous_in_velocity() -> None:
    ticks = _wild_ticks(GEN3, 400, seed=3)
    ahead, step = _filled(GEN3, ticks), 1e-6
    for index in range(1, 397):
        before, at, after = (ahead.sample(index * DT + shift) for shift in (-step, 0.0, step))
        np.testing.assert_allclose(before.velocities, after.velocities, atol=40.0 * 2 * step + 1e-9)
        numeric = (after.positions - before.positions) / (2 * step)
        np.testing.assert_allclose(numeric, at.velocities, atol=1e-4)


def test_constant_acceleration_is_reproduced_exactly() -> None:
    acceleration = GEN3.acceleration * 0.5

    def exact(time: float) -> np.ndarray:
        return GEN3.home + 0.5 * acceleration * time**2

    ahead = _filled(GEN3, np.array([exact(i * DT) for i in range(40)]))
    for time in np.arange(0.0101, 0.18, 0.00137):
        command = ahead.sample(time)
        np.testing.assert_allclose(command.positions, exact(time), atol=1e-12)
        np.testing.assert_allclose(command.velocities, acceleration * time, atol=1e-9)


def test_a_joint_that_touches_its_stop_does_not_pass_it_between_ticks() -> None:
    robot, change = panda(), panda().acceleration * DT
    speeds = [2.0, 1.0, 0.0, 0.0, -1.0, -2.0, -2.0]
    ticks = np.cumsum([np.zeros(7)] + [share * change * DT for share in speeds], axis=0)
    ticks += robot.upper - ticks.max(axis=0)
    ahead = _filled(robot, ticks)
    commands = [ahead.sample(time) for time in np.arange(0.0001, 0.03, 0.0001)]
    positions, velocities = (np.array([getattr(c, name) for c in commands]) for name in ("positions", "velocities"))
    np.testing.assert_allclose(np.diff(positions, axis=0) / 1e-4, 0.5 * (velocities[1:] + velocities[:-1]), atol=2e-4)


@pytest.mark.parametrize("keep", [True, False])
def test_a_brake_is_as_smooth_as_the_motion(keep: bool) -> None:
    robot = panda()
    ticks = _wild_ticks(robot, 700, seed=5)[:690]
    ahead = _filled(robot, ticks)
    for time in np.arange(1, 3380) / 1000.0:
        before = ahead.sample(time)
    ahead.brake(robot.acceleration, keep=keep, status="stopped")
    assert not ahead.append(_tick(ticks[0]))
    times = np.arange(3380, 4200) / 1000.0
    commands = [ahead.sample(time) for time in times]
    velocities = np.array([before.velocities] + [c.velocities for c in commands])
    assert np.all(np.abs(velocities) <= robot.velocity * (1 + 1e-9))
    assert np.all(np.abs(np.diff(velocities, axis=0)) * 1000.0 <= 4.0 * robot.acceleration)
    np.testing.assert_allclose(velocities[-1], 0.0, atol=1e-12)
    assert ahead.at_rest(times[-1]) and not ahead.at_rest(3.39)
    np.testing.assert_array_equal(ahead.sample(9.0).positions, commands[-1].positions)
    if keep:
        assert any(np.allclose(c.positions, ticks[689], atol=1e-9) for c in commands)


def test_sampling_out_of_order_or_ahead_is_refused() -> None:
    ahead = _filled(GEN3, np.tile(GEN3.home, (10, 1)))
    assert ahead.covers(0.04) and not ahead.covers(0.0401)
    ahead.sample(0.03)
    for time in (0.0401, 0.01):
        with pytest.raises(ValueError, match="in order"):
            ahead.sample(time)


# The loop


def _sine(time: float) -> float:
    return 0.1 * (1.0 - math.cos(4.0 * time))


@pytest.mark.parametrize("rate_hz", [100.0, 200.0, 240.0, 1000.0])
def test_commands_are_due_when_they_are_sent(rate_hz: float) -> None:
    arm = Arm(rate_hz)
    loop = ControlLoop(Script(_sine), arm)
    loop.start()
    assert loop.run(1.0) == ""
    assert len(arm.commands) == 1 + round(rate_hz) and loop.time == pytest.approx(1.0)
    times = np.arange(len(arm.commands)) / rate_hz
    expected = GEN3.home + np.array([_sine(t) for t in times])[:, None]
    np.testing.assert_allclose(arm.positions, expected, atol=2e-5)
    assert loop.counters["misses"] == 0
    assert loop.max_following_error == 0.0


def test_measured_joints_are_compared_with_the_command_of_their_own_time() -> None:
    speed, lag = 0.5, 12
    script, arm = Script(lambda time: speed * max(time - 0.1, 0.0)), Arm(1000.0, lag=lag)
    loop = ControlLoop(script, arm, lookahead=0.02)
    loop.start()
    loop.run(0.5)
    np.testing.assert_allclose(script.measured[-1], speed * lag / 1000.0, atol=1e-9)
    assert loop.max_following_error == pytest.approx(speed * lag / 1000.0, rel=0.05)


def _publish(loop: ControlLoop, count: int) -> None:
    for _ in range(count):
        loop.publish()


def test_late_ticks_are_bridged_by_the_buffer_and_counted() -> None:
    script, arm = Script(_sine), Arm(1000.0)
    loop = ControlLoop(script, arm, lookahead=0.05)
    loop.start()
    loop.run(0.2)
    for late in range(1, 6):
        _publish(loop, 5 + (late == 1))
        assert loop.consecutive_misses == late
    assert loop.run(0.2) == ""
    assert (loop.counters["misses"], loop.consecutive_misses) == (5, 0)
    expected = GEN3.home + np.array([_sine(t / 1000.0) for t in range(len(arm.commands))])[:, None]
    np.testing.assert_allclose(arm.positions, expected, atol=2e-5)


@pytest.mark.parametrize(("lookahead", "reason"), [(0.06, "6 ticks in a row"), (0.02, "used up")])
def test_a_silent_controller_ends_in_a_controlled_stop(lookahead: float, reason: str) -> None:
    script, arm = Script(lambda time: 2.4 * time * time if time < 0.25 else 0.15 + 1.2 * (time - 0.25)), Arm(1000.0)
    loop = ControlLoop(script, arm, lookahead=lookahead)
    loop.start()
    loop.run(0.3)
    buffered = loop._buffer.tick(loop._buffer.last).positions
    while not loop.over:
        loop.publish()
    assert reason in loop.stop_reason
    assert arm.stops == 1
    assert np.abs(arm.positions - buffered).max(axis=1).min() < 1e-9, "the buffered ticks were not published"
    velocities = np.array([c.velocities for c in arm.commands])
    assert np.all(np.abs(np.diff(velocities, axis=0)[1:]) * 1000.0 <= 4.0 * GEN3.acceleration)
    np.testing.assert_allclose(velocities[-1], 0.0, atol=1e-9)
    assert not loop.produce() and script.stopped == 1
    assert loop.accept(_chunk(GEN3)) == "rejected_stopped"
    with pytest.raises(ControlError, match="call start"):
        loop.publish()
    loop.start()
    assert loop.run(0.05) == "" and loop.counters["misses"] > 0


def test_a_requested_stop_does_not_wait_for_the_buffer() -> None:
    arm = Arm(1000.0)
    loop = ControlLoop(Script(lambda time: 1.2 * max(0.0, time - 0.1)), arm, lookahead=0.1)
    loop.start()
    loop.run(0.3)
    moving = np.abs(arm.commands[-1].velocities).max()
    loop.stop("enough")
    assert loop.run(1.0) == "enough"
    assert moving > 1.0 and len(arm.commands) < 301 + 5 + 1000 * 1.2 / 13.0 + 11


def test_a_driver_fault_ends_the_loop_at_once() -> None:
    script, arm = Script(_sine), Arm(240.0)
    loop = ControlLoop(script, arm)
    loop.start()
    loop.run(0.1)
    arm.fault = "following error"
    sent = len(arm.commands)
    assert "following error" in loop.run(1.0)
    assert len(arm.commands) == sent + 1 and arm.stops == 1
    with pytest.raises(ControlError, match="clear it"):
        loop.start()


def test_a_driver_that_breaks_is_stopped_and_named() -> None:
    arm = Arm(240.0)
    loop = ControlLoop(Script(_sine), arm)
    loop.start()
    arm.breaks_at = 30
    with pytest.raises(ControlError, match="cable pulled"):
        loop.run(1.0)
    assert arm.stops == 1 and loop.over and "cable" in loop.stop_reason


@pytest.mark.parametrize("kind", ["raises", "nan", "jump"])
def test_a_controller_that_fails_ends_in_a_stop(kind: str) -> None:
    bad = {"raises": 0.0, "nan": math.nan, "jump": 0.1}[kind]
    script, arm = Script(lambda time: _sine(time) + (bad if time > 0.3 else 0.0)), Arm(1000.0)
    script.fails_at = 0.3 if kind == "raises" else math.inf
    loop = ControlLoop(script, arm)
    loop.start()
    with pytest.raises(ControlError, match="controller failed"):
        loop.run(1.0)
    assert np.all(np.isfinite(arm.positions))
    assert np.all(np.abs(np.diff(arm.positions, axis=0)) * 1000.0 <= GEN3.velocity * (1 + 1e-9))
    np.testing.assert_allclose(arm.commands[-1].velocities, 0.0, atol=1e-9)


def test_misuse_of_the_loop_is_named() -> None:
    with pytest.raises(ConfigError, match="lookahead"):
        ControlLoop(Script(_sine), Arm(240.0), lookahead=0.004)
    loop = ControlLoop(Script(_sine), Arm())
    with pytest.raises(ControlError, match="start"):
        loop.publish()
    arm = Arm()
    arm.commands = [_tick(GEN3.home + np.array([0, 3.0, 0, 0, 0, 0, 0]))]
    with pytest.raises(ControlError, match="limits"):
        ControlLoop(WholeBodyController(GEN3), arm).start()


def test_an_arm_beyond_a_limit_is_driven_back_within_the_limits() -> None:
    arm = Arm(1000.0)
    q = GEN3.home.copy()
    q[1] = GEN3.upper[1] + 0.05
    arm.commands = [_tick(q)]
    loop = ControlLoop(WholeBodyController(GEN3), arm)
    loop.start()
    assert loop.run(1.0) == ""
    np.testing.assert_allclose(arm.positions[1], q, atol=1e-4)
    speeds = np.abs(np.diff(arm.positions, axis=0)) * 1000.0
    assert np.all(speeds <= GEN3.velocity * (1 + 1e-9))
    assert GEN3.upper[1] - 1e-3 < arm.positions[-1, 1] <= GEN3.upper[1]


def test_a_loop_takes_joints_without_stops_in_any_turn() -> None:
    arm = Arm(1000.0)
    read = arm.read

    def wrapped() -> Measurement:
        seen = read()
        return dataclasses.replace(seen, positions=seen.positions + 2.0 * np.pi * np.isinf(GEN3.upper))

    loop = ControlLoop(WholeBodyController(GEN3), arm)
    loop.start()
    arm.read = wrapped  # type: ignore[method-assign]
    assert loop.accept(_chunk(GEN3)) == "accepted"
    assert loop.run(1.0) == "" and loop.max_following_error < 1e-3


def test_a_jammed_arm_is_stopped_at_five_degrees() -> None:
    arm = Arm(1000.0)
    loop = ControlLoop(WholeBodyController(GEN3), arm)
    loop.start()
    assert loop.accept(_chunk(GEN3, offset=(0.2, 0.2, 0.0))) == "accepted"
    loop.run(0.15)
    arm.jammed = arm.commands[-1].positions
    assert "protective_stop" in loop.run(2.0)
    assert loop.over and arm.stops == 1
    reached = np.degrees(np.abs(arm.positions - arm.jammed).max(axis=1))
    assert 5.0 < reached[-1] < 8.0
    assert np.degrees(loop.max_following_error) == pytest.approx(reached[-1], rel=1e-3)


class Clock:
    """A clock that only sleeping, and `busy`, move."""

    def __init__(self) -> None:
        self.now, self.naps = 10.0, []

    def __call__(self) -> float:
        return self.now

    def sleep(self, duration: float) -> None:
        self.naps.append(duration)
        self.now += duration


def test_deadlines_are_one_period_apart_and_never_made_up_in_a_burst() -> None:
    clock = Clock()
    pacer = Pacer(1000.0, clock=clock, sleep=clock.sleep)
    starts = []
    for busy in (0.0002, 0.0, 0.0014, 0.0001, 0.0101, 0.0002, 0.0):
        pacer.wait()
        starts.append(clock.now)
        clock.now += busy
    np.testing.assert_allclose(np.diff(starts) * 1e3, [1.0, 1.0, 1.4, 0.6, 10.1, 1.0], atol=1e-9)
    assert pacer.late == 1
    pacer.restart()
    assert pacer.wait() == 0.0


def test_the_live_loop_feeds_while_ticks_are_slow() -> None:
    """The controller hangs once; the arm is fed on, then braked, and nobody waits for ever."""
    hang, hung = threading.Event(), threading.Event()
    script, arm = Script(_sine), Arm(500.0)
    arm.pause = Pacer(500.0).wait
    step = script.step

    def slow(time: float, measured: np.ndarray | None = None) -> JointCommand:
        if time > 0.15:
            hung.set()
            hang.wait(5.0)
        return step(time, measured)

    script.step = slow
    interval = sys.getswitchinterval()
    loop = ControlLoop(script, arm, lookahead=0.1, max_misses=3)
    with LiveLoop(loop) as live:
        assert live.accept(_chunk(GEN3)) == "accepted"
        assert hung.wait(5.0)
        for _ in range(500):
            if loop.over:
                break
            threading.Event().wait(0.01)
        assert loop.over
        hang.set()
    assert "in a row" in loop.stop_reason and loop.counters["misses"] >= 4
    assert sys.getswitchinterval() == interval
    assert np.all(np.abs(np.diff(arm.positions, axis=0)) * 500.0 <= GEN3.velocity * (1 + 1e-9))
    np.testing.assert_allclose(arm.commands[-1].velocities, 0.0, atol=1e-9)


def test_the_live_loop_raises_what_the_driver_raised() -> None:
    arm = Arm(500.0)
    arm.pause, arm.breaks_at = Pacer(500.0).wait, 20
    live = LiveLoop(ControlLoop(Script(_sine), arm))
    live.start()
    while not live.loop.over:
        threading.Event().wait(0.01)
    live.stop()
    with pytest.raises(ControlError, match="cable pulled"):
        live.accept(_chunk(GEN3))


# pybullet


@pytest.mark.parametrize("rate_hz", [240.0, 1000.0])
@pytest.mark.parametrize("robot", [GEN3, panda()], ids=lambda r: r.name)
def test_the_simulated_arm_follows_a_chunk(robot: RobotModel, rate_hz: float) -> None:
    chunk = _chunk(robot, offset=(0.06, 0.05, -0.04))
    with BulletDriver(robot, rate_hz=rate_hz) as driver:
        loop = ControlLoop(WholeBodyController(robot), driver)
        loop.start()
        assert loop.accept(chunk) == "accepted"
        assert loop.run(1.0) == ""
        reached = Kinematics(robot).forward(driver.read().positions).tool[:3, 3]
    assert np.degrees(loop.max_following_error) < 3.0
    assert np.linalg.norm(reached - chunk.positions[-1]) < 2e-3
    assert loop.counters["commands"] == round(rate_hz)


def test_the_simulated_arm_joins_a_given_world_and_leaves_it() -> None:
    import pybullet

    client = pybullet.connect(pybullet.DIRECT)
    try:
        seen: list[float] = []

        class Fingers(BulletDriver):
            def drive_gripper(self, opening: float) -> None:
                super().drive_gripper(opening)
                seen.append(opening)

        with Fingers(GEN3, client=client, base_position=(0.5, 0.0, 0.2)) as driver:
            base = pybullet.getBasePositionAndOrientation(driver.body, physicsClientId=client)[0]
            height = pybullet.getLinkState(driver.body, driver.joints[0], physicsClientId=client)[4][2]
            driver.send(dataclasses.replace(_tick(GEN3.home), gripper=0.25))
            assert height == pytest.approx(0.2 + GEN3.joint_positions[0, 2], abs=1e-6)
            assert base[0] == pytest.approx(0.5, abs=0.1)
            assert seen == [0.25] and driver.read().gripper == 0.25
        assert pybullet.getNumBodies(physicsClientId=client) == 0
        driver.close()
        with pytest.raises(ControlError, match="connect"):
            driver.send(_tick(GEN3.home))
    finally:
        pybullet.disconnect(client)


# Kinova


class Base:
    """An arm's base as the protocol shows it: float32 degrees in [0, 360), old frames dropped, its own faults."""

    def __init__(self, clock: Clock, start: np.ndarray = GEN3.home) -> None:
        self.clock = clock
        self.degrees = np.degrees(start)
        self.gripper = 0.0
        self.low_level, self.opened, self.closed = False, 0, 0
        self.modes: list[bool] = []
        self.faults: tuple[str, ...] = ()
        self.last_id, self.last_time = 0, -math.inf
        self.ids: list[int] = []
        self.dropped, self.lose = 0, 0

    def open(self) -> None:
        self.opened += 1

    def close(self) -> None:
        self.closed += 1

    def num_actuators(self) -> int:
        return len(self.degrees)

    def set_low_level(self, enabled: bool) -> None:
        self.low_level, self.last_time = enabled, math.inf
        self.modes.append(enabled)
        self.last_id = 0

    def clear_faults(self) -> None:
        self.faults = ()

    def feedback(self) -> Feedback:
        wrapped = np.mod(self.degrees, 360.0).astype(np.float32)
        state = 4 if self.faults else 6 if self.low_level else 7
        return Feedback(
            positions=tuple(float(v) for v in wrapped),
            velocities=(0.0,) * len(wrapped),
            gripper_position=self.gripper,
            arm_state=state,
            faults=self.faults,
        )

    def exchange(self, frame: Frame) -> Feedback:
        assert not self.faults, "frames are not sent to a faulted arm"
        assert all(0.0 <= p < 360.0 and float(np.float32(p)) == p for p in frame.positions)
        if self.lose:
            self.lose -= 1
            raise ControlError("no answer")
        elapsed, self.last_time = self.clock() - self.last_time, self.clock()
        self.ids.append(frame.frame_id)
        if self.low_level and elapsed > 0.02:
            self.faults = describe_faults("actuator 1", 0x400000, 0)
        if not 0 < (frame.frame_id - self.last_id) % 65536 < 32768:
            self.dropped += 1
            return self.feedback()
        self.last_id = frame.frame_id
        error = np.mod(np.array(frame.positions) - self.degrees + 180.0, 360.0) - 180.0
        if np.abs(error).max() > 5.0:
            self.faults = describe_faults("actuator 2", 0x1, 0)
        if self.low_level and not self.faults:
            self.degrees = self.degrees + np.clip(error, -0.1, 0.1)
            assert frame.gripper_position is not None
            self.gripper = frame.gripper_position
        return self.feedback()


def _kinova(start: np.ndarray = GEN3.home, **options: Any) -> tuple[KortexDriver, Base, Clock]:
    clock = Clock()
    base = Base(clock, start)
    pacer = Pacer(1000.0, clock=clock, sleep=clock.sleep)
    return KortexDriver(GEN3, endpoint=base, pacer=pacer, **options), base, clock


def test_angles_survive_the_wire() -> None:
    q = np.linspace(-20.0, 20.0, 4001)
    sent = to_degrees(q)
    assert min(sent) >= 0.0 and max(sent) < 360.0
    assert to_degrees(np.array([-1e-9, 2 * math.pi - 1e-9, 0.0])) == (0.0, 0.0, 0.0)
    np.testing.assert_allclose(unwrapped(sent, q + 0.3), q, atol=1e-6)


def test_a_kinova_follows_a_chunk_and_is_given_back() -> None:
    chunk = _chunk(GEN3)
    driver, base, clock = _kinova()
    with driver:
        assert base.modes == [True]
        begun = clock.now
        loop = ControlLoop(WholeBodyController(GEN3), driver)
        loop.start()
        loop.accept(chunk)
        assert loop.run(1.0) == ""
        measured = driver.read()
        assert measured.fault == "" and measured.gripper == pytest.approx(0.5)
    assert np.linalg.norm(Kinematics(GEN3).forward(measured.positions).tool[:3, 3] - chunk.positions[-1]) < 1e-3
    assert clock.now - begun == pytest.approx(1.0, abs=0.01)
    assert base.modes == [True, False] and (base.opened, base.closed) == (1, 1)
    assert base.dropped == 0 and driver.pacer.late == 0


def test_joints_without_stops_go_round_without_a_jump() -> None:
    start = GEN3.home.copy()
    start[6] = math.pi - 0.1
    driver, _, _ = _kinova(start)
    with driver:
        begin, seen = driver.read().positions, []
        for count in range(1, 6501):
            turned = begin.copy()
            turned[6] += count * 0.001
            driver.send(_tick(turned))
            seen.append(driver.read().positions[6])
    assert begin[6] == pytest.approx(math.pi - 0.1, abs=1e-6)
    assert np.abs(np.diff(seen)).max() < 0.0011
    assert seen[-1] == pytest.approx(begin[6] + 6.5, abs=1e-4)


def test_frame_ids_wrap_and_are_never_old() -> None:
    driver, base, _ = _kinova()
    with driver:
        driver._frame_id = base.last_id = 65530
        for _ in range(12):
            driver.send(_tick(driver.read().positions))
        assert base.ids[-12:] == [65531, 65532, 65533, 65534, 65535, 0, 1, 2, 3, 4, 5, 6]
        assert base.dropped == 0


def test_a_start_away_from_the_arm_is_refused() -> None:
    driver, base, _ = _kinova()
    with driver:
        frames = len(base.ids)
        for bad in (GEN3.home + 0.051, GEN3.home[:6], np.full(7, np.nan)):
            with pytest.raises(ControlError, match="measured joints"):
                driver.send(_tick(bad))
        assert len(base.ids) == frames
        driver.send(_tick(GEN3.home + 0.04))
        with pytest.raises(ControlError, match="measured joints"):
            driver.send(_tick(GEN3.home + 0.045))


def test_nothing_is_commanded_while_a_fault_is_set() -> None:
    driver, base, clock = _kinova()
    with driver:
        loop = ControlLoop(Script(_sine), driver)
        loop.start()
        loop.run(0.05)
        clock.now += 0.5
        assert "communication tick lost" in loop.run(1.0)
        assert base.modes[-1] is False
        with pytest.raises(ControlError, match="connect"):
            driver.send(_tick(driver.read().positions))
        driver.recover()
        assert driver.read().fault == ""
        assert ControlLoop(Script(_sine), driver).start().fault == ""
        base.faults = describe_faults("actuator 3", 0x21, 0x8)
        driver._take(base.feedback())
        frames = len(base.ids)
        with pytest.raises(ControlError, match="actuator 3: following error; actuator 3: maximum torque"):
            driver.send(_tick(driver.read().positions))
        assert len(base.ids) == frames


def test_leaving_low_level_servoing_is_a_fault() -> None:
    driver, base, _ = _kinova()
    with driver:
        base.low_level = False
        driver.send(_tick(driver.read().positions))
        assert "left low-level servoing" in driver.read().fault


def test_a_few_lost_frames_are_borne_and_many_are_not() -> None:
    driver, base, _ = _kinova(max_lost_frames=3)
    with driver:
        q = driver.read().positions
        base.lose = 3
        for _ in range(4):
            driver.send(_tick(q))
        assert driver.lost_frames == 3
        base.lose = 4
        for _ in range(3):
            driver.send(_tick(q))
        with pytest.raises(ControlError, match="no answer"):
            driver.send(_tick(q))


@pytest.mark.parametrize("trouble", ["joints", "fault", "mode"])
def test_sessions_close_when_connecting_fails(trouble: str, monkeypatch: pytest.MonkeyPatch) -> None:
    driver, base, _ = _kinova()
    if trouble == "joints":
        base.degrees = base.degrees[:6]
    if trouble == "fault":
        base.faults = ("base: fault",)
    if trouble == "mode":
        monkeypatch.setattr(base, "set_low_level", lambda enabled: base.modes.append(enabled))
    with pytest.raises(ControlError, match={"joints": "has 6", "fault": "base: fault", "mode": "state 7"}[trouble]):
        driver.connect()
    assert (base.opened, base.closed) == (1, 1)
    with pytest.raises(ControlError, match="session"):
        driver.read()


def test_sessions_close_after_an_error_of_the_caller() -> None:
    driver, base, _ = _kinova()
    with pytest.raises(ZeroDivisionError), driver:
        1 / 0  # noqa: B018
    assert base.modes == [True, False] and base.closed == 1


def test_the_missing_package_and_account_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("KORTEX_USER", "KORTEX_PASSWORD"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(EnvironmentMissing, match="KORTEX_USER and KORTEX_PASSWORD"):
        KortexDriver(GEN3)
    monkeypatch.setitem(sys.modules, "kortex_api", None)
    with pytest.raises(EnvironmentMissing, match=r"kortex_api.*github.com/Kinovarobotics/kortex"):
        KortexDriver(GEN3, user="someone", password="secret")


class _Repeated(list):
    """A repeated field of messages."""

    def add(self) -> types.SimpleNamespace:
        self.append(types.SimpleNamespace())
        return self[-1]


class _Message(types.SimpleNamespace):
    """A message whose fields come into being when they are read."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        value = _Repeated() if name in ("actuators", "motor_cmd") else _Message()
        setattr(self, name, value)
        return value


class _Options:
    timeout_ms = 10000


class Vendor:
    """Stands for the vendor's package: the calls that the endpoint uses, answered by a `Base`."""

    def __init__(self, base: Base) -> None:
        self.base, self.log = base, []
        self.refuse_login_on = 0
        self.timeouts: list[int] = []
        self.commands: list[_Message] = []

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        vendor = self

        class Transport:
            def connect(self, host: str, port: int) -> None:
                self.port = port
                vendor.log.append(("connect", type(self).__name__, host, port))

            def disconnect(self) -> None:
                vendor.log.append(("disconnect", self.port))

        class TCPTransport(Transport):
            pass

        class UDPTransport(Transport):
            pass

        class RouterClient:
            basicErrorCallback = print

            def __init__(self, transport: Transport, callback: Any) -> None:
                self.transport = transport

        class KException(Exception):
            pass

        class SessionManager:
            def __init__(self, router: RouterClient) -> None:
                self.port = router.transport.port

            def CreateSession(self, info: _Message) -> None:
                if self.port == vendor.refuse_login_on:
                    raise KException("wrong password")
                vendor.log.append(("login", self.port, info.username, info.password))

            def CloseSession(self, options: _Options) -> None:
                vendor.log.append(("logout", self.port))

        class BaseClient:
            def __init__(self, router: RouterClient) -> None:
                assert router.transport.port == 10000

            def GetActuatorCount(self) -> Any:
                return types.SimpleNamespace(count=vendor.base.num_actuators())

            def SetServoingMode(self, mode: _Message) -> None:
                vendor.base.set_low_level(mode.servoing_mode == 3)

            def ClearFaults(self) -> None:
                vendor.base.clear_faults()

        class BaseCyclicClient:
            def __init__(self, router: RouterClient) -> None:
                assert router.transport.port == 10001

            def RefreshFeedback(self, *, options: _Options) -> _Message:
                vendor.timeouts.append(options.timeout_ms)
                return self._message(vendor.base.feedback())

            def Refresh(self, command: _Message, device: int, options: _Options) -> _Message:
                motor = command.interconnect.gripper_command.motor_cmd[0]
                assert all((a.command_id, a.flags) == (command.frame_id, 1) for a in command.actuators)
                vendor.commands.append(command)
                frame = Frame(
                    frame_id=command.frame_id,
                    positions=tuple(a.position for a in command.actuators),
                    gripper_position=motor.position,
                )
                try:
                    return self._message(vendor.base.exchange(frame))
                except ControlError as error:
                    raise TimeoutError from error

            def _message(self, feedback: Feedback) -> _Message:
                bank = 0x2000001 if feedback.faults else 0
                actuators = [
                    types.SimpleNamespace(position=p, velocity=v, fault_bank_a=bank, fault_bank_b=0)
                    for p, v in zip(feedback.positions, feedback.velocities, strict=True)
                ]
                message = _Message(actuators=actuators)
                message.base.active_state = feedback.arm_state
                message.base.fault_bank_a = message.base.fault_bank_b = 0
                motor = types.SimpleNamespace(position=feedback.gripper_position)
                message.interconnect.gripper_feedback.motor = [motor]
                return message

        def module(name: str, **content: Any) -> None:
            made = types.ModuleType(f"kortex_api.{name}")
            vars(made).update(content)
            monkeypatch.setitem(sys.modules, f"kortex_api.{name}", made)

        module("TCPTransport", TCPTransport=TCPTransport)
        module("UDPTransport", UDPTransport=UDPTransport)
        module("RouterClient", RouterClient=RouterClient, RouterClientSendOptions=_Options)
        module("SessionManager", SessionManager=SessionManager)
        module("Exceptions.KException", KException=KException)
        module("autogen.messages.Session_pb2", CreateSessionInfo=_Message)
        module(
            "autogen.messages.Base_pb2",
            ServoingModeInformation=_Message,
            LOW_LEVEL_SERVOING=3,
            SINGLE_LEVEL_SERVOING=2,
        )
        module("autogen.messages.BaseCyclic_pb2", Command=_Message)
        module("autogen.client_stubs.BaseClientRpc", BaseClient=BaseClient)
        module("autogen.client_stubs.BaseCyclicClientRpc", BaseCyclicClient=BaseCyclicClient)
        self.error = KException


def _vendor_driver(monkeypatch: pytest.MonkeyPatch) -> tuple[KortexDriver, Vendor]:
    clock = Clock()
    vendor = Vendor(Base(clock))
    vendor.install(monkeypatch)
    monkeypatch.setenv("KORTEX_USER", "someone")
    monkeypatch.setenv("KORTEX_PASSWORD", "secret")
    return KortexDriver(GEN3, pacer=Pacer(1000.0, clock=clock, sleep=clock.sleep)), vendor


def test_the_vendors_calls_are_made_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    driver, vendor = _vendor_driver(monkeypatch)
    with driver:
        q = driver.read().positions
        np.testing.assert_allclose(q, GEN3.home, atol=1e-6)
        for count in range(1, 11):
            driver.send(dataclasses.replace(_tick(q + 0.001 * count), gripper=0.2))
        assert driver.read().gripper == pytest.approx(0.2)
        motor = vendor.commands[-1].interconnect.gripper_command.motor_cmd[0]
        assert (motor.position, motor.velocity, motor.force) == (pytest.approx(80.0), 100.0, 50.0)
        assert len(vendor.commands[-1].actuators) == 7
        vendor.base.lose = 2
        driver.send(_tick(q + 0.011))
        assert driver.lost_frames == 1 and set(vendor.timeouts) == {3}
        driver.send(_tick(q + 0.011))
        vendor.base.faults = ("following error",)
        driver._take(driver._endpoint.feedback())
        assert "actuator 7: following error; actuator 7: fault banks 0x2000000 0x0" in driver.read().fault
    assert vendor.log == [
        ("connect", "TCPTransport", "192.168.1.10", 10000),
        ("login", 10000, "someone", "secret"),
        ("connect", "UDPTransport", "192.168.1.10", 10001),
        ("login", 10001, "someone", "secret"),
        ("logout", 10001),
        ("disconnect", 10001),
        ("logout", 10000),
        ("disconnect", 10000),
    ]
    assert vendor.base.modes == [True, False]


def test_a_refused_login_leaves_no_session_open(monkeypatch: pytest.MonkeyPatch) -> None:
    driver, vendor = _vendor_driver(monkeypatch)
    vendor.refuse_login_on = 10001
    with pytest.raises(vendor.error, match="wrong password"):
        driver.connect()
    assert vendor.log[-3:] == [("disconnect", 10001), ("logout", 10000), ("disconnect", 10000)]
