"""Find where a video jumps: edits, jumps of a compilation, and where a broken stream destroys the image.

Two frames are compared by their colors (HSV histogram) and by their structure (correlation at the best shift, so that
a panning camera stays one scene). A cut is a jump that is large, and large beside the motion around it.

Not found: fades and dissolves longer than a few frames, and jumps in time within one view (a robot that was paused and
moved), whose two sides look alike. A frozen or broken stretch counts as a scene of its own.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

from ...contracts import Array
from .quality import check_frames, gray, shrink

_ROWS = 32
_CHUNK_FRAMES = 256
_LAGS = 4
_NEIGHBORS = 12
_HELD = 0.03
_UNRELATED = 0.95
_HUES, _SATURATIONS, _VALUES = 8, 4, 8


def find_cuts(frames: Array, *, min_jump: float = 0.5, min_ratio: float = 2.5) -> list[int]:
    """Find the first frame of each new scene.

    A flash, or a few broken frames after which the same view continues, is no cut: of the frames just before and just
    after a jump (four frames apart at most), the two most alike count. An image that is repeated hides motion, so the
    jump after it is measured against motion over two or three frames.

    Args:
        frames: all frames of a video, uint8 `[f h w 3]`, 64-90 rows (more rows cost time and find no more).
        min_jump: least distance between the frames, 0 to 2. Sudden motion of a 3 Hz robot reaches 0.42, an image that
            breaks in the stream 0.54; images of different places differ by 0.7 to 1.6.
        min_ratio: least distance in units of the median motion of the twelve frames before or after, whichever moves
            more. Hands that fill a 10 Hz image jump by 0.85, at 2.1. From a distance of 0.95 on nothing is shared,
            and the motion around does not matter.

    Returns:
        Indices in rising order, 0 not among them.

    Raises:
        DataError: the frames are not uint8 `[f h w 3]`.
    """
    check_frames(frames)
    if len(frames) < 2:
        return []
    lagged = _lagged_distances(frames)
    steps = lagged[0]
    jumps = steps.copy()
    for lag, distances in enumerate(lagged[1:], start=2):
        for back in range(lag):
            # The pair (a, a + lag) lies across the border before frame a + 1 + back.
            jumps[back : back + len(distances)] = np.minimum(jumps[back : back + len(distances)], distances)
    return [
        i + 1
        for i in np.flatnonzero(jumps >= min_jump).tolist()
        if jumps[i] >= min(min_ratio * _motion_around(steps, i) * (1 + _held_before(steps, i)), _UNRELATED)
    ]


def scenes(cuts: Sequence[int], num_frames: int, min_frames: int = 1) -> list[tuple[int, int]]:
    """List the scenes between cuts as (start, stop) in frames, without those shorter than `min_frames`.

    Cuts close together (a quick wipe, an image that breaks in two steps) bound pieces that are no scenes; they belong
    to neither neighbor, so they are left out rather than joined.
    """
    borders = [0, *cuts, num_frames]
    pieces = itertools.pairwise(borders)
    return [(start, stop) for start, stop in pieces if stop - start >= max(min_frames, 1)]


def _motion_around(steps: Array, i: int) -> float:
    """Take the median distance of successive frames on the livelier side of border i, repeated images left out.

    A side with fewer than three moving frames (the end of the video, a still image) shows nothing about motion.
    """
    sides = steps[max(i - _NEIGHBORS, 0) : i], steps[i + 1 : i + 1 + _NEIGHBORS]
    moving = [side[side > _HELD] for side in sides]
    return max((float(np.median(side)) for side in moving if len(side) >= 3), default=0.0)


def _held_before(steps: Array, i: int) -> int:
    """Count the repeated images before border i, none where the image stood still for longer."""
    held = 0
    while held < 3 and i - 1 - held >= 0 and steps[i - 1 - held] <= _HELD:
        held += 1
    return held if held < 3 else 0


def _lagged_distances(frames: Array) -> list[Array]:
    """Compare frames a and a + lag: `[f - lag]` for each lag from 1 to `_LAGS`, in chunks to bound memory."""
    parts: list[list[Array]] = [[] for _ in range(_LAGS)]
    for start in range(0, len(frames), _CHUNK_FRAMES):
        small = shrink(frames[start : start + _CHUNK_FRAMES + _LAGS], _ROWS)
        colors, images = _histograms(small), gray(small)
        spectra = np.fft.rfft2(images - images.mean((1, 2), keepdims=True))
        for lag in range(1, _LAGS + 1):
            count = max(min(_CHUNK_FRAMES, len(small) - lag), 0)
            color = np.abs(colors[lag : lag + count] - colors[:count]).sum(1) / 2
            parts[lag - 1].append(color + _structure_distance(spectra, images, lag, count))
    return [np.concatenate(part) for part in parts]


def _structure_distance(spectra: Array, images: Array, lag: int, count: int) -> Array:
    """Return 1 - correlation at the best shift; contrast below a few gray levels counts as none."""
    size = images.shape[1] * images.shape[2]
    products = spectra[:count].conj() * spectra[lag : lag + count]
    covariance = np.fft.irfft2(products, s=images.shape[1:]).reshape(count, size).max(1, initial=0) / size
    noise = 6.0**2
    variance = images.var((1, 2)) + noise
    similar: Array = (covariance + noise) / np.sqrt(variance[:count] * variance[lag : lag + count])
    return 1 - np.minimum(similar, 1)


def _histograms(frames: Array) -> Array:
    """Count joint HSV bins of `[f h w 3]`: `[f bins]`, each row sums to 1; gray and dark pixels have no hue."""
    red, green, blue = np.moveaxis(frames, -1, 0)
    value, spread = frames.max(-1), np.ptp(frames, axis=-1)
    safe = np.maximum(spread, 1e-6)
    hue = np.where(
        value == red,
        (green - blue) / safe % 6,
        np.where(value == green, (blue - red) / safe + 2, (red - green) / safe + 4),
    )
    saturation = spread / np.maximum(value, 1)
    colored = (value > 32) & (saturation > 0.15)
    bins = np.where(colored, np.minimum(hue * _HUES / 6, _HUES - 1).astype(np.int64), 0)
    bins = bins * _SATURATIONS + np.where(colored, np.minimum(saturation * _SATURATIONS, _SATURATIONS - 1), 0)
    bins = bins.astype(np.int64) * _VALUES + (value * _VALUES / 256).astype(np.int64)
    count, num_bins = len(frames), _HUES * _SATURATIONS * _VALUES
    rows = bins.reshape(count, -1) + num_bins * np.arange(count)[:, None]
    counts: Array = np.bincount(rows.ravel(), minlength=count * num_bins).reshape(count, num_bins)
    return counts / rows.shape[1]
