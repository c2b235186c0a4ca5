"""The controller as a whole: limits at every tick, rejections, rest, emergency stop, gripper, tracking."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from gr2.contracts import ActionTrajectory
from gr2.errors import ConfigError, ControlError
from gr2.wbc.collision import Box, CollisionConfig, CollisionModel, Plane, Sphere
from gr2.wbc.controller import ControllerConfig, WholeBodyController
from gr2.wbc.limits import stoppable_velocity
from gr2.wbc.robot.kinematics import Kinematics
from gr2.wbc.robot.robots import RobotModel, kinova_gen3, panda
from gr2.wbc.robot.transforms import quaternion_from_matrix
from gr2.wbc.smoothing import SmoothingConfig
from gr2.wbc.tracking import TickSolver, TrackingConfig

NO_OBSTACLES = ControllerConfig(collision=CollisionConfig(self_collision=False))
FAST = SmoothingConfig(linear_speed=1.0, angular_speed=2.5, linear_acceleration=8.0)


def _chunk(
    robot: RobotModel, offset: Any = (0.03, 0.02, -0.02), start: float = 0.0, **changes: Any
) -> ActionTrajectory:
    """Ten poses from the home pose on, moving by `offset` [m], 30 a second."""
    tool = Kinematics(robot).forward(robot.home).tool
    share = np.linspace(0.1, 1.0, 10)[:, None]
    values = {
        "positions": tool[:3, 3] + share * np.asarray(offset),
        "quaternions": np.tile(quaternion_from_matrix(tool[:3, :3]), (10, 1)),
        "gripper": np.ones(10),
        "dt": 1 / 30,
        "start_time": start,
    }
    return ActionTrajectory(**(values | changes))


def _started(robot: RobotModel, config: ControllerConfig = NO_OBSTACLES) -> WholeBodyController:
    controller = WholeBodyController(robot, config)
    controller.reset(robot.home, 1.0, 0.0)
    return controller


def _adversarial_chunk(rng: np.random.Generator, tool: np.ndarray, time: float) -> ActionTrajectory:
    count, kind = int(rng.integers(1, 12)), rng.integers(4)
    if kind == 0:
        positions = rng.uniform(-1.2, 1.2, (count, 3))
    elif kind == 1:
        positions = tool[:3, 3] + 0.1 * rng.normal(size=(count, 3))
    elif kind == 2:
        positions = tool[:3, 3] + np.cumsum(0.03 * rng.normal(size=(count, 3)), axis=0)
    else:
        positions = np.tile(rng.uniform(-0.7, 0.7, 3), (count, 1))
    quaternions = quaternion_from_matrix(tool[:3, :3]) + (1.0 if kind == 0 else 0.1) * rng.normal(size=(count, 4))
    quaternions /= np.linalg.norm(quaternions, axis=1, keepdims=True)
    return ActionTrajectory(
        positions=positions,
        quaternions=quaternions,
        gripper=rng.random(count),
        dt=float(rng.choice([0.005, 1 / 30, 0.1])),
        start_time=time - 0.05 * float(rng.random()),
    )


def _run_adversary(robot: RobotModel, config: ControllerConfig, ticks: int, seed: int) -> WholeBodyController:
    """Drive random chunks for `ticks` ticks and assert every limit at every tick."""
    rng, kinematics = np.random.default_rng(seed), Kinematics(robot)
    controller, scene = _started(robot, config), CollisionModel(robot, config.collision)
    q, dq, moved = robot.home, np.zeros(robot.num_joints), 0.0
    for index in range(ticks):
        time = index * controller.dt
        if rng.random() < 0.03:
            controller.accept(_adversarial_chunk(rng, kinematics.forward(q).tool, time))
        command = controller.step(time)
        velocity = (command.positions - q) / controller.dt
        bound = robot.emergency_acceleration if command.status == "emergency_brake" else robot.acceleration
        assert np.all(command.positions >= robot.lower - 1e-6) and np.all(command.positions <= robot.upper + 1e-6)
        assert np.all(np.abs(velocity) <= robot.velocity * (1 + 1e-6))
        assert np.all(np.abs(velocity - dq) / controller.dt <= bound * (1 + 1e-6) + 1e-6)
        np.testing.assert_allclose(velocity, command.velocities, atol=1e-9)
        if index % 10 == 0 and scene.num_pairs:
            clearance = scene.clearances(kinematics.forward(command.positions)).nearest
            assert clearance > config.collision.clearance - 0.002
        moved += float(np.abs(command.positions - q).sum())
        q, dq = command.positions, velocity
    assert moved > 5.0
    return controller


@pytest.mark.parametrize("optimized", [True, False])
def test_limits_hold_against_an_adversary_in_free_space(robot: RobotModel, optimized: bool) -> None:
    config = NO_OBSTACLES if optimized else dataclasses.replace(NO_OBSTACLES, optimization=None)
    controller = _run_adversary(robot, config, 6000, seed=0)
    assert (controller.counters["optimized"] > 50) if optimized else (controller.counters["limit"] > 0)
    assert controller.counters["accepted"] > 50


def test_limits_and_clearance_hold_against_an_adversary_among_obstacles(robot: RobotModel) -> None:
    scene = CollisionConfig(
        plane=Plane(offset=-0.05),
        spheres=(Sphere(center=(0.5, 0.2, 0.4), radius=0.08),),
        boxes=(Box(center=(0.5, -0.3, 0.1), half_extents=(0.1, 0.1, 0.2)),),
    )
    controller = _run_adversary(robot, ControllerConfig(collision=scene, smoothing=FAST), 5000, seed=1)
    assert controller.counters["accepted"] > 50 and controller.counters["optimized"] > 50


def test_a_stop_before_the_limit_stays_possible() -> None:
    acceleration, dt = np.array([5.0]), 0.005
    for distance in np.concatenate([np.linspace(0.0, 0.01, 50), np.geomspace(0.01, 3.0, 30)]):
        way, speed = distance, stoppable_velocity(np.array([distance]), acceleration, dt)
        while speed[0] > 0.0:
            way -= speed[0] * dt
            speed = np.maximum(speed - acceleration * dt, 0.0)
        assert way >= -1e-12
        assert way <= acceleration[0] * dt**2


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({"positions": np.zeros((10, 2))}, "rejected_shape"),
        (
            {"positions": np.zeros((0, 3)), "quaternions": np.zeros((0, 4)), "gripper": np.zeros(0)},
            "rejected_shape",
        ),
        ({"positions": np.full((10, 3), np.nan)}, "rejected_not_finite"),
        ({"gripper": np.full(10, np.inf)}, "rejected_not_finite"),
        ({"positions": np.full((10, 3), 1e9)}, "rejected_range"),
        ({"gripper": np.full(10, 1.5)}, "rejected_range"),
        ({"quaternions": np.full((10, 4), 0.65)}, "rejected_quaternion"),
        ({"quaternions": np.zeros((10, 4))}, "rejected_quaternion"),
        ({"dt": 0.0}, "rejected_time"),
        ({"dt": -0.1}, "rejected_time"),
        ({"dt": float("nan")}, "rejected_time"),
        ({"dt": None}, "rejected_time"),
        ({"start_time": float("inf")}, "rejected_time"),
        ({"start_time": 0.0}, "rejected_order"),
        ({"start_time": -1.0}, "rejected_order"),
    ],
)
def test_bad_chunks_change_nothing(changes: dict[str, Any], status: str) -> None:
    robot = kinova_gen3()
    disturbed, quiet = _started(robot), _started(robot)
    bad = dataclasses.replace(_chunk(robot, start=0.1))
    for name, value in changes.items():
        object.__setattr__(bad, name, value)
    for controller in (disturbed, quiet):
        assert controller.accept(_chunk(robot)) == "accepted"
    for index in range(60):
        if index == 20:
            assert disturbed.accept(bad) == status
        a, b = disturbed.step(index * 0.005), quiet.step(index * 0.005)
        np.testing.assert_array_equal(a.positions, b.positions)
        assert (a.gripper, a.status) == (b.gripper, b.status)
    assert disturbed.counters[status] == 1
    assert disturbed.events[-1].code == status


def test_late_early_and_expired_chunks() -> None:
    robot = kinova_gen3()
    controller = _started(robot)
    for index in range(40):
        controller.step(index * 0.005)
    assert controller.accept(_chunk(robot, start=-0.5)) == "rejected_expired"
    assert controller.accept(_chunk(robot, start=0.1)) == "accepted"
    assert controller.counters["poses_dropped"] == 3
    assert controller.accept(_chunk(robot, (0.0, 0.05, 0.0), start=0.3)) == "pending"
    assert controller.accept(_chunk(robot, (0.0, 0.0, 0.05), start=0.4)) == "pending"
    for index in range(40, 400):
        command = controller.step(index * 0.005)
    goal = _chunk(robot, (0.0, 0.0, 0.05)).positions[-1]
    np.testing.assert_allclose(Kinematics(robot).forward(command.positions).tool[:3, 3], goal, atol=1e-3)


def test_a_chunk_without_successor_ends_in_rest(robot: RobotModel) -> None:
    controller = _started(robot)
    assert controller.step(0.0).status == "hold"
    chunk = _chunk(robot)
    assert controller.accept(chunk) == "accepted"
    statuses = [controller.step((index + 1) * 0.005).status for index in range(400)]
    command = controller.step(2.1)
    assert statuses[0] == "track" and command.status == "hold"
    np.testing.assert_array_equal(command.velocities, 0.0)
    tool = Kinematics(robot).forward(command.positions).tool
    np.testing.assert_allclose(tool[:3, 3], chunk.positions[-1], atol=5e-4)


def test_an_unreachable_target_is_approached_reported_and_left_again() -> None:
    robot = kinova_gen3()
    controller, kinematics = _started(robot), Kinematics(robot)
    far = _chunk(robot, (0.9, 0.0, 0.2))
    assert controller.accept(far) == "accepted"
    for index in range(1200):
        command = controller.step(index * 0.005)
    assert command.status == "unreachable"
    np.testing.assert_array_equal(command.velocities, 0.0)
    reached = kinematics.forward(command.positions).tool[:3, 3]
    assert np.linalg.norm(reached[:2]) > 0.75
    back = _chunk(robot, start=6.0)
    for index in range(1200, 2400):
        if index == 1200:
            assert controller.accept(back) == "accepted"
        command = controller.step(index * 0.005)
    tool = kinematics.forward(command.positions).tool
    assert command.status == "hold"
    assert np.linalg.norm(tool[:3, 3] - back.positions[-1]) < 5e-3


def test_emergency_stop_brakes_within_limits_and_latches(robot: RobotModel) -> None:
    controller = _started(robot, ControllerConfig(smoothing=FAST, collision=CollisionConfig(self_collision=False)))
    controller.accept(_chunk(robot, (0.15, 0.1, 0.1)))
    for index in range(50):
        command = controller.step(index * 0.005)
    assert np.abs(command.velocities).max() > 0.1
    controller.emergency_stop()
    previous, ticks = (
        command.velocities,
        int(np.ceil((robot.velocity / robot.emergency_acceleration).max() / 0.005)) + 1,
    )
    for index in range(50, 50 + ticks):
        command = controller.step(index * 0.005)
        change = np.abs(command.velocities - previous) / 0.005
        assert np.all(change <= robot.emergency_acceleration * (1 + 1e-6))
        previous = command.velocities
    np.testing.assert_array_equal(command.velocities, 0.0)
    assert command.status == "emergency_stop"
    assert controller.accept(_chunk(robot, start=1.0)) == "rejected_stopped"
    stopped = command.positions
    np.testing.assert_array_equal(controller.step(1.0).positions, stopped)
    controller.reset(stopped, 1.0, 2.0)
    assert controller.step(2.0).status == "hold"


def test_a_wild_clock_is_recorded_and_harmless() -> None:
    robot = kinova_gen3()
    controller = _started(robot)
    controller.accept(_chunk(robot))
    previous = robot.home
    for index in range(200):
        time = {50: float("nan"), 60: 0.0, 70: float("inf"), 80: 5.0}.get(index, index * 0.005)
        command = controller.step(time)
        assert np.all(np.isfinite(command.positions))
        assert np.all(np.abs(command.positions - previous) <= robot.velocity * controller.dt * (1 + 1e-6))
        previous = command.positions
    assert controller.counters["clock"] >= 3


def test_gripper_follows_its_waypoints() -> None:
    robot = panda(tool_z=0.14)
    controller = _started(robot, dataclasses.replace(NO_OBSTACLES, gripper_rate=1000.0))
    values = np.array([1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 1.0, 1.0, 1.0])
    controller.accept(_chunk(robot, (0.01, 0.0, 0.0), gripper=values, dt=0.1))
    openings = np.array([controller.step(index * 0.005).gripper for index in range(200)])
    times = (np.arange(200) + 1) * 0.005
    closed = times[openings < 0.5]
    assert closed[0] == pytest.approx(0.3, abs=0.0051)
    assert closed[-1] == pytest.approx(0.7, abs=0.0051)


def test_gripper_keeps_its_rate_and_does_not_chatter() -> None:
    robot = kinova_gen3()
    controller = _started(robot)
    noisy = 0.5 + 0.02 * np.resize([1.0, -1.0], 10)
    controller.accept(_chunk(robot, (0.01, 0.0, 0.0), gripper=noisy, dt=0.2))
    openings = np.array([1.0] + [controller.step(index * 0.005).gripper for index in range(400)])
    assert np.abs(np.diff(openings)).max() <= robot.gripper_rate * 0.005 + 1e-12
    assert np.count_nonzero(np.diff(openings[200:])) == 0


def test_misuse_is_named() -> None:
    robot = kinova_gen3()
    fresh = WholeBodyController(robot)
    with pytest.raises(ControlError, match="reset"):
        fresh.step(0.0)
    with pytest.raises(ControlError, match="reset"):
        fresh.accept(_chunk(robot))
    with pytest.raises(ControlError, match="limits"):
        fresh.reset([0.0, 3.0, 0.0, 0.0, 0.0, 0.0, 0.0], 1.0, 0.0)
    with pytest.raises(ControlError, match="finite"):
        fresh.reset(np.full(7, np.nan), 1.0, 0.0)
    with pytest.raises(ConfigError, match="tick_hz"):
        ControllerConfig(tick_hz=0.0)


def test_the_same_input_gives_the_same_bits() -> None:
    robot = panda(tool_z=0.14)
    runs = []
    for _ in range(2):
        controller = _started(robot, ControllerConfig(collision=CollisionConfig(plane=Plane(offset=0.0))))
        controller.accept(_chunk(robot))
        runs.append([controller.step(index * 0.005).positions for index in range(100)])
    np.testing.assert_array_equal(runs[0], runs[1])


def test_an_arm_that_starts_too_close_moves_out_or_holds() -> None:
    robot = kinova_gen3()
    tool = Kinematics(robot).forward(robot.home).tool[:3, 3]
    near = CollisionConfig(plane=Plane(offset=float(tool[2]) - 0.012), self_collision=False)
    scene = CollisionModel(robot, near)
    before = scene.clearances(Kinematics(robot).forward(robot.home)).nearest
    assert before < near.clearance
    controller = _started(robot, ControllerConfig(collision=near))
    controller.accept(_chunk(robot, (0.05, 0.0, -0.05)))
    for index in range(200):
        command = controller.step(index * 0.005)
        now = scene.clearances(Kinematics(robot).forward(command.positions)).nearest
        assert now >= before - 1e-4
    assert now > near.clearance - 0.002


@pytest.mark.parametrize(("speed", "rung"), [(0.06, "nominal"), (0.12, "emergency_acceleration"), (0.5, "brake")])
def test_the_ladder_is_climbed_only_as_far_as_needed(speed: float, rung: str) -> None:
    """The tool dives at a plane 3 mm beyond the clearance, faster than each rung can still slow down."""
    robot, dt = kinova_gen3(), 0.005
    pose = Kinematics(robot).forward(robot.home)
    free = CollisionModel(robot, CollisionConfig(plane=Plane(), self_collision=False)).clearances(pose)
    plane = Plane(offset=free.nearest - 0.013)
    solver = TickSolver(robot, TrackingConfig(), CollisionConfig(plane=plane, self_collision=False), dt)
    dive = np.array([0.0, 0.0, -speed, 0.0, 0.0, 0.0])
    previous = np.linalg.pinv(pose.jacobian) @ dive
    tick = solver.solve(robot.home, previous, pose, dive, None)
    assert tick.rung == rung
    bound = robot.acceleration if rung == "nominal" else robot.emergency_acceleration
    assert np.all(np.abs(tick.velocity - previous) <= bound * dt * (1 + 1e-6))
    assert (pose.jacobian @ tick.velocity)[2] > -speed - 1e-9


def _replanned_jerk(robot: RobotModel, smoothness: float) -> float:
    """RMS joint jerk [rad/s^3] under chunks with 2 mm of noise and up to 1 cm of bias each, six a second."""
    rng = np.random.default_rng(3)
    config = ControllerConfig(optimization=None, smoothing=SmoothingConfig(smoothness=smoothness), tick_hz=240.0)
    controller, velocities = _started(robot, config), []
    tool = Kinematics(robot).forward(robot.home).tool[:3, 3]
    for index in range(480):
        time = index / 240.0
        if index % 40 == 0:
            due = time + (np.arange(10) + 1) / 30
            path = np.stack([0.08 * np.sin(2 * due), 0.06 * np.sin(3 * due), 0.04 * np.cos(2.5 * due) - 0.04], -1)
            noise = 0.002 * rng.normal(size=(10, 3)) + rng.uniform(-1, 1, 3) * 0.01 / 3**0.5
            assert controller.accept(_chunk(robot, start=time, positions=tool + path + noise)) == "accepted"
        velocities.append(controller.step(time).velocities)
    jerk = np.diff(np.array(velocities), n=2, axis=0) * 240.0**2
    return float(np.sqrt(np.square(jerk).mean()))


def test_smoothing_calms_the_joints_under_noisy_replanning(robot: RobotModel) -> None:
    calm, rough = _replanned_jerk(robot, SmoothingConfig().smoothness), _replanned_jerk(robot, 0.1)
    assert calm < 250.0
    assert calm < 0.7 * rough


def test_the_optimization_follows_the_smoothed_chunk_when_asked(robot: RobotModel) -> None:
    """Then time is stretched for the caps on the tool's speed beforehand; else the plan is run through more slowly."""
    speeds, kinematics = {}, Kinematics(robot)
    for first in (True, False):
        config = dataclasses.replace(NO_OBSTACLES, smooth_first=first, smoothing=SmoothingConfig(linear_speed=0.1))
        controller = _started(robot, config)
        assert controller.accept(_chunk(robot, (0.08, 0.05, 0.0), dt=0.04)) == "accepted"
        commands = np.array([controller.step(index * 0.005).positions for index in range(400)])
        tools = kinematics.forward_many(commands).tool[:, :3, 3]
        speeds[first] = float(np.linalg.norm(np.diff(tools, axis=0), axis=1).max()) / 0.005
        np.testing.assert_allclose(tools[-1], _chunk(robot, (0.08, 0.05, 0.0)).positions[-1], atol=1.5e-3)
        assert controller.counters["optimized"] >= 1
        assert bool(controller.counters["capped"]) != first
    assert 0.09 < speeds[True] < 0.102 and 0.09 < speeds[False] < 0.102


