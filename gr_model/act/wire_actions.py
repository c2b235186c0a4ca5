"""What the columns of an action mean to another program: from our trajectories to its numbers and back."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np

from ...contracts import ActionTrajectory, Array, JointTrajectory, SignalTrajectory, Trajectory
from ...cvae_head.quaternions import conjugate_quaternion, multiply_quaternions
from ...cvae_head.rotations import from_quaternion, to_quaternion
from ...embodiment import rotation_width
from ...errors import ConfigError, PolicyError, ShapeError

Reference = Literal["absolute", "relative", "delta"]
"""What a pose is counted from: a fixed frame; the pose at the beginning of the chunk; the pose one step before."""

Frame = Literal["base", "world", "tool"]
"""In whose axes: the robot's base, the world (where the base stands is stated), or, for differences, the tool."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolPose:
    """A tool pose: position `[3]` [m] and quaternion `[4]` xyzw."""

    position: Array
    quaternion: Array


@dataclass(frozen=True, slots=True, kw_only=True)
class GripperRange:
    """A gripper's numbers at its two ends. `binary`: only the ends exist; a number above the middle is the upper one.

    Raises:
        ConfigError: both ends are the same.
    """

    closed: float = 0.0
    open: float = 1.0
    binary: bool = False

    def __post_init__(self) -> None:
        if not math.isfinite(self.closed - self.open) or self.closed == self.open:
            raise ConfigError(
                f"gripper: expected different numbers for closed and open, got {self.closed} and {self.open}."
            )

    def write(self, opening: Array) -> Array:
        """Return the numbers of openings in [0, 1]."""
        opening = np.where(opening > 0.5, 1.0, 0.0) if self.binary else opening
        return self.closed + (self.open - self.closed) * opening

    def read(self, values: Array) -> Array:
        """Return openings, 0 closed to 1 open; measured ones may lie a little outside."""
        if self.binary:
            upper = values > (self.open + self.closed) / 2
            return np.where(upper, float(self.open > self.closed), float(self.open < self.closed))
        return (values - self.closed) / (self.open - self.closed)


@dataclass(frozen=True, slots=True, kw_only=True)
class Base:
    """Where the robot's base stands in the world: position `[3]` [m], quaternion `[4]` xyzw."""

    position: tuple[float, ...] = (0.0, 0.0, 0.0)
    quaternion: tuple[float, ...] = (0.0, 0.0, 0.0, 1.0)

    def to_world(self, pose: ToolPose) -> ToolPose:
        """Return a pose of the robot's base frame, or several, in the world."""
        turned, quaternion = pose.position, pose.quaternion
        if self.quaternion != (0.0, 0.0, 0.0, 1.0):
            base = np.array(self.quaternion)
            turned, quaternion = rotate(base, turned), multiply_quaternions(base, quaternion)
        return ToolPose(position=turned + np.array(self.position), quaternion=quaternion)

    def to_base(self, pose: ToolPose) -> ToolPose:
        """Return a pose of the world, or several, in the robot's base frame."""
        moved, quaternion = pose.position - np.array(self.position), pose.quaternion
        if self.quaternion != (0.0, 0.0, 0.0, 1.0):
            back = conjugate_quaternion(np.array(self.quaternion))
            moved, quaternion = rotate(back, moved), multiply_quaternions(back, quaternion)
        return ToolPose(position=moved, quaternion=quaternion)


def rotate(q: Array, v: Array) -> Array:
    """Rotate vectors `[.. 3]` by unit quaternions `[.. 4]` xyzw."""
    q = np.broadcast_to(q, (*np.shape(v)[:-1], 4))
    pure = np.concatenate((v, np.zeros_like(v[..., :1])), axis=-1)
    return multiply_quaternions(multiply_quaternions(q, pure), conjugate_quaternion(q))[..., :3]


