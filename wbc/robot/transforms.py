"""Rotations and rigid motions: SO(3) and SE(3) in plain numpy.

Rotation vectors `r` are axis times angle [rad]. Twists and their logarithms stack the linear part first:
`[v; w]`. Quaternions are `xyzw`. Most functions work on single elements, with scalar arithmetic, because that
is several times faster than array code at this size.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

SMALL_ANGLE = 1e-4
"""Angle [rad] below which the coefficients come from their Taylor series."""


def hat(vector: npt.ArrayLike) -> Array:
    """Return the `[3 3]` matrix that multiplies as the cross product with `vector` `[3]`."""
    x, y, z = np.asarray(vector, dtype=np.float64).tolist()
    return np.array([[0.0, -z, y], [z, 0.0, -x], [-y, x, 0.0]])


def _coefficients(angle_squared: float) -> tuple[float, float, float]:
    """Return `sin(a)/a`, `(1 - cos(a))/a^2` and `(a - sin(a))/a^3`."""
    if angle_squared < SMALL_ANGLE**2:
        return 1.0 - angle_squared / 6.0, 0.5 - angle_squared / 24.0, 1.0 / 6.0 - angle_squared / 120.0
    angle = math.sqrt(angle_squared)
    sine = math.sin(angle)
    versine = 2.0 * math.sin(0.5 * angle) ** 2
    return sine / angle, versine / angle_squared, (angle - sine) / (angle_squared * angle)


def rotation_exp(vector: npt.ArrayLike) -> Array:
    """Map a rotation vector `[3]` [rad] to its rotation matrix `[3 3]` (Rodrigues)."""
    x, y, z = np.asarray(vector, dtype=np.float64).tolist()
    s, c, _ = _coefficients(x * x + y * y + z * z)
    return np.array(
        [
            [1.0 - c * (y * y + z * z), c * x * y - s * z, c * x * z + s * y],
            [c * x * y + s * z, 1.0 - c * (x * x + z * z), c * y * z - s * x],
            [c * x * z - s * y, c * y * z + s * x, 1.0 - c * (x * x + y * y)],
        ]
    )


def quaternion_from_matrix(rotation: Array) -> Array:
    """Return the unit quaternion xyzw `[4]` of `rotation` `[3 3]`, with w >= 0.

    Source: S. W. Shepperd, Quaternion from rotation matrix, 1978 (the largest component is found first).
    """
    (a, b, c), (d, e, f), (g, h, i) = rotation.tolist()
    trace = a + e + i
    if trace >= a and trace >= e and trace >= i:
        x, y, z, w = h - f, c - g, d - b, 1.0 + trace
    elif a >= e and a >= i:
        x, y, z, w = 1.0 + a - e - i, b + d, c + g, h - f
    elif e >= i:
        x, y, z, w = b + d, 1.0 + e - a - i, f + h, c - g
    else:
        x, y, z, w = c + g, f + h, 1.0 + i - a - e, d - b
    scale = math.copysign(1.0, w) / math.sqrt(x * x + y * y + z * z + w * w)
    return np.array([x * scale, y * scale, z * scale, w * scale])


def matrix_from_quaternion(quaternion: npt.ArrayLike) -> Array:
    """Return the rotation matrix `[3 3]` of a quaternion xyzw `[4]`, normalized first."""
    x, y, z, w = np.asarray(quaternion, dtype=np.float64).tolist()
    s = 2.0 / (x * x + y * y + z * z + w * w)
    return np.array(
        [
            [1.0 - s * (y * y + z * z), s * (x * y - z * w), s * (x * z + y * w)],
            [s * (x * y + z * w), 1.0 - s * (x * x + z * z), s * (y * z - x * w)],
            [s * (x * z - y * w), s * (y * z + x * w), 1.0 - s * (x * x + y * y)],
        ]
    )


def matrix_from_rpy(rpy: npt.ArrayLike) -> Array:
    """Return the rotation matrix of fixed-axis roll, pitch, yaw [rad], as in URDF and pybullet."""
    roll, pitch, yaw = np.asarray(rpy, dtype=np.float64).tolist()
    return rotation_exp([0.0, 0.0, yaw]) @ rotation_exp([0.0, pitch, 0.0]) @ rotation_exp([roll, 0.0, 0.0])


def rotation_log(rotation: Array) -> Array:
    """Map a rotation matrix `[3 3]` to its rotation vector `[3]`, of angle in [0, pi] [rad]."""
    x, y, z, w = quaternion_from_matrix(rotation).tolist()
    sine = math.sqrt(x * x + y * y + z * z)
    scale = 2.0 if sine < 1e-12 else 2.0 * math.atan2(sine, w) / sine
    return np.array([x * scale, y * scale, z * scale])


def rotation_logs(rotations: Array) -> Array:
    """Map rotation matrices `[m 3 3]` to rotation vectors `[m 3]` [rad]."""
    vee = 0.5 * np.stack(
        [
            rotations[:, 2, 1] - rotations[:, 1, 2],
            rotations[:, 0, 2] - rotations[:, 2, 0],
            rotations[:, 1, 0] - rotations[:, 0, 1],
        ],
        axis=1,
    )
    sine, cosine = np.sqrt(np.square(vee).sum(1)), 0.5 * (np.trace(rotations, axis1=1, axis2=2) - 1.0)
    logs: Array = vee * np.where(sine > 1e-9, np.arctan2(sine, cosine) / np.maximum(sine, 1e-9), 1.0)[:, None]
    for index in np.flatnonzero(cosine < -0.9):
        logs[index] = rotation_log(rotations[index])
    return logs


def left_jacobian(vector: npt.ArrayLike) -> Array:
    """Return `J` `[3 3]` with `w = J(r) dr/dt`: the angular velocity, in the fixed frame, of `exp(r)`."""
    r = np.asarray(vector, dtype=np.float64)
    _, c, e = _coefficients(float(r @ r))
    k = hat(r)
    return np.eye(3) + c * k + e * (k @ k)


def left_jacobian_inverse(vector: npt.ArrayLike) -> Array:
    """Return the inverse of `left_jacobian`; singular at an angle of 2 pi."""
    r = np.asarray(vector, dtype=np.float64)
    angle_squared = float(r @ r)
    s, c, _ = _coefficients(angle_squared)
    if angle_squared < 1e-6:
        factor = 1.0 / 12.0 + angle_squared / 720.0
    else:
        factor = (1.0 - 0.5 * s / c) / angle_squared
    k = hat(r)
    return np.eye(3) - 0.5 * k + factor * (k @ k)


def pose_matrix(position: npt.ArrayLike, rotation: Array) -> Array:
    """Assemble the pose `[4 4]` from a position `[3]` [m] and a rotation matrix `[3 3]`."""
    pose = np.eye(4)
    pose[:3, :3] = rotation
    pose[:3, 3] = position
    return pose


def pose_inverse(pose: Array) -> Array:
    """Return the inverse of a pose `[4 4]`."""
    rotation = pose[:3, :3].T
    return pose_matrix(-rotation @ pose[:3, 3], rotation)


def pose_exp(twist: npt.ArrayLike) -> Array:
    """Map `[v; w]` `[6]` [m, rad] to the pose `[4 4]` reached by this constant twist in unit time."""
    xi = np.asarray(twist, dtype=np.float64)
    return pose_matrix(left_jacobian(xi[3:]) @ xi[:3], rotation_exp(xi[3:]))


def pose_log(pose: Array) -> Array:
    """Map a pose `[4 4]` to the twist `[6]` that `pose_exp` turns back into it."""
    r = rotation_log(pose[:3, :3])
    return np.concatenate([left_jacobian_inverse(r) @ pose[:3, 3], r])


def rotation_vector_rates(r: Array, dr: Array, ddr: Array) -> tuple[Array, Array]:
    """Return angular velocity and acceleration `[3]` of `exp(r(t))` in the fixed frame.

    Differentiates `w = dr + A r x dr + B r x (r x dr)` with `A = (1 - cos a)/a^2`, `B = (a - sin a)/a^3`.

    Args:
        r: rotation vector [rad].
        dr: its first time derivative [rad/s].
        ddr: its second time derivative [rad/s^2].
    """
    square = float(r @ r)
    _, a, b = _coefficients(square)
    if square < 1e-2:
        da = -1.0 / 12.0 + square / 180.0 - square**2 / 6720.0
        db = -1.0 / 60.0 + square / 1260.0 - square**2 / 60480.0
    else:
        angle = math.sqrt(square)
        sine, cosine = math.sin(angle), math.cos(angle)
        da = (angle * sine - 2.0 * (1.0 - cosine)) / square**2
        db = (3.0 * sine - angle * cosine - 2.0 * angle) / (square**2 * angle)
    slope = float(r @ dr)
    first, second = np.cross(r, dr), np.cross(r, ddr)
    velocity = dr + a * first + b * np.cross(r, first)
    acceleration = ddr + slope * (da * first + db * np.cross(r, first)) + a * second
    acceleration += b * (np.cross(dr, first) + np.cross(r, second))
    return velocity, acceleration
