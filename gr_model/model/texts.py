"""Features of the texts that a model reads in training: a table of them, or an encoder that computes them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ...errors import ShapeError


@runtime_checkable
class Texts(Protocol):
    """Gives the features of numbered texts; `text_id` of a batch counts them.

    They are no part of a model's state dict.
    """

    @property
    def width(self) -> int:
        """Length of a token's feature."""
        ...

    @property
    def length(self) -> int:
        """Positions of every text, padding included."""
        ...

    def of(self, text_ids: Sequence[int], device: torch.device) -> tuple[Float[Tensor, "b l t"], Bool[Tensor, "b l"]]:
        """Return features and mask of texts on a device, without gradients; a negative id has none."""
        ...


class TextTable:
    """Features of all texts, cut to the longest, in the memory of the device that asked for them last.

    Args:
        features: of every token, float32 or what becomes it.
        mask: True up to the end of each text.
    """

    def __init__(self, features: Float[Tensor, "s l t"], mask: Bool[Tensor, "s l"]) -> None:
        longest = max(int(mask.any(0).nonzero().max()) + 1, 1) if bool(mask.any()) else 1
        self.features = features[:, :longest].detach().float()
        self.mask = mask[:, :longest]

    @classmethod
    def empty(cls, width: int) -> TextTable:
        """Return the table of a model that was given no texts."""
        return cls(torch.zeros(0, 1, width, device="cpu"), torch.zeros(0, 1, dtype=torch.bool, device="cpu"))

    def __len__(self) -> int:
        return len(self.features)

    @property
    def width(self) -> int:
        """Length of a token's feature."""
        return self.features.shape[-1]

    @property
    def length(self) -> int:
        """Positions of the longest text."""
        return self.features.shape[1]

    def of(self, text_ids: Sequence[int], device: torch.device) -> tuple[Float[Tensor, "b l t"], Bool[Tensor, "b l"]]:
        """Return features and mask of texts on a device; a negative id has none.

        Raises:
            ShapeError: an id beyond the table.
        """
        highest = max(0, *text_ids)
        if highest >= len(self):
            raise ShapeError(
                f"batch: expected text_id below {len(self)}, got {highest}; give the model the features of its texts "
                "with set_texts first."
            )
        self.features, self.mask = self.features.to(device), self.mask.to(device)
        ids = torch.tensor(text_ids, device=device)
        return self.features[ids.clamp(min=0)], self.mask[ids.clamp(min=0)] & (ids >= 0)[:, None]
