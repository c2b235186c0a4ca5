"""Temporal ensembling: average what overlapping trajectories predict for the same instant."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import numpy as np

from ..contracts import ActionTrajectory, Array
from ..errors import ConfigError, ShapeError


@dataclass(frozen=True, kw_only=True)
class EnsembleConfig:
    """decay: weight of the i-th oldest prediction is `exp(-decay * i)`, i = 0 the oldest; 0 averages evenly.

    Source: ACT, arXiv 2304.13705, section IV-A.
    """

    decay: float = 0.01

    def __post_init__(self) -> None:
        if not np.isfinite(self.decay):
            raise ConfigError(f"EnsembleConfig.decay: expected a finite number, got {self.decay}; 0.01 is usual.")


def mean_quaternion(quaternions: Array, weights: Array) -> Array:
    """Average unit quaternions `[m 4]` with weights `[m]`, whatever their signs.

    Source: Markley et al. 2007, the dominant eigenvector of the weighted outer products.
    """
    _, vectors = np.linalg.eigh(np.einsum("m,mi,mj->ij", weights, quaternions, quaternions))
    mean = vectors[:, -1]
    return mean if mean @ quaternions[-1] >= 0 else -mean


class TemporalEnsemble:
    """Keep recent trajectories and blend each new one with what they predict for the same instants."""

    def __init__(self, config: EnsembleConfig | None = None) -> None:
        self.config = config or EnsembleConfig()
        self._recent: deque[ActionTrajectory] = deque()

    def reset(self) -> None:
        """Forget every trajectory."""
        self._recent.clear()

    def blend(self, trajectory: ActionTrajectory) -> ActionTrajectory:
        """Add `trajectory`; return it with every pose replaced by the weighted mean over all that cover it.

        Raises:
            ShapeError: another `dt` than before, or a start that is not a whole number of steps after the
            earlier ones.
        """
        while self._recent and self._last_time(self._recent[0]) < trajectory.start_time + 0.5 * trajectory.dt:
            self._recent.popleft()
        self._recent.append(trajectory)
        k = len(trajectory.positions)
        rows = [self._rows(i, trajectory) for i in range(k)]
        return ActionTrajectory(
            positions=np.stack([row[0] for row in rows]),
            quaternions=np.stack([row[1] for row in rows]),
            gripper=np.array([row[2] for row in rows]),
            dt=trajectory.dt,
            start_time=trajectory.start_time,
            arm=trajectory.arm,
        )

    @staticmethod
    def _last_time(trajectory: ActionTrajectory) -> float:
        return trajectory.start_time + len(trajectory.positions) * trajectory.dt

    def _rows(self, index: int, newest: ActionTrajectory) -> tuple[Array, Array, float]:
        covering = []
        for trajectory in self._recent:
            shift = self._shift(trajectory, newest)
            if index + shift < len(trajectory.positions):
                covering.append((trajectory, index + shift))
        weights = np.exp(-self.config.decay * np.arange(len(covering)))
        weights /= weights.sum()
        positions = np.stack([t.positions[i] for t, i in covering])
        quaternions = np.stack([t.quaternions[i] for t, i in covering])
        gripper = np.array([t.gripper[i] for t, i in covering])
        return weights @ positions, mean_quaternion(quaternions, weights), float(weights @ gripper)

    @staticmethod
    def _shift(older: ActionTrajectory, newer: ActionTrajectory) -> int:
        steps = (newer.start_time - older.start_time) / newer.dt
        if abs(older.dt - newer.dt) > 1e-9 or abs(steps - round(steps)) > 1e-3:
            raise ShapeError(
                f"TemporalEnsemble: expected trajectories on one time grid, got dt {older.dt} and "
                f"{newer.dt} s and "
                f"starts {steps:.3f} steps apart; reset the ensemble when the clock changes."
            )
        return round(steps)
