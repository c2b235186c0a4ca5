"""The arm in pybullet, with dynamics: position motors within the robot's torque and velocity limits."""

from __future__ import annotations

import tempfile
from pathlib import Path
from types import ModuleType, TracebackType
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ...contracts import JointCommand
from ...errors import ConfigError, ControlError
from ..robot.robots import RobotModel
from ..robot.transforms import Array
from ..robot.urdf import UNBOUNDED_EFFORT, robot_urdf
from .driver import Measurement, Pacer

if TYPE_CHECKING:
    from typing import Self


class BulletDriver:
    """Drives a simulated arm; every `send` advances the world by one period.

    A subclass that has fingers overrides `drive_gripper` and `gripper_opening`. Here the gripper is where it was
    commanded to be.

    client: pybullet's number of the physics server, once connected.
    body: pybullet's number of the arm; links and joints have the names of `robot_urdf`.
    joints: pybullet's numbers of the arm's joints.
    """

    def __init__(
        self,
        robot: RobotModel,
        *,
        rate_hz: float = 240.0,
        client: int | None = None,
        base_position: npt.ArrayLike = (0.0, 0.0, 0.0),
        base_quaternion: npt.ArrayLike = (0.0, 0.0, 0.0, 1.0),
        start: npt.ArrayLike | None = None,
        gravity: float = 9.81,
        stiffness: float = 50.0,
        pacer: Pacer | None = None,
    ) -> None:
        """Prepare; `connect` builds the arm.

        Args:
            robot: the arm.
            rate_hz: commands and physics steps a second.
            client: physics server of an existing world, which stays open at the end; None for one of its own.
            base_position: `[3]` base of the robot in the world [m]; base_quaternion: `[4]` xyzw.
            start: `[j]` joints at the beginning [rad], None for the robot's home.
            gravity: downwards [m/s^2], 0 for none.
            stiffness: rate at which the motors remove a position error [1/s], at most `rate_hz`.
            pacer: lets the simulation run at the pace of a clock; None for as fast as it can.

        Raises:
            ConfigError: a stiffness that the rate cannot realize.
        """
        if not 0.0 < stiffness <= rate_hz:
            raise ConfigError(f"stiffness: expected a number in (0, {rate_hz}], got {stiffness}; 50 is usual.")
        self.robot, self.rate_hz = robot, rate_hz
        self.client, self.body = -1, -1
        self.joints: list[int] = []
        self._given_client = client
        self._base = (np.asarray(base_position, float), np.asarray(base_quaternion, float))
        self._start = np.array(robot.home if start is None else start, dtype=np.float64)
        self._gravity, self._pacer = gravity, pacer
        self._gain = stiffness / rate_hz
        self._steps, self._opening = 0, 1.0

    def model_text(self) -> str:
        """Return the URDF that `connect` loads; a subclass may add a gripper to it."""
        return robot_urdf(self.robot)

    def connect(self) -> None:
        """Build the arm at rest at its start and set the period and the gravity of the world."""
        p = self._pybullet()
        self.client = p.connect(p.DIRECT) if self._given_client is None else self._given_client
        p.setTimeStep(1.0 / self.rate_hz, physicsClientId=self.client)
        p.setGravity(0.0, 0.0, -self._gravity, physicsClientId=self.client)
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / f"{self.robot.name}.urdf"
            file.write_text(self.model_text(), encoding="utf-8")
            self.body = p.loadURDF(
                str(file),
                *self._base,
                useFixedBase=True,
                flags=p.URDF_USE_INERTIA_FROM_FILE,
                physicsClientId=self.client,
            )
        names = {}
        for index in range(p.getNumJoints(self.body, physicsClientId=self.client)):
            names[p.getJointInfo(self.body, index, physicsClientId=self.client)[1].decode()] = index
            p.changeDynamics(
                self.body, index, linearDamping=0.0, angularDamping=0.0, jointDamping=0.0, physicsClientId=self.client
            )
        self.joints = [names[f"joint_{number}"] for number in range(1, self.robot.num_joints + 1)]
        for index, position in zip(self.joints, self._start, strict=True):
            p.resetJointState(self.body, index, position, 0.0, physicsClientId=self.client)
        self._motors(self._start, np.zeros_like(self._start))
        self._steps, self._opening = 0, 1.0

    def read(self) -> Measurement:
        """Return the simulated joints."""
        states = self._pybullet().getJointStates(self.body, self.joints, physicsClientId=self.client)
        return Measurement(
            time=self._steps / self.rate_hz,
            positions=np.array([state[0] for state in states]),
            velocities=np.array([state[1] for state in states]),
            gripper=self.gripper_opening(),
        )

    def send(self, command: JointCommand) -> None:
        """Set the motors and advance the world by one period.

        Raises:
            ControlError: the driver is not connected.
        """
        if self.body < 0:
            raise ControlError("The simulated arm is not there; call connect before send.")
        self._motors(command.positions, command.velocities)
        self.drive_gripper(command.gripper)
        if self._pacer is not None:
            self._pacer.wait()
        self._pybullet().stepSimulation(physicsClientId=self.client)
        self._steps += 1

    def drive_gripper(self, opening: float) -> None:
        """Command the fingers; called before every physics step."""
        self._opening = opening

    def gripper_opening(self) -> float:
        """Return the measured opening, 0 to 1."""
        return self._opening

    def stop(self) -> None:
        """Hold the joints where they are."""
        if self.body >= 0:
            self._motors(self.read().positions, np.zeros(self.robot.num_joints))

    def close(self) -> None:
        """Remove the arm, and the world if it is this driver's own."""
        if self.body < 0:
            return
        p = self._pybullet()
        if self._given_client is None:
            p.disconnect(self.client)
        else:
            p.removeBody(self.body, physicsClientId=self.client)
        self.client = self.body = -1

    def __enter__(self) -> Self:
        """Connect."""
        self.connect()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close."""
        self.close()

    @staticmethod
    def _pybullet() -> ModuleType:
        import pybullet

        return pybullet

    def _motors(self, positions: Array, velocities: Array) -> None:
        """Aim the motors at `positions` [rad], to be reached at the end of the period with `velocities` [rad/s].

        A motor's target speed is gain * (wanted - present position) / period + target velocity. The wanted position
        lies one period ahead, so an arm that follows exactly sees velocity * gain of the first term.
        """
        p = self._pybullet()
        for index, position, velocity, effort, limit in zip(
            self.joints, positions, velocities, self.robot.effort, self.robot.velocity, strict=True
        ):
            p.setJointMotorControl2(
                self.body,
                index,
                p.POSITION_CONTROL,
                targetPosition=position,
                targetVelocity=(1.0 - self._gain) * velocity,
                positionGain=self._gain,
                velocityGain=1.0,
                force=min(effort, UNBOUNDED_EFFORT),
                maxVelocity=limit,
                physicsClientId=self.client,
            )
