"""Diffusion: a network learns to find the noise in a chunk, and takes it out in a few deterministic steps (DDIM)."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..errors import ConfigError
from .denoising import DenoisingConfig, DenoisingHead, make_denoiser
from .head import ChunkShape, Condition, TrunkShape
from .inpainting import Running, guide
from .networks import expect_network


@dataclass(frozen=True, kw_only=True)
class DiffusionConfig(DenoisingConfig):
    """Sizes and options of `DiffusionHead`.

    train_steps: noise levels of training; steps: of an answer.
    prediction: what the network gives: the noise ("epsilon") or the clean chunk ("sample").
    clip: bound of the clean chunk while it is denoised, in standard deviations.

    Source: DDPM, arXiv 2006.11239; cosine schedule, arXiv 2102.09672; DDIM, arXiv 2010.02502; Diffusion Policy, arXiv
    2303.04137 (100 levels; it predicts the noise, which learns more slowly here).
    """

    kind: Literal["diffusion"] = "diffusion"
    train_steps: int = 100
    steps: int = 10
    prediction: Literal["epsilon", "sample"] = "sample"
    clip: float = 5.0

    def __post_init__(self) -> None:
        expect_network(self.kind, self.network, "mlp", "blocks", "unet", "expert", "dit", "fast")
        if not 1 <= self.steps <= self.train_steps or self.draws < 1:
            raise ConfigError(
                f"DiffusionConfig: expected 1 to {self.train_steps} steps and at least one draw, got {self.steps} and "
                f"{self.draws}; change the values."
            )


def cosine_schedule(levels: int) -> Float[Tensor, " t"]:
    """Return the share of signal variance at each noise level.

    Source: Nichol and Dhariwal, arXiv 2102.09672, equation 17, with the betas bounded by 0.999.
    """
    at = torch.arange(levels + 1, dtype=torch.float64) / levels
    curve = torch.cos((at + 0.008) / 1.008 * math.pi / 2).square()
    betas = (1 - curve[1:] / curve[:-1]).clamp(max=0.999)
    return torch.cumprod(1 - betas, dim=0).float()


class DiffusionHead(DenoisingHead):
    """Trajectory head by denoising diffusion (Diffusion Policy)."""

    def __init__(self, config: DiffusionConfig, *, trunk: TrunkShape, shape: ChunkShape) -> None:
        network = make_denoiser(config, trunk=trunk, shape=shape)
        super().__init__(config, shape, network)
        self.config = config
        self.denoiser = network
        self.register_buffer("signal", cosine_schedule(config.train_steps), persistent=False)

    signal: Tensor

    def loss(
        self,
        condition: Condition,
        target: Float[Tensor, "b k c"],
        mask: Bool[Tensor, "b k c"],
        *,
        step: int | None = None,
        kept: Float[Tensor, " c"] | None = None,
    ) -> dict[str, Tensor]:
        """Return the squared error of the prediction as `action_loss`, and that of continuous columns."""
        condition, chunk, mask = self.repeat(condition, target, mask)
        noise = torch.randn_like(chunk)
        level = torch.randint(self.config.train_steps, (len(chunk),), device=chunk.device)
        signal = self.signal[level][:, None, None]
        predicted = self._predict(signal.sqrt() * chunk + (1 - signal).sqrt() * noise, condition, level)
        wanted = noise if self.config.prediction == "epsilon" else chunk
        error = (predicted.to(chunk.dtype) - wanted).square()
        return self.losses(error, mask, kept)

    def _predict(self, chunk: Tensor, condition: Condition, level: Tensor) -> Tensor:
        out: Tensor = self.denoiser(chunk, condition, (level + 1).to(chunk.dtype) / self.config.train_steps)
        return out

    def _clean(self, chunk: Tensor, condition: Condition, level: int) -> Float[Tensor, "b k c"]:
        """Predict the clean chunk of a noisy one."""
        return self._clean_by(
            self._predict(chunk, condition, torch.full((len(chunk),), level, device=chunk.device)), chunk, level
        )

    def _clean_by(self, out: Tensor, chunk: Tensor, level: int) -> Float[Tensor, "b k c"]:
        """Return the clean chunk of a noisy one by what the network makes of it."""
        c, signal, out = self.config, self.signal[level], out.to(chunk.dtype)
        clean = (chunk - (1 - signal).sqrt() * out) / signal.sqrt() if c.prediction == "epsilon" else out
        return clean.clamp(-c.clip, c.clip)

    def sample(
        self,
        condition: Condition,
        noise: Float[Tensor, "b z"] | None = None,
        present: Bool[Tensor, "b c"] | None = None,
        *,
        running: Running | None = None,
    ) -> Float[Tensor, "b k c"]:
        """Denoise a chunk by DDIM without fresh noise, one that continues the running one where there is one."""
        c = self.config
        chunk = self.expect_noise(condition, noise).unflatten(-1, (self.shape.length, self.shape.width))
        levels = torch.linspace(c.train_steps - 1, 0, c.steps).round().long().tolist()
        denoisers = self.denoiser.at_times(condition, [(level + 1) / c.train_steps for level in levels])
        clean = chunk
        for i, level in enumerate(levels):
            signal = self.signal[level]
            if running is None:
                clean = self._clean_by(denoisers[i](chunk), chunk, level)
            else:
                scales = {"signal": float(signal.sqrt()), "noise": float((1 - signal).sqrt())}
                kept = replace(running, chunk=self.signed(running.chunk))
                clean = guide(partial(self._clean, level=level), chunk, condition, kept, present, **scales)
            if present is not None:  # as in training
                clean = clean * present[:, None]
            rest = (chunk - signal.sqrt() * clean) / (1 - signal).sqrt()
            if i + 1 < len(levels):
                after = self.signal[levels[i + 1]]
                chunk = after.sqrt() * clean + (1 - after).sqrt() * rest
        return self.unsigned(clean)
