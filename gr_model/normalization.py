"""Statistics of state features and chunk poses, and the layer that applies them inside the model.

The model takes and returns physical numbers; the statistics are buffers of its state dict, so that a
checkpoint cannot be used with those of another data set.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..cvae_head.trajectory import POSE_DIM, chunk_targets, state_features
from .contracts import Array
from .errors import DataError

CONSTANT_BELOW = 1e-5
"""Standard deviation under which a dimension counts as constant and is only centred."""


@dataclass(frozen=True, kw_only=True)
class Statistics:
    """Mean and standard deviation of state features `[s]` and of chunk poses `[k 6]` ([m], [rad]).

    Poses have statistics for each step of the chunk: they spread with time, and the first ones, which are carried
    out, must not count less than the last.
    """

    state_mean: tuple[float, ...]
    state_std: tuple[float, ...]
    action_mean: tuple[tuple[float, ...], ...]
    action_std: tuple[tuple[float, ...], ...]

    def to_dict(self) -> dict[str, list[Any]]:
        """Return plain lists, for JSON."""
        return {name: list(values) for name, values in asdict(self).items()}

    @staticmethod
    def neutral(state_dim: int, chunk_length: int) -> Statistics:
        """Return statistics that change nothing."""
        return Statistics(
            state_mean=(0.0,) * state_dim,
            state_std=(1.0,) * state_dim,
            action_mean=((0.0,) * POSE_DIM,) * chunk_length,
            action_std=((1.0,) * POSE_DIM,) * chunk_length,
        )


def measure_statistics(
    states: Array, actions: Array, action_mask: Array | None = None, *, joints: bool = False
) -> Statistics:
    """Measure statistics on training windows.

    Args:
        states: `[m 16]`, the state at which each chunk begins.
        actions: `[m k 8]`, commanded poses; action_mask: `[m k]`, True = keep.
        joints: whether the model reads joint angles.

    Raises:
        DataError: no step is kept, or a number is not finite.
    """
    features = state_features(np.asarray(states, np.float64), joints=joints)
    poses = chunk_targets(np.asarray(states, np.float64), np.asarray(actions, np.float64))[..., :POSE_DIM]
    keep = np.ones(poses.shape[:2], bool) if action_mask is None else np.asarray(action_mask, bool)
    kept = poses[keep]
    if not len(kept) or not keep.any(0).all() or not (np.isfinite(kept).all() and np.isfinite(features).all()):
        raise DataError(
            f"measure_statistics: expected finite states and actions with steps to keep, got {len(kept)} "
            f"steps"
            f"{' and NaN or infinity' if len(kept) else ''}; check the episodes of the training set."
        )
    state_mean, state_std = _moments(features)
    steps = [_moments(poses[keep[:, i], i]) for i in range(poses.shape[1])]
    return Statistics(
        state_mean=state_mean,
        state_std=state_std,
        action_mean=tuple(mean for mean, _ in steps),
        action_std=tuple(std for _, std in steps),
    )


def _moments(rows: Array) -> tuple[tuple[float, ...], tuple[float, ...]]:
    std = rows.std(axis=0)
    std = np.where(std < CONSTANT_BELOW, 1.0, std)
    return tuple(rows.mean(axis=0).tolist()), tuple(std.tolist())


class Standardize(nn.Module):
    """Map physical numbers to zero mean and unit deviation, and back; `mean` and `std` are buffers."""

    mean: Tensor
    std: Tensor

    def __init__(self, *size: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("std", torch.ones(size))

    def set(self, mean: Sequence[Any], std: Sequence[Any]) -> None:
        """Copy statistics in."""
        self.mean.copy_(torch.tensor(mean))
        self.std.copy_(torch.tensor(std))

    def forward(self, values: Tensor) -> Tensor:
        """Normalise `[.. *size]`."""
        return (values - self.mean) / self.std

    def invert(self, values: Tensor) -> Tensor:
        """Undo `forward`."""
        return values * self.std + self.mean
