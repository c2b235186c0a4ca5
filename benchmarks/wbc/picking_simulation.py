"""Picking in pybullet: the arm with fingers, the bodies of a scene, and judges of every step and every command."""

from __future__ import annotations

import math
import time
from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np

from ...contracts import ControlTrajectory, JointCommand
from ...wbc.collision import Box, Sphere
from ...wbc.controller import WholeBodyController
from ...wbc.drivers.bullet import BulletDriver
from ...wbc.drivers.driver import Measurement
from ...wbc.robot.inertia import Inertial, combined
from ...wbc.robot.robots import RobotModel
from ...wbc.robot.transforms import Array, matrix_from_rpy, rotation_exp
from ...wbc.robot.urdf import robot_urdf
from ...wbc.status import EMERGENCY_BRAKE, EMERGENCY_STOP, PROTECTIVE_STOP
from ..playtable.bullet import pybullet
from .picking_scenes import TRAY_HALF, Obstacle, Scene

FINGER_STROKE, FINGER_FORCE, FINGER_MASS = 0.0425, 40.0, 0.06
"""Of one finger: way from closed to open [m], greatest force [N], mass [kg], taken from the hand's."""
FINGER_SIZE, FINGER_Z = (0.014, 0.021, 0.056), 0.118
"""A finger's edges and its center's distance from the flange [m]; inside the controller's capsules, like the palm."""
PALM_RADIUS, PALM_Z = 0.037, 0.09
"""The palm: radius and length from the flange on [m]."""
SOLVER_ITERATIONS = 200
"""Of pybullet's contact solver, in a step; with its usual 50 a held block creeps out of the hand."""
ARM_COLORS, HAND_COLOR = ((0.80, 0.82, 0.85, 1.0), (0.92, 0.93, 0.94, 1.0)), (0.22, 0.24, 0.28, 1.0)
MEASURED_POSITION_SLACK, MEASURED_SPEED_SLACK = 0.005, 0.02
"""By how much a measured joint may be beyond a limit: [rad], and as a share of the velocity limit."""


