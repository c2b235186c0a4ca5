"""Chunks of joint positions: the same laws as for tool poses, and the same motion for both."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from wbc_cases import ROBOTS

from gr2.contracts import ActionTrajectory, JointCommand, JointTrajectory
from gr2.errors import ControlError, ShapeError
from gr2.wbc import optimization
from gr2.wbc.collision import Box, CollisionConfig, CollisionModel, Plane, Sphere
from gr2.wbc.configuration import ControllerConfig
from gr2.wbc.controller import WholeBodyController
from gr2.wbc.robot.kinematics import Kinematics
from gr2.wbc.robot.robots import RobotModel, kinova_gen3
from gr2.wbc.robot.transforms import quaternion_from_matrix, rotation_logs

GEN3, DT = kinova_gen3(), 0.005
FREE = ControllerConfig(collision=CollisionConfig(self_collision=False))
SMOOTHED = dataclasses.replace(FREE, optimization=None)
SCENE = CollisionConfig(
    plane=Plane(offset=-0.05),
    spheres=(Sphere(center=(0.5, 0.2, 0.4), radius=0.08),),
    boxes=(Box(center=(0.5, -0.3, 0.1), half_extents=(0.1, 0.1, 0.2)),),
)
WAVES = np.array([0.30, -0.25, 0.20, 0.25, -0.35, 0.30, 0.40])
"""Amplitude of a smooth motion of each joint [rad]."""


def started(robot: RobotModel = GEN3, config: ControllerConfig = FREE) -> WholeBodyController:
    controller = WholeBodyController(robot, config)
    controller.reset(robot.home, 1.0, 0.0)
    return controller


def wavy(robot: RobotModel, times: Any) -> np.ndarray:
    """Joint positions `[k j]` [rad] of a smooth motion from the home pose, which begins at rest."""
    return robot.home + (1.0 - np.cos(1.3 * np.asarray(times)))[:, None] * WAVES


def joint_chunk(positions: np.ndarray, start: float = 0.0, dt: float = 0.05, **changes: Any) -> JointTrajectory:
    values = {"positions": positions, "gripper": np.ones(len(positions)), "dt": dt, "start_time": start}
    return JointTrajectory(**(values | changes))


def ahead(robot: RobotModel, now: float, count: int = 20, dt: float = 0.05) -> JointTrajectory:
    """The next `count` positions of the smooth motion."""
    return joint_chunk(wavy(robot, now + dt * (np.arange(count) + 1)), now, dt)


def as_tool(robot: RobotModel, chunk: JointTrajectory) -> ActionTrajectory:
    """The tool poses of a chunk of joint positions."""
    tools = Kinematics(robot).forward_many(chunk.positions).tool
    return ActionTrajectory(
        positions=tools[:, :3, 3],
        quaternions=np.array([quaternion_from_matrix(t[:3, :3]) for t in tools]),
        gripper=np.ones(len(tools)),
        dt=chunk.dt,
        start_time=chunk.start_time,
    )


def run(controller: WholeBodyController, seconds: float, start: float = 0.0) -> list[JointCommand]:
    return [controller.step(start + i * DT) for i in range(round(seconds / DT))]


def assert_within_limits(robot: RobotModel, commands: list[JointCommand], first: np.ndarray) -> None:
    """Positions, velocities and accelerations of every tick; more than nominal acceleration only where flagged."""
    q = np.array([first] + [c.positions for c in commands])
    v = np.diff(q, axis=0) / DT
    a = np.diff(v, axis=0, prepend=0.0 * v[:1]) / DT
    assert np.all(np.isfinite(q)) and all(0.0 <= c.gripper <= 1.0 for c in commands)
    assert np.all(q >= robot.lower - 1e-6) and np.all(q <= robot.upper + 1e-6)
    assert np.all(np.abs(v) <= robot.velocity * (1 + 1e-6))
    np.testing.assert_allclose(v, [c.velocities for c in commands], atol=1e-9)
    flagged = np.array([c.status in ("emergency_brake", "emergency_stop", "protective_stop") for c in commands])
    bounds = np.where(flagged[:, None], robot.emergency_acceleration, robot.acceleration)
    assert np.all(np.abs(a) <= bounds * (1 + 1e-6) + 1e-6)


# --- limits ----------------------------------------------------------------------------------------------------------


def _hostile(rng: np.random.Generator, robot: RobotModel, q: np.ndarray, time: float) -> Any:
    """A chunk that may be anything: jumping, out of range, turns away, malformed, not finite, early, late."""
    count, kind = int(rng.integers(1, 12)), int(rng.integers(14))
    positions = q + np.cumsum(0.1 * rng.normal(size=(count, robot.num_joints)), axis=0)
    start = time - 0.05 * float(rng.random())
    if kind == 0:
        positions = rng.uniform(-4.0, 4.0, (count, robot.num_joints))
    elif kind == 1:
        inside = rng.uniform(np.maximum(robot.lower, -3.0), np.minimum(robot.upper, 3.0))
        positions = np.tile(inside, (count, 1))
    elif kind == 2:
        positions = np.where(rng.random(robot.num_joints) < 0.5, robot.lower - 0.5, robot.upper + 0.5)
        positions = np.tile(np.where(np.isfinite(positions), positions, 40.0), (count, 1))
    elif kind == 3:
        positions = positions + 2.0 * np.pi * rng.integers(-3, 4, positions.shape) * np.isinf(robot.upper)
    elif kind == 4:
        start = time + float(rng.uniform(-0.3, 0.6))
    chunk = joint_chunk(
        np.where(np.isfinite(positions), positions, 0.0),
        start,
        float(rng.choice([0.005, 1 / 30, 0.1])),
        gripper=rng.random(count) if rng.random() < 0.7 else None,
    )
    broken: dict[int, tuple[str, Any]] = {
        8: ("positions", np.full((count, robot.num_joints), rng.choice([np.nan, np.inf, -np.inf, 1e12]))),
        9: ("positions", rng.choice(["no array", 3, None]) if rng.random() < 0.5 else np.zeros((count, 3))),
        10: ("start_time", rng.choice([np.nan, np.inf, -1e9])),
        11: ("dt", rng.choice([0.0, -1.0, np.nan, 1e-9])),
        12: ("gripper", rng.choice([np.full(count, np.nan), np.full(count, 7.0), np.ones(count)]) * 3.0),
    }
    if kind in broken:
        object.__setattr__(chunk, *broken[kind])
    return as_tool(robot, chunk) if kind == 13 else chunk


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("kinova_gen3", FREE),
        ("kinova_gen3", ControllerConfig(collision=SCENE)),
        ("kinova_gen3", ControllerConfig(collision=SCENE, optimization=None)),
        ("kinova_gen3", ControllerConfig(collision=SCENE, smooth_first=True, lead=0.02)),
        ("panda", ControllerConfig(collision=SCENE)),
    ],
    ids=["free", "scene", "smoothed", "smooth_first", "panda"],
)
def test_no_joint_chunk_breaks_a_limit_or_a_clearance(name: str, config: ControllerConfig) -> None:
    robot, rng = ROBOTS[name], np.random.default_rng(3)
    controller, commands, q = started(robot, config), [], robot.home
    for index in range(6000):
        if rng.random() < 0.03:
            controller.accept(_hostile(rng, robot, q, index * DT))
        commands.append(controller.step(index * DT))
        q = commands[-1].positions
    assert_within_limits(robot, commands, robot.home)
    positions = np.array([c.positions for c in commands])
    model = CollisionModel(robot, config.collision)
    if model.num_pairs:
        poses = [Kinematics(robot).forward_many(part) for part in np.array_split(positions[::2], 60)]
        assert min(model.clearances(pose).nearest for pose in poses) >= config.collision.clearance - 0.001
    assert float(np.abs(np.diff(positions, axis=0)).sum()) > 20.0
    rejected = sum(n for code, n in controller.counters.items() if code.startswith("rejected"))
    assert rejected > 30 and controller.counters["accepted"] > 50


# --- rejection -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "verdict"),
    [
        ({"positions": np.zeros((5, 6))}, "rejected_shape"),
        ({"positions": np.zeros((0, 7)), "gripper": np.zeros(0)}, "rejected_shape"),
        ({"positions": np.zeros(7)}, "rejected_shape"),
        ({"gripper": np.zeros(4)}, "rejected_shape"),
        ({"positions": np.full((5, 7), np.nan)}, "rejected_not_finite"),
        ({"gripper": np.full(5, np.inf)}, "rejected_not_finite"),
        ({"positions": np.tile(np.degrees(GEN3.home), (5, 1))}, "rejected_range"),
        ({"positions": np.tile([2e3, 0, 0, 0, 0, 0, 0], (5, 1))}, "rejected_range"),
        ({"gripper": np.full(5, 1.5)}, "rejected_range"),
        ({"dt": 0.0}, "rejected_time"),
        ({"start_time": np.nan}, "rejected_time"),
        ({"start_time": -5.0}, "rejected_expired"),
    ],
)
def test_a_bad_joint_chunk_leaves_no_trace(changes: dict[str, Any], verdict: str) -> None:
    disturbed, quiet = started(), started()
    for controller in (disturbed, quiet):
        assert controller.accept(ahead(GEN3, 0.0)) == "accepted"
    bad = joint_chunk(np.tile(GEN3.home, (5, 1)), 0.1)
    for name, value in changes.items():
        object.__setattr__(bad, name, value)
    before = run(disturbed, 0.1), run(quiet, 0.1)
    assert disturbed.accept(bad) in (verdict, "rejected_order" if verdict == "rejected_expired" else verdict)
    after = run(disturbed, 1.0, 0.1), run(quiet, 1.0, 0.1)
    for a, b in zip(before[0] + after[0], before[1] + after[1], strict=True):
        np.testing.assert_array_equal(a.positions, b.positions)


def test_a_joint_trajectory_checks_its_arrays() -> None:
    with pytest.raises(ShapeError, match=r"JointTrajectory\.positions"):
        joint_chunk(np.zeros(7))
    with pytest.raises(ShapeError, match=r"JointTrajectory\.gripper"):
        joint_chunk(np.zeros((5, 7)), gripper=np.zeros(4))
    with pytest.raises(ShapeError, match="finite"):
        joint_chunk(np.full((5, 7), np.nan))


def test_late_repeated_and_disordered_joint_chunks_are_told_apart() -> None:
    controller = started()
    first = ahead(GEN3, 0.0, 10)
    assert controller.accept(first) == "accepted"
    assert controller.accept(first) == "rejected_order"
    assert controller.accept(as_tool(GEN3, first)) == "rejected_order"
    run(controller, 0.3)
    assert controller.accept(ahead(GEN3, 0.2, 10)) == "accepted"
    assert controller.counters["poses_dropped"] == 2
    assert controller.accept(ahead(GEN3, 0.1, 10)) == "rejected_order"
    run(controller, 1.0, 0.3)
    assert controller.accept(ahead(GEN3, 0.7, 10)) == "rejected_expired"


# --- accuracy and smoothness -----------------------------------------------------------------------------------------


def test_a_smooth_joint_chunk_is_tracked_within_a_milliradian(robot: RobotModel) -> None:
    """Chunks of a second, five a second."""
    controller, commands = started(robot), []
    for index in range(800):
        if index % 40 == 0:
            assert controller.accept(ahead(robot, index * DT)) == "accepted"
        commands.append(controller.step(index * DT))
    assert_within_limits(robot, commands, robot.home)
    errors = np.array([c.positions for c in commands]) - wavy(robot, DT * (np.arange(800) + 1))
    assert np.sqrt(np.mean(errors**2)) < 3e-4 and np.abs(errors).max() < 1e-3
    jerk = np.diff([c.velocities for c in commands], n=2, axis=0) / DT**2
    assert np.sqrt(np.mean(jerk**2)) < 12.0
    assert set(controller.counters) & {"emergency_acceleration", "brake", "optimization_failed"} == set()
    assert {c.status for c in commands} == {"track"}


def test_a_fast_joint_chunk_is_tracked_from_rest_and_after_another() -> None:
    """Two radians in two seconds, at nine tenths of the speed limit, once without and once with an earlier plan."""
    share = np.linspace(0.0, 1.0, 41)[1:]
    path = GEN3.home + (10 * share**3 - 15 * share**4 + 6 * share**5)[:, None] * np.array([1.3, 0, -1.3, 0, 0, 0, 1.1])
    for earlier in (False, True):
        controller = started()
        if earlier:
            assert controller.accept(joint_chunk(np.tile(GEN3.home, (20, 1)), -0.01)) == "accepted"
        assert controller.accept(joint_chunk(path)) == "accepted"
        commands = run(controller, 2.5)
        errors = np.array([c.positions for c in commands])[9:400:10] - path
        assert np.abs(errors).max() < 0.02
        np.testing.assert_allclose(commands[-1].positions, path[-1], atol=1e-3)
        assert commands[-1].status == "hold"
        assert_within_limits(GEN3, commands, GEN3.home)


def test_swaps_of_joint_chunks_are_twice_differentiable(robot: RobotModel) -> None:
    controller, velocities = started(robot), []
    for index in range(400):
        if index % 37 == 0:
            assert controller.accept(ahead(robot, index * DT, 12)) == "accepted"
        velocities.append(controller.step(index * DT).velocities)
    accelerations = np.diff(velocities, axis=0) / DT
    assert np.abs(np.diff(accelerations, axis=0)).max() < 0.5


def test_a_tool_chunk_and_the_joint_chunk_of_its_motion_end_in_one_place(robot: RobotModel) -> None:
    times = 0.05 * (np.arange(30) + 1)
    chunk, ends = joint_chunk(wavy(robot, times)), []
    for trajectory in (chunk, as_tool(robot, chunk)):
        controller = started(robot)
        assert controller.accept(trajectory) == "accepted"
        commands = run(controller, 3.0)
        assert commands[-1].status == "hold"
        ends.append(Kinematics(robot).forward(commands[-1].positions).tool)
    assert np.linalg.norm(ends[0][:3, 3] - ends[1][:3, 3]) < 1e-3
    assert np.linalg.norm(rotation_logs((ends[0][:3, :3] @ ends[1][:3, :3].T)[None])) < 5e-3


def test_tool_and_joint_chunks_take_turns_without_a_jump(robot: RobotModel) -> None:
    controller, commands = started(robot), []
    for index in range(600):
        if index % 40 == 0:
            chunk = ahead(robot, index * DT)
            assert controller.accept(chunk if index % 80 else as_tool(robot, chunk)) == "accepted"
        commands.append(controller.step(index * DT))
    assert_within_limits(robot, commands, robot.home)
    wanted = Kinematics(robot).forward_many(wavy(robot, DT * (np.arange(600) + 1))).tool[:, :3, 3]
    tools = Kinematics(robot).forward_many(np.array([c.positions for c in commands])).tool[:, :3, 3]
    assert np.linalg.norm(tools - wanted, axis=1).max() < 5e-3


def test_noise_on_joint_chunks_moves_the_joints_softly() -> None:
    """Each chunk with a bias of up to 1 degree for each joint, each row with half a degree of noise."""
    rng, controller, commands = np.random.default_rng(2), started(), []
    for index in range(1200):
        if index % 100 == 0:
            chunk = ahead(GEN3, index * DT, 10, 0.1)
            noise = np.radians(rng.uniform(-1.0, 1.0, 7) + 0.5 * rng.normal(size=(10, 7)))
            assert controller.accept(dataclasses.replace(chunk, positions=chunk.positions + noise)) == "accepted"
        commands.append(controller.step(index * DT))
    jerk = np.diff([c.velocities for c in commands], n=2, axis=0) / DT**2
    assert np.sqrt(np.mean(jerk**2)) < 20.0
    errors = np.array([c.positions for c in commands]) - wavy(GEN3, DT * (np.arange(1200) + 1))
    assert np.degrees(np.sqrt(np.mean(errors**2))) < 1.0


# --- what cannot be done ---------------------------------------------------------------------------------------------


def test_obstacles_on_the_way_of_a_joint_chunk_are_kept_clear() -> None:
    """The first joint sweeps the tool through a ball."""
    swept = GEN3.home + np.array([1.2, 0, 0, 0, 0, 0, 0])
    middle = Kinematics(GEN3).forward(0.5 * (GEN3.home + swept)).tool[:3, 3]
    scene = CollisionConfig(self_collision=False, spheres=(Sphere(center=tuple(middle), radius=0.05),))
    model = CollisionModel(GEN3, scene)
    share = np.linspace(0.05, 1.0, 40)[:, None]
    chunk = joint_chunk(GEN3.home + share * (swept - GEN3.home))
    nearest = {}
    for config in (FREE, ControllerConfig(collision=scene), ControllerConfig(collision=scene, optimization=None)):
        controller = started(GEN3, config)
        assert controller.accept(chunk) == "accepted"
        commands = run(controller, 4.0)
        assert_within_limits(GEN3, commands, GEN3.home)
        poses = Kinematics(GEN3).forward_many(np.array([c.positions for c in commands]))
        nearest[config] = model.clearances(poses).nearest
        assert np.abs(commands[-1].velocities).max() < 0.02
        if config is FREE:
            np.testing.assert_allclose(commands[-1].positions, swept, atol=1e-3)
    free, *guarded = nearest.values()
    assert free < 0.0 and min(guarded) >= 0.009


def test_targets_beyond_a_joint_limit_are_approached_held_and_reported() -> None:
    controller = started()
    goal = GEN3.home + 0.0
    goal[3] = GEN3.upper[3] + 0.3
    assert controller.accept(joint_chunk(np.tile(goal, (20, 1)))) == "accepted"
    commands = run(controller, 5.0)
    assert_within_limits(GEN3, commands, GEN3.home)
    assert GEN3.upper[3] - 0.05 < commands[-1].positions[3] <= GEN3.upper[3]
    assert commands[-1].status == "unreachable" and controller.residual > 0.05
    assert (
        "degrees from the wanted joint positions"
        in [e for e in controller.events if e.code == "unreachable"][-1].detail
    )
    run(controller, 0.1, 5.0)
    assert controller.accept(joint_chunk(np.tile(GEN3.home, (20, 1)), 5.1)) == "accepted"
    assert np.abs(run(controller, 5.0, 5.1)[-1].positions - GEN3.home).max() < 0.01


def test_a_jump_too_fast_for_the_joints_is_finished_after_its_time(robot: RobotModel) -> None:
    controller, goal = started(robot), robot.home + 0.8 * np.sign(WAVES) * np.array([1, 0.5, 1, 0.5, 1, 0.5, 1])
    assert controller.accept(joint_chunk(np.tile(goal, (5, 1)), gripper=None)) == "accepted"
    commands = run(controller, 3.0)
    assert_within_limits(robot, commands, robot.home)
    np.testing.assert_allclose(commands[-1].positions, goal, atol=2e-3)
    assert commands[-1].status == "hold"


def test_joints_without_stops_take_the_nearest_turn() -> None:
    """Joints reported between 0 and 2 pi, as by the Kinova's own interface, are no reason to turn round."""
    times, endless = 0.05 * (np.arange(30) + 1), np.isinf(GEN3.upper)
    path = wavy(GEN3, times)
    wrapped = np.where(endless, np.mod(path, 2.0 * np.pi), path)
    ends = []
    for positions in (path, wrapped, path + 4.0 * np.pi * endless):
        controller = started()
        assert controller.accept(joint_chunk(positions)) == "accepted"
        ends.append(run(controller, 3.0)[-1].positions)
    np.testing.assert_allclose(ends[1], ends[0], atol=1e-6)
    np.testing.assert_allclose(ends[2], ends[0], atol=1e-6)
    assert np.abs(ends[0] - path[-1]).max() < 1e-3