def read_turns(values: Array, rotation: str, *, name: str = "rotation", tolerance: float = 0.5) -> Array:
    """Return stored rotations `[.. w]` as quaternions `[.. 4]` xyzw of length 1.

    Args:
        values: numbers in the convention `rotation`.
        rotation: see `embodiment.rotation_width`.
        name: what errors call them.
        tolerance: how far quaternions and columns may be from length 1, and columns from being at right angles; a
            network's numbers are near, those of another layout are not.

    Raises:
        ShapeError: they are no rotations.
    """
    columns = {"rotation_6d": 2, "matrix": 3}.get(rotation)
    if rotation.startswith("quaternion"):
        fits = np.abs(np.linalg.norm(values, axis=-1) - 1) <= tolerance
    elif columns is not None:
        c = np.reshape(values, (*np.shape(values)[:-1], columns, 3))
        fits = np.all(np.abs(c @ np.swapaxes(c, -1, -2) - np.eye(columns)) <= tolerance, axis=(-1, -2))
        fits &= np.linalg.det(c) > 0 if columns == 3 else True
    else:
        return same_turn(to_quaternion(values, rotation))
    if not np.all(fits):
        bad = np.reshape(values, (-1, np.shape(values)[-1]))[np.argmin(np.reshape(fits, -1))]
        wanted = f"a unit quaternion ({rotation[-4:]})" if columns is None else f"a rotation as {rotation}"
        raise ShapeError(f"{name}: expected {wanted}, got {np.round(bad, 4).tolist()}; check the order of the numbers.")
    return same_turn(to_quaternion(values, rotation))


