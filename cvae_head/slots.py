"""One space of numbers for several embodiments, in which equal signals of two robots share columns.

A slot holds one signal. The slots are the union over the embodiments, in the order in which they are first seen, so
that those of a single embodiment are its own coding. A number that a robot lacks is 0 and marked as absent.

Source: the unified action space of RDT-1B, arXiv 2410.07864, section 4.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..contracts import Array
from ..embodiment import Embodiment, SignalKind
from ..errors import ShapeError
from .head import ChunkShape
from .signals import SignalCoding, coding_of


@dataclass(frozen=True, kw_only=True)
class Slot:
    """What two signals must have in common to share columns.

    width: how many coded numbers.
    unit: empty for rotations, which are coded alike whatever their storage.
    rule, reference: of an action, see `signals` and `embodiment`; empty for a state.
    """

    name: str
    kind: SignalKind
    width: int
    unit: str
    rule: str = ""
    reference: str = ""


class SlotCoding:
    """States to features and actions to chunks in the slots of several embodiments, and back.

    Samples of different embodiments share a batch: `embodiment` `[b]` is the place of each in `embodiments`, -1 of one
    without a robot. States and actions are as wide as the widest, with the numbers of each embodiment first.

    codings: of the embodiments, one by one.
    state_slots, action_slots: slot -> where it stands in the features and in a chunk.
    state_columns, action_columns: for each embodiment, where each of its own coded numbers stands.

    Args:
        embodiments: one or more.
        joints: see `SignalCoding`.
    """

    def __init__(self, embodiments: Sequence[Embodiment], *, joints: bool = False) -> None:
        self.embodiments = tuple(embodiments)
        self.codings = tuple(coding_of(embodiment, joints) for embodiment in embodiments)
        self.state_slots, self.state_columns = _place([_state_slots(coding) for coding in self.codings])
        self.action_slots, self.action_columns = _place([_action_slots(coding) for coding in self.codings])
        self.num_features = sum(slot.width for slot in self.state_slots)
        self.width = sum(slot.width for slot in self.action_slots)
        self.state_dim = max(embodiment.state_dim for embodiment in embodiments)

    @property
    def is_mixture(self) -> bool:
        """Whether there is more than one embodiment."""
        return len(self.embodiments) > 1

    def shape(self, length: int) -> ChunkShape:
        """Return the shape of a chunk of so many steps."""
        places = [at for slot, at in self.action_slots.items() if slot.rule == "binary"]
        binary = tuple(i for at in places for i in range(at.start, at.stop))
        return ChunkShape(length=length, width=max(self.width, 1), binary=binary)

    def present_states(self) -> Bool[Tensor, "e_1 n"]:
        """Say which features each embodiment has; the last row, at -1, is that of no robot."""
        return _present(self.state_columns, self.num_features)

    def present_actions(self) -> Bool[Tensor, "e_1 c"]:
        """Say which columns of a chunk each embodiment has; the last row, at -1, is that of no robot."""
        return _present(self.action_columns, self.width)

    def groups(self, embodiment: Int[Tensor, " b"] | None) -> Iterator[tuple[int, Tensor | slice]]:
        """Yield each embodiment that occurs, and its rows; all rows are those of a single embodiment.

        Raises:
            ShapeError: several embodiments, and nobody says which sample is of which.
        """
        if not self.is_mixture:
            yield 0, slice(None)
            return
        places = self.expect(embodiment)
        for number in range(len(self.embodiments)):
            rows = torch.nonzero(places == number).flatten()
            if len(rows):
                yield number, rows

    def expect(self, embodiment: Int[Tensor, " b"] | None) -> Int[Tensor, " b"]:
        """Return the places of the samples' embodiments.

        Raises:
            ShapeError: nobody says them.
        """
        if embodiment is None:
            names = ", ".join(e.name for e in self.embodiments)
            raise ShapeError(
                f"embodiment: expected the place of each sample's robot among {names}, got none; pass it, as batches "
                "of token shards do."
            )
        return embodiment

    def features(
        self, states: Float[Tensor, "b *f s"], embodiment: Int[Tensor, " b"] | None = None
    ) -> Float[Tensor, "b *f n"]:
        """Describe states in their slots; 0 in absent ones."""

        def describe(coding: SignalCoding, rows: Tensor | slice) -> Tensor:
            found: Tensor = coding.features(states[rows][..., : coding.embodiment.state_dim])
            return found

        like = states.new_zeros(*states.shape[:-1], self.num_features)
        return self._gather(like, self.state_columns, describe, embodiment)

    def encode(
        self,
        state: Float[Tensor, "b s"],
        actions: Float[Tensor, "b k a"],
        embodiment: Int[Tensor, " b"] | None = None,
    ) -> Float[Tensor, "b k c"]:
        """Express actions as chunks, seen from the states when they begin; 0 in absent slots."""

        def code(coding: SignalCoding, rows: Tensor | slice) -> Tensor:
            robot = coding.embodiment
            found: Tensor = coding.encode(state[rows][:, : robot.state_dim], actions[rows][..., : robot.action_dim])
            return found

        like = actions.new_zeros(*actions.shape[:-1], self.width)
        return self._gather(like, self.action_columns, code, embodiment)

    def after(
        self,
        state: Float[Tensor, "b s"],
        chunk: Float[Tensor, "b k c"],
        steps: int,
        embodiment: Int[Tensor, " b"] | None = None,
    ) -> Float[Tensor, "b s"]:
        """Return the states that following chunks for so many control steps leads to; see `SignalCoding.after`."""
        if not self.is_mixture:
            moved: Tensor = self.codings[0].after(state, chunk, steps)
            return moved
        out = state.clone()
        for number, rows in self.groups(embodiment):
            own = self.codings[number].embodiment.state_dim
            out[rows, :own] = self.codings[number].after(state[rows, :own], self.own(chunk[rows], number), steps)
        return out

    def own(self, chunk: Any, number: int) -> Any:
        """Take the columns of an embodiment out of chunks `[.. c]`, in the order of its own coding."""
        return chunk[..., list(self.action_columns[number])] if self.is_mixture else chunk

    def put(self, own: Array, number: int) -> Array:
        """Undo `own`: put chunks `[.. c_own]` of an embodiment into the slots; 0 in absent ones."""
        if not self.is_mixture:
            return own
        chunk = np.zeros((*own.shape[:-1], self.width))
        chunk[..., list(self.action_columns[number])] = own
        return chunk

    def _gather(
        self,
        out: Tensor,
        columns: Sequence[tuple[int, ...]],
        code: Callable[[SignalCoding, Tensor | slice], Tensor],
        embodiment: Int[Tensor, " b"] | None,
    ) -> Tensor:
        """Code the rows of each embodiment and put them into its columns of `out`."""
        if not self.is_mixture:
            return code(self.codings[0], slice(None))
        for number, rows in self.groups(embodiment):
            block = out[rows]
            block[..., list(columns[number])] = code(self.codings[number], rows)
            out[rows] = block
        return out


@lru_cache(maxsize=64)
def slots_of(embodiments: tuple[Embodiment, ...], joints: bool = False) -> SlotCoding:
    """Return the slots of embodiments, made once."""
    return SlotCoding(embodiments, joints=joints)


def _state_slots(coding: SignalCoding) -> list[Slot]:
    return [
        Slot(name=s.name, kind=s.kind, width=6, unit="")
        if s.kind == "rotation"
        else Slot(name=s.name, kind=s.kind, width=s.width, unit=s.unit or "")
        for s in coding.read
    ]


def _action_slots(coding: SignalCoding) -> list[Slot]:
    return [
        Slot(
            name=part.signal.name,
            kind=part.signal.kind,
            width=part.chunk.stop - part.chunk.start,
            unit="" if part.signal.kind == "rotation" else part.signal.unit or "",
            rule=part.rule,
            reference=part.signal.reference,
        )
        for part in coding.parts
    ]


def _place(groups: Sequence[Sequence[Slot]]) -> tuple[dict[Slot, slice], tuple[tuple[int, ...], ...]]:
    """Return where each different slot stands, and the columns of the slots of each group."""
    places: dict[Slot, slice] = {}
    start = 0
    for slot in (slot for slots in groups for slot in slots):
        if slot not in places:
            places[slot] = slice(start, start + slot.width)
            start += slot.width
    columns = [tuple(i for slot in slots for i in range(places[slot].start, places[slot].stop)) for slots in groups]
    return places, tuple(columns)


def _present(columns: Sequence[tuple[int, ...]], width: int) -> Bool[Tensor, "e_1 w"]:
    present = torch.zeros(len(columns) + 1, width, dtype=torch.bool)
    for number, own in enumerate(columns):
        present[number, list(own)] = True
    return present
