"""Predicted frames a second: raster decoding beside HuggingFace's `generate`, both with caches, and masked decoding."""

from __future__ import annotations

from collections.abc import Callable

import torch

from ...gr_model.config import Decoding, ModelConfig
from ...gr_model.context import Context
from ...gr_model.errors import EnvironmentMissing
from ...gr_model.generation import imagine_frames
from ...gr_model.objectives import read_context
from ...gr_model.sampling import SamplingConfig
from ...gr_model.world_model import WorldModel
from .measure import Setting, Table, Work, measure
from .models import CPU_SIDE, Size, comparable, layout_of, make_gpt2, make_world_model, num_predicted
from .training import random_batch

RASTER, MASKED, HUGGINGFACE = "ours, raster", "ours, masked", "HuggingFace generate"


def time_generation(size: Size, setting: Setting, batch_size: int = 1) -> tuple[Table, list[str]]:
    """Time the prediction of one frame (all cameras) after the same context, the likeliest code each time.

    HuggingFace's GPT-2 makes as many tokens as the frame has codes, with its growing cache of keys and values.
    """
    config = _config(size, "raster", setting)
    layout, m = layout_of(config), num_predicted(config)
    num_context = layout.length - layout.frame_length
    sampling = SamplingConfig()
    notes = [
        f"generation: {num_context} positions of context, {m} codes a frame, batch {batch_size}, masked decoding in "
        f"{sampling.passes} passes"
    ]
    if config.packed_grids != comparable(size, "raster", num_context=1).packed_grids:
        notes[0] += f"; grids of codes are cut to {CPU_SIDE} x {CPU_SIDE} on a CPU"
    works = {}
    decodings: dict[str, Decoding] = {RASTER: "raster", MASKED: "masked"}
    for name, decoding in decodings.items():
        model = make_world_model(_config(size, decoding, setting), setting.device, batch_size).eval()
        context, _ = read_context(model, random_batch(model.config, batch_size, setting.device))
        works[name] = Work(step=_our_frame(model, context, sampling, setting))
    try:
        works[HUGGINGFACE] = Work(step=_gpt2_frame(size, setting, batch_size))
    except EnvironmentMissing as missing:
        notes.append(str(missing))
    reference = HUGGINGFACE if HUGGINGFACE in works else RASTER
    return measure(works, "frames/s", reference, setting), notes


def _config(size: Size, decoding: Decoding, setting: Setting) -> ModelConfig:
    side = CPU_SIDE if setting.device.type == "cpu" else None
    return comparable(size, decoding, num_context=1, most_side=side)


def _our_frame(model: WorldModel, context: Context, sampling: SamplingConfig, setting: Setting) -> Callable[[], int]:
    def frame() -> int:
        with torch.inference_mode(), setting.autocast():
            imagine_frames(model, context, sampling=sampling)
        return len(context.text)

    return frame


def _gpt2_frame(size: Size, setting: Setting, batch_size: int) -> Callable[[], int]:
    config = _config(size, "raster", setting)
    layout, m = layout_of(config), num_predicted(config)
    start = layout.length - layout.frame_length + 1
    gpt2 = make_gpt2(config, layout.length).to(setting.device).eval()
    tokens = torch.randint(config.codebook_size, (batch_size, start), device=setting.device)
    present = torch.ones_like(tokens)

    def frame() -> int:
        with torch.inference_mode(), setting.autocast():
            made = gpt2.generate(
                tokens, attention_mask=present, max_new_tokens=m, min_new_tokens=m, do_sample=False, use_cache=True
            )
        assert made.shape == (batch_size, start + m)
        return batch_size

    return frame
