"""Predicted beside real: the model imagines futures of test episodes, the expert and the policy act them out."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from ..data_pipeline.files import write_json
from ..data_pipeline.video import write_video
from ..gr_model.contracts import Array
from .calvin.episodes import run_task, start_state, task_start
from .control import make_control
from .playtable.cameras import CameraConfig
from .playtable.environment import CAMERAS, CONTROL_HZ, PlayTable
from .playtable.expert_motion import ExpertStyle
from .playtable.experts import act
from .playtable.instructions import sentences
from .playtable.tasks import TASKS
from .video_metrics import StepMetrics, compare_futures, gather_steps

_SHOWN = (
    "open_drawer",
    "move_slider_left",
    "turn_on_lightbulb",
    "lift_red_block_table",
    "push_blue_block_right",
    "turn_off_led",
    "close_drawer",
    "lift_pink_block_table",
)
_MAX_STEPS = 120


@dataclass(frozen=True, kw_only=True)
class TestEpisode:
    """What really happened: pictures of the expert every `stride` control steps, camera -> uint8 `[f h w 3]`.

    states: the robot's states at the pictures `[f 16]`.
    """

    task: str
    instruction: str
    images: dict[str, Array]
    states: Array
    scene_obs: Array


def act_out(env: PlayTable, task: str, *, seed: int, index: int, stride: int) -> TestEpisode | None:
    """Let the scripted expert act a task from a random start, undisturbed; None where it fails."""
    scene_obs = task_start(env, task, seed, index)
    start, images = env.world_state(), {name: [env.draw(name)] for name in CAMERAS}
    states = [env.observe("", images=False).state_vector()]
    for step in range(1, _MAX_STEPS + 1):
        env.step_pose(*act(task, env.world_state(), env.spec_scene, ExpertStyle()))
        if step % stride == 0:
            for name, frames in images.items():
                frames.append(env.draw(name))
            states.append(env.observe("", images=False).state_vector())
        if TASKS[task].done(start, env.world_state()):
            stacked = {name: np.stack(frames) for name, frames in images.items()}
            return TestEpisode(
                task=task, instruction=sentences(task)[0], images=stacked, states=np.stack(states), scene_obs=scene_obs
            )
    return None


def test_episodes(env: PlayTable, tasks: list[str], *, seed: int, stride: int) -> list[TestEpisode]:
    """Act out tasks, one start each; failures of the expert are left out."""
    numbered = [(task, tasks[:i].count(task)) for i, task in enumerate(tasks)]
    acted = (act_out(env, t, seed=seed, index=n, stride=stride) for t, n in tqdm(numbered, desc="real", unit="episode"))
    return [episode for episode in acted if episode is not None and len(episode.images["static"]) > 2]


def imagine(
    *,
    policy: str = "pretrained",
    out: Path = Path("runs/imagine"),
    scene_name: str = "D",
    episodes: int = 8,
    metric_episodes: int = 34,
    horizon: int = 4,
    decoding_steps: int = 16,
    temperature: float = 0.8,
    choice_temperature: float = 8.0,
    executed_steps: int = 5,
    image_px: int = 64,
    frame_stride: int = 5,
    seed: int = 300,
) -> dict[str, Any]:
    """Imagine the future of test episodes from one frame and the sentence; write videos and figures.

    Args:
        policy: "pretrained" (shipped) or a folder with a released model.
        out: folder for the videos, `episodes.json` and `metrics.json`.
        scene_name: scene of the test episodes.
        episodes: episodes shown as videos: predicted, real, and the policy's own roll-out.
        metric_episodes: episodes from which the figures are measured.
        horizon: predicted frames for the figures.
        decoding_steps: passes that make one frame of a video.
        temperature: of the codes of the videos; the figures are those of the likeliest codes.
        choice_temperature: 0 draws the codes the model is surest of first, a large number draws them in any order.
        executed_steps: control steps of each chunk in the policy's roll-out.
        image_px: picture side [px].
        frame_stride: control steps from frame to frame.
        seed: seed of starts and sampling.
    """
    import torch

    from ..gr_model.generation import SamplingConfig
    from ..gr_model.policy_loading import load_imagination, load_policy

    torch.set_num_threads(min(2, torch.get_num_threads()))
    out.mkdir(parents=True, exist_ok=True)
    camera = CameraConfig(static_px=image_px, gripper_px=image_px)
    env = PlayTable(scene_name, camera=camera, render_mode=None)
    drawn = SamplingConfig(
        steps=decoding_steps, temperature=temperature, choice_temperature=choice_temperature, seed=seed
    )
    dream, likeliest = load_imagination(policy, sampling=drawn), load_imagination(policy)
    actor = load_policy(policy)
    try:
        names = list(TASKS)
        measured = test_episodes(
            env, [names[i % len(names)] for i in range(metric_episodes)], seed=seed, stride=frame_stride
        )
        shown = test_episodes(
            env, [_SHOWN[i % len(_SHOWN)] for i in range(episodes)], seed=seed + 1, stride=frame_stride
        )
        rollouts = [_own_rollout(env, actor, e, executed_steps, frame_stride) for e in shown]
    finally:
        env.close()
    rows = _write_videos(out, dream, shown, rollouts, CONTROL_HZ / frame_stride)
    metrics = _measure(likeliest, measured, horizon)
    write_json(out / "episodes.json", rows)
    write_json(out / "metrics.json", metrics)
    return {"episodes": len(rows), "metric_episodes": len(measured)}


def _write_videos(
    out: Path, dream: Any, shown: list[TestEpisode], rollouts: list[tuple[dict[str, Array], bool]], fps: float
) -> list[dict[str, Any]]:
    """Write predicted, real and acted videos of each episode and camera; return the rows of `episodes.json`."""
    rows = []
    for number, (episode, (rollout, success)) in enumerate(zip(shown, rollouts, strict=True)):
        first = {name: frames[:1] for name, frames in episode.images.items()}
        predicted = dream(first, [episode.instruction], len(episode.images["static"]) - 1, episode.states[:1])
        for name in CAMERAS:
            frames = np.concatenate([first[name], predicted.images[name][0]])
            row: dict[str, Any] = {
                "instruction": episode.instruction,
                "task": episode.task,
                "camera": name,
                "success": success,
            }
            for kind, video in (
                ("predicted", frames),
                ("real", episode.images[name]),
                ("rollout", rollout[name]),
            ):
                row[kind] = f"{number:02d}_{name}_{kind}.mp4"
                write_video(out / str(row[kind]), video, fps)
            rows.append(row)
    return rows


def _own_rollout(
    env: PlayTable, actor: Any, episode: TestEpisode, executed_steps: int, stride: int
) -> tuple[dict[str, Array], bool]:
    """Let the policy act from the same start; return its pictures and whether it succeeded."""
    start_state(env, episode.scene_obs)
    control = make_control("wbc", env)
    control.reset()
    images: dict[str, list[Array]] = {name: [] for name in CAMERAS}

    def watch(world: PlayTable, step: int) -> None:
        if step % stride == 0:
            for name, frames in images.items():
                frames.append(world.draw(name))

    result = run_task(
        env, actor, control, episode.task, executed_steps=executed_steps, max_steps=_MAX_STEPS, watch=watch
    )
    return {name: np.stack(frames) for name, frames in images.items()}, result.success


def _measure(dream: Any, episodes: list[TestEpisode], horizon: int) -> dict[str, Any]:
    """Compare roll-outs from every frame that has `horizon` frames after it with what really came.

    Starts and cameras of one episode are averaged first: episodes are independent, neighbouring frames are not.
    """
    starts = [(e, i) for e, ep in enumerate(episodes) for i in range(len(ep.images["static"]) - horizon)]
    compared: dict[int, list[list[StepMetrics]]] = {}
    for begin in tqdm(range(0, len(starts), 64), desc="imagine", unit="batch"):
        batch = starts[begin : begin + 64]
        first = {name: np.stack([episodes[e].images[name][i] for e, i in batch]) for name in CAMERAS}
        states = np.stack([episodes[e].states[i] for e, i in batch])
        predicted = dream(first, [episodes[e].instruction for e, _ in batch], horizon, states)
        for row, (e, i) in enumerate(batch):
            for name in CAMERAS:
                window = episodes[e].images[name][i : i + 1 + horizon]
                codes = dream.encode(window)
                steps = compare_futures(
                    predicted=predicted.images[name][row],
                    real=window[1:],
                    current=window[0],
                    predicted_codes=predicted.codes[name][row],
                    real_codes=codes[1:],
                    current_codes=codes[0],
                )
                compared.setdefault(e, []).append(steps)
    return gather_steps([_average(rows) for rows in compared.values()])


def _average(rows: list[list[StepMetrics]]) -> list[StepMetrics]:
    """Average comparisons step by step; what is undefined (no pixel moved) is left out."""
    averaged = []
    for steps in zip(*rows, strict=True):
        values = {}
        for field in fields(StepMetrics):
            column = np.array([getattr(step, field.name) for step in steps], float)
            finite = column[np.isfinite(column)]
            values[field.name] = float(finite.mean()) if len(finite) else float("nan")
        values["horizon"] = steps[0].horizon
        averaged.append(StepMetrics(**values))  # type: ignore[arg-type]
    return averaged
