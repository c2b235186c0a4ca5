"""Temporal ensembling: the offline formula, and one clock for all."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from gr2.contracts import ActionTrajectory
from gr2.cvae_head.ensemble import EnsembleConfig, TemporalEnsemble
from gr2.errors import ShapeError


def trajectory_at(start: int, k: int, rng: np.random.Generator) -> ActionTrajectory:
    quaternions = Rotation.from_rotvec(0.1 * rng.normal(size=(k, 3))).as_quat()
    return ActionTrajectory(
        positions=rng.normal(size=(k, 3)),
        quaternions=quaternions * rng.choice([-1, 1], size=(k, 1)),
        gripper=rng.random(k),
        dt=0.1,
        start_time=start * 0.1,
    )


def test_ensemble_follows_the_offline_formula() -> None:
    rng = np.random.default_rng(0)
    trajectories = [trajectory_at(start, 6, rng) for start in (0, 2, 4, 6, 8)]
    ensemble = TemporalEnsemble(EnsembleConfig(decay=0.3))
    blended = [ensemble.blend(trajectory) for trajectory in trajectories]
    for number, (start, result) in enumerate(zip((0, 2, 4, 6, 8), blended, strict=True)):
        for i in range(6):
            covering = [
                (t, start + i - s)
                for t, s in zip(trajectories[: number + 1], (0, 2, 4, 6, 8), strict=False)
                if 0 <= start + i - s < 6
            ]
            weights = np.exp(-0.3 * np.arange(len(covering)))
            weights /= weights.sum()
            expected = sum(w * t.positions[j] for w, (t, j) in zip(weights, covering, strict=True))
            np.testing.assert_allclose(result.positions[i], expected, atol=1e-12)
            mean = Rotation.from_quat([t.quaternions[j] for t, j in covering]).mean(weights)
            assert abs(mean.as_quat() @ result.quaternions[i]) == pytest.approx(1, abs=1e-9)


def test_ensemble_refuses_another_clock() -> None:
    rng = np.random.default_rng(0)
    ensemble = TemporalEnsemble()
    ensemble.blend(trajectory_at(0, 6, rng))
    odd = trajectory_at(1, 6, rng)
    with pytest.raises(ShapeError, match="one time grid"):
        ensemble.blend(
            ActionTrajectory(
                positions=odd.positions,
                quaternions=odd.quaternions,
                gripper=odd.gripper,
                dt=0.1,
                start_time=0.13,
            )
        )
