"""The matrices between control points of a spline and its values, speeds and accelerations, for one duration."""

from __future__ import annotations

import numpy as np

from .robot.transforms import Array
from .splines import Basis


class SplineGrid:
    """Rows of the free and the fixed control points, at the samples and on a finer grid of times, for one duration.

    spans: polynomial pieces; span: duration of one [s]; free: number of free control points f; times: `[m]` of the
    samples after the start [s].
    at_samples, speed_at_samples: `[m n]` rows of all control points; samples, speed_samples: `[m f]` of the free ones.
    at_grid, speed_at_grid, acceleration_at_grid: `[t n]`; grid: those three for the free ones `[t f]`.
    jerk: `[n n]` integral of the jerk squared as a form in the control points.
    """

    def __init__(self, basis: Basis, spans: int, span: float, samples: Array) -> None:
        """Lay out `spans` pieces of `span` [s] and `samples` `[m]` [s] after the start."""
        # The first three control points are what gives the start its position, velocity and acceleration; the last
        # three are one point, so that the end is at rest. Those between, and that one, are free.
        self.spans, self.span, self.times = spans, span, samples
        self.free = spans
        size = spans + 5
        first = np.concatenate([basis.rows(np.zeros(1), order) for order in range(3)])[:, :3]
        self.fixed = np.zeros((size, 3))
        self.fixed[:3] = np.linalg.inv(first)
        self.spread = np.zeros((size, spans))
        self.spread[3 : 2 + spans, : spans - 1] = np.eye(spans - 1)
        self.spread[-3:, -1] = 1.0
        self.basis = basis
        places = samples / span
        self.at_samples = basis.rows(places)
        dense = np.linspace(0.0, spans, 4 * spans + 1)[1:]
        self.at_grid = basis.rows(dense)
        self.speed_at_grid = basis.rows(dense, 1) / span
        self.acceleration_at_grid = basis.rows(dense, 2) / span**2
        self.speed_at_samples = basis.rows(places, 1) / span
        self.samples, self.speed_samples = self.at_samples @ self.spread, self.speed_at_samples @ self.spread
        self.grid = [m @ self.spread for m in (self.at_grid, self.speed_at_grid, self.acceleration_at_grid)]
        self.jerk = basis.jerk / span**5

    def through(self, places: Array, wanted: Array, origin: Array) -> Array:
        """Return the free control points `[f j]` of the spline nearest to `wanted` `[m j]` at `places` in pieces."""
        rows = self.basis.rows(places)
        left = wanted - rows @ self.fixed @ origin
        return np.asarray(np.linalg.lstsq(rows @ self.spread, left, rcond=None)[0], dtype=np.float64)

    def control(self, start: Array, free: Array) -> Array:
        """Return all control points `[n j]` from the start's derivatives `[3 j]` in pieces and the free ones."""
        points: Array = self.fixed @ start + self.spread @ free
        return points
