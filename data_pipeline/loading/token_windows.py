"""Windows of token shards: frames, and the chunk of actions that follows the context.

With `context = 2`, `num_frames = 4`, `frame_step = 3`, `chunk_length = 10` and the anchor frame a:

    frames    a-3   a  | a+3  a+6        context | targets
    actions         s, s+1, ... s+9      s = a * frame_stride, the step of the last context frame

Frames before the first or after the last one repeat it and are False in `frame_mask`; actions likewise.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from ...contracts import Array
from ...errors import ConfigError
from .loader import Batch
from .token_contacts import contact_part_of
from .token_store import TokenStore

Split = Literal["all", "train", "validation"]


class TokenWindows:
    """The windows of a token store; the anchor frame numbers them.

    A batch holds `codes` {camera: int64 `[b h n]`}, `camera_mask` {camera: bool `[b]`}, `frame_mask` bool
    `[b h]`, `states` float32 `[b h s]`, `state_mask` bool `[b h]`, `actions` float32 `[b k a]`, `action_mask`
    bool `[b k]`, `text_id` int64 `[b]`, `episode` int64 `[b]`, `embodiment` int64 `[b]`. Masks are True where a value
    is real. A store without steps gives no states, no actions and no embodiment. With `look_ahead` there is
    `actions_ahead` float32 `[b 2 a]`, the least and the greatest action from the chunk's first to the episode's last;
    with `contact_parts` there are `contact_part` int64 `[b]`, the place in them of what the hand is to touch, -1 where
    that is unknown, and `contact_steps` int64 `[b]`, how many steps until then, 0 or less once it was touched. With
    `keyposes` there is `keypose` float32 `[b a]`, the action at which a binary gripper next opens or closes, else the
    episode's last.

    `embodiment` is the place in `store.embodiments`, -1 for video alone. The numbers of a state and of an action are
    those of its embodiment, then zeros up to the widest, `s` and `a`; steps are those of its own control rate.

    Args:
        store: the episodes.
        num_frames: frames a window, context and targets together.
        frame_step: distance of successive frames of a window, in frames of the store.
        chunk_length: actions a chunk [steps].
        context: frames up to and with the anchor.
        labeled_only: take only episodes that have actions and an instruction.
        split: `train` and `validation` divide the videos, never the windows of one video.
        validation_fraction: share of the videos in the validation split, chosen by a hash of their names.
        look_ahead: give `actions_ahead`, too.
        contact_parts: names of parts of the scene; give contact labels, too.
        keyposes: give `keypose`, too.

    Raises:
        ConfigError: for numbers out of range.
    """

    def __init__(
        self,
        store: TokenStore,
        *,
        num_frames: int,
        frame_step: int,
        chunk_length: int,
        context: int = 1,
        labeled_only: bool = False,
        split: Split = "all",
        validation_fraction: float = 0.0,
        look_ahead: bool = False,
        contact_parts: Sequence[str] = (),
        keyposes: bool = False,
    ) -> None:
        if min(frame_step, chunk_length, context) < 1 or not context <= num_frames:
            raise ConfigError(
                "loader: expected frame_step, chunk_length, context >= 1, context <= num_frames, "
                f"got {frame_step}, {chunk_length}, {context} and {num_frames}."
            )
        self.store, self._look_ahead, self._contact_parts = store, look_ahead, tuple(contact_parts)
        self._keyposes = keyposes
        self.source_starts = store.source_starts
        self._frame_shift = (np.arange(num_frames) - (context - 1)) * frame_step
        self._action_shift = np.arange(chunk_length)
        # an anchor without a true target teaches nothing, unless actions follow it
        idle = np.where(store.num_steps > 0, 0, 0 if num_frames == context else frame_step)
        self.counts = np.maximum(store.num_frames - idle, 0)
        self.counts[~in_split(store.column("video"), split, validation_fraction)] = 0
        if labeled_only:
            self.counts[~store.labeled] = 0

    def __getstate__(self) -> dict[str, Any]:
        # a worker is given which windows to collect; the counts of fifty million episodes stay here
        return self.__dict__ | {"counts": np.zeros(0, np.int64)}

    def gather(self, episodes: Array, windows: Array, draw: int = 0) -> Batch:
        """Collect the windows of episodes `[b]` at anchor frames `[b]`."""
        store = self.store
        times = windows[:, None] + self._frame_shift
        last = store.values("frames", episodes)[:, None] - 1
        frames = np.clip(times, 0, last)
        frame_mask = (times >= 0) & (times <= last)
        codes, camera_mask = {}, {}
        for camera in store.cameras:
            found, present = store.read_codes(camera, episodes, frames)
            codes[camera] = torch.from_numpy(found.astype(np.int64))
            camera_mask[camera] = torch.from_numpy(present)
        batch: Batch = {
            "codes": codes,
            "camera_mask": camera_mask,
            "frame_mask": torch.from_numpy(frame_mask),
            "text_id": torch.from_numpy(store.text_ids(episodes)),
            "episode": torch.from_numpy(episodes),
        }
        if not store.state_dim and not store.action_dim:
            return batch
        stride = store.values("stride", episodes)[:, None]
        states, has_steps = self._steps("states", episodes, frames * stride)
        first = windows[:, None] * stride
        actions, action_mask = self._steps("actions", episodes, first + self._action_shift)
        if self._look_ahead or self._keyposes:
            left = max(1, int((store.values("steps", episodes)[:, None] - first).max()))
            rest, is_real = self._steps("actions", episodes, first + np.arange(left))
            if self._look_ahead:
                batch["actions_ahead"] = torch.stack((rest.amin(1), rest.amax(1)), dim=1)
            if self._keyposes:
                batch["keypose"] = rest[torch.arange(len(rest)), self._key_steps(episodes, rest, is_real)]
        if self._contact_parts:
            batch["contact_part"] = torch.from_numpy(contact_part_of(store, episodes, self._contact_parts))
            batch["contact_steps"] = torch.from_numpy(store.values("contact_step", episodes) - first[:, 0])
        return batch | {
            "embodiment": torch.from_numpy(store.embodiment_of(episodes)),
            "states": states,
            "state_mask": has_steps & torch.from_numpy(frame_mask),
            "actions": actions,
            "action_mask": action_mask,
        }

    def _key_steps(self, episodes: Array, actions: Tensor, is_real: Tensor) -> Tensor:
        """Return at which of the coming actions `[b l a]` a binary gripper changes, or else the last, int64 `[b]`."""
        changes = torch.zeros_like(is_real)
        places = torch.from_numpy(self.store.embodiment_of(episodes))
        for place, robot in enumerate(self.store.embodiments):
            slices = robot.action_slices()
            for signal in robot.action:
                if signal.binary:
                    is_open = actions[..., slices[signal.name]] > 0.5
                    changes |= (is_open != is_open[:, :1]).any(-1) & (places == place)[:, None]
        changes &= is_real
        last = (is_real.sum(1) - 1).clamp(min=0)
        return torch.where(changes.any(1), changes.int().argmax(1), last)

    def _steps(self, name: str, episodes: Array, steps: Array) -> tuple[Tensor, Tensor]:
        """Collect rows `[b i d]` at steps `[b i]`, repeating the last, and a mask `[b i]` of true ones."""
        num_steps = self.store.values("steps", episodes)[:, None]
        found = self.store.read_steps(name, episodes, np.clip(steps, 0, np.maximum(num_steps - 1, 0)))
        return torch.from_numpy(found), torch.from_numpy(steps < num_steps)


def in_split(videos: Array, split: Split, fraction: float) -> Array:
    """Return which videos (uint64 `[e]`) belong to a split, bool `[e]`.

    Where the share holds none of two or more videos, the one with the smallest number is held out.

    Raises:
        ConfigError: for a fraction outside [0, 1).
    """
    if not 0 <= fraction < 1:
        raise ConfigError(f"loader: expected 0 <= validation_fraction < 1, got {fraction}.")
    if split == "all":
        return np.ones(len(videos), bool)
    held_out: Array = videos < np.uint64(fraction * 2**64)
    if fraction and not held_out.any() and len(np.unique(videos)) > 1:
        held_out = videos == videos.min()
    return held_out if split == "validation" else ~held_out