def test_a_joint_without_stops_turns_on_past_a_full_turn() -> None:
    controller, commands, speed = started(), [], 1.0
    for index in range(1800):
        if index % 40 == 0:
            turned = speed * np.minimum(index * DT + 0.05 * (np.arange(20) + 1), 8.0)
            turned = np.mod(turned + np.pi, 2.0 * np.pi) - np.pi
            positions = GEN3.home + turned[:, None] * np.array([1.0, 0, 0, 0, 0, 0, 0])
            assert controller.accept(joint_chunk(positions, index * DT)) == "accepted"
        commands.append(controller.step(index * DT))
    assert_within_limits(GEN3, commands, GEN3.home)
    assert commands[-1].positions[0] == pytest.approx(GEN3.home[0] + 8.0, abs=2e-3)


def test_a_failed_optimization_smooths_joint_chunks_without_a_jump(monkeypatch: pytest.MonkeyPatch) -> None:
    controller, commands = started(), []
    original = optimization.ChunkOptimizer.plan

    def failing(self: optimization.ChunkOptimizer, *args: Any, **kwargs: Any) -> optimization.Plan:
        if 0.5 < args[1] < 0.9:
            raise ControlError("no solution")
        return original(self, *args, **kwargs)

    monkeypatch.setattr(optimization.ChunkOptimizer, "plan", failing)
    for index in range(400):
        if index % 40 == 0:
            assert controller.accept(ahead(GEN3, index * DT)) == "accepted"
        commands.append(controller.step(index * DT))
    assert commands[150].status == "degraded" and commands[60].status == commands[-1].status == "track"
    assert controller.counters["optimization_failed"] == 2
    assert_within_limits(GEN3, commands, GEN3.home)
    errors = np.array([c.positions for c in commands]) - wavy(GEN3, DT * (np.arange(400) + 1))
    assert np.abs(errors).max() < 0.02


