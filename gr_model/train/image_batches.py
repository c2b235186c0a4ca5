"""Pictures streamed from video shards for tokenizer training: a resumable stream and held-out pictures."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ...contracts import Array
from ...data_pipeline.loading.clip_images import split_pictures
from ...data_pipeline.loading.loader import BatchLoader, LoaderConfig

if TYPE_CHECKING:
    from ...tokenizers.streaming import PictureStream

MAX_VALIDATION = 1024
"""Held-out pictures that are kept in memory."""


def open_picture_stream(
    shards: Path, *, image_size: int, steps: int, batch_size: int, num_workers: int, seed: int
) -> tuple[PictureStream, Array]:
    """Open video shards for training without holding their pictures in memory.

    Args:
        image_size: side [px].
        steps: batches of the stream.
        batch_size: pictures a batch.
        num_workers: processes that decode ahead; 0 decodes in this process.
        seed: chooses the order.

    Returns:
        The stream, and validation pictures, uint8 `[m size size 3]`, of other videos.

    Raises:
        DataError: the shards are unfinished, hold too few videos or cannot be decoded.
    """
    from ...tokenizers.streaming import PictureStream, collect_pictures

    train, held_out = split_pictures([shards], size=image_size)
    num_windows = -(-batch_size // train.num_pictures)
    loader = BatchLoader(train, batch_size=num_windows, seed=seed, config=LoaderConfig(num_workers=num_workers))
    several = BatchLoader(held_out, batch_size=min(8, int(held_out.counts.sum())), seed=seed)
    validation = collect_pictures(several, num_batches=len(several), max_pictures=MAX_VALIDATION)
    return PictureStream(loader, steps=steps, batch_size=batch_size), validation
