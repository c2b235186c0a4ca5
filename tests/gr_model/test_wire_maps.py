"""Maps of another program's keys and numbers: laws of the columns, presets, files, and arrays in msgpack."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest
from PIL import Image
from scipy.spatial.transform import Rotation

from gr2.contracts import ActionTrajectory, JointTrajectory, Observation, SignalTrajectory
from gr2.embodiment import TOOL_ARM, Embodiment, Signal
from gr2.errors import ConfigError, DataError, PolicyError, ShapeError
from gr2.gr_model.act.array_codec import pack, unpack
from gr2.gr_model.act.wire_actions import ActionMap, Base, GripperRange, ToolPose, as_rows, from_rows, some_rows
from gr2.gr_model.act.wire_maps import PRESETS, WireMap, natural_columns, natural_map, open_map

BASE = Base(position=(-0.3, 0.1, 0.2), quaternion=tuple(Rotation.from_euler("z", 0.7).as_quat()))
START = ToolPose(position=np.array([0.3, -0.1, 0.4]), quaternion=Rotation.from_euler("xyz", [3.0, 0.1, 1.5]).as_quat())


def poses(k: int = 6, seed: int = 0) -> ActionTrajectory:
    rng = np.random.default_rng(seed)
    turns = Rotation.from_quat(START.quaternion) * Rotation.from_rotvec(np.cumsum(rng.normal(0, 0.05, (k, 3)), 0))
    return ActionTrajectory(
        positions=START.position + np.cumsum(rng.normal(0, 0.01, (k, 3)), 0), quaternions=turns.as_quat(),
        gripper=(rng.random(k) > 0.5).astype(float), dt=1 / 30, start_time=0.4,
    )  # fmt: skip


@pytest.mark.parametrize(
    "changes",
    [
        {"reference": reference, "frame": frame, "rotation": rotation, "turns": turns}
        for reference in ("absolute", "relative", "delta")
        for frame in ("base", "world", "tool")
        for rotation in (
            "quaternion_xyzw",
            "quaternion_wxyz",
            "rotation_vector",
            "euler_xyz",
            "euler_ZYX",
            "rotation_6d",
        )
        for turns in ("composed", "added")
        if (frame != "tool" or reference != "absolute") and (turns == "composed" or rotation.startswith("euler"))
    ],
    ids=lambda c: "-".join(c.values()),
)
def test_reading_inverts_writing(changes: dict[str, Any]) -> None:
    actions = ActionMap(base=BASE, gripper=GripperRange(closed=1, open=-1), **changes)
    trajectory = poses()
    rows = actions.write(trajectory, START)
    assert rows.shape == (6, actions.width)
    positions, quaternions, opening = actions.read(rows, START)
    assert np.allclose(positions, trajectory.positions, atol=1e-9)
    turns = Rotation.from_quat(quaternions) * Rotation.from_quat(trajectory.quaternions).inv()
    assert np.abs(turns.as_rotvec()).max() < 1e-7
    assert np.allclose(opening, trajectory.gripper)


def test_differences_are_what_their_words_say() -> None:
    turn = Rotation.from_euler("z", 0.1)
    trajectory = ActionTrajectory(
        positions=START.position + [[0.01, 0, 0], [0.03, 0, 0]],
        quaternions=np.array([(turn**n * Rotation.from_quat(START.quaternion)).as_quat() for n in (1, 2)]),
        gripper=np.ones(2), dt=0.1, start_time=0,
    )  # fmt: skip
    delta = ActionMap(reference="delta", rotation="rotation_vector", position_scale=0.02, rotation_scale=0.05)
    assert np.allclose(delta.write(trajectory, START)[:, [0, 5]], [[0.5, 2], [1, 2]])
    relative = ActionMap(reference="relative", rotation="rotation_vector")
    assert np.allclose(relative.write(trajectory, START)[:, [0, 5]], [[0.01, 0.1], [0.03, 0.2]])
    tool = ActionMap(reference="relative", frame="tool", rotation="rotation_vector")
    seen = Rotation.from_quat(START.quaternion).inv().apply([0.01, 0, 0])
    assert np.allclose(tool.write(trajectory, START)[0, :3], seen)


@pytest.mark.parametrize(
    ("ends", "numbers", "openings"),
    [
        ({"closed": -1, "open": 1, "binary": True}, [-0.5, 0.0, 0.2], [0, 0, 1]),  # vla-eval's CALVIN, delta
        ({"closed": 1, "open": -1, "binary": True}, [-0.5, 0.0, 0.2], [1, 1, 0]),  # the same, absolute: the sign flips
        ({"closed": 1, "open": 0}, [0.0, 0.25, 2.0], [1, 0.75, 0]),
    ],
)
def test_gripper_ends(ends: dict[str, Any], numbers: list[float], openings: list[float]) -> None:
    actions = ActionMap(columns=("position", "rotation", "gripper"), gripper=GripperRange(**ends))
    rows = np.concatenate([np.tile([0.0, 0, 0, 0, 0, 0, 1], (3, 1)), np.array(numbers)[:, None]], axis=1)
    assert np.allclose(actions.read(rows, START)[2], openings)  # type: ignore[arg-type]


def test_skipped_columns_and_joints() -> None:
    skipping = ActionMap(columns=(2, "position", "rotation", 1, "gripper"))
    assert skipping.width == 11 and [row["width"] for row in skipping.describe()] == [2, 3, 4, 1, 1]
    rows = skipping.write(poses(), None)
    assert not rows[:, [0, 1, 9]].any() and np.allclose(rows[:, 2:5], poses().positions)
    joints = ActionMap(columns=("joints", "gripper"), joints=6)
    trajectory = JointTrajectory(positions=np.arange(12.0).reshape(2, 6), gripper=np.ones(2), dt=0.1, start_time=0)
    assert np.array_equal(joints.read(joints.write(trajectory, None), START)[0], trajectory.positions)
    with pytest.raises(
        PolicyError, match=r"expected a policy that commands joints and gripper, got .* ActionTrajectory"
    ):
        joints.write(poses(), None)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"columns": ("position", "gripper")}, "expected position and rotation, or joints"),
        ({"columns": ("joints",), "reference": "delta"}, "expected absolute joint positions"),
        ({"frame": "tool"}, "expected base or world for absolute poses"),
        ({"turns": "added", "reference": "delta"}, "expected composed for quaternion_xyzw"),
        ({"position_scale": 0.1}, "expected scales of differences alone"),
        ({"rotation": "euler_xx"}, "rotation: expected one of"),
        ({"dt": 0.0}, "a dt above 0"),
        ({"executed_steps": 0}, "expected 1 or more"),
    ],
)
def test_columns_that_cannot_be(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        ActionMap(**changes)


def test_rows_hold_every_kind_of_trajectory() -> None:
    signals = SignalTrajectory(values=np.arange(6.0).reshape(2, 3), dt=0.1, start_time=0.2)
    joints = JointTrajectory(positions=np.arange(6.0).reshape(2, 3), dt=0.1, start_time=0.2)
    for trajectory in (poses(), signals, joints):
        rows, kind = as_rows(trajectory)
        opening = getattr(trajectory, "gripper", None) is not None
        again = from_rows(rows, kind, dt=trajectory.dt, start_time=trajectory.start_time, opening=opening)
        assert type(again) is type(trajectory) and np.array_equal(as_rows(again)[0], rows)
        assert np.array_equal(as_rows(some_rows(trajectory, 1, 2))[0], rows[1:2])
        assert some_rows(trajectory, 1, 2).start_time == trajectory.start_time + trajectory.dt
    with pytest.raises(PolicyError, match="expected 8 columns of tool poses"):
        from_rows(np.zeros((2, 7)), "tool_poses", dt=0.1, start_time=0)


def seen(**changes: Any) -> Observation:
    fields: dict[str, Any] = {
        "images": {"static": np.full((6, 8, 3), 9, np.uint8), "gripper": np.zeros((4, 4, 3), np.uint8)},
        "tool_position": START.position, "tool_quaternion": START.quaternion, "gripper_opening": 0.1 + 0.2,
        "gripper_command": 1.0, "joint_positions": np.linspace(0, 1, 7), "instruction": "lift", "time": 1 / 3,
    }  # fmt: skip
    return Observation(**(fields | changes))


@pytest.mark.parametrize("protocol", ["openpi", "vla-eval"])
@pytest.mark.parametrize("robot", [None, TOOL_ARM])
def test_the_natural_map_passes_an_observation_bit_by_bit(protocol: Any, robot: Embodiment | None) -> None:
    keys = natural_map(robot, protocol).observations
    sent = keys.write(seen(), robot=None, nested=protocol == "vla-eval")
    got = keys.read(unpack(pack(sent, protocol)), robot=robot, time=9.0)
    assert np.array_equal(got.state_vector(), seen().state_vector()) and got.time == 1 / 3
    assert np.array_equal(got.tool_position, START.position) and got.gripper_opening == 0.1 + 0.2
    assert got.instruction == "lift" and all(np.array_equal(got.images[n], seen().images[n]) for n in seen().images)


def test_calvin_reads_what_vla_eval_sends() -> None:
    """Its state: world position, euler angles, finger width [m], last gripper action."""
    state = np.array([0.02, -0.23, 0.57, 3.09, -0.03, 1.5, 0.08, -1.0], np.float32)
    message = {
        "images": {"rgb_static": np.zeros((200, 200, 3), np.uint8), "rgb_gripper": np.zeros((200, 200, 3), np.uint8)},
        "task_description": "open the drawer", "states": state,
    }  # fmt: skip
    got = open_map("calvin", TOOL_ARM).observations.read(message, robot=TOOL_ARM, time=0.1)
    assert np.allclose(got.tool_position, state[:3] + [0.34, 0.46, -0.24], atol=1e-6)
    assert np.allclose(Rotation.from_quat(got.tool_quaternion).as_euler("xyz"), state[3:6], atol=1e-6)
    assert got.gripper_opening == pytest.approx(1, abs=1e-6) and got.gripper_command == 0
    assert set(got.images) == {"static", "gripper"}


OTHER = Embodiment(
    name="other", cameras=("front",), control_hz=10.0,
    state=(
        Signal(name="tool_rotation", width=3, kind="rotation", rotation="euler_xyz"),
        Signal(name="gripper", width=1, kind="gripper", unit="closing"),
        Signal(name="torso", width=2),
    ),
)  # fmt: skip


def test_another_robots_state_is_put_in_its_order_and_conventions(tmp_path: Path) -> None:
    file = tmp_path / "map.yaml"
    file.write_text(
        "images: {front: cam}\nprompt: text\nstate:\n"
        "  a: [{name: torso, width: 2}, {name: gripper, closed: 0, open: 100}]\n"
        "  b: [{name: tool_rotation, rotation: rotation_vector}]\n"
    )
    keys = open_map(str(file), OTHER).observations
    turn = Rotation.from_euler("xyz", [0.1, 0.2, 0.3])
    message = {"cam": np.zeros((3, 5, 7), np.uint8), "text": "go", "a": [1, 2, 25.0], "b": turn.as_rotvec()}
    got = keys.read(message, robot=OTHER, time=0.5)
    assert np.allclose(got.state, [0.1, 0.2, 0.3, 0.75, 1, 2]) and got.images["front"].shape == (5, 7, 3)
    raw = natural_map(OTHER, "openpi").observations
    sent = raw.write(Observation(images=message | {"front": np.zeros((4, 4, 3), np.uint8)}, instruction="", time=0.0,
                                 state=np.array([0.1, 0.2, 0.3, 0.7, 1, 2])), robot=OTHER, nested=False)  # fmt: skip
    assert np.array_equal(raw.read(sent, robot=OTHER, time=0).state, [0.1, 0.2, 0.3, 0.7, 1, 2])


def good() -> dict[str, Any]:
    return natural_map(TOOL_ARM, "openpi").observations.write(seen(), robot=None, nested=False)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"observation/images/static": None}, "got none called 'observation/images/static' among"),
        ({"prompt": None}, "got none called 'prompt'"),
        ({"prompt": b"lift"}, "prompt: expected a text of at most 4096 characters, got bytes"),
        ({"prompt": "x" * 5000}, "got 5000 characters"),
        ({"observation/images/static": np.zeros((4, 4), np.uint8)}, r"expected an image, .* got uint8 \(4, 4\)"),
        ({"observation/images/static": np.zeros((4, 4, 3))}, "expected an image, .* got float64"),
        ({"observation/state/tool_position": np.zeros(2)}, "tool_position: expected 3 numbers in a row, got shape"),
        ({"observation/state/tool_position": "abc"}, "expected 3 numbers in a row, got str"),
        ({"observation/state/joint_positions": np.full(7, np.nan)}, "expected finite numbers"),
        ({"observation/state/tool_rotation": np.ones(4)}, "expected a unit quaternion"),
        ({"observation/time": np.inf}, "time: expected finite"),
    ],
)
def test_a_wrong_key_or_value_is_one_sentence(changes: dict[str, Any], sentence: str) -> None:
    message = {key: value for key, value in (good() | changes).items() if value is not None}
    with pytest.raises((DataError, ShapeError), match=sentence):
        natural_map(TOOL_ARM, "openpi").observations.read(message, robot=TOOL_ARM, time=0.0)


@pytest.mark.parametrize("name", PRESETS)
def test_presets_survive_being_written_down(name: str) -> None:
    preset = open_map(name, None)
    assert WireMap.from_dict(json.loads(json.dumps(preset.to_dict())), name) == preset


def test_presets_hold_the_keys_of_their_field() -> None:
    libero = {
        "observation/image": np.zeros((8, 8, 3), np.uint8),
        "observation/wrist_image": np.ones((8, 8, 3), np.uint8),
    }
    robot = Embodiment(
        name="libero", cameras=("agentview", "eye_in_hand"), control_hz=10, state=(Signal(name="eef", width=8),)
    )
    message = {**libero, "observation/state": np.arange(8.0), "prompt": "go"}
    got = open_map("libero", robot).observations.read(message, robot=robot, time=0)
    assert got.images["eye_in_hand"].all() and not got.images["agentview"].any() and np.array_equal(got.state, range(8))
    aloha = {
        "images": {
            n: np.zeros((3, 8, 9), np.uint8) for n in ("cam_high", "cam_low", "cam_left_wrist", "cam_right_wrist")
        }
    }
    got = open_map("aloha", None).observations.read({**aloha, "state": np.zeros(14), "prompt": ""}, robot=None, time=0)
    assert got.images["cam_high"].shape == (8, 9, 3) and got.state.shape == (14,)
    droid = open_map("droid", None).observations
    sent = droid.write(
        Observation(images={"exterior_image_1_left": np.zeros((8, 9, 3), np.uint8), "wrist_image_left":
                    np.zeros((8, 9, 3), np.uint8)}, instruction="go", time=0.0, state=np.arange(8.0)),
        robot=None, nested=False,
    )  # fmt: skip
    assert sent["observation/joint_position"].shape == (7,) and sent["observation/gripper_position"] == [7.0]
    assert sent["observation/wrist_image_left"].shape == (224, 224, 3)
    with pytest.raises(ShapeError, match="expected the 16 numbers of tool_arm's state"):
        open_map("libero", None).observations.read(message, robot=TOOL_ARM.__class__(
            name="tool_arm", state=TOOL_ARM.state, control_hz=30), time=0)  # fmt: skip


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("- a", "expected fields of images"),
        ("imges: {a: b}", r"got \['imges'\] as well"),
        ("state: {a: [{nam: x}]}", "expected a signal's name, or fields of"),
        ("state: {a: [torso]}", "expected a width of 1 or more for 'torso'"),
        ("state: {a: -1}", "expected a number of numbers or a list of signals"),
        ("actions: {frame: world}", "expected base_in_world beside world"),
        ("actions: {reference: sideways}", "expected one of absolute, relative, delta, got 'sideways'"),
        ("actions: {gripper: {closed: 1, open: 1}}", "expected different numbers for closed and open"),
        ("base_in_world: [1, 2]", "expected a position, or that and a quaternion"),
        ("images: {a: b", "expected YAML or JSON"),
        ("actions: {columns: 7}", "expected a map as in docs/serving.md"),
    ],
)
def test_a_file_that_is_no_map(tmp_path: Path, text: str, sentence: str) -> None:
    file = tmp_path / "map.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=sentence) as error:
        open_map(str(file), None)
    assert str(file) in str(error.value)


def test_signals_pass_as_they_are_and_the_gripper_in_its_range() -> None:
    actions = ActionMap(columns=("signals", "gripper"), signals=2, gripper=GripperRange(closed=1, open=-1))
    rows = actions.write(SignalTrajectory(values=np.array([[3, 4, 1.0], [5, 6, 0.0]]), dt=0.05, start_time=0.0), None)
    assert rows.tolist() == [[3, 4, -1], [5, 6, 1]]
    values, _, opening = actions.read(rows, START)
    assert values.tolist() == [[3, 4], [5, 6]] and opening is not None and opening.tolist() == [1, 0]
    with pytest.raises(PolicyError, match="expected a policy of 3 action numbers, got 2"):
        actions.write(SignalTrajectory(values=np.ones((1, 2)), dt=0.05, start_time=0.0), None)
    with pytest.raises(ConfigError, match="as the robot takes them"):
        ActionMap(columns=("signals",), reference="delta")


def test_libero_takes_its_gripper_from_a_robot_of_openings_alone() -> None:
    move = Signal(name="move", width=6, kind="other", reference="delta")
    opening = Signal(name="gripper", width=1, kind="gripper")
    for last, converted in ((opening, True), (replace(opening, unit="effort"), False)):
        robot = Embodiment(name="r", control_hz=20, action=(move, last))
        assert (open_map("libero", robot).actions is not None) is converted
    actions = open_map("libero", Embodiment(name="r", control_hz=20, action=(move, opening))).actions
    assert actions is not None and actions.gripper == GripperRange(closed=1, open=-1)
    assert WireMap.from_dict({"actions": {"columns": ["signals", "gripper"], "signals": 6}}, "").actions is not None
    assert open_map("libero", TOOL_ARM).actions is None


def test_a_map_that_is_not_there() -> None:
    with pytest.raises(ConfigError, match=r"map nowhere\.yaml: expected one of libero, droid"):
        open_map("nowhere.yaml", None)


def test_columns_are_named() -> None:
    assert sum(row["width"] for row in natural_columns(None)) == 8
    assert [row["name"] for row in natural_columns(TOOL_ARM)] == ["tool_position", "tool_rotation", "gripper"]


# -- arrays in msgpack -------------------------------------------------------------------------------------------


def test_openpis_bytes() -> None:
    """The bytes that openpi-client 0.1.2 writes for an array and a scalar, written down here by hand."""
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    marked = {b"__ndarray__": True, b"data": array.tobytes(), b"dtype": "<f4", b"shape": (2, 3)}
    recorded = msgpack.packb({"a": marked, "b": {b"__npgeneric__": True, b"data": 1.5, b"dtype": "<f4"}})
    assert pack({"a": array, "b": np.float32(1.5)}, "openpi") == recorded
    got = unpack(recorded)
    assert np.array_equal(got["a"], array) and got["a"].flags.writeable and got["b"] == 1.5


@pytest.mark.parametrize("form", ["png", "raw"])
def test_vla_evals_images(form: str) -> None:
    image = np.random.default_rng(0).integers(0, 255, (5, 6, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(image).save(file, format="PNG")
    data = {"png": file.getvalue(), "raw": image.tobytes()}[form]
    recorded = {"__image__": True, "format": form, "data": data, "dtype": "|u1", "shape": [5, 6, 3]}
    assert np.array_equal(unpack(msgpack.packb(recorded)), image)
    assert np.array_equal(unpack(pack({"a": [image]}, "vla-eval"))["a"][0], image)


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        ({"__ndarray__": True, "data": b"12", "dtype": "<f4", "shape": [3]}, "expected 12 bytes for float32"),
        (
            {"__ndarray__": True, "data": b"", "dtype": "|O", "shape": [0]},
            "expected numbers or texts, got dtype object",
        ),
        ({"__ndarray__": True, "data": b"", "dtype": "nonsense", "shape": [0]}, "expected the name of a number's type"),
        (
            {"__ndarray__": True, "data": b"", "dtype": "<f4", "shape": [-1]},
            "expected a shape of up to 8 whole numbers",
        ),
        ({"__ndarray__": True, "data": b"", "dtype": "<f4", "shape": [1 << 62, 1 << 62]}, "expected a shape"),
        ({b"__ndarray__": True}, "expected the name of a number's type as dtype, got None"),
        ({"__image__": True, "format": "gif", "data": b""}, "expected the format png, jpeg or raw"),
        ({"__image__": True, "format": "png", "data": b"\x89PNG"}, "expected a whole png file"),
    ],
)
def test_an_array_that_lies_is_refused(value: Any, sentence: str) -> None:
    with pytest.raises(DataError, match=sentence):
        unpack(msgpack.packb({"a": value}))
    for data in (b"\xc1", b"", b"\x91" * 100_000):
        with pytest.raises(DataError, match="expected msgpack"):
            unpack(data)
    with pytest.raises(DataError, match="expected binary msgpack"):
        unpack("text")


@pytest.mark.parametrize(
    ("data", "dtype", "sentence"),
    [
        (1 << 33, "|S8", "expected a value of dtype .S8, got int"),  # numpy would make eight billion bytes of it
        (5, "<U8", "expected a value of dtype <U8, got int"),
        (None, "<f8", "expected a value of dtype float64, got NoneType"),  # would be NaN
        ([1.0, 2.0], "<f8", "expected a value of dtype float64, got list"),
        (1.0, "i4," * 1000, "expected the name of a number's type as dtype, got 3000 characters"),
        (1.0, "|O", "expected numbers or texts, got dtype object"),
    ],
)
def test_a_scalar_that_lies_is_refused(data: Any, dtype: str, sentence: str) -> None:
    with pytest.raises(DataError, match=sentence):
        unpack(msgpack.packb({b"__npgeneric__": True, b"data": data, b"dtype": dtype}))


def test_scalars_come_through() -> None:
    values = {"a": np.float32(1.5), "b": np.int64(-3), "c": np.bool_(True), "d": np.str_("x"), "e": np.bytes_(b"y")}
    found = unpack(pack(values, "openpi"))
    assert all(found[name] == value for name, value in values.items()) and found["a"].dtype == np.float32


def test_the_images_of_a_message_are_bounded_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """A PNG of one color holds a thousand times its size."""
    monkeypatch.setattr("gr2.gr_model.act.array_codec.MAX_BYTES", 5 * 4 * 100 * 100)
    file = io.BytesIO()
    Image.new("RGB", (100, 100)).save(file, "PNG")
    image = {"__image__": True, "format": "png", "data": file.getvalue()}
    assert len(unpack(msgpack.packb([image] * 5))) == 5
    with pytest.raises(
        DataError, match="expected images of at most 200000 bytes in a message, got one of 100 x 100 px"
    ):
        unpack(msgpack.packb([image] * 6))
