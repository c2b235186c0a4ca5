"""The two arms that the tests of whole-body control run on, and random configurations of them."""

from __future__ import annotations

import numpy as np

from gr2.wbc.robot.robots import RobotModel, kinova_gen3, panda

ROBOTS = {"kinova_gen3": kinova_gen3(), "panda": panda(tool_z=0.14)}


def configurations(robot: RobotModel, count: int, seed: int = 0, widest: float = np.pi) -> np.ndarray:
    """Draw joint angles `[count j]` [rad] within the limits, and within `widest` for joints that turn for ever."""
    lower, upper = np.maximum(robot.lower, -widest), np.minimum(robot.upper, widest)
    return np.random.default_rng(seed).uniform(lower, upper, (count, robot.num_joints))
