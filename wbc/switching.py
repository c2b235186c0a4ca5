"""Chunks one after another: which one is followed, which one waits, and how the arm switches between them."""

from __future__ import annotations

import math
import threading
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ..contracts import ControlTrajectory
from . import validation
from .chunks import Chunk, ToolChunk, after, chunk_of, held
from .clock import CLOCK_SLACK, ReferenceClock
from .configuration import ControllerConfig
from .gripper import GripperSchedule
from .planning import ChunkPlanner, Motion, MotionState, Smoothed
from .reference import StreamedPose
from .robot.robots import RobotModel
from .robot.transforms import Array, matrix_from_quaternion, pose_matrix
from .splines import JointSpline
from .status import EventLog
from .supervision import Supervision
from .tracking import TickSolver

ON_PLAN = 1e-5
"""Distance from a plan [rad] below which the commands are on it, and the next chunk continues the plan itself."""
NEARLY_ON_PLAN = 1e-3
"""Distance from a plan that was made ahead of time [rad] beyond which it is made again."""
MIN_PROGRESS = 0.001
"""How much nearer to the last target, in [m] or [rad], another plan must bring the arm to be worth following."""
ENOUGH_ANGLE = 0.003
"""Error of a joint [rad] below which a chunk of joint positions is not planned on."""
CARRY_ON_PERIOD = 0.1
"""Time between the repeated last targets of such a plan [s]."""


@dataclass(slots=True, eq=False)
class Commanded:
    """The last command: q, dq, ddq: `[j]` [rad], [rad/s], [rad/s^2]; posture: `[j]` that spare freedom drifts to."""

    q: Array
    dq: Array
    ddq: Array
    posture: Array


class _Waiting(NamedTuple):
    """A chunk that takes over at `switch` [s]; `start` [s] is its own; motion: its plan, None where not yet planned."""

    switch: float
    start: float
    motion: Motion | None
    chunk: Chunk


