"""CALVIN's own calls: observations, infos and actions as the official ones, and models written for them."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pybullet
import pytest

from gr2.benchmarks.calvin.episodes import task_start
from gr2.benchmarks.calvin.evaluate import evaluate
from gr2.benchmarks.calvin.interface import CalvinEnvironment, calvin_action
from gr2.benchmarks.calvin.official import read_info
from gr2.benchmarks.calvin.suite import CalvinSuite, EvaluationConfig
from gr2.benchmarks.playtable.cameras import CameraConfig
from gr2.benchmarks.playtable.environment import PlayTable
from gr2.benchmarks.simulation.control import make_control
from gr2.benchmarks.simulation.episodes import run_task
from gr2.benchmarks.simulation.jobs import Job, run_jobs
from gr2.errors import ConfigError, PolicyError, SimulationError
from gr2.gr_model.act.opening import open_policy

MODEL = """
import numpy as np

class CustomModel:
    goals = []

    def reset(self):
        self.steps = 0

    def step(self, obs, goal):
        assert obs["rgb_obs"]["rgb_static"].shape == (200, 200, 3)
        assert obs["rgb_obs"]["rgb_gripper"].shape == (84, 84, 3)
        assert obs["depth_obs"]["depth_static"].shape == (200, 200)
        assert obs["robot_obs"].shape == (15,) and obs["scene_obs"].shape == (24,)
        self.goals.append((goal, self.steps))
        self.steps += 1
        return np.array([[0.5, 0, 0, 0, 0, 0, 0.2]], np.float32)

class Ours:
    def reset(self): ...
    def act(self, observation): ...

class Broken(CustomModel):
    def step(self, obs, goal):
        return np.full(7, np.nan)
