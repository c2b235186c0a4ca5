"""Training batches in an order that resumes exactly, on any number of ranks and with any number of workers.

A dataset of windows (`token_windows.TokenWindows`, `clip_windows.ClipWindows`) states how many windows each episode has
and collects a batch of them; the loader decides which, and where the stream stands.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from ...contracts import Array
from ...errors import ConfigError, DataError
from .order import WindowOrder

Batch = dict[str, Any]

DRAW_AHEAD = 32
"""Batches whose windows are sampled in one go: numpy's cost for each call is shared."""


@dataclass(frozen=True, kw_only=True)
class LoaderConfig:
    """How a loader goes through its sources.

    Args:
        weights: relative share of each source; None for all windows alike.
        num_workers: processes that collect batches ahead; 0 collects in this process. The stream does not depend on it.
        shuffle_block: windows of a block that are read near each other, for slow disks and remote shards; 0 mixes all.
    """

    weights: list[float] | None = None
    num_workers: int = 0
    shuffle_block: int = 0

    def __post_init__(self) -> None:
        if self.num_workers < 0 or self.shuffle_block < 0:
            raise ConfigError(
                f"loader: expected num_workers and shuffle_block >= 0, got {self.num_workers} and {self.shuffle_block}."
            )


class WindowDataset(Protocol):
    """Windows of episodes, collected by number.

    counts: windows of each episode, `[e]`.
    """

    counts: Array

    @property
    def source_starts(self) -> Sequence[int]:
        """Number of the first episode of each source."""
        ...

    def gather(self, episodes: Array, windows: Array, draw: int) -> Batch:
        """Collect windows `[b]` of episodes `[b]`; `draw` seeds what is random in them (augmentation)."""
        ...


class BatchLoader:
    """Endless batches of windows, resumable at any batch.

    Iterating resumes where the last iteration stopped; `len` is the batches of an epoch on this rank. An epoch's last
    windows that fill no batch on every rank are left out; which ones differs from epoch to epoch.

    Args:
        dataset: the windows.
        batch_size: windows a batch, on each rank.
        seed: chooses the order.
        rank: number of this process.
        world_size: number of processes; all of them make the same number of steps.
        config: shares, workers, and how far windows are mixed.

    Raises:
        ConfigError: for numbers out of range.
        DataError: where the windows do not fill one batch on every rank.
    """

    def __init__(
        self,
        dataset: WindowDataset,
        *,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        config: LoaderConfig = LoaderConfig(),
    ) -> None:
        if batch_size < 1 or not 0 <= rank < world_size:
            raise ConfigError(
                f"loader: expected batch_size >= 1 and 0 <= rank < world_size, got {batch_size} and rank {rank} of "
                f"{world_size}."
            )
        self.dataset = dataset
        self.batch_size, self.rank, self.world_size = batch_size, rank, world_size
        self.num_workers = config.num_workers
        self.order = WindowOrder(
            dataset.counts, dataset.source_starts, seed=seed, weights=config.weights, shuffle_block=config.shuffle_block
        )
        if len(self) == 0:
            raise DataError(
                f"loader: expected at least {batch_size * world_size} windows ({batch_size} on each of {world_size} "
                f"ranks), found {self.num_windows} in {int(np.count_nonzero(dataset.counts))} episodes; use a smaller "
                "batch or more data."
            )
        self._epoch = 0
        self._consumed = 0

    @property
    def num_windows(self) -> int:
        """Count the windows of all sources."""
        return self.order.num_windows

    def __len__(self) -> int:
        return self.order.draws_per_epoch // (self.batch_size * self.world_size)

    def __iter__(self) -> Iterator[Batch]:
        draws = _Draws(self.order, self.batch_size, self.rank, self.world_size, self._epoch, self._consumed)
        collected = self._in_workers(draws) if self.num_workers else map(_Gathered(self.dataset).__getitem__, draws)
        for epoch, consumed, batch in collected:
            # before the yield: a checkpoint made with this batch resumes after it
            self._epoch, self._consumed = epoch, consumed
            yield batch

    def _in_workers(self, draws: _Draws) -> Iterator[tuple[int, int, Batch]]:
        """Collect batches in processes; they come back in the order they were sampled."""
        from torch.utils.data import DataLoader

        loader: Any = DataLoader(
            _Gathered(self.dataset),  # type: ignore[arg-type]
            sampler=draws,  # type: ignore[arg-type]
            batch_size=None,
            collate_fn=_as_it_is,
            num_workers=self.num_workers,
            multiprocessing_context="spawn",
        )
        yield from loader

    def state_dict(self) -> dict[str, int]:
        """Give the position in the stream, the same on every rank."""
        return {
            "seed": self.order.seed,
            "epoch": self._epoch,
            "consumed": self._consumed,
            "draws_per_epoch": self.order.draws_per_epoch,
            "shuffle_block": self.order.shuffle_block,
        }

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go to a position that `state_dict` gave, also with another batch size, number of ranks or workers.

        Raises:
            DataError: for a position in other data or another order.
        """
        own = self.state_dict()
        for name in ("seed", "draws_per_epoch", "shuffle_block"):
            if state.get(name, 0) != own[name]:
                raise DataError(
                    f"loader: expected a checkpoint with {name} {own[name]}, got {state.get(name, 0)}; "
                    "resume with the same data, window and seed."
                )
        self._epoch, self._consumed = state["epoch"], state["consumed"]


Draw = tuple[int, int, Array, Array, int]
"""Epoch and windows consumed once the batch is out, episodes `[b]`, windows `[b]`, number of the first draw."""


class _Draws:
    """The batches of one rank from a position on, without end."""

    def __init__(
        self, order: WindowOrder, batch_size: int, rank: int, world_size: int, epoch: int, consumed: int
    ) -> None:
        self.order = order
        self.batch_size, self.rank, self.together = batch_size, rank, batch_size * world_size
        self.epoch, self.consumed = epoch, consumed

    def __iter__(self) -> Iterator[Draw]:
        epoch, consumed, total = self.epoch, self.consumed, self.order.draws_per_epoch
        while True:
            if consumed + self.together > total:
                epoch, consumed = epoch + 1, 0
            firsts = np.arange(consumed, total - self.together + 1, self.together)[:DRAW_AHEAD]
            positions = (firsts + self.rank * self.batch_size)[:, None] + np.arange(self.batch_size)
            episodes, windows = (v.reshape(positions.shape) for v in self.order.windows(epoch, positions.ravel()))
            for i, first in enumerate(positions[:, 0].tolist()):
                consumed += self.together
                yield epoch, consumed, episodes[i], windows[i], epoch * total + first


def _as_it_is(batch: Any) -> Any:
    return batch


class _Gathered:
    """What a worker does with a draw."""

    def __init__(self, dataset: WindowDataset) -> None:
        self.dataset = dataset

    def __getitem__(self, draw: Draw) -> tuple[int, int, Batch]:
        return (*draw[:2], self.dataset.gather(*draw[2:]))
