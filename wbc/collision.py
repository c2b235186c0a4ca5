"""Distances of an arm to itself, to obstacles and to the border of its workspace, with gradients by the joints."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass

import numpy as np

from ..errors import ConfigError
from .collision_pairs import ArmCapsules, BoxPairs, CapsulePairs, PairKind, PlanePairs, WorkspaceWalls, joined
from .other_arms import OtherArm, OtherArmPairs
from .robot.kinematics import ArmPose, cross
from .robot.robots import Capsule, RobotModel
from .robot.transforms import Array, matrix_from_quaternion, matrix_from_rpy

Vector = tuple[float, float, float]


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
    plane, spheres, rods, boxes: obstacles, base frame; those with a velocity are extrapolated.
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
    """All watched pairs of one robot and its obstacles, kind by kind.

    config: what it was made from; num_pairs: number of distances.
    arm: the capsules, a grasped object among them; kinds: the pairs, in the order of their distances. The same by
    name: capsule_pairs, plane_pairs, box_pairs, walls.
    reach: `[j]` greatest change of any distance for a turn of each joint [m/rad].
    fastest_obstacle: greatest speed of an obstacle [m/s].
    others: other arms; beside_others: `[num_pairs]` 1 for the pairs with them, else 0.
    """

    def __init__(self, robot: RobotModel, config: CollisionConfig, others: Sequence[OtherArm] = ()) -> None:
        """Lay out the pairs: capsules against capsules, spheres, rods, the plane, boxes, the workspace, other arms."""
        self.config = config
        capsules, pairs = robot.capsules, list(robot.self_pairs) if config.self_collision else []
        if config.attached is not None:
            capsules, pairs = _with_attached(robot, config.attached, pairs)
        margins = list(robot.self_margins) if config.self_collision else []
        margins += [0.0] * (len(pairs) - len(margins))
        movable: list[Sphere | Rod | Box] = [*config.spheres, *config.rods, *config.boxes]
        speeds = [float(np.linalg.norm(obstacle.velocity)) for obstacle in movable]
        self.fastest_obstacle = max(speeds, default=0.0)
        self.reach = _reach(robot, capsules)
        self.arm = arm = ArmCapsules(capsules, robot.num_joints, config.first_link)
        obstacles = [(s.center, s.center, s.radius, s.velocity) for s in config.spheres]
        obstacles += [(r.start, r.end, r.radius, r.velocity) for r in config.rods]
        self.capsule_pairs = CapsulePairs(arm, pairs, margins, obstacles, moving=self.fastest_obstacle > 0.0)
        self.plane_pairs = PlanePairs(arm, config.plane.normal, config.plane.offset) if config.plane else None
        self.box_pairs = [_box_pairs(arm, box) for box in config.boxes]
        self.walls = None
        if config.workspace is not None:
            self.walls = WorkspaceWalls(*config.workspace, config.clearance, robot.num_joints)
        self.others = tuple(others)
        beside = [OtherArmPairs(arm, other) for other in others]
        every: list[PairKind | None] = [self.capsule_pairs, self.plane_pairs, *self.box_pairs, self.walls, *beside]
        self.kinds = [kind for kind in every if kind is not None and kind.size]
        self.num_pairs = sum(kind.size for kind in self.kinds)
        self.beside_others = np.zeros(self.num_pairs)
        self.beside_others[self.num_pairs - sum(pairs.size for pairs in beside) :] = 1.0

    @property
    def travel_of_others(self) -> float:
        """How far [m] any point of other arms has moved in all, as in `OtherArm`."""
        return sum(other.travel for other in self.others)

    def clearances(
        self, pose: ArmPose, within: float = np.inf, elapsed: float | Array = 0.0, only: np.ndarray | None = None
    ) -> Clearances:
        """Return the distances below `within` [m] and their gradients.

        Order: capsule pairs, spheres and rods, plane (both ends of each capsule), boxes, workspace, other arms.

        Args:
            pose: one pose of the arm, or many along a leading axis `m`.
            within: pairs farther apart are left out [m].
            elapsed: time since the obstacles were where the configuration says [s], one number or `[m]`.
            only: `[num_pairs]` True for the distances to measure, in the order above; None for all.
        """
        frames = pose.frames if pose.frames.ndim == 4 else pose.frames[None]
        count, joints = len(frames), len(self.reach)
        passed = elapsed if isinstance(elapsed, np.ndarray) else np.full(count, elapsed)
        placed = self.arm.place(frames, pose.tool.reshape(count, 4, 4), passed)
        found = []
        begin = 0
        for kind in self.kinds:
            chosen = np.arange(kind.size) if only is None else np.flatnonzero(only[begin : begin + kind.size])
            if len(chosen):
                near = kind.measure(placed, within, chosen)
                found.append(near._replace(pairs=begin + chosen[near.pairs]))
            begin += kind.size
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
        near = found[0] if len(found) == 1 else joined(found)
        # A turn about a joint's axis a through the origin of moments moves the point p along a x p plus the axis'
        # own moment m; the distance changes by n . (m + a x p) = m . n + a . (p x n).
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


def _box_pairs(arm: ArmCapsules, box: Box) -> BoxPairs:
    """Lay out the pairs of one box."""
    rotation, velocity = matrix_from_quaternion(box.quaternion), np.array(box.velocity, dtype=np.float64)
    return BoxPairs(arm, np.array(box.center), rotation, np.array(box.half_extents), velocity)


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
