"""The same kinematics and distances from pinocchio and coal, several times faster, chosen by name.

Needs `pip install gr2[fast]`. Results equal those of numpy to rounding; many poses at once, and rows for
which coal has another definition (a segment that runs through a box), are left to numpy.
"""

from __future__ import annotations

import importlib
import math
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.linalg.lapack import dposv

from ..errors import ConfigError, EnvironmentMissing
from .collision import Clearances, CollisionConfig, CollisionModel
from .collision_pairs import Placed
from .other_arms import OtherArm
from .robot.geometry import segments_to_box
from .robot.kinematics import ArmPose, Kinematics, manipulability
from .robot.robots import RobotModel
from .robot.transforms import Array, matrix_from_rpy

BACKENDS = ("numpy", "pinocchio")

DEEP = 1e-6
"""Distance [m] from the segment of a capsule to a box below which numpy measures how far it is inside."""

GJK_TOLERANCE = 1e-11
"""Relative accuracy of coal's iterations between capsules and boxes; its own choice, 1e-6, costs 0.5 micrometers."""

NEXT, AFTER_NEXT = np.array([1, 2, 0]), np.array([2, 0, 1])
"""Rows of a cross product's factors."""


def make_kinematics(robot: RobotModel, backend: str = "numpy") -> Kinematics:
    """Return the kinematics of `robot` computed by `backend`: `numpy` or `pinocchio`.

    Raises:
        ConfigError: another backend.
        EnvironmentMissing: pinocchio is not installed.
    """
    return PinocchioKinematics(robot) if _is_fast(backend) else Kinematics(robot)


def make_collisions(
    robot: RobotModel, config: CollisionConfig, backend: str = "numpy", others: Sequence[OtherArm] = ()
) -> CollisionModel:
    """Return the distances of `robot` computed by `backend`: `numpy` or `pinocchio` (with coal).

    The fast ones are fast for single poses of `make_kinematics(robot, "pinocchio")`; beside other arms there are none.

    Raises:
        ConfigError: another backend.
        EnvironmentMissing: pinocchio or coal is not installed.
    """
    if _is_fast(backend) and not others:
        return CoalCollisionModel(robot, config)
    return CollisionModel(robot, config, others)


def _is_fast(backend: str) -> bool:
    if backend not in BACKENDS:
        raise ConfigError(f"there is no backend '{backend}'; expected one of {list(BACKENDS)}.")
    return backend == "pinocchio"


