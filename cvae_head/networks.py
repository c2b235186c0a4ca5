"""Networks that trajectory heads share: transformer blocks over the steps of a chunk, and perceptrons with FiLM.

Others have files of their own: `unet.py`, `expert.py`, `dit.py`, `fast.py`, `detr.py`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import ConfigError
from ..layers import Block
from .head import ChunkShape, Condition, Reads, query_of

Network = Literal["mlp", "blocks", "unet", "expert", "dit", "fast", "detr"]
"""Network of a head.

mlp: a perceptron over the flattened chunk; blocks: transformer blocks over its steps. For flow and diffusion also unet:
convolutions over the steps (Diffusion Policy); expert: a transformer that reads the trunk's keys and values (pi0); dit:
one that looks at images and text in turn (RDT); fast: a perceptron that reads the newest image and an older output of
the action query (HiRT). For the cvae also detr: an encoder and a decoder over all that is seen
(ACT).
"""

_TIME_FEATURES = 64


def expect_network(kind: str, network: Network, *known: Network) -> None:
    """Check that a head of a kind can have a network.

    Raises:
        ConfigError: it cannot.
    """
    if network not in known:
        raise ConfigError(
            f"--head.network: expected one of {', '.join(known)} for the head {kind}, got {network!r}; choose one."
        )


class ChunkBlocks(nn.Module):
    """Transformer blocks over `num_tokens` tokens with learned positions."""

    def __init__(self, *, width: int, heads: int, num_tokens: int, num_blocks: int) -> None:
        super().__init__()
        self.positions = nn.Parameter(0.02 * torch.randn(num_tokens, width))
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(num_blocks))
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Float[Tensor, "b n w"]) -> Float[Tensor, "b n w"]:
        """Transform every token."""
        x = x + self.positions
        for block in self.blocks:
            x = block(x)
        return self.norm(x)


def time_features(time: Float[Tensor, "*b"], size: int = _TIME_FEATURES) -> Float[Tensor, "*b f"]:
    """Describe times in [0, 1] by sines and cosines of periods from 0.2 to 4.

    Shorter periods, such as 0.004 in pi0, make t = 0, where every answer begins, unlike all times of a short training.
    """
    fraction = torch.linspace(0, 1, size // 2, device=time.device, dtype=time.dtype)
    angle = 2 * math.pi * time[..., None] / (0.2 * 20.0**fraction)
    return torch.cat((angle.sin(), angle.cos()), dim=-1)


class FilmMLP(nn.Module):
    """Residual perceptron on flat vectors, scaled and shifted layer by layer by the condition and a time.

    Source: FiLM, arXiv 1709.07871.
    """

    def __init__(self, *, size: int, condition_dim: int, width: int, num_blocks: int) -> None:
        super().__init__()
        self.enter = nn.Linear(size, width)
        self.condition = nn.Linear(condition_dim, width)
        self.time = nn.Linear(_TIME_FEATURES, width)
        self.modulate = nn.ModuleList(nn.Linear(width, 2 * width) for _ in range(num_blocks))
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, width)) for _ in range(num_blocks)
        )
        self.leave = nn.Linear(width, size)
        nn.init.zeros_(self.leave.weight)
        nn.init.zeros_(self.leave.bias)

    def forward(
        self, x: Float[Tensor, "b n"], condition: Float[Tensor, "b d"], time: Float[Tensor, " b"]
    ) -> Float[Tensor, "b n"]:
        """Transform flat chunks."""
        return self.transform(x, self.modulations(condition, time))

    def modulations(self, condition: Float[Tensor, "*_ d"], time: Float[Tensor, "*_"]) -> list[Tensor]:
        """Return each block's scales and shifts `[... 2 w]`, all that condition and time decide; both broadcast."""
        c = F.silu(self.condition(condition) + self.time(time_features(time)))
        return [modulate(c) for modulate in self.modulate]

    def transform(self, x: Float[Tensor, "b n"], modulations: Sequence[Float[Tensor, "b v"]]) -> Float[Tensor, "b n"]:
        """Transform flat chunks under given scales and shifts."""
        h = self.enter(x)
        for modulation, block in zip(modulations, self.blocks, strict=True):
            scale, shift = modulation.chunk(2, dim=-1)
            h = h + block(F.layer_norm(h, h.shape[-1:]) * (1 + scale) + shift)
        out: Tensor = self.leave(F.gelu(h))
        return out


class Denoiser(nn.Module, ABC):
    """From noisy chunks, the condition and the times of the noise to numbers of the chunks' shape.

    reads: what the condition is. Of what is seen there may be fewer samples than chunks, which are then several in a
        row for each.
    products: rows that the weights are multiplied with for one chunk.
    """

    reads: Reads = "query"
    products: int = 1

    @abstractmethod
    def forward(
        self, chunk: Float[Tensor, "r k c"], condition: Condition, time: Float[Tensor, " r"]
    ) -> Float[Tensor, "r k c"]:
        """Transform noisy chunks; times lie in [0, 1]."""

    def at_times(self, condition: Condition, times: Sequence[float]) -> list[Callable[[Tensor], Tensor]]:
        """Return the network at each time as a function of chunks `[b k c]`."""
        return [partial(self._at, condition=condition, time=time) for time in times]

    def _at(self, chunk: Tensor, *, condition: Condition, time: float) -> Tensor:
        out: Tensor = self(chunk, condition, chunk.new_full((len(chunk),), time))
        return out


