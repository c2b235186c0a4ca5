"""Which of CALVIN's tasks a policy was trained on, and the ceiling that they set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ...errors import ConfigError
from ..playtable.instructions import held_out_instruction, instructions_of, training_annotations
from ..playtable.tasks import ALL_TASKS
from ..simulation import training_tasks
from .sequences import EvaluationSequence


def training_of(
    policy: str,
    instructions: Mapping[str, str],
    sequences: Sequence[EvaluationSequence] = (),
    calvin_root: Path | None = None,
) -> dict[str, Any] | None:
    """Return what a released policy was trained on; None for policies that state nothing of it.

    Args:
        policy: as evaluation takes it.
        instructions: task -> the instruction that evaluation gives.
        sequences: the sequences that are evaluated.
        calvin_root: a clone of mees/calvin, whose training annotations ask for tasks, too.

    Returns:
        What `simulation.training_tasks.training_of` returns, and ceiling: average length of `sequences` where every
        trained task succeeds and no other, None without tasks or sequences, or where other tasks may be trained, too.

    Raises:
        CheckpointError: the release is damaged.
    """
    found = training_tasks.training_of(policy, wordings(instructions, calvin_root), instructions)
    if found is None:
        return None
    tasks = found["tasks"]
    unclear = tasks is None or not sequences or (found["untrained"] and found["other_texts"])
    return found | {"ceiling": None if unclear else ceiling(tasks, sequences)}


def wordings(instructions: Mapping[str, str], calvin_root: Path | None = None) -> dict[str, list[str]]:
    """Return all instructions that ask for each task: in our words, in `instructions`, in CALVIN's annotations."""
    ours = {name: [*instructions_of(name), held_out_instruction(name)] for name in ALL_TASKS}
    try:
        theirs = {} if calvin_root is None else training_annotations(calvin_root)
    except ConfigError:  # evaluation does without them
        theirs = {}
    return {name: [*texts, instructions.get(name, texts[0]), *theirs.get(name, ())] for name, texts in ours.items()}


def ceiling(tasks: Sequence[str], sequences: Sequence[EvaluationSequence]) -> float:
    """Return the average length of sequences where every one of `tasks` succeeds and no other task."""
    lengths = [next((i for i, name in enumerate(s.tasks) if name not in tasks), len(s.tasks)) for s in sequences]
    return sum(lengths) / len(lengths)
