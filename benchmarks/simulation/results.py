"""What result files and printed tables of every benchmark share: success of tasks, and what it must be quoted with."""

from __future__ import annotations

import platform
from collections.abc import Iterable, Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from ..metrics.statistics import wilson_interval

_PACKAGES = ("gr2", "torch", "pybullet", "numpy")


def tally(results: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return successes, attempts and the steps of each attempt by task, from the results of tasks."""
    tasks: dict[str, dict[str, Any]] = {}
    for result in results:
        row = tasks.setdefault(result["task"], {"success": 0, "total": 0, "steps": []})
        row["success"] += int(result["success"])
        row["total"] += 1
        row["steps"].append(result["steps"])
    return tasks


def rate_line(name: str, tasks: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the success of all tasks together, with its 95 % interval, as a line of the printed table."""
    success, total = sum(t["success"] for t in tasks.values()), sum(t["total"] for t in tasks.values())
    rate = wilson_interval(success, total)
    interval = f"[{rate.low:.1%}, {rate.high:.1%}]"
    return f"{name}: {success}/{total} = {rate.value:.1%} {interval}, {len(tasks)} tasks"


def task_lines(tasks: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """Yield a line of the printed table for each task."""
    for name in sorted(tasks):
        row = tasks[name]
        steps = sorted(row["steps"])[len(row["steps"]) // 2]
        yield f"  {name:28s} {row['success']:4d}/{row['total']:<4d} median {steps} steps"


def provenance(fingerprint: str, *, packages: Iterable[str] = ()) -> dict[str, Any]:
    """Return what a metric must be quoted with: versions of gr2 and of `packages`, and the policy's fingerprint."""
    versions = {"python": platform.python_version()}
    for name in (*_PACKAGES, *packages):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "missing"
    return {"versions": versions, "policy_fingerprint": fingerprint}
