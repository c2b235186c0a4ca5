"""How the steps of a training run are taken: losses, learning rates, averaging, precision."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from ...errors import ConfigError
from ...layers import fast_bfloat16

Precision = Literal["auto", "32", "bf16"]


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """Optimization.

    with_actions: train the trajectory head (finetuning) or frames alone (pretraining).
    frame_weight, action_weight: factors of the losses.
    frame_fraction: share of the steps that predict frames when actions are trained, too; frames double the
        sequence.
    learning_rate: peak of AdamW's; Muon's, for the matrices of trunk and denoising head, is `muon_factor` times
        that. Both rise over `warmup` steps and fall along a cosine to `final_rate` times the peak.
    weight_average: decay of the moving average of the weights; 0 evaluates the last weights.
    state_share: share of the samples that see the robot's state when they predict frames; the others learn to
        continue video. target_state_share: of those, the share that also sees the state at the target frames.
    accumulate: batches of one step; each weighs by the codes and steps that it holds, over all processes.
    compile: let torch.compile fuse the trunk's blocks.
    gradient_checkpointing: compute a block's activations again in the backward pass instead of keeping them; None
        leaves it to the model's size.
    """

    with_actions: bool = True
    frame_weight: float = 0.3
    action_weight: float = 1.0
    frame_fraction: float = 1.0
    learning_rate: float = 1e-3
    muon_factor: float = 4.0
    warmup: int = 50
    final_rate: float = 0.01
    weight_decay: float = 0.05
    betas: tuple[float, float] = (0.9, 0.95)
    clip_norm: float = 1.0
    weight_average: float = 0.0
    precision: Precision = "auto"
    accumulate: int = 1
    compile: bool = False
    gradient_checkpointing: bool | None = None
    state_share: float = 0.7
    target_state_share: float = 0.7
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.frame_fraction <= 1 or not 0 <= self.weight_average < 1:
            raise ConfigError(
                "TrainingConfig: expected frame_fraction in [0, 1] and weight_average in [0, 1), got "
                f"{self.frame_fraction} and {self.weight_average}; change the values."
            )
        if self.accumulate < 1:
            raise ConfigError(f"--accumulate {self.accumulate}: expected at least 1 batch a step; change the number.")


def computes_in_bfloat16(precision: Precision) -> bool:
    """Return whether matrix products are computed in bfloat16; "auto" does so where the machine is faster at it."""
    return precision == "bf16" or (precision == "auto" and fast_bfloat16())


def learning_rate_factor(step: int, *, steps: int, warmup: int, final: float) -> float:
    """Return the factor of the peak rate: linear rise, then a cosine down to `final`."""
    if step < warmup:
        return (step + 1) / warmup
    progress = min((step - warmup) / max(steps - warmup, 1), 1.0)
    return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * progress))
