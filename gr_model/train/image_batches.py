"""Images streamed from video shards for tokenizer training: a resumable stream and held-out images."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ...contracts import Array
from ...data_pipeline.loading.clip_images import split_images
from ...data_pipeline.loading.loader import BatchLoader, LoaderConfig

if TYPE_CHECKING:
    from ...tokenizers.streaming import ImageStream

MAX_VALIDATION = 1024
"""Held-out images that are kept in memory."""


def open_image_stream(
    shards: Path,
    *,
    image_size: int,
    steps: int,
    batch_size: int,
    num_workers: int,
    seed: int,
    validation_share: float = 0.03,
) -> tuple[ImageStream, Array]:
    """Open video shards for training without holding their images in memory.

    Args:
        image_size: side [px].
        steps: batches of the stream.
        batch_size: images a batch.
        num_workers: processes that decode ahead; 0 decodes in this process.
        seed: chooses the order.
        validation_share: share of the videos that is held out, one at least.

    Returns:
        The stream, and validation images, uint8 `[m size size 3]`, of other videos.

    Raises:
        DataError: the shards are unfinished, hold too few videos or cannot be decoded.
    """
    from ...tokenizers.streaming import ImageStream, collect_images

    train, held_out = split_images([shards], size=image_size, share=validation_share)
    num_windows = -(-batch_size // train.num_images)
    loader = BatchLoader(train, batch_size=num_windows, seed=seed, config=LoaderConfig(num_workers=num_workers))
    several = BatchLoader(held_out, batch_size=min(8, int(held_out.counts.sum())), seed=seed)
    validation = collect_images(several, num_batches=len(several), max_images=MAX_VALIDATION)
    return ImageStream(loader, steps=steps, batch_size=batch_size), validation
