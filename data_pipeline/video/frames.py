"""Resize images to the square that the image tokenizer wants."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from PIL import Image

from ...contracts import Array

ImageFit = Literal["crop", "pad", "stretch"]
"""How an image that is no square becomes one: its middle, itself between black bars, or squeezed."""


def resize_frames(frames: Array, size: int, fit: ImageFit = "crop") -> Array:
    """Resize uint8 `[f h w 3]` to `[f size size 3]` by averaging over areas.

    Training data and live cameras both pass through this function, so a policy sees the pixels that it was trained
    on. Square images are the same for every `fit`.

    Pillow's Hamming window is used: it differs from the exact mean over each area by about half a gray level
    and is fast; Pillow's box filter is off by 1.4 for 200 -> 64 pixels, where borders of areas split pixels.
    """
    height, width = frames.shape[1:3]
    if (height, width) == (size, size):
        return frames
    inner = (size, size)
    if fit == "crop" and height != width:
        side = min(height, width)
        top, left = (height - side) // 2, (width - side) // 2
        frames = frames[:, top : top + side, left : left + side]
    elif fit == "pad" and height != width:
        longer = max(height, width)
        inner = (max(1, round(size * height / longer)), max(1, round(size * width / longer)))
    if frames.shape[1:3] == inner:
        resized = frames
    else:
        shape = inner[::-1]
        images = [Image.fromarray(frame).resize(shape, Image.Resampling.HAMMING) for frame in frames]
        resized = np.stack([np.asarray(image) for image in images])
    if inner == (size, size):
        return resized
    framed = np.zeros((len(frames), size, size, 3), np.uint8)
    top, left = (size - inner[0]) // 2, (size - inner[1]) // 2
    framed[:, top : top + inner[0], left : left + inner[1]] = resized
    return framed


def stated_fit(record: Mapping[str, Any]) -> ImageFit:
    """Return how images were made square, from facts of token shards or a release; earlier versions squeezed them."""
    found: ImageFit = record.get("image_fit", "stretch")
    return found
