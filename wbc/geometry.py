"""Exact distances between segments, boxes and planes, many pairs at once.

A capsule is a segment with a radius, a sphere a segment of length zero. Every function returns points and
unit normals, so
that gradients follow: a normal points from the second body to the first, along the direction of growing
    distance.
"""

from __future__ import annotations

import numpy as np

from .transforms import Array

TOUCHING = 1e-9
"""Distance [m] between two points below which their difference has no direction."""


def _dot(a: Array, b: Array) -> Array:
    return np.einsum("pi,pi->p", a, b)


def closest_on_segments(start_a: Array, end_a: Array, start_b: Array, end_b: Array) -> tuple[Array, Array]:
    """Return the closest points `[p 3]` of segments a and b, given by their ends `[p 3]`; length zero is
    allowed.

    Minimises along a for the unbounded line b, clamps, minimises along b, clamps, and once more along a,
    which is exact.
    """
    along_a, along_b, between = end_a - start_a, end_b - start_b, start_a - start_b
    aa, bb, ab = _dot(along_a, along_a), _dot(along_b, along_b), _dot(along_a, along_b)
    a_between, b_between = _dot(along_a, between), _dot(along_b, between)
    determinant = aa * bb - ab * ab
    parallel = determinant <= 1e-12 * aa * bb + 1e-30
    s = np.where(parallel, 0.5, (ab * b_between - a_between * bb) / np.where(parallel, 1.0, determinant))
    s = np.minimum(np.maximum(s, 0.0), 1.0)
    t = (ab * s + b_between) / np.maximum(bb, 1e-30)
    t = np.minimum(np.maximum(t, 0.0), 1.0)
    s = (ab * t - a_between) / np.maximum(aa, 1e-30)
    s = np.minimum(np.maximum(s, 0.0), 1.0)
    return start_a + s[:, None] * along_a, start_b + t[:, None] * along_b


def point_separation(point_a: Array, point_b: Array) -> tuple[Array, Array]:
    """Return distances `[p]` and unit normals `[p 3]` from b to a; coincident points get the z axis."""
    difference = point_a - point_b
    distance = np.sqrt(_dot(difference, difference))
    normal = difference / np.maximum(distance, TOUCHING)[:, None]
    normal[distance < TOUCHING] = (0.0, 0.0, 1.0)
    return distance, normal


def box_signed_distance(points: Array, half_extents: Array) -> Array:
    """Return the signed distance `[...]` of points `[... 3]` to a box at the origin, negative inside."""
    excess = np.abs(points) - half_extents
    outside = np.sqrt(np.square(np.maximum(excess, 0.0)).sum(-1))
    return outside + np.minimum(excess.max(-1), 0.0)


def _segment_parameter(start: Array, along: Array, half_extents: Array) -> float:
    """Return the position in [0, 1] along one segment of its point of least signed distance to a box at the
    origin.

    Outside, half the squared distance is convex with a piecewise linear slope, whose zero is found between
    two corners. Inside, the signed distance is the largest of six linear functions, least at an end or where
    two of them cross.
    """
    slopes = np.concatenate([along, -along])
    offsets = np.concatenate([start, -start]) - np.concatenate([half_extents, half_extents])
    with np.errstate(divide="ignore", invalid="ignore"):
        corners = np.where(np.abs(slopes) > 1e-15, -offsets / slopes, 0.0)
    corners = np.sort(np.concatenate([np.clip(corners, 0.0, 1.0), [0.0, 1.0]]))
    slope = (np.maximum(offsets + corners[:, None] * slopes, 0.0) * slopes).sum(-1)
    index = int(np.searchsorted(slope, 0.0))
    if index == 0:
        best = 0.0
    elif index == len(corners):
        best = 1.0
    else:
        low, high = slope[index - 1], slope[index]
        best = float(corners[index - 1] + (corners[index] - corners[index - 1]) * low / (low - high))
    if box_signed_distance(start + best * along, half_extents) > 1e-12:
        return best
    rows, columns = np.triu_indices(6, 1)
    difference = slopes[rows] - slopes[columns]
    crossing = np.where(np.abs(difference) > 1e-15, (offsets[columns] - offsets[rows]), 0.0)
    crossing = crossing / np.where(np.abs(difference) > 1e-15, difference, 1.0)
    candidates = np.concatenate([np.clip(crossing, 0.0, 1.0), [0.0, 1.0, best]])
    depths = (offsets + candidates[:, None] * slopes).max(-1)
    return float(candidates[int(np.argmin(depths))])


def segment_box(start: Array, end: Array, half_extents: Array) -> tuple[float, Array, Array]:
    """Return the signed distance [m], the point of the segment and the unit normal `[3]`, in the frame of
    the box.

    Args:
        start, end: ends of the segment `[3]` [m].
        half_extents: `[3]` half the edge lengths of a box at the origin [m].
    """
    along = end - start
    point = start + _segment_parameter(start, along, half_extents) * along
    excess = np.abs(point) - half_extents
    outside = np.maximum(excess, 0.0)
    distance = float(np.sqrt(outside @ outside))
    sign = np.where(point < 0.0, -1.0, 1.0)
    if distance > TOUCHING:
        return distance, point, sign * outside / distance
    axis = int(np.argmax(excess))
    normal = np.zeros(3)
    normal[axis] = sign[axis]
    return float(excess[axis]), point, normal
