"""A posture to begin in, for arms whose file names none: bent, within the limits, clear of the arm itself."""

from __future__ import annotations

import math

import numpy as np

from .kinematics import Kinematics
from .robots import RobotModel
from .self_pairs import distant_capsules, least_gaps, pair_gaps, usual_overlap
from .transforms import Array

NUM_POSTURES = 2000
"""Postures that are compared, sampled with seed 0."""

NUM_CHECKED = 400
"""The best of them whose distances are measured."""

NUM_MOVED, NUM_WATCHED = 50, 12
"""The best of those, whose tool is moved to all sides; the best then, which are watched on the way."""

SIDES = np.array(
    [[x, y, z] for x in (-1, 0, 1) for y in (-1, 0, 1) for z in (-1, 0, 1) if abs(x) + abs(y) + abs(z) == 1]
)
SIDES = np.vstack([SIDES, [[x, y, 0] for x in (-0.7, 0.7) for y in (-0.7, 0.7)]])
"""Directions `[10 3]` in which the tool is moved."""

WAY, WAY_SHARE, NUM_STEPS = 0.12, 0.2, 8
"""How far the tool is moved: [m], at most this share of the reach, in as many steps."""

CLEAR = 0.05
"""Distance [m] between watched capsules from which more is no better; less where the arm is smaller."""

LACK = 0.01
"""Distance [m] that capsules come too near on the way of the tool from which on a posture does not count."""

LIMIT_SHARE = 0.15
"""Share of a joint's range that a posture keeps from its limits to count in full."""


def default_home(model: RobotModel, never: frozenset[tuple[int, int]] = frozenset()) -> Array:
    """Return a bent posture `[j]` [rad] for a model whose `home` is the middle of its limits.

    Of postures sampled within the limits, the first joint in its middle, the best has its tool far from a singularity,
    its joints far from their limits, its links above the base's plane, and its capsules apart, there and where the
    tool has moved to all sides; on the way there, capsules come no nearer than the arm lets them once this is its home.
    Pairs that can `never` meet are left out. Joints without stops stay within a half turn. Rounded to 0.01 rad.
    """
    lower, upper = np.maximum(model.lower, -math.pi), np.minimum(model.upper, math.pi)
    half = np.maximum((upper - lower) / 2, 1e-9)
    middle = (lower + upper) / 2
    rng = np.random.default_rng(0)
    postures = middle + half * rng.uniform(-1.0, 1.0, (NUM_POSTURES, model.num_joints)) * (1.0 - LIMIT_SHARE / 2)
    postures[:, 0] = middle[0]
    postures = np.clip(np.round(postures, 2), np.ceil(lower * 100) / 100, np.floor(upper * 100) / 100)
    postures = np.clip(np.vstack([model.home, postures]), model.lower, model.upper)
    pairs = distant_capsules(model, never)

    def quality(q: Array, usual: Array) -> Array:
        return _dexterity(model, q) * _room(q, middle, half) * _upright(model, q) * _clearance(model, pairs, usual, q)

    scores = quality(postures, np.full(len(pairs[0]), np.inf))
    best = postures[np.argsort(-scores, kind="stable")[:NUM_CHECKED]]
    watched = usual_overlap(model, pairs)
    best = best[np.argsort(-quality(best, watched), kind="stable")[:NUM_MOVED]]
    ways = _moved(model, best)
    here, ends = quality(best, watched), ways[:, :, -1].reshape(-1, model.num_joints)
    scores = here * np.minimum(quality(ends, watched).reshape(len(best), -1).min(axis=1), here)
    chosen = np.argsort(-scores, kind="stable")[:NUM_WATCHED]
    free = np.array([_freedom(model, pairs, watched, best[k], ways[k]) for k in chosen])
    home: Array = best[chosen[np.argmax(scores[chosen] * free)]]
    return home


def _freedom(model: RobotModel, pairs: tuple[Array, Array], usual: Array, home: Array, ways: Array) -> float:
    """Return 1 where capsules come no nearer on `ways` `[s t j]` than the arm lets them with this `home` `[j]`, 0.001
    where they lack `LACK` or more."""
    watched = np.isfinite(usual)
    if not watched.any():
        return 1.0
    postures = np.vstack([home[None], ways[:, -1], ways[:, :-1].reshape(-1, len(home))])
    postures = np.clip(postures, model.lower, model.upper)
    gaps = pair_gaps(model, (pairs[0][watched], pairs[1][watched]), postures)
    lack = least_gaps(gaps[0], gaps[1 : 1 + len(ways)].min(axis=0)) - gaps[1 + len(ways) :].min(axis=0)
    return float(np.clip(1.0 - lack.max() / LACK, 1e-3, 1.0))


def around_home(model: RobotModel) -> Array:
    """Return postures `[10 j]` within the limits where the tool has moved from home to all sides."""
    return np.clip(_moved(model, model.home[None])[0, :, -1], model.lower, model.upper)


def _clearance(model: RobotModel, pairs: tuple[Array, Array], usual: Array, q: Array) -> Array:
    """Return 1 where the pairs of capsules are `CLEAR` apart at postures `q` `[m j]`, less where not.

    Those that usually overlap count as apart by as much `[p]` [m] more, those with infinity not at all.
    """
    watched = np.isfinite(usual)
    if not watched.any():
        return np.ones(len(q))
    gaps = (pair_gaps(model, (pairs[0][watched], pairs[1][watched]), q) + usual[watched]).min(axis=1)
    clear: Array = np.clip(gaps / min(CLEAR, 0.1 * model.reach), 1e-6, 1.0)
    return clear


def _moved(model: RobotModel, q: Array) -> Array:
    """Return where the joints `[m 10 t j]` are while the tool goes straight to all `SIDES` from postures `q` `[m j]`.

    The rotation is kept from six joints on, by damped least squares; beyond the limits where the way leads there.
    """
    kinematics, steps = Kinematics(model), np.zeros((len(q) * len(SIDES), 6))
    steps[:, :3] = np.tile(SIDES, (len(q), 1)) * min(WAY, WAY_SHARE * model.reach) / NUM_STEPS
    rows = 6 if model.num_joints >= 6 else 3
    moved, ways = np.repeat(q, len(SIDES), axis=0), []
    for _ in range(NUM_STEPS):
        jacobian = kinematics.forward_many(moved).jacobian[:, :rows]
        square = jacobian @ jacobian.transpose(0, 2, 1) + 1e-6 * np.eye(rows)
        moved = moved + (jacobian.transpose(0, 2, 1) @ np.linalg.solve(square, steps[:, :rows, None]))[..., 0]
        ways.append(moved.reshape(len(q), len(SIDES), -1))
    return np.stack(ways, axis=2)


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
