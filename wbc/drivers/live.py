"""A control loop in real time: one thread feeds the arm, another one computes ticks for it."""

from __future__ import annotations

import sys
import threading
from types import TracebackType
from typing import TYPE_CHECKING

from ...contracts import ControlTrajectory
from .loop import ControlLoop

if TYPE_CHECKING:
    from typing import Self


class LiveLoop:
    """Runs a `ControlLoop` in the background, at the pace of its driver.

    The feeding thread only samples the look-ahead and sends, so that a slow tick costs look-ahead and not a
    deadline of the arm. Use it as a context manager: it starts the loop and brakes the arm to rest at the end.
    """

    def __init__(self, loop: ControlLoop, *, switch_interval: float = 5e-4) -> None:
        """Prepare; `switch_interval` [s] is how long one thread may keep the interpreter from the other."""
        self.loop = loop
        self._switch_interval = switch_interval
        self._usual_interval = sys.getswitchinterval()
        self._wake = threading.Event()
        self._failure: Exception | None = None
        self._threads: list[threading.Thread] = []

    def start(self) -> None:
        """Start from the measured joints and return at once."""
        self.loop.start()
        self._failure = None
        self._usual_interval = sys.getswitchinterval()
        sys.setswitchinterval(self._switch_interval)
        self._threads = [threading.Thread(target=run, daemon=True) for run in (self._feed, self._compute)]
        for thread in self._threads:
            thread.start()

    def accept(self, trajectory: ControlTrajectory) -> str:
        """Hand a chunk, timed by the loop's `time`, to the controller; return what became of it.

        Raises:
            Exception: the loop is over because the driver or the controller failed.
        """
        self.check()
        return self.loop.accept(trajectory)

    def check(self) -> None:
        """Raise what ended the loop, if anything did.

        Raises:
            Exception: of the driver or of the controller.
        """
        if self._failure is not None:
            raise self._failure
        self.loop.check()

    def stop(self, reason: str = "requested") -> None:
        """Brake the arm to rest, wait until it is, and end the threads."""
        self.loop.stop(reason)
        for thread in self._threads:
            thread.join(timeout=2.0)
        if self._threads:
            sys.setswitchinterval(self._usual_interval)
        self._threads = []

    def __enter__(self) -> Self:
        """Start."""
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop; raise what ended the loop unless another error is on its way."""
        self.stop()
        if error is None:
            self.check()

    def _feed(self) -> None:
        """Publish until the loop is over."""
        try:
            while not self.loop.over:
                self.loop.publish()
                self._wake.set()
        except Exception as failure:
            self._failure = failure
        finally:
            self._wake.set()

    def _compute(self) -> None:
        """Produce whatever has become due after each command."""
        while not self.loop.over:
            if not self.loop.produce():
                self._wake.wait(0.1)
                self._wake.clear()
