"""Shares of the way over time, and the poses along it, of which the built-in cases are made."""

from __future__ import annotations

import numpy as np

from ...contracts import Array
from ...wbc.robot.transforms import pose_matrix, rotation_exp
from .trajectories import TICK


def ease(share: Array) -> Array:
    """Go from 0 to 1 with no velocity or acceleration at the ends (the quintic `10 s^3 - 15 s^4 + 6 s^5`)."""
    s = np.clip(share, 0.0, 1.0)
    return s**3 * (10.0 - 15.0 * s + 6.0 * s**2)


def there_and_back(seconds: float) -> Array:
    """Go from 0 to 1 and back within `seconds`, `[n]`."""
    half = np.arange(round(seconds / TICK) + 1) * TICK / (0.5 * seconds)
    return ease(np.where(half <= 1.0, half, 2.0 - half))


def one_way(seconds: float) -> Array:
    """Go from 0 to 1 within `seconds`, `[n]`."""
    return ease(np.arange(round(seconds / TICK) + 1) * TICK / seconds)


def moved(start: Array, shift: Array, turn: Array) -> Array:
    """Return a pose `[4 4]` shifted by `shift` [m] and turned by `turn` [rad], both in base axes."""
    return pose_matrix(start[:3, 3] + shift, rotation_exp(turn) @ start[:3, :3])


def moved_along(start: Array, shares: Array, shift: Array, turn: Array) -> Array:
    """Return the poses `[n 4 4]` that go from `start` by shares `[n]` of a shift [m] and a turn [rad]."""
    return np.stack([moved(start, share * np.asarray(shift), share * np.asarray(turn)) for share in shares])
