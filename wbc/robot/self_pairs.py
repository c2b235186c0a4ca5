"""Which capsules of an arm are kept apart, and how near each other they may come."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from .geometry import closest_on_segments, point_separation
from .kinematics import Kinematics
from .robots import RobotModel
from .transforms import Array

NUM_SAMPLES = 400
"""Postures sampled to see which capsules always overlap."""

HOME_GAP = 0.0125
"""Distance [m] that watched capsules count as having at home, at least: slightly more than plans keep."""

MOST_OVERLAP = 0.9
"""Share of the postures in which capsules overlap from which on their distance tells nothing."""


def with_self_pairs(model: RobotModel) -> RobotModel:
    """Return the model with its pairs of capsules that are at least two joints apart.

    A pair nearer than `HOME_GAP` at `home` is watched, too: since the arm may stand there, its distance counts from
    there, so that the two may come nearer than at home only by what is more than the clearance. Left out, and named in
    `unwatched_pairs`, are pairs that overlap in most postures: their capsules are too wide to tell anything.
    """
    links = np.array([capsule.link for capsule in model.capsules], dtype=np.intp)
    first, second = np.triu_indices(len(links), 1)
    apart = np.abs(links[second] - links[first]) >= 2
    first, second = first[apart], second[apart]
    if len(first) == 0:
        return replace(model, self_pairs=(), self_margins=(), unwatched_pairs=())
    lower, upper = np.maximum(model.lower, -math.pi), np.minimum(model.upper, math.pi)
    postures = np.random.default_rng(0).uniform(lower, np.maximum(upper, lower), (NUM_SAMPLES, model.num_joints))
    gaps = _gaps(model, first, second, np.vstack([model.home, postures]))
    useless = np.mean(gaps[1:] < 0.0, axis=0) > MOST_OVERLAP
    margins = np.maximum(HOME_GAP - gaps[0], 0.0)
    kept = ~useless

    def pairs(chosen: np.ndarray) -> tuple[tuple[int, int], ...]:
        return tuple(zip(first[chosen].tolist(), second[chosen].tolist(), strict=True))

    watched, margin = pairs(kept), tuple(margins[kept].tolist())
    return replace(model, self_pairs=watched, self_margins=margin, unwatched_pairs=pairs(useless))


def _gaps(model: RobotModel, first: np.ndarray, second: np.ndarray, q: Array) -> Array:
    """Return the distances `[m p]` [m] of pairs of capsules at postures `q` `[m j]`; negative where they overlap."""
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
