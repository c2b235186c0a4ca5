"""Test episodes for imagined futures: the scripted expert acts them out, the policy acts from the same starts."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from tqdm import tqdm

from ...contracts import Array, Policy
from ..calvin.episodes import start_state, task_start
from ..demonstrations.expert_motion import ExpertStyle
from ..demonstrations.experts import act
from ..playtable.cameras import CameraConfig
from ..playtable.environment import CAMERAS, PlayTable
from ..playtable.instructions import instructions_of
from ..playtable.tasks import TASKS
from ..simulation.control import make_control
from ..simulation.episodes import run_task

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
    """What really happened: images of the expert every `stride` control steps, camera -> uint8 `[f h w 3]`.

    states: the robot's states at the images `[f 16]`.
    """

    task: str
    instruction: str
    images: dict[str, Array]
    states: Array
    scene_obs: Array


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """Images of the policy acting from the start of a test episode, camera -> uint8 `[f h w 3]`."""

    images: dict[str, Array]
    success: bool


@dataclass(frozen=True, kw_only=True)
class TestSet:
    """Episodes that are measured, episodes that are shown, and the policy's attempt at each of the latter."""

    measured: list[TestEpisode]
    shown: list[TestEpisode]
    attempts: list[Attempt]


def act_out_all(
    actor: Policy,
    *,
    scene: str,
    num_shown: int,
    num_measured: int,
    executed_steps: int,
    image_size: int,
    stride: int,
    seed: int,
) -> TestSet:
    """Act out episodes to measure and episodes to show; let the policy act from the starts of those to show."""
    camera = CameraConfig(static_px=image_size, gripper_px=image_size)
    env = PlayTable(scene, camera=camera, render_mode=None)
    try:
        names = list(TASKS)
        measured = test_episodes(env, [names[i % len(names)] for i in range(num_measured)], seed=seed, stride=stride)
        shown = test_episodes(env, [_SHOWN[i % len(_SHOWN)] for i in range(num_shown)], seed=seed + 1, stride=stride)
        attempts = [_attempt(env, actor, episode, executed_steps, stride) for episode in shown]
    finally:
        env.close()
    return TestSet(measured=measured, shown=shown, attempts=attempts)


def test_episodes(env: PlayTable, tasks: list[str], *, seed: int, stride: int) -> list[TestEpisode]:
    """Act out tasks, one start each; failures of the expert are left out."""
    numbered = [(task, tasks[:i].count(task)) for i, task in enumerate(tasks)]
    acted = (
        _act_out(env, t, seed=seed, index=n, stride=stride) for t, n in tqdm(numbered, desc="real", unit="episode")
    )
    return [episode for episode in acted if episode is not None and len(episode.images["static"]) > 2]


def _act_out(env: PlayTable, task: str, *, seed: int, index: int, stride: int) -> TestEpisode | None:
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
                task=task,
                instruction=instructions_of(task)[0],
                images=stacked,
                states=np.stack(states),
                scene_obs=scene_obs,
            )
    return None


def _attempt(env: PlayTable, actor: Policy, episode: TestEpisode, executed_steps: int, stride: int) -> Attempt:
    """Let the policy act from the start of an episode."""
    start_state(env, episode.scene_obs)
    control = make_control("wbc", env)
    control.reset()
    images: dict[str, list[Array]] = {name: [] for name in CAMERAS}

    def watch(step: int) -> None:
        if step % stride == 0:
            for name, frames in images.items():
                frames.append(env.draw(name))

    result = run_task(
        env, actor, control, episode.task, instruction=episode.instruction, executed_steps=executed_steps,
        max_steps=_MAX_STEPS, watch=watch,
    )  # fmt: skip
    return Attempt(images={name: np.stack(frames) for name, frames in images.items()}, success=result.success)
