"""Measure a policy in PlayTable: success per task from random starts, and chains of five tasks by CALVIN's rules.

Results are appended episode by episode, so a stopped evaluation goes on where it was and ends with the same result.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from tqdm import tqdm

from ...data_pipeline.executors import worker_pool
from ...data_pipeline.files import write_bytes, write_json
from ...gr_model.errors import ConfigError, DataError
from ..control import ControlMode, LimitCounter, WbcControl, make_control
from ..playtable.cameras import CameraConfig
from ..playtable.environment import PlayTable
from ..playtable.scenes import scene
from ..playtable.tasks import TASKS, task
from ..statistics import bootstrap_mean, wilson_interval
from .episodes import as_record, chain_start, run_chain, run_task, task_start


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """What is measured; equal configurations and policies give equal results.

    executed_steps: control steps of each chunk that are carried out; max_steps: time limit a task [1/30 s].
    """

    policy: str
    scene: str
    executed_steps: int
    max_steps: int
    image_px: int
    seed: int


@dataclass(frozen=True, kw_only=True)
class Job:
    """One test episode: a task from start number `index`, or (`task` None) chain number `index`."""

    control: ControlMode
    task: str | None
    index: int

    @property
    def key(self) -> str:
        """Return the name under which the result is kept."""
        return f"{self.control}/{self.task or 'chain'}/{self.index}"


def _run_jobs(config: EvaluationConfig, jobs: Sequence[Job]) -> list[dict[str, Any]]:
    """Run test episodes in this process."""
    import torch

    from ...gr_model.policy_loading import load_policy

    torch.set_num_threads(1)
    camera = CameraConfig(static_px=config.image_px, gripper_px=config.image_px)
    env = PlayTable(config.scene, camera=camera, render_mode=None)
    policy = load_policy(config.policy)
    records = []
    try:
        for job in jobs:
            control = make_control(job.control, env)
            steps, time_limit = config.executed_steps, config.max_steps
            if job.task:
                task_start(env, job.task, config.seed, job.index)
                control.reset()
                results = [run_task(env, policy, control, job.task, executed_steps=steps, max_steps=time_limit)]
                chain = [job.task]
            else:
                _, chain = chain_start(env, config.seed, job.index)
                control.reset()
                results = run_chain(env, policy, control, chain, executed_steps=steps, max_steps=time_limit)
            record: dict[str, Any] = {"key": job.key, "chain": chain, "results": as_record(results)}
            if isinstance(control, WbcControl):
                record["commanded"] = control.commanded.as_dict()
                record["measured"] = control.measured.as_dict()
                record["counters"] = dict(control.controller.counters)
            records.append(record)
    finally:
        env.close()
    return records


def _finished(file: Path, config: EvaluationConfig) -> dict[str, dict[str, Any]]:
    """Read the results so far; the first line holds the configuration."""
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps({"config": asdict(config)}) + "\n")
        return {}
    lines = file.read_text().splitlines()
    records = {}
    for number, line in enumerate(lines):
        try:
            value = json.loads(line)
        except json.JSONDecodeError:
            if number == len(lines) - 1:
                break
            raise DataError(f"{file}: line {number + 1} is no JSON; remove the file to begin again.") from None
        if number == 0:
            if value.get("config") != asdict(config):
                raise DataError(
                    f"{file}: holds results of {value.get('config')}, asked for {asdict(config)}; choose another --out."
                )
        else:
            records[value["key"]] = value
    whole = json.dumps({"config": asdict(config)}) + "\n" + "".join(json.dumps(r) + "\n" for r in records.values())
    write_bytes(file, whole.encode())
    return records


def run_evaluation(
    config: EvaluationConfig, jobs: Sequence[Job], *, file: Path, workers: int, description: str = "act"
) -> dict[str, dict[str, Any]]:
    """Run the jobs that `file` does not hold yet, in worker processes, and return all records by key."""
    records = _finished(file, config)
    waiting = [job for job in jobs if job.key not in records]
    size = max(1, min(6, len(waiting) // (2 * workers)))
    batches = [waiting[i : i + size] for i in range(0, len(waiting), size)]
    with (
        tqdm(total=len(jobs), initial=len(jobs) - len(waiting), desc=description, unit="episode") as bar,
        file.open("a") as log,
        worker_pool(workers) as pool,
    ):
        futures = {pool.submit(_run_jobs, config, batch): len(batch) for batch in batches}
        for future in as_completed(futures):
            for record in future.result():
                records[record["key"]] = record
                log.write(json.dumps(record) + "\n")
            log.flush()
            bar.update(futures[future])
    return records


def summarize(records: Mapping[str, Mapping[str, Any]], controls: Sequence[str]) -> dict[str, Any]:
    """Gather records as `act/results.json` of a run holds them: per control tasks, chains, limits."""
    summary: dict[str, Any] = {}
    for control in controls:
        mine = {k: records[k] for k in sorted(records, key=_order) if k.startswith(f"{control}/")}
        tasks: dict[str, dict[str, Any]] = {}
        chains: list[int] = []
        for key, record in mine.items():
            results = record["results"]
            if "/chain/" in key:
                chains.append(sum(r["success"] for r in results))
                continue
            row = tasks.setdefault(record["chain"][0], {"success": 0, "total": 0, "steps": []})
            row["success"] += int(results[0]["success"])
            row["total"] += 1
            row["steps"].append(results[0]["steps"])
        summary[control] = {"tasks": tasks, "chains": chains}
        if control == "wbc":
            summary[control]["limits"] = _merge_limits([r["commanded"] for r in mine.values()])
            summary[control]["limits_measured"] = _merge_limits([r["measured"] for r in mine.values()])
    return summary


def _order(key: str) -> tuple[str, int]:
    name, _, index = key.rpartition("/")
    return name, int(index)


def _merge_limits(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    empty = LimitCounter().as_dict()
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
            success, total = (
                sum(t["success"] for t in tasks.values()),
                sum(t["total"] for t in tasks.values()),
            )
            rate = wilson_interval(success, total)
            interval = f"[{rate.low:.1%}, {rate.high:.1%}]"
            yield f"{control}: {success}/{total} = {rate.value:.1%} {interval}, {len(tasks)} tasks"
            for name in sorted(tasks):
                yield f"  {name:28s} {tasks[name]['success']:3d}/{tasks[name]['total']}"
        if chains := result["chains"]:
            mean = bootstrap_mean(chains)
            rates = " ".join(f"{sum(c >= i for c in chains) / len(chains):.3f}" for i in range(1, 6))
            interval = f"[{mean.low:.2f}, {mean.high:.2f}]"
            yield f"{control}: average length {mean.value:.2f} {interval}, {len(chains)} chains; SR1..5 {rates}"
        if "limits" in result:
            yield f"{control}: commanded {result['limits']}; measured {result['limits_measured']}"


def evaluate(
    *,
    policy: str = "pretrained",
    out: Path = Path("runs/calvin"),
    scene_name: str = "D",
    control: Literal["wbc", "calvin", "both"] = "wbc",
    tasks: str = "all",
    starts: int = 10,
    chains: int = 0,
    executed_steps: int = 5,
    max_steps: int = 360,
    image_px: int = 64,
    workers: int = 2,
    seed: int = 100,
) -> dict[str, Any]:
    """Measure a policy in our PlayTable simulator (built-in assets); run again to go on where it stopped.

    Args:
        policy: "pretrained" (shipped) or a folder with a released model.
        out: folder for `episodes.jsonl` and `results.json`.
        scene_name: A, B, C or D.
        control: our whole-body controller, CALVIN's own control, or both from the same starts.
        tasks: comma-separated task names, or "all" 17.
        starts: random starts for each task.
        chains: chains of five tasks of different families, judged by CALVIN's rules.
        executed_steps: control steps of each chunk carried out before the policy is asked again.
        max_steps: time limit for each task in control steps (CALVIN: 360).
        image_px: picture side [px] of both cameras.
        workers: processes, one simulator each.
        seed: seed of the starts.

    Raises:
        ConfigError: an impossible value.
        DataError: `out` holds results of another configuration.
    """
    scene(scene_name)
    names = list(TASKS) if tasks == "all" else [task(name.strip()).name for name in tasks.split(",")]
    if executed_steps < 1 or max_steps < 1 or workers < 1 or starts < 0 or chains < 0 or starts + chains == 0:
        raise ConfigError("evaluate: expected at least one start or chain, step and worker; mend the numbers.")
    config = EvaluationConfig(
        policy=str(policy), scene=scene_name, executed_steps=executed_steps, max_steps=max_steps,
        image_px=image_px, seed=seed,
    )  # fmt: skip
    controls: list[ControlMode] = ["wbc", "calvin"] if control == "both" else [control]
    jobs = [Job(control=c, task=None, index=i) for c in controls for i in range(chains)]
    jobs += [Job(control=c, task=name, index=i) for c in controls for i in range(starts) for name in names]
    records = run_evaluation(config, jobs, file=out / "episodes.jsonl", workers=workers)
    wanted = {job.key for job in jobs}
    summary = summarize({k: r for k, r in records.items() if k in wanted}, controls)
    results = {
        "controls": summary,
        "executed_steps": executed_steps,
        "max_steps": max_steps,
        "scene": scene_name,
        "seed": seed,
        "policy": str(policy),
    }
    write_json(out / "results.json", results)
    for line in table(summary):
        print(line, file=sys.stdout)
    return results
