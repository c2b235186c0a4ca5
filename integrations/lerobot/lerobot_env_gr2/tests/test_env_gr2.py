"""PlayTable under LeRobot: its features fit its observations, tasks are named, and a missing simulator is a sentence.

`GR2_SIMULATOR_PYTHON` names a Python with gr2 and pybullet, where this one has no pybullet.
"""

from __future__ import annotations

import importlib.util
import os
from typing import Any

import numpy as np
import pytest
from lerobot.envs import EnvConfig, make_env, preprocess_observation
from lerobot.envs.utils import env_to_policy_features
from lerobot.utils.import_utils import register_third_party_plugins
from lerobot_env_gr2 import PlayTableEnv

from gr2.errors import ConfigError, EnvironmentMissing, SimulationError

PYTHON = os.environ.get("GR2_SIMULATOR_PYTHON", "")
needs_simulator = pytest.mark.skipif(
    not PYTHON and importlib.util.find_spec("pybullet") is None,
    reason="no pybullet here, and GR2_SIMULATOR_PYTHON names no Python that has it",
)


def vector(**options: Any) -> Any:
    return make_env(PlayTableEnv(simulator_python=PYTHON, **options))["playtable"][0]


def test_lerobot_finds_the_environment_by_the_name_of_the_package() -> None:
    register_third_party_plugins()
    assert EnvConfig.get_choice_class("playtable") is PlayTableEnv


def test_tasks_are_sets_or_names() -> None:
    assert len(PlayTableEnv(task="demonstrated").tasks()) == 17
    assert len(make_env(PlayTableEnv(task="all"))["playtable"]) == 34
    assert PlayTableEnv(task="open_drawer, turn_on_led").tasks() == ("open_drawer", "turn_on_led")
    with pytest.raises(ConfigError, match="got 'opn_drawer'"):
        PlayTableEnv(task="open_drawer,opn_drawer")
    with pytest.raises(ConfigError, match="got 'none'"):
        PlayTableEnv(task="")
    with pytest.raises(ConfigError, match="expected pose or calvin"):
        PlayTableEnv(control="joints")


@pytest.mark.parametrize(("control", "sizes"), [("pose", (16, 8)), ("calvin", (15, 7))])
def test_features_are_those_of_the_spaces(control: str, sizes: tuple[int, int]) -> None:
    config = PlayTableEnv(control=control, image_size=0)
    features = {key: feature.shape for key, feature in env_to_policy_features(config).items()}
    assert features == {
        "action": (sizes[1],),
        "observation.state": (sizes[0],),
        "observation.images.static": (3, 200, 200),
        "observation.images.gripper": (3, 84, 84),
    }
    env = config.create_envs(1)["playtable"][0]
    assert env.single_action_space.shape == (sizes[1],)
    assert env.single_observation_space["pixels"]["static"].shape == (200, 200, 3)


def test_what_is_missing_is_named() -> None:
    env = make_env(PlayTableEnv(simulator_python="/no/such/python"))["playtable"][0]
    with pytest.raises(EnvironmentMissing, match="expected a Python that can be run"):
        env.reset(seed=0)
    if importlib.util.find_spec("pybullet") is None:
        with pytest.raises(EnvironmentMissing, match="the simulator needs pybullet"):
            make_env(PlayTableEnv())["playtable"][0].reset(seed=0)


@needs_simulator
def test_a_seed_gives_one_start_and_an_episode_ends() -> None:
    env = vector(task="open_drawer", episode_length=3)
    first, _ = env.reset(seed=[5])
    again, info = env.reset(seed=[5])
    np.testing.assert_array_equal(first["pixels"]["static"], again["pixels"]["static"])
    np.testing.assert_array_equal(first["agent_pos"], again["agent_pos"])
    assert not info["is_success"][0]
    assert env.call("task_description")[0] and env.call("_max_episode_steps")[0] == 3
    seen = preprocess_observation(first)
    assert {key: tuple(value.shape) for key, value in seen.items()} == {
        "observation.images.static": (1, 3, 64, 64),
        "observation.images.gripper": (1, 3, 64, 64),
        "observation.state": (1, 16),
    }
    hold = np.concatenate([first["agent_pos"][:, :7], [[1.0]]], 1)
    ends = [env.step(hold)[2:4] for _ in range(3)]
    assert [bool(cut[0]) for _, cut in ends] == [False, False, True]
    assert env.call("render")[0].shape == (200, 200, 3)
    env.close()


@needs_simulator
def test_an_action_that_is_none_is_refused() -> None:
    env = vector(task="open_drawer")
    env.reset(seed=[0])
    with pytest.raises(SimulationError, match="finite numbers"):
        env.step(np.full((1, 8), np.nan))
    with pytest.raises(SimulationError, match="expected a quaternion"):
        env.step(np.zeros((1, 8)))
    env.close()
