"""`gr2 data statistics`: a table of a dataset's states and actions, with what looks wrong."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from ...errors import DataError
from ..files import write_json
from ..readers.record import Times
from .check import GRIPPER_MARGIN
from .datasets import LARGEST_NUMBER, DatasetAccumulator, RowFaults, RowLayout
from .normalize import RowStatistics
from .steps import MeasuredSource, measure_steps, read_steps

OUTLIER_RANGES = 3.0
"""A dimension with values further outside its 1 % to 99 % range than this many ranges gets a warning."""

_LARGEST_ARM = 5.0
"""[m]: no arm reaches further from its base."""

_COLUMNS = ("min", "q01", "q50", "mean", "q99", "max", "std")


def statistics(
    *,
    source: Path,
    camera: str = "static",
    spec: Path | None = None,
    times: Times = "check",
    state_gripper: list[int] | None = None,
    action_gripper: list[int] | None = None,
    json: Path | None = None,
) -> Mapping[str, Any]:
    """Measure the states and actions of a dataset and print a table with what looks wrong; no video is read.

    Args:
        source: a dataset folder, video shards or token shards.
        camera: name given to the camera of datasets that have one without a name.
        spec: YAML file that states where the parts of an episode lie, for datasets that need one, or libero.
        times: "order" takes the rows of a LeRobot episode for steps at its rate, whatever their times.
        state_gripper: dimensions of the state that hold gripper openings, counted from 0; known for gr2's own states.
        action_gripper: dimensions of the action that hold gripper openings; known for gr2's own actions and where the
            spec states.
        json: also write everything here.

    Returns:
        What is written as JSON.

    Raises:
        DataError: the source cannot be opened or holds no states and actions.
    """
    if not source.expanduser().exists():
        raise DataError(f"{source}: no such file or folder, expected a dataset or shards; check the path.")
    steps = tqdm(
        read_steps(source.expanduser(), camera, spec, times), desc=f"states and actions of {source.name}", unit="record"
    )
    measured = measure_steps(steps, source.name, state_gripper, action_gripper)
    if not measured.datasets:
        first = "".join(f"; the first broken one, {e['record']}: {e['detail']}" for e in measured.examples[:1])
        raise DataError(
            f"{source}: expected records with states or actions, got {measured.without_steps} of video alone and "
            f"{sum(measured.broken.values())} broken ones{first}; check the path and the spec."
        )
    summary = summarize(str(source), measured)
    print(as_text(summary))
    if json is not None:
        write_json(json, summary)
    return summary


def summarize(source: str, measured: MeasuredSource) -> dict[str, Any]:
    """Return everything about a measured source as JSON values."""
    return {
        "source": source,
        "records": measured.records,
        "without_steps": measured.without_steps,
        "broken": dict(measured.broken.most_common()),
        "broken_examples": measured.examples,
        "datasets": [_summarize_dataset(dataset) for dataset in measured.datasets],
    }


def _summarize_dataset(dataset: DatasetAccumulator) -> dict[str, Any]:
    result = dataset.result()
    summary = result.to_dict() | {"records": dataset.records, "warnings": []}
    for kind, rows in (("states", result.states), ("actions", result.actions)):
        if rows is not None:
            layout, faults = dataset.layouts[kind], dataset.faults[kind]
            summary[kind] |= {"names": list(layout.names), "notes": notes_of(rows, layout, faults)}
            summary["warnings"] += [
                f"{kind}: {warning}" for warning in warnings_of(layout, faults, kind in dataset.stated)
            ]
    if result.gripper_gain is not None and result.gripper_gain < 0:
        summary["warnings"].append(
            f"actions: commanded to open, the gripper closes (its opening changes by {result.gripper_gain:+.2g}); open "
            "and closed are swapped in states or actions"
        )
    return summary


def notes_of(rows: RowStatistics, layout: RowLayout, faults: RowFaults) -> list[list[str]]:
    """Return, for each dimension, what normalization does to it and what looks wrong; capitals are warnings."""
    notes = []
    for i in range(rows.width):
        found = ["gripper, unchanged"] if i in layout.gripper else []
        if rows.constant[i]:
            found.append("constant")
        found += _range_notes(rows, layout, i)
        if faults.wraps[i]:
            found.append(f"WRAPS {faults.wraps[i]} times at +-pi: unwrap, or give rotations without a jump")
        notes.append(found)
    return notes


def _range_notes(rows: RowStatistics, layout: RowLayout, i: int) -> Iterator[str]:
    low, high = rows.quantiles["q01"][i], rows.quantiles["q99"][i]
    if i in layout.gripper:
        if rows.min[i] < -GRIPPER_MARGIN or rows.max[i] > 1 + GRIPPER_MARGIN:
            yield "GRIPPER OUTSIDE 0..1: 0 is closed, 1 is open; declare the convention"
        return
    # where 98 % of a dimension are equal, its deviation shows what is far
    spread = max(high - low, float(rows.std[i]))
    if not rows.constant[i] and max(low - rows.min[i], rows.max[i] - high) > OUTLIER_RANGES * spread:
        yield "OUTLIERS: broken rows?"
    largest = max(abs(low), abs(high))
    if i in layout.meters and largest > _LARGEST_ARM:
        yield "UNITS: looks like [mm] or [cm], expected [m]"
    elif i not in layout.meters and largest > LARGEST_NUMBER:
        yield (
            "UNITS: looks like degrees, expected [rad]" if i in layout.radians else "UNITS: looks like degrees or [mm]"
        )


def warnings_of(layout: RowLayout, faults: RowFaults, is_stated: bool = False) -> Iterator[str]:
    """Yield what is wrong with rows as a whole; `is_stated` says that all of their numbers are known."""
    if faults.unusable:
        named = ", ".join(faults.unusable_in[:5])
        yield f"{faults.unusable} rows with NaN or infinity, left out, in {named}"
    if layout.quaternions and faults.no_rotation:
        yield f"{faults.no_rotation} rows whose quaternion is not of length 1: normalize it"
    if layout.quaternions and faults.flips:
        yield f"{faults.flips} sign flips between successive quaternions: q and -q are one rotation, their mean is none"
    if not layout.gripper and not is_stated:
        yield "no gripper marked: it would be normalized like the rest; name it with --state-gripper, --action-gripper"


def as_text(summary: Mapping[str, Any]) -> str:
    """Lay out the table of what `summarize` returned."""
    broken = sum(summary["broken"].values())
    lines = [
        f"{summary['source']}: {summary['records']} records, {summary['without_steps']} of video alone, {broken} broken"
    ]
    lines += [f"  {count} x {reason}" for reason, count in summary["broken"].items()]
    for dataset in summary["datasets"]:
        lines += ["", f"{dataset['name']}: {dataset['records']} records, fingerprint {dataset['fingerprint'][:16]}"]
        lines += [f"  WARNING {warning}" for warning in dataset["warnings"]]
        for kind in ("states", "actions"):
            if dataset[kind] is not None:
                lines += _table(kind, dataset[kind])
    return "\n".join(lines)


def _table(kind: str, rows: Mapping[str, Any]) -> Iterator[str]:
    title = f"{kind}, {rows['rows']} rows"
    width = max(len(title), *map(len, rows["names"])) + 2
    headings = [f"{float(c[1:]):g} %" if c[1:].isdigit() else c for c in _COLUMNS]
    yield f"{title:<{width}}" + "".join(f"{heading:>11}" for heading in headings) + "  note"
    for i, name in enumerate(rows["names"]):
        numbers = "".join(f"{np.float64(rows[column][i]):>11.4g}" for column in _COLUMNS)
        yield f"{name:<{width}}{numbers}  {'; '.join(rows['notes'][i])}".rstrip()
