"""What the controller promises, one test a promise; docs/wbc.md lists them with the names of these tests."""

from __future__ import annotations

import dataclasses
import os
import re
import runpy
import threading
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from wbc_cases import ROBOTS, boxed

from gr2.contracts import ActionTrajectory, JointCommand
from gr2.errors import ControlError
from gr2.wbc import optimization
from gr2.wbc.collision import Box, CollisionConfig, CollisionModel, Plane, Sphere
from gr2.wbc.controller import ControllerConfig, WholeBodyController
from gr2.wbc.optimization import OptimizationConfig
from gr2.wbc.robot.kinematics import Kinematics, manipulability
from gr2.wbc.robot.robots import Capsule, RobotModel, kinova_gen3, panda
from gr2.wbc.robot.transforms import quaternion_from_matrix, rotation_exp, rotation_logs
from gr2.wbc.splines import JointSpline
from gr2.wbc.status import STATUSES
from gr2.wbc.supervision import SupervisionConfig
from gr2.wbc.validation import GuardConfig

GEN3, PANDA = kinova_gen3(), panda(tool_z=0.14)
DT = 0.005
FREE = ControllerConfig(collision=CollisionConfig(self_collision=False))
SCENE = CollisionConfig(
    plane=Plane(offset=-0.05),
    spheres=(Sphere(center=(0.5, 0.2, 0.4), radius=0.08),),
    boxes=(Box(center=(0.5, -0.3, 0.1), half_extents=(0.1, 0.1, 0.2)),),
)
SHARED = Path(__file__).resolve().parents[2] / ".." / "shared" / "wbc" / "trajectories.npz"


def started(robot: RobotModel, config: ControllerConfig = FREE, q: Any = None) -> WholeBodyController:
    controller = WholeBodyController(robot, config)
    controller.reset(robot.home if q is None else q, 1.0, 0.0)
    return controller


def chunk_along(
    robot: RobotModel, offsets: np.ndarray, start: float = 0.0, dt: float = 0.05, turns: Any = None, **changes: Any
) -> ActionTrajectory:
    """Poses at `offsets` `[k 3]` [m] from the home tool pose, turned by `turns` `[k 3]` [rad]."""
    tool, count = Kinematics(robot).forward(robot.home).tool, len(offsets)
    turns = np.zeros((count, 3)) if turns is None else turns
    quaternions = np.array([quaternion_from_matrix(rotation_exp(t) @ tool[:3, :3]) for t in turns])
    values = {
        "positions": tool[:3, 3] + offsets,
        "quaternions": quaternions,
        "gripper": np.ones(count),
        "dt": dt,
        "start_time": start,
    }
    return ActionTrajectory(**(values | changes))


def straight(robot: RobotModel, offset: Any, start: float = 0.0, count: int = 10, dt: float = 0.05) -> ActionTrajectory:
    return chunk_along(robot, np.linspace(1 / count, 1.0, count)[:, None] * np.asarray(offset), start, dt)


def run(controller: WholeBodyController, seconds: float, start: float = 0.0) -> list[JointCommand]:
    return [controller.step(start + i * DT) for i in range(round(seconds / DT))]


