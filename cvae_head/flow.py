"""Conditional flow matching: a chunk is carried from noise to data along the velocity that a network has learned.

`x_t = t x_1 + (1 - t) x_0` leads from noise `x_0 ~ N(0, I)` at t = 0 to the chunk `x_1` at t = 1. The network learns
`x_1 - x_0`. An answer takes a few Euler steps. Unlike a mean, it can follow any of several motions.
"""

from __future__ import annotations

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

_LATEST = 0.999
"""Times are sampled below it, as in pi0."""


@dataclass(frozen=True, kw_only=True)
class FlowConfig(DenoisingConfig):
    """Sizes and options of `FlowHead`.

    steps: Euler steps of an answer.
    time_alpha: of the Beta(time_alpha, 1) distribution of 1 - t: above 1 prefers noisy chunks, 1 is uniform.

    Source: flow matching, arXiv 2210.02747; pi0, arXiv 2410.24164, section IV and appendix B (Beta(1.5, 1)).
    """

    kind: Literal["flow"] = "flow"
    steps: int = 8
    time_alpha: float = 1.5

    def __post_init__(self) -> None:
        expect_network(self.kind, self.network, "mlp", "blocks", "unet", "expert", "dit", "fast")
        if self.steps < 1 or self.draws < 1 or not self.time_alpha > 0:
            raise ConfigError(
                f"FlowConfig: expected at least one step and one draw and time_alpha above 0, got {self.steps}, "
                f"{self.draws} and {self.time_alpha}; change the values."
            )


class FlowHead(DenoisingHead):
    """Trajectory head by flow matching (pi0)."""

    def __init__(self, config: FlowConfig, *, trunk: TrunkShape, shape: ChunkShape) -> None:
        network = make_denoiser(config, trunk=trunk, shape=shape)
        super().__init__(config, shape, network)
        self.config = config
        self.velocity = network

    def loss(
        self,
        condition: Condition,
        target: Float[Tensor, "b k c"],
        mask: Bool[Tensor, "b k c"],
        *,
        step: int | None = None,
        kept: Float[Tensor, " c"] | None = None,
    ) -> dict[str, Tensor]:
        """Return the squared error of the velocity as `action_loss`, and that of continuous columns."""
        condition, chunk, mask = self.repeat(condition, target, mask)
        noise = torch.randn_like(chunk)
        # 1 - u^(1 / alpha) has the distribution of 1 - Beta(alpha, 1)
        uniform = torch.rand(len(chunk), device=chunk.device, dtype=chunk.dtype)
        time = _LATEST * (1 - uniform ** (1 / self.config.time_alpha))
        at = time[:, None, None]
        predicted = self.velocity(at * chunk + (1 - at) * noise, condition, time).to(chunk.dtype)
        error = (predicted - (chunk - noise)).square()
        return self.losses(error, mask, kept)

    def sample(
        self,
        condition: Condition,
        noise: Float[Tensor, "b z"] | None = None,
        present: Bool[Tensor, "b c"] | None = None,
        *,
        running: Running | None = None,
    ) -> Float[Tensor, "b k c"]:
        """Carry noise to a chunk, one that continues the running one where there is one."""
        steps = self.config.steps
        start = chunk = self.expect_noise(condition, noise).unflatten(-1, (self.shape.length, self.shape.width))
        velocities = self.velocity.at_times(condition, [i / steps for i in range(steps)]) if running is None else []
        kept = None if running is None else replace(running, chunk=self.signed(running.chunk))
        for i in range(steps):
            if kept is None:
                chunk = chunk + velocities[i](chunk) / steps
            else:
                clean = partial(self._clean, at=i / steps)
                end = guide(clean, chunk, condition, kept, present, signal=i / steps, noise=1 - i / steps)
                chunk = chunk + (end - chunk) / (steps - i)
            if present is not None:  # in training, what is absent is carried from noise to 0
                chunk = torch.where(present[:, None], chunk, (1 - (i + 1) / steps) * start)
        return self.unsigned(chunk)

    def _clean(self, chunk: Tensor, condition: Condition, at: float) -> Float[Tensor, "b k c"]:
        """Predict the chunk that the velocity at a time leads to."""
        velocity: Tensor = self.velocity(chunk, condition, chunk.new_full((len(chunk),), at))
        return chunk + (1 - at) * velocity
