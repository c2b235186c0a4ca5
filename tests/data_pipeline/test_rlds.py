"""RLDS datasets: what was written is read, on files framed and encoded here and on a piece of Bridge."""

import io
import json
import struct
import zlib
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gr2.contracts import Episode
from gr2.data_pipeline.readers.record import ImageBytes, with_video_files
from gr2.data_pipeline.readers.rlds import RldsSource, open_rlds, read_rlds, read_rlds_file
from gr2.data_pipeline.readers.source import open_source
from gr2.data_pipeline.readers.spec import BRIDGE, DROID, KNOWN_SPECS, RT1, EpisodeSpec
from gr2.data_pipeline.readers.tfrecord import crc32c, masked_crc32c, parse_example, read_records
from gr2.errors import DataError

SAMPLE = Path(__file__).parents[2] / "../shared/real_samples/bridge_rlds"
needs_sample = pytest.mark.skipif(not SAMPLE.is_dir(), reason="the real RLDS sample is not beside the checkout")

STEPS = 5


def varint(value: int) -> bytes:
    """Encode an integer, negative ones in ten bytes."""
    value, out = value % 2**64, b""
    while value > 127:
        value, out = value >> 7, out + bytes([value & 127 | 128])
    return out + bytes([value])


def message(number: int, content: bytes) -> bytes:
    """Encode a length-delimited field."""
    return varint(number << 3 | 2) + varint(len(content)) + content


def encode_feature(values, packed: bool = True) -> bytes:
    """Encode byte strings, floats or integers as a `tf.train.Feature`."""
    if isinstance(values, list):
        return message(1, b"".join(message(1, value) for value in values))
    values = np.asarray(values).ravel()
    if values.dtype.kind == "f":
        items, tag, number = [struct.pack("<f", v) for v in values], b"\x0d", 2
    else:
        items, tag, number = [varint(int(v)) for v in values], b"\x08", 3
    return message(number, message(1, b"".join(items)) if packed else b"".join(tag + item for item in items))


def encode_example(features: dict, packed: bool = True) -> bytes:
    """Encode a `tf.train.Example`."""
    entries = (message(1, n.encode()) + message(2, encode_feature(v, packed)) for n, v in features.items())
    return message(1, b"".join(message(1, entry) for entry in entries))


def write_records(path: Path, records: Iterable[bytes]) -> None:
    """Frame records as TensorFlow does."""
    framed = []
    for data in records:
        length = struct.pack("<Q", len(data))
        framed += [length, struct.pack("<I", masked_crc32c(length)), data, struct.pack("<I", masked_crc32c(data))]
    path.write_bytes(b"".join(framed))


def leaf(kind: str, dtype: str = "float32", shape: tuple[int, ...] = (), **more: str) -> dict:
    """Describe a leaf as `features.json` does."""
    body = {} if kind == "text" else {"shape": {"dimensions": [str(s) for s in shape]}, "dtype": dtype, **more}
    return {"pythonClassName": f"tensorflow_datasets.core.features.{kind}.{kind.title()}", kind: body}


def tree(leaves: dict) -> dict:
    """Nest leaves by the slashes of their names, with a Dataset at `steps`."""
    children: dict = {}
    for name, content in leaves.items():
        head, _, rest = name.partition("/")
        children.setdefault(head, {})[rest] = content
    features = {head: inner[""] if "" in inner else tree(inner) for head, inner in children.items()}
    if "steps" in features:
        features["steps"] = {"pythonClassName": "x.Dataset", "sequence": {"feature": features["steps"], "length": "-1"}}
    return {"pythonClassName": "x.FeaturesDict", "featuresDict": {"features": features}}


def write_dataset(folder: Path, name: str, leaves: dict, episodes: list[dict]) -> Path:
    """Write a version folder of one shard; return the shard."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "features.json").write_text(json.dumps(tree(leaves)))
    information = {"name": name, "splits": [{"name": "train", "shardLengths": [str(len(episodes))]}]}
    (folder / "dataset_info.json").write_text(json.dumps(information))
    shard = folder / f"{name}-train.tfrecord-00000-of-00001"
    write_records(shard, [encode_example(episode) for episode in episodes])
    return shard


def png(pixels: np.ndarray) -> bytes:
    """Encode an image without loss."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def images(seed: int = 0, size: tuple[int, int] = (16, 24)) -> np.ndarray:
    """Draw noise: uint8 `[t h w 3]`."""
    return np.random.default_rng(seed).integers(0, 255, (STEPS, *size, 3), dtype=np.uint8)


