"""`gr2 data report`: a page about a dataset, light and dark, narrow and wide, no script, nothing from outside."""

from __future__ import annotations

import base64
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from ..files import write_bytes
from .caption_words import RULE
from .report import UNUSED_ANSWERS, ClipCounts, DataReport, Sheet, Stage, collect_report
from .report_clips import SampleClip

_TITLES = {
    "video_shards": "Written to shards",
    "curated_shards": "Curated",
    "captioned_shards": "Captioned",
    "token_shards": "Encoded as tokens",
}
_UNITS = {"video_shards": "videos", "token_shards": "videos"}
"""What a stage counts; the others count windows."""

_SECONDS = (0, 0.5, 1, 2, 3, 5, 10, 20, 30, 60)
_WORDS = (0, 1, 3, 5, 9, 16, 31, 61)
_MOST_SHOWN = 15

STYLE = """
:root { color-scheme: light dark; --paper: #fdfdfc; --panel: #f1f1ed; --ink: #1b1d20; --soft: #5f646b; --rule: #dcdcd6;
  --kept: #2f7d5b; --lost: #b3261e; --bar: #2461a6; }
@media (prefers-color-scheme: dark) { :root { --paper: #141619; --panel: #202429; --ink: #e6e7e9; --soft: #a0a5ae;
  --rule: #363a41; --kept: #7cc4a2; --lost: #ff8a80; --bar: #7fb0e6; } }
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body { margin: 0 auto; max-width: 1152px; padding: 40px 32px 64px; background: var(--paper); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", "Liberation Sans", Arial, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 27px; line-height: 1.2; font-weight: 650; margin: 0 0 6px; }
h2 { font-size: 19px; font-weight: 650; margin: 0 0 14px; }
h3 { font-size: 14px; font-weight: 600; margin: 26px 0 10px; }
h3 small { font-weight: 400; margin-left: 6px; }
section { border-top: 1px solid var(--rule); margin-top: 36px; padding-top: 20px; }
p { margin: 0 0 12px; max-width: 84ch; } small, .note { color: var(--soft); font-size: 13px; }
.problem { border-left: 2px solid var(--lost); padding-left: 10px; }
.summary { font-size: 17px; }
.scroll { overflow-x: auto; } .scroll:focus-visible { outline: 2px solid var(--bar); outline-offset: 2px; }
table { border-collapse: collapse; width: 100%; font-size: 13.5px; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: 6px 16px 6px 0; border-bottom: 1px solid var(--rule); vertical-align: top; }
th { font-weight: 500; font-size: 12px; color: var(--soft); } th, .number { white-space: nowrap; }
.number { text-align: right; } th:last-child, td:last-child { padding-right: 0; }
.funnel td:first-child { min-width: 150px; }
.reasons { min-width: 180px; } .reasons span { display: inline-block; margin-right: 14px; }
.flow { height: 6px; margin-top: 6px; background: var(--lost); } .flow i { display: block; height: 6px;
  background: var(--kept); }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 310px), 1fr)); gap: 22px 36px; }
.charts h3 { margin-top: 0; }
.bars { display: grid; grid-template-columns: minmax(0, max-content) minmax(40px, 1fr) auto; gap: 3px 10px;
  align-items: center; font-size: 13px; font-variant-numeric: tabular-nums; margin: 0; }
.bars dt { color: var(--soft); overflow-wrap: anywhere; } .bars dd { margin: 0; } .bars i { display: block;
  height: 10px; background: var(--bar); }
.clips { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 330px), 1fr)); gap: 18px 20px; }
figure { margin: 0; min-width: 0; } figure img { display: block; width: 100%; height: auto; background: var(--panel); }
.hole { background: var(--panel); padding: 16px 12px; font-size: 12.5px; color: var(--soft); }
figcaption { margin-top: 5px; font-size: 13px; line-height: 1.4; } figcaption b { font-weight: 600; display: block; }
figcaption .figure { color: var(--lost); display: block; } code { font: 12px/1.4 ui-monospace, Menlo, Consolas,
  "Liberation Mono", monospace; color: var(--soft); }
.kept h3::before, .lost h3::before { content: ""; display: inline-block; width: 9px; height: 9px; margin-right: 8px;
  background: var(--kept); } .lost h3::before { background: var(--lost); }
details { border-bottom: 1px solid var(--rule); padding: 8px 0; } summary { cursor: pointer; font-weight: 600;
  font-size: 14px; }
.facts { display: grid; grid-template-columns: minmax(0, max-content) minmax(0, 1fr); gap: 3px 18px; font-size: 13px;
  margin: 10px 0; }
.facts dt { color: var(--soft); } .facts dd { margin: 0; white-space: pre-wrap; }
@media (max-width: 600px) { body { padding: 24px 16px 40px; } h1 { font-size: 23px; } .summary { font-size: 15.5px; }
  .facts { grid-template-columns: minmax(0, 1fr); } .facts dd { margin-bottom: 5px; } 
  .funnel, .funnel tbody { display: block; } .funnel thead { display: none; }
  .funnel tr { display: grid; grid-template-columns: repeat(5, auto); gap: 2px 10px; padding: 10px 0;
    border-bottom: 1px solid var(--rule); }
  .funnel td { border: 0; padding: 0; } .funnel td:first-child, .funnel .reasons { grid-column: 1 / -1; }
  .funnel .number { text-align: left; }
  .funnel [data-name]::before { content: attr(data-name); display: block; font-size: 11.5px; color: var(--soft); } }
"""


