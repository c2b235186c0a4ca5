"""Laws of SO(3) and SE(3)."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from gr2.wbc.robot import transforms as tf

ANGLES = [0.0, 1e-9, 1e-5, 0.9e-4, 1.1e-4, 0.3, 1.7, 3.0, np.pi - 1e-7]


def _vectors(angle: float) -> np.ndarray:
    axes = np.random.default_rng(0).normal(size=(20, 3))
    return angle * axes / np.linalg.norm(axes, axis=1, keepdims=True)


@pytest.mark.parametrize("angle", ANGLES)
def test_exp_is_a_rotation_and_log_inverts_it(angle: float) -> None:
    for r in _vectors(angle):
        rotation = tf.rotation_exp(r)
        np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=1e-14)
        assert np.linalg.det(rotation) == pytest.approx(1.0)
        np.testing.assert_allclose(rotation, Rotation.from_rotvec(r).as_matrix(), atol=1e-14)
        np.testing.assert_allclose(tf.rotation_log(rotation), r, atol=2e-8)


def test_log_at_half_a_turn_is_a_half_turn() -> None:
    for r in _vectors(np.pi):
        log = tf.rotation_log(tf.rotation_exp(r))
        assert min(np.abs(log - r).max(), np.abs(log + r).max()) < 1e-7


def test_quaternions_agree_with_matrices_in_every_branch() -> None:
    for quaternion in np.random.default_rng(1).normal(size=(200, 4)):
        unit = quaternion / np.linalg.norm(quaternion)
        matrix = tf.matrix_from_quaternion(quaternion)
        np.testing.assert_allclose(matrix, Rotation.from_quat(unit).as_matrix(), atol=1e-14)
        back = tf.quaternion_from_matrix(matrix)
        assert back[3] >= 0.0
        assert abs(float(back @ unit)) == pytest.approx(1.0, abs=1e-14)


def test_roll_pitch_yaw_are_about_fixed_axes() -> None:
    for rpy in np.random.default_rng(2).uniform(-3, 3, (20, 3)):
        expected = Rotation.from_euler("xyz", rpy).as_matrix()
        np.testing.assert_allclose(tf.matrix_from_rpy(rpy), expected, atol=1e-14)


@pytest.mark.parametrize("angle", ANGLES)
def test_pose_log_inverts_exp_and_inverse_composes_to_identity(angle: float) -> None:
    for r in _vectors(angle):
        twist = np.concatenate([[0.3, -0.2, 0.5], r])
        pose = tf.pose_exp(twist)
        np.testing.assert_allclose(tf.pose_log(pose), twist, atol=5e-8)
        np.testing.assert_allclose(pose @ tf.pose_inverse(pose), np.eye(4), atol=1e-14)
        half = tf.pose_exp(0.5 * twist)
        np.testing.assert_allclose(half @ half, pose, atol=1e-13)


@pytest.mark.parametrize("angle", ANGLES)
def test_left_jacobian_is_the_derivative_of_exp(angle: float) -> None:
    step = 1e-6
    for r, direction in zip(_vectors(angle), _vectors(1.0)[::-1], strict=True):
        turned = tf.rotation_exp(r + step * direction) @ tf.rotation_exp(r - step * direction).T
        finite = tf.rotation_log(turned) / (2 * step)
        np.testing.assert_allclose(tf.left_jacobian(r) @ direction, finite, atol=1e-8)
        np.testing.assert_allclose(tf.left_jacobian(r) @ tf.left_jacobian_inverse(r), np.eye(3), atol=1e-9)


@pytest.mark.parametrize("scale", [1e-6, 0.05, 0.099, 0.101, 1.0, 3.5])
def test_rotation_vector_rates_are_time_derivatives(scale: float) -> None:
    base, rate, curve = np.random.default_rng(3).normal(size=(3, 3))

    def vector(t: float) -> np.ndarray:
        return scale * base / np.linalg.norm(base) + rate * t + 0.5 * curve * t * t

    def omega(t: float) -> np.ndarray:
        return tf.left_jacobian(vector(t)) @ (rate + curve * t)

    velocity, acceleration = tf.rotation_vector_rates(vector(0.0), rate, curve)
    np.testing.assert_allclose(velocity, omega(0.0), atol=1e-9)
    np.testing.assert_allclose(acceleration, (omega(1e-5) - omega(-1e-5)) / 2e-5, atol=1e-8)