def numbers(width: int, seed: int = 0) -> np.ndarray:
    """Draw float32 `[t width]`."""
    return np.random.default_rng(seed).normal(size=(STEPS, width)).astype(np.float32)


PLAIN = {
    "steps/observation/image": leaf("image", "uint8", (16, 24, 3), encodingFormat="png"),
    "steps/observation/state": leaf("tensor", "float64", (6,)),
    "steps/action": leaf("tensor", "float32", (7,)),
    "steps/is_last": leaf("tensor", "bool"),
    "steps/language_instruction": leaf("text"),
}


def plain_episode(seed: int) -> dict:
    """Return the features of an episode of a dataset that no spec knows."""
    return {
        "steps/observation/image": [png(frame) for frame in images(seed)],
        "steps/observation/state": numbers(6, seed),
        "steps/action": numbers(7, seed + 100),
        "steps/is_last": np.arange(STEPS) == STEPS - 1,
        "steps/language_instruction": [f"push block {seed}".encode()] * STEPS,
    }


def write_plain(folder: Path, count: int = 3) -> Path:
    """Write a dataset that no spec knows."""
    return write_dataset(folder, "my_robot", PLAIN, [plain_episode(i) for i in range(count)])


def test_checksum_is_that_of_the_standard():
    assert crc32c(b"123456789") == 0xE3069283 and crc32c(bytes(32)) == 0x8A9136AA  # RFC 3720, B.4
    data = np.random.default_rng(0).bytes(200_001)
    for size in (0, 1, 4095, 4096, 4097, 20_001):
        register = 0xFFFFFFFF
        for byte in data[:size]:
            register ^= byte
            for _ in range(8):
                register = register >> 1 ^ 0x82F63B78 * (register & 1)
        assert crc32c(data[:size]) == register ^ 0xFFFFFFFF
    whole = crc32c(data)
    assert all(
        crc32c(data[:i] + bytes([data[i] ^ 1]) + data[i + 1 :]) != whole for i in (0, 447, 448, 100_000, 200_000)
    )


@pytest.mark.parametrize("packed", [True, False])
def test_example_keeps_its_values(packed):
    integers = np.array([0, 1, 127, 128, -1, 2**62, -(2**63), 300])
    example = {"a/b": [b"", b"x" * 300], "f": numbers(3), "i": integers, "ö": np.zeros(0)}
    got = parse_example(message(7, b"unknown") + encode_example(example, packed))
    assert list(got) == list(example) and got["a/b"] == example["a/b"]
    assert got["f"].dtype == np.float32 and np.array_equal(got["f"], example["f"].ravel())
    assert got["i"].dtype == np.int64 and np.array_equal(got["i"], integers)
    assert len(got["ö"]) == 0
    for broken in (b"\xff" * 12, encode_example(example, packed)[:-3], b"\x0b"):
        with pytest.raises(DataError, match=r"expected a tf\.train\.Example"):
            parse_example(broken)


def test_dataset_known_by_its_features_alone(tmp_path: Path) -> None:
    write_plain(tmp_path / "my_robot/1.0.0")
    with pytest.raises(DataError, match="state it as control_hz"):
        open_rlds(tmp_path / "my_robot")
    episodes = list(read_rlds(open_rlds(tmp_path / "my_robot", control_hz=10, split="train")))
    assert [e.instruction for e in episodes] == ["push block 0", "push block 1", "push block 2"]
    for i, episode in enumerate(episodes):
        assert list(episode.images) == ["static"] and np.array_equal(episode.images["static"], images(i))
        assert np.array_equal(episode.states, numbers(6, i)) and np.array_equal(episode.actions, numbers(7, i + 100))
        assert episode.states.dtype == episode.actions.dtype == np.float32 and episode.control_hz == 10
    with pytest.raises(DataError, match="split 'val', got none"):
        open_rlds(tmp_path / "my_robot", control_hz=10, split="val")


