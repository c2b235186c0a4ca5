"""Parts of an arm with two joints between them that cannot meet, however these joints stand.

Seen from the link between, the first part turns about one axis and the second about another one. Whatever the angles,
each stays in its own body of revolution, and two such bodies stand still. Where they are apart, the parts are, too: by
at least as much, in every posture. A body of revolution is its profile, points (r, z) about its axis; the distance of a
point from it is a distance in that plane.

    link k --joint k+1--> link k+1 --joint k+2--> link k+2
    first part, about the axis of joint k+1       second part, about that of joint k+2

Surfaces are sampled. What lies between samples is no farther from one of them than the slack, which is taken off.

Where the bodies of revolution meet, one part is turned about its axis only. The other one is looked at as it is, at one
angle of its joint after the other: by their convex hulls.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property
from typing import NamedTuple

import numpy as np
from scipy.spatial import ConvexHull, QhullError, cKDTree

from .polytopes import Polytope, Polytopes, polytope_around
from .robots import RobotModel
from .self_pairs import HOME_GAP, distant_capsules, pair_gaps, sampled_postures
from .transforms import Array, matrix_from_rpy, pose_inverse

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


NUM_TURNS = 32
"""Angles at which the corners of a part stand for its body of revolution."""

COARSE_ANGLES = 12
"""Angles of both joints at which hulls are compared at first."""

BETWEEN = 0.0005
"""How far [m] a part moves at most from the nearest of the angles at which it is compared with a body of revolution."""

LEVELS = _Level(0.006, 0.003, 0.004), _Level(0.002, 0.0007, 0.002)
COARSE = LEVELS[0]


class TurningPart:
    """A surface that turns about the z axis of a joint's frame.

    profiles: for each of `LEVELS` once it was needed, the cells (r, z) `[c 2]` [m] in which the surface has samples.
    radius: [m] of its farthest point from the axis.
    """

    def __init__(self, triangles: Array) -> None:
        """Take triangles `[t 3 3]` [m] in that frame."""
        self._triangles, self._profiles = triangles, dict[_Level, Array]()
        self.radius = float(np.linalg.norm(triangles[..., :2], axis=-1).max())

    @cached_property
    def lathe(self) -> Polytope | None:
        """The convex hull of the body of revolution; None where it is flat."""
        corners = self._triangles.reshape(-1, 3)
        r, z = np.linalg.norm(corners[:, :2], axis=1) / math.cos(math.pi / NUM_TURNS), corners[:, 2]
        outline = np.stack([np.concatenate([r, -r]), np.concatenate([z, z])], axis=1)
        try:
            r, z = outline[ConvexHull(outline).vertices].T
        except QhullError:
            return None
        angles = 2.0 * math.pi * np.arange(NUM_TURNS)[:, None] / NUM_TURNS
        return polytope_around(
            np.stack([r * np.cos(angles), r * np.sin(angles), z + 0.0 * angles], axis=-1).reshape(-1, 3)
        )

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


class _Placed(NamedTuple):
    """A part seen from the link between: as it is, in the frame of its own link, and turned about its joint's axis.

    part, hull: of it; fixed: `[4 4]` the frame of its joint, or, before that joint, the way back to its link; limits:
    of the joint [rad]; backward: whether the part is the one before the joint, which turns against its angle.
    """

    part: TurningPart
    hull: Polytope | None
    fixed: Array
    limits: tuple[float, float]
    backward: bool

    def frames(self, count: int) -> Array:
        """Return where the frame of the part's link is at angles between the limits `[count 4 4]`."""
        angles = np.linspace(*self.limits, count)
        turns = np.tile(np.eye(4), (count, 1, 1))
        turns[:, 0, 0] = turns[:, 1, 1] = np.cos(angles)
        turns[:, 1, 0] = np.sin(angles)
        turns[:, 0, 1] = -turns[:, 1, 0]
        return turns.transpose(0, 2, 1) @ self.fixed if self.backward else self.fixed @ turns


def hulls_never_meet(first: _Placed, second: _Placed) -> bool:
    """Return whether the hull of one part, at every angle, is `APART` from that of the other's body of revolution."""
    if first.hull is None or second.hull is None:
        return False
    some, others = first.frames(COARSE_ANGLES), second.frames(COARSE_ANGLES)
    both = np.repeat(some, COARSE_ANGLES, axis=0), np.tile(others, (COARSE_ANGLES, 1, 1))
    if _least_gap(first.hull, second.hull, *both) < APART:
        return False
    return _beside_lathe(first, second) or _beside_lathe(second, first)


def _beside_lathe(turned: _Placed, other: _Placed) -> bool:
    """Return whether one part is apart from the body of revolution of another, whatever its own angle."""
    lathe, hull = turned.part.lathe, other.hull
    if lathe is None or hull is None:
        return False
    axis = np.eye(4) if turned.backward else turned.fixed
    count = 2 + int((other.limits[1] - other.limits[0]) * other.part.radius / (2.0 * BETWEEN))
    return _least_gap(lathe, hull, np.tile(axis, (count, 1, 1)), other.frames(count)) >= APART + BETWEEN


def _least_gap(first: Polytope, second: Polytope, frames: Array, others: Array) -> float:
    zeros = np.zeros(len(frames), dtype=np.intp)
    return float(Polytopes([first, second]).gaps(zeros, zeros + 1, frames, others)[0].min())


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
    gaps = pair_gaps(model, (first, second), sampled_postures(model), hulls=False)
    tight = gaps.min(axis=0, initial=np.inf) < HOME_GAP
    before: dict[int, TurningPart] = {}
    behind: dict[int, TurningPart] = {}
    found = set()
    for i, k in zip(first[tight].tolist(), second[tight].tolist(), strict=True):
        surface, other = surfaces[i], surfaces[k]
        if surface is None or other is None:
            continue
        joint = int(links[i])
        at = _frame(model, joint)
        if i not in before:
            before[i] = TurningPart((surface - at[:3, 3]) @ at[:3, :3])
        behind.setdefault(k, TurningPart(other))
        there = _frame(model, joint + 1)
        if never_meet(before[i], behind[k], there[:3, 3], there[:3, :3]) or hulls_never_meet(
            _Placed(before[i], model.capsules[i].inside, pose_inverse(at), _limits(model, joint), backward=True),
            _Placed(behind[k], model.capsules[k].inside, there, _limits(model, joint + 1), backward=False),
        ):
            found.add((i, k))
    return frozenset(found)


def _frame(model: RobotModel, joint: int) -> Array:
    """Return where a joint's frame is in that of the link before it `[4 4]`."""
    frame = np.eye(4)
    frame[:3, :3], frame[:3, 3] = matrix_from_rpy(model.joint_rpys[joint]), model.joint_positions[joint]
    return frame


def _limits(model: RobotModel, joint: int) -> tuple[float, float]:
    """Return the angles [rad] of a joint, at most once around."""
    lower, upper = float(model.lower[joint]), float(model.upper[joint])
    return (lower, upper) if upper - lower < 2.0 * math.pi else (-math.pi, math.pi)
