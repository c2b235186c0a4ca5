"""pink (S. Caron and others): differential inverse kinematics on pinocchio, here with daqp."""

from __future__ import annotations

from typing import Any

import numpy as np

from ...contracts import Array
from ...wbc.robot.robots import Capsule, RobotModel
from ...wbc.robot.urdf import robot_urdf
from .peer import CLEARANCE, ORIENTATION_COST, POSITION_COST, POSTURE_COST, NotSolved, Step, package
from .trajectories import TICK, TrackingCase

TABLE_HALF = (2.0, 2.0, 0.5)
"""Half edges [m] of the box that stands for the half-space of a plane."""

NUM_PAIRS = 12
"""How many of the nearest pairs the barrier looks at."""

BARRIER_GAIN = 20.0
"""Greatest speed of approach for each meter beyond the distance to keep [1/s], as ours."""


class Pink:
    """Frame and posture task, velocity and position limits of the URDF.

    With `accelerations` its acceleration limits, at the robot's numbers, too; with `barrier` its distance barrier. The
    barrier's safe displacement is off: it pulls the arm off the target by centimeters.
    """

    def __init__(self, robot: RobotModel, *, accelerations: bool = False, barrier: bool = False) -> None:
        """Build the pinocchio model from our URDF."""
        self.name = "pink" + " + acceleration" * accelerations + " + barrier" * barrier
        self.robot, self.accelerations, self.barrier = robot, accelerations, barrier
        self._pin, self._pink = package("pinocchio", "pink"), package("pink", "pink")
        self._coal: Any = package("coal", "pink") if barrier else None
        self._failures = package("pink.exceptions", "pink").PinkError
        self._model = self._pin.buildModelFromXML(robot_urdf(robot))

    def start(self, case: TrackingCase) -> Step:
        """Stand at the start of a case; return what is called at each tick."""
        pin, pink = self._pin, self._pink
        scene: dict[str, Any] = {}
        spheres: list[Any] = []
        if self.barrier:
            geometry, spheres = self._geometry(case)
            scene = {"collision_model": geometry, "collision_data": pin.GeometryData(geometry)}
        configuration = pink.Configuration(self._model, self._model.createData(), np.array(case.q0), **scene)
        tool = pink.tasks.FrameTask("tool", POSITION_COST, ORIENTATION_COST)
        posture = pink.tasks.PostureTask(cost=POSTURE_COST)
        posture.set_target(np.array(case.q0))
        barriers = [self._make_barrier(len(scene["collision_model"].collisionPairs))] if self.barrier else []
        limits, accelerations = None, None
        if self.accelerations:
            accelerations = pink.limits.AccelerationLimit(self._model, self.robot.acceleration)
            limits = [pink.limits.ConfigurationLimit(self._model), pink.limits.VelocityLimit(self._model)]
            limits.append(accelerations)

        def step(tick: int, target: Array) -> Array:
            """Move to the next configuration `[j]` [rad]."""
            for sphere, moving in zip(spheres, case.spheres, strict=self.barrier):
                center = np.asarray(moving.center) + tick * TICK * np.asarray(moving.velocity)
                scene["collision_model"].geometryObjects[sphere].placement = pin.SE3(np.eye(3), center)
            if spheres:
                configuration.update(configuration.q)
            tool.set_target(pin.SE3(target[:3, :3], target[:3, 3]))
            rules = {"limits": limits, "barriers": barriers, "safety_break": False}
            try:
                velocity = pink.solve_ik(configuration, [tool, posture], TICK, solver="daqp", **rules)
            except self._failures as error:
                if accelerations is not None:
                    accelerations.set_last_integration(np.zeros(self._model.nv), TICK)
                raise NotSolved from error
            if accelerations is not None:
                accelerations.set_last_integration(velocity, TICK)
            configuration.integrate_inplace(velocity, TICK)
            joints: Array = configuration.q
            return joints

        return step

    def _make_barrier(self, num_pairs: int) -> Any:
        return self._pink.barriers.SelfCollisionBarrier(
            min(NUM_PAIRS, num_pairs), gain=BARRIER_GAIN, safe_displacement_gain=0.0, d_min=CLEARANCE
        )

    def _geometry(self, case: TrackingCase) -> tuple[Any, list[int]]:
        """Build capsules, plane and spheres; return them and the indices of the spheres."""
        pin, coal = self._pin, self._coal
        geometry = pin.GeometryModel()
        arm = [geometry.addGeometryObject(self._capsule(index, c)) for index, c in enumerate(self.robot.capsules)]
        exposed = [a for a, c in zip(arm, self.robot.capsules, strict=True) if c.link >= case.scene.first_link]
        spheres = []
        for number, sphere in enumerate(case.spheres):
            place = pin.SE3(np.eye(3), np.asarray(sphere.center))
            spheres.append(
                geometry.addGeometryObject(pin.GeometryObject(f"s{number}", 0, place, coal.Sphere(sphere.radius)))
            )
        others = list(spheres)
        if case.plane is not None:
            normal = np.asarray(case.plane.normal)
            turn = pin.Quaternion.FromTwoVectors(np.array([0.0, 0.0, 1.0]), normal).matrix()
            place = pin.SE3(turn, (case.plane.offset - TABLE_HALF[2]) * normal)
            box = coal.Box(*(2.0 * half for half in TABLE_HALF))
            others.append(geometry.addGeometryObject(pin.GeometryObject("plane", 0, place, box)))
        for first, second in [*self.robot.self_pairs, *((a, o) for a in exposed for o in others)]:
            geometry.addCollisionPair(pin.CollisionPair(first, second))
        return geometry, spheres

    def _capsule(self, index: int, capsule: Capsule) -> Any:
        pin, start, end = self._pin, np.asarray(capsule.start), np.asarray(capsule.end)
        along = end - start
        length = float(np.linalg.norm(along))
        axis = along / length if length > 1e-9 else np.array([0.0, 0.0, 1.0])
        turn = pin.Quaternion.FromTwoVectors(np.array([0.0, 0.0, 1.0]), axis).matrix()
        shape = self._coal.Capsule(capsule.radius, length)
        return pin.GeometryObject(f"c{index}", capsule.link, pin.SE3(turn, 0.5 * (start + end)), shape)
