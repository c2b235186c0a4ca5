"""Chunks (what the head predicts) and trajectories (timed tool poses): one is the exact inverse of the other.

A chunk row is relative to the tool pose at prediction time, in base-frame axes. It holds the position delta [m] 0-2,
the rotation vector of `R_target R_current^T` [rad] 3-5, and the gripper 6 (1 open, 0 closed). Every function but
`to_trajectory` takes numpy arrays or torch tensors alike and returns the same kind.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

from ..contracts import ACTION_DIM, STATE_DIM, ActionTrajectory, Array, Observation
from ..errors import ShapeError

CHUNK_DIM = 7
"""Numbers of a chunk row: position delta [m] 3, rotation vector [rad] 3, gripper 1."""

POSE_DIM = 6
"""The continuous part of a chunk row."""

GRIPPER_THRESHOLD = 0.5
"""Opening above which a commanded or predicted gripper counts as open."""

STATE_FEATURES = 11
"""Features without joints: position [m] 3, two columns of the rotation matrix 6, opening, last command."""

JOINT_FEATURES = 7


def _namespace(array: Any) -> Any:
    """Return the module (numpy or torch) whose functions fit `array`, without importing torch."""
    torch = sys.modules.get("torch")
    return torch if torch is not None and isinstance(array, torch.Tensor) else np


def _expect_last(name: str, array: Any, size: int) -> None:
    if array.shape[-1] != size:
        raise ShapeError(
            f"{name}: expected a last axis of {size}, got shape {tuple(array.shape)}; "
            "pass robot states and actions in the layout of gr2.contracts."
        )


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


def chunk_targets(state: Any, actions: Any) -> Any:
    """Express commanded tool poses relative to the current one.

    Args:
        state: `[.. 16]`, the robot state when the chunk begins.
        actions: `[.. k 8]`, commanded tool poses.

    Returns:
        `[.. k 7]` chunk, see the module.

    Raises:
        ShapeError: a last axis that is not the one of the contracts.
    """
    _expect_last("state", state, STATE_DIM)
    _expect_last("actions", actions, ACTION_DIM)
    xp = _namespace(actions)
    delta = actions[..., :3] - state[..., None, :3]
    inverse = conjugate_quaternion(state[..., None, 3:7])
    rotation = quaternion_to_rotation_vector(multiply_quaternions(actions[..., 3:7], inverse))
    gripper = xp.where(actions[..., 7:] > GRIPPER_THRESHOLD, xp.ones_like(delta[..., :1]), 0.0)
    return xp.concatenate((delta, rotation, gripper), axis=-1)


def chunk_poses(state: Any, chunk: Any) -> tuple[Any, Any]:
    """Turn chunks `[.. k 7]` at states `[.. 16]` into positions `[.. k 3]` [m] and quaternions `[.. k 4]`."""
    _expect_last("chunk", chunk, CHUNK_DIM)
    positions = chunk[..., :3] + state[..., None, :3]
    turn = rotation_vector_to_quaternion(chunk[..., 3:6])
    return positions, multiply_quaternions(turn, state[..., None, 3:7])


def to_trajectory(chunk: Array, observation: Observation, dt: float) -> ActionTrajectory:
    """Place a chunk `[k 7]` at the tool pose of `observation`; pose i is due `(i + 1) * dt` [s] later."""
    state = observation.state_vector().astype(np.float64)
    state[3:7] /= np.linalg.norm(state[3:7])
    positions, quaternions = chunk_poses(state, np.asarray(chunk, dtype=np.float64))
    gripper = (np.asarray(chunk)[..., 6] > GRIPPER_THRESHOLD).astype(np.float64)
    return ActionTrajectory(
        positions=positions,
        quaternions=quaternions / np.linalg.norm(quaternions, axis=-1, keepdims=True),
        gripper=gripper,
        dt=dt,
        start_time=observation.time,
    )


def state_after(state: Any, chunk: Any, steps: int) -> Any:
    """Return the states `[.. 16]` that following chunks `[.. k 7]` for `steps` control steps leads to.

    The tool is taken to be where it was commanded to be, the fingers half-way between where they were and the
    command; joints are kept as they were.
    """
    xp = _namespace(state)
    positions, quaternions = chunk_poses(state, chunk)
    last = min(steps, chunk.shape[-2]) - 1
    command = xp.where(chunk[..., last, 6:7] > GRIPPER_THRESHOLD, 1.0, 0.0)
    opening = 0.5 * (state[..., 7:8] + command)
    parts = [positions[..., last, :], quaternions[..., last, :], opening, command, state[..., 9:]]
    return xp.concatenate(parts, axis=-1)


def state_features(states: Any, *, joints: bool = False) -> Any:
    """Describe robot states `[.. 16]` by numbers that do not depend on the sign of the quaternion.

    Returns:
        `[.. 11]`, or `[.. 18]` with `joints` [rad].
    """
    _expect_last("states", states, STATE_DIM)
    xp = _namespace(states)
    parts = [states[..., :3], rotation_columns(states[..., 3:7]), states[..., 7:9]]
    if joints:
        parts.append(states[..., 9:])
    return xp.concatenate(parts, axis=-1)
