"""Distances of an arm to itself, to obstacles and to the border of its workspace, with gradients by the joints."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import astuple, dataclass
from functools import partial
from typing import NamedTuple

import numpy as np

from ..errors import ConfigError
from .robot.geometry import closest_on_segments, point_separation, segments_to_box
from .robot.kinematics import ArmPose, cross
from .robot.robots import Capsule, RobotModel
from .robot.transforms import Array, matrix_from_quaternion, matrix_from_rpy

Vector = tuple[float, float, float]
Chosen = np.ndarray
"""Indices of the distances of one kind to look at."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plane:
    """A half-space to stay out of: `normal . x < offset` is forbidden (base frame, normal of unit length)."""

    normal: Vector = (0.0, 0.0, 1.0)
    offset: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Sphere:
    """A ball: center [m] in the base frame, radius [m], velocity [m/s]."""

    center: Vector
    radius: float
    velocity: Vector = (0.0, 0.0, 0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rod:
    """A capsule that is an obstacle: ends of its segment [m] in the base frame, radius [m], velocity [m/s]."""

    start: Vector
    end: Vector
    radius: float
    velocity: Vector = (0.0, 0.0, 0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Box:
    """A box: center [m] and orientation xyzw in the base frame, half edge lengths [m], velocity [m/s]."""

    center: Vector
    half_extents: Vector
    quaternion: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 1.0)
    velocity: Vector = (0.0, 0.0, 0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class CollisionConfig:
    """What to keep clear of, and how.

    self_collision: whether the arm's own capsule pairs count.
    clearance: distance that is kept [m].
    approach_rate: greatest speed of approach for each meter of distance beyond the clearance [1/s]; less is allowed
        where the arm could not stop in time.
    influence: distance beyond which pairs are left out of the optimization [m]; best above the way in which the arm
        stops.
    plane, spheres, rods, boxes: obstacles, base frame; what moves is carried on at its velocity.
    workspace: least and greatest position of the tool [m], base frame; None for no border.
    attached: a grasped object as a capsule in the tool frame (its `link` is ignored); it is kept clear of
        obstacles and of the links that the gripper's own capsules are kept clear of.
    first_link: the first link that is checked against obstacles; the ones before it are part of the mounting.
    """

    self_collision: bool = True
    clearance: float = 0.01
    approach_rate: float = 20.0
    influence: float = 0.12
    plane: Plane | None = None
    spheres: tuple[Sphere, ...] = ()
    rods: tuple[Rod, ...] = ()
    boxes: tuple[Box, ...] = ()
    workspace: tuple[Vector, Vector] | None = None
    attached: Capsule | None = None
    first_link: int = 2

    def __post_init__(self) -> None:
        shapes: list[Plane | Sphere | Rod | Box] = [*self.spheres, *self.rods, *self.boxes]
        for shape in shapes + ([self.plane] if self.plane else []):
            numbers = np.concatenate([np.atleast_1d(np.asarray(v, dtype=np.float64)) for v in astuple(shape)])
            if not np.all(np.isfinite(numbers)):
                raise ConfigError(f"collision: expected finite numbers in {shape}; leave out what was not measured.")
        if self.workspace is not None and not np.all(np.less(*self.workspace)):
            raise ConfigError(f"collision.workspace: expected least below greatest, got {self.workspace}.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Clearances:
    """Pairs that are near, and a bound for all.

    distances: `[p]` [m], negative in penetration.
    gradients: `[p j]` derivatives by the joint positions [m/rad].
    drifts: `[p]` change of the distances by the obstacles' own motion [m/s].
    poses: `[p]` index of the joint vector that each row belongs to; zeros where there was one.
    pairs: `[p]` which of the model's distances each row is.
    nearest: no distance, near or not, is below this [m].
    """

    distances: Array
    gradients: Array
    drifts: Array
    poses: np.ndarray
    pairs: np.ndarray
    nearest: float


class _Near(NamedTuple):
    """Near pairs of one kind: witness points, normals `[p 3]`, which joints move them `[p j]`, drift, pose, pair."""

    distances: Array
    points: Array
    normals: Array
    moved: Array
    drifts: Array
    poses: np.ndarray
    pairs: np.ndarray
    nearest: float


def _reach(robot: RobotModel, capsules: tuple[Capsule, ...]) -> Array:
    """Bound, for each joint `[j]`, how far [m] from its origin any point of the capsules it moves can be."""
    lengths = np.linalg.norm(robot.joint_positions, axis=1)
    extents = np.zeros(robot.num_joints + 1)
    extents[-1] = float(np.linalg.norm(robot.tool_position))
    for capsule in capsules:
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

    config: what it was made from; num_pairs: number of distances.
    reach: `[j]` greatest change of any distance for a turn of each joint [m/rad].
    fastest_obstacle: greatest speed of an obstacle [m/s].
    """

    def __init__(self, robot: RobotModel, config: CollisionConfig) -> None:
        """Lay out the pairs: capsules against capsules, spheres and rods, the plane, boxes and the workspace."""
        self.config = config
        capsules, pairs = robot.capsules, list(robot.self_pairs) if config.self_collision else []
        if config.attached is not None:
            capsules, pairs = _with_attached(robot, config.attached, pairs)
        count = len(capsules)
        exposed = [i for i, capsule in enumerate(capsules) if capsule.link >= config.first_link]
        obstacles = [(s.center, s.center, s.radius, s.velocity) for s in config.spheres]
        obstacles += [(r.start, r.end, r.radius, r.velocity) for r in config.rods]
        pairs = pairs + [(i, count + k) for k in range(len(obstacles)) for i in exposed]
        self._links = np.array([c.link for c in capsules])
        self._ends = np.array([[c.start for c in capsules], [c.end for c in capsules]]).transpose(1, 2, 0)
        self._obstacles = np.array([[o[0] for o in obstacles], [o[1] for o in obstacles]]).reshape(2, -1, 3)
        self._velocities = np.array([o[3] for o in obstacles], dtype=np.float64).reshape(-1, 3)
        self._radii = np.array([c.radius for c in capsules] + [o[2] for o in obstacles])
        self._first = np.array([a for a, _ in pairs], dtype=np.intp)
        self._second = np.array([b for _, b in pairs], dtype=np.intp)
        self._pair_radii = self._radii[self._first] + self._radii[self._second]
        self._exposed = np.array(exposed, dtype=np.intp)
        self._both_ends = np.concatenate([self._exposed, self._exposed])
        self._plane, self._workspace, self._clearance = config.plane, config.workspace, config.clearance
        self._boxes = [
            (
                np.array(b.center),
                matrix_from_quaternion(b.quaternion),
                np.array(b.half_extents),
                np.array(b.velocity, dtype=np.float64),
            )
            for b in config.boxes
        ]
        joints = np.arange(robot.num_joints)
        self._moved = (joints[None, :] < self._links[:, None]).astype(np.float64)
        moved = np.concatenate([self._moved, np.zeros((len(obstacles), robot.num_joints))])
        self._pair_moved = moved[self._first] - moved[self._second]
        all_velocities = np.concatenate([np.zeros((count, 3)), self._velocities])
        self._pair_velocities = all_velocities[self._second]
        self.reach = _reach(robot, capsules)
        speeds = [float(np.linalg.norm(v)) for v in [*self._velocities, *(b[3] for b in self._boxes)]]
        self.fastest_obstacle = max(speeds, default=0.0)
        self.num_pairs = (
            len(pairs)
            + len(exposed) * (2 * (config.plane is not None) + len(config.boxes))
            + 6 * (config.workspace is not None)
        )

    def clearances(
        self, pose: ArmPose, within: float = np.inf, elapsed: float | Array = 0.0, only: np.ndarray | None = None
    ) -> Clearances:
        """Return the distances below `within` [m] and their gradients.

        Order: capsule pairs, spheres and rods, plane (both ends of each capsule), boxes, workspace.

        Args:
            pose: one pose of the arm, or many along a leading axis `m`.
            within: pairs farther apart are left out [m].
            elapsed: time since the obstacles were where the configuration has them [s], one number or `[m]`.
            only: `[num_pairs]` True for the distances to look at, in the order above; None for all.
        """
        frames = pose.frames if pose.frames.ndim == 4 else pose.frames[None]
        count, joints = len(frames), len(self.reach)
        passed = elapsed if isinstance(elapsed, np.ndarray) else np.full(count, elapsed)
        carriers = frames[:, self._links]
        ends = carriers[..., :3, :3] @ self._ends + carriers[..., :3, 3:]
        starts, stops = ends[..., 0], ends[..., 1]
        found = []
        begin = 0
        for size, measure in self._kinds(starts, stops, pose.tool.reshape(count, 4, 4), within, passed):
            chosen = np.arange(size) if only is None else np.flatnonzero(only[begin : begin + size])
            if len(chosen):
                near = measure(chosen)
                found.append(near._replace(pairs=begin + chosen[near.pairs]))
            begin += size
        if not found:
            none = np.empty(0)
            return Clearances(
                distances=none,
                gradients=np.empty((0, joints)),
                drifts=none,
                poses=np.empty(0, dtype=np.intp),
                pairs=np.empty(0, dtype=np.intp),
                nearest=np.inf,
            )
        near = found[0] if len(found) == 1 else _joined(found)
        turning = cross(near.points, near.normals)
        if count == 1:
            moments, axes = pose.moments.reshape(joints, 3), pose.axes.reshape(joints, 3)
            gradients = near.normals @ moments.T + turning @ axes.T
        else:
            moments, axes = pose.moments[near.poses], pose.axes[near.poses]
            gradients = (moments @ near.normals[..., None] + axes @ turning[..., None])[..., 0]
        return Clearances(
            distances=near.distances,
            gradients=gradients * near.moved,
            drifts=near.drifts,
            poses=near.poses,
            pairs=near.pairs,
            nearest=near.nearest,
        )

    def _kinds(
        self, starts: Array, stops: Array, tools: Array, within: float, passed: Array
    ) -> Iterator[tuple[int, Callable[[Chosen], _Near]]]:
        """Yield, kind by kind, the number of distances of one pose and what measures the chosen ones of them."""
        if len(self._first):
            yield len(self._first), lambda chosen: self._pairs(starts, stops, within, passed, chosen)
        if (plane := self._plane) is not None:
            yield len(self._both_ends), lambda chosen: self._against_plane(plane, starts, stops, within, chosen)
        for box in self._boxes:
            against = partial(self._against_box, box, starts, stops, within, passed)
            yield len(self._exposed), against
        if (workspace := self._workspace) is not None:
            yield 6, lambda chosen: self._against_workspace(workspace, tools, within, chosen)

    def _pairs(self, starts: Array, stops: Array, within: float, passed: Array, chosen: Chosen) -> _Near:
        a, b = self._first[chosen], self._second[chosen]
        width = len(a)
        if len(self._velocities) and b[-1] >= starts.shape[1]:
            shift = self._velocities * passed[:, None, None]
            starts = np.concatenate([starts, self._obstacles[0] + shift], axis=1)
            stops = np.concatenate([stops, self._obstacles[1] + shift], axis=1)
        point_a, point_b = closest_on_segments(
            starts[:, a].reshape(-1, 3),
            stops[:, a].reshape(-1, 3),
            starts[:, b].reshape(-1, 3),
            stops[:, b].reshape(-1, 3),
        )
        distance, normals = point_separation(point_a, point_b)
        distance = (distance.reshape(-1, width) - self._pair_radii[chosen]).ravel()
        nearest = float(distance.min())
        near = np.arange(len(distance)) if within == np.inf else np.flatnonzero(distance < within)
        if len(near) < len(distance):
            distance, point_a, normals = distance[near], point_a[near], normals[near]
        pair = near % width
        velocities = self._pair_velocities[chosen][pair]
        drifts = -(normals * velocities).sum(-1) if self.fastest_obstacle else np.zeros(len(pair))
        return _Near(distance, point_a, normals, self._pair_moved[chosen][pair], drifts, near // width, pair, nearest)

    def _against_plane(self, plane: Plane, starts: Array, stops: Array, within: float, chosen: Chosen) -> _Near:
        normal = np.array(plane.normal)
        points = np.concatenate([starts[:, self._exposed], stops[:, self._exposed]], axis=1)[:, chosen]
        who = self._both_ends[chosen]
        width = len(who)
        distance = (points @ normal - plane.offset - self._radii[who]).ravel()
        points = points.reshape(-1, 3)
        near = np.flatnonzero(distance < within)
        normals = np.tile(normal, (len(near), 1))
        pair, still = near % width, np.zeros(len(near))
        moved = self._moved[who[pair]]
        return _Near(distance[near], points[near], normals, moved, still, near // width, pair, float(distance.min()))

    def _against_box(
        self,
        box: tuple[Array, Array, Array, Array],
        starts: Array,
        stops: Array,
        within: float,
        passed: Array,
        chosen: Chosen,
    ) -> _Near:
        center, rotation, half, velocity = box
        centers = (center + passed[:, None] * velocity)[:, None]
        who = self._exposed[chosen]
        width = len(who)
        start = ((starts[:, who] - centers) @ rotation).reshape(-1, 3)
        stop = ((stops[:, who] - centers) @ rotation).reshape(-1, 3)
        gap = np.maximum(np.minimum(start, stop) - half, -half - np.maximum(start, stop))
        radii = np.tile(self._radii[who], len(starts))
        bound = np.sqrt(np.square(np.maximum(gap, 0.0)).sum(-1)) - radii
        close = np.flatnonzero(bound < within)
        if len(close) == 0:
            none, empty, no_index = np.empty(0), np.empty((0, 3)), np.empty(0, dtype=np.intp)
            return _Near(none, empty, empty, self._moved[:0], none, no_index, no_index, float(bound.min()))
        distances, points, normals = segments_to_box(start[close], stop[close], half)
        distances = distances - radii[close]
        near = np.flatnonzero(distances < within)
        nearest = min(float(np.delete(bound, close).min(initial=np.inf)), float(distances.min()))
        poses, pair = close[near] // width, close[near] % width
        points, normals = points[near] @ rotation.T + centers[poses, 0], normals[near] @ rotation.T
        moved = self._moved[who[pair]]
        return _Near(distances[near], points, normals, moved, -(normals @ velocity), poses, pair, nearest)

    def _against_workspace(
        self, workspace: tuple[Vector, Vector], tools: Array, within: float, chosen: Chosen
    ) -> _Near:
        """Measure the tool's way to each wall so that the tool itself may go as far as the wall."""
        points = tools[:, :3, 3]
        distance = np.concatenate([points - workspace[0], workspace[1] - points], axis=1)[:, chosen] + self._clearance
        width, distance = distance.shape[1], distance.ravel()
        near = np.flatnonzero(distance < within)
        poses, pair = near // width, near % width
        normals = np.concatenate([np.eye(3), -np.eye(3)])[chosen][pair]
        moved, still = np.ones((len(near), len(self.reach))), np.zeros(len(near))
        return _Near(distance[near], points[poses], normals, moved, still, poses, pair, float(distance.min()))


def _with_attached(
    robot: RobotModel, attached: Capsule, pairs: list[tuple[int, int]]
) -> tuple[tuple[Capsule, ...], list[tuple[int, int]]]:
    """Add a grasped object, given in the tool frame, to the last link; it meets what that link's capsules meet."""
    last = robot.num_joints
    rotation = matrix_from_rpy(robot.tool_rpy)
    ends = [(rotation @ np.asarray(p) + robot.tool_position).tolist() for p in (attached.start, attached.end)]
    grasped = Capsule(link=last, start=tuple(ends[0]), end=tuple(ends[1]), radius=attached.radius)
    tail = {i for i, capsule in enumerate(robot.capsules) if capsule.link == last}
    others = sorted({a for a, b in pairs if b in tail} | {b for a, b in pairs if a in tail})
    return (*robot.capsules, grasped), pairs + [(i, len(robot.capsules)) for i in others]


def _joined(parts: list[_Near]) -> _Near:
    """Concatenate near pairs of several kinds."""
    return _Near(
        np.concatenate([p.distances for p in parts]),
        np.concatenate([p.points for p in parts]),
        np.concatenate([p.normals for p in parts]),
        np.concatenate([p.moved for p in parts]),
        np.concatenate([p.drifts for p in parts]),
        np.concatenate([p.poses for p in parts]),
        np.concatenate([p.pairs for p in parts]),
        min(p.nearest for p in parts),
    )
