"""`gr2 benchmark metaworld`: measure a policy on Meta-World's tasks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ...contracts import Chunking
from ...data_pipeline.files import write_json
from ...errors import ConfigError
from ...gr_model.act.opening import SCRIPTED, policy_fingerprint
from ..metrics.statistics import wilson_interval
from ..simulation.episodes import check_latency
from ..simulation.jobs import Job, Videos, choose_part, run_evaluation
from ..simulation.results import provenance, rate_line, tally, task_lines
from ..simulation.training_tasks import training_lines, training_of
from ..simulation.videos import write_sheet
from .instructions import Wording, choose_tasks, evaluation_instruction, held_out_instruction, instructions_of
from .package import load
from .simulator import MAX_STEPS
from .suite import EvaluationConfig

CONTROL = "actions"
"""How the records call what follows a policy: Meta-World's own actions."""


def evaluate(
    *,
    policy: str,
    out: Path = Path("runs/metaworld"),
    tasks: str = "mt10",
    starts: int = 10,
    wording: Wording = "trained",
    executed_steps: int | None = None,
    chunking: Chunking = "independent",
    latency: float = 0.0,
    max_steps: int = MAX_STEPS,
    image_size: int = 64,
    videos: Videos = "none",
    shard: str = "1/1",
    num_workers: int = 2,
    seed: int = 100,
) -> dict[str, Any]:
    """Measure a policy on Meta-World's tasks; run again to resume where it stopped.

    Args:
        policy: a folder with a model, "scripted" (Meta-World's experts), a server as "openpi://host:port"
            (docs/serving.md), or "file.py:name" or "package.module:name", yours (docs/metaworld.md).
        out: folder for `episodes.jsonl`, `results.json` and the videos.
        tasks: "mt10", "mt50", or names separated by commas.
        starts: episodes of each task, places and goals sampled anew.
        wording: of our instructions: the one that demonstrations have most often, or one that they never have.
        executed_steps: control steps of a chunk that are carried out, if not those that the policy wants (a model: 5).
        chunking: whether a model's chunk continues the running one, averaged (ensemble) or sampled so (inpaint).
        latency: how long after its observation a chunk arrives [s]; the policy is not asked again before.
        max_steps: time limit of an episode in control steps of 1/80 s; Meta-World's is 500.
        image_size: image side [px] of both cameras.
        videos: which episodes to keep as videos of what the policy saw, with a sheet of all.
        shard: part i of n of the episodes, as in 2/4, for several machines; put their episodes.jsonl together.
        num_workers: processes, one simulator each.
        seed: seed of the starts.

    Raises:
        ConfigError: an impossible value.
        DataError: `out` holds results of another configuration.
        EnvironmentMissing: Meta-World is not installed.
        PolicyError: the policy was trained on another robot.
    """
    _check_numbers(starts, max_steps, num_workers, 1 if executed_steps is None else executed_steps)
    if policy == SCRIPTED and (executed_steps not in (None, 1) or latency):
        raise ConfigError(
            "--policy scripted: expected experts that are asked at every step and answer at once, got "
            f"--executed-steps {executed_steps} --latency {latency:g}; leave them out."
        )
    names = choose_tasks(tasks)
    load()  # states what is missing here rather than in a worker
    config = EvaluationConfig(
        policy=policy, weights=policy_fingerprint(policy), executed_steps=executed_steps or 0, image_px=image_size,
        seed=seed, max_steps=max_steps, latency=check_latency(latency), chunking=chunking, wording=wording,
    )  # fmt: skip
    training = _training(policy, names, wording)
    all_jobs = [Job(control=CONTROL, kind=name, index=index) for name in names for index in range(starts)]
    jobs = choose_part(all_jobs, shard)
    records = run_evaluation(config, jobs, file=out / "episodes.jsonl", num_workers=num_workers, videos=videos)
    results = _results(config, [records[job.key] for job in jobs])
    results |= {"shard": shard, "training": training}
    write_json(out / "results.json", results)
    _show(results, out / "videos" if videos != "none" else None)
    return results


def _training(policy: str, names: Sequence[str], wording: Wording) -> dict[str, Any] | None:
    """Say on which of the tasks a policy was trained, and return it."""
    wordings = {name: (*instructions_of(name), held_out_instruction(name)) for name in names}
    training = training_of(policy, wordings, {name: evaluation_instruction(name, wording) for name in names})
    print(*training_lines(training), sep="\n", end="\n" if training else "")
    return training


def _results(config: EvaluationConfig, records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return what was measured, and under which circumstances."""
    tasks = tally(result for record in records for result in record["results"])
    rate = wilson_interval(sum(t["success"] for t in tasks.values()), sum(t["total"] for t in tasks.values()))
    return {
        "controls": {CONTROL: {"tasks": tasks, "success_rate": rate.value, "interval_95": [rate.low, rate.high]}},
        "executed_steps": records[0]["executed_steps"],
        "policy": config.policy,
        "latency_s": config.latency,
        "chunking": config.chunking,
        "max_steps": config.max_steps,
        "image_px": config.image_px,
        "instructions": f"our own, {config.wording} wording",
        "renderer": "MuJoCo without shadows, reflections and multisampling",
        "seed": config.seed,
    } | provenance(config.weights, packages=("metaworld", "mujoco"))


def _show(results: Mapping[str, Any], videos: Path | None) -> None:
    """Print the table, and the path of the sheet of videos."""
    print(f"latency {results['latency_s']:g} s, chunking {results['chunking']}")
    for control, result in results["controls"].items():
        print(rate_line(control, result["tasks"]), *task_lines(result["tasks"]), sep="\n")
    if videos is not None and (sheet := write_sheet(videos)):
        print(sheet)


def _check_numbers(starts: int, max_steps: int, num_workers: int, executed_steps: int) -> None:
    if min(starts, max_steps, num_workers, executed_steps) < 1 or max_steps > MAX_STEPS:
        raise ConfigError(
            f"evaluate: expected at least one start, step and worker and at most {MAX_STEPS} steps, as Meta-World has "
            "them; fix the numbers."
        )
