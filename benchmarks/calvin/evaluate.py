"""`gr2 benchmark calvin`: measure a policy by CALVIN's official sequences, or by tasks and chains of our own."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from ...contracts import Chunking
from ...data_pipeline.files import write_json
from ...errors import ConfigError
from ...gr_model.act.opening import policy_fingerprint
from ..playtable.cameras import Renderer
from ..playtable.environment import CAMERAS
from ..playtable.instructions import Wording, evaluation_instructions
from ..playtable.scenes import scene as find_scene
from ..playtable.tasks import choose_tasks
from ..simulation.control import controller_fingerprint
from ..simulation.episodes import check_latency
from ..simulation.jobs import Job, Videos, choose_part, run_evaluation
from ..simulation.videos import write_sheet
from .results import provenance, published, summarize, table
from .suite import Backend, EvaluationConfig


def evaluate(
    *,
    policy: str = "pretrained",
    out: Path = Path("runs/calvin"),
    sequences: int = 1000,
    starts: int = 0,
    chains: int = 0,
    tasks: str = "demonstrated",
    scene: str = "D",
    calvin_root: Path | None = None,
    wording: Wording = "trained",
    control: Literal["wbc", "calvin", "both"] = "wbc",
    executed_steps: int | None = None,
    chunking: Chunking = "independent",
    latency: float = 0.0,
    max_steps: int = 360,
    image_size: int = 64,
    renderer: Renderer = "tiny",
    fast_drawing: bool = False,
    backend: Backend = "gr2",
    videos: Videos = "none",
    shard: str = "1/1",
    num_workers: int = 2,
    seed: int = 100,
) -> dict[str, Any]:
    """Measure a policy by CALVIN's rules in PlayTable; run again to resume where it stopped.

    Args:
        policy: "pretrained" (shipped), a folder with a model, "scripted", "http://host:port" of `gr2 serve`, or
            "file.py:name" or "package.module:name", which makes a policy of your own (docs/calvin.md).
        out: folder for `episodes.jsonl`, `results.json` and the videos.
        sequences: how many of the 1000 official sequences, from the first (34 tasks, scene D).
        starts: random starts for each of `tasks`.
        chains: chains of five demonstrated tasks of different families.
        tasks: for `starts`: "demonstrated" (17), "all" (34), or names separated by commas.
        scene: A, B, C or D.
        calvin_root: a clone of mees/calvin: its assets and validation instructions instead of ours.
        wording: of our instructions: the one that demonstrations have most often, or one that they never have.
        control: our whole-body controller, CALVIN's own control, or both from the same starts.
        executed_steps: control steps of a chunk that are carried out, if not those that the policy wants (a model: 5).
        chunking: whether a model's chunk continues the running one, averaged (ensemble) or sampled so (inpaint).
        latency: how long after its observation a chunk arrives [s]; the policy is not asked again before.
        max_steps: time limit for each task in control steps (CALVIN: 360).
        image_size: image side [px] of both cameras, 0 for CALVIN's own 200 (static) and 84 (gripper).
        renderer: tiny (CPU, the same everywhere) or egl (OpenGL, as CALVIN's data were drawn).
        fast_drawing: with `calvin_root`, a light arm without shadows: several times as fast, other images.
        backend: our simulator, or an installed calvin_env (CALVIN's own control only).
        videos: which episodes to keep as videos of what the policy saw, with a sheet of all.
        shard: part i of n of the episodes, as in 2/4, for several machines; put their episodes.jsonl together.
        num_workers: processes, one simulator each.
        seed: seed of the random starts.

    Raises:
        ConfigError: an impossible value.
        DataError: `out` holds results of another configuration.
        PolicyError: the policy was trained on another robot.
    """
    names = choose_tasks(tasks)
    steps = 1 if executed_steps is None else executed_steps
    _check_numbers((max_steps, num_workers, steps), (starts, chains, sequences))
    _check_episodes(scene, sequences, calvin_root, wording)
    config = EvaluationConfig(
        policy=policy, weights=policy_fingerprint(policy), scene=scene, calvin_root=str(calvin_root or ""),
        executed_steps=executed_steps or 0, max_steps=max_steps, image_px=image_size, renderer=renderer,
        fast_drawing=fast_drawing, backend=backend, seed=seed, latency=check_latency(latency), chunking=chunking,
        wording=wording, controller=controller_fingerprint(),
    )  # fmt: skip
    _check_backend(backend, control)
    controls = ["wbc", "calvin"] if control == "both" else [control]
    kinds = [("sequence", sequences), ("chain", chains), *((name, starts) for name in names)]
    every = [Job(control=c, kind=kind, index=i) for c in controls for kind, number in kinds for i in range(number)]
    jobs = choose_part(every, shard)
    records = run_evaluation(config, jobs, file=out / "episodes.jsonl", num_workers=num_workers, videos=videos)
    results = _results(config, {job.key: records[job.key] for job in jobs}, controls)
    results |= {"shard": shard} | ({"published": published()} if sequences else {})
    write_json(out / "results.json", results)
    print(f"latency {latency:g} s, chunking {chunking}", *table(results["controls"]), sep="\n")
    if videos != "none" and (sheet := write_sheet(out / "videos")):
        print(sheet)
    return results


def _results(
    config: EvaluationConfig, records: Mapping[str, Mapping[str, Any]], controls: Sequence[str]
) -> dict[str, Any]:
    """Return what was measured, and under which circumstances."""
    steps = next(iter(records.values()))["executed_steps"]
    results = {"controls": summarize(records, controls), "executed_steps": steps}
    return results | _circumstances(config) | provenance(config.weights)


def _circumstances(config: EvaluationConfig) -> dict[str, Any]:
    """Return under which circumstances a result came about."""
    official, light = config.backend == "official", bool(config.calvin_root) and config.fast_drawing
    renderer = {"tiny": "TinyRenderer", "egl": "OpenGL through EGL"}[config.renderer]
    return {
        "policy": config.policy,
        "latency_s": config.latency,
        "chunking": config.chunking,
        "max_steps": config.max_steps,
        "scene": config.scene,
        "backend": config.backend,
        "assets": "CALVIN's" if config.calvin_root or official else "built-in",
        "instructions": "CALVIN's validation annotations"
        if config.calvin_root
        else f"our own, {config.wording} wording",
        "renderer": renderer + (", light arm without shadows" if light else ""),
        "controller_fingerprint": config.controller,
        "renderer_fingerprint": _draw_fingerprint(config),
        "seed": config.seed,
    }


def _draw_fingerprint(config: EvaluationConfig) -> str:
    """Return the beginning of the SHA-256 of both cameras' images of an untouched world."""
    env = config.open_world()
    try:
        env.reset()
        return hashlib.sha256(b"".join(env.draw(name).tobytes() for name in CAMERAS)).hexdigest()[:16]
    finally:
        env.close()


def _check_episodes(scene: str, sequences: int, calvin_root: Path | None, wording: Wording) -> None:
    """Refuse here rather than in a worker."""
    find_scene(scene)
    evaluation_instructions(calvin_root, wording)
    if sequences and scene != "D":
        raise ConfigError(f"--sequences: they fit scene D alone, got --scene {scene}; add --sequences 0.")


def _check_backend(backend: Backend, control: str) -> None:
    if backend == "official" and control != "calvin":
        raise ConfigError(f"--backend official: expected --control calvin, got {control}; add it.")


def _check_numbers(positive: Sequence[int], episodes: Sequence[int]) -> None:
    if min(positive) < 1 or min(episodes) < 0 or sum(episodes) == 0 or episodes[-1] > 1000:
        raise ConfigError(
            "evaluate: expected up to 1000 sequences, starts and chains of 0 or more, not all 0, and at least one step "
            "and worker; fix the numbers."
        )