class ChunkDenoiser(Denoiser):
    """A perceptron or transformer blocks that read the action query."""

    def __init__(
        self,
        *,
        length: int,
        columns: int,
        condition_dim: int,
        network: Network,
        width: int,
        heads: int,
        num_blocks: int,
    ) -> None:
        super().__init__()
        self.length, self.columns = length, columns
        self.film: FilmMLP | None = None
        if network == "mlp":
            self.film = FilmMLP(size=length * columns, condition_dim=condition_dim, width=width, num_blocks=num_blocks)
            return
        self.products = length + 2
        self.row = nn.Linear(columns, width)
        self.condition = nn.Linear(condition_dim, width)
        self.time = nn.Sequential(nn.Linear(_TIME_FEATURES, width), nn.SiLU(), nn.Linear(width, width))
        self.trunk = ChunkBlocks(width=width, heads=heads, num_tokens=length + 2, num_blocks=num_blocks)
        self.out = nn.Linear(width, columns)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(
        self, chunk: Float[Tensor, "b k c"], condition: Condition, time: Float[Tensor, " b"]
    ) -> Float[Tensor, "b k c"]:
        """Transform noisy chunks."""
        condition = query_of(condition)
        if self.film is not None:
            return self._shape(self.film(chunk.flatten(1), condition, time))
        first = (self.condition(condition), self.time(time_features(time)))
        tokens = torch.cat((torch.stack(first, dim=1), self.row(chunk)), dim=1)
        out: Tensor = self.out(self.trunk(tokens)[:, 2:])
        return out

    def at_times(self, condition: Condition, times: Sequence[float]) -> list[Callable[[Tensor], Tensor]]:
        """Return the network at each time as a function of chunks `[b k c]`.

        What condition and times decide is computed once for all of them, which halves the cost of a perceptron.
        """
        if self.film is None:
            return super().at_times(condition, times)
        condition = query_of(condition)
        together = self.film.modulations(condition[:, None], condition.new_tensor(times))
        each = zip(*(modulation.unbind(1) for modulation in together), strict=True)
        return [partial(self._transform, self.film, modulations=modulations) for modulations in each]

    def _transform(self, film: FilmMLP, chunk: Tensor, modulations: Sequence[Tensor]) -> Float[Tensor, "b k c"]:
        return self._shape(film.transform(chunk.flatten(1), modulations))

    def _shape(self, flat: Tensor) -> Float[Tensor, "b k c"]:
        return flat.unflatten(-1, (self.length, self.columns))


class BlockDecoder(nn.Module):
    """Rebuild k chunk rows from z, the condition and k learned queries."""

    def __init__(
        self, *, latent_dim: int, condition_dim: int, shape: ChunkShape, width: int, heads: int, num_blocks: int
    ) -> None:
        super().__init__()
        self.latent = nn.Linear(latent_dim, width) if latent_dim else None
        self.condition = nn.Linear(condition_dim, width)
        self.queries = nn.Parameter(0.02 * torch.randn(shape.length, width))
        num_tokens = shape.length + 1 + bool(latent_dim)
        self.trunk = ChunkBlocks(width=width, heads=heads, num_tokens=num_tokens, num_blocks=num_blocks)
        self.out = nn.Linear(width, shape.width)
        self.chunk_length = shape.length

    def forward(self, z: Float[Tensor, "b z"] | None, condition: Condition) -> Float[Tensor, "b k c"]:
        """Return normalized numbers, logits in binary columns."""
        condition = query_of(condition)
        tokens = [self.condition(condition)[:, None], self.queries.expand(len(condition), -1, -1)]
        if self.latent is not None:
            tokens.insert(0, self.latent(z)[:, None])
        out: Tensor = self.out(self.trunk(torch.cat(tokens, dim=1))[:, -self.chunk_length :])
        return out


class MlpDecoder(nn.Module):
    """Rebuild the flattened chunk from z and the condition."""

    def __init__(self, *, latent_dim: int, condition_dim: int, shape: ChunkShape, width: int) -> None:
        super().__init__()
        self.shape = (shape.length, shape.width)
        self.net = nn.Sequential(
            nn.Linear(latent_dim + condition_dim, width),
            nn.GELU(),
            nn.Linear(width, width),
            nn.GELU(),
            nn.Linear(width, shape.size),
        )

    def forward(self, z: Float[Tensor, "b z"] | None, condition: Condition) -> Float[Tensor, "b k c"]:
        """Return normalized numbers, logits in binary columns."""
        condition = query_of(condition)
        out: Tensor = self.net(condition if z is None else torch.cat((z, condition), dim=-1))
        return out.unflatten(-1, self.shape)


def make_decoder(
    network: Network,
    *,
    latent_dim: int,
    condition_dim: int,
    shape: ChunkShape,
    width: int,
    heads: int,
    num_blocks: int,
) -> nn.Module:
    """Make the network from a latent (or none) and the condition to a chunk."""
    if network == "mlp":
        return MlpDecoder(latent_dim=latent_dim, condition_dim=condition_dim, shape=shape, width=width)
    return BlockDecoder(
        latent_dim=latent_dim,
        condition_dim=condition_dim,
        shape=shape,
        width=width,
        heads=heads,
        num_blocks=num_blocks,
    )
