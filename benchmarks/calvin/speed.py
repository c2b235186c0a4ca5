"""How fast an evaluation runs here, and how fast CALVIN's own loop does, piece by piece and in whole, in one run."""

from __future__ import annotations

import contextlib
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from ...contracts import ActionTrajectory, Observation
from ...data_pipeline.files import write_json
from ...errors import ConfigError, EnvironmentMissing
from ..playtable.cameras import CALVIN_PX, CameraConfig, Renderer
from ..playtable.environment import CAMERAS, CONTROL_HZ, PlayTable
from ..playtable.tasks import ALL_TASKS
from ..playtable.world import World
from ..simulation.jobs import Job, run_evaluation
from .episodes import sequence_start
from .official import OfficialTable
from .sequences import official_sequences
from .suite import EvaluationConfig

_CHUNK, _MAX_STEPS = 10, 360
_PHYSICS_STEPS, _IMAGES = 300, 20


class Circling:
    """The fixed policy that both loops are timed with: chunks of ten poses around where the tool is."""

    def reset(self) -> None:
        """Nothing is remembered."""

    def close(self) -> None:
        """Nothing is held open."""

    def act(self, observation: Observation) -> ActionTrajectory:
        """Return ten poses on a small circle; what is seen does not matter."""
        angle = np.linspace(0.0, 2 * np.pi, _CHUNK)
        offsets = 0.01 * np.stack([np.sin(angle), 1 - np.cos(angle), 0 * angle], axis=1)
        return ActionTrajectory(
            positions=observation.tool_position + offsets,
            quaternions=np.repeat(observation.tool_quaternion[None], _CHUNK, axis=0),
            gripper=np.ones(_CHUNK),
            dt=1 / CONTROL_HZ,
            start_time=observation.time,
        )


def speed(
    *,
    calvin_root: Path | None = None,
    official: bool = False,
    sequences: int = 20,
    rounds: int = 3,
    num_workers: int = 2,
    json: Path | None = None,
) -> int:
    """Time physics, images and a whole evaluation beside CALVIN's loop, interleaved; print medians and ranges.

    CALVIN's loop is one process that draws both cameras at every control step. The policy is fixed and sends chunks
    of ten; ours draws when it is asked.

    Args:
        calvin_root: a clone of mees/calvin, for the official files; the built-in ones otherwise.
        official: run CALVIN's loop in the installed calvin_env; otherwise our simulator does its work, call by call.
        sequences: how many sequences ours evaluates in each round (CALVIN's loop does one).
        rounds: how often everything is timed.
        num_workers: processes of ours.
        json: file for the metrics; none is written where it is not given.

    Raises:
        ConfigError: a number below 1.
        EnvironmentMissing: `official` without calvin_env.
    """
    if min(sequences, rounds, num_workers) < 1:
        raise ConfigError("speed: expected at least one sequence, round and worker; fix the numbers.")
    with contextlib.ExitStack() as open_worlds:
        pieces = _pieces(calvin_root, open_worlds, official=official, sequences=sequences, num_workers=num_workers)
        metrics: dict[str, list[float]] = {name: [] for name in pieces}
        for _ in range(rounds):
            for name, work in pieces.items():
                metrics[name].append(work())
    print(f"{'':44}{'median':>9}{'range':>20}")
    for name, values in metrics.items():
        print(f"{name:44}{statistics.median(values):9.1f}{min(values):11.1f} to {max(values):.1f}")
    ratios = [ours / theirs for ours, theirs in zip(metrics[_OURS], metrics[_THEIRS], strict=True)]
    print(f"{'an evaluation, ours / CALVIN, each round':44}{', '.join(f'{ratio:.1f}' for ratio in ratios)}")
    if json is not None:
        write_json(json, {"metrics": metrics, "ratios": ratios, "official": official, "workers": num_workers})
    return 0


_THEIRS, _OURS = "CALVIN's loop [control steps/s]", "our evaluation [control steps/s]"


