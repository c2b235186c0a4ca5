"""Imagine future frames: decode masked codes in parallel or one by one, over a sliding context.

The keys and values of the context are kept while a frame is decoded, those of the text for the whole rollout. Those of
the frame are written behind them, and over those of the step before. No key of a context frame outlives its frame step,
as times count back from the newest frame (see `rollouts`). So the context goes through the trunk again for each
prediction, in one forward pass. The result is that of no cache at all.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ...errors import ConfigError
from ...layers import KeysValues, additive, with_wide_weights_by_column
from .context import Context
from .rollouts import beside_without_text, evaluating, own_states, slide
from .sampling import SampleNoise, SamplingConfig, guide, gumbel, sample_codes
from .sequence import SequenceLayout, unpack_codes

if TYPE_CHECKING:
    from .world_model import WorldModel


_FEW_ROWS = 2
"""Rows of a step of raster decoding up to which a CPU is faster with wide weights by column."""


class FrameDecoder:
    """Scores target frames after one context, whose keys and values it holds.

    text_past: keys and values of the text, good for any context of the same texts.
    present: positions of a frame that belong to cameras that a sample has, bool `[b frame]`.
    used: indices of those that some sample has; only these go through the trunk.
    """

    def __init__(self, model: WorldModel, context: Context, text_past: Sequence[KeysValues] | None = None) -> None:
        self.model = model
        self.layout: SequenceLayout = model.layout(context, with_frames=True, with_action=False)
        constants = model.constants(self.layout)
        x, keep = model.embed_context(self.layout, context)
        self.num_context = n = x.shape[1]
        self.present = model.camera_keep(context, len(x))
        self.used = self.present.any(0).nonzero()[:, 0]
        keep = torch.cat((keep, self.present.repeat(1, self.layout.num_targets)), dim=1)
        mask = constants["mask"] & keep[:, None, None, :]
        positions = model.embed.positions(self.layout, constants["attributes"])
        rows = n + self._order()
        self.past = model.gpt.make_past(x, n + len(rows))
        self._remember_context(x + positions[:n], mask[:, :, :n, :n], text_past)
        columns = torch.cat((torch.arange(n, device=x.device), rows))
        self._mask = additive(mask[:, :, rows][..., columns], x)
        reference = model.reference(context)
        self.reference = reference.expand(-1, self.layout.num_targets, -1, -1)
        self._known = model.embed.references(reference) + positions[n:].unflatten(0, self.reference.shape[1:3])

    def _order(self) -> Int[Tensor, " used"]:
        """Count the used positions of all target frames in the order in which they go through the trunk."""
        frames = self.layout.frame_length * torch.arange(self.layout.num_targets, device=self.used.device)
        by_frame = frames[:, None] + self.used
        return (by_frame if self.model.config.decoding != "raster" else by_frame.t()).flatten()

    def _remember_context(
        self, x: Float[Tensor, "b n d"], mask: Bool[Tensor, "b 1 n n"], text_past: Sequence[KeysValues] | None
    ) -> None:
        """Fill in the keys and values of the context; those of the text are computed unless they are given."""
        text, nothing = self.layout.text_length, self.used[:0]
        if text_past is None:
            self.model.gpt.extend(x, mask, self.past, nothing)
            self.text_past: Sequence[KeysValues] = [past[:, :, :, :text].clone() for past in self.past]
            return
        self.text_past = text_past
        for past, known in zip(self.past, text_past, strict=True):
            past[:, :, :, :text] = known
        self.model.gpt.extend(x[:, text:], mask[:, :, text:], self.past, nothing)

    def score(
        self,
        packed: Int[Tensor, "b g frame pp"],
        masked: Bool[Tensor, "b g frame pp"],
        wanted: Bool[Tensor, "b g frame"],
    ) -> Float[Tensor, "wanted pp v"]:
        """Pass all target frames through the trunk at once; score the wanted positions, in the order of `nonzero`.

        Wanted may be positions of cameras that some sample has.
        """
        used = self.used
        wanted = wanted[:, :, used].flatten(1)
        read = wanted.any(0).nonzero()[:, 0]
        x = self.model.embed.frames(packed[:, :, used], masked[:, :, used]) + self._known[:, :, used]
        y = self.model.gpt.extend(x.flatten(1, 2), self._mask, self.past, read)
        wanted = wanted[:, read]
        reference = self.reference[:, :, used].flatten(1, 2)[:, read]
        return self.model.frame_logits(y[wanted], reference[wanted])

    def next_positions(self, packed: Int[Tensor, "b g w pp"], start: int) -> Float[Tensor, "b g w pp v"]:
        """Append w used positions of every target frame, in raster order, and score the position after each.

        `start` counts the used positions that are there already; later ones are written over. Positions of cameras
        that no sample has are left out: nobody sees them.
        """
        g, w = packed.shape[1:3]
        some = self.used[start : start + w]
        rows = slice(g * start, g * (start + w))
        mask = self._mask[:, :, rows, : self.num_context + rows.stop]
        x = self.model.embed.frames(packed) + self._known[:, :, some]
        y = self.model.gpt.extend(x.transpose(1, 2).flatten(1, 2), mask, self.past)
        y = y.unflatten(1, (w, g)).transpose(1, 2)
        return self.model.frame_logits(y, self.reference[:, :, some])

    def token_positions(self) -> Bool[Tensor, " frame"]:
        """Return which positions of a frame are image tokens, not begin tokens."""
        parts = [token for rows, columns in self.layout.grids for token in (False, *[True] * (rows * columns))]
        return torch.tensor(parts, device=self.present.device)


def _decode_masked(
    decoder: FrameDecoder, packed: Int[Tensor, "b g frame pp"], sampling: SamplingConfig, noise: SampleNoise
) -> Int[Tensor, "b g frame pp"]:
    """Fill all codes of the cameras that a sample has in `passes` decoding steps, the most confident first.

    Source: MaskGIT, arXiv 2202.04200, section 3.2; the share left hidden after step s of S is `cos(pi s / 2 S)`.
    """
    hidden = (decoder.token_positions() & decoder.present[: len(packed)])[:, None, :, None].expand(packed.shape)
    num_codes = hidden.flatten(2).sum(-1, keepdim=True).double()
    most_codes = int(decoder.token_positions().sum()) * packed.shape[-1]
    copies = 2 if sampling.guided else 1
    for step in range(1, sampling.passes + 1):
        at = hidden.any(-1)
        logits = decoder.score(*(torch.cat([t] * copies) for t in (packed, hidden, at)))
        logits = guide(logits.float(), sampling.guidance)
        seeds = _seeds(noise, packed, sampling)
        codes = sample_codes(logits, sampling, None if seeds is None else seeds[at])
        packed = torch.where(hidden, packed.index_put((at,), codes), packed)
        confidence = logits.new_zeros(packed.shape)
        confidence[at] = logits.log_softmax(-1).gather(-1, codes[..., None])[..., 0]
        if sampling.choice_temperature:
            shaken = gumbel(noise.seeds(packed.shape[1:], packed.device), 1)[..., 0]
            confidence = confidence + sampling.choice_temperature * (1 - step / sampling.passes) * shaken
        share = math.cos(0.5 * math.pi * step / sampling.passes)
        if most_codes * share < 1:  # not those of this batch: a sample uses as many for any batch size
            break
        rank = confidence.masked_fill(~hidden, torch.inf).flatten(2).argsort(-1).argsort(-1)
        hidden = hidden & (rank < (num_codes * share).floor()).view(hidden.shape)
    return packed


def _decode_raster(
    decoder: FrameDecoder,
    packed: Int[Tensor, "b g frame pp"],
    newest: Int[Tensor, "b 1 frame pp"],
    sampling: SamplingConfig,
    noise: SampleNoise,
) -> Int[Tensor, "b g frame pp"]:
    """Fill position after position; each camera starts at its begin token, cameras that no sample has are skipped.

    A decoding step takes drafts of the next codes along: those of the newest frame at first, then what the step before
    sampled there. It keeps what it samples up to the first draft that was wrong. As each code is sampled with noise of
    its own, the result is that of one position after the other, up to rounding.

    Source: speculative decoding (arXiv 2211.17192), drafts by Jacobi iteration (arXiv 2305.10427).
    """
    used, present = decoder.used, decoder.present[: len(packed)]
    is_token = decoder.token_positions()[used]
    free = ~is_token | ~present[:, used]  # nothing is sampled there
    seeds = _seeds(noise, packed, sampling)
    codes = torch.where(free[:, None, :, None], packed[:, :, used], newest[:, :, used])
    copies = 2 if sampling.guided else 1
    longest = max(1, sampling.draft_rows // (copies * len(packed) * packed.shape[1]))
    start, width = 0, longest
    while start < len(used) - 1:
        width = min(width, longest, len(used) - 1 - start)
        there = slice(start + 1, start + 1 + width)
        here = codes[:, :, start : start + width]
        logits = decoder.next_positions(here if copies == 1 else here.repeat(copies, 1, 1, 1), start)
        own = None if seeds is None else seeds[:, :, used[there]]
        sampled = sample_codes(guide(logits.float(), sampling.guidance), sampling, own)
        sampled = torch.where(free[:, None, there, None], codes[:, :, there], sampled)
        right = (sampled == codes[:, :, there])[:, :, :-1].transpose(0, 2).flatten(1).all(1)
        codes[:, :, there] = sampled
        kept = 1 + int(right.cumprod(0).sum()) if width > 1 else 1
        start, width = start + kept, 2 * kept
    return packed.index_copy(2, used, codes)


def _seeds(
    noise: SampleNoise, packed: Int[Tensor, "b g frame pp"], sampling: SamplingConfig
) -> Int[Tensor, "b g frame pp"] | None:
    """Sample a seed for every code, so that the codes of a camera do not depend on which others there are."""
    return noise.seeds(packed.shape[1:], packed.device) if sampling.temperature else None


def _decode(
    decoder: FrameDecoder, context: Context, sampling: SamplingConfig, noise: SampleNoise
) -> dict[str, Int[Tensor, "b g n"]]:
    """Predict the target frames; cameras that are switched off in a sample repeat their newest codes there."""
    model, g = decoder.model, decoder.layout.num_targets
    newest = model.embed.arrange({name: codes[:, -1:] for name, codes in context.codes.items()})
    empty = torch.full_like(newest, model.embed.null_code).repeat(1, g, 1, 1)
    if model.config.decoding != "raster":
        sampling = sampling if model.config.decoding == "masked" else replace(sampling, passes=1)
        packed = _decode_masked(decoder, empty, sampling, noise)
    else:
        packed = _decode_raster(decoder, empty, newest, sampling, noise)
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
    follow: Callable[[Tensor], None] | None = None,
) -> Iterator[dict[str, Int[Tensor, "b n"]]]:
    """Yield predicted frames as they are made: each joins the context, and the oldest leaves where it is full.

    Args:
        model: the world model.
        context: real frames to start from, at most `max_context`.
        num_frames: frames to predict; None continues for as long as frames are taken.
        sampling: how codes are sampled; the likeliest by default.
        frame_step: control steps from frame to frame, for a model that acts and a context with robot states: frames
            are then predicted for the states that the model's own trajectory leads to. With 0, or where the chunk ends
            before the last target frame, they are predicted without.
        seeds: one for each sample, to sample different futures of equal starts; `sampling.seed` for all by default.
        follow: is called with the states `[b g s]` that the model's own trajectory leads to, before each prediction.

    Returns:
        For each frame, camera -> codes. The weights are those of the moment when the first frame was asked for.

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
    return _stream(model, context, num_frames, sampling, frame_step, SampleNoise(seeds), follow)


