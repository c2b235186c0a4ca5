"""Mass, center and inertia of rigid bodies, moved, joined and computed from rods with round ends."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from .transforms import Array


class Inertial(NamedTuple):
    """Mass [kg], center of mass `[3]` [m] and inertia about it `[3 3]` [kg m^2] of a rigid body."""

    mass: float
    center: Array
    inertia: Array

    def moved(self, position: Array, rotation: Array) -> Inertial:
        """Express the body in the frame in which its own frame stands at `position` `[3]`, `rotation` `[3 3]`."""
        return Inertial(self.mass, rotation @ self.center + position, rotation @ self.inertia @ rotation.T)


def combined(bodies: Iterable[Inertial]) -> Inertial:
    """Return the inertial numbers of bodies, given in one frame, that move as one (Huygens-Steiner)."""
    parts = list(bodies)
    mass = math.fsum(body.mass for body in parts)
    if mass == 0.0:
        return Inertial(0.0, np.zeros(3), np.zeros((3, 3)))
    center = sum((body.mass * body.center for body in parts), np.zeros(3)) / mass
    inertia = np.zeros((3, 3))
    for body in parts:
        offset = body.center - center
        inertia += body.inertia + body.mass * (float(offset @ offset) * np.eye(3) - np.outer(offset, offset))
    return Inertial(mass, center, inertia)


def stacked(bodies: Sequence[Inertial]) -> tuple[Array, Array, Array]:
    """Return masses `[l]`, centers `[l 3]` and inertias `[l 3 3]` of the links' bodies."""
    return (
        np.array([body.mass for body in bodies]),
        np.stack([body.center for body in bodies]),
        np.stack([body.inertia for body in bodies]),
    )


def solid_rod(start: Array, end: Array, radius: float, density: float) -> Inertial:
    """Return the inertial numbers of a solid capsule.

    Args:
        start, end: `[3]` ends of its segment [m]; a ball where they are equal.
        radius: [m].
        density: [kg/m^3].
    """
    length = float(np.linalg.norm(end - start))
    tube, balls = density * math.pi * radius**2 * length, density * math.pi * radius**3 * 4 / 3
    along = (0.5 * tube + 0.4 * balls) * radius**2
    across = tube * (length**2 / 12 + radius**2 / 4)
    across += balls * (0.4 * radius**2 + 0.375 * length * radius + 0.25 * length**2)
    axis = (end - start) / length if length > 0.0 else np.zeros(3)
    inertia = across * np.eye(3) + (along - across) * np.outer(axis, axis)
    return Inertial(tube + balls, (start + end) / 2, inertia)


def from_rows(rows: Sequence[Sequence[float]]) -> list[Inertial]:
    """Read rows of mass [kg], center x y z [m], and inertia xx yy zz xy xz yz [kg m^2]."""
    return [
        Inertial(m, np.array([x, y, z]), np.array([[xx, xy, xz], [xy, yy, yz], [xz, yz, zz]]))
        for m, x, y, z, xx, yy, zz, xy, xz, yz in rows
    ]
