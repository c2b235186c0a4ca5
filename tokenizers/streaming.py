"""Batches of images from a loader of decoded windows: a fixed number a step, resumable at any step."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from itertools import islice
from typing import Any, Protocol

import torch
from jaxtyping import UInt8
from torch import Tensor

from ..contracts import Array
from ..errors import DataError

_MAX_EMPTY = 50
"""Batches without one image, in a row, after which the data is called unusable."""


class WindowLoader(Protocol):
    """Endless batches of `frames` (uint8 `[b f h w 3]`), `frame_mask` (bool `[b f]`) and `problems`; resumable."""

    def __iter__(self) -> Iterator[dict[str, Any]]: ...

    def state_dict(self) -> dict[str, Any]:
        """Return what is needed to resume after the last batch."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume where `state_dict` was taken."""
        ...


class ImageStream:
    """Exactly `steps` batches of `batch_size` images, as one resumable epoch.

    Images that are missing from a window are replaced by others of the same batch.

    Args:
        loader: windows; together those of a batch hold at least `batch_size` images.
        steps: batches.
        batch_size: images a batch.

    Iterating raises a DataError where no window can be decoded for many batches in a row.
    """

    def __init__(self, loader: WindowLoader, *, steps: int, batch_size: int) -> None:
        self.loader, self.steps, self.batch_size = loader, steps, batch_size
        self.step = 0
        self.num_problems = 0

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[UInt8[Tensor, "b h w 3"]]:
        batches = self._filled()
        while self.step < self.steps:
            images = next(batches)
            # before the yield: a checkpoint made with this batch resumes after it
            self.step += 1
            yield images

    def _filled(self) -> Iterator[UInt8[Tensor, "b h w 3"]]:
        empty = 0
        for batch in self.loader:
            self._tell(batch["problems"])
            images = batch["frames"][batch["frame_mask"]]
            empty = 0 if len(images) else empty + 1
            if empty > _MAX_EMPTY:
                raise DataError(
                    f"Tokenizer training: expected images, got none in {empty} batches in a row; the last reason: "
                    f"{(batch['problems'] or ['clips without frames'])[-1]}"
                )
            if len(images):
                yield images[torch.arange(self.batch_size) % len(images)]

    def _tell(self, problems: list[str]) -> None:
        """Warn about the 1st, 2nd, 4th, 8th ... clip that cannot be decoded."""
        for problem in problems:
            self.num_problems += 1
            if self.num_problems & (self.num_problems - 1) == 0:
                warnings.warn(f"Left out {self.num_problems} clips so far; the last: {problem}", stacklevel=2)

    def state_dict(self) -> dict[str, Any]:
        """Return the position and the loader's state."""
        return {"step": self.step, "loader": self.loader.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue after the batches that were used."""
        self.step = state["step"]
        self.loader.load_state_dict(state["loader"])


def collect_images(loader: WindowLoader, *, num_batches: int, max_images: int) -> Array:
    """Return up to `max_images` images, uint8 `[m h w 3]`, of the first `num_batches` batches.

    Raises:
        DataError: none can be decoded.
    """
    found: list[Tensor] = []
    problems: list[str] = []
    for batch in islice(iter(loader), num_batches):
        found.append(batch["frames"][batch["frame_mask"]])
        problems += batch["problems"]
        if sum(map(len, found)) >= max_images:
            break
    images: Array = torch.cat(found)[:max_images].numpy() if found else torch.zeros(0).numpy()
    if not len(images):
        raise DataError(
            "Tokenizer validation: expected images, got none that can be decoded; "
            f"{problems[-1] if problems else 'write more shards.'}"
        )
    return images