class ChunkQueue:
    """Accepts chunks, plans them, and switches from one to the next without a jump of the commands.

    motion: what the ticks follow; None where nothing is left to follow.
    chunk: the targets of `motion`.
    gripper: the opening along the chunk.
    blocked: whether the arm is still on its way back within its limits; chunks wait until it is there.
    """

    def __init__(
        self,
        robot: RobotModel,
        config: ControllerConfig,
        solver: TickSolver,
        clock: ReferenceClock,
        supervision: Supervision,
        log: EventLog,
        lock: threading.RLock,
    ) -> None:
        """Share clock, supervision, log and `lock` with the controller; call `reset` before anything else."""
        self.robot, self.config = robot, config
        self._solver, self._clock, self._supervision, self._log = solver, clock, supervision, log
        self._planner = ChunkPlanner(robot, solver.kinematics, config, log)
        self._lock, self._planning = lock, threading.Lock()

    def reset(self, commanded: Commanded, opening: float) -> None:
        """Forget all chunks; the arm stands as `commanded`, the gripper at `opening`."""
        self.commanded = commanded
        self.motion: Motion | None = None
        self.chunk: Chunk | None = None
        self._next: _Waiting | None = None
        self._rest: Chunk | None = None
        rate = self.config.gripper_rate or self.robot.gripper_rate
        self.gripper = GripperSchedule(opening, rate, self.config.gripper_hysteresis, self.config.gripper_dwell)
        self._nearest, self._last_start = math.inf, -math.inf
        self._closed = self.blocked = False

    @property
    def is_last(self) -> bool:
        """Whether nothing follows the present motion."""
        return self._next is None and self._rest is None

    def drop(self) -> None:
        """Forget the motion and what would follow it; the gripper keeps its target."""
        self.motion = self._next = self._rest = None
        self.gripper.hold()

    def close(self) -> None:
        """Drop everything and accept no chunk until `reset`."""
        self.drop()
        self._closed = True

    def accept(self, trajectory: ControlTrajectory) -> str:
        """Take over a chunk, or leave everything as it was; see `WholeBodyController.accept`."""
        # `_planning` lets one chunk in at a time. `_lock` also holds back the ticks, so it is released while a chunk
        # is planned ahead of time. What the plan assumed may then have changed, and is checked again.
        with self._planning:
            with self._lock:
                verdict, reason = self._judge(trajectory)
                kept = self._clock.reference, self._clock.lag
                if verdict == validation.ACCEPTED:
                    start = float(trajectory.start_time)
                    if self._clock.lag > 0.0 and start <= self._clock.now + self._clock.dt + CLOCK_SLACK:
                        # The plan is run through late. A chunk that is due would wait for that lag, and the next one
                        # replace it, again and again.
                        self._clock.catch_up()
                    switch = max(self._clock.reference + self.config.lead, start)
                    state = self.state_at(switch)
                    chunk = chunk_of(trajectory, self.robot).anchored(state.q, state.time)
                    reason = self._jump(chunk, state)
                    if reason:
                        self._clock.reference, self._clock.lag = kept
                        return self._noted(validation.REJECTED_JUMP, trajectory, reason)
                    # Only a plan, or rest, says what will be commanded at the switch. An arm that is off its plan
                    # has but its present state, which is older than the switch.
                    unknown = state.time < switch
                    if self.blocked or (unknown and start > self._clock.reference + 0.5 * self._clock.dt):
                        # Too early to plan: the chunk waits, and is planned at its start.
                        self._next, verdict = _Waiting(start, start, None, chunk), validation.PENDING
                        self._last_start = start
                    elif unknown or switch == self._clock.reference:
                        # Due now: plan while the ticks wait.
                        verdict = self._take_over(state, chunk, start)
                        if verdict != validation.ACCEPTED:
                            self._clock.reference, self._clock.lag = kept
                if verdict != validation.ACCEPTED or state.time == self._clock.reference:
                    return self._noted(verdict, trajectory, reason)
            planned = self._plan(state, chunk)
            with self._lock:
                if self._closed:
                    verdict = validation.REJECTED_STOPPED
                elif planned is None:
                    verdict = validation.REJECTED_ROTATION
                elif state.time < self._clock.reference - CLOCK_SLACK or state.earlier is not self._plan_followed():
                    # The switch is past, or the arm left the plan that this one begins on: from the present state,
                    # then, and only smoothed, since the optimization would be late once more.
                    self._log.counters["late"] += 1
                    verdict = self._take_over(self.state_at(self._clock.reference), chunk, start, late=True)
                else:
                    self._next = _Waiting(state.time, start, planned, chunk)
                    self._last_start = start
                    ahead = start > self._clock.reference + self._clock.dt
                    verdict = validation.PENDING if ahead else validation.ACCEPTED
                return self._noted(verdict, trajectory)

    def switch(self) -> None:
        """Begin a waiting chunk whose time has come, or the next window of a long one."""
        now = self._clock.reference
        if self._next is not None and now >= self._next.switch - CLOCK_SLACK:
            _, start, motion, chunk = self._next
            self._next, self._nearest = None, math.inf
            if chunk.ends_before(now):
                detail = f"chunk starting at {start} s ended waiting"
                self._log.record(self._clock.now, validation.REJECTED_EXPIRED, detail)
            elif motion is None or (isinstance(motion, JointSpline) and not self._continues(motion, now)):
                state = self.state_at(now)
                self._take_over(state, chunk.anchored(state.q, now), start)
            else:
                self._begin(motion, chunk, start)
        elif self.chunk is None or self.motion is None:
            return
        elif self._rest is not None and now >= self.chunk.due[-1] - 0.5 * self.config.window:
            # Half a window before the end of the present one, so that its coming to rest is never reached.
            rest = self._rest
            if self._take_over(self.state_at(now), rest, self._last_start) != validation.ACCEPTED:
                self._rest = None
        elif self._rest is None and now >= self.chunk.due[-1] and isinstance(self.motion, JointSpline):
            self._carry_on(self.motion, self.chunk, now)

    def state_at(self, time: float) -> MotionState:
        """Return what will be commanded at `time`, or what is being commanded where that is all one can know."""
        plan, last = self._plan_followed(), self.commanded
        if plan is not None:
            q, dq, ddq = plan.state(time)
            return MotionState(time=time, q=q, dq=dq, ddq=ddq, earlier=plan)
        if self.motion is None and not np.any(last.dq):
            zero = np.zeros_like(last.q)
            return MotionState(time=time, q=last.q, dq=zero, ddq=zero, earlier=None)
        bound = self._solver.acceleration
        ddq = np.minimum(np.maximum(last.ddq, -bound), bound)
        motion = self.motion if isinstance(self.motion, JointSpline) else None
        # `dq` is the mean velocity of the last tick; half a tick later the arm is at `q`.
        dq = last.dq + 0.5 * self._clock.dt * ddq
        return MotionState(time=self._clock.reference, q=last.q, dq=dq, ddq=ddq, earlier=motion)

    def _judge(self, trajectory: ControlTrajectory) -> tuple[str, str]:
        """Return `ACCEPTED` or why a chunk cannot be taken now, and the fault of its own in words, if it has one."""
        verdict = validation.check_chunk(trajectory, self.robot)
        if verdict != validation.ACCEPTED:
            return verdict, validation.likely_cause(verdict, trajectory)
        if self._closed:
            return validation.REJECTED_STOPPED, ""
        if self.motion is None and self._supervision.error > self.config.supervision.restart_jump:
            return validation.REJECTED_STATE, ""
        if trajectory.start_time <= self._last_start + CLOCK_SLACK:
            return validation.REJECTED_ORDER, ""
        end = trajectory.start_time + len(trajectory.positions) * trajectory.dt
        if end <= self._clock.reference + self.config.lead + 1e-6:
            return validation.REJECTED_EXPIRED, ""
        far = validation.out_of_reach(trajectory, self.robot, self.config.guard)
        return (validation.REJECTED_REACH, far) if far else (verdict, "")

    def _jump(self, chunk: Chunk, state: MotionState) -> str:
        """Return a sentence on a pose that no tool that is commanded as `state` says could be near, else nothing."""
        if not isinstance(chunk, ToolChunk) or chunk.ends_before(state.time):
            return ""
        ahead = after(chunk, state.time)
        tool = self._solver.kinematics.forward(state.q).tool[:3, 3]
        speed, guard = self.config.smoothing.linear_speed, self.config.guard
        return validation.jump_in(ahead.positions, ahead.due, tool, state.time, speed, guard)

    def _noted(self, verdict: str, trajectory: ControlTrajectory, reason: str = "") -> str:
        """Count a verdict; a refusal is an event."""
        if verdict.startswith("rejected"):
            start = getattr(trajectory, "start_time", None)
            cause = f": {reason}" if reason else ""
            self._log.record(self._clock.now, verdict, f"chunk starting at {start} s refused, motion unchanged{cause}")
        else:
            self._log.counters[verdict] += 1
        return verdict

    def _plan_followed(self) -> JointSpline | None:
        """Return the plan that the commands are on, None where there is none or they are off it."""
        motion = self.motion
        if not isinstance(motion, JointSpline) or self._clock.lag > 0.0:
            return None
        on_plan = float(np.abs(motion.positions(self._clock.reference) - self.commanded.q).max()) < ON_PLAN
        return motion if on_plan else None

    def _plan(self, state: MotionState, chunk: Chunk, *, late: bool = False) -> Motion | None:
        """Plan a chunk, only smoothed where it comes late; None where even that refuses it."""
        streamed = self._streamed(state, chunk)
        if streamed is not None:
            self._log.counters["streamed"] += 1
            return streamed
        elapsed = state.time - self._solver.scene_time
        collisions = self._solver.watch.collisions
        return self._planner.plan(state, chunk, self.commanded.posture, collisions, elapsed, late=late)

    def _streamed(self, state: MotionState, chunk: Chunk) -> StreamedPose | None:
        """Return the way to the next pose of a stream; None where the chunk and the one before are no stream."""
        before, most = self.chunk, self.config.stream_period
        if not (isinstance(chunk, ToolChunk) and isinstance(before, ToolChunk)) or self.motion is None:
            return None
        if len(chunk.due) != 1 or len(before.due) != 1 or not 0.0 < chunk.due[0] - before.due[0] <= most + CLOCK_SLACK:
            return None
        tool = self._solver.kinematics.forward(state.q).tool
        if isinstance(self.motion, StreamedPose):
            # From where the reference is, not the arm: what the arm lags behind stays for the ticks to make up.
            tool = pose_matrix(*self.motion.pose(state.time))
        goal = pose_matrix(chunk.positions[0], matrix_from_quaternion(chunk.quaternions[0]))
        return StreamedPose(start_time=state.time, end_time=float(chunk.due[0]), before=tool, after=goal)

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
        left = after(chunk, self._clock.reference)
        self._log.counters["poses_dropped"] += len(chunk.due) - len(left.due)
        shown = max(1, int(np.searchsorted(left.due, self._clock.reference + self.config.window)))
        self._rest = left if shown < len(left.due) else None
        self.motion, self._clock.lag = motion, 0.0
        if start != self._last_start:
            self._nearest = math.inf
        self.chunk, self._last_start = left.picked(slice(shown)), start
        due = left.due
        if isinstance(motion, Smoothed) and motion.stretch > 1.0:
            self._log.counters["stretched"] += 1
            due = motion.due if self._rest is None else due
        if left.gripper is None:
            self.gripper.hold()
        else:
            self.gripper.follow(due, left.gripper)

    def _continues(self, plan: JointSpline, now: float) -> bool:
        """Tell whether a plan made ahead of time still begins where the arm is."""
        return float(np.abs(plan.positions(now) - self.commanded.q).max()) < NEARLY_ON_PLAN

    def _carry_on(self, plan: JointSpline, chunk: Chunk, now: float) -> None:
        """Plan on to the last target of a chunk that was too fast for the arm, as long as that brings it nearer."""
        missed = chunk.miss(self._solver.kinematics, plan.positions(plan.end_time), -1)
        enough = ENOUGH_ANGLE if missed.joints else self.config.unreachable_distance
        if missed.size < enough or missed.size > self._nearest - MIN_PROGRESS:
            return
        self._nearest = missed.size
        due = now + CARRY_ON_PERIOD * np.arange(1.0, 6.0)
        self._take_over(self.state_at(now), held(chunk, due), self._last_start)