def same_turn(q: Array) -> Array:
    """Return quaternions `[.. 4]` of length 1."""
    return q / np.linalg.norm(q, axis=-1, keepdims=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class ActionMap:
    """The columns of an action.

    columns: "position" (3), "rotation" (as wide as its convention), "gripper" (1), "joints" (`joints`), "signals" (the
        first `signals` numbers of the robot's action, as they are), or a number of columns to skip; in their order.
    reference: what a pose is counted from; a chain of differences begins at the pose last commanded or measured
        (`begins`), as the robot's joint positions always are absolute.
    frame: whose axes; `added` turns ignore it.
    rotation: convention as in `embodiment.rotation_width`.
    turns: how a difference of rotations is taken: "composed", or "added" (euler angles alone), number by number.
    position_scale, rotation_scale: meters and radians that the number 1 stands for.
    dt: time between rows [s]; None where whoever sends them states it.
    executed_steps: rows to be carried out before the next question; None where whoever sends them states it.

    Raises:
        ConfigError: a value that cannot be.
    """

    columns: tuple[str | int, ...] = ("position", "rotation", "gripper")
    joints: int = 7
    signals: int = 7
    reference: Reference = "absolute"
    begins: Literal["measured", "commanded"] = "measured"
    frame: Frame = "base"
    base: Base = field(default_factory=Base)
    rotation: str = "quaternion_xyzw"
    turns: Literal["composed", "added"] = "composed"
    position_scale: float = 1.0
    rotation_scale: float = 1.0
    gripper: GripperRange = field(default_factory=GripperRange)
    dt: float | None = None
    executed_steps: int | None = None

    def __post_init__(self) -> None:
        rotation_width(self.rotation)
        known = ("position", "rotation", "gripper", "joints", "signals")
        names = [c for c in self.columns if not isinstance(c, int)]
        kinds = ({"position", "rotation"} <= set(names), "joints" in names, "signals" in names)
        if len(set(names)) != len(names) or set(names) - set(known) or sum(kinds) != 1:
            raise ConfigError(
                "actions.columns: expected position and rotation, or joints, or signals, once each, gripper or none, "
                f"and numbers of columns to skip, got {list(self.columns)}; correct the map."
            )
        if not kinds[0] and self.reference != "absolute":
            plain = "joint positions" if kinds[1] else "(signals are as the robot takes them)"
            raise ConfigError(f"actions.reference: expected absolute {plain}, got {self.reference}.")
        if self.frame == "tool" and self.reference == "absolute":
            raise ConfigError("actions.frame: expected base or world for absolute poses, got tool; correct the map.")
        if self.turns == "added" and not self.rotation.startswith("euler_"):
            raise ConfigError(f"actions.turns: expected composed for {self.rotation}, got added; correct the map.")
        angles = rotation_width(self.rotation) == 3
        if (self.scaled and self.reference == "absolute") or (self.rotation_scale != 1.0 and not angles):
            raise ConfigError(
                "actions: expected scales of differences alone, and of rotations as angles or rotation vectors, got "
                f"{self.reference} {self.rotation}; correct the map."
            )
        numbers = (self.position_scale, self.rotation_scale, 1.0 if self.dt is None else self.dt)
        if not all(0 < abs(n) < math.inf for n in numbers) or numbers[2] < 0:
            raise ConfigError(f"actions: expected scales other than 0 and a dt above 0, got {numbers}.")
        if self.executed_steps is not None and self.executed_steps < 1:
            raise ConfigError(f"actions.executed_steps: expected 1 or more, got {self.executed_steps}.")

    @property
    def scaled(self) -> bool:
        """Whether the number 1 stands for something else than 1 m or 1 rad."""
        return (self.position_scale, self.rotation_scale) != (1.0, 1.0)

    def widths(self) -> dict[str | int, int]:
        """Return the width of each column group; skipped ones stand under their place, from 0 on."""
        width = {"position": 3, "rotation": rotation_width(self.rotation), "gripper": 1, "joints": self.joints}
        width["signals"] = self.signals
        return {
            i if isinstance(c, int) else c: c if isinstance(c, int) else width[c] for i, c in enumerate(self.columns)
        }

    @property
    def width(self) -> int:
        """Numbers of an action."""
        return sum(self.widths().values())

    def describe(self) -> list[dict[str, object]]:
        """Return name, width and meaning of each column group, as JSON values."""
        unit = {"position": "m", "rotation": "rad" if rotation_width(self.rotation) == 3 else "", "joints": "rad"}
        scale = {"position": self.position_scale, "rotation": self.rotation_scale}
        found: list[dict[str, object]] = []
        for name, width in self.widths().items():
            row: dict[str, object] = {"name": "unused" if isinstance(name, int) else name, "width": width}
            if name in ("position", "rotation"):
                row |= {"reference": self.reference, "frame": self.frame}
            if name == "rotation":
                row |= {"rotation": self.rotation} | ({} if self.reference == "absolute" else {"turns": self.turns})
            if name == "gripper":
                row |= {"closed": self.gripper.closed, "open": self.gripper.open, "binary": self.gripper.binary}
            if unit.get(str(name)):
                row["unit"] = unit[str(name)]
            if scale.get(str(name), 1.0) != 1.0:
                row["scale"] = scale[str(name)]
            found.append(row)
        return found

    def write(self, trajectory: Trajectory, start: ToolPose | None) -> Array:
        """Return a trajectory as rows `[k d]`.

        Args:
            trajectory: tool poses; joint positions or signals for a map of these.
            start: the tool pose, robot base frame, that differences begin at.

        Raises:
            PolicyError: the policy commands something else.
        """
        parts: dict[str, Array] = {}
        opening: Array | None
        if isinstance(trajectory, JointTrajectory) and "joints" in self.columns:
            parts, opening = {"joints": trajectory.positions}, trajectory.gripper
        elif isinstance(trajectory, SignalTrajectory) and "signals" in self.columns:
            parts, opening = self._write_signals(np.asarray(trajectory.values, float))
        elif isinstance(trajectory, ActionTrajectory) and "position" in self.columns:
            pose = ToolPose(position=trajectory.positions, quaternion=trajectory.quaternions)
            parts["position"], parts["rotation"] = self._write_poses(pose, start)
            opening = trajectory.gripper
        else:
            raise PolicyError(
                f"actions: expected a policy that commands {' and '.join(map(str, self.columns))}, got one that "
                f"answers {type(trajectory).__name__}; leave --keys out, or write a map of its columns."
            )
        rows = len(next(iter(parts.values())))
        if "gripper" in self.columns:
            if opening is None:
                raise PolicyError("actions: expected a policy that commands the gripper, got one that does not.")
            parts["gripper"] = self.gripper.write(opening)[:, None]
        groups = self.widths().items()
        return np.concatenate([parts.get(str(n), np.zeros((rows, w))) for n, w in groups], axis=-1)

    def read(self, values: Array, start: ToolPose) -> tuple[Array, Array, Array | None]:
        """Return positions `[k 3]`, quaternions `[k 4]` (robot base frame) and openings `[k]` of rows `[k d]`.

        A map of joints or signals gives those `[k j]` in place of the positions, and empty quaternions.

        Raises:
            ShapeError: numbers that are no rotations.
        """
        parts, at = {}, 0
        for name, width in self.widths().items():
            parts[str(name)] = values[:, at : at + width]
            at += width
        opening = np.clip(self.gripper.read(parts["gripper"][:, 0]), 0.0, 1.0) if "gripper" in parts else None
        if "position" not in parts:
            return parts["joints" if "joints" in parts else "signals"], np.zeros((0, 4)), opening
        return *self._read_poses(parts["position"], parts["rotation"], start), opening

    def _write_signals(self, values: Array) -> tuple[dict[str, Array], Array | None]:
        wanted = self.signals + ("gripper" in self.columns)
        if values.shape[1] != wanted:
            raise PolicyError(
                f"actions: expected a policy of {wanted} action numbers, got {values.shape[1]}; correct the map."
            )
        return {"signals": values[:, : self.signals]}, values[:, -1] if "gripper" in self.columns else None

    def _outside(self, pose: ToolPose) -> ToolPose:
        return self.base.to_world(pose) if self.frame == "world" else pose

    def _write_poses(self, pose: ToolPose, start: ToolPose | None) -> tuple[Array, Array]:
        pose = self._outside(pose)
        if self.reference == "absolute":
            return pose.position, from_quaternion(pose.quaternion, self.rotation)
        assert start is not None
        before = self._outside(start)
        angles = from_quaternion(before.quaternion, self.rotation)
        moves, turns = [], []
        for position, quaternion in zip(pose.position, pose.quaternion, strict=True):
            move, back = position - before.position, conjugate_quaternion(before.quaternion)
            if self.frame == "tool":
                move, turn = rotate(back, move), multiply_quaternions(back, quaternion)
            else:
                turn = multiply_quaternions(quaternion, back)
            if self.turns == "added":
                numbers = wrap(from_quaternion(quaternion, self.rotation) - angles)
            else:
                numbers = from_quaternion(turn, self.rotation)
            moves.append(move / self.position_scale)
            turns.append(numbers / self.rotation_scale)
            if self.reference == "delta":
                before = ToolPose(position=position, quaternion=quaternion)
                angles = wrap(angles + numbers)
        return np.array(moves), np.array(turns)

    def _read_poses(self, positions: Array, rotations: Array, start: ToolPose) -> tuple[Array, Array]:
        if self.reference == "absolute":
            pose = ToolPose(position=positions, quaternion=read_turns(rotations, self.rotation))
            pose = self.base.to_base(pose) if self.frame == "world" else pose
            return pose.position, pose.quaternion
        before = self._outside(start)
        angles = from_quaternion(before.quaternion, self.rotation)
        found = []
        for move, numbers in zip(positions * self.position_scale, rotations * self.rotation_scale, strict=True):
            if self.turns == "added":
                after = wrap(angles + numbers)
                quaternion = to_quaternion(after, self.rotation)
            else:
                after, turn = angles, read_turns(numbers, self.rotation)
                pair = (before.quaternion, turn) if self.frame == "tool" else (turn, before.quaternion)
                quaternion = multiply_quaternions(*pair)
            moved = rotate(before.quaternion, move) if self.frame == "tool" else move
            pose = ToolPose(position=before.position + moved, quaternion=same_turn(quaternion))
            found.append(self.base.to_base(pose) if self.frame == "world" else pose)
            if self.reference == "delta":
                before, angles = pose, after
        return np.array([p.position for p in found]), np.array([p.quaternion for p in found])


def wrap(angles: Array) -> Array:
    """Return angles in [-pi, pi) [rad]."""
    return (angles + np.pi) % (2 * np.pi) - np.pi


TrajectoryKind = Literal["tool_poses", "joint_positions", "signals"]
"""What the rows of a policy's own answer are: position, quaternion xyzw and opening (8); joints, and the opening where
it is commanded; or the action signals of its robot."""


def as_rows(trajectory: Trajectory) -> tuple[Array, TrajectoryKind]:
    """Return a trajectory as the numbers that it holds `[k d]`, float64, and what they are."""
    if isinstance(trajectory, SignalTrajectory):
        return np.asarray(trajectory.values, float), "signals"
    if isinstance(trajectory, JointTrajectory):
        opening = [] if trajectory.gripper is None else [np.asarray(trajectory.gripper)[:, None]]
        return np.concatenate([trajectory.positions, *opening], axis=-1).astype(float), "joint_positions"
    parts = (trajectory.positions, trajectory.quaternions, np.asarray(trajectory.gripper)[:, None])
    return np.concatenate(parts, axis=-1).astype(float), "tool_poses"


def from_rows(
    rows: Array, kind: str, *, dt: float, start_time: float, opening: bool = True, arm: str = ""
) -> Trajectory:
    """Return the trajectory that `as_rows` gave.

    Args:
        rows: `[k d]`.
        kind: what they are.
        dt: time between rows [s].
        start_time: of the observation [s].
        opening: whether joint positions end with the gripper.
        arm: which arm of several it is for.

    Raises:
        PolicyError: another kind, or another width.
    """
    if kind == "signals":
        return SignalTrajectory(values=rows, dt=dt, start_time=start_time)
    if kind == "joint_positions" and rows.shape[1] > opening:
        joints, gripper = (rows[:, :-1], rows[:, -1]) if opening else (rows, None)
        return JointTrajectory(positions=joints, gripper=gripper, dt=dt, start_time=start_time, arm=arm)
    if kind != "tool_poses" or rows.shape[1] != 8:
        raise PolicyError(
            f"actions: expected 8 columns of tool poses, joint positions or signals, got {rows.shape[1]} of {kind!r}; "
            "update gr2 on both sides."
        )
    return ActionTrajectory(
        positions=rows[:, :3], quaternions=rows[:, 3:7], gripper=rows[:, 7], dt=dt, start_time=start_time, arm=arm
    )


def some_rows(trajectory: Trajectory, begin: int, end: int) -> Trajectory:
    """Return rows `begin` to `end - 1` of a trajectory, due at the same times."""
    start = trajectory.start_time + begin * trajectory.dt
    if isinstance(trajectory, SignalTrajectory):
        return replace(trajectory, values=trajectory.values[begin:end], start_time=start)
    gripper = None if trajectory.gripper is None else trajectory.gripper[begin:end]
    if isinstance(trajectory, JointTrajectory):
        return replace(trajectory, positions=trajectory.positions[begin:end], gripper=gripper, start_time=start)
    assert gripper is not None
    return replace(
        trajectory,
        positions=trajectory.positions[begin:end],
        quaternions=trajectory.quaternions[begin:end],
        gripper=gripper,
        start_time=start,
    )
