"""Episodes in HDF5 files and zarr replay buffers, folders of frames, animated WEBP, datasets in the hub's cache."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gr2.data_pipeline.curation.filters import FilterConfig
from gr2.data_pipeline.curation.ingest import write_video_shards
from gr2.data_pipeline.readers import source
from gr2.data_pipeline.readers.lerobot import LeRobotSource
from gr2.data_pipeline.readers.source import open_source
from gr2.data_pipeline.statistics.table import statistics
from gr2.errors import ConfigError, DataError, EnvironmentMissing

h5py = pytest.importorskip("h5py", reason="h5py is not installed (pip install 'gr2[hdf5]')")
zarr = pytest.importorskip("zarr", reason="zarr is not installed (pip install 'gr2[zarr]')")

STEPS = 12


def images(seed=0, steps=STEPS):
    """Smooth moving images, uint8 `[t 24 32 3]`."""
    ramp = np.arange(32)[None, None, :, None] * 4 + np.arange(24)[None, :, None, None] * 2
    moved = ramp + 6 * np.arange(steps)[:, None, None, None] + 20 * seed
    return np.broadcast_to(moved, (steps, 24, 32, 3)).astype(np.uint8)


def robomimic(path, *, controller="OSC_POSE", demos=("demo_0", "demo_2", "demo_10"), libero=False):
    rng = np.random.default_rng(0)
    kwargs = {"control_freq": 20, "controller_configs": {"type": controller, "control_delta": True}}
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        data.attrs["env_args"] = json.dumps({"env_name": "Lift", "env_kwargs": kwargs})
        if libero:
            data.attrs["problem_info"] = json.dumps({"language_instruction": "open the drawer"})
        for number, name in enumerate(demos):
            demo = data.create_group(name)
            demo["actions"] = np.concatenate([rng.uniform(-1, 1, (STEPS, 6)), np.full((STEPS, 1), -1.0)], axis=1)
            demo["states"] = rng.normal(size=(STEPS, 30))
            widths = (
                {"ee_pos": 3, "ee_ori": 3, "gripper_states": 2}
                if libero
                else {"robot0_eef_pos": 3, "robot0_eef_quat": 4, "robot0_gripper_qpos": 2}
            )
            for key, width in widths.items():
                demo[f"obs/{key}"] = rng.uniform(0.1, 0.5, (STEPS, width))
            cameras = (
                ("agentview_rgb", "eye_in_hand_rgb") if libero else ("agentview_image", "robot0_eye_in_hand_image")
            )
            for camera in cameras:
                demo[f"obs/{camera}"] = images(number)
                demo[f"next_obs/{camera}"] = images(number)
    return path


def test_robomimic_is_read_with_what_its_controller_takes(tmp_path):
    records = list(open_source(robomimic(tmp_path / "lift.hdf5")))
    assert [record.source for record in records] == [f"lift.hdf5/demo_{i}" for i in (0, 2, 10)]
    first = records[0]
    assert not first.problem and sorted(first.videos) == ["robot0_eye_in_hand", "static"]
    assert first.states.shape == (STEPS, 9) and first.control_hz == 20 and first.facts["rate"] == "stated"
    assert (first.actions[:, -1] == 1).all()  # -1 opens the gripper
    kinds = [(signal.kind, signal.reference, signal.unit) for signal in first.embodiment.action]
    assert kinds == [("position", "delta", ""), ("rotation", "delta", ""), ("gripper", "absolute", "")]
    assert [signal.kind for signal in first.embodiment.state] == ["position", "rotation", "gripper"]
    assert abs(records[1].decode().images["static"].astype(int) - images(1)).mean() < 2


def test_actions_of_another_controller_are_kept_as_they_are(tmp_path):
    record = next(iter(open_source(robomimic(tmp_path / "a.hdf5", controller="JOINT_VELOCITY"))))
    assert (record.actions[:, -1] == -1).all()
    assert "absolute or delta" in record.embodiment.action[0].unknown(True)


def test_instructions_and_states_of_libero(tmp_path):
    record = next(iter(open_source(robomimic(tmp_path / "a.hdf5", libero=True))))
    assert record.caption == "open the drawer" and record.states.shape == (STEPS, 8)
    assert sorted(record.videos) == ["eye_in_hand", "static"]


def test_the_spec_of_libero_names_its_signals_and_turns_its_images(tmp_path):
    file = robomimic(tmp_path / "a.hdf5", libero=True)
    plain, record = (next(iter(open_source(file, spec=spec))) for spec in (None, Path("libero")))
    assert record.caption == "open the drawer" and record.embodiment.name == "libero" and record.control_hz == 20
    assert record.embodiment.cameras == ("agentview", "eye_in_hand") == tuple(record.videos)
    assert [signal.unit for signal in record.embodiment.state] == ["m", "rad", "m"]
    assert (record.actions[:, -1] == 1).all() and np.array_equal(record.actions, plain.actions)
    stored, turned = (r.decode().images[name].astype(int) for r, name in ((plain, "static"), (record, "agentview")))
    assert abs(turned - stored[:, ::-1, ::-1]).mean() < 2 < abs(turned - stored).mean()
    manifest = write_video_shards(source=str(file), out=tmp_path / "shards", spec=Path("libero"))
    assert manifest["counts"]["kept"] == 3


def test_images_are_turned_of_arrays_alone(tmp_path):
    spec = tmp_path / "spec.yaml"
    spec.write_text("cameras: {top: a}\nactions: [b]\nturned_cameras: [side]\n")
    with pytest.raises(ConfigError, match=r"turned_cameras: expected some of \['top'\], got \['side'\]"):
        open_source(tmp_path, spec=spec)
    spec.write_text("cameras: {top: a}\nactions: [b]\nturned_cameras: top\n")
    np.savez(tmp_path / "a.npz", a=images(), b=np.zeros((STEPS, 1)))
    (record,) = open_source(tmp_path / "a.npz", spec=spec)
    assert abs(record.decode().images["top"].astype(int) - images()[:, ::-1, ::-1]).mean() < 2


def test_images_of_videos_are_not_turned(tmp_path, monkeypatch):
    monkeypatch.setattr(source, "_recognize", lambda *given: object.__new__(LeRobotSource))
    with pytest.raises(ConfigError, match="expected HDF5, zarr or npz for turned_cameras, got 'lerobot'"):
        open_source(tmp_path, spec=Path("libero"))
    (tmp_path / "libero").write_text("cameras: {top: a}")
    monkeypatch.chdir(tmp_path)
    open_source(tmp_path, spec=Path("libero"))  # a file of this name comes first


def test_any_layout_of_hdf5_is_read_by_a_spec(tmp_path):
    with h5py.File(tmp_path / "all.h5", "w") as file:
        for name in ("a/run2", "a/run10"):
            group = file.create_group(name)
            group["video/top"], group["q"], group["dq"] = images(), np.zeros((STEPS, 6)), np.ones((STEPS, 6))
            group["words"] = "push the block"
    spec = tmp_path / "spec.yaml"
    spec.write_text(
        "cameras: {top: video/top}\nstates: q\nactions: dq\ninstructions: words\ncontrol_hz: 15\n"
        "state_signals: [{name: joints, width: 6, kind: joint_position}]\n"
    )
    records = list(open_source(tmp_path / "all.h5", spec=spec))
    assert [record.source for record in records] == ["all.h5/a/run2", "all.h5/a/run10"]
    assert records[0].caption == "push the block" and records[0].control_hz == 15
    spec.write_text("cameras: {top: video/side}\nactions: dq\n")
    (record,) = open_source(tmp_path / "all.h5", spec=spec)
    assert "video/side" in record.problem and "a/run2/q" in record.problem


def jpegs(seed=0):
    files = []
    for image in images(seed):
        Image.fromarray(image).save(data := io.BytesIO(), "JPEG", quality=95)
        files.append(data.getvalue())
    return files


def aloha(path, stored, *, camera="cam_high"):
    with h5py.File(path, "w") as file:
        file["action"], file["observations/qpos"] = np.ones((STEPS, 14)), np.zeros((STEPS, 14))
        if isinstance(stored, list):  # of any length each
            place = file.create_dataset(f"observations/images/{camera}", (STEPS,), dtype=h5py.vlen_dtype(np.uint8))
            for step, data in enumerate(stored):
                place[step] = np.frombuffer(data, np.uint8)
        else:
            file[f"observations/images/{camera}"] = stored
        file[f"observations/images/{camera}_depth"] = np.ones((STEPS, 24, 32), np.uint16)


@pytest.mark.parametrize("form", ["pixels", "padded", "bytes", "any length", "channels first", "floats"])
def test_images_of_aloha_in_every_form(tmp_path, form):
    files = jpegs()
    rows = np.zeros((STEPS, max(map(len, files))), np.uint8)
    for row, data in zip(rows, files, strict=True):
        row[: len(data)] = np.frombuffer(data, np.uint8)
    forms = {"pixels": images(), "padded": rows, "bytes": np.array(files), "any length": files}
    forms |= {"channels first": images().transpose(0, 3, 1, 2), "floats": (images() / 255).astype(np.float32)}
    aloha(tmp_path / "episode_0.hdf5", forms[form])
    (record,) = open_source(tmp_path)
    assert not record.problem and list(record.videos) == ["static"] and record.states.shape == (STEPS, 14)
    assert abs(record.decode().images["static"].astype(int) - images()).mean() < 3


def test_groups_with_actions_are_episodes_wherever_they_lie(tmp_path):
    with h5py.File(tmp_path / "trajectory.h5", "w") as file:
        for number in (0, 1, 2, 10):
            group = file.create_group(f"traj_{number}")
            for camera in ("base", "hand"):
                group[f"obs/sensor/{camera}/rgb"] = images(number, STEPS + 1)
            if number != 2:
                group["actions"] = np.full((STEPS, 8), number)
        file["gone"] = h5py.SoftLink("/nowhere")
    first, second, broken, last = open_source(tmp_path)
    assert [record.actions[0, 0] for record in (first, second, last)] == [0, 1, 10]
    assert list(second.videos) == ["static", "hand"] and len(second.actions) == STEPS
    assert "an observation after the last action left out" in second.repairs
    assert abs(second.decode().images["static"].astype(int) - images(1)).mean() < 3
    assert "traj_2: expected actions in each episode" in broken.problem


@pytest.mark.parametrize(
    ("name", "clips"),
    [("clip", 3), ("data/ep", 3), ("data/a/traj", 3), ("", 3), ("camera", 1), ("side_view", 1), ("sensor", 1)],
)
def test_groups_of_images_without_actions_are_clips_where_they_are_named_as_such(tmp_path, name, clips):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        for number in (2, 10, 1):
            file[f"{name}_{number}/rgb".lstrip("_")] = images(number, STEPS)
        file["meta/rate"] = 10.0
    records = list(open_source(tmp_path))
    assert len(records) == clips and not any(record.problem for record in records)
    assert [len(record.videos) for record in records] == [3 // clips] * clips
    if clips == 3:
        assert abs(records[1].decode().frames.astype(int) - images(2)).mean() < 3


@pytest.mark.parametrize("suffix", [".hdf5", ".npz", ".zarr"])
def test_a_last_step_without_an_action_is_left_out_and_counted(tmp_path, suffix):
    actions = np.ones((STEPS, 7), np.float32)
    actions[-1] = np.nan
    if suffix == ".npz":
        np.savez(tmp_path / "a.npz", image=images(), state=np.zeros((STEPS, 3)), action=actions)
    elif suffix == ".hdf5":
        with h5py.File(tmp_path / "a.hdf5", "w") as file:
            file["action"], file["qpos"], file["rgb"] = actions, np.zeros((STEPS, 3)), images()
    else:
        root = zarr.open_group(str(replay_buffer(tmp_path / "a.zarr", ends=(STEPS,))), mode="r+")
        root["data/action"][-1] = np.nan
    (record,) = open_source(tmp_path)
    assert "a last step without an action left out" in record.repairs
    assert len(record.states) == len(record.actions) == len(record.decode().images["static"]) == STEPS - 1
    assert np.isfinite(record.actions).all()


def test_hdf5_files_at_several_depths_are_all_read(tmp_path):
    for folder in ("", "day", "day/run"):
        (tmp_path / folder).mkdir(exist_ok=True)
        robomimic(tmp_path / folder / "a.hdf5", demos=["demo_0"])
    assert [r.source for r in open_source(tmp_path)] == [f"{f}a.hdf5/demo_0" for f in ("", "day/", "day/run/")]


def test_hdf5_becomes_shards_and_statistics(tmp_path):
    robomimic(tmp_path / "lift.hdf5")
    manifest = write_video_shards(source=str(tmp_path / "lift.hdf5"), out=tmp_path / "shards")
    assert manifest["counts"]["kept"] == 3 and manifest["counts"]["with_actions"] == 3
    statistics(source=tmp_path / "lift.hdf5", json=tmp_path / "s.json")
    assert (tmp_path / "s.json").is_file()


def test_a_damaged_hdf5_file_is_refused(tmp_path):
    (tmp_path / "a.hdf5").write_bytes(b"\x89HDF no more")
    with pytest.raises(DataError, match="expected an HDF5 file"):
        open_source(tmp_path / "a.hdf5")


@pytest.mark.parametrize(("package", "name"), [("h5py", "a.hdf5"), ("zarr", "a.zarr.zip")])
def test_a_package_that_is_missing_is_named(package, name, tmp_path, monkeypatch):
    (tmp_path / name).write_bytes(b"")
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(EnvironmentMissing, match=rf"pip install 'gr2\[{'hdf5' if package == 'h5py' else 'zarr'}\]'"):
        open_source(tmp_path / name)


def replay_buffer(path, *, zipped=False, ends=(STEPS, 2 * STEPS)):
    store = zarr.storage.ZipStore(str(path), mode="w") if zipped else str(path)
    root = zarr.open_group(store, mode="w")
    total = int(ends[-1])
    arrays = {
        "data/img": np.concatenate([images(0), images(1)])[:total].astype(np.float32),
        "data/state": np.linspace(0, 500, total * 5).reshape(total, 5).astype(np.float32),
        "data/action": np.linspace(0, 500, total * 2).reshape(total, 2).astype(np.float32),
        "data/keypoint": np.zeros((total, 9, 2), np.float32),
        "meta/episode_ends": np.array(ends, np.int64),
    }
    for name, values in arrays.items():
        root.create_array(name, data=values) if hasattr(root, "create_array") else root.create_dataset(
            name, data=values
        )
    if zipped:
        store.close()
    return path


@pytest.mark.parametrize("zipped", [False, True])
def test_a_replay_buffer_is_read_episode_by_episode(tmp_path, zipped):
    path = replay_buffer(tmp_path / ("pusht.zarr.zip" if zipped else "pusht.zarr"), zipped=zipped)
    records = list(open_source(path))
    assert [record.source for record in records] == ["episode_000000", "episode_000001"]
    assert [record.states.shape for record in records] == [(STEPS, 5)] * 2
    assert records[1].facts["rate"] == "assumed" and records[1].facts["dataset"] == "pusht"
    assert abs(records[1].decode().images["static"].astype(int) - images(1)).mean() < 2


def test_motion_without_commands_is_reported_and_read_by_a_spec(tmp_path):
    """As UMI records it: poses of the hand, no actions."""
    path = replay_buffer(tmp_path / "umi.zarr")
    root = zarr.open_group(str(path), mode="r+")
    del root["data/action"], root["data/state"]
    parts = {"robot0_eef_pos": 3, "robot0_eef_rot_axis_angle": 3, "robot0_gripper_width": 1}
    for number, (name, width) in enumerate(parts.items()):
        values = 100.0 * number + np.arange(2 * STEPS * width, dtype=np.float32).reshape(-1, width)
        add = root.create_array if hasattr(root, "create_array") else root.create_dataset
        add(f"data/{name}", data=values)
    first, _ = open_source(path)
    assert first.actions is None and any(
        "robot0_eef_pos, " in text and "actions_next" in text for text in first.repairs
    )
    names = ", ".join(parts)
    spec = tmp_path / "umi.yaml"
    spec.write_text(
        f"cameras: {{hand: img}}\nstates: [{names}]\nactions: [{names}]\nactions_next: true\ncontrol_hz: 60\n"
    )
    first, second = open_source(path, spec=spec)
    assert len(first.states) == STEPS - 1 == len(first.decode().images["hand"])
    np.testing.assert_array_equal(first.actions[:-1], first.states[1:])
    assert first.actions[-1, 0] == 3 * (STEPS - 1) and second.states[0, 0] == 3 * STEPS
    assert {signal.reference for signal in first.embodiment.action} == {"absolute"}
    for wrong, words in (("actions: [a]\nactions_next: 1", "true or false"), ("actions_next: true", "actions, which")):
        spec.write_text(f"cameras: {{}}\n{wrong}\n")
        with pytest.raises(ConfigError, match=f"actions_next: expected {words}"):
            open_source(path, spec=spec)


def test_a_replay_buffer_whose_ends_do_not_rise_is_refused(tmp_path):
    with pytest.raises(DataError, match="expected rising whole numbers"):
        open_source(replay_buffer(tmp_path / "a.zarr", ends=(STEPS, STEPS)))


def frame_folder(folder, numbers=range(STEPS)):
    folder.mkdir(parents=True)
    for number, image in zip(numbers, images(), strict=False):
        Image.fromarray(image).save(folder / f"frame{number}.png")


def test_folders_of_frames_are_clips_at_the_rate_that_the_user_states(tmp_path):
    frame_folder(tmp_path / "set" / "a")
    frame_folder(tmp_path / "set" / "b", [0, 1, 2, 3, 5, 6, 7, 8, 9, 10, 11, 12])
    (tmp_path / "set" / "captions.csv").write_text("file,caption\na,open the lid\n")
    (tmp_path / "set" / "b.txt").write_text("close the lid\n")
    with pytest.raises(ConfigError, match="--fps"):
        open_source(tmp_path / "set")
    records = list(open_source(tmp_path / "set", fps=5.0))
    assert [(r.source, r.caption, r.repairs) for r in records] == [
        ("a", "open the lid", ()),
        ("b", "close the lid", ("frames missing in the numbers of the files",)),
    ]
    clip = records[0].decode()
    assert clip.fps == 5 and abs(clip.frames.astype(int) - images()).mean() < 2  # frame2 before frame10
    manifest = write_video_shards(source=str(tmp_path / "set"), out=tmp_path / "shards", fps=5.0)
    assert manifest["counts"]["kept"] == 2 and manifest["parameters"]["fps"] == 5.0


def test_a_rate_is_refused_where_the_files_state_one(tmp_path):
    robomimic(tmp_path / "a.hdf5")
    with pytest.raises(ConfigError, match="expected folders of frames for --fps"):
        open_source(tmp_path / "a.hdf5", fps=5.0)


def test_an_animated_webp_is_a_clip_with_its_times(tmp_path):
    frames = [Image.fromarray(image) for image in images(steps=4)]
    frames[0].save(
        tmp_path / "a.webp", save_all=True, append_images=frames[1:], duration=[100, 200, 100, 100], lossless=True
    )
    frames[0].save(tmp_path / "still.webp")
    (tmp_path / "a.txt").write_text("wave")
    (record,) = open_source(tmp_path)
    clip = record.decode()
    assert record.caption == "wave" and clip.fps == 10 and len(clip.frames) == 5
    assert abs(clip.frames[[0, 1, 3, 4]].astype(int) - images(steps=4)).mean() < 2


def test_a_dataset_of_the_hub_is_found_in_the_cache_by_its_id(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    for name in ("HF_HUB_CACHE", "HF_LEROBOT_HOME"):
        monkeypatch.delenv(name, raising=False)
    place = tmp_path / "hub" / "datasets--someone--lids"
    for revision in ("abc", "def"):
        frame_folder(place / "snapshots" / revision / revision)
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text("abc")
    assert [record.source for record in open_source("someone/lids", fps=5.0)] == ["abc"]
    with pytest.raises(DataError, match="hf download --repo-type dataset someone/else"):
        open_source("someone/else")
    frame_folder(tmp_path / "lerobot" / "someone" / "else" / "c")
    assert [record.source for record in open_source("someone/else", fps=5.0)] == ["c"]


def test_a_first_try_that_fails_does_not_bind_the_folder(tmp_path):
    robomimic(tmp_path / "lift.hdf5")
    source, out = str(tmp_path / "lift.hdf5"), tmp_path / "shards"
    with pytest.raises(DataError, match="were dropped"):
        write_video_shards(source=source, out=out, filters=FilterConfig(min_frames=1000))
    assert not out.exists()
    assert write_video_shards(source=source, out=out)["counts"]["kept"] == 3


def test_a_folder_that_holds_the_dataset_alone_stands_for_it(tmp_path):
    replay_buffer(tmp_path / "download" / "pusht.zarr")
    assert len(list(open_source(tmp_path / "download"))) == 2