class FingerDriver(BulletDriver):
    """The arm with a parallel gripper: two prismatic fingers along the tool's x axis, kept symmetric by a gear.

    links: name of the link behind each of pybullet's joint numbers; fingers: joint numbers of the two fingers.
    """

    def model_text(self) -> str:
        """Return the URDF with a palm and fingers instead of the hand's capsules."""
        robot = self.robot
        last, mass = robot.num_joints, FINGER_MASS
        rotation = matrix_from_rpy(robot.tool_rpy)
        flange = robot.tool_position - rotation @ np.array([0.0, 0.0, 0.12])
        x, y, z = FINGER_SIZE
        tensor = mass / 12 * np.diag([y * y + z * z, x * x + z * z, x * x + y * y])
        outer = FINGER_STROKE + x / 2
        without = [
            Inertial(-mass, rotation @ np.array([s * outer, 0.0, FINGER_Z]) + flange, -tensor) for s in (-1.0, 1.0)
        ]
        rest = combined([Inertial(*(a[last] for a in (robot.masses, robot.mass_centers, robot.inertias))), *without])
        arm = replace(
            robot,
            capsules=robot.capsules[: last + 1],
            self_pairs=(),
            masses=np.append(robot.masses[:last], rest.mass),
            mass_centers=np.vstack([robot.mass_centers[:last], rest.center]),
            inertias=np.concatenate([robot.inertias[:last], rest.inertia[None]]),
        )
        place = f'xyz="{_text(flange)}" rpy="{_text(robot.tool_rpy)}"'
        shape = (
            f'<origin xyz="0 0 {PALM_Z / 2}"/><geometry><cylinder radius="{PALM_RADIUS}" length="{PALM_Z}"/></geometry>'
        )
        parts = [
            '<link name="palm"><inertial><mass value="0"/><inertia ixx="0" iyy="0" izz="0" ixy="0" ixz="0" iyz="0"/>'
            f"</inertial><visual>{shape}</visual><collision>{shape}</collision></link>"
            f'<joint name="palm_joint" type="fixed"><parent link="link_{last}"/><child link="palm"/>'
            f"<origin {place}/></joint>"
        ]
        for name, sign in (("left", 1.0), ("right", -1.0)):
            shape = f'<origin xyz="{sign * x / 2} 0 0"/><geometry><box size="{x} {y} {z}"/></geometry>'
            diagonal = " ".join(f'i{a}{a}="{tensor[i, i]}"' for i, a in enumerate("xyz"))
            parts.append(
                f'<link name="{name}_finger"><inertial><origin xyz="{sign * x / 2} 0 0"/><mass value="{mass}"/>'
                f'<inertia {diagonal} ixy="0" ixz="0" iyz="0"/></inertial>'
                f"<visual>{shape}</visual><collision>{shape}</collision></link>"
                f'<joint name="{name}_finger_joint" type="prismatic"><parent link="palm"/><child link="{name}_finger"/>'
                f'<origin xyz="0 0 {FINGER_Z}"/><axis xyz="{sign} 0 0"/>'
                f'<limit lower="0" upper="{FINGER_STROKE}" velocity="0.2" effort="{FINGER_FORCE}"/></joint>'
            )
        return robot_urdf(arm).replace("</robot>", "".join(parts) + "</robot>")

    def connect(self) -> None:
        """Build the arm, its fingers open."""
        super().connect()
        p, options = pybullet, {"physicsClientId": self.client}
        infos = [p.getJointInfo(self.body, i, **options) for i in range(p.getNumJoints(self.body, **options))]
        self.links = {-1: "link_0"} | {info[0]: info[12].decode() for info in infos}
        self.fingers = [info[0] for info in infos if info[12].endswith(b"finger")]
        for index, name in self.links.items():
            color = HAND_COLOR if name.endswith(("palm", "finger")) else ARM_COLORS[index % 2]
            p.changeVisualShape(self.body, index, rgbaColor=color, **options)
        for index in self.fingers:
            p.resetJointState(self.body, index, FINGER_STROKE, 0.0, **options)
            p.changeDynamics(self.body, index, lateralFriction=1.0, spinningFriction=0.01, **options)
        pair = (self.body, self.fingers[0], self.body, self.fingers[1])
        gear = p.createConstraint(*pair, p.JOINT_GEAR, (1, 0, 0), (0, 0, 0), (0, 0, 0), **options)
        p.changeConstraint(gear, gearRatio=-1, maxForce=100, erp=0.5, **options)

    def drive_gripper(self, opening: float) -> None:
        """Aim both fingers at an opening; what is between them stops them at `FINGER_FORCE`."""
        speed = FINGER_STROKE * self.robot.gripper_rate
        for index in self.fingers:
            pybullet.setJointMotorControl2(
                self.body,
                index,
                pybullet.POSITION_CONTROL,
                targetPosition=opening * FINGER_STROKE,
                positionGain=0.3,
                velocityGain=1.0,
                force=FINGER_FORCE,
                maxVelocity=1.2 * speed,
                physicsClientId=self.client,
            )

    def gripper_opening(self) -> float:
        """Return the measured opening, 0 to 1."""
        states = pybullet.getJointStates(self.body, self.fingers, physicsClientId=self.client)
        return float(np.clip(sum(s[0] for s in states) / (2.0 * FINGER_STROKE), 0.0, 1.0))


def _text(values: Any) -> str:
    return " ".join(f"{value:.17g}" for value in np.asarray(values, dtype=np.float64).tolist())


