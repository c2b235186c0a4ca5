"""Convex hulls of what capsules cover, and how far they are apart at least: many pairs at once.

A capsule sticks out at the flat faces of a housing. Where two capsules are near, hulls of what they cover say more.
Two convex bodies are at least as far apart as the one lies beyond a plane that bounds the other. The planes of both are
tried; those of the faces are exact where a corner is nearest to a face, all others fall short of the distance.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.spatial import ConvexHull, QhullError

from .transforms import Array

MOST_CORNERS = 40
"""Corners that stand for a hull, at most."""

ROUNDING = 0.001
"""Distance [m] from these corners' own hull below which no corner is added."""

MOST_FACES = 48
"""Planes of faces, the largest ones, at most."""

FACE_ANGLE, GAP_ANGLE = 10.0, 20.0
"""Angles [deg]: a face must differ so much from the larger ones, and other planes fill gaps wider than this."""

ROWS = 256
"""Pairs that are measured at a time, so that they stay in the cache."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Polytope:
    """A convex body, in the frame of a link.

    corners: `[v 3]` some of its corners [m]; rounding: [m] by how much it reaches beyond their hull, at most.
    normals: `[n 3]` unit normals of planes that bound it, outward; heights: `[n]` of these planes [m].
    """

    corners: Array
    rounding: float
    normals: Array
    heights: Array


def polytope_around(points: Array) -> Polytope | None:
    """Return the convex hull of points `[n 3]` [m], simplified outward; None where they are flat or few."""
    try:
        hull = ConvexHull(points)
        corners = points[hull.vertices]
        few = _corners(corners)
    except (QhullError, ValueError):
        return None
    triangles = points[hull.simplices]
    areas = np.linalg.norm(np.cross(triangles[:, 1] - triangles[:, 0], triangles[:, 2] - triangles[:, 0]), axis=1)
    normals = _normals(hull.equations[:, :3], areas)
    return Polytope(
        corners=few, rounding=_beyond(corners, few), normals=normals, heights=(normals @ corners.T).max(axis=1)
    )


def _corners(points: Array) -> Array:
    """Return those of points `[n 3]`, at most `MOST_CORNERS`, whose hull comes nearest to that of all."""
    chosen = np.unique((_directions(20) @ points.T).argmax(axis=1)).tolist()
    while len(chosen) < min(MOST_CORNERS, len(points)):
        planes = ConvexHull(points[chosen], qhull_options="QJ").equations
        outside = (points @ planes[:, :3].T + planes[:, 3]).max(axis=1)
        if outside.max() < ROUNDING:
            break
        chosen.append(int(outside.argmax()))
    return points[chosen]


def _beyond(points: Array, corners: Array) -> float:
    """Return how far [m] the farthest of points `[n 3]`, none inside, is from the hull of `corners` `[v 3]`."""
    origin, *sides = corners[ConvexHull(corners, qhull_options="QJ").simplices].transpose(1, 0, 2)
    edges = np.stack([side - origin for side in sides], axis=1)
    # Shares of a triangle's corners nearest to a point in its plane, those below zero left out: some point of it.
    shares = np.einsum("nfi,fie->nfe", points[:, None] - origin, np.linalg.pinv(edges))
    shares = np.maximum(np.concatenate([1.0 - shares.sum(axis=2, keepdims=True), shares], axis=2), 0.0)
    shares /= shares.sum(axis=2, keepdims=True)
    on = origin + np.einsum("nfe,fei->nfi", shares[..., 1:], edges)
    return float(np.linalg.norm(points[:, None] - on, axis=2).min(axis=1).max())


def _normals(normals: Array, areas: Array) -> Array:
    """Return the normals of the largest faces that differ, and others in between `[n 3]`."""
    same, place = np.unique(np.round(normals, 3), axis=0, return_inverse=True)
    largest = np.argsort(-np.bincount(place.ravel(), areas), kind="stable")
    first = np.zeros(len(same), dtype=np.intp)
    first[place.ravel()[::-1]] = np.arange(len(normals))[::-1]
    chosen: list[Array] = []
    for index in largest:
        normal = normals[first[index]]
        if len(chosen) < MOST_FACES and _differs(normal, chosen, FACE_ANGLE):
            chosen.append(normal)
    for direction in _directions(60):
        if _differs(direction, chosen, GAP_ANGLE):
            chosen.append(direction)
    return np.array(chosen)


def _differs(normal: Array, chosen: list[Array], angle: float) -> bool:
    return not chosen or float((np.array(chosen) @ normal).max()) < np.cos(np.radians(angle))


def _directions(count: int) -> Array:
    """Return evenly spread unit vectors `[count 3]`."""
    turns = np.arange(count) + 0.5
    height = 1.0 - 2.0 * turns / count
    angle, width = np.pi * (1.0 + np.sqrt(5.0)) * turns, np.sqrt(1.0 - height**2)
    return np.stack([width * np.cos(angle), width * np.sin(angle), height], axis=1)


class Polytopes:
    """The polytopes of an arm's capsules, of equal length so that many are measured at once.

    known: `[c]` whether a capsule has one.
    """

    def __init__(self, each: Sequence[Polytope | None]) -> None:
        """Take the polytope of each capsule, or None."""
        count = len(each)
        self.known = np.array([one is not None for one in each], dtype=bool)
        most_corners = max((len(one.corners) for one in each if one is not None), default=1)
        most_planes = max((len(one.heights) for one in each if one is not None), default=1)
        self._corners, self._normals = np.zeros((count, most_corners, 3)), np.zeros((count, most_planes, 3))
        self._heights, self._roundings = np.full((count, most_planes), np.inf), np.zeros(count)
        for index, one in enumerate(each):
            if one is not None:
                planes = len(one.heights)
                self._corners[index] = one.corners[np.minimum(np.arange(most_corners), len(one.corners) - 1)]
                self._normals[index, :planes], self._heights[index, :planes] = one.normals, one.heights
                self._roundings[index] = one.rounding

    def gaps(self, first: np.ndarray, second: np.ndarray, frames: Array, others: Array) -> tuple[Array, Array, Array]:
        """Return by how much pairs are apart at least.

        Args:
            first, second: `[p]` capsules with a polytope; frames, others: `[p 4 4]` of their links.

        Returns:
            Distances `[p]` [m], negative where they may overlap; points `[p 3]` [m] and unit normals `[p 3]` from the
            second to the first, with which the distance changes: by the normal times how the first moves against the
            second, both held fixed at the point.
        """
        distances, points, normals = np.empty(len(first)), np.empty((len(first), 3)), np.empty((len(first), 3))
        for begin in range(0, len(first), ROWS):
            rows = slice(begin, begin + ROWS)
            a, b, frame, other = first[rows], second[rows], frames[rows], others[rows]
            beyond_first, point, normal = self._beyond(a, b, frame, other)
            beyond_second, on_first, outward = self._beyond(b, a, other, frame)
            better = beyond_second > beyond_first
            distances[rows] = np.where(better, beyond_second, beyond_first)
            points[rows] = np.where(better[:, None], on_first, point)
            normals[rows] = np.where(better[:, None], outward, -normal)
        return distances, points, normals

    def _beyond(
        self, bounded: np.ndarray, other: np.ndarray, frames: Array, others: Array
    ) -> tuple[Array, Array, Array]:
        """Return how far the `other` ones lie beyond planes of the `bounded` ones, where, and those planes' normals."""
        rotations = frames[:, :3, :3]
        placed = self._corners[other] @ others[:, :3, :3].transpose(0, 2, 1) + others[:, None, :3, 3]
        local = (placed - frames[:, None, :3, 3]) @ rotations
        over = self._normals[bounded] @ local.transpose(0, 2, 1)
        lowest = over.min(axis=2) - self._heights[bounded]
        row, plane = np.arange(len(bounded)), lowest.argmax(axis=1)
        corner = over[row, plane].argmin(axis=1)
        normals = (rotations @ self._normals[bounded, plane][:, :, None])[:, :, 0]
        return lowest[row, plane] - self._roundings[other], placed[row, corner], normals
