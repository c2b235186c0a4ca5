"""The cases that come with the package, made in code: smooth motions for any arm, hard ones for the Kinova Gen3."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np
from scipy.interpolate import make_interp_spline

from ...contracts import Array
from ...wbc.robot.kinematics import Kinematics
from ...wbc.robot.robots import RobotModel, kinova_gen3
from .clearances import distances
from .hard import hard_cases
from .motions import ease, moved
from .reachability import continuation
from .trajectories import TICK, TrackingCase

NUM_SMOOTH = 10
"""Smooth cases of each kind."""

LIMIT_SHARE = 0.8
"""Share of the velocity and acceleration limits that a smooth case uses at most."""

MIN_CLEARANCE = 0.02
"""Least distance of a smooth case to the arm itself and to the table [m]."""

MIN_MANIPULABILITY = 0.02
"""Least manipulability of a smooth case where the reach is 1 m or more, of position alone below six joints."""

POSITION_MARGIN = 0.1
"""Distance of a smooth case from the position limits [rad]."""

MAX_TRIES = 400


def smooth_cases(robot: RobotModel, count: int = NUM_SMOOTH) -> list[TrackingCase]:
    """Return `count` joint splines and as many Cartesian quintics that `robot` can follow exactly.

    With fewer than six joints the splines alone: no path of poses but its own can be followed. None where no spline
    around the home fits.
    """
    splines = _joint_splines(robot, count)
    return [*splines, *(_tool_quintics(robot, count) if splines and robot.num_joints >= 6 else [])]


@lru_cache(maxsize=1)
def _kinova_cases() -> tuple[TrackingCase, ...]:
    robot = kinova_gen3()
    return (*smooth_cases(robot), *hard_cases(robot))


def built_in_cases(robot: RobotModel | None = None, count: int = NUM_SMOOTH) -> list[TrackingCase]:
    """Return `count` smooth cases of each kind for `robot`; for the Kinova Gen3 (None) all, and the hard ones."""
    if robot is None or robot.name == "kinova_gen3":
        return list(_kinova_cases())
    return smooth_cases(robot, count)


def noisy_cases(cases: list[TrackingCase], seeds: int) -> list[TrackingCase]:
    """Return each smooth case with `seeds` seeds of noise."""
    smooth = [case for case in cases if case.group == "smooth"]
    return [
        TrackingCase(
            name=f"{case.name} #{seed}",
            group="noisy",
            poses=case.poses,
            q0=case.q0,
            spheres=case.spheres,
            plane=case.plane,
            noise_seed=1000 * index + seed,
        )
        for seed in range(seeds)
        for index, case in enumerate(smooth)
    ]


def _collected(
    name: str, count: int, candidate: Callable[[np.random.Generator], TrackingCase | None]
) -> list[TrackingCase]:
    """Sample candidates of one kind until `count` of them can be followed."""
    found: list[TrackingCase] = []
    for seed in range(MAX_TRIES):
        case = candidate(np.random.default_rng([seed, len(name)]))
        if case is not None:
            found.append(TrackingCase(name=f"{name}_{len(found):02d}", group="smooth", poses=case.poses, q0=case.q0))
        if len(found) == count:
            break
    return found


def _joint_splines(robot: RobotModel, count: int) -> list[TrackingCase]:
    kinematics = Kinematics(robot)

    def candidate(rng: np.random.Generator) -> TrackingCase | None:
        """Sample a motion; None where it does not fit."""
        knots = robot.home + rng.uniform(-0.35, 0.35, (4, robot.num_joints)).cumsum(axis=0)
        q = _through(knots, 2.0)
        if not followable(robot, q):
            return None
        return TrackingCase(name="", group="smooth", poses=kinematics.forward_many(q).tool, q0=q[0])

    return _collected("joint_spline", count, candidate)


def _tool_quintics(robot: RobotModel, count: int) -> list[TrackingCase]:
    kinematics = Kinematics(robot)

    def candidate(rng: np.random.Generator) -> TrackingCase | None:
        """Sample a motion; None where it does not fit."""
        q0 = robot.home + rng.uniform(-0.3, 0.3, robot.num_joints)
        start = kinematics.forward(q0).tool
        turns = rng.normal(size=3)
        ends = np.concatenate(
            [rng.uniform(-0.25, 0.25, 3) * min(1.0, robot.reach), rng.uniform(0.2, 0.8) * turns / np.linalg.norm(turns)]
        )
        path = ease(np.linspace(0.0, 1.0, 401))[:, None] * ends
        poses = np.stack([moved(start, row[:3], row[3:]) for row in path])
        q = continuation(robot, poses, q0)
        reached = kinematics.forward_many(q).tool
        if np.abs(reached - poses).max() > 1e-6 or not followable(robot, q):
            return None
        return TrackingCase(name="", group="smooth", poses=poses, q0=q0)

    return _collected("tool_quintic", count, candidate)


def _through(knots: Array, seconds: float) -> Array:
    """Return a quintic spline through joint vectors `[k j]`, at rest at both ends, one row a tick."""
    rest = [(1, np.zeros(knots.shape[1])), (2, np.zeros(knots.shape[1]))]
    spline = make_interp_spline(np.linspace(0.0, seconds, len(knots)), knots, k=5, bc_type=(rest, rest))
    q: Array = spline(np.arange(round(seconds / TICK) + 1) * TICK)
    return q


def followable(robot: RobotModel, q: Array) -> bool:
    """Return whether joints `q` `[n j]` keep the shares of the limits and the distances of a smooth case."""
    velocity = np.diff(q, axis=0) / TICK
    acceleration = np.diff(velocity, axis=0) / TICK
    if (np.abs(velocity) / robot.velocity).max() > LIMIT_SHARE:
        return False
    if (np.abs(acceleration) / robot.acceleration).max() > LIMIT_SHARE:
        return False
    if np.any(q < robot.lower + POSITION_MARGIN) or np.any(q > robot.upper - POSITION_MARGIN):
        return False
    rows = slice(None) if robot.num_joints >= 6 else slice(min(3, robot.num_joints))
    jacobians = Kinematics(robot).forward_many(q).jacobian[:, rows]
    measures = np.sqrt(np.maximum(np.linalg.det(jacobians @ jacobians.transpose(0, 2, 1)), 0.0))
    if measures.min() < MIN_MANIPULABILITY * min(1.0, robot.reach) ** 3:
        return False
    poses = np.tile(np.eye(4), (len(q), 1, 1))
    return bool(
        np.min(distances(robot, TrackingCase(name="", group="smooth", poses=poses, q0=q[0]), q).least()) > MIN_CLEARANCE
    )
