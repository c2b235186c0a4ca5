"""Count what the records of a source are, in one pass and without opening a video."""

from __future__ import annotations

import re
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ...contracts import Array
from ...embodiment import Embodiment
from ..embodiments import EmbodimentTally, embodiment_of_record
from ..readers.record import Record
from ..statistics.steps import RecordSteps
from .caption_tally import CaptionTally
from .repeats import ContentIndex, split_of

_NUM_NAMED = 3
_NUM_GROUPS = 20


@dataclass(slots=True)
class ProblemGroups:
    """Groups messages that differ only in names and numbers: how many there are, and the first few in full."""

    _groups: dict[str, dict[str, Any]] = field(default_factory=dict)

    def add(self, source: str, detail: str) -> None:
        """Take the problem of one record or file."""
        reason = reason_of(detail)
        if reason not in self._groups and len(self._groups) >= _NUM_GROUPS:
            reason = "other reasons"
        group = self._groups.setdefault(reason, {"reason": reason, "count": 0, "examples": []})
        group["count"] += 1
        if len(group["examples"]) < _NUM_NAMED:
            group["examples"].append({"source": source, "detail": detail})

    def summary(self) -> list[dict[str, Any]]:
        """Return the groups, the largest first."""
        return sorted(self._groups.values(), key=lambda group: -group["count"])


def reason_of(detail: str) -> str:
    """Return a message without file names and numbers: `a/b.mp4: frame 3 is broken` -> `frame # is broken`."""
    reason = re.sub(r"'[^']*[/\\][^']*'", "the file", detail)
    reason = re.sub(r"(?:[^\s:]*[./\\][^\s:]*|\brecord \d+)(?: [\d.]+ to [\d.]+ s)?: ", "", reason)
    return re.sub(r"(?<![A-Za-z_])\d+(?:\.\d+)*", "#", reason).strip()


@dataclass(slots=True)
class SourceTally:
    """What the records of a source are.

    missing: annotated entries without their video; broken: other records that cannot be used.
    undecodable: of the records that were probed, those with a broken video.
    usable: numbers of the records whose videos can be probed.
    """

    records: int = 0
    episodes: int = 0
    without_video: int = 0
    missing: int = 0
    broken: int = 0
    undecodable: int = 0
    cameras: Counter[str] = field(default_factory=Counter)
    datasets: Counter[str] = field(default_factory=Counter)
    licenses: Counter[str] = field(default_factory=Counter)
    splits: Counter[str] = field(default_factory=Counter)
    control_hz: Counter[str] = field(default_factory=Counter)
    state_widths: Counter[int] = field(default_factory=Counter)
    action_widths: Counter[int] = field(default_factory=Counter)
    embodiments: EmbodimentTally = field(default_factory=EmbodimentTally)
    captions: CaptionTally = field(default_factory=CaptionTally)
    contents: ContentIndex = field(default_factory=ContentIndex)
    problems: ProblemGroups = field(default_factory=ProblemGroups)
    repaired: Counter[str] = field(default_factory=Counter)
    usable: array[int] = field(default_factory=lambda: array("q"))
    _lengths: array[int] = field(default_factory=lambda: array("q"))

    def watch(self, records: Iterable[Record]) -> Iterator[RecordSteps]:
        """Count records as they pass, and give their steps on to be measured."""
        for number, record in enumerate(records):
            self.records += 1
            self._count_facts(record)
            if record.problem:
                if record.missing:
                    self.missing += 1
                else:
                    self.broken += 1
                self.problems.add(record.source, record.problem)
                yield RecordSteps(record=record.source, problem=record.problem)
                continue
            self._count(record, number)
            yield RecordSteps(
                record=record.source,
                states=_filled(record.states),
                actions=_filled(record.actions),
                facts=record.facts,
                embodiment=record.embodiment,
            )

    def _count_facts(self, record: Record) -> None:
        for name, counts in (("dataset", self.datasets), ("license", self.licenses)):
            if isinstance(record.facts.get(name), str):
                counts[record.facts[name]] += 1
        if split := split_of(record):
            self.splits[split] += 1

    def _count(self, record: Record, number: int) -> None:
        self.repaired.update(record.repairs)
        self.captions.add(record.caption)
        self.contents.add(record)
        self.cameras.update(record.videos.keys())
        self.without_video += not record.videos
        if record.videos:
            self.usable.append(number)
        if record.control_hz:
            self.control_hz[f"{record.control_hz:g}"] += 1
        self.episodes += record.actions is not None
        embodiment = embodiment_of_record(record)
        if embodiment is not None and record.states is not None and record.actions is not None:
            self.embodiments.add(embodiment, list(record.videos), record.states, record.actions)
        for rows, widths in (
            (_filled(record.states), self.state_widths),
            (_filled(record.actions), self.action_widths),
        ):
            if rows is not None:
                widths[int(rows.shape[-1]) if rows.ndim > 1 else 1] += 1
        if record.actions is not None:
            self._lengths.append(len(record.actions))

    def take_broken_video(self, source: str, detail: str) -> None:
        """Count a record whose video was opened and is broken."""
        self.undecodable += 1
        self.problems.add(source, detail)

    def broken_share(self, probed: int) -> float:
        """Return the share of broken records: of all where the reader counts, of the probed where the video does."""
        present = self.records - self.missing
        return max(self.broken / max(present, 1), self.undecodable / max(probed, 1))

    @property
    def missing_cameras(self) -> dict[str, int]:
        """Return camera -> records with other cameras that lack it."""
        lacking = {camera: len(self.usable) - count for camera, count in self.cameras.items()}
        return {camera: count for camera, count in lacking.items() if count}

    def choose(self, max_clips: int) -> set[int]:
        """Choose the numbers of at most `max_clips` usable records, spread evenly; 0 for all."""
        count = min(max_clips or len(self.usable), len(self.usable))
        return {self.usable[i] for i in np.linspace(0, len(self.usable) - 1, count).round().astype(int).tolist()}

    def robots(self) -> list[dict[str, Any]]:
        """Return the embodiments as JSON values, each with its `episodes` and what is `unknown` of its signals."""
        found = enumerate(self.embodiments.result())
        return [robot_facts(embodiment, self.embodiments.episodes[number]) for number, embodiment in found]

    def step_facts(self) -> dict[str, Any]:
        """Return rates, widths and lengths of episodes as JSON values."""
        lengths = np.array(self._lengths or [0])
        return {
            "control_hz": dict(self.control_hz.most_common()),
            "state_widths": {str(width): count for width, count in self.state_widths.most_common()},
            "action_widths": {str(width): count for width, count in self.action_widths.most_common()},
            "lengths": {
                "total": int(lengths.sum()),
                "shortest": int(lengths.min()),
                "median": int(np.median(lengths)),
                "longest": int(lengths.max()),
            },
        }


def robot_facts(embodiment: Embodiment, episodes: int) -> dict[str, Any]:
    """Return an embodiment as JSON values, with its number of episodes and what is unknown of its signals."""
    unknown = []
    for role, signals in (("state", embodiment.state), ("action", embodiment.action)):
        for signal in signals:
            if missing := signal.unknown(role == "action"):
                unknown.append(f"{role} {signal.name} ({' and '.join(missing)})")
    return {**embodiment.to_dict(), "episodes": episodes, "unknown": unknown}


def _filled(rows: Array | None) -> Array | None:
    """Return None for rows of no number at all: there is nothing to measure."""
    return None if rows is None or (rows.ndim > 1 and rows.shape[1] == 0) else rows
