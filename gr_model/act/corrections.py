"""Words at set times in place of those that a policy says itself: a script of corrections."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from ...contracts import Observation, Policy, Trajectory
from ...errors import ConfigError


class _Correctable(Policy, Protocol):
    said: str

    def correct(self, words: str | None) -> None: ...


class CorrectedPolicy:
    """A policy that says its motion (`--model.motions`), corrected at set times of each task.

    Args:
        policy: with `correct`, as models of this library have it.
        script: entries as "1.5 move arm up": from 1.5 s after the task's first observation on; "3 -" gives the word
            back to the policy.

    Raises:
        ConfigError: an entry without a time, words that name no motion, or a policy that takes no corrections.
    """

    def __init__(self, policy: Policy, script: Sequence[str]) -> None:
        if not hasattr(policy, "correct"):
            raise ConfigError(
                "--correct: expected a policy that says its motion, got another; train one with --model.motions."
            )
        self.policy: _Correctable = policy  # type: ignore[assignment]
        self.script = sorted(_entry(line) for line in script)
        for _, words in self.script:
            self.policy.correct(words or None)  # refuses what it cannot follow before anything moves
        self.policy.correct(None)
        self.executed_steps = policy.executed_steps
        self._begin: float | None = None

    def reset(self) -> None:
        """Begin a task."""
        self.policy.reset()
        self._begin = None

    def act(self, observation: Observation) -> Trajectory:
        """Put in the words that are due, and act."""
        self._begin = observation.time if self._begin is None else self._begin
        due = [words for time, words in self.script if time <= observation.time - self._begin + 1e-9]
        if due:
            self.policy.correct(due[-1] or None)
        return self.policy.act(observation)

    def close(self) -> None:
        """Close the policy."""
        self.policy.close()


def _entry(line: str) -> tuple[float, str]:
    """Read one entry; words are empty where the policy gets the word back."""
    time, _, words = line.strip().partition(" ")
    try:
        return float(time), "" if words.strip() == "-" else words.strip()
    except ValueError:
        raise ConfigError(
            f"--correct: expected a time [s] and words, as in '1.5 move arm up' or '3 -', got {line!r}; correct it."
        ) from None
