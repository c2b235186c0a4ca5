"""Where a case can be followed at all, decided offline by inverse kinematics that knows the whole motion."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from ...contracts import Array
from ...wbc.collision import Vector
from ...wbc.robot.kinematics import Kinematics
from ...wbc.robot.robots import RobotModel
from ...wbc.robot.transforms import rotation_log
from .clearances import distances
from .trajectories import TICK, TrackingCase

STRIDE = 10
"""Ticks between the poses that are tried."""

NUM_SEEDS = 24
SPREAD = 0.5
"""Standard deviation [rad] of the joints from which a pose is tried again."""

REACHED = 3e-3
"""Remaining error of a pose that counts as reached, [m] and [rad]."""

CAUGHT_UP = 0.01
"""Angle [rad] below which the arm that moves at its velocity limits counts as there."""

CLEARANCE = 0.01
ITERATIONS = 60
DAMPING = 1e-3
MAX_STEP = 0.3
"""Largest change of a joint in one iteration [rad]."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Demand:
    """What a case asks for at each of its n poses.

    reachable: `[n]` the pose can be taken within position limits and clear of everything.
    followable: `[n]` it is reachable, and an arm that went there at its velocity limits all along would have arrived.
    """

    reachable: np.ndarray
    followable: np.ndarray


def rotation_errors(wanted: Array, actual: Array) -> Array:
    """Return the rotation vectors `[n 3]` [rad] from `actual` to `wanted` `[n 3 3]`, in base axes."""
    return np.stack([rotation_log(turn) for turn in wanted @ np.swapaxes(actual, -1, -2)])


def continuation(robot: RobotModel, poses: Array, q0: Array) -> Array:
    """Follow poses `[n 4 4]` by damped least squares from `q0`; return joints `[n j]`, each from the one before."""
    kinematics = Kinematics(robot)
    rows, q = [], q0
    for pose in poses:
        for _ in range(6):
            arm = kinematics.forward(q)
            error = np.concatenate([pose[:3, 3] - arm.tool[:3, 3], rotation_log(pose[:3, :3] @ arm.tool[:3, :3].T)])
            if float(np.abs(error).max()) < 1e-9:
                break
            square = arm.jacobian @ arm.jacobian.T + 1e-10 * np.eye(6)
            q = q + np.clip(arm.jacobian.T @ np.linalg.solve(square, error), -MAX_STEP, MAX_STEP)
        rows.append(q)
    return np.stack(rows)


def _solve(robot: RobotModel, kinematics: Kinematics, pose: Array, seeds: Array) -> tuple[Array, Array]:
    """Try a pose from many seeds `[s j]`; return joints within limits `[s j]` and their errors `[s]`."""
    q = np.clip(seeds, robot.lower, robot.upper)
    errors = np.full(len(q), np.inf)
    for _ in range(ITERATIONS):
        arm = kinematics.forward_many(q)
        turns = rotation_errors(np.broadcast_to(pose[:3, :3], (len(q), 3, 3)), arm.tool[:, :3, :3])
        error = np.concatenate([pose[:3, 3] - arm.tool[:, :3, 3], turns], axis=1)
        errors = np.sqrt(np.square(error).sum(1))
        if errors.max() < 0.1 * REACHED:
            break
        damping = DAMPING * np.minimum(1.0, errors)[:, None, None] + 1e-8
        square = arm.jacobian @ arm.jacobian.transpose(0, 2, 1) + damping * np.eye(6)
        step = (arm.jacobian.transpose(0, 2, 1) @ np.linalg.solve(square, error[..., None]))[..., 0]
        q = np.clip(q + np.clip(step, -MAX_STEP, MAX_STEP), robot.lower, robot.upper)
    return q, errors


def demand_of(robot: RobotModel, case: TrackingCase) -> Demand:
    """Decide for each pose of a case whether the arm could be there, and could be there in time.

    Every `STRIDE`-th pose is tried by damped least squares with clipped joints, first from where the pose before was
    reached, then from around there, so that the arm stays on its branch; the nearest joints that are clear of the arm
    itself, the plane and the spheres count. An arm that moves towards the joints found, each joint at its velocity
    limit, shows which poses come too fast. Poses between take the answer of the pose tried after them.
    """
    kinematics = Kinematics(robot)
    rng = np.random.default_rng(0)
    count = len(case.poses)
    reachable, followable = np.zeros(count, dtype=bool), np.zeros(count, dtype=bool)
    q = chaser = np.asarray(case.q0)
    before = -1
    for index in [*range(0, count - 1, STRIDE), count - 1]:
        found, q = _reach(robot, kinematics, case, index, (chaser, q), rng)
        way = (index - max(before, 0)) * TICK * robot.velocity * (1.0 + 1e-6)
        chaser = chaser + np.clip(q - chaser, -way, way)
        there = found and float(np.abs(chaser - q).max()) < CAUGHT_UP
        reachable[before + 1 : index + 1] = found
        followable[before + 1 : index + 1] = there
        before = index
    return Demand(reachable=reachable, followable=followable)


def _reach(
    robot: RobotModel,
    kinematics: Kinematics,
    case: TrackingCase,
    index: int,
    near: tuple[Array, Array],
    rng: np.random.Generator,
) -> tuple[bool, Array]:
    """Return whether a pose can be taken, and the joints for it, or else the nearest to it, that are nearest to `near`.

    Args:
        robot: the arm.
        kinematics: its kinematics.
        case: the motion.
        index: which pose.
        near: where the moving arm is, and the joints found for the pose before, `[j]` [rad].
        rng: samples joints around the moving arm when neither they nor the start of the case lead there.
    """
    pose, time = case.poses[index], index * TICK
    spheres = [replace(s, center=_at(s.center, s.velocity, time), velocity=(0.0, 0.0, 0.0)) for s in case.spheres]
    scene = replace(case, spheres=tuple(spheres))
    closest = near[1]
    around = near[0] + SPREAD * rng.normal(size=(NUM_SEEDS, len(near[0])))
    for seeds in (np.stack([*near, case.q0]), around):
        joints, errors = _solve(robot, kinematics, pose, seeds)
        if seeds is not around:
            closest = joints[int(np.argmin(errors))]
        free = distances(robot, scene, joints).least() >= CLEARANCE
        good = joints[(errors < REACHED) & free]
        if len(good):
            return True, good[np.abs(good - near[0]).max(axis=1).argmin()]
    return False, closest


def _at(center: Vector, velocity: Vector, time: float) -> Vector:
    x, y, z = (c + time * v for c, v in zip(center, velocity, strict=True))
    return (x, y, z)
