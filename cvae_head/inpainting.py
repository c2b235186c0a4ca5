"""Inpainting: a chunk is sampled so that it continues the one that is running (real-time chunking).

While a slow policy answers, the robot executes the rest of its running chunk. Steps that will have been executed when
the answer arrives are frozen, those after them are kept less and less, and the others are free.

Source: Black, Galliker and Levine, Real-Time Execution of Action Chunking Flow Policies, arXiv 2506.07339.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..contracts import Array
from .head import Condition, Seen

MAX_GUIDANCE = 5.0
"""Largest guidance weight (beta of arXiv 2506.07339): an unbounded one diverges with a few steps of denoising."""


@dataclass(frozen=True, kw_only=True)
class Running:
    """The rest of the running chunk, row by row beside the steps of the chunk to be sampled.

    chunk: normalized columns, binary ones 0 or 1; weight: 1 is frozen, 0 is free.
    """

    chunk: Float[Tensor, "b k c"]
    weight: Float[Tensor, "b k"]


def soft_mask(length: int, *, frozen: int, overlap: int) -> Array:
    """Return how much each step of a chunk is kept `[k]`.

    Args:
        length: k.
        frozen: first steps that are kept whole.
        overlap: first steps that the running chunk still covers; the weights fall to 0 at its end.

    Source: arXiv 2506.07339, equation 5.
    """
    step = np.arange(length)
    frozen = min(frozen, overlap)
    share = np.clip((overlap - step) / (overlap - frozen + 1), 0.0, 1.0)
    decayed = share * np.expm1(share) / np.expm1(1.0)
    return np.where(step < frozen, 1.0, decayed)


def guide(
    predict: Callable[[Tensor, Condition], Tensor],
    noisy: Float[Tensor, "b k c"],
    condition: Condition,
    running: Running,
    present: Bool[Tensor, "b c"] | None = None,
    *,
    signal: float,
    noise: float,
) -> Float[Tensor, "b k c"]:
    """Predict the clean chunk of a noisy one, pulled towards the running chunk.

    The pull is the gradient of the weighted squared distance from the running chunk, through the network: the clean
    chunk moves as a whole along what the network knows of chunks.

    Args:
        predict: from noisy chunk and condition to the clean chunk, differentiable.
        present: True = keep; a column that is absent in the embodiment of a sample pulls nothing. None keeps all.
        signal: factor of the clean chunk in the noisy one.
        noise: factor of the standard normal noise in it.

    Source: arXiv 2506.07339, equations 2 to 4, there for signal + noise = 1; other noisy chunks are those, scaled.
    """
    # Acting runs in inference mode, whose tensors take no gradient: copies outside of it do.
    with torch.inference_mode(False), torch.enable_grad():
        start = noisy.clone().detach().requires_grad_()
        copied = condition.map(_copy) if isinstance(condition, Seen) else _copy(condition)
        clean = predict(start, copied)
        kept = clean.detach()
        error = running.weight[..., None] * (running.chunk - kept)
        error = error if present is None else error * present[:, None]
        (pull,) = torch.autograd.grad(clean, start, error.to(clean.dtype))
    both = signal * noise
    weight = min(MAX_GUIDANCE, (signal**2 + noise**2) / both) if both > 0 else MAX_GUIDANCE
    return kept + noise * weight * pull


def _copy(tensor: Tensor) -> Tensor:
    return tensor.clone().detach()
