"""What `gr2 benchmark policies` found: a table in the terminal, a file, and a page with a plot."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from ...data_pipeline.files import write_bytes, write_json
from ..calvin.results import success_rates
from ..metrics.statistics import over_seeds
from ..report.charts import Bar, BarGroup, interval_bars
from ..report.markup import table, text
from ..report.style import STYLE
from .recipes import PUBLISHED_ONLY, PolicyRecipe

_ROUNDS = 20
"""Chunks that are timed."""

_HEAD = ("system", "average length", "by seed", "1 to 5 in a row", "jerk [rad²/s⁶]", "ms a chunk", "parameters",
         "training [min]", "windows")  # fmt: skip


def write_table(
    out: Path, recipes: Sequence[PolicyRecipe], *, seeds: int, samples: Mapping[str, int]
) -> dict[str, Any]:
    """Gather the seeds that are done; write `policies.json` and `policies.html`, and print the table.

    Args:
        samples: windows of a training of each system.
    """
    seconds = {row["name"]: row["seconds"] for row in json.loads((out / "stages.json").read_text())}
    rows = [_row(out, recipe, seeds, samples[recipe.name], seconds) for recipe in recipes]
    found = {"seeds": seeds, "policies": rows, "published_only": list(PUBLISHED_ONLY)}
    write_json(out / "policies.json", found)
    write_bytes(out / "policies.html", _page(rows, seeds).encode())
    print(f"\n{seeds} seed{'s' * (seeds > 1)}; {out / 'policies.html'}\n{' | '.join(_HEAD)}")
    for row in sorted(rows, key=lambda row: -row["average_length"]):
        print(" | ".join(_cells(row)))
    return found


def _row(out: Path, recipe: PolicyRecipe, seeds: int, samples: int, seconds: Mapping[str, float]) -> dict[str, Any]:
    """Read what was measured of one system."""
    lengths, jerks, minutes = [], [], []
    for seed in range(seeds):
        results = json.loads((out / f"seed_{seed}" / recipe.name / "act" / "results.json").read_text())
        (control,) = results["controls"].values()
        lengths.append(control["sequences"])
        jerks += [control["joint_jerk"]["mean_square"]] if "joint_jerk" in control else []
        minutes.append(seconds[f"seed {seed}: {recipe.name}: finetune"] / 60)
    mean = over_seeds(lengths)
    policy = out / "seed_0" / recipe.name / "policy"
    return {
        "name": recipe.name,
        "system": recipe.system,
        "source": recipe.source,
        "differs": recipe.differs,
        "sequences": len(lengths[0]),
        "average_length": mean.value,
        "interval_95": [mean.low, mean.high],
        "by_seed": [float(np.mean(one)) for one in lengths],
        "success_rates": success_rates([length for one in lengths for length in one]),
        "joint_jerk": float(np.mean(jerks)) if jerks else 0.0,
        "training_minutes": float(np.mean(minutes)),
        "samples": samples,
        **_measure(policy, out / "seed_0" / recipe.name / "speed.json"),
    }


def _measure(policy: Path, file: Path) -> dict[str, float]:
    """Count the weights that act and time a chunk on one thread, once for each policy."""
    import torch

    from ...gr_model.act.loading import load_policy
    from ..playtable.environment import PlayTable

    if file.exists():
        return dict(json.loads(file.read_text()))
    loaded, threads = load_policy(policy), torch.get_num_threads()
    env = PlayTable("D")
    try:
        torch.set_num_threads(1)
        observation, times = env.observe("open the drawer"), []
        for _ in range(_ROUNDS + 2):
            loaded.reset()
            begin = time.perf_counter()
            loaded.act(observation)
            times.append(1e3 * (time.perf_counter() - begin))
    finally:
        torch.set_num_threads(threads)
        env.close()
    model = loaded.model
    parts = [model.embed, model.head] + [model.gpt] * (model.head.reads != "context")
    found = {
        "ms_per_chunk": median(times[2:]),
        "parameters": sum(p.numel() for part in parts for p in part.parameters()),
    }
    write_json(file, found)
    return found


def _cells(row: Mapping[str, Any]) -> list[str]:
    low, high = row["interval_95"]
    return [
        row["system"],
        f"{row['average_length']:.2f} [{low:.2f}, {high:.2f}]",
        ", ".join(f"{value:.2f}" for value in row["by_seed"]),
        ", ".join(f"{rate:.2f}" for rate in row["success_rates"]),
        f"{row['joint_jerk']:,.0f}",
        f"{row['ms_per_chunk']:.1f}",
        f"{row['parameters'] / 1e6:.2f} M",
        f"{row['training_minutes']:.1f}",
        f"{row['samples']:,}",
    ]


def _page(rows: Sequence[Mapping[str, Any]], seeds: int) -> str:
    """Write one page: a plot, the table, and what each system differs in from its paper."""
    ordered = sorted(rows, key=lambda row: -row["average_length"])
    groups = [
        BarGroup(
            label=row["system"],
            bars=[Bar(value=row["average_length"], low=row["interval_95"][0], high=row["interval_95"][1])],
        )
        for row in ordered
    ]
    chart = interval_bars(groups, title="Tasks in a row, of five", unit="", maximum=5.0, label_width=190)
    main = table(list(_HEAD), [[text(cell) for cell in _cells(row)] for row in ordered])
    sources = table(
        ["system", "source", "not as published"],
        [[text(row["system"]), text(row["source"]), text(row["differs"])] for row in ordered],
    )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<link rel="icon" href="data:,"><title>gr2 policies</title><style>{STYLE}</style></head><body>'
        "<header><h1>Policies side by side</h1><p>The same scripted demonstrations in our simulator, the same "
        f"{ordered[0]['sequences']} official sequences, {seeds} seed{'s' * (seeds > 1)}, 95 % intervals over seeds and "
        f"sequences. As published rows only: {text('; '.join(PUBLISHED_ONLY))}.</p></header>"
        f"<main><section>{chart}{main}</section><section><h2>Sources</h2>{sources}</section></main></body></html>\n"
    )
