"""The conditional variational auto-encoder of GR-2: a latent selects which of several motions a chunk is.

Training: an encoder reads the true chunk and gives a posterior over a latent z; the decoder rebuilds the chunk from z
and the condition. Acting: z is sampled from the prior, N(0, I) as published or learned from the condition, or is its
mean. With a KL weight so large that the posterior collapses onto the prior, z means nothing and a chunk is the average
of all motions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from ..errors import ConfigError
from .detr import DetrDecoder, StyleEncoder
from .head import ChunkShape, Condition, TrajectoryHead, query_of
from .losses import PoseNorm, chunk_losses, kl_between_normals, kl_to_standard_normal
from .networks import ChunkBlocks, FilmMLP, Network, expect_network, make_decoder

Prior = Literal["standard", "gaussian", "flow"]
"""N(0, I); a normal distribution that follows from the condition; any distribution that does, by flow matching."""

COLLAPSED_KL = 0.01
"""KL [nats] below which the latent carries nothing."""

_FLOW_STEPS = 8
"""Euler steps from noise to a latent of the learned flow prior."""


@dataclass(frozen=True, kw_only=True)
class CVAEConfig:
    """Sizes and loss weights of `CVAEHead`.

    latent_dim: size of z.
    network: "blocks" for transformer blocks over the chunk, "mlp" for the cheap head, "detr" for ACT's, which has one
        decoder layer and reads all that is seen; film: whether that reads the instruction, too.
    prior: of z when acting; a learned one is trained beside the auto-encoder.
    sample_latent: whether an answer samples z from the prior; otherwise it takes the prior's mean.
    pose_norm: how continuous columns are compared.
    pose_weight, gripper_weight, kl_weight: factors of the losses of continuous columns, of binary ones, and of the KL.
    kl_warmup: steps over which the KL weight rises from 0.
    free_bits: nats of each latent number that cost nothing.
    """

    kind: Literal["cvae"] = "cvae"
    latent_dim: int = 32
    network: Network = "blocks"
    width: int = 128
    heads: int = 8
    encoder_blocks: int = 4
    decoder_blocks: int = 4
    film: bool = False
    prior: Prior = "standard"
    sample_latent: bool = True
    pose_norm: PoseNorm = "smooth_l1"
    pose_weight: float = 1.0
    gripper_weight: float = 0.01
    kl_weight: float = 1.0
    kl_warmup: int = 0
    free_bits: float = 0.0

    def __post_init__(self) -> None:
        expect_network(self.kind, self.network, "mlp", "blocks", "detr")
        if self.latent_dim < 1:
            raise ConfigError(
                f"CVAEConfig.latent_dim: expected 1 or more, got {self.latent_dim}; choose the head `regression` for "
                "none."
            )
        if self.network == "detr" and self.prior != "standard":
            raise ConfigError(
                f"CVAEConfig.prior: expected standard for the network detr, got {self.prior}; choose another network."
            )
        if self.film and self.network != "detr":
            raise ConfigError(f"CVAEConfig.film: expected the network detr, got {self.network}; leave film out.")
        if self.network in ("blocks", "detr") and self.width % self.heads:
            raise ConfigError(
                f"CVAEConfig.width: expected a multiple of heads ({self.heads}), got {self.width}; change one of them."
            )


class BlockEncoder(nn.Module):
    """Read `[CLS]` and k chunk rows; give mean and log-variance of z."""

    def __init__(self, config: CVAEConfig, shape: ChunkShape) -> None:
        super().__init__()
        self.row = nn.Linear(shape.width, config.width)
        self.cls = nn.Parameter(0.02 * torch.randn(config.width))
        self.trunk = ChunkBlocks(
            width=config.width, heads=config.heads, num_tokens=shape.length + 1, num_blocks=config.encoder_blocks
        )
        self.out = nn.Linear(config.width, 2 * config.latent_dim)

    def forward(self, chunk: Float[Tensor, "b k c"], condition: Condition) -> Float[Tensor, "b two_z"]:
        """Return mean and log-variance, side by side."""
        cls = self.cls.expand(len(chunk), 1, -1)
        out: Tensor = self.out(self.trunk(torch.cat((cls, self.row(chunk)), dim=1))[:, 0])
        return out


class MlpEncoder(nn.Module):
    """Read the flattened chunk beside the condition; give mean and log-variance of z."""

    def __init__(self, config: CVAEConfig, shape: ChunkShape, condition_dim: int) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(shape.size + condition_dim, config.width),
            nn.GELU(),
            nn.Linear(config.width, 2 * config.latent_dim),
        )

    def forward(self, chunk: Float[Tensor, "b k c"], condition: Condition) -> Float[Tensor, "b two_z"]:
        """Return mean and log-variance, side by side."""
        out: Tensor = self.net(torch.cat((chunk.flatten(1), query_of(condition)), dim=-1))
        return out


class CVAEHead(TrajectoryHead):
    """Trajectory head of GR-2 and ACT."""

    def __init__(self, config: CVAEConfig, *, condition_dim: int, shape: ChunkShape) -> None:
        super().__init__(shape)
        self.config = config
        self.num_products = 1 if config.network == "mlp" else shape.length + 1
        sizes: dict[str, Any] = {"latent_dim": config.latent_dim, "condition_dim": condition_dim, "shape": shape}
        sizes |= {"width": config.width, "heads": config.heads}
        self.encoder: nn.Module
        self.decoder: nn.Module
        if config.network == "detr":
            self.reads = "context"
            self.encoder = StyleEncoder(num_blocks=config.encoder_blocks, **sizes)
            self.decoder = DetrDecoder(num_blocks=config.encoder_blocks, film=config.film, **sizes)
        else:
            small = config.network == "mlp"
            self.encoder = MlpEncoder(config, shape, condition_dim) if small else BlockEncoder(config, shape)
            self.decoder = make_decoder(config.network, num_blocks=config.decoder_blocks, **sizes)
        self.prior: nn.Module | None = None
        if config.prior == "gaussian":
            self.prior = nn.Sequential(
                nn.Linear(condition_dim, config.width), nn.GELU(), nn.Linear(config.width, 2 * config.latent_dim)
            )
        elif config.prior == "flow":
            self.prior = FilmMLP(size=config.latent_dim, condition_dim=condition_dim, width=config.width, num_blocks=3)
        self.noise_dim = config.latent_dim if config.sample_latent else 0

    def loss(
        self,
        condition: Condition,
        target: Float[Tensor, "b k c"],
        mask: Bool[Tensor, "b k c"],
        *,
        step: int | None = None,
        kept: Float[Tensor, " c"] | None = None,
    ) -> dict[str, Tensor]:
        """Encode the true chunk, sample z, rebuild, compare.

        Returns:
            Scalars `action_loss` (weighted sum), `continuous_loss`, `binary_loss` [nats], `kl` [nats] and, with a
            flow as the prior, `prior_loss`.
        """
        c = self.config
        mean, log_variance = self.encoder(target.masked_fill(~mask, 0), condition).chunk(2, dim=-1)
        log_variance = log_variance.clamp(-10, 10)
        z = mean + torch.randn_like(mean) * (0.5 * log_variance).exp()
        if c.prior == "gaussian":
            kl = kl_between_normals(mean, log_variance, *self._gaussian(query_of(condition)))
        else:
            kl = kl_to_standard_normal(mean, log_variance)
        rows = self.decoder(z, condition)
        continuous, binary = chunk_losses(rows, target, mask, self.binary, c.pose_norm, kept)
        costly = kl.mean(0).clamp(min=c.free_bits).sum() if c.free_bits else kl.sum(-1).mean()
        weight = c.kl_weight * (min(1.0, (step + 1) / c.kl_warmup) if c.kl_warmup and step is not None else 1.0)
        losses = {"continuous_loss": continuous, "binary_loss": binary, "kl": kl.sum(-1).mean()}
        total = c.pose_weight * continuous + c.gripper_weight * binary + weight * costly
        if c.prior == "flow":
            losses["prior_loss"] = self._flow_loss(query_of(condition), z.detach())
            total = total + losses["prior_loss"]
        return {"action_loss": total, **losses}

    def warning(self, losses: Mapping[str, float]) -> str:
        """Name the collapsed posterior."""
        if losses.get("kl", math.inf) >= COLLAPSED_KL:
            return ""
        return (
            f"cvae head: posterior collapse: the KL is {losses['kl']:.2g} nats, expected {COLLAPSED_KL} or more; the "
            "latent means nothing and a chunk is the mean of all motions: lower --head.kl-weight, or set "
            "--head.free-bits."
        )

    def _gaussian(self, condition: Tensor) -> tuple[Tensor, Tensor]:
        assert self.prior is not None
        mean, log_variance = self.prior(condition).chunk(2, dim=-1)
        return mean, log_variance.clamp(-10, 10)

    def _flow_loss(self, condition: Tensor, z: Float[Tensor, "b z"]) -> Float[Tensor, ""]:
        """Teach the prior to carry noise to latents; the trunk is not moved by it."""
        assert self.prior is not None
        noise, time = torch.randn_like(z), torch.rand(len(z), device=z.device, dtype=z.dtype)
        at = time[:, None]
        velocity = self.prior(at * z + (1 - at) * noise, condition.detach(), time)
        return (velocity - (z - noise)).square().mean()

    def latent(self, condition: Condition, noise: Float[Tensor, "b z"]) -> Float[Tensor, "b z"]:
        """Turn standard normal numbers into a sample from the prior; zeros into its mean (flow: a typical latent)."""
        if self.prior is None:
            return noise
        if self.config.prior == "gaussian":
            mean, log_variance = self._gaussian(query_of(condition))
            return mean + noise * (0.5 * log_variance).exp()
        z = noise
        for i in range(_FLOW_STEPS):
            time = noise.new_full((len(noise),), i / _FLOW_STEPS)
            z = z + self.prior(z, query_of(condition), time) / _FLOW_STEPS
        return z

    def sample(
        self,
        condition: Condition,
        noise: Float[Tensor, "b z"] | None = None,
        present: Bool[Tensor, "b c"] | None = None,
    ) -> Float[Tensor, "b k c"]:
        """Decode a latent of the prior."""
        noise = self.expect_noise(condition, noise if self.noise_dim else None, self.config.latent_dim)
        rows = self.decoder(self.latent(condition, noise), condition)
        return torch.where(self.binary, rows.sigmoid(), rows)
