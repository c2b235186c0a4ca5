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

_HEAD = (
    "system", "result", "by seed", "held-out chunks", "jerk [rad²/s⁶]", "ms a chunk", "parameters", "training [min]",
    "windows",
)  # fmt: skip


def write_table(
    out: Path, recipes: Sequence[PolicyRecipe], *, seeds: int, samples: Mapping[str, int]
) -> dict[str, Any]:
    """Gather the seeds that are done; write `policies.json` and `policies.html`, and print the table.

    Args:
        samples: windows of a training of each system.
    """
    rows = [_row(out, recipe, seeds, samples[recipe.name]) for recipe in recipes]
    found = {"seeds": seeds, "policies": rows, "published_only": list(PUBLISHED_ONLY)}
    write_json(out / "policies.json", found)
    write_bytes(out / "policies.html", _page(rows, seeds).encode())
    print(f"\n{seeds} seed{'s' * (seeds > 1)}; {out / 'policies.html'}\n{' | '.join(_HEAD)}")
    for row in sorted(rows, key=lambda row: -row["value"]):
        print(" | ".join(_cells(row)))
    return found


def _row(out: Path, recipe: PolicyRecipe, seeds: int, samples: int) -> dict[str, Any]:
    """Read what was measured of one system."""
    values, jerks, minutes, chunks = [], [], [], []
    for seed in range(seeds):
        folder = out / f"seed_{seed}" / recipe.name
        results = json.loads((folder / "act" / "results.json").read_text())
        (control,) = results["controls"].values()
        values.append(_values(control))
        jerks += [control["joint_jerk"]["mean_square"]] if "joint_jerk" in control else []
        stages = json.loads((folder / "stages.json").read_text())
        minutes.append(next(stage["seconds"] for stage in stages if stage["name"] == "finetune") / 60)
        chunks.append(json.loads((folder / "actions.json").read_text()))
    mean, in_a_row = over_seeds(values), "sequences" in control
    return {
        "name": recipe.name,
        "system": recipe.system,
        "source": recipe.source,
        "differs": recipe.differs,
        "measure": "tasks in a row, of five" if in_a_row else "success",
        "episodes": len(values[0]),
        "value": mean.value,
        "interval_95": [mean.low, mean.high],
        "by_seed": [float(np.mean(one)) for one in values],
        "success_rates": success_rates([round(length) for one in values for length in one]) if in_a_row else None,
        "chunks": _errors(chunks),
        "joint_jerk": float(np.mean(jerks)) if jerks else None,
        "training_minutes": float(np.mean(minutes)),
        "samples": samples,
        **_measure(out / "seed_0" / recipe.name / "policy", out / "seed_0" / recipe.name / "speed.json"),
    }


def _values(control: Mapping[str, Any]) -> list[float]:
    """Return the length of each sequence, or whether each start was solved, task after task."""
    if "sequences" in control:
        return [float(length) for length in control["sequences"]]
    tasks = [task for _, task in sorted(control["tasks"].items())]
    return [float(i < task["success"]) for task in tasks for i in range(task["total"])]


