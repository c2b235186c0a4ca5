"""Find clips that show the same images: the same video again, encoded, resized or brightened otherwise.

A clip is hashed as a few 64-bit perceptual hashes of frames spread over it. Equal images give nearly equal bits;
clips are duplicates where few bits of all the hashes together differ.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
from PIL import Image
from scipy import fft

from ...contracts import Array
from ...errors import ConfigError, DataError
from .quality import check_frames, gray

NUM_HASHES = 8
"""Frames hashed of each clip."""

FLAT = 0
"""Hash of an image without content (a hash of any other has about half its bits set)."""

_BITS_SET = np.array([i.bit_count() for i in range(1 << 16)], np.uint8)
_SIDE = 32
_LEAST_CONTRAST = 4.0
_SMALL = 256
_PAIRS_PER_CLIP = 256
_PAIRS_AT_ONCE = 1 << 18

_FREQUENCIES = sorted(((u, v) for u in range(16) for v in range(16)), key=lambda uv: (sum(uv), uv))[1:65]
"""The 64 lowest frequencies of the image but for its mean."""


def clip_hash(frames: Array, num_hashes: int = NUM_HASHES) -> Array:
    """Hash a clip: uint64 `[num_hashes]`, in the order of time.

    Each hash shows which of the 64 lowest frequencies of a frame lie above their median. It depends neither on size nor
    on brightness nor on contrast, and little on compression. In drawn images (color bars) many frequencies are zero
    and their signs are noise, so that copies may be missed. An image with a contrast under four gray levels (black,
    white, fog) has no signs but noise and hashes to `FLAT`.

    Args:
        frames: frames spread over the clip, uint8 `[f h w 3]`, any size from 32 px; `num_hashes` of them are used,
            evenly spaced, some twice where there are fewer.
        num_hashes: hashes of a clip.

    Raises:
        DataError: the frames are not uint8 `[f h w 3]`.

    Source: Zauner, Implementation and benchmarking of perceptual image hash functions, 2010 (DCT hash).
    """
    check_frames(frames)
    chosen = np.linspace(0, len(frames) - 1, num_hashes).round().astype(int)
    small = [Image.fromarray(frames[i]).resize((_SIDE, _SIDE), Image.Resampling.BOX) for i in chosen]
    images = gray(np.stack([np.asarray(image) for image in small]))
    rows, columns = np.array(_FREQUENCIES).T
    strengths = fft.dctn(images, axes=(1, 2), norm="ortho")[:, rows, columns]
    bits = strengths > np.median(strengths, axis=1, keepdims=True)
    hashes: Array = (bits << np.arange(64, dtype=np.uint64)).sum(1, dtype=np.uint64)
    hashes[images.std((1, 2)) < _LEAST_CONTRAST] = FLAT
    return hashes


def hamming(a: Array, b: Array) -> Array:
    """Count the bits in which uint64 hashes `[... m]` differ, over all m: int64 `[...]`."""
    parts = np.bitwise_xor(a, b, dtype=np.uint64)[..., None].view(np.uint16)
    counts: Array = _BITS_SET[parts].sum((-2, -1), dtype=np.int64)
    return counts


def group_duplicates(hashes: Array, max_distance: int = 20) -> Array:
    """Return which clips repeat an earlier one.

    Clips are taken in their order: each is a duplicate of the first clip kept so far within `max_distance`, or is kept
    itself. A chain of small steps therefore does not join its ends, and the same order gives the same result.

    No pair is missed: hashes within D bits agree in at least one of D + 1 bands of bits (pigeonhole), so only clips
    that share a band are compared. Time grows with those pairs, not with all pairs; where many clips share a band
    because they are copies, the set is halved until copies are few beside what is kept.

    A clip of which more than half the hashes are `FLAT` is kept and never the original of another: black, white and
    faded clips hash alike although they show different things, or nothing. Where single frames are flat (a fade from
    black), duplicates are flat in the same places.

    Args:
        hashes: uint64 `[n m]`, one row of `clip_hash` a clip.
        max_distance: most bits that may differ over all m hashes, under 32 (half of one hash, by which unlike images
            differ). For eight hashes, real clips encoded at crf 35, resized, or a tenth brighter differ
            by 0 to 26 of 512 bits, half of them by 8 or less; two halves of one steady shot by 36 to 234; other
            scenes by 218 or more.

    Returns:
        int64 `[n]`: index of the kept clip that this one repeats, -1 for a clip to keep.

    Raises:
        DataError: hashes of another shape or type.
        ConfigError: a distance outside 0 to 31.
    """
    if hashes.ndim != 2 or hashes.dtype != np.uint64 or hashes.shape[1] == 0:
        raise DataError(
            f"hashes: expected uint64 (n, m) with m > 0, got {hashes.dtype} {hashes.shape}; stack what clip_hash gives."
        )
    if not 0 <= max_distance < 32:
        raise ConfigError(f"max_distance: expected 0 to 31 bits, got {max_distance}; lower it.")
    original = np.full(len(hashes), -1, np.int64)
    flat = hashes == FLAT
    for pattern in np.unique(flat, axis=0):
        if 2 * pattern.sum() <= len(pattern):
            members = np.flatnonzero((flat == pattern).all(1))
            _Search(np.ascontiguousarray(hashes[:, ~pattern]), max_distance, original).keep_first(members)
    return original


class _Search:
    """Fills `original` for clips that have content in all hashes."""

    def __init__(self, hashes: Array, max_distance: int, original: Array) -> None:
        self.hashes = hashes
        self.max_distance = max_distance
        self.original = original
        self.first = np.empty_like(original)
        per_hash = -(-(max_distance + 1) // hashes.shape[1])
        borders = [64 * i // per_hash for i in range(per_hash + 1)]
        spans = list(itertools.pairwise(borders))
        self.bands = [(word, start, stop) for word in range(hashes.shape[1]) for start, stop in spans]

    def keep_first(self, clips: Array) -> Array:
        """Settle `clips` (rising indices) among themselves; return those kept."""
        if len(clips) > _SMALL and self._num_candidates(clips) > _PAIRS_PER_CLIP * len(clips):
            first, second = np.array_split(clips, 2)
            kept = self.keep_first(first)
            self._mark(kept, second)
            return np.concatenate([kept, self.keep_first(second[self.original[second] < 0])])
        near = [a + b * len(self.original) for a, b in self._near_pairs(clips, clips)]
        for pair in np.unique(np.concatenate(near)).tolist() if near else []:
            later, earlier = divmod(pair, len(self.original))
            if self.original[later] < 0 and self.original[earlier] < 0:
                self.original[later] = earlier
        return clips[self.original[clips] < 0]

    def _mark(self, kept: Array, clips: Array) -> None:
        """Mark the `clips` that repeat one of the `kept`, all of which come earlier."""
        none = len(self.original)
        self.first[clips] = none
        for earlier, later in self._near_pairs(kept, clips):
            np.minimum.at(self.first, later, earlier)
        found = clips[self.first[clips] < none]
        self.original[found] = self.first[found]

    def _keys(self, clips: Array, band: tuple[int, int, int]) -> Array:
        word, start, stop = band
        shifted = self.hashes[clips, word] >> np.uint64(start)
        keys: Array = shifted & np.uint64((1 << (stop - start)) - 1)
        return keys

    def _num_candidates(self, clips: Array) -> int:
        counts = (np.unique(self._keys(clips, band), return_counts=True)[1] for band in self.bands)
        return sum(int((count * (count - 1) // 2).sum()) for count in counts)

    def _near_pairs(self, left: Array, right: Array) -> Iterator[tuple[Array, Array]]:
        """Yield arrays of pairs a < b, a of `left` and b of `right`, within the distance; a pair may come twice."""
        for band in self.bands:
            keys = self._keys(left, band)
            order = np.argsort(keys, kind="stable")
            sorted_left, keys = left[order], keys[order]
            wanted = self._keys(right, band)
            begin, end = np.searchsorted(keys, wanted, "left"), np.searchsorted(keys, wanted, "right")
            ends = np.cumsum(end - begin)
            for cut in np.split(np.arange(len(right)), np.searchsorted(ends, _chunk_borders(ends))):
                count = (end - begin)[cut]
                offset = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
                a, b = sorted_left[np.repeat(begin[cut], count) + offset], np.repeat(right[cut], count)
                a, b = a[a < b], b[a < b]
                close = hamming(self.hashes[a], self.hashes[b]) <= self.max_distance
                yield a[close], b[close]


def _chunk_borders(ends: Array) -> Array:
    """Return the counts at which candidate pairs are divided, so that memory stays bounded."""
    return np.arange(_PAIRS_AT_ONCE, ends[-1] if len(ends) else 0, _PAIRS_AT_ONCE)
