"""Smallest capsules around meshes, cylinders and boxes, and the vertices of mesh files."""

from __future__ import annotations

import math
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize_scalar
from scipy.spatial import ConvexHull, QhullError

from ...errors import ConfigError, ShapeError, refuse_lfs_pointer
from .collada import collada_vertices
from .transforms import Array

CYLINDER_SIDES = 24
"""Sides of the prism around a cylinder that stands for its surface."""

LEAST_RADIUS = 1e-4
"""Radius [m] of a capsule around points that lie on one segment."""

NUM_DIRECTIONS = 200
"""Directions in which the farthest points of a mesh stand for all of them while a capsule is sought."""

FIRST_SPREAD = 0.25
"""Spread of the first candidates for a capsule, as a share of the size and in the tangent of the direction."""

_STEPS = np.random.default_rng(0).normal(size=(40, 24, 5))
_STEPS[0, 0] = 0.0
"""Standard normal steps of the candidates: rounds, candidates, numbers."""
_SHARES = np.log(12.5) - np.log(np.arange(1, 13))
_SHARES /= _SHARES.sum()
"""How much each of the better half counts, the best one first."""

MAX_MESH_BYTES = 256 * 2**20
"""Size above which a mesh file is refused."""


class FittedCapsule(NamedTuple):
    """A segment from `start` to `end` `[3]` [m] with a radius [m], in the frame of what it covers.

    surface: the triangles `[t 3 3]` [m] that it was fitted to, None where it is what it covers.
    """

    start: Array
    end: Array
    radius: float
    surface: Array | None = None

    @property
    def volume(self) -> float:
        """Volume [m^3]."""
        length = float(np.linalg.norm(self.end - self.start))
        return math.pi * self.radius**2 * (length + 4 / 3 * self.radius)

    def excess(self, points: Array) -> float:
        """Return how far [m] the farthest of `points` `[n 3]` lies outside; negative where all are inside."""
        return float(self._distances(points).max()) - self.radius

    def holds(self, points: Array) -> npt.NDArray[np.bool_]:
        """Return which of `points` `[n 3]` lie inside `[n]`."""
        inside: npt.NDArray[np.bool_] = self._distances(points) <= self.radius
        return inside

    def _distances(self, points: Array) -> Array:
        """Return the distances `[n]` [m] of `points` `[n 3]` from the segment."""
        along = self.end - self.start
        share = (points - self.start) @ along / max(float(along @ along), 1e-30)
        nearest = self.start + np.clip(share, 0.0, 1.0)[:, None] * along
        distances: Array = np.linalg.norm(points - nearest, axis=1)
        return distances


def extremes(points: Array) -> Array:
    """Return those of `points` `[n 3]` that lie farthest in `NUM_DIRECTIONS` evenly spread directions `[m 3]`.

    All of them where they are few. They stand for the points in a search; what they miss is added afterwards.
    """
    if len(points) <= NUM_DIRECTIONS:
        return points
    turns = np.arange(NUM_DIRECTIONS) + 0.5
    height = 1.0 - 2.0 * turns / NUM_DIRECTIONS
    angle, width = math.pi * (1.0 + math.sqrt(5.0)) * turns, np.sqrt(1.0 - height**2)
    directions = np.stack([width * np.cos(angle), width * np.sin(angle), height], axis=1)
    return points[np.unique((directions @ points.T).argmax(1))]


def around_axis(corners: Array, direction: Array, center: Array, widening: float) -> FittedCapsule:
    """Return the shortest capsule that covers `corners`, its segment along `direction` through `center`.

    A point at distance rho from the axis is covered where the segment comes within `sqrt(r^2 - rho^2)` of it
    along the axis, which gives both ends in closed form.

    Args:
        widening: length [m] by which the radius exceeds the least one, in quadrature.
    """
    offsets = corners - center
    along = offsets @ direction
    off_axis = np.maximum(np.einsum("pi,pi->p", offsets, offsets) - along**2, 0.0)
    radius = max(math.sqrt(float(off_axis.max()) + widening**2), LEAST_RADIUS)
    slack = np.sqrt(np.maximum(radius**2 - off_axis, 0.0))
    last, first = float((along - slack).max()), float((along + slack).min())
    if last < first:
        first = last = (first + last) / 2
    return FittedCapsule(center + first * direction, center + last * direction, radius)