def test_rt1_gripper_is_integrated(tmp_path: Path) -> None:
    action = {"world_vector": numbers(3), "rotation_delta": numbers(3, 1)}
    leaves = {f"steps/action/{name}": leaf("tensor", shape=(3,)) for name in action}
    leaves |= {
        "steps/action/gripper_closedness_action": leaf("tensor", shape=(1,)),
        "steps/observation/base_pose_tool_reached": leaf("tensor", shape=(7,)),
        "steps/observation/gripper_closed": leaf("tensor", shape=(1,)),
        "steps/observation/image": PLAIN["steps/observation/image"],
        "steps/observation/natural_language_instruction": leaf("tensor", "string"),
    }
    episode = {f"steps/action/{name}": values for name, values in action.items()} | {
        "steps/action/gripper_closedness_action": np.array([0, 1, 0.05, 0, -1], np.float32),
        "steps/observation/base_pose_tool_reached": numbers(7),
        "steps/observation/gripper_closed": numbers(1),
        "steps/observation/image": plain_episode(0)["steps/observation/image"],
        "steps/observation/natural_language_instruction": [b"pick apple"] * STEPS,
    }
    name = "fractal20220817_data"
    still = episode | {"steps/action/gripper_closedness_action": np.zeros(STEPS, np.float32)}
    write_dataset(tmp_path, name, leaves, [episode, still])
    dataset = open_rlds(tmp_path)
    first, second = read_rlds(dataset)
    assert dataset.spec is RT1 is KNOWN_SPECS[name] and first.control_hz == 3
    assert np.array_equal(first.actions[:, :6], np.concatenate(list(action.values()), axis=1))
    assert first.actions[:, 6].tolist() == [1, 0, 0, 0, 1] and second.actions[:, 6].tolist() == [1] * STEPS
    assert first.states.shape == (STEPS, 8) and first.instruction == "pick apple"


def test_droid_takes_the_first_instruction_and_turns_the_gripper(tmp_path: Path) -> None:
    leaves = dict.fromkeys(DROID.cameras.values(), PLAIN["steps/observation/image"])
    leaves |= {name: leaf("text") for name in DROID.instructions}
    for name in (*DROID.states, *DROID.actions):
        leaves[name] = leaf("tensor", "float64", (6,) if "cartesian" in name else (1,))
    episode = {name: numbers(6 if "cartesian" in name else 1) for name in (*DROID.states, *DROID.actions)}
    episode |= {name: [png(f) for f in images(i)] for i, name in enumerate(DROID.cameras.values())}
    episode |= {name: [text] * STEPS for name, text in zip(DROID.instructions, (b"", b" close it ", b"x"), strict=True)}
    write_dataset(tmp_path, "droid", leaves, [episode])
    (got,) = read_rlds(open_rlds(tmp_path))
    assert got.instruction == "close it" and got.control_hz == 15
    assert np.array_equal(got.images["gripper"], images(2)) and len(got.images) == 3
    assert np.allclose(got.actions[:, 6], 1 - numbers(1)[:, 0]) and np.array_equal(got.states[:, 6:], numbers(1))


@pytest.mark.parametrize(
    ("gripper", "expected"),
    [("opening", [-1, 1]), ("closing", [2, 0]), ("signed_opening", [0, 1]), ("signed_closing", [1, 0])],
)
def test_gripper_signs_and_packed_tensors(tmp_path: Path, gripper, expected) -> None:
    action = np.array([[-1.0], [1.0]])
    leaves = {
        "steps/view": leaf("image", "uint8", (-1, -1, 3)),
        "steps/action": leaf("tensor", "float64", (1,), encoding="zlib"),
    }
    frames = images()[:2]
    episode = {
        "steps/view": [png(f) for f in frames],
        "steps/action": [zlib.compress(row.tobytes()) for row in action],
    }
    write_dataset(tmp_path, "x", leaves, [episode])
    spec = EpisodeSpec(
        cameras={"eye": "steps/view"},
        states=(),
        actions=("steps/action",),
        instructions=(),
        control_hz=20,
        gripper=gripper,
    )
    (got,) = read_rlds(open_rlds(tmp_path, spec=spec))
    assert got.actions[:, 0].tolist() == expected and got.states.shape == (2, 0) and got.instruction == ""


def test_damaged_files_are_named_with_their_record(tmp_path: Path) -> None:
    shard = write_plain(tmp_path)
    whole, dataset = shard.read_bytes(), open_rlds(tmp_path, control_hz=10)
    sizes = [len(data) + 16 for data in read_records(shard)]
    flipped = bytearray(whole)
    flipped[sizes[0] + 12 + 200] ^= 4
    length = bytearray(whole)
    length[1] ^= 4
    cases = [
        (whole[:-5], 2, r"00001: record 2: expected \d+ bytes and a checksum, got .*; copy the file again"),
        (whole[: sizes[0] + 7], 1, "record 1: expected a header of 12 bytes, got 7"),
        (bytes(flipped), 1, "record 1: data: expected the checksum 0x.*, got 0x"),
        (bytes(length), 0, "record 0: length: expected the checksum"),
        (whole[: sizes[0]], 1, "dataset_info.json promises 3 episodes, got 1"),
    ]
    for content, num_good, words in cases:
        shard.write_bytes(content)
        episodes = read_rlds_file(dataset, shard)
        assert [next(episodes).instruction for _ in range(num_good)] == [f"push block {i}" for i in range(num_good)]
        with pytest.raises(DataError, match=words):
            next(episodes)
        records = list(RldsSource(tmp_path, control_hz=10))
        assert [bool(record.problem) for record in records] == [False] * num_good + [True]
    shard.write_bytes(bytes(flipped))
    assert len(list(read_records(shard, check_crc=False))) == 3
    shard.write_bytes(bytes(length))
    with pytest.raises(DataError, match=r"record [01]: expected \d+ bytes"):
        list(read_records(shard, check_crc=False))


