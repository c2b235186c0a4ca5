"""Sections about acting: success of each task, instructions in a row, limits of the robot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from ..metrics.published import ABCD_D, CAPTION
from ..metrics.statistics import Interval, bootstrap_mean, paired_difference, rate_difference, wilson_interval
from .charts import Bar, BarGroup, interval_bars
from .inputs import ACT, RunFiles
from .markup import (
    absent,
    command_line,
    count,
    note,
    percent,
    percent_span,
    rate_span,
    signed_span,
    span,
    table,
    text,
)

CONTROL_NAMES = {"wbc": "whole-body control", "calvin": "CALVIN's own control"}
CONTROL_COLORS = {"wbc": "1", "calvin": "2"}

Control = Mapping[str, Any]


def controls_of(files: RunFiles) -> dict[str, Control]:
    """Return the measured controls by name, whole-body control first."""
    found = files.act.get("controls", {})
    return {name: found[name] for name in sorted(found, key=lambda name: name != "wbc")}


def pooled(control: Control) -> tuple[int, int]:
    """Count successes and trials over all tasks of a control."""
    tasks = control.get("tasks", {}).values()
    return sum(int(task["success"]) for task in tasks), sum(int(task["total"]) for task in tasks)


def chain_rates(chains: Sequence[int]) -> list[Interval]:
    """Estimate the rates of solving 1 to 5 instructions in a row from the lengths of the chains."""
    return [wilson_interval(sum(length >= k for length in chains), len(chains)) for k in range(1, 6)]


def control_name(name: str) -> str:
    """Return the words for a control."""
    return CONTROL_NAMES.get(name, name)


def success_body(files: RunFiles) -> str:
    """Build the success of every task under each control as table and chart, and the controls' difference."""
    controls = {name: one for name, one in controls_of(files).items() if pooled(one)[1]}
    if not controls:
        return absent(ACT)
    names = sorted({task for one in controls.values() for task in one.get("tasks", {})})
    head = ["task"] + [words for name in controls for words in (control_name(name), "95 % interval", "median steps")]
    rows = [["all tasks", *(cell for one in controls.values() for cell in _pooled_cells(one))]]
    groups = [BarGroup(label="all tasks", bars=[_bar(name, *pooled(one)) for name, one in controls.items()])]
    for task in names:
        trials = {name: one.get("tasks", {}).get(task) for name, one in controls.items()}
        rows.append([f"<code>{text(task)}</code>", *(cell for trial in trials.values() for cell in _cells(trial))])
        bars = [_bar(name, int(t["success"]), int(t["total"])) for name, t in trials.items() if t and t["total"]]
        groups.append(BarGroup(label=task.replace("_", " "), bars=bars))
    legend = [(control_name(name), CONTROL_COLORS.get(name, "3")) for name in controls]
    chart = interval_bars(groups, title="Success of each task with 95 % intervals", unit=" %", legend=legend)
    success = table(head, rows, kind="dense", strong_row=0)
    return (
        _protocol(files)
        + f'<div class="pair wide"><div>{success}</div><figure>{chart}</figure></div>'
        + _difference(controls)
        + note(
            "Intervals of rates: Wilson, 95 %; of the difference: Newcombe. Median steps: of the trials that succeeded."
        )
        + command_line(files.command_of("act", "rollout", "calvin"))
    )


def in_a_row(control: Mapping[str, Any]) -> list[int]:
    """Return how many of five tasks were solved in each official sequence, or in each chain where there are none."""
    return [int(length) for length in control.get("sequences") or control.get("chains") or ()]


_SERIES = {"sequences": "official sequences", "chains": "chains"}
"""Results that count instructions in a row: key in the file and words of the page."""


def chains_body(files: RunFiles) -> str:
    """Build the tables of instructions in a row and their average length, the published rows apart below them."""
    parts = [_series(files, key) for key in _SERIES]
    if not any(parts):
        return absent(ACT)
    return (
        "".join(parts)
        + note("Intervals: Wilson for rates, bootstrap over chains (seed 0) for the average length, 95 %.")
        + command_line(files.command_of("act", "rollout", "calvin"))
        + _published(files)
    )


def _series(files: RunFiles, key: str) -> str:
    """Build table and chart of one kind of chains, nothing where there are none."""
    controls = {name: one for name, one in controls_of(files).items() if one.get(key)}
    if not controls:
        return ""
    rows, groups = [], [BarGroup(label=f"{k} in a row", bars=[]) for k in range(1, 6)]
    bars: list[list[Bar]] = [[] for _ in groups]
    for name, one in controls.items():
        chains = [int(length) for length in one[key]]
        rates, average = chain_rates(chains), bootstrap_mean(chains)
        for k, rate in enumerate(rates):
            bars[k].append(_rate_bar(name, rate))
        cells = [f"{percent(rate.value)}<small>{rate_span(rate)}</small>" for rate in rates]
        length = f"{average.value:.2f}<small>{span(average, 2)}</small>"
        rows.append([f"{text(control_name(name))}<small>{count(len(chains))} {_SERIES[key]}</small>", *cells, length])
    chart = interval_bars(
        [BarGroup(label=group.label, bars=bars[k]) for k, group in enumerate(groups)],
        title=f"Instructions solved in a row, {_SERIES[key]}",
        unit=" %",
        legend=[(control_name(name), CONTROL_COLORS.get(name, "3")) for name in controls],
        label_width=90,
    )
    head = ["control", "1 in a row", "2", "3", "4", "5", "average length"]
    lengths = table(head, rows, kind="stacked") + _chain_difference(controls, key)
    return f'<div class="pair"><div>{lengths}</div><figure>{chart}</figure></div>'


