"""Ways to make a simulated robot follow a trajectory: the simulator's own control, and our whole-body controller."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Protocol, cast

import numpy as np

from ...contracts import ActionTrajectory, Array, JointCommand, JointTrajectory, Policy, SignalTrajectory, Trajectory
from ...errors import ConfigError, PolicyError
from ...wbc.controller import ControllerConfig, WholeBodyController
from ...wbc.optimization import OptimizationConfig
from ...wbc.robot.robots import RobotModel
from ...wbc.smoothing import SmoothingConfig
from ...wbc.tracking import TrackingConfig
from ...wbc.validation import FAULTS, likely_cause
from ...wbc.waypoints import BlendConfig
from ..metrics.jerk import JerkMeter
from .simulator import JointSimulator, PoseSimulator, SignalSimulator, Simulator
from .timeline import Timeline

TICK_HZ = 200

_LIMIT_TOLERANCE = 1e-6
_POSITION_MARGIN = 0.03
"""How far inside the joint limits commands stay [rad], so that a pushed arm stays inside them too."""


_MOST_AHEAD = 0.06
"""How far ahead of the joints measured at the beginning of a control step its commands may be [rad]; at 0.1 an arm that
presses on is thrown back by the simulator's contacts, past its velocity limits."""

_RETREAT = 0.5
"""Share of the way that contacts push a joint beyond half the position margin, by which its commands retreat in each
control step: a smaller share lets it pass its limit, a greater one swings."""


RESPONSE = 20.0
"""How fast the arm closes in on a policy's poses [rad/s]. An arm that passes them on time has to catch up after each
change, and overshoots the next one; policies do best with one that hangs back, as CALVIN's does (docs/log.md)."""


def tool_poses(trajectory: Trajectory) -> ActionTrajectory:
    """Return a trajectory of tool poses, which the simulators here follow.

    Raises:
        PolicyError: the policy commands signals of another robot.
    """
    if isinstance(trajectory, ActionTrajectory):
        return trajectory
    got = "joint positions" if isinstance(trajectory, JointTrajectory) else f"{trajectory.values.shape[-1]} signals"
    raise PolicyError(
        f"policy: expected tool poses for this simulator, got {got} of another robot; evaluate it with "
        "`gr2 benchmark actions`, or train it on data of tool poses."
    )


def _jerk_report(meter: JerkMeter) -> dict[str, float]:
    return {} if meter.mean_square is None else {"joint_jerk": meter.mean_square}


class Control(Protocol):
    """Drives one simulator along trajectories, one control step at a time."""

    def reset(self) -> None:
        """Start again from the arm's present state."""

    def follow(self, trajectory: Trajectory, *, delay: float = 0.0) -> None:
        """Take over a new trajectory; its first pose is due after the next control step.

        Args:
            trajectory: seen from the present instant.
            delay: how long from now it arrives [s]. Until then the one before it is followed, and its last pose held;
                poses that lie in the past when it arrives are skipped. A trajectory that has not arrived by then is
                dropped for a newer one.

        Raises:
            PolicyError: it holds no tool poses.
        """

    def step(self) -> None:
        """Advance the simulator by one control step; the robot holds still where nothing has arrived yet."""

    def refusal(self) -> str:
        """Return why all trajectories since the last call were refused for faults of their own, else an empty text."""
        ...

    def report(self) -> dict[str, Any]:
        """Return what was counted since the control was made, as JSON values: `joint_jerk` [rad^2/s^6] among it, where
        the robot has joints."""
        ...


class PoseControl:
    """The simulator's own control of tool poses, one pose a control step."""

    def __init__(self, simulator: PoseSimulator) -> None:
        self.simulator = simulator
        self._jerk = JerkMeter(simulator.control_hz)
        self._joints = simulator if isinstance(simulator, JointSimulator) else None
        self._timeline = Timeline[ActionTrajectory](simulator.control_hz)
        self.reset()

    def reset(self) -> None:
        """Forget the trajectories."""
        self._held: tuple[Array, Array, float] | None = None
        self._timeline.reset()
        self._jerk.begin()

    def follow(self, trajectory: Trajectory, *, delay: float = 0.0) -> None:
        """Begin at the first pose of `trajectory`, or `delay` [s] later at the pose that is due then."""
        self._timeline.follow(tool_poses(trajectory), delay)

    def step(self) -> None:
        """Command the pose that is due next; the last one is held, and before the first one the tool stays."""
        due = self._timeline.advance()
        if due is None:
            self.simulator.apply(*self._hold())
        else:
            trajectory, row = due
            index = min(row, len(trajectory.positions) - 1)
            self.simulator.apply(
                trajectory.positions[index], trajectory.quaternions[index], float(trajectory.gripper[index])
            )
        self._see_joints()

    def refusal(self) -> str:
        """Return nothing: all trajectories are followed."""
        return ""

    def report(self) -> dict[str, Any]:
        """Return how jerkily the joints moved: the simulator's own control is not watched otherwise."""
        return _jerk_report(self._jerk)

    def _see_joints(self) -> None:
        if self._joints is not None:
            self._jerk.see(self._joints.joint_state()[0])
        elif len(joints := self.simulator.observe("", images=False).joint_positions):
            self._jerk.see(joints)

    def _hold(self) -> tuple[Array, Array, float]:
        """Return the tool pose and gripper at the first step after the reset."""
        if self._held is None:
            seen = self.simulator.observe("", images=False)
            self._held = (seen.tool_position, seen.tool_quaternion, seen.gripper_command)
        return self._held


