"""The Panda inside the simulator: joint motors, CALVIN's inverse kinematics, the gripper."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ...wbc.robot.robots import RobotModel, panda
from .bullet import pybullet
from .scenes import ROBOT_BASE

LOWER_LIMITS = np.array([-2.8973, -1.7628, -2.8973, -3.0718, -2.8973, -0.0175, -2.8973])
UPPER_LIMITS = np.array([2.8973, 1.7628, 2.8973, -0.0698, 2.8973, 3.7525, 2.8973])
VELOCITY_LIMITS = np.array([2.175, 2.175, 2.175, 2.175, 2.61, 2.61, 2.61])
"""Panda limits [rad], [rad/s]. Source: Franka Emika."""

REST_JOINTS = (-1.21779206, 1.03987646, 2.11978261, -2.34205014, -0.87015947, 1.64119353, 0.55344866)
"""What CALVIN's null-space inverse kinematics leans to [rad]. Source: its scene files."""

FINGER_OPEN = 0.04
TOOL_Z = 0.14
"""Distance from the Panda's hand to CALVIN's tool point [m]."""

_FORCE, _MAX_VELOCITY = 200.0, 2.0
_DRIVE_SHARE = 0.95
"""Share of the velocity limits at which the simulated drives stop accelerating under our controller."""
_FORCES = [[_FORCE]] * len(VELOCITY_LIMITS)
_DRIVE_VELOCITIES = [[float(limit)] for limit in _DRIVE_SHARE * VELOCITY_LIMITS]


def panda_model() -> RobotModel:
    """Return the arm as the whole-body controller knows it, with CALVIN's tool point."""
    return panda(tool_z=TOOL_Z)


class SimulatedPanda:
    """Loads the arm into a physics client and drives its motors.

    official: behave as CALVIN does to the last digit: draw the stand below the arm, and read link poses as they were
        at the last physics step but one (a lag of 1/240 s, some tenths of a millimeter).
    """

    def __init__(self, client: int, urdf: Path, *, official: bool = False) -> None:
        self.client, self.official = client, official
        self.uid = pybullet.loadURDF(str(urdf), ROBOT_BASE, useFixedBase=True, physicsClientId=client)
        names = {}
        for index in range(pybullet.getNumJoints(self.uid, physicsClientId=client)):
            info = pybullet.getJointInfo(self.uid, index, physicsClientId=client)
            names[info[12].decode()] = index
        self.arm = list(range(7))
        self.fingers = (names["panda_leftfinger"], names["panda_rightfinger"])
        self.tcp, self.camera = names["tcp"], names["gripper_cam"]
        if official:
            self._draw_stand()
        gear = pybullet.createConstraint(
            self.uid, self.fingers[0], self.uid, self.fingers[1], pybullet.JOINT_GEAR, [1, 0, 0], [0, 0, 0], [0, 0, 0],
            physicsClientId=client,
        )  # fmt: skip
        pybullet.changeConstraint(gear, gearRatio=-1, erp=0.1, maxForce=50, physicsClientId=client)
        self.gripper_command = 1.0

    def _draw_stand(self) -> None:
        x, y, z = ROBOT_BASE
        shape = pybullet.createVisualShape(
            pybullet.GEOM_CYLINDER, rgbaColor=[1, 1, 1, 1], radius=0.13, length=z,
            visualFramePosition=[x - 0.05, y, z / 2], physicsClientId=self.client,
        )  # fmt: skip
        pybullet.createMultiBody(baseVisualShapeIndex=shape, physicsClientId=self.client)

    def reset(self, joints: np.ndarray, finger: float, gripper_command: float) -> None:
        """Put the joints [rad] and fingers [m] in place, at rest, with motors that hold them there."""
        for index, angle in zip(self.arm, joints, strict=True):
            pybullet.resetJointState(self.uid, index, angle, 0, physicsClientId=self.client)
        self.command_joints(np.asarray(joints, float))
        for index in self.fingers:
            pybullet.resetJointState(self.uid, index, finger, 0, physicsClientId=self.client)
            self._drive_finger(index, finger, _FORCE)
        self.gripper_command = gripper_command

    def _drive_finger(self, index: int, target: float, force: float) -> None:
        pybullet.setJointMotorControl2(
            self.uid, index, pybullet.POSITION_CONTROL, targetPosition=target, force=force, maxVelocity=1,
            physicsClientId=self.client,
        )  # fmt: skip

    def command_joints(self, positions: np.ndarray, velocities: np.ndarray | None = None) -> None:
        """Set the position motors' targets [rad].

        Args:
            positions: `[7]` [rad].
            velocities: `[7]` [rad/s], fed forward, with the arm's own velocity limits; None sets CALVIN's motors.
        """
        if velocities is not None:  # one call for all joints takes a third of the time of seven
            pybullet.setJointMotorControlMultiDofArray(
                self.uid, self.arm, pybullet.POSITION_CONTROL, targetPositions=positions[:, None].tolist(),
                targetVelocities=velocities[:, None].tolist(), forces=_FORCES, maxVelocities=_DRIVE_VELOCITIES,
                physicsClientId=self.client,
            )  # fmt: skip
            return
        for index, angle in zip(self.arm, positions, strict=True):
            pybullet.setJointMotorControl2(
                self.uid, index, pybullet.POSITION_CONTROL, targetPosition=float(angle), force=_FORCE,
                maxVelocity=_MAX_VELOCITY, physicsClientId=self.client,
            )  # fmt: skip

    def command_gripper(self, opening: float) -> None:
        """Open (1) or close (0); CALVIN opens softly and closes with full force."""
        self.gripper_command = float(opening > 0.5)
        target, force = (FINGER_OPEN, _FORCE / 100) if self.gripper_command else (0.0, _FORCE)
        for index in self.fingers:
            self._drive_finger(index, target, force)

    def inverse_kinematics(self, position: np.ndarray, quaternion: np.ndarray) -> np.ndarray:
        """Solve for the joints [rad] of a world tool pose: pybullet's null-space method, one call, as in CALVIN."""
        rest = [*REST_JOINTS, FINGER_OPEN, FINGER_OPEN]
        joints = pybullet.calculateInverseKinematics(
            self.uid, self.tcp, list(position), list(quaternion), lowerLimits=[-7.0] * 9, upperLimits=[7.0] * 9,
            jointRanges=[7.0] * 9, restPoses=rest, physicsClientId=self.client,
        )  # fmt: skip
        return np.clip(np.array(joints[:7]), LOWER_LIMITS, UPPER_LIMITS)

    def joint_state(self) -> tuple[np.ndarray, np.ndarray]:
        """Return joint positions [rad] and velocities [rad/s], each `[7]`."""
        states = pybullet.getJointStates(self.uid, self.arm, physicsClientId=self.client)
        return np.array([s[0] for s in states]), np.array([s[1] for s in states])

    def finger_width(self) -> float:
        """Return the opening between the fingers [m]."""
        states = pybullet.getJointStates(self.uid, self.fingers, physicsClientId=self.client)
        return float(states[0][0] + states[1][0])

    def link_pose(self, link: int) -> tuple[np.ndarray, np.ndarray]:
        """Return world position [m] and quaternion xyzw of a link frame."""
        if self.official:
            state = pybullet.getLinkState(self.uid, link, physicsClientId=self.client)
            return np.array(state[0]), np.array(state[1])
        state = pybullet.getLinkState(self.uid, link, computeForwardKinematics=True, physicsClientId=self.client)
        return np.array(state[4]), np.array(state[5])
