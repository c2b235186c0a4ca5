"""Convex hulls beside capsules: never farther than they are, closer to it than capsules, gradients as moved."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from scipy.optimize import nnls
from wbc_cases import ROBOTS, boxed, configurations, robot_from_urdf

from gr2.wbc.collision import CollisionConfig, CollisionModel
from gr2.wbc.fast import make_collisions, make_kinematics
from gr2.wbc.robot.kinematics import Kinematics
from gr2.wbc.robot.polytopes import Polytope, Polytopes, polytope_around
from gr2.wbc.robot.robots import Capsule
from gr2.wbc.robot.transforms import rotation_exp

BOX = np.array([[x, y, z] for x in (-0.05, 0.05) for y in (-0.03, 0.03) for z in (-0.1, 0.1)])


def _distance(a: np.ndarray, b: np.ndarray) -> float:
    """Distance of the hulls of points `[n 3]` and `[m 3]`, by shares of the corners that sum to one."""
    rows = np.zeros((5, len(a) + len(b)))
    rows[:3] = np.hstack([a.T, -b.T])
    rows[3, : len(a)] = rows[4, len(a) :] = 1e4
    shares, _ = nnls(rows, np.array([0.0, 0.0, 0.0, 1e4, 1e4]))
    return float(np.linalg.norm(rows[:3] @ shares))


def _known(points: np.ndarray) -> Polytope:
    polytope = polytope_around(points)
    assert polytope is not None
    return polytope


def _frames(rng: np.random.Generator, count: int, spread: float) -> np.ndarray:
    frames = np.tile(np.eye(4), (count, 1, 1))
    for frame in frames:
        frame[:3, :3], frame[:3, 3] = rotation_exp(rng.normal(size=3) * 2.0), rng.uniform(-spread, spread, 3)
    return frames


def _gaps(a: np.ndarray, b: np.ndarray, frames: np.ndarray, others: np.ndarray) -> tuple[np.ndarray, ...]:
    zeros = np.zeros(len(frames), dtype=np.intp)
    return Polytopes([_known(a), _known(b)]).gaps(zeros, zeros + 1, frames, others)


@pytest.mark.parametrize("shape", ["boxes", "clouds", "rounds"])
def test_hulls_are_never_said_to_be_farther_apart_than_they_are(shape: str) -> None:
    rng = np.random.default_rng(0)
    cloud = rng.normal(size=(300, 3)) * [0.05, 0.03, 0.08]
    turns = np.linspace(0.0, 2.0 * np.pi, 200, endpoint=False)
    round_ = np.array([[0.06 * np.cos(t), 0.06 * np.sin(t), z] for t in turns for z in (-0.05, 0.05)])
    a, b = {"boxes": (BOX, BOX * 0.5), "clouds": (cloud, BOX), "rounds": (round_, cloud * 0.7)}[shape]
    frames, others = _frames(rng, 300, 0.12), _frames(rng, 300, 0.12)
    gaps, _, normals = _gaps(a, b, frames, others)
    placed = zip(frames, others, strict=True)
    true = np.array([_distance(a @ f[:3, :3].T + f[:3, 3], b @ g[:3, :3].T + g[:3, 3]) for f, g in placed])
    apart = true > 1e-6
    assert apart.sum() > 60 and (gaps[apart] <= true[apart] + 1e-7).all() and (gaps[~apart] <= 1e-7).all()
    assert np.median((true - gaps)[apart]) < 0.004
    np.testing.assert_allclose(np.linalg.norm(normals, axis=1), 1.0)


def test_flat_faces_are_exact_and_overlap_is_negative() -> None:
    frame = np.eye(4)
    others = np.tile(np.eye(4), (3, 1, 1))
    others[:, 0, 3] = (0.11, 0.1, 0.09)
    gaps, points, normals = _gaps(BOX, BOX, np.tile(frame, (3, 1, 1)), others)
    np.testing.assert_allclose(gaps, [0.01, 0.0, -0.01], atol=1e-9)
    np.testing.assert_allclose(normals, np.tile([-1.0, 0.0, 0.0], (3, 1)), atol=1e-9)
    assert (np.abs(points[:, 1:]) <= 0.1 + 1e-9).all()


def test_points_that_are_flat_or_few_have_no_hull() -> None:
    assert polytope_around(BOX[:3]) is None
    assert polytope_around(BOX * [1.0, 1.0, 0.0]) is None


def test_many_corners_are_simplified_outward() -> None:
    rng = np.random.default_rng(1)
    ball = rng.normal(size=(4000, 3))
    ball *= 0.1 / np.linalg.norm(ball, axis=1, keepdims=True)
    polytope = _known(ball)
    assert len(polytope.corners) <= 40 and 0.001 < polytope.rounding < 0.02
    assert (polytope.normals @ ball.T <= polytope.heights[:, None] + 1e-12).all()


@pytest.mark.parametrize("name", sorted(ROBOTS))
def test_gradients_are_those_of_the_distances(name: str) -> None:
    arm = boxed(ROBOTS[name])
    model, kinematics = CollisionModel(arm, CollisionConfig()), Kinematics(arm)
    plain = CollisionModel(
        dataclasses.replace(arm, capsules=tuple(dataclasses.replace(c, inside=None) for c in arm.capsules)),
        CollisionConfig(),
    )
    compared, step = 0, 1e-6
    for q in configurations(arm, 150, seed=3):
        pose = kinematics.forward(q)
        tight, loose = model.clearances(pose), plain.clearances(pose)
        assert (tight.distances >= loose.distances - 1e-12).all() and tight.nearest <= tight.distances.min() + 1e-12
        rows = np.flatnonzero(tight.distances > loose.distances + 1e-6)
        if len(rows) == 0:
            continue
        for joint in range(arm.num_joints):
            moved = [model.clearances(kinematics.forward(q + sign * step * np.eye(len(q))[joint])) for sign in (1, -1)]
            slope = (moved[0].distances - moved[1].distances)[rows] / (2.0 * step)
            smooth = np.abs(slope - tight.gradients[rows, joint]) < 1e-4
            assert smooth.mean() > 0.8 or len(rows) < 5
            compared += int(smooth.sum())
    assert compared > 200


def test_within_a_distance_are_the_pairs_that_hulls_leave_there() -> None:
    arm = boxed(ROBOTS["kinova_gen3"])
    model, kinematics = CollisionModel(arm, CollisionConfig()), Kinematics(arm)
    for q in configurations(arm, 60, seed=5):
        pose = kinematics.forward(q)
        every, near = model.clearances(pose), model.clearances(pose, within=0.02)
        np.testing.assert_array_equal(near.pairs, np.flatnonzero(every.distances < 0.02))
        np.testing.assert_allclose(near.distances, every.distances[every.distances < 0.02])
        assert near.nearest <= every.distances.min() + 1e-12


def test_coal_and_numpy_agree_with_hulls() -> None:
    for name in ("pinocchio", "coal"):
        pytest.importorskip(name, reason=f"{name} comes with the extra 'fast'")
    arm = boxed(ROBOTS["kinova_gen3"])
    slow, fast = CollisionModel(arm, CollisionConfig()), make_collisions(arm, CollisionConfig(), "pinocchio")
    kinematics = make_kinematics(arm, "pinocchio")
    for q in configurations(arm, 60, seed=6):
        pose = kinematics.forward(q)
        for within in (np.inf, 0.02):
            ours, theirs = slow.clearances(pose, within), fast.clearances(pose, within)
            np.testing.assert_array_equal(theirs.pairs, ours.pairs)
            np.testing.assert_allclose(theirs.distances, ours.distances, atol=1e-9)
            np.testing.assert_allclose(theirs.gradients, ours.gradients, atol=1e-6)


URDF = """<robot name="r"><link name="base">
<collision><origin xyz="0 0 0.05"/><geometry><box size="0.2 0.2 0.1"/></geometry></collision></link>
<link name="a"/><link name="b"><collision><geometry><cylinder radius="0.05" length="0.04"/></geometry></collision>
<collision><origin xyz="0.1 0 0"/><geometry><sphere radius="0.03"/></geometry></collision></link>
<joint name="j1" type="revolute"><parent link="base"/><child link="a"/><origin xyz="0 0 0.2"/><axis xyz="0 0 1"/>
<limit lower="-1" upper="1" velocity="1" effort="1"/></joint>
<joint name="j2" type="revolute"><parent link="a"/><child link="b"/><origin xyz="0.1 0 0"/><axis xyz="0 1 0"/>
<limit lower="-1" upper="1" velocity="1" effort="1"/></joint></robot>"""


def test_boxes_and_cylinders_of_a_file_have_hulls_and_balls_need_none() -> None:
    box, cylinder, ball = robot_from_urdf(URDF).capsules
    assert box.inside is not None and cylinder.inside is not None and ball.inside is None
    np.testing.assert_allclose(np.ptp(box.inside.corners, axis=0), [0.2, 0.2, 0.1])
    assert 0.0538 < np.linalg.norm(cylinder.inside.corners, axis=1).max() < 0.0543  # hypot(0.05, 0.02), a prism's


def test_a_capsule_without_a_hull_is_measured_as_before() -> None:
    arm = ROBOTS["panda"]
    assert all(capsule.inside is None for capsule in arm.capsules)
    one = Capsule(link=0, start=(0.0, 0.0, 0.0), end=(0.0, 0.0, 0.1), radius=0.05, inside=_known(BOX))
    assert one == dataclasses.replace(one, inside=None)
