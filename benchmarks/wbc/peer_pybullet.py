"""PyBullet's inverse kinematics: damped least squares to convergence, which knows no velocity limit and no obstacle."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np

from ...contracts import Array
from ...wbc.robot.robots import RobotModel
from ...wbc.robot.transforms import quaternion_from_matrix
from ...wbc.robot.urdf import CONTINUOUS_RANGE, robot_urdf
from ..playtable.bullet import pybullet
from .peer import NotSolved, Step
from .trajectories import TrackingCase

ITERATIONS, RESIDUAL = 100, 1e-6


class BulletIk:
    """`calculateInverseKinematics` from the joints of the tick before, plain or with null-space limits."""

    def __init__(self, robot: RobotModel, *, null_space: bool) -> None:
        """Remember the robot; a world is opened for each case."""
        self.name = "pybullet null space" if null_space else "pybullet"
        self.robot, self.null_space = robot, null_space
        self._client = pybullet.connect(pybullet.DIRECT)
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "robot.urdf"
            file.write_text(robot_urdf(robot), encoding="utf-8")
            self._body = pybullet.loadURDF(str(file), useFixedBase=True, physicsClientId=self._client)

    def close(self) -> None:
        """Leave the world."""
        if self._client >= 0:
            pybullet.disconnect(self._client)
            self._client = -1

    def __del__(self) -> None:
        if pybullet is not None:
            self.close()

    def start(self, case: TrackingCase) -> Step:
        """Stand at the start of a case; return what is called at each tick."""
        robot, client, body = self.robot, self._client, self._body
        lower = np.maximum(robot.lower, -CONTINUOUS_RANGE).tolist()
        upper = np.minimum(robot.upper, CONTINUOUS_RANGE).tolist()
        limits: dict[str, list[float]] = {}
        if self.null_space:
            ranges = [min(b - a, 2 * np.pi) for a, b in zip(lower, upper, strict=True)]
            limits = {
                "lowerLimits": [max(a, -2 * np.pi) for a in lower],
                "upperLimits": [min(b, 2 * np.pi) for b in upper],
                "jointRanges": ranges,
                "restPoses": np.asarray(case.q0).tolist(),
            }
        q = np.asarray(case.q0, dtype=np.float64)

        def step(tick: int, target: Array) -> Array:
            """Move to the next configuration `[j]` [rad]."""
            nonlocal q
            for joint, angle in enumerate(q.tolist()):
                pybullet.resetJointState(body, joint, angle, physicsClientId=client)
            answer = pybullet.calculateInverseKinematics(
                body,
                robot.num_joints,
                target[:3, 3].tolist(),
                quaternion_from_matrix(target[:3, :3]).tolist(),
                maxNumIterations=ITERATIONS,
                residualThreshold=RESIDUAL,
                physicsClientId=client,
                **limits,
            )
            if not np.all(np.isfinite(answer)):
                raise NotSolved
            q = np.array(answer)
            return q

        return step
