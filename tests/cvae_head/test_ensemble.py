"""Temporal ensembling: the offline formula, and one clock for all."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from gr2.contracts import ActionTrajectory, JointTrajectory, SignalTrajectory
from gr2.cvae_head.ensemble import EnsembleConfig, TemporalEnsemble
from gr2.embodiment import Signal
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


def test_ensemble_averages_joints_and_leaves_an_absent_gripper_absent() -> None:
    rng = np.random.default_rng(1)
    first, second = (
        JointTrajectory(positions=rng.normal(size=(4, 7)), gripper=None, dt=0.1, start_time=start) for start in (0, 0.1)
    )
    ensemble = TemporalEnsemble(EnsembleConfig(decay=0.0))
    np.testing.assert_allclose(ensemble.blend(first).positions, first.positions)
    blended = ensemble.blend(second)
    assert isinstance(blended, JointTrajectory) and blended.gripper is None
    np.testing.assert_allclose(blended.positions[:3], 0.5 * (first.positions[1:] + second.positions[:3]))
    np.testing.assert_allclose(blended.positions[3], second.positions[3])


def test_ensemble_averages_signals_by_what_they_are() -> None:
    rng = np.random.default_rng(2)
    signals = (
        Signal(name="hand", width=4, kind="rotation", rotation="quaternion_xyzw"),
        Signal(name="grip", width=1, kind="gripper", binary=True),
        Signal(name="base", width=2),
    )
    turns = Rotation.from_rotvec(0.2 * rng.normal(size=(3, 3)))
    rows = [np.column_stack((sign * turns.as_quat(), [1, 1, 1], rng.normal(size=(3, 2)))) for sign in (1, -1)]
    ensemble = TemporalEnsemble(EnsembleConfig(decay=0.0))
    both = [ensemble.blend(SignalTrajectory(values=v, dt=0.1, start_time=0.0), signals=signals) for v in rows]
    found = both[1].values
    np.testing.assert_allclose(np.abs((found[:, :4] * turns.as_quat()).sum(1)), 1.0)
    np.testing.assert_allclose(found[:, 4], 1.0)
    np.testing.assert_allclose(found[:, 5:], 0.5 * (rows[0] + rows[1])[:, 5:])
    with pytest.raises(ShapeError, match="expected signals of 7 numbers together, got 4"):
        ensemble.blend(SignalTrajectory(values=rows[0], dt=0.1, start_time=0.1), signals=signals[:1])
