"""Losses of the trajectory heads, averaged over the numbers that the mask keeps."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

PoseNorm = Literal["l1", "smooth_l1"]


def masked_mean(
    values: Float[Tensor, "*b"], mask: Bool[Tensor, "*b"], kept: Float[Tensor, ""] | None = None
) -> Float[Tensor, ""]:
    """Average `values` where `mask` is true; zero where nothing is kept.

    Args:
        kept: how many are kept, where the sum is to be divided by another number than that of this mask.
    """
    count = mask.to(values.dtype).sum() if kept is None else kept.to(values.dtype)
    return torch.where(mask, values, 0).sum() / count.clamp(min=1)


def continuous_loss(
    predicted: Float[Tensor, "b k c"],
    target: Float[Tensor, "b k c"],
    mask: Bool[Tensor, "b k c"],
    norm: PoseNorm,
    kept: Float[Tensor, ""] | None = None,
) -> Float[Tensor, ""]:
    """Compare normalized numbers by L1 or by smooth L1 (quadratic below 1)."""
    if norm == "l1":
        return masked_mean(F.l1_loss(predicted, target, reduction="none"), mask, kept)
    return masked_mean(F.smooth_l1_loss(predicted, target, reduction="none"), mask, kept)


def binary_loss(
    logits: Float[Tensor, "b k c"],
    target: Float[Tensor, "b k c"],
    mask: Bool[Tensor, "b k c"],
    kept: Float[Tensor, ""] | None = None,
) -> Float[Tensor, ""]:
    """Binary cross-entropy [nats] of commands that are 0 or 1."""
    return masked_mean(F.binary_cross_entropy_with_logits(logits, target, reduction="none"), mask, kept)


def chunk_losses(
    rows: Float[Tensor, "b k c"],
    target: Float[Tensor, "b k c"],
    mask: Bool[Tensor, "b k c"],
    binary: Bool[Tensor, " c"],
    norm: PoseNorm,
    kept: Float[Tensor, " c"] | None = None,
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Return the loss of the continuous and of the binary columns; `rows` has logits in the latter.

    What the mask leaves out may be NaN. `kept` is as in `TrajectoryHead.loss`.
    """
    target = target.masked_fill(~mask, 0)
    where = [torch.nonzero(kind).flatten() for kind in (~binary, binary)]
    parts = [(rows[..., at], target[..., at], mask[..., at]) for at in where]
    counts = [None if kept is None else kept[at].sum() for at in where]
    return continuous_loss(*parts[0], norm, counts[0]), binary_loss(*parts[1], counts[1])


def kl_to_standard_normal(mean: Float[Tensor, "b z"], log_variance: Float[Tensor, "b z"]) -> Float[Tensor, "b z"]:
    """Divergence [nats] of `N(mean, exp(log_variance))` from `N(0, 1)`, number by number.

    Source: Kingma and Welling, arXiv 1312.6114, appendix B.
    """
    return -0.5 * (1 + log_variance - mean.square() - log_variance.exp())


def kl_between_normals(
    mean: Float[Tensor, "b z"],
    log_variance: Float[Tensor, "b z"],
    prior_mean: Float[Tensor, "b z"],
    prior_log_variance: Float[Tensor, "b z"],
) -> Float[Tensor, "b z"]:
    """Divergence [nats] of one diagonal normal distribution from another, number by number."""
    ratio = (log_variance - prior_log_variance).exp()
    distance = (mean - prior_mean).square() * (-prior_log_variance).exp()
    return 0.5 * (prior_log_variance - log_variance + ratio + distance - 1)
