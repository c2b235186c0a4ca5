"""Which links are kept apart: none is left out without being named, and a mesh is covered closely."""

from __future__ import annotations

import dataclasses

import numpy as np

from gr2.contracts import JointTrajectory
from gr2.wbc.collision import CollisionConfig, CollisionModel
from gr2.wbc.controller import WholeBodyController
from gr2.wbc.robot.capsule_fit import fit_capsule
from gr2.wbc.robot.kinematics import Kinematics
from gr2.wbc.robot.mesh_cover import cover_mesh
from gr2.wbc.robot.never_meet import TurningPart, never_meet, never_meeting
from gr2.wbc.robot.polytopes import polytope_around
from gr2.wbc.robot.robots import Capsule, RobotModel, kinova_gen3
from gr2.wbc.robot.self_pairs import HOME_GAP, with_self_pairs
from gr2.wbc.robot.transforms import matrix_from_rpy

GEN3 = kinova_gen3()


def _box(low: tuple[float, float, float], high: tuple[float, float, float]) -> np.ndarray:
    """The twelve triangles of a box as `[36 3]` vertices."""
    corners = np.array([[(low, high)[(k >> a) & 1][a] for a in range(3)] for k in range(8)])
    faces = [(0, 1, 3, 2), (4, 6, 7, 5), (0, 4, 5, 1), (2, 3, 7, 6), (0, 2, 6, 4), (1, 5, 7, 3)]
    return corners[[k for a, b, c, d in faces for k in (a, b, c, a, c, d)]]


def test_a_bent_mesh_is_covered_by_several_capsules_that_leave_its_corner_free() -> None:
    arm = np.concatenate([_box((0, 0, 0), (0.4, 0.06, 0.06)), _box((0, 0, 0), (0.06, 0.4, 0.06))])
    capsules = cover_mesh(arm)
    rng = np.random.default_rng(0)
    shares = rng.dirichlet([1, 1, 1], 50)
    surface = np.einsum("sk,tkd->tsd", shares, arm.reshape(-1, 3, 3)).reshape(-1, 3)
    assert np.logical_or.reduce([c.holds(surface + 0.0) | (c.excess(surface) < 0) for c in capsules]).all()
    space = rng.uniform([0.0, 0.0, 0.0], [0.4, 0.4, 0.06], (4000, 3))
    several = np.logical_or.reduce([c.holds(space) for c in capsules]).mean()
    one = fit_capsule(arm).holds(space).mean()
    assert 2 <= len(capsules) <= 6 and several < 0.7 * one


def test_a_flat_or_tiny_mesh_is_covered_too() -> None:
    flat = np.array([[0.0, 0.0, 0.0], [0.1, 0.0, 0.0], [0.0, 0.1, 0.0], [0.1, 0.1, 0.0]])
    for points in (flat, flat[:3], flat[:1]):
        assert all(any(c.excess(p[None]) < 1e-9 for c in cover_mesh(points)) for p in points)


def _wide(radius: float) -> RobotModel:
    """The Gen3 with a thick base, so near the third link at home that a gap of `HOME_GAP` is missing."""
    base = Capsule(link=0, start=(0.0, 0.0, 0.0), end=(0.0, 0.0, 0.2), radius=radius)
    return dataclasses.replace(GEN3, capsules=(base, *GEN3.capsules[1:]), self_pairs=(), self_margins=())


def test_a_pair_that_is_near_at_home_is_watched_from_there() -> None:
    bare = _wide(0.12)
    free = dataclasses.replace(bare, self_pairs=((0, 8),))
    home = CollisionModel(free, CollisionConfig()).clearances(Kinematics(bare).forward(bare.home)).nearest
    near = with_self_pairs(_wide(0.12 + home + 0.01))  # the palm overlaps the base by 10 mm at home
    assert (0, 8) in near.self_pairs
    margin = near.self_margins[near.self_pairs.index((0, 8))]
    np.testing.assert_allclose(margin, HOME_GAP + 0.01, atol=1e-9)
    pose = Kinematics(near).forward(near.home)
    assert CollisionModel(near, CollisionConfig()).clearances(pose).nearest >= HOME_GAP - 1e-9
    controller = WholeBodyController(near)
    controller.reset(near.home, 1.0, 0.0)
    inward = np.tile(near.home + np.array([0.0, -0.3, 0.0, 0.4, 0.0, 0.3, 0.0]), (20, 1))
    controller.accept(JointTrajectory(positions=inward, gripper=None, dt=0.05, start_time=0.0))
    model, kinematics = CollisionModel(near, CollisionConfig()), Kinematics(near)
    for index in range(400):
        pose = kinematics.forward(controller.step(index * 0.005).positions)
        assert model.clearances(pose).nearest > 0.009


def test_pairs_that_always_overlap_are_named() -> None:
    model = with_self_pairs(_wide(0.6))
    assert model.unwatched_pairs and not set(model.unwatched_pairs) & set(model.self_pairs)
    controller = WholeBodyController(model)
    assert [e.code for e in controller.events] == ["unwatched_pairs"]
    assert "(0, 2)" in controller.events[0].detail


def _turning(low: tuple[float, float, float], high: tuple[float, float, float]) -> TurningPart:
    return TurningPart(_box(low, high).reshape(-1, 3, 3))