# --- time, stops, gripper --------------------------------------------------------------------------------------------


def test_a_joint_chunk_for_later_waits_for_its_start() -> None:
    for config in (FREE, SMOOTHED):
        controller = started(GEN3, config)
        first, second = np.tile(GEN3.home + 0.1, (10, 1)), np.tile(GEN3.home - 0.1, (10, 1))
        assert controller.accept(joint_chunk(first)) == "accepted"
        commands = run(controller, 0.3)
        assert controller.accept(joint_chunk(second, 1.5)) == "pending"
        commands += run(controller, 3.5, 0.3)
        np.testing.assert_allclose(commands[299].positions, first[-1], atol=5e-3)
        np.testing.assert_allclose(commands[-1].positions, second[-1], atol=5e-3)


def test_a_long_joint_chunk_is_planned_window_by_window() -> None:
    controller, seconds = started(), 6.0
    path = wavy(GEN3, np.linspace(0.05, seconds, 120))
    assert controller.accept(joint_chunk(path, gripper=np.linspace(0.0, 1.0, 120))) == "accepted"
    commands = run(controller, 7.5)
    assert controller.counters["optimized"] > 4
    errors = np.array([c.positions for c in commands])[9:1200:10] - path
    assert np.abs(errors).max() < 5e-3
    assert commands[-1].status == "hold" and commands[-1].gripper == pytest.approx(1.0)
    assert_within_limits(GEN3, commands, GEN3.home)