def test_a_long_chunk_is_planned_window_by_window() -> None:
    """Six seconds in one chunk, twice the window and more, end where they should without a stop between."""
    robot = kinova_gen3()
    controller, seconds = _started(robot), 6.0
    share = np.linspace(0.05, seconds, 120)
    offsets = np.stack([0.1 * np.sin(share), 0.1 * np.sin(0.7 * share), 0.05 * (1 - np.cos(share))], axis=1)
    tool = Kinematics(robot).forward(robot.home).tool
    chunk = ActionTrajectory(
        positions=tool[:3, 3] + offsets,
        quaternions=np.tile(quaternion_from_matrix(tool[:3, :3]), (120, 1)),
        gripper=np.linspace(0.0, 1.0, 120),
        dt=0.05,
        start_time=0.0,
    )
    assert controller.accept(chunk) == "accepted"
    commands = [controller.step(index * 0.005) for index in range(1400)]
    assert controller.counters["optimized"] > 4
    tools = Kinematics(robot).forward_many(np.array([c.positions for c in commands])).tool[:, :3, 3]
    errors = np.linalg.norm(tools[9:1199:10] - chunk.positions[:119], axis=1)
    assert errors[40:].max() < 2e-3
    assert commands[-1].status == "hold" and commands[-1].gripper == pytest.approx(1.0)


