"""Clamped uniform B-splines of degree five, and the motion in time that they describe."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy.interpolate import BSpline

from .robot.transforms import Array

DEGREE = 5
ORDER = DEGREE + 1


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Basis:
    """The basis functions over `spans` pieces of length one; there are `spans + 5` of them.

    powers: `[spans 6 n]` coefficients of each function by the power of the place within each piece.
    jerk: `[n n]` integrals of the products of their third derivatives.
    """

    powers: Array
    jerk: Array

    def rows(self, places: Array, order: int = 0) -> Array:
        """Return `[m n]`: the functions, or their derivative of the given order, at `places` `[m]` in pieces."""
        spans = len(self.powers)
        piece = np.minimum(np.maximum(places, 0.0).astype(np.intp), spans - 1)
        return np.matmul(monomials(places - piece, order)[:, None], self.powers[piece])[:, 0]


def monomials(x: Array, order: int) -> Array:
    """Return `[m 6]`: the derivatives of the given order of the powers 0 to 5 of `x` `[m]`."""
    exponents = np.arange(ORDER)
    factors = np.array([math.perm(int(e), order) for e in exponents], dtype=np.float64)
    return factors * x[:, None] ** np.maximum(exponents - order, 0)


@lru_cache(maxsize=64)
def clamped_basis(spans: int) -> Basis:
    """Return the basis of `spans` pieces whose ends are clamped."""
    knots = np.concatenate([np.zeros(DEGREE), np.arange(spans + 1.0), np.full(DEGREE, float(spans))])
    functions = BSpline(knots, np.eye(spans + DEGREE), DEGREE)
    left = np.arange(spans, dtype=np.float64)
    slopes = [functions.derivative(order)(left) / math.factorial(order) for order in range(1, ORDER)]
    powers = np.stack([functions(left), *slopes], axis=1)
    nodes, weights = np.polynomial.legendre.leggauss(3)
    third = np.einsum("gp,spn->sgn", monomials(0.5 * (nodes + 1.0), 3), powers).reshape(-1, spans + DEGREE)
    scaled = third * np.sqrt(0.5 * np.tile(weights, spans))[:, None]
    return Basis(powers=powers, jerk=scaled.T @ scaled)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Pieces:
    """Motion as polynomial pieces of degree five in time.

    start_time [s]; span: duration of a piece [s]; coefficients: `[spans 6 d]` by the power of the time within a
    piece, in pieces.
    """

    start_time: float
    span: float
    coefficients: Array

    @property
    def end_time(self) -> float:
        """Time [s] from which the motion rests."""
        return self.start_time + self.span * len(self.coefficients)

    def _locate(self, time: float) -> tuple[Array, float]:
        count = len(self.coefficients)
        phase = min(max((time - self.start_time) / self.span, 0.0), float(count))
        piece = min(int(phase), count - 1)
        return self.coefficients[piece], phase - piece

    def values(self, time: float) -> Array:
        """Return what moves `[d]` at `time` [s]; constant before and after."""
        coefficients, x = self._locate(time)
        return np.array([1.0, x, x * x, x**3, x**4, x**5]) @ coefficients

    def derivatives(self, time: float) -> Array:
        """Return `[3 d]`: what moves, its first and its second derivative by time, at `time` [s]."""
        coefficients, x = self._locate(time)
        powers = np.concatenate([monomials(np.array([x]), order) for order in range(3)])
        derivatives: Array = powers @ coefficients / np.array([[1.0], [self.span], [self.span**2]])
        return derivatives


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class JointSpline(Pieces):
    """Joint motion [rad] in time."""

    def positions(self, time: float) -> Array:
        """Return the joint positions `[j]` [rad] at `time` [s]; constant before and after."""
        return self.values(time)

    def state(self, time: float) -> tuple[Array, Array, Array]:
        """Return positions [rad], velocities [rad/s] and accelerations [rad/s^2] `[j]` at `time` [s]."""
        q, dq, ddq = self.derivatives(time)
        if not self.start_time <= time < self.end_time:
            dq, ddq = np.zeros_like(q), np.zeros_like(q)
        return q, dq, ddq

    def many(self, times: Array) -> Array:
        """Return the joint positions `[m j]` [rad] at `times` `[m]` [s]."""
        count = len(self.coefficients)
        phases = np.clip((times - self.start_time) / self.span, 0.0, float(count))
        pieces = np.minimum(phases.astype(np.intp), count - 1)
        return np.matmul(monomials(phases - pieces, 0)[:, None], self.coefficients[pieces])[:, 0]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SmoothJointSpline(JointSpline):
    """Joint motion through a chunk that was smoothed, not optimized.

    stretch: factor by which time was stretched, 1 where the limits hold.
    due: `[k]` times [s] at which the waypoints are reached, after stretching.
    """

    stretch: float
    due: Array
