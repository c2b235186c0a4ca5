"""TokenLearner: a few tokens in place of the many of an image.

Source: Ryoo et al., TokenLearner, arXiv 2106.11297.
"""

from __future__ import annotations

from jaxtyping import Bool, Float
from torch import Tensor, nn


class TokenLearner(nn.Module):
    """Turn tokens into a few: each is a mean of all, by weights that follow from them."""

    def __init__(self, width: int, count: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.weigh = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, count))

    def forward(self, x: Float[Tensor, "*b n w"], keep: Bool[Tensor, "*b n"]) -> Float[Tensor, "*b t w"]:
        """Average what is there; a step of which nothing is there gives zeros."""
        keep = keep[..., None]
        scores = self.weigh(self.norm(x)).masked_fill(~keep, -1e4)
        weights = scores.softmax(dim=-2) * keep
        return weights.transpose(-1, -2) @ x
