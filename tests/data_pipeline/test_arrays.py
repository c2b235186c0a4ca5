"""Specs of datasets, and episodes as npz files: every form of image gives the same pixels, or the reason why not."""

import io
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gr2.contracts import Episode, VideoClip
from gr2.data_pipeline.readers.arrays import ASSUMED_HZ, ArraysSource, NpzEpisode, find_arrays, read_images
from gr2.data_pipeline.readers.record import Record, with_video_files
from gr2.data_pipeline.readers.source import open_source
from gr2.data_pipeline.readers.spec import BRIDGE, KNOWN_SPECS, EpisodeSpec, read_spec, with_opening
from gr2.errors import ConfigError, DataError

SAMPLES = Path(__file__).parents[2] / "../shared/real_samples"
needs_samples = pytest.mark.skipif(not SAMPLES.is_dir(), reason="the real npz sample is not beside the checkout")

STEPS = 6


def images(seed: int = 0) -> np.ndarray:
    """Draw coarse noise: uint8 `[t h w 3]`."""
    coarse = np.random.default_rng(seed).integers(0, 256, (STEPS, 2, 3, 3), dtype=np.uint8)
    return coarse.repeat(8, axis=1).repeat(8, axis=2)


def numbers(width: int) -> np.ndarray:
    """Draw float64 `[t width]`."""
    return np.random.default_rng(width).normal(size=(STEPS, width))


@pytest.mark.parametrize(
    ("name", "stored"),
    [
        ("image", images()),
        ("images", images().astype(np.int64)),
        ("observation", images().astype(np.uint16)),
        ("rgb", (images() / 255).astype(np.float32)),
        ("image", images() / 255),
        ("image", images().astype(np.float32)),
        ("image", images().transpose(0, 3, 1, 2)),
        ("image", np.concatenate([images(), images(1)[..., :1]], axis=3)),
        ("observation", np.concatenate([images(2), images(1), images()], axis=3).transpose(0, 3, 1, 2)),
    ],
)
def test_every_form_of_image_gives_the_same_pixels(tmp_path: Path, name: str, stored: np.ndarray) -> None:
    actions = numbers(4)
    np.savez_compressed(tmp_path / "episode.npz", **{name: stored, "action": actions, "reward": np.zeros(STEPS)})
    assert np.array_equal(read_images(NpzEpisode(file=tmp_path / "episode.npz", source="episode"), name), images())
    (record,) = open_source(tmp_path)
    assert record.facts["rate"] == "assumed" and record.control_hz == ASSUMED_HZ
    again = pickle.loads(pickle.dumps(record))  # records travel to the processes that encode them
    episode = again.decode()
    assert isinstance(episode, Episode) and np.array_equal(episode.actions, actions.astype(np.float32))
    assert episode.states.shape == (STEPS, 0)
    assert np.abs(episode.images["static"].astype(int) - images()).mean() < 4  # gray levels, lost by H.264


def image_files(form: str = "PNG") -> list[bytes]:
    """Encode the images of every step."""
    files = []
    for image in images():
        Image.fromarray(image).save(data := io.BytesIO(), form)
        files.append(data.getvalue())
    return files


def padded(files: list[bytes]) -> np.ndarray:
    """Put files into rows of one length: uint8 `[t n]`."""
    rows = np.zeros((len(files), max(map(len, files))), np.uint8)
    for row, file in zip(rows, files, strict=True):
        row[: len(file)] = np.frombuffer(file, np.uint8)
    return rows


@pytest.mark.parametrize("stored", [np.array(image_files()), padded(image_files()), padded(image_files("BMP"))])
def test_image_files_in_arrays_are_decoded(tmp_path: Path, stored: np.ndarray) -> None:
    np.savez(tmp_path / "a.npz", front_image=stored, action=numbers(2), features=padded(image_files()))
    (record,) = open_source(tmp_path)
    assert list(record.videos) == ["static"]
    assert np.array_equal(read_images(NpzEpisode(file=tmp_path / "a.npz", source="a"), "front_image"), images())
    stored[3] = stored[3][:40] if stored.dtype.kind == "S" else 0
    np.savez(tmp_path / "a.npz", front_image=stored, action=numbers(2))
    (record,) = open_source(tmp_path)
    assert "front_image: step 3: expected a JPEG" in encoded_problem(record)


def test_gray_images_are_read_and_depth_is_not_a_camera(tmp_path: Path) -> None:
    gray = images()[..., 0]
    np.savez(tmp_path / "a.npz", image=gray, depth_image=images(), mask=gray, wrist_image=gray[..., None])
    (record,) = open_source(tmp_path)
    assert list(record.videos) == ["static", "wrist_image"]
    for name in ("image", "wrist_image"):
        found = read_images(NpzEpisode(file=tmp_path / "a.npz", source="a"), name)
        assert all(np.array_equal(found[..., channel], gray) for channel in range(3))