def _errors(seeds: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return each action signal's error on held-out episodes, the mean over seeds, and whether all beat both guesses.

    Signals that are constant in the data are left out.
    """
    found: dict[str, dict[str, Any]] = {}
    for result in seeds:
        for robot, values in result.get("robots", {"": result}).items():
            for name, signal in values["signals"].items():
                if not signal["constant"]:
                    row = found.setdefault(
                        f"{robot} {name}".strip(), {"unit": signal["unit"], "errors": [], "beats_both": True}
                    )
                    row["errors"].append(signal["error"]["policy"][0])
                    row["beats_both"] &= signal["beats_both"]
    return {name: row | {"error": float(np.mean(row["errors"]))} for name, row in found.items()}


def _measure(policy: Path, file: Path) -> dict[str, float]:
    """Count the weights that act and time images to a chunk on one thread, once for each policy."""
    import torch

    from ...gr_model.act.loading import load_policy
    from ...gr_model.model.context import Context

    if file.exists():
        return dict(json.loads(file.read_text()))
    loaded, threads = load_policy(policy), torch.get_num_threads()
    model, side = loaded.model, getattr(loaded, "image_size", None) or 64
    config, times = model.config, []
    images = np.random.default_rng(0).integers(0, 256, (len(config.cameras), side, side, 3), np.uint8)
    try:
        torch.set_num_threads(1)
        for _ in range(_ROUNDS + 2):
            begin = time.perf_counter()
            with torch.inference_mode():
                codes = torch.as_tensor(np.asarray(loaded.encode_images(images), np.int64))
                context = Context(
                    codes={c.name: codes[i][None, None] for i, c in enumerate(config.cameras)},
                    text=torch.zeros(1, 6, config.text_dim), text_mask=torch.ones(1, 6, dtype=torch.bool),
                    states=torch.zeros(1, 1, config.slots.state_dim),
                )  # fmt: skip
                model.act(context, noise=torch.zeros(1, model.head.noise_dim))
            times.append(1e3 * (time.perf_counter() - begin))
    finally:
        torch.set_num_threads(threads)
    parts = [model.embed, model.head] + [model.gpt] * (model.head.reads != "context")
    found = {
        "ms_per_chunk": median(times[2:]),
        "parameters": sum(p.numel() for part in parts for p in part.parameters()),
    }
    write_json(file, found)
    return found


def _cells(row: Mapping[str, Any]) -> list[str]:
    scale, unit = (1.0, "") if row["success_rates"] else (100.0, " %")
    low, high = (scale * bound for bound in row["interval_95"])
    return [
        row["system"],
        f"{scale * row['value']:.2f}{unit} [{low:.2f}, {high:.2f}]",
        ", ".join(f"{scale * value:.2f}" for value in row["by_seed"]),
        _chunks(row["chunks"]),
        "-" if row["joint_jerk"] is None else f"{row['joint_jerk']:,.0f}",
        f"{row['ms_per_chunk']:.1f}",
        f"{row['parameters'] / 1e6:.2f} M",
        f"{row['training_minutes']:.1f}",
        f"{row['samples']:,}",
    ]


def _chunks(signals: Mapping[str, Mapping[str, Any]]) -> str:
    """State errors, and which of them do not beat holding still and the mean."""
    errors = ", ".join(f"{signal['error']:.3g} {signal['unit']}" for signal in signals.values())
    poor = [name for name, signal in signals.items() if not signal["beats_both"]]
    return errors + (f" (no better than a guess: {', '.join(poor)})" if poor else "")


def _page(rows: Sequence[Mapping[str, Any]], seeds: int) -> str:
    """Write one page: a plot, the table, and what each system differs in from its paper."""
    ordered = sorted(rows, key=lambda row: -row["value"])
    scale, unit, maximum = (1.0, "", 5.0) if ordered[0]["success_rates"] else (100.0, " %", 100.0)
    groups = [
        BarGroup(
            label=row["system"],
            bars=[Bar(value=scale * row["value"], low=scale * row["interval_95"][0],
                      high=scale * row["interval_95"][1])],
        )
        for row in ordered
    ]  # fmt: skip
    chart = interval_bars(groups, title=ordered[0]["measure"], unit=unit, maximum=maximum, label_width=190)
    seeds_text = f"{seeds} seed{'s' * (seeds > 1)}"
    main = table(list(_HEAD), [[text(cell) for cell in _cells(row)] for row in ordered])
    sources = table(
        ["system", "source", "not as published"],
        [[text(row["system"]), text(row["source"]), text(row["differs"])] for row in ordered],
    )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<link rel="icon" href="data:,"><title>gr2 policies</title><style>{STYLE}</style></head><body>'
        "<header><h1>Policies side by side</h1><p>The same scripted demonstrations, the same "
        f"{ordered[0]['episodes']} test episodes ({text(ordered[0]['measure'])}), {seeds_text}, 95 % "
        "intervals over seeds and episodes. Held-out chunks: mean errors of the action signals on demonstrations that "
        "training did not see, for certain below those of holding still and of the mean chunk unless stated. As "
        f"published rows only: {text('; '.join(PUBLISHED_ONLY))}.</p></header>"
        f"<main><section>{chart}{main}</section><section><h2>Sources</h2>{sources}</section></main></body></html>\n"
    )
