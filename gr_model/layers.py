"""Transformer layers: pre-norm blocks as in GPT-2.

A block holds `12 d^2 + 13 d` parameters (width d), as the GPT-2 bodies do.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

Mask = Bool[Tensor, "#b 1 q m"] | Float[Tensor, "#b 1 q m"]
"""Attention mask: boolean True = may be seen, or numbers added to the scores."""

KeysValues = tuple[Tensor, Tensor]
"""Keys and values of one layer, each `[b heads n head_dim]`."""

_LONG = 2048
"""Positions from which on the scores of training in bfloat16 on a CPU are not kept."""


def fast_bfloat16() -> bool:
    """Return whether bfloat16 is faster here: on CUDA, and on processors with AVX512-BF16 or AMX."""
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported()
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Mask | None, dropout: float = 0.0) -> Float[Tensor, "b heads q h"]:
    """Return softmax(q k^T / sqrt(h)) v.

    Training on a CPU in bfloat16 takes plain matrix products: PyTorch's fused kernel for CPUs is slower there, up to
    four times. It is faster in float32, two and a half times for a thousand positions, and needs no room for scores,
    which would fill the memory for long sequences.
    """
    plain = q.dtype == torch.bfloat16 and k.shape[-2] < _LONG and torch.is_grad_enabled()
    if q.device.type != "cpu" or not plain:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout)
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf")) if mask.dtype == torch.bool else scores + mask
    return F.dropout(scores.softmax(-1), dropout).to(v.dtype) @ v


def additive(mask: Mask, like: Tensor) -> Mask:
    """Turn a boolean mask into numbers added to the scores, once for all layers, on a CPU."""
    if mask.dtype != torch.bool or mask.device.type != "cpu":
        return mask
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else like.dtype
    return torch.zeros(mask.shape, dtype=dtype).masked_fill(~mask, float("-inf"))


def _normalise(norm: nn.LayerNorm, x: Tensor) -> Tensor:
    """Apply a norm; a module's call costs as much as the arithmetic of one position, and raster decoding feels it."""
    return torch.layer_norm(x, norm.normalized_shape, norm.weight, norm.bias, norm.eps)


def _project(linear: nn.Linear, x: Tensor) -> Tensor:
    """Apply a linear layer, without the call of a module either."""
    return F.linear(x, linear.weight, linear.bias)


class Attention(nn.Module):
    """Multi-head attention with one fused projection; queries may be a subset of the positions."""

    def __init__(self, width: int, heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.width, self.heads, self.dropout = width, heads, dropout
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def _split(self, x: Tensor, parts: int) -> tuple[Tensor, ...]:
        b, n, _ = x.shape
        return x.view(b, n, parts, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)

    def forward(
        self,
        x: Float[Tensor, "b n d"],
        mask: Mask | None = None,
        *,
        queries: Int[Tensor, " q"] | None = None,
        past: KeysValues | None = None,
    ) -> tuple[Float[Tensor, "b q d"], KeysValues]:
        """Attend from `queries` (default: all) to `past` followed by `x`; also return the keys and values."""
        if queries is None:
            q, k, v = self._split(_project(self.qkv, x), 3)
        else:
            weight, bias = self.qkv.weight, self.qkv.bias
            d = self.width
            (q,) = self._split(F.linear(x[:, queries], weight[:d], bias[:d]), 1)
            k, v = self._split(F.linear(x, weight[d:], bias[d:]), 2)
        if past is not None:
            k, v = torch.cat((past[0], k), dim=2), torch.cat((past[1], v), dim=2)
        dropout = self.dropout if self.training else 0.0
        y = attend(q, k, v, mask, dropout)
        return _project(self.out, y.transpose(1, 2).flatten(2)), (k, v)


class Block(nn.Module):
    """Pre-norm attention and a four times wider GELU perceptron, each added to the residual stream."""

    def __init__(self, width: int, heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.norm_attention = nn.LayerNorm(width)
        self.attention = Attention(width, heads, dropout)
        self.norm_mlp = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.drop = nn.Dropout(dropout)

    def forward(self, x: Float[Tensor, "b n d"], mask: Mask | None = None) -> Float[Tensor, "b n d"]:
        """Transform every position."""
        return self.extend(x, mask)[0]

    def extend(
        self,
        x: Float[Tensor, "b n d"],
        mask: Mask | None = None,
        *,
        queries: Int[Tensor, " q"] | None = None,
        past: KeysValues | None = None,
    ) -> tuple[Float[Tensor, "b q d"], KeysValues]:
        """Transform `queries` (default: all positions), seeing `past`, too; also return keys and values."""
        y, keys_values = self.attention(_normalise(self.norm_attention, x), mask, queries=queries, past=past)
        x = (x if queries is None else x[:, queries]) + self._dropped(y)
        widen, _, narrow = self.mlp
        hidden = F.gelu(_project(widen, _normalise(self.norm_mlp, x)))  # type: ignore[arg-type]
        return x + self._dropped(_project(narrow, hidden)), keys_values  # type: ignore[arg-type]

    def _dropped(self, x: Tensor) -> Tensor:
        return self.drop(x) if self.training else x
