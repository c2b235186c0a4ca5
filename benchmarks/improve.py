"""`gr2 improve`: rounds of measuring a policy, correcting it where it fails, and finetuning it on all of it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from ..data_pipeline.files import write_json
from ..errors import ConfigError, DataError
from .journal import Journal, spread

_STAGES = 5
"""Stages of a round: measure, correct, shards, tokens, finetune."""


def improve(
    *,
    policy: str = "pretrained",
    tokens: list[Path],
    out: Path = Path("runs/improve"),
    rounds: int = 3,
    scenes: str = "ABCD",
    tasks: Literal["demonstrated", "all"] = "all",
    chains: int = 200,
    steps: int = 2000,
    batch_size: int = 64,
    learning_rate: float = 5e-4,
    frame_fraction: float = 0.1,
    starts: int = 5,
    sequences: int = 100,
    max_steps: int = 360,
    control: Literal["wbc", "calvin", "both"] = "wbc",
    num_workers: int = 2,
    seed: int = 0,
) -> Path:
    """Improve a released policy over rounds; run again to resume, or with more rounds to go on.

    A round measures the policy, lets it drive while the expert corrects it (DAgger), tasks that failed more often more
    often, and finetunes it on these corrections, those of the rounds before, and `tokens`.

    Args:
        policy: "pretrained" (shipped), or the folder of a released model.
        tokens: token shards of the demonstrations that it was trained with, which later rounds keep.
        out: folder of the rounds; `rounds.json` has a row for each.
        rounds: rounds in all.
        scenes: scenes of the corrections, e.g. ABCD; the policy is measured in scene D.
        tasks: "demonstrated" (17) or "all" (34).
        chains: chains of up to six corrected skills a round.
        steps: optimization steps a round.
        batch_size: windows a step.
        learning_rate: peak of a round.
        frame_fraction: share of the steps that predict frames too.
        starts: random starts for each task in a measurement.
        sequences: official sequences in a measurement, from the first.
        max_steps: time limit for each task in control steps.
        control: control of the measurements; the corrections take both.
        num_workers: processes for recording, training and acting.
        seed: seed of everything.

    Returns:
        The path of `rounds.json`.

    Raises:
        ConfigError: an impossible number.
        DataError: `out` holds rounds of another policy.

    Source: DAgger, Ross, Gordon and Bagnell, arXiv 1011.0686.
    """
    from ..data_pipeline.curation.ingest import write_video_shards
    from ..gr_model.act.loading import assemble, release_folder
    from ..gr_model.train.stages import finetune
    from ..gr_model.train.tokenizer_stages import tokens as write_tokens
    from .calvin.evaluate import evaluate
    from .demonstrations.record import record

    if min(rounds, chains, steps, batch_size, num_workers) < 1 or starts + sequences < 1:
        raise ConfigError("improve: expected 1 or more rounds, chains, steps, windows and workers, and some episodes.")
    first = release_folder(policy)
    frozen = _encoders(first, assemble(first).release.provenance)
    _begin(out, str(first), seed)
    journal, rows = Journal(out, _STAGES * rounds + 1), list[dict[str, Any]]()
    measured: dict[str, Any] = {"tasks": tasks, "starts": starts, "sequences": sequences, "max_steps": max_steps}
    measured |= {"control": control, "num_workers": num_workers, "seed": seed + 100}
    drives, corrections = first, list[Path]()
    for number in range(rounds + 1):
        place = out / f"round_{number}"
        journal.run(
            "benchmark calvin", evaluate, {"policy": str(drives), "out": place / "measure", **measured},
            name=f"round {number}: measure",
        )  # fmt: skip
        rows.append(_row(number, drives, place / "measure" / "results.json", journal))
        write_json(out / "rounds.json", rows)
        print("    " + _line(rows[-1]), flush=True)
        if number == rounds:
            break
        recorded = {"out": place / "record", "scenes": scenes, "tasks": tasks, "chains": chains, "play_share": 0.0}
        recorded |= {"policy": str(drives), "emphasis": place / "measure" / "results.json"}
        recorded |= {"num_workers": num_workers, "seed": seed + 1000 * (number + 1)}
        journal.run("data record", record, recorded, name=f"round {number}: correct")
        journal.run(
            "data shards", write_video_shards,
            {"source": place / "record", "out": place / "shards", "num_workers": num_workers},
            name=f"round {number}: shards",
        )  # fmt: skip
        journal.run(
            "data tokens", write_tokens, {"shards": place / "shards", "out": place / "tokens", **frozen},
            name=f"round {number}: tokens",
        )  # fmt: skip
        corrections.append(place / "tokens")
        training: dict[str, Any] = {"tokens": [*tokens, *corrections], "init": drives, "out": place / "policy"}
        training |= {"steps": steps, "batch_size": batch_size, "learning_rate": learning_rate}
        training |= {"frame_fraction": frame_fraction, "seed": seed + number + 1, **frozen}
        journal.run(
            "finetune", finetune, training | spread(2, batch_size, num_workers), name=f"round {number}: finetune"
        )
        drives = place / "policy"
    best = max(rows, key=lambda row: (row["average_length"] or 0.0, row["success"]))
    print("\n".join([*map(_line, rows), f"best: round {best['round']}, {best['policy']}"]))
    return out / "rounds.json"


def _encoders(folder: Path, provenance: Mapping[str, Any]) -> dict[str, str]:
    """Return the options that name the frozen encoders of a release."""
    names = {kind: str(provenance.get(f"{kind}_source", "small")) for kind in ("tokenizer", "text")}
    return {kind: str(folder / name) if name == kind else name for kind, name in names.items()}


def _begin(out: Path, policy: str, seed: int) -> None:
    """Make the folder, or check that it holds rounds of the same policy."""
    facts, wanted = out / "improve.json", {"policy": policy, "seed": seed}
    if facts.exists() and (found := json.loads(facts.read_text())) != wanted:
        raise DataError(f"{out}: holds rounds of {found}, asked for {wanted}; choose another --out.")
    out.mkdir(parents=True, exist_ok=True)
    write_json(facts, wanted)


def _row(number: int, policy: Path, results: Path, journal: Journal) -> dict[str, Any]:
    """Gather what a round is told by, over all controls."""
    found = json.loads(results.read_text())
    tasks = [row for control in found["controls"].values() for row in control["tasks"].values()]
    scores = [c["scores"]["sequences"] for c in found["controls"].values() if "sequences" in c["scores"]]
    failed: dict[str, int] = {}
    for control in found["controls"].values():
        for kind in ("tasks", "attempts"):
            for task, row in control[kind].items():
                failed[task] = failed.get(task, 0) + row["total"] - row["success"]
    worst = sorted((t for t in failed if failed[t]), key=lambda t: -failed[t])[:5]
    recorded = [row["summary"].get("labeled", 0) for row in journal.rows if row["name"].endswith(": correct")]
    return {
        "round": number,
        "policy": str(policy),
        "weights": found["weights_sha256"],
        "success": sum(row["success"] for row in tasks),
        "starts": sum(row["total"] for row in tasks),
        "average_length": sum(s["average_length"] for s in scores) / len(scores) if scores else None,
        "intervals_95": [score["interval_95"] for score in scores],
        "sequences": sum(score["number"] for score in scores),
        "most_failures": {task: failed[task] for task in worst},
        "corrections": sum(recorded),
        "hours": round(sum(row["seconds"] for row in journal.rows) / 3600, 2),
    }


def _line(row: Mapping[str, Any]) -> str:
    length = "" if row["average_length"] is None else f", average length {row['average_length']:.2f}"
    worst = ", ".join(f"{task} {count}" for task, count in row["most_failures"].items()) or "none"
    return (
        f"round {row['round']}: {row['success']}/{row['starts']} starts{length} over {row['sequences']} sequences; "
        f"{row['corrections']} corrections, {row['hours']:.2f} h; failures: {worst}"
    )
