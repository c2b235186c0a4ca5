"""What keeps a wrong input from becoming a wrong motion: starts beyond a limit, wrapped angles, far poses, speed."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

from gr2.contracts import ActionTrajectory, JointCommand
from gr2.errors import ControlError
from gr2.wbc.collision import CollisionConfig
from gr2.wbc.configuration import ControllerConfig
from gr2.wbc.controller import WholeBodyController
from gr2.wbc.robot.kinematics import Kinematics
from gr2.wbc.robot.robots import RobotModel, kinova_gen3
from gr2.wbc.robot.transforms import quaternion_from_matrix, rotation_exp

GEN3 = kinova_gen3()
FREE = ControllerConfig(collision=CollisionConfig(self_collision=False))
DT = 0.005


def _started(robot: RobotModel, config: ControllerConfig = FREE) -> WholeBodyController:
    controller = WholeBodyController(robot, config)
    controller.reset(robot.home, 1.0, 0.0)
    return controller


def _chunk(robot: RobotModel, offsets: np.ndarray, start: float = 0.0, dt: float = 0.05) -> ActionTrajectory:
    """Poses at `offsets` `[k 3]` [m] from the home tool pose."""
    tool, offsets = Kinematics(robot).forward(robot.home).tool, np.atleast_2d(offsets)
    return ActionTrajectory(
        positions=tool[:3, 3] + offsets,
        quaternions=np.tile(quaternion_from_matrix(tool[:3, :3]), (len(offsets), 1)),
        gripper=np.ones(len(offsets)),
        dt=dt,
        start_time=start,
    )


def _run(controller: WholeBodyController, seconds: float, start: float = 0.0) -> list[JointCommand]:
    return [controller.step(start + i * DT) for i in range(round(seconds / DT))]


# --- a start beyond a limit ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("degrees", [0.5, 3.0, 9.9])
@pytest.mark.parametrize("side", [-1.0, 1.0])
def test_an_arm_that_begins_beyond_a_limit_moves_back_within_every_limit(degrees: float, side: float) -> None:
    q = GEN3.home.copy()
    q[1] = side * (GEN3.upper[1] + math.radians(degrees))
    controller = WholeBodyController(GEN3, FREE)
    controller.reset(q, 1.0, 0.0)
    commands = _run(controller, 1.5)
    positions = np.array([q] + [c.positions for c in commands])
    velocities = np.diff(positions, axis=0) / DT
    accelerations = np.diff(velocities, axis=0, prepend=0.0 * velocities[:1]) / DT
    assert np.all(np.abs(velocities) <= GEN3.velocity * (1 + 1e-6))
    assert np.all(np.abs(accelerations) <= GEN3.acceleration * (1 + 1e-6))
    assert np.all(np.diff(np.abs(positions[:, 1])) <= 1e-12)  # never farther out
    assert commands[0].status == "returning" and commands[-1].status == "hold"
    assert GEN3.lower[1] <= positions[-1, 1] <= GEN3.upper[1]
    assert np.abs(positions[-1] - np.clip(q, GEN3.lower, GEN3.upper)).max() < 1e-3


def test_a_chunk_waits_until_the_arm_is_back_within_its_limits() -> None:
    q = GEN3.home.copy()
    q[3] = GEN3.upper[3] + math.radians(4.0)
    controller = WholeBodyController(GEN3, FREE)
    controller.reset(q, 1.0, 0.0)
    tool = Kinematics(GEN3).forward(np.clip(q, GEN3.lower, GEN3.upper)).tool
    goal = tool[:3, 3] + [0.05, 0.0, 0.05]
    chunk = ActionTrajectory(
        positions=tool[:3, 3] + np.linspace(0.025, 1.0, 40)[:, None] * (goal - tool[:3, 3]),
        quaternions=np.tile(quaternion_from_matrix(tool[:3, :3]), (40, 1)),
        gripper=np.ones(40),
        dt=0.05,
        start_time=0.0,
    )
    assert controller.accept(chunk) == "pending"
    commands = _run(controller, 3.0)
    assert [e.code for e in controller.events if e.code in ("returning", "returned")] == ["returning", "returned"]
    assert np.linalg.norm(Kinematics(GEN3).forward(commands[-1].positions).tool[:3, 3] - goal) < 1e-3


def test_a_start_far_beyond_a_limit_is_refused_with_the_joint_and_the_reason() -> None:
    q = GEN3.home.copy()
    q[1] = GEN3.upper[1] + math.radians(10.1)
    with pytest.raises(ControlError, match=r"joint 2 stands at 139.0 degrees, 10.1 beyond its limits"):
        WholeBodyController(GEN3, FREE).reset(q, 1.0, 0.0)
    config = dataclasses.replace(FREE, start_tolerance=0.2)
    WholeBodyController(GEN3, config).reset(q, 1.0, 0.0)


# --- joints without stops, measured within one turn ------------------------------------------------------------------


def test_a_joint_without_stops_may_be_measured_within_half_a_turn() -> None:
    tool = Kinematics(GEN3).forward(GEN3.home).tool
    controller, q = _started(GEN3), GEN3.home
    for index in range(1800):
        if index % 40 == 0:
            angles = 0.5 * (index * DT + 0.05 * np.arange(1, 21))
            turns = [rotation_exp([0.0, 0.0, angle]) for angle in angles]
            chunk = ActionTrajectory(
                positions=np.array([turn @ tool[:3, 3] for turn in turns]),
                quaternions=np.array([quaternion_from_matrix(turn @ tool[:3, :3]) for turn in turns]),
                gripper=np.ones(20),
                dt=0.05,
                start_time=index * DT,
            )
            assert controller.accept(chunk) == "accepted"
        command = controller.step(index * DT, np.where(np.isinf(GEN3.upper), (q + np.pi) % (2 * np.pi) - np.pi, q))
        q = command.positions
        assert command.status == "track"
    assert abs(q[0]) > np.pi


def test_a_whole_turn_of_a_joint_with_stops_still_stops_the_arm() -> None:
    controller = _started(GEN3)
    measured = GEN3.home.copy()
    measured[1] -= 2.0 * np.pi
    assert controller.step(0.0, measured).status == "protective_stop"
