"""The caps on the tool's speed, kept tick by tick, whatever asks for the motion."""

from __future__ import annotations

import math

import numpy as np

from .robot.kinematics import Kinematics
from .robot.transforms import Array


class ToolSpeedCap:
    """Finds how much of a joint velocity the tool's caps allow.

    A Jacobian is used for as long as a bound on its change shows that no cap is near, since computing one costs as
    much as the rest of a tick.
    """

    def __init__(self, kinematics: Kinematics, linear: float, angular: float) -> None:
        """Cap the speed of the tool's point at `linear` [m/s] and of its rotation at `angular` [rad/s]."""
        self.kinematics, self.linear, self.angular = kinematics, linear, angular
        self._reach = kinematics.robot.reach
        self._q = np.full(kinematics.robot.num_joints, np.inf)
        self._jacobian = np.zeros((6, kinematics.robot.num_joints))

    def share(self, q: Array, velocity: Array) -> float:
        """Return the share of `velocity` `[j]` [rad/s] at joints `q` `[j]` [rad] at which the tool keeps its caps."""
        total = float(np.abs(velocity).sum())
        if total * self._reach <= self.linear and total <= self.angular:
            return 1.0
        # A turn of any joint by s moves each column of the linear part by at most `reach * s`, of the angular by s.
        loose = total * float(np.abs(q - self._q).sum())
        linear, angular = self._speeds(velocity)
        if not (linear + self._reach * loose <= self.linear and angular + loose <= self.angular):
            self._q, self._jacobian = q, self.kinematics.forward(q).jacobian
            linear, angular = self._speeds(velocity)
        return min(1.0, self.linear / max(linear, 1e-9), self.angular / max(angular, 1e-9))

    def _speeds(self, velocity: Array) -> tuple[float, float]:
        vx, vy, vz, wx, wy, wz = (self._jacobian @ velocity).tolist()
        return math.sqrt(vx * vx + vy * vy + vz * vz), math.sqrt(wx * wx + wy * wy + wz * wz)
