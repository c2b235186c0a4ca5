"""Chunks, trajectories, the losses of the head and temporal ensembling."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from gr2.contracts import ActionTrajectory, JointTrajectory, Observation, SignalTrajectory
from gr2.cvae_head.ensemble import EnsembleConfig, TemporalEnsemble
from gr2.cvae_head.losses import continuous_loss, masked_mean
from gr2.cvae_head.trajectory import chunk_targets, state_features, to_trajectory
from gr2.embodiment import Signal
from gr2.errors import ShapeError


def random_steps(rng: np.random.Generator, count: int, k: int) -> tuple[np.ndarray, np.ndarray]:
    states = rng.normal(size=(count, 16))
    actions = rng.normal(size=(count, k, 8))
    for rows in (states, actions):
        rows[..., 3:7] /= np.linalg.norm(rows[..., 3:7], axis=-1, keepdims=True)
    actions[..., 7] = rng.integers(0, 2, size=(count, k))
    return states, actions


def observation_of(state: np.ndarray, time: float = 2.0) -> Observation:
    return Observation(
        images={},
        tool_position=state[:3],
        tool_quaternion=state[3:7],
        gripper_opening=float(state[7]),
        gripper_command=float(state[8]),
        joint_positions=state[9:],
        instruction="",
        time=time,
    )


def test_chunk_agrees_with_scipy() -> None:
    states, actions = random_steps(np.random.default_rng(0), 20, 3)
    chunk = chunk_targets(states, actions)
    for i in range(20):
        for j in range(3):
            turn = Rotation.from_quat(actions[i, j, 3:7]) * Rotation.from_quat(states[i, 3:7]).inv()
            np.testing.assert_allclose(chunk[i, j, 3:6], turn.as_rotvec(), atol=1e-9)
    np.testing.assert_allclose(chunk[..., :3], actions[..., :3] - states[:, None, :3])


def test_trajectory_inverts_chunk() -> None:
    states, actions = random_steps(np.random.default_rng(1), 10, 4)
    states, actions = states.astype(np.float32).astype(np.float64), actions
    for state, action in zip(states, actions, strict=True):
        state[3:7] /= np.linalg.norm(state[3:7])
        trajectory = to_trajectory(chunk_targets(state, action), observation_of(state), 1 / 30)
        np.testing.assert_allclose(trajectory.positions, action[:, :3], atol=1e-6)
        agreement = np.abs(np.sum(trajectory.quaternions * action[:, 3:7], axis=-1))
        np.testing.assert_allclose(agreement, 1, atol=1e-6)
        np.testing.assert_array_equal(trajectory.gripper, action[:, 7])
        assert trajectory.start_time == 2.0


@pytest.mark.parametrize("angle", [0.0, 1e-9, 1e-5, 1e-3, 1.0, np.pi - 1e-6])
def test_rotation_of_any_size_survives(angle: float) -> None:
    state = np.zeros(16)
    state[6] = 1
    action = np.zeros((1, 8))
    action[0, 3:7] = Rotation.from_rotvec([0, angle, 0]).as_quat()
    chunk = chunk_targets(state, action)
    np.testing.assert_allclose(chunk[0, 3:6], [0, angle, 0], rtol=1e-6, atol=1e-12)


def test_signs_of_quaternions_do_not_matter() -> None:
    states, actions = random_steps(np.random.default_rng(2), 50, 2)
    flipped_states, flipped_actions = states.copy(), actions.copy()
    flipped_states[:, 3:7] *= -1
    flipped_actions[..., 3:7] *= -1
    np.testing.assert_allclose(state_features(states), state_features(flipped_states))
    np.testing.assert_allclose(
        chunk_targets(states, actions), chunk_targets(flipped_states, flipped_actions), atol=1e-9
    )
    assert state_features(states).shape == (50, 11)
    assert state_features(states, joints=True).shape == (50, 18)


def test_torch_agrees_with_numpy() -> None:
    states, actions = random_steps(np.random.default_rng(3), 50, 2)
    ours = chunk_targets(torch.tensor(states), torch.tensor(actions))
    np.testing.assert_allclose(ours.numpy(), chunk_targets(states, actions), atol=1e-12)
    np.testing.assert_allclose(state_features(torch.tensor(states)).numpy(), state_features(states))


def test_wrong_layout_is_refused() -> None:
    with pytest.raises(ShapeError, match="state: expected a last axis of 16"):
        chunk_targets(np.zeros(15), np.zeros((2, 8)))


def test_masked_steps_do_not_count() -> None:
    predicted, target = torch.randn(3, 4, 6), torch.randn(3, 4, 6)
    mask = torch.tensor([[1, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]]).bool()[..., None].expand(3, 4, 6)
    before = continuous_loss(predicted, target, mask, "smooth_l1")
    predicted = torch.where(mask, predicted, predicted + 100)
    assert continuous_loss(predicted, target, mask, "smooth_l1") == before
    assert masked_mean(torch.ones(2, 2), torch.zeros(2, 2).bool()) == 0


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
