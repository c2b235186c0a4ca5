"""Turn a chunk of tool poses into a smooth reference: a quintic B-spline in position and rotation vector.

The spline starts with the position, velocity and acceleration that are being commanded (so a new chunk
causes no jump up to the second derivative) and ends at rest (so the arm stops by itself when no further
chunk arrives). Among those it minimizes

    sum_i |S(t_i) - y_i|^2 + smoothness * tau^5 * integral |S'''|^2 dt,    y_i = [p_i - p_0; log(R_i R_0')],

with `tau` the time between poses. In units of `tau` the solution is one constant matrix times the poses and
the start, kept for every number of poses. Peaks beyond the caps on speed and acceleration stretch time. A
chunk so far away that it needs a long stretch begins without the present acceleration or, failing that, at
rest; the tick's limits smooth that.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache, partial

import numpy as np

from ..errors import ControlError
from .reference import SmoothTrajectory, ToolState, resting
from .robot.transforms import Array, matrix_from_quaternion, rotation_log
from .splines import SmoothJointSpline, clamped_basis, monomials

MAX_ROTATION = 1.5 * math.pi
"""Largest rotation [rad] within one chunk; the rotation vector loses its meaning at 2 pi."""
MAX_STRETCH_IN_MOTION = 6.0
"""Beyond this stretch a chunk begins without the present acceleration, then without the present velocity."""
CAP_TOLERANCE = 1.02
"""Peaks may exceed the caps on speed and acceleration by this factor."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SmoothingConfig:
    """Shape and caps of the tool's motion; the two speeds cap it in every stage, the rest shapes the reference.

    smoothness: weight of the jerk, without unit: waypoints are followed up to about one cycle in `6 *
        smoothness^(1/6)` poses.
    linear_speed: [m/s]; angular_speed: [rad/s]; linear_acceleration: [m/s^2]; angular_acceleration:
        [rad/s^2].
    settle: poses for which the last one is held at the end, so that braking to rest does not bend the
        waypoints before it.
    min_duration: shortest reference [s]; a shorter chunk holds its last pose for longer.
    """

    smoothness: float = 3.0
    linear_speed: float = 1.0
    angular_speed: float = 2.5
    linear_acceleration: float = 5.0
    angular_acceleration: float = 15.0
    settle: int = 2
    min_duration: float = 0.15


_SAMPLES = np.stack([monomials(np.linspace(0.0, 1.0, 5), order) for order in range(3)])


@lru_cache(maxsize=64)
def smoothing_matrix(count: int, phase: float, spans: int, smoothness: float) -> tuple[Array, Array]:
    """Return the constant maps from waypoints and from the start to the power coefficients.

    Args:
        count: number of waypoints k.
        phase: time of the first waypoint, in units of the time between waypoints.
        spans: number of polynomial pieces over the duration `phase + count - 1`, or more where the last pose
            is held.
        smoothness: weight of the jerk.

    Returns:
        `[spans 6 k]` for waypoints relative to the start, and `[spans 6 2]` for the first and second
        derivative at the start, both derivatives by time in pieces.
    """
    waypoints = phase + np.arange(count)
    held = np.arange(waypoints[-1] + 1.0, max(waypoints[-1], float(spans)) + 1e-9)
    duration = max(waypoints[-1], float(spans))
    width = duration / spans
    basis = clamped_basis(spans)
    size = len(basis.jerk)
    rows = basis.rows(np.concatenate([waypoints, held]) / width)
    begin, end = np.zeros(1), np.array([float(spans)])
    fixed = np.concatenate([*(basis.rows(begin, n) for n in (0, 1, 2)), *(basis.rows(end, n) for n in (1, 2))])

    system = np.zeros((size + 5, size + 5))
    system[:size, :size] = rows.T @ rows + smoothness * width**-5 * basis.jerk
    system[:size, size:] = fixed.T
    system[size:, :size] = fixed
    right = np.zeros((size + 5, count + 2))
    right[:size, :count] = rows[:count].T
    right[:size, count - 1] += rows[count:].sum(0)
    right[size + 1, count] = right[size + 2, count + 1] = 1.0
    control = np.linalg.solve(system, right)[:size]

    coefficients = basis.powers @ control
    return coefficients[..., :count], coefficients[..., count:]


