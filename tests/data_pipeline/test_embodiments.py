"""What the numbers of a dataset mean: from names and specs, through video and token shards, into batches."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from gr2.contracts import Episode
from gr2.data_pipeline.curation.ingest import write_video_shards
from gr2.data_pipeline.embodiments import EmbodimentTally, joined_embodiments, kept_embodiment, tool_arm
from gr2.data_pipeline.files import array_bytes
from gr2.data_pipeline.inspection.inspect import inspect_source
from gr2.data_pipeline.loading.token_store import TokenStore
from gr2.data_pipeline.loading.token_windows import TokenWindows
from gr2.data_pipeline.readers.robot_signals import Column, RobotSignals
from gr2.data_pipeline.readers.signal_names import flat_names, signals_of_names
from gr2.data_pipeline.readers.source import open_source
from gr2.data_pipeline.readers.spec import BRIDGE, DROID, RT1, EpisodeSpec
from gr2.data_pipeline.statistics.table import statistics
from gr2.data_pipeline.store.episodes import write_episode
from gr2.data_pipeline.store.shards import ShardWriter, finished_shards, read_indexed
from gr2.data_pipeline.store.stages import Tally, begin_stage
from gr2.data_pipeline.tokens import finish_token_shards, write_token_shards
from gr2.embodiment import AS_STORED, CLOSING, TOOL_ARM, Embodiment, Signal
from gr2.errors import ConfigError, DataError

SAMPLE = Path(__file__).parent.parent / "../shared/real_samples/lerobot_v21_g1"
needs_sample = pytest.mark.skipif(not SAMPLE.is_dir(), reason="the real LeRobot sample is not beside the checkout")

_SO101 = ("shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex", "wrist_roll", "gripper")
SO101 = [f"{name}.pos" for name in _SO101]
_ALOHA_ARM = ("waist", "shoulder", "elbow", "forearm_roll", "wrist_angle", "wrist_rotate", "gripper")
ALOHA = [f"{side}_{name}" for side in ("left", "right") for name in _ALOHA_ARM]
_G1_ARM = ("ShoulderPitch", "ShoulderRoll", "ShoulderYaw", "Elbow", "WristRoll", "WristPitch", "WristYaw")
G1 = [f"k{side}{name}" for side in ("Left", "Right") for name in _G1_ARM]
G1 += [f"k{side}Hand{name}" for side in ("Left", "Right") for name in ("Pinky", "Index", "ThumbBend")]
POSE = ["x", "y", "z", "roll", "pitch", "yaw", "gripper"]
FACTS = {"codebook_size": 1000, "grid": [1, 1], "image_size": 16}
STEPS = 6


def shape_of(signals: tuple[Signal, ...]) -> list[tuple[str, int, str]]:
    return [(signal.name, signal.width, signal.kind) for signal in signals]


def encode_images(frames: np.ndarray) -> np.ndarray:
    """Stand in for the tokenizer: the mean gray level."""
    return frames.reshape(len(frames), -1).mean(axis=1, keepdims=True).astype(np.int64)


def video(seed: int = 0, size: int = 32) -> np.ndarray:
    """Draw coarse moving noise: uint8 `[t h w 3]`."""
    coarse = np.random.default_rng(seed).integers(0, 256, (STEPS, 4, 4, 3), dtype=np.uint8)
    return coarse.repeat(size // 4, axis=1).repeat(size // 4, axis=2)


def rows(width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(STEPS, width)).astype(np.float32)


def write_tokens(source: Path, folder: Path, **options) -> Path:
    """Write video shards and token shards of a dataset."""
    write_video_shards(source=str(source), out=folder / "shards", **options)
    write_token_shards(
        shards=folder / "shards",
        out=folder / "tokens",
        encode_images=encode_images,
        encode_texts=None,
        tokenizer_facts=FACTS,
        image_size=16,
    )
    return folder / "tokens"


@pytest.mark.parametrize(
    ("names", "wanted"),
    [
        (SO101, [("joint_positions", 5, "joint_position"), ("gripper", 1, "gripper")]),
        (
            ALOHA,
            [
                ("left_arm.joint_positions", 6, "joint_position"),
                ("left_arm.gripper", 1, "gripper"),
                ("right_arm.joint_positions", 6, "joint_position"),
                ("right_arm.gripper", 1, "gripper"),
            ],
        ),
        (
            G1,
            [
                ("left_arm.joint_positions", 7, "joint_position"),
                ("right_arm.joint_positions", 7, "joint_position"),
                ("left_hand.joint_positions", 3, "joint_position"),
                ("right_hand.joint_positions", 3, "joint_position"),
            ],
        ),
        (POSE, [("tool_position", 3, "position"), ("tool_rotation", 3, "rotation"), ("gripper", 1, "gripper")]),
        (
            ["ee_x", "ee_y", "ee_z", "ee_qx", "ee_qy", "ee_qz", "ee_qw"],
            [("tool_position", 3, "position"), ("tool_rotation", 4, "rotation")],
        ),
        (["x", "y", "z", "rx", "ry", "rz"], [("tool_position", 3, "position"), ("tool_rotation", 3, "other")]),
        (["joint_0", "joint_1", "x.vel", "theta.vel"],
         [("joint_positions", 2, "joint_position"), ("base_velocity", 2, "base_velocity")]),
        (["motor_0", "motor_1"], [("action", 2, "other")]),
        (["a", "joint_1", "b"], [("action", 1, "other"), ("joint_positions", 1, "joint_position"),
                                 ("action_2", 1, "other")]),
    ],
)  # fmt: skip
def test_names_tell_signals(names: list[str], wanted: list[tuple[str, int, str]]) -> None:
    signals = signals_of_names(names, otherwise="action")
    assert shape_of(signals) == wanted
    assert [part for signal in signals for part in signal.parts] == names
    # neither a unit nor what an action is counted from is in a name
    assert all(signal.unit in ("", AS_STORED) and signal.reference == "unknown" for signal in signals)


def test_names_tell_conventions_and_deltas() -> None:
    euler, quaternion = (signals_of_names(names, otherwise="x")[0] for names in (POSE[3:6], ["qw", "qx", "qy", "qz"]))
    assert (euler.rotation, quaternion.rotation) == ("euler_xyz", "quaternion_wxyz")
    moves = signals_of_names(["delta_x", "delta_y", "delta_z", "droll", "dpitch", "dyaw"], otherwise="x")
    assert [signal.reference for signal in moves] == ["delta", "delta"]


@pytest.mark.parametrize(
    "names", [["a", "b"], [["a", "b"]], {"motors": ["a", "b"]}, {"axes": ["a", "b"]}, {"b": 1, "a": 0}]
)
def test_every_form_of_names_is_read(names: object) -> None:
    assert flat_names(names) == ("a", "b")


def test_lists_without_names_are_none() -> None:
    assert flat_names(None) == () and flat_names("ab") == () and flat_names(3) == ()


def described(spec: EpisodeSpec, num_states: int, num_actions: int, /, **columns: Column) -> Embodiment:
    """Return what a spec and columns state about steps of some width."""
    signals = RobotSignals(spec=spec, robot="r", where="here", columns=columns)
    found = signals.embodiment(np.zeros((2, num_states)), np.zeros((2, num_actions)), 10.0)
    assert found is not None
    return found


SPEC = EpisodeSpec(cameras={"eye": "image"}, states=("state",), actions=("action",))


def test_joint_actions_named_as_the_states_are_absolute() -> None:
    same = described(SPEC, 6, 6, state=Column(names=tuple(SO101)), action=Column(names=tuple(SO101)))
    assert {signal.reference for signal in same.action} == {"absolute"} and same.cameras == ("eye",)
    other = described(SPEC, 6, 6, state=Column(names=tuple(SO101[::-1])), action=Column(names=tuple(SO101)))
    assert {signal.reference for signal in other.action} == {"unknown"}
    # poses of one name may still be motions
    pose = described(SPEC, 7, 7, state=Column(names=tuple(POSE)), action=Column(names=tuple(POSE)))
    assert [signal.reference for signal in pose.action] == ["unknown", "unknown", "absolute"]
    moved = described(
        replace(SPEC, action_kind="delta_pose", gripper="closing"), 7, 7, action=Column(names=tuple(POSE))
    )
    assert [signal.reference for signal in moved.action] == ["delta", "delta", "absolute"]
    assert moved.action[-1].is_opening and moved.state == (Signal(name="state", width=7),)


def test_what_nobody_tells_is_unknown() -> None:
    found = described(SPEC, 5, 4, action=Column(width=4, names=("only", "two")))
    assert found.state == (Signal(name="state", width=5),)
    assert found.action == (Signal(name="action", width=4, reference="unknown"),)
    assert found.action[0].unknown(is_action=True) == ["what the numbers are", "absolute or delta"]
    signals = described(replace(SPEC, action_kind="joint", gripper="opening", state_gripper=True), 5, 4)
    assert shape_of(signals.action) == [("joint_positions", 3, "joint_position"), ("gripper", 1, "gripper")]
    assert shape_of(signals.state) == [("state", 4, "other"), ("gripper", 1, "gripper")]
    assert signals.state[-1].unit == AS_STORED and signals.action[-1].is_opening
    assert described(SPEC, 0, 4).state == ()


def test_columns_tell_by_their_own_names() -> None:
    spec = replace(SPEC, states=("obs/joint_position", "obs/gripper_position"), actions=("act/cartesian", "act/b"))
    widths = {"obs/joint_position": 7, "obs/gripper_position": 1, "act/cartesian": 6, "act/b": 2}
    found = described(spec, 8, 8, **{name: Column(width=width) for name, width in widths.items()})
    assert shape_of(found.state) == [("joint_positions", 7, "joint_position"), ("gripper", 1, "gripper")]
    assert shape_of(found.action) == [("cartesian", 6, "other"), ("b", 2, "other")]


def test_known_specs_describe_their_numbers() -> None:
    bridge, rt1, droid = described(BRIDGE, 7, 7), described(RT1, 8, 7), described(DROID, 7, 7)
    assert [signal.rotation for signal in (bridge.state[1], rt1.state[1])] == ["euler_xyz", "quaternion_xyzw"]
    for found, reference in ((bridge, "delta"), (rt1, "delta"), (droid, "absolute")):
        assert [signal.reference for signal in found.action] == [reference, reference, "absolute"]
        assert found.action[-1].is_opening and found.action[0].unit == "m" and found.action[1].unit == "rad"
    assert bridge.state[-1].is_opening and {rt1.state[-1].unit, droid.state[-1].unit} == {CLOSING}
    assert rt1.action[-1].binary and bridge.action[-1].binary is None
    assert shape_of(described(BRIDGE, 9, 7).state) == [("state", 8, "other"), ("gripper", 1, "gripper")]


def test_signals_of_a_spec_must_be_as_wide_as_the_columns(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "1.npz", image=video(), state=rows(5), action=rows(3))
    spec = tmp_path / "spec.yaml"
    spec.write_text(
        "cameras: {eye: image}\nstates: state\nactions: action\ncontrol_hz: 5\n"
        "state_signals: [{name: joints, width: 4, kind: joint_position}]\n"
    )
    with pytest.raises(ConfigError, match=r"add up to the 5 numbers of state, got 4 \(joints 4\); correct the spec"):
        write_video_shards(source=str(tmp_path), out=tmp_path / "out", spec=spec)


def test_signals_give_the_kind_of_the_action_where_a_spec_does_not() -> None:
    joints = Signal(name="joint_positions", width=3, kind="joint_position", unit="deg")
    spec = replace(SPEC, action_signals=(joints, Signal(name="gripper", width=1, kind="gripper")))
    assert (spec.action_kind, spec.gripper) == ("joint", "opening")
    assert described(spec, 2, 4).action == spec.action_signals


def test_a_recording_of_playtable_is_a_tool_arm(tmp_path: Path) -> None:
    for index in range(2):
        actions = rows(8)
        actions[:, 7] = np.arange(STEPS) % 2
        images = {"static": video(), "gripper": video(1)}
        episode = Episode(images=images, states=rows(16), actions=actions, instruction="lift", control_hz=10.0)
        write_episode(tmp_path / "in", index, episode, {})
    store = TokenStore.open([write_tokens(tmp_path / "in", tmp_path)])
    assert store.embodiments == (replace(TOOL_ARM, control_hz=10.0),) and store.cameras == ("static", "gripper")
    (record, _) = open_source(tmp_path / "in")
    assert record.embodiment == tool_arm(cameras=("static", "gripper"), control_hz=10.0)


def test_a_recording_keeps_the_embodiment_of_another_robot(tmp_path: Path) -> None:
    robot = Embodiment(
        name="stepper",
        cameras=("corner",),
        state=(Signal(name="hand", width=3, kind="position"), Signal(name="gripper", width=1, kind="gripper")),
        action=(Signal(name="hand", width=3, kind="position", unit="cm", reference="delta"),),
        control_hz=10.0,
    )
    states, actions = np.abs(rows(4)) % 1, rows(3)
    episode = Episode(images={"corner": video()}, states=states, actions=actions, instruction="lift", control_hz=10.0)
    folder = write_episode(tmp_path / "in", 0, episode, {}, embodiment=robot)
    (record,) = open_source(tmp_path / "in")
    assert record.embodiment == robot
    (dataset,) = statistics(source=tmp_path / "in")["datasets"]
    assert dataset["state_gripper"] == [3] and not any("no gripper" in text for text in dataset["warnings"])
    store = TokenStore.open([write_tokens(tmp_path / "in", tmp_path)])
    assert [(e.name, e.action, e.cameras) for e in store.embodiments] == [("stepper", robot.action, ("corner",))]
    written = json.loads((folder / "episode.json").read_text())
    written["embodiment"]["state"].pop()
    (folder / "episode.json").write_text(json.dumps(written))
    (record,) = open_source(tmp_path / "in")
    assert "expected 3 numbers of a state and 3 of an action, as its embodiment says, got 4 and 3" in record.problem


def npz_robot(folder: Path, joints: int, cameras: tuple[str, ...], hz: int, opening: float = 1.0) -> Path:
    """Write two episodes of a robot with joints and a gripper, and its spec."""
    folder.mkdir(parents=True)
    for i in range(2):
        arrays = {f"image_{camera}": video(i) for camera in cameras}
        action = rows(joints + 1, i)
        action[:, -1] = np.arange(STEPS) % 2 * opening
        np.savez_compressed(folder / f"{i}.npz", state=rows(joints, i), action=action, **arrays)
    joint = f"{{name: joint_positions, width: {joints}, kind: joint_position}}"
    spec = folder.with_suffix(".yaml")
    spec.write_text(
        f"cameras: {{{', '.join(f'{camera}: image_{camera}' for camera in cameras)}}}\nname: {folder.name}\n"
        f"states: state\nactions: action\ncontrol_hz: {hz}\nstate_signals: [{joint}]\n"
        f"action_signals: [{joint}, {{name: gripper, width: 1, kind: gripper}}]\n"
    )
    return spec


def test_robots_of_other_widths_and_cameras_share_a_store(tmp_path: Path) -> None:
    small = npz_robot(tmp_path / "small", 3, ("top", "wrist-left_2"), 5)
    large = npz_robot(tmp_path / "large", 6, ("top", "ego"), 10, opening=0.4)
    folders = [write_tokens(tmp_path / spec.stem, tmp_path / f"out_{spec.stem}", spec=spec) for spec in (small, large)]
    store = TokenStore.open(folders)
    assert store.cameras == ("top", "wrist-left_2", "ego")
    one, two = store.embodiments
    assert (one.name, one.cameras, one.control_hz) == ("small", ("top", "wrist-left_2"), 5)
    assert (two.name, two.state_dim, two.action_dim, two.control_hz) == ("large", 6, 7, 10)
    assert one.action[-1].binary is True and two.action[-1].binary is False  # inferred from the numbers
    assert (store.state_dim, store.action_dim) == (6, 7)
    batch = TokenWindows(store, num_frames=2, frame_step=1, chunk_length=3).gather(np.arange(4), np.array([0, 1, 0, 5]))
    assert batch["embodiment"].tolist() == [0, 0, 1, 1]
    assert np.array_equal(batch["states"][1, 0, :3], rows(3, 1)[1]) and not batch["states"][:2, :, 3:].any()
    assert np.array_equal(batch["states"][2, 1], rows(6, 0)[1])
    assert np.array_equal(batch["actions"][0, :, :3], rows(4, 0)[:3, :3]) and not batch["actions"][:2, :, 4:].any()
    assert batch["action_mask"].sum(dim=1).tolist() == [3, 3, 3, 1]
    assert batch["camera_mask"]["wrist-left_2"].tolist() == [True, True, False, False]
    assert batch["camera_mask"]["ego"].tolist() == [False, False, True, True]
    assert not batch["codes"]["ego"][:2].any() and batch["codes"]["top"].all()
    alone = TokenStore.open(folders[1:], ["ego"])
    assert alone.cameras == ("ego",) and alone.embodiments == (two,)


def test_folders_of_one_robot_share_an_embodiment(tmp_path: Path) -> None:
    folders = []
    for number, (camera, opening) in enumerate((("top", 1.0), ("side", 0.5))):
        spec = npz_robot(tmp_path / str(number) / "arm", 3, (camera,), 5, opening)
        folders.append(write_tokens(spec.with_suffix(""), tmp_path / f"out_{number}", spec=spec))
    store = TokenStore.open(folders)
    (robot,) = store.embodiments
    assert robot.cameras == ("top", "side") and robot.action[-1].binary is False
    assert store.embodiment_of(np.arange(4)).tolist() == [0, 0, 0, 0]
    assert joined_embodiments([[robot], [replace(robot, control_hz=6.0)]])[1] == [[0], [1]]


def write_bare_tokens(out: Path, widths: list[tuple[int, int]], json_member: dict, **note) -> Path:
    """Write token shards of one frame a step as gr2 0.1.0 did, or with what `note` and `json_member` add."""
    begin_stage(out, "token_shards", {}, overwrite=False)
    with ShardWriter(out, max_bytes=1 << 30) as writer:
        for i, (state, action) in enumerate(widths):
            members = {"codes.static.npy": array_bytes(np.ones((STEPS, 1), np.uint16))}
            if state:
                members |= {"states.npy": array_bytes(rows(state)), "actions.npy": array_bytes(rows(action))}
            row = {"frames": STEPS, "stride": 1, "steps": STEPS * bool(state), "cameras": ["static"], "code_bytes": 2}
            row |= {"state_dim": state, "action_dim": action, "text": 0, "video": f"v{i}"}
            writer.write(f"e{i}", members | {"json": json.dumps(json_member).encode()}, row)
        writer.finish_shard({"sentences": ["lift"], **note})
    finish_token_shards(out, {"texts": False}, Tally(), [s.name for s in finished_shards(out)], FACTS, None)
    return out


def without_embodiment(out: Path) -> Path:
    """Take out of the manifest and the columns what gr2 0.1.0 did not write."""
    manifest = json.loads((out / "manifest.json").read_text())
    del manifest["embodiments"], manifest["cameras"]
    manifest["columns"].remove("embodiment")
    (out / "columns/embodiment.npy").unlink()
    (out / "manifest.json").write_text(json.dumps(manifest))
    return out


def test_tokens_of_the_first_version_are_a_tool_arm(tmp_path: Path) -> None:
    widths = [(0, 0), (16, 8), (16, 8)]
    old = without_embodiment(write_bare_tokens(tmp_path / "old", widths, {"control_hz": 25.0}))
    store = TokenStore.open([old])
    assert store.embodiments == (replace(TOOL_ARM, cameras=("static",), control_hz=25.0),)
    assert store.embodiment_of(np.arange(3)).tolist() == [-1, 0, 0]
    assert TokenStore.open([old], load_steps=False).embodiments == ()


def test_tokens_of_the_first_version_of_other_robots_are_refused(tmp_path: Path) -> None:
    old = without_embodiment(write_bare_tokens(tmp_path / "old", [(16, 8), (6, 6)], {}))
    with pytest.raises(DataError, match=r"states and actions of 6 and 6, 16 and 8 numbers .* run `gr2 data tokens`"):
        TokenStore.open([old])
    assert len(TokenStore.open([old], load_steps=False)) == 2


def test_a_folder_of_two_robots_needs_a_name_at_every_episode(tmp_path: Path) -> None:
    folder = write_bare_tokens(tmp_path / "mixed", [(6, 6)], {}, embodiments=[])
    with pytest.raises(DataError, match="episodes that state which robot they are of"):
        TokenStore.open([folder])


def test_video_shards_of_the_first_version_are_described_as_far_as_their_facts_tell() -> None:
    old = {"control_hz": 10.0, "facts": {"task": "lift"}}
    assert kept_embodiment(old, ("static",), rows(16), rows(8)) == tool_arm(cameras=("static",), control_hz=10.0)
    facts = {"dataset": "mine", "action_kind": "joint", "gripper": "closing"}
    other = kept_embodiment({"control_hz": 5, "facts": facts}, ("a",), rows(16), rows(8))
    assert other is not None and (other.name, other.control_hz, other.cameras) == ("mine", 5, ("a",))
    assert shape_of(other.action) == [("joint_positions", 7, "joint_position"), ("gripper", 1, "gripper")]
    assert shape_of(other.state) == [("state", 16, "other")]
    assert kept_embodiment(old, ("static",), None, None) is None


def test_a_broken_embodiment_is_named() -> None:
    for broken, words in (({"name": "x"}, "expected name, cameras"), (TOOL_ARM.to_dict(), "expected 16 numbers")):
        with pytest.raises(DataError, match=words):
            kept_embodiment({"embodiment": broken, "control_hz": 5}, (), rows(4), rows(3))


def test_embodiments_survive_video_shards(tmp_path: Path) -> None:
    spec = npz_robot(tmp_path / "arm", 3, ("top",), 5)
    wanted = [record.embodiment for record in open_source(tmp_path / "arm", spec=spec)]
    write_video_shards(source=str(tmp_path / "arm"), out=tmp_path / "shards", spec=spec)
    (shard,) = finished_shards(tmp_path / "shards")
    kept = [json.loads(members["json"])["embodiment"] for _, members in read_indexed(shard)]
    assert [Embodiment.from_dict(value) for value in kept] == wanted
    # and are read back where the shards are a source themselves
    assert [record.embodiment for record in open_source(str(shard))] == wanted


def test_tally_of_a_shard_joins_that_of_the_folder() -> None:
    robot = described(SPEC, 6, 6, state=Column(names=tuple(SO101)), action=Column(names=tuple(SO101)))
    folder, shard = EmbodimentTally(), EmbodimentTally()
    closed = np.zeros((2, 6))
    assert [shard.add(robot, ["eye"], closed, rows(6)), shard.add(TOOL_ARM, ["a"], rows(16), rows(8))] == [0, 1]
    assert folder.join(json.loads(json.dumps(shard.to_list()))) == [0, 1]
    so101, arm = folder.result()
    assert (so101.state[-1].binary, so101.action[-1].binary) == (True, False) and arm.cameras == ("a",)


@needs_sample
def test_inspect_prints_what_the_numbers_of_a_humanoid_are(capsys: pytest.CaptureFixture[str]) -> None:
    (robot,) = inspect_source(source=str(SAMPLE))["embodiments"]
    printed = capsys.readouterr().out
    assert robot["name"] == "Unitree_G1_Inspire" and robot["control_hz"] == 30
    assert [(s["name"], s["width"]) for s in robot["action"]] == [
        ("left_arm.joint_positions", 7),
        ("right_arm.joint_positions", 7),
        ("left_hand.joint_positions", 6),
        ("right_hand.joint_positions", 6),
    ]
    assert "left_arm.joint_positions    7              joint_position, absolute, unknown: unit" in printed
    assert "`action_signals` in a --spec" in printed
    (record, *_) = (record for record in open_source(SAMPLE) if not record.problem)
    assert record.facts["action_kind"] == "joint"
