"""Statistics of the states and actions of a dataset, measured record by record, and what each number of a row means."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from ...contracts import ACTION_DIM, STATE_DIM, Array
from ...errors import DataError
from .normalize import RowAccumulator, RowStatistics

QUATERNION_TOLERANCE = 0.01
"""A quaternion whose length differs from 1 by more is no rotation."""

LARGEST_NUMBER = 7.0
"""[m] or [rad]: an arm's positions are below, angles below too (2 pi and noise); degrees and [mm] soon are not."""

_FEWEST_ROTATIONS = 8
"""Rows from which on four numbers can be recognized as a quaternion."""

_NUM_NAMED = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class RowLayout:
    """What the numbers of a row mean.

    names: one for each dimension, with its unit where it is known.
    gripper: openings; quaternions: first of each four, xyzw; meters, radians: dimensions known to be of that unit.
    """

    names: tuple[str, ...]
    gripper: tuple[int, ...] = ()
    quaternions: tuple[int, ...] = ()
    meters: tuple[int, ...] = ()
    radians: tuple[int, ...] = ()

    @property
    def quaternion_parts(self) -> set[int]:
        """Return all dimensions that belong to a quaternion."""
        return {first + i for first in self.quaternions for i in range(4)}


_POSE = ("x [m]", "y [m]", "z [m]", "qx", "qy", "qz", "qw")
_STATE = RowLayout(
    names=(*_POSE, "gripper opening", "gripper command", *(f"joint {i + 1} [rad]" for i in range(7))),
    gripper=(7, 8),
    quaternions=(3,),
    meters=(0, 1, 2),
    radians=tuple(range(9, 16)),
)
_ACTION = RowLayout(names=(*_POSE, "gripper command"), gripper=(7,), quaternions=(3,), meters=(0, 1, 2))


def state_layout(width: int, gripper: Sequence[int] | None = None) -> RowLayout:
    """Return the layout of states: known for our own, numbered for others, whose `gripper` must be given."""
    own = _STATE if width == STATE_DIM and gripper is None else None
    return own or RowLayout(names=tuple(map(str, range(width))), gripper=_inside(gripper or (), width))


def action_layout(width: int, gripper: Sequence[int] | None = None) -> RowLayout:
    """Return the layout of actions: known for our own; a pose or a motion of six numbers has its gripper last."""
    if width == ACTION_DIM and gripper is None:
        return _ACTION
    last = (6,) if width == 7 else ()
    return RowLayout(names=tuple(map(str, range(width))), gripper=_inside(last if gripper is None else gripper, width))


def _inside(gripper: Sequence[int], width: int) -> tuple[int, ...]:
    wrong = [i for i in gripper if not 0 <= i < width]
    if wrong:
        raise DataError(f"gripper: expected dimensions from 0 to {width - 1}, got {wrong}; count from 0.")
    return tuple(gripper)


