"""Imagine future frames: decode masked codes in parallel or one by one, over a sliding context.

The keys and values of the context are kept while a frame is decoded, those of the text for the whole roll-out. No key
of a context frame outlives its frame step: times count back from the newest frame (see `rollouts`), so the context
passes through the trunk anew for each prediction, in one parallel pass, and the result is that of no cache at all.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from .context import Context
from .errors import ConfigError
from .layers import KeysValues
from .rollouts import beside_without_text, evaluating, own_states, slide
from .sampling import SampleNoise, SamplingConfig, draw, guide
from .sequence import SequenceLayout, unpack_codes

if TYPE_CHECKING:
    from .world_model import WorldModel


class FrameDecoder:
    """Scores target frames after one context, whose keys and values it holds.

    text_past: keys and values of the text, good for any context of the same sentences.
    present: positions of a frame that belong to cameras that a sample has, bool `[b frame]`.
    used: indices of those that some sample has.
    """

    def __init__(self, model: WorldModel, context: Context, text_past: list[KeysValues] | None = None) -> None:
        self.model = model
        self.layout: SequenceLayout = model.layout(context, with_frames=True, with_action=False)
        constants = model.constants(self.layout)
        self.reference = model.reference(context)
        x, keep = model.embed_context(self.layout, context)
        self.num_context = n = x.shape[1]
        self.present = model.camera_keep(context, len(x))
        self.used = self.present.any(0).nonzero()[:, 0]
        keep = torch.cat((keep, self.present.repeat(1, self.layout.num_targets)), dim=1)
        self.mask = constants["mask"] & keep[:, None, None, :]
        self.positions = model.embed.positions(self.layout, constants["attributes"])
        x, text = x + self.positions[:n], self.layout.text_length
        if text_past is None:
            _, text_past = model.gpt.extend(x[:, :text], self.mask[:, :, :text, :text])
        self.text_past = text_past
        self.past: list[KeysValues]
        _, self.past = model.gpt.extend(x[:, text:], self.mask[:, :, text:n, :n], text_past)
        self._columns = torch.arange(n, device=x.device)
        self._frames = self.layout.frame_length * torch.arange(self.layout.num_targets, device=x.device)

    def all_positions(
        self, packed: Int[Tensor, "b g frame pp"], masked: Bool[Tensor, "b g frame pp"]
    ) -> Float[Tensor, "b g frame pp v"]:
        """Score every position of the target frames at once; 0 at those of cameras that no sample has."""
        embed, used = self.model.embed, self.used
        rows = self.num_context + (self._frames[:, None] + used).flatten()
        mask = self.mask[:, :, rows][..., torch.cat((self._columns, rows))]
        reference = self.reference[:, :, used]
        x = embed.targets(packed[:, :, used], masked[:, :, used], reference).flatten(1, 2) + self.positions[rows]
        y, _ = self.model.gpt.extend(x, mask, self.past)
        y = y.unflatten(1, (packed.shape[1], len(used)))
        scores = self.model.frame_logits(y, reference.expand_as(packed[:, :, used]))
        if len(used) == packed.shape[2]:
            return scores
        return scores.new_zeros(*packed.shape, scores.shape[-1]).index_copy(2, used, scores)

    def next_position(self, packed: Int[Tensor, "b g pp"], index: int) -> Float[Tensor, "b g pp v"]:
        """Append position `index` of every target frame, in raster order, and score the position after it.

        Positions of absent cameras may be left out: nobody sees them.
        """
        rows = self.num_context + self._frames + index
        self._columns = torch.cat((self._columns, rows))
        reference = self.reference[:, :, index : index + 1]
        x = self.model.embed.targets(packed[:, :, None], None, reference)[:, :, 0] + self.positions[rows]
        y, self.past = self.model.gpt.extend(x, self.mask[:, :, rows][..., self._columns], self.past)
        return self.model.frame_logits(y, reference[:, :, 0].expand_as(packed))

    def token_positions(self) -> Bool[Tensor, " frame"]:
        """Say which positions of a frame are image tokens, not begin tokens."""
        parts = [token for rows, columns in self.layout.grids for token in (False, *[True] * (rows * columns))]
        return torch.tensor(parts, device=self.present.device)


def _decode_masked(
    decoder: FrameDecoder, packed: Int[Tensor, "b g frame pp"], sampling: SamplingConfig, noise: SampleNoise
) -> Int[Tensor, "b g frame pp"]:
    """Fill all codes of the cameras that a sample has in `passes`, the most confident first.

    Source: MaskGIT, arXiv 2202.04200, section 3.2; the share left hidden after pass s of S is `cos(pi s / 2 S)`.
    """
    hidden = (decoder.token_positions() & decoder.present[: len(packed)])[:, None, :, None].expand(packed.shape)
    num_codes = hidden.flatten(2).sum(-1, keepdim=True).double()
    most_codes = int(decoder.token_positions().sum()) * packed.shape[-1]
    copies = 2 if sampling.guided else 1
    for step in range(1, sampling.passes + 1):
        logits = decoder.all_positions(packed.repeat(copies, 1, 1, 1), hidden.repeat(copies, 1, 1, 1))
        logits = guide(logits.float(), sampling.guidance)
        codes = draw(logits, sampling, _uniform(noise, packed, sampling.temperature))
        packed = torch.where(hidden, codes, packed)
        confidence = logits.log_softmax(-1).gather(-1, codes[..., None])[..., 0]
        shaken = _uniform(noise, packed, sampling.choice_temperature)
        if shaken is not None:
            gumbel = -(-shaken.clamp(min=1e-7).log()).log()
            confidence = confidence + sampling.choice_temperature * (1 - step / sampling.passes) * gumbel
        share = math.cos(0.5 * math.pi * step / sampling.passes)
        if most_codes * share < 1:  # not those of this batch: a sample draws as many numbers in every company
            break
        rank = confidence.masked_fill(~hidden, torch.inf).flatten(2).argsort(-1).argsort(-1)
        hidden = hidden & (rank < (num_codes * share).floor()).view(hidden.shape)
    return packed


def _decode_raster(
    decoder: FrameDecoder, packed: Int[Tensor, "b g frame pp"], sampling: SamplingConfig, noise: SampleNoise
) -> Int[Tensor, "b g frame pp"]:
    """Fill position after position; each camera starts at its begin token, cameras that no sample has are skipped."""
    is_token = decoder.token_positions().tolist()
    used = decoder.used.tolist()
    uniform = _uniform(noise, packed, sampling.temperature)
    packed = packed.clone()
    copies = 2 if sampling.guided else 1
    scored = {index - 1 for index in used if is_token[index]}
    for index in used[:-1]:
        logits = decoder.next_position(packed[:, :, index].repeat(copies, 1, 1), index)
        if index in scored:
            numbers = None if uniform is None else uniform[:, :, index + 1]
            packed[:, :, index + 1] = draw(guide(logits.float(), sampling.guidance), sampling, numbers)
    return packed


def _uniform(noise: SampleNoise, packed: Int[Tensor, "b g frame pp"], strength: float) -> Tensor | None:
    """Draw a number for every code, so that those of a camera do not depend on which others there are."""
    return noise.uniform(packed.shape[1:], packed.device) if strength else None


def _decode(
    decoder: FrameDecoder, context: Context, sampling: SamplingConfig, noise: SampleNoise
) -> dict[str, Int[Tensor, "b g n"]]:
    """Predict the target frames; cameras that are switched off in a sample repeat their newest codes there."""
    model, g = decoder.model, decoder.layout.num_targets
    newest = model.embed.arrange({name: codes[:, -1:] for name, codes in context.codes.items()})
    empty = torch.full_like(newest, model.embed.null_code).repeat(1, g, 1, 1)
    decode = _decode_masked if model.config.decoding == "masked" else _decode_raster
    packed = decode(decoder, empty, sampling, noise)
    packed = torch.where(decoder.present[: len(packed), None, :, None], packed, newest)
    frames: dict[str, Tensor] = {}
    start = 0
    for camera, (rows, columns) in zip(model.config.cameras, model.config.packed_grids, strict=True):
        stop = start + 1 + rows * columns
        if camera.name in context.codes:
            here = packed[:, :, start + 1 : stop]
            frames[camera.name] = unpack_codes(here, camera.grid, model.config.token_packing)  # type: ignore[arg-type,assignment]
        start = stop
    return frames


def stream_frames(
    model: WorldModel,
    context: Context,
    *,
    num_frames: int | None = None,
    sampling: SamplingConfig | None = None,
    frame_step: int = 0,
    seeds: Sequence[int] | None = None,
) -> Iterator[dict[str, Int[Tensor, "b n"]]]:
    """Yield predicted frames as they are made: each joins the context, and the oldest leaves where it is full.

    Args:
        model: the world model.
        context: real frames to start from, at most `max_context`.
        num_frames: frames to predict; None goes on for as long as frames are taken.
        sampling: how codes are drawn; the likeliest by default.
        frame_step: control steps from frame to frame, for a model that acts and a context with robot states: frames
            are then predicted for the states that the model's own trajectory leads to. With 0, or where the chunk ends
            before the last target frame, they are predicted without.
        seeds: one for each sample, to draw different futures of equal starts; `sampling.seed` for all by default.

    Returns:
        For each frame, camera -> codes.

    Raises:
        ConfigError: guidance of a model that was trained without text dropout, a number of frames or seeds that does
            not fit.
        ShapeError: (with the first frame) a context that does not fit the model.
    """
    sampling = sampling or SamplingConfig()
    b = len(context.text)
    seeds = [sampling.seed] * b if seeds is None else list(seeds)
    if sampling.guided and model.config.text_dropout == 0:
        raise ConfigError(
            f"SamplingConfig.guidance: expected 1 for a model trained without text dropout, got "
            f"{sampling.guidance}; train with text_dropout > 0 to use guidance."
        )
    if num_frames is not None and num_frames < 1:
        raise ConfigError(f"num_frames: expected at least 1 frame, got {num_frames}; ask for more.")
    if len(seeds) != b:
        raise ConfigError(f"seeds: expected one for each of {b} samples, got {len(seeds)}; pass {b} seeds or none.")
    return _stream(model, context, num_frames, sampling, frame_step, SampleNoise(seeds))


@torch.no_grad()
def _stream(
    model: WorldModel,
    context: Context,
    num_frames: int | None,
    sampling: SamplingConfig,
    frame_step: int,
    noise: SampleNoise,
) -> Iterator[dict[str, Tensor]]:
    text_past = None
    made = 0
    while True:
        with evaluating(model):
            moved = own_states(model, context, frame_step)
            context = context if moved is None else replace(context, target_states=moved)
            seen = beside_without_text(context) if sampling.guided else context
            decoder = FrameDecoder(model, seen, text_past)
            text_past = decoder.text_past
            frames = _decode(decoder, context, sampling, noise)
        context = slide(context, frames, model.config.max_context, moved)
        for index in range(model.config.num_targets):
            yield {name: codes[:, index] for name, codes in frames.items()}
            made += 1
            if made == num_frames:
                return


def imagine_frames(
    model: WorldModel,
    context: Context,
    *,
    num_frames: int = 1,
    sampling: SamplingConfig | None = None,
    frame_step: int = 0,
    seeds: Sequence[int] | None = None,
) -> dict[str, Int[Tensor, "b f n"]]:
    """Collect the frames of `stream_frames`, which explains the arguments: camera -> codes.

    Raises:
        ConfigError: see `stream_frames`.
        ShapeError: a context that does not fit the model.
    """
    frames = list(
        stream_frames(
            model, context, num_frames=num_frames, sampling=sampling, frame_step=frame_step, seeds=seeds
        )
    )  # fmt: skip
    return {name: torch.stack([frame[name] for frame in frames], dim=1) for name in frames[0]}
