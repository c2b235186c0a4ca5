"""What near pairs demand of the joint velocities, so that the arm can always stop in time."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from .collision import Clearances, CollisionModel
from .robot.kinematics import ArmPose, Kinematics
from .robot.transforms import Array

ESCAPE_SPEED = 0.1
"""Speed [m/s] at which an arm moves out of a place that is too near to something that stands still."""
ESCAPE_JOINT_SPEED = 1.0
"""Joint speed [rad/s] that it spends on that at most."""
LEAST_LEVERAGE = 0.05
"""Change of a distance with the joints [m/rad] up to which a pair need not open."""
BEND_MARGIN = 1e-3
"""Distance kept beyond the clearance on the way to a stop [m], for what the linear rows do not see."""
STOP_SHARES = np.array([0.0, 1.0, 2.0, 3.0]) / 3.0
"""Fractions of the way to a stop at which the pairs are measured; 0 is the present pose, before the tick."""


@dataclass(frozen=True, slots=True)
class ClearanceDemand:
    """What near pairs demand: `gradients . v >= floor` `[p]` [m/s], each to last for `times` `[p]` [s].

    shares: `[p]` how much of the way to a stop lies before the pose of each row.
    """

    gradients: Array
    floor: Array
    times: Array
    shares: Array

    def within(self, previous: Array, least: Array, greatest: Array) -> ClearanceDemand:
        """Ask a pair that must open for no more than half of what the box adds to its present speed, and than its
        leverage allows: a pair that hardly moves with any joint is not worth turning the arm for.
        """
        fastest = np.where(self.gradients > 0.0, self.gradients * greatest, self.gradients * least).sum(-1)
        leverage = np.sqrt(np.square(self.gradients).sum(-1)) - LEAST_LEVERAGE
        possible = np.minimum(0.5 * (self.gradients @ previous + fastest), ESCAPE_JOINT_SPEED * leverage)
        return replace(self, floor=np.minimum(self.floor, np.maximum(possible, 0.0)))

    def before(self, share: float) -> ClearanceDemand:
        """Return the rows of poses within a share of the way to a stop."""
        kept = self.shares <= share + 1e-9
        return ClearanceDemand(self.gradients[kept], self.floor[kept], self.times[kept], self.shares[kept])

    def lack(self, velocity: Array) -> float:
        """Return how much nearer [m] than it may `velocity` `[j]` brings the pair that is worst off."""
        return float((self.times * (self.floor - self.gradients @ velocity)).max(initial=0.0))

    def binding(self, least: Array, greatest: Array) -> tuple[Array, Array]:
        """Return the rows, and their floors, that some velocity of the box does not meet."""
        slowest = np.where(self.gradients > 0.0, self.gradients * least, self.gradients * greatest).sum(-1)
        chosen = slowest < self.floor
        return np.ascontiguousarray(self.gradients[chosen]), self.floor[chosen]


class _LastMeasured:
    """The last measurement of each pair.

    q: `[p j]` joint positions then [rad]; elapsed: `[p]` age of the obstacles then [s]; distances: `[p]` [m];
    gradients: `[p j]` [m/rad]; change: `[p]` most that the rate of the distance can change in a tick [m/s].
    travel: `[p]` how far other arms had moved in all then [m].
    """

    def __init__(self, q: Array, elapsed: float, found: Clearances, gain_in_tick: Array, travel: float) -> None:
        self.q, self.elapsed = np.tile(q, (len(found.distances), 1)), np.full(len(found.distances), elapsed)
        self.distances, self.gradients = found.distances.copy(), found.gradients.copy()
        self.travel = np.full(len(found.distances), travel)
        self.gain_in_tick = gain_in_tick
        self.change = np.abs(self.gradients) @ gain_in_tick

    def refresh(
        self, q: Array, elapsed: float, travel: float, pairs: npt.NDArray[np.intp], distances: Array, gradients: Array
    ) -> None:
        """Take over new measurements of some pairs."""
        self.q[pairs], self.elapsed[pairs], self.travel[pairs] = q, elapsed, travel
        self.distances[pairs], self.gradients[pairs] = distances, gradients
        self.change[pairs] = np.abs(gradients) @ self.gain_in_tick


class ClearanceWatch:
    """Measures the pairs of one scene as rarely as is safe, and returns what they demand."""

    def __init__(
        self, kinematics: Kinematics, collisions: CollisionModel, velocity: Array, acceleration: Array, dt: float
    ) -> None:
        """Watch `collisions` for an arm with limits `[j]` [rad/s], [rad/s^2] and ticks of `dt` [s]."""
        self.kinematics, self.collisions = kinematics, collisions
        self.velocity, self.acceleration, self.dt = velocity, acceleration, dt
        self._gain_in_tick = acceleration * dt
        self._last: _LastMeasured | None = None

    def demand(self, q: Array, previous: Array, pose: ArmPose | None, elapsed: float) -> ClearanceDemand | None:
        """Return what the near pairs demand of the velocity, or None where all are certainly far.

        All joints together can stop in `T = max |v| / a`, along a straight line in joint space. The pairs are
        measured here and, where that line could reach them, along it. A tick that leaves enough distance for the stop
        can still stop in the next tick, however the distances bend on the way.

        A measurement also bounds the distance in the ticks after it. A pair is therefore measured again only once it
        could have come near.

        Args:
            q: joint positions [rad]; previous: joint velocities of the last tick [rad/s].
            pose: kinematics at `q`, where they are known.
            elapsed: age of the obstacles' positions [s].
        """
        model = self.collisions
        if model.num_pairs == 0:
            return None
        config = model.config
        stop = float((np.abs(previous) / self.acceleration).max()) + self.dt
        way = max(self.dt + 0.5 * stop, 1.0 / config.approach_rate)
        if self._last is None:
            found = model.clearances(pose or self.kinematics.forward(q), np.inf, elapsed)
            self._last = _LastMeasured(q, elapsed, found, self._gain_in_tick, model.travel_of_others)
        stale = self._tight(self._last, q, previous, way, elapsed, stop)
        if not np.any(stale):
            return None
        reached = (self.dt + 0.5 * stop * STOP_SHARES) * (STOP_SHARES > 0.0)
        passed = elapsed + (self.dt + stop * (1.0 - np.sqrt(1.0 - STOP_SHARES))) * (STOP_SHARES > 0.0)
        poses = self.kinematics.forward_many(q + reached[:, None] * previous, jacobians=False)
        # A call costs more than its rows: all pairs are measured, so that those that are not stale yet stay fresh, too.
        found = model.clearances(poses, np.inf, passed)
        here = found.poses == 0
        travel = model.travel_of_others
        self._last.refresh(q, elapsed, travel, found.pairs[here], found.distances[here], found.gradients[here])
        near = (found.distances < config.influence) & stale[found.pairs]
        if not np.any(near):
            return None
        distances, gradients, at, here = found.distances[near], found.gradients[near], found.poses[near], here[near]
        way_left = distances - config.clearance
        times = np.where(here, 1.0 / config.approach_rate, reached[at])
        ahead = gradients @ previous - (way_left - BEND_MARGIN) / times
        floor = np.where(here, -config.approach_rate * way_left - found.drifts[near], ahead)
        floor = np.minimum(floor, ESCAPE_SPEED + model.fastest_obstacle)
        return ClearanceDemand(gradients, floor, times, STOP_SHARES[at])

    def _tight(
        self, last: _LastMeasured, q: Array, previous: Array, way: float, elapsed: float, stop: float
    ) -> npt.NDArray[np.bool_]:
        """Return which pairs `[p]` could come too near in a stop after this tick, by their last measurement.

        Along a straight line in joint space a distance is at least its tangent less half the turning times the
        travel of the arm, since the distance of convex bodies bends upwards in their relative shift.
        """
        shift = q - last.q
        fastest = np.minimum(np.abs(previous) + self._gain_in_tick, self.velocity) * way
        total = np.abs(shift) + fastest
        bend = 0.5 * total.sum(1) * (total @ self.collisions.reach)
        closing = np.maximum(last.change - last.gradients @ previous, 0.0)
        margin = last.distances + (last.gradients * shift).sum(1) - closing * way - bend
        kept = self.collisions.config.clearance
        if self.collisions.others:
            moved = self.collisions.travel_of_others - last.travel
            margin = margin - self.collisions.beside_others * moved
        if self.collisions.fastest_obstacle > 0.0:
            return margin <= kept + self.collisions.fastest_obstacle * (np.abs(elapsed - last.elapsed) + stop)
        return margin <= kept

    def way_to_stop(self, q: Array, dq: Array) -> Array:
        """Return `[s j]`: postures at `STOP_SHARES` of the way on which all joints brake together from `q`, `dq`."""
        stop = float((np.abs(dq) / self.acceleration).max()) + self.dt
        way: Array = q + (0.5 * stop * STOP_SHARES)[:, None] * dq
        return way

    def blocks_separate_stops(self, q: Array, previous: Array, change: Array, elapsed: float = 0.0) -> bool:
        """Return whether a stop of each joint by itself would come nearer than the clearance, and than now."""
        if self.collisions.num_pairs == 0:
            return False
        each = np.abs(previous) / change
        times = np.minimum(np.linspace(0.0, 1.0, 6)[:, None] * each.max(), each)
        way = q + previous * times - 0.5 * np.copysign(change, previous) * times**2
        found = self.collisions.clearances(self.kinematics.forward_many(way), np.inf, elapsed)
        now = float(found.distances[found.poses == 0].min())
        return found.nearest < min(now, self.collisions.config.clearance + BEND_MARGIN)
