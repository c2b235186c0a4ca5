"""What evaluation needs of a benchmark: a simulator and its test episodes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from ...contracts import Policy
from .simulator import Simulator


class TaskWatch(Protocol):
    """Watches one task, to say how it failed.

    hopeless: whether the judge cannot be satisfied from where the task begins, whatever is done.
    """

    hopeless: bool

    def see(self) -> None:
        """Look at the simulator after a control step."""

    def report(self) -> dict[str, Any]:
        """Return how a task failed, as JSON values."""
        ...


class Suite(Protocol):
    """The test episodes of a benchmark, in one simulator.

    A suite may have two more members, which are looked up and may be absent: `adapt(made) -> Policy`, which makes a
    policy of an object of a user's file that was written for another interface; and `time_limit(kind) -> int`, the
    control steps of a task where kinds differ in it, in place of the evaluation's `max_steps`.
    """

    @property
    def simulator(self) -> Simulator:
        """The simulator that the episodes are started in."""
        ...

    def start(self, kind: str, index: int) -> Sequence[str]:
        """Bring the simulator to the start of an episode and return its tasks, which are done one after another.

        Args:
            kind: a kind of episodes: of a task, or several tasks in a row.
            index: which one of the kind; the same index gives the same start.
        """
        ...

    def instruction(self, task: str) -> str:
        """Return what the policy is asked to do."""
        ...

    def watch(self, task: str) -> TaskWatch | None:
        """Return what watches a task that begins now, None where failures are not explained."""
        ...

    def expert(self, control: str, executed_steps: int) -> Policy:
        """Return the scripted policy of this simulator.

        Args:
            control: the control that will follow its trajectories.
            executed_steps: poses of each trajectory that will be executed.

        Raises:
            PolicyError: there is none.
        """
        ...

    def close(self) -> None:
        """Release the simulator."""