class SignalControl:
    """A simulator whose actions are signals of its embodiment: the row of a trajectory that is due, each control step.

    The robot holds still before the first row arrives and after the last one.
    """

    def __init__(self, simulator: SignalSimulator) -> None:
        self.simulator = simulator
        self._has_steps = any(signal.reference == "delta" for signal in simulator.embodiment.action)
        self._timeline = Timeline[SignalTrajectory](simulator.control_hz)
        self.reset()

    def reset(self) -> None:
        """Forget the trajectories."""
        self._last: Array | None = None
        self._timeline.reset()

    def follow(self, trajectory: Trajectory, *, delay: float = 0.0) -> None:
        """Begin at the first row of `trajectory`, or `delay` [s] later at the row that is due then.

        Raises:
            PolicyError: it holds no signals, those of another robot, or steps at another rate than the simulator's.
        """
        name, signals = self.simulator.name, self.simulator.embodiment.action
        width, hz = self.simulator.embodiment.action_dim, self.simulator.control_hz
        got = trajectory.values.shape[1] if isinstance(trajectory, SignalTrajectory) else 0
        if not isinstance(trajectory, SignalTrajectory) or got != width:
            found = f"{got} numbers" if got else type(trajectory).__name__
            raise PolicyError(
                f"policy: expected a SignalTrajectory of {width} numbers a row for {name} "
                f"({', '.join(s.name for s in signals)}), got {found}; train it on data of this robot."
            )
        if self._has_steps and abs(trajectory.dt * hz - 1) > 1e-3:
            raise PolicyError(
                f"policy: expected rows of 1/{hz:g} s for {name}, whose actions are steps from row to row, got rows of "
                f"{trajectory.dt:g} s; answer at the simulator's rate."
            )
        self._timeline.follow(trajectory, delay)

    def step(self) -> None:
        """Carry out the row that is due next."""
        due = self._timeline.advance()
        if due is None or due[1] >= len(due[0].values):
            self.simulator.apply_action(self.simulator.hold_action(self._last))
        else:
            self._last = due[0].values[due[1]]
            self.simulator.apply_action(self._last)

    def refusal(self) -> str:
        """Return nothing: all trajectories are followed."""
        return ""

    def report(self) -> dict[str, Any]:
        """Return nothing: the joints are not watched."""
        return {}


class ActionControl(PoseControl):
    """The simulator's own actions as a policy gives them (`Simulator.apply_action`), one a control step.

    The policy answers a `SignalTrajectory` of one row and is asked at every step: nothing is converted, held or late.
    """

    def follow(self, trajectory: Trajectory, *, delay: float = 0.0) -> None:
        """Take over the action of the next control step.

        Raises:
            PolicyError: it is no action, or comes late.
        """
        if not isinstance(trajectory, SignalTrajectory) or delay:
            raise PolicyError("policy: expected one action of the simulator's own at once, got something else.")
        self._action = trajectory.values[0]

    def step(self) -> None:
        """Carry out the action."""
        apply_action: Callable[[Array], None] = self.simulator.apply_action  # type: ignore[attr-defined]
        apply_action(self._action)
        self._see_joints()


