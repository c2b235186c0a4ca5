"""LoRA: the trunk's linear layers keep their weights and learn a change of low rank beside them.

Gradients, optimizer states, the weight average and checkpoints are then those of the changes and of what lies around
the trunk. Frozen weights may be kept in 16, 8 or 4 bits (QLoRA); they are unpacked a layer at a time, forward and
backward.

Source: Hu et al., arXiv 2106.09685; that all linear layers are adapted, as in OpenVLA, arXiv 2406.09246; Dettmers et
al., QLoRA, arXiv 2305.14314.
"""

from __future__ import annotations

import copy
import ctypes
import hashlib
import math
import sys
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from ...errors import ConfigError
from ...layers import product_dtype
from ..model.world_model import WorldModel
from .options import LoraOptions

_BLOCK = 64 * 256
"""Numbers that share a scale, and scales that do: what NF4 divides a weight into."""


class _FrozenProduct(torch.autograd.Function):
    """Multiply by a frozen weight, or some of its rows; nothing but the weight as it is kept stays for the backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, rows: slice, dtype: torch.dtype) -> Tensor:
        ctx.weight, ctx.rows, ctx.given = weight, rows, x.dtype
        return x.to(dtype) @ unpacked(weight)[rows].to(dtype).t()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:  # type: ignore[override]
        weight = unpacked(ctx.weight)[ctx.rows].to(gradient.dtype)
        return (gradient @ weight).to(ctx.given), None, None, None


class LowRankChange(nn.Module):
    """`alpha / rank` times a product of two thin matrices, beside a frozen layer; nothing at first."""

    def __init__(self, layer: nn.Linear, options: LoraOptions) -> None:
        super().__init__()
        rows, columns = layer.weight.shape
        device = layer.weight.device
        self.scale = options.alpha / options.rank
        self.down = nn.Parameter(torch.randn(options.rank, columns, device=device) / math.sqrt(columns))
        self.up = nn.Parameter(torch.zeros(rows, options.rank, device=device))

    def forward(self, layer: nn.Linear, x: Float[Tensor, "*b i"], rows: slice) -> Float[Tensor, "*b o"]:
        """Apply some rows of a layer and of its change."""
        kept: Tensor = _FrozenProduct.apply(x, layer.weight, rows, product_dtype(x))  # type: ignore[no-untyped-call]
        return kept + layer.bias[rows] + self.scale * F.linear(F.linear(x, self.down), self.up[rows])


def unpacked(weight: Tensor) -> Float[Tensor, "o i"]:
    """Return a weight as plain numbers, however it is kept."""
    for name in ("get_original_weight", "dequantize"):  # NF4 and 8 bits
        if type(weight) not in (Tensor, nn.Parameter) and hasattr(weight, name):
            plain: Tensor = getattr(weight, name)()
            return plain
    return weight


def _packed(weight: Tensor, bits: int) -> Tensor:
    """Return a weight in fewer bits.

    Raises:
        ConfigError: torchao is missing, or the weight does not divide into its blocks.
    """
    if bits >= 16:
        return weight if bits == 32 else weight.bfloat16()
    try:
        from torchao.quantization import Int8WeightOnlyConfig, quantize_, to_nf4
    except ImportError:
        raise ConfigError(
            f"--lora.bits {bits}: expected the package torchao (0.18), found none; install it (`pip install "
            "'gr2[lora]'`), or choose 16."
        ) from None
    if bits == 4:
        if weight.numel() % _BLOCK:
            raise ConfigError(
                f"--lora.bits 4: expected weights in blocks of {_BLOCK} numbers, got one of {tuple(weight.shape)}; "
                "choose 8."
            )
        return to_nf4(weight)  # type: ignore[no-any-return]
    holder = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    holder.weight = nn.Parameter(weight, requires_grad=False)
    quantize_(holder, Int8WeightOnlyConfig())
    return holder.weight


def adapt(model: WorldModel, options: LoraOptions) -> None:
    """Freeze the trunk and give its linear layers changes that are trained in their place."""
    model.gpt.requires_grad_(False)
    for layer in _linear_layers(model):
        layer.add_module("change", LowRankChange(layer, options))
        layer.weight = nn.Parameter(_packed(layer.weight.detach(), options.bits), requires_grad=False)
    _give_back_memory()


def _give_back_memory() -> None:
    """Return what was freed to the system; between the packed weights glibc keeps the pages of the plain ones."""
    if sys.platform == "linux" and (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)) is not None:
        trim(0)


def _linear_layers(model: WorldModel) -> list[nn.Linear]:
    return [module for module in model.gpt.modules() if isinstance(module, nn.Linear)]


def rank_of(model: WorldModel) -> int:
    """Return the rank of the changes of a model, 0 where there are none."""
    return next((len(module.down) for module in model.gpt.modules() if isinstance(module, LowRankChange)), 0)


def frozen_bytes(model: WorldModel) -> float:
    """Return how much memory frozen weights take [byte]."""
    each = {torch.float32: 4.0, torch.bfloat16: 2.0}
    total = 0.0
    for p in (p for p in model.parameters() if not p.requires_grad):
        packed = unpacked(p) is not p
        total += p.numel() * ((0.5 if hasattr(p, "get_original_weight") else 1.0) if packed else each.get(p.dtype, 4.0))
    return total


def frozen_names(model: WorldModel) -> list[str]:
    """Name the weights that checkpoints leave out: those that adapted layers keep."""
    if not rank_of(model):
        return []
    changes = [name for name, module in model.named_modules() if isinstance(module, LowRankChange)]
    return [f"{name.removesuffix('.change')}.weight" for name in changes]


def fingerprint_of_frozen(model: WorldModel) -> str:
    """Identify the weights that adapted layers keep, by the first row of each."""
    digest, state = hashlib.sha256(), dict(model.named_parameters())
    for name in frozen_names(model):
        digest.update(unpacked(state[name])[0].float().cpu().numpy().tobytes())
    return digest.hexdigest()


def merged(model: WorldModel, *, in_place: bool = False) -> WorldModel:
    """Return the model with the changes added to its weights; the model itself where there are none.

    Args:
        in_place: change the model itself, which then takes no second place in memory and cannot be trained on.
    """
    if not rank_of(model):
        return model
    whole = model if in_place else copy.deepcopy(model)
    for layer in _linear_layers(whole):
        change = layer._modules.pop("change")
        assert isinstance(change, LowRankChange)
        weight = unpacked(layer.weight.detach()).float()
        layer.weight = nn.Parameter(torch.addmm(weight, change.up, change.down, alpha=change.scale).detach())
    return whole.requires_grad_(True)
