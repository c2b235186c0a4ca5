"""Another arm as what to keep clear of: its capsules along the whole way on which it can stop.

An arm can always stop along its present direction, since every tick of its controller makes sure of it. Whoever stays
clear of that way is safe from the arm, whatever it does in this tick; in the next one it is the other's turn:

    tick k      left chooses a motion whose stop is clear of right's stop,
                right one whose stop is clear of left's new one
    worst case  right finds none and stops, on a way that left has just kept clear

The way is covered by the capsules at a few postures on it, widened by half of what they move from one to the next, in
quadrature: a ball that moves straight by d lies within balls of radius sqrt(r^2 + (d/2)^2) around both its ends.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from .collision_pairs import ArmCapsules, Chosen, NearPairs, Placed
from .robot.geometry import closest_on_segments, point_separation
from .robot.kinematics import Kinematics
from .robot.transforms import Array


class Swept(NamedTuple):
    """Capsules in the base frame of whoever keeps clear: ends of segments `[o 3]` [m], radii `[o]` [m]."""

    starts: Array
    stops: Array
    radii: Array


class OtherArm:
    """What one arm knows of another one.

    swept: the capsules to keep clear of.
    size: their number.
    travel: how far [m] any point of them has moved, in all, since the beginning.
    """

    def __init__(self, T_base_other: Array, num_capsules: int, num_postures: int) -> None:
        """Know nothing yet; `T_base_other` `[4 4]` maps the other's base frame to that of the arm that keeps clear."""
        self.T_base_other = T_base_other
        self.num_capsules, self.size = num_capsules, num_capsules * num_postures
        far = np.full((self.size, 3), 1e6)
        self.swept, self.travel = Swept(far, far, np.zeros(self.size)), 0.0

    def see(self, kinematics: Kinematics, capsules: ArmCapsules, way: Array) -> None:
        """Take over where the other arm may be.

        Args:
            kinematics, capsules: of the other arm.
            way: `[s j]` its postures from now to a stop [rad].
        """
        pose = kinematics.forward_many(way, jacobians=False)
        placed = capsules.place(pose.frames, pose.tool.reshape(len(way), 4, 4), np.zeros(len(way)))
        steps = np.zeros((len(way), len(capsules.radii)))
        for ends in (placed.starts, placed.stops):
            moved = np.linalg.norm(np.diff(ends, axis=0), axis=-1)
            steps[1:], steps[:-1] = np.maximum(steps[1:], moved), np.maximum(steps[:-1], moved)
        radii = np.sqrt(capsules.radii**2 + (0.5 * steps) ** 2).ravel()
        rotation, position = self.T_base_other[:3, :3], self.T_base_other[:3, 3]
        starts, stops = (ends.reshape(-1, 3) @ rotation.T + position for ends in (placed.starts, placed.stops))
        last = self.swept
        moved = max(float(np.linalg.norm(a - b, axis=1).max()) for a, b in ((starts, last[0]), (stops, last[1])))
        self.travel += moved + max(float((radii - last.radii).max()), 0.0)
        self.swept = Swept(starts, stops, radii)


class OtherArmPairs:
    """Each exposed capsule against each capsule of another arm's way to a stop.

    other: that arm; size: number of pairs.
    """

    def __init__(self, arm: ArmCapsules, other: OtherArm) -> None:
        """Lay out the pairs: all of the first exposed capsule, then all of the next one."""
        self.other, self._exposed = other, arm.exposed
        self.size = len(arm.exposed) * other.size
        self._radii, self._moved = arm.radii, arm.moved

    def measure(self, arm: Placed, within: float, chosen: Chosen) -> NearPairs:
        """Return those of the chosen pairs whose distance is below `within` [m]."""
        swept, width = self.other.swept, len(chosen)
        own, others = self._exposed[chosen // self.other.size], chosen % self.other.size
        starts, stops = arm.starts[:, own], arm.stops[:, own]
        radii = self._radii[own] + swept.radii[others]
        # Balls around both segments bound the distance; only what they leave open is measured exactly.
        middles = 0.5 * (starts + stops) - 0.5 * (swept.starts[others] + swept.stops[others])
        lengths = np.linalg.norm(stops - starts, axis=-1) + np.linalg.norm(swept.stops - swept.starts, axis=1)[others]
        bound = (np.linalg.norm(middles, axis=-1) - 0.5 * lengths - radii).ravel()
        close = np.flatnonzero(bound < within)
        poses, pair = close // width, close % width
        point, other_point = closest_on_segments(
            starts[poses, pair], stops[poses, pair], swept.starts[others[pair]], swept.stops[others[pair]]
        )
        distance, normals = point_separation(point, other_point)
        distance = distance - radii[pair]
        near = np.flatnonzero(distance < within)
        left_out = np.ones(len(bound), dtype=bool)
        left_out[close] = False
        nearest = min(float(bound[left_out].min(initial=np.inf)), float(distance.min(initial=np.inf)))
        pair, still = pair[near], np.zeros(len(near))
        return NearPairs(
            distance[near], point[near], normals[near], self._moved[own[pair]], still, poses[near], pair, nearest
        )
