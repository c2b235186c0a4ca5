"""Which samples of a batch made its loss infinite or NaN."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor

from ..model.objectives import Batch, rows_of

_NAMED = 8
"""Samples that a message lists."""

NameEpisode = Callable[[int], str]


def find_bad_samples(batch: Batch, loss_of: Callable[[Batch], Tensor] | None) -> dict[int, str]:
    """Return the rows of the samples to blame, each with the reason.

    Samples that hold NaN or infinity are to blame; where there are none, those whose loss alone is not finite.

    Args:
        loss_of: the loss of a batch of one sample; None leaves this out (where other processes would have to help).
    """
    size = len(batch["text_id"])
    found: dict[int, str] = {}
    for name, values in _floats(batch):
        if len(values) == size:
            for row in torch.nonzero(~torch.isfinite(values).reshape(size, -1).all(1)).flatten().tolist():
                found.setdefault(row, f"{name} not finite")
    if found or loss_of is None:
        return found
    with torch.no_grad():
        losses = [float(loss_of(rows_of(batch, slice(row, row + 1)))) for row in range(size)]
    return {row: f"loss {loss}" for row, loss in enumerate(losses) if loss - loss != 0}


def describe_bad_samples(batch: Batch, bad: Mapping[int, str], name_episode: NameEpisode | None) -> str:
    """Name the samples in words; all of a batch at once is a fault of the weights rather than of the data."""
    size = len(batch["text_id"])
    if not bad:
        return ""
    episodes = batch.get("episode")
    named = []
    for row, reason in list(bad.items())[:_NAMED]:
        episode = None if episodes is None else int(episodes[row])
        if episode is None:
            name = f"sample {row} of the batch"
        else:
            name = f"episode {episode}" + (f" ({name_episode(episode)})" if name_episode is not None else "")
        named.append(f"{name}: {reason}")
    more = f", and {len(bad) - _NAMED} more" if len(bad) > _NAMED else ""
    every = " - every sample of the batch, so the weights diverged rather than the data" if len(bad) == size > 1 else ""
    return "; ".join(named) + more + every


def _floats(batch: Batch, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    for name, value in batch.items():
        if isinstance(value, Mapping):
            yield from _floats(value, f"{prefix}{name}.")
        elif isinstance(value, Tensor) and value.is_floating_point() and value.ndim:
            yield f"{prefix}{name}", value
