"""The clock of a controller: how far along its plan the arm is, which need not be what the caller's clock shows."""

from __future__ import annotations

import math

CATCH_UP, MOST_CATCH_UP = 0.003, 0.02
"""Share of its distance to the caller's clock that the reference gains in a tick, and most of a tick that it gains."""
CLOCK_SLACK = 1e-9
"""Times that differ by less [s] are the same."""


class ReferenceClock:
    """The time along the plan, which advances by even ticks and only gradually follows the caller's clock.

    dt: duration of a tick [s].
    now: the caller's time at the last tick [s].
    reference: time along the plan at which the commands are [s].
    lag: how far slowing down has set the reference back since the plan began [s].
    """

    def __init__(self, dt: float) -> None:
        """Begin at zero with ticks of `dt` [s]."""
        self.dt = dt
        self.reset(0.0)

    def reset(self, time: float) -> None:
        """Set both times to `time` [s]."""
        self.now = self.reference = float(time)
        self.lag = 0.0

    def advance(self, time: float) -> float | None:
        """Move to the caller's `time` [s] and return the step [s].

        A time that is not finite or lies before the last one changes nothing and returns None.
        """
        if not math.isfinite(time) or time < self.now - CLOCK_SLACK:
            return None
        step = time - self.now
        self.now = float(time)
        return step

    def target(self, scale: float, *, following: bool) -> float:
        """Return the reference [s] at the end of this tick, and add what slowing down costs to `lag`.

        Args:
            scale: share of the speed that the reference may run at.
            following: whether there is a plan; without one the reference jumps to the caller's clock.
        """
        self.lag += self.dt * (1.0 - scale)
        target = self.now + self.dt - self.lag
        if following:
            # A caller that ticks early or late would make the arm jerk if the reference took over its clock. The
            # reference therefore advances by one whole tick and removes only a small share of the difference.
            late = target - (self.reference + scale * self.dt)
            gain = min(max(CATCH_UP * late, -MOST_CATCH_UP * self.dt), MOST_CATCH_UP * self.dt)
            target = self.reference + scale * self.dt + gain
        return max(target, self.reference)

    def slower(self, target: float, share: float) -> float:
        """Return the time at the `share` of the way to `target` [s] that it was to be, and add the rest to `lag`."""
        less = (1.0 - share) * (target - self.reference)
        self.lag += less
        return target - less

    def catch_up(self) -> None:
        """Forget what slowing down has cost: the plan that it was for is about to be left."""
        self.reference = max(self.reference, self.now + self.dt)
        self.lag = 0.0

    def run_on(self) -> None:
        """Advance the reference to the end of this tick, where no plan is followed any more."""
        self.reference = max(self.now + self.dt, self.reference)
