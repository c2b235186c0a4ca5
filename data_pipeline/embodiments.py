"""Embodiments of many episodes: what a sample of shards keeps, which of them are one, and what their numbers showed."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ..contracts import Array
from ..embodiment import TOOL_ARM, Embodiment, Signal
from ..errors import ConfigError, DataError
from .readers.record import Record
from .readers.robot_signals import signals_of_widths
from .readers.spec import EpisodeSpec


def tool_arm(*, cameras: Iterable[str], control_hz: float) -> Embodiment:
    """Return `TOOL_ARM` with the cameras and the rate of an episode."""
    return replace(TOOL_ARM, cameras=tuple(cameras), control_hz=float(control_hz))


def has_tool_arm_widths(state_width: int, action_width: int) -> bool:
    """Return whether steps are as wide as those of `TOOL_ARM`."""
    return (state_width, action_width) == (TOOL_ARM.state_dim, TOOL_ARM.action_dim)


def kept_embodiment(
    description: Mapping[str, Any], cameras: Sequence[str], states: Array | None, actions: Array | None
) -> Embodiment | None:
    """Return the embodiment that the JSON of a sample keeps; None for video alone.

    A sample of gr2 0.1.0 keeps none: steps of 16 and 8 numbers are `TOOL_ARM`, of others its facts state what is known.

    Raises:
        DataError: the embodiment is broken, or is not as wide as the steps.
    """
    if states is None or actions is None:
        return None
    widths = (states.shape[1], actions.shape[1])
    rate = description.get("control_hz") or TOOL_ARM.control_hz
    if "embodiment" in description:
        try:
            kept = Embodiment.from_dict(description["embodiment"])
        except ConfigError as error:
            raise DataError(str(error)) from error
        if (kept.state_dim, kept.action_dim) != widths:
            raise DataError(
                f"embodiment: expected {kept.state_dim} numbers of a state and {kept.action_dim} of an action, got "
                f"{widths[0]} and {widths[1]}; write the shards again."
            )
        return kept
    facts = description.get("facts") or {}
    if has_tool_arm_widths(*widths) and "action_kind" not in facts:
        return tool_arm(cameras=cameras, control_hz=rate)
    return unnamed_embodiment(facts, cameras=cameras, states=states, actions=actions, control_hz=rate)


def unnamed_embodiment(
    facts: Mapping[str, Any], *, cameras: Sequence[str], states: Array, actions: Array, control_hz: float
) -> Embodiment:
    """Return what the facts of a record state about its steps `[t s]` and `[t a]`, the rest unknown."""
    known = {name: facts[name] for name in ("gripper", "action_kind", "state_gripper") if name in facts}
    try:
        spec = EpisodeSpec(cameras={name: name for name in cameras}, states=("state",), actions=("action",), **known)
    except ConfigError:  # facts that no reader of ours wrote
        spec = EpisodeSpec(cameras={}, states=("state",), actions=("action",))
    robot = str(facts.get("robot") or facts.get("dataset") or "unknown")
    found = signals_of_widths(spec, robot=robot, where="", states=states, actions=actions, control_hz=control_hz)
    return replace(found, cameras=tuple(cameras))


def embodiment_of_record(record: Record) -> Embodiment | None:
    """Return what the steps of a record are, from its reader, else from its facts; None for video alone."""
    if record.embodiment is not None or record.states is None or record.actions is None or not record.control_hz:
        return record.embodiment
    if min(record.states.ndim, record.actions.ndim) < 2:
        return None
    return unnamed_embodiment(
        record.facts,
        cameras=list(record.videos),
        states=record.states,
        actions=record.actions,
        control_hz=record.control_hz,
    )


class EmbodimentTally:
    """Collects the embodiments of episodes, and which grippers are ever neither open nor closed.

    episodes: number of an embodiment -> episodes that were added.

    Embodiments of one name, rate and signals are one; their cameras are joined in the order in which they were seen.
    """

    def __init__(self) -> None:
        self._keys: dict[str, int] = {}
        self._found: list[Embodiment] = []
        self.episodes = Counter[int]()
        self._moving: list[set[tuple[str, str]]] = []

    def add(self, embodiment: Embodiment, cameras: Sequence[str], states: Array, actions: Array) -> int:
        """Take one episode with the cameras that it has; return the number of its embodiment."""
        number = self._place(embodiment, cameras)
        self.episodes[number] += 1
        moving = self._moving[number]
        for role, signals, slices, rows in (
            ("state", embodiment.state, embodiment.state_slices(), states),
            ("action", embodiment.action, embodiment.action_slices(), actions),
        ):
            for signal in signals:
                if signal.binary is None and (role, signal.name) not in moving:
                    values = rows[:, slices[signal.name]]
                    if not np.isin(values, (0.0, 1.0)).all():
                        moving.add((role, signal.name))
        return number

    def join(self, kept: Sequence[Mapping[str, Any]]) -> list[int]:
        """Take what `to_list` of another tally gave; return the numbers that its embodiments have here."""
        numbers = []
        for value in kept:
            embodiment = Embodiment.from_dict(value["embodiment"])
            number = self._place(embodiment, embodiment.cameras)
            self._moving[number] |= {(role, name) for role, name in value["moving"]}
            numbers.append(number)
        return numbers

    def to_list(self) -> list[dict[str, Any]]:
        """Return plain values, for JSON; `join` reads them."""
        pairs = zip(self._found, self._moving, strict=True)
        return [{"embodiment": e.to_dict(), "moving": sorted(map(list, moving))} for e, moving in pairs]

    def result(self) -> list[Embodiment]:
        """Return the embodiments in the order in which they were seen, their grippers inferred from the numbers."""
        return [_settled(e, moving) for e, moving in zip(self._found, self._moving, strict=True)]

    def _place(self, embodiment: Embodiment, cameras: Sequence[str]) -> int:
        # the robot's own order, of those that are there
        seen = [c for c in embodiment.cameras if c in cameras] + [c for c in cameras if c not in embodiment.cameras]
        key = json.dumps(replace(embodiment, cameras=()).to_dict(), sort_keys=True)
        number = self._keys.setdefault(key, len(self._found))
        if number == len(self._found):
            self._found.append(replace(embodiment, cameras=tuple(seen)))
            self._moving.append(set())
        else:
            self._found[number] = with_cameras(self._found[number], seen)
        return number


def joined_embodiments(groups: Sequence[Sequence[Embodiment]]) -> tuple[list[Embodiment], list[list[int]]]:
    """Join the embodiments of several folders; those that differ in cameras or in what a gripper did are one.

    Returns:
        The embodiments, and for each folder the numbers that its own have among them.
    """
    keys: dict[str, int] = {}
    found: list[Embodiment] = []
    numbers: list[list[int]] = []
    for group in groups:
        numbers.append([])
        for embodiment in group:
            bare = [replace(s, binary=None if s.kind == "gripper" else s.binary) for s in _all_signals(embodiment)]
            number = keys.setdefault(repr((embodiment.name, embodiment.control_hz, bare)), len(found))
            if number == len(found):
                found.append(embodiment)
            else:
                found[number] = _joined(found[number], embodiment)
            numbers[-1].append(number)
    return found, numbers


def with_cameras(embodiment: Embodiment, cameras: Iterable[str]) -> Embodiment:
    """Add cameras that an embodiment does not have yet, at the end."""
    return replace(embodiment, cameras=tuple(dict.fromkeys([*embodiment.cameras, *cameras])))


def _all_signals(embodiment: Embodiment) -> list[Signal]:
    return [*embodiment.state, Signal(name="|", width=1), *embodiment.action]


def _joined(one: Embodiment, other: Embodiment) -> Embodiment:
    def both(first: tuple[Signal, ...], second: tuple[Signal, ...]) -> tuple[Signal, ...]:
        pairs = zip(first, second, strict=True)
        return tuple(replace(a, binary=bool(a.binary and b.binary)) for a, b in pairs)

    joined = replace(one, state=both(one.state, other.state), action=both(one.action, other.action))
    return with_cameras(joined, other.cameras)


def _settled(embodiment: Embodiment, moving: Collection[tuple[str, str]]) -> Embodiment:
    def completed(role: str, signals: tuple[Signal, ...]) -> tuple[Signal, ...]:
        return tuple(replace(s, binary=(role, s.name) not in moving) if s.binary is None else s for s in signals)

    return replace(
        embodiment, state=completed("state", embodiment.state), action=completed("action", embodiment.action)
    )