class LimitCounter:
    """Counts how often commanded or measured joints pass a limit of the robot."""

    def __init__(self, robot: RobotModel) -> None:
        self._lower, self._upper, self._velocity = robot.lower, robot.upper, robot.velocity
        self.ticks = self.position_violations = self.velocity_violations = 0
        self.min_position_margin, self.max_velocity_ratio = np.inf, 0.0

    def see(self, positions: np.ndarray, velocities: np.ndarray) -> None:
        """Check instants: positions `[m j]` [rad], velocities `[m j]` [rad/s]."""
        margins = np.minimum(positions - self._lower, self._upper - positions).min(1)
        ratios = (np.abs(velocities) / self._velocity).max(1)
        self.ticks += len(margins)
        self.position_violations += int(np.count_nonzero(margins < -_LIMIT_TOLERANCE))
        self.velocity_violations += int(np.count_nonzero(ratios > 1 + _LIMIT_TOLERANCE))
        self.min_position_margin = min(self.min_position_margin, float(margins.min()))
        self.max_velocity_ratio = max(self.max_velocity_ratio, float(ratios.max()))

    def as_dict(self) -> dict[str, float]:
        """Return the counts under the names of the report."""
        return {
            "ticks": self.ticks,
            "position_violations": int(self.position_violations),
            "velocity_violations": int(self.velocity_violations),
            "min_position_margin_rad": round(float(self.min_position_margin), 6),
            "max_velocity_ratio": round(self.max_velocity_ratio, 6),
        }


class WbcControl:
    """Our controller at 200 Hz; its commands are interpolated to the rate of the simulator's joint commands."""

    def __init__(self, simulator: JointSimulator, config: ControllerConfig | None = None) -> None:
        self.simulator = simulator
        self.substeps = round(simulator.joint_hz / simulator.control_hz)
        robot = simulator.arm
        inside = replace(robot, lower=robot.lower + _POSITION_MARGIN, upper=robot.upper - _POSITION_MARGIN)
        self.controller = WholeBodyController(inside, config or controller_config())
        self._inside, self._retreat = inside, np.zeros((2, robot.num_joints))
        self.commanded, self.measured = LimitCounter(robot), LimitCounter(robot)
        self._jerk = JerkMeter(simulator.control_hz)
        self.rejected: Counter[str] = Counter()
        self._faults, self._taken = Counter[str](), False  # since the last question
        self._control_steps = 0
        self._ticks: list[JointCommand] = []
        self._coming: tuple[float, ActionTrajectory] | None = None  # with the time of its arrival [s]

    def reset(self) -> None:
        """Start at rest from the measured joints."""
        joints, gripper = self.simulator.joint_state()[0], self.simulator.gripper_command
        self.controller.reset(joints, gripper, 0.0)
        self._control_steps, self._coming = 0, None
        self._retreat[:] = 0.0
        self._jerk.begin()
        still = np.zeros_like(joints)
        self._ticks = [JointCommand(positions=joints, velocities=still, gripper=gripper, status="reset")]

    def follow(self, trajectory: Trajectory, *, delay: float = 0.0) -> None:
        """Hand the trajectory over, re-timed to this control's own clock, at once or in the tick after it arrives."""
        now = self._control_steps / self.simulator.control_hz
        self._receive(now)
        self._coming = (now + delay, replace(tool_poses(trajectory), start_time=now, arm=""))
        self._receive(now)

    def _receive(self, time: float) -> None:
        """Hand over what has arrived by `time` [s]."""
        if self._coming is not None and self._coming[0] <= time + 1e-9:
            chunk, self._coming = self._coming[1], None
            verdict = self.controller.accept(chunk)
            if verdict in FAULTS:
                self._faults[likely_cause(verdict, chunk)] += 1
            self._taken |= verdict not in FAULTS
            if verdict.startswith("rejected"):
                self.rejected[verdict] += 1

    def step(self) -> None:
        """Advance by one control step, each joint command interpolated at its end."""
        begin = self._control_steps * self.substeps
        measured = self.simulator.joint_state()[0]
        wanted = [self._at((begin + i + 1) / self.simulator.joint_hz) for i in range(self.substeps)]
        velocities = np.stack([command[1] for command in wanted])
        # Commands are taken back to where the arm can be: a jammed arm is not pressed on and on.
        least, greatest = measured - _MOST_AHEAD, measured + _MOST_AHEAD
        positions = np.minimum(np.maximum(np.stack([command[0] for command in wanted]), least), greatest)
        positions = self._within(positions, measured)
        self.simulator.step_joints(
            [
                JointCommand(positions=q, velocities=dq, gripper=tick.gripper, status=tick.status)
                for q, dq, (_, _, tick) in zip(positions, velocities, wanted, strict=True)
            ]
        )
        self.commanded.see(positions, velocities)
        positions, velocities = self.simulator.joint_state()
        self.measured.see(positions[None], velocities[None])
        self._jerk.see(positions)
        self._control_steps += 1

    def _within(self, positions: Array, measured: Array) -> Array:
        """Return commands `[n j]` [rad], taken back from limits that contacts push the `measured` joints towards."""
        lower, upper = self._inside.lower, self._inside.upper
        beyond = np.stack([lower - measured, measured - upper]) - 0.5 * _POSITION_MARGIN
        self._retreat = np.maximum(0.0, self._retreat + _RETREAT * beyond)
        if not np.any(self._retreat):
            return positions
        low, high = np.where(self._retreat > 0.0, self._retreat, -np.inf)
        kept: Array = np.minimum(np.maximum(positions, lower + low), upper - high)
        return kept

    def refusal(self) -> str:
        """Return why all chunks since the last call were refused for faults of their own, else an empty text."""
        faults, taken = self._faults, self._taken
        self._faults, self._taken = Counter(), False
        return "" if taken or not faults else faults.most_common(1)[0][0]

    def report(self) -> dict[str, Any]:
        """Return the counts of commanded and measured joints, the controller's own, and the joint jerk."""
        return {
            "commanded": self.commanded.as_dict(),
            "measured": self.measured.as_dict(),
            "counters": dict(self.controller.counters),
            "rejected": dict(self.rejected),
        } | _jerk_report(self._jerk)

    def _at(self, time: float) -> tuple[Array, Array, JointCommand]:
        """Return the positions `[j]` [rad] and velocities `[j]` [rad/s] at `time` [s], between two ticks, and the tick
        whose gripper and status hold then."""
        position = time * TICK_HZ
        before = math.floor(position + 1e-9)
        share = max(0.0, position - before)
        while len(self._ticks) <= before + (share > 1e-9):
            tick = len(self._ticks) / TICK_HZ
            self._receive(tick - 1e-6)  # what arrives at a tick is followed from the next one on
            self._ticks.append(self.controller.step(tick))
        low = self._ticks[before]
        if share <= 1e-9:
            return low.positions, low.velocities, low
        high = self._ticks[before + 1]
        return (
            (1 - share) * low.positions + share * high.positions,
            (1 - share) * low.velocities + share * high.velocities,
            high,
        )


