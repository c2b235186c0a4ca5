"""Decide whether a chunk may reach the controller at all."""

from __future__ import annotations

import math

import numpy as np

from ..contracts import ActionTrajectory

ACCEPTED = "accepted"
PENDING = "pending"
REJECTED_SHAPE = "rejected_shape"
REJECTED_NOT_FINITE = "rejected_not_finite"
REJECTED_QUATERNION = "rejected_quaternion"
REJECTED_RANGE = "rejected_range"
REJECTED_TIME = "rejected_time"
REJECTED_ORDER = "rejected_order"
REJECTED_EXPIRED = "rejected_expired"
REJECTED_ROTATION = "rejected_rotation"
REJECTED_STOPPED = "rejected_stopped"
REJECTED_STATE = "rejected_state"
"""The measured joints of a standing arm are too far from the commanded ones; `reset` takes the measured ones over."""

MAX_DISTANCE = 10.0
"""Farthest coordinate [m] taken for a target; unreachable ones below it are approached as far as possible."""
MAX_POSES = 256
MIN_PERIOD, MAX_PERIOD = 1e-4, 10.0
"""Shortest and longest time between poses [s]."""
QUATERNION_TOLERANCE = 1e-3
"""Largest deviation of a quaternion's length from 1; smaller ones are normalised."""


def _array(value: object, shape: tuple[int, ...]) -> bool:
    return (
        isinstance(value, np.ndarray)
        and value.shape == shape
        and (np.issubdtype(value.dtype, np.floating) or np.issubdtype(value.dtype, np.integer))
    )


def check_chunk(trajectory: ActionTrajectory) -> str:
    """Return `ACCEPTED` or the name of the first fault of `trajectory` itself, regardless of the clock."""
    if not isinstance(trajectory, ActionTrajectory) or not isinstance(trajectory.positions, np.ndarray):
        return REJECTED_SHAPE
    count = len(trajectory.positions) if trajectory.positions.ndim else 0
    if not 1 <= count <= MAX_POSES or not (
        _array(trajectory.positions, (count, 3))
        and _array(trajectory.quaternions, (count, 4))
        and _array(trajectory.gripper, (count,))
    ):
        return REJECTED_SHAPE
    if not all(np.all(np.isfinite(a)) for a in (trajectory.positions, trajectory.quaternions, trajectory.gripper)):
        return REJECTED_NOT_FINITE
    if not all(isinstance(t, int | float | np.number) for t in (trajectory.dt, trajectory.start_time)):
        return REJECTED_TIME
    if not (math.isfinite(trajectory.start_time) and MIN_PERIOD <= trajectory.dt <= MAX_PERIOD):
        return REJECTED_TIME
    if float(np.abs(trajectory.positions).max()) > MAX_DISTANCE:
        return REJECTED_RANGE
    if trajectory.gripper.min() < -1e-3 or trajectory.gripper.max() > 1.0 + 1e-3:
        return REJECTED_RANGE
    lengths = np.linalg.norm(trajectory.quaternions.astype(np.float64), axis=1)
    if float(np.abs(lengths - 1.0).max()) > QUATERNION_TOLERANCE:
        return REJECTED_QUATERNION
    return ACCEPTED
