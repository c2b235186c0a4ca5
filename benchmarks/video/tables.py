"""The report of predicted video as lines of text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ..metrics.frames import MOVING_THRESHOLD
from .scores import LOWER_IS_BETTER, UNITS

_REFERENCES = {
    "codes": "the true codes",
    "reconstruction": "the tokenizer's reconstructions of the real frames",
    "original": "the original pixels (copy: the last original frame; tokenizer: what the true codes give)",
}
_WIDTH = 32


def table(report: Mapping[str, Any]) -> Iterator[str]:
    """Yield the lines of the printed result; intervals are 95 %, bootstrapped over clips."""
    sample, protocol = report["sample"], report["protocol"]
    cameras = ", ".join(f"{name} ({count})" for name, count in sample["cameras"].items())
    yield (
        f"{sample['clips']} clips of as many videos ({sample['clips_asked']} asked), cameras {cameras}; "
        f"{sample['context_frames']} context frames, {sample['predicted_frames']} predicted, "
        f"{sample['sentences']} captions"
    )
    held = f"{sample['held_out']:.0%} held out of training" if sample["held_out"] else "any: were they in training?"
    yield f"clips sampled from the videos {held}"
    yield f"protocol {protocol['name']}, n = {protocol['samples']}: {protocol['what']}"
    yield (
        f"moving: pixels that the real future changes by more than {MOVING_THRESHOLD} of 255; still: the others, where "
        "a copy is right by definition"
    )
    yield "mean and 95 % interval over clips; differences are paired; * the interval leaves out 0"
    for reference, what in _REFERENCES.items():
        metrics = [m for m in report["metrics"] if m["reference"] == reference]
        if metrics:
            yield ""
            yield f"against {what}"
            yield from _metric_lines(metrics)
    yield ""
    yield from _step_lines(report["metrics"])
    yield ""
    yield from _likelihood_lines(report)
    yield ""
    yield from _frechet_lines(report["frechet"])


def _metric_lines(metrics: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    with_tokenizer = any(metric["rows"][0]["tokenizer"] for metric in metrics)
    names = ["model", "copy last", "mean frame", "model - copy", "model - mean", *(["tokenizer"] * with_tokenizer)]
    yield f"  {'':22}" + "".join(f"{name:>{_WIDTH}}" for name in names)
    for metric in metrics:
        row, unit = metric["rows"][0], UNITS[metric["metric"]]
        columns = [row[n] for n in ("model", "copy", "mean")]
        cells = [_cell(value, unit) for value in columns]
        cells += [_cell(row[n], unit, signed=True) for n in ("minus_copy", "minus_mean")]
        cells += [_cell(row["tokenizer"], unit)] * with_tokenizer
        yield f"  {_label(metric['metric']):22}" + "".join(f"{cell:>{_WIDTH}}" for cell in cells)


def _step_lines(metrics: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Show each horizon step, and how far ahead the model beats both guesses."""
    yield "by horizon step: model (model - copy, model - mean); beaten: up to where both intervals are above 0"
    steps = [row["horizon"] for row in metrics[0]["rows"][1:]]
    yield f"  {'':38}" + "".join(f"{step:>26}" for step in steps) + "    beaten"
    for metric in metrics:
        rows, unit = metric["rows"][1:], UNITS[metric["metric"]]
        cells = "".join(f"{_step_cell(row, unit):>26}" for row in rows)
        beaten = f"{steps_ahead(rows, metric['metric'])} of {len(rows)}"
        yield f"  {metric['reference']:15}{_label(metric['metric']):23}{cells}{beaten:>10}"


def _step_cell(row: Mapping[str, Any], unit: str) -> str:
    if row["model"] is None:
        return "-"
    scale = 100 if unit == "%" else 1
    gaps = (
        "-" if gap is None else f"{scale * gap['value']:+.3g}{'*' if _leaves_out_zero(gap) else ''}"
        for gap in (row["minus_copy"], row["minus_mean"])
    )
    return f"{scale * row['model']['value']:.4g} ({', '.join(gaps)})"


def steps_ahead(rows: Sequence[Mapping[str, Any]], metric: str) -> int:
    """Count the horizon steps, from the first on, at which the model beats the copy and the mean frame for certain."""
    sign = -1 if metric in LOWER_IS_BETTER else 1
    for count, row in enumerate(rows):
        gaps = (row["minus_copy"], row["minus_mean"])
        if not all(gap is not None and min(sign * gap["low"], sign * gap["high"]) > 0 for gap in gaps):
            return count
    return len(rows)


def _likelihood_lines(report: Mapping[str, Any]) -> Iterator[str]:
    likelihood = report["likelihood"]
    how = (
        "each code by the context alone, in one decoding step"
        if likelihood["decoding"] == "masked"
        else "each code after the true codes before it"
    )
    yield f"loss of the true next frame after the real frames before it ({likelihood['decoding']}: {how})"
    yield f"  {'nats a token':22}{_cell(likelihood['nats_per_token'], ''):>{_WIDTH}}"
    yield f"  {'nats a frame':22}{_cell(likelihood['nats_per_frame'], ''):>{_WIDTH}}"
    yield f"  {'perplexity a token':22}{_cell(likelihood['perplexity'], ''):>{_WIDTH}}"
    yield "shuffled among clips: nats a token that the model loses (0 in the interval: it does not use them)"
    for control in report["controls"]:
        if control["gap"] is None:
            yield f"  {control['shown']:22}not measured: {control['reason']}"
            continue
        share = control["gap"]["value"] / control["loss"]["value"]
        yield f"  {control['shown']:22}{_cell(control['gap'], '', signed=True):>{_WIDTH}}  {share:+.1%} of the loss"


def _frechet_lines(distances: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    yield "Frechet distances (lower is better; basic bootstrap over clips)"
    yield "  frames: our own features, the VQGAN encoder's vectors; not comparable with FID. fvd: I3D logits"
    for row in distances:
        values = row["distances"]
        cells = [
            f"{name} {_cell(values[name], '')}" for name in ("model", "copy", "mean", "tokenizer") if name in values
        ]
        yield f"  {row['name']:7}{row['reference']:15}{row['camera']:10}" + "; ".join(cells)
        gaps = "; ".join(f"model - {n} {_cell(v, '', signed=True)}" for n, v in row["model_minus"].items())
        yield f"  {'':32}{gaps}"
        warning = "; too few, biased upwards: compare only within this table" if row["too_few"] else ""
        yield (
            f"  {'':32}{row['clips']} clips, {row['samples']} samples of {row['features']} features, two halves of the "
            f"real clips: {row['halves_of_the_real_clips']:.4g}{warning}"
        )


def _label(metric: str) -> str:
    unit = UNITS[metric]
    arrow = " (lower is better)" if metric in LOWER_IS_BETTER else ""
    return f"{metric.replace('_', ' ')}{f' [{unit}]' if unit else ''}{arrow}"


def _cell(interval: Mapping[str, Any] | None, unit: str, *, signed: bool = False) -> str:
    if interval is None:
        return "-"
    scale, sign = (100 if unit == "%" else 1), "+" if signed else ""
    value, low, high = (f"{scale * interval[name]:{sign}.4g}" for name in ("value", "low", "high"))
    return f"{value} [{low}, {high}]{'*' if signed and _leaves_out_zero(interval) else ''}"


def _leaves_out_zero(interval: Mapping[str, Any] | None) -> bool:
    return interval is not None and (interval["low"] > 0 or interval["high"] < 0)