def write_data_report(*, folder: Path, html: Path | None = None, num_clips: int = 12) -> Path:
    """Write one self-contained HTML page about a folder of video or token shards and the stages before it.

    Args:
        folder: of finished shards.
        html: file to write; `report.html` in the folder where it is not given.
        num_clips: clips shown of those that are left, and for every reason to drop one.

    Raises:
        DataError: the folder holds no finished stage, or its shards are damaged.
        ConfigError: a negative number of clips.
    """
    target = html if html is not None else folder / "report.html"
    write_bytes(target, build_page(collect_report(folder, num_clips)).encode())
    return target


def build_page(report: DataReport) -> str:
    """Build the whole page."""
    title = f"Data report: {report.folder.resolve().name}"
    problem = (
        f'<p class="note problem">Earlier stages are missing: {text(report.missing)}.</p>' if report.missing else ""
    )
    kept = [sheet for sheet in report.sheets if not sheet.reason]
    lost = [sheet for sheet in report.sheets if sheet.reason and not sheet.answer_only]
    unused = [sheet for sheet in report.sheets if sheet.answer_only]
    sections = (
        ("From the source to here", _funnel(report.stages) + problem),
        ("Clips that are left", _sheets(kept, "kept") or _note("Token shards hold no images; the videos are gone.")),
        ("Clips that were dropped, and why", _sheets(lost, "lost") or _note("Nothing was dropped.")),
        ("Answers of the model that were not used", _sheets(unused, "lost")),
        ("What is left", _distributions(report.clips)),
        ("Words of the captions", _words(report.clips)),
        ("Datasets and licenses", _origins(report.clips)),
        ("How the stages were run", _runs(report.stages)),
    )
    bodies = "".join(f"<section><h2>{text(heading)}</h2>{body}</section>" for heading, body in sections if body)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<link rel="icon" href="data:,"><title>{text(title)}</title><style>{STYLE}</style></head><body>'
        f"<header><h1>{text(title)}</h1>{_summary(report)}</header><main>{bodies}</main></body></html>\n"
    )


def text(words: object) -> str:
    """Escape words for HTML."""
    return escape(str(words), quote=True)


def number(value: float) -> str:
    """Write a count with thin spaces between thousands."""
    return f"{int(value):,}".replace(",", "\N{NARROW NO-BREAK SPACE}")


def hours(seconds: float) -> str:
    """Write a duration [s] in hours, with the fewer digits the longer it is."""
    value = seconds / 3600
    return number(value) if value >= 100 else f"{value:.{3 if value < 1 else 2 if value < 10 else 1}f}"


def _note(words: str) -> str:
    return f'<p class="note">{text(words)}</p>'


def _reason(name: str) -> str:
    return text(name.replace("_", " "))


def _title(stage: str) -> str:
    return _TITLES.get(stage, stage)


def _summary(report: DataReport) -> str:
    counts = report.stages[-1].manifest["counts"]
    first = report.stages[0].manifest["counts"]
    words = (
        f"{number(counts['windows'])} clips, {hours(counts['seconds'])} h, are left; the first stage shown read "
        f"{number(first['records'])} videos and kept {hours(first['seconds'])} h."
    )
    return f'<p class="summary">{text(words)}</p>'


def _funnel(stages: Sequence[Stage]) -> str:
    head = ("Stage", "In", "Kept", "Dropped", "Clips", "Hours", "Reasons")
    rows = []
    for stage in stages:
        counts = stage.manifest["counts"]
        share = 100 * counts["kept"] / max(counts["records"], 1)
        lost = sum(counts["dropped"].values())
        reasons = _counted(counts["dropped"])
        if unused := stage.manifest.get(UNUSED_ANSWERS):
            reasons += f"<div>answers not used: {_counted(unused)}</div>"
        unit = _UNITS.get(stage.name, "windows")
        numbers = (number(counts["records"]), number(counts["kept"]), number(lost), number(counts["windows"]))
        named = zip(head[1:], (*numbers, hours(counts["seconds"])), strict=False)
        cells = "".join(f'<td class="number" data-name="{name}">{value}</td>' for name, value in named)
        flow = f'<div class="flow"><i style="width:{share:.1f}%"></i></div>'
        name = f"{text(_title(stage.name))} <small>{unit}</small>{flow}"
        rows.append(f'<tr><td>{name}</td>{cells}<td class="reasons">{reasons}</td></tr>')
    sides = ("", *[' class="number"'] * 5, "")
    header = "".join(f'<th scope="col"{side}>{text(word)}</th>' for side, word in zip(sides, head, strict=True))
    table = f"<table class='funnel'><thead><tr>{header}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
    explained = (
        "In, kept and dropped are counted in the unit beside the stage; clips are the windows of what was kept, hours "
        "their length."
    )
    return f'<div class="scroll" tabindex="0">{table}</div><p class="note" style="margin-top:10px">{explained}</p>'


