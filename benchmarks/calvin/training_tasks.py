"""Which of CALVIN's tasks a policy was trained on, the words it does not know, and the ceiling that both set."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ..playtable.instructions import held_out_instruction, instructions_of
from ..playtable.tasks import ALL_TASKS
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
        tasks: names, or None where the release does not keep its instructions; untrained: the other ones;
        unknown_words: instruction -> words that its text encoder was trained without; ceiling: average length of
        `sequences` where every trained task succeeds and no other, None without tasks or sequences.

    Raises:
        CheckpointError: the release is damaged.
    """
    from ...gr_model.act.loading import release_folder, text_encoder_of
    from ...gr_model.model.release import RECORD, read_record
    from ...tokenizers.text import note_as_named

    folder = release_folder(policy)
    if not (folder / RECORD).is_file():
        return None
    record = read_record(folder)
    stated = record["provenance"].get("instructions")
    tasks = None if stated is None else tasks_of(stated, instructions)
    encoder = text_encoder_of(folder, record["provenance"], str(record["text"]))
    unknown = {text: words for text in instructions.values() if (words := encoder.unknown_words(text))}
    note_as_named(unknown)
    return {
        "tasks": tasks,
        "untrained": None if tasks is None else [name for name in ALL_TASKS if name not in tasks],
        "unknown_words": unknown,
        "ceiling": None if tasks is None or not sequences else ceiling(tasks, sequences),
    }


def tasks_of(stated: Sequence[str], instructions: Mapping[str, str]) -> list[str]:
    """Return the tasks that any of the instructions of a training set asks for, in our words or in `instructions`."""
    known = {" ".join(text.lower().split()) for text in stated}

    def asked_for(name: str) -> bool:
        wordings = (*instructions_of(name), held_out_instruction(name), instructions[name])
        return any(" ".join(text.lower().split()) in known for text in wordings)

    return [name for name in ALL_TASKS if asked_for(name)]


def ceiling(tasks: Sequence[str], sequences: Sequence[EvaluationSequence]) -> float:
    """Return the average length of sequences where every one of `tasks` succeeds and no other task."""
    lengths = [next((i for i, name in enumerate(s.tasks) if name not in tasks), len(s.tasks)) for s in sequences]
    return sum(lengths) / len(lengths)


def training_lines(training: Mapping[str, Any] | None) -> Iterator[str]:
    """Yield what `training_of` found as lines of the printed result."""
    if training is None:
        return
    if training["tasks"] is not None:
        others = training["untrained"]
        named = f"; not on {', '.join(others)}" if others else ""
        yield f"trained on {len(training['tasks'])} of {len(ALL_TASKS)} tasks{named}"
        if others and training["ceiling"] is not None:
            yield f"with all of these and no other, the average length would be {training['ceiling']:.2f}"
    for text, words in training["unknown_words"].items():
        yield f"the text encoder does not know {', '.join(words)} in '{text}'"
