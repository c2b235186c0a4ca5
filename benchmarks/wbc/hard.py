"""Motions that the Kinova Gen3 cannot follow exactly: out of reach, singular, with jumps, through obstacles."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ...contracts import Array
from ...wbc.collision import Sphere
from ...wbc.robot.kinematics import Kinematics
from ...wbc.robot.robots import RobotModel
from .feeding import NoiseConfig, with_noise
from .motions import moved, moved_along, one_way, there_and_back
from .trajectories import TrackingCase

DOWN = np.array([0.0, 0.65, 0.0, 1.89, 0.0, 0.6, -np.pi / 2])
"""Joints [rad] with the gripper pointing down at the table, 7 cm above it."""

HOLD = 240
"""Ticks for which a case stays at its last pose, so that one sees whether the arm gets there."""

BENT = np.array([0.0, 0.6, 0.0, 1.6, 0.0, 0.5, -np.pi / 2])
STILL = np.zeros(3)


def hard_cases(robot: RobotModel) -> list[TrackingCase]:
    """Return all hard cases, for the Kinova Gen3."""
    return [*_out_of_reach(robot), *_singular(robot), *_jumping(robot), *_blocked(robot), *_turned(robot)]


def _case(name: str, poses: Array, q0: Array, spheres: Sequence[Sphere] = ()) -> TrackingCase:
    held = np.concatenate([poses, np.tile(poses[-1], (HOLD, 1, 1))])
    return TrackingCase(name=name, group="hard", poses=held, q0=q0, spheres=tuple(spheres))


def _tool(robot: RobotModel, q: Array) -> Array:
    return Kinematics(robot).forward(q).tool


def _by_joints(name: str, robot: RobotModel, q0: Array, change: Sequence[float], shares: Array) -> TrackingCase:
    """Make the poses of a joint motion, whose limits are not looked at."""
    q0 = np.asarray(q0)
    poses = Kinematics(robot).forward_many(q0 + shares[:, None] * np.asarray(change)).tool
    return _case(name, poses, q0)


def _out_of_reach(robot: RobotModel) -> list[TrackingCase]:
    start = _tool(robot, DOWN)
    stretch = moved_along(start, there_and_back(4.0), np.array([0.75, 0.0, 0.25]), STILL)
    step = np.tile(moved(start, np.array([1.0, 0.4, 0.4]), STILL), (401, 1, 1))
    step[:100] = start
    return [_case("unreach_stretch", stretch, DOWN), _case("unreach_step", step, DOWN)]


def _singular(robot: RobotModel) -> list[TrackingCase]:
    shoulder = np.array([0.2, 0.45, 0.3, 1.9, 0.2, 0.8, -1.4])
    return [
        _by_joints("sing_wrist", robot, BENT, (-0.3, 0.0, 0.1, -0.2, 0.2, -1.0, 0.0), there_and_back(3.0)),
        _by_joints("sing_shoulder", robot, shoulder, (0.1, -0.9, 0.1, 0.0, 0.0, 0.0, 0.0), there_and_back(3.0)),
        _by_joints("sing_elbow", robot, BENT, (0.0, 0.2, 0.0, -1.58, 0.0, 0.4, 0.0), there_and_back(4.0)),
    ]


def _jumping(robot: RobotModel) -> list[TrackingCase]:
    start = _tool(robot, DOWN)
    base = moved_along(start, one_way(2.0), np.array([0.15, 0.1, 0.1]), np.array([0.0, 0.0, 0.3]))
    once = base.copy()
    once[200:] = [
        moved(pose, np.array([0.03, -0.04, 0.0]), np.array([0.0, np.deg2rad(20.0), 0.0])) for pose in base[200:]
    ]
    rng = np.random.default_rng(3)
    often = base.copy()
    for begin in range(67, 401, 67):
        shift, turn = (v / np.linalg.norm(v) for v in rng.normal(size=(2, 3)))
        often[begin:] = [moved(pose, 0.01 * shift, np.deg2rad(5.0) * turn) for pose in often[begin:]]
    slow = moved_along(start, there_and_back(3.0), np.array([0.15, 0.15, 0.1]), np.array([0.0, 0.0, 0.4]))
    noisy = slow.copy()
    for begin in range(0, len(slow), 20):
        shown = with_noise(slow[begin : begin + 1], NoiseConfig(), rng)[0]
        noisy[begin : begin + 20] = shown
    sweep = moved_along(start, one_way(0.5), np.array([0.1, 0.5, 0.2]), STILL)
    fast = np.concatenate([sweep, sweep[::-1], np.tile(start, (60, 1, 1))])
    return [
        _case("jump_5cm20deg", once, DOWN),
        _case("jump_1cm5deg_3Hz", often, DOWN),
        _case("noisy_10Hz_steps", noisy, DOWN),
        _case("too_fast_2mps", fast, DOWN),
    ]


def _blocked(robot: RobotModel) -> list[TrackingCase]:
    start = _tool(robot, DOWN)
    x, y, z = start[:3, 3].tolist()
    on_path = Sphere(center=(x + 0.15, y, 0.1), radius=0.06)
    through = moved_along(start, one_way(2.0), np.array([0.3, 0.0, 0.0]), STILL)
    dive = moved_along(start, there_and_back(3.0), np.array([0.05, 0.0, -0.17]), STILL)
    raised = np.array([0.0, 0.5, 0.0, 1.7, 0.0, 0.8, -np.pi / 2])
    hold = np.tile(_tool(robot, raised), (801, 1, 1))
    hx, hy, hz = hold[0, :3, 3].tolist()
    passing = Sphere(center=(hx + 0.04, hy - 0.6, hz - 0.02), radius=0.06, velocity=(0.0, 0.3, 0.0))
    touching = Sphere(center=(x + 0.105, y, z + 0.03), radius=0.06)
    away = moved_along(start, one_way(2.0), np.array([-0.05, 0.1, 0.15]), STILL)
    return [
        _case("obstacle_sphere", through, DOWN, [on_path]),
        _case("table_dive", dive, DOWN),
        _by_joints("self_hit", robot, DOWN, (0.0, -0.3, 0.0, 0.62, 0.0, 1.2, 0.0), there_and_back(3.0)),
        _by_joints(
            "joint_limit",
            robot,
            np.array([0.0, 0.6, 0.0, 2.2, 0.0, 1.4, -1.5]),
            (0.0, -0.6, 0.0, 0.7, 0.0, 1.1, 0.0),
            there_and_back(3.0),
        ),
        _case("moving_sphere", hold, raised, [passing]),
        _case("start_in_collision", away, DOWN, [touching]),
    ]


def _turned(robot: RobotModel) -> list[TrackingCase]:
    start = _tool(robot, BENT)
    flip = np.tile(moved(start, STILL, np.deg2rad(179.0) * start[:3, 2]), (601, 1, 1))
    flip[:100] = start
    elbow = _by_joints("elbow_flip", robot, BENT, (0.0, 0.0, 0.0, -2.7, 0.0, -0.3, 0.0), one_way(4.0))
    return [_case("pi_flip", flip, BENT), elbow]
