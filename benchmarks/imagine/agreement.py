"""Does the policy do what its model imagines? Imagined and executed futures of equal starts, and what failed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import rankdata
from tqdm import tqdm

from ...contracts import Array, Policy
from ...embodiment import TOOL_ARM
from ..calvin.episodes import start_state, task_start
from ..metrics.frames import masked_psnr, moving_mask
from ..metrics.statistics import bootstrap_mean, paired_difference
from ..playtable.cameras import CameraConfig, static_pixels
from ..playtable.environment import CAMERAS, PlayTable
from ..playtable.instructions import instructions_of
from ..playtable.scenes import ROBOT_BASE
from ..simulation.control import make_control
from ..simulation.episodes import run_task
from .imagination import Imagination

HORIZON = 8
"""Frames that are imagined."""

_BATCH = 64
"""Starts imagined in one forward pass."""

_MAX_STEPS = 180
"""Time limit of a task in control steps."""


@dataclass(frozen=True, kw_only=True)
class Execution:
    """What a policy did from a start: states `[f 16]` and images, camera -> uint8 `[f h w 3]`, a frame every stride."""

    instruction: str
    states: Array
    images: dict[str, Array]
    success: bool


def execute(
    actor: Policy, *, scene: str, tasks: Sequence[str], starts: int, image_size: int, stride: int, seed: int
) -> list[Execution]:
    """Let a policy act each task from random starts; keep the first frames of each."""
    camera = CameraConfig(static_px=image_size, gripper_px=image_size)
    env = PlayTable(scene, camera=camera, render_mode=None)
    try:
        numbered = [(name, i) for name in tasks for i in range(starts)]
        return [_execute(env, actor, name, seed, i, stride) for name, i in tqdm(numbered, desc="act", unit="episode")]
    finally:
        env.close()


def _execute(env: PlayTable, actor: Policy, task: str, seed: int, index: int, stride: int) -> Execution:
    start_state(env, task_start(env, task, seed, index))
    control = make_control("wbc", env)
    control.reset()
    instruction = instructions_of(task)[0]
    images: dict[str, list[Array]] = {name: [] for name in CAMERAS}
    states: list[Array] = []

    def watch(step: int) -> None:
        if step % stride == 0 and len(states) <= HORIZON:
            states.append(env.observe("", images=False).state_vector())
            for name, frames in images.items():
                frames.append(env.draw(name))

    result = run_task(env, actor, control, task, instruction=instruction, max_steps=_MAX_STEPS, watch=watch)
    return Execution(
        instruction=instruction,
        states=np.stack(states),
        images={name: np.stack(frames) for name, frames in images.items()},
        success=result.success,
    )


def measure_agreement(dream: Imagination, executions: Sequence[Execution]) -> dict[str, Any]:
    """Compare what a model imagines from the first frames with what its policy did.

    Returns:
        `path_mm`, `path_px`: mean distance of the imagined tool from the executed one, in the robot's base and in the
        static camera's image of 64 px, and `still_...`: of a tool that stays where it is; `moving_psnr` and
        `moving_psnr_copy` [dB]: of the pixels of the static camera that moved; each with an interval over episodes.
        `closer_mm`: still less imagined. `auc`: chance that an episode that succeeded agrees better (path in mm) than
        one that failed, with a bootstrap interval; None where all succeeded or failed.

    Raises:
        ShapeError: no episode has two frames.
    """
    long = [one for one in executions if len(one.states) > 1]
    rows: list[dict[str, float]] = []
    for begin in tqdm(range(0, len(long), _BATCH), desc="imagine", unit="batch"):
        batch = long[begin : begin + _BATCH]
        first = {name: np.stack([one.images[name][0] for one in batch]) for name in CAMERAS}
        states = np.stack([one.states[0] for one in batch])
        futures = dream.futures(first, [one.instruction for one in batch], HORIZON, states)
        path = np.repeat(states[:, None], HORIZON, axis=1) if futures.states is None else futures.states
        rows += [_compare(one, path[i], futures.images["static"][i]) for i, one in enumerate(batch)]
    columns = {name: [row[name] for row in rows if np.isfinite(row[name])] for name in (rows[0] if rows else ())}
    found: dict[str, Any] = {name: bootstrap_mean(values).as_metric() for name, values in columns.items()}
    found["closer_mm"] = paired_difference(columns["still_path_mm"], columns["path_mm"]).as_metric()
    found["auc"] = ranking(-np.array(columns["path_mm"]), np.array([one.success for one in long]))
    return found | {"episodes": len(rows), "success": float(np.mean([one.success for one in long]))}


def _compare(real: Execution, path: Array, images: Array) -> dict[str, float]:
    tool = TOOL_ARM.state_slices()["tool_position"]
    done = real.states[1:, tool]
    imagined, still = path[: len(done), tool], np.repeat(real.states[:1, tool], len(done), axis=0)
    window = real.images["static"]
    moving = moving_mask(window[0], window[1:])
    copied = np.repeat(window[:1], len(done), axis=0)
    row = {"moving_psnr": masked_psnr(images[: len(done)], window[1:], moving)}
    row["moving_psnr_copy"] = masked_psnr(copied, window[1:], moving)
    for name, guess in (("path", imagined), ("still_path", still)):
        row[f"{name}_mm"] = 1000 * np.linalg.norm(guess - done, axis=-1)
        row[f"{name}_px"] = np.linalg.norm(
            static_pixels(guess + ROBOT_BASE) - static_pixels(done + ROBOT_BASE), axis=-1
        )
    return {name: float(np.nanmean(values)) if np.isfinite(values).any() else np.nan for name, values in row.items()}


def ranking(
    scores: Array, success: Array, *, seed: int = 0, resamples: int = 2000
) -> tuple[float, float, float] | None:
    """Return the area under the ROC curve of scores for success, with its 95 % interval; None for one class alone.

    Source: Mann and Whitney's U, with ties counted by half; the bootstrap draws episodes.
    """
    if success.all() or not success.any():
        return None
    rng = np.random.default_rng(seed)
    drawn = rng.integers(0, len(scores), (resamples, len(scores)))
    areas = [_area(scores[rows], success[rows]) for rows in drawn if 0 < success[rows].sum() < len(rows)]
    low, high = np.quantile(areas, [0.025, 0.975])
    return _area(scores, success), float(low), float(high)


def _area(scores: Array, success: Array) -> float:
    good = int(success.sum())
    ranks = rankdata(scores)[success].sum() - good * (good + 1) / 2
    return float(ranks / (good * (len(scores) - good)))
