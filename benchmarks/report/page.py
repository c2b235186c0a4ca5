"""Write one self-contained HTML page about a run: videos, success, limits, losses, data, time, provenance."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from .act import chains_body, safety_body, success_body
from .inputs import RunFiles, read_run
from .learning import episodes_body, losses_body, video_body
from .markup import Section, note, text
from .overview import chain_body, funnel_body, headline, provenance_body, stages_body, summary
from .style import SCRIPT, STYLE

SECTIONS: tuple[tuple[str, str, Callable[[RunFiles], str]], ...] = (
    ("chain", "The chain", chain_body),
    ("videos", "Predicted, real, and acted", episodes_body),
    ("success", "Success of each task", success_body),
    ("chains", "Instructions in a row", chains_body),
    ("video", "Video prediction", video_body),
    ("losses", "Learning curves", losses_body),
    ("safety", "Limits of the robot", safety_body),
    ("data", "Data kept and dropped", funnel_body),
    ("time", "Time of each stage", stages_body),
    ("provenance", "How these metrics were made", provenance_body),
)
"""Anchor, title and maker of every section, in the order of the page."""


def write_report(*, run: Path, html: Path | None = None) -> Path:
    """Write the report of a run as one HTML file that needs nothing from outside.

    Parts that the folder lacks are left out with a note.

    Args:
        run: Folder that the training and evaluation commands wrote.
        html: file to write; `report.html` in the run folder where it is not given.

    Raises:
        DataError: The folder does not exist or holds no known file.
    """
    files = read_run(run)
    target = html if html is not None else run / "report.html"
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    temporary.write_text(build_page(files), encoding="utf-8")
    os.replace(temporary, target)
    return target


def build_page(files: RunFiles) -> str:
    """Build the whole page from the parts of a run."""
    head = _guarded("summary", files, lambda parts: summary(parts) + headline(parts))
    sections = [
        Section(anchor=anchor, title=title, body=_guarded(title, files, make)) for anchor, title, make in SECTIONS
    ]
    links = "".join(f'<a href="#{one.anchor}">{text(one.title)}</a>' for one in sections)
    bodies = "".join(f'<section id="{one.anchor}"><h2>{text(one.title)}</h2>{one.body}</section>' for one in sections)
    problems = "".join(f'<p class="note problem">{text(problem)}</p>' for problem in files.problems)
    title = f"gr2 run {files.folder.resolve().name}"
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<link rel="icon" href="data:,"><title>{text(title)}</title><style>{STYLE}</style></head><body>'
        f"<header><h1>{text(title)}</h1>{_meta(files)}{head}{problems}<nav>{links}</nav></header>"
        f"<main>{bodies}</main><footer>{note('Intervals are 95 % throughout.')}</footer>"
        f"<script>{SCRIPT}</script></body></html>\n"
    )


def _guarded(title: str, files: RunFiles, make: Callable[[RunFiles], str]) -> str:
    """Build a part; a file of another layout than expected becomes a visible note in its place."""
    try:
        return make(files)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        reason = f"{type(error).__name__}: {error}"
        words = f"Left out ({title}): a file has another layout than expected, {reason}."
        return f'<p class="note problem">{text(words)}</p>'


def _meta(files: RunFiles) -> str:
    run = files.run
    known = (
        ("preset", "preset {}"),
        ("seed", "seed {}"),
        ("renderer", "renderer {}"),
        ("demonstrations", "{} demonstrations"),
    )
    words = [form.format(run[key]) for key, form in known if run.get(key) is not None]
    started = [str(stage["started_at"]) for stage in files.stages if stage.get("started_at")]
    words += [f"started {started[0]}"] if started else []
    return f'<p class="meta">{text(" · ".join(words))}</p>' if words else ""
