"""A posture to begin in, for arms whose file names none: bent, within the limits, clear of the arm itself."""

from __future__ import annotations

import math

import numpy as np

from .geometry import closest_on_segments, point_separation
from .kinematics import Kinematics
from .robots import RobotModel
from .transforms import Array

NUM_POSTURES = 2000
"""Postures that are compared, sampled with seed 0."""

NUM_CHECKED = 200
"""The best of them whose distances are measured."""

CLEAR = 0.05
"""Distance [m] between watched capsules from which more is no better; less where the arm is smaller."""

LIMIT_SHARE = 0.15
"""Share of a joint's range that a posture keeps from its limits to count in full."""


def pair_gaps(model: RobotModel, pairs: tuple[Array, Array], q: Array) -> Array:
    """Return the distances `[m p]` [m] of pairs of capsules at postures `q` `[m j]`; negative where they overlap.

    Args:
        pairs: indices `[p]` of the first and the second capsule of each.
    """
    first, second = pairs
    links = np.array([capsule.link for capsule in model.capsules], dtype=np.intp)
    starts = np.array([capsule.start for capsule in model.capsules])
    ends = np.array([capsule.end for capsule in model.capsules])
    radii = np.array([capsule.radius for capsule in model.capsules])
    frames = Kinematics(model).forward_many(q, jacobians=False).frames[:, links]
    begin, end = ((frames[..., :3, :3] @ p[..., None])[..., 0] + frames[..., :3, 3] for p in (starts, ends))
    sides = (begin[:, first], end[:, first], begin[:, second], end[:, second])
    distances, _ = point_separation(*closest_on_segments(*(side.reshape(-1, 3) for side in sides)))
    gaps: Array = distances.reshape(len(q), -1) - radii[first] - radii[second]
    return gaps


def distant_capsules(model: RobotModel) -> tuple[Array, Array]:
    """Return the indices `[p]`, `[p]` of the pairs of capsules with at least two joints between them."""
    links = np.array([capsule.link for capsule in model.capsules], dtype=np.intp)
    first, second = np.triu_indices(len(links), 1)
    apart = np.abs(links[second] - links[first]) >= 2
    return first[apart], second[apart]


def default_home(model: RobotModel) -> Array:
    """Return a bent posture `[j]` [rad] for a model whose `home` is the middle of its limits.

    Of postures sampled within the limits, the first joint in its middle, the best has its tool far from a singularity,
    its joints far from their limits, its links above the base's plane, and its capsules apart. Joints without
    stops stay within a half turn. Rounded to 0.01 rad.
    """
    lower, upper = np.maximum(model.lower, -math.pi), np.minimum(model.upper, math.pi)
    half = np.maximum((upper - lower) / 2, 1e-9)
    middle = (lower + upper) / 2
    rng = np.random.default_rng(0)
    postures = middle + half * rng.uniform(-1.0, 1.0, (NUM_POSTURES, model.num_joints)) * (1.0 - LIMIT_SHARE / 2)
    postures[:, 0] = middle[0]
    postures = np.clip(np.round(postures, 2), np.ceil(lower * 100) / 100, np.floor(upper * 100) / 100)
    postures = np.clip(np.vstack([model.home, postures]), model.lower, model.upper)
    scores = _dexterity(model, postures) * _room(postures, middle, half) * _upright(model, postures)
    order = np.argsort(-scores, kind="stable")[:NUM_CHECKED]
    pairs = distant_capsules(model)
    if len(pairs[0]):
        gaps = pair_gaps(model, pairs, postures[order])
        watched = ~np.all(gaps < 0.0, axis=0)
        if watched.any():
            wanted = min(CLEAR, 0.1 * model.reach)
            scores[order] *= np.clip(gaps[:, watched].min(axis=1) / wanted, 1e-6, 1.0)
    best: Array = postures[order[np.argmax(scores[order])]]
    return best


def _dexterity(model: RobotModel, q: Array) -> Array:
    """Return the least singular value `[m]` of the Jacobians, lengths in units of half the reach.

    With fewer than six joints that of the position alone: the tool has no say in all of its rotation.
    """
    jacobians = Kinematics(model).forward_many(q).jacobian.copy()
    jacobians[:, :3] /= max(model.reach / 2, 1e-6)
    rows = jacobians if model.num_joints >= 6 else jacobians[:, :3]
    least: Array = np.maximum(np.linalg.svd(rows, compute_uv=False).min(axis=1), 1e-9)
    return least


def _room(q: Array, middle: Array, half: Array) -> Array:
    """Return 1 where all joints are `LIMIT_SHARE` of half their range from the limits, less where one is not.

    Among these the nearer to the middle is slightly better.
    """
    beside = np.abs(q - middle) / half
    room: Array = np.clip((1.0 - beside.max(axis=1)) / LIMIT_SHARE, 1e-3, 1.0) * (1.0 - 0.3 * beside.mean(axis=1))
    return room


def _upright(model: RobotModel, q: Array) -> Array:
    """Return 1 where tool and links stay above the plane of the base, 0.2 where they do not.

    The plane is that of the base frame's x and y, lowered to the first joint where that is below it.
    """
    pose = Kinematics(model).forward_many(q, jacobians=False)
    floor = min(0.0, float(model.joint_positions[0, 2])) + 0.05 * model.reach
    heights = np.concatenate([pose.frames[:, 2:, 2, 3], pose.tool[:, None, 2, 3]], axis=1)
    above: Array = np.where(heights.min(axis=1) > floor, 1.0, 0.2)
    return above
