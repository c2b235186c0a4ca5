"""Two ways to make a simulated arm follow a trajectory: the simulator's own control, and our whole-body controller."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, Protocol

import numpy as np

from ...contracts import ActionTrajectory, JointCommand, JointTrajectory, Trajectory
from ...errors import ConfigError, PolicyError
from ...wbc.controller import ControllerConfig, WholeBodyController
from ...wbc.optimization import OptimizationConfig
from ...wbc.robot.robots import RobotModel
from ...wbc.smoothing import SmoothingConfig
from ...wbc.tracking import TrackingConfig
from ...wbc.waypoints import BlendConfig
from .simulator import JointSimulator, Simulator

TICK_HZ = 200

_LIMIT_TOLERANCE = 1e-6
_POSITION_MARGIN = 0.03
"""How far inside the joint limits commands stay [rad], so that a pushed arm stays inside them too."""


_MOST_AHEAD = 0.06
"""How far ahead of the joints measured at the beginning of a control step its commands may be [rad]; at 0.1 an arm that
presses on is thrown back by the simulator's contacts, past its velocity limits."""


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


class Control(Protocol):
    """Drives one simulator along trajectories, one control step at a time."""

    def reset(self) -> None:
        """Start again from the arm's present state."""

    def follow(self, trajectory: Trajectory) -> None:
        """Take over a new trajectory; its first pose is due after the next control step.

        Raises:
            PolicyError: it holds no tool poses.
        """

    def step(self) -> None:
        """Advance the simulator by one control step."""

    def report(self) -> dict[str, Any]:
        """Return what was counted since the control was made, as JSON values; empty where nothing is."""
        ...


class PoseControl:
    """The simulator's own control of tool poses, one pose a control step."""

    def __init__(self, simulator: Simulator) -> None:
        self.simulator = simulator
        self._trajectory: ActionTrajectory | None = None
        self._next = 0

    def reset(self) -> None:
        """Forget the trajectory."""
        self._trajectory = None

    def follow(self, trajectory: Trajectory) -> None:
        """Begin at the first pose of `trajectory`."""
        self._trajectory, self._next = tool_poses(trajectory), 0

    def step(self) -> None:
        """Command the pose that is due next; the last one is held."""
        trajectory = self._trajectory
        assert trajectory is not None, "follow() comes before step()"
        self._next += 1
        due = math.ceil(self._next / self.simulator.control_hz / trajectory.dt - 1e-6)  # poses keep their own clock
        index = min(max(due, 1), len(trajectory.positions)) - 1
        self.simulator.apply(
            trajectory.positions[index], trajectory.quaternions[index], float(trajectory.gripper[index])
        )

    def report(self) -> dict[str, Any]:
        """Return nothing: the simulator's own control is not watched."""
        return {}