class World:
    """The scene's bodies in pybullet.

    obstacles: pybullet's number of each thing that no link may touch, and its name; block: number of the block.
    """

    COLORS = ((0.86, 0.37, 0.34, 1.0), (0.93, 0.66, 0.28, 1.0), (0.47, 0.62, 0.35, 1.0), (0.55, 0.44, 0.67, 1.0))

    def __init__(self, client: int, scene: Scene) -> None:
        """Put everything but the arm into the world of `client`."""
        self.client, self._scene = client, scene
        pybullet.setPhysicsEngineParameter(numSolverIterations=SOLVER_ITERATIONS, physicsClientId=client)
        table = Box(center=(0.3, 0.0, -0.02), half_extents=(0.6, 0.75, 0.02))
        self.table = self._add(table, (0.87, 0.85, 0.81, 1.0))
        self.obstacles = {self.table: "table"}
        for part in scene.tray_parts():
            self.obstacles[self._add(part, (0.30, 0.49, 0.66, 1.0))] = "tray"
        for index, obstacle in enumerate(scene.obstacles):
            name = f"{type(obstacle).__name__.lower()}_{index}"
            self.obstacles[self._add(obstacle, self.COLORS[index % len(self.COLORS)])] = name
        self.block = self._add(scene.block, (0.20, 0.66, 0.60, 1.0), scene.mass)
        pybullet.changeDynamics(
            self.block, -1, lateralFriction=0.7, spinningFriction=0.002, rollingFriction=1e-4, physicsClientId=client
        )

    def _add(self, shape: Obstacle, color: tuple[float, ...], mass: float = 0.0) -> int:
        p, options = pybullet, {"physicsClientId": self.client}
        center, quaternion = [0.0, 0.0, 0.0], (0.0, 0.0, 0.0, 1.0)
        if isinstance(shape, Box):
            center, quaternion = list(shape.center), shape.quaternion
            collision = p.createCollisionShape(p.GEOM_BOX, halfExtents=shape.half_extents, **options)
            visual = p.createVisualShape(p.GEOM_BOX, halfExtents=shape.half_extents, rgbaColor=color, **options)
        elif isinstance(shape, Sphere):
            center = list(shape.center)
            collision = p.createCollisionShape(p.GEOM_SPHERE, radius=shape.radius, **options)
            visual = p.createVisualShape(p.GEOM_SPHERE, radius=shape.radius, rgbaColor=color, **options)
        else:
            center = [0.5 * (a + b) for a, b in zip(shape.start, shape.end, strict=True)]
            length, radius = shape.end[2] - shape.start[2], shape.radius
            collision = p.createCollisionShape(p.GEOM_CAPSULE, radius=radius, height=length, **options)
            visual = p.createVisualShape(p.GEOM_CAPSULE, radius=radius, length=length, rgbaColor=color, **options)
        return int(p.createMultiBody(mass, collision, visual, center, quaternion, **options))

    def block_box(self) -> Box:
        """Return the block where it is now."""
        position, quaternion = pybullet.getBasePositionAndOrientation(self.block, physicsClientId=self.client)
        return replace(self._scene.block, center=position, quaternion=quaternion)

    def block_speed(self) -> float:
        """Return the block's speed [m/s], turning counted at 0.03 m."""
        linear, angular = pybullet.getBaseVelocity(self.block, physicsClientId=self.client)
        return float(np.linalg.norm(linear) + 0.03 * np.linalg.norm(angular))

    def block_in_tray(self) -> bool:
        """Return whether the block rests inside the walls, on the floor."""
        scene, position = self._scene, self.block_box().center
        turn = rotation_exp([0.0, 0.0, -scene.tray_yaw])[:2, :2]
        inside = np.abs(turn @ (np.array(position[:2]) - scene.tray)).max() < TRAY_HALF
        return bool(inside) and position[2] < 0.06 and self.block_speed() < 0.005