def _counted(counts: Mapping[str, int]) -> str:
    ordered = sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))
    return "".join(f"<span>{_reason(name)} {number(count)}</span>" for name, count in ordered)


def _sheets(sheets: Sequence[Sheet], kind: str) -> str:
    return "".join(f'<div class="{kind}">{_sheet(sheet)}</div>' for sheet in sheets)


def _sheet(sheet: Sheet) -> str:
    shown = f"{len(sheet.clips)} of {number(sheet.count)}"
    clips = "".join(_clip(clip) for clip in sheet.clips)
    heading = f"<h3>{_reason(sheet.reason or 'kept')}<small>{text(_title(sheet.stage))}, {shown}</small></h3>"
    return f'{heading}<div class="clips">{clips}</div>'


def _clip(clip: SampleClip) -> str:
    if clip.strip:
        data = base64.b64encode(clip.strip).decode()
        image = f'<img src="data:image/jpeg;base64,{data}" alt="Four frames of {text(clip.key)}" loading="lazy">'
    else:
        reason = "" if clip.missing in clip.detail else f": {text(clip.missing)}"
        image = f'<div class="hole">No images{reason}</div>'
    caption = f"<b>{text(clip.caption)}</b>" if clip.caption else ""
    detail = f'<span class="figure">{text(clip.detail)}</span>' if clip.detail else ""
    name = f"<code>{text(clip.key + clip.span)}</code>"
    return f"<figure>{image}<figcaption>{caption}{detail}{name}</figcaption></figure>"


def _distributions(clips: ClipCounts) -> str:
    charts = (
        _bars("Duration [s]", _binned(clips.seconds, _SECONDS, whole=False)),
        _bars("Frames a second", _most(clips.rates)),
        _bars("Size of the images [px]", _most(clips.sizes)),
        _bars("Words in a caption", _binned(clips.caption_words, _WORDS, whole=True)),
        _bars("Whose caption", _most(clips.caption_kinds)),
    )
    read = f"{number(clips.read)} clips of the stage '{_title(clips.stage)}' were read for this and what follows."
    return f'{_note(read)}<div class="charts">{"".join(charts)}</div>'


def _words(clips: ClipCounts) -> str:
    charts = _bars("Verbs", _most(clips.verbs)) + _bars("Nouns", _most(clips.nouns))
    return f'{_note(RULE)}<div class="charts">{charts or _note("There are no captions.")}</div>'


def _origins(clips: ClipCounts) -> str:
    return (
        f'<div class="charts">{_bars("Dataset", _most(clips.datasets))}{_bars("Licence", _most(clips.licenses))}</div>'
    )


def _most(counts: Counter[str]) -> list[tuple[str, int]]:
    """Return the most frequent values, and the rest as one."""
    ordered = sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))
    rest = ordered[_MOST_SHOWN:]
    return ordered[:_MOST_SHOWN] + ([(f"{len(rest)} others", sum(count for _, count in rest))] if rest else [])


def _binned(values: Sequence[float], edges: Sequence[float], whole: bool) -> list[tuple[str, int]]:
    """Count values in `[edge, next edge)`, without the empty bins at both ends."""
    bins = []
    for low, high in zip(edges, [*edges[1:], float("inf")], strict=True):
        count = sum(low <= value < high for value in values)
        last = high - 1 if whole else high
        single = f"{low:g}" if whole and last == low else f"{low:g} to {last:g}"
        bins.append((f"{low:g} and more" if high == float("inf") else single, count))
    filled = [i for i, (_, count) in enumerate(bins) if count]
    return bins[filled[0] : filled[-1] + 1] if filled else []


def _bars(title: str, counts: Sequence[tuple[str, int]]) -> str:
    if not counts:
        return ""
    most = max(count for _, count in counts)
    rows = "".join(
        f'<dt>{text(name)}</dt><dd><i style="width:{100 * count / most:.1f}%"></i></dd>'
        f'<dd class="number">{number(count)}</dd>'
        for name, count in counts
    )
    return f'<div><h3>{text(title)}</h3><dl class="bars">{rows}</dl></div>'


def _runs(stages: Sequence[Stage]) -> str:
    return "".join(_run(stage) for stage in stages)


def _run(stage: Stage) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in stage.manifest["versions"].items())
    facts = {"folder": str(stage.folder), **_flat(stage.manifest["parameters"]), "versions": versions}
    rows = "".join(f"<dt>{text(name)}</dt><dd>{text(value)}</dd>" for name, value in facts.items())
    return f'<details open><summary>{text(_title(stage.name))}</summary><dl class="facts">{rows}</dl></details>'


def _flat(parameters: Mapping[str, Any], above: str = "") -> dict[str, str]:
    """Name nested parameters by their path, as the command line does."""
    flat: dict[str, str] = {}
    for name, value in parameters.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{above}{name}.")
        else:
            flat[f"{above}{name}"] = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return flat
