"""Plain regression: one chunk for each condition, the average of all motions that fit it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from .head import ChunkShape, Condition, TrajectoryHead
from .losses import PoseNorm, chunk_losses
from .networks import Network, expect_network, make_decoder


@dataclass(frozen=True, kw_only=True)
class RegressionConfig:
    """Sizes and loss weights of `RegressionHead`.

    network, width, blocks, heads: of the decoder; blocks and heads only of "blocks".
    pose_norm: how continuous columns are compared.
    pose_weight, gripper_weight: factors of the losses of continuous and of binary columns.
    """

    kind: Literal["regression"] = "regression"
    network: Network = "blocks"
    width: int = 128
    blocks: int = 4
    heads: int = 8
    pose_norm: PoseNorm = "smooth_l1"
    pose_weight: float = 1.0
    gripper_weight: float = 0.01

    def __post_init__(self) -> None:
        expect_network(self.kind, self.network, "mlp", "blocks")


class RegressionHead(TrajectoryHead):
    """Trajectory head without a latent (GR-1)."""

    def __init__(self, config: RegressionConfig, *, condition_dim: int, shape: ChunkShape) -> None:
        super().__init__(shape)
        self.config = config
        self.num_products = shape.length + 1 if config.network == "blocks" else 1
        self.decoder = make_decoder(
            config.network,
            latent_dim=0,
            condition_dim=condition_dim,
            shape=shape,
            width=config.width,
            heads=config.heads,
            num_blocks=config.blocks,
        )

    def loss(
        self,
        condition: Condition,
        target: Float[Tensor, "b k c"],
        mask: Bool[Tensor, "b k c"],
        *,
        step: int | None = None,
        kept: Float[Tensor, " c"] | None = None,
    ) -> dict[str, Tensor]:
        """Return `action_loss` (weighted sum), `continuous_loss` and `binary_loss` [nats]."""
        c = self.config
        rows = self.decoder(None, condition)
        continuous, binary = chunk_losses(rows, target, mask, self.binary, c.pose_norm, kept)
        total = c.pose_weight * continuous + c.gripper_weight * binary
        return {"action_loss": total, "continuous_loss": continuous, "binary_loss": binary}

    def sample(
        self,
        condition: Condition,
        noise: Float[Tensor, "b z"] | None = None,
        present: Bool[Tensor, "b c"] | None = None,
    ) -> Float[Tensor, "b k c"]:
        """Decode the condition."""
        rows = self.decoder(None, condition)
        return torch.where(self.binary, rows.sigmoid(), rows)
