"""Training losses and evaluation metrics of the world model on a loader batch.

Batch: `codes` {camera: int64 `[b f n]`} (context frames, then targets), `frame_mask` bool `[b f]` and `text_id` `[b]`
(negative: no text). With a robot also `states` `[b f 16]`, and at the last context frame `actions` `[b k 8]` and
`action_mask` `[b k]`. Optional are `camera_mask` {camera: bool `[b]`} and `state_mask` bool `[b f]`. A model of
several robots needs `embodiment` `[b]`, their places in its configuration; `states` and `actions` are then as wide as
the widest of them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from ...cvae_head.head import query_of
from ...errors import ShapeError
from .context import Context, Targets
from .world_model import WorldModel

Batch = Mapping[str, Any]

_MOTION_WEIGHT = 0.1
"""Weight of the loss of the words for the coming motion beside that of the chunk."""

_CONTACT_WEIGHT = 0.1
"""Weight of the loss of the coming contact beside that of the chunk."""

_KEYPOSE_WEIGHT = 0.2
"""Weight of the loss of the next keypose beside that of the chunk."""


def rows_of(batch: Any, rows: Any) -> Any:
    """Return the samples `rows` of a batch: a slice, or the numbers of the samples."""
    if isinstance(batch, Mapping):
        return {name: rows_of(item, rows) for name, item in batch.items()}
    return batch[rows]


def read_context(model: WorldModel, batch: Batch) -> tuple[Context, int]:
    """Take the context out of a batch; also return its number of frames h."""
    codes: Mapping[str, Tensor] = batch["codes"]
    known = {camera.name: codes[camera.name] for camera in model.config.cameras if camera.name in codes}
    if not known:
        raise ShapeError(
            f"batch: expected codes of cameras {[c.name for c in model.config.cameras]}, got "
            f"{sorted(codes)}; "
            "load the cameras that the model was configured for."
        )
    h = min(next(iter(known.values())).shape[1], model.config.max_context)
    text, text_mask = model.texts.of(batch["text_id"].tolist(), model.device)
    states, frame_mask, state_mask = _kept_states(batch), batch.get("frame_mask"), batch.get("state_mask")
    context = Context(
        codes={name: values[:, :h] for name, values in known.items()},
        text=text,
        text_mask=text_mask,
        states=None if states is None else states[:, :h],
        state_mask=None if state_mask is None else state_mask[:, :h],
        frame_mask=None if frame_mask is None else frame_mask[:, :h],
        camera_mask=batch.get("camera_mask"),
        embodiment=batch.get("embodiment") if model.config.is_mixture else None,
    )
    return context, h


def _kept_states(batch: Batch) -> Float[Tensor, "b f s"] | None:
    """Return the states of a batch, 0 where a mask leaves them out; there they may be NaN."""
    states: Tensor | None = batch.get("states")
    for name in ("state_mask", "frame_mask"):
        if states is not None and batch.get(name) is not None:
            states = states.masked_fill(~batch[name][..., None], 0)
    return states


def read_targets(
    model: WorldModel, batch: Batch, context: Context, h: int
) -> tuple[Int[Tensor, "b g frame pp"], Bool[Tensor, "b g frame"]]:
    """Arrange the target frames; also return which positions are image tokens that count in a loss."""
    g = model.config.num_targets
    codes = {name: batch["codes"][name][:, h : h + g] for name in context.codes}
    got = next(iter(codes.values())).shape[1]
    if got != g:
        raise ShapeError(
            f"batch: expected {g} target frames after {h} context frames, got {got}; "
            "ask the loader for max_context + num_targets frames."
        )
    packed = model.embed.arrange(codes)
    valid = packed[..., 0] != model.embed.null_code
    valid = valid & model.camera_keep(context, len(packed))[:, None]
    if batch.get("frame_mask") is not None:
        valid = valid & batch["frame_mask"][:, h : h + g, None]
    return packed, valid


def next_positions(
    packed: Int[Tensor, "b g frame pp"], valid: Bool[Tensor, "b g frame"]
) -> tuple[Int[Tensor, "b g frame pp"], Bool[Tensor, "b g frame"]]:
    """Shift by one: what each position predicts in raster decoding, and whether that counts."""
    where = valid.roll(-1, dims=-1)
    where[..., -1] = False
    return packed.roll(-1, dims=-2), where


def random_mask(packed: Int[Tensor, "b g frame pp"], valid: Bool[Tensor, "b g frame"]) -> Bool[Tensor, "b g frame pp"]:
    """Hide a random share `cos(pi u / 2)` of the codes at valid positions, u uniform for each frame.

    Codes that share a position are hidden one by one, so that they are learned, and sampled, given each other.

    Source: MaskGIT, arXiv 2202.04200, section 3.1.
    """
    share = torch.cos(0.5 * math.pi * torch.rand(valid.shape[:2], device=valid.device))
    return (torch.rand(packed.shape, device=valid.device) < share[..., None, None]) & valid[..., None]


def code_loss(
    model: WorldModel,
    features: Float[Tensor, "b g frame d"],
    packed: Int[Tensor, "b g frame pp"],
    where: Bool[Tensor, "b g frame pp"],
    reference: Int[Tensor, "b 1 frame pp"],
) -> dict[str, Tensor]:
    """Return the cross-entropy [nats] and the accuracy of the codes `packed` that `where` marks."""
    rows = where.any(-1)
    logits = model.frame_logits(features[rows], reference.expand_as(packed)[rows])[where[rows]]
    wanted = packed[where]
    count = max(wanted.numel(), 1)
    loss = F.cross_entropy(logits.float(), wanted, reduction="sum") / count
    accuracy = (logits.detach().argmax(-1) == wanted).sum() / count
    return {"frame_loss": loss, "token_accuracy": accuracy}


def _count_targets(model: WorldModel, batch: Batch) -> Float[Tensor, ""]:
    """Count the codes of target frames that are there."""
    codes: Mapping[str, Tensor] = batch["codes"]
    total = torch.zeros((), dtype=torch.float64, device=batch["text_id"].device)
    for camera in model.config.cameras:
        if camera.name in codes:
            b, f, n = codes[camera.name].shape
            h = min(f, model.config.max_context)
            mask = batch.get("frame_mask")
            here = torch.ones(b, f, dtype=torch.bool, device=total.device) if mask is None else mask
            here = here[:, h : h + model.config.num_targets]
            if camera.name in batch.get("camera_mask", {}):
                here = here & batch["camera_mask"][camera.name][:, None]
            total = total + n * here.sum()
    return total


def count_kept(model: WorldModel, batch: Batch, *, with_actions: bool) -> Float[Tensor, " n"]:
    """Return what the losses of a batch are averaged over: codes of target frames, then numbers of each chunk column.

    Which codes are hidden or scored at random is left out.
    """
    codes = _count_targets(model, batch)[None]
    if not with_actions:
        return codes
    mask = _chunk_mask(model, batch, model.head.shape.width)
    return torch.cat((codes, model.head.counts(mask).to(codes)))


def _chunk_mask(model: WorldModel, batch: Batch, width: int) -> Bool[Tensor, "b k c"]:
    """Return which numbers of the chunks count."""
    mask: Tensor = batch["action_mask"][..., None].expand(-1, -1, width)
    robots = batch.get("embodiment") if model.config.is_mixture else None
    return mask if robots is None else mask & model.present.to(mask.device)[robots][:, None]


def read_chunk(model: WorldModel, batch: Batch, h: int) -> tuple[Float[Tensor, "b k c"], Bool[Tensor, "b k c"]]:
    """Return the normalized commands that follow the last context frame, and which numbers count."""
    robots = batch.get("embodiment") if model.config.is_mixture else None
    target = model.config.slots.encode(batch["states"][:, h - 1].float(), batch["actions"].float(), robots)
    chunk = model.normalize_chunk(target, robots)
    mask = _chunk_mask(model, batch, chunk.shape[-1])
    return chunk.masked_fill(~mask, 0), mask  # what is left out may be NaN


def read_keypose(model: WorldModel, batch: Batch, h: int) -> tuple[Float[Tensor, "b c"], Bool[Tensor, "b c"]]:
    """Return the next keypose, normalized as the last step of a chunk, and which numbers count."""
    robots = batch.get("embodiment") if model.config.is_mixture else None
    now, ahead = batch["states"][:, h - 1].float(), batch["keypose"][:, None].float()
    chunk = model.config.slots.encode(now, ahead, robots).expand(-1, model.config.chunk_length, -1)
    known = _chunk_mask(model, batch, chunk.shape[-1])[:, 0]
    return model.normalize_chunk(chunk, robots)[:, -1], known


def drop_cameras(context: Context, probability: float) -> Context:
    """Hide cameras of some samples, from the prediction and from its loss; a sample keeps one camera at least."""
    masks = context.camera_mask or {}
    everyone = torch.ones(len(context.text), dtype=torch.bool, device=context.text.device)
    here = torch.stack([masks.get(name, everyone) for name in context.codes])
    kept = here & (torch.rand(here.shape, device=here.device) >= probability)
    kept = torch.where(kept.any(0), kept, here)
    return replace(context, camera_mask=dict(zip(context.codes, kept, strict=True)))


def permute_codes(
    codes: Mapping[str, Int[Tensor, "b f n"]], codebook_size: int, probability: float
) -> dict[str, Int[Tensor, "b f n"]]:
    """Permute codes of some samples, in all frames and cameras alike, each sample by a share of its own.

    A permuted texture is one that training never showed: where nothing moves, only copying predicts it.
    """
    b, device = len(next(iter(codes.values()))), next(iter(codes.values())).device
    share = torch.rand(b, 1, device=device) * (torch.rand(b, 1, device=device) < probability)
    names = torch.arange(codebook_size, device=device).expand(b, -1)
    others = torch.randint(codebook_size, (b, codebook_size), device=device)
    names = torch.where(torch.rand(b, codebook_size, device=device) < share, others, names)
    return {camera: names.gather(1, c.flatten(1)).view(c.shape) for camera, c in codes.items()}


def training_losses(
    model: WorldModel,
    batch: Batch,
    *,
    with_actions: bool,
    with_frames: bool,
    step: int | None = None,
    state_shares: tuple[float, float] = (0.7, 0.7),
    kept: Float[Tensor, " n"] | None = None,
) -> dict[str, Tensor]:
    """Compute the losses of a batch.

    Args:
        step: of the training, for weights that change; None is after all of it.
        state_shares: share of the samples that see the robot's state when they predict frames, and of those, the share
            that also sees the state at the target frames, to which a trajectory would lead.
        kept: the mean of `count_kept` over all batches of an optimization step; the losses of these batches then
            average to that of one batch of all their samples. None is for a batch by itself.

    Returns:
        Scalars: `frame_loss`, `token_accuracy` with frames; `action_loss` and its parts with actions, and `motion_loss`
        of a model that says its motion, `contact_loss` and `contact_accuracy` of one that says contacts, `keypose_loss`
        of one that says keyposes.
    """
    if model.training and model.config.code_permutation:
        permuted = permute_codes(batch["codes"], model.config.codebook_size, model.config.code_permutation)
        batch = {**batch, "codes": permuted}
    context, h = read_context(model, batch)
    if model.training and model.config.camera_dropout:
        context = drop_cameras(context, model.config.camera_dropout)
    targets = None
    if with_frames:
        context = _show_states(model, context, batch, h, state_shares)
        packed, valid = read_targets(model, batch, context, h)
        if model.config.decoding != "raster":
            everything = valid[..., None].expand_as(packed)
            where = random_mask(packed, valid) if model.config.decoding == "masked" else everything
            targets = Targets(packed=packed, masked=where)
        else:
            targets = Targets(packed=packed, masked=None)
            packed, valid = next_positions(packed, valid)
            where = valid[..., None].expand_as(packed)
        if model.training and model.config.scored_share < 1:
            scored = torch.rand(valid.shape, device=valid.device) < model.config.scored_share
            where = where & scored[..., None]
    chunk = read_chunk(model, batch, h) if with_actions else None
    condition, features = model.predict(context, targets, with_actions=with_actions, chunk=chunk and chunk[0])
    losses: dict[str, Tensor] = {}
    if features is not None:
        losses |= code_loss(model, features, packed, where, model.reference(context))
        if kept is not None:
            share = _count_targets(model, batch) / kept[0].clamp(min=1)
            losses["frame_loss"] = losses["frame_loss"] * share.to(losses["frame_loss"].dtype)
    if condition is not None and chunk is not None:
        columns = {} if kept is None else {"kept": kept[1:]}
        if model.motion is None:
            losses |= model.head.loss(condition, *chunk, step=step, **columns)
        else:
            now = batch["states"][:, h - 1].float()
            physical = model.config.slots.encode(now, batch["actions"].float())
            ahead = model.config.slots.encode(now, batch["actions_ahead"].float()) if "actions_ahead" in batch else None
            motion, read = model.motion.of_chunk(physical, batch["action_mask"], ahead), query_of(condition)
            losses["motion_loss"] = model.motion.loss(read, motion)
            losses |= model.head.loss(model.motion.beside(read, motion), *chunk, step=step, **columns)
            losses["action_loss"] = losses["action_loss"] + _MOTION_WEIGHT * losses["motion_loss"]
        if model.contact is not None and "contact_part" in batch:
            losses |= model.contact.loss(query_of(condition), batch["contact_part"], batch["contact_steps"])
            losses["action_loss"] = losses["action_loss"] + _CONTACT_WEIGHT * losses["contact_loss"]
        if model.keypose is not None and "keypose" in batch:
            losses |= model.keypose.loss(query_of(condition), *read_keypose(model, batch, h))
            losses["action_loss"] = losses["action_loss"] + _KEYPOSE_WEIGHT * losses["keypose_loss"]
    return losses


def _show_states(model: WorldModel, context: Context, batch: Batch, h: int, shares: tuple[float, float]) -> Context:
    """Hide the states of some samples, in training; show those of the target frames to some of the others."""
    if not model.training or context.states is None:
        return context
    states = _kept_states(batch)
    assert states is not None
    b, g = len(context.states), model.config.num_targets
    seen = torch.rand(b, 1, device=model.device) < shares[0]
    ahead = (seen & (torch.rand(b, 1, device=model.device) < shares[1])).expand(b, g)
    seen = seen.expand(context.states.shape[:2])
    for name in ("state_mask", "frame_mask"):
        if batch.get(name) is not None:
            ahead = ahead & batch[name][:, h : h + g]
    return replace(
        context,
        state_mask=seen if context.state_mask is None else context.state_mask & seen,
        target_states=states[:, h : h + g],
        target_state_mask=ahead,
    )


@torch.no_grad()
def evaluation_metrics(model: WorldModel, batch: Batch, *, with_actions: bool, with_frames: bool) -> dict[str, Tensor]:
    """Return metrics a person can read, deterministic in evaluation mode.

    Returns:
        Frames (predicted from nothing but the context, teacher-forced when decoding is "raster"): `frame_loss` [nats],
        `token_accuracy`, `copy_accuracy` (of repeating the current frame), `changed_accuracy` (on codes that change).
        Actions: `action_l1_mm` [mm] of positions, `action_l1_deg` [deg] of turns, `action_l1_*` of other kinds of
        signals, `gripper_accuracy`. Contacts: `contact_loss` [nats], `contact_accuracy`. Keyposes: `keypose_loss`.
    """
    metrics: dict[str, Tensor] = {}
    context, h = read_context(model, batch)
    if with_frames:
        metrics |= _frame_metrics(model, batch, context, h)
    if with_actions:
        chunk = model.act(context)
        metrics |= _chunk_metrics(model, chunk, batch, h)
        if model.contact is not None and "contact_part" in batch:
            condition, _ = model.predict(context, None, with_actions=True)
            assert condition is not None
            metrics |= model.contact.loss(query_of(condition), batch["contact_part"], batch["contact_steps"])
        if model.keypose is not None and "keypose" in batch:
            condition, _ = model.predict(context, None, with_actions=True)
            assert condition is not None
            metrics |= model.keypose.loss(query_of(condition), *read_keypose(model, batch, h))
    return metrics


def _chunk_metrics(model: WorldModel, chunk: Float[Tensor, "b k c"], batch: Batch, h: int) -> dict[str, Tensor]:
    """Compare chunks signal by signal; positions in [mm], turns in [deg], others in their own units."""
    slots, robots = model.config.slots, batch.get("embodiment")
    target = slots.encode(batch["states"][:, h - 1].float(), batch["actions"].float(), robots)
    found: dict[str, list[Tensor]] = {}
    for number, rows in slots.groups(robots):
        keep = batch["action_mask"][rows]
        got, wanted = slots.own(chunk[rows], number)[keep], slots.own(target[rows], number)[keep]
        error, right = (got - wanted).abs(), ((got > 0.5) == (wanted > 0.5)).float()
        for part in slots.codings[number].parts:
            if part.rule == "binary":
                found.setdefault("gripper_accuracy", []).append(right[:, part.chunk].mean())
            elif part.signal.kind == "position":
                found.setdefault("action_l1_mm", []).append(1e3 * error[:, part.chunk].mean())
            elif part.rule in ("turn", "step_turn"):
                found.setdefault("action_l1_deg", []).append(torch.rad2deg(error[:, part.chunk].mean()))
            else:
                found.setdefault(f"action_l1_{part.signal.kind}", []).append(error[:, part.chunk].mean())
    return {name: torch.stack(values).mean() for name, values in found.items()}


def _frame_metrics(model: WorldModel, batch: Batch, context: Context, h: int) -> dict[str, Tensor]:
    packed, valid = read_targets(model, batch, context, h)
    now = model.reference(context).expand_as(packed)
    if model.config.decoding != "raster":
        everything = valid[..., None].expand_as(packed)
        _, features = model.predict(context, Targets(packed=packed, masked=everything), with_actions=False)
        wanted, where = packed, valid
    else:
        _, features = model.predict(context, Targets(packed=packed, masked=None), with_actions=False)
        wanted, where = next_positions(packed, valid)
    assert features is not None
    logits, target = model.frame_logits(features[where], now[where]), wanted[where]
    right, changed = logits.argmax(-1) == target, now[where] != target
    return {
        "frame_loss": F.cross_entropy(logits.flatten(0, 1).float(), target.flatten()),
        "token_accuracy": right.float().mean(),
        "copy_accuracy": 1 - changed.float().mean(),
        "changed_accuracy": (right & changed).sum() / changed.sum().clamp(min=1),
    }
