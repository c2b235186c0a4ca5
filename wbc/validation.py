"""Decide whether a chunk may reach the controller at all."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from ..contracts import ActionTrajectory, Array, ControlTrajectory, JointTrajectory
from ..errors import ConfigError
from .robot.robots import RobotModel

ACCEPTED = "accepted"
PENDING = "pending"
REJECTED_SHAPE = "rejected_shape"
REJECTED_NOT_FINITE = "rejected_not_finite"
REJECTED_QUATERNION = "rejected_quaternion"
REJECTED_RANGE = "rejected_range"
REJECTED_TIME = "rejected_time"
REJECTED_ORDER = "rejected_order"
REJECTED_EXPIRED = "rejected_expired"
REJECTED_ROTATION = "rejected_rotation"
REJECTED_STOPPED = "rejected_stopped"
REJECTED_STATE = "rejected_state"
"""The measured joints of a standing arm are too far from the commanded ones; `reset` takes the measured ones over."""
REJECTED_ARM = "rejected_arm"
"""The chunk is for an arm that the group does not have."""

REJECTED_REACH = "rejected_reach"
"""A pose is far out of the arm's reach."""
REJECTED_JUMP = "rejected_jump"
"""A pose is too far from where the tool can be by then."""

MAX_DISTANCE = 10.0
"""Farthest coordinate [m] taken for a target; unreachable ones below it are approached as far as possible."""
MAX_EXCESS = 0.5 * math.pi
"""How far beyond a joint's limits [rad] a target may lie; it is approached as far as the limits allow."""
MAX_ANGLE = 1e3
"""Farthest target [rad] of a joint without stops."""
MAX_POSES = 256
MIN_PERIOD, MAX_PERIOD = 1e-4, 10.0
"""Shortest and longest time between poses [s]."""
QUATERNION_TOLERANCE = 1e-3
"""Largest deviation of a quaternion's length from 1; smaller ones are normalized."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GuardConfig:
    """Which tool poses are taken for a mistake (another frame or unit, a stale chunk) rather than for a target.

    max_jump: how far [m] the tool, at its greatest speed, may lag behind a pose when it is due, coming from the pose
        before it (the first one: from where it is commanded to be).
    max_reach: greatest distance of a pose from the arm's first joint, as a share of what the arm reaches; poses
        between the reach and this are approached as far as possible.

    Infinity switches either off.
    """

    max_jump: float = 0.5
    max_reach: float = 1.5

    def __post_init__(self) -> None:
        if not (self.max_jump > 0.0 and self.max_reach >= 1.0):
            raise ConfigError(
                f"guard: expected max_jump above 0 m and max_reach of 1 or more, got {self.max_jump} and "
                f"{self.max_reach}; infinity switches one off."
            )


def out_of_reach(trajectory: ControlTrajectory, robot: RobotModel, guard: GuardConfig) -> str:
    """Return a sentence on the farthest pose of a sound trajectory where it is far out of reach, else nothing."""
    if not isinstance(trajectory, ActionTrajectory):
        return ""
    away = float(np.linalg.norm(trajectory.positions - robot.joint_positions[0], axis=1).max())
    if away <= guard.max_reach * robot.reach:
        return ""
    return (
        f"a pose {away:.2f} m from the arm's first joint; {robot.name} reaches {robot.reach:.2f} m: another unit or "
        "frame than meters in the robot's base frame? (guard.max_reach)"
    )


def jump_in(positions: Array, due: Array, tool: Array, time: float, speed: float, guard: GuardConfig) -> str:
    """Return a sentence on the pose that lies too far from the one before it, nothing where none does.

    Args:
        positions: `[k 3]` [m]; due: `[k]` when [s].
        tool: `[3]` where the tool is commanded to be at `time` [s].
        speed: greatest speed of the tool [m/s].
    """
    gaps = np.linalg.norm(np.diff(positions, axis=0, prepend=tool[None]), axis=1)
    durations = np.diff(due, prepend=time)
    excess = gaps - speed * durations
    worst = int(excess.argmax())
    if float(excess[worst]) <= guard.max_jump:
        return ""
    before = "the tool" if worst == 0 else "the pose before it"
    return (
        f"a pose {gaps[worst]:.2f} m from {before}, due {durations[worst]:.3f} s after it: another frame, or a chunk "
        "for another moment? (guard.max_jump)"
    )


def _array(value: object, shape: tuple[int, ...]) -> bool:
    return (
        isinstance(value, np.ndarray)
        and value.shape == shape
        and (np.issubdtype(value.dtype, np.floating) or np.issubdtype(value.dtype, np.integer))
    )


def check_chunk(trajectory: ControlTrajectory, robot: RobotModel) -> str:
    """Return `ACCEPTED` or the name of the first fault of `trajectory` itself, regardless of the clock."""
    if not isinstance(trajectory, ActionTrajectory | JointTrajectory) or not isinstance(
        trajectory.positions, np.ndarray
    ):
        return REJECTED_SHAPE
    count = len(trajectory.positions) if trajectory.positions.ndim else 0
    arrays = _arrays(trajectory, count, robot.num_joints)
    if not 1 <= count <= MAX_POSES or not all(_array(array, shape) for array, shape in arrays):
        return REJECTED_SHAPE
    if not all(np.all(np.isfinite(array)) for array, _ in arrays):
        return REJECTED_NOT_FINITE
    if not all(isinstance(t, int | float | np.number) for t in (trajectory.dt, trajectory.start_time)):
        return REJECTED_TIME
    if not (math.isfinite(trajectory.start_time) and MIN_PERIOD <= trajectory.dt <= MAX_PERIOD):
        return REJECTED_TIME
    if not _in_range(trajectory, robot):
        return REJECTED_RANGE
    gripper = trajectory.gripper
    if gripper is not None and (gripper.min() < -1e-3 or gripper.max() > 1.0 + 1e-3):
        return REJECTED_RANGE
    if isinstance(trajectory, ActionTrajectory):
        lengths = np.linalg.norm(trajectory.quaternions.astype(np.float64), axis=1)
        if float(np.abs(lengths - 1.0).max()) > QUATERNION_TOLERANCE:
            return REJECTED_QUATERNION
    return ACCEPTED


def _arrays(trajectory: ControlTrajectory, count: int, joints: int) -> list[tuple[Array, tuple[int, ...]]]:
    """Return the arrays of a trajectory with the shapes that they should have."""
    if isinstance(trajectory, ActionTrajectory):
        return [
            (trajectory.positions, (count, 3)),
            (trajectory.quaternions, (count, 4)),
            (trajectory.gripper, (count,)),
        ]
    arrays: list[tuple[Array, tuple[int, ...]]] = [(trajectory.positions, (count, joints))]
    return arrays if trajectory.gripper is None else [*arrays, (trajectory.gripper, (count,))]


def _in_range(trajectory: ControlTrajectory, robot: RobotModel) -> bool:
    """Return whether targets are near enough to be meant: in meters and radians, not in other units."""
    positions = trajectory.positions
    if isinstance(trajectory, ActionTrajectory):
        return float(np.abs(positions).max()) <= MAX_DISTANCE
    inside = bool(np.all((positions >= robot.lower - MAX_EXCESS) & (positions <= robot.upper + MAX_EXCESS)))
    return inside and float(np.abs(positions).max()) <= MAX_ANGLE


FAULTS = (
    REJECTED_SHAPE,
    REJECTED_NOT_FINITE,
    REJECTED_QUATERNION,
    REJECTED_RANGE,
    REJECTED_REACH,
    REJECTED_JUMP,
    REJECTED_TIME,
)
"""Verdicts on a chunk itself: who sends one like it again is refused again."""


def likely_cause(verdict: str, trajectory: ControlTrajectory) -> str:
    """Return in a few words what is wrong with a chunk of one of the `FAULTS`, and what may have been mixed up."""
    if verdict == REJECTED_NOT_FINITE:
        return "NaN or infinity among its numbers"
    if verdict == REJECTED_QUATERNION and isinstance(trajectory, ActionTrajectory):
        length = float(np.linalg.norm(trajectory.quaternions, axis=1).max())
        return f"quaternions of length {length:.3g}, expected unit ones in the order x, y, z, w (not axis-angle)"
    if verdict == REJECTED_RANGE:
        gripper = trajectory.gripper
        if gripper is not None and (gripper.min() < 0 or gripper.max() > 1):
            low, high = float(gripper.min()), float(gripper.max())
            return f"a gripper from {low:g} to {high:g}, expected 0 (closed) to 1 (open): -1 and 1 are CALVIN's actions"
        far, unit = float(np.abs(trajectory.positions).max()), "radians"
        if isinstance(trajectory, ActionTrajectory):
            unit = "meters in the robot's base frame"
        return f"positions up to {far:.3g}, expected {unit}: another unit or frame"
    if verdict == REJECTED_TIME:
        return f"poses {trajectory.dt} s apart from {trajectory.start_time} s on, expected seconds"
    if verdict == REJECTED_REACH:
        return "poses far out of the arm's reach, expected meters in the robot's base frame: another unit or frame"
    if verdict == REJECTED_JUMP:
        return "poses that jump, from the tool or within the chunk: another frame, or a chunk for another moment"
    return "arrays of other shapes or types than one row for each pose"
