"""Charts as inline SVG, colored by the CSS variables of the page that holds them (light and dark alike).

Every chart is drawn about 380 units wide, so that its text stays readable on a narrow screen without scaling.
Variables used: --ink, --ink-soft, --rule, --series-1 to --series-4, --series-quiet.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH = 380
QUIET = "quiet"
"""Color name for baselines and everything that is not the subject of a chart."""

_FONT = "font-family:inherit;font-size:11px;font-variant-numeric:tabular-nums"


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """A line: `x` and `y` of one length, an optional band (`low`, `high`), color "1" to "4" or `QUIET`."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    color: str = "1"
    low: Sequence[float] = ()
    high: Sequence[float] = ()
    dashed: bool = False
    markers: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """A bar with its interval, in the unit of the chart, and the words of its tooltip."""

    value: float
    low: float
    high: float
    color: str = "1"
    tooltip: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class BarGroup:
    """Bars that share a label, drawn one under the other."""

    label: str
    bars: Sequence[Bar]


def line_chart(
    series: Sequence[Series],
    *,
    title: str,
    x_label: str,
    y_label: str,
    log_y: bool = False,
    height: int = 230,
) -> str:
    """Draw lines with axes, grid, bands and a legend; a logarithmic chart leaves out what is not positive."""
    lines = [_drawable(one, log_y=log_y) for one in series]
    lines = [one for one in lines if len(one.x)]
    if not lines:
        return ""
    legend, rows = _legend([(one.name, one.color, one.dashed) for one in lines], y=27)
    left, right, top, bottom = 44, 10, 26 + 15 * rows, 34
    x_ticks = linear_ticks(min(min(one.x) for one in lines), max(max(one.x) for one in lines))
    low = min(min((*one.y, *one.low)) for one in lines)
    high = max(max((*one.y, *one.high)) for one in lines)
    y_ticks = log_ticks(low, high) if log_y else linear_ticks(low, high)
    x_low, x_high = min(min(one.x) for one in lines), max(max(one.x) for one in lines)
    y_low, y_high = _span(low, high, y_ticks, log_y=log_y)

    def place_x(value: float) -> float:
        return left + (WIDTH - left - right) * (value - x_low) / ((x_high - x_low) or 1.0)

    def place_y(value: float) -> float:
        share = (_scale(value, log_y) - _scale(y_low, log_y)) / (_scale(y_high, log_y) - _scale(y_low, log_y))
        return height - bottom - (height - top - bottom) * share

    parts = [legend]
    for tick in (t for t in y_ticks if y_low <= t <= y_high):
        y = place_y(tick)
        parts.append(_rule(left, y, WIDTH - right, y))
        parts.append(_text(left - 6, y + 4, number(tick), anchor="end"))
    for tick in (t for t in x_ticks if x_low <= t <= x_high):
        parts.append(_text(place_x(tick), height - bottom + 15, number(tick), anchor="middle"))
    parts.append(_rule(left, height - bottom, WIDTH - right, height - bottom, strong=True))
    parts.append(_text((left + WIDTH - right) / 2, height - 3, x_label, anchor="middle"))
    parts.append(_text(0, 10, y_label + (", logarithmic" if log_y else ""), strong=True))
    for one in lines:
        points = [(place_x(x), place_y(y)) for x, y in zip(one.x, one.y, strict=True)]
        if len(one.low):
            ring = [(place_x(x), place_y(y)) for x, y in zip(one.x, one.high, strict=True)]
            ring += [(place_x(x), place_y(y)) for x, y in reversed(list(zip(one.x, one.low, strict=True)))]
            parts.append(f'<polygon points="{_points(ring)}" fill="var(--series-{one.color})" opacity=".16"/>')
        dash = ' stroke-dasharray="5 3"' if one.dashed else ""
        parts.append(
            f'<polyline points="{_points(points)}" fill="none" stroke="var(--series-{one.color})" '
            f'stroke-width="1.6" stroke-linejoin="round"{dash}/>'
        )
        if one.markers or len(points) == 1:
            parts += [
                f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.6" fill="var(--series-{one.color})">'
                f"<title>{escape(one.name)}: {number(value)} at {number(at)}</title></circle>"
                for (x, y), value, at in zip(points, one.y, one.x, strict=True)
            ]
    return _svg(title, height, parts)


def interval_bars(
    groups: Sequence[BarGroup],
    *,
    title: str,
    unit: str,
    legend: Sequence[tuple[str, str]] = (),
    maximum: float = 100.0,
    label_width: int = 150,
) -> str:
    """Draw groups of horizontal bars from zero to `maximum` with whiskers; `legend` lists (name, color)."""
    if not groups:
        return ""
    right, top, bar, gap = 14, 34, 8, 10
    scale = (WIDTH - label_width - right) / maximum
    height = top + sum(len(group.bars) * (bar + 2) + gap for group in groups) + 22
    parts = [_legend([(name, color, False) for name, color in legend], y=12)[0]]
    for tick in linear_ticks(0.0, maximum):
        x = label_width + tick * scale
        parts.append(_rule(x, top - 6, x, height - 22))
        parts.append(_text(x, height - 8, number(tick) + (unit if tick == maximum else ""), anchor="middle"))
    y = float(top)
    for group in groups:
        rows = len(group.bars) * (bar + 2)
        parts.append(_text(label_width - 8, y + rows / 2 + 3, group.label, anchor="end", strong=True))
        for one in group.bars:
            parts.append(_whisker_bar(one, left=label_width, y=y, bar=bar, scale=scale))
            y += bar + 2
        y += gap
    return _svg(title, int(height), parts)


