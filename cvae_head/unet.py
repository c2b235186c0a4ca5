"""The denoising network of Diffusion Policy: a one-dimensional U-Net over the steps of a chunk.

Residual blocks of convolutions are scaled and shifted by the condition and the noise level (FiLM); two of three levels
halve the number of steps.

Source: Chi et al., Diffusion Policy, arXiv 2303.04137, section III-A, and its released configuration (widths 512, 1024
and 2048, kernels of 5, 8 groups); U-Net: Janner et al., arXiv 2205.09991.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import ConfigError
from .head import ChunkShape, Condition, query_of
from .networks import Denoiser

_LEVELS = 100
"""Noise levels of the published schedule, in which the network counts time."""

_LEVEL_FEATURES = 128
_KERNEL, _GROUPS = 5, 8


class ConvBlock(nn.Sequential):
    """Convolution over steps, group norm, Mish."""

    def __init__(self, channels: int, out: int) -> None:
        super().__init__(nn.Conv1d(channels, out, _KERNEL, padding=_KERNEL // 2), nn.GroupNorm(_GROUPS, out), nn.Mish())


class FilmBlock(nn.Module):
    """Two convolutions beside a residual path; the condition scales and shifts the first one's output."""

    def __init__(self, channels: int, out: int, condition_dim: int) -> None:
        super().__init__()
        self.first, self.second = ConvBlock(channels, out), ConvBlock(out, out)
        self.modulate = nn.Sequential(nn.Mish(), nn.Linear(condition_dim, 2 * out))
        self.residual = nn.Conv1d(channels, out, 1) if channels != out else nn.Identity()

    def forward(self, x: Float[Tensor, "r c k"], condition: Float[Tensor, "r e"]) -> Float[Tensor, "r o k"]:
        """Transform the steps."""
        scale, shift = self.modulate(condition)[..., None].chunk(2, dim=1)
        out: Tensor = self.second(scale * self.first(x) + shift) + self.residual(x)
        return out


class UNetDenoiser(Denoiser):
    """Convolutions over the steps of noisy chunks, on three levels of `width` / 4, / 2 and `width` channels.

    The steps are padded to a multiple of four by repeating the last one.

    Raises:
        ConfigError: channels that the groups of the norms do not divide.
    """

    def __init__(self, shape: ChunkShape, *, condition_dim: int, width: int) -> None:
        super().__init__()
        if width % (4 * _GROUPS):
            raise ConfigError(
                f"--head.width: expected a multiple of {4 * _GROUPS} for the network unet, got {width}; change it."
            )
        widths = (width // 4, width // 2, width)
        self.products = shape.length
        self.padding = -shape.length % 4
        self.level = nn.Sequential(
            nn.Linear(_LEVEL_FEATURES, 4 * _LEVEL_FEATURES), nn.Mish(), nn.Linear(4 * _LEVEL_FEATURES, _LEVEL_FEATURES)
        )
        film = _LEVEL_FEATURES + condition_dim
        pairs = list(zip((shape.width, *widths[:-1]), widths, strict=True))
        self.down = nn.ModuleList(nn.ModuleList((FilmBlock(i, o, film), FilmBlock(o, o, film))) for i, o in pairs)
        self.shrink = nn.ModuleList(nn.Conv1d(o, o, 3, 2, 1) for o in widths[:-1])
        self.middle = nn.ModuleList(FilmBlock(width, width, film) for _ in range(2))
        self.up = nn.ModuleList(
            nn.ModuleList((FilmBlock(2 * o, i, film), FilmBlock(i, i, film))) for i, o in reversed(pairs[1:])
        )
        self.grow = nn.ModuleList(nn.ConvTranspose1d(i, i, 4, 2, 1) for i in reversed(widths[:-1]))
        self.leave = nn.Sequential(ConvBlock(widths[0], widths[0]), nn.Conv1d(widths[0], shape.width, 1))

    def forward(
        self, chunk: Float[Tensor, "r k c"], condition: Condition, time: Float[Tensor, " r"]
    ) -> Float[Tensor, "r k c"]:
        """Transform noisy chunks."""
        levels = _level_features(_LEVELS * time - 1)
        film = torch.cat((self.level(levels.to(chunk.dtype)), query_of(condition)), dim=-1)
        x = F.pad(chunk.transpose(1, 2), (0, self.padding), mode="replicate")
        skipped: list[Tensor] = []
        for number, blocks in enumerate(self.down):
            for block in blocks:  # type: ignore[attr-defined]
                x = block(x, film)
            skipped.append(x)
            if number < len(self.shrink):
                x = self.shrink[number](x)
        for block in self.middle:
            x = block(x, film)
        for blocks, grow in zip(self.up, self.grow, strict=True):
            x = torch.cat((x, skipped.pop()), dim=1)
            for block in blocks:  # type: ignore[attr-defined]
                x = block(x, film)
            x = grow(x)
        out: Tensor = self.leave(x)
        return out.transpose(1, 2)[:, : chunk.shape[1]]


def _level_features(level: Float[Tensor, " r"]) -> Float[Tensor, "r f"]:
    """Describe noise levels by sines and cosines of geometric frequencies from 1 to 1 / 10000."""
    half = _LEVEL_FEATURES // 2
    frequency = torch.exp(torch.arange(half, device=level.device) * (-math.log(10000) / (half - 1)))
    angle = level[:, None] * frequency
    return torch.cat((angle.sin(), angle.cos()), dim=-1)
