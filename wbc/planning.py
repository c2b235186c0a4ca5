"""From a chunk to the motion that the ticks follow: optimized or, failing that, smoothed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..errors import ControlError
from .chunks import Chunk, JointChunk, ToolChunk, after
from .collision import CollisionModel
from .configuration import ControllerConfig
from .optimization import ChunkOptimizer, Plan
from .reference import SmoothTrajectory, StreamedPose, ToolState
from .robot.kinematics import Kinematics
from .robot.robots import RobotModel
from .robot.transforms import Array
from .smoothing import smooth_chunk, smooth_joints
from .splines import JointSpline, SmoothJointSpline
from .status import EventLog
from .waypoints import AnyWaypoints, JointWaypoints, Waypoints, joint_waypoints_of, waypoints_of

Motion = JointSpline | SmoothTrajectory | StreamedPose
"""What the ticks follow: joint motion, or in tool space a smoothed chunk or the next pose of a stream."""
Smoothed = SmoothTrajectory | SmoothJointSpline
"""Motion that was not optimized: what remains where the optimization fails, comes late, or is not wanted."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class MotionState:
    """What is being commanded at one instant.

    time [s]; q, dq, ddq: `[j]` [rad], [rad/s], [rad/s^2]; earlier: the plan being followed, if one is.
    """

    time: float
    q: Array
    dq: Array
    ddq: Array
    earlier: JointSpline | None


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


class ChunkPlanner:
    """Turns chunks into motion, by the optimization or, where that fails or is not wanted, by the smoother alone."""

    def __init__(self, robot: RobotModel, kinematics: Kinematics, config: ControllerConfig, log: EventLog) -> None:
        """Plan for `robot` as `config` states; failures are written to `log`."""
        self.kinematics, self.config, self._log = kinematics, config, log
        self._optimizer: ChunkOptimizer | None = None
        if config.optimization is not None:
            scales = (config.tracking.velocity_scale, config.tracking.acceleration_scale)
            caps = config.smoothing.linear_speed, config.smoothing.angular_speed
            self._optimizer = ChunkOptimizer(robot, config.optimization, scales, caps)
        tracking = config.tracking
        self._limits = tracking.velocity_scale * robot.velocity, tracking.acceleration_scale * robot.acceleration
        self._lower, self._upper = robot.lower, robot.upper

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
            chunk: targets; those that are past are left out.
            posture: `[j]` where spare freedom drifts to [rad].
            collisions: pairs to keep apart; elapsed: age of the obstacles' positions [s].
            late: leave the optimization out, because there is no time for it.
        """
        ahead = after(chunk, state.time)
        ahead = ahead.picked(slice(max(1, int(np.searchsorted(ahead.due, state.time + self.config.window)))))
        if self._optimizer is not None and not late:
            try:
                plan = self._optimized(self._optimizer, state, ahead, posture, collisions, elapsed)
                self._log.counters["optimized"] += 1
                return plan.trajectory
            except (ControlError, np.linalg.LinAlgError) as error:
                self._log.record(state.time, "optimization_failed", str(error))
        try:
            return self._smoothed(state, ahead)
        except ControlError:
            return None

    def _optimized(
        self,
        optimizer: ChunkOptimizer,
        state: MotionState,
        chunk: Chunk,
        posture: Array,
        collisions: CollisionModel,
        elapsed: float,
    ) -> Plan:
        limit = optimizer.config.max_samples
        waypoints: AnyWaypoints
        if self.config.smooth_first:
            waypoints = _samples(self._smoothed(state, chunk), limit)
        elif isinstance(chunk, JointChunk):
            waypoints = joint_waypoints_of(chunk.positions, chunk.due, chunk.period, limit)
        else:
            waypoints = waypoints_of(chunk.positions, chunk.quaternions, chunk.due, chunk.period, limit)
        start = (state.q, state.dq, state.ddq)
        return optimizer.plan(start, state.time, waypoints, posture, collisions, elapsed=elapsed, guess=state.earlier)

    def _smoothed(self, state: MotionState, chunk: Chunk) -> Smoothed:
        if isinstance(chunk, ToolChunk):
            start = tool_state(self.kinematics, state)
            return smooth_chunk(
                start, state.time, chunk.positions, chunk.quaternions, chunk.due, chunk.period, self.config.smoothing
            )
        within = np.clip(chunk.positions, self._lower, self._upper)
        start_of_joints = (state.q, state.dq, state.ddq)
        return smooth_joints(
            start_of_joints, state.time, within, chunk.due, chunk.period, self.config.smoothing, self._limits
        )


def _samples(motion: Smoothed, count: int) -> AnyWaypoints:
    """Return `count` targets of a smoothed chunk, evenly in time."""
    step = (motion.end_time - motion.start_time) / count
    times = motion.start_time + step * np.arange(1.0, count + 1.0)
    weights = np.full(count, step)
    if isinstance(motion, SmoothJointSpline):
        return JointWaypoints(times=times, joints=motion.many(times), weights=weights)
    poses = [motion.pose(float(time)) for time in times]
    positions, rotations = np.stack([p for p, _ in poses]), np.stack([r for _, r in poses])
    return Waypoints(times=times, positions=positions, rotations=rotations, weights=weights)
