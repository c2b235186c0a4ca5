"""The trunk: GPT-2 blocks that evaluate only what is read and can continue from cached keys and values."""

from __future__ import annotations

import math
from typing import cast

from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .layers import Block, KeysValues, Mask, additive


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
        self.apply(self._initialise)
        for name, parameter in self.named_parameters():
            if name.endswith(("attention.out.weight", "mlp.2.weight")):
                nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * depth))

    def _blocks(self) -> list[Block]:
        return cast(list[Block], list(self.blocks))

    @staticmethod
    def _initialise(module: nn.Module) -> None:
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.02)
            nn.init.zeros_(module.bias)

    def forward(self, x: Float[Tensor, "b n d"], mask: Mask, read: Int[Tensor, " q"]) -> Float[Tensor, "b q d"]:
        """Return the normalised outputs at the positions `read`; `mask` is `[b|1 1 n n]`."""
        *body, last = self._blocks()
        mask = additive(mask, x)
        for block in body:
            if self.gradient_checkpointing and self.training:
                x = checkpoint(block, x, mask, use_reentrant=False)
            else:
                x = block(x, mask)
        return self.norm(last.extend(x, mask[:, :, read], queries=read)[0])

    def extend(
        self, x: Float[Tensor, "b n d"], mask: Mask, past: list[KeysValues] | None = None
    ) -> tuple[Float[Tensor, "b n d"], list[KeysValues]]:
        """Continue a sequence: `x` follows the positions in `past`, `mask` is `[b|1 1 n past+n]`.

        Returns:
            Outputs of the new positions, and the keys and values of old and new positions.
        """
        cache: list[KeysValues] = []
        mask = additive(mask, x)
        for i, block in enumerate(self._blocks()):
            x, keys_values = block.extend(x, mask, past=None if past is None else past[i])
            cache.append(keys_values)
        return self.norm(x), cache


def count_parameters(module: nn.Module) -> int:
    """Count trainable numbers."""
    return sum(p.numel() for p in module.parameters() if p.requires_grad)
