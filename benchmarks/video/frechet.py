"""Frechet distance of two sets of features, with an interval over clips, and the frozen features of our own."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from ...contracts import Array
from ...errors import ShapeError
from ...tokenizers.vqgan import VQGAN, normalize_frames
from ..metrics.statistics import CONFIDENCE, Interval

RESAMPLES = 200
"""Bootstrap resamples of a Frechet distance; each costs a singular value decomposition."""

Features = npt.NDArray[np.float64]


def frechet_distance(first: Features, second: Features) -> float:
    """Measure the squared Frechet distance of the Gaussians with the means and covariances of `[m d]` and `[n d]`.

    With `A^T A` and `B^T B` the covariances, the trace of `(A^T A B^T B)^(1/2)` is the sum of the singular values of
    `A B^T`: no root of a matrix is taken, and rank-deficient covariances (fewer samples than features) do no harm.

    Raises:
        ShapeError: the sets have fewer than two samples, another width, or numbers that are not finite.

    Source: D. Dowson and B. Landau, Journal of Multivariate Analysis 12, 1982, pages 450-455.
    """
    for features in (first, second):
        if features.ndim != 2 or len(features) < 2 or features.shape[1] != first.shape[1]:
            raise ShapeError(
                f"Frechet distance: expected two feature sets [n d] of one width with n >= 2, got {first.shape} and "
                f"{second.shape}; take more clips."
            )
        if not np.isfinite(features).all():
            raise ShapeError("Frechet distance: expected finite features, got NaN or infinity; check the frames.")
    a, b = _factor(first), _factor(second)
    shift = first.mean(axis=0) - second.mean(axis=0)
    shared = np.linalg.svd(a @ b.T, compute_uv=False).sum()
    distance = float(shift @ shift + np.square(a).sum() + np.square(b).sum() - 2 * shared)
    return max(distance, 0.0)


def _factor(features: Features) -> Features:
    """Return a matrix with at most d rows whose Gram matrix is the covariance."""
    centered = (features - features.mean(axis=0)) / np.sqrt(len(features) - 1)
    return np.asarray(np.linalg.qr(centered, mode="r")) if len(centered) > centered.shape[1] else centered


@dataclass(frozen=True, kw_only=True)
class FrechetEstimate:
    """A Frechet distance and what bootstrap resamples of the clips give: `draws` `[r]`, of `count` clips."""

    value: float
    draws: npt.NDArray[np.float64]
    count: int

    def interval(self, *, confidence: float = CONFIDENCE) -> Interval:
        """Return the estimate with its basic bootstrap interval.

        A resample holds some clips twice, which lowers its rank and raises the distance; the interval is therefore
        mirrored at the estimate, which takes the bootstrap's own bias off (and may leave the estimate outside).
        """
        low, high = self._mirrored(self.draws, self.value, confidence)
        return Interval(value=self.value, low=max(low, 0.0), high=max(high, 0.0), count=self.count)

    def minus(self, other: FrechetEstimate, *, confidence: float = CONFIDENCE) -> Interval:
        """Return the difference to another estimate on the same resamples, with its interval."""
        value = self.value - other.value
        low, high = self._mirrored(self.draws - other.draws, value, confidence)
        return Interval(value=value, low=low, high=high, count=self.count)

    @staticmethod
    def _mirrored(draws: npt.NDArray[np.float64], value: float, confidence: float) -> tuple[float, float]:
        tail = (1 - confidence) / 2
        low, high = np.quantile(draws, [tail, 1 - tail])
        return 2 * value - float(high), 2 * value - float(low)


def estimate_frechet(
    real: Features, predicted: Features, *, seed: int = 0, resamples: int = RESAMPLES
) -> FrechetEstimate:
    """Estimate the Frechet distance of features by clip, `[c m d]` and `[c n d]`, sampling clips with replacement.

    Equal seeds sample the same clips, so that estimates can be subtracted.

    Raises:
        ShapeError: the two do not hold the same clips, or see `frechet_distance`.
    """
    if real.ndim != 3 or predicted.ndim != 3 or len(real) != len(predicted):
        raise ShapeError(
            f"Frechet distance: expected features [c m d] and [c n d] of the same clips, got {real.shape} and "
            f"{predicted.shape}; compare the same clips."
        )
    value = frechet_distance(_flat(real), _flat(predicted))
    rng = np.random.default_rng(seed)
    resampled = []
    for _ in range(resamples):
        picks = rng.integers(0, len(real), len(real))
        resampled.append(frechet_distance(_flat(real[picks]), _flat(predicted[picks])))
    return FrechetEstimate(value=value, draws=np.array(resampled), count=len(real))


def half_distance(real: Features, *, seed: int = 0) -> float:
    """Measure the distance between two halves of the real clips `[c m d]`: what the sample size alone amounts to.

    NaN for fewer than four clips.
    """
    if len(real) < 4:
        return float("nan")
    order = np.random.default_rng(seed).permutation(len(real))
    half = len(real) // 2
    return frechet_distance(_flat(real[order[:half]]), _flat(real[order[half : 2 * half]]))


def _flat(features: Features) -> Features:
    return features.reshape(-1, features.shape[-1])


@torch.inference_mode()
def encoder_features(vqgan: VQGAN, frames: Array, *, batch_size: int = 64) -> Features:
    """Compute features `[f 2d]` of frames uint8 `[f h w 3]`: mean and deviation over places of the encoder's vectors.

    The vectors are those before quantization, `d` numbers at each place of the grid.
    """
    rows = []
    for start in range(0, len(frames), batch_size):
        images = normalize_frames(torch.as_tensor(np.array(frames[start : start + batch_size]))).to(
            vqgan.codebook.device
        )
        vectors = vqgan.latents(images).flatten(2).double()
        rows.append(torch.cat((vectors.mean(-1), vectors.std(-1, correction=0)), dim=1).cpu().numpy())
    return np.concatenate(rows)
