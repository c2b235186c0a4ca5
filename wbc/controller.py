"""The whole-body controller: chunks of tool poses or joints in, joint commands out, every limit kept at every tick."""

from __future__ import annotations

import math
import threading
from collections import Counter, deque
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from ..contracts import ControlTrajectory, JointCommand
from ..errors import ControlError
from . import status, validation
from .chunks import Chunk, Miss, after, chunk_of, held
from .collision import CollisionConfig
from .configuration import ControllerConfig
from .fast import make_collisions
from .gripper import GripperSchedule
from .planning import ChunkPlanner, Motion, MotionState, Smoothed
from .reference import SmoothTrajectory
from .robot.robots import Capsule, RobotModel
from .splines import JointSpline
from .status import Event, EventLog
from .supervision import Supervision
from .tracking import NOMINAL, Tick, TickSolver, wanted_twist

ON_PLAN = 1e-5
"""Distance from a plan [rad] below which the commands are on it, and the next chunk continues the plan itself."""
NEARLY_ON_PLAN = 1e-3
"""Distance from a plan that was made ahead of time [rad] beyond which it is made anew."""
CATCH_UP, MOST_CATCH_UP = 0.003, 0.02
"""Share of its distance to the clock by which the reference gains in a tick, and most of a tick that it gains."""
CLOCK_SLACK, DEFAULT = 1e-9, ControllerConfig()
MIN_PROGRESS = 0.001
"""How much nearer to the last target, in [m] or [rad], another plan must bring the arm to be worth following."""
ENOUGH_ANGLE = 0.003
"""Error of a joint [rad] below which a chunk of joint positions is not planned on."""
STANDING_TIME = 0.25
"""How far ahead [s] a plan is looked at to see whether it asks for motion."""
CARRY_ON_PERIOD = 0.1
"""Time between the repeated last targets of such a plan [s]."""


