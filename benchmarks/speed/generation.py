"""Predicted frames a second: raster decoding beside HuggingFace's `generate`, both with caches, and masked decoding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import cycle

import torch

from ...errors import ConfigError, EnvironmentMissing
from ...gr_model.act.loading import Assembled, assemble
from ...gr_model.model.config import Decoding, ModelConfig
from ...gr_model.model.context import Context
from ...gr_model.model.generation import FrameDecoder, imagine_frames
from ...gr_model.model.objectives import read_context
from ...gr_model.model.sampling import SamplingConfig
from ...gr_model.model.sequence import SequenceLayout
from ...gr_model.model.world_model import WorldModel
from ..video.clips import choose_clips, frames_between, open_store
from ..video.predictions import part_of, set_captions
from .measure import Setting, Table, Work, measure
from .models import CPU_SIDE, Size, comparable, layout_of, make_gpt2, make_world_model, num_predicted
from .training import random_batch

RASTER, MASKED, HUGGINGFACE = "ours, raster", "ours, masked", "HuggingFace generate"
DRAFTED = "ours, raster with drafts"

_SINGLY = SamplingConfig(draft_rows=1)
"""One position after the other: what drafts save depends on the codes, and those of random weights mean nothing."""

_SAMPLED = SamplingConfig(temperature=0.8)
"""How `gr2 imagine` samples. The likeliest codes of a model that has learned little are the drafts themselves."""

_CLIPS = 16
"""Clips in whose frames a trained model is timed, one after the other."""


def time_generation(size: Size, setting: Setting, batch_size: int = 1) -> tuple[Table, list[str]]:
    """Time the prediction of one frame (all cameras) after the same context, the likeliest code each time.

    HuggingFace's GPT-2 makes as many tokens as the frame has codes, with its growing cache of keys and values.
    """
    config = _config(size, "raster", setting)
    layout, m = layout_of(config), num_predicted(config)
    notes = [_about(layout, config, m, batch_size)]
    if config.packed_grids != comparable(size, "raster", num_context=1).packed_grids:
        notes[0] += f"; grids of codes are cut to {CPU_SIDE} x {CPU_SIDE} on a CPU"
    works = {}
    for name, decoding in {RASTER: "raster", MASKED: "masked"}.items():
        model = make_world_model(_config(size, decoding, setting), setting.device, batch_size).eval()  # type: ignore[arg-type]
        works[name] = _our_frames(model, [_random_context(model, batch_size)], _SINGLY, setting)
    try:
        works[HUGGINGFACE] = _gpt2_frames(layout, config, m, setting, batch_size)
    except EnvironmentMissing as missing:
        notes.append(str(missing))
    return _measured(works, setting), notes


def time_trained(policy: str, tokens: Sequence[str], setting: Setting) -> tuple[Table, list[str]]:
    """Time frames that a trained raster model samples after real contexts, with and without drafts.

    HuggingFace's GPT-2 has the same trunk and samples a token for each position of the cameras that the clips have;
    masked decoding takes the likeliest codes of random weights, which change nothing there.

    Raises:
        CheckpointError: the release cannot be used.
        ConfigError: the release decodes masked.
        DataError: the shards cannot be used or hold too few clips.
    """
    parts = assemble(policy).to(str(setting.device))
    model = parts.release.model.eval()
    config = model.config
    if config.decoding != "raster":
        raise ConfigError(
            f"--policy: expected a model with raster decoding, {policy} decodes {config.decoding}; train one with "
            "`gr2 pretrain --model.decoding raster`."
        )
    contexts = _real_contexts(parts, tokens)
    layout = model.layout(contexts[0], with_frames=True, with_action=False)
    masked = make_world_model(replace(config, decoding="masked"), setting.device, 1).eval()
    works = {
        RASTER: _our_frames(model, contexts, replace(_SAMPLED, draft_rows=1), setting),
        DRAFTED: _our_frames(model, contexts, _SAMPLED, setting),
        MASKED: _our_frames(masked, contexts, SamplingConfig(), setting),
    }
    with torch.no_grad():
        decoder = FrameDecoder(model, contexts[0])
    m = int(decoder.token_positions()[decoder.used].sum())
    same, steps = _compare_drafts(model, contexts, setting)
    notes = [
        f"{_about(layout, config, m, 1)}; raster frames sampled at temperature {_SAMPLED.temperature} after contexts "
        f"of {len(contexts)} clips; with drafts {steps:.1f} steps a frame and {100 * same:.2f} % of the codes of one "
        "position after the other"
    ]
    try:
        works[HUGGINGFACE] = _gpt2_frames(layout, config, m, setting, 1, _SAMPLED.temperature)
    except EnvironmentMissing as missing:
        notes.append(str(missing))
    return _measured(works, setting), notes


def _real_contexts(parts: Assembled, tokens: Sequence[str]) -> list[Context]:
    """Read the contexts of some clips."""
    model = parts.release.model
    store = open_store(tokens, parts.release)
    clips = choose_clips(
        store, num_clips=_CLIPS, context=model.config.max_context, num_frames=1,
        frame_step=frames_between(store, parts.release), held_out=0, seed=0,
    )  # fmt: skip
    set_captions(parts, clips)
    rows = [slice(i, i + 1) for i in range(len(clips))]
    return [read_context(model, part_of(model, clips, row, start=0, num_frames=clips.context))[0] for row in rows]


def _about(layout: SequenceLayout, config: ModelConfig, m: int, batch_size: int) -> str:
    return (
        f"generation: {layout.length - layout.frame_length} positions of context, {m} to predict, "
        f"{config.codes_per_position} codes each, batch {batch_size}, masked decoding in {SamplingConfig().passes} "
        "steps"
    )


def _measured(works: dict[str, Work], setting: Setting) -> Table:
    return measure(works, "frames/s", HUGGINGFACE if HUGGINGFACE in works else RASTER, setting)


def _config(size: Size, decoding: Decoding, setting: Setting) -> ModelConfig:
    side = CPU_SIDE if setting.device.type == "cpu" else None
    return comparable(size, decoding, num_context=1, most_side=side)


def _random_context(model: WorldModel, batch_size: int) -> Context:
    return read_context(model, random_batch(model.config, batch_size, model.device))[0]


def _our_frames(model: WorldModel, contexts: Sequence[Context], sampling: SamplingConfig, setting: Setting) -> Work:
    """Predict the next frame of one context after the other."""
    following = cycle(contexts)

    def frame() -> int:
        context = next(following)
        with torch.inference_mode(), setting.autocast():
            imagine_frames(model, context, sampling=sampling)
        return len(context.text)

    return Work(step=frame)


def _compare_drafts(model: WorldModel, contexts: Sequence[Context], setting: Setting) -> tuple[float, float]:
    """Return the share of equal codes with and without drafts, and the decoding steps a frame with them."""
    steps, equal = 0, []

    def count(*_: object) -> None:
        nonlocal steps
        steps += 1

    for context in contexts:
        with torch.inference_mode(), setting.autocast():
            singly = imagine_frames(model, context, sampling=replace(_SAMPLED, draft_rows=1))
            handle = model.gpt.norm.register_forward_hook(count)
            drafted = imagine_frames(model, context, sampling=_SAMPLED)
            handle.remove()
        steps -= 1  # over the context
        equal += [float((singly[name] == drafted[name]).float().mean()) for name in singly]
    return sum(equal) / len(equal), steps / len(contexts)


def _gpt2_frames(
    layout: SequenceLayout, config: ModelConfig, m: int, setting: Setting, batch_size: int, temperature: float = 0.0
) -> Work:
    """Generate m tokens after a prompt as long as the layout's context."""
    start = layout.length - layout.frame_length + 1
    gpt2 = make_gpt2(config, layout.length).to(setting.device).eval()
    tokens = torch.randint(1, config.codebook_size, (batch_size, start), device=setting.device)
    present = torch.ones_like(tokens)
    drawn = {"do_sample": True, "temperature": temperature, "top_k": 0} if temperature else {"do_sample": False}

    def frame() -> int:
        with torch.inference_mode(), setting.autocast():
            made = gpt2.generate(
                tokens, attention_mask=present, max_new_tokens=m, min_new_tokens=m, use_cache=True, **drawn
            )
        assert made.shape == (batch_size, start + m)
        return batch_size

    return Work(step=frame)
