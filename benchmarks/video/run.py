"""`gr2 benchmark video`: how well a model predicts held-out video, beside copying and the mean frame."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from ...data_pipeline.files import write_json
from ...data_pipeline.loading.token_store import TokenStore
from ...errors import ConfigError
from ...gr_model.act.loading import Assembled, assemble
from ...gr_model.act.opening import policy_fingerprint
from ...gr_model.model.sampling import SamplingConfig
from ...gr_model.train.distributed import torch_device
from ..imagine.imagination import expect_frames
from ..metrics.statistics import Interval
from ..simulation.results import provenance
from .clips import VideoClips, choose_clips, frames_between, mean_frames, open_store
from .compare import CLIP_FEATURES, FRAME_FEATURES, Comparison, Measures, compare
from .frechet import estimate_frechet, half_distance
from .i3d import LEAST_FRAMES, load_i3d
from .likelihood import clip_losses, codes_per_frame, shuffle_controls
from .originals import original_frames
from .perceptual import FrameDistance
from .predictions import sampled_codes, set_captions
from .scores import PROTOCOLS, Numbers, Protocol, present_mean, summarize
from .tables import table

Device = Literal["auto", "cpu", "cuda"]

RELIABLE_CLIPS = 256
"""Fewer clips than this make a Frechet distance a statement about the sample more than about the model."""


def benchmark(
    *,
    policy: str,
    tokens: list[str],
    num_clips: int = 64,
    num_frames: int = 8,
    protocol: Protocol = "single",
    samples: int | None = None,
    sampling: SamplingConfig | None = None,
    shards: str | None = None,
    train_tokens: list[str] | None = None,
    held_out: float = 0.03,
    frame_step: int | None = None,
    lpips: Path | None = None,
    fvd: Path | None = None,
    json: Path | None = None,
    batch_size: int = 16,
    device: Device = "auto",
    seed: int = 0,
) -> int:
    """Measure predicted video of held-out clips with intervals, beside copying the last frame and the mean frame.

    Args:
        policy: "pretrained" (shipped) or a folder that `gr2 pretrain` or `gr2 finetune` wrote.
        tokens: folders of token shards, encoded with the model's tokenizers.
        num_clips: clips, one of each video; fewer where there are not so many videos.
        num_frames: frames to predict.
        protocol: `single` sample and future frames alone, or `best_of_n` samples for each metric, as iVideoGPT does.
        samples: samples of each clip for `best_of_n`; 10 by default (iVideoGPT takes 100).
        sampling: of codes; the likeliest for `single`, temperature 1, top_k 100 and 6 decoding steps for `best_of_n`.
        shards: video shards that the tokens were made of, to compare with the original pixels, too.
        train_tokens: token shards whose mean frame is the baseline; by default the other videos of `tokens`.
        held_out: share of the videos that training held out (`gr2 pretrain` and `gr2 finetune`: 0.03), from which alone
            clips are taken; 0 takes any, for tokens that the model was not trained on.
        frame_step: frames of the tokens from one predicted frame to the next; by default as in training.
        lpips: folder with local weights of VGG16 and of LPIPS's heads.
        fvd: local state dict of I3D, for the Frechet video distance.
        json: Also write everything as JSON to this file.
        batch_size: clips a forward pass.
        device: where the networks run; auto takes a GPU where there is one.
        seed: of the choice of clips, of samples and of shuffles.

    Raises:
        CheckpointError: the release or weights cannot be used.
        ConfigError: options that contradict each other.
        DataError: the shards cannot be used or hold too few clips.
    """
    count = _num_samples(protocol, samples)
    sampling = replace(sampling or _default_sampling(protocol), seed=seed)
    parts = expect_frames(assemble(policy)).to(torch_device(device))
    model = parts.release.model
    h = model.config.max_context
    _expect_long_enough(fvd, num_frames + h * (protocol == "best_of_n"))
    measures = _load_measures(protocol, lpips, fvd, model.device)
    store = open_store(tokens, parts.release)
    clips = choose_clips(
        store, num_clips=num_clips, context=h, num_frames=num_frames,
        frame_step=frame_step or frames_between(store, parts.release), held_out=held_out, seed=seed,
    )  # fmt: skip
    means = mean_frames(
        store if train_tokens is None else open_store(train_tokens, parts.release),
        parts.vqgan, without=store.column("video")[clips.episodes], held_out=held_out, seed=seed,
    )  # fmt: skip
    originals = original_frames(shards, store, clips, parts.vqgan) if shards else None
    set_captions(parts, clips)
    predicted = sampled_codes(parts, clips, sampling=sampling, samples=count, batch_size=batch_size)
    report = {
        "command": shlex.join(["gr2", *sys.argv[1:]]),
        "inputs": {"policy": policy, "tokens": tokens, "shards": shards, "train_tokens": train_tokens},
        **provenance(policy_fingerprint(policy)),
        "device": str(model.device),
        "protocol": {"name": protocol, "what": PROTOCOLS[protocol], "samples": count, "sampling": asdict(sampling)},
        "sample": _sample(store, clips, num_clips, held_out),
        **_scores(compare(parts, clips, predicted, means, originals, measures), protocol, seed),
        **_losses(parts, clips, batch_size, seed),
    }
    print("\n".join(table(report)))
    if json is not None:
        write_json(json, _without_nan(report))
    return 0


def _load_measures(protocol: Protocol, lpips: Path | None, fvd: Path | None, device: torch.device) -> Measures:
    return Measures(
        protocol=protocol,
        lpips=None if lpips is None else FrameDistance(lpips, device=device),
        i3d=None if fvd is None else load_i3d(fvd).to(device),
    )


def _num_samples(protocol: Protocol, samples: int | None) -> int:
    if samples is not None and (samples < 1 or (protocol == "single" and samples != 1)):
        raise ConfigError(
            f"--samples: expected 1 for the protocol single and at least 1 for best_of_n, got {samples}; "
            "add --protocol best_of_n or leave it out."
        )
    return samples or (1 if protocol == "single" else 10)


def _default_sampling(protocol: Protocol) -> SamplingConfig:
    return SamplingConfig() if protocol == "single" else SamplingConfig(temperature=1.0, top_k=100, passes=6)


def _expect_long_enough(fvd: Path | None, length: int) -> None:
    if fvd is not None and length < LEAST_FRAMES:
        raise ConfigError(
            f"--fvd: expected videos of at least {LEAST_FRAMES} frames, got {length}; raise --num-frames (the protocol "
            "best_of_n adds the context frames)."
        )


def _sample(store: TokenStore, clips: VideoClips, asked: int, held_out: float) -> dict[str, Any]:
    return {
        "clips": len(clips),
        "clips_asked": asked,
        "episodes": len(store),
        "held_out": held_out,
        "cameras": {camera: int(present.sum()) for camera, present in clips.present.items()},
        "sentences": len(clips.captions),
        "context_frames": clips.context,
        "predicted_frames": clips.num_frames,
        "frame_step": clips.frame_step,
    }


def _scores(comparison: Comparison, protocol: Protocol, seed: int) -> dict[str, Any]:
    return {"metrics": _metrics(comparison, protocol), "frechet": _frechet(comparison, seed)}


def _losses(parts: Assembled, clips: VideoClips, batch_size: int, seed: int) -> dict[str, Any]:
    controls = shuffle_controls(parts.release.model, clips, seed=seed, batch_size=batch_size)
    return {"likelihood": _likelihood(parts, clips, batch_size), "controls": [asdict(c) for c in controls]}


def _metrics(comparison: Comparison, protocol: Protocol) -> list[dict[str, Any]]:
    """List the metrics: reference, metric, and rows of all horizon steps together and of each."""
    found = []
    for reference in ("codes", "reconstruction", "original"):
        for metric, predictors in comparison.scores(reference, protocol).items():  # type: ignore[arg-type]
            rows = [asdict(row) for row in summarize(predictors, metric, protocol)]
            found.append({"reference": reference, "metric": metric, "rows": rows})
    return found


def _likelihood(parts: Assembled, clips: VideoClips, batch_size: int) -> dict[str, Any]:
    """Measure the loss of the true next frame after real frames, without real actions."""
    losses = clip_losses(parts.release.model, clips, batch_size=batch_size)
    by_clip = losses.mean(axis=1)
    token = present_mean(by_clip)
    assert token is not None
    perplexity = Interval(
        value=float(np.exp(token.value)),
        low=float(np.exp(token.low)),
        high=float(np.exp(token.high)),
        count=token.count,
    )
    return {
        "decoding": parts.release.model.config.decoding,
        "nats_per_token": asdict(token),
        "nats_per_frame": _asdict(present_mean(by_clip * codes_per_frame(clips))),
        "perplexity": asdict(perplexity),
        "per_step": [_asdict(present_mean(losses[:, step])) for step in range(losses.shape[1])],
    }


def _asdict(interval: Interval | None) -> dict[str, Any] | None:
    """Return an interval as the report holds it."""
    return None if interval is None else asdict(interval)


def _frechet(comparison: Comparison, seed: int) -> list[dict[str, Any]]:
    """List Frechet distances, for each reference, kind of features and camera."""
    found = []
    for reference in ("reconstruction", "original"):
        for kind, name in ((FRAME_FEATURES, "frames"), (CLIP_FEATURES, "fvd")):
            for camera, sets in comparison.feature_sets(reference, kind).items():  # type: ignore[arg-type]
                if len(sets["real"]) >= 2:
                    found.append({"reference": reference, "name": name, "camera": camera, **_distances(sets, seed)})
    return found


def _distances(sets: Mapping[str, Numbers], seed: int) -> dict[str, Any]:
    real = sets["real"]
    estimates = {name: estimate_frechet(real, f, seed=seed) for name, f in sets.items() if name != "real"}
    differences = {name: asdict(estimates["model"].minus(estimates[name])) for name in ("copy", "mean")}
    return {
        "clips": len(real),
        "samples": int(real.shape[0] * real.shape[1]),
        "features": int(real.shape[2]),
        "distances": {name: asdict(estimate.interval()) for name, estimate in estimates.items()},
        "model_minus": differences,
        "halves_of_the_real_clips": half_distance(real, seed=seed),
        "too_few": len(real) < RELIABLE_CLIPS or real.shape[0] * real.shape[1] < 10 * real.shape[2],
    }


def _without_nan(value: Any) -> Any:
    """Write NaN as null: JSON has none."""
    if isinstance(value, Mapping):
        return {name: _without_nan(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value
