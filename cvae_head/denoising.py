"""What heads share that turn noise into a chunk step by step: flow matching and diffusion."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from .dit import DiTDenoiser
from .expert import ExpertDenoiser
from .fast import FastDenoiser
from .head import ChunkShape, Condition, Seen, TrajectoryHead, TrunkShape
from .inpainting import Running
from .losses import masked_mean
from .networks import ChunkDenoiser, Denoiser, Network
from .unet import UNetDenoiser


@dataclass(frozen=True, kw_only=True)
class DenoisingConfig:
    """Sizes and options that both kinds have; each states its own beside them.

    network, width, blocks, heads: of the denoising network; heads only of "blocks" and "dit", blocks of them, "mlp" and
        "fast".
    steps: network calls of an answer.
    draws: noises for each sample of a training batch.
    binary_weight: of the squared error of binary columns.
    """

    network: Network = "blocks"
    width: int = 256
    blocks: int = 4
    heads: int = 8
    steps: int
    draws: int = 4
    binary_weight: float = 0.3


class DenoisingHead(TrajectoryHead):
    """A head that denoises its chunk step by step, so that the chunk can be led to continue the running one."""

    def __init__(self, config: DenoisingConfig, shape: ChunkShape, network: Denoiser) -> None:
        super().__init__(shape)
        self.draws, self.noise_dim = config.draws, shape.size
        self.reads, self.num_products = network.reads, config.draws * network.products
        weight = torch.ones(shape.width)
        weight[list(shape.binary)] = config.binary_weight
        self.register_buffer("weight", weight, persistent=False)

    weight: Tensor

    def muon_matrices(self) -> list[Tensor]:
        """Return the weights of all linear layers: with Muon they learn in half of the steps."""
        return [layer.weight for layer in self.modules() if isinstance(layer, nn.Linear)]

    def repeat(
        self, condition: Condition, target: Float[Tensor, "b k c"], mask: Bool[Tensor, "b k c"]
    ) -> tuple[Condition, Tensor, Tensor]:
        """Return conditions, chunks and masks of a training batch, each sample once for each of its noises.

        What is seen is not repeated: a network that reads it has the chunks of a sample look at it together.
        """
        chunk = self.signed(target).masked_fill(~mask, 0).repeat_interleave(self.draws, 0)
        if not isinstance(condition, Seen):
            condition = condition.repeat_interleave(self.draws, 0)
        return condition, chunk, mask.repeat_interleave(self.draws, 0)

    def losses(
        self, error: Float[Tensor, "r k c"], mask: Bool[Tensor, "r k c"], kept: Float[Tensor, " c"] | None
    ) -> dict[str, Tensor]:
        """Return the mean of squared errors of repeated samples as `action_loss`, and that of continuous columns."""
        total = None if kept is None else self.draws * kept.sum()
        continuous = None if kept is None else self.draws * kept[~self.binary].sum()
        return {
            "action_loss": masked_mean(error * self.weight, mask, total),
            "continuous_loss": masked_mean(error.detach(), mask & ~self.binary, continuous),
        }

    @abstractmethod
    def sample(
        self,
        condition: Condition,
        noise: Float[Tensor, "b z"] | None = None,
        present: Bool[Tensor, "b c"] | None = None,
        *,
        running: Running | None = None,
    ) -> Float[Tensor, "b k c"]:
        """Answer as every head does; `running` is what the chunk is to continue, None leaves it free."""


def make_denoiser(config: DenoisingConfig, *, trunk: TrunkShape, shape: ChunkShape) -> Denoiser:
    """Make the network that finds the noise in a chunk, or the way out of it."""
    if config.network == "unet":
        return UNetDenoiser(shape, condition_dim=trunk.width, width=config.width)
    if config.network == "expert":
        return ExpertDenoiser(shape, trunk, width=config.width)
    if config.network == "dit":
        return DiTDenoiser(shape, trunk, width=config.width, heads=config.heads, num_blocks=config.blocks)
    if config.network == "fast":
        return FastDenoiser(shape, trunk, width=config.width, num_blocks=config.blocks)
    return ChunkDenoiser(
        length=shape.length,
        columns=shape.width,
        condition_dim=trunk.width,
        network=config.network,
        width=config.width,
        heads=config.heads,
        num_blocks=config.blocks,
    )
