"""Gymnasium environments: PlayTable and its tasks by id, in vectors, filtered; and reinforcement learning on one."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from gymnasium.wrappers import FilterObservation, FlattenObservation, TimeLimit

import gr2.benchmarks.environments  # noqa: F401 (registers the ids)
from gr2.benchmarks.calvin.task_environment import TaskEnvironment
from gr2.benchmarks.playtable.cameras import CameraConfig
from gr2.benchmarks.playtable.environment import PlayTable
from gr2.errors import ConfigError, SimulationError

SMALL = CameraConfig(static_px=12, gripper_px=8)
FORWARD = np.array([1.0, 0, 0, 0, 0, 0, 1])


@pytest.fixture
def led() -> Iterator[TaskEnvironment]:
    env = TaskEnvironment("turn_on_led", reward="dense")
    yield env
    env.close()


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("gr2/PlayTable-v0", {"render_mode": None}),
        ("gr2/PlayTable-v0", {}),
        ("gr2/PlayTable-v0", {"images": False}),
        ("gr2/PlayTableTask-v0", {}),
        ("gr2/PlayTableTask-v0", {"render_mode": "rgb_array", "task": "lift_red_block_table", "reward": "dense"}),
    ],
)
def test_gymnasium_finds_nothing_wrong(name: str, options: dict[str, Any]) -> None:
    env = gymnasium.make(name, camera=SMALL, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(env.unwrapped)
    env.close()


def test_without_a_render_mode_there_are_states_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def draw(self: PlayTable, camera: str) -> None:
        raise AssertionError(f"{camera} was drawn")

    monkeypatch.setattr(PlayTable, "draw", draw)
    for options in ({"render_mode": None}, {"images": False}):
        env = gymnasium.make("gr2/PlayTable-v0", **options)
        assert set(env.observation_space) == {"robot_obs", "scene_obs"}
        seen = FlattenObservation(FilterObservation(env, ["robot_obs"]))
        assert seen.reset()[0].shape == seen.step(FORWARD)[0].shape == (15,)
        env.close()


@pytest.mark.parametrize("mode", ["sync", "async"])
def test_several_tables_step_together(mode: str) -> None:
    envs = gymnasium.make_vec("gr2/PlayTableTask-v0", num_envs=2, vectorization_mode=mode, task="open_drawer")
    first, info = envs.reset(seed=3)
    assert first["scene_obs"].shape == (2, 24) and not info["success"].any()
    assert not np.array_equal(first["scene_obs"][0], first["scene_obs"][1])
    observation, reward, terminated, truncated, _ = envs.step(np.stack([FORWARD, -FORWARD]))
    assert observation["robot_obs"].shape == (2, 15) and reward.shape == (2,) and not (terminated | truncated).any()
    envs.close()


def test_unknown_names_are_refused() -> None:
    with pytest.raises(ConfigError, match="rgb_array or None, got 'human'"):
        PlayTable("D", render_mode="human")
    with pytest.raises(ConfigError, match="sparse or dense"):
        TaskEnvironment("turn_on_led", reward="shaped")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="did you mean"):
        TaskEnvironment("turn_on_lamp")


def test_the_seed_decides_the_scene(led: TaskEnvironment) -> None:
    scenes = [led.reset(seed=seed)[0]["scene_obs"] for seed in (1, 2, 1, None)]
    assert np.array_equal(scenes[0], scenes[2])
    assert len({scene.tobytes() for scene in scenes}) == 3
    assert all(scene[5] == 0 for scene in scenes)
    with pytest.raises(SimulationError, match="expected no options"):
        led.reset(options={"scene_obs": np.zeros(24)})


def test_a_task_ends_when_it_is_done(led: TaskEnvironment) -> None:
    _, info = led.reset(seed=1)
    assert info == {"success": False, "is_success": False, "instruction": "turn on the green led"}
    x, y = led.world.spec_scene.button_xy
    downwards = np.array([np.pi, 0, np.pi / 2])
    rewards, terminated = [], False
    for height in np.repeat([0.56, 0.5, 0.44], 25):
        target = np.array([x, y, height])
        position, euler = led.world._target
        turn = (downwards - euler + np.pi) % (2 * np.pi) - np.pi
        action = np.clip(np.concatenate([(target - position) / 0.02, turn / 0.05, [-20.0]]), -1, 1)
        _, reward, terminated, truncated, info = led.step(action)
        rewards.append(reward)
        assert not truncated
        if terminated:
            break
    assert terminated and info["success"] and info["is_success"] and led.world.led
    assert rewards[-1] > 0.9 and 1 < sum(rewards) < 10


@pytest.mark.nightly
def test_stable_baselines3_learns_to_turn_on_the_led() -> None:
    SAC = pytest.importorskip("stable_baselines3", reason="stable-baselines3 is not installed").SAC

    env = FlattenObservation(TimeLimit(TaskEnvironment("turn_on_led", reward="dense"), 60))

    def success(model: Any, number: int = 20) -> float:
        done = 0
        for index in range(number):
            observation, info = env.reset(seed=1000 + index)
            ended = False
            while not ended:
                action, _ = model.predict(observation, deterministic=True)
                observation, _, terminated, truncated, info = env.step(action)
                ended = terminated or truncated
            done += info["success"]
        return done / number

    small: dict[str, Any] = {"policy_kwargs": {"net_arch": [64, 64]}, "batch_size": 128, "device": "cpu"}
    model = SAC("MlpPolicy", env, seed=0, learning_starts=500, gamma=0.95, learning_rate=1e-3, **small)
    assert success(model) <= 0.2
    rates = [0.0]
    while max(rates) < 0.9 and len(rates) <= 8:
        model.learn(1500, reset_num_timesteps=False)
        rates.append(success(model))
    assert max(rates) >= 0.9, rates
    env.close()