def value_bars(rows: Sequence[tuple[str, float, str]], *, title: str, color: str = "1") -> str:
    """Draw horizontal bars for (label, value, words beside the bar), scaled to the largest value."""
    if not rows:
        return ""
    step, track = 34, WIDTH - 96
    largest = max(value for _, value, _ in rows) or 1.0
    parts = []
    for index, (label, value, words) in enumerate(rows):
        y = index * step
        width = max(1.5, track * value / largest)
        parts.append(_text(0, y + 11, label, strong=True))
        parts.append(f'<rect x="0" y="{y + 16}" width="{width:.1f}" height="9" rx="1.5" fill="var(--series-{color})"/>')
        parts.append(_text(width + 7, y + 24.5, words))
    return _svg(title, len(rows) * step, parts)


def linear_ticks(low: float, high: float, *, wanted: int = 5) -> list[float]:
    """Choose round tick values (1, 2 or 5 times a power of ten apart) inside and around `[low, high]`."""
    span = (high - low) or abs(high) or 1.0
    raw = span / wanted
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(index * step, 12) for index in range(first, last + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Choose ticks of a logarithmic axis: powers of ten, with 2 and 5 between them up to three decades.

    A range that holds fewer than three of these gets evenly spaced round values.
    """
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    factors = (1, 2, 5) if last - first <= 3 else (1,)
    ticks = [factor * 10.0**power for power in range(first, last + 1) for factor in factors]
    if sum(low <= tick <= high for tick in ticks) < 3:
        return [tick for tick in linear_ticks(low, high) if tick > 0]
    return ticks


def number(value: float) -> str:
    """Write an axis number shortly: 1200000 as 1.2M, 0.05 as 0.05."""
    size = abs(value)
    if size >= 1e6:
        return f"{value / 1e6:.3g}M"
    if size >= 1e4:
        return f"{value / 1e3:.3g}k"
    return f"{value:.4g}"


def _drawable(one: Series, *, log_y: bool) -> Series:
    keep = [i for i, y in enumerate(one.y) if math.isfinite(y) and (y > 0 or not log_y)]
    banded = len(one.low) > 0 and (not log_y or all(one.low[i] > 0 for i in keep))
    return Series(
        name=one.name,
        x=[one.x[i] for i in keep],
        y=[one.y[i] for i in keep],
        color=one.color,
        low=[one.low[i] for i in keep] if banded else (),
        high=[one.high[i] for i in keep] if banded else (),
        dashed=one.dashed,
        markers=one.markers,
    )


def _span(low: float, high: float, ticks: Sequence[float], *, log_y: bool) -> tuple[float, float]:
    if log_y:
        return (low / 1.15, high * 1.15)
    return (min(low, ticks[0]), max(high, ticks[-1])) if ticks[0] < ticks[-1] else (low - 1.0, high + 1.0)


def _scale(value: float, log_y: bool) -> float:
    return math.log10(value) if log_y else value


def _points(points: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in points)


def _rule(x1: float, y1: float, x2: float, y2: float, *, strong: bool = False) -> str:
    color = "ink-soft" if strong else "rule"
    ends = f'x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"'
    return f'<line {ends} stroke="var(--{color})" stroke-width="1"/>'


def _text(x: float, y: float, words: str, *, anchor: str = "start", strong: bool = False) -> str:
    color = "ink" if strong else "ink-soft"
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="var(--{color})">{escape(words)}</text>'


def _whisker_bar(one: Bar, *, left: float, y: float, bar: int, scale: float) -> str:
    middle = y + bar / 2
    x_low, x_high = left + one.low * scale, left + one.high * scale
    return (
        f"<g><title>{escape(one.tooltip)}</title>"
        f'<rect x="{left}" y="{y:.1f}" width="{max(0.5, one.value * scale):.1f}" height="{bar}" '
        f'fill="var(--series-{one.color})" opacity=".78"/>'
        f'<path d="M{x_low:.1f} {middle:.1f}H{x_high:.1f}M{x_low:.1f} {middle - 2.5:.1f}v5'
        f'M{x_high:.1f} {middle - 2.5:.1f}v5" stroke="var(--ink)" stroke-width="1.1" fill="none"/></g>'
    )


def _legend(entries: Sequence[tuple[str, str, bool]], *, y: float) -> tuple[str, int]:
    """Draw (name, color, dashed) entries from `y` downwards; return the drawing and its number of rows."""
    parts: list[str] = []
    x, rows = 0.0, 1
    for name, color, dashed in entries:
        width = 21 + 6.2 * len(name)
        if x > 0 and x + width > WIDTH:
            x, rows = 0.0, rows + 1
        line_y = y + 15 * (rows - 1)
        dash = ' stroke-dasharray="5 3"' if dashed else ""
        parts.append(
            f'<line x1="{x:.1f}" y1="{line_y - 4:.1f}" x2="{x + 16:.1f}" y2="{line_y - 4:.1f}" '
            f'stroke="var(--series-{color})" stroke-width="3"{dash}/>'
        )
        parts.append(_text(x + 21, line_y, name))
        x += width + 14
    return "".join(parts), rows


def _svg(title: str, height: int, parts: Sequence[str]) -> str:
    return (
        f'<svg class="chart" viewBox="0 0 {WIDTH} {height}" role="img" '
        f'aria-label="{escape(title, quote=True)}" style="{_FONT}">{"".join(parts)}</svg>'
    )
