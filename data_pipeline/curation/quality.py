"""Measure a clip from a few probed frames: motion, whose motion it is, sharpness, light, and text laid over it.

No weights, no thresholds: each measure is a number with a unit, and the filters decide. Metrics named here were taken
on twelve frames spread over each clip, 160 px on the short side.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from ...contracts import Array
from ...errors import DataError

_REC_601 = np.array([0.299, 0.587, 0.114], np.float32)
"""Weights of red, green and blue in luma. Source: ITU-R BT.601-7, section 2.5.1."""

_SENSOR_NOISE = 6.0
"""Contrast [gray levels] below which an image counts as flat."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Quality:
    """Measures of one clip.

    motion: mean absolute difference of successive probed frames, as luma of about 64 rows [gray levels of 255].
    camera_motion: share of that difference which one shift of the whole image explains, 0 to 1: a panning camera 0.3
        to 1, hands and robots before a standing camera below 0.06.
    camera_shift: median length of those shifts [image diagonals], 0 where they explain nothing.
    sharpness: variance of the Laplacian over the variance of the image: in focus 0.1 to 0.5, motion-blurred or with
        little depth of field 0.02 to 0.1, out of focus below 0.02.
    luma_mean: mean brightness [gray levels of 255].
    luma_low, luma_high: brightness exceeded by 99 % and by 1 % of the pixels; both low is black, both high white,
        close together washed out or flat.
    text_overlay: share of the image under lines of still, sharp strokes: below 0.0001 without text, 0.01 to 0.07 for
        one line of captions, more for a title card.
    """

    motion: float
    camera_motion: float
    camera_shift: float
    sharpness: float
    luma_mean: float
    luma_low: float
    luma_high: float
    text_overlay: float


def measure_quality(frames: Array) -> Quality:
    """Take all measures of a clip.

    Args:
        frames: 12-16 frames spread over the clip, uint8 `[f h w 3]`, 160-256 px on the short side.

    Raises:
        DataError: the frames are not uint8 `[f h w 3]`, or there is none.
    """
    check_frames(frames)
    images = gray(frames)
    motion, explained, shift = measure_motion(frames)
    mean, low, high = measure_luma(images)
    return Quality(
        motion=motion,
        camera_motion=explained,
        camera_shift=shift,
        sharpness=measure_sharpness(images),
        luma_mean=mean,
        luma_low=low,
        luma_high=high,
        text_overlay=measure_text_overlay(images),
    )


def check_frames(frames: Array, short_side: int = 3) -> None:
    """Refuse what is no list of RGB images.

    Args:
        frames: to be uint8 `[f h w 3]` with f > 0.
        short_side: least height and width [px].

    Raises:
        DataError: another shape or type, no frame, or images that are too small.
    """
    shape, dtype = np.shape(frames), getattr(frames, "dtype", type(frames).__name__)
    if len(shape) != 4 or shape[-1] != 3 or dtype != np.uint8 or shape[0] == 0 or min(shape[1:3]) < short_side:
        raise DataError(
            f"frames: expected uint8 (f, h, w, 3) with f > 0 and at least {short_side} x {short_side} pixels, "
            f"got {dtype} {shape}; decode the clip as RGB."
        )


