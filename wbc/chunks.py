"""The targets of a chunk that are still to come: tool poses or joint positions, each with the time it is due."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ..contracts import ActionTrajectory, ControlTrajectory, JointTrajectory
from .limits import shortest_turn
from .robot.kinematics import Kinematics
from .robot.robots import RobotModel
from .robot.transforms import Array, matrix_from_quaternion, rotation_log

EXACT = (1e-5, 1e-4)
"""Error below which a target is reached: linear [m] and angular [rad]."""
LEAST_AHEAD = 1e-6
"""A target that is due no later than this from now is past [s]."""


class Miss(NamedTuple):
    """How far an arm is from a target.

    distance: of the tool from the target's tool point [m].
    angle: between the rotations of the tool, or of the joint that is farthest off [rad].
    joints: whether the target is joint positions.
    """

    distance: float
    angle: float
    joints: bool

    @property
    def size(self) -> float:
        """The error that counts: `distance` [m] for a tool pose, `angle` [rad] for joint positions."""
        return self.angle if self.joints else self.distance

    @property
    def arrived(self) -> bool:
        """Whether nothing is left to correct."""
        return self.distance < EXACT[0] and self.angle < EXACT[1]

    def __str__(self) -> str:
        if self.joints:
            return f"stands {np.degrees(self.angle):.1f} degrees from the wanted joint positions"
        return f"stands {self.distance * 1e3:.1f} mm from the wanted pose"


NO_MISS = Miss(0.0, 0.0, False)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Timed:
    """When the targets are due: due: `[k]` [s]; period: time between them [s]."""

    due: Array
    period: float

    def ends_before(self, time: float) -> bool:
        """Return whether nothing is due after `time` [s]."""
        return bool(self.due[-1] <= time + LEAST_AHEAD)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ToolChunk(_Timed):
    """Tool poses.

    positions: `[k 3]` [m]; quaternions: `[k 4]` xyzw; gripper: `[k]`.
    """

    positions: Array
    quaternions: Array
    gripper: Array

    def picked(self, index: npt.NDArray[np.bool_] | npt.NDArray[np.intp] | slice) -> ToolChunk:
        """Return the chosen targets with their times."""
        return replace(
            self,
            positions=self.positions[index],
            quaternions=self.quaternions[index],
            gripper=self.gripper[index],
            due=self.due[index],
        )

    def anchored(self, q: Array, time: float) -> ToolChunk:
        """Return itself: a pose does not show how often a joint has turned."""
        return self

    def miss(self, kinematics: Kinematics, q: Array, index: int) -> Miss:
        """Return how far the tool at joints `q` is from a target."""
        tool = kinematics.forward(q).tool
        turn = rotation_log(matrix_from_quaternion(self.quaternions[index]) @ tool[:3, :3].T)
        distance = float(np.linalg.norm(self.positions[index] - tool[:3, 3]))
        return Miss(distance, float(np.linalg.norm(turn)), False)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class JointChunk(_Timed):
    """Joint positions.

    positions: `[k j]` [rad], without jumps of a turn; gripper: `[k]`, None to leave it as it is;
    endless: `[j]` which joints have no stops.
    """

    positions: Array
    gripper: Array | None
    endless: npt.NDArray[np.bool_]

    def picked(self, index: npt.NDArray[np.bool_] | npt.NDArray[np.intp] | slice) -> JointChunk:
        """Return the chosen targets with their times."""
        gripper = None if self.gripper is None else self.gripper[index]
        return replace(self, positions=self.positions[index], gripper=gripper, due=self.due[index])

    def anchored(self, q: Array, time: float) -> JointChunk:
        """Return the chunk shifted by whole turns of the endless joints, so that what comes after `time` [s] begins
        within half a turn of the joints `q` `[j]` [rad].
        """
        first = self.positions[min(int(np.searchsorted(self.due, time + LEAST_AHEAD)), len(self.due) - 1)]
        nearest = q + shortest_turn(first - q, self.endless)
        turns = np.where(self.endless, np.round((nearest - first) / (2.0 * np.pi)), 0.0)
        return replace(self, positions=self.positions + 2.0 * np.pi * turns)

    def miss(self, kinematics: Kinematics, q: Array, index: int) -> Miss:
        """Return how far the joints `q` and the tool that they carry are from a target."""
        tools = kinematics.forward_many(np.stack([q, self.positions[index]]), jacobians=False).tool
        distance = float(np.linalg.norm(tools[1, :3, 3] - tools[0, :3, 3]))
        return Miss(distance, float(np.abs(self.positions[index] - q).max()), True)


Chunk = ToolChunk | JointChunk


def chunk_of(trajectory: ControlTrajectory, robot: RobotModel) -> Chunk:
    """Return all targets of a sound trajectory, in double precision.

    Quaternions are normalized. Successive positions of a joint without stops are taken to be less than half a turn
    apart, whatever turn each was counted from.
    """
    steps: npt.NDArray[np.float64] = np.arange(1, len(trajectory.positions) + 1, dtype=np.float64)
    due: npt.NDArray[np.float64] = np.asarray(trajectory.start_time + steps * float(trajectory.dt), dtype=np.float64)
    positions, period = trajectory.positions.astype(np.float64), float(trajectory.dt)
    if isinstance(trajectory, JointTrajectory):
        endless = np.isinf(robot.upper)
        gripper = None if trajectory.gripper is None else trajectory.gripper.astype(np.float64)
        positions = np.where(endless, np.unwrap(positions, axis=0), positions)
        return JointChunk(positions=positions, gripper=gripper, due=due, period=period, endless=endless)
    assert isinstance(trajectory, ActionTrajectory)
    quaternions = trajectory.quaternions.astype(np.float64)
    quaternions /= np.linalg.norm(quaternions, axis=1, keepdims=True)
    return ToolChunk(
        positions=positions,
        quaternions=quaternions,
        gripper=trajectory.gripper.astype(np.float64),
        due=due,
        period=period,
    )


def after(chunk: Chunk, time: float) -> Chunk:
    """Return the part of a chunk that is due after `time` [s]."""
    return chunk.picked(chunk.due > time + LEAST_AHEAD)


def held(chunk: Chunk, due: Array) -> Chunk:
    """Return the last target of a chunk, repeated at the times `due` `[k]` [s]."""
    last = chunk.picked(np.full(len(due), len(chunk.due) - 1))
    period = chunk.period if len(due) < 2 else float(due[1] - due[0])
    return replace(last, due=due, period=period)
