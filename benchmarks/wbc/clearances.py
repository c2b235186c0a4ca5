"""Distances of an arm's capsules over a whole motion, written apart from the controller's own so that both can err."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ...contracts import Array
from ...wbc.robot.kinematics import Kinematics
from ...wbc.robot.robots import RobotModel
from .trajectories import TICK, TrackingCase


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Distances:
    """Least distance at each of n joint vectors [m]; None where there is nothing of the kind.

    own: between the arm's own pairs; plane: to the plane; spheres: to the spheres where they are at that tick.
    """

    own: Array | None
    plane: Array | None
    spheres: Array | None

    def least(self) -> Array:
        """Return the least of all `[n]`, infinity where there is nothing."""
        present = [d for d in (self.own, self.plane, self.spheres) if d is not None]
        return np.min(present, axis=0) if present else np.array(np.inf)


def distances(robot: RobotModel, case: TrackingCase, q: Array) -> Distances:
    """Measure `q` `[n j]`, one row a tick from the start of the case on."""
    frames = Kinematics(robot).forward_many(q).frames
    times = np.arange(len(q)) * TICK
    links = [c.link for c in robot.capsules]
    radii = np.array([c.radius for c in robot.capsules])
    ends = [np.array([getattr(c, end) for c in robot.capsules]).reshape(-1, 3) for end in ("start", "end")]
    carriers = frames[:, links]
    starts, stops = (np.einsum("ncij,cj->nci", carriers[..., :3, :3], e) + carriers[..., :3, 3] for e in ends)
    own = plane = spheres = None
    if robot.self_pairs:
        first, second = np.array(robot.self_pairs).T
        gaps = segment_distances(starts[:, first], stops[:, first], starts[:, second], stops[:, second])
        own = (gaps - radii[first] - radii[second]).min(axis=1)
    exposed = np.flatnonzero(np.array(links) >= case.scene.first_link)
    if len(exposed) and case.plane is not None:
        normal = np.asarray(case.plane.normal)
        heights = np.minimum(starts[:, exposed] @ normal, stops[:, exposed] @ normal) - case.plane.offset
        plane = (heights - radii[exposed]).min(axis=1)
    if len(exposed) and case.spheres:
        distances = []
        for sphere in case.spheres:
            center = np.asarray(sphere.center) + times[:, None] * np.asarray(sphere.velocity)
            gap = point_segment_distances(center[:, None], starts[:, exposed], stops[:, exposed])
            distances.append((gap - radii[exposed] - sphere.radius).min(axis=1))
        spheres = np.min(distances, axis=0)
    return Distances(own=own, plane=plane, spheres=spheres)


def point_segment_distances(point: Array, start: Array, stop: Array) -> Array:
    """Return the distances `[...]` of points `[... 3]` to segments."""
    along, offset = stop - start, point - start
    length = np.maximum(np.square(along).sum(-1), 1e-30)
    share = np.clip((along * offset).sum(-1) / length, 0.0, 1.0)
    gaps: Array = np.sqrt(np.square(offset - share[..., None] * along).sum(-1))
    return gaps


def segment_distances(start_a: Array, stop_a: Array, start_b: Array, stop_b: Array) -> Array:
    """Return the distances `[...]` of segments a to segments b `[... 3]`.

    The least of the four distances from an end to the other segment and, where the common perpendicular meets both
    segments, its length.
    """
    at_ends = np.min(
        [
            point_segment_distances(start_a, start_b, stop_b),
            point_segment_distances(stop_a, start_b, stop_b),
            point_segment_distances(start_b, start_a, stop_a),
            point_segment_distances(stop_b, start_a, stop_a),
        ],
        axis=0,
    )
    along_a, along_b, between = stop_a - start_a, stop_b - start_b, start_b - start_a
    normal = np.cross(along_a, along_b)
    square = np.square(normal).sum(-1)
    crossed = square > 1e-18
    safe = np.where(crossed, square, 1.0)
    share_a = (np.cross(between, along_b) * normal).sum(-1) / safe
    share_b = (np.cross(between, along_a) * normal).sum(-1) / safe
    inside = crossed & (share_a >= 0.0) & (share_a <= 1.0) & (share_b >= 0.0) & (share_b <= 1.0)
    perpendicular = np.abs((between * normal).sum(-1)) / np.sqrt(safe)
    gaps: Array = np.where(inside, np.minimum(perpendicular, at_ends), at_ends)
    return gaps