class Judge:
    """Watches one trial: contacts after every physics step, measured limits, distances.

    contacts: steps for each pair that touched; violations: steps or ticks for each limit that was broken, by name;
    clearance: least distance [m] of arm or held block from table, tray and obstacles that was seen.
    """

    def __init__(self, robot: RobotModel, world: World, driver: FingerDriver) -> None:
        self.robot, self.world, self.driver = robot, world, driver
        self.contacts: Counter[str] = Counter()
        self.violations: Counter[str] = Counter()
        self.clearance = math.inf
        self._steps = 0

    def look(self, measured: Measurement, *, held: bool) -> None:
        """Judge the world as it is after a physics step; `held`: whether the block is in the hand and off the table."""
        client, block = self.world.client, self.world.block
        for point in pybullet.getContactPoints(bodyA=self.driver.body, physicsClientId=client):
            link, other = self.driver.links[point[3]], point[2]
            if (point[8] > 0.0 and point[9] == 0.0) or (link == "link_0" and other == self.world.table):
                continue
            if other in self.world.obstacles:
                self.contacts[f"{link} with {self.world.obstacles[other]}"] += 1
            elif other == block and not link.endswith("finger"):
                self.contacts[f"{link} with block"] += 1
        for point in pybullet.getContactPoints(bodyA=block, physicsClientId=client):
            name = self.world.obstacles.get(point[2], "table")
            if name not in ("table", "tray") and (point[8] <= 0.0 or point[9] > 0.0):
                self.contacts[f"block with {name}"] += 1
        self.limits(measured)
        if self._steps % 16 == 0:
            self._measure(held)
        self._steps += 1

    def limits(self, measured: Measurement) -> None:
        """Compare measured joints with the robot's limits."""
        robot, slack = self.robot, MEASURED_POSITION_SLACK
        q, dq = measured.positions, np.abs(measured.velocities)
        self.violations["measured position"] += int(np.any((q < robot.lower - slack) | (q > robot.upper + slack)))
        self.violations["measured velocity"] += int(np.any(dq > robot.velocity * (1.0 + MEASURED_SPEED_SLACK)))

    def _measure(self, held: bool) -> None:
        for body, name in self.world.obstacles.items():
            watched = (
                [self.driver.body, self.world.block] if held and name not in ("table", "tray") else [self.driver.body]
            )
            for mover in watched:
                for point in pybullet.getClosestPoints(mover, body, 0.1, physicsClientId=self.world.client):
                    if mover != self.driver.body or self.driver.links[point[3]] not in ("link_0", "link_1"):
                        self.clearance = min(self.clearance, float(point[8]))


class WatchedController:
    """A controller whose commands are judged and whose planning is timed; what the control loop sees of it.

    planning: processor time of each chunk [s]; braked: ticks with more than the nominal acceleration.
    """

    def __init__(self, controller: WholeBodyController, violations: Counter[str]) -> None:
        self.controller, self.violations = controller, violations
        self.robot, self.dt = controller.robot, controller.dt
        self.planning: list[float] = []
        self.braked = self.ticks = 0
        self._q, self._dq = self.robot.home, np.zeros(self.robot.num_joints)

    def reset(self, joint_positions: Array, gripper: float, time: float) -> None:
        """Start from the measured state, at rest."""
        self.controller.reset(joint_positions, gripper, time)
        self._q = np.clip(joint_positions, self.robot.lower, self.robot.upper)
        self._dq = np.zeros(self.robot.num_joints)

    def accept(self, trajectory: ControlTrajectory) -> str:
        """Hand over a chunk."""
        begun = time.process_time()
        verdict = self.controller.accept(trajectory)
        self.planning.append(time.process_time() - begun)
        return verdict

    def step(self, time: float, measured: Array | None = None) -> JointCommand:
        """Compute a tick and judge it."""
        command = self.controller.step(time, measured)
        self.judge(command)
        return command

    def judge(self, command: JointCommand) -> None:
        """Compare a tick with the robot's limits; a tick that is flagged may use the emergency acceleration."""
        robot = self.robot
        dq = (command.positions - self._q) / self.dt
        ddq = np.abs(dq - self._dq) / self.dt
        emergency = command.status in (EMERGENCY_BRAKE, EMERGENCY_STOP, PROTECTIVE_STOP)
        bound = robot.emergency_acceleration if emergency else robot.acceleration
        beyond = (command.positions < robot.lower - 1e-6) | (command.positions > robot.upper + 1e-6)
        self.violations["commanded position"] += int(np.any(beyond))
        self.violations["commanded velocity"] += int(np.any(np.abs(dq) > robot.velocity * (1.0 + 1e-6)))
        self.violations["commanded acceleration"] += int(np.any(ddq > bound * (1.0 + 1e-6) + 1e-6))
        self.braked += int(emergency)
        self.ticks += 1
        self._q, self._dq = command.positions, dq

    def emergency_stop(self) -> None:
        """Brake and stay stopped."""
        self.controller.emergency_stop()
