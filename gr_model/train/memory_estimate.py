"""What training will need on each device, before it starts."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch

from ..model.gpt import count_parameters
from ..model.world_model import WorldModel
from .lora import frozen_bytes
from .optimizer import muon_matrices
from .throughput import step_cost

_GIB = 2**30


@dataclass(frozen=True, kw_only=True)
class MemoryEstimate:
    """Bytes on each device: weights, gradients, optimizer states, weight average, activations."""

    weights: float
    gradients: float
    optimizer: float
    average: float
    activations: float

    @property
    def total(self) -> float:
        """Sum all [byte]."""
        return self.weights + self.gradients + self.optimizer + self.average + self.activations

    def describe(self) -> str:
        """Return it in one line [GiB]."""
        parts = {
            "weights": self.weights,
            "gradients": self.gradients,
            "optimizer": self.optimizer,
            "average": self.average,
            "activations": self.activations,
        }
        listed = ", ".join(f"{name} {size / _GIB:.2f}" for name, size in parts.items())
        return f"memory on each device: about {self.total / _GIB:.2f} GiB ({listed})"

    def warning(self, available: float) -> str | None:
        """Return what to do where the estimate exceeds the device's memory `available` [byte]."""
        if self.total <= available:
            return None
        return (
            f"about {self.total / _GIB:.1f} GiB are needed and the device has {available / _GIB:.1f}: use a smaller "
            "--batch-size with --accumulate, --compute.gradient-checkpointing true, or --strategy fsdp on more devices."
        )


def estimate_memory(
    model: WorldModel,
    *,
    batch_size: int,
    text_length: int,
    with_actions: bool,
    weight_average: bool,
    bfloat16: bool,
    fused_attention: bool,
    shards: int = 1,
) -> MemoryEstimate:
    """Estimate the peak of a training step.

    Weights, gradients, average and Muon's momentum are float32, AdamW keeps two numbers a weight; FSDP divides all of
    them by `shards`. Frozen weights have nothing else. Mixed precision adds a
    bfloat16 copy of the weights. A block keeps 17 numbers for each position and width, and its score matrices twice and
    a mask where attention is not fused (2.5 numbers a score); checkpointing keeps one number for each position and
    width, and one block. The scored codes keep logits and their gradient.

    Source: Korthikanti et al. 2022, arXiv 2205.05198, equation 1 (34 and 5 bytes of 16-bit numbers).
    """
    config = model.config
    total = count_parameters(model)
    matrices = sum(p.numel() for p in muon_matrices(model))
    number = 2 if bfloat16 else 4
    cost = step_cost(model, text_length=text_length, with_frames=True, with_actions=with_actions)
    n, d = cost.tokens, config.width
    block = 17.0 * n * d + (0.0 if fused_attention else 2.5 * config.heads * n * n)
    if model.gpt.gradient_checkpointing:
        kept = float(config.depth * n * d) + block
    else:
        kept = config.depth * block
    positions = config.num_targets * sum(rows * columns for rows, columns in config.packed_grids)
    logits = 3.0 * config.scored_share * positions * config.codes_per_position * config.codebook_size
    copy = number * total if bfloat16 else 0
    return MemoryEstimate(
        weights=4 * total / shards + frozen_bytes(model) + (copy if shards == 1 else copy / config.depth),
        gradients=4 * total / shards,
        optimizer=4 * (2 * total - matrices) / shards,
        average=4 * total / shards if weight_average else 0,
        activations=batch_size * (number * kept + 4 * logits),
    )


def device_memory(device: torch.device) -> float:
    """Return the memory of a device, or of this machine for a CPU [byte]."""
    if device.type == "cuda":
        return float(torch.cuda.get_device_properties(device).total_memory)
    return float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