def relative_waypoints(start: ToolState, positions: Array, quaternions: Array) -> Array:
    """Return waypoints `[k 6]` as offset [m] and rotation vector [rad] from `start`, the rotations without
    jumps of 2 pi.

    Raises:
        ControlError: the chunk turns by more than `MAX_ROTATION`.
    """
    rotations = np.empty((len(positions), 3))
    previous = np.zeros(3)
    for index, quaternion in enumerate(quaternions):
        vector = rotation_log(matrix_from_quaternion(quaternion) @ start.rotation.T)
        angle = float(np.linalg.norm(vector))
        if angle > 1e-9:
            turned = vector * (1.0 - 2.0 * math.pi / angle)
            if np.sum((turned - previous) ** 2) < np.sum((vector - previous) ** 2):
                vector = turned
        if float(np.linalg.norm(vector)) > MAX_ROTATION:
            raise ControlError(
                f"The chunk turns by {np.linalg.norm(vector):.2f} rad, expected at most {MAX_ROTATION:.2f}; "
                "send shorter chunks."
            )
        rotations[index] = previous = vector
    return np.concatenate([positions - start.position, rotations], axis=1)


def smooth_chunk(
    start: ToolState,
    time: float,
    positions: Array,
    quaternions: Array,
    due: Array,
    period: float,
    config: SmoothingConfig,
) -> SmoothTrajectory:
    """Smooth waypoints from the commanded state `start` at `time` [s].

    Args:
        start: state that the reference continues.
        time: time of `start` [s].
        positions: `[k 3]` [m]; quaternions: `[k 4]` xyzw, unit length.
        due: `[k]` times [s], `period` apart, all after `time`.
        period: time between waypoints [s].
        config: weight and caps.

    Raises:
        ControlError: the chunk turns too far for one rotation vector.
    """
    from_waypoints, from_start, spans, duration = _maps(time, due, period, config)
    zero = np.zeros(3)
    fixed = from_waypoints @ relative_waypoints(start, positions, quaternions)
    at_rest = resting(start.position, start.rotation)
    for origin in (start, replace(start, acceleration=zero, angular_acceleration=zero), at_rest):
        rates = np.stack(
            [
                np.concatenate([origin.velocity, origin.angular_velocity]),
                np.concatenate([origin.acceleration, origin.angular_acceleration]),
            ]
        )
        found = _stretched(fixed, from_start, rates, duration, partial(_excess, rates=rates, config=config))
        if found is not None:
            break
    assert found is not None, "a chunk that begins at rest meets every cap once time is stretched enough"
    coefficients, span = found
    stretch = span * spans / duration
    return SmoothTrajectory(
        start=origin,
        start_time=time,
        span=span,
        coefficients=coefficients,
        stretch=stretch,
        due=time + stretch * (due - time),
    )


def smooth_joints(
    start: tuple[Array, Array, Array],
    time: float,
    joints: Array,
    due: Array,
    period: float,
    config: SmoothingConfig,
    limits: tuple[Array, Array],
) -> SmoothJointSpline:
    """Smooth joint positions from the commanded state at `time` [s], as `smooth_chunk` does tool poses.

    Args:
        start: positions [rad], velocities [rad/s] and accelerations [rad/s^2] `[j]`.
        time: time of `start` [s].
        joints: `[k j]` [rad], without jumps of a turn; due: `[k]` times [s], `period` [s] apart, all after `time`.
        period: time between waypoints [s].
        config: weight of the jerk; its caps are the tool's and play no part.
        limits: caps on speed [rad/s] and acceleration [rad/s^2] `[j]`.
    """
    from_waypoints, from_start, spans, duration = _maps(time, due, period, config)
    fixed = from_waypoints @ (joints - start[0])
    zero = np.zeros_like(start[0])
    for rates in (np.stack(start[1:]), np.stack([start[1], zero]), np.stack([zero, zero])):
        found = _stretched(fixed, from_start, rates, duration, partial(_joint_excess, rates=rates, limits=limits))
        if found is not None:
            break
    assert found is not None, "a chunk that begins at rest meets every cap once time is stretched enough"
    coefficients, span = found
    coefficients[:, 0] += start[0]
    stretch = span * spans / duration
    return SmoothJointSpline(
        start_time=time, span=span, coefficients=coefficients, stretch=stretch, due=time + stretch * (due - time)
    )


