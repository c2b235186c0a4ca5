"""The networks of ACT: a style encoder, and an encoder and decoder over all that is seen, as in DETR.

The style encoder reads `[CLS]`, the state and the chunk and gives the latent. The encoder looks at the latent, images
and states; k learned queries look at what it found. With `film`, as in MT-ACT, the instruction scales and shifts image
tokens; ACT itself reads no text.

Source: Zhao et al., ACT, arXiv 2304.13705, section IV-C and its released code (widths 512 and 3200, 8 heads, 4 encoder
layers, one decoder layer, ReLU, norms after each sum); Bharadhwaj et al., MT-ACT, arXiv 2309.01918, section IV. Not as
published: positions of what is seen are learned and enter once, with the tokens.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from .head import ChunkShape, Condition, Seen

_DROPOUT = 0.1
_WIDENING = 6.25


class EncoderLayer(nn.Module):
    """Attention among positions and a perceptron, norms after each sum; places join queries and keys alone."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.among = nn.MultiheadAttention(width, heads, _DROPOUT, batch_first=True)
        self.mlp = _perceptron(width)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.drop = nn.Dropout(_DROPOUT)
        _begin(self)

    def forward(self, x: Tensor, places: Tensor | None = None, absent: Tensor | None = None) -> Float[Tensor, "b n w"]:
        """Transform every position."""
        at = x if places is None else x + places
        y, _ = self.among(at, at, x, key_padding_mask=absent, need_weights=False)
        x = self.norms[0](x + self.drop(y))
        out: Tensor = self.norms[1](x + self.drop(self.mlp(x)))
        return out


class StyleEncoder(nn.Module):
    """Read `[CLS]`, the newest state and k chunk rows; give mean and log-variance of z."""

    def __init__(
        self, *, latent_dim: int, condition_dim: int, shape: ChunkShape, width: int, heads: int, num_blocks: int
    ) -> None:
        super().__init__()
        self.cls = nn.Parameter(torch.randn(width))
        self.state, self.row = nn.Linear(condition_dim, width), nn.Linear(shape.width, width)
        self.register_buffer("places", sinusoids(shape.length + 2, width), persistent=False)
        self.layers = nn.ModuleList(EncoderLayer(width, heads) for _ in range(num_blocks))
        self.out = nn.Linear(width, 2 * latent_dim)

    places: Tensor

    def forward(self, chunk: Float[Tensor, "b k c"], condition: Condition) -> Float[Tensor, "b two_z"]:
        """Return mean and log-variance, side by side."""
        assert isinstance(condition, Seen)
        first = (self.cls.expand(len(chunk), -1), self.state(condition.tokens[:, -1]))
        x = torch.cat((torch.stack(first, dim=1), self.row(chunk)), dim=1)
        for layer in self.layers:
            x = layer(x, self.places)
        out: Tensor = self.out(x[:, 0])
        return out


class QueryLayer(nn.Module):
    """Attention among queries and to what the encoder found; the queries' places join queries and keys alone."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.among = nn.MultiheadAttention(width, heads, _DROPOUT, batch_first=True)
        self.across = nn.MultiheadAttention(width, heads, _DROPOUT, batch_first=True)
        self.mlp = _perceptron(width)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(3))
        self.drop = nn.Dropout(_DROPOUT)
        _begin(self)

    def forward(self, x: Tensor, places: Tensor, found: Tensor, absent: Tensor) -> Float[Tensor, "b k w"]:
        """Transform the queries."""
        at = x + places
        x = self.norms[0](x + self.drop(self.among(at, at, x, need_weights=False)[0]))
        y, _ = self.across(x + places, found, found, key_padding_mask=absent, need_weights=False)
        x = self.norms[1](x + self.drop(y))
        out: Tensor = self.norms[2](x + self.drop(self.mlp(x)))
        return out


class DetrDecoder(nn.Module):
    """Rebuild k chunk rows from z and all that is seen.

    film: whether the instruction scales and shifts what is seen (MT-ACT); otherwise it is not read (ACT).
    """

    def __init__(
        self,
        *,
        latent_dim: int,
        condition_dim: int,
        shape: ChunkShape,
        width: int,
        heads: int,
        num_blocks: int,
        film: bool,
    ) -> None:
        super().__init__()
        self.latent, self.seen = nn.Linear(latent_dim, width), nn.Linear(condition_dim, width)
        self.film: nn.Linear | None = None
        if film:
            self.film = nn.Linear(condition_dim, 2 * condition_dim)
            nn.init.zeros_(self.film.weight)
            nn.init.zeros_(self.film.bias)
        self.encoder = nn.ModuleList(EncoderLayer(width, heads) for _ in range(num_blocks))
        self.queries = nn.Parameter(torch.randn(shape.length, width))
        self.decoder, self.norm = QueryLayer(width, heads), nn.LayerNorm(width)
        self.out = nn.Linear(width, shape.width)

    def forward(self, z: Float[Tensor, "b z"], condition: Condition) -> Float[Tensor, "b k c"]:
        """Return normalized numbers, logits in binary columns."""
        assert isinstance(condition, Seen)
        tokens = condition.tokens
        if self.film is not None:
            weight = condition.text_keep[..., None].to(tokens.dtype)
            text = (condition.text * weight).sum(1, keepdim=True) / weight.sum(1, keepdim=True).clamp(min=1)
            scale, shift = self.film(text).chunk(2, dim=-1)
            tokens = tokens * (1 + scale) + shift
        x = torch.cat((self.latent(z)[:, None], self.seen(tokens)), dim=1)
        absent = ~F.pad(condition.keep, (1, 0), value=True)
        for layer in self.encoder:
            x = layer(x, absent=absent)
        nothing = x.new_zeros(len(x), *self.queries.shape)
        out: Tensor = self.out(self.norm(self.decoder(nothing, self.queries, x, absent)))
        return out


def _perceptron(width: int) -> nn.Sequential:
    wide = int(_WIDENING * width)
    return nn.Sequential(nn.Linear(width, wide), nn.ReLU(), nn.Dropout(_DROPOUT), nn.Linear(wide, width))


def _begin(layer: nn.Module) -> None:
    """Draw the first weights as the released code does."""
    for parameter in layer.parameters():
        if parameter.ndim > 1:
            nn.init.xavier_uniform_(parameter)


def sinusoids(length: int, width: int) -> Float[Tensor, "n w"]:
    """Return the places of a sequence as sines and cosines, in turn.

    Source: Vaswani et al., arXiv 1706.03762, section 3.5.
    """
    order = torch.arange(width) // 2 * 2
    angle = torch.arange(length)[:, None] / 10000 ** (order / width)
    return torch.where(torch.arange(width) % 2 == 0, angle.sin(), angle.cos())
