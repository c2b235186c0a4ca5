"""Read RLDS datasets (RT-1, Bridge, DROID and others): TFRecord files beside their `features.json`.

One record is one episode. What a step holds is kept under one name for the whole episode, such as
`steps/observation/image`: pictures and sentences one a step, numbers of all steps in a row. A float64 of
`features.json` is stored as float32.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ...gr_model.contracts import Array, Episode
from ...gr_model.errors import DataError, ShapeError
from ..files import camera_name, read_json, sample_key
from ..transcode import encode_frames
from .record import Record, VideoBytes
from .rlds_features import Feature, decode_feature, read_features
from .tfrecord import parse_example, read_records

Gripper = Literal["opening", "closing", "signed_opening", "signed_closing", "relative_closing", "as_stored"]
"""What the last number of an action says: 1 open 0 closed; 1 closed 0 open; +1 open -1 closed; +1 closed -1 open;
+1 closes, -1 opens, 0 keeps; or unknown, kept as it is. All but the last are read as 1 open, 0 closed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RldsSpec:
    """Where the parts of an episode lie, as names of `features.json` joined by slashes.

    cameras: camera name -> picture.
    states, actions: numbers put side by side, in this order; the gripper is the last number of an action.
    instructions: the first of them that is not empty is the sentence.
    optional_cameras: left out of an episode in which they are filler, pictures of one colour.
    control_hz: steps a second.
    """

    cameras: Mapping[str, str]
    states: tuple[str, ...]
    actions: tuple[str, ...]
    instructions: tuple[str, ...]
    control_hz: float | None
    gripper: Gripper = "as_stored"
    optional_cameras: tuple[str, ...] = ()

    def keys(self) -> set[str]:
        """Return every name that the dataset must have."""
        return {*self.cameras.values(), *self.states, *self.actions, *self.instructions}


_FILLER_SPAN = 8
"""Pictures whose values differ by no more than this are of one colour."""

_OBSERVATION, _ACTION = "steps/observation", "steps/action"
_BRIDGE_CAMERAS = {"static": "image_0", "image_1": "image_1", "image_2": "image_2", "image_3": "image_3"}

RT1 = RldsSpec(
    cameras={"static": f"{_OBSERVATION}/image"},
    states=(f"{_OBSERVATION}/base_pose_tool_reached", f"{_OBSERVATION}/gripper_closed"),
    actions=(f"{_ACTION}/world_vector", f"{_ACTION}/rotation_delta", f"{_ACTION}/gripper_closedness_action"),
    instructions=(f"{_OBSERVATION}/natural_language_instruction",),
    control_hz=3,
    gripper="relative_closing",
)
"""Deltas of position and rotation. Source: the Open X-Embodiment dataset `fractal20220817_data`."""

BRIDGE = RldsSpec(
    cameras={camera: f"{_OBSERVATION}/{name}" for camera, name in _BRIDGE_CAMERAS.items()},
    states=(f"{_OBSERVATION}/state",),
    actions=(_ACTION,),
    instructions=("steps/language_instruction",),
    control_hz=5,
    gripper="opening",
    optional_cameras=("image_1", "image_2", "image_3"),
)
"""Deltas of position and rotation. The flags `episode_metadata/has_image_*` are not to be trusted: there are files with
all of them false beside good pictures. Source: BridgeData V2, `bridge_dataset` 1.0.0."""

DROID = RldsSpec(
    cameras={
        "static": f"{_OBSERVATION}/exterior_image_1_left",
        "exterior_image_2_left": f"{_OBSERVATION}/exterior_image_2_left",
        "gripper": f"{_OBSERVATION}/wrist_image_left",
    },
    states=(f"{_OBSERVATION}/cartesian_position", f"{_OBSERVATION}/gripper_position"),
    actions=("steps/action_dict/cartesian_position", "steps/action_dict/gripper_position"),
    instructions=tuple(f"steps/language_instruction{suffix}" for suffix in ("", "_2", "_3")),
    control_hz=15,
    gripper="closing",
)
"""Commanded poses (position, Euler angles) in the robot base frame. Source: the DROID dataset, RLDS version 1.0."""