class LimitCounter:
    """Counts how often commanded or measured joints pass a limit of the robot."""

    def __init__(self, robot: RobotModel) -> None:
        self.robot = robot
        self.ticks = self.position_violations = self.velocity_violations = 0
        self.min_position_margin, self.max_velocity_ratio = np.inf, 0.0

    def see(self, positions: np.ndarray, velocities: np.ndarray) -> None:
        """Check one instant: positions `[j]` [rad], velocities `[j]` [rad/s]."""
        margin = float(np.minimum(positions - self.robot.lower, self.robot.upper - positions).min())
        ratio = float((np.abs(velocities) / self.robot.velocity).max())
        self.ticks += 1
        self.position_violations += margin < -_LIMIT_TOLERANCE
        self.velocity_violations += ratio > 1 + _LIMIT_TOLERANCE
        self.min_position_margin = min(self.min_position_margin, margin)
        self.max_velocity_ratio = max(self.max_velocity_ratio, ratio)

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
        self.commanded, self.measured = LimitCounter(robot), LimitCounter(robot)
        self._control_steps = 0
        self._ticks: list[JointCommand] = []

    def reset(self) -> None:
        """Start at rest from the measured joints."""
        joints, gripper = self.simulator.joint_state()[0], self.simulator.gripper_command
        self.controller.reset(joints, gripper, 0.0)
        self._control_steps = 0
        still = np.zeros_like(joints)
        self._ticks = [JointCommand(positions=joints, velocities=still, gripper=gripper, status="reset")]

    def follow(self, trajectory: Trajectory) -> None:
        """Hand the trajectory over, re-timed to this control's own clock."""
        trajectory = tool_poses(trajectory)
        now = self._control_steps / self.simulator.control_hz
        self.controller.accept(
            ActionTrajectory(
                positions=trajectory.positions,
                quaternions=trajectory.quaternions,
                gripper=trajectory.gripper,
                dt=trajectory.dt,
                start_time=now,
            )
        )

    def step(self) -> None:
        """Advance by one control step, each joint command interpolated at its end."""
        begin = self._control_steps * self.substeps
        measured = self.simulator.joint_state()[0]
        ends = [(begin + i + 1) / self.simulator.joint_hz for i in range(self.substeps)]
        commands = [self._yielding(self._at(end), measured) for end in ends]
        self.simulator.step_joints(commands)
        for command in commands:
            self.commanded.see(command.positions, command.velocities)
        self.measured.see(*self.simulator.joint_state())
        self._control_steps += 1

    def report(self) -> dict[str, Any]:
        """Return the counts of commanded and measured joints, and the controller's own."""
        return {
            "commanded": self.commanded.as_dict(),
            "measured": self.measured.as_dict(),
            "counters": dict(self.controller.counters),
        }

    @staticmethod
    def _yielding(command: JointCommand, measured: np.ndarray) -> JointCommand:
        """Return the command, taken back to where the arm can be: a jammed arm is not pressed on and on."""
        near = np.clip(command.positions, measured - _MOST_AHEAD, measured + _MOST_AHEAD)
        return replace(command, positions=near)

    def _at(self, time: float) -> JointCommand:
        position = time * TICK_HZ
        before = int(np.floor(position + 1e-9))
        share = max(0.0, position - before)
        while len(self._ticks) <= before + (share > 1e-9):
            self._ticks.append(self.controller.step(len(self._ticks) / TICK_HZ))
        low = self._ticks[before]
        if share <= 1e-9:
            return low
        high = self._ticks[before + 1]
        return JointCommand(
            positions=(1 - share) * low.positions + share * high.positions,
            velocities=(1 - share) * low.velocities + share * high.velocities,
            gripper=high.gripper,
            status=high.status,
        )


def controller_config() -> ControllerConfig:
    """Return the controller's settings for table-top tasks: PlayTable's demonstrations reach 0.6 m/s and 2 rad/s."""
    return ControllerConfig(
        smoothing=SmoothingConfig(
            linear_speed=1.0, angular_speed=2.5, linear_acceleration=10.0, angular_acceleration=30.0
        ),
        # A policy's chunks are followed to the letter, since grasps forgive little. The elbow is drawn back to the
        # neutral posture about as fast as CALVIN's inverse kinematics does it: what a policy learned from images of
        # that arm fails under another posture (docs/log.md).
        optimization=OptimizationConfig(
            jerk_weight=1e-8, blend=BlendConfig(weight=0.0), posture_weight=0.006, posture_step=0.3
        ),
        # CALVIN's inverse kinematics keeps the elbow near the neutral posture; so must the redundancy here, or
        # it drifts towards the elbow's limit within a chain.
        tracking=TrackingConfig(posture_weight=0.05, posture_gain=3.0, velocity_scale=0.68),
        gripper_rate=60.0,
    )


def make_control(mode: str, simulator: Simulator) -> Control:
    """Return our whole-body controller for the mode "wbc", the simulator's own control for any other.

    Raises:
        ConfigError: our controller in a simulator that takes no joint commands.
    """
    if mode != "wbc":
        return PoseControl(simulator)
    if not isinstance(simulator, JointSimulator):
        raise ConfigError(
            f"--control wbc: expected a simulator that takes joint commands, got {simulator.name}; choose its own "
            "control, or another simulator (--backend gr2)."
        )
    return WbcControl(simulator)
