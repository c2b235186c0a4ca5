"""Read episodes kept as npz files: one file an episode, one array for images, states and actions each.

Images are integers 0 to 255 of any type (floats that are whole numbers too) or floats 0 to 1, `[t h w 3]` or
`[t 3 h w]`; of `[t 3k h w]`, k images stacked by a replay buffer, the last one is that of the step. Actions are kept
as stored: where a replay buffer wrote the file, action i is the one that led to image i, and the first is zero. Source:
thuml/iVideoGPT, its samples and `mbrl/metaworld_env.py`. Other stores of arrays (HDF5, zarr) build on `ArraysSource`.
"""

from __future__ import annotations

import math
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ...contracts import Array
from ...errors import DataError
from ..files import camera_name, sample_key
from ..video.reader import is_video
from .record import FrameArray, Record
from .robot_signals import Column, RobotSignals
from .spec import EpisodeSpec, with_opening

ASSUMED_HZ = 10.0
"""Steps a second where no spec states them: npz files hold no rate. The facts of a record then hold `rate: assumed`."""

_BROKEN = (
    OSError,
    ValueError,
    KeyError,
    EOFError,
    NotImplementedError,
    RuntimeError,
    zipfile.BadZipFile,
    zlib.error,
)
"""What a file that is truncated, encrypted or no npz raises."""

_IMAGES = ("image", "images", "observation", "observations", "rgb", "frames")
_STATES = ("state", "states")
_ACTIONS = ("action", "actions")


class ArrayEpisode(Protocol):
    """Arrays of one episode, wherever they are kept; picklable."""

    @property
    def source(self) -> str:
        """Return the name of the episode in its dataset."""
        ...

    def headers(self) -> Mapping[str, ArrayHeader]:
        """Return shapes and types of all arrays."""
        ...

    def read(self, name: str) -> Array:
        """Read one array."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class ArrayHeader:
    """Shape and type of an array that was not read."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]


def find_arrays(path: Path) -> list[Path]:
    """List the npz files of a folder, or of the folders in it; none where videos lie among them.

    A single npz file is listed alone.
    """
    if path.is_file():
        return [path] if path.suffix == ".npz" else []
    for pattern in ("*", "*/*"):
        found = []
        for file in path.glob(pattern):
            if is_video(file):
                return []
            if file.suffix == ".npz" and not file.name.startswith("."):
                found.append(file)
        if found:
            return sorted(found)
    return []


@dataclass(frozen=True, slots=True, kw_only=True)
class NpzEpisode:
    """One npz file."""

    file: Path
    source: str

    def headers(self) -> Mapping[str, ArrayHeader]:
        """Return shapes and types of all arrays."""
        return read_headers(self.file)

    def read(self, name: str) -> Array:
        """Read one array."""
        return _read(self.file, name)

    def __str__(self) -> str:
        return str(self.file)


