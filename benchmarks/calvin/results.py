"""From the records of test episodes to the result file and the printed table."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from statistics import median
from typing import Any

from ..metrics.published import ABCD_D, PUBLISHED_PROTOCOL
from ..metrics.statistics import bootstrap_mean
from ..playtable.robot import panda_model
from ..simulation.control import LimitCounter
from ..simulation.results import rate_line, tally, task_lines
from .episodes import CHAIN_LENGTH


def summarize(records: Mapping[str, Mapping[str, Any]], controls: Sequence[str]) -> dict[str, Any]:
    """Gather records as `results.json` holds them, for each control.

    Returns:
        tasks: single tasks from random starts; chains, sequences: instructions solved in a row; attempts: every task
        that was begun inside of chains and sequences; scores: average length with its 95 % interval and SR1 to SR5 of
        chains and sequences; failures: of each task that failed, how often in which phase (`calvin.failures.Phase`)
        and the median of the closest approaches [m]; joint_jerk: mean squared jerk of an episode's measured joints at
        the control rate [rad^2/s^6] with its 95 % interval; limits, limits_measured: joint limits under our control;
        rejected: chunks that our controller refused, by reason.
    """
    summary: dict[str, Any] = {}
    for control in controls:
        mine = {k: records[k] for k in sorted(records, key=_order) if k.startswith(f"{control}/")}
        single: list[Mapping[str, Any]] = []
        in_a_row: list[Mapping[str, Any]] = []
        lengths: dict[str, list[int]] = {"chain": [], "sequence": []}
        for key, record in mine.items():
            results, kind = record["results"], key.split("/")[1]
            if kind in lengths:
                lengths[kind].append(sum(r["success"] for r in results))
            (in_a_row if kind in lengths else single).extend(results)
        summary[control] = {"tasks": tally(single), "chains": lengths["chain"], "sequences": lengths["sequence"]}
        summary[control]["attempts"] = tally(in_a_row)
        summary[control]["failures"] = _failures([r for record in mine.values() for r in record["results"]])
        summary[control]["scores"] = {f"{kind}s": _scores(one) for kind, one in lengths.items() if one}
        if jerks := [record["joint_jerk"] for record in mine.values() if "joint_jerk" in record]:
            summary[control]["joint_jerk"] = _jerk(jerks)
        if control == "wbc":
            summary[control]["limits"] = _merge_limits([r["commanded"] for r in mine.values()])
            summary[control]["limits_measured"] = _merge_limits([r["measured"] for r in mine.values()])
            summary[control]["rejected"] = dict(sum((Counter(r.get("rejected", {})) for r in mine.values()), Counter()))
    return summary


def _failures(results: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Gather how tasks failed; episodes recorded by older versions do not say."""
    failed: dict[str, list[Mapping[str, Any]]] = {}
    for result in results:
        if "phase" in result:
            failed.setdefault(result["task"], []).append(result)
    return {
        task: {
            "failed": len(mine),
            "phases": dict(Counter(r["phase"] for r in mine).most_common()),
            "closest_m": median(r["closest_m"] for r in mine),
        }
        for task, mine in sorted(failed.items(), key=lambda row: -len(row[1]))
    }


def _jerk(values: Sequence[float]) -> dict[str, Any]:
    mean = bootstrap_mean(values)
    return {"episodes": len(values), "mean_square": mean.value, "interval_95": [mean.low, mean.high]}


def _scores(lengths: Sequence[int]) -> dict[str, Any]:
    mean = bootstrap_mean(lengths)
    return {
        "number": len(lengths),
        "average_length": mean.value,
        "interval_95": [mean.low, mean.high],
        "success_rates": success_rates(lengths),
    }


def published() -> list[dict[str, Any]]:
    """Return the published rows as `results.json` holds them, with what they differ in."""
    return [{**asdict(row), "published": True, "protocol": PUBLISHED_PROTOCOL} for row in ABCD_D]


def success_rates(lengths: Sequence[int]) -> list[float]:
    """Return the shares of chains with at least 1 to 5 instructions solved in a row; their sum is the mean."""
    rates = [sum(c >= i for c in lengths) / len(lengths) for i in range(1, CHAIN_LENGTH + 1)]
    assert abs(sum(rates) - sum(lengths) / len(lengths)) < 1e-9
    return rates


def _order(key: str) -> tuple[str, int]:
    name, _, index = key.rpartition("/")
    return name, int(index)


def _merge_limits(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    empty = LimitCounter(panda_model()).as_dict()
    if not rows:
        return empty
    merged: dict[str, float] = {
        n: sum(r[n] for r in rows) for n in ("ticks", "position_violations", "velocity_violations")
    }
    merged["min_position_margin_rad"] = min(r["min_position_margin_rad"] for r in rows)
    merged["max_velocity_ratio"] = max(r["max_velocity_ratio"] for r in rows)
    return merged


def table(summary: Mapping[str, Any]) -> Iterator[str]:
    """Yield the lines of the printed result."""
    for control, result in summary.items():
        tasks = result["tasks"]
        if tasks:
            yield rate_line(control, tasks)
            yield from task_lines(tasks)
        for kind, score in result["scores"].items():
            rates = " ".join(f"{rate:.3f}" for rate in score["success_rates"])
            interval = "[{:.2f}, {:.2f}]".format(*score["interval_95"])
            mean = f"{score['average_length']:.2f} {interval}"
            yield f"{control}: average length {mean}, {score['number']} {kind}; SR1..5 {rates}"
        if result["attempts"]:
            yield f"{control}: tasks begun inside of chains"
            yield from task_lines(result["attempts"])
        if result["failures"]:
            yield f"{control}: how tasks failed, and the closest approach (median)"
            for task, row in result["failures"].items():
                phases = ", ".join(f"{phase} {count}" for phase, count in row["phases"].items())
                yield f"  {task:28s} {row['failed']:4d}: {phases}; {1000 * row['closest_m']:.0f} mm"
        if "joint_jerk" in result:
            jerk = result["joint_jerk"]
            interval = "[{:.0f}, {:.0f}]".format(*jerk["interval_95"])
            episodes = f"{jerk['episodes']} episodes"
            yield f"{control}: mean squared joint jerk {jerk['mean_square']:.0f} {interval} rad^2/s^6, {episodes}"
        if "limits" in result:
            yield f"{control}: commanded {result['limits']}; measured {result['limits_measured']}"
        if rejected := result.get("rejected"):
            reasons = ", ".join(f"{reason} {count}" for reason, count in rejected.items())
            yield f"{control}: {sum(rejected.values())} chunks refused by the controller: {reasons}"
    if any(result["sequences"] for result in summary.values()):
        yield f"published, not ours: {PUBLISHED_PROTOCOL}:"
        for row in ABCD_D:
            yield f"  {row.model:28s} {row.average_length:.2f}  ({row.evidence}: {row.source})"
