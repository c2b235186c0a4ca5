"""The token sequence: groups declared once; slices, positions and the attention mask are derived from them.

    text | step 0: camera 0 [begin, tokens], camera 1 [begin, tokens], ..., state | step 1: ... | action |
    target states | targets: frames

Who sees whom (nobody but itself sees the action query):

    query \\ key       text   frame           state         target state   target
    text              all    -               -             -              -
    frame t           all    steps <= t      steps < t     -              -
    state t           all    steps <= t      steps <= t    -              -
    action            all    all             all           -              -
    target state g    all    all             all           the same g     -
    target g          all    all             all           the same g     frames of the same g

Inside a frame (all cameras of a step) attention is causal with "raster" decoding and bidirectional
otherwise. It is causal among the positions of the action query, of which most heads take one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Literal

import numpy as np
from einops import rearrange

from ...contracts import Array
from .config import Decoding, ModelConfig

GroupKind = Literal["text", "frame", "state", "action", "target_state", "target"]
KINDS: tuple[str, ...] = ("text", "begin", "image", "state", "action")


@dataclass(frozen=True, kw_only=True)
class TokenGroup:
    """Consecutive positions that obey one rule.

    time: context step, or index of the target; camera: index or None; grid: of a frame's positions after its
        begin token.
    """

    kind: GroupKind
    start: int
    length: int
    time: int = 0
    camera: int | None = None
    grid: tuple[int, int] | None = None

    @property
    def slice(self) -> slice:
        """Positions of the group."""
        return slice(self.start, self.start + self.length)


def sees(query: TokenGroup, key: TokenGroup) -> bool:
    """Return whether positions of group `query` may attend to group `key` (order inside a frame aside)."""
    if key.kind == "action":
        return query is key
    if key.kind == "text":
        return True
    if query.kind == "text":
        return False
    if key.kind == "target":
        return query.kind == "target" and query.time == key.time
    if key.kind == "target_state":
        return query.kind in ("target_state", "target") and query.time == key.time
    if query.kind in ("action", "target_state", "target"):
        return True
    if key.kind == "state" and query.kind == "frame":
        return key.time < query.time
    return key.time <= query.time


@dataclass(frozen=True, kw_only=True)
class SequenceLayout:
    """One arrangement of groups.

    text_length: positions of the text prefix; num_queries: of the action query; grids: packed rows and columns of each
        camera.
    """

    text_length: int
    num_context: int
    num_targets: int
    num_queries: int
    max_context: int
    max_targets: int
    grids: tuple[tuple[int, int], ...]
    decoding: Decoding

    @cached_property
    def groups(self) -> tuple[TokenGroup, ...]:
        """Every group, in order."""
        groups: list[TokenGroup] = []

        def add(kind: GroupKind, length: int, time: int = 0, camera: int | None = None) -> None:
            start = groups[-1].start + groups[-1].length if groups else 0
            grid = None if camera is None else self.grids[camera]
            groups.append(TokenGroup(kind=kind, start=start, length=length, time=time, camera=camera, grid=grid))

        def add_frame(kind: GroupKind, time: int) -> None:
            for camera, (rows, columns) in enumerate(self.grids):
                add(kind, 1 + rows * columns, time, camera)

        add("text", self.text_length)
        for time in range(self.num_context):
            add_frame("frame", time)
            add("state", 1, time)
        if self.num_queries:
            add("action", self.num_queries, self.num_context - 1)
        for target in range(self.num_targets):
            add("target_state", 1, target)
        for target in range(self.num_targets):
            add_frame("target", target)
        return tuple(groups)

    @property
    def length(self) -> int:
        """Number of positions."""
        return self.groups[-1].start + self.groups[-1].length

    @property
    def frame_length(self) -> int:
        """Positions of one frame: begin tokens and image tokens of every camera."""
        return sum(1 + rows * columns for rows, columns in self.grids)

    def of_kind(self, kind: GroupKind) -> tuple[TokenGroup, ...]:
        """Groups of one kind, in order."""
        return tuple(group for group in self.groups if group.kind == kind)

    def positions(self, *kinds: GroupKind) -> Array:
        """Indices of all positions of these kinds, ascending, int64."""
        spans = [np.arange(g.start, g.start + g.length) for g in self.groups if g.kind in kinds]
        return np.concatenate([np.empty(0, np.int64), *spans]).astype(np.int64)

    @cached_property
    def mask(self) -> Array:
        """Boolean `[q m]`, True = query q may attend to key m."""
        mask = np.zeros((self.length, self.length), dtype=bool)
        for query in self.groups:
            for key in self.groups:
                mask[query.slice, key.slice] = sees(query, key)
        order = np.tril(np.ones_like(mask))
        for group in self.of_kind("action"):
            mask[group.slice, group.slice] = order[group.slice, group.slice]
        if self.decoding == "raster":
            for kind in ("frame", "target"):
                for query in self.of_kind(kind):
                    for key in self.of_kind(kind):
                        if query.time == key.time:
                            mask[query.slice, key.slice] &= order[query.slice, key.slice]
        return mask

    @cached_property
    def attributes(self) -> Array:
        """Multi-hot float32 `[n a]`: kind, camera, time, row and column of each position."""
        sizes = attribute_sizes(self.grids, self.max_context, self.max_targets)
        offsets = dict(zip(sizes, np.cumsum([0, *list(sizes.values())[:-1]]), strict=True))
        table = np.zeros((self.length, sum(sizes.values())), dtype=np.float32)
        for group in self.groups:
            first, rest = group.start, np.arange(group.start + 1, group.start + group.length)
            if group.kind in ("frame", "target"):
                assert group.grid is not None and group.camera is not None
                rows, columns = np.divmod(np.arange(group.length - 1), group.grid[1])
                table[first, offsets["kind"] + KINDS.index("begin")] = 1
                table[rest, offsets["kind"] + KINDS.index("image")] = 1
                table[rest, offsets["row"] + rows] = 1
                table[rest, offsets["column"] + columns] = 1
                table[group.slice, offsets["camera"] + group.camera] = 1
            else:
                table[group.slice, offsets["kind"] + KINDS.index(group.kind.removeprefix("target_"))] = 1
            if group.kind in ("target_state", "target"):
                table[group.slice, offsets["time"] + self.max_context + group.time] = 1
            elif group.kind != "text":
                table[group.slice, offsets["time"] + self.max_context - self.num_context + group.time] = 1
        return table


def attribute_sizes(grids: Sequence[tuple[int, int]], max_context: int, max_targets: int) -> dict[str, int]:
    """Count the learned vectors of each attribute; times run from the oldest step to the last target."""
    return {
        "kind": len(KINDS),
        "camera": len(grids),
        "time": max_context + max_targets,
        "row": max(rows for rows, _ in grids),
        "column": max(columns for _, columns in grids),
    }


@lru_cache(maxsize=64)
def make_layout(
    config: ModelConfig, *, text_length: int, num_context: int, with_frames: bool, with_action: bool
) -> SequenceLayout:
    """Return the layout of a model for one kind of forward pass."""
    return SequenceLayout(
        text_length=text_length,
        num_context=num_context,
        num_targets=config.num_targets if with_frames else 0,
        num_queries=config.num_queries if with_action else 0,
        max_context=config.max_context,
        max_targets=config.num_targets,
        grids=config.packed_grids,
        decoding=config.decoding,
    )


def pack_codes(codes: Array, grid: tuple[int, int], p: int) -> Array:
    """Group p x p neighboring codes: `[.. n] -> [.. n / p^2, p^2]`; numpy or torch."""
    return rearrange(codes, "... (r i c j) -> ... (r c) (i j)", i=p, j=p, r=grid[0] // p)


def unpack_codes(packed: Array, grid: tuple[int, int], p: int) -> Array:
    """Invert `pack_codes`: `[.. n / p^2, p^2] -> [.. n]`."""
    return rearrange(packed, "... (r c) (i j) -> ... (r i c j)", i=p, j=p, r=grid[0] // p)
