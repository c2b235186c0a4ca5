"""Lay out what `gr2 data inspect` found as a table that a person reads from top to bottom."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ...embodiment import Embodiment
from ..statistics.table import as_text as statistics_text

_LABEL = 26
_LONGEST_CAPTION = 90
_LONGEST_DETAIL = 200


def as_text(summary: Mapping[str, Any]) -> str:
    """Return the lines, one a finding, what to fix at the end."""
    lines: list[str] = []
    for part in (_dataset, _videos, _captions, _steps, _problems, _advice):
        lines += [line.rstrip() for line in part(summary)]
    return "\n".join(lines)


def _row(label: str, value: object) -> str:
    return f"{label:<{_LABEL}}{value}"


def _counts(counts: Mapping[str, int], unit: str = "") -> str:
    return ", ".join(f"{name}{unit} ({count})" for name, count in counts.items())


def _dataset(summary: Mapping[str, Any]) -> Iterator[str]:
    yield f"{summary['source']}"
    yield _row("format", " ".join(filter(None, (summary["reader"], summary["version"]))))
    yield _row("dataset", _counts(summary["datasets"]) or "not stated")
    yield _row("license", _counts(summary["licenses"]) or summary["license_file"] or "not stated")
    unusable = summary["records"] - summary["episodes"] - summary["clips"]
    kinds = f"{summary['episodes']} episodes with actions, {summary['clips']} clips of video alone"
    yield _row("records", f"{summary['records']} ({kinds}, {unusable} that cannot be used)")
    for label, value in summary["details"].items():
        yield _row(label, _counts(value) if isinstance(value, dict) else value)
    if summary["splits"]:
        yield _row("splits", _counts(summary["splits"]))
    yield _row("cameras", _counts(summary["cameras"]) or "none")
    if summary["missing_cameras"]:
        yield _row("missing cameras", ", ".join(f"{c} in {n} records" for c, n in summary["missing_cameras"].items()))


def _videos(summary: Mapping[str, Any]) -> Iterator[str]:
    probed, seconds = summary["probed"], summary["seconds"]
    if not probed["of"]:
        return
    how = "" if probed["records"] == probed["of"] else ", spread evenly; --max-clips 0 opens all"
    yield ""
    if summary["reader"] != "calvin":  # whose probed frames are counted with each split
        yield _row("opened", f"{probed['records']} of {probed['of']} clips{how}")
    total = f"{'about ' if seconds['is_estimate'] else ''}{_duration(seconds['total'])}"
    spread = ", ".join(f"{name} {seconds[name]:.2f} s" for name in ("shortest", "median", "longest"))
    yield _row("duration", f"{total}; {spread}")
    yield _row("frames", f"{summary['frames']} in the clips opened")
    yield _row("frames a second", _counts(summary["fps"]))
    yield _row("sizes [px]", _counts(summary["sizes"]))
    yield _row("codecs", _counts(summary["codecs"]))
    for label, name in (("pixel formats", "pixel_formats"), ("containers", "containers")):
        if summary[name]:
            yield _row(label, _counts(summary[name]))
    yield _row("read by", f"{_counts(summary['decoders'])}; {summary['counted']} counted frame by frame")
    if summary["high_dynamic_range"]:
        yield _row("high dynamic range", f"{summary['high_dynamic_range']} videos")
    if summary["variable_rate"]:
        yield _row("variable frame rate", f"{summary['variable_rate']} videos")
    if summary["decoding_cost"]:
        costs = ", ".join(f"{codec} {cost:g} x" for codec, cost in summary["decoding_cost"].items())
        yield _row("decoding time", f"{costs} that of H.264, measured on one video each")


def _duration(seconds: float) -> str:
    return f"{seconds / 3600:.2f} h" if seconds >= 3600 else f"{seconds:.2f} s"


def _captions(summary: Mapping[str, Any]) -> Iterator[str]:
    captions = summary["captions"]
    yield ""
    at_least = "at least " if captions["different_is_at_least"] else ""
    different = f"{at_least}{captions['different']} different"
    yield _row("captions", f"{captions['captioned']}, {different}; {captions['empty']} records without")
    if not captions["captioned"]:
        return
    words = captions["words"]
    yield _row("words", f"{words['shortest']} to {words['longest']}, median {words['median']}")
    yield _row("languages", _counts(captions["languages"]))
    for number, (caption, count) in enumerate(captions["most_frequent"]):
        shown = caption if len(caption) <= _LONGEST_CAPTION else f"{caption[:_LONGEST_CAPTION]}..."
        yield _row("most frequent" if number == 0 else "", f"{count} x {' '.join(shown.split())}")


def _steps(summary: Mapping[str, Any]) -> Iterator[str]:
    steps = summary["steps"]
    if not summary["episodes"]:
        return
    lengths = steps["lengths"]
    yield ""
    spread = f"{lengths['shortest']} to {lengths['longest']}, median {lengths['median']}"
    yield _row("steps", f"{lengths['total']}; {spread} an episode")
    yield _row("steps a second", _counts(steps["control_hz"]))
    yield _row("states", _counts(steps["state_widths"], " numbers") or "none")
    yield _row("actions", _counts(steps["action_widths"], " numbers") or "none")
    for robot in summary["embodiments"]:
        yield from _embodiment(robot)
    if steps["statistics"] is not None and steps["statistics"]["datasets"]:
        # its first line counts records, and its broken ones are named below
        yield from statistics_text(steps["statistics"] | {"broken": {}}).split("\n")[1:]


def _embodiment(robot: Mapping[str, Any]) -> Iterator[str]:
    """Lay out what a robot sees, measures and commands, and how to state what is unknown."""
    embodiment = Embodiment.from_dict(robot)
    yield ""
    yield _row("embodiment", f"{embodiment.name} ({robot['episodes']} episodes)")
    rows = [("", "name", "numbers", "unit", "meaning"), *embodiment.rows()]
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    for row in rows:
        cells = (f"{cell:<{width}}" for cell, width in zip(row, widths, strict=False))
        yield f"  {'  '.join(cells)}  {row[4]}"
    if robot["unknown"]:
        yield "  what is unknown can be stated with `state_signals` and `action_signals` in a --spec (docs/data.md)"


def _problems(summary: Mapping[str, Any]) -> Iterator[str]:
    yield ""
    dropped, repeated, shared = summary["would_be_dropped"], summary["repeated"], summary["shared_between_splits"]
    if dropped:
        yield _row("filters would drop", _counts(dropped))
    skipped = f", {repeated['not_compared']} not compared" if repeated["not_compared"] else ""
    if repeated["told_by_size_and_ends"]:
        skipped += f", {repeated['told_by_size_and_ends']} by their size and both ends alone"
    yield _row("identical content", f"{repeated['records']} of {repeated['compared']} records compared{skipped}")
    for example in repeated["examples"]:
        yield f"  {' = '.join(example)}"
    if len(summary["splits"]) > 1:
        yield _row("shared by splits", f"{shared['records']} records")
        for example in shared["examples"]:
            yield f"  {' = '.join(example)}"
    if repaired := summary.get("repaired"):
        yield _row("repaired", _counts(repaired))
    groups = summary["problems"]
    yield _row("problems", f"{sum(group['count'] for group in groups)}" if groups else "none found")
    for group in groups:
        yield f"  {group['count']} x {_cut(group['reason'])}"
        for example in group["examples"]:
            yield f"      {example['source']}: {_cut(example['detail'].removeprefix(example['source'] + ': '))}"


def _cut(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= _LONGEST_DETAIL else f"{text[:_LONGEST_DETAIL]}..."


def _advice(summary: Mapping[str, Any]) -> Iterator[str]:
    yield ""
    if not summary["advice"]:
        yield "what to fix: nothing found"
        return
    yield "what to fix:"
    yield from (f"  - {line}" for line in summary["advice"])
