"""Actions as tokens: each number of a chunk is one of a few bins, and the trunk predicts bin after bin.

The action query takes one position a token. With `dct`, the tokens are the first coefficients of a cosine transform
along the steps, in place of the steps themselves. Motions are smooth, so that few of them hold it all.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import ConfigError
from .head import ChunkShape, Condition, TrajectoryHead, query_of
from .losses import masked_mean


@dataclass(frozen=True, kw_only=True)
class TokensConfig:
    """Sizes and options of `TokensHead`.

    bins: values of a token.
    dct: coefficients kept of each column, 0 makes every step a token.
    bound: greatest number that a bin stands for, in standard deviations.
    temperature: of the sampling; 0 takes the likeliest bin.

    Source: RT-1, arXiv 2212.06817, and OpenVLA, arXiv 2406.09246 (256 bins); FAST, arXiv 2501.09747 (cosine transform;
    its byte-pair encoding is left out).
    """

    kind: Literal["tokens"] = "tokens"
    bins: int = 256
    dct: int = 0
    bound: float = 4.0
    temperature: float = 1.0

    def __post_init__(self) -> None:
        if self.bins < 2 or self.dct < 0 or not self.bound > 0 or self.temperature < 0:
            raise ConfigError(
                f"TokensConfig: expected 2 or more bins, dct and temperature of 0 or more and a bound above 0, got "
                f"{self.bins}, {self.dct}, {self.temperature} and {self.bound}; change the values."
            )


def cosine_matrix(length: int, count: int) -> Float[Tensor, "m k"]:
    """Return the first rows of the orthonormal cosine transform (DCT-II) of so many steps."""
    step, order = torch.arange(length) + 0.5, torch.arange(count)[:, None]
    matrix = torch.cos(math.pi / length * step * order) * math.sqrt(2 / length)
    matrix[0] /= math.sqrt(2)
    return matrix


def num_tokens(config: TokensConfig, shape: ChunkShape) -> int:
    """Return how many tokens a chunk is."""
    return (config.dct or shape.length) * shape.width


class TokensHead(TrajectoryHead):
    """Trajectory head by tokens (RT-1, RT-2, OpenVLA); the trunk predicts them one after the other."""

    def __init__(self, config: TokensConfig, *, width: int, shape: ChunkShape) -> None:
        super().__init__(shape)
        if config.dct > shape.length:
            raise ConfigError(
                f"--head.dct: expected at most {shape.length}, the steps of a chunk, got {config.dct}; lower it."
            )
        self.config = config
        rows = config.dct or shape.length
        self.num_queries = self.num_tokens = num_tokens(config, shape)
        self.num_products = self.num_tokens
        self.noise_dim = self.num_tokens if config.temperature else 0
        self.places = nn.Parameter(0.3 * torch.randn(self.num_tokens, width))
        self.values = nn.Embedding(config.bins + 1, width)  # the last one begins
        nn.init.normal_(self.values.weight, std=0.3)
        self.logits = nn.Linear(width, config.bins)
        transform = cosine_matrix(shape.length, rows) if config.dct else torch.eye(shape.length)
        self.register_buffer("transform", transform, persistent=False)
        scale = math.sqrt(shape.length) if config.dct else 1.0
        self.register_buffer("bound", torch.tensor(config.bound * scale), persistent=False)

    transform: Tensor
    bound: Tensor

    def tokenize(self, target: Float[Tensor, "b k c"]) -> Int[Tensor, "b n"]:
        """Turn chunks into tokens, coefficient by coefficient or step by step."""
        numbers = torch.einsum("mk,bkc->bmc", self.transform, self.signed(target)).flatten(1)
        share = 0.5 * (numbers / self.bound + 1)
        return (share * self.config.bins).floor().long().clamp(0, self.config.bins - 1)

    def tokens_of_absent(self, present: Bool[Tensor, "b c"]) -> Int[Tensor, "b n"]:
        """Return the tokens of columns that are absent, which are those of 0 as in training, and -1 for the others."""
        rows = self.num_tokens // self.shape.width
        zero = self.tokenize(self.transform.new_zeros(1, self.shape.length, self.shape.width))
        return torch.where(present.repeat(1, rows), -1, zero)

    def detokenize(self, tokens: Int[Tensor, "b n"]) -> Float[Tensor, "b k c"]:
        """Turn tokens into chunks: the middle of each bin."""
        numbers = (2 * (tokens + 0.5) / self.config.bins - 1) * self.bound
        rows = numbers.unflatten(1, (-1, self.shape.width))
        return self.unsigned(torch.einsum("mk,bmc->bkc", self.transform, rows))

    def inputs(self, tokens: Int[Tensor, "b n"]) -> Float[Tensor, "b m d"]:
        """Embed what the trunk reads at the positions of the tokens so far and of the next one."""
        begin = tokens.new_full((len(tokens), 1), self.config.bins)
        read = torch.cat((begin, tokens), dim=1)[:, : self.num_tokens]
        return self.values(read) + self.places[: read.shape[1]]

    def loss(
        self,
        condition: Condition,
        target: Float[Tensor, "b k c"],
        mask: Bool[Tensor, "b k c"],
        *,
        step: int | None = None,
        kept: Float[Tensor, " c"] | None = None,
    ) -> dict[str, Tensor]:
        """Return the cross-entropy [nats] of the true tokens as `action_loss`, and how many are the likeliest."""
        tokens = self.tokenize(target.masked_fill(~mask, 0))
        logits = self.logits(query_of(condition).unflatten(1, (self.num_tokens, -1))).float()
        mask, total = self._kept(mask).flatten(1), None if kept is None else kept.sum()
        nats = F.cross_entropy(logits.flatten(0, 1), tokens.flatten(), reduction="none").view(tokens.shape)
        right = (logits.detach().argmax(-1) == tokens).to(nats.dtype)
        return {
            "action_loss": masked_mean(nats, mask, total),
            "action_token_accuracy": masked_mean(right, mask, total),
        }

    def _kept(self, mask: Bool[Tensor, "b k c"]) -> Bool[Tensor, "b m c"]:
        """Return which tokens count: those of a column with any number."""
        return mask if not self.config.dct else mask.any(1, keepdim=True).expand(-1, self.config.dct, -1)

    def counts(self, mask: Bool[Tensor, "b k c"]) -> Float[Tensor, " c"]:
        """Return how many tokens of each column the loss is averaged over."""
        return super().counts(self._kept(mask))

    def sample_token(self, features: Float[Tensor, "b d"], noise: Float[Tensor, " b"] | None) -> Int[Tensor, " b"]:
        """Sample the next token: the bin at which the distribution reaches the normal share of the noise.

        Bins are ordered, so that no noise gives the median.
        """
        logits = self.logits(features).float()
        if not self.config.temperature:
            return logits.argmax(-1)
        share = logits.new_full((len(logits),), 0.5) if noise is None else torch.special.ndtr(noise.float())
        reached = (logits / self.config.temperature).softmax(-1).cumsum(-1) < share[:, None]
        return reached.sum(-1).clamp(max=self.config.bins - 1)

    def sample(
        self,
        condition: Condition,
        noise: Float[Tensor, "b z"] | None = None,
        present: Bool[Tensor, "b c"] | None = None,
    ) -> Float[Tensor, "b k c"]:
        """Refuse: a token follows from those before it, so `WorldModel.act` samples them one by one.

        Raises:
            ConfigError: always.
        """
        raise ConfigError("TokensHead.sample: tokens are sampled through the trunk, position by position; call act.")
