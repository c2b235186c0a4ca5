"""The action expert of pi0: a narrow transformer of its own weights that reads the trunk's keys and values.

Each of its blocks attends to the keys and values of the trunk's block at the same depth and to the rows of its own
chunk, in both directions. The trunk does not see the expert, so that its keys and values serve all denoising steps.

Source: Black et al., pi0, arXiv 2410.24164, section IV and appendix B. Not as published: the robot's state is read by
the trunk, and norms and perceptrons are those of the trunk here (GPT-2), not Gemma's.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from ..layers import attend
from .head import ChunkShape, Condition, Reads, Seen, TrunkShape
from .networks import Denoiser, time_features


class ExpertBlock(nn.Module):
    """Attention to the trunk and to the own rows, and a perceptron; heads are of the trunk's number and size."""

    def __init__(self, width: int, trunk: TrunkShape) -> None:
        super().__init__()
        self.heads = trunk.heads
        self.norm_attention, self.norm_mlp = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * trunk.width), nn.Linear(trunk.width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(
        self, x: Float[Tensor, "b r w"], past: Float[Tensor, "2 b heads m h"], mask: Bool[Tensor, "b 1 r n"]
    ) -> Float[Tensor, "b r w"]:
        """Transform the rows."""
        parts = self.qkv(self.norm_attention(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        q, pairs = parts[0], torch.cat((past.to(parts.dtype), parts[1:]), dim=3)
        x = x + self.out(attend(q, pairs[0], pairs[1], mask).transpose(1, 2).flatten(2))
        out: Tensor = x + self.mlp(self.norm_mlp(x))
        return out


class ExpertDenoiser(Denoiser):
    """Rows of noisy chunks, mixed with their time, through as many blocks as the trunk has.

    All chunks of a sample go through at once; none sees another.
    """

    reads: Reads = "layers"

    def __init__(self, shape: ChunkShape, trunk: TrunkShape, *, width: int) -> None:
        super().__init__()
        self.products = shape.length
        features = time_features(torch.zeros(1)).shape[-1]
        self.row = nn.Linear(shape.width, width)
        self.mix = nn.Sequential(nn.Linear(width + features, width), nn.SiLU(), nn.Linear(width, width))
        self.places = nn.Parameter(0.02 * torch.randn(shape.length, width))
        self.blocks = nn.ModuleList(ExpertBlock(width, trunk) for _ in range(trunk.depth))
        self.norm, self.leave = nn.LayerNorm(width), nn.Linear(width, shape.width)
        nn.init.zeros_(self.leave.weight)
        nn.init.zeros_(self.leave.bias)

    def forward(
        self, chunk: Float[Tensor, "r k c"], condition: Condition, time: Float[Tensor, " r"]
    ) -> Float[Tensor, "r k c"]:
        """Transform noisy chunks."""
        assert isinstance(condition, Seen)
        k, b = chunk.shape[1], len(condition)
        draws = len(chunk) // b
        times = time_features(time)[:, None].expand(-1, k, -1).to(chunk.dtype)
        x = self.mix(torch.cat((self.row(chunk), times), dim=-1)) + self.places
        x = x.unflatten(0, (b, draws)).flatten(1, 2)
        mask = self._mask(condition, draws, k)
        for block, past in zip(self.blocks, condition.layers, strict=True):
            x = block(x, past, mask)
        out: Tensor = self.leave(self.norm(x))
        return out.unflatten(1, (draws, k)).flatten(0, 1)

    def _mask(self, seen: Seen, draws: int, k: int) -> Bool[Tensor, "b 1 r n"]:
        """Let each row see what is there and the rows of its own chunk."""
        _, keep = seen.everything
        number = torch.arange(draws, device=keep.device).repeat_interleave(k)
        own = (number[:, None] == number).expand(len(keep), -1, -1)
        return torch.cat((keep[:, None].expand(-1, draws * k, -1), own), dim=-1)[:, None]
