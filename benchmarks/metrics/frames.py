"""How well predicted frames match the real future, beside the guess that nothing moves (the copied frame)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.ndimage import gaussian_filter

from ...errors import ShapeError

Frames = npt.NDArray[np.uint8]
Codes = npt.NDArray[np.integer]

PSNR_CEILING_DB = 60.0
"""PSNR is clipped here [dB], so that equal frames have a finite value and do not rule a mean."""

MOVING_THRESHOLD = 12
"""A pixel moves when a channel of the real future differs from the current frame by more than this."""

_SSIM_SIGMA = 1.5
_SSIM_RADIUS = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class StepMetrics:
    """Metrics of one predicted frame, `horizon` frames ahead; `..._copy` are those of the copied frame.

    psnr, psnr_moving: [dB]; psnr_moving is NaN where no pixel moves.
    ssim: at most 1. token_accuracy: share of equal codes, NaN where no codes were given.
    """

    horizon: int
    psnr: float
    psnr_copy: float
    psnr_moving: float
    psnr_moving_copy: float
    ssim: float
    ssim_copy: float
    token_accuracy: float = math.nan
    token_accuracy_copy: float = math.nan


def psnr(first: Frames, second: Frames) -> npt.NDArray[np.float64]:
    """Measure the peak signal-to-noise ratio `[f]` [dB] of frames `[f h w 3]`, at most `PSNR_CEILING_DB`.

    Raises:
        ShapeError: The frames are not uint8 `[f h w 3]` of one shape.
    """
    _expect_frames(first, second)
    error = np.square(first.astype(np.float64) - second).mean(axis=(1, 2, 3))
    return _decibel(error)


def moving_mask(current: Frames, future: Frames, *, threshold: int = MOVING_THRESHOLD) -> npt.NDArray[np.bool_]:
    """Mark the pixels `[f h w]` of the future that differ from the current frame by more than `threshold`."""
    _expect_frames(current[None], future[:1])
    difference = np.abs(future.astype(np.int16) - current[None].astype(np.int16))
    return np.asarray((difference > threshold).any(axis=-1))


def masked_psnr(first: Frames, second: Frames, mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.float64]:
    """Measure PSNR `[f]` [dB] over the pixels of `mask` `[f h w]` alone; NaN for a frame without any.

    Raises:
        ShapeError: The frames or the mask do not fit each other.
    """
    _expect_frames(first, second)
    if mask.shape != first.shape[:3]:
        raise ShapeError(f"Mask: expected shape {first.shape[:3]}, got {mask.shape}; make one mask per frame.")
    squares = np.square(first.astype(np.float64) - second).mean(axis=-1)
    counts = mask.sum(axis=(1, 2))
    error = (squares * mask).sum(axis=(1, 2)) / np.maximum(counts, 1)
    return np.where(counts > 0, _decibel(error), np.nan)


def ssim(first: Frames, second: Frames) -> npt.NDArray[np.float64]:
    """Measure structural similarity `[f]`: Gaussian window of 11 pixels, mean over channels and inner pixels.

    Raises:
        ShapeError: The frames are not uint8 `[f h w 3]` of one shape, or smaller than the window.

    Source: Z. Wang et al., IEEE Transactions on Image Processing 13, 2004, pages 600-612.
    """
    _expect_frames(first, second)
    if min(first.shape[1:3]) <= 2 * _SSIM_RADIUS:
        raise ShapeError(f"SSIM: expected frames of at least 11 x 11 pixels, got {first.shape[1:3]}; enlarge them.")
    x, y = first.astype(np.float64), second.astype(np.float64)
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    mean_x, mean_y = _blur(x), _blur(y)
    variance_x = _blur(x * x) - mean_x**2
    variance_y = _blur(y * y) - mean_y**2
    covariance = _blur(x * y) - mean_x * mean_y
    similarity = ((2 * mean_x * mean_y + c1) * (2 * covariance + c2)) / (
        (mean_x**2 + mean_y**2 + c1) * (variance_x + variance_y + c2)
    )
    inner = slice(_SSIM_RADIUS, -_SSIM_RADIUS)
    return similarity[:, inner, inner].mean(axis=(1, 2, 3))


def token_accuracy(predicted: Codes, real: Codes) -> npt.NDArray[np.float64]:
    """Measure the share of equal codes `[f]` of two code arrays `[f n]`.

    Raises:
        ShapeError: The arrays are not two-dimensional and of one shape.
    """
    if predicted.ndim != 2 or predicted.shape != real.shape:
        raise ShapeError(
            f"Token accuracy: expected code arrays [f n] of one shape, got {predicted.shape}, {real.shape}; "
            "compare the same horizon and camera."
        )
    return (predicted == real).mean(axis=1)


def compare_futures(
    *,
    predicted: Frames,
    real: Frames,
    current: Frames,
    predicted_codes: Codes | None = None,
    real_codes: Codes | None = None,
    current_codes: Codes | None = None,
    threshold: int = MOVING_THRESHOLD,
) -> list[StepMetrics]:
    """Compare a predicted future with the real one, a row per horizon step.

    Args:
        predicted: Predicted frames `[f h w 3]`, uint8.
        real: Real frames of the same times `[f h w 3]`.
        current: Last frame that the model saw `[h w 3]`; its copy is the baseline.
        predicted_codes: Predicted image codes `[f n]`; leave out all three code arrays where there are none.
        real_codes: Codes of the real frames `[f n]`.
        current_codes: Codes of the current frame `[n]`.
        threshold: Difference, of 255, above which a pixel counts as moving.

    Raises:
        ShapeError: The arrays do not fit each other, or only some of the code arrays were given.
    """
    copies = np.broadcast_to(current[None], real.shape)
    moving = moving_mask(current, real, threshold=threshold)
    columns = {
        "psnr": psnr(predicted, real),
        "psnr_copy": psnr(copies, real),
        "psnr_moving": masked_psnr(predicted, real, moving),
        "psnr_moving_copy": masked_psnr(copies, real, moving),
        "ssim": ssim(predicted, real),
        "ssim_copy": ssim(copies, real),
    }
    if predicted_codes is not None and real_codes is not None and current_codes is not None:
        columns["token_accuracy"] = token_accuracy(predicted_codes, real_codes)
        columns["token_accuracy_copy"] = token_accuracy(
            np.broadcast_to(current_codes[None], real_codes.shape), real_codes
        )
    elif not (predicted_codes is None and real_codes is None and current_codes is None):
        raise ShapeError(
            "Token accuracy: expected all of predicted, real and current codes, got some; pass all or none."
        )
    return [
        StepMetrics(horizon=step + 1, **{name: float(column[step]) for name, column in columns.items()})
        for step in range(len(real))
    ]


def gather_steps(episodes: Sequence[Sequence[StepMetrics]]) -> dict[str, Any]:
    """Collect per-episode comparisons into the form of `imagine/metrics.json`; NaN becomes None."""
    names = [name for name in StepMetrics.__slots__ if name != "horizon"]
    per_step: dict[int, dict[str, Any]] = {}
    for episode in episodes:
        for step in episode:
            row = per_step.setdefault(step.horizon, {"horizon": step.horizon, **{name: [] for name in names}})
            for name in names:
                value = getattr(step, name)
                row[name].append(None if math.isnan(value) else value)
    return {"per_step": [per_step[horizon] for horizon in sorted(per_step)], "episodes": len(episodes)}


def _decibel(mean_square: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    floor = 255.0**2 / 10 ** (PSNR_CEILING_DB / 10)
    return 10 * np.log10(255.0**2 / np.maximum(mean_square, floor))


def _blur(images: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return gaussian_filter(images, sigma=_SSIM_SIGMA, radius=_SSIM_RADIUS, axes=(1, 2))


def _expect_frames(first: Frames, second: Frames) -> None:
    if first.ndim != 4 or first.shape[-1] != 3 or first.shape != second.shape:
        raise ShapeError(
            f"Frames: expected two arrays [f h w 3] of one shape, got {first.shape} and {second.shape}; "
            "compare the same horizon, camera and image size."
        )
    if first.dtype != np.uint8 or second.dtype != np.uint8:
        raise ShapeError(f"Frames: expected uint8, got {first.dtype} and {second.dtype}; convert to 0-255 first.")