@pytest.mark.parametrize("stored", ["numbers", "bytes", "files"])
def test_images_that_are_kept_as_tensors_are_read(tmp_path: Path, stored: str) -> None:
    camera = "steps/observation/image"
    pixels = {"numbers": images(), "bytes": [image.tobytes() for image in images()]}
    kept = leaf("tensor", "uint8", (16, 24, 3), encoding="none" if stored == "numbers" else "bytes")
    change = {camera: pixels.get(stored, plain_episode(0)[camera])}
    leaves = PLAIN | {camera: leaf("tensor", "string") if stored == "files" else kept}
    write_dataset(tmp_path, "my_robot", leaves, [plain_episode(0) | change])
    spec = EpisodeSpec(cameras={"static": camera}, states=(), actions=("steps/action",), control_hz=10)
    (episode,) = read_rlds(open_rlds(tmp_path, control_hz=10, spec=spec if stored == "files" else None))
    np.testing.assert_array_equal(episode.images["static"], images())
    (record,) = RldsSource(tmp_path, control_hz=10, spec=spec if stored == "files" else None)
    assert not record.problem and np.abs(record.decode().images["static"].mean() - images().mean()) < 8


def test_a_last_step_without_an_action_is_left_out_and_counted(tmp_path: Path) -> None:
    actions = numbers(7)
    actions[-1] = np.nan
    write_dataset(tmp_path, "my_robot", PLAIN, [plain_episode(0) | {"steps/action": actions}])
    (record,) = RldsSource(tmp_path, control_hz=10)
    assert record.repairs == ("a last step without an action left out",)
    (episode,) = read_rlds(open_rlds(tmp_path, control_hz=10))
    np.testing.assert_array_equal(episode.actions, actions[:-1])
    np.testing.assert_array_equal(episode.images["static"], images(0)[:-1])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"steps/action": np.arange(7 * STEPS)}, "steps/action: expected float32, got numbers stored as int64"),
        ({"steps/action": [b"x"] * STEPS}, r"steps/action: expected numbers .*, got bytes"),
        ({"steps/action": numbers(6)}, r"steps/action: expected numbers of shape \(7,\) for each step, got 30"),
        ({"steps/action": numbers(7)[:3]}, "expected one number of steps"),
        ({"steps/action": numbers(7) * np.float32(np.nan)}, "expected finite numbers"),
        ({"steps/observation/state": np.zeros(0, np.float32)}, "steps/observation/state: expected numbers .* nothing"),
        ({"steps/observation/image": numbers(2)}, "image: expected bytes .* got numbers"),
        ({"steps/observation/image": [b"GIF89a"] * STEPS}, "image 0: expected a JPEG, PNG"),
        (
            {"steps/observation/image": [png(f) for f in (*images()[1:], images(size=(8, 8))[0])]},
            r"image 4: expected \(16, 24\) .*, got \(8, 8\)",
        ),
    ],
)
def test_record_that_differs_from_its_features_is_left_out(tmp_path: Path, change, words) -> None:
    write_dataset(tmp_path, "my_robot", PLAIN, [plain_episode(0) | change, plain_episode(1)])
    with pytest.raises(DataError, match=words):
        next(read_rlds(open_rlds(tmp_path, control_hz=10)))
    broken, good = map(with_video_files, RldsSource(tmp_path, control_hz=10))
    assert broken.problem and "record 0" in broken.source and not good.problem and good.caption == "push block 1"
    assert good.videos["static"].read_bytes() and good.key != broken.key


