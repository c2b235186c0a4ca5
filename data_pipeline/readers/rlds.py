"""Read RLDS datasets (RT-1, Bridge, DROID and others): TFRecord files beside their `features.json`.

One record is one episode. What a step holds is kept under one name for the whole episode, such as
`steps/observation/image`: images and instructions one a step, numbers of all steps in a row. A float64 of
`features.json` is stored as float32.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sized
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ...contracts import Array, Episode
from ...errors import DataError
from ..files import camera_name, read_json, sample_key
from .array_images import is_named_color
from .record import LAST_LEFT_OUT, ImageBytes, Record, lacks_last_action
from .rlds_features import Feature, decode_feature, decode_images, holds_pixels, image_bytes, read_features
from .robot_signals import Column, RobotSignals
from .signal_names import words_of
from .spec import KNOWN_SPECS, EpisodeSpec, commanded, with_opening
from .tfrecord import parse_example, read_records

_FILLER_SPAN = 8
"""Images whose values differ by no more than this are of one color."""

_OBSERVATION, _ACTION = "steps/observation", "steps/action"
_REMEDY = "; leave the record out, or correct features.json or the spec."


@dataclass(frozen=True, slots=True, kw_only=True)
class RldsDataset:
    """A version folder of a dataset, nothing of its episodes read yet.

    files: TFRecord files, sorted.
    lengths: file name -> episodes that `dataset_info.json` promises, where it does.
    """

    folder: Path
    name: str
    features: Mapping[str, Feature]
    spec: EpisodeSpec
    files: tuple[Path, ...]
    lengths: Mapping[str, int]


def find_rlds(path: Path) -> list[Path]:
    """List the version folders at `path` or right below it: those with `features.json` and a TFRecord file."""
    folders = [path, *sorted(found for found in path.glob("*") if found.is_dir())] if path.is_dir() else []
    return [f for f in folders if (f / "features.json").is_file() and _visible(f, "*.tfrecord*")]


def _visible(folder: Path, pattern: str) -> list[Path]:
    """List files in order, without the hidden ones that macOS leaves beside them."""
    return [file for file in sorted(folder.glob(pattern)) if not file.name.startswith(".")]


def open_rlds(
    path: Path, *, spec: EpisodeSpec | None = None, control_hz: float | None = None, split: str | None = None
) -> RldsDataset:
    """Open a dataset: `<name>/<version>`, or `<name>` where it has one version.

    Args:
        path: folder.
        spec: where the parts of an episode lie; without, a known dataset or what the names alone show.
        control_hz: steps a second, needed where neither the spec nor the dataset's name gives it.
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
    known = KNOWN_SPECS.get(name)
    if spec is None:
        spec = known if known and known.keys() <= set(features) else guess_spec(folder, features)
    missing = sorted(spec.keys() - set(features))
    if missing:
        raise DataError(f"{folder}: expected {missing}, got {sorted(features)}; correct the names in the spec.")
    spec = spec if control_hz is None else replace(spec, control_hz=control_hz)
    if spec.control_hz is None or not spec.control_hz > 0:
        raise DataError(
            f"{folder}: expected a rate above 0 Hz, got {spec.control_hz}; state it as control_hz in a spec."
        )
    pattern = "*.tfrecord*" if split is None else f"*-{split}.tfrecord*"
    files = tuple(_visible(folder, pattern))
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


def guess_spec(folder: Path, features: Mapping[str, Feature]) -> EpisodeSpec:
    """Infer the parts of an episode by their names alone: color images, `state`, `action`, the instruction.

    One camera is called `static`, several by the last part of their name. The gripper is kept as stored.

    Raises:
        DataError: there is no image, or no single vector of actions.
    """
    steps = {name: feature for name, feature in features.items() if feature.num_sequences == 1}
    colored = [
        name
        for name, feature in steps.items()
        if (feature.kind == "image" and feature.shape[-1:] in ((3,), (-1,), ()))
        or (holds_pixels(feature) and is_named_color(name.rpartition("/")[2]))
    ]
    images = [name for name in colored if "depth" not in words_of(name.rpartition("/")[2])]
    if not images or _ACTION not in steps:
        raise DataError(
            f"{folder}: expected a color image and `{_ACTION}`, got {sorted(steps)}; state in a spec where images, "
            "states and actions lie."
        )
    names = [camera_name(name.rpartition("/")[2]) for name in images]
    state = next((name for name in (f"{_OBSERVATION}/state", "steps/state") if name in steps), None)
    texts = [name for name, f in steps.items() if f.kind == "text"]
    instruction = sorted((n for n in texts if re.search("instruction|language|task|goal", n)), key=len)[:1]
    return EpisodeSpec(
        cameras={"static": images[0]} if len(images) == 1 else dict(zip(names, images, strict=True)),
        states=(state,) if state else (),
        actions=(_ACTION,),
        instructions=tuple(instruction),
        control_hz=None,
    )


def read_rlds(dataset: RldsDataset, *, check_crc: bool = True) -> Iterator[Episode]:
    """Yield every episode of a dataset, one in memory at a time.

    Raises:
        DataError: as `read_rlds_file` states, at the first broken file.
    """
    for path in dataset.files:
        yield from read_rlds_file(dataset, path, check_crc=check_crc)


