"""The conditional variational auto-encoder that turns the action query's output into a chunk of tool poses.

Training: an encoder reads the true chunk and gives a posterior over a latent z; the decoder rebuilds the
chunk from z and the condition. Acting: z = 0, one deterministic chunk. Poses are normalised numbers here; the
model owns the statistics.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from ..errors import ConfigError
from ..layers import Block
from .losses import PoseNorm, gripper_loss, kl_to_standard_normal, pose_loss
from .trajectory import POSE_DIM


@dataclass(frozen=True, kw_only=True)
class CVAEConfig:
    """Sizes and loss weights of `ActionCVAE`.

    latent_dim: size of z; 0 leaves the encoder out (plain regression).
    kind: "blocks" for transformer blocks over the chunk, "mlp" for the cheap head.
    pose_weight, gripper_weight, kl_weight: factors of the three losses.
    """

    latent_dim: int = 32
    kind: Literal["blocks", "mlp"] = "blocks"
    width: int = 128
    heads: int = 8
    encoder_blocks: int = 4
    decoder_blocks: int = 4
    pose_norm: PoseNorm = "smooth_l1"
    pose_weight: float = 1.0
    gripper_weight: float = 0.01
    kl_weight: float = 1.0

    def __post_init__(self) -> None:
        if self.kind == "blocks" and self.width % self.heads:
            raise ConfigError(
                f"CVAEConfig.width: expected a multiple of heads ({self.heads}), got {self.width}; change one of them."
            )


def reference() -> CVAEConfig:
    """Return the published head of the same team: latent 32, 4+4 blocks of 128, weights 1 / 0.01 / 1.

    Source: GR-MG, arXiv 2408.14368, and its released configuration.
    """
    return CVAEConfig()


def small() -> CVAEConfig:
    """Return the head for two CPU cores: latent 16, two-layer perceptrons, L1 on the pose."""
    return CVAEConfig(
        latent_dim=16,
        kind="mlp",
        width=256,
        pose_norm="l1",
        pose_weight=1.0,
        gripper_weight=0.3,
        kl_weight=0.3,
    )


class _ChunkBlocks(nn.Module):
    """Transformer blocks over `num_tokens` tokens with learned positions."""

    def __init__(self, config: CVAEConfig, num_tokens: int, num_blocks: int) -> None:
        super().__init__()
        self.positions = nn.Parameter(0.02 * torch.randn(num_tokens, config.width))
        self.blocks = nn.ModuleList(Block(config.width, config.heads) for _ in range(num_blocks))
        self.norm = nn.LayerNorm(config.width)

    def forward(self, x: Float[Tensor, "b n w"]) -> Float[Tensor, "b n w"]:
        """Transform every token."""
        x = x + self.positions
        for block in self.blocks:
            x = block(x)
        return self.norm(x)


class BlockEncoder(nn.Module):
    """Read `[CLS]` and k chunk rows; give mean and log-variance of z."""

    def __init__(self, config: CVAEConfig, chunk_length: int) -> None:
        super().__init__()
        self.row = nn.Linear(POSE_DIM + 1, config.width)
        self.cls = nn.Parameter(0.02 * torch.randn(config.width))
        self.trunk = _ChunkBlocks(config, chunk_length + 1, config.encoder_blocks)
        self.out = nn.Linear(config.width, 2 * config.latent_dim)

    def forward(self, chunk: Float[Tensor, "b k 7"], condition: Float[Tensor, "b d"]) -> Float[Tensor, "b two_z"]:
        """Return mean and log-variance, side by side."""
        cls = self.cls.expand(len(chunk), 1, -1)
        return self.out(self.trunk(torch.cat((cls, self.row(chunk)), dim=1))[:, 0])


class BlockDecoder(nn.Module):
    """Rebuild k chunk rows from z, the condition and k learned queries."""

    def __init__(self, config: CVAEConfig, chunk_length: int, condition_dim: int) -> None:
        super().__init__()
        self.latent = nn.Linear(config.latent_dim, config.width) if config.latent_dim else None
        self.condition = nn.Linear(condition_dim, config.width)
        self.queries = nn.Parameter(0.02 * torch.randn(chunk_length, config.width))
        num_tokens = chunk_length + 1 + bool(config.latent_dim)
        self.trunk = _ChunkBlocks(config, num_tokens, config.decoder_blocks)
        self.out = nn.Linear(config.width, POSE_DIM + 1)
        self.chunk_length = chunk_length

    def forward(self, z: Float[Tensor, "b z"], condition: Float[Tensor, "b d"]) -> Float[Tensor, "b k 7"]:
        """Return normalised poses and gripper logits."""
        tokens = [self.condition(condition)[:, None], self.queries.expand(len(condition), -1, -1)]
        if self.latent is not None:
            tokens.insert(0, self.latent(z)[:, None])
        return self.out(self.trunk(torch.cat(tokens, dim=1))[:, -self.chunk_length :])


class MlpEncoder(nn.Module):
    """Read the flattened chunk beside the condition; give mean and log-variance of z."""

    def __init__(self, config: CVAEConfig, chunk_length: int, condition_dim: int) -> None:
        super().__init__()
        size = chunk_length * (POSE_DIM + 1) + condition_dim
        self.net = nn.Sequential(
            nn.Linear(size, config.width), nn.GELU(), nn.Linear(config.width, 2 * config.latent_dim)
        )

    def forward(self, chunk: Float[Tensor, "b k 7"], condition: Float[Tensor, "b d"]) -> Float[Tensor, "b two_z"]:
        """Return mean and log-variance, side by side."""
        return self.net(torch.cat((chunk.flatten(1), condition), dim=-1))


class MlpDecoder(nn.Module):
    """Rebuild the flattened chunk from z and the condition."""

    def __init__(self, config: CVAEConfig, chunk_length: int, condition_dim: int) -> None:
        super().__init__()
        self.chunk_length = chunk_length
        self.net = nn.Sequential(
            nn.Linear(config.latent_dim + condition_dim, config.width),
            nn.GELU(),
            nn.Linear(config.width, config.width),
            nn.GELU(),
            nn.Linear(config.width, chunk_length * (POSE_DIM + 1)),
        )

    def forward(self, z: Float[Tensor, "b z"], condition: Float[Tensor, "b d"]) -> Float[Tensor, "b k 7"]:
        """Return normalised poses and gripper logits."""
        return self.net(torch.cat((z, condition), dim=-1)).unflatten(-1, (self.chunk_length, POSE_DIM + 1))


class ActionCVAE(nn.Module):
    """Trajectory head: `loss` for training, `sample` for acting.

    condition_dim: width of the action query's output.
    """

    def __init__(self, config: CVAEConfig, *, condition_dim: int, chunk_length: int) -> None:
        super().__init__()
        self.config = config
        self.encoder: nn.Module | None = None
        self.decoder: nn.Module
        if config.kind == "mlp":
            if config.latent_dim:
                self.encoder = MlpEncoder(config, chunk_length, condition_dim)
            self.decoder = MlpDecoder(config, chunk_length, condition_dim)
        else:
            if config.latent_dim:
                self.encoder = BlockEncoder(config, chunk_length)
            self.decoder = BlockDecoder(config, chunk_length, condition_dim)

    def loss(
        self, condition: Float[Tensor, "b d"], target: Float[Tensor, "b k 7"], mask: Bool[Tensor, "b k"]
    ) -> dict[str, Tensor]:
        """Encode the true chunk, sample z, rebuild, compare.

        Args:
            condition: output of the action query.
            target: normalised poses and the gripper command in {0, 1}.
            mask: True = keep this step.

        Returns:
            Scalars `action_loss` (weighted sum), `pose_loss`, `gripper_loss` [nats], `kl` [nats].
        """
        kept = target * mask[..., None]
        if self.encoder is None:
            z, kl = condition.new_zeros(len(condition), 0), condition.new_zeros(())
        else:
            mean, log_variance = self.encoder(kept, condition).chunk(2, dim=-1)
            log_variance = log_variance.clamp(-10, 10)
            z = mean + torch.randn_like(mean) * (0.5 * log_variance).exp()
            kl = kl_to_standard_normal(mean, log_variance)
        rows = self.decoder(z, condition)
        pose = pose_loss(rows[..., :POSE_DIM], target[..., :POSE_DIM], mask, self.config.pose_norm)
        gripper = gripper_loss(rows[..., POSE_DIM], target[..., POSE_DIM], mask)
        c = self.config
        total = c.pose_weight * pose + c.gripper_weight * gripper + c.kl_weight * kl
        return {"action_loss": total, "pose_loss": pose, "gripper_loss": gripper, "kl": kl}

    def sample(
        self, condition: Float[Tensor, "b d"], latent: Float[Tensor, "b z"] | None = None
    ) -> Float[Tensor, "b k 7"]:
        """Decode a chunk; `latent` defaults to zero, the mean of the prior.

        Returns:
            Normalised poses and, last, the probability that the gripper is open.
        """
        if latent is None:
            latent = condition.new_zeros(len(condition), self.config.latent_dim)
        rows = self.decoder(latent, condition)
        return torch.cat((rows[..., :POSE_DIM], rows[..., POSE_DIM:].sigmoid()), dim=-1)
