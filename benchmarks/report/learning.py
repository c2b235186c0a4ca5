"""Sections about learning: predicted frames against the copied frame, loss curves, videos side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import DataError
from ..metrics.statistics import Interval, bootstrap_mean, paired_difference
from .charts import QUIET, Series, line_chart
from .inputs import EPISODES, FINETUNE, IMAGINE, PRETRAIN, Curves, RunFiles
from .markup import absent, charts, command_line, count, note, percent, signed_span, table, text
from .media import embed_video

MAX_EPISODES = 24
"""Episodes whose videos are embedded; more would make the page too heavy."""

MAX_POINTS = 200
"""Points of a drawn loss curve; longer logs are averaged in bins."""

VIDEO_MEASURES = (
    ("psnr", "PSNR, all pixels", " dB", 2, 1.0),
    ("psnr_moving", "PSNR, moving pixels", " dB", 2, 1.0),
    ("ssim", "SSIM", "", 3, 1.0),
    ("token_accuracy", "equal image codes", " %", 1, 100.0),
)
"""Name in the file, words, unit, digits, scale from the file to the page."""

ROLES = (("predicted", "predicted"), ("real", "real"), ("rollout", "policy's rollout"))


def video_pairs(step: dict[str, Any], measure: str) -> tuple[list[float], list[float]]:
    """Return the values of the model and of the copied frame for the episodes that have both."""
    both = zip(step.get(measure) or [], step.get(f"{measure}_copy") or [], strict=True)
    kept = [(a, b) for a, b in both if a is not None and b is not None and np.isfinite(a) and np.isfinite(b)]
    return [a for a, _ in kept], [b for _, b in kept]


def last_horizon_gain(files: RunFiles, measure: str) -> tuple[int, Interval] | None:
    """Estimate the gain over the copied frame at the farthest horizon, with that horizon."""
    steps = files.imagine.get("per_step") or []
    if not steps:
        return None
    model, copy = video_pairs(steps[-1], measure)
    return (int(steps[-1]["horizon"]), paired_difference(model, copy)) if model else None


def episodes_body(files: RunFiles) -> str:
    """Build the grid of predicted, real and acted videos, each with its instruction."""
    if not files.episodes:
        return absent(EPISODES)
    cards = [_episode_card(episode, files.folder / "imagine") for episode in files.episodes[:MAX_EPISODES]]
    left = len(files.episodes) - len(cards)
    more = note(f"The first {len(cards)} of {len(files.episodes)} episodes.") if left else ""
    button = '<button type="button" id="play" aria-pressed="true">Pause all videos</button>'
    return (
        f'<div class="bar">{button}</div><div class="episodes">{"".join(cards)}</div>{more}'
        + note(
            "Predicted: the future that the model expects. Real: the recorded future. "
            "Rollout: the policy acting in the simulator."
        )
        + command_line(files.command_of("imagine"))
    )


def video_body(files: RunFiles) -> str:
    """Build charts and table of the video metrics per horizon against the copied frame."""
    steps = files.imagine.get("per_step") or []
    if not steps:
        return absent(IMAGINE)
    drawings, lines = [], []
    for measure, words, unit, digits, scale in VIDEO_MEASURES:
        rows = [(float(step["horizon"]), *video_pairs(step, measure)) for step in steps]
        rows = [row for row in rows if row[1]]
        if rows:
            drawings.append(_measure_chart(rows, words, unit, scale))
        for index, (horizon, model, copy) in enumerate(rows):
            name = text(words) if index == 0 else ""
            lines.append([name, f"{horizon:.0f}", *_measure_cells(model, copy, unit, digits, scale)])
    if not lines:
        return absent(IMAGINE)
    head = ["measure", "frames ahead", "model", "copy", "model minus copy (95 %)"]
    episodes = files.imagine.get("episodes")
    return (
        charts(*drawings)
        + table(head, lines, kind="narrow")
        + note(
            f"{count(episodes) + ' episodes. ' if episodes is not None else ''}One value per episode and "
            "horizon. Copy: the current frame, repeated. "
            "Moving pixels: where the real future differs from the current frame. "
            "Bands and intervals: bootstrap over episodes, 95 %, differences paired."
        )
        + command_line(files.command_of("imagine", "video"))
    )


def losses_body(files: RunFiles) -> str:
    """Build the loss curves and the validation metrics of a training, or of pretraining and finetuning."""
    if files.training:
        body = charts(*_curve_charts(files.training))
        return f"{body}{note(f'Curves of more than {MAX_POINTS} points are averaged in as many bins.')}"
    parts = []
    for title, name, curves in (
        ("Pretraining on video", PRETRAIN, files.pretrain),
        ("Finetuning on robot episodes", FINETUNE, files.finetune),
    ):
        body = charts(*_curve_charts(curves)) if curves else absent(name)
        parts.append(f"<h3>{title}</h3>{body}{command_line(files.command_of(name.split('/')[0]))}")
    return "".join(parts) + note(f"Curves of more than {MAX_POINTS} points are averaged in as many bins.")


def _episode_card(episode: dict[str, Any], folder: Path) -> str:
    cells = []
    for key, words in ROLES:
        cells.append(f"<div>{_video(episode.get(key), folder, words)}<span>{text(words)}</span></div>")
    details = " · ".join(text(episode[key]) for key in ("task", "camera") if episode.get(key))
    instruction = text(episode.get("instruction") or "no instruction")
    return (
        f'<figure class="episode"><figcaption><b>“{instruction}”</b><small>{details}</small></figcaption>'
        f'<div class="trio">{"".join(cells)}</div></figure>'
    )


def _video(name: Any, folder: Path, words: str) -> str:
    if not name or not (folder / str(name)).is_file():
        return '<div class="hole">not in the run folder</div>'
    try:
        address = embed_video(folder / str(name))
    except DataError as error:
        return f'<div class="hole">{text(error)}</div>'
    label = text(f"{words} video")
    return f'<video src="{address}" aria-label="{label}" autoplay loop muted playsinline></video>'


def _measure_chart(rows: Sequence[tuple[float, list[float], list[float]]], words: str, unit: str, scale: float) -> str:
    x = [row[0] for row in rows]

    def line(column: int, name: str, color: str) -> Series:
        means = [bootstrap_mean(scale * np.asarray(row[column])) for row in rows]
        return Series(
            name=name,
            x=x,
            y=[one.value for one in means],
            low=[one.low for one in means],
            high=[one.high for one in means],
            color=color,
            dashed=color == QUIET,
            markers=True,
        )

    label = f"{words} [{unit.strip()}]" if unit else words
    series = [line(1, "model", "1"), line(2, "copy of the current frame", QUIET)]
    return line_chart(series, title=f"{words} per horizon", x_label="frames ahead", y_label=label)


def _measure_cells(model: Sequence[float], copy: Sequence[float], unit: str, digits: int, scale: float) -> list[str]:
    gap = paired_difference(model, copy)
    return [
        f"{scale * np.mean(model):.{digits}f}{unit}",
        f"{scale * np.mean(copy):.{digits}f}{unit}",
        signed_span(gap, digits, scale=scale),
    ]


def _curve_charts(curves: Curves) -> list[str]:
    """Draw losses together, accuracies together, and every other metric alone."""
    groups: dict[tuple[str, bool], list[str]] = {}
    for name in curves:
        if name.startswith("lr"):
            continue
        if "loss" in name:
            key = ("loss", True)
        elif "accuracy" in name:
            key = ("accuracy", False)
        elif name.endswith("_mm"):
            key = ("error [mm]", False)
        else:
            key = (name, False)
        groups.setdefault(key, []).append(name)
    return [
        line_chart(
            [_curve(name, points, index) for index, (name, points) in enumerate(_merged(names, curves))],
            title=f"{label} over training steps",
            x_label="optimizer step",
            y_label=label,
            log_y=logarithmic and all(value > 0 for name in names for _, value in curves[name]),
        )
        for (label, logarithmic), names in groups.items()
    ]


def _merged(names: Sequence[str], curves: Curves) -> list[tuple[str, list[tuple[float, float]]]]:
    """Pair every curve with its name; curves of equal values are drawn once, under both names."""
    merged: list[tuple[str, list[tuple[float, float]]]] = []
    for name in names:
        for index, (other, points) in enumerate(merged):
            if points == curves[name]:
                merged[index] = (f"{other} = {name}", points)
                break
        else:
            merged.append((name, curves[name]))
    return merged


def _curve(name: str, points: Sequence[tuple[float, float]], index: int) -> Series:
    bins = np.array_split(np.asarray(points), min(len(points), MAX_POINTS))
    x, y = zip(*(part.mean(axis=0) for part in bins), strict=True)
    quiet = "copy" in name
    color = QUIET if quiet else str(index % 4 + 1)
    return Series(name=name, x=x, y=y, color=color, dashed=quiet, markers=len(points) < 12)


def final_value(curves: Curves, name: str) -> str:
    """Write the last logged value of a metric, or nothing."""
    points = curves.get(name)
    if not points:
        return ""
    value = points[-1][1]
    return percent(value) if "accuracy" in name else f"{value:.3g}"
