"""Losses of the trajectory head, averaged over the steps that the mask keeps."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

PoseNorm = Literal["l1", "smooth_l1"]


def masked_mean(values: Float[Tensor, "b k"], mask: Bool[Tensor, "b k"]) -> Float[Tensor, ""]:
    """Average `values` where `mask` is true; zero where nothing is kept."""
    weight = mask.to(values.dtype)
    return (values * weight).sum() / weight.sum().clamp(min=1)


def pose_loss(
    predicted: Float[Tensor, "b k 6"],
    target: Float[Tensor, "b k 6"],
    mask: Bool[Tensor, "b k"],
    norm: PoseNorm,
) -> Float[Tensor, ""]:
    """Compare normalised poses by L1 or by smooth L1 (quadratic below 1)."""
    if norm == "l1":
        values = F.l1_loss(predicted, target, reduction="none")
    else:
        values = F.smooth_l1_loss(predicted, target, reduction="none")
    return masked_mean(values.mean(-1), mask)


def gripper_loss(
    logits: Float[Tensor, "b k"], target: Float[Tensor, "b k"], mask: Bool[Tensor, "b k"]
) -> Float[Tensor, ""]:
    """Binary cross-entropy [nats] of the gripper command, 1 open."""
    return masked_mean(F.binary_cross_entropy_with_logits(logits, target, reduction="none"), mask)


def kl_to_standard_normal(mean: Float[Tensor, "b z"], log_variance: Float[Tensor, "b z"]) -> Float[Tensor, ""]:
    """Divergence [nats] of `N(mean, exp(log_variance))` from `N(0, 1)`, summed over z, averaged over b.

    Source: Kingma and Welling, arXiv 1312.6114, appendix B.
    """
    terms = 1 + log_variance - mean.square() - log_variance.exp()
    return -0.5 * torch.sum(terms, dim=-1).mean()
