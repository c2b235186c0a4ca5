"""Robot episodes as a LeRobot dataset: what was exported is read back, and what cannot be exported is named."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from gr2.cli.main import main
from gr2.contracts import Episode
from gr2.data_pipeline.readers.source import open_source
from gr2.data_pipeline.store.episodes import write_episode
from gr2.data_pipeline.store.lerobot_writer import export
from gr2.data_pipeline.video.reader import open_video, write_video
from gr2.errors import ConfigError, DataError

LENGTHS, STRIDE = (12, 7, 9), 5


def episode(number: int, *, side: int = 16, instruction: str = "") -> Episode:
    """Draw an episode: an image of one gray level each `STRIDE` steps."""
    rng, steps = np.random.default_rng(number), LENGTHS[number % len(LENGTHS)]
    count = -(-steps // STRIDE)
    levels = (40 * np.arange(count) + 25 * number) % 230
    images = np.broadcast_to(levels[:, None, None, None], (count, side, side, 3)).astype(np.uint8)
    actions = rng.normal(size=(steps, 8))
    actions[:, 3:7] /= np.linalg.norm(actions[:, 3:7], axis=1, keepdims=True)
    actions[:, 7] = rng.integers(0, 2, steps)
    return Episode(
        images={"static": images, "gripper": images[::-1]}, states=rng.normal(size=(steps, 16)).astype(np.float32),
        actions=actions.astype(np.float32), instruction=instruction or f"task {number % 2}", control_hz=30.0,
        frame_stride=STRIDE,
    )  # fmt: skip


def recorded(folder: Path, *episodes: Episode) -> Path:
    """Write episodes as `gr2 data record` does."""
    for number, one in enumerate(episodes):
        write_episode(folder, number, one, {"task": one.instruction})
    return folder


def test_what_was_exported_is_read_back(tmp_path: Path) -> None:
    originals = [episode(i) for i in range(3)]
    source = recorded(tmp_path / "record", *originals)
    found = export(source=source, out=tmp_path / "set", frames_per_file=15)
    assert found == {"episodes": 3, "frames": sum(LENGTHS), "left_out": {}}
    videos = sorted((tmp_path / "set" / "videos" / "observation.images.static" / "chunk-000").iterdir())
    assert [video.name for video in videos] == ["file-000.mp4", "file-001.mp4"]
    with open_video(videos[0]) as reader:
        assert reader.shape == (12 + 7, 16, 16) and np.allclose(reader.times, np.arange(19) / 30, atol=1e-4)
    records = list(open_source(tmp_path / "set"))
    before = list(open_source(source))
    for record, old, original in zip(records, before, originals, strict=True):
        assert not record.problem and not record.repairs and record.embodiment == old.embodiment
        again = record.decode()
        assert isinstance(again, Episode) and again.instruction == original.instruction and again.control_hz == 30
        assert np.array_equal(again.states, original.states) and np.array_equal(again.actions, original.actions)
        for camera, images in original.images.items():
            shown = images[np.arange(len(original.states)) // STRIDE]
            assert np.abs(again.images[camera].astype(int) - shown).max() <= 4


def test_the_metadata_are_those_of_v3(tmp_path: Path) -> None:
    export(source=recorded(tmp_path / "record", episode(0), episode(1)), out=tmp_path / "set")
    meta = tmp_path / "set" / "meta"
    info = json.loads((meta / "info.json").read_text())
    assert (info["codebase_version"], info["total_episodes"], info["total_frames"]) == ("v3.0", 2, 19)
    assert info["fps"] == 30 and isinstance(info["fps"], int)
    assert info["features"]["observation.images.static"]["shape"] == [16, 16, 3]
    names = info["features"]["observation.state"]["names"]
    assert len(names) == len(set(names)) == 16
    rows = pq.read_table(meta / "episodes" / "chunk-000" / "file-000.parquet").to_pylist()
    key = "videos/observation.images.gripper"
    assert rows[1]["dataset_from_index"] == 12 and rows[1][f"{key}/from_timestamp"] == pytest.approx(12 / 30)
    tasks = pq.read_table(meta / "tasks.parquet")
    assert tasks.column("task").to_pylist() == ["task 0", "task 1"]
    assert json.loads(tasks.schema.metadata[b"pandas"])["index_columns"] == ["task"]
    stats = json.loads((meta / "stats.json").read_text())
    states = np.concatenate([episode(0).states, episode(1).states])
    assert np.allclose(stats["observation.state"]["std"], states.std(0), atol=1e-5) and stats["action"]["count"] == [19]
    assert np.shape(stats["observation.images.static"]["mean"]) == (3, 1, 1)


def test_what_has_no_steps_is_left_out_and_counted(tmp_path: Path) -> None:
    write_video(tmp_path / "clips" / "clip.mp4", np.zeros((6, 16, 16, 3), np.uint8), 3.0)
    with pytest.raises(DataError, match=r"got none \({'no steps': 1}\)"):
        export(source=tmp_path / "clips", out=tmp_path / "set")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["clips"]


def test_episodes_that_do_not_fit_are_named_and_nothing_is_half_written(tmp_path: Path) -> None:
    source = recorded(tmp_path / "record", episode(0), episode(1, side=32))
    with pytest.raises(DataError, match=r"another observation\.images\.gripper"):
        export(source=source, out=tmp_path / "set")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["record"]
    with pytest.raises(DataError, match="empty or does not exist"):
        export(source=source, out=tmp_path / "record")
    with pytest.raises(ConfigError, match="at least 1 and 0"):
        export(source=source, out=tmp_path / "set", frames_per_file=0)


def test_the_command_writes_into_the_folder_that_it_has_locked(tmp_path: Path) -> None:
    source = recorded(tmp_path / "record", episode(0))
    command = ["data", "export", "--source", str(source), "--out", str(tmp_path / "set")]
    assert main(command) == 0
    assert sorted(path.name for path in (tmp_path / "set").iterdir()) == ["data", "meta", "videos"]
    assert main(command) != 0, "the second one must not write over the first"


def test_what_gr2_kept_of_the_robot_must_fit_the_features(tmp_path: Path) -> None:
    export(source=recorded(tmp_path / "record", episode(0)), out=tmp_path / "set")
    file = tmp_path / "set" / "meta" / "gr2_embodiment.json"
    robot = json.loads(file.read_text())
    file.write_text(json.dumps(robot | {"action": robot["action"][:1]}))
    with pytest.raises(DataError, match="got 16 and 3; remove it"):
        open_source(tmp_path / "set")
    for broken in ('{"name": 3}', "{", "[1]"):
        file.write_text(broken)
        with pytest.raises(DataError, match="expected what gr2 wrote of the robot"):
            open_source(tmp_path / "set")