"""


@pytest.fixture
def env() -> Iterator[CalvinEnvironment]:
    environment = CalvinEnvironment(PlayTable("D", camera=CameraConfig(static_px=16, gripper_px=12), render_mode=None))
    yield environment
    environment.close()


def test_observations_have_calvins_form(env: CalvinEnvironment) -> None:
    assert isinstance(env.world, PlayTable)
    scene = env.world._default_scene()
    scene[1] = 0.2
    observation = env.reset(robot_obs=None, scene_obs=scene)
    assert set(observation) == {"rgb_obs", "depth_obs", "robot_obs", "scene_obs"}
    assert abs(observation["scene_obs"][1] - 0.2) < 1e-3
    assert np.array_equal(observation["rgb_obs"]["rgb_static"], env.world.draw("static"))
    assert np.array_equal(observation["depth_obs"]["depth_gripper"], env.world.draw_depth("gripper"))
    assert observation["depth_obs"]["depth_static"].dtype == np.float32
    assert 3 < observation["depth_obs"]["depth_static"].mean() < 7
    after, reward, done, info = env.step(np.array([1.0, 0, 0, 0, 0, 0, 1]))
    assert (reward, done) == (0, False) and set(info) == {"robot_info", "scene_info"}
    assert np.array_equal(after["robot_obs"], env.get_obs()["robot_obs"])
    assert env.render("rgb_array").shape == (16, 16, 3)
    with pytest.raises(SimulationError, match="rgb_array"):
        env.render("human")


def test_infos_say_what_calvins_oracle_reads(env: CalvinEnvironment) -> None:
    world = env.world
    assert isinstance(world, PlayTable)
    task_start(world, "place_in_drawer", 0, 0)  # a block is in the hand
    info, state = env.get_info(), world.world_state()
    told = read_info(info)
    assert told.contacts == state.contacts and any(("robot", "") in c for c in told.contacts.values())
    assert told.robot_contacts == state.robot_contacts
    for field in ("finger_width", "gripper_command", "slider", "drawer", "button", "switch", "bulb", "led"):
        assert getattr(told, field) == getattr(state, field), field
    for color, (position, quaternion) in state.blocks.items():
        assert np.array_equal(told.blocks[color][0], position) and np.array_equal(told.blocks[color][1], quaternion)
        assert np.array_equal(told.velocities[color], state.velocities[color])
    assert info["robot_info"]["gripper_action"] == -1
    links = info["scene_info"]["fixed_objects"]["table"]["links"]
    assert links["base_link"] == -1 and {"drawer_link", "plank_link", "led_link"} <= set(links)


EULER, GOAL = (3.0, 0.1, 1.4), np.array([0.05, -0.1, 0.55])


@pytest.mark.parametrize(
    "action",
    [
        (GOAL, EULER, 1),
        [GOAL, np.array(EULER), np.array([0.3])],
        (GOAL, pybullet.getQuaternionFromEuler(EULER), (1,)),
        np.array([*GOAL, *pybullet.getQuaternionFromEuler(EULER), 1.0]),
        {"type": "cartesian_abs", "action": (GOAL, EULER, 1)},
        {"type": "cartesian_abs", "action": np.array([*GOAL, *EULER, 1.0])},
    ],
)
def test_absolute_actions_are_taken_in_every_form(action: Any) -> None:
    wanted = np.array([*GOAL, *pybullet.getQuaternionFromEuler(EULER), 1.0])
    assert np.array_equal(calvin_action(action), wanted)


def test_relative_actions_are_taken_in_every_form(env: CalvinEnvironment) -> None:
    import torch

    wanted = np.array([0.5, -0.25, 0, 0, 0, 1.0, -1.0])
    for action in (wanted, wanted[None, None], torch.tensor(wanted), {"type": "cartesian_rel", "action": wanted}):
        assert np.array_equal(calvin_action(action), wanted)
    runs = []
    for step in (env.step, env.world.step):
        env.reset()
        for _ in range(5):
            step(wanted)
        runs.append(env.world.robot_obs())
    assert np.array_equal(runs[0], runs[1])
    env.reset()
    for _ in range(60):
        env.step((GOAL, (np.pi, 0, np.pi / 2), 1))
    assert np.allclose(env.world.robot_obs()[:3], GOAL, atol=0.01)


@pytest.mark.parametrize(
    "action",
    [
        np.zeros(6),
        np.full(7, np.nan),
        None,
        "forward",
        {"type": "joint_rel", "action": np.zeros(8)},
        {"type": "cartesian_rel", "action": np.zeros(8)},
        (GOAL, EULER),
        [[0.1], [0.2], [0.3]],
    ],
)
def test_anything_else_is_refused(action: Any) -> None:
    with pytest.raises(SimulationError, match="action: expected"):
        calvin_action(action)


def run_model(policy: str, folder: Path) -> dict[str, Any]:
    config = EvaluationConfig(
        policy=policy, weights="", scene="D", calvin_root="", executed_steps=0, max_steps=3, image_px=0,
        renderer="tiny", fast_drawing=False, backend="gr2", seed=0, interface="calvin",
    )  # fmt: skip
    return run_jobs(config, [Job(control="calvin", kind="open_drawer", index=0)], "none", folder)[0]


def test_a_calvin_model_runs_unchanged(tmp_path: Path) -> None:
    file = tmp_path / "calvin_model.py"
    file.write_text(MODEL)
    record = run_model(f"{file}:CustomModel", tmp_path)
    assert record["executed_steps"] == 1 and record["results"][0]["steps"] == 3
    assert sys.modules["gr2_user_policy_calvin_model"].CustomModel.goals == [("open the drawer", i) for i in range(3)]
    with pytest.raises(PolicyError, match="failed: action: expected 7 finite"):
        run_model(f"{file}:Broken", tmp_path)
    with pytest.raises(PolicyError, match="got Ours without step"):
        run_model(f"{file}:Ours", tmp_path)


def test_its_actions_are_those_of_calvins_own_loop(tmp_path: Path) -> None:
    file = tmp_path / "calvin_loop.py"
    file.write_text(MODEL)
    with closing(PlayTable("D", render_mode=None)) as world:
        task_start(world, "open_drawer", 0, 0)
        for _ in range(3):
            world.step(np.array([0.5, 0, 0, 0, 0, 0, 1]))
        expected = world.robot_obs()
    with closing(CalvinSuite(PlayTable("D", render_mode=None), seed=0, interface="calvin")) as suite:
        policy = open_policy(f"{file}:CustomModel", adapt=suite.adapt)
        suite.start("open_drawer", 0)
        control = make_control("calvin", suite.simulator, policy)
        control.reset()
        run_task(suite.simulator, policy, control, "open_drawer", instruction="open the drawer", max_steps=3)
        assert np.array_equal(suite.simulator.robot_obs(), expected)


def test_what_an_interface_or_protocol_excludes_is_refused(tmp_path: Path) -> None:
    out = tmp_path / "out"
    for options, sentence in (
        ({"control": "wbc"}, "expected --control calvin, got wbc"),
        ({"executed_steps": 5}, "asked at every step"),
        ({"latency": 0.1}, "asked at every step"),
        ({"policy": "pretrained"}, "got pretrained"),
        ({"policy": "scripted"}, "got scripted"),
    ):
        with pytest.raises(ConfigError, match=sentence):
            evaluate(**{"policy": "model.py:CustomModel", "interface": "calvin", "out": out} | options)  # type: ignore[arg-type]
    assert not out.exists()
    for options, sentence in (
        ({}, "expected --calvin-root"),
        ({"calvin_root": tmp_path, "image_size": 64}, "image sizes"),
        ({"calvin_root": tmp_path, "control": "both"}, "expected --control calvin, got both"),
        ({"calvin_root": tmp_path, "max_steps": 100}, "360 steps"),
    ):
        with pytest.raises(ConfigError, match=sentence):
            evaluate(policy="scripted", protocol="official", out=out, **options)  # type: ignore[arg-type]


def test_the_official_protocol_is_one_switch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = sys.modules[evaluate.__module__]
    seen: list[Any] = []

    def stop(config: Any, jobs: Any, **kwargs: Any) -> None:
        seen.extend([config, jobs])
        raise SimulationError("stop")

    monkeypatch.setattr(module, "run_evaluation", stop)
    monkeypatch.setattr(module, "evaluation_instructions", lambda *args: {})
    with pytest.raises(SimulationError, match="stop"):
        evaluate(policy="scripted", protocol="official", calvin_root=tmp_path, out=tmp_path / "out")
    config, jobs = seen
    assert (config.image_px, config.max_steps, config.calvin_root) == (0, 360, str(tmp_path))
    assert len(jobs) == 1000 and {job.control for job in jobs} == {"calvin"}