def test_the_observation_after_the_last_action_is_left_out(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", image=images(), state=numbers(3), action=numbers(2)[:-1])
    (record,) = open_source(tmp_path)
    assert record.states is not None and np.array_equal(record.states, numbers(3)[:-1].astype(np.float32))
    assert "an observation after the last action left out" in record.repairs
    assert len(record.decode().images["static"]) == STEPS - 1
    np.savez(tmp_path / "a.npz", image=images(), state=numbers(3)[:-2], action=numbers(2)[:-1])
    assert "expected one number of steps" in next(iter(open_source(tmp_path))).problem


def test_what_is_assumed_or_not_read_is_told(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", image=images(), eef_pos=numbers(3), action=numbers(2))
    (record,) = open_source(tmp_path)
    assert record.repairs == ("rate not stated, 10 Hz assumed", "no states known by name (not read: eef_pos)")
    (tmp_path / "spec").write_text("cameras: {a: image}\nstates: eef_pos\nactions: action\ncontrol_hz: 5\n")
    (record,) = open_source(tmp_path, spec=tmp_path / "spec")
    assert not record.repairs


def test_cameras_keep_their_names_where_one_is_missing(tmp_path: Path) -> None:
    np.savez(tmp_path / "1.npz", image_high=images(), image_wrist=images(), action=numbers(2))
    np.savez(tmp_path / "2.npz", image_wrist=images(), action=numbers(2))
    assert [list(record.videos) for record in open_source(tmp_path)] == [["static", "image_wrist"], ["image_wrist"]]


def test_images_of_opencv_are_named_in_a_spec(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", image=images(), action=numbers(2))
    (tmp_path / "spec").write_text("cameras: {a: image}\nactions: action\nbgr_cameras: a\n")
    (record,) = open_source(tmp_path, spec=tmp_path / "spec")
    found = record.decode().images["a"]
    assert np.abs(found.astype(int) - images()[..., ::-1]).mean() < 4


def test_files_beside_folders_of_files_are_all_read(tmp_path: Path) -> None:
    (tmp_path / "more").mkdir()
    for name in ("a.npz", "more/b.npz"):
        np.savez(tmp_path / name, image=images(), action=numbers(2))
    assert [record.source for record in open_source(tmp_path)] == ["a.npz", "more/b.npz"]


def test_files_are_in_sorted_order_and_one_may_stand_alone(tmp_path: Path) -> None:
    for name in ("b/2.npz", "b/1.npz", "a/9.npz", "a/.hidden.npz"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        np.savez(tmp_path / name, images=images(), states=numbers(3), actions=numbers(2))
    records = list(open_source(tmp_path, "eye"))
    assert [record.source for record in records] == ["a/9.npz", "b/1.npz", "b/2.npz"]
    assert len({record.key for record in records}) == 3 and all(list(record.videos) == ["eye"] for record in records)
    assert [record.source for record in open_source(tmp_path / "b/2.npz")] == ["2.npz"]
    (tmp_path / "b/clip.mp4").write_bytes(b"a video among them: this is a folder of videos")
    assert find_arrays(tmp_path) == []


def test_images_alone_are_video(tmp_path: Path) -> None:
    np.savez(tmp_path / "clip.npz", frames=images(), wrist_image=images(1))
    (record,) = open_source(tmp_path)
    assert record.states is None and record.control_hz is None and list(record.videos) == ["static", "wrist_image"]
    clip = record.decode()
    assert isinstance(clip, VideoClip) and clip.fps == ASSUMED_HZ and clip.frames.shape == (STEPS, 16, 24, 3)


def test_spec_names_arrays_rate_and_gripper(tmp_path: Path) -> None:
    arrays = {"view": images(), "q": numbers(7), "width": np.arange(STEPS), "target": np.full((STEPS, 2), 0.25)}
    np.savez(tmp_path / "1.npz", **arrays, words=np.array("open the box "))
    path = tmp_path / "spec.yaml"
    path.write_text(
        "cameras: {eye: view}\nstates: [q, width]\nactions: target\ninstructions: [words]\ncontrol_hz: 20\n"
        "gripper: closing\nname: boxes\n"
    )
    (record,) = open_source(tmp_path, spec=path)
    assert record.caption == "open the box" and record.control_hz == 20 and record.facts["rate"] == "stated"
    assert record.states is not None and np.array_equal(record.states[:, 7], np.arange(STEPS, dtype=np.float32))
    assert record.actions is not None and record.actions.tolist() == [[0.25, 0.75]] * STEPS
    assert record.facts["dataset"] == "boxes" and list(record.videos) == ["eye"]


def encoded_problem(record: Record) -> str:
    return with_video_files(record).problem


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"action": numbers(2), "image": images()[:-1]}, "expected one number of steps"),
        ({"action": numbers(2) * np.nan, "image": images()}, "action: expected finite numbers"),
        ({"action": numbers(2) * 1e300, "image": images()}, "action: expected finite numbers"),
        ({"action": np.array(["go"] * STEPS), "image": images()}, "action: expected numbers"),
        ({"image": images()[..., 0] / 255}, "expected integers 0 to 255 or floats 0 to 1"),
        ({"image": images()[None]}, "write one file an episode"),
        ({"image": images() > 3}, "got bool"),
        ({"image": images()[0]}, "expected integers 0 to 255"),
        ({"image": images()[:0]}, "expected one number of steps, above 0"),
        ({"image": images().astype(np.int64) + 200}, "expected int64 from 0 to 255, got 20"),
        ({"image": images().astype(np.int16) - 3}, "expected int16 from 0 to 255"),
        ({"image": images().astype(np.float32) + 0.5}, "expected float32 from 0 to 1"),
        ({"image": np.full((STEPS, 4, 4, 3), np.nan)}, "from 0 to 1, got nan"),
        ({"depth": numbers(2)}, "expected the arrays .*images such as image.*name them in a spec"),
        ({"image": np.array([{"a": 1}] * STEPS, dtype=object)}, "holds objects"),
    ],
)
def test_arrays_that_do_not_fit_are_a_problem(tmp_path: Path, arrays: dict, words: str) -> None:
    np.savez(tmp_path / "bad.npz", **arrays)
    np.savez(tmp_path / "good.npz", image=images(), action=numbers(2))
    bad, good = ArraysSource(tmp_path)
    with pytest.raises(DataError, match=words):
        bad.decode()
    assert encoded_problem(bad) and not encoded_problem(good)


