"""mink (K. Zakka and others): differential inverse kinematics on MuJoCo, here with daqp."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ...contracts import Array
from ...wbc.robot.robots import RobotModel
from ...wbc.robot.transforms import matrix_from_rpy, quaternion_from_matrix
from ...wbc.robot.urdf import CONTINUOUS_RANGE
from .peer import CLEARANCE, ORIENTATION_COST, POSITION_COST, POSTURE_COST, NotSolved, Step, package
from .trajectories import TICK, TrackingCase

DETECTION = 0.06
"""Distance from which mink looks at a pair [m]."""


class Mink:
    """Frame and posture task, velocity and position limits; with `avoid` its collision limit too."""

    def __init__(self, robot: RobotModel, *, avoid: bool) -> None:
        """Load the packages."""
        self.name = "mink + collisions" if avoid else "mink"
        self.robot, self.avoid = robot, avoid
        self._mujoco, self._mink = package("mujoco", "mink"), package("mink", "mink")

    def start(self, case: TrackingCase) -> Step:
        """Stand at the start of a case; return what is called at each tick."""
        mink, robot = self._mink, self.robot
        model = self._mujoco.MjModel.from_xml_string(robot_mjcf(robot, case))
        configuration = mink.Configuration(model)
        configuration.update(np.asarray(case.q0))
        tool = mink.FrameTask("tool", "site", POSITION_COST, ORIENTATION_COST)
        posture = mink.PostureTask(model, cost=POSTURE_COST)
        posture.set_target(np.asarray(case.q0))
        speeds = {f"joint_{index + 1}": float(speed) for index, speed in enumerate(robot.velocity)}
        limits = [mink.ConfigurationLimit(model), mink.VelocityLimit(model, speeds)]
        if self.avoid:
            limits.append(
                mink.CollisionAvoidanceLimit(
                    model,
                    _geom_pairs(robot, case),
                    minimum_distance_from_collisions=CLEARANCE,
                    collision_detection_distance=DETECTION,
                )
            )

        def step(tick: int, target: Array) -> Array:
            """Move to the next configuration `[j]` [rad]."""
            for number, sphere in enumerate(case.spheres):
                configuration.data.mocap_pos[number] = np.add(sphere.center, tick * TICK * np.asarray(sphere.velocity))
            if case.spheres:
                configuration.update()
            tool.set_target(mink.SE3.from_matrix(target))
            try:
                velocity = mink.solve_ik(configuration, [tool, posture], TICK, "daqp", limits=limits)
            except mink.MinkError as error:
                raise NotSolved from error
            configuration.integrate_inplace(velocity, TICK)
            joints: Array = configuration.q
            return joints

        return step


def _geom_pairs(robot: RobotModel, case: TrackingCase) -> list[tuple[list[str], list[str]]]:
    pairs = [([f"capsule_{a}"], [f"capsule_{b}"]) for a, b in robot.self_pairs]
    exposed = [f"capsule_{i}" for i, c in enumerate(robot.capsules) if c.link >= case.scene.first_link]
    others = [f"sphere_{i}" for i in range(len(case.spheres))] + (["plane"] if case.plane is not None else [])
    return pairs + ([(exposed, others)] if exposed and others else [])


def robot_mjcf(robot: RobotModel, case: TrackingCase) -> str:
    """Return MuJoCo's XML of a robot with its capsules, the plane and, as mocap bodies, the spheres of a case."""
    parts = ['<mujoco><compiler angle="radian" autolimits="true"/><worldbody>']
    if case.plane is not None:
        normal = np.asarray(case.plane.normal)
        place = f'pos="{_numbers(case.plane.offset * normal)}" zaxis="{_numbers(normal)}"'
        parts.append(f'<geom name="plane" type="plane" size="3 3 .1" {place}/>')
    for number, sphere in enumerate(case.spheres):
        parts.append(f'<body name="obstacle_{number}" mocap="true" pos="{_numbers(sphere.center)}">')
        parts.append(f'<geom name="sphere_{number}" type="sphere" size="{sphere.radius:.17g}"/></body>')
    parts += _capsules(robot, 0)
    for index in range(robot.num_joints):
        parts.append(f'<body name="link_{index + 1}" {_place(robot.joint_positions[index], robot.joint_rpys[index])}>')
        lower = max(float(robot.lower[index]), -CONTINUOUS_RANGE)
        upper = min(float(robot.upper[index]), CONTINUOUS_RANGE)
        parts.append(f'<joint name="joint_{index + 1}" axis="0 0 1" range="{lower:.17g} {upper:.17g}"/>')
        parts.append('<inertial pos="0 0 0" mass="1" diaginertia=".01 .01 .01"/>')
        parts += _capsules(robot, index + 1)
    parts.append(f'<site name="tool" {_place(robot.tool_position, robot.tool_rpy)}/>')
    parts += ["</body>"] * robot.num_joints
    return "\n".join([*parts, "</worldbody></mujoco>"])


def _capsules(robot: RobotModel, link: int) -> list[str]:
    return [
        f'<geom name="capsule_{index}" type="capsule" size="{c.radius:.17g}" fromto="{_numbers([*c.start, *c.end])}"/>'
        for index, c in enumerate(robot.capsules)
        if c.link == link
    ]


def _place(position: Array, rpy: Array) -> str:
    x, y, z, w = quaternion_from_matrix(matrix_from_rpy(rpy)).tolist()
    return f'pos="{_numbers(position)}" quat="{_numbers([w, x, y, z])}"'


def _numbers(values: npt.ArrayLike) -> str:
    return " ".join(f"{value:.17g}" for value in np.asarray(values, dtype=np.float64).tolist())
