"""CALVIN's evaluation sequences and initial states: our own generator, and its result for 1000, shipped as data.

We sample as the official code does (mees/calvin fa03f01, `multistep_sequences` and `utils`), so the result is the same,
in order. Generating takes about a minute; `official_sequences` reads it from a file of 30 kB.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from itertools import product
from typing import Any

import numpy as np

from ...errors import DataError

SymbolicState = dict[str, int | str]
Rule = tuple[dict[str, Any], dict[str, Any]]
"""Condition (value, or tuple of allowed values, for each key) and effect."""

COLORS = ("red", "blue", "pink")
SEQUENCE_LENGTH = 5
_SHELVES = ("slider_right", "slider_left")
_DOORS_RL = ("right", "left")
_TABLE_SLOTS = ((0.0500000896, -0.120000177, 0.459990009), (0.229995412, -0.11999514, 0.45999001))
_SHELF_SLOTS = {
    "slider_left": (-0.240851662, 0.0924044687, 0.460990009),
    "slider_right": (0.070341633, 0.0924044687, 0.460990009),
}
_DOORS = {"right": "left", "left": "right", "closed": "open", "open": "closed"}


@dataclass(frozen=True, kw_only=True)
class EvaluationSequence:
    """A start of the scene in words, and five tasks to be done one after another from it."""

    initial_state: Mapping[str, int | str]
    tasks: tuple[str, ...]


def _rules() -> dict[str, tuple[int, tuple[Rule, ...]]]:
    """Return category and rules of each of the 34 tasks, in the official order."""
    free: dict[str, Any] = {"grasped": 0}
    held: dict[str, Any] = {"grasped": 1}
    table: dict[str, tuple[int, tuple[Rule, ...]]] = {}
    for verb in ("rotate", "push"):
        for color in COLORS:
            block: dict[str, Any] = {f"{color}_block": "table"}
            for side in ("right", "left"):
                table[f"{verb}_{color}_block_{side}"] = (1, ((block | free, block),))
    for name, key, now in (
        ("move_slider_left", "slider", "right"),
        ("move_slider_right", "slider", "left"),
        ("open_drawer", "drawer", "closed"),
        ("close_drawer", "drawer", "open"),
    ):
        table[name] = (2 if key == "slider" else 3, (({key: now} | free, {key: _DOORS[now]}),))
    for color in COLORS:
        block_name = f"{color}_block"
        grasped: dict[str, Any] = {block_name: "grasped", "grasped": 1}
        shelves = tuple(({block_name: f"slider_{_DOORS[door]}", "slider": door} | free, grasped) for door in _DOORS_RL)
        table[f"lift_{color}_block_table"] = (4, (({block_name: "table"} | free, grasped),))
        table[f"lift_{color}_block_slider"] = (5, shelves)
        table[f"lift_{color}_block_drawer"] = (6, (({block_name: "drawer", "drawer": "open"} | free, grasped),))
    blocks = [f"{color}_block" for color in COLORS]
    table["place_in_slider"] = (
        7,
        tuple(({b: "grasped", "slider": d} | held, {b: f"slider_{d}"} | free) for b in blocks for d in _DOORS_RL),
    )
    table["place_in_drawer"] = (
        7,
        tuple(({b: "grasped", "drawer": "open"} | held, {b: "drawer"} | free) for b in blocks),
    )
    pairs = [(top, bottom) for top in blocks for bottom in blocks if top != bottom]
    stacked = {pair: {pair[0]: "stacked_top", pair[1]: "stacked_bottom"} for pair in pairs}
    table["stack_block"] = (
        10,
        tuple(({t: "grasped", b: "table"} | held, stacked[t, b] | free) for t, b in pairs),
    )
    table["unstack_block"] = (11, tuple((stacked[t, b] | free, {t: "table", b: "table"}) for t, b in pairs))
    for light in ("lightbulb", "led"):
        for word, before in (("on", 0), ("off", 1)):
            table[f"turn_{word}_{light}"] = (8, (({light: before} | free, {light: 1 - before}),))
    table["push_into_drawer"] = (
        9,
        tuple(
            (
                {b: "table", "drawer": "open"} | {other: _SHELVES for other in blocks if other != b} | free,
                {b: "drawer", "grasped": 0},
            )
            for b in blocks
        ),
    )
    return table


_RULES = _rules()
TASK_NAMES = tuple(_RULES)
"""The 34 tasks in CALVIN's order."""


def initial_states() -> list[SymbolicState]:
    """Return the 192 starts: lights, doors, and blocks on the table (one or two) or on different shelves."""
    values: dict[str, tuple[int | str, ...]] = {"led": (0, 1), "lightbulb": (0, 1), "slider": ("right", "left")}
    values["drawer"] = ("closed", "open")
    values |= {f"{color}_block": ("table", *_SHELVES) for color in COLORS} | {"grasped": (0,)}
    candidates = (dict(zip(values, choice, strict=True)) for choice in product(*values.values()))

    def allowed(state: SymbolicState) -> bool:
        places = list(state.values())
        return places.count("table") in (1, 2) and all(places.count(shelf) < 2 for shelf in _SHELVES)

    return [state for state in candidates if allowed(state)]


