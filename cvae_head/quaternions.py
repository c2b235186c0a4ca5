"""Unit quaternions xyzw and rotation vectors; numpy arrays or torch tensors alike, the same kind returned."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np


def _namespace(array: Any) -> Any:
    """Return the module (numpy or torch) whose functions fit `array`, without importing torch."""
    torch = sys.modules.get("torch")
    return torch if torch is not None and isinstance(array, torch.Tensor) else np


def multiply_quaternions(a: Any, b: Any) -> Any:
    """Compose rotations: `R(result) = R(a) R(b)`. Both `[.. 4]` xyzw."""
    xp = _namespace(a)
    ax, ay, az, aw = (a[..., i] for i in range(4))
    bx, by, bz, bw = (b[..., i] for i in range(4))
    parts = (
        aw * bx + ax * bw + ay * bz - az * by,
        aw * by - ax * bz + ay * bw + az * bx,
        aw * bz + ax * by - ay * bx + az * bw,
        aw * bw - ax * bx - ay * by - az * bz,
    )
    return xp.stack(parts, axis=-1)


def conjugate_quaternion(q: Any) -> Any:
    """Invert unit quaternions `[.. 4]` xyzw."""
    return _namespace(q).concatenate((-q[..., :3], q[..., 3:]), axis=-1)


def quaternion_to_rotation_vector(q: Any) -> Any:
    """Map unit quaternions `[.. 4]` to rotation vectors `[.. 3]` [rad], angle <= pi; `q` and `-q` agree."""
    xp = _namespace(q)
    q = xp.where(q[..., 3:] < 0, -q, q)
    sine = xp.sqrt(xp.sum(q[..., :3] * q[..., :3], axis=-1, keepdims=True))
    angle = 2.0 * xp.arctan2(sine, q[..., 3:])
    small = sine < 1e-6
    return q[..., :3] * xp.where(small, 2.0 / q[..., 3:].clip(0.5), angle / sine.clip(1e-6))


def rotation_vector_to_quaternion(rotation: Any) -> Any:
    """Map rotation vectors `[.. 3]` [rad] to unit quaternions `[.. 4]` xyzw."""
    xp = _namespace(rotation)
    angle = xp.sqrt(xp.sum(rotation * rotation, axis=-1, keepdims=True))
    half = 0.5 * angle
    factor = xp.where(angle < 1e-4, 0.5 - angle * angle / 48.0, xp.sin(half) / angle.clip(1e-4))
    return xp.concatenate((rotation * factor, xp.cos(half)), axis=-1)


def rotation_columns(q: Any) -> Any:
    """Return the first two columns of the rotation matrices of `q` `[.. 4]`, as `[.. 6]`; `q` and `-q` agree.

    Source: the continuous 6-D representation of Zhou et al., arXiv 1812.07035.
    """
    xp = _namespace(q)
    x, y, z, w = (q[..., i] for i in range(4))
    parts = (
        1 - 2 * (y * y + z * z),
        2 * (x * y + z * w),
        2 * (x * z - y * w),
        2 * (x * y - z * w),
        1 - 2 * (x * x + z * z),
        2 * (y * z + x * w),
    )
    return xp.stack(parts, axis=-1)
