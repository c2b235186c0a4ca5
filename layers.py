"""Transformer layers: pre-norm blocks as in GPT-2.

A block holds `12 d^2 + 13 d` parameters (width d), as the GPT-2 bodies do.
"""

from __future__ import annotations

import copy
from typing import TypeVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

M = TypeVar("M", bound=nn.Module)

Mask = Bool[Tensor, "#b 1 q m"] | Float[Tensor, "#b 1 q m"]
"""Attention mask: boolean True = may be seen, or numbers added to the scores."""

KeysValues = Float[Tensor, "2 b heads capacity h"]
"""Room for the keys and values of one layer, written in place as positions join."""

_LONG = 2048
"""Positions from which on the scores of training in bfloat16 on a CPU are not kept."""

_LARGE = 1 << 17
"""Numbers of a weight from which on its order in memory decides how fast a CPU multiplies it with one row."""


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
    return torch.zeros(mask.shape, dtype=product_dtype(like)).masked_fill_(~mask, float("-inf"))


def product_dtype(like: Tensor) -> torch.dtype:
    """Return the type of the matrix products of `like`: autocast's where that is on."""
    device = like.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else like.dtype


def with_wide_weights_by_column(module: M) -> M:
    """Return a module for products with one row on a CPU: large weights that widen lie column by column in memory.

    One row takes half the time with them. Weights that narrow are as fast or faster as they are; all that is not
    turned is shared with the original, which is returned where there is nothing to turn.
    """
    if isinstance(module, nn.Linear):
        weight = module.weight.detach()
        if module.out_features <= module.in_features or weight.numel() < _LARGE:
            return module
        linear = copy.copy(module)
        linear._parameters = {**module._parameters, "weight": nn.Parameter(_by_column(weight), requires_grad=False)}
        return linear
    parts = {name: with_wide_weights_by_column(part) for name, part in module.named_children()}
    if all(part is module.get_submodule(name) for name, part in parts.items()):
        return module
    turned = copy.copy(module)
    turned._modules = {**module._modules, **parts}
    return turned


def _by_column(weight: Float[Tensor, "o i"]) -> Float[Tensor, "o i"]:
    """Copy a matrix so that its columns lie in one piece each."""
    return weight.t().contiguous().t()


def _normalize(norm: nn.LayerNorm, x: Tensor) -> Tensor:
    """Apply a norm; a module's call costs as much as the arithmetic of one position, and raster decoding feels it."""
    return torch.layer_norm(x, norm.normalized_shape, norm.weight, norm.bias, norm.eps)


def _project(linear: nn.Linear, x: Tensor, rows: slice | None = None) -> Tensor:
    """Apply a linear layer, or some rows of it, without the call of a module either; LoRA puts a change beside it."""
    change = linear._modules.get("change")
    if change is not None:
        changed: Tensor = change(linear, x, rows or slice(None))
        return changed
    if rows is None:
        return F.linear(x, linear.weight, linear.bias)
    return F.linear(x, linear.weight[rows], linear.bias[rows])


class Attention(nn.Module):
    """Multi-head attention with one fused projection; queries may be a subset of the positions."""

    def __init__(self, width: int, heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.width, self.heads, self.dropout = width, heads, dropout
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def _split(self, x: Tensor, parts: int) -> Float[Tensor, "parts b heads n h"]:
        b, n, _ = x.shape
        return x.view(b, n, parts, self.heads, self.width // self.heads).permute(2, 0, 3, 1, 4)

    def keys_values(self, x: Float[Tensor, "b n d"]) -> KeysValues:
        """Return keys and values of all positions."""
        return self._split(_project(self.qkv, x, slice(self.width, None)), 2)

    def forward(
        self,
        x: Float[Tensor, "b n d"],
        mask: Mask | None = None,
        *,
        queries: Int[Tensor, " q"] | None = None,
        past: KeysValues | None = None,
    ) -> Float[Tensor, "b q d"]:
        """Attend from `queries` (default: all) to `x`, or to the past and `x`, whose keys and values join it."""
        if queries is None:
            parts = self._split(_project(self.qkv, x), 3)
            q, pairs = parts[0], parts[1:]
        else:
            d = self.width
            q = self._split(_project(self.qkv, x[:, queries], slice(d)), 1)[0]
            pairs = self._split(_project(self.qkv, x, slice(d, None)), 2)
        if past is not None:
            assert mask is not None, "the mask gives how many positions there are"
            stop = mask.shape[-1]
            past[:, :, :, stop - x.shape[1] : stop] = pairs
            pairs = past[:, :, :, :stop]
        k, v = pairs.unbind(0)
        dropout = self.dropout if self.training else 0.0
        y = attend(q, k, v, mask, dropout)
        return _project(self.out, y.transpose(1, 2).flatten(2))


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
        return self.extend(x, mask)

    def extend(
        self,
        x: Float[Tensor, "b n d"],
        mask: Mask | None = None,
        *,
        queries: Int[Tensor, " q"] | None = None,
        past: KeysValues | None = None,
    ) -> Float[Tensor, "b q d"]:
        """Transform `queries` (default: all positions), seeing `past`, too, which the positions join."""
        y = self.attention(_normalize(self.norm_attention, x), mask, queries=queries, past=past)
        x = (x if queries is None else x[:, queries]) + self._dropped(y)
        widen, _, narrow = self.mlp
        hidden = F.gelu(_project(widen, _normalize(self.norm_mlp, x)))  # type: ignore[arg-type]
        return x + self._dropped(_project(narrow, hidden))  # type: ignore[arg-type]

    def keys_values(self, x: Float[Tensor, "b n d"]) -> KeysValues:
        """Return the keys and values that others attend to."""
        return self.attention.keys_values(_normalize(self.norm_attention, x))

    def _dropped(self, x: Tensor) -> Tensor:
        return self.drop(x) if self.training else x