def fit_capsule(points: Array) -> FittedCapsule:
    """Return a capsule that covers all `points` `[n 3]` [m], of nearly the least volume.

    From each of the three principal axes a population of candidates, the same in every run, moves the direction (2
    numbers), the place (2) and the radius (1); the segment's ends follow from them. Mean and covariance follow the
    better half of it. The best capsule is widened until it covers every point.

    Raises:
        ShapeError: points of another shape, none, or not finite.

    Source: the rank-mu update of CMA-ES, Hansen, arXiv 1604.00772.
    """
    points = np.asarray(points, dtype=np.float64)
    if points.ndim != 2 or points.shape[1] != 3 or len(points) == 0 or not np.isfinite(points).all():
        raise ShapeError(
            f"points to cover have shape {points.shape}; expected [n 3] finite numbers with n > 0; check the mesh."
        )
    corners = extremes(points)
    middle = (corners.min(0) + corners.max(0)) / 2
    size = max(float(np.ptp(corners, axis=0).max()), LEAST_RADIUS)
    off_middle = corners - corners.mean(0)
    axes = np.linalg.eigh(off_middle.T @ off_middle)[1].T[::-1]
    frames = np.stack([np.roll(axes, -turn, axis=0) for turn in range(3)])

    each = np.arange(3)
    mean, covariance = np.zeros((3, 5)), np.tile(FIRST_SPREAD**2 * np.eye(5), (3, 1, 1))
    best, least = mean, np.full(3, np.inf)
    for steps in _STEPS:
        tried = mean[:, None] + steps @ np.linalg.cholesky(covariance + 1e-14 * np.eye(5)).transpose(0, 2, 1)
        volumes = _volumes_along(corners, *_axes_of(tried, frames, middle, size))
        order = np.argsort(volumes, axis=1)[:, : len(_SHARES)]
        better = tried[each[:, None], order]
        found = volumes[each, order[:, 0]]
        best = np.where((found < least)[:, None], better[:, 0], best)
        least = np.minimum(found, least)
        away = better - mean[:, None]
        covariance = 0.4 * covariance + 0.6 * np.einsum("m,fmi,fmj->fij", _SHARES, away, away)
        mean = np.einsum("m,fmi->fi", _SHARES, better)
    chosen = int(least.argmin())
    direction, center, widening = _axes_of(best[chosen, None, None], frames[chosen, None], middle, size)
    capsule = around_axis(corners, direction[0, 0], center[0, 0], float(widening[0, 0]))
    missing = capsule.excess(points)
    return capsule._replace(radius=capsule.radius + missing + 1e-9) if missing > -1e-9 else capsule


def _axes_of(tried: Array, frames: Array, middle: Array, size: float) -> tuple[Array, Array, Array]:
    """Return directions `[f c 3]`, centers `[f c 3]` and widenings `[f c]` of candidates `[f c 5]` about `frames`."""
    first, second, third = frames[:, None, 0], frames[:, None, 1], frames[:, None, 2]
    directions = first + tried[..., :1] * second + tried[..., 1:2] * third
    directions = directions / np.linalg.norm(directions, axis=-1, keepdims=True)
    centers = middle + size * (tried[..., 2:3] * second + tried[..., 3:4] * third)
    return directions, centers, size * tried[..., 4]


def _volumes_along(corners: Array, directions: Array, centers: Array, widenings: Array) -> Array:
    """Return the volumes `[f c]` [m^3] of the capsules of `around_axis`, many at once."""
    along = directions @ corners.T - np.einsum("fci,fci->fc", directions, centers)[..., None]
    squares = np.square(corners).sum(1) - 2.0 * (centers @ corners.T) + np.square(centers).sum(-1, keepdims=True)
    off_axis = np.maximum(squares - along**2, 0.0)
    radii = np.maximum(np.sqrt(off_axis.max(-1) + widenings**2), LEAST_RADIUS)
    slack = np.sqrt(np.maximum(radii[..., None] ** 2 - off_axis, 0.0))
    length = np.maximum((along - slack).max(-1) - (along + slack).min(-1), 0.0)
    volumes: Array = math.pi * radii**2 * (length + 4 / 3 * radii)
    return volumes


def capsule_around_cylinder(radius: float, length: float) -> FittedCapsule:
    """Return the least capsule around a cylinder on the z axis, centered at the origin [m]; a prism is its surface."""

    def capsule(inset: float) -> FittedCapsule:
        half = length / 2 - inset
        return FittedCapsule(np.array([0.0, 0.0, -half]), np.array([0.0, 0.0, half]), math.hypot(radius, inset))

    found = minimize_scalar(lambda inset: capsule(inset).volume, bounds=(0.0, length / 2), method="bounded")
    angles = 2.0 * math.pi * np.arange(CYLINDER_SIDES) / CYLINDER_SIDES
    outside = radius / math.cos(math.pi / CYLINDER_SIDES)
    around = np.stack([outside * np.cos(angles), outside * np.sin(angles), np.full(CYLINDER_SIDES, length / 2)], axis=1)
    return capsule(float(found.x))._replace(surface=hull_triangles(np.concatenate([around, around * [1.0, 1.0, -1.0]])))