def _suited(model: WorldModel, sampling: SamplingConfig, num_samples: int) -> WorldModel:
    """Return the model with its weights as they lie best for steps of raster decoding with few rows on a CPU."""
    rows = num_samples * model.config.num_targets * (2 if sampling.guided else 1)
    few = model.config.decoding == "raster" and rows <= _FEW_ROWS and sampling.draft_rows < 2 * rows
    cast = torch.is_autocast_enabled("cpu")  # it keeps its casts of trainable weights alone
    return with_wide_weights_by_column(model) if few and model.device.type == "cpu" and not cast else model


@torch.no_grad()
def _stream(
    model: WorldModel,
    context: Context,
    num_frames: int | None,
    sampling: SamplingConfig,
    frame_step: int,
    noise: SampleNoise,
    follow: Callable[[Tensor], None] | None,
) -> Iterator[dict[str, Tensor]]:
    decoding_model = text_past = None
    made = 0
    while True:
        with evaluating(model):
            if decoding_model is None:
                decoding_model = _suited(model, sampling, len(context.text))
            moved = own_states(model, context, frame_step)
            context = context if moved is None else replace(context, target_states=moved)
            if follow is not None and moved is not None:
                follow(moved)
            seen = beside_without_text(context) if sampling.guided else context
            decoder = FrameDecoder(decoding_model, seen, text_past)
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
    follow: Callable[[Tensor], None] | None = None,
) -> dict[str, Int[Tensor, "b f n"]]:
    """Collect the frames of `stream_frames`, which explains the arguments: camera -> codes.

    Raises:
        ConfigError: see `stream_frames`.
        ShapeError: a context that does not fit the model.
    """
    frames = list(
        stream_frames(
            model, context, num_frames=num_frames, sampling=sampling, frame_step=frame_step, seeds=seeds,
            follow=follow,
        )
    )  # fmt: skip
    return {name: torch.stack([frame[name] for frame in frames], dim=1) for name in frames[0]}
