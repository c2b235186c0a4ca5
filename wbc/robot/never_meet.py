"""Parts of an arm with two joints between them that cannot meet, however these joints stand.

Seen from the link between, the first part turns about one axis and the second about another one. Whatever the angles,
each stays in its own body of revolution, and two such bodies stand still. Where they are apart, the parts are, too: by
at least as much, in every posture. A body of revolution is its profile, points (r, z) about its axis; the distance of a
point from it is a distance in that plane.

    link k --joint k+1--> link k+1 --joint k+2--> link k+2
    first part, about the axis of joint k+1       second part, about that of joint k+2

Surfaces are sampled. What lies between samples is no farther from one of them than the slack, which is taken off.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.spatial import cKDTree

from .robots import RobotModel
from .self_pairs import HOME_GAP, distant_capsules, pair_gaps, sampled_postures
from .transforms import Array, matrix_from_rpy

APART = 0.003
"""Distance [m] that bodies of revolution keep at least for their parts to count as never meeting."""

MOST_POINTS = 150_000
"""Samples of one body beyond which parts are taken to be able to meet."""


class _Level(NamedTuple):
    """How finely is sampled [m]: the surface, cells of the profile, along an arc."""

    spacing: float
    cell: float
    arc: float

    @property
    def slack(self) -> float:
        """How much nearer [m] the bodies may be than their samples: both surfaces, both profiles, one arc."""
        return 2.0 * self.spacing / math.sqrt(3.0) + 2.0 * self.cell / math.sqrt(2.0) + 0.5 * self.arc


LEVELS = _Level(0.006, 0.003, 0.004), _Level(0.002, 0.0007, 0.002)
COARSE = LEVELS[0]


class TurningPart:
    """A surface that turns about the z axis of a joint's frame.

    profiles: for each of `LEVELS` once it was needed, the cells (r, z) `[c 2]` [m] in which the surface has samples.
    """

    def __init__(self, triangles: Array) -> None:
        """Take triangles `[t 3 3]` [m] in that frame."""
        self._triangles, self._profiles = triangles, dict[_Level, Array]()

    def profile(self, level: _Level) -> Array:
        """Return the cells at one level."""
        if level not in self._profiles:
            points = _samples(self._triangles, level.spacing)
            about = np.stack([np.hypot(points[:, 0], points[:, 1]), points[:, 2]], axis=1)
            r, z = np.round(about / level.cell).astype(np.int64).T
            rows = np.unique((r << 32) + (z - z.min()))  # one number a cell
            cells: Array = np.stack([rows >> 32, (rows & 0xFFFFFFFF) + z.min()], axis=1) * level.cell
            self._profiles[level] = cells
        return self._profiles[level]


def never_meet(first: TurningPart, second: TurningPart, position: Array, rotation: Array) -> bool:
    """Return whether two parts cannot come nearer than `APART`; False where that is not certain.

    Args:
        first: a part of the link before both joints, about the axis of the first joint.
        second: a part of the link behind both joints, about the axis of the second joint.
        position, rotation: `[3]` [m], `[3 3]` of the second joint's frame in the first one's.
    """
    around_second = second.profile(COARSE)
    middle = 0.5 * (around_second[:, 1].min() + around_second[:, 1].max())
    radius = float(np.hypot(around_second[:, 0], around_second[:, 1] - middle).max()) + COARSE.slack
    center = position + rotation[:, 2] * middle
    near: Array | None = None
    before = 0.0
    for level in LEVELS:
        reach = APART + level.slack
        profile = first.profile(level)
        # Only what is near the ball around the second body, and what the last look left open, is looked at.
        gap = np.hypot(profile[:, 0] - np.hypot(center[0], center[1]), profile[:, 1] - center[2])
        profile = profile[gap <= radius + reach]
        if near is not None and len(profile):
            profile = profile[cKDTree(near).query(profile)[0] <= before]
        arcs = _arcs(profile, level.arc, center, radius + reach)
        if arcs is None:
            return False
        points, owner = arcs
        local = (points - position) @ rotation
        about = np.stack([np.hypot(local[:, 0], local[:, 1]), local[:, 2]], axis=1)
        distance, _ = cKDTree(second.profile(level)).query(about, distance_upper_bound=reach)
        left_open = distance < reach
        if not np.any(left_open):
            return True
        if float(distance.min()) < APART:
            return False
        near, before = profile[np.unique(owner[left_open])], level.slack
    return False


def _samples(triangles: Array, spacing: float) -> Array:
    """Return points `[n 3]` of triangles `[t 3 3]`: corners of pieces whose edges are no longer than `spacing` [m]."""
    edges = np.linalg.norm(triangles - np.roll(triangles, 1, axis=1), axis=2).max(1)
    pieces = np.maximum(np.ceil(edges / spacing).astype(np.intp), 1)
    found = []
    for count in np.unique(pieces):
        i, j = np.meshgrid(np.arange(count + 1), np.arange(count + 1), indexing="ij")
        inside = i + j <= count
        weights = np.stack([i[inside], j[inside], (count - i - j)[inside]], axis=1) / count
        found.append((weights @ triangles[pieces == count]).reshape(-1, 3))
    return np.concatenate(found)


def _arcs(profile: Array, arc: float, center: Array, reach: float) -> tuple[Array, np.ndarray] | None:
    """Return points `[n 3]`, `arc` apart, where the circles of profile cells are within `reach` of a point.

    With the cell of each `[n]`; None where they are too many.
    """
    r, beside = profile[:, 0], math.hypot(center[0], center[1])
    square = r**2 + beside**2 + (profile[:, 1] - center[2]) ** 2 - reach**2
    half = np.arccos(np.clip(square / np.maximum(2.0 * r * beside, 1e-12), -1.0, 1.0))
    half[(half == 0.0) & (square <= 0.0)] = math.pi
    count = np.ceil(2.0 * half * r / arc).astype(np.intp) + 1
    if count.sum() > MOST_POINTS:
        return None
    owner = np.repeat(np.arange(len(profile)), count)
    place = np.arange(len(owner)) - np.repeat(np.cumsum(count) - count, count)
    share = place / np.maximum(count - 1, 1)[owner]
    angle = math.atan2(center[1], center[0]) + half[owner] * (2.0 * share - 1.0)
    points = np.stack([r[owner] * np.cos(angle), r[owner] * np.sin(angle), profile[owner, 1]], axis=1)
    return points, owner


def never_meeting(model: RobotModel, surfaces: Sequence[Array | None]) -> frozenset[tuple[int, int]]:
    """Return the pairs of capsules, with two joints between their links, whose surfaces cannot meet.

    Args:
        model: the arm; only pairs that come near in some posture are looked at.
        surfaces: for each capsule the triangles `[t 3 3]` [m] that it covers, in the frame of its link; None where
            they are not known.
    """
    first, second = distant_capsules(model)
    links = np.array([capsule.link for capsule in model.capsules], dtype=np.intp)
    two = (links[second] - links[first] == 2) & np.array([surfaces[i] is not None for i in first], dtype=bool)
    first, second = first[two], second[two]
    gaps = pair_gaps(model, (first, second), sampled_postures(model))
    tight = gaps.min(axis=0, initial=np.inf) < HOME_GAP
    before: dict[int, TurningPart] = {}
    behind: dict[int, TurningPart] = {}
    found = set()
    for i, k in zip(first[tight].tolist(), second[tight].tolist(), strict=True):
        surface, other = surfaces[i], surfaces[k]
        if surface is None or other is None:
            continue
        joint = int(links[i])
        if i not in before:
            turn = matrix_from_rpy(model.joint_rpys[joint])
            before[i] = TurningPart((surface - model.joint_positions[joint]) @ turn)
        behind.setdefault(k, TurningPart(other))
        placed = model.joint_positions[joint + 1], matrix_from_rpy(model.joint_rpys[joint + 1])
        if never_meet(before[i], behind[k], *placed):
            found.add((i, k))
    return frozenset(found)
