"""Joint velocity bounds from which a stop before every joint limit stays possible, tick after tick."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from .robot.transforms import Array

FAR = 1e3
"""Distance [rad] that stands for a limit that does not exist."""


def stoppable_velocity(distance: Array, acceleration: Array, dt: float) -> Array:
    """Return the greatest speed `[j]` [rad/s] towards a limit that still allows a stop before it.

    The arm moves `v dt` in this tick, `(v - a dt) dt` in the next, and so on; the sum must not exceed
    `distance`. Solving that sum
    exactly makes the bound recursive: whoever obeyed it one tick ago can obey it now by changing speed by at
        most `a dt`.

    Args:
        distance: `[j]` way left to the limit [rad].
        acceleration: `[j]` deceleration that is available [rad/s^2].
        dt: duration of a tick [s].
    """
    way = np.minimum(np.maximum(distance, 0.0), FAR) / dt
    step = acceleration * dt
    ticks = np.floor(0.5 * (np.sqrt(1.0 + 8.0 * way / step) - 1.0))
    return way / (ticks + 1.0) + 0.5 * step * ticks


def velocity_box(
    q: Array,
    previous: Array,
    lower: Array,
    upper: Array,
    velocity: Array,
    acceleration: Array,
    change: Array,
    dt: float,
) -> tuple[Array, Array]:
    """Return the least and greatest joint velocities `[j]` [rad/s] allowed in this tick; never empty.

    Args:
        q: joint positions [rad]; previous: joint velocities of the last tick [rad/s].
        lower, upper: position limits [rad]; velocity: speed limits [rad/s].
        acceleration: deceleration that later ticks can count on [rad/s^2].
        change: acceleration bound of this tick, at least `acceleration` [rad/s^2].
        dt: duration of a tick [s].
    """
    below, above = q - lower, upper - q
    if bool(np.all(np.minimum(below, above) > velocity * (0.5 * velocity / acceleration + dt))):
        least, greatest = -velocity, velocity
    else:
        least = np.maximum(-velocity, -stoppable_velocity(below, acceleration, dt))
        greatest = np.minimum(velocity, stoppable_velocity(above, acceleration, dt))
    least = np.maximum(least, np.minimum(previous - change * dt, greatest))
    greatest = np.minimum(greatest, np.maximum(previous + change * dt, least))
    return least, greatest


def shortest_turn(difference: Array, endless: npt.NDArray[np.bool_]) -> Array:
    """Return differences of joint positions `[... j]` [rad], within half a turn for joints without stops."""
    turned: Array = np.where(endless, (difference + np.pi) % (2.0 * np.pi) - np.pi, difference)
    return turned