class WholeBodyController:
    """Follows chunks of tool poses or of joint positions with one arm.

    All methods may be called from several threads; a tick waits for a chunk only while `accept` swaps it in (with a
    `lead`) or plans it (without).
    """

    def __init__(self, robot: RobotModel, config: ControllerConfig = DEFAULT) -> None:
        """Prepare for `robot`; call `reset` with the measured state before anything else."""
        self.robot, self.config = robot, config
        self.dt = 1.0 / config.tick_hz
        self._log = EventLog(config.max_events)
        self._solver = TickSolver(robot, config.tracking, config.collision, self.dt, config.backend)
        self._planner = ChunkPlanner(robot, self._solver.kinematics, config, self._log)
        self._supervision = Supervision(config.supervision, self.dt)
        self._lock, self._planning = threading.RLock(), threading.Lock()
        self._collision, self._scene_time = config.collision, 0.0
        self._speed_caps = (1.1 * config.smoothing.linear_speed, 1.1 * config.smoothing.angular_speed)
        self._started, self._stop = False, ""

    @property
    def events(self) -> deque[Event]:
        """The latest events, changes of status among them."""
        return self._log.events

    @property
    def counters(self) -> Counter[str]:
        """How often each code occurred."""
        return self._log.counters

    @property
    def status(self) -> str:
        """The status of the last tick, one of `status.STATUSES`."""
        return self._log.status

    @property
    def residual(self) -> float:
        """Distance [m] of the tool from the last target of the chunk, where that turned out unreachable; else 0."""
        return self._residual if self._log.status == status.UNREACHABLE else 0.0

    def reset(self, joint_positions: npt.ArrayLike, gripper: float, time: float) -> None:
        """Start from the measured state, at rest; also releases a stop.

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
            self._q, self._dq, self._ddq = inside, np.zeros_like(inside), np.zeros_like(inside)
            self._posture = inside
            self._motion: Motion | None = None
            self._chunk: Chunk | None = None
            self._next: tuple[float, float, Motion | None, Chunk] | None = None
            self._rest: Chunk | None = None
            rate = self.config.gripper_rate or self.robot.gripper_rate
            self._gripper = GripperSchedule(gripper, rate, self.config.gripper_hysteresis)
            self._time = self._reference_time = float(time)
            self._lag = self._residual = 0.0
            self._nearest = math.inf
            self._last_start = -math.inf
            self._stop, self._started, self._together = "", True, False
            self._supervision.reset()
            self._log.status = status.HOLD
            self._log.record(self._time, "reset", "started from the measured state")

    def emergency_stop(self) -> None:
        """Brake at the emergency acceleration and stay stopped until `reset`."""
        self._halt(status.EMERGENCY_STOP, "requested")

    def update_scene(self, collision: CollisionConfig, time: float) -> None:
        """Replace the obstacles; those with a velocity are carried on from `time` [s]."""
        with self._lock:
            if not math.isfinite(time):
                raise ControlError(f"update_scene: expected a finite time [s], got {time}.")
            self._collision, self._scene_time = collision, float(time)
            self._solver.keep_clear_of(make_collisions(self.robot, collision, self.config.backend))

    def attach(self, capsule: Capsule) -> None:
        """Keep a grasped object clear too: a capsule in the tool frame [m]; `detach` ends it."""
        self.update_scene(replace(self._collision, attached=capsule), self._scene_time)

    def detach(self) -> None:
        """Forget the grasped object."""
        self.update_scene(replace(self._collision, attached=None), self._scene_time)

    def accept(self, trajectory: ControlTrajectory) -> str:
        """Take over a chunk, or leave everything as it was.

        The chunk is planned from the state that is being commanded. Targets whose time has passed are
        dropped; a chunk that starts in the future waits until its start, a newer one replaces it. Joints without stops
        take the nearest turn.

        Returns:
            `accepted`, `pending`, or a name that begins with `rejected` (see `validation`).

        Raises:
            ControlError: the controller was never reset.
        """
        with self._planning:
            with self._lock:
                self._require_started()
                verdict = self._judge(trajectory)
                if verdict == validation.ACCEPTED:
                    start = float(trajectory.start_time)
                    switch = max(self._reference_time + self.config.lead, start)
                    state = self._state_at(switch)
                    chunk = chunk_of(trajectory, self.robot).anchored(state.q, state.time)
                    unknown = state.time < switch
                    if unknown and start > self._reference_time + 0.5 * self.dt:
                        self._next, verdict = (start, start, None, chunk), validation.PENDING
                        self._last_start = start
                    elif unknown or switch == self._reference_time:
                        verdict = self._take_over(state, chunk, start)
                if verdict != validation.ACCEPTED or state.time == self._reference_time:
                    return self._noted(verdict, trajectory)
            planned = self._plan(state, chunk)
            with self._lock:
                if self._stop:
                    verdict = validation.REJECTED_STOPPED
                elif planned is None:
                    verdict = validation.REJECTED_ROTATION
                elif state.time < self._reference_time - CLOCK_SLACK or state.earlier is not self._plan_followed():
                    self.counters["late"] += 1
                    verdict = self._take_over(self._state_at(self._reference_time), chunk, start, late=True)
                else:
                    self._next = (state.time, start, planned, chunk)
                    self._last_start = start
                    verdict = validation.PENDING if start > self._reference_time + self.dt else validation.ACCEPTED
                return self._noted(verdict, trajectory)

    def step(self, time: float, measured: npt.ArrayLike | None = None) -> JointCommand:
        """Compute the command for the end of the tick that begins at `time` [s].

        A clock that runs backwards or is not finite is recorded; the arm then keeps its
        reference for this tick.

        Args:
            time: [s].
            measured: `[j]` measured joints [rad] that answer the last command, for supervision; None for none.

        Raises:
            ControlError: the controller was never reset.
        """
        with self._lock:
            self._require_started()
            self._advance_clock(time)
            reason = "" if self._stop else self._supervision.see(self._q, measured, self._time, self._log)
            if reason:
                self._halt(status.PROTECTIVE_STOP, reason)
            before = self._dq
            if self._stop:
                self._dq = self._solver.brake(self._q, self._dq, self._solver.emergency, self._together)
                self._reference_time = max(self._time + self.dt, self._reference_time)
            else:
                self._switch()
                self._follow()
            self._q = np.clip(self._q + self._dq * self.dt, self.robot.lower, self.robot.upper)
            self._ddq = (self._dq - before) / self.dt
            opening = self._gripper.step(self._reference_time, self.dt)
            return JointCommand(
                positions=self._q.copy(), velocities=self._dq.copy(), gripper=opening, status=self._log.status
            )

    def _require_started(self) -> None:
        if not self._started:
            raise ControlError("The controller has no state; expected a call of reset with the measured joints first.")

    def _halt(self, name: str, reason: str) -> None:
        with self._lock:
            self._require_started()
            if not self._stop:
                elapsed = self._time - self._scene_time
                self._together = self._solver.watch.blocks_separate_stops(
                    self._q, self._dq, self._solver.emergency, elapsed
                )
            self._stop, self._next, self._motion, self._rest = name, None, None, None
            self._gripper.hold()
            self._log.become(name, self._time, reason)

    def _noted(self, verdict: str, trajectory: ControlTrajectory) -> str:
        """Count a verdict; a refusal is an event."""
        if verdict.startswith("rejected"):
            start = getattr(trajectory, "start_time", None)
            self._log.record(self._time, verdict, f"chunk starting at {start} s refused, motion unchanged")
        else:
            self.counters[verdict] += 1
        return verdict

    def _judge(self, trajectory: ControlTrajectory) -> str:
        """Return `ACCEPTED` or why a chunk cannot be taken now."""
        verdict = validation.check_chunk(trajectory, self.robot)
        if verdict != validation.ACCEPTED:
            return verdict
        if self._stop:
            return validation.REJECTED_STOPPED
        if self._motion is None and self._supervision.error > self.config.supervision.restart_jump:
            return validation.REJECTED_STATE
        if trajectory.start_time <= self._last_start + CLOCK_SLACK:
            return validation.REJECTED_ORDER
        end = trajectory.start_time + len(trajectory.positions) * trajectory.dt
        if end <= self._reference_time + self.config.lead + 1e-6:
            return validation.REJECTED_EXPIRED
        return verdict

    def _plan_followed(self) -> JointSpline | None:
        """Return the plan that the commands are on, None where there is none or they are off it."""
        motion = self._motion
        if not isinstance(motion, JointSpline) or self._lag > 0.0:
            return None
        on_plan = float(np.abs(motion.positions(self._reference_time) - self._q).max()) < ON_PLAN
        return motion if on_plan else None

    def _state_at(self, time: float) -> MotionState:
        """Return what will be commanded at `time`, or what is being commanded where that is all one can know."""
        plan = self._plan_followed()
        if plan is not None:
            q, dq, ddq = plan.state(time)
            return MotionState(time=time, q=q, dq=dq, ddq=ddq, earlier=plan)
        if self._motion is None and not np.any(self._dq):
            zero = np.zeros_like(self._q)
            return MotionState(time=time, q=self._q, dq=zero, ddq=zero, earlier=None)
        bound = self._solver.acceleration
        ddq = np.minimum(np.maximum(self._ddq, -bound), bound)
        motion = self._motion if isinstance(self._motion, JointSpline) else None
        dq = self._dq + 0.5 * self.dt * ddq
        return MotionState(time=self._reference_time, q=self._q, dq=dq, ddq=ddq, earlier=motion)

    def _plan(self, state: MotionState, chunk: Chunk, *, late: bool = False) -> Motion | None:
        """Plan a chunk, only smoothed where it comes late; None where even that refuses it."""
        elapsed = state.time - self._scene_time
        return self._planner.plan(state, chunk, self._posture, self._solver.watch.collisions, elapsed, late=late)

    def _take_over(self, state: MotionState, chunk: Chunk, start: float, *, late: bool = False) -> str:
        """Plan and switch at once; return the verdict."""
        if chunk.ends_before(state.time):
            return validation.REJECTED_EXPIRED
        motion = self._plan(state, chunk, late=late)
        if motion is None:
            return validation.REJECTED_ROTATION
        self._begin(motion, chunk, start)
        return validation.ACCEPTED

    def _begin(self, motion: Motion, chunk: Chunk, start: float) -> None:
        """Make a planned motion the one that is followed."""
        left = after(chunk, self._reference_time)
        self.counters["poses_dropped"] += len(chunk.due) - len(left.due)
        shown = max(1, int(np.searchsorted(left.due, self._reference_time + self.config.window)))
        self._rest = left if shown < len(left.due) else None
        self._motion, self._lag = motion, 0.0
        if start != self._last_start:
            self._nearest = math.inf
        self._chunk, self._last_start = left.picked(slice(shown)), start
        due = left.due
        if isinstance(motion, Smoothed) and motion.stretch > 1.0:
            self.counters["stretched"] += 1
            due = motion.due if self._rest is None else due
        if left.gripper is None:
            self._gripper.hold()
        else:
            self._gripper.follow(due, left.gripper)

    def _switch(self) -> None:
        """Begin a waiting chunk whose time has come, or the next window of a long one."""
        now = self._reference_time
        if self._next is not None and now >= self._next[0] - CLOCK_SLACK:
            _, start, motion, chunk = self._next
            self._next, self._nearest = None, math.inf
            if chunk.ends_before(now):
                self._log.record(self._time, validation.REJECTED_EXPIRED, f"chunk starting at {start} s ended waiting")
            elif motion is None or (isinstance(motion, JointSpline) and not self._continues(motion, now)):
                state = self._state_at(now)
                self._take_over(state, chunk.anchored(state.q, now), start)
            else:
                self._begin(motion, chunk, start)
        elif self._chunk is None or self._motion is None:
            return
        elif self._rest is not None and now >= self._chunk.due[-1] - 0.5 * self.config.window:
            rest = self._rest
            if self._take_over(self._state_at(now), rest, self._last_start) != validation.ACCEPTED:
                self._rest = None
        elif self._rest is None and now >= self._chunk.due[-1] and isinstance(self._motion, JointSpline):
            self._carry_on(self._motion, self._chunk, now)

    def _continues(self, plan: JointSpline, now: float) -> bool:
        """Return whether a plan made ahead of time still begins where the arm is."""
        return float(np.abs(plan.positions(now) - self._q).max()) < NEARLY_ON_PLAN

    def _carry_on(self, plan: JointSpline, chunk: Chunk, now: float) -> None:
        """Plan on to the last target of a chunk that was too fast for the arm, as long as that brings it nearer."""
        missed = chunk.miss(self._solver.kinematics, plan.positions(plan.end_time), -1)
        enough = ENOUGH_ANGLE if missed.joints else self.config.unreachable_distance
        if missed.size < enough or missed.size > self._nearest - MIN_PROGRESS:
            return
        self._nearest = missed.size
        due = now + CARRY_ON_PERIOD * np.arange(1.0, 6.0)
        self._take_over(self._state_at(now), held(chunk, due), self._last_start)

    def _advance_clock(self, time: float) -> None:
        """Move to `time`, or keep the time and record where it is no successor of the last one."""
        if not math.isfinite(time) or time < self._time - CLOCK_SLACK:
            self._log.record(self._time, "clock", f"expected a time from {self._time} s on, got {time}")
            return
        if time - self._time > self.config.supervision.max_gap and self._motion is not None:
            self._log.record(self._time, "watchdog", f"no tick for {time - self._time:.3f} s, chunk dropped")
            self._motion = self._next = self._rest = None
            self._gripper.hold()
        self._time = float(time)

    def _follow(self) -> None:
        """Choose the velocity of this tick towards the reference at its end."""
        scale = self._supervision.scale
        self._lag += self.dt * (1.0 - scale)
        target_time = self._time + self.dt - self._lag
        if self._motion is not None:
            late = target_time - (self._reference_time + scale * self.dt)
            gain = min(max(CATCH_UP * late, -MOST_CATCH_UP * self.dt), MOST_CATCH_UP * self.dt)
            target_time = self._reference_time + scale * self.dt + gain
        target_time = max(target_time, self._reference_time)
        motion = self._motion
        elapsed = self._time + self.dt - self._scene_time
        if motion is None:
            tick = self._solver.follow(self._q, self._dq, np.zeros_like(self._q), elapsed)
        elif isinstance(motion, JointSpline):
            now, then = motion.positions(self._reference_time), motion.positions(target_time)
            tick = self._solver.follow(self._q, self._dq, self._solver.pulled(self._q, now, then), elapsed)
        else:
            tick = self._follow_tool(motion, target_time, elapsed)
        self._dq, self._reference_time = tick.velocity, target_time
        self._judge_tick(tick, target_time)

    def _follow_tool(self, motion: SmoothTrajectory, target_time: float, elapsed: float) -> Tick:
        """Follow a smoothed chunk in tool space."""
        pose = self._solver.kinematics.forward(self._q)
        now, target = motion.pose(self._reference_time), motion.pose(target_time)
        twist = wanted_twist(pose.tool, now, target, self.dt, self.config.tracking, self._speed_caps)
        posture = self._posture if target_time < motion.end_time else None
        return self._solver.solve(self._q, self._dq, pose, twist, posture, elapsed)

    def _judge_tick(self, tick: Tick, time: float) -> None:
        """Set the status after a tick; end a motion that arrived or cannot."""
        self.counters["limit"] += int(tick.limited)
        standing = float(np.abs(self._dq).max()) < self.config.hold_speed
        moving = self._motion is not None and time < self._motion.end_time
        if tick.rung != NOMINAL:
            self._log.become(status.EMERGENCY_BRAKE, self._time, "no motion within the nominal limits keeps clear")
            self.counters[tick.rung] += 1
        elif self._motion is None:
            if self._log.status != status.UNREACHABLE:
                self._log.become(status.HOLD, self._time)
        elif standing and (self._log.status == status.UNREACHABLE or not moving or self._standing_still()):
            self._judge_rest(time)
        elif isinstance(self._motion, Smoothed) and self.config.optimization is not None:
            self._log.become(status.DEGRADED, self._time, "follows the smoothed chunk")
        else:
            self._log.become(status.SLOWED if self._supervision.slowed else status.TRACK, self._time)

    def _standing_still(self) -> bool:
        """Return whether the plan, too, asks for hardly any motion."""
        assert self._motion is not None
        if not isinstance(self._motion, JointSpline):
            return False
        ahead = self._motion.many(self._reference_time + np.array([0.5, 1.0]) * STANDING_TIME)
        return bool(np.abs(ahead - self._q).max() < self.config.hold_speed * STANDING_TIME)

    def _is_far(self, missed: Miss) -> bool:
        """Return whether an arm that misses a target by that much did not reach it."""
        config = self.config
        return missed.size > (config.unreachable_angle if missed.joints else config.unreachable_distance)

    def _judge_rest(self, time: float) -> None:
        """Decide what a standing arm is: on its way, arrived, or unable to arrive."""
        assert self._motion is not None and self._chunk is not None
        due = min(int(np.searchsorted(self._chunk.due, time - 1e-9)), len(self._chunk.due) - 1)
        missed = self._chunk.miss(self._solver.kinematics, self._q, due)
        over = time >= self._motion.end_time
        arrived = missed.arrived
        if isinstance(self._motion, JointSpline):
            arrived = float(np.abs(self._motion.positions(time) - self._q).max()) < 1e-6
        given_up = time > self._motion.end_time + self.config.hold_timeout
        if self._is_far(missed):
            self._residual = missed.distance
            self._log.become(status.UNREACHABLE, self._time, str(missed))
        elif over:
            self._log.become(status.HOLD, self._time)
        else:
            self._log.become(status.TRACK, self._time)
        if over and (arrived or given_up) and self._next is None and self._rest is None:
            self._motion = None
