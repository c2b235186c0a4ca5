"""Which of CALVIN's tasks a policy was trained on, and the ceiling that they set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..playtable.instructions import held_out_instruction, instructions_of
from ..playtable.tasks import ALL_TASKS
from ..simulation import training_tasks
from .sequences import EvaluationSequence


def training_of(
    policy: str, instructions: Mapping[str, str], sequences: Sequence[EvaluationSequence] = ()
) -> dict[str, Any] | None:
    """Return what a released policy was trained on; None for policies that state nothing of it.

    Args:
        policy: as evaluation takes it.
        instructions: task -> the instruction that evaluation gives.
        sequences: the sequences that are evaluated.

    Returns:
        What `simulation.training_tasks.training_of` returns, and ceiling: average length of `sequences` where every
        trained task succeeds and no other, None without tasks or sequences.

    Raises:
        CheckpointError: the release is damaged.
    """
    found = training_tasks.training_of(policy, wordings(instructions), instructions)
    if found is None:
        return None
    tasks = found["tasks"]
    return found | {"ceiling": None if tasks is None or not sequences else ceiling(tasks, sequences)}


def wordings(instructions: Mapping[str, str]) -> dict[str, list[str]]:
    """Return all instructions that ask for each task: in our words, or in `instructions`."""
    ours = {name: [*instructions_of(name), held_out_instruction(name)] for name in ALL_TASKS}
    return {name: [*texts, instructions.get(name, texts[0])] for name, texts in ours.items()}


def ceiling(tasks: Sequence[str], sequences: Sequence[EvaluationSequence]) -> float:
    """Return the average length of sequences where every one of `tasks` succeeds and no other task."""
    lengths = [next((i for i, name in enumerate(s.tasks) if name not in tasks), len(s.tasks)) for s in sequences]
    return sum(lengths) / len(lengths)
