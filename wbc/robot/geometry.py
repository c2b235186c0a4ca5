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

    Minimizes along a for the unbounded line b, clamps, minimizes along b, clamps, and once more along a,
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


def _outside_parameter(slopes: Array, offsets: Array) -> Array:
    """Return where `[p]` along each segment half the squared distance to the box is least.

    It is convex with a piecewise linear slope, whose zero is found between two corners.

    Args:
        slopes, offsets: `[p 6]` excess beyond each face, as a linear function of the position along the
            segment.
    """
    steep = np.abs(slopes) > 1e-15
    corners = np.where(steep, -offsets / np.where(steep, slopes, 1.0), 0.0)
    ends = np.tile([0.0, 1.0], (len(slopes), 1))
    corners = np.sort(np.concatenate([np.minimum(np.maximum(corners, 0.0), 1.0), ends], axis=1), axis=1)
    excess = np.maximum(offsets[:, None] + corners[..., None] * slopes[:, None], 0.0)
    slope = (excess * slopes[:, None]).sum(-1)
    row = np.arange(len(slopes))
    after = np.clip((slope < 0.0).sum(1), 1, corners.shape[1] - 1)
    low, high = slope[row, after - 1], slope[row, after]
    rising = high - low
    share = np.clip(np.where(rising > 1e-30, -low / np.where(rising > 1e-30, rising, 1.0), 0.0), 0.0, 1.0)
    return corners[row, after - 1] + share * (corners[row, after] - corners[row, after - 1])


def _deepest_parameter(slopes: Array, offsets: Array, fallback: Array) -> Array:
    """Return where `[p]` along each segment the largest excess beyond a face is least."""
    first, second = np.triu_indices(6, 1)
    rising = slopes[:, first] - slopes[:, second]
    steep = np.abs(rising) > 1e-15
    crossing = np.where(steep, (offsets[:, second] - offsets[:, first]) / np.where(steep, rising, 1.0), 0.0)
    ends = np.tile([0.0, 1.0], (len(slopes), 1))
    candidates = np.concatenate([np.clip(crossing, 0.0, 1.0), ends, fallback[:, None]], axis=1)
    depth = (offsets[:, None] + candidates[..., None] * slopes[:, None]).max(-1)
    return candidates[np.arange(len(slopes)), depth.argmin(1)]


def segments_to_box(start: Array, end: Array, half_extents: Array) -> tuple[Array, Array, Array]:
    """Return signed distances `[p]` [m], points and unit normals `[p 3]` of segments, in the box frame.

    Args:
        start, end: ends of the segments `[p 3]` [m].
        half_extents: `[3]` half the edge lengths of a box at the origin [m].
    """
    along = end - start
    slopes = np.concatenate([along, -along], axis=1)
    offsets = np.concatenate([start - half_extents, -start - half_extents], axis=1)
    place = _outside_parameter(slopes, offsets)
    inside = box_signed_distance(start + place[:, None] * along, half_extents) < 1e-12
    if np.any(inside):
        place[inside] = _deepest_parameter(slopes[inside], offsets[inside], place[inside])
    point = start + place[:, None] * along
    excess = np.abs(point) - half_extents
    outside = np.maximum(excess, 0.0)
    distance = np.sqrt(_dot(outside, outside))
    sign = np.where(point < 0.0, -1.0, 1.0)
    normal = sign * outside / np.maximum(distance, TOUCHING)[:, None]
    within = np.flatnonzero(distance <= TOUCHING)
    face = excess[within].argmax(1)
    normal[within] = 0.0
    normal[within, face] = sign[within, face]
    distance[within] = excess[within, face]
    return distance, point, normal
