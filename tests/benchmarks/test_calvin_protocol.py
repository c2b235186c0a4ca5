"""CALVIN's tasks, sequences and starts agree with what was recorded from the official simulator."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from gr2.benchmarks.calvin.sequences import (
    TASK_NAMES,
    _rules,
    _sample_tasks,
    apply,
    as_rows,
    fnv1_32,
    initial_scene,
    initial_states,
    official_sequences,
    state_seed,
)
from gr2.benchmarks.calvin.verify import check_folder, tasks_done, verify
from gr2.benchmarks.playtable.environment import PlayTable
from gr2.benchmarks.playtable.tasks import ALL_TASKS, TASKS
from gr2.benchmarks.playtable.world import WorldState
from gr2.errors import ConfigError, DataError

GOLDEN = Path(__file__).resolve().parents[3] / "shared" / "calvin" / "golden"
needs_recordings = pytest.mark.skipif(not GOLDEN.is_dir(), reason="recordings of the official simulator are absent")


def state(**changes: object) -> WorldState:
    """A scene at rest: three blocks on the desk, nothing in the hand."""
    colors = ("red", "blue", "pink")
    upright = np.array([0.0, 0.0, 0.0, 1.0])
    values: dict[str, object] = {
        "tool_position": np.array([0.0, -0.2, 0.6]),
        "tool_quaternion": upright,
        "finger_width": 0.08,
        "gripper_command": 1.0,
        "slider": 0.0,
        "drawer": 0.0,
        "button": 0.0,
        "switch": 0.0,
        "bulb": False,
        "led": False,
        "blocks": {c: (np.array([0.1 * i, -0.1, 0.46]), upright) for i, c in enumerate(colors)},
        "contacts": {c: frozenset({("table", "base_link")}) for c in colors},
        "velocities": {c: np.zeros(6) for c in colors},
    }
    return WorldState(**{**values, **changes})  # type: ignore[arg-type]


def moved(color: str, by: tuple[float, float, float], yaw_deg: float = 0.0) -> dict[str, object]:
    """Blocks of `state`, one of them moved and turned."""
    half = np.radians(yaw_deg) / 2
    blocks = dict(state().blocks)
    blocks[color] = (blocks[color][0] + by, np.array([0.0, 0.0, np.sin(half), np.cos(half)]))
    return {"blocks": blocks}


def touching(color: str, *contacts: tuple[str, str]) -> dict[str, object]:
    """Contacts of `state`, those of one block replaced; the robot knows of them."""
    robot = frozenset({f"block_{color}"}) if ("robot", "") in contacts else frozenset()
    return {"contacts": {**state().contacts, color: frozenset(contacts)}, "robot_contacts": robot}


@needs_recordings
def test_everything_recorded_agrees(capsys: pytest.CaptureFixture[str]) -> None:
    assert verify(folder=GOLDEN) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(" of ")[0].split()[-1] for line in lines[:4]] == ["34", "503", "1000", "192"]
    assert "rollouts: skipped" in lines[4] and "trajectories.json: skipped" in lines[5]


@needs_recordings
@pytest.mark.parametrize("letter", ["A", "B", "C", "D"])
def test_on_calvins_files_the_official_simulator_is_repeated_to_the_last_bit(letter: str) -> None:
    with np.load(GOLDEN / "rollouts" / f"rollout_{letter}.npz", allow_pickle=False) as file:
        recorded = dict(file)
    env = PlayTable(letter, calvin_root=GOLDEN.parent, render_mode=None)
    start = {"robot_obs": recorded["neutral_robot_obs"], "scene_obs": recorded["initial_scene_obs"]}
    for _ in range(2):  # a second time in the same process, too
        seen, _ = env.reset(options=start)
        for step, action in enumerate(recorded["rel_actions"]):
            assert np.array_equal(seen["robot_obs"], recorded["robot_obs"][step]), step
            assert np.array_equal(seen["scene_obs"], recorded["scene_obs"][step]), step
            seen, *_ = env.step(action)
    env.close()


LAST_BLOCK_XYZ = {
    "C_button_off": [0.1515779282849761, 0.07581489602290861, 0.4609775724534588],
    "switch_off": [0.07988954516942037, 0.11074599062739057, 0.46099007642971424],
    "drawer_open": [0.04348669832234439, 0.08623548204096733, 0.46098919507711306],
}
"""Where calvin_env 797142c has the third block after these replays [m]: it shows in which order contacts came."""


@needs_recordings
@pytest.mark.parametrize("name", list(LAST_BLOCK_XYZ))
def test_contacts_come_in_the_order_of_the_official_simulator(name: str) -> None:
    episodes = json.loads((GOLDEN / "trajectories.json").read_text())["episodes"]
    episode = next(one for one in episodes if one["name"] == name)
    env = PlayTable(episode["scene"][-1], calvin_root=GOLDEN.parent, render_mode=None)
    seen, _ = env.reset(options={kind: episode[f"initial_{kind}"] for kind in ("robot_obs", "scene_obs")})
    for action in episode["commanded_rel_actions"]:
        seen, *_ = env.step(np.array(action))
    env.close()
    assert seen["scene_obs"][18:21].tolist() == LAST_BLOCK_XYZ[name]


@needs_recordings
def test_images_and_depth_on_calvins_files_are_those_recorded() -> None:
    with np.load(GOLDEN / "rollouts" / "rollout_D.npz", allow_pickle=False) as file:
        recorded = dict(file)
    assert recorded["image_steps"][0] == 0
    env = PlayTable("D", calvin_root=GOLDEN.parent, render_mode=None)
    env.reset(options={"robot_obs": recorded["neutral_robot_obs"], "scene_obs": recorded["initial_scene_obs"]})
    for camera in ("static", "gripper"):
        assert np.array_equal(env.draw(camera), recorded[f"rgb_{camera}"][0])
    assert np.array_equal(env.draw_depth("static"), recorded["depth_static"][0])
    env.close()


def test_a_folder_that_is_no_clone_of_calvin_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="expected a clone of mees/calvin"):
        PlayTable("D", calvin_root=tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "conf" / "scene").mkdir(parents=True)
    with pytest.raises(ConfigError, match="scene file"):
        PlayTable("D", calvin_root=tmp_path)
    surfaces = "surfaces:\n  table: [[0.0, -0.15, 0.46], [0.35, -0.03, 0.46]]\n"
    (tmp_path / "conf" / "scene" / "calvin_scene_D.yaml").write_text(surfaces)
    with pytest.raises(ConfigError, match=r"expected the file .*panda_longer_finger\.urdf, found none"):
        PlayTable("D", calvin_root=tmp_path)


@needs_recordings
def test_a_changed_recording_is_noticed_and_a_missing_one_named(tmp_path: Path) -> None:
    recorded = json.loads((GOLDEN / "oracle_cases.json").read_text())
    recorded["cases"][0]["tasks"] = ["stack_block"]
    (tmp_path / "oracle_cases.json").write_text(json.dumps(recorded))
    assert verify(folder=tmp_path, json=tmp_path / "result.json") == 1
    assert json.loads((tmp_path / "result.json").read_text())[0]["agree"] == 502
    assert "sequences.json: not there, skipped" in list(check_folder(tmp_path))


@needs_recordings
def test_trajectories_are_replayed_and_judged(tmp_path: Path) -> None:
    env = PlayTable("D", calvin_root=GOLDEN.parent, render_mode=None)
    begin = {"robot_obs": env.robot_obs(), "scene_obs": env.scene_obs()}
    lights_on = np.array([*begin["scene_obs"][:5], 1.0, *begin["scene_obs"][6:]])
    seen, _ = env.reset(options=begin | {"scene_obs": lights_on})
    start, actions = env.world_state(), np.tile([0.3, 0.0, -0.2, 0.0, 0.0, 0.1, 1.0], (6, 1))
    for action in actions:
        seen, *_ = env.step(action)
    done = sorted(tasks_done(start, env.world_state()))
    env.close()
    episode = {
        "name": "reach", "split": "training", "scene": "calvin_scene_D", "start": 40, "end_inclusive": 46,
        "commanded_rel_actions": actions.tolist(), "windows": [
            {"task": "none", "start": 40, "end": 46, "oracle_on_live_infos": done}
        ],
        "initial_robot_obs": begin["robot_obs"].tolist(), "initial_scene_obs": lights_on.tolist(),
        "final_robot_obs": seen["robot_obs"].tolist(), "final_scene_obs": seen["scene_obs"].tolist(),
    }  # fmt: skip
    file = tmp_path / "golden" / "trajectories.json"
    file.parent.mkdir()
    file.write_text(json.dumps({"episodes": [episode]}))
    found = [a for a in check_folder(file.parent, GOLDEN.parent) if not isinstance(a, str)]
    assert [(a.kind, a.cases, a.agree, a.largest_difference) for a in found] == [
        ("outcomes", 1, 1, 0.0), ("trajectories", 1, 1, 0.0)
    ]  # fmt: skip
    episode["final_robot_obs"][3] += 2 * np.pi - 2e-3  # an angle, the long way round
    episode["windows"][0]["oracle_on_live_infos"] = ["open_drawer"]  # type: ignore[index]
    file.write_text(json.dumps({"episodes": [episode]}))
    found = [a for a in check_folder(file.parent, GOLDEN.parent) if not isinstance(a, str)]
    assert [a.agree for a in found] == [0, 0] and found[1].largest_difference == pytest.approx(2e-3)
    assert verify(folder=file.parent, calvin_root=GOLDEN.parent) == 1


def test_folders_without_recordings_say_so(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"expected tasks\.json"):
        verify(folder=tmp_path)
    (tmp_path / "oracle_cases.json").write_text('{"cases": [{"id": 0}]}')
    with pytest.raises(DataError, match="'start' is missing"):
        verify(folder=tmp_path)


def test_the_hash_has_the_values_of_pyhash() -> None:
    assert [fnv1_32(text) for text in ("", "a", "aa", "hello world")] == [0, 1627429043, 3026828152, 3799943344]
    assert len({state_seed(s) for s in initial_states()}) == len(initial_states()) == 192


def test_shipped_sequences_can_be_done_and_are_those_of_the_generator() -> None:
    sequences = official_sequences()
    assert len(sequences) == 1000
    categories = {name: category for name, (category, _) in _rules().items()}
    for sequence in sequences:
        assert len({categories[name] for name in sequence.tasks}) == 5
        now = dict(sequence.initial_state)
        for name in sequence.tasks:
            after = apply(name, now)
            assert after is not None
            now = after
    rows = list(as_rows(sequences))
    counts = np.bincount([row[0] for row in rows])
    assert list(counts) == [6] * 40 + [5] * 152
    for seed in (0, 77):
        drawn = _sample_tasks(initial_states()[seed], np.random.RandomState(seed))
        assert [seed, *(TASK_NAMES.index(name) for name in drawn)] in rows


def test_starts_put_blocks_where_their_state_says() -> None:
    one = next(s for s in initial_states() if list(s.values()).count("table") == 1 and s["pink_block"] == "table")
    scene = initial_scene(one)
    assert scene.shape == (24,)
    assert [scene[7], scene[13], scene[19]] == pytest.approx([0.0924, 0.0924, -0.12], abs=1e-4)
    slots = [0.0500000896, 0.229995412]
    np.random.RandomState(state_seed(one)).shuffle(slots)
    assert scene[18] == slots[1]  # pink takes the second slot even where it is alone


def test_the_demonstrated_tasks_are_among_the_34_of_calvin() -> None:
    assert tuple(ALL_TASKS) == TASK_NAMES
    assert len(TASKS) == 17
    assert set(TASKS) < set(ALL_TASKS)


@pytest.mark.parametrize(
    ("task", "start", "end"),
    [
        ("rotate_red_block_left", {}, moved("red", (0.02, 0, 0), 70)),
        ("rotate_red_block_right", {}, moved("red", (0, 0, 0), -70)),
        ("push_blue_block_right", {}, moved("blue", (0.11, 0, 0))),
        ("push_blue_block_left", {}, moved("blue", (-0.11, 0, 0))),
        ("lift_pink_block_table", {}, moved("pink", (0, 0, 0.06)) | touching("pink", ("robot", ""))),
        (
            "lift_red_block_slider",
            touching("red", ("table", "plank_link")),
            moved("red", (0, 0, 0.04)) | touching("red", ("robot", "")),
        ),
        ("place_in_slider", touching("red", ("robot", "")), touching("red", ("table", "plank_link"))),
        ("place_in_drawer", touching("red", ("robot", "")), touching("red", ("table", "drawer_link"))),
        ("stack_block", touching("red", ("robot", "")), touching("red", ("block_blue", ""))),
        ("unstack_block", touching("red", ("block_blue", "")), {}),
        ("push_into_drawer", {}, touching("red", ("table", "drawer_link"))),
        ("turn_on_led", {}, {"led": True}),
        ("turn_off_lightbulb", {"bulb": True}, {}),
        ("open_drawer", {}, {"drawer": 0.13}),
        ("move_slider_right", {"slider": 0.2}, {"slider": 0.04}),
    ],
)
def test_a_task_is_done_and_no_other(task: str, start: dict[str, object], end: dict[str, object]) -> None:
    assert tasks_done(state(**start), state(**end)) == {task}


@pytest.mark.parametrize(
    ("start", "end"),
    [
        ({}, moved("red", (0.2, 0, 0), 70) | touching("red", ("robot", ""))),  # carried away
        ({}, moved("red", (0, 0, 0.06)) | touching("red", ("robot", ""), ("block_blue", ""))),  # with another block
        (touching("red", ("robot", "")), touching("red", ("robot", ""), ("table", "plank_link"))),  # not let go
        (
            touching("red", ("robot", "")),
            touching("red", ("block_blue", "")) | {"velocities": {c: np.full(6, 2.0) for c in ("red", "blue", "pink")}},
        ),  # still falling
        ({}, moved("red", (0, 0, 0.01), 70) | touching("red", ("robot", ""))),  # turned in the air
        ({"led": True}, {"led": True}),
        ({}, {"drawer": 0.11}),
    ],
)
def test_near_misses_are_no_success(start: dict[str, object], end: dict[str, object]) -> None:
    assert tasks_done(state(**start), state(**end)) == set()
