"""Measure a policy: CALVIN's official sequences, or tasks and chains of our own, in PlayTable.

Results are appended episode by episode, so a stopped evaluation goes on where it was and ends with the same result.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from concurrent.futures import as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from tqdm import tqdm

from ...data_pipeline.executors import worker_pool
from ...data_pipeline.files import write_bytes, write_json
from ...errors import ConfigError, DataError
from ..playtable.cameras import CALVIN_PX, CameraConfig, Renderer
from ..playtable.environment import CAMERAS, CONTROL_HZ, PlayTable
from ..playtable.instructions import evaluation_sentences
from ..playtable.scenes import scene
from ..playtable.tasks import choose_tasks
from ..policies.opening import open_policy
from ..policies.scripted import ScriptedPolicy
from ..simulation.control import ControlMode, WbcControl, make_control
from ..simulation.world import World
from .episodes import as_record, chain_start, run_chain, sequence_start, task_start
from .films import Film, write_sheet
from .results import fingerprint, provenance, published, summarize, table
from .sequences import official_sequences

Films = Literal["none", "failed", "all"]
Backend = Literal["gr2", "official"]


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """What is measured; equal configurations and policies give equal results.

    weights: SHA-256 of the policy's weights, so that results of others are not gone on with; calvin_root: clone whose
    assets and sentences are used, or "" for ours; executed_steps: control steps of each chunk that are carried out;
    max_steps: time limit a task [1/30 s]; fast_drawing: light arm without shadows where CALVIN's files are used;
    backend: our simulator ("gr2") or the installed official one.
    """

    policy: str
    weights: str
    scene: str
    calvin_root: str
    executed_steps: int
    max_steps: int
    image_px: int
    renderer: Renderer
    fast_drawing: bool
    backend: str
    seed: int


@dataclass(frozen=True, kw_only=True)
class Job:
    """One test episode: official sequence or chain of our own number `index`, or a task from start number `index`."""

    control: ControlMode
    kind: str
    index: int

    @property
    def key(self) -> str:
        """Return the name under which the result is kept."""
        return f"{self.control}/{self.kind}/{self.index}"


def _run_jobs(config: EvaluationConfig, jobs: Sequence[Job], films: Films, folder: Path) -> list[dict[str, Any]]:
    """Run test episodes in this process."""
    import torch

    from ...gr_model.act.remote import RemotePolicy

    torch.set_num_threads(1)
    env = _open_world(config)
    instructions = evaluation_sentences(Path(config.calvin_root) if config.calvin_root else None)
    policy = open_policy(config.policy, env, executed_steps=config.executed_steps)
    records = []
    try:
        for job in jobs:
            control = make_control(job.control, env)
            if job.kind == "sequence":
                sequence = official_sequences()[job.index]
                sequence_start(env, sequence)
                chain = list(sequence.tasks)
            elif job.kind == "chain":
                _, chain = chain_start(env, config.seed, job.index)
            else:
                task_start(env, job.kind, config.seed, job.index)
                chain = [job.kind]
            control.reset()
            film = Film() if films != "none" else None
            results = run_chain(
                env, policy, control, chain, executed_steps=config.executed_steps, max_steps=config.max_steps,
                instructions=instructions, film=film,
            )  # fmt: skip
            if film is not None and (films == "all" or not results[-1].success):
                film.write(folder / f"{job.key.replace('/', '-')}.mp4", CONTROL_HZ / config.executed_steps)
            record: dict[str, Any] = {"key": job.key, "chain": chain, "results": as_record(results)}
            if isinstance(control, WbcControl):
                record["commanded"] = control.commanded.as_dict()
                record["measured"] = control.measured.as_dict()
                record["counters"] = dict(control.controller.counters)
            records.append(record)
    finally:
        if isinstance(policy, ScriptedPolicy | RemotePolicy):
            policy.close()
        env.close()
    return records


def _open_world(config: EvaluationConfig) -> World:
    static_px, gripper_px = (config.image_px, config.image_px) if config.image_px else CALVIN_PX
    camera = CameraConfig(
        static_px=static_px, gripper_px=gripper_px, fast=config.fast_drawing, renderer=config.renderer
    )
    if config.backend == "gr2":
        root = Path(config.calvin_root) if config.calvin_root else None
        return PlayTable(config.scene, camera=camera, calvin_root=root, render_mode=None)
    from .official import OfficialTable

    return OfficialTable(config.scene, camera=camera)


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
    config: EvaluationConfig,
    jobs: Sequence[Job],
    *,
    file: Path,
    workers: int,
    films: Films = "none",
    description: str = "act",
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
        folder = file.parent / "films"
        futures = {pool.submit(_run_jobs, config, batch, films, folder): len(batch) for batch in batches}
        for future in as_completed(futures):
            for record in future.result():
                records[record["key"]] = record
                log.write(json.dumps(record) + "\n")
            log.flush()
            bar.update(futures[future])
    return records


def evaluate(
    *,
    policy: str = "pretrained",
    out: Path = Path("runs/calvin"),
    sequences: int = 1000,
    starts: int = 0,
    chains: int = 0,
    tasks: str = "demonstrated",
    scene_name: str = "D",
    calvin_root: Path | None = None,
    control: Literal["wbc", "calvin", "both"] = "wbc",
    executed_steps: int = 5,
    max_steps: int = 360,
    image_px: int = 64,
    renderer: Renderer = "tiny",
    fast_drawing: bool = False,
    backend: Backend = "gr2",
    films: Films = "none",
    shard: str = "1/1",
    workers: int = 2,
    seed: int = 100,
) -> dict[str, Any]:
    """Measure a policy by CALVIN's rules in PlayTable; run again to go on where it stopped.

    Args:
        policy: "pretrained" (shipped), a folder with a model, "scripted", "http://host:port" of `gr2 serve`, or
            "file.py:name" or "package.module:name", which makes a policy of your own (docs/calvin.md).
        out: folder for `episodes.jsonl`, `results.json` and the films.
        sequences: how many of the 1000 official sequences, from the first (34 tasks, scene D).
        starts: random starts for each of `tasks`.
        chains: chains of five demonstrated tasks of different families.
        tasks: for `starts`: "demonstrated" (17), "all" (34), or names separated by commas.
        scene_name: A, B, C or D.
        calvin_root: a clone of mees/calvin: its assets and validation sentences instead of ours.
        control: our whole-body controller, CALVIN's own control, or both from the same starts.
        executed_steps: control steps of each chunk carried out before the policy is asked again.
        max_steps: time limit for each task in control steps (CALVIN: 360).
        image_px: picture side [px] of both cameras, 0 for CALVIN's own 200 (static) and 84 (gripper).
        renderer: tiny (CPU, the same everywhere) or egl (OpenGL, as CALVIN's data were drawn).
        fast_drawing: with `calvin_root`, a light arm without shadows: several times as fast, other pictures.
        backend: our simulator, or an installed calvin_env (CALVIN's own control only).
        films: which episodes to keep as videos of what the policy saw, with a sheet of all.
        shard: part i of n of the episodes, as in 2/4, for several machines; put their episodes.jsonl together.
        workers: processes, one simulator each.
        seed: seed of the random starts.

    Raises:
        ConfigError: an impossible value.
        DataError: `out` holds results of another configuration.
    """
    scene(scene_name)
    names = choose_tasks(tasks)
    _check_numbers((executed_steps, max_steps, workers), (starts, chains, sequences))
    if sequences and scene_name != "D":
        raise ConfigError(f"--sequences: they fit scene D alone, got --scene_name {scene_name}; add --sequences 0.")
    config = EvaluationConfig(
        policy=policy, weights=fingerprint(policy), scene=scene_name, calvin_root=str(calvin_root or ""),
        executed_steps=executed_steps, max_steps=max_steps, image_px=image_px, renderer=renderer,
        fast_drawing=fast_drawing, backend=backend, seed=seed,
    )  # fmt: skip
    if backend == "official" and control != "calvin":
        raise ConfigError(f"--backend official: expected --control calvin, got {control}; add it.")
    controls: list[ControlMode] = ["wbc", "calvin"] if control == "both" else [control]
    kinds = [("sequence", sequences), ("chain", chains), *((name, starts) for name in names)]
    every = [Job(control=c, kind=kind, index=i) for c in controls for kind, number in kinds for i in range(number)]
    jobs = choose_part(every, shard)
    records = run_evaluation(config, jobs, file=out / "episodes.jsonl", workers=workers, films=films)
    wanted = {job.key for job in jobs}
    summary = summarize({k: r for k, r in records.items() if k in wanted}, controls)
    results = {"controls": summary, "shard": shard} | _circumstances(config) | provenance(policy)
    if sequences:
        results["published"] = published()
    write_json(out / "results.json", results)
    print(*table(summary), sep="\n")
    if films != "none" and (sheet := write_sheet(out / "films")):
        print(sheet)
    return results


def _circumstances(config: EvaluationConfig) -> dict[str, Any]:
    """Say under which circumstances a result came about."""
    official, light = config.backend == "official", bool(config.calvin_root) and config.fast_drawing
    renderer = {"tiny": "TinyRenderer", "egl": "OpenGL through EGL"}[config.renderer]
    return {
        "policy": config.policy,
        "executed_steps": config.executed_steps,
        "max_steps": config.max_steps,
        "scene": config.scene,
        "backend": config.backend,
        "assets": "CALVIN's" if config.calvin_root or official else "built-in",
        "instructions": "CALVIN's validation annotations" if config.calvin_root else "our own wording",
        "renderer": renderer + (", light arm without shadows" if light else ""),
        "renderer_fingerprint": _draw_fingerprint(config),
        "seed": config.seed,
    }


def _draw_fingerprint(config: EvaluationConfig) -> str:
    """Return the beginning of the SHA-256 of both cameras' pictures of an untouched world."""
    env = _open_world(config)
    try:
        env.reset()
        return hashlib.sha256(b"".join(env.draw(name).tobytes() for name in CAMERAS)).hexdigest()[:16]
    finally:
        env.close()


def _check_numbers(positive: Sequence[int], episodes: Sequence[int]) -> None:
    if min(positive) < 1 or min(episodes) < 0 or sum(episodes) == 0 or episodes[-1] > 1000:
        raise ConfigError(
            "evaluate: expected up to 1000 sequences, starts and chains of 0 or more, not all 0, and at least one step "
            "and worker; mend the numbers."
        )


def choose_part(jobs: list[Job], shard: str) -> list[Job]:
    """Return every n-th job from the i-th on, for a shard "i/n".

    Raises:
        ConfigError: no such part.
    """
    part, slash, parts = shard.partition("/")
    if not (slash and part.isdigit() and parts.isdigit() and 1 <= int(part) <= int(parts)):
        raise ConfigError(f"--shard: expected i/n with 1 <= i <= n, as in 2/4, got {shard!r}.")
    return jobs[int(part) - 1 :: int(parts)]
