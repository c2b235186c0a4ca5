"""Rows of the chunk optimization that are no limits of a joint: distances of pairs, caps on the speed of the tool."""

from __future__ import annotations

import numpy as np

from .collision import Clearances, CollisionConfig
from .robot.transforms import Array
from .row_generation import PRESSING
from .spline_grid import SplineGrid


def near_rows(
    grid: SplineGrid,
    control: Array,
    near: Clearances,
    collision: CollisionConfig,
    acceleration: Array,
    opening: tuple[float, Array | float],
    now: Array | None,
) -> tuple[Array, Array]:
    """Return rows `[r f*j]` on the near distances, and their least values `[r]` [m].

    Each pair gives two: its distance, and its distance less the way in which the arm could stop closing it, as
    the tick will demand. A pair that is too near already opens at an even speed.

    Args:
        grid: of the plan; control: `[n j]` its control points.
        near: pairs at the samples; collision: what is kept of their distances.
        acceleration: `[j]` that the arm brakes with [rad/s^2].
        opening: margin beyond the clearance [m], and speed at which pairs open that begin nearer [m/s], one for all or
            `[p]`.
        now: `[num_pairs]` all distances where one is too small already [m], else None.
    """
    speeds = grid.speed_at_samples @ control
    stops = 0.5 * np.maximum((np.abs(speeds) / acceleration).max(1), 2.0 / collision.approach_rate)
    at, stop = near.poses, stops[near.poses]
    way = near.distances - collision.clearance
    ahead = grid.samples + stops[:, None] * grid.speed_samples
    rows = np.concatenate(
        [
            grid.samples[at][:, :, None] * near.gradients[:, None, :],
            ahead[at][:, :, None] * near.gradients[:, None, :],
        ]
    )
    closing = (near.gradients * speeds[at]).sum(1) + near.drifts
    wanted = np.full(len(way), opening[0])
    if now is not None:
        lack = now[near.pairs] - collision.clearance
        wanted = np.minimum(wanted, lack + opening[1] * grid.times[at])
    least = np.concatenate([wanted - way, np.minimum(wanted, 0.0) - way - stop * closing])
    return rows.reshape(len(rows), grid.free * control.shape[1]), least


def cap_rows(
    grid: SplineGrid, control: Array, jacobians: Array, caps: tuple[float, float]
) -> tuple[Array, Array] | None:
    """Return rows `[r f*j]` on the change of the free control points that keep the tool to its caps.

    Only samples at which it is about to pass one have a row; with the least values `[r]` [m/s, rad/s], or None where
    there is none.

    Args:
        grid: of the plan; control: `[n j]` its control points.
        jacobians: `[m 6 j]` of the tool at the samples.
        caps: greatest linear [m/s] and angular [rad/s] speed.
    """
    twists = np.matmul(jacobians, (grid.speed_at_samples @ control)[..., None])[..., 0]
    rows, least = [], []
    for part, cap in zip((slice(0, 3), slice(3, 6)), caps, strict=True):
        speeds = np.sqrt(np.square(twists[:, part]).sum(1))
        at = np.flatnonzero(speeds > PRESSING * cap)
        if len(at):
            along = np.matmul((twists[at, part] / speeds[at, None])[:, None], jacobians[at, part])[:, 0]
            rows.append(-(grid.speed_samples[at][:, :, None] * along[:, None, :]).reshape(len(at), -1))
            least.append(speeds[at] - cap)
    return (np.concatenate(rows), np.concatenate(least)) if rows else None
