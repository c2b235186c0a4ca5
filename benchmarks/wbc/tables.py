"""The metrics of many runs as rows of text, and the marks that ours is held to."""

from __future__ import annotations

import math
from collections.abc import Sequence

from .metrics import KEPT_CLEARANCE_MM, RECOVERY_S, Evaluation
from .trajectories import GROUPS

SMOOTH_RMS_MM, SMOOTH_RMS_DEG, SMOOTH_MAX_MM = 0.3, 0.1, 0.6
NOISY_JERK_RMS, NOISY_RMS_MM = 12.0, 5.0

HEADER = (
    f"{'':44}{'error mm':>16}{'deg':>8}{'beyond limits':>22}{'near':>7}{'jerk rad/s3':>15}{'least':>8}{'back':>8}"
    f"{'tick ms':>14}{'chunk ms':>13}\n"
    f"{'method':20}{'cases':24}{'RMS':>8}{'max':>8}{'RMS':>8}{'q':>5}{'v':>5}{'a':>5}{'ratio':>7}{'mm':>7}"
    f"{'RMS':>8}{'max':>7}{'manip':>8}{'s':>8}{'median':>7}{'p99':>7}{'median':>7}{'max':>6}"
)


def group_rows(evaluations: Sequence[Evaluation]) -> list[str]:
    """Return the header and a row for each method and group; errors are pooled, limits and distances the worst.

    Cases that begin nearer than the distance to keep are left out of the distances.
    """
    rows = [HEADER]
    for group in GROUPS:
        inside = [e for e in evaluations if e.group == group]
        for method in dict.fromkeys(e.method for e in evaluations):
            chosen = [e for e in inside if e.method == method]
            if chosen:
                rows.append(_row(method, f"{len(chosen)} {group}", chosen))
    return rows


def case_rows(evaluations: Sequence[Evaluation]) -> list[str]:
    """Return a header and a row for each case and method."""
    return ["", HEADER, *(_row(e.method, e.case, [e]) for e in evaluations)]


def _row(method: str, name: str, chosen: Sequence[Evaluation]) -> str:
    beyond = [
        sum(getattr(e, f"{kind}_violations") for e in chosen) for kind in ("position", "velocity", "acceleration")
    ]
    ratio = max(max(e.velocity_ratio, e.acceleration_ratio if e.acceleration_violations else 0.0) for e in chosen)
    clear = [e for e in chosen if len(chosen) == 1 or (e.start_mm or 0.0) >= KEPT_CLEARANCE_MM]
    near = min((e.clearance_mm for e in clear if e.clearance_mm is not None), default=None)
    hard = [e for e in chosen if e.group == "hard"]
    lost = sum(e.recovered is False for e in hard)
    back = max((e.recovery_s for e in hard if e.recovery_s is not None), default=None)
    plans = [e for e in chosen if e.plan_ms_median is not None]
    middle = sorted(e.plan_ms_median or 0.0 for e in plans)
    return (
        f"{method:20}{name[:23]:24}{_short(pooled([e.position_rms_mm for e in chosen])):>8}"
        f"{_short(max(e.position_max_mm for e in chosen)):>8}{_short(pooled([e.rotation_rms_deg for e in chosen])):>8}"
        f"{beyond[0]:5d}{beyond[1]:5d}{beyond[2]:5d} {_short(ratio):>6}{_short(near):>7}"
        f"{_short(pooled([e.jerk_rms for e in chosen])):>8}{_short(max(e.jerk_max for e in chosen)):>7}"
        f"{min(e.manipulability for e in chosen):8.4f} {f'{lost} lost' if lost else _short(back):>7}"
        f"{sorted(e.tick_ms_median for e in chosen)[len(chosen) // 2]:7.2f}{max(e.tick_ms_p99 for e in chosen):7.2f}"
        f"{f'{middle[len(middle) // 2]:.1f}' if plans else '':>7}"
        f"{f'{max(e.plan_ms_max or 0.0 for e in plans):.0f}' if plans else '':>6}"
    )


def pooled(values: Sequence[float]) -> float:
    """Return the root mean square of root mean squares."""
    return math.sqrt(sum(value * value for value in values) / len(values))


def _short(value: float | None) -> str:
    """Write a number in at most six characters."""
    if value is None:
        return "-"
    size = abs(value)
    if size >= 1e5:
        return f"{value:.0e}"
    return (
        f"{value:.0f}"
        if size >= 1000
        else f"{value:.1f}"
        if size >= 10
        else f"{value:.2f}"
        if size >= 1
        else f"{value:.3f}"
    )


def missed(evaluations: Sequence[Evaluation]) -> list[str]:
    """List where a run falls short of its mark: errors of smooth cases, jerk and error of noisy ones, recovery."""
    found = []
    for e in evaluations:
        if e.group == "smooth":
            marks = (
                ("RMS error", e.position_rms_mm, SMOOTH_RMS_MM, "mm"),
                ("RMS error", e.rotation_rms_deg, SMOOTH_RMS_DEG, "deg"),
                ("greatest error", e.position_max_mm, SMOOTH_MAX_MM, "mm"),
            )
            found += [f"{e.case}: {what} {v:.3f} {unit}, at most {m} wanted" for what, v, m, unit in marks if v > m]
        if e.group == "hard" and (e.recovered is False or (e.recovery_s or 0.0) > RECOVERY_S):
            how = "does not come back" if e.recovered is False else f"comes back after {e.recovery_s:.2f} s"
            found.append(f"{e.case}: {how}, {RECOVERY_S} s wanted")
    noisy = [e for e in evaluations if e.group == "noisy"]
    if noisy and (jerk := pooled([e.jerk_rms for e in noisy])) > NOISY_JERK_RMS:
        found.append(f"noisy cases: RMS jerk {jerk:.1f} rad/s^3, at most {NOISY_JERK_RMS} wanted")
    if noisy and (error := pooled([e.position_rms_mm for e in noisy])) > NOISY_RMS_MM:
        found.append(f"noisy cases: RMS error {error:.2f} mm, at most {NOISY_RMS_MM} wanted")
    return found