def test_stops_and_gaps_end_a_joint_chunk() -> None:
    controller = started()
    assert controller.accept(ahead(GEN3, 0.0, 40)) == "accepted"
    commands = run(controller, 0.5)
    controller.emergency_stop()
    commands += run(controller, 0.3, 0.5)
    assert_within_limits(GEN3, commands, GEN3.home)
    assert np.all(commands[-1].velocities == 0.0) and commands[-1].status == "emergency_stop"
    assert controller.accept(ahead(GEN3, 0.8)) == "rejected_stopped"
    gapped = started()
    gapped.accept(ahead(GEN3, 0.0, 40))
    before = run(gapped, 0.4)
    after = [gapped.step(0.8 + i * DT) for i in range(200)]
    assert gapped.counters["watchdog"] == 1 and after[-1].status == "hold"
    assert_within_limits(GEN3, before + after, GEN3.home)


def test_a_joint_chunk_without_gripper_leaves_it_as_it_is() -> None:
    controller = started()
    home = np.tile(GEN3.home, (10, 1))
    assert controller.accept(joint_chunk(home, gripper=np.full(10, 0.3))) == "accepted"
    run(controller, 1.0)
    assert controller.accept(joint_chunk(home, 1.0, gripper=None)) == "accepted"
    assert run(controller, 1.0, 1.0)[-1].gripper == pytest.approx(0.3)
    assert controller.accept(joint_chunk(home, 2.0, gripper=np.ones(10))) == "accepted"
    assert run(controller, 1.0, 2.0)[-1].gripper == pytest.approx(1.0)
