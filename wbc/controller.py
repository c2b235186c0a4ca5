"""The whole-body controller: chunks of tool poses in, joint commands out, every limit kept at every tick."""

from __future__ import annotations

import math
import threading
from collections import Counter, deque
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from ..gr_model.contracts import ActionTrajectory, JointCommand
from ..gr_model.errors import ConfigError, ControlError
from . import validation
from .collision import CollisionConfig
from .gripper import GripperSchedule
from .kinematics import ArmPose
from .reference import SmoothTrajectory, ToolState, resting
from .robots import RobotModel
from .smoothing import SmoothingConfig, smooth_chunk
from .tracking import NOMINAL, TickSolver, TrackingConfig, braked_gain
from .transforms import Array, rotation_log

HOLD, TRACK, UNREACHABLE, EMERGENCY_BRAKE, EMERGENCY_STOP = (
    "hold",
    "track",
    "unreachable",
    "emergency_brake",
    "emergency_stop",
)
"""Status names of a joint command."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ControllerConfig:
    """Everything that can be set on the controller.

    tick_hz: ticks a second; every call of `step` counts as one.
    gripper_rate: fastest change of the opening [1/s], None for the robot's own.
    gripper_hysteresis: changes of the gripper command below this are ignored.
    reanchor_distance, reanchor_angle: a chunk starts from the arm rather than from the reference where they
        differ by more [m, rad].
    hold_speed: joint speed [rad/s] below which a finished chunk is frozen; hold_timeout: time after which it
        is in any case [s].
    unreachable_distance: remaining tool error [m] of a frozen arm that is reported.
    start_tolerance: how far a measured joint may lie beyond its limit at a reset [rad].
    max_events: events kept, the latest ones.
    """

    tick_hz: float = 200.0
    smoothing: SmoothingConfig = field(default_factory=SmoothingConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    collision: CollisionConfig = field(default_factory=CollisionConfig)
    gripper_rate: float | None = None
    gripper_hysteresis: float = 0.05
    reanchor_distance: float = 0.01
    reanchor_angle: float = 0.05
    hold_speed: float = 0.005
    hold_timeout: float = 1.0
    unreachable_distance: float = 0.005
    start_tolerance: float = 0.05
    max_events: int = 1000

    def __post_init__(self) -> None:
        if not 10.0 <= self.tick_hz <= 10000.0:
            raise ConfigError(f"tick_hz: expected 10 to 10000, got {self.tick_hz}; 200 is usual.")
        for name in ("velocity_scale", "acceleration_scale"):
            value = getattr(self.tracking, name)
            if not 0.0 < value <= 1.0:
                raise ConfigError(
                    f"tracking.{name}: expected a number in (0, 1], got {value}; 1 uses the robot's limits."
                )


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something worth a line in a log: time [s], code, and a sentence."""

    time: float
    code: str
    detail: str


