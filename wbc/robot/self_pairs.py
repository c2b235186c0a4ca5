"""Which capsules of an arm are kept apart, and how near each other they may come."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from .geometry import closest_on_segments, point_separation
from .kinematics import Kinematics
from .polytopes import Polytopes
from .robots import RobotModel
from .transforms import Array

NUM_SAMPLES = 400
"""Postures sampled to see which capsules always overlap."""

HOME_GAP = 0.0125
"""Distance [m] that watched capsules count as having at home, at least: slightly more than plans keep."""

MOST_NEARER = 0.002
"""How much nearer than at home [m] capsules may be at postures around it and still be allowed to."""

MOST_OVERLAP = 0.9
"""Share of the postures in which capsules overlap from which on they are not watched at all."""


def pair_gaps(model: RobotModel, pairs: tuple[Array, Array], q: Array, *, hulls: bool = True) -> Array:
    """Return the distances `[m p]` [m] of pairs of capsules at postures `q` `[m j]`; negative where they overlap.

    Args:
        pairs: indices `[p]` of the first and the second capsule of each.
        hulls: whether, where capsules are nearer than `HOME_GAP`, the hulls of what they cover are asked, too.
    """
    first, second = pairs
    if len(first) == 0:
        return np.empty((len(q), 0))
    links = np.array([capsule.link for capsule in model.capsules], dtype=np.intp)
    starts = np.array([capsule.start for capsule in model.capsules])
    ends = np.array([capsule.end for capsule in model.capsules])
    radii = np.array([capsule.radius for capsule in model.capsules])
    frames = Kinematics(model).forward_many(q, jacobians=False).frames[:, links]
    polytopes = Polytopes([capsule.inside for capsule in model.capsules])
    begin, end = ((frames[..., :3, :3] @ p[..., None])[..., 0] + frames[..., :3, 3] for p in (starts, ends))
    sides = (begin[:, first], end[:, first], begin[:, second], end[:, second])
    distances, _ = point_separation(*closest_on_segments(*(side.reshape(-1, 3) for side in sides)))
    gaps: Array = distances.reshape(len(q), -1) - radii[first] - radii[second]
    if not hulls:
        return gaps
    pose, pair = np.nonzero((gaps < HOME_GAP) & polytopes.known[first] & polytopes.known[second])
    apart, _, _ = polytopes.gaps(first[pair], second[pair], frames[pose, first[pair]], frames[pose, second[pair]])
    gaps[pose, pair] = np.maximum(gaps[pose, pair], apart)
    return gaps


def distant_capsules(model: RobotModel, never: frozenset[tuple[int, int]] = frozenset()) -> tuple[Array, Array]:
    """Return the indices `[p]`, `[p]` of the pairs of capsules with at least two joints between them, without those
    that can `never` meet."""
    links = np.array([capsule.link for capsule in model.capsules], dtype=np.intp)
    first, second = np.triu_indices(len(links), 1)
    apart = np.abs(links[second] - links[first]) >= 2
    pairs = zip(first.tolist(), second.tolist(), strict=True)
    apart &= np.array([pair not in never for pair in pairs], dtype=bool)
    return first[apart], second[apart]


def usual_overlap(model: RobotModel, pairs: tuple[Array, Array]) -> Array:
    """Return by how much less than `HOME_GAP` the pairs are apart `[p]` [m] in half of the postures; infinity for those
    that overlap in most of them, which are not watched."""
    gaps = pair_gaps(model, pairs, sampled_postures(model))
    overlap: Array = np.maximum(HOME_GAP - np.median(gaps, axis=0), 0.0)
    overlap[np.mean(gaps < 0.0, axis=0) > MOST_OVERLAP] = np.inf
    return overlap


def sampled_postures(model: RobotModel) -> Array:
    """Return `NUM_SAMPLES` postures `[m j]` [rad] within the limits, the same ones each time."""
    lower, upper = np.maximum(model.lower, -math.pi), np.minimum(model.upper, math.pi)
    return np.random.default_rng(0).uniform(lower, np.maximum(upper, lower), (NUM_SAMPLES, model.num_joints))


def least_gaps(at_home: Array, around: Array) -> Array:
    """Return how near pairs may come `[p]` [m], apart from the clearance: as near as at home and, by `MOST_NEARER`,
    around it, where that is less than `HOME_GAP`."""
    least: Array = np.minimum(HOME_GAP, np.clip(around, at_home - MOST_NEARER, at_home))
    return least


def with_self_pairs(
    model: RobotModel, around: Array | None = None, never: frozenset[tuple[int, int]] = frozenset()
) -> RobotModel:
    """Return the model with its pairs of capsules that are at least two joints apart.

    A pair nearer than `HOME_GAP` at `home` or at postures `around` it `[m j]` is watched, too: since the arm may stand
    there, its distance counts from the least one there, so that the two may come nearer only by what is more than the
    clearance. Left out are pairs that can `never` meet. Left out, too, and named in `unwatched_pairs`, are pairs that
    overlap in most postures: their capsules are too wide to tell anything.
    """
    both = distant_capsules(model, never)
    first, second = both
    if len(first) == 0:
        return replace(model, self_pairs=(), self_margins=(), unwatched_pairs=())
    at_home = pair_gaps(model, both, model.home[None])[0]
    least = at_home if around is None else pair_gaps(model, both, around).min(axis=0)
    margins = HOME_GAP - least_gaps(at_home, least)
    kept = np.isfinite(usual_overlap(model, both))

    def pairs(chosen: np.ndarray) -> tuple[tuple[int, int], ...]:
        return tuple(zip(first[chosen].tolist(), second[chosen].tolist(), strict=True))

    watched, margin = pairs(kept), tuple(margins[kept].tolist())
    return replace(model, self_pairs=watched, self_margins=margin, unwatched_pairs=pairs(~kept))
