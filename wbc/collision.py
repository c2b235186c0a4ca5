"""Distances of an arm to itself and to obstacles, with their gradients by the joints."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from .geometry import closest_on_segments, point_separation, segments_to_box
from .kinematics import ArmPose, cross
from .robots import RobotModel
from .transforms import Array, matrix_from_quaternion


@dataclass(frozen=True, slots=True, kw_only=True)
class Plane:
    """A half-space to stay out of: `normal . x < offset` is forbidden (base frame, normal of unit length)."""

    normal: tuple[float, float, float] = (0.0, 0.0, 1.0)
    offset: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Sphere:
    """A ball: centre [m] in the base frame, radius [m]."""

    center: tuple[float, float, float]
    radius: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Box:
    """A box: centre [m] and orientation xyzw in the base frame, half edge lengths [m]."""

    center: tuple[float, float, float]
    half_extents: tuple[float, float, float]
    quaternion: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 1.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class CollisionConfig:
    """What to keep clear of, and how.

    self_collision: whether the arm's own capsule pairs count.
    clearance: distance that is kept [m].
    approach_rate: speed of approach allowed for each metre of distance beyond the clearance [1/s].
    approach_deceleration: deceleration of the allowed approach farther out [m/s^2].
    influence: distance beyond which pairs are left out of the optimisation [m]; best above `speed^2 / (2
        approach_deceleration)`.
    plane, spheres, boxes: obstacles, base frame.
    first_link: the first link that is checked against obstacles; the ones before it are part of the mounting.
    """

    self_collision: bool = True
    clearance: float = 0.01
    approach_rate: float = 10.0
    approach_deceleration: float = 2.0
    influence: float = 0.1
    plane: Plane | None = None
    spheres: tuple[Sphere, ...] = ()
    boxes: tuple[Box, ...] = ()
    first_link: int = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Clearances:
    """Pairs that are near, and a bound for all.

    distances: `[p]` [m], negative in penetration.
    gradients: `[p j]` derivatives by the joint positions [m/rad].
    nearest: no distance, near or not, is below this [m].
    """

    distances: Array
    gradients: Array
    nearest: float


class _Near(NamedTuple):
    """Near pairs of one kind: the witness points and normals `[p 3]`, and which joints move them `[p j]`."""

    distances: Array
    points: Array
    normals: Array
    moved: Array
    nearest: float


def _reach(robot: RobotModel) -> Array:
    """Bound, for each joint `[j]`, how far [m] from its origin any point of the capsules it moves can be."""
    lengths = np.linalg.norm(robot.joint_positions, axis=1)
    extents = np.zeros(robot.num_joints + 1)
    for capsule in robot.capsules:
        far = max(float(np.linalg.norm(capsule.start)), float(np.linalg.norm(capsule.end)))
        extents[capsule.link] = max(extents[capsule.link], far + capsule.radius)
    reach = np.zeros(robot.num_joints)
    beyond = 0.0
    for joint in reversed(range(robot.num_joints)):
        beyond = max(beyond + (lengths[joint + 1] if joint + 1 < robot.num_joints else 0.0), extents[joint + 1])
        reach[joint] = beyond
    return reach


class CollisionModel:
    """All watched pairs of one robot and its obstacles.

    num_pairs: number of distances; reach: `[j]` greatest change of any distance for a turn of each joint
        [m/rad].
    """

    def __init__(self, robot: RobotModel, config: CollisionConfig) -> None:
        """Lay out the pairs: capsules against capsules, spheres, the plane and the boxes."""
        count = len(robot.capsules)
        exposed = [i for i, capsule in enumerate(robot.capsules) if capsule.link >= config.first_link]
        pairs = list(robot.self_pairs) if config.self_collision else []
        pairs += [(i, count + k) for k in range(len(config.spheres)) for i in exposed]
        starts = [c.start for c in robot.capsules] + [s.center for s in config.spheres]
        ends = [c.end for c in robot.capsules] + [s.center for s in config.spheres]
        self._links = np.array([c.link for c in robot.capsules] + [0] * len(config.spheres))
        self._radii = np.array([c.radius for c in robot.capsules] + [s.radius for s in config.spheres])
        self._ends = np.array([starts, ends]).transpose(1, 2, 0)
        self._first = np.array([a for a, _ in pairs], dtype=np.intp)
        self._second = np.array([b for _, b in pairs], dtype=np.intp)
        self._pair_radii = self._radii[self._first] + self._radii[self._second]
        self._exposed = np.array(exposed, dtype=np.intp)
        self._plane = config.plane
        self._boxes = [
            (np.array(b.center), matrix_from_quaternion(b.quaternion), np.array(b.half_extents)) for b in config.boxes
        ]
        self._moved = (np.arange(robot.num_joints)[None, :] < self._links[:, None]).astype(np.float64)
        self._pair_moved = self._moved[self._first] - self._moved[self._second]
        self.reach = _reach(robot)
        self.num_pairs = len(pairs) + len(exposed) * (2 * (config.plane is not None) + len(config.boxes))

    def clearances(self, pose: ArmPose, within: float = np.inf) -> Clearances:
        """Return the distances below `within` [m] and their gradients.

        Order: capsule pairs, spheres, plane (both ends of each capsule), boxes.
        """
        rotations = pose.frames[self._links, :3, :3]
        ends = rotations @ self._ends + pose.frames[self._links, :3, 3, None]
        starts, stops = ends[:, :, 0], ends[:, :, 1]
        found = []
        if len(self._first):
            found.append(self._pairs(starts, stops, within))
        if self._plane is not None:
            found.append(self._against_plane(self._plane, starts, stops, within))
        found += [self._against_box(box, starts, stops, within) for box in self._boxes]
        if not found:
            return Clearances(distances=np.empty(0), gradients=np.empty((0, len(self.reach))), nearest=np.inf)
        near = found[0] if len(found) == 1 else _joined(found)
        gradients = near.normals @ pose.moments.T + cross(near.points, near.normals) @ pose.axes.T
        return Clearances(distances=near.distances, gradients=gradients * near.moved, nearest=near.nearest)

    def _pairs(self, starts: Array, stops: Array, within: float) -> _Near:
        a, b = self._first, self._second
        point_a, point_b = closest_on_segments(starts[a], stops[a], starts[b], stops[b])
        distance, normal = point_separation(point_a, point_b)
        distance = distance - self._pair_radii
        near = np.flatnonzero(distance < within)
        return _Near(distance[near], point_a[near], normal[near], self._pair_moved[near], float(distance.min()))

    def _against_plane(self, plane: Plane, starts: Array, stops: Array, within: float) -> _Near:
        normal = np.array(plane.normal)
        points = np.concatenate([starts[self._exposed], stops[self._exposed]])
        who = np.concatenate([self._exposed, self._exposed])
        distance = points @ normal - plane.offset - self._radii[who]
        near = np.flatnonzero(distance < within)
        normals = np.tile(normal, (len(near), 1))
        return _Near(distance[near], points[near], normals, self._moved[who[near]], float(distance.min()))

    def _against_box(self, box: tuple[Array, Array, Array], starts: Array, stops: Array, within: float) -> _Near:
        center, rotation, half = box
        start, stop = (starts[self._exposed] - center) @ rotation, (stops[self._exposed] - center) @ rotation
        gap = np.maximum(np.minimum(start, stop) - half, -half - np.maximum(start, stop))
        bound = np.sqrt(np.square(np.maximum(gap, 0.0)).sum(-1)) - self._radii[self._exposed]
        chosen = np.flatnonzero(bound < within)
        if len(chosen) == 0:
            empty = np.empty((0, 3))
            return _Near(np.empty(0), empty, empty, self._moved[:0], float(bound.min()))
        distances, points, normals = segments_to_box(start[chosen], stop[chosen], half)
        links = self._exposed[chosen]
        distances = distances - self._radii[links]
        near = np.flatnonzero(distances < within)
        nearest = min(float(np.delete(bound, chosen).min(initial=np.inf)), float(distances.min()))
        points, normals = points[near] @ rotation.T + center, normals[near] @ rotation.T
        return _Near(distances[near], points, normals, self._moved[links[near]], nearest)


def _joined(parts: list[_Near]) -> _Near:
    """Concatenate near pairs of several kinds."""
    return _Near(
        np.concatenate([p.distances for p in parts]),
        np.concatenate([p.points for p in parts]),
        np.concatenate([p.normals for p in parts]),
        np.concatenate([p.moved for p in parts]),
        min(p.nearest for p in parts),
    )
