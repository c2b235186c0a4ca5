"""What the tests of whole-body control share: two arms, random configurations of them, an arm to be driven."""

from __future__ import annotations

import dataclasses
import os
from typing import Any

import numpy as np

from gr2.contracts import JointTrajectory
from gr2.wbc.controller import WholeBodyController
from gr2.wbc.drivers.driver import Pacer
from gr2.wbc.drivers.loop import ControlLoop
from gr2.wbc.drivers.streaming import StreamingDriver
from gr2.wbc.robot.polytopes import polytope_around
from gr2.wbc.robot.robots import RobotModel, kinova_gen3, panda
from gr2.wbc.robot.self_pairs import with_self_pairs
from gr2.wbc.robot.urdf_reader import UrdfOptions, read_robot

ROBOTS = {"kinova_gen3": kinova_gen3(), "panda": panda(tool_z=0.14)}


def configurations(robot: RobotModel, count: int, seed: int = 0, widest: float = np.pi) -> np.ndarray:
    """Draw joint angles `[count j]` [rad] within the limits, and within `widest` for joints that turn for ever."""
    lower, upper = np.maximum(robot.lower, -widest), np.minimum(robot.upper, widest)
    return np.random.default_rng(seed).uniform(lower, upper, (count, robot.num_joints))


def robot_from_urdf(path_or_text: str | os.PathLike[str], **options: Any) -> RobotModel:
    """Read an arm from URDF, a file or its text, with the fields of `UrdfOptions`."""
    listed = {name: value.tolist() if isinstance(value, np.ndarray) else value for name, value in options.items()}
    return read_robot(path_or_text, UrdfOptions(**listed))


def boxed(robot: RobotModel) -> RobotModel:
    """Return the arm with capsules that cover thin boxes along their segments."""
    capsules = []
    for capsule in robot.capsules:
        start, end = np.array(capsule.start), np.array(capsule.end)
        along = end - start
        length = float(np.linalg.norm(along))
        axis = along / length if length > 1e-6 else np.array([0.0, 0.0, 1.0])
        side = np.cross(axis, np.roll(axis, 1) + [0.0, 0.3, 0.1])
        side /= np.linalg.norm(side)
        ways = [s * side + t * np.cross(axis, side) for s in (-0.6, 0.6) for t in (-0.4, 0.4)]
        corners = np.array([place + capsule.radius * way for place in (start, end) for way in ways])
        capsules.append(dataclasses.replace(capsule, inside=polytope_around(corners)))
    return with_self_pairs(dataclasses.replace(robot, capsules=tuple(capsules), self_pairs=(), self_margins=()))


def short_arm(*names: str) -> RobotModel:
    """Return the first joints of the Panda as an arm without capsules, its joints named so."""
    arm, count = panda(), len(names)
    rows = {
        name: getattr(arm, name)[:count]
        for name in ("joint_positions", "joint_rpys", "lower", "upper", "velocity", "acceleration", "effort")
    }
    return RobotModel(
        name="short_arm",
        **rows,
        tool_position=np.array([0.0, 0.0, 0.1]),
        tool_rpy=np.zeros(3),
        emergency_acceleration=arm.emergency_acceleration[:count],
        gripper_rate=2.0,
        home=arm.home[:count],
        capsules=(),
        self_pairs=(),
        joint_names=names,
    )


class Clock:
    """A clock that only sleeping moves."""

    def __init__(self) -> None:
        self.now = 10.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, duration: float) -> None:
        """Pass time [s]."""
        self.now += duration

    def pacer(self, rate_hz: float) -> Pacer:
        """Return a pacer on this clock."""
        return Pacer(rate_hz, clock=self, sleep=self.sleep)


def stretched(driver: StreamingDriver, duration: float = 1.0, change: float = 0.1) -> tuple[ControlLoop, np.ndarray]:
    """Let a connected driver move all joints by `change` [rad] and return the loop and where they then are `[j]`."""
    controller = WholeBodyController(driver.robot)
    loop = ControlLoop(controller, driver)
    first = loop.start().positions
    share = np.linspace(0.1, 1.0, 10)[:, None]
    chunk = JointTrajectory(positions=first + share * change, dt=0.06 * duration, start_time=0.0)
    assert loop.accept(chunk) == "accepted"
    loop.run(duration)
    return loop, first + change
