"""The trunk: GPT-2 blocks that evaluate only what is read and can continue from cached keys and values."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ...layers import Block, KeysValues, Mask, additive, product_dtype


class GPT(nn.Module):
    """Blocks and a final norm.

    The last block computes keys and values everywhere and the rest only at the positions that are read:
    exact, and a fifth cheaper for a four-layer policy that reads one position.
    """

    def __init__(
        self,
        *,
        width: int,
        depth: int,
        heads: int,
        dropout: float = 0.0,
        gradient_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(width, heads, dropout) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.gradient_checkpointing = gradient_checkpointing
        self.apply(self._initialize)
        for name, parameter in self.named_parameters():
            if name.endswith(("attention.out.weight", "mlp.2.weight")):
                nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * depth))

    def _blocks(self) -> list[Block]:
        return cast(list[Block], list(self.blocks))

    @staticmethod
    def _initialize(module: nn.Module) -> None:
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.02)
            nn.init.zeros_(module.bias)

    def forward(self, x: Float[Tensor, "b n d"], mask: Mask, read: Int[Tensor, " q"]) -> Float[Tensor, "b q d"]:
        """Return the normalized outputs at the positions `read`; `mask` is `[b|1 1 n n]`."""
        *body, last = self._blocks()
        mask = additive(mask, x)
        for block in body:
            if self.gradient_checkpointing and self.training:
                x = checkpoint(block, x, mask, use_reentrant=False)
            else:
                x = block(x, mask)
        return self.norm(last.extend(x, mask[:, :, read], queries=read))

    def keys_values(self, x: Float[Tensor, "b n d"], mask: Mask) -> tuple[KeysValues, ...]:
        """Return the keys and values of all positions in every block, for a head that reads them."""
        *body, last = self._blocks()
        mask = additive(mask, x)
        found = []
        for block in body:
            found.append(block.keys_values(x))
            x = block(x, mask)
        return (*found, last.keys_values(x))

    def make_past(self, like: Float[Tensor, "b n d"], capacity: int) -> tuple[KeysValues, ...]:
        """Make room for the keys and values of so many positions in every block."""
        attention = self._blocks()[0].attention
        shape = (len(self.blocks), 2, len(like), attention.heads, capacity, attention.width // attention.heads)
        return torch.empty(shape, dtype=product_dtype(like), device=like.device).unbind(0)

    def extend(
        self,
        x: Float[Tensor, "b n d"],
        mask: Mask,
        past: Sequence[KeysValues],
        read: Int[Tensor, " q"] | None = None,
    ) -> Float[Tensor, "b q d"]:
        """Continue a sequence; return the outputs of the new positions, or of those of them that are read.

        `mask` is `[b|1 1 n m]`: of m positions `x` is the last n, and their keys and values take their place in
        `past` behind those of the first m - n. What stood there is overwritten.
        """
        *body, last = self._blocks()
        mask = additive(mask, x)
        for block, keys_values in zip(body, past, strict=False):
            x = block.extend(x, mask, past=keys_values)
        seen = mask if read is None else mask[:, :, read]
        return self.norm(last.extend(x, seen, queries=read, past=past[-1]))


def count_parameters(module: nn.Module) -> int:
    """Count trainable numbers."""
    return sum(p.numel() for p in module.parameters() if p.requires_grad)
