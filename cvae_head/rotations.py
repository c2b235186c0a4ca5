"""Rotations between the conventions in which datasets store them and unit quaternions xyzw; numpy and torch alike."""

from __future__ import annotations

from typing import Any

from .quaternions import _namespace, multiply_quaternions, rotation_vector_to_quaternion


def to_quaternion(values: Any, convention: str) -> Any:
    """Read stored rotations `[.. w]` as unit quaternions `[.. 4]` xyzw.

    Args:
        values: numbers in the convention.
        convention: see `embodiment.rotation_width`.
    """
    xp = _namespace(values)
    if convention == "quaternion_xyzw":
        return values
    if convention == "quaternion_wxyz":
        return xp.concatenate((values[..., 1:], values[..., :1]), axis=-1)
    if convention == "rotation_vector":
        return rotation_vector_to_quaternion(values)
    if convention == "rotation_6d":
        return _from_columns(values[..., :3], values[..., 3:])
    if convention == "matrix":
        return _from_columns(values[..., 0::3], values[..., 1::3])
    axes = convention.removeprefix("euler_")
    turns = [_about(axis, values[..., i]) for i, axis in enumerate(axes.lower())]
    if axes.islower():  # about fixed axes the first turn comes first: it stands last in the product
        turns.reverse()
    return multiply_quaternions(multiply_quaternions(turns[0], turns[1]), turns[2])


def from_quaternion(q: Any, convention: str) -> Any:
    """Write unit quaternions `[.. 4]` xyzw, numpy, in a convention `[.. w]`."""
    import numpy as np
    from scipy.spatial.transform import Rotation

    if convention == "quaternion_xyzw":
        return q
    if convention == "quaternion_wxyz":
        return np.concatenate((q[..., 3:], q[..., :3]), axis=-1)
    turns, shape = Rotation.from_quat(np.reshape(q, (-1, 4))), np.shape(q)[:-1]
    if convention == "rotation_vector":
        return turns.as_rotvec().reshape(*shape, 3)
    if convention in ("rotation_6d", "matrix"):
        matrix = turns.as_matrix().reshape(*shape, 3, 3)
        if convention == "matrix":
            return matrix.reshape(*shape, 9)
        return np.concatenate((matrix[..., 0], matrix[..., 1]), axis=-1)
    return turns.as_euler(convention.removeprefix("euler_")).reshape(*shape, 3)


def _about(axis: str, angle: Any) -> Any:
    """Return quaternions `[.. 4]` of turns `[..]` [rad] about a coordinate axis."""
    xp = _namespace(angle)
    zero = xp.zeros_like(angle)
    parts = [xp.sin(0.5 * angle) if name == axis else zero for name in "xyz"]
    return xp.stack((*parts, xp.cos(0.5 * angle)), axis=-1)


def _from_columns(x: Any, y: Any) -> Any:
    """Return quaternions of the rotations whose matrices have these first two columns `[.. 3]`, made orthonormal.

    Source: Zhou et al., arXiv 1812.07035 (Gram-Schmidt); of the four ways to read a quaternion from a matrix each
    sample takes the one that divides by the largest number.
    """
    xp = _namespace(x)

    def unit(v: Any) -> Any:
        return v / xp.sqrt(xp.sum(v * v, axis=-1, keepdims=True)).clip(1e-12)

    x = unit(x)
    y = unit(y - xp.sum(x * y, axis=-1, keepdims=True) * x)
    cross = (
        x[..., 1] * y[..., 2] - x[..., 2] * y[..., 1],
        x[..., 2] * y[..., 0] - x[..., 0] * y[..., 2],
        x[..., 0] * y[..., 1] - x[..., 1] * y[..., 0],
    )
    z = xp.stack(cross, axis=-1)
    m = xp.stack((x, y, z), axis=-1)

    def at(i: int, j: int) -> Any:
        return m[..., i, j]

    trace = at(0, 0) + at(1, 1) + at(2, 2)
    # rows of 4 q q^T: each is the quaternion times one of its own numbers
    w_row = (at(2, 1) - at(1, 2), at(0, 2) - at(2, 0), at(1, 0) - at(0, 1), 1 + trace)
    x_row = (1 + 2 * at(0, 0) - trace, at(0, 1) + at(1, 0), at(0, 2) + at(2, 0), w_row[0])
    y_row = (x_row[1], 1 + 2 * at(1, 1) - trace, at(1, 2) + at(2, 1), w_row[1])
    z_row = (x_row[2], y_row[2], 1 + 2 * at(2, 2) - trace, w_row[2])
    rows = xp.stack([xp.stack(row, axis=-1) for row in (x_row, y_row, z_row, w_row)], axis=-2)
    weights = xp.stack((x_row[0], y_row[1], z_row[2], w_row[3]), axis=-1)
    best = weights.argmax(-1)[..., None, None]
    take = xp.take_along_axis if hasattr(xp, "take_along_axis") else xp.take_along_dim
    taken = take(rows, best, -2)
    return unit(taken[..., 0, :])
