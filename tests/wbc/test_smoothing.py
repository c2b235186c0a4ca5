"""The chunk smoother: continuity, rest, caps, and how well re-planned chunks follow the truth."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from gr2.errors import ControlError
from gr2.wbc.reference import SmoothTrajectory, ToolState, resting
from gr2.wbc.robot.transforms import quaternion_from_matrix, rotation_exp, rotation_log
from gr2.wbc.smoothing import SmoothingConfig, smooth_chunk

PERIOD = 1.0 / 30.0


def _truth(t: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    position = np.stack([0.12 * np.sin(1.1 * t), 0.1 * np.sin(1.7 * t + 1), 0.08 * np.sin(2.3 * t + 2)], -1)
    rotation = np.stack([0.4 * np.sin(0.9 * t), 0.3 * np.sin(1.3 * t + 0.5), 0.6 * np.sin(1.5 * t + 1)], -1)
    return position, rotation


def _quaternions(vectors: np.ndarray) -> np.ndarray:
    return np.array([quaternion_from_matrix(rotation_exp(r)) for r in vectors])


def _replanned(noise: float, config: SmoothingConfig) -> list[tuple[float, SmoothTrajectory]]:
    """Chunks of 10 poses, a new one every 5 poses, each with independent noise [m]."""
    rng = np.random.default_rng(1)
    position, rotation = _truth(np.array(0.0))
    state, plans = resting(position, rotation_exp(rotation)), []
    for chunk in range(40):
        start = chunk * 5 * PERIOD
        if plans:
            state = plans[-1][1].state(start)
        due = start + (np.arange(10) + 1) * PERIOD
        positions, rotations = _truth(due)
        positions = positions + noise * rng.normal(size=positions.shape)
        rotations = rotations + 8.7 * noise * rng.normal(size=rotations.shape)
        plan = smooth_chunk(state, start, positions, _quaternions(rotations), due, PERIOD, config)
        plans.append((start, plan))
    return plans


def _difference(a: ToolState, b: ToolState) -> list[float]:
    return [
        float(np.linalg.norm(a.position - b.position)),
        float(np.linalg.norm(rotation_log(a.rotation @ b.rotation.T))),
        float(np.linalg.norm(a.velocity - b.velocity)),
        float(np.linalg.norm(a.angular_velocity - b.angular_velocity)),
        float(np.linalg.norm(a.acceleration - b.acceleration)),
        float(np.linalg.norm(a.angular_acceleration - b.angular_acceleration)),
    ]


def test_swaps_are_continuous_to_the_second_derivative() -> None:
    plans = _replanned(0.002, SmoothingConfig())
    for (_, before), (start, after) in pairwise(plans):
        assert max(_difference(before.state(start), after.state(start))) < 1e-9


def test_pieces_join_and_derivatives_are_consistent() -> None:
    _, plan = _replanned(0.002, SmoothingConfig())[7]
    for piece in range(1, len(plan.coefficients)):
        knot = plan.start_time + piece * plan.span
        assert max(_difference(plan.state(knot - 1e-9), plan.state(knot + 1e-9))) < 1e-5
    step = 1e-5
    for time in np.linspace(plan.start_time + 0.01, plan.end_time - 0.01, 17):
        ahead, here, behind = plan.state(time + step), plan.state(time), plan.state(time - step)
        finite = (ahead.position - behind.position) / (2 * step)
        np.testing.assert_allclose(here.velocity, finite, atol=1e-6)
        finite = rotation_log(ahead.rotation @ behind.rotation.T) / (2 * step)
        np.testing.assert_allclose(here.angular_velocity, finite, atol=1e-6)
        np.testing.assert_allclose(here.acceleration, (ahead.velocity - behind.velocity) / (2 * step), atol=1e-5)
        finite = (ahead.angular_velocity - behind.angular_velocity) / (2 * step)
        np.testing.assert_allclose(here.angular_acceleration, finite, atol=1e-5)


def test_every_chunk_ends_at_rest_near_its_last_pose() -> None:
    for start, plan in _replanned(0.0, SmoothingConfig()):
        state = plan.state(plan.end_time - 1e-9)
        motion = [state.velocity, state.angular_velocity, state.acceleration, state.angular_acceleration]
        assert np.abs(motion).max() < 1e-5
        assert np.linalg.norm(state.position - _truth(np.array(start + 10 * PERIOD))[0]) < 2e-3
        np.testing.assert_allclose(plan.pose(plan.end_time)[0], plan.pose(plan.end_time + 9.0)[0], atol=1e-12)


@pytest.mark.parametrize(("noise", "rms_mm", "max_mm"), [(0.0, 0.3, 0.6), (0.002, 2.0, 4.5)])
def test_replanned_chunks_follow_the_truth_without_lag(noise: float, rms_mm: float, max_mm: float) -> None:
    errors, speeds = [], []
    for start, plan in _replanned(noise, SmoothingConfig())[6:]:
        for time in start + np.arange(0.0, 5 * PERIOD, 0.005):
            errors.append(plan.pose(time)[0] - _truth(np.array(time))[0])
            speeds.append((_truth(np.array(time + 1e-4))[0] - _truth(np.array(time - 1e-4))[0]) / 2e-4)
    error, speed = np.array(errors), np.array(speeds)
    assert np.sqrt(np.square(error).sum(1).mean()) * 1e3 < rms_mm
    assert np.linalg.norm(error, axis=1).max() * 1e3 < max_mm
    lag = -(error * speed).sum() / (speed * speed).sum()
    assert abs(lag) < 0.003


def test_smoothness_trades_acceleration_for_distance() -> None:
    roughness = []
    for smoothness in (1.0, 10.0, 100.0):
        plans = _replanned(0.002, SmoothingConfig(smoothness=smoothness))[6:]
        peaks = [np.linalg.norm(p.state(s + t).acceleration) for s, p in plans for t in np.arange(0, 0.16, 0.01)]
        roughness.append(np.sqrt(np.mean(np.square(peaks))))
    assert roughness[0] > roughness[1] > roughness[2]


def test_far_chunks_are_stretched_to_the_caps() -> None:
    config = SmoothingConfig()
    due = (np.arange(10) + 1) * PERIOD
    goal = np.tile([[0.4, -0.3, 0.2]], (10, 1))
    turn = np.tile(quaternion_from_matrix(rotation_exp([0.0, 0.0, 2.5]))[None], (10, 1))
    plan = smooth_chunk(resting(np.zeros(3), np.eye(3)), 0.0, goal, turn, due, PERIOD, config)
    states = [plan.state(t) for t in np.linspace(0.0, plan.end_time, 400)]
    assert plan.stretch > 2.0
    assert max(np.linalg.norm(s.velocity) for s in states) <= 1.05 * config.linear_speed
    assert max(np.linalg.norm(s.angular_velocity) for s in states) <= 1.05 * config.angular_speed
    assert max(np.linalg.norm(s.acceleration) for s in states) <= 1.05 * config.linear_acceleration
    np.testing.assert_allclose(plan.pose(plan.end_time)[0], goal[-1], atol=5e-3)
    np.testing.assert_allclose(plan.due, plan.stretch * due)


def test_rotation_through_half_a_turn_does_not_flip_back() -> None:
    angles = np.linspace(0.3, 3.6, 12)
    due = (np.arange(12) + 1) * 0.5
    quaternions = _quaternions(np.outer(angles, [0.0, 0.6, 0.8]))
    plan = smooth_chunk(
        resting(np.zeros(3), np.eye(3)), 0.0, np.zeros((12, 3)), quaternions, due, 0.5, SmoothingConfig()
    )
    last = plan.pose(plan.end_time)[1] @ rotation_exp(np.outer(angles, [0.0, 0.6, 0.8])[-1]).T
    assert np.linalg.norm(rotation_log(last)) < 0.05
    turned = [plan.state(t).angular_velocity @ [0.0, 0.6, 0.8] for t in np.linspace(0.1, 5.5, 50)]
    assert min(turned) > 0.0


def test_a_whole_turn_in_one_chunk_is_refused() -> None:
    angles = np.linspace(0.5, 6.0, 12)
    due = (np.arange(12) + 1) * 0.5
    quaternions = _quaternions(np.outer(angles, [0.0, 0.0, 1.0]))
    with pytest.raises(ControlError, match="shorter chunks"):
        smooth_chunk(resting(np.zeros(3), np.eye(3)), 0.0, np.zeros((12, 3)), quaternions, due, 0.5, SmoothingConfig())
