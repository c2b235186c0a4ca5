"""Two ways to make the simulated arm follow a trajectory: CALVIN's own control, and our whole-body controller."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal, Protocol

import numpy as np

from ...contracts import ActionTrajectory, JointCommand
from ...errors import ConfigError
from ...wbc.controller import ControllerConfig, WholeBodyController
from ...wbc.optimization import OptimizationConfig
from ...wbc.robot.robots import panda
from ...wbc.smoothing import SmoothingConfig
from ...wbc.tracking import TrackingConfig
from ...wbc.waypoints import BlendConfig
from ..playtable.environment import CONTROL_HZ, SIM_HZ, SUBSTEPS, PlayTable
from ..playtable.robot import LOWER_LIMITS, UPPER_LIMITS, VELOCITY_LIMITS
from ..playtable.scenes import ROBOT_BASE
from .world import World

ControlMode = Literal["wbc", "calvin"]
TICK_HZ = 200
TOOL_Z = 0.14
"""Distance from the Panda's hand to CALVIN's tool point [m]."""

_LIMIT_TOLERANCE = 1e-6
_POSITION_MARGIN = 0.03
"""How far inside the joint limits commands stay [rad], so that a pushed arm stays inside them too."""


_MOST_AHEAD = 0.06
"""How far ahead of the joints measured at the beginning of a control step its commands may be [rad]; at 0.1 an arm that
presses on is thrown back by the simulator's contacts, past its velocity limits."""


class Control(Protocol):
    """Drives one environment along trajectories, one control step at a time."""

    def reset(self) -> None:
        """Start anew from the arm's present state."""

    def follow(self, trajectory: ActionTrajectory) -> None:
        """Take over a new trajectory; its first pose is due after the next control step."""

    def step(self) -> None:
        """Advance the simulator by one control step (1/30 s)."""


class CalvinControl:
    """CALVIN's absolute Cartesian action: one inverse-kinematics call a step, joint position motors."""

    def __init__(self, env: World) -> None:
        self.env = env
        self._trajectory: ActionTrajectory | None = None
        self._next = 0

    def reset(self) -> None:
        """Forget the trajectory."""
        self._trajectory = None

    def follow(self, trajectory: ActionTrajectory) -> None:
        """Begin at the first pose of `trajectory`."""
        self._trajectory, self._next = trajectory, 0

    def step(self) -> None:
        """Command the next pose; the last one is held."""
        trajectory = self._trajectory
        assert trajectory is not None, "follow() comes before step()"
        index = min(self._next, len(trajectory.positions) - 1)
        self._next += 1
        position = trajectory.positions[index] + ROBOT_BASE
        self.env.step_pose(position, trajectory.quaternions[index], float(trajectory.gripper[index]))


class LimitCounter:
    """Counts how often commanded or measured joints pass a limit of the robot."""

    def __init__(self) -> None:
        self.ticks = self.position_violations = self.velocity_violations = 0
        self.min_position_margin, self.max_velocity_ratio = np.inf, 0.0

    def see(self, positions: np.ndarray, velocities: np.ndarray) -> None:
        """Check one instant: positions `[7]` [rad], velocities `[7]` [rad/s]."""
        margin = float(np.minimum(positions - LOWER_LIMITS, UPPER_LIMITS - positions).min())
        ratio = float((np.abs(velocities) / VELOCITY_LIMITS).max())
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
    """Our controller at 200 Hz; its commands are interpolated to the 240 Hz of the physics."""

    def __init__(self, env: PlayTable, config: ControllerConfig | None = None) -> None:
        self.env = env
        robot = panda(tool_z=TOOL_Z)
        inside = replace(robot, lower=robot.lower + _POSITION_MARGIN, upper=robot.upper - _POSITION_MARGIN)
        self.controller = WholeBodyController(inside, config or playtable_config())
        self.commanded, self.measured = LimitCounter(), LimitCounter()
        self._control_steps = 0
        self._ticks: list[JointCommand] = []

    def reset(self) -> None:
        """Start at rest from the measured joints."""
        joints = self.env.robot.joint_state()[0]
        self.controller.reset(joints, self.env.robot.gripper_command, 0.0)
        self._control_steps, self._ticks = 0, []
        still = np.zeros_like(joints)
        self._ticks.append(
            JointCommand(positions=joints, velocities=still, gripper=self.env.robot.gripper_command, status="reset")
        )

    def follow(self, trajectory: ActionTrajectory) -> None:
        """Hand the trajectory over, re-timed to this control's own clock."""
        now = self._control_steps / CONTROL_HZ
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
        """Advance by 1/30 s: 8 physics steps, each with the command interpolated at its end."""
        begin = self._control_steps * SUBSTEPS
        measured = self.env.robot.joint_state()[0]
        commands = [self._yielding(self._at((begin + i + 1) / SIM_HZ), measured) for i in range(SUBSTEPS)]
        self.env.step_joints(commands)
        for command in commands:
            self.commanded.see(command.positions, command.velocities)
        self.measured.see(*self.env.robot.joint_state())
        self._control_steps += 1

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


def playtable_config() -> ControllerConfig:
    """Return the controller's settings for PlayTable: demonstrations reach 0.6 m/s and 2 rad/s."""
    return ControllerConfig(
        smoothing=SmoothingConfig(
            linear_speed=1.0, angular_speed=2.5, linear_acceleration=10.0, angular_acceleration=30.0
        ),
        # A policy's chunks are followed to the letter, since grasps forgive little. The elbow is drawn back to the
        # neutral posture about as fast as CALVIN's inverse kinematics does it: what a policy learned from pictures of
        # that arm fails under another posture (docs/log.md).
        optimization=OptimizationConfig(
            jerk_weight=1e-8, blend=BlendConfig(weight=0.0), posture_weight=0.006, posture_step=0.3
        ),
        # CALVIN's inverse kinematics keeps the elbow near the neutral posture; so must the redundancy here, or
        # it drifts towards the elbow's limit within a chain.
        tracking=TrackingConfig(posture_weight=0.05, posture_gain=3.0, velocity_scale=0.68),
        gripper_rate=60.0,
    )


def make_control(mode: ControlMode, env: World) -> CalvinControl | WbcControl:
    """Return the control called `mode` for an environment.

    Raises:
        ConfigError: our controller in a simulator that takes no joint commands at the rate of its physics.
    """
    if mode == "calvin":
        return CalvinControl(env)
    if not isinstance(env, PlayTable):
        raise ConfigError("--control wbc: expected --backend gr2, the official simulator takes no 240 Hz commands.")
    return WbcControl(env)
