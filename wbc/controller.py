"""The whole-body controller: chunks of tool poses or joints in, joint commands out, every limit kept at every tick."""

from __future__ import annotations

import math
import threading
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from ..contracts import ControlTrajectory, JointCommand
from ..errors import ControlError
from . import status
from .chunks import NO_MISS, Miss
from .clock import ReferenceClock
from .collision import CollisionConfig
from .configuration import ControllerConfig
from .fast import make_collisions
from .other_arms import OtherArm
from .planning import Motion, Smoothed
from .reference import SmoothTrajectory, StreamedPose
from .robot.robots import Capsule, RobotModel
from .robot.transforms import Array
from .splines import JointSpline
from .status import Event, EventLog
from .supervision import Supervision
from .switching import ChunkQueue, Commanded
from .tracking import NOMINAL, Tick, TickSolver, wanted_twist

DEFAULT = ControllerConfig()
LOOK_PERIOD = 0.02
"""Least time [s] between two looks at the tracking error, which cost as much as a tick."""
STANDING_TIME = 0.25
"""How far ahead [s] a plan is evaluated to decide whether it asks for motion."""


class WholeBodyController:
    """Follows chunks of tool poses or of joint positions with one arm.

    All methods may be called from several threads. With a `lead`, a tick waits only while `accept` swaps a chunk in;
    without one, also while the chunk is planned.
    """

    def __init__(self, robot: RobotModel, config: ControllerConfig = DEFAULT) -> None:
        """Prepare for `robot`; call `reset` with the measured state before anything else."""
        self.robot, self.config = robot, config
        self.dt = 1.0 / config.tick_hz
        self._log = EventLog(config.max_events)
        self._caps = config.smoothing.linear_speed, config.smoothing.angular_speed
        self._solver = TickSolver(robot, config.tracking, config.collision, self.dt, config.backend, self._caps)
        self._supervision = Supervision(config.supervision, self.dt, np.isinf(robot.upper))
        self._clock, self._lock = ReferenceClock(self.dt), threading.RLock()
        self._queue = ChunkQueue(robot, config, self._solver, self._clock, self._supervision, self._log, self._lock)
        self._collision = config.collision
        self._others: tuple[OtherArm, ...] = ()
        self._started, self._stop = False, ""
        if robot.unwatched_pairs and config.collision.self_collision:
            links = sorted({(robot.capsules[a].link, robot.capsules[b].link) for a, b in robot.unwatched_pairs})
            self._log.record(
                0.0, "unwatched_pairs", f"capsules of links {links} always overlap; they are not kept apart"
            )

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

    @property
    def tracking_error(self) -> Miss:
        """How far the arm was from the last target that was due, looked at no more often than `LOOK_PERIOD`."""
        return self._error

    def reset(self, joint_positions: npt.ArrayLike, gripper: float, time: float) -> None:
        """Start from the measured state, at rest; also releases a stop.

        An arm that begins a few degrees beyond a limit moves back within first (status `returning`).

        Args:
            joint_positions: `[j]` measured [rad].
            gripper: measured opening, 0 to 1.
            time: [s].

        Raises:
            ControlError: numbers that are not finite, of another shape, or joints farther beyond their limits than
                `start_tolerance`.
        """
        q = np.array(joint_positions, dtype=np.float64)
        if q.shape != (self.robot.num_joints,) or not np.all(np.isfinite([*q, gripper, time])):
            raise ControlError(
                f"reset: expected {self.robot.num_joints} finite joint positions, gripper and time, "
                f"got {q}, {gripper}, {time}; "
                "pass the measured state."
            )
        beyond = self._solver.beyond(q)
        if float(np.abs(beyond).max()) > self.config.start_tolerance:
            raise ControlError(_too_far_beyond(self.robot, q, beyond, self.config.start_tolerance))
        with self._lock:
            still = np.zeros_like(q)
            self._arm = Commanded(q=q, dq=still, ddq=np.zeros_like(q), posture=q - beyond)
            self._clock.reset(time)
            self._queue.reset(self._arm, gripper)
            self._queue.blocked = bool(np.any(beyond))
            self._residual, self._error, self._seen_due, self._next_look = 0.0, NO_MISS, -math.inf, -math.inf
            self._stop, self._started, self._together = "", True, False
            self._supervision.reset()
            self._log.status = status.HOLD
            self._log.record(self._clock.now, "reset", "started from the measured state")

    def emergency_stop(self) -> None:
        """Brake at the emergency acceleration and stay stopped until `reset`."""
        self._halt(status.EMERGENCY_STOP, "requested")

    def update_scene(self, collision: CollisionConfig, time: float) -> None:
        """Replace the obstacles; those with a velocity are extrapolated from `time` [s]."""
        with self._lock:
            if not math.isfinite(time):
                raise ControlError(f"update_scene: expected a finite time [s], got {time}.")
            scene = make_collisions(self.robot, collision, self.config.backend, self._others)
            self._collision = collision
            self._solver.keep_clear_of(scene, float(time))

    def watch(self, others: Sequence[OtherArm]) -> None:
        """Keep clear of other arms, too, wherever they are `seen`; see `ArmGroup`, which tells each of the others."""
        with self._lock:
            self._others = tuple(others)
            self.update_scene(self._collision, self._solver.scene_time)

    def show(self, arm: OtherArm) -> None:
        """Let another arm's controller know where this one may be: on its way to a stop from the last command."""
        with self._lock:
            self._require_started()
            watch = self._solver.watch
            arm.see(self._solver.kinematics, watch.collisions.arm, watch.way_to_stop(self._arm.q, self._arm.dq))

    @property
    def num_capsules(self) -> int:
        """Number of the arm's capsules, a grasped object among them."""
        return len(self._solver.watch.collisions.arm.radii)

    def attach(self, capsule: Capsule) -> None:
        """Keep a grasped object clear too: a capsule in the tool frame [m]; `detach` ends it."""
        self.update_scene(replace(self._collision, attached=capsule), self._solver.scene_time)

    def detach(self) -> None:
        """Forget the grasped object."""
        self.update_scene(replace(self._collision, attached=None), self._solver.scene_time)

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
        self._require_started()
        return self._queue.accept(trajectory)

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
            self._advance(time)
            arm = self._arm
            reason = "" if self._stop else self._supervision.see(arm.q, measured, self._clock.now, self._log)
            if reason:
                self._halt(status.PROTECTIVE_STOP, reason)
            before = arm.dq
            if self._stop:
                arm.dq = self._solver.brake(arm.q, arm.dq, self._solver.emergency, self._together)
                self._clock.run_on()
            elif self._queue.blocked:
                self._move_back_within()
            else:
                self._queue.switch()
                self._follow()
            lower, upper = self.robot.lower, self.robot.upper
            if self._queue.blocked:
                lower, upper = np.minimum(lower, arm.q), np.maximum(upper, arm.q)
            arm.q = np.clip(arm.q + arm.dq * self.dt, lower, upper)
            arm.ddq = (arm.dq - before) / self.dt
            return JointCommand(
                positions=arm.q.copy(),
                velocities=arm.dq.copy(),
                gripper=self._queue.gripper.step(self._clock.reference, self.dt),
                status=self._log.status,
                position_error=self._error.distance,
                rotation_error=self._error.angle,
            )

    def _require_started(self) -> None:
        if not self._started:
            raise ControlError("The controller has no state; expected a call of reset with the measured joints first.")

    def _halt(self, name: str, reason: str) -> None:
        with self._lock:
            self._require_started()
            if not self._stop:
                # Joints that stop each as soon as it can leave the line in joint space that the ticks kept clear. The
                # shorter stop is taken only where it stays clear, too.
                elapsed = self._clock.now - self._solver.scene_time
                self._together = self._solver.watch.blocks_separate_stops(
                    self._arm.q, self._arm.dq, self._solver.emergency, elapsed
                )
            self._stop = name
            self._queue.close()
            self._log.become(name, self._clock.now, reason)

    def _advance(self, time: float) -> None:
        """Move to `time`; record a clock that runs backwards, and drop the chunk after a gap."""
        before = self._clock.now
        step = self._clock.advance(time)
        if step is None:
            self._log.record(before, "clock", f"expected a time from {before} s on, got {time}")
        elif step > self.config.supervision.max_gap and self._queue.motion is not None:
            self._log.record(before, "watchdog", f"no tick for {step:.3f} s, chunk dropped")
            self._queue.drop()

    def _move_back_within(self) -> None:
        """Choose the velocity of this tick for an arm that began beyond a limit; note when it is within."""
        arm, now = self._arm, self._clock.now
        if not np.any(self._solver.beyond(arm.q)):
            self._queue.blocked = False
            self._log.record(now, "returned", "all joints are within their limits")
            self._queue.switch()
            self._follow()
            return
        tick = self._solver.follow(
            arm.q, arm.dq, self._solver.back_within(arm.q), now + self.dt - self._solver.scene_time
        )
        arm.dq, self._clock.reference = tick.velocity, self._clock.target(1.0, following=False)
        if tick.rung == NOMINAL:
            self._log.become(status.RETURNING, now, "began beyond a joint's limit")
        else:
            self._log.become(status.EMERGENCY_BRAKE, now, "no motion within the nominal limits keeps clear")
            self.counters[tick.rung] += 1

    def _follow(self) -> None:
        """Choose the velocity of this tick towards the reference at its end."""
        self._look_at_error()
        arm, motion = self._arm, self._queue.motion
        target_time = self._clock.target(self._supervision.scale, following=motion is not None)
        elapsed = self._clock.now + self.dt - self._solver.scene_time
        if motion is None:
            tick = self._solver.follow(arm.q, arm.dq, np.zeros_like(arm.q), elapsed)
        elif isinstance(motion, JointSpline):
            now, then = motion.positions(self._clock.reference), motion.positions(target_time)
            share = self._solver.cap.share(arm.q, (then - now) / self.dt)
            if share < 1.0:
                # A plan that is too fast for the tool is run through more slowly: the path stays what it is.
                target_time = self._clock.slower(target_time, share)
                then = motion.positions(target_time)
                self.counters["capped"] += 1
            tick = self._solver.follow(arm.q, arm.dq, self._solver.pulled(arm.q, now, then), elapsed)
        else:
            tick = self._follow_tool(motion, target_time, elapsed)
        arm.dq, self._clock.reference = tick.velocity, target_time
        self._judge_tick(tick, target_time)

    def _follow_tool(self, motion: SmoothTrajectory | StreamedPose, target_time: float, elapsed: float) -> Tick:
        """Follow a smoothed chunk or a streamed pose in tool space."""
        pose = self._solver.kinematics.forward(self._arm.q)
        now, target = motion.pose(self._clock.reference), motion.pose(target_time)
        twist = wanted_twist(pose.tool, now, target, self.dt, self.config.tracking, self._caps)
        posture = self._arm.posture if target_time < motion.end_time else None
        return self._solver.solve(self._arm.q, self._arm.dq, pose, twist, posture, elapsed)

    def _look_at_error(self) -> None:
        """Compare the arm with the last target that was due, when there is a new one or it was reached late."""
        chunk, now = self._queue.chunk, self._clock.reference
        if chunk is None or now < self._next_look:
            return
        passed = int(np.searchsorted(chunk.due, now + 1e-9)) - 1
        over = self._queue.motion is not None and passed == len(chunk.due) - 1
        if passed < 0 or (chunk.due[passed] == self._seen_due and not over):
            return
        self._error = chunk.miss(self._solver.kinematics, self._arm.q, passed)
        self._seen_due, self._next_look = float(chunk.due[passed]), now + LOOK_PERIOD

    def _following(self) -> str:
        """Return the status of an arm that follows an optimized plan."""
        if self._supervision.slowed:
            return status.SLOWED
        error, config = self._error, self.config
        # An arm with fewer than six joints is judged by the position: no rotation was promised.
        turned = error.angle > config.track_angle and (error.joints or self.robot.num_joints >= 6)
        near = error.distance <= config.track_distance and not turned
        return status.TRACK if near else status.DEVIATING

    def _judge_tick(self, tick: Tick, time: float) -> None:
        """Set the status after a tick; end a motion that arrived or cannot."""
        motion, now = self._queue.motion, self._clock.now
        self.counters["limit"] += int(tick.limited)
        standing = float(np.abs(self._arm.dq).max()) < self.config.hold_speed
        moving = motion is not None and time < motion.end_time
        if tick.rung != NOMINAL:
            self._log.become(status.EMERGENCY_BRAKE, now, "no motion within the nominal limits keeps clear")
            self.counters[tick.rung] += 1
        elif motion is None:
            if self._log.status != status.UNREACHABLE:
                self._log.become(status.HOLD, now)
        elif standing and (self._log.status == status.UNREACHABLE or not moving or self._stands_still(motion)):
            self._judge_rest(motion, time)
        elif isinstance(motion, Smoothed) and self.config.optimization is not None:
            self._log.become(status.DEGRADED, now, "follows the smoothed chunk")
        else:
            self._log.become(self._following(), now, "" if self._error is NO_MISS else str(self._error))

    def _stands_still(self, motion: Motion) -> bool:
        """Tell whether the plan, too, asks for hardly any motion."""
        if not isinstance(motion, JointSpline):
            return False
        ahead = motion.many(self._clock.reference + np.array([0.5, 1.0]) * STANDING_TIME)
        return bool(np.abs(ahead - self._arm.q).max() < self.config.hold_speed * STANDING_TIME)

    def _is_far(self, missed: Miss) -> bool:
        """Return whether an arm that misses a target by that much did not reach it."""
        config = self.config
        return missed.size > (config.unreachable_angle if missed.joints else config.unreachable_distance)

    def _judge_rest(self, motion: Motion, time: float) -> None:
        """Decide what a standing arm is: on its way, arrived, or unable to arrive."""
        chunk, now = self._queue.chunk, self._clock.now
        assert chunk is not None
        due = min(int(np.searchsorted(chunk.due, time - 1e-9)), len(chunk.due) - 1)
        missed = chunk.miss(self._solver.kinematics, self._arm.q, due)
        over = time >= motion.end_time
        arrived = missed.arrived
        if isinstance(motion, JointSpline):
            arrived = float(np.abs(motion.positions(time) - self._arm.q).max()) < 1e-6
        given_up = time > motion.end_time + self.config.hold_timeout
        if self._is_far(missed):
            self._residual = missed.distance
            self._log.become(status.UNREACHABLE, now, str(missed))
        elif over:
            self._log.become(status.HOLD, now)
        else:
            self._log.become(self._following(), now)
        if over and (arrived or given_up) and self._queue.is_last:
            self._queue.motion = None


def _too_far_beyond(robot: RobotModel, q: Array, beyond: Array, tolerance: float) -> str:
    """Return a sentence on joints `q` `[j]` that lie too far `beyond` `[j]` their limits [rad]."""
    worst = int(np.abs(beyond).argmax())
    low, high = math.degrees(robot.lower[worst]), math.degrees(robot.upper[worst])
    return (
        f"reset: joint {worst + 1} stands at {math.degrees(q[worst]):.1f} degrees, "
        f"{math.degrees(abs(beyond[worst])):.1f} beyond its limits of {low:.1f} to {high:.1f}; expected at most "
        f"{math.degrees(tolerance):.1f} (start_tolerance), from where the arm moves back by itself. Check the unit and "
        "the zero of the joint, or move the arm inside by hand."
    )
