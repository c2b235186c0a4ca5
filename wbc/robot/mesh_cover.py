"""Cover a mesh with several capsules: it is cut in two where that frees most space, and each part again."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from .capsule_fit import FittedCapsule, around_axis, extremes, fit_capsule, hull_triangles
from .transforms import Array

MOST_PARTS = 6
"""Capsules for one mesh at most; each more makes the pairs that are watched more."""
LEAST_SAVING = 0.02
"""Share of the covered space that a cut must free."""
PLACES = (0.12, 0.3, 0.5, 0.7, 0.88)
"""Where an extent is cut, as shares of it."""
SEARCHED = 2000
"""Triangles that are looked at while a cut is sought, evenly taken from all."""
NUM_POINTS = 4000
"""Points, sampled with seed 0, in which covered space is counted."""


Mask = npt.NDArray[np.bool_]


class _Part(NamedTuple):
    """Triangles `[t 3 3]`, some of them for the search, and which points of space the capsule around them covers."""

    full: Array
    some: Array
    covered: Mask


class _Cut(NamedTuple):
    """A plane `axis . x = height` and what the capsules on both sides of it cover."""

    axis: Array
    height: float
    covered: tuple[Mask, Mask]


def cover_mesh(vertices: Array) -> list[FittedCapsule]:
    """Return capsules that together cover the surface of a mesh.

    Args:
        vertices: `[n 3]` [m], each three of them a triangle; where their number shows that they are not, their convex
            hull is covered.
    """
    surface = vertices.reshape(-1, 3, 3) if len(vertices) % 3 == 0 and len(vertices) else hull_triangles(vertices)
    if surface is None:
        return [fit_capsule(vertices)]
    some = surface[:: -(-len(surface) // SEARCHED)]
    around = _quick(some)
    low = np.minimum(around.start, around.end) - around.radius
    high = np.maximum(around.start, around.end) + around.radius
    space = np.random.default_rng(0).uniform(low, high, (NUM_POINTS, 3))
    parts = [_Part(surface, some, around.holds(space))]
    cuts = [_best_cut(parts[0], space, np.zeros(NUM_POINTS, dtype=bool))]
    while len(parts) < MOST_PARTS:
        whole = np.logical_or.reduce([part.covered for part in parts])
        left = [_left(parts, index, cut) for index, cut in enumerate(cuts)]
        index = int(np.argmin(left))
        cut = cuts[index]
        if cut is None or whole.sum() - left[index] < LEAST_SAVING * whole.sum():
            break
        part = parts[index]
        halves = [
            _Part(
                _side(part.full, sign * cut.axis, sign * cut.height),
                _side(part.some, sign * cut.axis, sign * cut.height),
                c,
            )
            for sign, c in zip((1.0, -1.0), cut.covered, strict=True)
        ]
        parts[index : index + 1] = halves
        others = [np.logical_or.reduce([p.covered for p in parts if p is not half]) for half in halves]
        cuts[index : index + 1] = [_best_cut(half, space, o) for half, o in zip(halves, others, strict=True)]
    return [fit_capsule(part.full.reshape(-1, 3))._replace(surface=part.full) for part in parts]


def _quick(part: Array) -> FittedCapsule:
    """Return the least capsule around triangles `[t 3 3]` along one of their principal axes."""
    corners = extremes(part.reshape(-1, 3))
    middle = (corners.min(0) + corners.max(0)) / 2
    axes = np.linalg.svd(corners - corners.mean(0), full_matrices=True)[2]
    return min((around_axis(corners, axis, middle, 0.0) for axis in axes), key=lambda capsule: capsule.volume)


def _left(parts: list[_Part], index: int, cut: _Cut | None) -> int:
    """Return how many points stay covered when one part is cut; none fewer where there is no cut."""
    kept = [part.covered for place, part in enumerate(parts) if place != index]
    return int(np.logical_or.reduce(kept + list(cut.covered if cut else [parts[index].covered])).sum())


def _best_cut(part: _Part, space: Array, others: Mask) -> _Cut | None:
    """Return the cut after which the fewest points of `space` `[p 3]` are covered, `others` `[p]` being so anyway."""
    corners = extremes(part.some.reshape(-1, 3))
    best: tuple[int, _Cut] | None = None
    for axis in np.linalg.svd(corners - corners.mean(0), full_matrices=True)[2]:
        along = corners @ axis
        low, high = float(along.min()), float(along.max())
        for place in PLACES:
            height = low + place * (high - low)
            halves = _side(part.some, axis, height), _side(part.some, -axis, -height)
            if not all(len(half) for half in halves):
                continue
            above, below = (_quick(half).holds(space) for half in halves)
            left = int((above | below | others).sum())
            if best is None or left < best[0]:
                best = left, _Cut(axis, height, (above, below))
    return None if best is None else best[1]


def _side(part: Array, axis: Array, height: float) -> Array:
    """Return what of triangles `[t 3 3]` lies where `axis . x >= height`, as triangles."""
    over = part @ axis - height
    above = over >= 0.0
    count = above.sum(1)
    kept = [part[count == 3]]
    for lone in (1, 2):
        chosen = np.flatnonzero(count == lone)
        if len(chosen) == 0:
            continue
        # The vertex that is alone on its side comes first; the edges from it are cut.
        first = (above[chosen] if lone == 1 else ~above[chosen]).argmax(1)
        order = (first[:, None] + np.arange(3)) % 3
        corner = np.take_along_axis(part[chosen], order[:, :, None], 1)
        level = np.take_along_axis(over[chosen], order, 1)
        share = level[:, :1] / (level[:, :1] - level[:, 1:])
        cuts = corner[:, :1] + share[:, :, None] * (corner[:, 1:] - corner[:, :1])
        if lone == 1:
            kept.append(np.stack([corner[:, 0], cuts[:, 0], cuts[:, 1]], 1))
        else:
            kept.append(np.stack([corner[:, 1], corner[:, 2], cuts[:, 0]], 1))
            kept.append(np.stack([corner[:, 2], cuts[:, 0], cuts[:, 1]], 1))
    return np.concatenate(kept)
