"""Starts and arms that the usual equations leave out: a stretched elbow, fewer than six joints, a toggling gripper."""

from __future__ import annotations

import numpy as np
import pytest

from gr2.contracts import ActionTrajectory
from gr2.wbc.collision import CollisionConfig
from gr2.wbc.configuration import ControllerConfig
from gr2.wbc.controller import WholeBodyController
from gr2.wbc.gripper import GripperSchedule
from gr2.wbc.robot.kinematics import Kinematics
from gr2.wbc.robot.robots import Capsule, RobotModel, kinova_gen3
from gr2.wbc.robot.transforms import quaternion_from_matrix
from gr2.wbc.robot.urdf_reader import robot_from_urdf

GEN3 = kinova_gen3()
FREE = ControllerConfig(collision=CollisionConfig(self_collision=False))
DT = 0.005
FINGER = Capsule(link=5, start=(0.0, 0.0, 0.0), end=(0.0, 0.0, 0.05), radius=0.01)
_LINK = '<link name="{0}"/>'
_JOINT = (
    '<joint name="j{0}" type="revolute"><parent link="l{1}"/><child link="l{0}"/><origin xyz="{2}"/><axis xyz="{3}"/>'
    '<limit lower="-2.9" upper="2.9" velocity="3" effort="10"/></joint>'
)
FIVE = (
    '<robot name="five">'
    + "".join(_LINK.format(f"l{k}") for k in range(6))
    + '<link name="tool"/>'
    + _JOINT.format(1, 0, "0 0 0.06", "0 0 1")
    + _JOINT.format(2, 1, "0.03 0 0.05", "0 1 0")
    + _JOINT.format(3, 2, "0 0 0.115", "0 1 0")
    + _JOINT.format(4, 3, "0.135 0 0", "0 1 0")
    + _JOINT.format(5, 4, "0.06 0 0", "1 0 0")
    + '<joint name="end" type="fixed"><parent link="l5"/><child link="tool"/><origin xyz="0.1 0 0"/></joint></robot>'
)


def _follow(robot: RobotModel, q0: np.ndarray, way: np.ndarray, seconds: float) -> tuple[np.ndarray, set[str], float]:
    """Tool positions after each tick, statuses and the last rotation error; `way` `[n 3]` is shown 20 times a second.

    The orientation of the start is asked for all along.
    """
    kinematics, controller = Kinematics(robot), WholeBodyController(robot, FREE)
    tool = kinematics.forward(q0).tool
    controller.reset(q0, 1.0, 0.0)
    found, statuses = [], set()
    for index in range(round(seconds / DT)):
        if index % 40 == 0:
            shown = way[np.minimum(index // 10 + np.arange(1, 21), len(way) - 1)]
            chunk = ActionTrajectory(
                positions=tool[:3, 3] + shown,
                quaternions=np.tile(quaternion_from_matrix(tool[:3, :3]), (20, 1)),
                gripper=np.ones(20),
                dt=0.05,
                start_time=index * DT,
            )
            assert controller.accept(chunk) == "accepted"
        command = controller.step(index * DT)
        found.append(kinematics.forward(command.positions).tool[:3, 3] - tool[:3, 3])
        statuses.add(command.status)
    return np.array(found), statuses, command.rotation_error


@pytest.mark.parametrize("elbow", [0.0, 1e-6])
def test_a_fully_stretched_elbow_bends(elbow: float) -> None:
    q0 = np.array([0.0, np.pi / 2, 0.0, elbow, 0.0, 0.0, 0.0])
    outward = Kinematics(GEN3).forward(q0).tool[:3, 3] * [1, 1, 0]
    way = np.clip(np.arange(120) * 0.05 / 2, 0, 1)[:, None] * (-0.1 * outward / np.linalg.norm(outward))
    found, statuses, _ = _follow(GEN3, q0, way, 4.0)
    assert np.linalg.norm(found[-1] - way[-1]) < 1e-3
    assert "unreachable" not in statuses


def test_five_joints_put_the_position_first_and_report_the_rotation() -> None:
    robot = robot_from_urdf(FIVE, capsules=[FINGER], acceleration=8.0)
    times = 0.05 * np.arange(140)
    share = np.minimum(1.0, times)[:, None]
    ramp = share * share * (3.0 - 2.0 * share)
    way = ramp * np.stack([0.03 * np.cos(times) - 0.03, 0.03 * np.sin(times), 0.0 * times], axis=1)
    found, statuses, turned = _follow(robot, np.array([0.0, -0.3, 0.6, 0.6, 0.0]), way, 6.0)
    errors = np.linalg.norm(found[9::10] - way[1 : 1 + len(found[9::10])], axis=1)
    assert errors.max() < 3e-4
    assert statuses == {"track"} and turned > 0.01


def test_a_gripper_that_toggles_with_every_pose_does_not_chatter() -> None:
    gripper, openings = GripperSchedule(1.0, 60.0, 0.05, dwell=0.2), []
    gripper.follow(0.05 * np.arange(1, 81), np.tile([0.0, 1.0], 40))
    for index in range(800):
        openings.append(gripper.step(index * DT, DT))
    turns = np.diff(np.sign(np.diff(openings))[np.diff(openings) != 0.0])
    assert np.count_nonzero(turns) <= 4.0 / 0.2
    prompt = GripperSchedule(1.0, 60.0, 0.05, dwell=0.2)
    prompt.follow(np.array([0.05, 1.0]), np.array([0.0, 1.0]))
    assert prompt.step(0.005, DT) < 1.0