class ArraysSource:
    """Episodes of npz files, in sorted order; images are read where they are encoded.

    spec: names of arrays; without, what their names show. camera: name given to the first camera.
    """

    kind = "arrays"

    def __init__(self, path: Path, *, spec: EpisodeSpec | None = None, camera: str = "static") -> None:
        self.path = path
        self.spec = spec
        self.camera = camera

    def __iter__(self) -> Iterator[Record]:
        for episode in self._episodes():
            key = sample_key(episode.source)
            try:
                yield self._record(episode, key)
            except DataError as error:
                yield Record(key=key, videos={}, source=episode.source, problem=str(error))

    def _episodes(self) -> Iterator[ArrayEpisode]:
        root = self.path.parent if self.path.is_file() else self.path
        for file in find_arrays(self.path):
            yield NpzEpisode(file=file, source=file.relative_to(root).as_posix())

    def _spec(self, episode: ArrayEpisode, headers: Mapping[str, ArrayHeader]) -> EpisodeSpec:
        return self.spec or guess_spec(headers, self.camera)

    def _instruction(self, episode: ArrayEpisode, headers: Mapping[str, ArrayHeader], spec: EpisodeSpec) -> str:
        return _instruction(episode, headers, spec)

    def _record(self, episode: ArrayEpisode, key: str) -> Record:
        headers = episode.headers()
        spec = self._spec(episode, headers)
        missing = sorted(spec.keys() - set(headers))
        if missing or not (spec.cameras or spec.actions):
            wanted = missing or [f"images such as {', '.join(_IMAGES[:3])}"]
            raise DataError(f"{episode}: expected the arrays {wanted}, got {sorted(headers)}; name them in a spec.")
        states, actions = (_matrix(episode, headers, names) for names in (spec.states, spec.actions))
        for name in spec.cameras.values():
            _check_images(f"{episode}: {name}", headers[name])
        names = [*spec.cameras.values(), *spec.states, *spec.actions]
        lengths = {name: headers[name].shape[0] for name in names}
        if len(set(lengths.values())) != 1 or 0 in lengths.values():
            raise DataError(f"{episode}: expected one number of steps, above 0, got {lengths}; leave the file out.")
        rate = spec.control_hz or ASSUMED_HZ
        steps = bool(spec.actions)
        num_steps = next(iter(lengths.values()))
        kept_states = (states if spec.states else np.zeros((num_steps, 0), np.float32)) if steps else None
        kept_actions = with_opening(actions, spec.gripper) if steps else None
        described = self._described(headers, spec)
        embodiment = described.embodiment(kept_states, kept_actions, rate)
        return Record(
            key=key,
            videos={
                camera: FrameArray(
                    read=partial(read_images, episode, name, turned=camera in spec.turned_cameras), fps=rate
                )
                for camera, name in spec.cameras.items()
            },
            caption=self._instruction(episode, headers, spec),
            states=kept_states,
            actions=kept_actions,
            control_hz=rate if steps else None,
            embodiment=embodiment,
            source=episode.source,
            facts=spec.facts(self._name)
            | described.facts(embodiment)
            | {"rate": "stated" if spec.control_hz else "assumed"},
        )

    @property
    def _name(self) -> str:
        return self.path.resolve().name.removesuffix(".npz")

    def _described(self, headers: Mapping[str, ArrayHeader], spec: EpisodeSpec) -> RobotSignals:
        widths = {name: math.prod(headers[name].shape[1:]) for name in (*spec.states, *spec.actions)}
        columns = {name: Column(width=width) for name, width in widths.items()}
        return RobotSignals(spec=spec, robot=spec.name or self._name, where=str(self.path), columns=columns)


def guess_spec(headers: Mapping[str, ArrayHeader], camera: str = "static") -> EpisodeSpec:
    """Infer images, states and actions by the names and shapes of arrays; the first camera is called `camera`."""
    images = [name for name in _IMAGES if name in headers]
    images += sorted(name for name in headers if name not in images and "image" in name)
    images = [name for name in images if len(headers[name].shape) == 4 or name in _IMAGES[:2]]
    names = [camera_name(camera), *(camera_name(name) for name in images[1:])]
    return EpisodeSpec(
        cameras=dict(zip(names, images, strict=False)),
        states=tuple(name for name in _STATES if name in headers)[:1],
        actions=tuple(name for name in _ACTIONS if name in headers)[:1],
    )


def read_headers(file: Path) -> dict[str, ArrayHeader]:
    """Read shapes and types of all arrays of an npz file, none of their values.

    Raises:
        DataError: the file is truncated or no npz file, or an array is broken or holds pickled objects.
    """
    headers = {}
    try:
        with zipfile.ZipFile(file) as members:
            for member in members.infolist():
                with members.open(member) as data:
                    version = np.lib.format.read_magic(data)
                    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else _read_later_header
                    shape, _, dtype = read(data)
                size = dtype.itemsize * int(np.prod(shape, dtype=object))
                if dtype.hasobject or size > member.file_size:
                    raise ValueError(f"{member.filename} holds objects, or less than its shape states")
                headers[member.filename.removesuffix(".npy")] = ArrayHeader(shape=shape, dtype=dtype)
    except _BROKEN as error:
        raise DataError(
            f"{file}: expected an npz file of plain arrays, got another ({error}); copy it again."
        ) from error
    return headers


