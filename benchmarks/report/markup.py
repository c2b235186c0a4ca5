"""Pieces of HTML that the sections of a report share: tables, notes, and how numbers are written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from ..metrics.statistics import Interval

MINUS = "\N{MINUS SIGN}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """A part of the page: `anchor` is its address in the page, `body` is HTML."""

    anchor: str
    title: str
    body: str


def text(words: object) -> str:
    """Escape words for HTML."""
    return escape(str(words), quote=True)


def note(words: str) -> str:
    """Write a quiet remark (plain words)."""
    return f'<p class="note">{text(words)}</p>'


def absent(*files: str) -> str:
    """Write that a part is left out because its files are not in the run folder."""
    names = " or ".join(f"<code>{text(name)}</code>" for name in files)
    return f'<p class="note absent">Left out: {names} is not in the run folder.</p>'


def command_line(command: str) -> str:
    """Show the command that made the metrics above, or nothing where it is not known."""
    return f'<p class="command"><span>made by</span> <code>{text(command)}</code></p>' if command else ""


def table(
    head: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    caption: str = "",
    kind: str = "",
    strong_row: int | None = None,
) -> str:
    """Build a table inside its own scroll box, all columns but the first set to the right.

    Args:
        head: Words of the columns.
        rows: Cells as HTML.
        caption: Words above the table.
        kind: CSS class of the table.
        strong_row: Row to emphasize.
    """
    header = "".join(f'<th scope="col"{_side(i)}>{text(words)}</th>' for i, words in enumerate(head))
    lines = []
    for index, row in enumerate(rows):
        strong = ' class="strong"' if index == strong_row else ""
        cells = "".join(f"<td{_side(i)}>{words}</td>" for i, words in enumerate(row))
        lines.append(f"<tr{strong}>{cells}</tr>")
    title = f'<p class="caption">{text(caption)}</p>' if caption else ""
    return (
        f'{title}<div class="scroll" tabindex="0"><table class="{kind}"><thead><tr>{header}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )


def charts(*drawings: str) -> str:
    """Lay charts out beside each other, three or two in a row where they fit."""
    drawn = [one for one in drawings if one]
    kind = "charts" if len(drawn) % 3 == 0 else "charts two"
    return f'<div class="{kind}">' + "".join(f"<figure>{one}</figure>" for one in drawn) + "</div>"


def signed(value: float, digits: int) -> str:
    """Write a number with its sign, a true minus sign included; a value that rounds to zero has none."""
    words = f"{abs(value):.{digits}f}"
    if float(words) == 0.0:
        return words
    return ("+" if value > 0 else MINUS) + words


def percent(rate: float) -> str:
    """Write a rate in [0, 1] as a percentage with one decimal."""
    return f"{100 * rate:.1f} %"


def rate_span(interval: Interval) -> str:
    """Write the interval of a rate for a table, in percent: "78.2–86.1"."""
    return f"{100 * interval.low:.1f}\N{EN DASH}{100 * interval.high:.1f}"


def percent_span(interval: Interval) -> str:
    """Write the interval of a rate: "78.2 to 86.1 %"."""
    return f"{100 * interval.low:.1f} to {100 * interval.high:.1f} %"


def span(interval: Interval, digits: int, *, unit: str = "") -> str:
    """Write the interval of a mean, or that every value is equal in place of an interval without width."""
    if interval.low == interval.high:
        return f"all {interval.count} equal"
    return f"{_plain(interval.low, digits)} to {_plain(interval.high, digits)}{unit}"


def signed_span(interval: Interval, digits: int, *, scale: float = 1.0, unit: str = "") -> str:
    """Write a difference with its interval: "+1.2 (+0.8 to +1.6) dB"."""
    value, low, high = (signed(scale * one, digits) for one in interval.as_metric())
    return f"{value} ({low} to {high}){unit}"


def duration(seconds: float) -> str:
    """Write a duration: "43 s", "12 min 05 s", "2 h 03 min"."""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def count(value: int | float) -> str:
    """Write a count with thin spaces between thousands."""
    return f"{int(value):,}".replace(",", "\N{NARROW NO-BREAK SPACE}")


def _plain(value: float, digits: int) -> str:
    return f"{value:.{digits}f}".replace("-", MINUS)


def _side(column: int) -> str:
    return ' class="number"' if column else ""