class WholeBodyController:
    """Follows chunks of tool poses with one arm.

    events: the latest events; counters: how often each code occurred, ticks included.
    """

    def __init__(self, robot: RobotModel, config: ControllerConfig = ControllerConfig()) -> None:
        """Prepare for `robot`; call `reset` with the measured state before anything else."""
        self.robot, self.config = robot, config
        self.dt = 1.0 / config.tick_hz
        self.events: deque[Event] = deque(maxlen=config.max_events)
        self.counters: Counter[str] = Counter()
        self._solver = TickSolver(robot, config.tracking, config.collision, self.dt)
        self._lock = threading.Lock()
        self._started = self._stopped = False

    def reset(self, joint_positions: npt.ArrayLike, gripper: float, time: float) -> None:
        """Start from the measured state, at rest; also releases an emergency stop.

        Args:
            joint_positions: `[j]` measured [rad].
            gripper: measured opening, 0 to 1.
            time: [s].

        Raises:
            ControlError: numbers that are not finite, of another shape, or joints beyond their limits.
        """
        q = np.array(joint_positions, dtype=np.float64)
        if q.shape != (self.robot.num_joints,) or not np.all(np.isfinite([*q, gripper, time])):
            raise ControlError(
                f"reset: expected {self.robot.num_joints} finite joint positions, gripper and time, "
                f"got {q}, {gripper}, {time}; "
                "pass the measured state."
            )
        inside = np.clip(q, self.robot.lower, self.robot.upper)
        if float(np.abs(q - inside).max()) > self.config.start_tolerance:
            raise ControlError(
                f"reset: expected joints within their limits by {self.config.start_tolerance} rad, got {q}; "
                "move the arm inside first."
            )
        with self._lock:
            self._q, self._dq = inside, np.zeros_like(inside)
            pose = self._solver.kinematics.forward(inside)
            self._posture = inside
            self._anchor = resting(pose.tool[:3, 3].copy(), pose.tool[:3, :3].copy())
            self._reference = (self._anchor.position, self._anchor.rotation)
            self._trajectory: SmoothTrajectory | None = None
            self._pending: ActionTrajectory | None = None
            rate = self.config.gripper_rate or self.robot.gripper_rate
            self._gripper = GripperSchedule(gripper, rate, self.config.gripper_hysteresis)
            self._time = self._reference_time = float(time)
            self._last_start = -math.inf
            self._frozen, self._status = True, HOLD
            self._started, self._stopped = True, False
            self._record("reset", "started from the measured state")

    def emergency_stop(self) -> None:
        """Brake at the emergency acceleration and stay stopped until `reset`."""
        with self._lock:
            self._require_started()
            self._stopped = True
            self._pending = None
            self._gripper.hold()
            self._record("emergency_stop", "requested")

    def accept(self, trajectory: ActionTrajectory) -> str:
        """Take over a chunk, or leave everything as it was.

        The chunk is smoothed from the state that is being commanded. Poses whose time has passed are
        dropped; a chunk that starts in the future waits until its start, a newer one replaces it.

        Returns:
            `accepted`, `pending`, or a name that begins with `rejected` (see `validation`).

        Raises:
            ControlError: the controller was never reset.
        """
        with self._lock:
            self._require_started()
            status = self._judge(trajectory)
            if status == validation.ACCEPTED and trajectory.start_time > self._reference_time + 0.5 * self.dt:
                self._pending, self._last_start = trajectory, trajectory.start_time
                status = validation.PENDING
            elif status == validation.ACCEPTED:
                status = self._begin(trajectory)
            self.counters[status] += 1
            if status.startswith("rejected"):
                self._record(status, f"chunk starting at {trajectory.start_time} s refused, motion unchanged")
            return status

    def step(self, time: float) -> JointCommand:
        """Compute the command for the end of the tick that begins at `time` [s].

        A clock that runs backwards or is not finite is recorded; the arm then keeps its
        reference for this tick.

        Raises:
            ControlError: the controller was never reset.
        """
        with self._lock:
            self._require_started()
            self._advance_clock(time)
            if self._stopped:
                self._dq = self._solver.brake(self._q, self._dq, self._solver.emergency)
                self._status = EMERGENCY_STOP
            else:
                self._begin_pending()
                self._follow()
            self._q = np.clip(self._q + self._dq * self.dt, self.robot.lower, self.robot.upper)
            opening = self._gripper.step(self._reference_time, self.dt)
            return JointCommand(
                positions=self._q.copy(), velocities=self._dq.copy(), gripper=opening, status=self._status
            )

    def _require_started(self) -> None:
        if not self._started:
            raise ControlError("The controller has no state; expected a call of reset with the measured joints first.")

    def _record(self, code: str, detail: str) -> None:
        self.events.append(Event(time=self._time, code=code, detail=detail))

    def _judge(self, trajectory: ActionTrajectory) -> str:
        """Return `ACCEPTED` or why a chunk cannot be taken now."""
        status = validation.check_chunk(trajectory)
        if status != validation.ACCEPTED:
            return status
        if self._stopped:
            return validation.REJECTED_STOPPED
        if trajectory.start_time <= self._last_start + 1e-9:
            return validation.REJECTED_ORDER
        if trajectory.start_time + len(trajectory.positions) * trajectory.dt <= self._reference_time + 1e-6:
            return validation.REJECTED_EXPIRED
        return status

    def _begin(self, trajectory: ActionTrajectory) -> str:
        """Smooth a chunk from the commanded state and make it the reference; return its status name."""
        now = self._reference_time
        due = trajectory.start_time + (np.arange(len(trajectory.positions)) + 1.0) * trajectory.dt
        left = due > now + 1e-6
        quaternions = trajectory.quaternions.astype(np.float64)
        start = self._commanded_state()
        try:
            planned = smooth_chunk(
                start,
                now,
                trajectory.positions[left].astype(np.float64),
                quaternions[left],
                due[left],
                trajectory.dt,
                self.config.smoothing,
            )
        except ControlError:
            return validation.REJECTED_ROTATION
        self._trajectory, self._pending, self._frozen = planned, None, False
        self._reference = (start.position, start.rotation)
        self.counters["restarted"] += int(planned.start is not start)
        self._last_start = trajectory.start_time
        self._gripper.follow(planned.due, trajectory.gripper[left].astype(np.float64))
        self.counters["poses_dropped"] += int(np.count_nonzero(~left))
        self.counters["stretched"] += int(planned.stretch > 1.0)
        return validation.ACCEPTED

    def _begin_pending(self) -> None:
        if self._pending is not None and self._reference_time >= self._pending.start_time - 0.5 * self.dt:
            chunk, self._pending = self._pending, None
            status = self._begin(chunk)
            if status != validation.ACCEPTED:
                self.counters[status] += 1
                self._record(status, f"waiting chunk starting at {chunk.start_time} s refused, motion unchanged")

    def _commanded_state(self) -> ToolState:
        """Return the state that a new chunk continues: the reference, or the arm if that lags."""
        pose = self._solver.kinematics.forward(self._q)
        position, rotation = self._reference
        distance = float(np.linalg.norm(position - pose.tool[:3, 3]))
        angle = float(np.linalg.norm(rotation_log(rotation @ pose.tool[:3, :3].T)))
        if distance <= self.config.reanchor_distance and angle <= self.config.reanchor_angle:
            if self._trajectory is None:
                return self._anchor
            return self._trajectory.state(self._reference_time)
        self.counters["reanchored"] += 1
        self._record("reanchored", f"reference left behind by {distance * 1e3:.1f} mm, {angle:.3f} rad")
        twist = pose.jacobian @ self._dq
        return ToolState(
            position=pose.tool[:3, 3].copy(),
            rotation=pose.tool[:3, :3].copy(),
            velocity=twist[:3],
            angular_velocity=twist[3:],
            acceleration=np.zeros(3),
            angular_acceleration=np.zeros(3),
        )

    def _advance_clock(self, time: float) -> None:
        """Move to `time`, or keep the time and record where it is no successor of the last one."""
        if not math.isfinite(time) or time < self._time - 1e-9:
            self.counters["clock"] += 1
            self._record("clock", f"expected a time from {self._time} s on, got {time}")
            return
        self._time = float(time)

    def _follow(self) -> None:
        """Choose the velocity of this tick towards the reference at its end."""
        target_time = max(self._time + self.dt, self._reference_time)
        moving = self._trajectory is not None and self._reference_time < self._trajectory.end_time
        if self._trajectory is not None and not self._frozen:
            target = self._trajectory.pose(target_time)
        else:
            target = self._reference
        if self._frozen:
            self._dq = self._solver.brake(self._q, self._dq, self._solver.acceleration)
            self._reference_time = target_time
            return
        pose = self._solver.kinematics.forward(self._q)
        twist = self._wanted_twist(pose, target)
        tick = self._solver.solve(self._q, self._dq, pose, twist, self._posture if moving else None)
        self._dq, self._reference, self._reference_time = tick.velocity, target, target_time
        self.counters["limit"] += int(tick.limited)
        if tick.rung != NOMINAL:
            self.counters[tick.rung] += 1
            if self._status != EMERGENCY_BRAKE:
                self._record(tick.rung, "no motion within the nominal limits keeps clear")
        self._status = EMERGENCY_BRAKE if tick.rung != NOMINAL else (TRACK if moving else HOLD)
        if not moving:
            self._settle(pose, target_time)

    def _wanted_twist(self, pose: ArmPose, target: tuple[Array, Array]) -> Array:
        """Return `[6]`: the reference's motion in this tick and the pull towards it, within the caps."""
        position, rotation = self._reference
        tracking, caps = self.config.tracking, self.config.smoothing
        linear = (target[0] - position) / self.dt
        linear = linear + braked_gain(position - pose.tool[:3, 3], tracking.gain, tracking.correction_deceleration[0])
        angular = rotation_log(target[1] @ rotation.T) / self.dt
        angular = angular + braked_gain(
            rotation_log(rotation @ pose.tool[:3, :3].T), tracking.gain, tracking.correction_deceleration[1]
        )
        linear *= min(1.0, 1.1 * caps.linear_speed / max(float(np.linalg.norm(linear)), 1e-9))
        angular *= min(1.0, 1.1 * caps.angular_speed / max(float(np.linalg.norm(angular)), 1e-9))
        return np.concatenate([linear, angular])

    def _settle(self, pose: ArmPose, time: float) -> None:
        """Freeze an arm whose chunk is over, once it arrived or had its time; report an unreachable end."""
        assert self._trajectory is not None
        position, rotation = self._reference
        error = float(np.linalg.norm(position - pose.tool[:3, 3]))
        late = time > self._trajectory.end_time + self.config.hold_timeout
        close = error < 1e-5 and float(np.linalg.norm(rotation_log(rotation @ pose.tool[:3, :3].T))) < 1e-4
        slow = float(np.abs(self._dq).max()) < self.config.hold_speed
        if not (late or (slow and close)):
            return
        self._frozen = True
        if error > self.config.unreachable_distance:
            self._status = UNREACHABLE
            self.counters["unreachable"] += 1
            self._record("unreachable", f"stopped {error * 1e3:.1f} mm from the end of the chunk")
