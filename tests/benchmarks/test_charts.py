"""Charts are well-formed SVG, colored by variables alone, and put every value where its axis has it."""

from __future__ import annotations

import itertools
import math
import re
from xml.etree import ElementTree

import pytest

from gr2.benchmarks.report.charts import (
    WIDTH,
    Bar,
    BarGroup,
    Series,
    interval_bars,
    line_chart,
    linear_ticks,
    log_ticks,
    value_bars,
)


def lines_of(svg: str) -> list[list[tuple[float, float]]]:
    """Return the points of every polyline of a chart."""
    root = ElementTree.fromstring(svg)
    return [
        [(float(x), float(y)) for x, y in (pair.split(",") for pair in line.attrib["points"].split())]
        for line in root.iter("polyline")
    ]


def draw(series: list[Series], *, log_y: bool = False) -> str:
    return line_chart(series, title="t", x_label="step", y_label="loss", log_y=log_y)


def test_charts_are_well_formed_and_have_no_color_of_their_own() -> None:
    bar = Bar(value=50, low=30, high=70, tooltip="a & b")
    drawings = [
        draw([Series(name="<a> & b", x=[0, 1], y=[1, 2], low=[0.5, 1], high=[2, 3], markers=True)]),
        interval_bars([BarGroup(label="x < y", bars=[bar])], title='say "x"', unit=" %", legend=[("wbc", "1")]),
        value_bars([("a & b", 3.0, "3 s"), ("c", 0.0, "0 s")], title="time"),
    ]
    for svg in drawings:
        root = ElementTree.fromstring(svg)
        assert root.attrib["role"] == "img" and root.attrib["aria-label"]
        assert root.attrib["viewBox"].startswith(f"0 0 {WIDTH} ")
        assert not re.search(r"#[0-9a-fA-F]{3,6}\b|rgb\(", svg)
        assert set(re.findall(r"var\(--([a-z]+)", svg)) <= {"ink", "rule", "series"}


def test_equal_steps_are_equally_far_apart_on_a_linear_axis() -> None:
    points = lines_of(draw([Series(name="a", x=[0, 10, 20], y=[1.0, 2.0, 3.0])]))[0]
    (x0, y0), (x1, y1), (x2, y2) = points
    assert x1 - x0 == pytest.approx(x2 - x1, abs=0.11) and y0 - y1 == pytest.approx(y1 - y2, abs=0.11)
    assert y0 > y1 > y2 and 0 <= x0 < x2 <= WIDTH


def test_equal_factors_are_equally_far_apart_on_a_logarithmic_axis() -> None:
    points = lines_of(draw([Series(name="a", x=[0, 1, 2, 3], y=[0.01, 0.1, 1.0, 10.0])], log_y=True))[0]
    gaps = [first[1] - second[1] for first, second in itertools.pairwise(points)]
    assert gaps == pytest.approx([gaps[0]] * 3, abs=0.21) and gaps[0] > 10


def test_values_that_cannot_be_drawn_are_left_out() -> None:
    y = [1.0, math.nan, 0.0, 2.0]
    assert len(lines_of(draw([Series(name="a", x=[0, 1, 2, 3], y=y)], log_y=True))[0]) == 2
    assert len(lines_of(draw([Series(name="a", x=[0, 1, 2, 3], y=y)]))[0]) == 3
    assert draw([]) == "" and draw([Series(name="a", x=[0], y=[math.nan])]) == ""
    assert interval_bars([], title="t", unit="") == "" and value_bars([], title="t") == ""


@pytest.mark.parametrize("value", [0.0, 3.5, -2.0, 1e-9])
def test_a_constant_series_is_drawn_inside_the_chart(value: float) -> None:
    svg = draw([Series(name="a", x=[5, 5], y=[value, value])])
    height = float(ElementTree.fromstring(svg).attrib["viewBox"].split()[3])
    assert all(0 <= x <= WIDTH and 0 <= y <= height for x, y in lines_of(svg)[0])


def test_bars_are_as_long_as_their_values() -> None:
    groups = [BarGroup(label=str(v), bars=[Bar(value=v, low=v, high=v)]) for v in (25.0, 50.0, 100.0)]
    root = ElementTree.fromstring(interval_bars(groups, title="t", unit=" %"))
    widths = [float(one.attrib["width"]) for one in root.iter("rect")]
    assert widths[1] == pytest.approx(2 * widths[0], abs=0.2)
    assert widths[2] == pytest.approx(4 * widths[0], abs=0.3)


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0.35, 0.55), (-3, 12), (0, 123456), (2, 2), (1e-7, 3e-7)])
def test_linear_ticks_are_even_and_enclose_the_range(low: float, high: float) -> None:
    ticks = linear_ticks(low, high)
    steps = [b - a for a, b in itertools.pairwise(ticks)]
    assert steps == pytest.approx([steps[0]] * len(steps)) if steps else ticks
    assert ticks[0] <= low + 1e-9 and ticks[-1] >= high - 1e-9 and len(ticks) <= 9


@pytest.mark.parametrize(("low", "high"), [(0.1, 10), (2.1, 6.4), (1e-6, 1e3), (0.9, 1.1)])
def test_log_ticks_are_positive_and_enough(low: float, high: float) -> None:
    ticks = log_ticks(low, high)
    assert all(tick > 0 for tick in ticks) and sum(low <= tick <= high for tick in ticks) >= 3
