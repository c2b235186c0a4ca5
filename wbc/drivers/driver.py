"""What the control loop needs of an arm, simulated or real, and the pace at which a real one is served."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Protocol

from ...contracts import JointCommand
from ..robot.robots import RobotModel
from ..robot.transforms import Array

if TYPE_CHECKING:
    from typing import Self


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """The arm at one instant.

    time: [s] on the driver's own clock.
    positions: `[j]` [rad], continuous: joints without stops never jump by a turn.
    velocities: `[j]` [rad/s].
    gripper: opening, 0 closed to 1 open.
    fault: why the arm takes no commands, empty where it does.
    """

    time: float
    positions: Array
    velocities: Array
    gripper: float
    fault: str = ""


class Driver(Protocol):
    """An arm that takes joint positions at a fixed rate.

    The driver owns time: `send` returns when the period of its command is over, because a simulator has
    advanced or because a real arm has been waited for.
    """

    @property
    def robot(self) -> RobotModel:
        """The arm that is driven."""

    @property
    def rate_hz(self) -> float:
        """Commands a second."""

    def connect(self) -> None:
        """Reach the arm and make it ready for commands; it does not move."""

    def read(self) -> Measurement:
        """Return the latest measured state."""

    def send(self, command: JointCommand) -> None:
        """Command where the arm shall be at the end of this period, and let the period pass."""

    def stop(self) -> None:
        """Make the arm hold where it is, by its own means."""

    def close(self) -> None:
        """Leave the arm in a safe state and let go of it; may be called twice."""

    def __enter__(self) -> Self:
        """Connect."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close, after an error as well."""


class Pacer:
    """Waits for deadlines that are one period apart.

    A deadline that is missed by more than a period moves the later ones: nothing is sent in a burst to
    catch up.

    late: number of such deadlines.
    """

    def __init__(
        self,
        rate_hz: float,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """Begin with the first call of `wait`; `clock` returns seconds, `sleep` passes them."""
        self.period, self.late = 1.0 / rate_hz, 0
        self._clock, self._sleep = clock, sleep
        self._deadline: float | None = None

    def wait(self) -> float:
        """Sleep to the next deadline; return by how much it was missed [s], 0 where it was not."""
        now = self._clock()
        if self._deadline is None:
            self._deadline = now
            return 0.0
        self._deadline += self.period
        if now <= self._deadline:
            self._sleep(self._deadline - now)
            return 0.0
        missed = now - self._deadline
        if missed > self.period:
            self.late += 1
            self._deadline = now
        return missed

    def restart(self) -> None:
        """Forget the deadlines: the next call of `wait` sets the first one."""
        self._deadline = None