def motion(commands: list[JointCommand], first: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Positions `[n+1 j]`, velocities `[n j]` and accelerations `[n j]`, beginning at rest at `first`."""
    q = np.array([first] + [c.positions for c in commands])
    v = np.diff(q, axis=0) / DT
    return q, v, np.diff(v, axis=0, prepend=0.0 * v[:1]) / DT


def tool_error(robot: RobotModel, q: np.ndarray, target: np.ndarray) -> np.ndarray:
    return np.linalg.norm(Kinematics(robot).forward_many(np.atleast_2d(q)).tool[:, :3, 3] - target, axis=1)


# --- the adversary ---------------------------------------------------------------------------------------------------


def _hostile(rng: np.random.Generator, tool: np.ndarray, time: float) -> Any:
    """A chunk that may be anything: far, jumping, turning, malformed, not finite, early, late, no chunk at all."""
    count, kind = int(rng.integers(1, 12)), int(rng.integers(12))
    positions = tool[:3, 3] + np.cumsum(0.03 * rng.normal(size=(count, 3)), axis=0)
    quaternions = quaternion_from_matrix(tool[:3, :3]) + 0.1 * rng.normal(size=(count, 4))
    start = time - 0.05 * float(rng.random())
    if kind == 0:
        positions = rng.uniform(-1.2, 1.2, (count, 3))
        quaternions = rng.normal(size=(count, 4))
    elif kind == 1:
        positions = np.tile(rng.uniform(-0.7, 0.7, 3), (count, 1))
    elif kind == 2:
        start = time + float(rng.uniform(-0.3, 0.6))
    chunk = ActionTrajectory(
        positions=positions,
        quaternions=quaternions / np.linalg.norm(quaternions, axis=1, keepdims=True),
        gripper=rng.random(count),
        dt=float(rng.choice([0.005, 1 / 30, 0.1])),
        start_time=start,
    )
    broken: dict[int, tuple[str, Any]] = {
        6: ("positions", np.full((count, 3), rng.choice([np.nan, np.inf, -np.inf, 1e12]))),
        7: ("quaternions", rng.normal(size=(count, 4))),
        8: ("positions", rng.choice(["no array", 3, None]) if rng.random() < 0.5 else np.zeros((count, 2))),
        9: ("start_time", rng.choice([np.nan, np.inf, -1e9])),
        10: ("dt", rng.choice([0.0, -1.0, np.nan, 1e-9])),
    }
    if kind in broken:
        object.__setattr__(chunk, *broken[kind])
    return None if kind == 11 and rng.random() < 0.3 else chunk


def _hostile_time(rng: np.random.Generator, time: float) -> float:
    """A clock that is right, mostly."""
    if rng.random() > 0.002:
        return time
    return float(rng.choice([np.nan, np.inf, -np.inf, 0.0, time - 1.0, time + 0.1]))


def _attack(robot: RobotModel, config: ControllerConfig, ticks: int, seed: int) -> WholeBodyController:
    """Attack for `ticks` ticks, then check every command against every limit and against the scene."""
    rng, kinematics = np.random.default_rng(seed), Kinematics(robot)
    controller = started(robot, config)
    commands: list[JointCommand] = []
    q = robot.home
    for index in range(ticks):
        if rng.random() < 0.02:
            controller.accept(_hostile(rng, kinematics.forward(q).tool, index * DT))
        measured = None if rng.random() < 0.99 else rng.choice([np.nan, 0.0], size=len(q)) + q
        command = controller.step(_hostile_time(rng, index * DT), measured)
        commands.append(command)
        q = command.positions
        if index % 5000 == 4999:
            controller.emergency_stop()
        if command.status in ("emergency_stop", "protective_stop") and not np.any(command.velocities):
            controller.reset(q, 1.0, (index + 1) * DT)
    positions, velocities, accelerations = motion(commands, robot.home)
    assert np.all(np.isfinite(positions)) and all(0.0 <= c.gripper <= 1.0 for c in commands)
    assert np.all(positions >= robot.lower - 1e-6) and np.all(positions <= robot.upper + 1e-6)
    assert np.all(np.abs(velocities) <= robot.velocity * (1 + 1e-6))
    np.testing.assert_allclose(velocities, [c.velocities for c in commands], atol=1e-9)
    flagged = np.array([c.status in ("emergency_brake", "emergency_stop", "protective_stop") for c in commands])
    bounds = np.where(flagged[:, None], robot.emergency_acceleration, robot.acceleration)
    assert np.all(np.abs(accelerations) <= bounds * (1 + 1e-6) + 1e-6)
    assert {c.status for c in commands} <= set(STATUSES)
    model = CollisionModel(robot, config.collision)
    if model.num_pairs:
        nearest = min(
            model.clearances(kinematics.forward_many(part)).nearest for part in np.array_split(positions[::2], 200)
        )
        assert nearest >= config.collision.clearance - 0.001
    assert float(np.abs(np.diff(positions, axis=0)).sum()) > ticks * 1e-3
    return controller


CAMPAIGN = [
    ("kinova_gen3", "free"),
    ("kinova_gen3", "scene"),
    ("kinova_gen3", "smoothed"),
    ("panda", "free"),
    ("panda", "scene"),
    ("boxed", "scene"),
]
ARMS = ROBOTS | {"boxed": boxed(GEN3)}


def _configuration(world: str) -> ControllerConfig:
    if world == "free":
        return FREE
    config = ControllerConfig(collision=SCENE)
    return config if world == "scene" else dataclasses.replace(config, optimization=None)


@pytest.mark.parametrize(("name", "world"), CAMPAIGN)
def test_no_input_breaks_a_limit_or_a_clearance(name: str, world: str) -> None:
    controller = _attack(ARMS[name], _configuration(world), 8_000, seed=7)
    rejected = sum(n for code, n in controller.counters.items() if code.startswith("rejected"))
    assert rejected > 30 and controller.counters["accepted"] > 30


@pytest.mark.nightly
@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize(("name", "world"), CAMPAIGN)
def test_no_input_breaks_a_limit_or_a_clearance_in_a_million_ticks(name: str, world: str, seed: int) -> None:
    controller = _attack(ARMS[name], _configuration(world), 20_000, seed=100 + seed)
    assert controller.counters["accepted"] > 30


# --- rejection, order, staleness -------------------------------------------------------------------------------------


def test_a_malformed_chunk_leaves_no_trace() -> None:
    """Positions afterwards equal those of a controller that never saw it, bit for bit."""
    rng, tool = np.random.default_rng(0), Kinematics(GEN3).forward(GEN3.home).tool
    disturbed, quiet = started(GEN3), started(GEN3)
    refused = 0
    for index in range(400):
        if index % 100 == 0:
            for controller in (disturbed, quiet):
                controller.accept(straight(GEN3, (0.03, 0.02, 0.0), index * DT))
        bad = _hostile(rng, tool, index * DT)
        if not isinstance(bad, ActionTrajectory) or not _sound(bad):
            refused += disturbed.accept(bad).startswith("rejected")
        np.testing.assert_array_equal(disturbed.step(index * DT).positions, quiet.step(index * DT).positions)
    assert refused > 100


def _sound(chunk: ActionTrajectory) -> bool:
    """Whether nothing about the chunk itself is wrong."""
    arrays = (chunk.positions, chunk.quaternions, chunk.gripper)
    if not all(isinstance(a, np.ndarray) for a in arrays) or chunk.positions.shape != (len(chunk.gripper), 3):
        return False
    numbers = np.concatenate([a.ravel() for a in arrays] + [[chunk.dt, chunk.start_time]])
    lengths = np.linalg.norm(chunk.quaternions, axis=1)
    return bool(np.all(np.isfinite(numbers)) and np.abs(lengths - 1).max() < 1e-3 and chunk.dt > 1e-3) and bool(
        np.abs(chunk.positions).max() < 10 and chunk.start_time > -1e6
    )


def test_late_repeated_and_disordered_chunks_are_told_apart() -> None:
    controller = started(GEN3)
    first = straight(GEN3, (0.05, 0.0, 0.0), 0.0)
    assert controller.accept(first) == "accepted"
    assert controller.accept(first) == "rejected_order"
    run(controller, 0.3)
    assert controller.accept(straight(GEN3, (0.0, 0.05, 0.0), 0.2)) == "accepted"
    assert controller.counters["poses_dropped"] == 2
    assert controller.accept(straight(GEN3, (0.0, 0.05, 0.0), 0.1)) == "rejected_order"
    run(controller, 1.0, 0.3)
    assert controller.accept(straight(GEN3, (0.0, 0.05, 0.0), 0.7)) == "rejected_expired"


def test_the_chunk_ends_at_rest_when_no_other_follows(robot: RobotModel) -> None:
    controller = started(robot)
    controller.accept(straight(robot, (0.06, 0.03, -0.02)))
    commands = run(controller, 2.0)
    q, v, _ = motion(commands, robot.home)
    assert np.all(v[-1] == 0.0) and commands[-1].status == "hold"
    goal = straight(robot, (0.06, 0.03, -0.02)).positions[-1]
    assert tool_error(robot, q[-1], goal)[0] < 5e-4


def test_a_gap_between_ticks_drops_the_chunk() -> None:
    controller = started(GEN3)
    controller.accept(straight(GEN3, (0.1, 0.0, 0.0)))
    before = run(controller, 0.2)
    after = [controller.step(0.6 + i * DT) for i in range(200)]
    assert controller.counters["watchdog"] == 1
    _, v, a = motion(before + after, GEN3.home)
    assert np.all(np.abs(a) <= GEN3.acceleration * (1 + 1e-6)) and np.all(v[-1] == 0.0)
    assert after[-1].status == "hold"


def test_an_arm_that_was_moved_by_hand_takes_no_chunk_before_a_reset() -> None:
    controller = started(GEN3)
    moved = GEN3.home + 0.06
    controller.step(0.0, moved)
    assert controller.accept(straight(GEN3, (0.05, 0.0, 0.0), 0.01)) == "rejected_state"
    controller.reset(moved, 1.0, 0.02)
    assert controller.accept(straight(GEN3, (0.05, 0.0, 0.0), 0.02)) == "accepted"


# --- smoothness and accuracy -----------------------------------------------------------------------------------------


@pytest.mark.skipif(not SHARED.exists(), reason="the recorded test trajectories are not beside the repository")
def test_smooth_trajectories_are_tracked_within_0_3_mm() -> None:
    data, kinematics = np.load(SHARED), Kinematics(GEN3)
    for case in range(len(data["T"])):
        poses, q0 = data["T"][case], data["q0"][case]
        controller = started(GEN3, ControllerConfig(collision=CollisionConfig(plane=Plane())), q0)
        commands = []
        for index in range(len(poses) - 1):
            if index % 40 == 0:
                due = np.minimum(index + 10 * (np.arange(20) + 1), len(poses) - 1)
                controller.accept(
                    ActionTrajectory(
                        positions=poses[due, :3, 3],
                        quaternions=np.array([quaternion_from_matrix(p[:3, :3]) for p in poses[due]]),
                        gripper=np.ones(20),
                        dt=0.05,
                        start_time=index * DT,
                    )
                )
            commands.append(controller.step(index * DT))
        q, _, a = motion(commands, q0)
        tools = kinematics.forward_many(q[1:]).tool
        errors = np.linalg.norm(tools[:, :3, 3] - poses[1:, :3, 3], axis=1)
        turns = np.linalg.norm(rotation_logs(poses[1:, :3, :3] @ tools[:, :3, :3].transpose(0, 2, 1)), axis=1)
        assert np.sqrt(np.mean(errors**2)) <= 0.3e-3 and errors.max() <= 0.6e-3
        assert np.degrees(np.sqrt(np.mean(turns**2))) <= 0.1
        jerk = np.diff(a, axis=0) / DT
        assert np.sqrt(np.mean(jerk**2)) <= 12.0 and np.abs(jerk).max() <= 1000.0
        assert set(controller.counters) & {"emergency_acceleration", "brake", "optimization_failed"} == set()


def _wavy(due: np.ndarray) -> np.ndarray:
    return np.stack([0.10 * np.sin(1.4 * due), 0.10 * np.sin(1.1 * due), 0.06 * (1 - np.cos(1.7 * due))], -1)


def test_noisy_replanned_chunks_move_the_joints_softly() -> None:
    """10 Hz chunks, each with a bias of up to 1 cm and 3 degrees, and 2 mm and 1 degree of noise on each pose."""
    rng, tool = np.random.default_rng(5), Kinematics(GEN3).forward(GEN3.home).tool
    controller, commands = started(GEN3), []
    for index in range(2000):
        if index % 100 == 0:
            due = index * DT + 0.1 * (np.arange(10) + 1)
            bias, tilt = (rng.normal(size=3) for _ in range(2))
            bias *= 0.01 * rng.random() / np.linalg.norm(bias)
            tilt *= np.radians(3.0) * rng.random() / np.linalg.norm(tilt)
            turns = tilt + np.radians(1.0) * rng.normal(size=(10, 3))
            offsets = _wavy(due) + bias + 0.002 * rng.normal(size=(10, 3))
            assert controller.accept(chunk_along(GEN3, offsets, index * DT, 0.1, turns)) == "accepted"
        commands.append(controller.step(index * DT))
    q, _, a = motion(commands, GEN3.home)
    truth = tool[:3, 3] + _wavy(DT * (np.arange(2000) + 1))
    jerk = np.diff(a, axis=0) / DT
    assert np.sqrt(np.mean(jerk**2)) <= 12.0 and np.abs(jerk).max() <= 1000.0
    assert np.sqrt(np.mean(np.square(tool_error(GEN3, q[1:], truth)))) <= 6e-3


def test_the_commands_are_on_the_plan_and_swaps_are_twice_differentiable(robot: RobotModel) -> None:
    controller, plan_errors, jumps = started(robot), [], []
    for index in range(400):
        if index % 37 == 0:
            before = controller._queue.state_at(controller._clock.reference)
            due = index * DT + 0.05 * (np.arange(12) + 1)
            assert controller.accept(chunk_along(robot, 0.5 * _wavy(due), index * DT)) == "accepted"
            after = controller._queue.state_at(controller._clock.reference)
            jumps.append([np.abs(getattr(after, n) - getattr(before, n)).max() for n in ("q", "dq", "ddq")])
        command = controller.step(index * DT)
        assert isinstance(controller._queue.motion, JointSpline)
        plan_errors.append(tool_error(robot, command.positions, _tool_at(robot, controller)))
    assert np.max(plan_errors) < 5e-5
    assert np.all(np.max(jumps, axis=0) < [1e-9, 1e-6, 1e-3])


def _tool_at(robot: RobotModel, controller: WholeBodyController) -> np.ndarray:
    assert isinstance(controller._queue.motion, JointSpline)
    return Kinematics(robot).forward(controller._queue.motion.positions(controller._clock.reference)).tool[:3, 3]


def test_the_same_input_gives_the_same_bits(robot: RobotModel) -> None:
    runs = []
    for _ in range(2):
        controller = started(robot, ControllerConfig(collision=CollisionConfig(plane=Plane(offset=-0.1))))
        commands = []
        for index in range(200):
            if index % 50 == 0:
                controller.accept(straight(robot, (0.05, 0.03, -0.02), index * DT))
            commands.append(controller.step(index * DT).positions)
        runs.append(np.array(commands))
    np.testing.assert_array_equal(runs[0], runs[1])


# --- what cannot be done ---------------------------------------------------------------------------------------------


def test_an_unreachable_target_is_approached_held_reported_and_left() -> None:
    far_at_once = GuardConfig(max_jump=np.inf)
    controller = started(GEN3, dataclasses.replace(FREE, guard=far_at_once))
    status, times = [], []
    for index in range(1600):
        if index % 40 == 0:
            goal = (1.0, 0.0, 0.1) if index < 1000 else (0.05, 0.0, 0.0)
            start = index * DT
            controller.accept(chunk_along(GEN3, np.tile(goal, (20, 1)), start))
        command = controller.step(index * DT)
        status.append(command.status)
        times.append(np.abs(command.velocities).max())
    assert status[990] == "unreachable" and max(times[800:990]) < 0.01
    residuals = [e for e in controller.events if e.code == "unreachable"]
    assert residuals and "mm" in residuals[-1].detail
    goal = Kinematics(GEN3).forward(GEN3.home).tool[:3, 3] + [0.05, 0.0, 0.0]
    assert tool_error(GEN3, command.positions, goal)[0] < 5e-3
    assert status[-1] in ("track", "hold")


def test_singularities_neither_blow_up_nor_chatter() -> None:
    """The tool is led through the wrist's singularity and to the stretched elbow and back."""
    q0 = np.array([0.0, 0.6, 0.0, 1.6, 0.0, 0.5, -np.pi / 2])
    kinematics = Kinematics(GEN3)
    share = 0.5 - 0.5 * np.cos(np.linspace(0.0, 2 * np.pi, 601))
    path = q0 + share[:, None] * np.array([0.0, 0.0, 0.0, -1.55, 0.0, -0.55, 0.0])
    poses = kinematics.forward_many(path).tool
    lows = []
    for weight in (2e-3, 0.0):
        config = dataclasses.replace(FREE, optimization=OptimizationConfig(manipulability_weight=weight))
        controller, commands = started(GEN3, config, q0), []
        for index in range(600):
            if index % 40 == 0:
                due = np.minimum(index + 10 * (np.arange(20) + 1), 600)
                quaternions = np.array([quaternion_from_matrix(p[:3, :3]) for p in poses[due]])
                controller.accept(
                    ActionTrajectory(
                        positions=poses[due, :3, 3],
                        quaternions=quaternions,
                        gripper=np.ones(20),
                        dt=0.05,
                        start_time=index * DT,
                    )
                )
            commands.append(controller.step(index * DT))
        q, v, a = motion(commands, q0)
        assert np.all(np.abs(v) <= GEN3.velocity * (1 + 1e-6))
        strong = np.where(np.abs(a) > 0.05 * GEN3.acceleration, np.sign(a), 0.0)
        flips = max(np.count_nonzero(np.diff(s[s != 0.0])) for s in strong.T)
        assert flips <= 5 * 3.0
        lows.append(min(manipulability(j) for j in kinematics.forward_many(q).jacobian))
    assert lows[0] >= lows[1] - 1e-4


def test_a_failed_optimization_degrades_without_a_jump(monkeypatch: pytest.MonkeyPatch) -> None:
    controller, commands = started(GEN3), []
    original = optimization.ChunkOptimizer.plan

    def failing(self: optimization.ChunkOptimizer, *args: Any, **kwargs: Any) -> optimization.Plan:
        if 0.5 < args[1] < 0.9:
            raise ControlError("no solution")
        return original(self, *args, **kwargs)

    monkeypatch.setattr(optimization.ChunkOptimizer, "plan", failing)
    for index in range(300):
        if index % 40 == 0:
            due = index * DT + 0.05 * (np.arange(12) + 1)
            assert controller.accept(chunk_along(GEN3, 0.5 * _wavy(due), index * DT)) == "accepted"
        commands.append(controller.step(index * DT))
    statuses = [c.status for c in commands]
    assert statuses[150] == "degraded" and statuses[60] == "track" and statuses[-1] == "track"
    assert controller.counters["optimization_failed"] == 2
    q, _, a = motion(commands, GEN3.home)
    assert np.all(np.abs(a) <= GEN3.acceleration * (1 + 1e-6))
    truth = Kinematics(GEN3).forward(GEN3.home).tool[:3, 3] + 0.5 * _wavy(DT * (np.arange(300) + 1))
    assert tool_error(GEN3, q[1:], truth).max() < 5e-3


def test_a_planner_that_is_too_late_degrades_without_a_jump(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ticks continue in this thread while another plans; a plan that comes after its switch is not used."""
    controller = started(GEN3, dataclasses.replace(FREE, lead=0.02))
    original, go, began = optimization.ChunkOptimizer.plan, threading.Event(), threading.Event()

    def slow(self: optimization.ChunkOptimizer, *args: Any, **kwargs: Any) -> optimization.Plan:
        began.set()
        go.wait(5.0)
        return original(self, *args, **kwargs)

    assert controller.accept(straight(GEN3, (0.05, 0.0, 0.0))) == "accepted"
    commands = run(controller, 0.2)
    monkeypatch.setattr(optimization.ChunkOptimizer, "plan", slow)
    verdicts: list[str] = []
    thread = threading.Thread(target=lambda: verdicts.append(controller.accept(straight(GEN3, (0.05, 0.05, 0.0), 0.2))))
    thread.start()
    assert began.wait(5.0)
    commands += run(controller, 0.1, 0.2)
    go.set()
    thread.join(5.0)
    commands += run(controller, 1.5, 0.3)
    assert verdicts == ["accepted"] and controller.counters["late"] == 1
    assert "degraded" in {c.status for c in commands}
    _, _, a = motion(commands, GEN3.home)
    assert np.all(np.abs(a) <= GEN3.acceleration * (1 + 1e-6))


def test_a_plan_in_time_takes_over_at_its_switch() -> None:
    controller = started(GEN3, dataclasses.replace(FREE, lead=0.02))
    commands = []
    for index in range(300):
        if index % 40 == 0:
            due = index * DT + 0.05 * (np.arange(12) + 1)
            assert controller.accept(chunk_along(GEN3, 0.5 * _wavy(due), index * DT)) == "accepted"
        commands.append(controller.step(index * DT))
    q, _, _ = motion(commands, GEN3.home)
    truth = Kinematics(GEN3).forward(GEN3.home).tool[:3, 3] + 0.5 * _wavy(DT * (np.arange(300) + 1))
    assert tool_error(GEN3, q[60:], truth[59:]).max() < 2e-3
    assert controller.counters["late"] == 0


# --- stops and supervision -------------------------------------------------------------------------------------------


def test_an_emergency_stop_takes_a_tenth_of_a_second_and_latches() -> None:
    controller = started(GEN3)
    controller.accept(straight(GEN3, (0.25, 0.1, 0.1)))
    commands = run(controller, 0.3)
    assert np.abs(commands[-1].velocities).max() > 0.3
    controller.emergency_stop()
    commands += run(controller, 0.3, 0.3)
    _, v, a = motion(commands, GEN3.home)
    assert np.all(np.abs(a) <= GEN3.emergency_acceleration * (1 + 1e-6))
    assert np.all(v[60 + 23 :] == 0.0) and np.all(v[60 + 11 :, 4:] == 0.0)
    assert controller.accept(straight(GEN3, (0.1, 0.0, 0.0), 1.0)) == "rejected_stopped"
    assert {c.status for c in commands[60:]} == {"emergency_stop"}
    controller.reset(commands[-1].positions, 1.0, 1.0)
    assert controller.accept(straight(GEN3, (0.1, 0.0, 0.0), 1.0)) == "accepted"


def test_a_lagging_arm_slows_the_motion_and_a_stuck_one_stops_it() -> None:
    controller = started(GEN3)
    controller.accept(straight(GEN3, (0.25, 0.0, 0.0), count=20))
    speeds, statuses = [], []
    for index in range(120):
        lag = np.radians(0.0 if index < 40 else 4.0)
        command = controller.step(index * DT, None if not index else command.positions - lag)
        speeds.append(np.abs(command.velocities).max())
        statuses.append(command.status)
    assert statuses[30] == "track" and statuses[-1] == "slowed"
    assert controller.counters["following_error"] == 1
    plain = started(GEN3)
    plain.accept(straight(GEN3, (0.25, 0.0, 0.0), count=20))
    reference = run(plain, 0.6)
    assert speeds[110] < 0.75 * np.abs(reference[110].velocities).max() or speeds[110] < speeds[60]
    stuck = controller.step(0.6, command.positions - np.radians(5.5))
    assert stuck.status == "protective_stop"
    rest = run(controller, 0.3, 0.605)
    assert np.all(rest[-1].velocities == 0.0)
    assert controller.accept(straight(GEN3, (0.1, 0.0, 0.0), 1.0)) == "rejected_stopped"


def test_measurements_that_cannot_be_used_are_counted_and_then_stop_the_arm() -> None:
    controller = started(GEN3, dataclasses.replace(FREE, supervision=SupervisionConfig(max_bad_measurements=3)))
    for index, bad in enumerate([np.full(7, np.nan), np.zeros(3), "junk", None, GEN3.home]):
        assert controller.step(index * DT, bad).status == "hold"
    assert controller.counters["measurement"] == 3
    for index in range(4):
        command = controller.step((5 + index) * DT, np.full(7, np.inf))
    assert command.status == "protective_stop"


# --- gripper, joints without stops, scene ----------------------------------------------------------------------------


def test_the_gripper_keeps_range_rate_and_time() -> None:
    controller = started(GEN3, dataclasses.replace(FREE, gripper_rate=1000.0))
    values = np.array([1.0, 1.0, 0.0, 0.0, 0.52, 0.5, 0.53, 1.0, 1.0, 1.0])
    offsets = np.zeros((10, 3))
    assert controller.accept(chunk_along(GEN3, offsets, dt=0.1, gripper=values)) == "accepted"
    openings = np.array([c.gripper for c in run(controller, 1.2)])
    times = (np.arange(len(openings)) + 1) * DT
    assert times[openings < 0.5][0] == pytest.approx(0.2, abs=DT + 1e-9)
    assert times[openings > 0.9][0] < 0.2 and np.all((openings >= 0.0) & (openings <= 1.0))
    middle = openings[(times > 0.41) & (times < 0.69)]
    assert np.ptp(middle) == 0.0
    slow = started(GEN3)
    slow.accept(chunk_along(GEN3, offsets, dt=0.1, gripper=np.zeros(10)))
    openings = np.array([1.0] + [c.gripper for c in run(slow, 1.0)])
    assert np.abs(np.diff(openings)).max() <= GEN3.gripper_rate * DT + 1e-12


def test_joints_without_stops_turn_on_past_a_full_turn() -> None:
    """The tool circles the base twice; the first joint turns on, sharing a little with the other endless joints."""
    controller, commands, kinematics = started(GEN3), [], Kinematics(GEN3)
    seconds, speed = 17.0, 4 * np.pi / 16.0
    for index in range(int(seconds / DT)):
        if index % 40 == 0:
            angle = speed * np.minimum(index * DT + 0.05 * (np.arange(20) + 1), 16.0)
            q = np.tile(GEN3.home, (20, 1)) - np.array([1.0, 0, 0, 0, 0, 0, 0]) * angle[:, None]
            tools = kinematics.forward_many(q).tool
            controller.accept(
                ActionTrajectory(
                    positions=tools[:, :3, 3],
                    quaternions=np.array([quaternion_from_matrix(t[:3, :3]) for t in tools]),
                    gripper=np.ones(20),
                    dt=0.05,
                    start_time=index * DT,
                )
            )
        commands.append(controller.step(index * DT))
    q, v, _ = motion(commands, GEN3.home)
    assert q[-1, 0] < -3.5 * np.pi and np.all(np.abs(v) <= GEN3.velocity * (1 + 1e-6))
    final = kinematics.forward(GEN3.home).tool[:3, 3]
    assert tool_error(GEN3, q[-1], final)[0] < 1e-3


def test_the_tool_stays_in_the_workspace() -> None:
    tool = Kinematics(GEN3).forward(GEN3.home).tool[:3, 3]
    walls = (tuple(tool - 0.1), tuple(tool + 0.1))
    config = ControllerConfig(collision=CollisionConfig(self_collision=False, workspace=walls))
    controller = started(GEN3, config)
    controller.accept(straight(GEN3, (0.3, 0.2, 0.25), count=20))
    tools = np.array([Kinematics(GEN3).forward(c.positions).tool[:3, 3] for c in run(controller, 2.0)])
    assert np.all(tools <= tool + 0.1 + 1e-3) and np.all(tools[-1] > tool + 0.07)


def test_moving_obstacles_are_evaded_and_known_ahead() -> None:
    """A ball crosses the standing tool's place at 0.3 m/s."""
    tool = Kinematics(GEN3).forward(GEN3.home).tool[:3, 3]
    ball = Sphere(center=tuple(tool + [0.0, 0.45, 0.05]), radius=0.05, velocity=(0.0, -0.3, 0.0))
    scene = CollisionConfig(plane=Plane(), spheres=(ball,))
    controller = started(GEN3, ControllerConfig(collision=scene))
    model, low = CollisionModel(GEN3, scene), np.inf
    commands = []
    for index in range(600):
        if index % 40 == 0:
            controller.accept(chunk_along(GEN3, np.zeros((20, 3)), index * DT))
        commands.append(controller.step(index * DT))
        pose = Kinematics(GEN3).forward(commands[-1].positions)
        low = min(low, model.clearances(pose, elapsed=(index + 1) * DT).nearest)
    assert low > 0.009
    _, _, a = motion(commands, GEN3.home)
    assert np.all(np.abs(a) <= GEN3.acceleration * (1 + 1e-6))
    assert tool_error(GEN3, commands[-1].positions, tool)[0] < 5e-3


def test_a_grasped_object_is_kept_clear_too() -> None:
    rod = Capsule(link=0, start=(0.0, 0.0, 0.0), end=(0.0, 0.0, 0.10), radius=0.02)
    low = {}
    for attached in (None, rod):
        scene = CollisionConfig(plane=Plane(offset=-0.25), self_collision=False)
        controller = started(GEN3, ControllerConfig(collision=scene))
        if attached is not None:
            controller.attach(attached)
        controller.accept(straight(GEN3, (0.0, 0.0, -0.5), count=20))
        q = run(controller, 3.0)[-1].positions
        low[attached is None] = float(Kinematics(GEN3).forward(q).tool[2, 3])
    assert low[False] > low[True] + 0.05
    assert low[False] - 0.10 - 0.02 + 0.25 >= 0.009


def test_an_arm_that_starts_too_near_moves_out(robot: RobotModel) -> None:
    pose = Kinematics(robot).forward(robot.home)
    ball = Sphere(center=tuple(pose.tool[:3, 3] + [0.2, 0.0, -0.25]), radius=0.05)
    scene = CollisionConfig(spheres=(ball,), self_collision=False)
    gap = CollisionModel(robot, scene).clearances(pose).nearest
    scene = dataclasses.replace(scene, spheres=(dataclasses.replace(ball, radius=0.05 + gap - 0.003),))
    controller, model = started(robot, ControllerConfig(collision=scene)), CollisionModel(robot, scene)
    distances = [model.clearances(Kinematics(robot).forward(c.positions)).nearest for c in run(controller, 1.0)]
    assert min(distances) > 0.003 - 1e-6 and distances[-1] > 0.009


# --- bookkeeping -----------------------------------------------------------------------------------------------------


def test_every_change_of_status_is_an_event_with_its_time() -> None:
    controller = started(GEN3)
    controller.accept(straight(GEN3, (0.05, 0.0, 0.0)))
    statuses = [c.status for c in run(controller, 1.5)]
    controller.emergency_stop()
    statuses += [c.status for c in run(controller, 0.2, 1.5)]
    changes = [b for a, b in zip(["hold", *statuses], statuses, strict=False) if a != b]
    logged = [e for e in controller.events if e.code in STATUSES]
    assert [e.code for e in logged] == changes == ["track", "hold", "emergency_stop"]
    assert [e.time for e in logged] == sorted(e.time for e in logged) and logged[0].time == 0.0
    assert all(controller.counters[e.code] == 1 for e in logged)


def _grown(ticks: int) -> float:
    """Return by how much [MiB] the memory held by Python grows over `ticks` ticks of re-planned motion."""
    controller = started(GEN3, ControllerConfig(collision=SCENE))
    tracemalloc.start()
    held = 0
    for index in range(ticks):
        if index % 40 == 0:
            due = index * DT + 0.05 * (np.arange(12) + 1)
            controller.accept(chunk_along(GEN3, 0.5 * _wavy(due), index * DT))
        controller.step(index * DT)
        if index == 2000:
            held = tracemalloc.get_traced_memory()[0]
    grown = tracemalloc.get_traced_memory()[0] - held
    tracemalloc.stop()
    return grown / 2**20


def _resident() -> float:
    """Return the memory of this process [MiB]."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def test_memory_stays_flat() -> None:
    assert _grown(5000) < 0.5


@pytest.mark.nightly
def test_memory_stays_flat_for_ten_minutes_of_ticks() -> None:
    _grown(2500)
    before = _resident()
    assert _grown(120_000) < 1.0
    assert _resident() - before < 5.0


# --- the example -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arguments", [["kinova_gen3"], ["{urdf}", "0", "0.6", "0", "-1.2", "0", "0.8", "0"]])
def test_the_example_draws_its_circle(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    urdf = Path(pytest.importorskip("pybullet_data").getDataPath()) / "kuka_iiwa" / "model.urdf"
    script = Path(__file__).resolve().parents[2] / "examples" / "circle.py"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", [str(script), *(a.format(urdf=urdf) for a in arguments)])
        runpy.run_path(str(script), run_name="__main__")
    assert float(capsys.readouterr().out.split()[-4]) < 0.3


def test_the_documentation_names_tests_that_exist() -> None:
    root = Path(__file__).resolve().parents[2]
    named = set(re.findall(r"`(test_\w+)`", (root / "docs" / "wbc.md").read_text(encoding="utf-8")))
    written = {
        name
        for file in (root / "tests").rglob("test_*.py")
        for name in re.findall(r"def (test_\w+)", file.read_text(encoding="utf-8"))
    }
    assert len(named) > 20 and named <= written, sorted(named - written)
