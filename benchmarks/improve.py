"""`gr2 improve`: rounds of measuring a policy, correcting it where it fails, and finetuning it on all of it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ..data_pipeline.files import write_json
from ..errors import ConfigError, DataError
from .journal import Journal, spread

_STAGES = 5
"""Stages of a round: measure, correct, shards, tokens, finetune."""


@dataclass(frozen=True, kw_only=True)
class ImproveOptions:
    """Options of `gr2 improve`.

    Args:
        tokens: token shards of the demonstrations that the policy was trained with, which later rounds keep.
        policy: "pretrained" (shipped), or the folder of a released model.
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
    """

    tokens: list[Path]
    policy: str = "pretrained"
    out: Path = Path("runs/improve")
    rounds: int = 3
    scenes: str = "ABCD"
    tasks: Literal["demonstrated", "all"] = "all"
    chains: int = 200
    steps: int = 2000
    batch_size: int = 64
    learning_rate: float = 5e-4
    frame_fraction: float = 0.1
    starts: int = 5
    sequences: int = 100
    max_steps: int = 360
    control: Literal["wbc", "calvin", "both"] = "wbc"
    num_workers: int = 2
    seed: int = 0

    def __post_init__(self) -> None:
        least = min(self.rounds, self.chains, self.steps, self.batch_size, self.num_workers)
        if least < 1 or self.starts + self.sequences < 1:
            raise ConfigError(
                "improve: expected 1 or more rounds, chains, steps, windows and workers, and some episodes."
            )


def improve(options: ImproveOptions) -> Path:
    """Improve a released policy over rounds; run again to resume, or with more rounds to go on.

    A round measures the policy, lets it drive while the expert corrects it (DAgger), tasks that failed more often more
    often, and finetunes it on these corrections, those of the rounds before, and the demonstrations.

    Returns:
        The path of `rounds.json`.

    Raises:
        ConfigError: an impossible number.
        DataError: the folder holds rounds of another policy.

    Source: DAgger, Ross, Gordon and Bagnell, arXiv 1011.0686.
    """
    from ..gr_model.act.loading import assemble
    from ..gr_model.model.release import release_folder
    from .calvin.evaluate import evaluate

    o, drives = options, release_folder(options.policy)
    frozen = _encoders(drives, assemble(drives).release.provenance)
    _begin(o.out, str(drives), o.seed)
    journal, rows = Journal(o.out, _STAGES * o.rounds + 1), list[dict[str, Any]]()
    measured: dict[str, Any] = {"tasks": o.tasks, "starts": o.starts, "sequences": o.sequences}
    measured |= {"max_steps": o.max_steps, "control": o.control}
    measured |= {"num_workers": o.num_workers, "seed": o.seed + 100}
    for number in range(o.rounds + 1):
        place = o.out / f"round_{number}"
        acting = {"policy": str(drives), "out": place / "measure", **measured}
        journal.run("benchmark calvin", evaluate, acting, name=f"round {number}: measure")
        rows.append(_row(number, drives, place / "measure" / "results.json", journal))
        write_json(o.out / "rounds.json", rows)
        print("    " + _line(rows[-1]), flush=True)
        if number < o.rounds:
            drives = _correct(journal, o, number, drives, frozen)
    best = max(rows, key=lambda row: (row["average_length"] or 0.0, row["success"]))
    print("\n".join([*map(_line, rows), f"best: round {best['round']}, {best['policy']}"]))
    return o.out / "rounds.json"


def _correct(journal: Journal, o: ImproveOptions, number: int, drives: Path, frozen: Mapping[str, str]) -> Path:
    """Record corrections of the policy `drives` where it fails, finetune it on all; return the folder of the new one.

    Args:
        frozen: options that name the frozen encoders.
    """
    from ..data_pipeline.curation.ingest import write_video_shards
    from ..gr_model.train.stages import finetune
    from ..gr_model.train.tokenizer_stages import tokens
    from .demonstrations.record import record

    place, title = o.out / f"round_{number}", f"round {number}: "
    recorded: dict[str, Any] = {"out": place / "record", "scenes": o.scenes, "tasks": o.tasks, "chains": o.chains}
    recorded |= {"play_share": 0.0, "policy": str(drives), "emphasis": place / "measure" / "results.json"}
    recorded |= {"num_workers": o.num_workers, "seed": o.seed + 1000 * (number + 1)}
    journal.run("data record", record, recorded, name=title + "correct")
    shards = {"source": place / "record", "out": place / "shards", "num_workers": o.num_workers}
    journal.run("data shards", write_video_shards, shards, name=title + "shards")
    encoded = {"shards": place / "shards", "out": place / "tokens", "num_workers": o.num_workers, **frozen}
    journal.run("data tokens", tokens, encoded, name=title + "tokens")
    corrections = [o.out / f"round_{i}" / "tokens" for i in range(number + 1)]
    training: dict[str, Any] = {"tokens": [*o.tokens, *corrections], "init": drives, "out": place / "policy"}
    training |= {"steps": o.steps, "batch_size": o.batch_size, "learning_rate": o.learning_rate}
    training |= {"frame_fraction": o.frame_fraction, "seed": o.seed + number + 1, **frozen}
    journal.run("finetune", finetune, training | spread(2, o.batch_size, o.num_workers), name=title + "finetune")
    return place / "policy"


def _encoders(folder: Path, provenance: Mapping[str, Any]) -> dict[str, str]:
    """Return the options that name the frozen encoders of a release."""
    names = {kind: str(provenance.get(f"{kind}_source", "small")) for kind in ("tokenizer", "text")}
    return {kind: str(folder / name) if name == kind else name for kind, name in names.items()}


def _begin(out: Path, policy: str, seed: int) -> None:
    """Make the folder, or check that it holds rounds of the same policy."""
    facts, wanted = out / "improve.json", {"policy": policy, "seed": seed}
    if (out / "stages.json").exists() and (found := json.loads(facts.read_text())) != wanted:
        raise DataError(f"{out}: holds rounds of {found}, asked for {wanted}; choose another --out.")
    out.mkdir(parents=True, exist_ok=True)
    write_json(facts, wanted)


def _row(number: int, policy: Path, results: Path, journal: Journal) -> dict[str, Any]:
    """Gather what describes a round, over all controls."""
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
        "weights": found["policy_fingerprint"],
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
