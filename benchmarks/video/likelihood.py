"""Loss of the true next frame, and how much worse it gets when captions, states or actions are those of other clips.

Every frame is scored after the real frames before it. In raster decoding each code also sees the true codes before it.
In masked decoding every code of the frame is hidden, so that the context alone scores it, as in one decoding step.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional as F

from ...gr_model.model.context import Context, Targets
from ...gr_model.model.objectives import Batch, next_positions, read_context, read_targets
from ...gr_model.model.world_model import WorldModel
from ..metrics.statistics import Interval, bootstrap_mean
from .clips import VideoClips
from .predictions import part_of, slices

Shown = Literal["captions", "states", "actions"]
"""What a shuffle takes from other clips; actions are shown as the states that they lead to at the target frames."""

Numbers = npt.NDArray[np.float64]
Rows = npt.NDArray[np.integer]
Take = Callable[[VideoClips, Rows], dict[str, Any]]
"""Entries of a batch in which each clip has what belongs to the clip that `Rows` names."""


@dataclass(frozen=True, kw_only=True)
class ShuffleControl:
    """What the model loses when it is shown the wrong thing; the gap is the loss shuffled minus the true one.

    loss, gap: [nats a token], over the clips that got something else; None where nothing can be shuffled, `reason`
    gives the reason.
    """

    shown: Shown
    loss: Interval | None
    gap: Interval | None
    reason: str = ""


def clip_losses(
    model: WorldModel, clips: VideoClips, *, change: Mapping[str, Any] | None = None, with_actions: bool = False,
    batch_size: int = 16,
) -> Numbers:  # fmt: skip
    """Measure the cross-entropy `[c f]` [nats a token] of the true frames, averaged over cameras by their codes.

    Args:
        model: with the captions of the clips set.
        clips: the test clips.
        change: entries of the clips' batch to put in place of their own, those of other clips.
        with_actions: show the state at the target frames, to which the actions lead.
        batch_size: clips a forward pass.
    """
    changed = replace(clips, batch={**clips.batch, **(change or {})})
    g, h = model.config.num_targets, clips.context
    losses = np.full((len(clips), clips.num_frames), np.nan)
    for rows in slices(len(clips), batch_size):
        for start in range(0, clips.num_frames, g):
            batch = _padded(part_of(model, changed, rows, start=start, num_frames=h + g), h + g)
            scored = min(g, clips.num_frames - start)
            losses[rows, start : start + scored] = _frame_losses(model, batch, h, with_actions)[:, :scored]
    return losses


def _padded(batch: Batch, length: int) -> Batch:
    """Repeat the last frame where a window ends before the last target; it counts as absent."""

    def pad(value: torch.Tensor) -> torch.Tensor:
        missing = length - value.shape[1]
        return torch.cat((value, value[:, -1:].expand(-1, missing, *value.shape[2:])), dim=1) if missing else value

    padded = {**batch, "codes": {camera: pad(codes) for camera, codes in batch["codes"].items()}}
    padded |= {name: pad(batch[name]) for name in ("states", "state_mask", "frame_mask") if name in batch}
    real = batch["frame_mask"].shape[1]
    padded["frame_mask"] = padded["frame_mask"] & (torch.arange(length, device=padded["frame_mask"].device) < real)
    return padded


@torch.inference_mode()
def _frame_losses(model: WorldModel, batch: Batch, h: int, with_actions: bool) -> Numbers:
    """Score the target frames of a batch: `[b g]`, NaN for absent ones."""
    context, _ = read_context(model, batch)
    packed, valid = read_targets(model, batch, context, h)
    if with_actions:
        context = _with_target_states(context, batch, h)
    now = model.reference(context).expand_as(packed)
    if model.config.decoding == "masked":
        targets = Targets(packed=packed, masked=valid[..., None].expand_as(packed))
        wanted, where = packed, valid
    else:
        targets = Targets(packed=packed, masked=None)
        wanted, where = next_positions(packed, valid)
    _, features = model.predict(context, targets, with_actions=False)
    assert features is not None
    logits = model.frame_logits(features[where], now[where])
    nats = packed.new_zeros(packed.shape, dtype=torch.float64)
    losses = F.cross_entropy(logits.flatten(0, 1).float(), wanted[where].flatten(), reduction="none")
    nats[where] = losses.view(-1, packed.shape[-1]).double()
    counts = where.sum(-1) * packed.shape[-1]
    return (nats.sum((-1, -2)) / torch.where(counts > 0, counts.double(), torch.nan)).cpu().numpy()


def _with_target_states(context: Context, batch: Batch, h: int) -> Context:
    return replace(
        context,
        target_states=batch["states"][:, h:],
        target_state_mask=batch["state_mask"][:, h:] & batch["frame_mask"][:, h:],
    )


def codes_per_frame(clips: VideoClips) -> Numbers:
    """Count the codes of a frame `[c]`, over the cameras that a clip has."""
    return sum(
        (present * float(clips.codes(camera).shape[-1]) for camera, present in clips.present.items()),
        start=np.zeros(len(clips)),
    )


def shuffle_controls(
    model: WorldModel, clips: VideoClips, *, shuffles: int = 4, seed: int = 0, batch_size: int = 16
) -> list[ShuffleControl]:
    """Measure what shuffled captions cost and, for a model that acts, shuffled states and actions.

    Args:
        model: with the captions of the clips set.
        clips: the test clips.
        shuffles: times that each is shuffled; a clip counts with its mean.
        seed: of the shuffles.
        batch_size: clips a forward pass.
    """
    text = clips.batch["text_id"]
    controls = [_control("captions", _other_captions, model, clips, text.numpy(), shuffles, seed, batch_size)]
    if model.acts and "states" in clips.batch:
        has_states = clips.batch["state_mask"].all(dim=1).numpy()
        group = np.where(has_states, np.arange(len(clips)), -1)
        controls.append(_control("states", _other_states, model, clips, group, shuffles, seed, batch_size))
        controls.append(_control("actions", _other_actions, model, clips, group, shuffles, seed, batch_size))
    return controls


def _control(
    shown: Shown, take: Take, model: WorldModel, clips: VideoClips, groups: Rows, shuffles: int, seed: int,
    batch_size: int,
) -> ShuffleControl:  # fmt: skip
    """Compare the loss with what belongs to a clip with that of others; clips of group -1 have none."""
    rows = np.flatnonzero(groups >= 0)
    if len(np.unique(groups[rows])) < 2:
        reason = f"fewer than two clips differ in their {shown}"
        return ShuffleControl(shown=shown, loss=None, gap=None, reason=reason)
    with_actions = shown == "actions"
    true = clip_losses(model, clips, with_actions=with_actions, batch_size=batch_size).mean(axis=1)
    rng = np.random.default_rng(seed)
    gaps = np.full((shuffles, len(clips)), np.nan)
    for row in gaps:
        other = np.arange(len(clips))
        other[rows] = rows[other_group(groups[rows], rng)]
        change = take(clips, other)
        shuffled = clip_losses(model, clips, change=change, with_actions=with_actions, batch_size=batch_size)
        differs = groups[other] != groups
        row[differs] = (shuffled.mean(axis=1) - true)[differs]
    changed = np.isfinite(gaps).any(axis=0)
    gap = np.nanmean(gaps[:, changed], axis=0)
    return ShuffleControl(shown=shown, loss=bootstrap_mean(true[changed]), gap=bootstrap_mean(gap))


def other_group(groups: Rows, rng: np.random.Generator) -> Rows:
    """Permute rows `[n]` so that as many as possible get one of another group.

    Rows are ordered by group, groups in random order, and moved on by the size of the greatest one: where no group
    holds more than half of the rows, none gets its own.
    """
    labels, counts = np.unique(groups, return_counts=True)
    rank = dict(zip(labels.tolist(), rng.permutation(len(labels)).tolist(), strict=True))
    mixed = rng.permutation(len(groups))
    order = mixed[np.argsort([rank[int(groups[i])] for i in mixed], kind="stable")]
    others = np.empty(len(groups), np.int64)
    others[order] = np.roll(order, -int(counts.max()))
    return others


def _other_captions(clips: VideoClips, other: Rows) -> dict[str, Any]:
    return {"text_id": clips.batch["text_id"][torch.from_numpy(other)]}


def _other_states(clips: VideoClips, other: Rows) -> dict[str, Any]:
    return {"states": clips.batch["states"][torch.from_numpy(other)]}


def _other_actions(clips: VideoClips, other: Rows) -> dict[str, Any]:
    """Keep the states of the context, take those of the future from other clips."""
    states = clips.batch["states"].clone()
    states[:, clips.context :] = states[torch.from_numpy(other)][:, clips.context :]
    return {"states": states}
