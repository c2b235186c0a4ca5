"""LoRA: the trunk's linear layers keep their weights and learn a change of low rank.

Gradients, optimizer states and the weight average are then those of the changes and of what lies around the trunk.
Source: Hu et al., arXiv 2106.09685; that all linear layers are adapted, as in OpenVLA, arXiv 2406.09246.
"""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ..model.world_model import WorldModel
from .options import LoraOptions


class _Change(nn.Module):
    """Adds `alpha / rank` times a product of two thin matrices to a weight; nothing at first."""

    def __init__(self, weight: Tensor, options: LoraOptions) -> None:
        super().__init__()
        rows, columns = weight.shape
        self.scale = options.alpha / options.rank
        self.down = nn.Parameter(torch.randn(options.rank, columns, device=weight.device) / math.sqrt(columns))
        self.up = nn.Parameter(torch.zeros(rows, options.rank, device=weight.device))

    def forward(self, weight: Tensor) -> Tensor:
        return torch.addmm(weight, self.up, self.down, alpha=self.scale)


def adapt(model: WorldModel, options: LoraOptions) -> None:
    """Freeze the trunk and give its linear layers changes that are trained in their place."""
    model.gpt.requires_grad_(False)
    for layer in [module for module in model.gpt.modules() if isinstance(module, nn.Linear)]:
        parametrize.register_parametrization(layer, "weight", _Change(layer.weight, options))


def rank_of(model: WorldModel) -> int:
    """Return the rank of the changes of a model, 0 where there are none."""
    return next((len(module.down) for module in model.gpt.modules() if isinstance(module, _Change)), 0)


def merged(model: WorldModel) -> WorldModel:
    """Return the model with the changes added to its weights; the model itself where there are none."""
    if not rank_of(model):
        return model
    whole = copy.deepcopy(model)
    for layer in list(whole.gpt.modules()):
        if parametrize.is_parametrized(layer):
            parametrize.remove_parametrizations(layer, "weight", leave_parametrized=True)
    return whole.requires_grad_(True)