def _pieces(
    calvin_root: Path | None, open_worlds: contextlib.ExitStack, *, official: bool, sequences: int, num_workers: int
) -> dict[str, Callable[[], float]]:
    def table(*, fast: bool = False, renderer: Renderer = "tiny") -> PlayTable:
        camera = CameraConfig(fast=fast, renderer=renderer)
        env = PlayTable("D", camera=camera, calvin_root=calvin_root, render_mode=None)
        open_worlds.callback(env.close)
        return env

    theirs: World = (plain := table())
    pieces: dict[str, Callable[[], float]] = {"physics, ours [control steps/s]": lambda: _physics(plain)}
    if official:
        theirs, blind = OfficialTable("D"), OfficialTable("D", draws=False)
        open_worlds.callback(theirs.close)
        open_worlds.callback(blind.close)
        pieces["physics, official [control steps/s]"] = lambda: _physics(blind)
    pieces[f"images {CALVIN_PX[0]} + {CALVIN_PX[1]} px [pairs/s]"] = lambda: _images(plain)
    if calvin_root is not None:
        light = table(fast=True)
        pieces["images, light arm [pairs/s]"] = lambda: _images(light)
    try:
        egl = table(renderer="egl")
        pieces["images, EGL [pairs/s]"] = lambda: _images(egl)
    except EnvironmentMissing as error:
        print(error)
    pieces[_THEIRS] = lambda: _official_loop(theirs, draws=not official)
    pieces[_OURS] = lambda: _our_evaluation(calvin_root, sequences, num_workers)
    return pieces


def _per_second(number: int, work: Callable[[], object]) -> float:
    begin = time.perf_counter()
    for _ in range(number):
        work()
    return number / (time.perf_counter() - begin)


def _physics(env: World) -> float:
    env.reset()
    action = np.array([0.2, 0.0, 0.1, 0.0, 0.0, 0.0, 1.0])

    def step() -> None:
        action[:3] *= -1
        env.step(action)

    return _per_second(_PHYSICS_STEPS, step)


def _images(env: PlayTable) -> float:
    env.reset()
    return _per_second(_IMAGES, lambda: [env.draw(name) for name in CAMERAS])


def _official_loop(env: World, *, draws: bool) -> float:
    """Return the control steps per second of the first sequence in CALVIN's loop: one subtask, which fails.

    Args:
        draws: draw both cameras after each step; the official environment does so by itself.
    """
    policy, sequence = Circling(), official_sequences()[0]
    begin = time.perf_counter()
    sequence_start(env, sequence)
    task, start = ALL_TASKS[sequence.tasks[0]], env.world_state()
    for step in range(_MAX_STEPS):
        if step % _CHUNK == 0:
            chunk = policy.act(env.observe("", images=False))
        now = step % _CHUNK
        env.apply(chunk.positions[now], chunk.quaternions[now], chunk.gripper[now])
        for name in CAMERAS if draws else ():
            env.draw(name)
        task.done(start, env.world_state())
    return _MAX_STEPS / (time.perf_counter() - begin)


def _our_evaluation(calvin_root: Path | None, sequences: int, num_workers: int) -> float:
    """Return the control steps per second of the first sequences, with the start of the worker processes."""
    config = EvaluationConfig(
        policy=f"{__name__}:{Circling.__name__}", weights="", scene="D", calvin_root=str(calvin_root or ""),
        executed_steps=_CHUNK, max_steps=_MAX_STEPS, image_px=0, renderer="tiny", fast_drawing=False, backend="gr2",
        seed=0,
    )  # fmt: skip
    jobs = [Job(control="calvin", kind="sequence", index=index) for index in range(sequences)]
    begin = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        records = run_evaluation(config, jobs, file=Path(folder) / "episodes.jsonl", num_workers=num_workers)
    steps = sum(result["steps"] for record in records.values() for result in record["results"])
    return steps / (time.perf_counter() - begin)
