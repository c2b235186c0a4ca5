"""What the controller reports about itself: status names, events and counters."""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass

HOLD = "hold"
"""The chunk is over; the arm stands or comes to rest."""
TRACK = "track"
"""Follows an optimized chunk."""
DEVIATING = "deviating"
"""Follows a plan, but the tool is farther from the last pose that was due than may be called tracking."""
DEGRADED = "degraded"
"""Follows the smoothed chunk, because the optimization failed or came too late."""
UNREACHABLE = "unreachable"
"""Stands as near to the wanted pose as it can."""
RETURNING = "returning"
"""Begins beyond a joint's limit and moves back within; chunks wait until it is there."""
SLOWED = "slowed"
"""Follows at reduced speed, because the measured joints lag behind."""
EMERGENCY_BRAKE = "emergency_brake"
"""This tick needed more than the nominal acceleration to keep clear."""
PROTECTIVE_STOP = "protective_stop"
"""Stopped by supervision; `reset` with the measured state releases it."""
EMERGENCY_STOP = "emergency_stop"
"""Stopped on request; `reset` with the measured state releases it."""

STATUSES = (
    HOLD,
    TRACK,
    DEVIATING,
    DEGRADED,
    UNREACHABLE,
    RETURNING,
    SLOWED,
    EMERGENCY_BRAKE,
    PROTECTIVE_STOP,
    EMERGENCY_STOP,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """An entry of the log: time [s], code, and one sentence of detail."""

    time: float
    code: str
    detail: str


class EventLog:
    """The latest events, a counter for each code, and the status with its changes."""

    def __init__(self, max_events: int) -> None:
        """Keep at most `max_events` events."""
        self.events: deque[Event] = deque(maxlen=max_events)
        self.counters: Counter[str] = Counter()
        self.status = HOLD

    def record(self, time: float, code: str, detail: str) -> None:
        """Note an event at `time` [s] and count it."""
        self.events.append(Event(time=time, code=code, detail=detail))
        self.counters[code] += 1

    def become(self, status: str, time: float, detail: str = "") -> None:
        """Change the status; a change is an event with the new status as its code."""
        if status != self.status:
            self.record(time, status, detail or f"after {self.status}")
            self.status = status
