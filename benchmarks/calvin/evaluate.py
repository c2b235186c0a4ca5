"""`gr2 benchmark calvin`: measure a policy by CALVIN's official sequences, or by tasks and chains of our own."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from ...contracts import Chunking
from ...data_pipeline.files import write_json
from ...errors import ConfigError
from ...gr_model.act.opening import is_of_user, policy_fingerprint
from ..playtable.cameras import Renderer
from ..playtable.environment import CAMERAS
from ..playtable.instructions import Wording, evaluation_instructions
from ..playtable.scenes import scene as find_scene
from ..playtable.tasks import choose_tasks
from ..simulation.control import controller_fingerprint
from ..simulation.episodes import check_latency
from ..simulation.jobs import Job, Videos, choose_part, run_evaluation
from ..simulation.results import provenance
from ..simulation.training_tasks import training_lines
from ..simulation.videos import write_sheet
from .interface import Interface
from .results import published, summarize, table
from .sequences import official_sequences
from .suite import Backend, EvaluationConfig
from .training_tasks import training_of

Protocol = Literal["gr2", "official"]
"""What is chosen freely, or CALVIN's own settings."""


def evaluate(
    *,
    policy: str = "pretrained",
    interface: Interface = "gr2",
    protocol: Protocol = "gr2",
    out: Path = Path("runs/calvin"),
    sequences: int = 1000,
    starts: int = 0,
    chains: int = 0,
    tasks: str = "demonstrated",
    scene: str = "D",
    calvin_root: Path | None = None,
    wording: Wording = "trained",
    control: Literal["wbc", "calvin", "both"] | None = None,
    executed_steps: int | None = None,
    chunking: Chunking = "independent",
    latency: float = 0.0,
    max_steps: int = 360,
    image_size: int | None = None,
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
        policy: "pretrained" (shipped), a folder with a model, "scripted", a server as "openpi://host:port"
            (docs/serving.md), or "file.py:name" or "package.module:name", yours (docs/calvin.md).
        interface: of a policy of your own: act(observation), or CALVIN's step(obs, goal) of a `CustomModel`.
        protocol: official sets CALVIN's control, image sizes, assets and instructions (give `calvin_root`).
        out: folder for `episodes.jsonl`, `results.json` and the videos.
        sequences: how many of the 1000 official sequences, from the first (34 tasks, scene D).
        starts: random starts for each of `tasks`.
        chains: chains of five demonstrated tasks of different families.
        tasks: for `starts`: "demonstrated" (17), "all" (34), or names separated by commas.
        scene: A, B, C or D.
        calvin_root: a clone of mees/calvin: its assets and validation instructions instead of ours.
        wording: of our instructions: the one that demonstrations have most often, or one that they never have.
        control: our whole-body controller (if not given), CALVIN's own (its interface, protocol official), or both.
        executed_steps: control steps of a chunk that are carried out, if not those that the policy wants (a model: 5).
        chunking: whether a model's chunk continues the running one, averaged (ensemble) or sampled so (inpaint).
        latency: how long after its observation a chunk arrives [s]; the policy is not asked again before.
        max_steps: time limit for each task in control steps (CALVIN: 360).
        image_size: image side [px] of both cameras (64), 0 for CALVIN's 200 and 84 (its interface, protocol official).
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
    mode, image_px = _resolved(protocol, interface, control, image_size)
    _check_protocol(protocol, calvin_root, backend, max_steps, wording)
    _check_interface(interface, policy, executed_steps, latency)
    _check_numbers((max_steps, num_workers, executed_steps), (starts, chains, sequences))
    _check_episodes(scene, sequences, calvin_root, wording)
    config = EvaluationConfig(
        policy=policy, weights=policy_fingerprint(policy), scene=scene, calvin_root=str(calvin_root or ""),
        executed_steps=executed_steps or 0, max_steps=max_steps, image_px=image_px, renderer=renderer,
        fast_drawing=fast_drawing, backend=backend, seed=seed, latency=check_latency(latency), chunking=chunking,
        wording=wording, controller=controller_fingerprint(), interface=interface,
    )  # fmt: skip
    controls, training = _controls(backend, mode), _training(policy, calvin_root, wording, sequences)
    jobs = choose_part(_jobs(controls, sequences, chains, starts, choose_tasks(tasks)), shard)
    records = run_evaluation(config, jobs, file=out / "episodes.jsonl", num_workers=num_workers, videos=videos)
    results = _results(config, {job.key: records[job.key] for job in jobs}, controls)
    results |= {"shard": shard, "training": training} | ({"published": published()} if sequences else {})
    write_json(out / "results.json", results)
    _show(results, out / "videos" if videos != "none" else None)
    return results


def _jobs(controls: Sequence[str], sequences: int, chains: int, starts: int, tasks: Sequence[str]) -> list[Job]:
    """Return all test episodes, control after control."""
    kinds = [("sequence", sequences), ("chain", chains), *((name, starts) for name in tasks)]
    return [Job(control=c, kind=kind, index=i) for c in controls for kind, number in kinds for i in range(number)]


def _show(results: Mapping[str, Any], videos: Path | None) -> None:
    """Print the table, and the path of the sheet of videos."""
    circumstances = f"latency {results['latency_s']:g} s, chunking {results['chunking']}"
    print(circumstances, *table(results["controls"]), sep="\n")
    if videos is not None and (sheet := write_sheet(videos)):
        print(sheet)


def _training(policy: str, calvin_root: Path | None, wording: Wording, sequences: int) -> dict[str, Any] | None:
    """Say on which of the tasks a policy was trained, and return it."""
    texts = evaluation_instructions(calvin_root, wording)
    training = training_of(policy, texts, official_sequences()[:sequences], calvin_root)
    print(*training_lines(training), sep="\n", end="\n" if training else "")
    return training


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
        "interface": config.interface,
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


def _resolved(protocol: Protocol, interface: Interface, control: str | None, image_size: int | None) -> tuple[str, int]:
    """Return control and image size, which the official protocol and CALVIN's interface decide."""
    if protocol == "gr2" and interface == "gr2":
        return control or "wbc", 64 if image_size is None else image_size
    why = "--protocol official" if protocol == "official" else "--interface calvin"
    if control not in (None, "calvin"):
        raise ConfigError(f"{why}: expected --control calvin, got {control}; leave --control out.")
    if protocol == "official" and image_size:
        raise ConfigError(f"{why}: expected CALVIN's image sizes (0), got {image_size}; leave --image-size out.")
    return "calvin", image_size or 0


def _check_protocol(
    protocol: Protocol, calvin_root: Path | None, backend: Backend, max_steps: int, wording: Wording
) -> None:
    """Refuse what would make another measurement of the official protocol."""
    if protocol != "official":
        return
    if calvin_root is None:
        more = ", for its instructions" if backend == "official" else ""
        raise ConfigError(
            f"--protocol official: expected --calvin-root, a clone of mees/calvin with its submodule{more}; "
            "git clone --recurse-submodules https://github.com/mees/calvin."
        )
    if max_steps != 360 or wording != "trained":
        raise ConfigError(
            "--protocol official: expected 360 steps a task and CALVIN's instructions; leave --max-steps and --wording "
            "out."
        )


def _check_interface(interface: Interface, policy: str, executed_steps: int | None, latency: float) -> None:
    if interface == "calvin" and (executed_steps not in (None, 1) or latency):
        raise ConfigError(
            "--interface calvin: expected a model that is asked at every step and answers at once, got "
            f"--executed-steps {executed_steps} --latency {latency:g}; leave them out."
        )
    if interface == "calvin" and not is_of_user(policy):
        raise ConfigError(f"--interface calvin: expected --policy file.py:CustomModel, got {policy}; fix one of them.")


def _controls(backend: Backend, control: str) -> list[str]:
    """Return the controls to measure under."""
    if backend == "official" and control != "calvin":
        raise ConfigError(f"--backend official: expected --control calvin, got {control}; add it.")
    return ["wbc", "calvin"] if control == "both" else [control]


def _check_numbers(positive: Sequence[int | None], episodes: Sequence[int]) -> None:
    if (
        any(number is not None and number < 1 for number in positive)
        or min(episodes) < 0
        or sum(episodes) == 0
        or episodes[-1] > 1000
    ):
        raise ConfigError(
            "evaluate: expected up to 1000 sequences, starts and chains of 0 or more, not all 0, and at least one step "
            "and worker; fix the numbers."
        )