RLDS_SPECS: Mapping[str, RldsSpec] = {
    "fractal20220817_data": RT1,
    "bridge_dataset": BRIDGE,
    "bridge_orig": BRIDGE,
    "droid": DROID,
    "droid_100": DROID,
}
"""Specs by the `name` of `dataset_info.json`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RldsDataset:
    """A version folder of a dataset, nothing of its episodes read yet.

    files: TFRecord files, sorted.
    lengths: file name -> episodes that `dataset_info.json` promises, where it says so.
    """

    folder: Path
    name: str
    features: Mapping[str, Feature]
    spec: RldsSpec
    files: tuple[Path, ...]
    lengths: Mapping[str, int]


def find_rlds(path: Path) -> list[Path]:
    """List the version folders at `path` or right below it: those with `features.json` and a TFRecord file."""
    folders = [path, *sorted(path.glob("*/"))] if path.is_dir() else []
    return [f for f in folders if (f / "features.json").is_file() and next(f.glob("*.tfrecord*"), None)]


def open_rlds(
    path: Path, *, spec: RldsSpec | None = None, control_hz: float | None = None, split: str | None = None
) -> RldsDataset:
    """Open a dataset: `<name>/<version>`, or `<name>` where it has one version.

    Args:
        path: folder.
        spec: where the parts of an episode lie; without, a known dataset or what the names alone tell.
        control_hz: steps a second, needed where neither the spec nor the dataset's name tells.
        split: read this split alone ("train").

    Raises:
        DataError: files are missing, the spec names what the dataset has not, or the rate is not known.
    """
    path = path.expanduser()
    folders = find_rlds(path)
    if len(folders) != 1:
        got = ", ".join(f.name for f in folders) or "none"
        raise DataError(
            f"{path}: expected one folder with features.json and *.tfrecord* files, got {got}; name the version's "
            "folder, or copy features.json and dataset_info.json beside the TFRecord files."
        )
    folder = folders[0]
    features = read_features(folder / "features.json")
    information = read_json(folder / "dataset_info.json") if (folder / "dataset_info.json").is_file() else {}
    if not isinstance(information, dict):
        raise DataError(f"{folder}/dataset_info.json: expected an object, got {type(information).__name__}; repair it.")
    name = str(information.get("name") or folder.parent.name)
    known = RLDS_SPECS.get(name)
    if spec is None:
        spec = known if known and known.keys() <= set(features) else guess_spec(folder, features)
    missing = sorted(spec.keys() - set(features))
    if missing:
        raise DataError(f"{folder}: expected {missing}, got {sorted(features)}; correct the names in the spec.")
    spec = spec if control_hz is None else replace(spec, control_hz=control_hz)
    if spec.control_hz is None or not spec.control_hz > 0:
        raise DataError(f"{folder}: expected a rate above 0 Hz, got {spec.control_hz}; state it as control_hz.")
    pattern = "*.tfrecord*" if split is None else f"*-{split}.tfrecord*"
    files = tuple(sorted(folder.glob(pattern)))
    if not files:
        raise DataError(f"{folder}: expected files of the split {split!r}, got none; check the name of the split.")
    try:
        lengths = _shard_lengths(information)
    except (AttributeError, TypeError, ValueError) as error:
        raise DataError(
            f"{folder}/dataset_info.json: expected splits with shardLengths, got another layout ({error}); repair it."
        ) from error
    return RldsDataset(folder=folder, name=name, features=features, spec=spec, files=files, lengths=lengths)


def _shard_lengths(information: Mapping[str, Any]) -> dict[str, int]:
    lengths = {}
    for split in information.get("splits") or []:
        counts = split.get("shardLengths") or []
        for i, count in enumerate(counts):
            stem = f"{information.get('name')}-{split.get('name')}.tfrecord"
            lengths[f"{stem}-{i:05d}-of-{len(counts):05d}"] = int(count)
    return lengths


def guess_spec(folder: Path, features: Mapping[str, Feature]) -> RldsSpec:
    """Tell the parts of an episode by their names alone: colour pictures, `state`, `action`, the instruction.

    One camera is called `static`, several by the last part of their name. The gripper is kept as stored.

    Raises:
        DataError: there is no picture, or no single vector of actions.
    """
    steps = {name: feature for name, feature in features.items() if feature.num_sequences == 1}
    pictures = [n for n, f in steps.items() if f.kind == "image" and f.shape[-1:] in ((3,), (-1,), ())]
    if not pictures or _ACTION not in steps:
        raise DataError(
            f"{folder}: expected a colour picture and `{_ACTION}`, got {sorted(steps)}; say by an RldsSpec where "
            "pictures, states and actions lie."
        )
    names = [camera_name(name.rpartition("/")[2]) for name in pictures]
    state = next((name for name in (f"{_OBSERVATION}/state", "steps/state") if name in steps), None)
    texts = [name for name, f in steps.items() if f.kind == "text"]
    instruction = sorted((n for n in texts if re.search("instruction|language|task|goal", n)), key=len)[:1]
    return RldsSpec(
        cameras={"static": pictures[0]} if len(pictures) == 1 else dict(zip(names, pictures, strict=True)),
        states=(state,) if state else (),
        actions=(_ACTION,),
        instructions=tuple(instruction),
        control_hz=None,
    )


def read_rlds(dataset: RldsDataset, *, check_crc: bool = True) -> Iterator[Episode]:
    """Yield every episode of a dataset, one in memory at a time.

    Raises:
        DataError: as `read_rlds_file` says, at the first broken file.
    """
    for path in dataset.files:
        yield from read_rlds_file(dataset, path, check_crc=check_crc)


def read_rlds_file(dataset: RldsDataset, path: Path, *, check_crc: bool = True) -> Iterator[Episode]:
    """Yield the episodes of one TFRecord file, one in memory at a time.

    Raises:
        DataError: the file is damaged, ends early, or an episode is not what `features.json` says.
    """
    for number, data in _records(dataset, path, check_crc):
        yield decode_episode(dataset, data, f"{path}: record {number}")


def _records(dataset: RldsDataset, path: Path, check_crc: bool) -> Iterator[tuple[int, bytes]]:
    count = 0
    for number, data in enumerate(read_records(path, check_crc=check_crc)):
        yield number, data
        count = number + 1
    expected = dataset.lengths.get(path.name, count)
    if count != expected:
        raise DataError(
            f"{path}: dataset_info.json promises {expected} episodes, got {count}; copy the file again, or correct "
            "shardLengths."
        )


def decode_episode(dataset: RldsDataset, data: bytes, where: str) -> Episode:
    """Decode one record.

    Args:
        dataset: as opened.
        data: record.
        where: name of the record, for errors and as the source of the episode.

    Raises:
        DataError: it is not what `features.json` says, or its parts differ in their number of steps.
    """
    spec = dataset.spec
    try:
        example = parse_example(data)

        def read(name: str) -> Any:
            return decode_feature(name, dataset.features[name], example.get(name, []))

        pictures = {camera: read(name) for camera, name in spec.cameras.items()}
        images = {c: p for c, p in pictures.items() if c not in spec.optional_cameras or np.ptp(p) > _FILLER_SPAN}
        states, actions = ([_rows(read(name)) for name in names] for names in (spec.states, spec.actions))
        parts = [*images.items(), *zip(spec.states, states, strict=True), *zip(spec.actions, actions, strict=True)]
        lengths = {name: len(values) for name, values in parts}
        if len(set(lengths.values())) != 1 or 0 in lengths.values():
            raise DataError(f"expected one number of steps, above 0, got {lengths}")
        sentences = (str(text).strip() for name in spec.instructions for text in read(name)[:1])
        return Episode(
            images=images,
            states=np.concatenate([np.zeros((next(iter(lengths.values())), 0), np.float32), *states], axis=1),
            actions=_with_opening(np.concatenate(actions, axis=1), spec.gripper),
            instruction=next((sentence for sentence in sentences if sentence), ""),
            control_hz=float(spec.control_hz or 0),
            source=where,
        )
    except (DataError, ShapeError) as error:
        raise DataError(f"{where}: {error}; leave the record out, or correct features.json or the spec.") from error


def _rows(values: Array) -> Array:
    return np.asarray(values, np.float32).reshape(len(values), -1)


def _with_opening(actions: Array, gripper: Gripper) -> Array:
    """Turn the last number of each action into 1 open, 0 closed."""
    last = actions[:, -1]
    if gripper == "closing":
        last = 1 - last
    elif gripper in ("signed_opening", "signed_closing"):
        last = (1 + last) / 2 if gripper == "signed_opening" else (1 - last) / 2
    elif gripper == "relative_closing":
        last = _opening_of_moves(last)
    return np.concatenate([actions[:, :-1], last[:, None]], axis=1, dtype=np.float32)


def _opening_of_moves(closing: Array) -> Array:
    """Integrate moves of the gripper; before the first one it is the other way, without any it is open.

    Source: Octo, `rel2abs_gripper_actions` (moves below 0.1 are none).
    """
    moves = np.flatnonzero(np.abs(closing) > 0.1)
    if not len(moves):
        return np.ones(len(closing), np.float32)
    opened = (closing[moves] < 0).astype(np.float32)
    latest = np.searchsorted(moves, np.arange(len(closing)), side="right") - 1
    return np.where(latest < 0, 1 - opened[0], opened[np.maximum(latest, 0)]).astype(np.float32)


class RldsSource:
    """Episodes of a dataset as records, each with its pictures encoded as videos; what is broken says why."""

    kind = "rlds"

    def __init__(self, path: Path, *, spec: RldsSpec | None = None, control_hz: float | None = None) -> None:
        self.path = path
        self.dataset = open_rlds(path, spec=spec, control_hz=control_hz)

    def __iter__(self) -> Iterator[Record]:
        for path in self.dataset.files:
            key = sample_key(path.name)
            try:
                for number, data in _records(self.dataset, path, True):
                    yield self._record(data, f"{key}-{number:06d}", f"{path.name}: record {number}")
            except DataError as error:
                yield Record(key=key, videos={}, source=path.name, problem=str(error))

    def _record(self, data: bytes, key: str, where: str) -> Record:
        try:
            episode = decode_episode(self.dataset, data, where)
        except DataError as error:
            return Record(key=key, videos={}, source=where, problem=str(error))
        return Record(
            key=key,
            videos={camera: _video(frames, episode.control_hz) for camera, frames in episode.images.items()},
            caption=episode.instruction,
            states=episode.states,
            actions=episode.actions,
            control_hz=episode.control_hz,
            source=where,
            facts={"dataset": self.dataset.name},
        )


def _video(frames: Array, fps: float) -> VideoBytes:
    return VideoBytes(data=encode_frames(frames, fps), suffix=".mp4")
