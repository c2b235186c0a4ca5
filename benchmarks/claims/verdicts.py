"""What the policies of `gr2 benchmark claims` say about each claim, as a table, a file and a page with plots."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from ...data_pipeline.files import write_bytes, write_json
from ..metrics.statistics import Interval, over_seeds
from ..report.charts import Bar, BarGroup, interval_bars
from ..report.markup import table, text
from ..report.style import STYLE
from .grid import Claim, Variant

_WORDS = {"success": "success [points]", "frame_loss": "loss on held-out frames [nats a code], less is better"}


_AGREEMENT = {
    "closer_mm": "how much nearer the executed tool path is to the imagined one than to a tool that stays [mm]",
    "auc": "area under the ROC curve of agreement for success (chance is 0.5)",
}


def write_verdicts(out: Path, claims: Sequence[Claim], *, seeds: int) -> dict[str, Any]:
    """Measure every claim over the seeds that are done; write `claims.json` and `claims.html`, and print a table."""
    variants = list(dict.fromkeys(variant for claim in claims for variant in claim.variants))
    found = {variant: [_policy(variant.folder(out, seed)) for seed in range(seeds)] for variant in variants}
    rows = {variant: _row(policies) for variant, policies in found.items()}
    judged: list[dict[str, Any]] = [
        {
            "name": claim.name,
            "says": claim.says,
            "differences": _differences(claim, found) + (_agreement(claim, out, seeds) if claim.imagines else []),
        }
        for claim in claims
    ]
    verdicts = {"seeds": seeds, "policies": {v.name: row for v, row in rows.items()}, "claims": judged}
    write_json(out / "claims.json", verdicts)
    write_bytes(out / "claims.html", _page(claims, rows, judged, seeds).encode())
    print(f"\n{seeds} seed{'s' * (seeds > 1)}; {out / 'claims.html'}")
    for claim in judged:
        print(f"{claim['name']}: {claim['says']}")
        for one in claim["differences"]:
            print(f"    {_difference_text(one)}")
    return verdicts


def _policy(folder: Path) -> dict[str, Any]:
    """Read what was measured of one policy."""
    lines = (folder / "act" / "episodes.jsonl").read_text().splitlines()[1:]
    records = {record["key"]: record for record in map(json.loads, lines)}
    with (folder / "policy" / "metrics.csv").open(newline="") as file:
        losses = [row["val/frame_loss"] for row in csv.DictReader(file) if row.get("val/frame_loss")]
    results = [result for record in records.values() for result in record["results"]]
    jerks = [record["joint_jerk"] for record in records.values() if "joint_jerk" in record]
    return {
        "success": {key: float(record["results"][0]["success"]) for key, record in sorted(records.items())},
        "steps": median([r["steps"] for r in results if r["success"]] or [0]),
        "jerk": float(np.mean(jerks)) if jerks else 0.0,
        "frame_loss": float(losses[-1]),
    }


def _row(policies: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Gather the policies of one variant, one a seed."""
    success = over_seeds([list(policy["success"].values()) for policy in policies])
    rates = [float(np.mean(list(policy["success"].values()))) for policy in policies]
    means = {name: float(np.mean([policy[name] for policy in policies])) for name in ("steps", "jerk", "frame_loss")}
    return {"success": success.value, "interval_95": [success.low, success.high], "by_seed": rates, **means}


