"""Published CALVIN ABCD->D results, for orientation beside our own: other simulator, data and protocol."""

from __future__ import annotations

from dataclasses import dataclass

CAPTION = (
    "published, official CALVIN, 1000 chains, not comparable: our simulator, our scripted demonstrations, {tasks} tasks"
)
"""What every table that shows these rows must state, with the number of our tasks filled in."""

PUBLISHED_PROTOCOL = (
    "the official simulator, CALVIN's data of scenes A to D, 1000 sequences, sampled as each source chose"
)
"""How the published rows came about: what a result of ours may differ in."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedRow:
    """One published row.

    rates: success of 1 to 5 instructions in a row [%]; None where the value could not be confirmed.
    average_length: instructions solved in a row, of 5.
    evidence: "primary" (paper, code or model card read) or "secondary" (a report on the paper read).
    """

    model: str
    rates: tuple[float | None, float | None, float | None, float | None, float | None]
    average_length: float
    evidence: str
    source: str
    remark: str = ""


_NO_RATES = (None, None, None, None, None)

ABCD_D: tuple[PublishedRow, ...] = (
    PublishedRow(
        model="Xiaomi-Robotics-0",
        rates=_NO_RATES,
        average_length=4.80,
        evidence="primary",
        source="project README",
    ),
    PublishedRow(
        model="FLOWER",
        rates=(99.1, 97.8, 95.2, 92.4, 87.8),
        average_length=4.67,
        evidence="primary",
        source="project README",
        remark="the rates add up to 4.72",
    ),
    PublishedRow(
        model="GR-2",
        rates=(98.6, None, None, None, 85.9),
        average_length=4.64,
        evidence="secondary",
        source="arXiv 2410.06158",
        remark="2 to 4 in a row are given only as an image",
    ),
    PublishedRow(
        model="UD-VLA",
        rates=(99.2, 96.8, 93.6, 90.4, 84.0),
        average_length=4.64,
        evidence="secondary",
        source="arXiv 2511.01718",
        remark="500 chains",
    ),
    PublishedRow(
        model="UniVLA (BAAI)",
        rates=_NO_RATES,
        average_length=4.63,
        evidence="primary",
        source="project README",
    ),
    PublishedRow(
        model="MDT",
        rates=(98.6, 95.8, 91.6, 86.2, 80.1),
        average_length=4.52,
        evidence="primary",
        source="FLOWER project README",
    ),
    PublishedRow(
        model="MoDE",
        rates=(97.1, 92.5, 87.9, 83.5, 77.9),
        average_length=4.39,
        evidence="primary",
        source="authors' material, page not recorded",
    ),
    PublishedRow(
        model="GR-1",
        rates=(94.9, 89.6, 84.4, 78.9, 73.1),
        average_length=4.21,
        evidence="primary",
        source="arXiv 2312.13139",
        remark="4.30 when others evaluated the weights again",
    ),
    PublishedRow(
        model="RoboFlamingo",
        rates=(96.4, 89.6, 82.4, 74.0, 66.0),
        average_length=4.09,
        evidence="secondary",
        source="comparison rows of later papers, table not read again",
    ),
    PublishedRow(
        model="HULC",
        rates=(88.9, 73.3, 58.7, 47.5, 38.3),
        average_length=3.06,
        evidence="secondary",
        source="comparison rows of later papers, table not read again",
    ),
    PublishedRow(
        model="RT-1",
        rates=_NO_RATES,
        average_length=2.45,
        evidence="secondary",
        source="comparison rows of later papers, table not read again",
    ),
)
"""Rows from the highest average length downwards."""