def _package(name: str) -> Any:
    """Import an optional package."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise EnvironmentMissing(
            f"the backend 'pinocchio' needs the package {name} ({error}); run `pip install 'gr2[fast]'`, or choose "
            "the backend 'numpy'."
        ) from error


def _pinocchio_model(pin: Any, robot: RobotModel) -> Any:
    """Build the chain: revolute joints about z with one coordinate each, without stops or not."""
    model, parent = pin.Model(), 0
    for index, (position, rpy) in enumerate(zip(robot.joint_positions, robot.joint_rpys, strict=True)):
        placement = pin.SE3(matrix_from_rpy(rpy), np.asarray(position, dtype=np.float64))
        parent = model.addJoint(parent, pin.JointModelRZ(), placement, f"joint_{index + 1}")
    return model


@dataclass(frozen=True, slots=True, kw_only=True)
class PlacedPose(ArmPose):
    """An `ArmPose` that keeps its joint positions `q` `[j]` [rad]."""

    q: Array


class _ThreadData(threading.local):
    """What pinocchio writes into, one for each thread; `jacobian` and `placements` look into `data`."""

    def __init__(self, model: Any) -> None:
        self.data = model.createData()
        self.jacobian = self.data.J
        self.placements = [self.data.oMi[joint] for joint in range(model.njoints)]


class PinocchioKinematics(Kinematics):
    """Kinematics of one robot model by pinocchio."""

    def __init__(self, robot: RobotModel) -> None:
        """Build the pinocchio model of `robot`."""
        super().__init__(robot)
        self._pin = pin = _package("pinocchio")
        self._model = _pinocchio_model(pin, robot)
        tool = pin.SE3(matrix_from_rpy(robot.tool_rpy), np.asarray(robot.tool_position, dtype=np.float64))
        self._tool_frame = self._model.addFrame(pin.Frame("tool", robot.num_joints, tool, pin.FrameType.OP_FRAME))
        self._local = _ThreadData(self._model)

    def __reduce__(self) -> tuple[type[PinocchioKinematics], tuple[RobotModel]]:
        return type(self), (self.robot,)

    def forward(self, q: Array) -> PlacedPose:
        """Place every link and the tool at joint positions `q` `[j]` [rad]."""
        pin, model, own, tool = self._pin, self._model, self._local, self._tool_frame
        pin.computeJointJacobians(model, own.data, q)
        spatial = own.jacobian.copy()
        return PlacedPose(
            frames=np.array([placement.homogeneous for placement in own.placements]),
            tool=pin.updateFramePlacement(model, own.data, tool).homogeneous,
            axes=spatial[3:].T,
            moments=spatial[:3].T,
            jacobian=pin.getFrameJacobian(model, own.data, tool, pin.LOCAL_WORLD_ALIGNED),
            q=np.array(q),
        )

    def manipulability_gradient(self, jacobian: Array) -> tuple[float, Array]:
        """Return `m = sqrt(det(J J'))` and its gradient `[j]` [1/rad]; zero gradient at an exact singularity.

        The sum over pairs of joints, `m tr((J J')^-1 dJ/dq_i J')`, is taken as running sums along the chain:
        with `[a; b]` the columns of `(J J')^-1 J`, joint i gets `w_i . (sum over k >= i of v_k x a_k, plus
        over k > i of w_k x b_k) + v_i . sum over k < i of a_k x w_k`.
        """
        factor, inverse, failed = dposv(jacobian @ jacobian.T, jacobian)
        measure = 0.0 if failed else math.prod(factor.diagonal().tolist())
        count = jacobian.shape[1]
        if measure < 1e-9:
            return manipulability(jacobian), np.zeros(count)
        v, w, a, b = jacobian[:3], jacobian[3:], inverse[:3], inverse[3:]
        products = _cross_columns(np.hstack([v, w, a]), np.hstack([a, b, w]))
        later, turning, earlier = products[:, :count], products[:, count : 2 * count], products[:, 2 * count :]
        after = (later + turning)[:, ::-1].cumsum(1)[:, ::-1] - turning
        before = earlier.cumsum(1) - earlier
        return measure, measure * (w * after + v * before).sum(0)


def _cross_columns(a: Array, b: Array) -> Array:
    """Return the cross products of the columns of `[3 n]` and `[3 n]`."""
    return a[NEXT] * b[AFTER_NEXT] - a[AFTER_NEXT] * b[NEXT]


class _ThreadGeometry(threading.local):
    """What coal writes into, one for each thread: results in the order of the rows, and the moving obstacles."""

    def __init__(self, pin: Any, model: Any, geometry: Any, moving: list[tuple[int, Array, Array]]) -> None:
        self.data = model.createData()
        self.geometry = pin.GeometryModel(geometry)
        self.found = self.geometry.createData()
        for request in self.found.distanceRequests:
            request.gjk_tolerance = GJK_TOLERANCE
        self.results = [self.found.distanceResults[k] for k in range(len(geometry.collisionPairs))]
        self.moving = [(self.geometry.geometryObjects[k], center, velocity) for k, center, velocity in moving]


class CoalCollisionModel(CollisionModel):
    """All watched pairs of one robot and its obstacles, measured by coal."""

    def __init__(self, robot: RobotModel, config: CollisionConfig) -> None:
        """Lay out the pairs as `CollisionModel` does, and hand the shapes to coal."""
        super().__init__(robot, config)
        self._arguments = (robot, config)
        self._pin, self._coal = _package("pinocchio"), _package("coal")
        self._model = _pinocchio_model(self._pin, robot)
        self._geometry = self._pin.GeometryModel()
        moving: list[tuple[int, Array, Array]] = []
        pairs = self._lay_out(moving)
        for pair in pairs:
            self._geometry.addCollisionPair(self._pin.CollisionPair(*pair))
        if len(self._geometry.collisionPairs) != len(pairs):
            raise ConfigError("self_pairs names a pair of capsules twice; remove one of them.")
        self._local = _ThreadGeometry(self._pin, self._model, self._geometry, moving)

    def __reduce__(self) -> tuple[type[CoalCollisionModel], tuple[RobotModel, CollisionConfig]]:
        return type(self), self._arguments

    def _add(self, link: int, shape: Any, center: Array, rotation: Array) -> int:
        """Put a shape on a link (0 for what stands still) and return its index."""
        pin, name = self._pin, f"shape_{self._geometry.ngeoms}"
        return self._geometry.addGeometryObject(pin.GeometryObject(name, link, pin.SE3(rotation, center), shape))

    def _add_rod(self, link: int, start: Array, end: Array, radius: float) -> int:
        length = float(np.linalg.norm(end - start))
        if length < 1e-9:
            return self._add(link, self._coal.Sphere(radius), (start + end) / 2, np.eye(3))
        turn = self._pin.Quaternion.FromTwoVectors(np.array([0.0, 0.0, 1.0]), (end - start) / length)
        return self._add(link, self._coal.Capsule(radius, length), (start + end) / 2, turn.matrix())

    def _lay_out(self, moving: list[tuple[int, Array, Array]]) -> list[tuple[int, int]]:
        """Add every shape, note which move, and return the pairs in the order of the rows."""
        coal, arm, capsules = self._coal, self.arm, self.capsule_pairs
        for index, (start, end) in enumerate(arm.ends.transpose(0, 2, 1)):
            self._add_rod(int(arm.links[index]), start, end, float(arm.radii[index]))
        for index, velocity in enumerate(capsules.obstacle_velocities):
            start, end = capsules.obstacle_ends[:, index]
            shape = self._add_rod(0, start, end, float(capsules.obstacle_radii[index]))
            if np.any(velocity):
                moving.append((shape, (start + end) / 2, velocity))
        pairs = list(zip(capsules.first.tolist(), capsules.second.tolist(), strict=True))
        moved, velocities = [capsules.moved], [capsules.velocities]
        if (plane := self.plane_pairs) is not None:
            ground = coal.Halfspace(plane.normal.astype(np.float64), float(plane.offset))
            wall = self._add(0, ground, np.zeros(3), np.eye(3))
            for side in (0, 1):
                for index in arm.exposed.tolist():
                    ball, place = coal.Sphere(float(arm.radii[index])), arm.ends[index, :, side]
                    pairs.append((self._add(int(arm.links[index]), ball, place, np.eye(3)), wall))
            moved.append(plane.moved)
            velocities.append(np.zeros((plane.size, 3)))
        self._first_box_row = len(pairs)
        for box in self.box_pairs:
            shape = self._add(0, coal.Box(*(2.0 * box.half_extents).tolist()), box.center, box.rotation)
            if np.any(box.velocity):
                moving.append((shape, box.center, box.velocity))
            pairs += [(index, shape) for index in box.who.tolist()]
            moved.append(box.moved)
            velocities.append(np.tile(box.velocity, (box.size, 1)))
        self._row_moved, self._row_velocities = np.concatenate(moved), np.concatenate(velocities)
        self._deep = np.tile(DEEP - arm.radii[arm.exposed], len(self.box_pairs))
        return pairs

    def clearances(
        self, pose: ArmPose, within: float = np.inf, elapsed: float | Array = 0.0, only: np.ndarray | None = None
    ) -> Clearances:
        """Return the distances below `within` [m] and their gradients, as `CollisionModel.clearances` does."""
        if not isinstance(pose, PlacedPose) or only is not None:
            return super().clearances(pose, within, elapsed, only)
        own, passed = self._local, float(np.asarray(elapsed).reshape(()))
        for shape, center, velocity in own.moving:
            shape.placement.translation = center + passed * velocity
        self._pin.computeDistances(self._model, own.data, own.geometry, own.found, pose.q)
        distances = np.array([result.min_distance for result in own.results])
        distances[: len(self.capsule_pairs.margins)] += self.capsule_pairs.margins
        exact: dict[int, tuple[float, Array, Array]] = {}
        if len(self._deep):
            inside = self._first_box_row + np.flatnonzero(distances[self._first_box_row :] < self._deep)
            exact = {row: self._inside(row, pose, passed) for row in inside.tolist()}
            for row, (depth, _, _) in exact.items():
                distances[row] = depth
        near = np.flatnonzero(distances < within)
        hits = [own.results[row] for row in near.tolist()]
        points = np.array([hit.getNearestPoint1() for hit in hits]).reshape(-1, 3).T
        normals = -np.array([hit.normal for hit in hits]).reshape(-1, 3).T
        for row, (_, point, normal) in exact.items():
            column = int(np.searchsorted(near, row))
            if column < len(near) and near[column] == row:
                points[:, column], normals[:, column] = point, normal
        tight, count = distances[near], int(np.searchsorted(near, self.capsule_pairs.size))
        if self.capsule_pairs.tighten(
            tight[:count],
            points.T[:count],
            normals.T[:count],
            near[:count],
            pose.frames[None],
            np.zeros(count, dtype=np.intp),
        ):
            distances[near], kept = tight, tight < within
            near, points, normals = near[kept], points[:, kept], normals[:, kept]
        moved, drifts = self._row_moved[near], -(normals.T * self._row_velocities[near]).sum(-1)
        nearest, distances = float(distances.min(initial=np.inf)), distances[near]
        if self.walls is not None:
            nothing = np.empty((1, 0, 3))
            placed = Placed(nothing, nothing, pose.tool[None], np.array([passed]), pose.frames[None])
            walls = self.walls.measure(placed, within, np.arange(self.walls.size))
            distances, points = np.concatenate([distances, walls.distances]), np.hstack([points, walls.points.T])
            normals, moved = np.hstack([normals, walls.normals.T]), np.concatenate([moved, walls.moved])
            drifts, nearest = np.concatenate([drifts, walls.drifts]), min(nearest, walls.nearest)
            near = np.concatenate([near, self.num_pairs - self.walls.size + walls.pairs])
        gradients = normals.T @ pose.moments.T + _cross_columns(points, normals).T @ pose.axes.T
        return Clearances(
            distances=distances,
            gradients=gradients * moved,
            drifts=drifts,
            poses=np.zeros(len(distances), dtype=np.intp),
            pairs=near,
            nearest=nearest,
        )

    def _inside(self, row: int, pose: ArmPose, passed: float) -> tuple[float, Array, Array]:
        """Return distance, point and normal `[3]` of a capsule whose segment touches a box, by numpy."""
        number, order = divmod(row - self._first_box_row, len(self.arm.exposed))
        box, capsule = self.box_pairs[number], int(self.arm.exposed[order])
        frame = pose.frames[self.arm.links[capsule]]
        ends = (frame[:3, :3] @ self.arm.ends[capsule]).T + frame[:3, 3]
        origin = box.center + passed * box.velocity
        start, end = (ends - origin) @ box.rotation
        distance, point, normal = segments_to_box(start[None], end[None], box.half_extents)
        depth = float(distance[0] - self.arm.radii[capsule])
        return depth, box.rotation @ point[0] + origin, box.rotation @ normal[0]
