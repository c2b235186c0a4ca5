"""Robots as URDF: what is written, read by pybullet, moves and weighs the same; what others wrote is read."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from gr2.gr_model.errors import ShapeError
from gr2.wbc.kinematics import Kinematics, cross
from gr2.wbc.robots import Capsule, RobotModel, kinova_gen3, panda, solid_capsules
from gr2.wbc.urdf import robot_urdf

pybullet = pytest.importorskip("pybullet", reason="pybullet is the independent reader of URDF")

ROBOTS = {"kinova_gen3": kinova_gen3(), "panda": panda(tool_z=0.14)}


@pytest.fixture(params=sorted(ROBOTS))
def robot(request: pytest.FixtureRequest) -> RobotModel:
    return ROBOTS[request.param]


@pytest.fixture
def client() -> Iterator[int]:
    number = pybullet.connect(pybullet.DIRECT)
    yield number
    pybullet.disconnect(number)


def _configurations(robot: RobotModel, count: int) -> np.ndarray:
    lower, upper = np.maximum(robot.lower, -np.pi), np.minimum(robot.upper, np.pi)
    return np.random.default_rng(0).uniform(lower, upper, (count, robot.num_joints))


def _load(path: Path, client: int) -> int:
    flags = pybullet.URDF_USE_INERTIA_FROM_FILE
    return pybullet.loadURDF(str(path), useFixedBase=True, flags=flags, physicsClientId=client)


def _mass_matrix_and_gravity(robot: RobotModel, q: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the joint-space inertia `[j j]` [kg m^2] and the torques [N m] that hold the arm, link by link."""
    pose = Kinematics(robot).forward(q)
    matrix, torque = np.zeros((robot.num_joints, robot.num_joints)), np.zeros(robot.num_joints)
    for link in range(1, robot.num_joints + 1):
        rotation = pose.frames[link, :3, :3]
        center = rotation @ robot.mass_centers[link] + pose.frames[link, :3, 3]
        linear, angular = (pose.moments + cross(pose.axes, center[None])).T, pose.axes.T.copy()
        linear[:, link:], angular[:, link:] = 0.0, 0.0
        matrix += robot.masses[link] * linear.T @ linear
        matrix += angular.T @ (rotation @ robot.inertias[link] @ rotation.T) @ angular
        torque += 9.81 * robot.masses[link] * linear[2]
    return matrix, torque


def test_written_masses_give_pybullet_the_same_dynamics(robot: RobotModel, client: int, tmp_path: Path) -> None:
    path = tmp_path / "robot.urdf"
    path.write_text(robot_urdf(robot))
    body = _load(path, client)
    pybullet.setGravity(0, 0, -9.81, physicsClientId=client)
    still = [0.0] * robot.num_joints
    for q in _configurations(robot, 10):
        matrix, torque = _mass_matrix_and_gravity(robot, q)
        theirs = np.array(pybullet.calculateMassMatrix(body, q.tolist(), physicsClientId=client))
        np.testing.assert_allclose(matrix, theirs, atol=2e-5)
        held = pybullet.calculateInverseDynamics(body, q.tolist(), still, still, physicsClientId=client)
        np.testing.assert_allclose(torque, held, atol=2e-4)


def test_inertias_are_those_of_real_bodies(robot: RobotModel) -> None:
    assert robot.masses.shape == (robot.num_joints + 1,)
    assert np.all(robot.masses > 0.0)
    for inertia in robot.inertias:
        np.testing.assert_array_equal(inertia, inertia.T)
        least, middle, most = np.linalg.eigvalsh(inertia)
        assert least > 0.0
        assert least + middle >= most


def test_totals_are_the_makers() -> None:
    assert kinova_gen3().masses.sum() == pytest.approx(8.2 + 0.9, abs=0.02)
    assert panda().masses.sum() == pytest.approx(16.7 + 0.76, abs=0.05)


def test_masses_left_out_follow_from_the_capsules() -> None:
    bare = dataclasses.replace(ROBOTS["panda"], masses=np.empty(0))
    ball = Capsule(link=0, start=(0.1, 0.0, 0.0), end=(0.1, 0.0, 0.0), radius=0.05)
    body = solid_capsules([ball], density=500.0)
    assert body.mass == pytest.approx(500.0 * np.pi * 0.05**3 * 4 / 3)
    np.testing.assert_allclose(body.inertia, 0.4 * body.mass * 0.05**2 * np.eye(3))
    np.testing.assert_allclose(bare.masses[1], solid_capsules([c for c in bare.capsules if c.link == 1]).mass)
    assert bare.inertias.shape == (8, 3, 3)
    assert dataclasses.replace(bare, capsules=(), self_pairs=(), masses=np.empty(0)).masses.tolist() == [1.0] * 8
    with pytest.raises(ShapeError, match="one row for each link"):
        dataclasses.replace(bare, masses=np.ones(7))


def test_inertia_of_a_capsule_equals_a_sum_over_points() -> None:
    capsule = Capsule(link=0, start=(0.1, 0.2, 0.0), end=(0.3, -0.1, 0.2), radius=0.1)
    start, end = np.array(capsule.start), np.array(capsule.end)
    points = np.random.default_rng(1).uniform([0.0, -0.2, -0.1], [0.4, 0.3, 0.3], (400_000, 3))
    share = np.clip((points - start) @ (end - start) / ((end - start) @ (end - start)), 0.0, 1.0)
    inside = points[np.linalg.norm(points - start - share[:, None] * (end - start), axis=1) < capsule.radius]
    body, cell = solid_capsules([capsule]), 1000.0 * 0.4 * 0.5 * 0.4 / len(points)
    offsets = inside - body.center
    scatter = np.trace(offsets.T @ offsets) * np.eye(3) - offsets.T @ offsets
    assert body.mass == pytest.approx(cell * len(inside), rel=0.01)
    np.testing.assert_allclose(body.inertia, cell * scatter, atol=0.02 * np.trace(body.inertia))