def controller_config() -> ControllerConfig:
    """Return the controller's settings for table-top tasks: PlayTable's demonstrations reach 0.6 m/s and 2 rad/s.

    A policy that turns the hand faster is not slowed down: the cap on rotation is beyond what the joints can do.
    """
    return ControllerConfig(
        smoothing=SmoothingConfig(
            linear_speed=1.0, angular_speed=6.0, linear_acceleration=10.0, angular_acceleration=30.0
        ),
        # A policy's chunks are not blended, since grasps forgive little. The elbow is drawn back to the
        # neutral posture about as fast as CALVIN's inverse kinematics does it: what a policy learned from images of
        # that arm fails under another posture (docs/log.md).
        optimization=OptimizationConfig(
            jerk_weight=1e-8,
            blend=BlendConfig(weight=0.0),
            response=RESPONSE,
            posture_weight=0.006,
            posture_step=0.3,
        ),
        # CALVIN's inverse kinematics keeps the elbow near the neutral posture; so must the redundancy here, or
        # it drifts towards the elbow's limit within a chain.
        tracking=TrackingConfig(posture_weight=0.05, posture_gain=3.0, velocity_scale=0.68),
        gripper_rate=60.0,
        # The policies were measured with a gripper that follows every command.
        gripper_dwell=0.0,
    )


def controller_fingerprint() -> str:
    """Return the beginning of the SHA-256 of our controller's settings."""
    settings = (controller_config(), TICK_HZ, _POSITION_MARGIN, _MOST_AHEAD, _RETREAT)
    return hashlib.sha256(repr(settings).encode()).hexdigest()[:16]


def make_control(mode: str, simulator: Simulator, policy: Policy | None = None) -> Control:
    """Return our whole-body controller for the mode "wbc", the simulator's own control for any other: of tool poses, or
    of the signals that it takes.

    Args:
        mode: "wbc", or another name.
        simulator: what it drives.
        policy: one that answers the simulator's own actions says so by `simulator_actions = True`; they are carried
            out as they are.

    Raises:
        ConfigError: our controller in a simulator that takes no joint commands, or for such a policy.
    """
    if isinstance(simulator, SignalSimulator) and mode != "wbc":
        return SignalControl(simulator)
    if getattr(policy, "simulator_actions", False):
        if mode == "wbc":
            raise ConfigError(
                f"--control wbc: expected a policy that answers trajectories, got one that answers {simulator.name}'s "
                "own actions; choose the simulator's own control."
            )
        return ActionControl(cast(PoseSimulator, simulator))
    if mode != "wbc":
        return PoseControl(cast(PoseSimulator, simulator))
    if not isinstance(simulator, JointSimulator):
        raise ConfigError(
            f"--control wbc: expected a simulator that takes joint commands, got {simulator.name}; choose its own "
            "control, or another simulator (--backend gr2)."
        )
    return WbcControl(simulator)
