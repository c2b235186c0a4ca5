"""A disturbed hand: demonstrations that leave the expert's path, so that policies learn the way back."""

from __future__ import annotations

import numpy as np
from scipy.spatial.transform import Rotation


class Hand:
    """Disturbs what the expert commands: a slowly wandering error, now and then a shove, and a grip that opens."""

    def __init__(self, rng: np.random.Generator, active: bool, slips: bool = False) -> None:
        self.rng, self.active = rng, active
        self.scale = rng.uniform(0.3, 1.0) if active else 0.0
        self.error, self.turn, self.shove = np.zeros(3), np.zeros(3), np.zeros(3)
        self.shove_left = 0
        self.closed, self.opens, self.opens_for = 0, 0, 0
        if slips:
            self.opens, self.opens_for = int(rng.integers(2, 45)), int(rng.integers(4, 10))

    def __call__(self, position: np.ndarray, quaternion: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the tool pose that is commanded in place of position `[3]` [m] and quaternion `[4]` xyzw."""
        if not self.active:
            return position, quaternion
        self.error = 0.85 * self.error + self.scale * self.rng.normal(0, 0.006, 3)
        self.turn = 0.85 * self.turn + self.scale * self.rng.normal(0, 0.03, 3)
        if self.shove_left == 0 and self.rng.random() < 0.025:
            self.shove_left = int(self.rng.integers(3, 8))
            self.shove = self.rng.normal(0, 0.022, 3)
        shove = self.shove if self.shove_left else 0.0
        self.shove_left = max(0, self.shove_left - 1)
        turned = Rotation.from_rotvec(self.turn) * Rotation.from_quat(quaternion)
        return position + self.error + shove, turned.as_quat()

    def grip(self, gripper: float) -> float:
        """Return what is commanded in place of a gripper that is open at 1: once, for a moment, open in any case."""
        self.closed += gripper < 0.5
        return 1.0 if self.opens <= self.closed < self.opens + self.opens_for else gripper
