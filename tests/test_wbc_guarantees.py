"""What the controller promises, one test a promise; docs/wbc.md lists them with the names of these tests."""

from __future__ import annotations

import dataclasses
import threading
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gr2.gr_model.contracts import ActionTrajectory, JointCommand
from gr2.gr_model.errors import ControlError
from gr2.wbc import optimization
from gr2.wbc.collision import Box, CollisionConfig, CollisionModel, Plane, Sphere
from gr2.wbc.controller import ControllerConfig, WholeBodyController
from gr2.wbc.kinematics import Kinematics, manipulability
from gr2.wbc.optimization import OptimizationConfig, rotation_logs
from gr2.wbc.robots import Capsule, RobotModel, kinova_gen3, panda
from gr2.wbc.splines import JointTrajectory
from gr2.wbc.status import STATUSES
from gr2.wbc.supervision import SupervisionConfig
from gr2.wbc.tracking import TrackingConfig
from gr2.wbc.transforms import quaternion_from_matrix, rotation_exp

GEN3, PANDA = kinova_gen3(), panda(tool_z=0.14)
ROBOTS = {"kinova_gen3": GEN3, "panda": PANDA}
DT = 0.005
FREE = ControllerConfig(collision=CollisionConfig(self_collision=False))
SCENE = CollisionConfig(
    plane=Plane(offset=-0.05),
    spheres=(Sphere(center=(0.5, 0.2, 0.4), radius=0.08),),
    boxes=(Box(center=(0.5, -0.3, 0.1), half_extents=(0.1, 0.1, 0.2)),),
)
SHARED = Path(__file__).resolve().parents[1] / ".." / "shared" / "wbc" / "trajectories.npz"


@pytest.fixture(params=sorted(ROBOTS))
def robot(request: pytest.FixtureRequest) -> RobotModel:
    return ROBOTS[request.param]


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
        measured = None if rng.random() < 0.99 else rng.choice([np.nan, 0.0], size=7) + q
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
]


def _configuration(world: str) -> ControllerConfig:
    if world == "free":
        return FREE
    config = ControllerConfig(collision=SCENE)
    return config if world == "scene" else dataclasses.replace(config, optimization=None)


@pytest.mark.parametrize(("name", "world"), CAMPAIGN)
def test_no_input_breaks_a_limit_or_a_clearance(name: str, world: str) -> None:
    controller = _attack(ROBOTS[name], _configuration(world), 20_000, seed=7)
    rejected = sum(n for code, n in controller.counters.items() if code.startswith("rejected"))
    assert rejected > 30 and controller.counters["accepted"] > 30


@pytest.mark.nightly
@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize(("name", "world"), CAMPAIGN)
def test_no_input_breaks_a_limit_or_a_clearance_in_a_million_ticks(name: str, world: str, seed: int) -> None:
    _attack(ROBOTS[name], _configuration(world), 20_000, seed=100 + seed)