def apply(task: str, state: SymbolicState) -> SymbolicState | None:
    """Return the state after a task, or None where not exactly one of its rules fits."""

    def fits(condition: Mapping[str, Any]) -> bool:
        return all(state[k] in v if isinstance(v, tuple) else state[k] == v for k, v in condition.items())

    effects = [effect for condition, effect in _RULES[task][1] if fits(condition)]
    return state | effects[0] if len(effects) == 1 else None


def _sample_tasks(state: SymbolicState, generator: np.random.RandomState) -> tuple[str, ...]:
    while True:
        # The stream of `choice(names, size=5, replace=False)` is that of a permutation.
        names = [TASK_NAMES[i] for i in generator.permutation(len(TASK_NAMES))[:SEQUENCE_LENGTH]]
        if len({_RULES[name][0] for name in names}) < SEQUENCE_LENGTH:
            continue
        if _can_be_done(names, state):
            return tuple(names)


def _can_be_done(names: Sequence[str], state: SymbolicState) -> bool:
    for name in names:
        after = apply(name, state)
        if after is None:
            return False
        state = after
    return True


def generate_sequences(number: int) -> list[EvaluationSequence]:
    """Sample evaluation sequences as the official code does; not a prefix of those of a larger number."""
    states = initial_states()
    shares = [len(part) for part in np.array_split(np.arange(number), len(states))]
    rows: list[EvaluationSequence] = []
    for seed, (state, share) in enumerate(zip(states, shares, strict=True)):
        generator = np.random.RandomState(seed)
        rows += [EvaluationSequence(initial_state=state, tasks=_sample_tasks(state, generator)) for _ in range(share)]
    order = list(range(len(rows)))
    np.random.RandomState(0).shuffle(order)
    return [rows[i] for i in order]


@cache
def official_sequences() -> tuple[EvaluationSequence, ...]:
    """Read the 1000 sequences of the official protocol from the package.

    Raises:
        DataError: the file is damaged.
    """
    text = (files("gr2.benchmarks.calvin") / "sequences.json").read_text()
    states = initial_states()
    rows = json.loads(text)
    if len(rows) != 1000 or any(len(row) != 1 + SEQUENCE_LENGTH for row in rows):
        raise DataError("gr2/benchmarks/calvin/sequences.json: expected 1000 sequences of five; install gr2 again.")
    return tuple(
        EvaluationSequence(initial_state=states[first], tasks=tuple(TASK_NAMES[i] for i in rest))
        for first, *rest in rows
    )


def as_rows(sequences: Sequence[EvaluationSequence]) -> Iterator[list[int]]:
    """Yield each sequence as the index of its state and those of its tasks."""
    states = initial_states()
    for sequence in sequences:
        yield [states.index(dict(sequence.initial_state)), *(TASK_NAMES.index(name) for name in sequence.tasks)]


def fnv1_32(text: str) -> int:
    """Return the 32-bit FNV-1 hash, initial value 0, of a text in UTF-16-LE, as pyhash computes it on Python 3."""
    value = 0
    for byte in text.encode("utf-16-le"):
        value = (value * 16777619 & 0xFFFFFFFF) ^ byte
    return value


def state_seed(state: SymbolicState) -> int:
    """Return the seed of a start's scene: the hash of its values as Python prints them."""
    return fnv1_32(f"dict_values({list(state.values())!r})")


def initial_scene(state: SymbolicState) -> np.ndarray:
    """Return the `scene_obs` `[24]` of a start, blocks in the order red, blue, pink (scene D's); only there it fits.

    Source: slots and yaws measured on the official code, mees/calvin fa03f01.
    """
    generator = np.random.RandomState(state_seed(state))
    slots = [np.array(slot) for slot in _TABLE_SLOTS]
    places = [state[f"{color}_block"] for color in COLORS]
    generator.shuffle(slots)
    yaws = [generator.uniform(np.pi / 2 - np.pi / 8, np.pi / 2 + np.pi / 8) for _ in COLORS]
    scene = [0.28 * (state["slider"] == "left"), 0.22 * (state["drawer"] == "open"), 0.0]
    scene += [0.088 * int(state["lightbulb"]), float(state["lightbulb"]), float(state["led"])]
    taken = (0, int(places[0] == "table"), 1)  # pink takes the second slot even where it is alone
    for place, slot, yaw in zip(places, taken, yaws, strict=True):
        xyz = slots[slot] if place == "table" else _SHELF_SLOTS[str(place)]
        scene += [*xyz, 0.0, 0.0, yaw]
    return np.array(scene)