def test_parts_that_no_angle_brings_together_never_meet_and_others_may() -> None:
    """A peg on one axis and a bar on another one, 10 cm apart and at right angles to it."""
    position, rotation = np.array([0.1, 0.0, 0.0]), matrix_from_rpy(np.array([np.pi / 2, 0.0, 0.0]))
    peg = _turning((-0.01, -0.01, -0.01), (0.01, 0.01, 0.01))
    rng = np.random.default_rng(0)
    for length, meets in ((0.06, False), (0.07, False), (0.095, True), (0.12, True)):
        bar = _turning((0.0, -0.005, -0.005), (length, 0.005, 0.005))
        assert never_meet(peg, bar, position, rotation) is not meets
        # The least distance of sampled surfaces over random angles agrees.
        first, second = (rng.dirichlet([1, 1, 1], 40) for _ in range(2))
        a = np.einsum("sk,tkd->tsd", first, peg._triangles).reshape(-1, 3)
        b = np.einsum("sk,tkd->tsd", second, bar._triangles).reshape(-1, 3)
        nearest = np.inf
        for one, two in rng.uniform(-np.pi, np.pi, (60, 2)):
            turned = a @ matrix_from_rpy(np.array([0.0, 0.0, one])).T
            other = b @ matrix_from_rpy(np.array([0.0, 0.0, two])).T @ rotation.T + position
            nearest = min(nearest, float(np.linalg.norm(turned[:, None] - other[None], axis=-1).min()))
        assert meets or nearest > 0.003


def test_pairs_that_never_meet_are_not_watched_and_not_named() -> None:
    watched = with_self_pairs(dataclasses.replace(GEN3, self_pairs=(), self_margins=()))
    pair = watched.self_pairs[0]
    fewer = with_self_pairs(watched, never=frozenset([pair]))
    assert pair not in fewer.self_pairs and pair not in fewer.unwatched_pairs
    assert set(watched.self_pairs) - set(fewer.self_pairs) == {pair}


def test_surfaces_that_never_meet_are_found_in_a_model() -> None:
    """A disc around the base's axis, and a short arm that two joints, at right angles, keep above it."""
    capsules = (
        Capsule(link=0, start=(0.0, 0.0, 0.0), end=(0.0, 0.0, 0.0), radius=0.09),
        Capsule(link=2, start=(0.0, 0.0, 0.0), end=(0.05, 0.0, 0.0), radius=0.02),
    )
    arm = dataclasses.replace(
        GEN3,
        capsules=capsules,
        self_pairs=(),
        self_margins=(),
        joint_positions=np.array([[0.0, 0.0, 0.1], [0.0, 0.0, 0.0], *GEN3.joint_positions[2:]]),
        joint_rpys=np.array([[0.0, 0.0, 0.0], [np.pi / 2, 0.0, 0.0], *GEN3.joint_rpys[2:]]),
    )
    disc = _box((-0.06, -0.06, -0.01), (0.06, 0.06, 0.01)).reshape(-1, 3, 3)
    bar = _box((0.0, -0.015, -0.015), (0.06, 0.015, 0.015)).reshape(-1, 3, 3)
    assert never_meeting(arm, [disc, bar]) == {(0, 1)}
    assert never_meeting(arm, [disc, None]) == frozenset()
    assert never_meeting(arm, [disc, 2.0 * bar]) == frozenset()


def test_a_part_beside_a_body_of_revolution_never_meets_it_though_its_own_would() -> None:
    """A finger that bends away from a disc, within its limits: turned all around its axis it would pass through."""
    capsules = (
        Capsule(link=0, start=(0.0, 0.0, 0.0), end=(0.0, 0.0, 0.0), radius=0.09),
        Capsule(link=2, start=(0.0, 0.0, 0.0), end=(0.1, 0.0, 0.0), radius=0.02),
    )
    disc, finger = _box((-0.06, -0.06, -0.01), (0.06, 0.06, 0.01)), _box((0.0, -0.01, -0.01), (0.1, 0.01, 0.01))
    capsules = tuple(
        dataclasses.replace(capsule, inside=polytope_around(corners))
        for capsule, corners in zip(capsules, (disc, finger), strict=True)
    )
    surfaces = [disc.reshape(-1, 3, 3), finger.reshape(-1, 3, 3)]
    for lower, upper, found in (
        (0.0, np.pi, {(0, 1)}),
        (-0.1, np.pi, {(0, 1)}),
        (-1.0, np.pi, set()),
        (-9.0, 9.0, set()),
    ):
        arm = dataclasses.replace(
            GEN3,
            capsules=capsules,
            self_pairs=(),
            self_margins=(),
            joint_positions=np.array([[0.0, 0.0, 0.0], [0.0, 0.0, 0.05], *GEN3.joint_positions[2:]]),
            joint_rpys=np.array([[0.0, 0.0, 0.0], [np.pi / 2, 0.0, 0.0], *GEN3.joint_rpys[2:]]),
            lower=np.array([-np.inf, lower, *GEN3.lower[2:]]),
            upper=np.array([np.inf, upper, *GEN3.upper[2:]]),
        )
        assert never_meeting(arm, surfaces) == found, (lower, upper)
