"""Actions as bins that are all predicted at once, as in RT-1, from a few learned tokens of each image.

The instruction scales and shifts image tokens (FiLM), TokenLearner turns the tokens of each context step into a few, a
transformer reads those of all steps, and one query for each step of the chunk scores the bins of its numbers.

Source: Brohan et al., RT-1, arXiv 2212.06817, section 5.1 and appendix C.2 (8 tokens an image, 8 layers, 256 bins a
number, one step at 3 Hz). Not as published: images are those of the
frozen tokenizer, not of an EfficientNet; the robot's state is read, too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import ConfigError
from ..layers import Block
from .head import ChunkShape, Condition, Reads, Seen, TrajectoryHead, TrunkShape
from .learned_tokens import TokenLearner
from .losses import masked_mean


@dataclass(frozen=True, kw_only=True)
class BinsConfig:
    """Sizes and options of `BinsHead`.

    width, blocks, heads: of the transformer; learned_tokens: of each context step.
    bins: values of a number; bound: greatest number that a bin stands for, in standard deviations.
    temperature: of the sampling; 0 takes the likeliest, as published.
    """

    kind: Literal["bins"] = "bins"
    width: int = 512
    blocks: int = 8
    heads: int = 8
    learned_tokens: int = 16
    bins: int = 256
    bound: float = 4.0
    temperature: float = 0.0

    def __post_init__(self) -> None:
        if min(self.width, self.blocks, self.learned_tokens) < 1 or self.bins < 2 or self.temperature < 0:
            raise ConfigError(
                f"BinsConfig: expected positive sizes, 2 or more bins and a temperature of 0 or more, got "
                f"{self.width}, {self.blocks}, {self.learned_tokens}, {self.bins} and {self.temperature}; change them."
            )
        if self.width % self.heads:
            raise ConfigError(
                f"BinsConfig.width: expected a multiple of heads ({self.heads}), got {self.width}; change one of them."
            )


class FilmLayer(nn.Module):
    """A residual perceptron whose hidden numbers the instruction scales and shifts; it begins without text."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.enter, self.leave = nn.LayerNorm(width), nn.Linear(width, width), nn.Linear(width, width)
        self.film = nn.Linear(width, 2 * width)
        nn.init.zeros_(self.film.weight)
        nn.init.zeros_(self.film.bias)

    def forward(self, x: Float[Tensor, "b n w"], text: Float[Tensor, "b 1 w"]) -> Float[Tensor, "b n w"]:
        """Transform tokens."""
        scale, shift = self.film(text).chunk(2, dim=-1)
        out: Tensor = x + self.leave(F.gelu(self.enter(self.norm(x)) * (1 + scale) + shift))
        return out


class BinsHead(TrajectoryHead):
    """Trajectory head by bins, all at once (RT-1)."""

    reads: Reads = "context"

    def __init__(self, config: BinsConfig, *, trunk: TrunkShape, shape: ChunkShape) -> None:
        super().__init__(shape)
        self.config, c = config, config
        self.noise_dim = shape.size if c.temperature else 0
        self.num_products = shape.length + c.learned_tokens
        self.text, self.seen = nn.Linear(trunk.width, c.width), nn.Linear(trunk.width, c.width)
        self.film = nn.ModuleList(FilmLayer(c.width) for _ in range(2))
        self.learn = TokenLearner(c.width, c.learned_tokens)
        self.queries = nn.Parameter(0.02 * torch.randn(shape.length, c.width))
        self.places = nn.Parameter(0.02 * torch.randn(trunk.max_context * c.learned_tokens, c.width))
        self.blocks = nn.ModuleList(Block(c.width, c.heads) for _ in range(c.blocks))
        self.norm, self.logits = nn.LayerNorm(c.width), nn.Linear(c.width, shape.width * c.bins)

    def scores(self, condition: Condition) -> Float[Tensor, "b k c v"]:
        """Score the bins of every number."""
        assert isinstance(condition, Seen)
        weight = condition.text_keep[..., None].to(condition.text.dtype)
        text = (condition.text * weight).sum(1, keepdim=True) / weight.sum(1, keepdim=True).clamp(min=1)
        x, text = self.seen(condition.tokens), self.text(text)
        for layer in self.film:
            x = layer(x, text)
        keep = condition.keep.unflatten(1, (condition.num_steps, -1))
        few = self.learn(x.unflatten(1, keep.shape[1:]), keep).flatten(1, 2)
        x = torch.cat((few + self.places[-few.shape[1] :], self.queries.expand(len(few), -1, -1)), dim=1)
        seen = F.pad(keep.any(-1).repeat_interleave(self.config.learned_tokens, 1), (0, self.shape.length), value=True)
        for block in self.blocks:
            x = block(x, seen[:, None, None])
        out: Tensor = self.logits(self.norm(x[:, -self.shape.length :]))
        return out.unflatten(-1, (self.shape.width, self.config.bins)).float()

    def loss(
        self,
        condition: Condition,
        target: Float[Tensor, "b k c"],
        mask: Bool[Tensor, "b k c"],
        *,
        step: int | None = None,
        kept: Float[Tensor, " c"] | None = None,
    ) -> dict[str, Tensor]:
        """Return the cross-entropy [nats] of the true bins as `action_loss`, and how many are the likeliest."""
        share = 0.5 * (self.signed(target).masked_fill(~mask, 0) / self.config.bound + 1)
        bins = (share * self.config.bins).floor().long().clamp(0, self.config.bins - 1)
        scores, total = self.scores(condition), None if kept is None else kept.sum()
        nats = F.cross_entropy(scores.flatten(0, 2), bins.flatten(), reduction="none").view(bins.shape)
        right = (scores.detach().argmax(-1) == bins).to(nats.dtype)
        return {
            "action_loss": masked_mean(nats, mask, total),
            "action_token_accuracy": masked_mean(right, mask, total),
        }

    def sample(
        self,
        condition: Condition,
        noise: Float[Tensor, "b z"] | None = None,
        present: Bool[Tensor, "b c"] | None = None,
    ) -> Float[Tensor, "b k c"]:
        """Take the likeliest bins, or sample them: the bin at which the distribution reaches the noise's share."""
        c, scores = self.config, self.scores(condition)
        if c.temperature:
            share = torch.special.ndtr(self.expect_noise(condition, noise).float()).view(scores.shape[:-1])
            reached = (scores / c.temperature).softmax(-1).cumsum(-1) < share[..., None]
            bins = reached.sum(-1).clamp(max=c.bins - 1)
        else:
            bins = scores.argmax(-1)
        return self.unsigned((2 * (bins + 0.5) / c.bins - 1) * c.bound)
