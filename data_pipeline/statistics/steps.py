"""Read the states and actions of a dataset, of video shards or of token shards, and measure them; never a video."""

from __future__ import annotations

import json
import re
import tarfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...contracts import Array
from ...embodiment import AS_STORED, TOOL_ARM, Embodiment, Signal
from ...errors import DataError
from ..embodiments import kept_embodiment
from ..files import load_array, read_json
from ..locations import Location, cached
from ..readers.record import Record, Times
from ..readers.source import open_source
from ..store.shards import list_shards
from .datasets import DatasetAccumulator, DatasetStatistics

NUM_EXAMPLES = 5
_NUM_REASONS = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordSteps:
    """The arrays of one record.

    states: `[t s]`; actions: `[t a]`; None where there are none.
    facts: of the record; `dataset` names the dataset, `gripper` and `state_gripper` state whether the last number of an
        action and of a state is known to be the gripper's.
    embodiment: what the numbers are, None where nothing states it.
    problem: why the record cannot be used, empty where it can.
    """

    record: str
    states: Array | None = None
    actions: Array | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)
    embodiment: Embodiment | None = None
    problem: str = ""


def read_steps(
    source: Path, camera: str = "static", spec: Path | None = None, times: Times = "check"
) -> Iterator[RecordSteps]:
    """Read the arrays of anything that holds episodes.

    Args:
        source: a dataset that a reader knows, or a folder of video shards or token shards.
        camera, spec, times: as `open_source` takes them; shards need none of them.

    Raises:
        DataError: it cannot be opened.
    """
    if source.is_dir() and next(source.glob("shard-*.tar"), None):
        return read_shard_steps(source)
    return map(_steps_of, open_source(source, camera, spec, times))


def _steps_of(record: Record) -> RecordSteps:
    return RecordSteps(
        record=record.source or record.key,
        states=record.states,
        actions=record.actions,
        facts=record.facts,
        embodiment=record.embodiment,
        problem=record.problem,
    )


def read_shard_steps(shards: Location) -> Iterator[RecordSteps]:
    """Read the arrays of video shards or token shards; videos and codes are passed over.

    Raises:
        DataError: the stage that writes them is not finished, or a shard is damaged.
    """
    manifest = Path(shards) / "manifest.json"
    if manifest.is_file() and read_json(manifest).get("status") != "complete":
        raise DataError(f"{shards}: the stage that writes these shards is not finished; run it again, it resumes.")
    for shard in list_shards(shards):
        try:
            with tarfile.open(cached(shard), "r:") as tar:
                yield from _samples(tar)
        except (tarfile.TarError, OSError, EOFError) as error:
            raise DataError(f"{shard}: expected a whole tar, got {error}; copy or write the shard again.") from error


def _samples(tar: tarfile.TarFile) -> Iterator[RecordSteps]:
    key, members = "", dict[str, bytes]()
    for info in tar:
        name, _, suffix = info.name.partition(".")
        if name != key and members:
            yield _sample(key, members)
            members = {}
        key = name
        if suffix in ("json", "states.npy", "actions.npy"):
            file = tar.extractfile(info)
            members[suffix] = file.read() if file else b""
    if members:
        yield _sample(key, members)


def _sample(key: str, members: Mapping[str, bytes]) -> RecordSteps:
    try:
        description = json.loads(members.get("json", b"{}"))
        parts = {kind: load_array(members[f"{kind}.npy"]) for kind in ("states", "actions") if f"{kind}.npy" in members}
        states, actions = parts.get("states"), parts.get("actions")
        whole = states is not None and actions is not None and min(states.ndim, actions.ndim) > 1
        embodiment = kept_embodiment(description, (), states, actions) if whole else None
    except (ValueError, DataError) as error:
        return RecordSteps(record=key, problem=str(error))
    facts = description.get("facts") or {}
    return RecordSteps(record=key, states=states, actions=actions, facts=facts, embodiment=embodiment)


