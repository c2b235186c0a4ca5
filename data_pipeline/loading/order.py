"""The order of training windows, computed from (seed, epoch, position): any position is reached at once.

Nothing is shuffled in memory, so fifty million episodes cost one running sum, every rank makes the same number of steps
by construction, and a checkpoint is two numbers. Neither the batch size, nor the ranks, nor the workers are part of it.

With `shuffle_block = 0` every window of an epoch is equally likely at every position. Otherwise windows come in
blocks of neighbors: some blocks, chosen at random, are mixed with each other at a time. Reads then stay near each
other, which slow disks and remote shards need.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ...contracts import Array
from ...errors import ConfigError
from .shuffle import permute

BLOCKS_MIXED = 16
"""Blocks of neighbors that are mixed with each other at a time."""


class WindowOrder:
    """Windows of the episodes of some sources, in the order of an endless stream.

    num_windows: of all sources; draws_per_epoch: the same, or nearly so with weights (each share is rounded).

    Args:
        counts: windows of each episode, `[e]`, 0 for one that is left out.
        source_starts: number of the first episode of each source.
        seed: chooses the order.
        weights: relative share of each source; None for all windows alike.
        shuffle_block: windows of a block that are read near each other, 0 for none.

    Raises:
        ConfigError: for weights that cannot be used.
    """

    def __init__(
        self,
        counts: Array,
        source_starts: Sequence[int],
        *,
        seed: int,
        weights: Sequence[float] | None = None,
        shuffle_block: int = 0,
    ) -> None:
        self.seed = seed
        self.shuffle_block = shuffle_block
        self.window_ends = np.cumsum(counts, dtype=np.int64)
        borders = np.concatenate([[0], self.window_ends])[[*source_starts, len(counts)]]
        self._source_starts = borders[:-1]
        self._source_windows = np.diff(borders)
        self.num_windows = int(borders[-1])
        self._weighted = weights is not None
        quotas = self._source_windows if weights is None else self._quotas(weights)
        self._quota_ends = np.cumsum(quotas)
        self.draws_per_epoch = int(self._quota_ends[-1]) if len(quotas) else 0

    def _quotas(self, weights: Sequence[float]) -> Array:
        share = np.asarray(weights, np.float64)
        has_some = self._source_windows > 0
        if share.shape != has_some.shape or share.min() < 0 or share[has_some].sum() <= 0:
            raise ConfigError(
                f"loader: expected {len(has_some)} weights, none negative, not all 0, got {list(weights)}."
            )
        share = np.where(has_some, share, 0)
        return np.round(share / share.sum() * self.num_windows).astype(np.int64)

    def windows(self, epoch: int, positions: Array) -> tuple[Array, Array]:
        """Give (episode, number of the window in it), each int64 `[b]`, of positions `[b]` of an epoch."""
        key = int(np.random.SeedSequence([self.seed, epoch]).generate_state(1, np.uint64)[0] >> np.uint64(1))
        if not self._weighted:
            window = self._shuffled(positions, self.draws_per_epoch, key)
        else:
            # which source: every position of the epoch samples one source; which window: that source's own order
            slot = permute(positions, self.draws_per_epoch, key)
            source = np.searchsorted(self._quota_ends, slot, side="right")
            draw = slot - np.concatenate([[0], self._quota_ends[:-1]])[source]
            # a source sampled more often than it has windows is passed through again, each time in a new order
            available = self._source_windows[source]
            turn, draw = np.divmod(draw, available)
            window = self._source_starts[source] + permute(draw, available, key + 1 + turn)
        episode = np.searchsorted(self.window_ends, window, side="right")
        first = np.where(episode > 0, self.window_ends[np.maximum(episode - 1, 0)], 0)
        return episode, window - first

    def _shuffled(self, positions: Array, size: int, key: int) -> Array:
        """Permute positions within [0, size), in mixed blocks where that is asked for."""
        block = self.shuffle_block
        num_blocks = size // block if block else 0
        if num_blocks <= BLOCKS_MIXED:
            return permute(positions, size, key)
        # the windows behind the last whole block are mixed with each other at the end of the epoch
        whole = num_blocks * block
        group = positions // (block * BLOCKS_MIXED)
        group_start = group * block * BLOCKS_MIXED
        group_size = np.where(positions < whole, np.minimum(whole - group_start, block * BLOCKS_MIXED), 1)
        within = permute(np.where(positions < whole, positions - group_start, 0), group_size, key + 1 + group)
        place = np.where(positions < whole, group_start + within, 0)
        shuffled = permute(place // block, num_blocks, key) * block + place % block
        tail = size - whole
        if tail:
            behind = whole + permute(np.where(positions < whole, 0, positions - whole), tail, key)
            shuffled = np.where(positions < whole, shuffled, behind)
        return shuffled
