"""Quadratic programs with many rows of which few matter: rows are taken in when they are violated."""

from __future__ import annotations

from typing import NamedTuple

import daqp
import numpy as np

from ..errors import ControlError
from .robot.transforms import Array

SOFT = 8
"""How daqp marks a constraint that may be violated at a price."""
UNBOUNDED = 1e30
PRESSING = 0.9
"""Share of a limit beyond which its row takes part from the beginning."""
NEARLY = 0.01
"""Distance beyond the clearance [m] below which a pair takes part from the beginning."""
MAX_ROUNDS = 4
"""How often rows are taken in before an answer is used as it is; the tick enforces what is left."""


class Limits(NamedTuple):
    """Quantities on one grid of times, each linear in the control points and within bounds of its own.

    matrix: `[l t f]` rows by the free control points; values: `[l t j]`; lower, upper: `[l 1 j]`.
    """

    matrix: Array
    values: Array
    lower: Array
    upper: Array

    def pressing(self, values: Array, share: float) -> np.ndarray:
        """Return `[l t j]`: where `values` lie outside their range shrunk to `share` about its middle."""
        half = 0.5 * np.minimum(self.upper - self.lower, UNBOUNDED)
        spare = (1.0 - share) * half
        return (values < self.lower + spare) | (values > self.upper - spare)

    def rows(self, mask: np.ndarray) -> tuple[Array, Array, Array]:
        """Return the chosen rows `[r f*j]` on the change of the control points, and their bounds `[r]`."""
        quantities, times, joints = np.nonzero(mask)
        rows = np.zeros((len(times), self.matrix.shape[2], self.values.shape[2]))
        rows[np.arange(len(times)), :, joints] = self.matrix[quantities, times]
        values = self.values[mask]
        least = np.maximum(self.lower[quantities, 0, joints] - values, -UNBOUNDED)
        greatest = np.minimum(self.upper[quantities, 0, joints] - values, UNBOUNDED)
        return rows.reshape(len(times), rows.shape[1] * rows.shape[2]), least, greatest


def solve_by_row_generation(
    hessian: Array, gradient: Array, trust: float, limits: Limits, near: tuple[Array, Array]
) -> Array:
    """Minimize `x'Hx/2 + g'x` within soft rows, taking them in until none that was left out is violated.

    Args:
        hessian: `[n n]`; gradient: `[n]`; trust: greatest size of each unknown.
        limits: quantities with bounds, linear in the unknowns.
        near: rows `[r n]` and their least values `[r]`.

    Raises:
        ControlError: no solution, or one that is not finite.
    """
    size = len(gradient)
    box = np.full(size, trust)
    chosen = limits.pressing(limits.values, PRESSING)
    chosen_near = near[1] > -NEARLY
    for _ in range(MAX_ROUNDS):
        rows, low, high = limits.rows(chosen)
        matrix = np.concatenate([rows, near[0][chosen_near]])
        least = np.concatenate([-box, low, near[1][chosen_near]])
        greatest = np.concatenate([box, high, np.full(int(chosen_near.sum()), UNBOUNDED)])
        senses = np.full(size + len(matrix), SOFT, dtype=np.int32)
        senses[:size] = 0
        step, _, flag, _ = daqp.solve(hessian, gradient, np.ascontiguousarray(matrix), greatest, least, senses)
        if flag not in (1, 2) or not np.all(np.isfinite(step)):
            raise ControlError(f"The chunk optimization found no solution (daqp exit flag {flag}).")
        change = step.reshape(limits.matrix.shape[2], -1)
        more = limits.pressing(limits.values + limits.matrix @ change, 1.0 + 1e-9) & ~chosen
        more_near = (near[0] @ step < near[1] - 1e-7) & ~chosen_near
        if not (np.any(more_near) or np.any(more)):
            break
        chosen = chosen | more
        chosen_near = chosen_near | more_near
    solution: Array = step
    return solution
