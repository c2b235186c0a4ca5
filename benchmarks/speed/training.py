"""Training steps (forward, backward, AdamW) of our world model beside HuggingFace's GPT-2 and PyTorch's layers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...errors import EnvironmentMissing
from ...gr_model.model.config import ModelConfig
from ...gr_model.model.objectives import training_losses
from .measure import Setting, Table, Work, measure
from .models import (
    CPU_SIDE,
    PlainTransformer,
    Size,
    comparable,
    layout_of,
    make_gpt2,
    make_world_model,
    num_predicted,
    training_flops_per_position,
)

OURS, HUGGINGFACE, PLAIN = "ours", "HuggingFace GPT-2", "torch.nn.TransformerEncoder"

_BATCH_SIZES: dict[str, dict[Size, int]] = {
    "cpu": {"tiny": 16, "S": 1, "B": 1, "L": 1},
    "cuda": {"tiny": 256, "S": 32, "B": 16, "L": 8},
}


def time_training(size: Size, setting: Setting, batch_size: int | None = None) -> tuple[Table, list[str]]:
    """Time training steps; also return remarks about what was compared and what was left out.

    Items are positions of the sequence: text, context and target alike. All predict the codes of one frame,
    code by code, from the same number of positions.
    """
    cuda = setting.device.type == "cuda"
    config = comparable(
        size, "raster", num_context=4 if cuda and size != "tiny" else 1, most_side=None if cuda else CPU_SIDE
    )
    batch_size = batch_size or _BATCH_SIZES["cuda" if cuda else "cpu"][size]
    n, m = layout_of(config).length, num_predicted(config)
    notes = [
        f"training: {config.depth} x {config.width}, {config.heads} heads, {n} positions, {m} predicted, batch "
        f"{batch_size}, {'bfloat16' if setting.bfloat16 else 'float32'}"
    ]
    steps = {OURS: world_model_step(config, setting, batch_size)}
    tokens = torch.randint(config.codebook_size, (batch_size, n), device=setting.device)
    wanted = torch.randint(config.codebook_size, (batch_size, m), device=setting.device)
    try:
        gpt2 = make_gpt2(config, n).to(setting.device).train()
        _compile(gpt2.transformer, setting)
        scores = lambda: gpt2(tokens, use_cache=False, logits_to_keep=m).logits  # noqa: E731
        steps[HUGGINGFACE] = _step(gpt2, lambda: _loss(scores(), wanted), setting)
    except EnvironmentMissing as missing:
        notes.append(str(missing))
    plain = PlainTransformer(config, n).to(setting.device).train()
    _compile(plain.trunk, setting)
    steps[PLAIN] = _step(plain, lambda: _loss(plain(tokens, m), wanted), setting)
    flops = training_flops_per_position(config, n, m)
    works = {name: Work(step=_counted(step, batch_size * n), flops_per_item=flops) for name, step in steps.items()}
    reference = HUGGINGFACE if HUGGINGFACE in works else PLAIN
    return measure(works, "positions/s", reference, setting), notes


def random_batch(config: ModelConfig, batch_size: int, device: torch.device) -> dict[str, Any]:
    """Make a loader's batch of random codes with everything present and no robot."""
    frames = config.max_context + config.num_targets
    return {
        "codes": {
            camera.name: torch.randint(
                config.codebook_size, (batch_size, frames, camera.grid[0] * camera.grid[1]), device=device
            )
            for camera in config.cameras
        },
        "text_id": torch.arange(batch_size, device=device),
    }


def world_model_step(config: ModelConfig, setting: Setting, batch_size: int) -> Callable[[], object]:
    """Return a training step of our model on random codes: forward, backward, optimizer."""
    model = make_world_model(config, setting.device, batch_size).train()
    _compile(model.gpt, setting)
    batch = random_batch(config, batch_size, setting.device)

    def loss() -> Tensor:
        return training_losses(model, batch, with_actions=False, with_frames=True)["frame_loss"]

    return _step(model, loss, setting)


def _loss(scores: Tensor, wanted: Tensor) -> Tensor:
    return F.cross_entropy(scores.flatten(0, 1).float(), wanted.flatten())


def _step(model: nn.Module, loss: Callable[[], Tensor], setting: Setting) -> Callable[[], object]:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

    def step() -> None:
        with setting.autocast():
            value = loss()
        value.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def _counted(step: Callable[[], object], items: int) -> Callable[[], int]:
    def counted() -> int:
        step()
        return items

    return counted


def _compile(module: nn.Module, setting: Setting) -> None:
    if setting.compile_mode is not None:
        module.compile(mode=setting.compile_mode)
