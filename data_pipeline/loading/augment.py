"""Augmentation of clips: one sample of crop and color for all frames of all cameras, so that motion stays motion.

There is no mirroring: "left" would become "right".
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image

from ...contracts import Array
from ...errors import ConfigError

_LUMA = np.array([0.299, 0.587, 0.114], np.float32)
"""Weights of red, green and blue in brightness. Source: ITU-R BT.601."""


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """How far a clip may be changed; zeros change nothing.

    min_crop: smallest share of the area that a crop keeps, 1 for no crop.
    brightness, contrast, saturation: greatest relative change of each.
    """

    min_crop: float = 0.85
    brightness: float = 0.15
    contrast: float = 0.15
    saturation: float = 0.15

    def __post_init__(self) -> None:
        changes = (self.brightness, self.contrast, self.saturation)
        if not 0 < self.min_crop <= 1 or min(changes) < 0 or max(changes) >= 1:
            raise ConfigError(
                f"augmentation: expected 0 < min_crop <= 1 and changes in [0, 1), got {self}; correct them."
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Augmentation:
    """One draw.

    box: left, top, right, bottom of the crop, as shares of width and height.
    brightness, contrast, saturation: factors.
    """

    box: tuple[float, float, float, float]
    brightness: float
    contrast: float
    saturation: float


UNCHANGED = Augmentation(box=(0.0, 0.0, 1.0, 1.0), brightness=1.0, contrast=1.0, saturation=1.0)


def sample_augmentation(config: AugmentConfig, rng: np.random.Generator) -> Augmentation:
    """Sample the changes of one clip."""
    side = float(np.sqrt(rng.uniform(config.min_crop, 1.0)))
    left, top = rng.uniform(0.0, 1.0 - side, 2).tolist()
    factors = [float(rng.uniform(1 - c, 1 + c)) for c in (config.brightness, config.contrast, config.saturation)]
    return Augmentation(
        box=(left, top, left + side, top + side), brightness=factors[0], contrast=factors[1], saturation=factors[2]
    )


def augment_frames(frames: Array, augmentation: Augmentation, size: int) -> Array:
    """Crop, resize and recolor uint8 `[f h w 3]` to `[f size size 3]`, all frames alike."""
    height, width = frames.shape[1:3]
    left, top, right, bottom = augmentation.box
    box = (left * width, top * height, right * width, bottom * height)
    if frames.shape[1:3] != (size, size) or augmentation.box != UNCHANGED.box:
        window = Image.Resampling.HAMMING
        frames = np.stack([np.asarray(Image.fromarray(f).resize((size, size), window, box=box)) for f in frames])
    factors = (augmentation.brightness, augmentation.contrast, augmentation.saturation)
    return frames if factors == (1.0, 1.0, 1.0) else _recolored(frames, *factors)


def _recolored(frames: Array, brightness: float, contrast: float, saturation: float) -> Array:
    """Change saturation about each pixel's gray, contrast about the clip's mean gray, then brightness."""
    pixels = frames.astype(np.float32)
    gray = pixels @ _LUMA
    mean = gray.mean()
    pixels *= saturation
    pixels += ((1 - saturation) * gray)[..., None]
    pixels -= mean
    pixels *= contrast
    pixels += mean
    pixels *= brightness
    return np.clip(pixels, 0, 255, out=pixels).round().astype(np.uint8)
