"""Resize images to the square that the image tokenizer wants."""

from __future__ import annotations

import numpy as np
from PIL import Image

from ...contracts import Array


def resize_frames(frames: Array, size: int) -> Array:
    """Resize uint8 `[f h w 3]` to `[f size size 3]` by averaging over areas, without cropping.

    The whole image stays visible, its aspect ratio does not: a wide image is squeezed. Training data and
    live cameras both pass through this function, so a policy sees the pixels that it was trained on.

    Pillow's Hamming window is used: it differs from the exact mean over each area by about half a gray level
    and is fast; Pillow's box filter is off by 1.4 for 200 -> 64 pixels, where borders of areas split pixels.
    """
    if frames.shape[1:3] == (size, size):
        return frames
    resized = [Image.fromarray(frame).resize((size, size), Image.Resampling.HAMMING) for frame in frames]
    return np.stack([np.asarray(image) for image in resized])
