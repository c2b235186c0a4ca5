"""Kinematics against an independent implementation, finite differences and the recorded CALVIN."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from wbc_cases import configurations

from gr2.wbc.robot.kinematics import Kinematics, cross, manipulability
from gr2.wbc.robot.robots import RobotModel, kinova_gen3, panda
from gr2.wbc.robot.transforms import matrix_from_quaternion, matrix_from_rpy, rotation_log
from gr2.wbc.robot.urdf import robot_urdf

pybullet = pytest.importorskip("pybullet", reason="pybullet is the independent forward kinematics")


def test_links_and_tool_agree_with_pybullet(robot: RobotModel, client: int, tmp_path: Path) -> None:
    path = tmp_path / "robot.urdf"
    path.write_text(robot_urdf(robot))
    body = pybullet.loadURDF(str(path), useFixedBase=True, physicsClientId=client)
    kinematics = Kinematics(robot)
    assert pybullet.getNumJoints(body, physicsClientId=client) == robot.num_joints + 1
    for q in configurations(robot, 50):
        for joint, value in enumerate(q):
            pybullet.resetJointState(body, joint, value, physicsClientId=client)
        pose = kinematics.forward(q)
        ours = [*pose.frames[1:], pose.tool]
        states = pybullet.getLinkStates(
            body, list(range(len(ours))), computeForwardKinematics=True, physicsClientId=client
        )
        for frame, state in zip(ours, states, strict=True):
            np.testing.assert_allclose(frame[:3, 3], state[4], atol=1e-6)
            np.testing.assert_allclose(frame[:3, :3], matrix_from_quaternion(state[5]), atol=2e-6)


def test_panda_stands_where_calvin_recorded_it() -> None:
    neutral = [-1.21779124, 1.03987629, 2.11978254, -2.34205014, -0.87015899, 1.64119093, 0.55344928]
    tool = Kinematics(panda(tool_z=0.14)).forward(np.array(neutral)).tool
    world = tool[:3, 3] + np.array([-0.34, -0.46, 0.24])
    np.testing.assert_allclose(world, [0.02586889, -0.2313129, 0.5712808], atol=2e-6)
    recorded = matrix_from_rpy([3.09045411, -0.02908596, 1.50013585])
    assert np.linalg.norm(rotation_log(tool[:3, :3] @ recorded.T)) < 1e-4


def test_kinova_flange_stands_where_the_maker_says() -> None:
    flange = Kinematics(kinova_gen3(tool_z=0.0))
    np.testing.assert_allclose(flange.forward(np.zeros(7)).tool[:3, 3], [0.0, -0.02485, 1.18739], atol=2e-5)
    home = np.radians([0.0, 15.0, 180.0, -130.0, 0.0, 55.0, 90.0])
    np.testing.assert_allclose(flange.forward(home).tool[:3, 3], [0.45667, 0.00135, 0.43372], atol=2e-5)


def test_jacobian_and_its_derivatives_equal_finite_differences(robot: RobotModel) -> None:
    kinematics, step = Kinematics(robot), 1e-6
    for q in configurations(robot, 20):
        pose = kinematics.forward(q)
        slopes = kinematics.jacobian_derivatives(pose.jacobian)
        for joint, unit in enumerate(np.eye(robot.num_joints)):
            ahead, behind = kinematics.forward(q + step * unit), kinematics.forward(q - step * unit)
            linear = (ahead.tool[:3, 3] - behind.tool[:3, 3]) / (2 * step)
            angular = rotation_log(ahead.tool[:3, :3] @ behind.tool[:3, :3].T) / (2 * step)
            np.testing.assert_allclose(pose.jacobian[:, joint], [*linear, *angular], atol=1e-8)
            np.testing.assert_allclose(slopes[joint], (ahead.jacobian - behind.jacobian) / (2 * step), atol=1e-8)


def test_manipulability_gradient_equals_finite_differences(robot: RobotModel) -> None:
    kinematics, step = Kinematics(robot), 1e-6
    for q in configurations(robot, 20):
        measure, gradient = kinematics.manipulability_gradient(kinematics.forward(q).jacobian)
        finite = [
            (
                manipulability(kinematics.forward(q + step * unit).jacobian)
                - manipulability(kinematics.forward(q - step * unit).jacobian)
            )
            / (2 * step)
            for unit in np.eye(robot.num_joints)
        ]
        assert measure == pytest.approx(manipulability(kinematics.forward(q).jacobian))
        np.testing.assert_allclose(gradient, finite, atol=1e-6)


def test_manipulability_vanishes_at_a_stretched_elbow() -> None:
    kinematics = Kinematics(kinova_gen3())
    measure, gradient = kinematics.manipulability_gradient(kinematics.forward(np.zeros(7)).jacobian)
    assert measure < 1e-6
    assert np.all(np.isfinite(gradient))


def test_cross_is_the_cross_product() -> None:
    a, b = np.random.default_rng(0).normal(size=(2, 5, 3))
    np.testing.assert_allclose(cross(a, b), np.cross(a, b))


def test_limits_are_consistent(robot: RobotModel) -> None:
    assert np.all(robot.lower < robot.upper)
    assert np.all((robot.home > robot.lower) & (robot.home < robot.upper))
    assert np.all(robot.emergency_acceleration >= robot.acceleration)