def test_damaged_files_are_a_problem(tmp_path: Path) -> None:
    path = tmp_path / "1.npz"
    np.savez_compressed(path, image=images(), action=numbers(2))
    whole = path.read_bytes()
    with zipfile.ZipFile(path) as members:
        start = members.getinfo("action.npy").header_offset + len("action.npy") + 30 + 20 + 90
    flipped = whole[:start] + bytes(byte ^ 0x5A for byte in whole[start : start + 8]) + whole[start + 8 :]
    for content in (b"", b"no archive", whole[: len(whole) // 2], flipped):
        path.write_bytes(content)
        (record,) = ArraysSource(tmp_path)
        assert "1.npz" in record.problem, content[:10]
    with zipfile.ZipFile(path, "w") as members:
        header = b"{'descr': '<f8', 'fortran_order': False, 'shape': (99999999999, 9), }"
        members.writestr("image.npy", b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header)
    (record,) = ArraysSource(tmp_path)
    assert "less than its shape states" in record.problem


@needs_samples
def test_piece_of_bair() -> None:
    (record,) = open_source(SAMPLES / "npz")
    episode = record.decode()
    assert isinstance(episode, Episode) and episode.actions.shape == (30, 4) and episode.states.shape == (30, 0)
    with np.load(SAMPLES / "npz/bair_sample.npz", allow_pickle=False) as stored:
        assert stored["image"].dtype == np.int64  # integers of eight bytes for colors of one
        for camera, name in (("static", "image"), ("aux1_image", "aux1_image")):
            assert np.abs(episode.images[camera].astype(int) - stored[name]).mean() < 3
        assert np.array_equal(episode.actions, stored["action"].astype(np.float32))


def test_spec_file_says_what_a_spec_says(tmp_path: Path) -> None:
    path = tmp_path / "bridge.yaml"
    path.write_text(
        "name: bridge_dataset\ncameras:\n"
        + "".join(f"  {camera}: {name}\n" for camera, name in BRIDGE.cameras.items())
        + "states: [steps/observation/state]\nactions: steps/action\ninstructions: [steps/language_instruction]\n"
        "control_hz: 5\ngripper: opening\naction_kind: delta_pose\noptional_cameras: [image_1, image_2, image_3]\n"
        "license: CC-BY-4.0\nstate_gripper: true\n"
        "state_signals:\n"
        "  - {name: tool_position, width: 3, kind: position}\n"
        "  - {name: tool_rotation, width: 3, kind: rotation, rotation: euler_xyz}\n"
        "  - {name: gripper, width: 1, kind: gripper}\n"
        "action_signals:\n"
        "  - {name: tool_position, width: 3, kind: position, reference: delta}\n"
        "  - {name: tool_rotation, width: 3, kind: rotation, rotation: euler_xyz, reference: delta}\n"
        "  - {name: gripper, width: 1, kind: gripper}\n"
    )
    assert read_spec(path) == BRIDGE


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("camera: {a: b}", "unknown field 'camera'; did you mean 'cameras'"),
        ("zzz: 1", "unknown field 'zzz'; expected some of cameras, states"),
        ("- cameras", "expected fields such as `cameras:`, got list"),
        ("", "expected fields such as `cameras:`, got NoneType"),
        ("cameras: [a]", "cameras: expected {camera: name in the dataset}"),
        ("cameras: {a: 3}", "cameras: expected {camera: name in the dataset}"),
        ("cameras: {a.b: c}", r"cameras: expected letters, digits, - and _ in a name, got \['a.b'\]"),
        ("states: [1]", "states: expected a list of names"),
        ("actions: {a: b}", "actions: expected a list of names"),
        ("control_hz: fast", "control_hz: expected steps a second, got 'fast'"),
        ("control_hz: true", "control_hz: expected steps a second, got True"),
        ("control_hz: -5", "control_hz: expected more than 0 Hz, got -5"),
        ("control_hz: .nan", "control_hz: expected more than 0 Hz, got nan"),
        ("gripper: open", "gripper: expected one of opening, closing, .* got 'open'"),
        ("gripper: [opening]", "gripper: expected a word"),
        ("state_gripper: last", "state_gripper: expected true or false, got 'last'"),
        ("action_kind: delta", "action_kind: expected one of absolute_pose, delta_pose, joint, as_stored, got 'delta'"),
        ("optional_cameras: [top]", r"optional_cameras: expected some of \[\], got \['top'\]"),
        ("name: 3", "name: expected a word, got 3"),
        ("state_signals: 3", "state_signals: expected a list of signals, got 3"),
        ("state_signals: [a]", "state_signals: signal: expected fields such as name and width, got 'a'"),
        ("state_signals: [{name: a}]", "expected a name and a width, got no width in {'name': 'a'}"),
        ("state_signals: [{name: a, width: two}]", "signal 'a': width cannot be 'two'"),
        ("state_signals: [{name: a, width: 2, wide: 3}]", r"expected only name, width, .* got \['wide'\] as well"),
        ("state_signals: [{name: a, width: 2, kind: pose}]", "expected a kind of position, .* got 'pose'"),
        ("state_signals: [{name: a, width: 2}]", "state_signals: expected states to describe, got none"),
        (
            "{actions: a, action_kind: joint, action_signals: [{name: p, width: 3, kind: position}]}",
            "action_kind: expected absolute_pose of these action_signals, got joint",
        ),
        (
            "{actions: a, gripper: closing, action_signals: [{name: p, width: 3, kind: position}]}",
            r"expected a gripper as the last number, got p \(position, 3 numbers\)",
        ),
        ("name: !!python/object/apply:os.system [ls]", "cannot be read as YAML"),
        ("{", "cannot be read as YAML"),
    ],
)
def test_spec_file_with_a_mistake_is_refused(tmp_path: Path, content: str, words: str) -> None:
    path = tmp_path / "spec.yaml"
    path.write_text(content)
    with pytest.raises(ConfigError, match=words) as caught:
        read_spec(path)
    assert str(path) in str(caught.value)


