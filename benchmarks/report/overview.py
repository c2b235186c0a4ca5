"""Sections about the run as a whole: summary, headline metrics, the chain, data, time, provenance."""

from __future__ import annotations

from collections.abc import Sequence

from ..metrics.statistics import bootstrap_mean, wilson_interval
from .act import broken_limits, chain_rates, control_name, controls_of, in_a_row, pooled
from .charts import value_bars
from .inputs import RUN, SHARDS, STAGES, RunFiles
from .learning import final_value, last_horizon_gain
from .markup import (
    absent,
    command_line,
    count,
    duration,
    note,
    percent,
    percent_span,
    signed_span,
    span,
    table,
    text,
)


def summary(files: RunFiles) -> str:
    """Write the paragraph at the top of the page from the metrics that exist."""
    run, sentences = files.run, []
    trained, tested = run.get("scenes_trained"), run.get("scene_tested")
    if trained or tested:
        where = f"trained on scene {trained}" if trained else "trained"
        sentences.append(
            f"A policy {where} from {run.get('demonstrations', 'recorded')} demonstrations"
            + (f" and tested on scene {tested}." if tested else ".")
        )
    for name, control in controls_of(files).items():
        success, total = pooled(control)
        if not total:
            continue
        rate = wilson_interval(success, total)
        sentence = (
            f"Under {control_name(name)} it solved {success} of {total} single instructions "
            f"({percent(rate.value)}, 95 % interval {percent_span(rate)})"
        )
        if lengths := in_a_row(control):
            sentence += f" and on average {bootstrap_mean(lengths).value:.2f} of 5 in a row"
        sentences.append(sentence + ".")
    gain = last_horizon_gain(files, "psnr_moving")
    if gain:
        horizon, gap = gain
        verdict = "beats" if gap.low > 0 else "falls behind" if gap.high < 0 else "cannot be distinguished from"
        sentences.append(
            f"{horizon} frames ahead its predicted video {verdict} a copy of the current frame "
            f"on the pixels that move: {signed_span(gap, 2, unit=' dB')}."
        )
    if not sentences:
        sentences.append("This run has no results yet; the parts that exist are shown below.")
    return f'<p class="summary">{text(" ".join(sentences))}</p>'


def headline(files: RunFiles) -> str:
    """Build the strip of headline metrics, each with its interval."""
    tiles: list[tuple[str, str, str]] = []
    for name, control in controls_of(files).items():
        success, total = pooled(control)
        if total:
            rate = wilson_interval(success, total)
            tiles.append((percent(rate.value), f"single instructions, {control_name(name)}", percent_span(rate)))
    wbc = controls_of(files).get("wbc", {})
    if lengths := in_a_row(wbc):
        average, fifth = bootstrap_mean(lengths), chain_rates(lengths)[4]
        tiles.append((f"{average.value:.2f}", "instructions in a row, of 5", span(average, 2)))
        tiles.append((percent(fifth.value), "of chains solved to the end", percent_span(fifth)))
    gain = last_horizon_gain(files, "psnr_moving")
    if gain:
        words = f"moving pixels, {gain[0]} frames ahead, against copying"
        value, interval = signed_span(gain[1], 1, unit=" dB").split(" (", 1)
        tiles.append((f"{value} dB", words, interval.replace(")", "")))
    if wbc.get("limits"):
        tiles.append(
            (count(broken_limits(wbc)), "violated joint limits", f"in {count(wbc['limits']['ticks'])} control ticks")
        )
    cells = "".join(
        f"<div><b>{text(value)}</b><span>{text(words)}</span><small>{text(interval)}</small></div>"
        for value, words, interval in tiles
    )
    return f'<div class="tiles">{cells}</div>' if tiles else ""


def chain_body(files: RunFiles) -> str:
    """Draw the chain from video to joint commands, with the metrics of this run where they are known."""
    kept = files.shards.get("counts", files.shards).get("kept")
    limits = controls_of(files).get("wbc", {}).get("limits") or {}
    chunk = files.act.get("chunk_length")
    head = f"poses, by the {files.run['head']} head" if "head" in files.run else "poses"
    trunk: Sequence[tuple[str, str]] = (
        ("video", "frames and captions"),
        ("shards", f"{count(kept)} kept" if kept is not None else "plain tar files"),
        ("tokens", "frozen VQGAN and CLIP"),
        ("GPT", str(files.run.get("preset", "one sequence"))),
    )
    seeing = (("frames", "the predicted future"), ("compare", "with the real future"))
    acting = (
        ("trajectory", f"{chunk} {head}" if chunk else head),
        ("WBC", f"{count(limits['ticks'])} ticks" if limits else "200 ticks a second"),
        ("joint commands", "within every limit"),
        ("simulator", str(files.run.get("renderer", "answers with images"))),
    )
    return (
        '<div class="chain">'
        + _lane(trunk, "trunk")
        + f'<div class="branches">{_lane(seeing, "seeing")}{_lane(acting, "acting")}</div></div>'
    )