@pytest.mark.parametrize("optimized", [True, False])
def test_a_chunk_for_later_waits_for_its_start(robot: RobotModel, optimized: bool) -> None:
    """The present chunk is finished first, whether or not the optimization knows where it will be then."""
    config = NO_OBSTACLES if optimized else dataclasses.replace(NO_OBSTACLES, optimization=None)
    controller, kinematics = _started(robot, config), Kinematics(robot)
    first, second = _chunk(robot, (0.04, 0.0, 0.0), dt=0.1), _chunk(robot, (0.04, 0.03, 0.0), start=1.6, dt=0.1)
    assert controller.accept(first) == "accepted"
    commands = [controller.step(index * 0.005) for index in range(100)]
    assert controller.accept(second) == "pending"
    commands += [controller.step(index * 0.005) for index in range(100, 700)]
    tools = kinematics.forward_many(np.array([c.positions for c in commands])).tool[:, :3, 3]
    np.testing.assert_allclose(tools[310], first.positions[-1], atol=2e-3)
    np.testing.assert_allclose(tools[-1], second.positions[-1], atol=2e-3)


def test_a_chunk_for_later_joins_a_long_one_where_that_has_led() -> None:
    robot = kinova_gen3()
    controller, kinematics = _started(robot), Kinematics(robot)
    tool = kinematics.forward(robot.home).tool
    quaternions = np.tile(quaternion_from_matrix(tool[:3, :3]), (80, 1))
    ramp = np.linspace(0.0, 0.2, 80)[:, None] * np.array([0.0, 1.0, 0.0])
    long = ActionTrajectory(
        positions=tool[:3, 3] + ramp, quaternions=quaternions, gripper=np.ones(80), dt=0.05, start_time=0.0
    )
    assert controller.accept(long) == "accepted"
    controller.step(0.0)
    later = dataclasses.replace(long, positions=np.tile(long.positions[59], (80, 1)), start_time=3.0)
    assert controller.accept(later) == "pending"
    commands = [controller.step(index * 0.005) for index in range(1, 900)]
    tools = kinematics.forward_many(np.array([c.positions for c in commands])).tool[:, :3, 3]
    assert abs(tools[590, 1] - tool[1, 3] - 0.2 * 59 / 79) < 5e-3
    np.testing.assert_allclose(tools[-1], later.positions[-1], atol=2e-3)
    velocities = np.diff([c.positions for c in commands], axis=0) / 0.005
    assert np.all(np.abs(np.diff(velocities, axis=0)) / 0.005 <= robot.acceleration * (1 + 1e-6))
