"""From a chunk of tool poses to the motion that the ticks follow: optimised or, failing that, smoothed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..contracts import ActionTrajectory
from ..errors import ControlError
from .collision import CollisionModel
from .configuration import ControllerConfig
from .optimization import ChunkOptimizer, Plan
from .reference import SmoothTrajectory, ToolState
from .robot.kinematics import Kinematics
from .robot.robots import RobotModel
from .robot.transforms import Array, matrix_from_quaternion, rotation_log
from .smoothing import smooth_chunk
from .splines import JointTrajectory
from .status import EventLog
from .waypoints import Waypoints, waypoints_of

Motion = JointTrajectory | SmoothTrajectory
"""What the ticks follow: a plan in joint space, or a smoothed chunk in tool space."""


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


def miss(kinematics: Kinematics, q: Array, chunk: Chunk, index: int) -> tuple[float, float]:
    """Return how far the tool at joints `q` is from a waypoint of a chunk: [m], [rad]."""
    tool = kinematics.forward(q).tool
    turn = rotation_log(matrix_from_quaternion(chunk.quaternions[index]) @ tool[:3, :3].T)
    return float(np.linalg.norm(chunk.positions[index] - tool[:3, 3])), float(np.linalg.norm(turn))


class ChunkPlanner:
    """Turns chunks into motion, by the optimisation or, where that fails or is not wanted, by the smoother alone."""

    def __init__(self, robot: RobotModel, kinematics: Kinematics, config: ControllerConfig, log: EventLog) -> None:
        """Plan for `robot` as `config` says; failures are written to `log`."""
        self.kinematics, self.config, self._log = kinematics, config, log
        self._optimizer: ChunkOptimizer | None = None
        if config.optimization is not None:
            scales = (config.tracking.velocity_scale, config.tracking.acceleration_scale)
            self._optimizer = ChunkOptimizer(robot, config.optimization, scales)

    def plan(
        self,
        state: MotionState,
        chunk: Chunk,
        posture: Array,
        collisions: CollisionModel,
        elapsed: float,
        *,
        late: bool = False,
    ) -> Motion | None:
        """Plan the part of a chunk that the window shows; None where even the smoother refuses it.

        Args:
            state: what is being commanded.
            chunk: waypoints; those that are past are left out.
            posture: `[j]` where spare freedom drifts to [rad].
            collisions: pairs to keep apart; elapsed: age of the obstacles' positions [s].
            late: leave the optimisation out, because there is no time for it.
        """
        ahead = chunk.after(state.time)
        ahead = ahead.first(max(1, int(np.searchsorted(ahead.due, state.time + self.config.window))))
        if self._optimizer is not None and not late:
            try:
                plan = self._optimised(self._optimizer, state, ahead, posture, collisions, elapsed)
                self._log.counters["optimised"] += 1
                return plan.trajectory
            except (ControlError, np.linalg.LinAlgError) as error:
                self._log.record(state.time, "optimisation_failed", str(error))
        try:
            return self._smoothed(state, ahead)
        except ControlError:
            return None

    def _optimised(
        self,
        optimizer: ChunkOptimizer,
        state: MotionState,
        chunk: Chunk,
        posture: Array,
        collisions: CollisionModel,
        elapsed: float,
    ) -> Plan:
        limit = optimizer.config.max_samples
        if self.config.smooth_first:
            waypoints = _samples(self._smoothed(state, chunk), limit)
        else:
            waypoints = waypoints_of(chunk.positions, chunk.quaternions, chunk.due, chunk.period, limit)
        start = (state.q, state.dq, state.ddq)
        return optimizer.plan(start, state.time, waypoints, posture, collisions, elapsed=elapsed, guess=state.earlier)

    def _smoothed(self, state: MotionState, chunk: Chunk) -> SmoothTrajectory:
        start = tool_state(self.kinematics, state)
        return smooth_chunk(
            start, state.time, chunk.positions, chunk.quaternions, chunk.due, chunk.period, self.config.smoothing
        )


def _samples(motion: SmoothTrajectory, count: int) -> Waypoints:
    """Return `count` poses of a smoothed chunk, evenly in time."""
    step = (motion.end_time - motion.start_time) / count
    times = motion.start_time + step * np.arange(1.0, count + 1.0)
    poses = [motion.pose(float(time)) for time in times]
    positions, rotations = np.stack([p for p, _ in poses]), np.stack([r for _, r in poses])
    return Waypoints(times=times, positions=positions, rotations=rotations, weights=np.full(count, step))
