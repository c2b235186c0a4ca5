"""From a chunk of tool poses to the motion that the ticks follow: optimised or, failing that, smoothed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..gr_model.contracts import ActionTrajectory
from .collision import CollisionModel
from .kinematics import Kinematics
from .optimization import ChunkOptimizer, Plan
from .reference import SmoothTrajectory, ToolState
from .smoothing import SmoothingConfig, smooth_chunk
from .splines import JointTrajectory
from .transforms import Array
from .waypoints import Waypoints, waypoints_of


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class MotionState:
    """What is being commanded at one instant.

    time [s]; q, dq, ddq: `[j]` [rad], [rad/s], [rad/s^2]; earlier: the plan being followed, if one is.
    """

    time: float
    q: Array
    dq: Array
    ddq: Array
    earlier: JointTrajectory | None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Chunk:
    """The waypoints of a chunk that are still to come.

    positions: `[k 3]` [m]; quaternions: `[k 4]` xyzw; gripper: `[k]`; due: `[k]` [s]; period: between poses [s].
    """

    positions: Array
    quaternions: Array
    gripper: Array
    due: Array
    period: float

    def after(self, time: float) -> Chunk:
        """Return the part that is due after `time` [s]."""
        left = self.due > time + 1e-6
        return Chunk(
            positions=self.positions[left],
            quaternions=self.quaternions[left],
            gripper=self.gripper[left],
            due=self.due[left],
            period=self.period,
        )

    def first(self, count: int) -> Chunk:
        """Return the first `count` waypoints."""
        return Chunk(
            positions=self.positions[:count],
            quaternions=self.quaternions[:count],
            gripper=self.gripper[:count],
            due=self.due[:count],
            period=self.period,
        )

    def held(self, due: Array) -> Chunk:
        """Return the last waypoint, repeated at the times `due` `[k]` [s]."""
        last = np.full(len(due), len(self.due) - 1)
        return Chunk(
            positions=self.positions[last],
            quaternions=self.quaternions[last],
            gripper=self.gripper[last],
            due=due,
            period=self.period if len(due) < 2 else float(due[1] - due[0]),
        )


def chunk_of(trajectory: ActionTrajectory) -> Chunk:
    """Return all waypoints of a trajectory, in double precision, their quaternions normalised."""
    quaternions = trajectory.quaternions.astype(np.float64)
    quaternions /= np.linalg.norm(quaternions, axis=1, keepdims=True)
    due = float(trajectory.start_time) + (np.arange(len(quaternions)) + 1.0) * float(trajectory.dt)
    return Chunk(
        positions=trajectory.positions.astype(np.float64),
        quaternions=quaternions,
        gripper=trajectory.gripper.astype(np.float64),
        due=np.asarray(due, dtype=np.float64),
        period=float(trajectory.dt),
    )


def tool_state(kinematics: Kinematics, state: MotionState) -> ToolState:
    """Return the tool's motion under joint motion: twist `J dq`, its rate `J ddq + (dJ/dt) dq`."""
    pose = kinematics.forward(state.q)
    twist = pose.jacobian @ state.dq
    rate = pose.jacobian @ state.ddq
    rate = rate + np.tensordot(state.dq, kinematics.jacobian_derivatives(pose.jacobian), axes=1) @ state.dq
    return ToolState(
        position=pose.tool[:3, 3].copy(),
        rotation=pose.tool[:3, :3].copy(),
        velocity=twist[:3],
        angular_velocity=twist[3:],
        acceleration=rate[:3],
        angular_acceleration=rate[3:],
    )


def optimise(
    optimizer: ChunkOptimizer,
    state: MotionState,
    chunk: Chunk,
    posture: Array,
    collisions: CollisionModel,
    elapsed: float,
    smoothing: SmoothingConfig | None = None,
) -> Plan:
    """Optimise a chunk from the commanded state.

    Args:
        optimizer: of the arm.
        state: what is being commanded.
        chunk: waypoints.
        posture: `[j]` where spare freedom drifts to [rad].
        collisions: pairs to keep apart; elapsed: age of the obstacles' positions [s].
        smoothing: follow the smoothed chunk rather than the waypoints themselves.

    Raises:
        ControlError: no finite solution, or a chunk that cannot be smoothed.
    """
    limit = optimizer.config.max_samples
    if smoothing is None:
        waypoints = waypoints_of(chunk.positions, chunk.quaternions, chunk.due, chunk.period, limit)
    else:
        waypoints = _samples(smooth(optimizer.kinematics, state, chunk, smoothing), limit)
    return optimizer.plan(
        (state.q, state.dq, state.ddq),
        state.time,
        waypoints,
        posture,
        collisions,
        elapsed=elapsed,
        guess=state.earlier,
    )


def _samples(motion: SmoothTrajectory, count: int) -> Waypoints:
    """Return `count` poses of a smoothed chunk, evenly in time."""
    step = (motion.end_time - motion.start_time) / count
    times = motion.start_time + step * np.arange(1.0, count + 1.0)
    poses = [motion.pose(float(time)) for time in times]
    positions, rotations = np.stack([p for p, _ in poses]), np.stack([r for _, r in poses])
    return Waypoints(times=times, positions=positions, rotations=rotations, weights=np.full(count, step))


def smooth(kinematics: Kinematics, state: MotionState, chunk: Chunk, config: SmoothingConfig) -> SmoothTrajectory:
    """Smooth a chunk in tool space from the commanded state.

    Raises:
        ControlError: the chunk turns too far for one rotation vector.
    """
    start = tool_state(kinematics, state)
    return smooth_chunk(start, state.time, chunk.positions, chunk.quaternions, chunk.due, chunk.period, config)