def funnel_body(files: RunFiles) -> str:
    """Build the funnel of the data: recorded, kept, dropped by reason."""
    counts = files.shards.get("counts", files.shards)
    if "records" not in counts:
        return absent(SHARDS)
    recorded, kept = int(counts["records"]), int(counts.get("kept", 0))
    dropped = sorted((counts.get("dropped") or {}).items(), key=lambda item: -item[1])
    rows = [("recorded", recorded), ("kept", kept)]
    rows += [(f"dropped: {str(reason).replace('_', ' ')}", int(number)) for reason, number in dropped]

    def share(number: int) -> str:
        return percent(number / recorded) if recorded else ""

    drawing = value_bars(
        [(label, number, f"{count(number)} · {share(number)}") for label, number in rows], title="Data funnel"
    )
    lost = recorded - kept - sum(int(number) for _, number in dropped)
    remark = note(f"{count(lost)} entries are neither kept nor dropped for a known reason.") if lost else ""
    return (
        f'<div class="pair"><figure>{drawing}</figure><div>'
        + table(["entries", "number", "share"], [[text(label), count(n), share(n)] for label, n in rows])
        + f"{remark}{command_line(files.command_of('shards', 'shard', 'data', 'record'))}</div></div>"
    )


def stages_body(files: RunFiles) -> str:
    """Build the stage timings, and what each stage reported."""
    if not files.stages:
        return absent(STAGES)
    seconds = [float(stage.get("seconds", 0.0)) for stage in files.stages]
    names = [str(stage.get("name", "stage")) for stage in files.stages]
    drawing = value_bars(
        [(name, value, duration(value)) for name, value in zip(names, seconds, strict=True)],
        title="Time of each stage",
    )
    rows = [
        [
            text(name),
            duration(value),
            text(str(stage.get("started_at", "")).replace("T", " ")),
            "; ".join(f"{text(key)} {text(item)}" for key, item in (stage.get("summary") or {}).items()),
        ]
        for stage, name, value in zip(files.stages, names, seconds, strict=True)
    ]
    rows.append(["in all", duration(sum(seconds)), "", ""])
    return (
        f'<div class="pair"><figure>{drawing}</figure><div class="words">'
        + table(["stage", "time", "started", "reported"], rows, strong_row=len(rows) - 1)
        + "</div></div>"
    )


def provenance_body(files: RunFiles) -> str:
    """List versions, machine, options and the command of every stage."""
    run = files.run
    if not run and not files.stages:
        return absent(RUN, STAGES)
    simple: dict[str, object] = {
        str(key): str(value) for key, value in run.items() if key not in ("versions", "machine") and value is not None
    }
    groups: list[tuple[str, dict[str, object]]] = [
        ("run", simple),
        ("machine", run.get("machine") or {}),
        ("versions", run.get("versions") or {}),
    ]
    lists = "".join(_definitions(title, entries) for title, entries in groups if entries)
    commands = "".join(
        f"<li><span>{text(stage.get('name', 'stage'))}</span><code>{text(stage['command'])}</code></li>"
        for stage in files.stages
        if stage.get("command")
    )
    learned = "; ".join(
        f"{name} {value}"
        for curves in (files.pretrain, files.finetune, files.training)
        for name in curves
        if name.startswith("val/") and (value := final_value(curves, name))
    )
    return (
        f'<div class="lists">{lists}</div>'
        + (f'<h3>Commands that made these metrics</h3><ol class="commands">{commands}</ol>' if commands else "")
        + (note(f"Last logged validation metrics: {learned}.") if learned else "")
    )


def _lane(boxes: Sequence[tuple[str, str]], kind: str) -> str:
    items = "".join(f"<li><b>{text(name)}</b><small>{text(words)}</small></li>" for name, words in boxes)
    return f'<ol class="lane {kind}">{items}</ol>'


def _definitions(title: str, entries: dict[str, object]) -> str:
    pairs = "".join(
        f"<dt>{text(str(key).replace('_', ' '))}</dt><dd>{text(value)}</dd>" for key, value in entries.items()
    )
    return f"<div><h3>{text(title)}</h3><dl>{pairs}</dl></div>"
