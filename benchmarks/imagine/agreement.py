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
from ...errors import DataError
from ..calvin.episodes import start_state, task_start
from ..metrics.frames import masked_psnr, moving_mask
from ..metrics.statistics import bootstrap_mean, paired_difference
from ..playtable.cameras import CameraConfig, static_pixels
from ..playtable.environment import CAMERAS, CONTROL_HZ, PlayTable
from ..playtable.instructions import instructions_of
from ..playtable.scenes import ROBOT_BASE
from ..playtable.tasks import TASKS
from ..simulation.control import make_control
from ..simulation.episodes import run_task
from .imagination import Imagination

HORIZON = 8
"""Frames that are imagined."""

MOST_LAG = 15
"""Longest lag of the arm behind what is commanded that is considered [control steps]."""

_FEWEST = 5
"""Failures, and successes, from which on one can say which agree better."""

_BATCH = 64
"""Starts imagined in one forward pass."""

_MAX_STEPS = 180
"""Time limit of a task in control steps."""


@dataclass(frozen=True, kw_only=True)
class Execution:
    """What a policy did from a start.

    states: after every control step, the first before any `[t 16]`; images: every `stride` of them, camera -> uint8
    `[f h w 3]`.
    """

    instruction: str
    states: Array
    images: dict[str, Array]
    stride: int
    success: bool


def execute(actor: Policy, *, scene: str, starts: int, image_size: int, stride: int, seed: int) -> list[Execution]:
    """Let a policy act each of the 17 tasks from random starts; keep the first frames of each."""
    camera = CameraConfig(static_px=image_size, gripper_px=image_size)
    env = PlayTable(scene, camera=camera, render_mode=None)
    try:
        numbered = [(name, i) for name in TASKS for i in range(starts)]
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
        if step <= HORIZON * stride + MOST_LAG:
            states.append(env.observe("", images=False).state_vector())
        if step % stride == 0 and step <= HORIZON * stride:
            for name, frames in images.items():
                frames.append(env.draw(name))

    result = run_task(env, actor, control, task, instruction=instruction, max_steps=_MAX_STEPS, watch=watch)
    return Execution(
        instruction=instruction,
        states=np.stack(states),
        images={name: np.stack(frames) for name, frames in images.items()},
        stride=stride,
        success=result.success,
    )


def measure_agreement(dream: Imagination, executions: Sequence[Execution]) -> dict[str, Any]:
    """Compare what a model imagines from the first frames with what its policy did.

    The arm follows what the policy commands a moment later. That lag, the same for all episodes, is the one at which
    the paths agree best.

    Returns:
        `path_mm`, `path_px`: mean distance of the imagined tool from the executed one `lag_s` later, in the robot's
        base and in the static camera's image of 64 px; `still_...`: of a tool that stays where it is; `moving_psnr` and
        `moving_psnr_copy` [dB]: of the pixels of the static camera that moved; each with an interval over episodes.
        `closer_mm`: still less imagined. `auc`: chance that an episode that succeeded agrees better (path in mm) than
        one that failed, with a bootstrap interval; None with fewer than five of either.

    Raises:
        DataError: no episode has two frames.
    """
    long = [one for one in executions if len(one.images["static"]) > 1]
    if not long:
        raise DataError("agreement: expected an episode of two frames, got none; act for longer, or other tasks.")
    paths: list[Array] = []
    images: list[dict[str, float]] = []
    for begin in tqdm(range(0, len(long), _BATCH), desc="imagine", unit="batch"):
        batch = long[begin : begin + _BATCH]
        first = {name: np.stack([one.images[name][0] for one in batch]) for name in CAMERAS}
        states = np.stack([one.states[0] for one in batch])
        futures = dream.futures(first, [one.instruction for one in batch], HORIZON, states)
        paths += list(np.repeat(states[:, None], HORIZON, axis=1) if futures.states is None else futures.states)
        images += [_moving(one, futures.images["static"][i]) for i, one in enumerate(batch)]
    by_lag = [
        [_distances(one, path, lag) for one, path in zip(long, paths, strict=True)] for lag in range(MOST_LAG + 1)
    ]
    lag = int(np.argmin([np.mean([row["path_mm"] for row in rows]) for rows in by_lag]))
    rows = [near | seen for near, seen in zip(by_lag[lag], images, strict=True)]
    columns = {name: [row[name] for row in rows if np.isfinite(row[name])] for name in rows[0]}
    found: dict[str, Any] = {name: bootstrap_mean(values).as_metric() for name, values in columns.items() if values}
    found["closer_mm"] = paired_difference(columns["still_path_mm"], columns["path_mm"]).as_metric()
    success = np.array([one.success for one in long])
    found["auc"] = ranking(-np.array(columns["path_mm"]), success)
    return found | {"lag_s": lag / CONTROL_HZ, "episodes": len(rows), "success": float(success.mean())}


def _distances(real: Execution, path: Array, lag: int) -> dict[str, float]:
    """Compare an imagined path with what was done `lag` control steps later, and holding still with it."""
    tool = TOOL_ARM.state_slices()["tool_position"]
    num_frames = len(real.images["static"]) - 1
    places = np.minimum(real.stride * np.arange(1, num_frames + 1) + lag, len(real.states) - 1)
    done, still = real.states[places, tool], np.repeat(real.states[:1, tool], num_frames, axis=0)
    row = {}
    for name, guess in (("path", path[:num_frames, tool]), ("still_path", still)):
        row[f"{name}_mm"] = float(1000 * np.linalg.norm(guess - done, axis=-1).mean())
        pixels = static_pixels(guess + ROBOT_BASE) - static_pixels(done + ROBOT_BASE)
        row[f"{name}_px"] = float(np.linalg.norm(pixels, axis=-1).mean())
    return row


def _moving(real: Execution, images: Array) -> dict[str, float]:
    """Compare imagined images of the static camera with the real ones, and the first one with them, where they move."""
    window = real.images["static"]
    moving = moving_mask(window[0], window[1:])
    guesses = {
        "moving_psnr": images[: len(window) - 1],
        "moving_psnr_copy": np.repeat(window[:1], len(window) - 1, axis=0),
    }
    found = {name: masked_psnr(guess, window[1:], moving) for name, guess in guesses.items()}
    return {n: float(np.nanmean(values)) if np.isfinite(values).any() else np.nan for n, values in found.items()}


def ranking(
    scores: Array, success: Array, *, seed: int = 0, resamples: int = 2000
) -> tuple[float, float, float] | None:
    """Return the area under the ROC curve of scores for success, with its 95 % interval; None where a class is rare.

    Source: Mann and Whitney's U, with ties counted by half; the bootstrap draws episodes.
    """
    if min(success.sum(), (~success).sum()) < _FEWEST:
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