def _differences(claim: Claim, found: Mapping[Variant, Sequence[Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """Return the difference of each pair with its interval, and whether it bears the claim out."""
    differences = []
    for better, worse in claim.pairs:
        pairs = list(zip(found[better], found[worse], strict=True))
        for measure in claim.measures:
            if measure == "success":
                values = [[100 * (a["success"][key] - b["success"][key]) for key in a["success"]] for a, b in pairs]
                sign = 1.0
            else:
                values = [[a["frame_loss"] - b["frame_loss"]] for a, b in pairs]
                sign = -1.0
            mean = over_seeds(values)
            differences.append(
                {
                    "better": better.name, "worse": worse.name, "measure": measure, "difference": mean.value,
                    "interval_95": [mean.low, mean.high], "by_seed": [float(np.mean(one)) for one in values],
                    "verdict": _verdict(sign * mean.value, mean, seeds=len(pairs)),
                }
            )  # fmt: skip
    return differences


def _agreement(claim: Claim, out: Path, seeds: int) -> list[dict[str, Any]]:
    """Return how imagined futures compare with executed ones; each seed has an interval of its own."""
    rows = []
    for variant in claim.others:
        files = [variant.folder(out, seed) / "imagine" / "agreement.json" for seed in range(seeds)]
        found = [json.loads(file.read_text()) for file in files]
        for measure, words in _AGREEMENT.items():
            intervals = [one[measure] for one in found if one[measure] is not None]
            if intervals:
                verdict = _agreement_verdict(intervals, 0.5 if measure == "auc" else 0.0)
                rows.append({"measure": measure, "words": words, "by_seed": intervals, "verdict": verdict})
    return rows


def _agreement_verdict(intervals: Sequence[Sequence[float]], chance: float) -> str:
    """Return whether all seeds lie on one side of chance, each with its whole interval."""
    if len(intervals) < 3:
        return "too few seeds to say"
    if all(low > chance for _, low, _ in intervals):
        return "holds here"
    return "the opposite holds here" if all(high < chance for _, _, high in intervals) else "not shown here"


def _verdict(towards: float, mean: Interval, *, seeds: int) -> str:
    if seeds < 3:
        return "too few seeds to say"
    if not mean.excludes_zero():
        return "not shown here"
    return "holds here" if towards > 0 else "the opposite holds here"


def _difference_text(one: Mapping[str, Any]) -> str:
    if "words" in one:
        seeds = "; ".join(f"{value:.2f} [{low:.2f}, {high:.2f}]" for value, low, high in one["by_seed"])
        return f"{one['words']}, by seed: {seeds}: {one['verdict']}"
    low, high = one["interval_95"]
    return (
        f"{one['better']} over {one['worse']}: {one['difference']:+.2f} [{low:+.2f}, {high:+.2f}] "
        f"{_WORDS[one['measure']]}: {one['verdict']}"
    )


def _page(
    claims: Sequence[Claim], rows: Mapping[Variant, Mapping[str, Any]], judged: Sequence[Mapping[str, Any]], seeds: int
) -> str:
    """Write one page: for each claim what was measured, the difference and the verdict."""
    sections = []
    for claim, result in zip(claims, judged, strict=True):
        groups = [
            BarGroup(
                label=variant.name,
                bars=[Bar(value=100 * row["success"], low=100 * row["interval_95"][0],
                          high=100 * row["interval_95"][1])],
            )
            for variant, row in ((variant, rows[variant]) for variant in claim.variants)
        ]  # fmt: skip
        chart = interval_bars(groups, title=claim.says, unit=" %", label_width=190)
        cells = [[text(variant.name), *_cells(rows[variant])] for variant in claim.variants]
        head = ["training", "success", "by seed", "steps a task", "jerk [rad²/s⁶]", "frame loss"]
        words = "".join(f"<p>{text(_difference_text(one))}</p>" for one in result["differences"])
        sections.append(f"<section><h2>{text(claim.says)}</h2>{words}{chart}{table(head, cells)}</section>")
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<link rel="icon" href="data:,"><title>gr2 claims</title><style>{STYLE}</style></head><body>'
        "<header><h1>What GR-2 claims, in miniature</h1><p>Scripted demonstrations in our simulator, "
        f"{seeds} seeds, 95 % intervals over seeds and starts.</p></header>"
        f"<main>{''.join(sections)}</main></body></html>\n"
    )


def _cells(row: Mapping[str, Any]) -> list[str]:
    low, high = row["interval_95"]
    success = f"{100 * row['success']:.1f} % [{100 * low:.1f}, {100 * high:.1f}]"
    seeds = ", ".join(f"{100 * rate:.1f}" for rate in row["by_seed"])
    return [success, seeds, f"{row['steps']:.0f}", f"{row['jerk']:,.0f}", f"{row['frame_loss']:.3f}"]