@dataclass(slots=True, kw_only=True)
class MeasuredSource:
    """What was measured.

    datasets: one for each dataset that the records name.
    records: all; without_steps: of them, those of video alone.
    broken: reason -> number of records left out; reasons that differ in numbers alone go by the first.
    examples: the first few of them with their names.
    """

    datasets: list[DatasetAccumulator] = field(default_factory=list)
    records: int = 0
    without_steps: int = 0
    broken: Counter[str] = field(default_factory=Counter)
    examples: list[dict[str, str]] = field(default_factory=list)
    _alike: dict[str, str] = field(default_factory=dict)

    def leave_out(self, record: str, reason: str) -> None:
        """Count a broken record."""
        pattern = re.sub(r"\d+", "#", reason)
        if pattern in self._alike or len(self._alike) < _NUM_REASONS:
            self.broken[self._alike.setdefault(pattern, reason)] += 1
        else:
            self.broken["other reasons"] += 1
        if len(self.examples) < NUM_EXAMPLES:
            self.examples.append({"record": record, "detail": reason})

    def statistics(self) -> dict[str, DatasetStatistics]:
        """Return fingerprint -> statistics."""
        measured = [dataset.result() for dataset in self.datasets]
        return {statistics.fingerprint: statistics for statistics in measured}


def measure_steps(
    steps: Iterable[RecordSteps],
    name: str,
    state_gripper: Sequence[int] | None = None,
    action_gripper: Sequence[int] | None = None,
) -> MeasuredSource:
    """Measure records in one pass, each dataset apart.

    Args:
        steps: what `read_steps` gives.
        name: of the source; a dataset that its records name is added.
        state_gripper, action_gripper: dimensions of openings; None where the layout or the reader states them.
    """
    measured, datasets = MeasuredSource(), dict[str, DatasetAccumulator]()
    for record in steps:
        measured.records += 1
        if record.problem:
            measured.leave_out(record.record, record.problem)
            continue
        if record.states is None and record.actions is None:
            measured.without_steps += 1
            continue
        dataset = str(record.facts.get("dataset") or "")
        fresh = dataset not in datasets
        if fresh:
            in_states = _told_state_gripper(record) if state_gripper is None else state_gripper
            in_actions = _told_gripper(record) if action_gripper is None else action_gripper
            called = f"{name}: {dataset}" if dataset not in ("", name) else name
            datasets[dataset] = DatasetAccumulator(called, in_states, in_actions, _stated(record.embodiment))
        try:
            datasets[dataset].add(record.states, record.actions, record.record)
        except DataError as error:
            measured.leave_out(record.record, str(error))
            if fresh:
                del datasets[dataset]
    measured.datasets = list(datasets.values())
    return measured


def _told_gripper(record: RecordSteps) -> list[int] | None:
    """Return the dimension of the opening in actions where the record's reader made it one, else None."""
    convention = record.facts.get("gripper")
    if record.actions is None or not isinstance(convention, str):
        return _openings(record.embodiment.action if record.embodiment else TOOL_ARM.action, TOOL_ARM.action)
    return [] if convention == "as_stored" else [record.actions.shape[-1] - 1]


def _told_state_gripper(record: RecordSteps) -> list[int] | None:
    """Return the dimension of the gripper in states where the record's reader knows it, else None."""
    has_one = record.facts.get("state_gripper")
    if record.states is None or not isinstance(has_one, bool):
        return _openings(record.embodiment.state if record.embodiment else TOOL_ARM.state, TOOL_ARM.state)
    return [record.states.shape[-1] - 1] if has_one else []


def _openings(signals: Sequence[Signal], own: Sequence[Signal]) -> list[int] | None:
    """Return the dimensions of grippers of 0 to 1; None for our own signals, whose layout is known, and without any.

    Signals that are as wide as our own would be taken for them: without any the list is empty.
    """
    of_each = [signal for signal in signals for _ in range(signal.width)]
    found = [i for i, signal in enumerate(of_each) if signal.is_opening]
    if signals == own or (not found and len(of_each) != sum(signal.width for signal in own)):
        return None
    return found


def _stated(embodiment: Embodiment | None) -> list[str]:
    """Return for which of states and actions an embodiment knows all numbers."""
    if embodiment is None:
        return []
    roles = (("states", embodiment.state), ("actions", embodiment.action))
    return [kind for kind, signals in roles if not any(s.kind == "other" or s.unit == AS_STORED for s in signals)]