def test_spec_is_refused_where_no_reader_takes_it(tmp_path: Path) -> None:
    (tmp_path / "spec.yaml").write_text("actions: [a]")
    (tmp_path / "clip.mp4").write_bytes(b"not opened")
    with pytest.raises(ConfigError, match="got 'folder'; leave the spec out"):
        open_source(tmp_path, spec=tmp_path / "spec.yaml")
    with pytest.raises(ConfigError, match="cannot be read"):
        open_source(tmp_path, spec=tmp_path / "none.yaml")


def test_known_specs_say_what_their_actions_mean() -> None:
    for name, spec in KNOWN_SPECS.items():
        assert spec.cameras and spec.control_hz and spec.license and spec.name, name
        assert spec.gripper != "as_stored" and spec.action_kind != "as_stored", name
        assert spec.facts(name)["dataset"] == spec.name


def test_only_the_gripper_of_an_action_is_turned() -> None:
    actions = np.array([[5.0, 0.25], [6.0, 1.0]])
    assert with_opening(actions, "closing").tolist() == [[5, 0.75], [6, 0]]
    assert with_opening(actions, "as_stored").tolist() == actions.tolist()
    assert with_opening(np.zeros((3, 0)), "closing").shape == (3, 0)
    assert EpisodeSpec(cameras={}).facts("x") == {"dataset": "x"}