def broken_limits(wbc: Mapping[str, Any]) -> int:
    """Count violated joint limits of commands and of measurements together."""
    kinds = [wbc[name] for name in ("limits", "limits_measured") if wbc.get(name)]
    return sum(int(kind["position_violations"]) + int(kind["velocity_violations"]) for kind in kinds)


def safety_body(files: RunFiles) -> str:
    """Build the counts of the whole-body controller, commanded and measured: violated limits, margins."""
    wbc = controls_of(files).get("wbc", {})
    if not wbc.get("limits"):
        return absent(ACT)
    kinds = [wbc["limits"], wbc.get("limits_measured")]

    def row(words: str, name: str, form: str, requirement: str) -> list[str]:
        return [words, *(form.format(kind[name]) if kind else "not measured" for kind in kinds), requirement]

    rows = [
        row("instants checked", "ticks", "{:,}", "every physics step; every control step"),
        row("beyond a joint position limit", "position_violations", "{:,}", "must be 0"),
        row("beyond a joint velocity limit", "velocity_violations", "{:,}", "must be 0"),
        row("smallest margin to a position limit", "min_position_margin_rad", "{:.4f} rad", "must not be negative"),
        row("largest velocity as a share of its limit", "max_velocity_ratio", "{:.3f}", "must not exceed 1"),
    ]
    broken = broken_limits(wbc)
    passed = any(k and (k["min_position_margin_rad"] < 0 or k["max_velocity_ratio"] > 1) for k in kinds)
    broken_words = f"{count(broken)} limit violations" if broken else "A limit was passed"
    verdict = f"{broken_words}: see the table." if broken or passed else "No limit was violated."
    mood = "bad" if broken or passed else "good"
    columns = ["measure", "commanded", "measured", "requirement"]
    return f'<p class="verdict {mood}">{verdict}</p>' + table(columns, rows, kind="narrow")


def _protocol(files: RunFiles) -> str:
    known = [
        ("executed_steps", "{} steps of each chunk executed"),
        ("latency_s", "chunks {} s late"),
        ("chunking", "{} chunks"),
        ("chunk_length", "chunks of {} steps"),
        ("max_steps", "at most {} steps a trial"),
        ("seed", "seed {}"),
    ]
    return note(
        ", ".join(words.format(files.act[key]) for key, words in known if key in files.act) or "Protocol not given."
    )


def _pooled_cells(control: Control) -> list[str]:
    success, total = pooled(control)
    steps = [step for task in control["tasks"].values() for step in task.get("steps", [])]
    return _cells({"success": success, "total": total, "steps": steps})


def _cells(trial: Mapping[str, Any] | None) -> list[str]:
    if not trial or not trial["total"]:
        return ["not run", "", ""]
    success, total, steps = int(trial["success"]), int(trial["total"]), trial.get("steps") or []
    rate = wilson_interval(success, total)
    share = f"{100 * rate.value:.0f} % <small>{success}/{total}</small>"
    return [share, rate_span(rate), f"{median(steps):.0f}" if steps else "none"]


def _bar(name: str, success: int, total: int) -> Bar:
    return _rate_bar(name, wilson_interval(success, total))


def _rate_bar(name: str, rate: Interval) -> Bar:
    return Bar(
        value=100 * rate.value,
        low=100 * rate.low,
        high=100 * rate.high,
        color=CONTROL_COLORS.get(name, "3"),
        tooltip=f"{control_name(name)}: {percent(rate.value)} ({percent_span(rate)}), {rate.count} trials",
    )


def _difference(controls: Mapping[str, Control]) -> str:
    if not {"wbc", "calvin"} <= controls.keys():
        return ""
    gap = rate_difference(*pooled(controls["wbc"]), *pooled(controls["calvin"]))
    verdict = "the interval leaves out zero" if gap.excludes_zero() else "the interval holds zero"
    words = signed_span(gap, 1, scale=100, unit=" points")
    return f'<p class="finding">Whole-body control minus CALVIN\'s own control: <b>{words}</b>, {verdict}.</p>'


def _chain_difference(controls: Mapping[str, Control], key: str) -> str:
    if not {"wbc", "calvin"} <= controls.keys():
        return ""
    first, second = controls["wbc"][key], controls["calvin"][key]
    if len(first) != len(second):
        return note("The controls ran different numbers of chains, so their lengths are not compared pair by pair.")
    gap = paired_difference(first, second)
    words = signed_span(gap, 2)
    return (
        f'<p class="finding">Average length, whole-body control minus CALVIN\'s own control: <b>{words}</b>, '
        f"paired over {len(first)} {_SERIES[key]}.</p>"
    )


def _published(files: RunFiles) -> str:
    tasks = {task for one in controls_of(files).values() for task in one.get("tasks", {})}
    rows = []
    for row in ABCD_D:
        rates = ["" if rate is None else f"{rate:.1f} %" for rate in row.rates]
        origin = text(row.source) + (f"<small>{text(row.remark)}</small>" if row.remark else "")
        rows.append([text(row.model), *rates, f"{row.average_length:.2f}", origin, row.evidence])
    head = ["model", "1 in a row", "2", "3", "4", "5", "average length", "source", "evidence"]
    caption = CAPTION.format(tasks=len(tasks) or "fewer")
    return (
        '<div class="published">'
        + table(head, rows, caption=caption)
        + "</div>"
        + note(
            "Empty cells could not be confirmed. Evidence: primary, the paper, code or model card was read; "
            "secondary, a report about it was read."
        )
    )
