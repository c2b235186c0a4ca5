"""The kinds of pairs whose distances are watched, one class each: capsules, a plane, a box, the workspace.

Each kind measures the pairs that it is asked for and returns the near ones; `collision.CollisionModel` puts the kinds
of a scene side by side.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np

from .robot.geometry import closest_on_segments, point_separation, segments_to_box
from .robot.polytopes import Polytopes
from .robot.robots import Capsule
from .robot.transforms import Array

Chosen = np.ndarray
"""Indices of the pairs of one kind to measure."""

TIGHT = 0.03
"""Distance [m] below which the convex hulls of two capsules are asked, too."""


class NearPairs(NamedTuple):
    """Near pairs of one kind.

    distances: `[p]` [m]; points: `[p 3]` on the arm, and normals: `[p 3]` towards it; moved: `[p j]` how each joint
    moves the pair (1 the arm's point, 0 both or neither, -1 the other point); drifts: `[p]` change of the distance by
    the obstacle's own motion [m/s]; poses, pairs: `[p]` which pose and which of the chosen pairs each row is.
    nearest: no distance, near or not, is below this [m].
    """

    distances: Array
    points: Array
    normals: Array
    moved: Array
    drifts: Array
    poses: np.ndarray
    pairs: np.ndarray
    nearest: float


class ArmCapsules:
    """The capsules of an arm, a grasped object among them.

    links: `[c]` the link of each; ends: `[c 3 2]` of its segment in the link's frame [m]; radii: `[c]` [m].
    moved: `[c j]` 1 where a joint moves the capsule, else 0.
    polytopes: the convex hulls of what they cover, where they are known.
    exposed: `[e]` indices of those that are checked against obstacles.
    """

    def __init__(self, capsules: Sequence[Capsule], num_joints: int, first_link: int) -> None:
        """Take over capsules; those from `first_link` on are exposed."""
        self.links = np.array([c.link for c in capsules], dtype=np.intp)
        self.ends = (
            np.array([[c.start for c in capsules], [c.end for c in capsules]]).reshape(2, -1, 3).transpose(1, 2, 0)
        )
        self.radii = np.array([c.radius for c in capsules])
        self.polytopes = Polytopes([c.inside for c in capsules])
        self.moved = (np.arange(num_joints)[None, :] < self.links[:, None]).astype(np.float64)
        self.exposed = np.array([i for i, c in enumerate(capsules) if c.link >= first_link], dtype=np.intp)

    def place(self, frames: Array, tools: Array, elapsed: Array) -> Placed:
        """Return the capsules at link frames `[m l 4 4]` and tool poses `[m 4 4]`, `elapsed` `[m]` [s] later."""
        carriers = frames[:, self.links]
        ends = carriers[..., :3, :3] @ self.ends + carriers[..., :3, 3:]
        return Placed(ends[..., 0], ends[..., 1], tools, elapsed, frames)


class Placed(NamedTuple):
    """Poses of an arm.

    starts, stops: `[m c 3]` ends of the capsules' segments [m]; tools: `[m 4 4]`; elapsed: `[m]` time since the
    obstacles were where the scene says [s]; frames: `[m l 4 4]` of the links.
    """

    starts: Array
    stops: Array
    tools: Array
    elapsed: Array
    frames: Array


class PairKind(Protocol):
    """Pairs of one kind: `size` of them for each pose."""

    size: int

    def measure(self, arm: Placed, within: float, chosen: Chosen) -> NearPairs:
        """Return those of the chosen pairs, at least one, whose distance is below `within` [m]."""
        ...


class CapsulePairs:
    """Capsules of the arm against each other, and against obstacles that are capsules, too: spheres and rods.

    All are measured in one call, since a call costs more than its rows.

    margins: `[p]` what is added to the distance of each pair [m].
    first, second: `[p]` capsules of each pair; obstacles are counted after the arm's, and are always second.
    moved: `[p j]` as in `NearPairs`; velocities: `[p 3]` of the obstacle [m/s].
    obstacle_ends: `[2 o 3]` [m]; obstacle_radii: `[o]` [m]; obstacle_velocities: `[o 3]` [m/s].
    """

    def __init__(
        self,
        arm: ArmCapsules,
        self_pairs: Sequence[tuple[int, int]],
        margins: Sequence[float],
        obstacles: Sequence[tuple[Sequence[float], Sequence[float], float, Sequence[float]]],
        *,
        moving: bool,
    ) -> None:
        """Lay out the pairs.

        Args:
            arm: its capsules.
            self_pairs: pairs among them; margins: what is added to the distance of each [m].
            obstacles: start, end, radius and velocity of each.
            moving: whether anything in the scene moves.
        """
        count, exposed = len(arm.links), arm.exposed.tolist()
        self._links, self._polytopes = arm.links, arm.polytopes
        pairs = [*self_pairs, *((i, count + k) for k in range(len(obstacles)) for i in exposed)]
        self.size, self.moving = len(pairs), moving
        self.first = np.array([a for a, _ in pairs], dtype=np.intp)
        self.second = np.array([b for _, b in pairs], dtype=np.intp)
        self.obstacle_ends = np.array([[o[0] for o in obstacles], [o[1] for o in obstacles]]).reshape(2, -1, 3)
        self.obstacle_radii = np.array([o[2] for o in obstacles], dtype=np.float64)
        self.obstacle_velocities = np.array([o[3] for o in obstacles], dtype=np.float64).reshape(-1, 3)
        radii = np.concatenate([arm.radii, self.obstacle_radii])
        self.margins = np.concatenate([np.asarray(margins), np.zeros(len(pairs) - len(margins))])
        self.radii = radii[self.first] + radii[self.second] - self.margins
        # A joint that carries both capsules of a pair leaves their distance alone: 1 - 1 = 0.
        moved = np.concatenate([arm.moved, np.zeros((len(obstacles), arm.moved.shape[1]))])
        self.moved = moved[self.first] - moved[self.second]
        self.velocities = np.concatenate([np.zeros((count, 3)), self.obstacle_velocities])[self.second]
        known = np.concatenate([arm.polytopes.known, np.zeros(len(obstacles), dtype=bool)])
        self._tight = known[self.first] & known[self.second]

    def measure(self, arm: Placed, within: float, chosen: Chosen) -> NearPairs:
        """Return those of the chosen pairs whose distance is below `within` [m]."""
        a, b = self.first[chosen], self.second[chosen]
        width, starts, stops = len(a), arm.starts, arm.stops
        # Obstacles stand behind the arm's capsules, and `second` rises towards them: the last chosen pair tells
        # whether any of them is needed.
        if len(self.obstacle_velocities) and b[-1] >= starts.shape[1]:
            shift = self.obstacle_velocities * arm.elapsed[:, None, None]
            starts = np.concatenate([starts, self.obstacle_ends[0] + shift], axis=1)
            stops = np.concatenate([stops, self.obstacle_ends[1] + shift], axis=1)
        # Rows of all poses in one list: row r is pair r % width at pose r // width.
        point_a, point_b = closest_on_segments(
            starts[:, a].reshape(-1, 3),
            stops[:, a].reshape(-1, 3),
            starts[:, b].reshape(-1, 3),
            stops[:, b].reshape(-1, 3),
        )
        # The distance of two capsules is that of their segments less both radii. The closest points move along the
        # segments as the arm moves, but to first order that does not change the distance, so they may be held fixed
        # on their links when it is differentiated.
        distance, normals = point_separation(point_a, point_b)
        distance = (distance.reshape(-1, width) - self.radii[chosen]).ravel()
        nearest = float(distance.min())
        near = np.arange(len(distance)) if within == np.inf else np.flatnonzero(distance < within)
        if len(near) < len(distance):
            distance, point_a, normals = distance[near], point_a[near], normals[near]
        pair, pose = near % width, near // width
        if self._tight.any() and self.tighten(distance, point_a, normals, chosen[pair], arm.frames, pose):
            kept = distance < within
            nearest = max(nearest, min(within, float(distance.min())))
            distance, point_a, normals = distance[kept], point_a[kept], normals[kept]
            pair, pose = pair[kept], pose[kept]
        drifts = -(normals * self.velocities[chosen][pair]).sum(-1) if self.moving else np.zeros(len(pair))
        # One point serves both capsules: a force along the normal has the same moment about a joint's axis wherever
        # on its line it acts, and both closest points lie on that line.
        return NearPairs(distance, point_a, normals, self.moved[chosen][pair], drifts, pose, pair, nearest)

    def tighten(
        self, distances: Array, points: Array, normals: Array, pairs: np.ndarray, frames: Array, poses: np.ndarray
    ) -> bool:
        """Write what hulls say over the rows of near pairs where they are farther apart than their capsules.

        Args:
            distances, points, normals: `[r]`, `[r 3]`, `[r 3]` of the rows, as in `NearPairs`; written to.
            pairs, poses: `[r]` which pair and which pose each row is; frames: `[m l 4 4]` of the links.

        Returns:
            Whether anything was written.
        """
        asked = np.flatnonzero(self._tight[pairs] & (distances < TIGHT))
        if len(asked) == 0:
            return False
        pair, pose = pairs[asked], poses[asked]
        first, second = self.first[pair], self.second[pair]
        gaps, where, directions = self._polytopes.gaps(
            first, second, frames[pose, self._links[first]], frames[pose, self._links[second]]
        )
        gaps += self.margins[pair]
        better = gaps > distances[asked]
        rows = asked[better]
        distances[rows], points[rows], normals[rows] = gaps[better], where[better], directions[better]
        return len(rows) > 0


class PlanePairs:
    """Both ends of each exposed capsule against a half-space; first all starts, then all stops.

    who: `[2 e]` the capsule of each pair.
    """

    def __init__(self, arm: ArmCapsules, normal: Sequence[float], offset: float) -> None:
        """Keep out of `normal . x < offset` [m]."""
        self.normal, self.offset = np.array(normal), offset
        self.who = np.concatenate([arm.exposed, arm.exposed])
        self.size = len(self.who)
        self.radii, self.moved, self._exposed = arm.radii[self.who], arm.moved[self.who], arm.exposed

    def measure(self, arm: Placed, within: float, chosen: Chosen) -> NearPairs:
        """Return those of the chosen pairs whose distance is below `within` [m]."""
        points = np.concatenate([arm.starts[:, self._exposed], arm.stops[:, self._exposed]], axis=1)[:, chosen]
        width = len(chosen)
        distance = (points @ self.normal - self.offset - self.radii[chosen]).ravel()
        points = points.reshape(-1, 3)
        near = np.flatnonzero(distance < within)
        normals = np.tile(self.normal, (len(near), 1))
        pair, still = near % width, np.zeros(len(near))
        moved, nearest = self.moved[chosen[pair]], float(distance.min())
        return NearPairs(distance[near], points[near], normals, moved, still, near // width, pair, nearest)


class BoxPairs:
    """Each exposed capsule against one box."""

    def __init__(self, arm: ArmCapsules, center: Array, rotation: Array, half_extents: Array, velocity: Array) -> None:
        """Keep out of a box: center `[3]` [m], axes `[3 3]`, half edge lengths `[3]` [m], velocity `[3]` [m/s]."""
        self.center, self.rotation, self.half_extents, self.velocity = center, rotation, half_extents, velocity
        self.who, self.size = arm.exposed, len(arm.exposed)
        self.radii, self.moved = arm.radii[self.who], arm.moved[self.who]

    def measure(self, arm: Placed, within: float, chosen: Chosen) -> NearPairs:
        """Return those of the chosen pairs whose distance is below `within` [m]."""
        half, rotation = self.half_extents, self.rotation
        centers = (self.center + arm.elapsed[:, None] * self.velocity)[:, None]
        who = self.who[chosen]
        width = len(who)
        start = ((arm.starts[:, who] - centers) @ rotation).reshape(-1, 3)
        stop = ((arm.stops[:, who] - centers) @ rotation).reshape(-1, 3)
        # The bounding box of the segment gives a cheap lower bound; only what it leaves open is measured exactly.
        gap = np.maximum(np.minimum(start, stop) - half, -half - np.maximum(start, stop))
        radii = np.tile(self.radii[chosen], len(arm.starts))
        bound = np.sqrt(np.square(np.maximum(gap, 0.0)).sum(-1)) - radii
        close = np.flatnonzero(bound < within)
        if len(close) == 0:
            none, empty, no_index = np.empty(0), np.empty((0, 3)), np.empty(0, dtype=np.intp)
            return NearPairs(none, empty, empty, self.moved[:0], none, no_index, no_index, float(bound.min()))
        distances, points, normals = segments_to_box(start[close], stop[close], half)
        distances = distances - radii[close]
        near = np.flatnonzero(distances < within)
        nearest = min(float(np.delete(bound, close).min(initial=np.inf)), float(distances.min()))
        poses, pair = close[near] // width, close[near] % width
        points, normals = points[near] @ rotation.T + centers[poses, 0], normals[near] @ rotation.T
        moved, drifts = self.moved[chosen[pair]], -(normals @ self.velocity)
        return NearPairs(distances[near], points, normals, moved, drifts, poses, pair, nearest)


class WorkspaceWalls:
    """The tool against the six walls of its workspace: the lower ones of x, y, z, then the upper ones."""

    size = 6

    def __init__(self, lower: Sequence[float], upper: Sequence[float], clearance: float, num_joints: int) -> None:
        """Let the tool go as far as the walls, although all pairs keep the `clearance` [m]: it is added here."""
        self.lower, self.upper, self.clearance, self.num_joints = lower, upper, clearance, num_joints

    def measure(self, arm: Placed, within: float, chosen: Chosen) -> NearPairs:
        """Return those of the chosen pairs whose distance is below `within` [m]."""
        points = arm.tools[:, :3, 3]
        distance = np.concatenate([points - self.lower, self.upper - points], axis=1)[:, chosen] + self.clearance
        width, distance = distance.shape[1], distance.ravel()
        near = np.flatnonzero(distance < within)
        poses, pair = near // width, near % width
        normals = np.concatenate([np.eye(3), -np.eye(3)])[chosen][pair]
        moved, still = np.ones((len(near), self.num_joints)), np.zeros(len(near))
        return NearPairs(distance[near], points[poses], normals, moved, still, poses, pair, float(distance.min()))


def joined(parts: Sequence[NearPairs]) -> NearPairs:
    """Concatenate near pairs of several kinds."""
    return NearPairs(
        np.concatenate([p.distances for p in parts]),
        np.concatenate([p.points for p in parts]),
        np.concatenate([p.normals for p in parts]),
        np.concatenate([p.moved for p in parts]),
        np.concatenate([p.drifts for p in parts]),
        np.concatenate([p.poses for p in parts]),
        np.concatenate([p.pairs for p in parts]),
        min(p.nearest for p in parts),
    )
