"""One page of plots of a run as an SVG file: path, errors, joints against their limits, distances, status."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from itertools import groupby

import numpy as np

from ...contracts import Array
from ...wbc.robot.kinematics import Kinematics
from ...wbc.robot.robots import RobotModel
from ..report.charts import QUIET, WIDTH, Series, line_chart
from .clearances import distances
from .feeding import Run
from .metrics import Evaluation, broken, derivatives
from .reachability import rotation_errors
from .trajectories import TICK, TrackingCase

MARGIN, GAP, HEAD, CHART_HEIGHT, STRIP_HEIGHT = 28, 34, 64, 250, 64
COLUMNS = 3

STYLE = """
svg { --paper: #fdfdfc; --ink: #1b1d20; --ink-soft: #63676e; --rule: #dcdcd6; --series-quiet: #8b8f96;
  --series-1: #2461a6; --series-2: #c2661f; --series-3: #2f7d5b; --series-4: #7d5aa6; --series-5: #b3435f;
  --series-6: #4f8fa8; --series-7: #8a7a2f; --series-8: #55585e;
  font-family: system-ui, "Segoe UI", "Liberation Sans", Arial, sans-serif; font-size: 11px; }
@media (prefers-color-scheme: dark) { svg { --paper: #141619; --ink: #e6e7e9; --ink-soft: #9a9fa8; --rule: #32363c;
  --series-quiet: #7d838c; --series-1: #7fb0e6; --series-2: #e9a066; --series-3: #7cc4a2; --series-4: #bda2e0;
  --series-5: #e68aa0; --series-6: #8cc8de; --series-7: #cfc06a; --series-8: #b0b4ba; } }
"""


def plot_page(robot: RobotModel, case: TrackingCase, run: Run, evaluation: Evaluation) -> str:
    """Return the page of a run as SVG text."""
    drawings = [*_path_charts(robot, case, run), *_limit_charts(robot, run), *_safety_charts(robot, case, run)]
    rows = -(-len(drawings) // COLUMNS)
    width = 2 * MARGIN + COLUMNS * WIDTH + (COLUMNS - 1) * GAP
    height = HEAD + rows * (CHART_HEIGHT + GAP) + STRIP_HEIGHT + MARGIN
    parts = [f'<rect width="{width}" height="{height}" fill="var(--paper)"/>', _heading(case, evaluation)]
    for index, drawing in enumerate(drawings):
        x = MARGIN + (index % COLUMNS) * (WIDTH + GAP)
        y = HEAD + (index // COLUMNS) * (CHART_HEIGHT + GAP)
        placed = f'<svg x="{x}" y="{y}" width="{WIDTH}" height="{CHART_HEIGHT}" class="chart"'
        parts.append(drawing.replace('<svg class="chart"', placed, 1))
    parts.append(_status_strip(run.statuses, HEAD + rows * (CHART_HEIGHT + GAP), width - 2 * MARGIN))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}">'
        f"<style>{STYLE}</style>{''.join(parts)}</svg>\n"
    )


def _heading(case: TrackingCase, e: Evaluation) -> str:
    faults = "; ".join(broken(e)) or "every limit kept"
    metrics = (
        f"error RMS {e.position_rms_mm:.3f} mm, at most {e.position_max_mm:.2f} mm; {e.rotation_rms_deg:.3f} deg; "
        f"jerk RMS {e.jerk_rms:.1f} rad/s\N{SUPERSCRIPT THREE}; tick {e.tick_ms_median:.2f} ms, "
        f"99 % below {e.tick_ms_p99:.2f} ms; {faults}"
    )
    return (
        f'<text x="{MARGIN}" y="28" fill="var(--ink)" style="font-size:17px;font-weight:600">{escape(case.name)}</text>'
        f'<text x="{MARGIN}" y="46" fill="var(--ink-soft)">{escape(metrics)}</text>'
    )


def _chart(series: Sequence[Series], title: str, y_label: str, x_label: str = "time [s]") -> str:
    return line_chart(series, title=title, x_label=x_label, y_label=y_label, height=CHART_HEIGHT)


def _path_charts(robot: RobotModel, case: TrackingCase, run: Run) -> list[str]:
    tools = Kinematics(robot).forward_many(run.q).tool
    wanted, done = case.poses[:, :3, 3], tools[:, :3, 3]
    times = (np.arange(len(run.q)) * TICK).tolist()
    charts = []
    for (a, b), words in (((0, 1), "from above: y over x [m]"), ((0, 2), "from the side: z over x [m]")):
        lines = [
            Series(name="target", x=wanted[:, a].tolist(), y=wanted[:, b].tolist(), color=QUIET, dashed=True),
            Series(name="tool", x=done[:, a].tolist(), y=done[:, b].tolist()),
        ]
        charts.append(_chart(lines, f"Tool path {words}", f"tool path {words}", "x [m]"))
    angles = np.degrees(np.linalg.norm(rotation_errors(case.poses[:, :3, :3], tools[:, :3, :3]), axis=1))
    errors = [
        Series(name="position [mm]", x=times, y=(np.linalg.norm(wanted - done, axis=1) * 1e3).tolist()),
        Series(name="rotation [deg]", x=times, y=angles.tolist(), color="2"),
    ]
    return [*charts, _chart(errors, "Tool error over time", "tool error [mm], [deg]")]


def _limit_charts(robot: RobotModel, run: Run) -> list[str]:
    velocity, acceleration, _ = derivatives(run.q)
    stops = np.flatnonzero(np.isfinite(robot.lower) & np.isfinite(robot.upper))
    charts = []
    if len(stops):
        lower, upper = robot.lower[stops], robot.upper[stops]
        places = (2.0 * run.q[:, stops] - upper - lower) / (upper - lower)
        charts.append(_shares(places, stops, "Joint positions, joints with stops", "position, share of its limit"))
    every = np.arange(robot.num_joints)
    charts.append(_shares(velocity / robot.velocity, every, "Joint velocities", "velocity, share of its limit"))
    shares = acceleration / robot.acceleration
    return [*charts, _shares(shares, every, "Joint accelerations", "acceleration, share of its nominal limit")]


def _shares(shares: Array, joints: Sequence[int] | Array, title: str, y_label: str) -> str:
    """Draw shares of limits `[n j]`, with the limits as dashed lines."""
    times = (np.arange(len(shares)) * TICK).tolist()
    first, last = times[0], times[-1]
    lines = [
        Series(name=f"{joint + 1}", x=times, y=shares[:, column].tolist(), color=str(column % 8 + 1))
        for column, joint in enumerate(joints)
    ]
    box = Series(name="limits", x=[first, last, last, first], y=[1.0, 1.0, -1.0, -1.0], color=QUIET, dashed=True)
    return _chart([*lines, box], title, y_label)


def _safety_charts(robot: RobotModel, case: TrackingCase, run: Run) -> list[str]:
    gaps = distances(robot, case, run.q)
    times = (np.arange(len(run.q)) * TICK).tolist()
    named = (("arm itself", gaps.own), ("plane", gaps.plane), ("spheres", gaps.spheres))
    lines = [
        Series(name=name, x=times, y=(gap * 1e3).tolist(), color=str(index + 1))
        for index, (name, gap) in enumerate(named)
        if gap is not None
    ]
    kept = case.scene.clearance * 1e3
    lines.append(Series(name="kept", x=[times[0], times[-1]], y=[kept, kept], color=QUIET, dashed=True))
    jacobians = Kinematics(robot).forward_many(run.q).jacobian
    measures = np.sqrt(np.maximum(np.linalg.det(jacobians @ jacobians.transpose(0, 2, 1)), 0.0))
    ticks = Series(name="tick [ms]", x=times[1:], y=run.tick_ms.tolist(), color="3")
    return [
        _chart(lines, "Distances over time", "distance [mm]"),
        _chart([Series(name="sqrt det JJ'", x=times, y=measures.tolist())], "Manipulability", "manipulability"),
        _chart([ticks], "Time of a tick", "time of a tick [ms]"),
    ]


def _status_strip(statuses: Sequence[str], y: int, width: int) -> str:
    """Draw the status over time as a strip, each name once below it."""
    parts = [f'<text x="{MARGIN}" y="{y}" fill="var(--ink)">status over time</text>']
    names = list(dict.fromkeys(statuses))
    scale, begin = width / max(len(statuses), 1), 0
    for name, run in groupby(statuses):
        length = len(list(run))
        color = names.index(name) % 8 + 1
        parts.append(
            f'<rect x="{MARGIN + begin * scale:.1f}" y="{y + 8}" width="{length * scale:.1f}" height="14" '
            f'fill="var(--series-{color})"><title>{escape(name)}, {begin * TICK:.2f} s to '
            f"{(begin + length) * TICK:.2f} s</title></rect>"
        )
        begin += length
    for index, name in enumerate(names):
        x = MARGIN + 150 * index
        parts.append(f'<rect x="{x}" y="{y + 34}" width="10" height="10" fill="var(--series-{index % 8 + 1})"/>')
        parts.append(f'<text x="{x + 16}" y="{y + 43}" fill="var(--ink-soft)">{escape(name)}</text>')
    return "".join(parts)
