"""Meta-World as a second benchmark: its words, its simulator behind our protocols, demonstrations and evaluation."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from textwrap import dedent

import numpy as np
import pytest

from gr2.benchmarks.demonstrations.record import record
from gr2.benchmarks.metaworld import package
from gr2.benchmarks.metaworld.evaluate import evaluate
from gr2.benchmarks.metaworld.experts import ScriptedPolicy
from gr2.benchmarks.metaworld.instructions import (
    MT10,
    TASKS,
    choose_tasks,
    evaluation_instruction,
    held_out_instruction,
    instructions_of,
    sample_instruction,
)
from gr2.benchmarks.metaworld.record import Disturbance
from gr2.benchmarks.metaworld.simulator import EMBODIMENT, MetaWorld, start_seed
from gr2.benchmarks.metaworld.suite import MetaWorldSuite
from gr2.benchmarks.simulation.control import SignalControl, make_control
from gr2.benchmarks.simulation.episodes import run_task
from gr2.benchmarks.simulation.fit import check_fit, embodiment_of
from gr2.benchmarks.simulation.simulator import SignalSimulator
from gr2.data_pipeline.readers.source import open_source
from gr2.data_pipeline.store.episodes import list_episodes, read_episode, read_facts
from gr2.errors import ConfigError, DataError, EnvironmentMissing, PolicyError, ShapeError

needs_metaworld = pytest.mark.skipif(
    find_spec("metaworld") is None, reason="metaworld is not installed (pip install 'gr2[metaworld]')"
)
REACH = "reach-v3"


def test_every_task_has_wordings_of_its_own_and_one_held_out_in_known_words() -> None:
    assert len(TASKS) == 50 and set(MT10) < set(TASKS)
    trained = [text for task in TASKS for text in instructions_of(task)]
    held_out = [held_out_instruction(task) for task in TASKS]
    assert min(len(instructions_of(task)) for task in TASKS) >= 3
    assert len(set(trained + held_out)) == len(trained) + 50, "an instruction stands for one task"
    known = {word for text in trained for word in text.replace(",", "").split()}
    assert {word for text in held_out for word in text.split()} <= known
    assert evaluation_instruction(REACH, "trained") == instructions_of(REACH)[0]
    assert evaluation_instruction(REACH, "held-out") == held_out_instruction(REACH)
    rng = np.random.default_rng(0)
    assert {sample_instruction(REACH, rng) for _ in range(100)} == set(instructions_of(REACH))


def test_tasks_are_chosen_by_benchmark_or_by_name() -> None:
    assert choose_tasks("mt10") == MT10 and choose_tasks("mt50") == TASKS
    assert choose_tasks("reach, drawer-open-v3,reach-v3") == (REACH, "drawer-open-v3")
    for wrong in ("lift", "", "reach,fly"):
        with pytest.raises(ConfigError, match="expected mt10, mt50 or names"):
            choose_tasks(wrong)


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "metaworld.env_dict", None)  # what importing an absent package does
    package.load.cache_clear()
    with pytest.raises(EnvironmentMissing, match=r"pip install 'gr2\[metaworld\]'"):
        MetaWorld()


def test_options_of_playtable_alone_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="got --scenes, --policy, --layout calvin"):
        record(out=tmp_path, simulator="metaworld", scenes="ABC", policy="runs/x", layout="calvin")
    with pytest.raises(ConfigError, match="at least one episode"):
        record(out=tmp_path, simulator="metaworld", episodes=0)
    assert not list(tmp_path.iterdir())


def test_impossible_evaluations_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="at most 500 steps"):
        evaluate(policy="scripted", out=tmp_path, max_steps=501)
    with pytest.raises(ConfigError, match="asked at every step"):
        evaluate(policy="scripted", out=tmp_path, executed_steps=5)
    with pytest.raises(ConfigError, match="asked at every step"):
        evaluate(policy="scripted", out=tmp_path, latency=0.1)


def test_a_disturbed_hand_moves_otherwise_and_the_fingers_do_not() -> None:
    action = np.array([0.5, 0.0, -1.0, 0.7])
    calm, rough = (Disturbance(np.random.default_rng(1), active) for active in (False, True))
    assert calm(action) is action
    moved = np.stack([rough(action) for _ in range(400)])
    assert np.all(moved[:, 3] == 0.7) and np.abs(moved).max() <= 1.0
    assert moved[:, 1].std() > 0.1


@pytest.fixture(scope="module")
def world() -> Iterator[MetaWorld]:
    package.load.cache_clear()
    made = MetaWorld(image_px=32)
    yield made
    made.close()


@needs_metaworld
def test_names_are_those_of_the_package() -> None:
    from metaworld.env_dict import ALL_V3_ENVIRONMENTS, MT10_V3

    assert set(TASKS) == set(ALL_V3_ENVIRONMENTS) == set(package.load().experts) and list(MT10) == list(MT10_V3)


@needs_metaworld
def test_a_start_follows_from_its_seed_alone(world: MetaWorld) -> None:
    starts = []
    for seed in (3, 4, 3):
        world.reset(options={"task": REACH, "seed": seed})
        seen = world.observe("reach the goal")
        starts.append((world.full_state.copy(), {name: image.copy() for name, image in seen.images.items()}))
        world.apply_action(np.array([1.0, 0.0, 0.0, 1.0]))
    assert np.array_equal(starts[0][0], starts[2][0]) and not np.array_equal(starts[0][0], starts[1][0])
    for name in EMBODIMENT.cameras:
        assert starts[0][1][name].shape == (32, 32, 3) and np.array_equal(starts[0][1][name], starts[2][1][name])
    assert start_seed(1, 0, 2) != start_seed(2, 0, 1)


@needs_metaworld
def test_the_goal_is_drawn_where_it_is_from_the_first_image_on(world: MetaWorld) -> None:
    world.reset(options={"task": REACH, "seed": 7})
    places = world.full_state.copy()
    image = world.draw("corner2", px=64).astype(int)
    assert np.array_equal(world._env.data.site("goal").xpos, places[-3:])
    world.apply_action(np.array([0.0, 0.0, 0.0, -1.0]))
    after = world.draw("corner2", px=64).astype(int)
    assert np.abs(image - after).max(axis=2)[:, 40:].max() < 40, "nothing moves but the hand"


@needs_metaworld
def test_the_simulator_is_what_its_embodiment_states(world: MetaWorld) -> None:
    assert isinstance(world, SignalSimulator) and embodiment_of(world) is EMBODIMENT
    world.reset(options={"task": REACH, "seed": 0})
    seen = world.observe("reach the goal", images=False)
    assert seen.images == {} and seen.state.shape == (EMBODIMENT.state_dim,) and seen.time == 0.0
    before = seen.state[:3]
    for _ in range(20):
        world.apply_action(np.array([0.5, 0.0, 0.0, -1.0]))
    after = world.observe("", images=False)
    assert after.time == pytest.approx(20 / 80)
    moved = after.state[:3] - before
    assert 0.05 < moved[0] < 0.105 and np.abs(moved[1:]).max() < 0.01, "20 steps of half a centimeter"
    assert np.array_equal(world.hold_action(None), [0, 0, 0, -1])
    assert np.array_equal(world.hold_action(np.array([1, 1, 1, 0.6])), [0, 0, 0, 0.6])


@needs_metaworld
def test_the_corner_camera_is_turned_upright(world: MetaWorld) -> None:
    """The arm comes from above: its red is in the upper half."""
    world.reset(options={"task": REACH, "seed": 0})
    image = world.draw("corner2").astype(int)
    red = (image[..., 0] > 90) & (image[..., 0] > 2 * image[..., 1])
    assert red[:16].sum() > 1.5 * red[16:].sum() > 0
    assert world.draw("gripperPOV", px=16).shape == (16, 16, 3)


DRAWS_THEN_COMPILES = """
from gr2.benchmarks.metaworld.simulator import MetaWorld
world = MetaWorld(image_px=16)
world.reset()
world.draw("corner2")
world.close()
import triton
print("alive")
"""


@needs_metaworld
@pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed")
def test_a_process_that_has_drawn_may_load_torchs_compiler() -> None:
    done = subprocess.run([sys.executable, "-c", DRAWS_THEN_COMPILES], capture_output=True, text=True, timeout=300)
    assert done.stdout.strip() == "alive", done.stderr


@needs_metaworld
def test_mistakes_are_named(world: MetaWorld) -> None:
    world.reset(options={"task": REACH})
    with pytest.raises(ShapeError, match="4 finite numbers"):
        world.apply_action(np.full(4, np.nan))
    with pytest.raises(ConfigError, match="reset first"):
        world.begin("push-v3")
    with pytest.raises(ConfigError, match="task 'fly'"):
        world.reset(options={"task": "fly"})
    with pytest.raises(ConfigError, match="goal as well"):
        world.reset(options={"goal": 1})
    with pytest.raises(ConfigError, match="takes joint commands, got metaworld"):
        make_control("wbc", world)
    with pytest.raises(ConfigError, match="1 or more pixels"):
        MetaWorld(image_px=0)


@needs_metaworld
def test_the_expert_solves_a_task_as_a_policy(world: MetaWorld) -> None:
    suite = MetaWorldSuite(world, seed=0)
    (task,) = suite.start(REACH, 0)
    control = make_control("actions", world)
    assert isinstance(control, SignalControl)
    limits = {"executed_steps": 1, "max_steps": 200}
    result = run_task(world, ScriptedPolicy(world), control, task, instruction=suite.instruction(task), **limits)
    assert result.success and 10 < result.steps < 200


@needs_metaworld
def test_the_policy_of_the_document_lowers_the_hand(world: MetaWorld) -> None:
    page = (Path(__file__).parents[2] / "docs/metaworld.md").read_text()
    code = page[page.index("    import numpy as np\n") : page.index("Save it as `down.py`")]
    names: dict[str, type] = {}
    exec(dedent(code), names)
    world.reset(options={"task": REACH, "seed": 0})
    before = world.full_state[2]
    run_task(world, names["Down"](), make_control("actions", world), REACH, instruction="", max_steps=10)
    assert -0.06 < world.full_state[2] - before < -0.02


@needs_metaworld
def test_a_policy_of_another_robot_is_refused(world: MetaWorld) -> None:
    policy = ScriptedPolicy(world)
    policy.embodiment = replace(EMBODIMENT, action=EMBODIMENT.action[:1])  # type: ignore[attr-defined]
    with pytest.raises(PolicyError, match="gripper_effort is missing"):
        check_fit(policy, world)
    policy.embodiment = EMBODIMENT  # type: ignore[attr-defined]
    check_fit(policy, world)


@needs_metaworld
def test_recordings_hold_the_embodiment_and_resume(tmp_path: Path) -> None:
    options = {"simulator": "metaworld", "tasks": "reach", "image_size": 16, "num_workers": 1, "seed": 5}
    found = record(out=tmp_path / "r", episodes=2, **options)
    assert found["labeled"] == 2 and found["given_up"] == 0
    folders = list_episodes(tmp_path / "r")
    assert [read_facts(folder)["task"] for folder in folders] == [REACH, REACH]
    for episode, entry in zip(map(read_episode, folders), open_source(tmp_path / "r"), strict=True):
        assert entry.embodiment == EMBODIMENT and not entry.problem
        assert tuple(episode.images) == EMBODIMENT.cameras and episode.control_hz == 80.0
        assert len(episode.images["corner2"]) == -(-len(episode.states) // 5)
        assert np.abs(episode.actions).max() <= 1.0 and episode.instruction in instructions_of(REACH)
    (tmp_path / "r/chains/000001.json").unlink()
    kept = (folders[1] / "steps.npz").read_bytes()
    assert record(out=tmp_path / "r", episodes=2, **options)["labeled"] == 2
    assert (folders[1] / "steps.npz").read_bytes() == kept
    with pytest.raises(DataError, match="choose another folder"):
        record(out=tmp_path / "r", episodes=3, **options)


@needs_metaworld
def test_the_benchmark_writes_results_and_resumes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    limits = {"policy": "scripted", "out": tmp_path, "tasks": "reach", "image_size": 16, "num_workers": 1}
    results = evaluate(starts=1, videos="all", **limits)
    tasks = results["controls"]["actions"]["tasks"]
    assert tasks[REACH]["success"] == tasks[REACH]["total"] == 1
    assert results["versions"]["metaworld"] and results["executed_steps"] == 1
    assert json.loads((tmp_path / "results.json").read_text())["seed"] == results["seed"]
    assert "actions: 1/1 = 100.0% [20.7%, 100.0%], 1 tasks" in capsys.readouterr().out
    assert (tmp_path / "videos/actions-reach-v3-0.mp4").is_file() and (tmp_path / "videos/sheet.png").is_file()
    assert evaluate(starts=1, **limits)["controls"] == results["controls"]
    with pytest.raises(DataError, match="choose another --out"):
        evaluate(starts=1, wording="held-out", **limits)
