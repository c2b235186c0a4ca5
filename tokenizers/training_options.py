"""What can be chosen about the training of a VQGAN: the terms of the loss and the optimization."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from ..errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """Weights of the terms.

    Args:
        l1: weight of the absolute difference of pixels.
        l2: weight of the squared difference of pixels.
        gradient: weight of multi-scale differences of neighboring pixels.
        detail: how much more a pixel counts that stands out from its surroundings (see `detail_weights`); this
            keeps objects of a few pixels.
        codebook: weight of the quantizer's own loss.
        adversarial: weight of the critic; 0 for none.
        adversarial_start: step from which on the critic counts.
        critic_channels: channels of the critic's first layer.
        critic_layers: layers of the critic.
        perceptual: weight of the VGG16 distance, for which `vgg_file` is needed; 0 for none.
        vgg_file: weights of VGG16, a local file.
        heads_file: weights of LPIPS's linear layers, a local file; none weighs all channels alike.
    """

    l1: float = 1.0
    l2: float = 1.0
    gradient: float = 0.5
    detail: float = 2.0
    codebook: float = 1.0
    adversarial: float = 0.0
    adversarial_start: int = 2000
    critic_channels: int = 32
    critic_layers: int = 2
    perceptual: float = 0.0
    vgg_file: Path | None = None
    heads_file: Path | None = None

    def __post_init__(self) -> None:
        for name in ("l1", "l2", "gradient", "detail", "codebook", "adversarial", "adversarial_start", "perceptual"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise ConfigError(f"LossConfig.{name}: expected a number >= 0, got {value}; 0 leaves the term out.")
        if self.critic_channels < 1 or self.critic_layers < 1:
            raise ConfigError(
                "LossConfig: expected critic_channels and critic_layers >= 1, got "
                f"{self.critic_channels} and {self.critic_layers}; adversarial 0 leaves the critic out."
            )


@dataclass(frozen=True, kw_only=True)
class VQGANTrainingConfig:
    """How a VQGAN is trained.

    Args:
        learning_rate: peak; it rises over `warmup` steps and falls along a cosine.
        warmup: steps over which the learning rate rises.
        weight_decay: of AdamW.
        clip_norm: greatest norm of the gradient.
        accumulate: parts in which a step's images go through the network; more parts need less memory for the
            same step.
        quantize_start: step at which the quantizer is put between encoder and decoder, its codebook placed by
            k-means on the latents of one batch; at most a quarter of the run.
        codebook_decay: decay of the codebook's moving averages; 0 learns the codebook by gradient.
        revive_until: fraction of the steps after which dead codes are left alone.
        weight_average: decay of the moving average of all weights that is released; 0 releases the last weights.
        precision: of encoder and decoder; "auto" takes bfloat16 where the machine computes it faster.
        losses: weights of the terms.
    """

    learning_rate: float = 3e-3
    warmup: int = 50
    weight_decay: float = 1e-4
    clip_norm: float = 1.0
    accumulate: int = 1
    quantize_start: int = 50
    codebook_decay: float = 0.98
    revive_until: float = 0.8
    weight_average: float = 0.0
    precision: Literal["auto", "32", "bf16"] = "auto"
    losses: LossConfig = field(default_factory=LossConfig)

    def __post_init__(self) -> None:
        if not (math.isfinite(self.learning_rate) and self.learning_rate > 0):
            raise ConfigError(
                f"VQGANTrainingConfig.learning_rate: expected a positive number, got {self.learning_rate}; try 3e-3."
            )
        for name in ("codebook_decay", "weight_average"):
            decay = getattr(self, name)
            if not 0 <= decay < 1:
                raise ConfigError(
                    f"VQGANTrainingConfig.{name}: expected a decay in [0, 1), got {decay}; 0 turns it off."
                )
        if self.accumulate < 1 or self.warmup < 0 or self.quantize_start < 0:
            raise ConfigError(
                "VQGANTrainingConfig: expected accumulate >= 1, warmup >= 0 and quantize_start >= 0, got "
                f"{self.accumulate}, {self.warmup} and {self.quantize_start}; change the values."
            )


def f16_recipe(batch_size: int) -> VQGANTrainingConfig:
    """Return the optimization for the networks of the published f16 checkpoints.

    The rate per image is the published one; the critic is off, because its start depends on the length of the run.

    Source: `model.base_learning_rate` of the model.yaml of `vqgan_imagenet_f16_1024`, which taming multiplies by the
    images a step.
    """
    return VQGANTrainingConfig(learning_rate=4.5e-6 * batch_size, weight_decay=0.0)
