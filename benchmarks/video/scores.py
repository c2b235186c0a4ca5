"""Metrics of predicted frames by clip, sample and horizon step, and the two protocols that make one number of them."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from ...contracts import Array
from ..metrics.frames import masked_psnr, moving_mask, psnr, ssim
from ..metrics.statistics import Interval, bootstrap_mean, paired_difference

Protocol = Literal["single", "best_of_n"]
Numbers = npt.NDArray[np.float64]
FrameMeasure = Callable[[Array, Array], Numbers]
"""Frames uint8 `[f h w 3]`, twice -> a distance `[f]`."""

PROTOCOLS: Mapping[str, str] = {
    "single": "one sample a clip; future frames alone count",
    "best_of_n": "best of n samples of each clip, chosen for each metric by its mean over the clip; where the "
    "reference is the original pixels that mean takes in the context frames, too, as the tokenizer gives them back "
    "(iVideoGPT's protocol); Frechet distances take all samples. Flatters whoever samples many",
}
"""What each protocol means, as the report states it. Source: thuml/iVideoGPT, `train_gpt.py`."""

UNITS: Mapping[str, str] = {
    "psnr": "dB", "psnr_moving": "dB", "psnr_still": "dB", "ssim": "", "lpips": "", "token_accuracy": "%",
}  # fmt: skip
LOWER_IS_BETTER = ("lpips",)


@dataclass(frozen=True, kw_only=True)
class ClipScores:
    """A metric of one predictor: `future` `[c s f]`, and `context` `[c h]` where those frames count, too.

    NaN where a clip has no value: no pixel moves, or a camera is absent.
    """

    future: Numbers
    context: Numbers | None = None

    def by_clip(self) -> Numbers:
        """Average each sample over its frames: `[c s]`."""
        if self.context is None:
            return mean_present(self.future, axis=2)
        context = np.broadcast_to(self.context[:, None], (*self.future.shape[:2], self.context.shape[1]))
        return mean_present(np.concatenate((context, self.future), axis=2), axis=2)


@dataclass(frozen=True, kw_only=True)
class Row:
    """A metric over all horizon steps (`horizon` 0) or of one, with its interval over clips.

    model, copy, mean: None where no clip has a value; minus_copy, minus_mean: differences on the same clips; tokenizer:
    what the true codes give, the best that a prediction in codes can do, where the reference is the original pixels.
    """

    horizon: int
    model: Interval | None
    copy: Interval | None
    mean: Interval | None
    minus_copy: Interval | None
    minus_mean: Interval | None
    tokenizer: Interval | None = None


def frame_scores(
    predicted: Array, real: Array, current: Array, lpips: FrameMeasure | None = None
) -> dict[str, Numbers]:
    """Compare future frames uint8 `[f h w 3]` with the real ones: metric -> `[f]`.

    Moving pixels are those in which the real future differs from the `current` frame `[h w 3]`, still ones the rest.
    """
    moving = moving_mask(current, real)
    scores = {
        "psnr": psnr(predicted, real),
        "psnr_moving": masked_psnr(predicted, real, moving),
        "psnr_still": masked_psnr(predicted, real, ~moving),
        "ssim": ssim(predicted, real),
    }
    return scores if lpips is None else scores | {"lpips": lpips(predicted, real)}


def context_scores(again: Array, real: Array, lpips: FrameMeasure | None = None) -> dict[str, Numbers]:
    """Compare context frames as the tokenizer gives them back with the real ones: metric -> `[h]`."""
    scores = {"psnr": psnr(again, real), "ssim": ssim(again, real)}
    return scores if lpips is None else scores | {"lpips": lpips(again, real)}


def mean_present(values: Numbers, axis: int) -> Numbers:
    """Average what is not NaN; NaN where nothing is."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # an empty mean is NaN, which is what is meant
        return np.asarray(np.nanmean(values, axis=axis))


def chosen_samples(scores: ClipScores, metric: str, protocol: Protocol) -> npt.NDArray[np.int64]:
    """Choose a sample of each clip `[c]`: the first, or the best by this metric."""
    values = scores.by_clip()
    if protocol == "single":
        return np.zeros(len(values), np.int64)
    worst = np.inf if metric in LOWER_IS_BETTER else -np.inf
    ranked = np.where(np.isnan(values), worst, values)
    return np.asarray(ranked.argmin(axis=1) if metric in LOWER_IS_BETTER else ranked.argmax(axis=1))


def summarize(predictors: Mapping[str, ClipScores], metric: str, protocol: Protocol) -> list[Row]:
    """Make rows of one metric: all horizon steps together first, then each.

    Args:
        predictors: scores of `model`, `copy` and `mean` and, where there is one, of the `tokenizer`.
        metric: name of the metric.
        protocol: how a sample is chosen.
    """
    whole, steps = {}, {}
    for name, scores in predictors.items():
        choice = chosen_samples(scores, metric, protocol)
        clips = np.arange(len(choice))
        whole[name] = scores.by_clip()[clips, choice]
        steps[name] = scores.future[clips, choice]
    rows = [_row(0, whole)]
    for step in range(steps["model"].shape[1]):
        rows.append(_row(step + 1, {name: values[:, step] for name, values in steps.items()}))
    return rows


def _row(horizon: int, values: Mapping[str, Numbers]) -> Row:
    """Make intervals over the clips that have a value."""
    model = values["model"]
    return Row(
        horizon=horizon,
        model=present_mean(model),
        copy=present_mean(values["copy"]),
        mean=present_mean(values["mean"]),
        minus_copy=_difference(model, values["copy"]),
        minus_mean=_difference(model, values["mean"]),
        tokenizer=present_mean(values["tokenizer"]) if "tokenizer" in values else None,
    )


def present_mean(values: Numbers) -> Interval | None:
    """Estimate the mean of what is not NaN, None where nothing is."""
    finite = values[np.isfinite(values)]
    return bootstrap_mean(finite) if len(finite) else None


def _difference(values: Numbers, others: Numbers) -> Interval | None:
    both = np.isfinite(values) & np.isfinite(others)
    return paired_difference(values[both], others[both]) if both.any() else None
