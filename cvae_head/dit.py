"""The diffusion transformer of RDT-1B: rows of a noisy chunk look at images and at text in turn.

The instruction is a short list among many image tokens; cross-attention to both at once would overlook it. In training
each kind of input is hidden now and then, so that the policy does not lean on one.

Source: Liu et al., RDT-1B, arXiv 2410.07864, section 4.2 (28 blocks of 2048, 32 heads; RMS norms, normalized queries
and keys, perceptrons as wide as the rows, one of them as the last layer) and appendix (inputs are hidden with
probability 0.1). The unified action space is that of `slots.py`; the control rate of each of several robots enters with
its state.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from ..layers import attend
from .head import ChunkShape, Condition, Reads, Seen, TrunkShape
from .networks import Denoiser, time_features

HIDDEN_SHARE = 0.1
"""How often the text, and the images and states, of a sample are hidden in training."""


class NormedAttention(nn.Module):
    """Multi-head attention with normalized queries and keys, to the rows themselves or to others."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q, self.kv, self.out = nn.Linear(width, width), nn.Linear(width, 2 * width), nn.Linear(width, width)
        self.norm_q, self.norm_k = nn.RMSNorm(width // heads), nn.RMSNorm(width // heads)

    def forward(
        self, x: Float[Tensor, "b r w"], others: Float[Tensor, "b n w"], mask: Bool[Tensor, "#b 1 r n"]
    ) -> Float[Tensor, "b r w"]:
        """Attend from rows to others."""
        q = self.q(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        k, v = self.kv(others).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        out: Tensor = self.out(attend(self.norm_q(q), self.norm_k(k), v, mask).transpose(1, 2).flatten(2))
        return out


class DiTBlock(nn.Module):
    """Attention among the rows, attention to one kind of input, a perceptron."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.RMSNorm(width) for _ in range(3))
        self.among, self.across = NormedAttention(width, heads), NormedAttention(width, heads)
        self.mlp = nn.Sequential(nn.Linear(width, width), nn.GELU(approximate="tanh"), nn.Linear(width, width))

    def forward(self, x: Tensor, own: Tensor, others: Tensor, keep: Tensor) -> Float[Tensor, "b r w"]:
        """Transform rows; `own` says which rows see each other, `keep` which of the others are there."""
        y = self.norms[0](x)
        x = x + self.among(y, y, own)
        x = x + self.across(self.norms[1](x), others, keep)
        out: Tensor = x + self.mlp(self.norms[2](x))
        return out


class DiTDenoiser(Denoiser):
    """Time and rows of noisy chunks through blocks that look at images and states, and at text, in turn.

    All chunks of a sample go through at once; none sees another.
    """

    reads: Reads = "context"

    def __init__(self, shape: ChunkShape, trunk: TrunkShape, *, width: int, heads: int, num_blocks: int) -> None:
        super().__init__()
        self.products = shape.length + 1
        features = time_features(torch.zeros(1)).shape[-1]
        self.time = nn.Sequential(nn.Linear(features, width), nn.SiLU(), nn.Linear(width, width))
        self.row = nn.Linear(shape.width, width)
        self.places = nn.Parameter(0.02 * torch.randn(1 + shape.length, width))
        self.text, self.image = nn.Linear(trunk.width, width), nn.Linear(trunk.width, width)
        self.nothing = nn.Parameter(0.02 * torch.randn(width))
        self.blocks = nn.ModuleList(DiTBlock(width, heads) for _ in range(num_blocks))
        self.norm = nn.RMSNorm(width)
        self.leave = nn.Sequential(nn.Linear(width, width), nn.GELU(approximate="tanh"), nn.Linear(width, shape.width))
        nn.init.zeros_(self.leave[-1].weight)  # type: ignore[arg-type]
        nn.init.zeros_(self.leave[-1].bias)  # type: ignore[arg-type]

    def forward(
        self, chunk: Float[Tensor, "r k c"], condition: Condition, time: Float[Tensor, " r"]
    ) -> Float[Tensor, "r k c"]:
        """Transform noisy chunks."""
        assert isinstance(condition, Seen)
        b = len(condition)
        draws, rows = len(chunk) // b, 1 + chunk.shape[1]
        first = self.time(time_features(time).to(chunk.dtype))[:, None]
        x = torch.cat((first, self.row(chunk)), dim=1) + self.places
        x = x.unflatten(0, (b, draws)).flatten(1, 2)
        number = torch.arange(draws, device=x.device).repeat_interleave(rows)
        own = (number[:, None] == number)[None, None]
        inputs = (
            self._inputs(self.image(condition.tokens), condition.keep),
            self._inputs(self.text(condition.text), condition.text_keep),
        )
        for number_of_block, block in enumerate(self.blocks):
            x = block(x, own, *inputs[number_of_block % 2])
        out: Tensor = self.leave(self.norm(x.unflatten(1, (draws, rows))[:, :, 1:]))
        return out.flatten(0, 1)

    def _inputs(self, x: Float[Tensor, "b n w"], keep: Bool[Tensor, "b n"]) -> tuple[Tensor, Tensor]:
        """Put a learned token for nothing before one kind of input, and hide the rest now and then in training."""
        if self.training:
            keep = keep & (torch.rand(len(keep), 1, device=keep.device) >= HIDDEN_SHARE)
        x = torch.cat((self.nothing.to(x.dtype).expand(len(x), 1, -1), x), dim=1)
        return x, F.pad(keep, (1, 0), value=True)[:, None, None]