def _with_quaternions(layout: RowLayout, rows: Array) -> RowLayout:
    """Add the quaternions that nothing states: four numbers of length 1 in every row, two of which change."""
    if layout.quaternions or len(rows) < _FEWEST_ROTATIONS:
        return layout
    found = list[int]()
    for first in range(rows.shape[1] - 3):
        four = rows[:, first : first + 4].astype(np.float64)
        # tighter than the check: small angles beside an opening of 1 are nearly of length 1, too
        unit = np.abs(np.linalg.norm(four, axis=1) - 1).max() < 1e-4 and not set(layout.gripper) & {
            *range(first, first + 4)
        }
        if unit and (four.std(axis=0) > QUATERNION_TOLERANCE).sum() >= 2 and not (found and first - found[-1] < 4):
            found.append(first)
    return replace(layout, quaternions=tuple(found))


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetStatistics:
    """What a checkpoint keeps of a dataset it was trained on.

    name: where the data lay; fingerprint: SHA-256 of its states and actions as float32.
    states, actions: None where the dataset has none.
    state_gripper, action_gripper: dimensions that hold openings, left unchanged by normalization.
    gripper_gain: mean measured opening where the gripper is commanded to open less that where it is commanded to close;
        None where it cannot be measured.
    """

    name: str
    fingerprint: str
    states: RowStatistics | None
    actions: RowStatistics | None
    state_gripper: tuple[int, ...]
    action_gripper: tuple[int, ...]
    gripper_gain: float | None

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        return {
            "name": self.name,
            "fingerprint": self.fingerprint,
            "state_gripper": list(self.state_gripper),
            "action_gripper": list(self.action_gripper),
            "gripper_gain": self.gripper_gain,
            "states": self.states and self.states.to_dict(),
            "actions": self.actions and self.actions.to_dict(),
        }

    @classmethod
    def from_dict(cls, value: Any) -> DatasetStatistics:
        """Read what `to_dict` gave.

        Raises:
            DataError: a field is missing or unusable.
        """
        try:
            gain, rows = value["gripper_gain"], [value[kind] for kind in ("states", "actions")]
            states, actions = (None if part is None else RowStatistics.from_dict(part) for part in rows)
            return cls(
                name=str(value["name"]),
                fingerprint=str(value["fingerprint"]),
                states=states,
                actions=actions,
                state_gripper=tuple(int(i) for i in value["state_gripper"]),
                action_gripper=tuple(int(i) for i in value["action_gripper"]),
                gripper_gain=None if gain is None else float(gain),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(
                f"dataset statistics: expected name, fingerprint, states and actions, got others ({error}); measure "
                "again."
            ) from error


def read_datasets(value: Any) -> dict[str, DatasetStatistics]:
    """Read `{fingerprint: statistics}` from JSON values.

    Raises:
        DataError: another layout.
    """
    if not isinstance(value, Mapping):
        raise DataError(f"dataset statistics: expected a JSON object, got {type(value).__name__}; measure again.")
    return {str(key): DatasetStatistics.from_dict(item) for key, item in value.items()}


@dataclass(slots=True, kw_only=True)
class RowFaults:
    """What is wrong with rows, counted.

    unusable: rows with NaN or infinity, left out; unusable_in: the records they are in (the first few).
    no_rotation: rows with a quaternion that is not of length 1; flips: successive quaternions of opposite sign.
    wraps: dimension -> how often it jumps by about 2 pi from one step to the next.
    """

    unusable: int = 0
    unusable_in: list[str] = field(default_factory=list)
    no_rotation: int = 0
    flips: int = 0
    wraps: Counter[int] = field(default_factory=Counter)

    def add(self, rows: Array, layout: RowLayout, record: str) -> Array:
        """Count the faults of the successive rows `[t d]` of one record; return the rows that are finite."""
        finite = np.isfinite(rows).all(axis=1)
        if not finite.all():
            self.unusable += int((~finite).sum())
            if len(self.unusable_in) < _NUM_NAMED:
                self.unusable_in.append(record)
            rows = rows[finite]
        for first in layout.quaternions:
            q = rows[:, first : first + 4]
            self.no_rotation += int((np.abs(np.linalg.norm(q, axis=1) - 1) > QUATERNION_TOLERANCE).sum())
            self.flips += int(((q[1:] * q[:-1]).sum(axis=1) < 0).sum())
        jumps = np.abs(np.diff(rows, axis=0))
        for i in np.nonzero(jumps.max(axis=0, initial=0) > 1.5 * np.pi)[0].tolist():
            if i not in layout.meters and i not in layout.gripper and np.abs(rows[:, i]).max() < LARGEST_NUMBER:
                self.wraps[i] += int(((jumps[:, i] > 1.5 * np.pi) & (jumps[:, i] < 2.5 * np.pi)).sum())
        return rows


class DatasetAccumulator:
    """Measures the states and actions of one dataset, record by record, in bounded memory.

    Args:
        name: of the dataset.
        state_gripper, action_gripper: dimensions of openings where the layout is not our own.
        stated: of states and actions those whose numbers are all known, so that no gripper is among them unmarked.
    """

    def __init__(
        self,
        name: str,
        state_gripper: Sequence[int] | None = None,
        action_gripper: Sequence[int] | None = None,
        stated: Collection[str] = (),
    ) -> None:
        self.name, self.records, self.stated = name, 0, frozenset(stated)
        self.layouts: dict[str, RowLayout] = {}
        self.faults = {"states": RowFaults(), "actions": RowFaults()}
        self._told = {"states": state_gripper, "actions": action_gripper}
        self._rows: dict[str, RowAccumulator] = {}
        self._digests = {"states": hashlib.sha256(), "actions": hashlib.sha256()}
        self._openings = {True: [0.0, 0], False: [0.0, 0]}

    def add(self, states: Array | None, actions: Array | None, record: str) -> None:
        """Take the steps of one record, `[t s]` and `[t a]`.

        Raises:
            DataError: they are no rows of the width of the records before.
        """
        given = {"states": states, "actions": actions}
        parts = {kind: np.asarray(rows) for kind, rows in given.items() if rows is not None}
        for kind, rows in parts.items():
            if rows.ndim != 2 or rows.shape[1] == 0 or rows.dtype.kind not in "fiub":
                raise DataError(
                    f"{kind}: expected numbers (steps, width), got {rows.dtype} {rows.shape}; leave it out."
                )
            if kind in self.layouts and rows.shape[1] != len(self.layouts[kind].names):
                raise DataError(
                    f"{kind}: expected {len(self.layouts[kind].names)} numbers a step as in the records before, got "
                    f"{rows.shape[1]}; measure them apart."
                )
        self.records += 1
        for kind, rows in parts.items():
            if kind not in self.layouts:
                layout = state_layout if kind == "states" else action_layout
                self.layouts[kind] = _with_quaternions(layout(rows.shape[1], self._told[kind]), rows)
                self._rows[kind] = RowAccumulator()
            with np.errstate(over="ignore"):  # what no float32 holds counts as infinity
                rows = rows.astype("<f4")
            self._digests[kind].update(rows.tobytes())
            self._rows[kind].add(self.faults[kind].add(rows.astype(np.float64), self.layouts[kind], record))
        if states is not None and actions is not None and len(parts["states"]) == len(parts["actions"]):
            self._compare_openings(parts["states"], parts["actions"])

    def _compare_openings(self, states: Array, actions: Array) -> None:
        opening, command = self.layouts["states"].gripper, self.layouts["actions"].gripper
        if not opening or not command:
            return
        measured, commanded = states[:, opening[0]].astype(np.float64), actions[:, command[0]]
        usable = np.isfinite(measured) & np.isfinite(commanded)
        for is_open, sums in self._openings.items():
            chosen = usable & ((commanded > 0.5) == is_open)
            sums[0] += float(measured[chosen].sum())
            sums[1] += int(chosen.sum())

    def result(self) -> DatasetStatistics:
        """Return the statistics.

        Raises:
            DataError: no record had a finite row of states or actions.
        """
        measured = {kind: rows.result() for kind, rows in self._rows.items()}
        if not measured:
            raise DataError(f"{self.name}: expected records with states or actions, got none.")
        digest = hashlib.sha256()
        for kind, part in self._digests.items():
            width = len(self.layouts[kind].names) if kind in self.layouts else 0
            digest.update(f"{kind} {width} ".encode() + part.digest())
        means = {is_open: total / count for is_open, (total, count) in self._openings.items() if count}
        empty = RowLayout(names=())
        return DatasetStatistics(
            name=self.name,
            fingerprint=digest.hexdigest(),
            states=measured.get("states"),
            actions=measured.get("actions"),
            state_gripper=self.layouts.get("states", empty).gripper,
            action_gripper=self.layouts.get("actions", empty).gripper,
            gripper_gain=means[True] - means[False] if len(means) == 2 else None,
        )