def test_missing_and_foreign_descriptions(tmp_path: Path) -> None:
    write_plain(tmp_path / "d/1.0.0")
    features = tmp_path / "d/1.0.0/features.json"
    foreign = [
        ("[", "cannot be read as JSON"),
        ('{"type": "FeaturesDict", "content": "{}"}', "tensorflow_datasets 4.5"),
        (json.dumps(tree({"image": leaf("image", "uint8")})), "expected episodes with `steps`"),
        (json.dumps(tree({"steps/action": PLAIN["steps/action"]})), "state in a spec where"),
    ]
    for content, words in foreign:
        features.write_text(content)
        with pytest.raises(DataError, match=words):
            open_rlds(tmp_path / "d")
    features.write_text(json.dumps(tree(PLAIN | {"steps/action": leaf("tensor", "float7", (7,))})))
    with pytest.raises(DataError, match="expected float7"):
        next(read_rlds(open_rlds(tmp_path / "d", control_hz=10)))
    with pytest.raises(DataError, match=r"expected \[.*image_0.* correct the names"):
        open_rlds(tmp_path / "d", spec=BRIDGE)
    features.write_text(json.dumps(tree(PLAIN)))
    (features.parent / "dataset_info.json").write_text('{"splits": [3]}')
    with pytest.raises(DataError, match="expected splits with shardLengths"):
        open_rlds(tmp_path / "d", control_hz=10)
    (features.parent / "dataset_info.json").unlink()
    assert open_rlds(tmp_path / "d", control_hz=10).name == "d"
    features.unlink()
    with pytest.raises(DataError, match=r"features\.json and \*\.tfrecord\* files, got none"):
        open_rlds(tmp_path / "d")


def test_records_keep_the_files_of_their_images(tmp_path: Path) -> None:
    write_plain(tmp_path)
    for i, record in enumerate(RldsSource(tmp_path, control_hz=10)):
        video = record.videos["static"]
        assert isinstance(video, ImageBytes) and video.fps == 10
        assert list(video.images) == plain_episode(i)["steps/observation/image"]


@pytest.mark.parametrize(("last", "kept"), [(0, False), (8, False), (9, True)])
def test_camera_of_one_color_is_filler(tmp_path: Path, last: int, kept: bool) -> None:
    filler = np.zeros((STEPS, 16, 24, 3), np.uint8)
    filler[-1, 3, 3] = last
    leaves = PLAIN | {"steps/observation/second": PLAIN["steps/observation/image"]}
    episode = plain_episode(0) | {"steps/observation/second": [png(frame) for frame in filler]}
    write_dataset(tmp_path, "x", leaves, [episode])
    spec = EpisodeSpec(
        cameras={"eye": "steps/observation/image", "second": "steps/observation/second"},
        actions=("steps/action",),
        control_hz=5,
        optional_cameras=("second",),
    )
    (record,) = RldsSource(tmp_path, spec=spec)
    (episode_read,) = read_rlds(open_rlds(tmp_path, spec=spec))
    assert ("second" in record.videos) == ("second" in episode_read.images) == kept and "eye" in record.videos


@needs_sample
def test_piece_of_bridge() -> None:
    dataset = open_rlds(SAMPLE)
    assert dataset.spec is BRIDGE and dataset.name == "bridge_dataset"
    episodes = list(read_rlds(dataset))
    flip, carrot, cup, lever = (
        "flip pot upright which is in sink",
        "put carrot on plate",
        "put cup from counter or drying rack into sink",
        "turn lever vertical to front",
    )
    assert [e.instruction for e in episodes] == [flip] * 3 + [carrot] * 4 + [cup] * 3 + [lever] * 3
    for episode in episodes:
        shapes = {camera: frames.shape for camera, frames in episode.images.items()}
        assert shapes == dict.fromkeys(("static", "image_1", "image_2"), (10, 64, 64, 3))  # image_3 is filler
        assert episode.states.shape == episode.actions.shape == (10, 7)
        assert episode.images["static"].std() > 40 and np.all(
            (episode.actions[:, 6] >= 0) & (episode.actions[:, 6] <= 1)
        )
        assert np.abs(np.diff(episode.states[:, :3], axis=0)).max() < 0.1  # [m] between steps
    records = list(open_source(SAMPLE))
    assert len({record.key for record in records}) == 13 and not any(record.problem for record in records)
    assert np.array_equal(records[4].actions, episodes[4].actions) and records[4].caption == carrot
    episode = records[4].decode()
    assert isinstance(episode, Episode) and episode.control_hz == 5
    for camera, frames in episodes[4].images.items():
        assert np.abs(episode.images[camera].astype(int) - frames).mean() < 3  # gray levels, lost by H.264
    named = replace(BRIDGE, cameras={"eye": "steps/observation/image_3"}, optional_cameras=())
    assert list(next(read_rlds(open_rlds(SAMPLE, spec=named))).images) == ["eye"]
