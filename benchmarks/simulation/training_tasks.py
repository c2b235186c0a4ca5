"""Which of a benchmark's tasks a policy was trained on, and the words of instructions that it does not know."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any


def training_of(
    policy: str, wordings: Mapping[str, Sequence[str]], instructions: Mapping[str, str]
) -> dict[str, Any] | None:
    """Return what a released policy was trained on; None for policies that state nothing of it.

    Args:
        policy: as evaluation takes it.
        wordings: task -> all instructions that ask for it.
        instructions: task -> the instruction that evaluation gives.

    Returns:
        tasks: names, or None where the release does not keep its instructions; untrained: the other ones; other_texts:
        how many of its instructions are no wording known here, and may ask for any task; unknown_words: instruction ->
        words that its text encoder was trained without.

    Raises:
        CheckpointError: the release is damaged.
    """
    from ...gr_model.act.loading import text_encoder_of
    from ...gr_model.model.release import RECORD, read_record, release_folder
    from ...tokenizers.text import note_as_named

    folder = release_folder(policy)
    if not (folder / RECORD).is_file():
        return None
    record = read_record(folder)
    stated = record["provenance"].get("instructions")
    tasks = None if stated is None else tasks_of(stated, wordings)
    encoder = text_encoder_of(folder, record["provenance"], str(record["text"]))
    unknown = {text: words for text in instructions.values() if (words := encoder.unknown_words(text))}
    note_as_named(unknown)
    untrained = None if tasks is None else [name for name in wordings if name not in tasks]
    known = {_plain(text) for texts in wordings.values() for text in texts}
    others = sum(_plain(text) not in known for text in stated or ())
    return {"tasks": tasks, "untrained": untrained, "other_texts": others, "unknown_words": unknown}


def tasks_of(stated: Sequence[str], wordings: Mapping[str, Sequence[str]]) -> list[str]:
    """Return the tasks that any of the instructions of a training set asks for."""
    known = {_plain(text) for text in stated}
    return [name for name, texts in wordings.items() if any(_plain(text) in known for text in texts)]


def _plain(text: str) -> str:
    return " ".join(text.lower().split())


def training_lines(training: Mapping[str, Any] | None) -> Iterator[str]:
    """Yield what `training_of` found as lines of the printed result, with the ceiling where there is one."""
    if training is None:
        return
    if training["tasks"] is not None:
        tasks, others, more = training["tasks"], training["untrained"], training.get("other_texts", 0)
        named = f"; not on {', '.join(others)}" if others else ""
        if others and more:
            named = f" at least; {more} of its instructions are in words of its own, which may ask for the others"
        yield f"trained on {len(tasks)} of {len(tasks) + len(others)} tasks{named}"
        if others and not more and training.get("ceiling") is not None:
            yield f"with all of these and no other, the average length would be {training['ceiling']:.2f}"
    for text, words in training["unknown_words"].items():
        yield f"the text encoder does not know {', '.join(words)} in '{text}'"
