"""Distances against brute force and pybullet; their gradients against finite differences."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from wbc_cases import configurations

from gr2.wbc.collision import Box, CollisionConfig, CollisionModel, Plane, Sphere
from gr2.wbc.robot.geometry import box_signed_distance, closest_on_segments, point_separation, segments_to_box
from gr2.wbc.robot.kinematics import Kinematics
from gr2.wbc.robot.robots import RobotModel

SCENE = CollisionConfig(
    plane=Plane(offset=-0.1),
    spheres=(Sphere(center=(0.45, 0.1, 0.4), radius=0.06),),
    boxes=(
        Box(
            center=(0.4, -0.3, 0.2),
            half_extents=(0.1, 0.05, 0.2),
            quaternion=(0.0, 0.0, 0.38268343, 0.92387953),
        ),
    ),
)


def _segments(kind: str, count: int) -> np.ndarray:
    rng = np.random.default_rng(5)
    ends = rng.uniform(-1, 1, (4, count, 3))
    if kind == "parallel":
        ends[3] = ends[2] + (ends[1] - ends[0]) * rng.uniform(-2, 2, (count, 1))
    if kind == "point":
        ends[3] = ends[2]
    return ends


@pytest.mark.parametrize("kind", ["general", "parallel", "point"])
def test_segment_distance_equals_brute_force(kind: str) -> None:
    ends = _segments(kind, 60)
    point_a, point_b = closest_on_segments(*ends)
    distance, normal = point_separation(point_a, point_b)
    steps = np.linspace(0, 1, 201)
    for k in range(ends.shape[1]):
        a = ends[0, k] + steps[:, None] * (ends[1, k] - ends[0, k])
        b = ends[2, k] + steps[:, None] * (ends[3, k] - ends[2, k])
        least = np.linalg.norm(a[:, None] - b[None], axis=-1).min()
        assert distance[k] <= least + 1e-9
        assert distance[k] >= least - 0.02
    np.testing.assert_allclose(np.linalg.norm(normal, axis=1), 1.0)


def test_segment_box_distance_equals_brute_force_outside_and_inside() -> None:
    rng = np.random.default_rng(6)
    half = np.array([0.3, 0.2, 0.1])
    starts, ends = rng.uniform(-0.6, 0.6, (2, 300, 3))
    ends[:20, 0] = starts[:20, 0]
    ends[:10] = starts[:10]
    distances, points, normals = segments_to_box(starts, ends, half)
    for start, end, distance in zip(starts, ends, distances, strict=True):
        samples = start + np.linspace(0, 1, 2001)[:, None] * (end - start)
        least = box_signed_distance(samples, half).min()
        assert least - 1e-3 <= distance <= least + 1e-9
    np.testing.assert_allclose(np.linalg.norm(normals, axis=1), 1.0)
    shifted = box_signed_distance(points + 1e-7 * normals, half)
    np.testing.assert_allclose(shifted - distances, 1e-7, rtol=1e-3)
    inside = int(np.count_nonzero(distances < 0.0))
    assert 30 < inside < 270


@pytest.fixture
def client() -> Iterator[int]:
    pybullet = pytest.importorskip("pybullet", reason="pybullet is the independent distance")
    number = pybullet.connect(pybullet.DIRECT)
    yield number
    pybullet.disconnect(number)


def test_capsule_distances_agree_with_pybullet(robot: RobotModel, client: int) -> None:
    import pybullet

    capsules = robot.capsules
    bodies = []
    for capsule in capsules:
        length = float(np.linalg.norm(np.subtract(capsule.end, capsule.start)))
        shape = pybullet.createCollisionShape(
            pybullet.GEOM_CAPSULE, radius=capsule.radius, height=length, physicsClientId=client
        )
        bodies.append(pybullet.createMultiBody(baseCollisionShapeIndex=shape, physicsClientId=client))
    model, kinematics = CollisionModel(robot, CollisionConfig()), Kinematics(robot)
    for q in configurations(robot, 15, seed=4):
        pose = kinematics.forward(q)
        for capsule, body in zip(capsules, bodies, strict=True):
            frame = pose.frames[capsule.link]
            ends = [frame[:3, :3] @ np.array(p) + frame[:3, 3] for p in (capsule.start, capsule.end)]
            along = (ends[1] - ends[0]) / np.linalg.norm(ends[1] - ends[0])
            quaternion = np.array([-along[1], along[0], 0.0, 1.0 + along[2]])
            quaternion /= np.linalg.norm(quaternion)
            center = (ends[0] + ends[1]) / 2
            pybullet.resetBasePositionAndOrientation(body, center, quaternion, physicsClientId=client)
        ours = model.clearances(pose).distances
        for distance, (a, b) in zip(ours, robot.self_pairs, strict=True):
            points = pybullet.getClosestPoints(bodies[a], bodies[b], 5.0, physicsClientId=client)
            if distance > 0:
                assert distance == pytest.approx(min(p[8] for p in points), abs=2e-4)


def test_gradients_equal_finite_differences(robot: RobotModel) -> None:
    model, kinematics, step = CollisionModel(robot, SCENE), Kinematics(robot), 1e-6
    compared = 0
    for q in configurations(robot, 8, seed=4):
        found = model.clearances(kinematics.forward(q))
        assert len(found.distances) == model.num_pairs
        for joint, unit in enumerate(np.eye(robot.num_joints)):
            ahead = model.clearances(kinematics.forward(q + step * unit)).distances
            behind = model.clearances(kinematics.forward(q - step * unit)).distances
            kink = np.abs(ahead + behind - 2 * found.distances) > 1e-9
            finite = (ahead - behind) / (2 * step)
            np.testing.assert_allclose(found.gradients[~kink, joint], finite[~kink], atol=1e-5)
            compared += int(np.count_nonzero(~kink))
    assert compared > 0.98 * 8 * robot.num_joints * model.num_pairs


def test_near_pairs_are_those_below_the_threshold(robot: RobotModel) -> None:
    model, kinematics = CollisionModel(robot, SCENE), Kinematics(robot)
    for q in configurations(robot, 30, seed=4):
        pose = kinematics.forward(q)
        everything, near = model.clearances(pose), model.clearances(pose, 0.1)
        wanted = everything.distances < 0.1
        np.testing.assert_array_equal(near.distances, everything.distances[wanted])
        np.testing.assert_allclose(near.gradients, everything.gradients[wanted], atol=1e-14)
        assert near.nearest <= everything.distances.min() + 1e-12


def test_reach_bounds_every_change_of_distance(robot: RobotModel) -> None:
    model, kinematics = CollisionModel(robot, SCENE), Kinematics(robot)
    rng = np.random.default_rng(7)
    for q in configurations(robot, 30, seed=4):
        move = rng.normal(size=robot.num_joints) * 0.1
        before = model.clearances(kinematics.forward(q)).distances
        after = model.clearances(kinematics.forward(q + move)).distances
        assert np.abs(after - before).max() <= model.reach @ np.abs(move)


def test_home_is_clear(robot: RobotModel) -> None:
    assert CollisionModel(robot, CollisionConfig()).clearances(Kinematics(robot).forward(robot.home)).nearest > 0.02