def read_rlds_file(dataset: RldsDataset, path: Path, *, check_crc: bool = True) -> Iterator[Episode]:
    """Yield the episodes of one TFRecord file, one in memory at a time.

    Raises:
        DataError: the file is damaged, ends early, or an episode is not what `features.json` states.
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


@dataclass(frozen=True, slots=True, kw_only=True)
class _Steps:
    """What one record holds, its images still encoded; the fields are those of `Episode` and `Record`."""

    images: Mapping[str, list[bytes]]
    states: Array
    actions: Array
    instruction: str
    repairs: tuple[str, ...] = ()


def _read_steps(dataset: RldsDataset, data: bytes) -> _Steps:
    """Read one record; the first and the last image of an optional camera show whether it is filler.

    Raises:
        DataError: it is not what `features.json` states, or its parts differ in their number of steps.
    """
    spec, features = dataset.spec, dataset.features
    example = parse_example(data)

    def read(name: str) -> Any:
        return decode_feature(name, features[name], example.get(name, []))

    images = {}
    for camera, name in spec.cameras.items():
        encoded = image_bytes(name, features[name], example.get(name, []))
        ends = (
            decode_images(name, features[name], [encoded[0], encoded[-1]]) if camera in spec.optional_cameras else None
        )
        if ends is None or np.ptp(ends) > _FILLER_SPAN:
            images[camera] = encoded
    states, actions = ([_rows(read(name)) for name in names] for names in (spec.states, spec.actions))
    parts: list[tuple[str, Sized]] = [
        *images.items(),
        *zip(spec.states, states, strict=True),
        *zip(spec.actions, actions, strict=True),
    ]
    lengths = {name: len(values) for name, values in parts}
    if len(set(lengths.values())) != 1 or 0 in lengths.values():
        raise DataError(f"expected one number of steps, above 0, got {lengths}")
    none = np.zeros((next(iter(lengths.values())), 0), np.float32)
    joined = np.concatenate([none, *states], axis=1), commanded(np.concatenate([none, *actions], axis=1), spec)
    repairs: tuple[str, ...] = ()
    if lacks_last_action(joined[1]):
        joined, repairs = (joined[0][:-1], joined[1][:-1]), (LAST_LEFT_OUT,)
        images = {camera: encoded[:-1] for camera, encoded in images.items()}
    broken = [name for name, values in zip(("states", "actions"), joined, strict=True) if not np.isfinite(values).all()]
    if broken:
        raise DataError(f"{' and '.join(broken)}: expected finite numbers, got NaN or infinity")
    texts = (str(text).strip() for name in spec.instructions for text in read(name)[:1])
    return _Steps(
        images=images,
        states=joined[0],
        actions=with_opening(joined[1], spec.gripper),
        instruction=next((text for text in texts if text), ""),
        repairs=repairs,
    )


def decode_episode(dataset: RldsDataset, data: bytes, where: str) -> Episode:
    """Decode one record.

    Args:
        dataset: as opened.
        data: record.
        where: name of the record, for errors and as the source of the episode.

    Raises:
        DataError: it is not what `features.json` states, or its parts differ in their number of steps.
    """
    spec, features = dataset.spec, dataset.features
    try:
        steps = _read_steps(dataset, data)
        names = {camera: spec.cameras[camera] for camera in steps.images}
        return Episode(
            images={c: decode_images(name, features[name], steps.images[c]) for c, name in names.items()},
            states=steps.states,
            actions=steps.actions,
            instruction=steps.instruction,
            control_hz=float(spec.control_hz or 0),
            source=where,
        )
    except DataError as error:
        raise DataError(f"{where}: {error}{_REMEDY}") from error


def _width(feature: Feature) -> int:
    return 0 if -1 in feature.shape else math.prod(feature.shape)


def _rows(values: Array) -> Array:
    return np.asarray(values, np.float32).reshape(len(values), -1)


class RldsSource:
    """Episodes of a dataset as records whose images stay encoded; what is broken is a record with the reason.

    spec, control_hz: as `open_rlds` takes them.
    """

    kind = "rlds"

    def __init__(self, path: Path, *, spec: EpisodeSpec | None = None, control_hz: float | None = None) -> None:
        self.path = path
        self.dataset = open_rlds(path, spec=spec, control_hz=control_hz)
        used, features = self.dataset.spec, self.dataset.features
        columns = {name: Column(width=_width(features[name])) for name in (*used.states, *used.actions)}
        robot = used.name or self.dataset.name
        self._signals = RobotSignals(spec=used, robot=robot, where=str(self.dataset.folder), columns=columns)

    def __iter__(self) -> Iterator[Record]:
        for path in self.dataset.files:
            key = sample_key(path.name)
            try:
                for number, data in _records(self.dataset, path, True):
                    yield self._record(data, f"{key}-{number:06d}", f"{path.name}: record {number}")
            except DataError as error:
                yield Record(key=key, videos={}, source=path.name, problem=str(error))

    def _record(self, data: bytes, key: str, where: str) -> Record:
        spec = self.dataset.spec
        try:
            steps = _read_steps(self.dataset, data)
        except DataError as error:
            return Record(key=key, videos={}, source=where, problem=f"{where}: {error}{_REMEDY}")
        rate = float(spec.control_hz or 0)
        embodiment = self._signals.embodiment(steps.states, steps.actions, rate)
        return Record(
            key=key,
            videos={
                camera: ImageBytes(images=encoded, fps=rate, source=f"{where}: {spec.cameras[camera]}")
                for camera, encoded in steps.images.items()
            },
            caption=steps.instruction,
            states=steps.states,
            actions=steps.actions,
            control_hz=rate,
            embodiment=embodiment,
            source=where,
            facts=spec.facts(self.dataset.name) | self._signals.facts(embodiment),
            repairs=steps.repairs,
        )
