"""Imagine future frames: decode masked codes in parallel or one by one, over a sliding context.

The context passes through the trunk once for each predicted frame; its keys and values are kept while the
frame is decoded.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..cvae_head.trajectory import state_after
from .context import Context
from .errors import ConfigError
from .layers import KeysValues
from .sequence import SequenceLayout, unpack_codes

if TYPE_CHECKING:
    from .world_model import WorldModel


@dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """How codes are drawn.

    steps: passes over a frame in masked decoding.
    temperature: of the codes; 0 takes the likeliest.
    choice_temperature: scale of the Gumbel noise on the confidences that decide which codes are kept; falls
        to 0.
    guidance: 1 for none; above, predictions are pushed away from those without text (needs text dropout in
        training).
    seed: of all draws.
    """

    steps: int = 6
    temperature: float = 0.0
    choice_temperature: float = 0.0
    guidance: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.steps < 1 or min(self.temperature, self.choice_temperature, self.guidance) < 0:
            raise ConfigError(
                f"SamplingConfig: expected steps >= 1 and no negative number, got {self}; change the values."
            )


class FrameDecoder:
    """Scores target frames after one context, whose keys and values it holds."""

    def __init__(self, model: WorldModel, context: Context) -> None:
        self.model = model
        self.layout: SequenceLayout = model.layout(context, with_frames=True, with_action=False)
        constants = model.constants(self.layout)
        self.reference = model.reference(context)
        x, keep = model.embed_context(self.layout, context)
        self.num_context = x.shape[1]
        present = model.camera_keep(context, len(x)).repeat(1, self.layout.num_targets)
        self.mask = constants["mask"] & torch.cat((keep, present), dim=1)[:, None, None, :]
        self.positions = model.embed.positions(self.layout, constants["attributes"])
        n = self.num_context
        self.past: list[KeysValues]
        _, self.past = model.gpt.extend(x + self.positions[:n], self.mask[:, :, :n, :n])

    def all_positions(
        self, packed: Int[Tensor, "b g frame pp"], masked: Bool[Tensor, "b g frame pp"]
    ) -> Float[Tensor, "b g frame pp v"]:
        """Score every position of the target frames at once."""
        x = self.model.embed.targets(packed, masked, self.reference).flatten(1, 2)
        x = x + self.positions[self.num_context :]
        y, _ = self.model.gpt.extend(x, self.mask[:, :, self.num_context :], self.past)
        return self.model.frame_logits(y.unflatten(1, packed.shape[1:3]), self.reference.expand_as(packed))

    def next_position(self, packed: Int[Tensor, "b g pp"], index: int) -> Float[Tensor, "b g pp v"]:
        """Append position `index` of every target frame, in raster order, and score the position after it."""
        g, size, start = self.layout.num_targets, self.layout.frame_length, self.num_context
        frames = start + size * torch.arange(g, device=packed.device)
        rows = frames + index
        seen = (torch.arange(index + 1, device=packed.device)[:, None] + frames).flatten()
        columns = torch.cat((torch.arange(start, device=packed.device), seen))
        reference = self.reference[:, :, index : index + 1]
        x = self.model.embed.targets(packed[:, :, None], None, reference)[:, :, 0] + self.positions[rows]
        y, self.past = self.model.gpt.extend(x, self.mask[:, :, rows][..., columns], self.past)
        return self.model.frame_logits(y, reference[:, :, 0].expand_as(packed))


def _guide(logits: Tensor, guidance: float) -> Tensor:
    """Combine predictions with text (first half of the batch) and without (second half)."""
    if guidance == 1.0:
        return logits
    with_text, without_text = logits.chunk(2)
    return without_text + guidance * (with_text - without_text)


def _draw(
    logits: Float[Tensor, "*n v"], temperature: float, generator: torch.Generator
) -> tuple[Int[Tensor, "*n"], Float[Tensor, "*n"]]:
    """Draw codes; also return their log-probability [nats]."""
    logits = logits.float()
    log_p = logits.log_softmax(-1)
    if temperature == 0:
        codes = log_p.argmax(-1)
    else:
        p = (logits / temperature).softmax(-1)
        codes = torch.multinomial(p.flatten(0, -2), 1, generator=generator).view(p.shape[:-1])
    return codes, log_p.gather(-1, codes[..., None])[..., 0]


def _double(context: Context) -> Context:
    """Append every sample once more, without its text."""
    twice = {name: torch.cat((codes, codes)) for name, codes in context.codes.items()}

    def two(t: Tensor | None) -> Tensor | None:
        return None if t is None else torch.cat((t, t))

    cameras = context.camera_mask
    return Context(
        codes=twice,
        text=torch.cat((context.text, context.text)),
        text_mask=torch.cat((context.text_mask, torch.zeros_like(context.text_mask))),
        states=two(context.states),
        state_mask=two(context.state_mask),
        frame_mask=two(context.frame_mask),
        camera_mask=None if cameras is None else {n: torch.cat((m, m)) for n, m in cameras.items()},
        target_states=two(context.target_states),
        target_state_mask=two(context.target_state_mask),
    )


def _decode_masked(
    decoder: FrameDecoder,
    empty: Int[Tensor, "b g frame pp"],
    sampling: SamplingConfig,
    generator: torch.Generator,
) -> Int[Tensor, "b g frame pp"]:
    """Fill all codes in `steps` passes, the most confident first.

    Source: MaskGIT, arXiv 2202.04200, section 3.2; the share left hidden after step s of S is `cos(pi s / 2
    S)`.
    """
    packed = empty.clone()
    hidden = _token_positions(decoder)[:, None].expand(packed.shape).clone()
    num_codes = int(hidden[0, 0].sum())
    copies = 1 if sampling.guidance == 1.0 else 2
    for step in range(1, sampling.steps + 1):
        logits = decoder.all_positions(packed.repeat(copies, 1, 1, 1), hidden.repeat(copies, 1, 1, 1))
        codes, confidence = _draw(_guide(logits, sampling.guidance), sampling.temperature, generator)
        packed = torch.where(hidden, codes, packed)
        if sampling.choice_temperature:
            noise = -torch.empty_like(confidence).exponential_(generator=generator).log()
            confidence = confidence + sampling.choice_temperature * (1 - step / sampling.steps) * noise
        confidence = confidence.masked_fill(~hidden, torch.inf)
        left = math.floor(num_codes * math.cos(0.5 * math.pi * step / sampling.steps))
        if left == 0:
            break
        rank = confidence.flatten(2).argsort(-1).argsort(-1).view(hidden.shape)
        hidden = hidden & (rank < left)
    return packed


def _decode_raster(
    decoder: FrameDecoder,
    empty: Int[Tensor, "b g frame pp"],
    sampling: SamplingConfig,
    generator: torch.Generator,
) -> Int[Tensor, "b g frame pp"]:
    """Fill position after position; each camera starts at its begin token."""
    is_token = _token_positions(decoder).tolist()
    packed = empty.clone()
    copies = 1 if sampling.guidance == 1.0 else 2
    for index in range(packed.shape[2] - 1):
        logits = decoder.next_position(packed[:, :, index].repeat(copies, 1, 1), index)
        if is_token[index + 1]:
            packed[:, :, index + 1], _ = _draw(_guide(logits, sampling.guidance), sampling.temperature, generator)
    return packed


def _token_positions(decoder: FrameDecoder) -> Bool[Tensor, " frame"]:
    """Say which positions of a frame are image tokens, not begin tokens."""
    parts = [token for rows, columns in decoder.layout.grids for token in (False, *[True] * (rows * columns))]
    return torch.tensor(parts, device=decoder.model.device)


@torch.no_grad()
def next_frames(
    model: WorldModel, context: Context, sampling: SamplingConfig, generator: torch.Generator
) -> dict[str, Int[Tensor, "b g n"]]:
    """Predict the target frames that follow a context, one or more in one go (`num_targets`)."""
    if sampling.guidance != 1.0 and model.config.text_dropout == 0:
        raise ConfigError(
            f"SamplingConfig.guidance: expected 1 for a model trained without text dropout, got "
            f"{sampling.guidance}; "
            "train with text_dropout > 0 to use guidance."
        )
    b = len(context.text)
    decoder = FrameDecoder(model, context if sampling.guidance == 1.0 else _double(context))
    shape = (b, decoder.layout.num_targets, decoder.layout.frame_length, model.config.codes_per_position)
    empty = torch.full(shape, model.embed.null_code, dtype=torch.long, device=model.device)
    decode = _decode_masked if model.config.decoding == "masked" else _decode_raster
    packed = decode(decoder, empty, sampling, generator)
    frames: dict[str, Tensor] = {}
    start = 0
    for camera, (rows, columns) in zip(model.config.cameras, model.config.packed_grids, strict=True):
        stop = start + 1 + rows * columns
        if camera.name in context.codes:
            here = packed[:, :, start + 1 : stop]
            frames[camera.name] = unpack_codes(here, camera.grid, model.config.token_packing)  # type: ignore[arg-type,assignment]
        start = stop
    return frames


@torch.no_grad()
def imagine(
    model: WorldModel,
    context: Context,
    *,
    num_frames: int = 1,
    sampling: SamplingConfig | None = None,
    frame_step: int = 0,
) -> dict[str, Int[Tensor, "b f n"]]:
    """Roll the model out: predicted frames join the context and the oldest leave.

    Args:
        context: real frames to start from.
        num_frames: frames to predict.
        frame_step: control steps from frame to frame, for a model that acts and a context with robot states: frames
            are then predicted for the states that the model's own trajectory leads to. With 0, or where the chunk ends
            before the last target frame, they are predicted without.

    Returns:
        Camera -> codes of the predicted frames.
    """
    sampling = sampling or SamplingConfig()
    generator = torch.Generator(model.device).manual_seed(sampling.seed)
    was_training = model.training
    model.eval()
    parts: dict[str, list[Tensor]] = {name: [] for name in context.codes}
    done = 0
    while done < num_frames:
        moved = _own_states(model, context, frame_step) if frame_step else None
        context = context if moved is None else replace(context, target_states=moved)
        frames = next_frames(model, context, sampling, generator)
        for name, codes in frames.items():
            parts[name].append(codes)
        done += model.config.num_targets
        context = slide(context, frames, model.config.max_context, moved)
    model.train(was_training)
    return {name: torch.cat(codes, dim=1)[:, :num_frames] for name, codes in parts.items()}


def _own_states(model: WorldModel, context: Context, frame_step: int) -> Float[Tensor, "b g 16"] | None:
    """Say where the model's own trajectory takes the robot by each target frame; None where it cannot."""
    g = model.config.num_targets
    if context.states is None or frame_step * g > model.config.chunk_length:
        return None
    state, chunk = context.states[:, -1], model.act(context)
    return torch.stack([state_after(state, chunk, frame_step * (i + 1)) for i in range(g)], dim=1)


