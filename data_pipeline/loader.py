"""Training batches from a token store: windows of frames and the chunk of actions that follows the context.

With `context = 2`, `num_frames = 4`, `frame_step = 3`, `chunk_length = 10` and the anchor frame a:

    frames    a-3   a  | a+3  a+6        context | targets
    actions         s, s+1, ... s+9      s = a * frame_stride, the step of the last context frame

Frames before the first or after the last one repeat it and are False in `frame_mask`; actions likewise.
The order is a permutation computed from (seed, epoch, position): any position is reached at once, and ranks
partition it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from ..gr_model.contracts import Array
from ..gr_model.errors import ConfigError, DataError
from .shuffle import permute
from .token_store import TokenStore

Split = Literal["all", "train", "validation"]
Batch = dict[str, Any]

DRAW_AHEAD = 32
"""Batches whose windows are drawn in one go: numpy's cost for each call is shared."""


class WindowLoader:
    """Endless batches over the windows of a token store, resumable at any batch.

    A batch holds `codes` {camera: int64 `[b h n]`}, `camera_mask` {camera: bool `[b]`}, `frame_mask` bool
    `[b h]`, `states` float32 `[b h s]`, `state_mask` bool `[b h]`, `actions` float32 `[b k a]`, `action_mask`
    bool `[b k]`, `text_id` int64 `[b]`. Masks are True where a value is real. A store without steps gives no states
    and no actions.

    Iterating goes on where the last iteration stopped; `len` is the batches of an epoch on this rank.

    Args:
        store: the episodes.
        batch_size: windows a batch, on each rank.
        num_frames: frames a window, context and targets together.
        frame_step: distance of successive frames of a window, in frames of the store.
        chunk_length: actions a chunk [steps].
        seed: chooses the order.
        context: frames up to and with the anchor.
        rank: number of this process.
        world_size: number of processes; all of them make the same number of steps.
        labelled_only: take only episodes that have actions and a sentence.
        weights: relative share of each folder of the store; None for all windows alike.
        split: `train` and `validation` divide the videos, never the windows of one video.
        validation_fraction: share of the videos in the validation split, chosen by a hash of their names.

    Raises:
        ConfigError: for numbers out of range.
        DataError: where the windows do not fill one batch on every rank.
    """

    def __init__(
        self,
        store: TokenStore,
        *,
        batch_size: int,
        num_frames: int,
        frame_step: int,
        chunk_length: int,
        seed: int,
        context: int = 1,
        rank: int = 0,
        world_size: int = 1,
        labelled_only: bool = False,
        weights: Sequence[float] | None = None,
        split: Split = "all",
        validation_fraction: float = 0.0,
    ) -> None:
        if min(batch_size, frame_step, chunk_length, context) < 1 or not context <= num_frames:
            raise ConfigError(
                "loader: expected batch_size, frame_step, chunk_length, context >= 1, context <= num_frames, "
                f"got {batch_size}, {frame_step}, {chunk_length}, {context} and {num_frames}."
            )
        if not 0 <= rank < world_size or not 0 <= validation_fraction < 1:
            raise ConfigError(
                "loader: expected 0 <= rank < world_size and 0 <= validation_fraction < 1, got rank "
                f"{rank} of {world_size}, fraction {validation_fraction}."
            )
        self.store = store
        self.batch_size, self.rank, self.world_size, self.seed = batch_size, rank, world_size, seed
        self._frame_shift = (np.arange(num_frames) - (context - 1)) * frame_step
        self._action_shift = np.arange(chunk_length)
        chosen = _in_split(store, split, validation_fraction) & (store.labelled | (not labelled_only))
        # an anchor without a true target teaches nothing, unless actions follow it
        idle = np.where((store.num_steps > 0) | (num_frames == context), 0, frame_step)
        counts = np.where(chosen, np.maximum(store.num_frames - idle, 0), 0)
        self._window_ends = np.cumsum(counts)
        self._counts = counts
        self._plan_epoch(counts, weights)
        if len(self) == 0:
            raise DataError(
                f"loader: expected at least {batch_size * world_size} windows ({batch_size} on each of "
                f"{world_size} ranks), found {self.num_windows} in {int(np.count_nonzero(counts))} episodes "
                f"(split {split}, labelled_only {labelled_only}); use a smaller batch or more data."
            )
        self._epoch = 0
        self._consumed = 0
        self._drawn: dict[tuple[int, int], tuple[Array, Array]] = {}

    def _plan_epoch(self, counts: Array, weights: Sequence[float] | None) -> None:
        """Set the draws of each source an epoch: its windows, or its share of all windows by weight."""
        num_sources = int(self.store.source_id.max()) + 1
        available = np.bincount(self.store.source_id, counts, num_sources).astype(np.int64)
        self._source_windows = available
        self._source_starts = np.cumsum(available) - available
        self.num_windows = int(available.sum())
        self._weighted = weights is not None
        if weights is None:
            quotas = available
        else:
            share = np.asarray(weights, np.float64)
            if share.shape != (num_sources,) or share.min() < 0 or share[available > 0].sum() <= 0:
                raise ConfigError(
                    f"loader: expected {num_sources} weights, none negative, not all 0, got {list(weights)}."
                )
            share = np.where(available > 0, share, 0)
            quotas = np.round(share / share.sum() * self.num_windows).astype(np.int64)
        self._quota_ends = np.cumsum(quotas)
        self.draws_per_epoch = int(self._quota_ends[-1])

    def __len__(self) -> int:
        return self.draws_per_epoch // (self.batch_size * self.world_size)

    def __iter__(self) -> Iterator[Batch]:
        while True:
            together = self.batch_size * self.world_size
            if self._consumed + together > self.draws_per_epoch:
                self._epoch, self._consumed = self._epoch + 1, 0
            episode, anchor = self._next_windows()
            self._consumed += together  # before the yield: a checkpoint made with this batch resumes after it
            yield self.gather(episode, anchor)

    def state_dict(self) -> dict[str, int]:
        """Give the position in the stream, the same on every rank."""
        return {
            "seed": self.seed,
            "epoch": self._epoch,
            "consumed": self._consumed,
            "draws_per_epoch": self.draws_per_epoch,
        }

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go to a position that `state_dict` gave, also with another batch size or number of ranks.

        Raises:
            DataError: for a position in other data or another order.
        """
        own = self.state_dict()
        for name in ("seed", "draws_per_epoch"):
            if state[name] != own[name]:
                raise DataError(
                    f"loader: expected a checkpoint with {name} {own[name]}, got {state[name]}; "
                    "resume with the same data, window and seed."
                )
        self._epoch, self._consumed = state["epoch"], state["consumed"]

    def _next_windows(self) -> tuple[Array, Array]:
        """Give the windows of the next batch, drawn for `DRAW_AHEAD` batches at once."""
        at = (self._epoch, self._consumed)
        if at not in self._drawn:
            together = self.batch_size * self.world_size
            firsts = np.arange(self._consumed, self.draws_per_epoch - together + 1, together)[:DRAW_AHEAD]
            positions = (firsts + self.rank * self.batch_size)[:, None] + np.arange(self.batch_size)
            windows = self._windows(self._epoch, positions.ravel())
            episodes, anchors = (values.reshape(positions.shape) for values in windows)
            self._drawn = {(self._epoch, int(first)): (episodes[i], anchors[i]) for i, first in enumerate(firsts)}
        return self._drawn.pop(at)

    def _windows(self, epoch: int, positions: Array) -> tuple[Array, Array]:
        """Give (episode, anchor frame), each int64 `[b]`, of positions of an epoch."""
        key = int(np.random.SeedSequence([self.seed, epoch]).generate_state(1, np.uint64)[0] >> np.uint64(1))
        slot = permute(positions, self.draws_per_epoch, key)
        source = np.searchsorted(self._quota_ends, slot, side="right")
        quota_starts = np.concatenate([[0], self._quota_ends[:-1]])
        draw = slot - quota_starts[source]
        if self._weighted:
            # a source drawn more often than it has windows is passed through again, each time in a new order
            available = self._source_windows[source]
            turn, draw = np.divmod(draw, available)
            draw = permute(draw, available, key + 1 + turn)
        window = self._source_starts[source] + draw
        episode = np.searchsorted(self._window_ends, window, side="right")
        return episode, window - (self._window_ends[episode] - self._counts[episode])

    def gather(self, episode: Array, anchor: Array) -> Batch:
        """Collect the windows of episodes `[b]` at anchor frames `[b]`."""
        store = self.store
        times = anchor[:, None] + self._frame_shift
        last = store.num_frames[episode][:, None] - 1
        frames = np.clip(times, 0, last)
        frame_mask = (times >= 0) & (times <= last)
        codes, camera_mask = {}, {}
        for camera in store.cameras:
            offset = store.frame_offsets[camera][episode]
            present = offset >= 0
            rows = np.where(present[:, None], offset[:, None] + frames, 0)
            codes[camera] = torch.from_numpy(store.codes[camera][rows].astype(np.int64))
            camera_mask[camera] = torch.from_numpy(present)
        batch: Batch = {
            "codes": codes,
            "camera_mask": camera_mask,
            "frame_mask": torch.from_numpy(frame_mask),
            "text_id": torch.from_numpy(store.text_id[episode]),
        }
        if store.states.shape[1] == 0:
            return batch
        stride = store.frame_stride[episode][:, None]
        states, has_steps = self._steps(store.states, episode, frames * stride)
        actions, action_mask = self._steps(store.actions, episode, anchor[:, None] * stride + self._action_shift)
        return batch | {
            "states": states,
            "state_mask": has_steps & torch.from_numpy(frame_mask),
            "actions": actions,
            "action_mask": action_mask,
        }

    def _steps(self, values: Array, episode: Array, steps: Array) -> tuple[Tensor, Tensor]:
        """Collect rows `[b i d]` at steps `[b i]`, repeating the last, and a mask `[b i]` of true ones."""
        num_steps = self.store.num_steps[episode][:, None]
        mask = steps < num_steps
        rows = self.store.step_offsets[episode][:, None] + np.minimum(steps, num_steps - 1)
        found = values[np.where(num_steps > 0, rows, 0)]
        found[num_steps[:, 0] == 0] = 0
        return torch.from_numpy(found), torch.from_numpy(mask)


def _in_split(store: TokenStore, split: Split, fraction: float) -> Array:
    if split == "all":
        return np.ones(len(store), bool)
    digests = [hashlib.sha256(video.encode()).digest()[:8] for video in store.videos]
    held_out = np.array([int.from_bytes(digest, "big") / 2**64 < fraction for digest in digests], bool)
    return held_out if split == "validation" else ~held_out