def shrink(frames: Array, rows: int) -> Array:
    """Average blocks of pixels: uint8 `[f h w 3]` to float32 `[f r c 3]`, r >= `rows` where h is."""
    block = max(frames.shape[1] // rows, 1)
    height, width = (size // block for size in frames.shape[1:3])
    if block == 1 or width == 0:
        return frames.astype(np.float32)
    total = np.zeros((len(frames), height, width, 3), np.float32)
    for row in range(block):
        for column in range(block):
            total += frames[:, row : height * block : block, column : width * block : block]
    return total / block**2


def gray(frames: Array) -> Array:
    """Weigh RGB `[f h w 3]` to luma, float32 `[f h w]` in gray levels."""
    luma: Array = frames.astype(np.float32, copy=False) @ _REC_601
    return luma


def measure_motion(frames: Array) -> tuple[float, float, float]:
    """Measure motion, and how much of it is the camera's; see `Quality.motion`, `camera_motion` and `camera_shift`.

    Successive frames are aligned by phase correlation. The share explained is counted where both fit: how much smaller
    their difference gets by the shift, weighted by the motion of each pair. Turning, zooming and walking forward are
    explained in part only.

    Source: Kuglin and Hines, The phase correlation image alignment method, 1975.
    """
    images = gray(shrink(frames, 64))
    if len(images) < 2:
        return 0.0, 0.0, 0.0
    shifts = _shifts(images)
    motion = np.abs(np.diff(images, axis=0)).mean((1, 2))
    pairs = zip(images[:-1], images[1:], shifts, strict=True)
    explained = np.array([_explained(before, after, int(dy), int(dx)) for before, after, (dy, dx) in pairs])
    share = float((explained * motion).sum() / max(float(motion.sum()), 1e-6))
    diagonal = np.hypot(*images.shape[1:])
    shift = np.where(explained > 0.1, np.hypot(*shifts.T) / diagonal, 0.0)
    return float(motion.mean()), share, float(np.median(shift))


def _shifts(images: Array) -> Array:
    """Find the (down, right) shift [px] of each `[f h w]` image against the one before: `[f-1 2]`."""
    height, width = images.shape[1:]
    window = np.outer(np.hanning(height + 2)[1:-1], np.hanning(width + 2)[1:-1])
    spectra = np.fft.rfft2((images - images.mean((1, 2), keepdims=True)) * window)
    cross = spectra[:-1].conj() * spectra[1:]
    size = np.abs(cross)
    # Frequencies a thousand times weaker than the strongest are noise, whose phase must not vote.
    cross /= np.maximum(size, 1e-3 * size.max((1, 2), keepdims=True) + 1e-6)
    peaks = np.fft.irfft2(cross, s=(height, width)).reshape(len(cross), -1).argmax(1)
    down, right = np.divmod(peaks, width)
    return np.stack([(down + height // 2) % height - height // 2, (right + width // 2) % width - width // 2], axis=1)


def _explained(before: Array, after: Array, down: int, right: int) -> float:
    """Return the share of the difference of two images that vanishes when one is shifted onto the other."""
    if down == 0 and right == 0:
        return 0.0
    height, width = before.shape
    old = slice(max(-down, 0), height - max(down, 0)), slice(max(-right, 0), width - max(right, 0))
    new = slice(max(down, 0), height - max(-down, 0)), slice(max(right, 0), width - max(-right, 0))
    shifted = float(np.abs(before[old] - after[new]).mean())
    standing = float(np.abs(before[old] - after[old]).mean() + np.abs(before[new] - after[new]).mean()) / 2
    return max(0.0, 1 - shifted / max(standing, 1e-6))


def measure_sharpness(images: Array) -> float:
    """Measure sharpness of luma `[f h w]`, the median over frames; see `Quality.sharpness`.

    The variance of the Laplacian alone rises with contrast; divided by that of the image it depends on focus and on
    the size in pixels, so clips are compared at one size.

    Source: Pech-Pacheco et al., Diatom autofocusing in brightfield microscopy, 2000 (variance of the Laplacian).
    """
    center = images[:, 1:-1, 1:-1]
    laplacian = images[:, 2:, 1:-1] + images[:, :-2, 1:-1] + images[:, 1:-1, 2:] + images[:, 1:-1, :-2]
    laplacian = laplacian - 4 * center
    return float(np.median(laplacian.var((1, 2)) / (images.var((1, 2)) + _SENSOR_NOISE**2)))


def measure_luma(images: Array) -> tuple[float, float, float]:
    """Return the mean, the 1 % and the 99 % quantile of luma `[f h w]` [gray levels of 255]."""
    counts = np.bincount(images.astype(np.uint8).ravel(), minlength=256)
    below = np.cumsum(counts) / counts.sum()
    low, high = np.searchsorted(below, [0.01, 0.99])
    return float(images.mean()), float(low), float(high)


def measure_text_overlay(images: Array) -> float:
    """Measure how much of luma `[f h w]` lies under text laid over it; see `Quality.text_overlay`.

    A stroke is narrower than a fortieth of the height, 75 gray levels brighter or darker than what lies beside it, and
    stays as it is from one probed frame to the next. Text is where at least 3.5 strokes follow each other
    along a third of the height. Still writing in the scene (a keyboard, a label close by) counts too; vertical text,
    and text thinner than about one pixel, is missed.
    """
    height = images.shape[1]
    width = max(3, 2 * (height // 40) + 1)
    opened = ndimage.maximum_filter1d(ndimage.minimum_filter1d(images, width, axis=2), width, axis=2)
    closed = ndimage.minimum_filter1d(ndimage.maximum_filter1d(images, width, axis=2), width, axis=2)
    steady = np.abs(np.diff(images, axis=0)) < 16 if len(images) > 1 else np.ones(images.shape, bool)
    covered = np.zeros(steady.shape, bool)
    for strokes in (images - opened > 75, closed - images > 75):
        still = strokes[1:] & strokes[:-1] & steady if len(images) > 1 else strokes
        covered |= _lines_of_strokes(still)
    return float(covered.mean())


def _lines_of_strokes(strokes: Array) -> Array:
    """Mark where strokes `[f h w]` are dense and follow each other."""
    if not strokes.any():
        return strokes
    height = strokes.shape[1]
    window = (0, max(3, height // 20), max(3, height // 3))
    begins = strokes.copy()
    begins[:, :, 1:] &= ~strokes[:, :, :-1]
    density, beginning = (ndimage.uniform_filter(mask.astype(np.float32), window) for mask in (strokes, begins))
    lines: Array = (density > 0.08) & (beginning * window[2] >= 3.5)
    return lines
