"""The matrices between control points of a spline and its values, speeds and accelerations, for one duration."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from .robot.transforms import Array
from .splines import Basis, clamped_basis


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Layout:
    """What the number of pieces alone decides, for pieces of length one.

    fixed: `[n 3]` control points that give the start its position, velocity and acceleration; spread: `[n f]` all
    control points by the free ones; grid: `[3 t n]` rows of value and first two derivatives on the finer grid of times.
    halves: `[2 f]` places a half piece apart; at_halves: `[2 f n]` rows there; free_at_halves: `[2 f f]`.
    """

    basis: Basis
    fixed: Array
    spread: Array
    grid: Array
    halves: Array
    at_halves: Array
    free_at_halves: Array


@lru_cache(maxsize=64)
def _layout(spans: int) -> _Layout:
    """Lay out `spans` pieces."""
    basis = clamped_basis(spans)
    # The first three control points are what gives the start its position, velocity and acceleration; the last
    # three are one point, so that the end is at rest. Those between, and that one, are free.
    size = spans + 5
    fixed = np.zeros((size, 3))
    fixed[:3] = np.linalg.inv(np.concatenate([basis.rows(np.zeros(1), order) for order in range(3)])[:, :3])
    spread = np.zeros((size, spans))
    spread[3 : 2 + spans, : spans - 1] = np.eye(spans - 1)
    spread[-3:, -1] = 1.0
    dense = np.linspace(0.0, spans, 4 * spans + 1)[1:]
    grid = np.stack([basis.rows(dense, order) for order in range(3)])
    halves = np.linspace(0.0, spans, 2 * spans + 1)[1:]
    at_halves = basis.rows(halves)
    return _Layout(
        basis=basis, fixed=fixed, spread=spread, grid=grid, halves=halves, at_halves=at_halves,
        free_at_halves=at_halves @ spread,
    )  # fmt: skip


class SplineGrid:
    """Rows of the free and the fixed control points, at the samples and on a finer grid of times, for one duration.

    spans: polynomial pieces; span: duration of one [s]; free: number of free control points f; times: `[m]` of the
    samples after the start [s]; halves: `[2 f]` places a half piece apart, in pieces.
    at_samples, speed_at_samples: `[m n]` rows of all control points; samples, speed_samples: `[m f]` of the free ones;
    products: `[f*f m]` products of two of these.
    at_grid: `[3 t n]` rows of value, speed and acceleration; grid: those of the free ones `[3 t f]`.
    jerk: `[n f]` the form of the integral of the jerk squared, in all control points and the free ones; free_jerk:
    `[f f]` in the free ones alone.
    """

    def __init__(self, spans: int, span: float, samples: Array) -> None:
        """Lay out `spans` pieces of `span` [s] and `samples` `[m]` [s] after the start."""
        self._layout = layout = _layout(spans)
        self.spans, self.span, self.times = spans, span, samples
        self.free, self.halves, self.basis = spans, layout.halves, layout.basis
        self.fixed, self.spread = layout.fixed, layout.spread
        places = samples / span
        self.at_samples, self.speed_at_samples = self.basis.rows(places), self.basis.rows(places, 1) / span
        self.samples, self.speed_samples = self.at_samples @ self.spread, self.speed_at_samples @ self.spread
        self.products = (self.samples[:, :, None] * self.samples[:, None, :]).reshape(len(samples), -1).T
        self.at_grid = layout.grid / np.array([1.0, span, span**2])[:, None, None]
        self.grid = self.at_grid @ self.spread
        self.jerk = (self.basis.jerk / span**5) @ self.spread
        self.free_jerk = self.spread.T @ self.jerk

    def through(self, wanted: Array, origin: Array) -> Array:
        """Return the free control points `[f j]` of the spline nearest to `wanted` `[2 f j]` at `halves`."""
        left = wanted - self._layout.at_halves @ self.fixed @ origin
        return np.asarray(np.linalg.lstsq(self._layout.free_at_halves, left, rcond=None)[0], dtype=np.float64)

    def control(self, start: Array, free: Array) -> Array:
        """Return all control points `[n j]` from the start's derivatives `[3 j]` in pieces and the free ones."""
        points: Array = self.fixed @ start + self.spread @ free
        return points
