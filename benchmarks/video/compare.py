"""Put predictions beside the real future, clip by clip: scores of every frame, and features for Frechet distances."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from tqdm import tqdm

from ...contracts import Array
from ...gr_model.act.loading import Assembled
from ..metrics.frames import token_accuracy
from .clips import VideoClips
from .frechet import encoder_features
from .i3d import I3D, video_features
from .predictions import decoded, mean_codes
from .scores import ClipScores, FrameMeasure, Numbers, Protocol, context_scores, frame_scores, mean_present

Reference = Literal["codes", "reconstruction", "original"]
"""What predictions are held against: the true codes, the images that the tokenizer makes of them, the pixels."""

CLIP_FEATURES = "clip"
FRAME_FEATURES = "frame"


@dataclass
class Comparison:
    """Scores and features, gathered clip by clip; `c` clips, `s` samples (1 but for the model), `f` future frames.

    future: (reference, metric, predictor, camera) -> `[c s f]`, NaN where a clip lacks the camera.
    context: (metric, camera) -> `[c h]`, of the context frames as the tokenizer gives them back, beside their pixels.
    features: (reference, kind, camera, predictor) -> features `[m d]` of each clip that has the camera; the
        predictor `real` stands for the reference itself.
    """

    num_clips: int
    future: dict[tuple[str, str, str, str], Numbers] = field(default_factory=dict)
    context: dict[tuple[str, str], Numbers] = field(default_factory=dict)
    features: dict[tuple[str, str, str, str], list[Numbers]] = field(default_factory=dict)

    def put(self, reference: Reference, predictor: str, camera: str, clip: int, rows: Mapping[str, Numbers]) -> None:
        """Keep metrics `[s f]` of one clip and camera, metric by metric."""
        for metric, values in rows.items():
            key = (reference, metric, predictor, camera)
            if key not in self.future:
                self.future[key] = np.full((self.num_clips, *values.shape), np.nan)
            self.future[key][clip] = values

    def put_context(self, camera: str, clip: int, rows: Mapping[str, Numbers]) -> None:
        """Keep metrics `[h]` of the context frames of one clip and camera."""
        for metric, values in rows.items():
            self.context.setdefault((metric, camera), np.full((self.num_clips, len(values)), np.nan))[clip] = values

    def scores(self, reference: Reference, protocol: Protocol) -> dict[str, dict[str, ClipScores]]:
        """Return metric -> predictor -> scores, averaged over the cameras that a clip has."""
        found: dict[str, dict[str, ClipScores]] = {}
        for where, metric, predictor in dict.fromkeys(key[:3] for key in self.future):
            if where == reference:
                cameras = [values for key, values in self.future.items() if key[:3] == (where, metric, predictor)]
                context = [values for key, values in self.context.items() if key[0] == metric]
                with_context = protocol == "best_of_n" and reference == "original" and context
                found.setdefault(metric, {})[predictor] = ClipScores(
                    future=mean_present(np.stack(cameras), axis=0),
                    context=mean_present(np.stack(context), axis=0) if with_context else None,
                )
        return found

    def feature_sets(self, reference: Reference, kind: str) -> dict[str, dict[str, Numbers]]:
        """Return camera -> predictor -> features `[c m d]` over the clips that have the camera."""
        found: dict[str, dict[str, Numbers]] = {}
        for (where, which, camera, predictor), rows in self.features.items():
            if (where, which) == (reference, kind):
                found.setdefault(camera, {})[predictor] = np.stack(rows)
        return found


@dataclass(frozen=True, kw_only=True)
class Measures:
    """What is measured besides PSNR and SSIM, each None where its weights were not given."""

    protocol: Protocol
    lpips: FrameMeasure | None = None
    i3d: I3D | None = None


def compare(
    parts: Assembled, clips: VideoClips, predicted: Mapping[str, Array], means: Mapping[str, Array],
    originals: Mapping[str, Array] | None, measures: Measures,
) -> Comparison:  # fmt: skip
    """Hold predicted codes, the copied frame and the mean frame against the real future.

    Args:
        parts: the model's tokenizer decodes.
        clips: the test clips.
        predicted: camera -> codes `[c s f n]`.
        means: camera -> mean frame of the training videos, uint8 `[h w 3]`.
        originals: camera -> the clips' own pixels, uint8 `[c f h w 3]`; None compares with reconstructions alone.
        measures: what else to measure.
    """
    comparison = Comparison(num_clips=len(clips))
    constant = mean_codes(parts, means)
    for camera, present in clips.present.items():
        for clip in tqdm(np.flatnonzero(present), desc=f"compare {camera}", unit="clip", leave=False):
            real, samples = clips.codes(camera)[clip], predicted[camera][clip]
            _compare_codes(comparison, camera, clip, samples, real, clips.context, constant[camera])
            again = decoded(parts, real)
            guesses = {"model": decoded(parts, samples), "mean": _still(means[camera], clips.num_frames)}
            _compare_frames(
                "reconstruction", comparison, parts, camera, clip, guesses, again, again, clips.context, measures
            )
            if originals is not None:
                pixels = originals[camera][clip]
                _compare_frames(
                    "original", comparison, parts, camera, clip, guesses, pixels, again, clips.context, measures
                )
    return comparison


def _compare_codes(
    comparison: Comparison, camera: str, clip: int, samples: Array, real: Array, h: int, constant: Array
) -> None:
    future = real[h:]
    guesses = {
        "model": samples,
        "copy": np.broadcast_to(real[h - 1], (1, *future.shape)),
        "mean": np.broadcast_to(constant, (1, *future.shape)),
    }
    for name, codes in guesses.items():
        rows = {"token_accuracy": np.stack([token_accuracy(sample, future) for sample in codes])}
        comparison.put("codes", name, camera, clip, rows)


def _compare_frames(
    reference: Reference, comparison: Comparison, parts: Assembled, camera: str, clip: int,
    guesses: Mapping[str, Array], real: Array, again: Array, h: int, measures: Measures,
) -> None:  # fmt: skip
    """Compare guesses `[s f h w 3]` with real frames; `again` is what the tokenizer makes of those."""
    current, future = real[h - 1], real[h:]
    guesses = {**guesses, "copy": _still(current, len(future))}
    if reference == "original":
        guesses["tokenizer"] = again[None, h:]
        comparison.put_context(camera, clip, context_scores(again[:h], real[:h], measures.lpips))
    for name, samples in guesses.items():
        rows = [frame_scores(sample, future, current, measures.lpips) for sample in samples]
        comparison.put(reference, name, camera, clip, {m: np.stack([row[m] for row in rows]) for m in rows[0]})
    for name, samples in {**guesses, "real": future[None]}.items():
        _keep_features(comparison, parts, measures, (reference, camera, name), samples, again[:h])


def _keep_features(
    comparison: Comparison, parts: Assembled, measures: Measures, where: tuple[str, str, str], samples: Array,
    context: Array,
) -> None:  # fmt: skip
    reference, camera, name = where
    frames = samples.reshape(-1, *samples.shape[2:])
    key = (reference, FRAME_FEATURES, camera, name)
    comparison.features.setdefault(key, []).append(encoder_features(parts.vqgan, frames))
    if measures.i3d is not None:
        videos = samples
        if measures.protocol == "best_of_n":
            before = np.broadcast_to(context, (len(samples), *context.shape))
            videos = np.concatenate((before, samples), axis=1)
        key = (reference, CLIP_FEATURES, camera, name)
        comparison.features.setdefault(key, []).append(video_features(measures.i3d, videos))


def _still(frame: Array, count: int) -> Array:
    """Show a frame `[h w 3]` `count` times, as one sample `[1 count h w 3]`."""
    return np.broadcast_to(frame, (1, count, *frame.shape))