def capsule_around_box(size: Array) -> FittedCapsule:
    """Return the least capsule around a box of edge lengths `size` `[3]` [m] at the origin, along its longest."""
    longest = int(np.argmax(size))
    others = np.delete(size, longest)
    along_z = capsule_around_cylinder(math.hypot(*others.tolist()) / 2, float(size[longest]))
    axis = np.eye(3)[longest]
    corners = np.stack(np.meshgrid([-0.5, 0.5], [-0.5, 0.5], [-0.5, 0.5]), axis=-1).reshape(-1, 3) * size
    return FittedCapsule(along_z.start[2] * axis, along_z.end[2] * axis, along_z.radius, hull_triangles(corners))


def hull_triangles(corners: Array) -> Array | None:
    """Return the triangles `[t 3 3]` of the convex hull of points `[n 3]`; None where they are flat or few."""
    try:
        return corners[ConvexHull(corners).simplices]
    except (QhullError, ValueError):
        return None


def read_vertices(path: Path) -> Array:
    """Read the vertices `[n 3]` of a mesh file: STL (binary or text), OBJ, or COLLADA.

    STL and OBJ are in the file's own unit, COLLADA, which states its unit, in meters. An STL may be without
    triangles, as placeholders are.

    Each three of them are a triangle, unless an OBJ has no faces.

    Raises:
        ConfigError: another format, or a file that is missing, too large, truncated or without vertices.
        DataError: a pointer of Git LFS.
    """
    if not path.is_file():
        raise ConfigError(f"mesh file {path} does not exist; give its folder in package_dirs, or pass capsules=.")
    refuse_lfs_pointer(path)
    if path.stat().st_size > MAX_MESH_BYTES:
        raise ConfigError(f"mesh file {path} is larger than {MAX_MESH_BYTES >> 20} MiB; simplify it first.")
    suffix = path.suffix.lower()
    if suffix not in READERS:
        raise ConfigError(
            f"mesh file {path} is '{suffix or 'without suffix'}'; expected one of {list(READERS)}; convert it, or pass "
            "capsules=."
        )
    data = path.read_bytes()
    try:
        vertices = READERS[suffix](data)
    except (ValueError, IndexError) as error:
        raise ConfigError(f"mesh file {path} is damaged ({error}); export it again.") from error
    if (len(vertices) == 0 and suffix != ".stl") or not np.isfinite(vertices).all():
        raise ConfigError(
            f"mesh file {path} has {len(vertices)} vertices, all of which must be finite numbers; export it again."
        )
    return vertices


def _stl_vertices(data: bytes) -> Array:
    """Read triangles: 84 bytes of header and 50 a triangle, or text with `vertex x y z` lines."""
    count = int.from_bytes(data[80:84], "little") if len(data) >= 84 else -1
    if len(data) == 80 and not any(data):
        return np.empty((0, 3))
    if len(data) == 84 + 50 * count:
        triangle = np.dtype([("normal", "<f4", 3), ("corners", "<f4", (3, 3)), ("attribute", "<u2")])
        return np.frombuffer(data, triangle, offset=84)["corners"].reshape(-1, 3).astype(np.float64)
    if not data.lstrip().startswith(b"solid"):
        raise ValueError(f"{len(data)} bytes, expected {84 + 50 * max(count, 0)}")
    if b"endsolid" not in data:
        raise ValueError("text without 'endsolid'")
    return _number_rows(data, b"vertex")


def _obj_vertices(data: bytes) -> Array:
    """Read the corners of the faces, each cut into triangles from its first corner; all vertices where it has none."""
    vertices = _number_rows(data, b"v")
    corners: list[int] = []
    for line in data.splitlines():
        words = line.split()
        if words and words[0] == b"f":
            face = [int(word.split(b"/")[0]) for word in words[1:]]
            face = [index - 1 if index > 0 else len(vertices) + index for index in face]
            corners += [c for k in range(1, len(face) - 1) for c in (face[0], face[k], face[k + 1])]
    return vertices[corners] if corners else vertices


def _number_rows(data: bytes, keyword: bytes) -> Array:
    """Read the three numbers behind `keyword` on each line that begins with it."""
    rows = [words[1:4] for line in data.splitlines() if (words := line.split()) and words[0] == keyword]
    if any(len(row) != 3 for row in rows):
        raise ValueError(f"a '{keyword.decode()}' line without three numbers")
    return np.array(rows, dtype=np.float64).reshape(-1, 3) if rows else np.empty((0, 3))


READERS = {".stl": _stl_vertices, ".obj": _obj_vertices, ".dae": collada_vertices}
"""How the vertices of a mesh file are read, by its suffix."""
