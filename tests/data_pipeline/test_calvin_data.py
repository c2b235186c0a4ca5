"""CALVIN's layout: read, written, and read again; its traps; nothing in a file is run."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from gr2.benchmarks.demonstrations.record import record
from gr2.data_pipeline.curation.ingest import write_video_shards
from gr2.data_pipeline.inspection.calvin import inspect_calvin
from gr2.data_pipeline.readers.source import open_source
from gr2.data_pipeline.store.calvin_layout import (
    FRAME_KEYS,
    Annotation,
    CalvinSplit,
    CalvinWriter,
    RunningStatistics,
    absolute_actions,
    action_poses,
    blocks_by_color,
    relative_actions,
    state_vectors,
)
from gr2.data_pipeline.store.episodes import list_episodes
from gr2.data_pipeline.store.pickled_arrays import load_pickled_array
from gr2.data_pipeline.store.shards import finished_shards
from gr2.errors import DataError

MINI = Path(__file__).resolve().parents[3] / "shared" / "calvin" / "mini_dataset"
needs_mini = pytest.mark.skipif(not MINI.is_dir(), reason="the sample of the CALVIN dataset is absent")

LANGUAGE = Path("lang_annotations") / "auto_lang_ann.npy"


def write_split(path: Path, num_frames: int = 60, gap: int = 40) -> CalvinSplit:
    """Write two ranges of frames with a moving arm; the first half of the first range has an instruction."""
    rng = np.random.default_rng(0)
    robot = np.zeros((num_frames + 1, 15))
    robot[:, :3] = [0.0, -0.2, 0.55] + np.cumsum(rng.normal(0, 0.004, (num_frames + 1, 3)), 0)
    robot[:, 3] = np.where(np.arange(num_frames + 1) % 2, np.pi - 0.01, -np.pi + 0.01)
    robot[:, 5], robot[:, 6], robot[:, 14] = 1.5, 0.08, 1.0
    actions = absolute_actions(robot)
    relative = relative_actions(actions, robot[:-1])
    writer = CalvinWriter(path)
    for i in range(num_frames):
        frame: dict[str, Any] = {
            key: rng.integers(0, 255, shape).astype(dtype) for key, (dtype, shape) in FRAME_KEYS.items()
        }
        frame |= {"robot_obs": robot[i], "actions": actions[i], "rel_actions": relative[i]}
        assert writer.write_frame(frame) == i
    instruction = Annotation(start=0, stop=gap // 2, instruction="open the drawer", task="open_drawer")
    statistics = RunningStatistics()
    for piece in (slice(0, gap), slice(gap, num_frames)):
        statistics.add(robot[piece], rng.normal(size=(len(actions[piece]), 24)), actions[piece])
    writer.finish(
        [(0, gap - 1), (gap, num_frames - 1)], [instruction], {"A": (0, num_frames - 1)}, statistics.as_dict()
    )
    return CalvinSplit(path)


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory) -> CalvinSplit:
    return write_split(tmp_path_factory.mktemp("calvin") / "task_A_A" / "training")


@needs_mini
@pytest.mark.parametrize("name", ["training", "validation"])
def test_the_sample_survives_writing_and_reading(tmp_path: Path, name: str) -> None:
    theirs = CalvinSplit(MINI / name)
    some = [tuple(row) for row in theirs.ranges.tolist()[:2]]
    writer = CalvinWriter(tmp_path, some[0][0])
    for first, last in some:
        for index in range(first, last + 1):
            assert writer.write_frame(theirs.frame(index, tuple(FRAME_KEYS))) == index
    inside = [a for a in theirs.annotations if a.stop - 1 <= some[-1][1]]
    writer.finish(some, inside, {theirs.scene(some[0][0]): (some[0][0], some[-1][1])}, theirs.statistics())
    ours = CalvinSplit(tmp_path)
    assert ours.annotations == tuple(inside)
    assert ours.ranges.tolist() == [list(row) for row in some]
    assert ours.statistics() == theirs.statistics()
    for index in range(some[0][0], some[-1][1] + 1, 7):
        left, right = theirs.frame(index, tuple(FRAME_KEYS)), ours.frame(index, tuple(FRAME_KEYS))
        assert all(np.array_equal(left[key], right[key]) and left[key].dtype == right[key].dtype for key in left)


@needs_mini
def test_actions_of_the_sample_follow_our_definition() -> None:
    training = CalvinSplit(MINI / "training")
    for a in training.annotations:
        robot, actions, relative = (
            training.column(key, a.start, a.stop) for key in ("robot_obs", "actions", "rel_actions")
        )
        assert np.array_equal(actions[:-1], absolute_actions(robot))
        assert np.array_equal(relative, relative_actions(actions, robot))
    assert inspect_calvin(MINI)["training frames"] == 557


def test_a_window_ends_before_its_end_and_the_rest_is_play(split: CalvinSplit) -> None:
    records = list(open_source(split.path.parent))
    assert [(r.caption, len(r.states)) for r in records if r.states is not None] == [
        ("open the drawer", 20),
        ("", 20),
        ("", 20),
    ]
    assert list(split.unlabeled(1)) == [(20, 40), (40, 60)]
    assert records[0].facts == {"task": "open_drawer", "scene": "A", "split": "training"}


def test_statistics_are_those_of_all_frames(split: CalvinSplit) -> None:
    robot, found = split.column("robot_obs", 0, 60), split.statistics()
    assert np.allclose(found["robot_obs"]["mean"], robot.mean(0), atol=1e-6)
    assert np.allclose(found["robot_obs"]["std"], robot.std(0), atol=1e-6)
    assert np.allclose(found["act_max_bound"], split.column("actions", 0, 60).max(0), atol=1e-6)


def test_states_and_actions_are_in_the_robot_frame(split: CalvinSplit) -> None:
    robot, actions = split.column("robot_obs", 0, 10), split.column("actions", 0, 10)
    states, poses = state_vectors(robot), action_poses(actions)
    assert states.shape == (10, 16) and poses.shape == (10, 8)
    assert np.allclose(states[1:, :3], poses[:-1, :3], atol=1e-6)
    assert np.allclose(states[:, :3] - robot[:, :3], [0.34, 0.46, -0.24], atol=1e-6)
    assert np.allclose(states[:, 7:9], 1) and set(poses[:, 7]) == {1.0}
    assert np.abs(relative_actions(actions, robot)[:, 3]).max() <= 0.4 + 1e-9  # the roll wraps at pi


def test_blocks_are_told_apart_by_scene() -> None:
    scene_obs = np.arange(24.0)
    assert blocks_by_color(scene_obs, "A")["pink"][0] == 6 == blocks_by_color(scene_obs, "D")["red"][0]
    assert blocks_by_color(scene_obs, "C")["blue"][0] == 6


def test_shards_are_made_from_frames(split: CalvinSplit, tmp_path: Path) -> None:
    manifest = write_video_shards(source=split.path.parent, out=tmp_path / "shards")
    assert manifest["counts"]["kept"] == 3 and manifest["counts"]["captioned"] == 1
    assert len(finished_shards(tmp_path / "shards")) == 1


def test_a_truncated_frame_drops_its_window_alone(tmp_path: Path) -> None:
    broken = write_split(tmp_path / "training")
    path = broken.frame_path(25)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(DataError, match=r"0000025\.npz: the frame is missing, truncated or corrupt"):
        broken.frame(25, ("robot_obs",))
    assert [bool(record.problem) for record in open_source(tmp_path)] == [False, True, False]
    reasons = {problem["reason"] for problem in inspect_calvin(tmp_path)["problems"]}
    assert "unreadable" in reasons


def test_a_wrong_scene_file_is_overruled_and_named(tmp_path: Path) -> None:
    found = write_split(tmp_path / "training")
    np.save(found.path / "scene_info.npy", np.array({"calvin_scene_A": [0, 611098]}, object), allow_pickle=True)
    assert CalvinSplit(found.path).scene(3) == "D"
    assert "scene_info" in {problem["reason"] for problem in inspect_calvin(tmp_path)["problems"]}


def test_instructions_of_another_dataset_are_refused(tmp_path: Path) -> None:
    found = write_split(tmp_path / "training")
    content = load_pickled_array(found.path / LANGUAGE)
    content["info"]["indx"] = [(35, 60)]
    np.save(found.path / LANGUAGE, np.array(content, dtype=object), allow_pickle=True)
    with pytest.raises(DataError, match="belong to another dataset"):
        _ = CalvinSplit(found.path).annotations


class _Hostile:
    def __reduce__(self) -> Any:
        return os.mkdir, (os.environ["GR2_HOSTILE"],)


def test_nothing_in_a_pickle_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GR2_HOSTILE", str(tmp_path / "ran"))
    np.save(tmp_path / "a.npy", np.array({"language": _Hostile()}, dtype=object), allow_pickle=True)
    with pytest.raises(DataError, match="nothing in it was run"):
        load_pickled_array(tmp_path / "a.npy")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("damage", [b"", b"no numpy file", b"\x93NUMPY\x01\x00"])
def test_a_damaged_array_is_named(tmp_path: Path, damage: bytes) -> None:
    (tmp_path / "a.npy").write_bytes(damage)
    with pytest.raises(DataError, match="Copy it again"):
        load_pickled_array(tmp_path / "a.npy")


def test_plain_objects_come_back(tmp_path: Path) -> None:
    content = {"n": np.float32(3), "spans": [(np.int64(3), 4)], "a": np.ones((2, 3), order="F"), "s": "text"}
    np.save(tmp_path / "a.npy", np.array(content, dtype=object), allow_pickle=True)
    found = load_pickled_array(tmp_path / "a.npy")
    assert found["n"] == 3 and found["spans"] == [(3, 4)] and found["s"] == "text"
    assert np.array_equal(found["a"], np.ones((2, 3)))


def test_a_frame_of_another_kind_is_refused(split: CalvinSplit, tmp_path: Path) -> None:
    frame = split.frame(0, tuple(FRAME_KEYS))
    writer = CalvinWriter(tmp_path)
    with pytest.raises(DataError, match="expected robot_obs as float64"):
        writer.write_frame(frame | {"robot_obs": frame["robot_obs"].astype(np.float32)})
    frame.pop("actions")
    with pytest.raises(DataError, match="expected the array 'actions'"):
        writer.write_frame(frame)
    assert not list(tmp_path.glob("*.npz"))


def test_demonstrations_are_recorded_in_this_layout(tmp_path: Path) -> None:
    out = tmp_path / "task_D_D" / "training"
    options: dict[str, Any] = {"tasks": "open_drawer,close_drawer,turn_on_led,turn_off_led", "image_size": 24}
    done = record(out=out, scenes="D", layout="calvin", chains=2, play_share=0.0, num_workers=1, seed=3, **options)
    found = CalvinSplit(out)
    assert done["labeled"] == len(found.annotations) == len(found.ranges) > 2
    for a, (first, last) in zip(found.annotations, found.ranges.tolist(), strict=True):
        assert (
            (a.start, a.stop) == (first, last) and last - first >= 33 and a.instruction and a.task in options["tasks"]
        )
        robot, actions = found.column("robot_obs", first, last + 1), found.column("actions", first, last + 1)
        assert np.array_equal(actions[:-1], absolute_actions(robot))
        assert np.array_equal(found.column("rel_actions", first, last + 1), relative_actions(actions, robot))
    assert found.scene(0) == "D" and not list(out.glob("pieces/*/*.npz"))
    before = {p.name: p.read_bytes() for p in out.glob("*.npy")}
    record(out=out, scenes="D", layout="calvin", chains=2, play_share=0.0, num_workers=1, seed=3, **options)
    assert before == {p.name: p.read_bytes() for p in out.glob("*.npy")}
    names = {problem["reason"] for problem in inspect_calvin(out)["problems"]}
    assert not names
    loads_with_calvins_own_rules(out)


def loads_with_calvins_own_rules(split: Path, *, shortest: int = 16, longest: int = 32) -> None:
    """Do with plain numpy what calvin_agent's DiskDataset and SharedMemoryLoader do, and fail where they would."""
    ranges = np.load(split / "ep_start_end_ids.npy")
    language = np.load(split / "lang_annotations" / "auto_lang_ann.npy", allow_pickle=True).item()
    keys = ("rgb_static", "rgb_gripper", "depth_static", "depth_gripper", "rel_actions", "actions", "robot_obs")
    starts = {index for first, last in ranges for index in range(first, last + 1 - shortest)}
    assert all(last > longest for _, last in ranges)
    windows = language["info"]["indx"]
    assert len(windows) == len(language["language"]["emb"]) == len(language["language"]["ann"])
    for (first, end), vector in zip(windows, language["language"]["emb"], strict=True):
        assert end >= longest and first in starts and vector.shape == (1, 384) and vector.any()
        assert len(range(first, end + 1 - longest)) > 0
        assert any(low <= first and end <= high for low, high in ranges)  # shared memory leaves out the last frame
        for index in (first, end - 1):
            with np.load(split / f"episode_{index:07d}.npz") as frame:
                assert set(keys) <= set(frame) and frame["depth_static"].dtype == np.float32
    tasks = np.load(split / "lang_annotations" / "embeddings.npy", allow_pickle=True).item()
    assert len(tasks) == 34
    assert all(v["emb"].shape == (1, 1, 384) and v["emb"].any() and len(v["ann"]) == 1 for v in tasks.values())
    settings = yaml.safe_load((split / ".hydra" / "merged_config.yaml").read_text())
    assert settings["env"]["cameras"] == "${cameras}" and set(settings["cameras"]) == {"static", "gripper"}
    assert settings["scene"]["objects"]["fixed_objects"]["table"]["file"] == "calvin_table_D/urdf/calvin_table_D.urdf"


def test_as_many_demonstrations_as_asked_for_and_at_once_as_shards(tmp_path: Path) -> None:
    options: dict[str, Any] = {"tasks": "open_drawer,close_drawer,turn_on_led", "image_size": 16, "num_workers": 1}
    done = record(out=tmp_path, layout="shards", episodes=7, play_share=0.0, seed=1, **options)
    assert done["labeled"] >= 7
    assert len(list_episodes(tmp_path / "episodes")) == done["labeled"]
    manifest = json.loads((tmp_path / "shards" / "manifest.json").read_text())
    assert manifest["counts"]["kept"] == done["labeled"]
    again = record(out=tmp_path, layout="shards", episodes=7, play_share=0.0, seed=1, **options)
    assert again["labeled"] == done["labeled"]
    with pytest.raises(DataError, match="choose another folder"):
        record(out=tmp_path, layout="shards", episodes=8, play_share=0.0, seed=1, **options)