def _maps(time: float, due: Array, period: float, config: SmoothingConfig) -> tuple[Array, Array, int, float]:
    """Return the maps of `smoothing_matrix` for targets at times `due` `[k]`, the pieces and the duration [s]."""
    count = len(due)
    phase = max(round((float(due[0]) - time) / period, 4), 1e-4)
    spans = math.ceil(max(phase + count - 1 + config.settle, config.min_duration / period, 1.0) - 1e-6)
    from_waypoints, from_start = smoothing_matrix(count, phase, spans, config.smoothness)
    return from_waypoints, from_start, spans, max(phase + count - 1, float(spans)) * period


def _stretched(
    fixed: Array, from_start: Array, rates: Array, duration: float, excess_of: Callable[[Array, float], float]
) -> tuple[Array, float] | None:
    """Stretch time until the caps hold; return the coefficients and the time of a piece [s], None where that
    fails.

    It can fail only for a start in motion: the longer the chunk, the longer its start carries on.

    Args:
        fixed: coefficients from the waypoints; from_start: `[spans 6 2]` map from the start's derivatives.
        rates: `[2 d]` velocity and acceleration to begin with.
        duration: of the whole, before stretching [s].
        excess_of: stretch that is missing for coefficients and the time of a piece [s].
    """
    moving = bool(np.any(rates))
    span = duration / len(fixed)
    longest = MAX_STRETCH_IN_MOTION * span
    while not moving or span <= longest:
        coefficients = fixed + from_start @ (rates * np.array([[span], [span**2]]))
        excess = excess_of(coefficients, span)
        if excess <= CAP_TOLERANCE:
            return coefficients, span
        span *= 1.01 * excess
    return None


def _joint_excess(coefficients: Array, span: float, rates: Array, limits: tuple[Array, Array]) -> float:
    """Return the stretch of time that brings the peaks of each joint to its limits (or the start's rates)."""
    worst = 0.0
    for order, limit in enumerate(limits):
        peaks = np.abs(np.tensordot(_SAMPLES[order + 1], coefficients, axes=(1, 1))).max((0, 1)) / span ** (order + 1)
        share = float((peaks / np.maximum(limit, np.abs(rates[order]))).max())
        worst = max(worst, share ** (1.0 / (order + 1)))
    return worst


def _excess(coefficients: Array, span: float, *, rates: Array, config: SmoothingConfig) -> float:
    """Return the stretch of time that brings peaks of speed and acceleration to the caps (or the start's)."""
    worst = 0.0
    speeds = np.tensordot(_SAMPLES[1:], coefficients, axes=(2, 1)) / np.array([span, span**2])[:, None, None, None]
    caps = (
        (config.linear_speed, config.angular_speed),
        (config.linear_acceleration, config.angular_acceleration),
    )
    for order in range(2):
        for part in range(2):
            axes = slice(3 * part, 3 * part + 3)
            peak = math.sqrt(float(np.square(speeds[order][..., axes]).sum(-1).max()))
            cap = max(caps[order][part], float(np.linalg.norm(rates[order, axes])))
            worst = max(worst, (peak / cap) ** (1.0 / (order + 1)))
    return worst
