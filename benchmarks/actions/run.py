"""`gr2 benchmark actions`: errors of a policy's chunks on held-out episodes of any robot, beside two guesses."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ...data_pipeline.files import write_json
from ...embodiment import Embodiment, fitting
from ...errors import ConfigError, DataError
from ..metrics.statistics import Interval, bootstrap_mean, paired_difference
from .errors import METHODS, SignalErrors, collect

if TYPE_CHECKING:
    from ...data_pipeline.loading.token_store import TokenStore
    from ...gr_model.model.release import Release


def benchmark(
    *,
    policy: str,
    tokens: list[str],
    held_out: float = 0.03,
    max_windows: int = 2000,
    batch_size: int = 32,
    json: Path | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Measure predicted chunks against recorded actions, signal by signal, in their units and for each horizon step.

    Holding still and the mean chunk of the training data are measured beside; intervals are over episodes. The errors
    do not rank heads: an average of several motions has a small error and a low success. A model of several robots is
    measured on each robot of the tokens by itself.

    Args:
        policy: folder with a finetuned model.
        tokens: token shards with states and actions.
        held_out: share of the videos that training held out (`gr2 finetune`: 0.03), from which alone windows are
            taken; 0 takes all, for shards that training never saw.
        max_windows: most windows of a robot, spread over all its episodes.
        batch_size: windows of one forward pass.
        json: file for the results.
        seed: of the order of windows and of the policy's noise.

    Raises:
        ConfigError: the model was never finetuned, or the data are of another robot.
        DataError: fewer than two held-out episodes.
    """
    from ...data_pipeline.loading.token_store import TokenStore
    from ...gr_model.model.release import load_release, release_folder
    from ...gr_model.train.texts import give_texts

    release = load_release(release_folder(policy))
    model = release.model
    if not model.acts:
        raise ConfigError(f"--policy {policy}: expected a finetuned model, got one that never saw actions.")
    store = TokenStore.open(tokens, [camera.name for camera in model.config.cameras])
    known = model.config.embodiments
    others = [robot for robot in store.embodiments if not fitting(known, robot)]
    if others:
        reason = "; ".join(d for d in known[0].differences(others[0]) if not d.startswith("camera "))
        raise ConfigError(f"--tokens: expected episodes of {_names(known)}, got others ({reason}).")
    store.number_embodiments(known)
    give_texts(model, store, None)
    places = np.unique(store.embodiment_of(np.flatnonzero(store.labeled))).tolist()
    options: dict[str, Any] = {"held_out": held_out, "max_windows": max_windows, "batch_size": batch_size, "seed": seed}
    measured = {known[place].name: _measure(release, store, place, **options) for place in places}
    if not measured:
        raise DataError("--tokens: expected labeled episodes with actions, got none.")
    result = {"policy": policy, "tokens": tokens, "held_out": held_out, "seed": seed}
    result |= {"robots": measured} if model.config.is_mixture else next(iter(measured.values()))
    for name, values in measured.items():
        print("\n".join([name] * model.config.is_mixture + list(_lines(values))))
    if json is not None:
        write_json(json, result)
    return result


def _measure(
    release: Release, store: TokenStore, place: int, *, held_out: float, max_windows: int, batch_size: int, seed: int
) -> dict[str, Any]:
    """Measure the windows of the robot at a place of the model's configuration."""
    from ...data_pipeline.loading.loader import BatchLoader, LoaderConfig
    from ...data_pipeline.loading.token_windows import TokenWindows

    config, (frame_step, control_hz) = release.model.config, release.clocks_of(place)
    mine = store.embodiment_of(np.arange(len(store))) == place
    windows = TokenWindows(
        store,
        num_frames=config.max_context,
        frame_step=max(1, frame_step // int(np.median(store.frame_stride[mine]))),
        chunk_length=config.chunk_length,
        context=config.max_context,
        labeled_only=True,
        split="validation" if held_out else "all",
        validation_fraction=held_out,
    )
    windows.counts[~mine] = 0
    loader = BatchLoader(windows, batch_size=batch_size, seed=seed, config=LoaderConfig())
    batches: Iterator[Any] = islice(iter(loader), max(1, min(len(loader), max_windows // batch_size)))
    errors = collect(release.model, batches, seed, place)
    episodes = len(errors[0].by_method["policy"]) if errors else 0
    if episodes < 2:
        name = config.embodiments[place].name
        raise DataError(
            f"--tokens: expected two or more held-out episodes of {name}, got {episodes}; raise --held-out."
        )
    signals = {signal.name: _summary(signal) for signal in errors}
    return {"episodes": episodes, "control_hz": control_hz, "signals": signals}


def _names(robots: Sequence[Embodiment]) -> str:
    return " or ".join(robot.name for robot in robots)


def _summary(signal: SignalErrors) -> dict[str, Any]:
    """Summarize a signal: mean errors with intervals, and whether both guesses are beaten for certain."""
    kept = {method: np.nanmean(table, axis=1) for method, table in signal.by_method.items()}
    seen = np.isfinite(kept["policy"])
    means = {method: _values(bootstrap_mean(values[seen])) for method, values in kept.items()}
    gains = {m: _values(paired_difference(kept[m][seen], kept["policy"][seen])) for m in METHODS[1:]}
    return {
        "unit": signal.unit,
        "error": means,
        "gain": gains,
        "beats_both": all(gain[1] > 0 for gain in gains.values()),
        "constant": not kept["hold"][seen].any() and not kept["mean"][seen].any(),
        "by_episode": {method: values[seen].tolist() for method, values in kept.items()},
        "by_step": {method: np.nanmean(table, axis=0).tolist() for method, table in signal.by_method.items()},
    }


def _values(interval: Interval) -> tuple[float, float, float]:
    return interval.value, interval.low, interval.high


def _lines(result: dict[str, Any]) -> Sequence[str]:
    lines = [f"{result['episodes']} held-out episodes, {result['control_hz']:g} Hz; mean [95 % interval over episodes]"]
    for name, row in result["signals"].items():
        parts = [f"{m} {v[0]:.3g} [{v[1]:.3g}, {v[2]:.3g}]" for m, v in row["error"].items()]
        verdict = "beats both" if row["beats_both"] else "does not beat both"
        verdict = "constant, so that there is nothing to beat" if row["constant"] else verdict
        lines.append(f"{name} [{row['unit']}]: {', '.join(parts)}; {verdict}")
        steps = row["by_step"]["policy"]
        at = sorted({0, len(steps) // 2, len(steps) - 1})
        lines.append("    " + ", ".join(f"step {i + 1}: {steps[i]:.3g}" for i in at))
    return lines