def _read_later_header(data: Any) -> Any:
    return np.lib.format.read_array_header_2_0(data)


def read_images(episode: ArrayEpisode, name: str, *, turned: bool = False) -> Array:
    """Read the images of an episode as uint8 `[t h w 3]`, turned by 180 degrees where that is asked for.

    Raises:
        DataError: the array is missing or broken, of another shape, or its values are no colors.
    """
    images = _colors(episode, name)
    return np.ascontiguousarray(images[:, ::-1, ::-1] if turned else images)


def _colors(episode: ArrayEpisode, name: str) -> Array:
    where = f"{episode}: {name}"
    values = episode.read(name)
    _check_images(where, ArrayHeader(shape=values.shape, dtype=values.dtype))
    if values.shape[-1] != 3:
        values = values[:, -3:].transpose(0, 2, 3, 1)
    if values.dtype == np.uint8:
        return values
    low, high = values.min(), values.max()
    whole = values.dtype.kind != "f" or (1 < high <= 255 and bool((values == np.rint(values)).all()))
    top = 255 if whole else 1
    if not (low >= 0 and high <= top):  # NaN is neither
        raise DataError(f"{where}: expected {values.dtype} from 0 to {top}, got {low} to {high}; convert the images.")
    scaled = values if whole else np.rint(values * 255)
    colors: Array = scaled.astype(np.uint8)
    return colors


def _check_images(where: str, header: ArrayHeader) -> None:
    shape = header.shape
    color = len(shape) == 4 and (shape[-1] == 3 or (shape[1] > 0 and shape[1] % 3 == 0))
    if header.dtype.kind not in "iuf" or not color or 0 in shape:
        raise DataError(
            f"{where}: expected integers 0 to 255 or floats 0 to 1, (t, h, w, 3) or (t, 3, h, w), got "
            f"{header.dtype} {shape}; name the images in a spec, or write one file an episode."
        )


def _matrix(episode: ArrayEpisode, headers: Mapping[str, ArrayHeader], names: tuple[str, ...]) -> Array:
    parts = []
    for name in names:
        header = headers[name]
        if header.dtype.kind not in "iufb" or not header.shape:
            got = f"{header.dtype} {header.shape}"
            raise DataError(f"{episode}: {name}: expected numbers (steps, numbers), got {got}; correct the spec.")
        with np.errstate(over="ignore"):
            values = episode.read(name).astype(np.float32)
        if not np.isfinite(values).all():
            raise DataError(f"{episode}: {name}: expected finite numbers, got NaN or infinity; leave the file out.")
        parts.append(values.reshape(len(values), -1) if len(values) else values.reshape(0, 0))
    if len({len(part) for part in parts}) > 1:
        lengths = {name: len(part) for name, part in zip(names, parts, strict=True)}
        raise DataError(f"{episode}: expected one number of steps, got {lengths}; leave the file out.")
    return np.concatenate(parts, axis=1) if parts else np.zeros((0, 0), np.float32)


def _instruction(episode: ArrayEpisode, headers: Mapping[str, ArrayHeader], spec: EpisodeSpec) -> str:
    for name in spec.instructions:
        values = episode.read(name).reshape(-1) if headers[name].dtype.kind in "USO" else np.zeros(0)
        text = values[0] if len(values) else ""
        instruction = (text.decode("utf-8", "replace") if isinstance(text, bytes) else str(text)).strip()
        if instruction:
            return instruction
    return ""


def _read(file: Path, name: str) -> Array:
    try:
        with np.load(file, allow_pickle=False) as arrays:
            values: Array = arrays[name]
    except _BROKEN as error:
        raise DataError(f"{file}: {name}: cannot be read ({error}); copy the file again.") from error
    return values