def slide(
    context: Context,
    frames: dict[str, Int[Tensor, "b g n"]],
    max_context: int,
    moved: Float[Tensor, "b g 16"] | None = None,
) -> Context:
    """Append frames to a context, with the states `moved` or without, and keep the newest `max_context`."""
    codes = {name: torch.cat((old, frames[name]), dim=1)[:, -max_context:] for name, old in context.codes.items()}
    b, g = next(iter(frames.values())).shape[:2]
    h = next(iter(context.codes.values())).shape[1]
    yes = torch.ones(b, h, dtype=torch.bool, device=context.text.device)
    states = state_mask = None
    if context.states is not None:
        keep = yes if context.state_mask is None else context.state_mask
        known = torch.full_like(yes[:, :1], moved is not None).expand(-1, g)
        state_mask = torch.cat((keep, known), dim=1)[:, -max_context:]
        new = context.states[:, -1:].expand(-1, g, -1) if moved is None else moved
        states = torch.cat((context.states, new), dim=1)[:, -max_context:]
    frame_mask = None
    if context.frame_mask is not None:
        ones = yes[:, :1].expand(-1, g)
        frame_mask = torch.cat((context.frame_mask, ones), dim=1)[:, -max_context:]
    return replace(
        context, codes=codes, states=states, state_mask=state_mask, frame_mask=frame_mask,
        target_states=None, target_state_mask=None,
    )  # fmt: skip
