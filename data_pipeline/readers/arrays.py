"""Read episodes kept as npz files: one file an episode, one array for images, states and actions each.

Images are integers 0 to 255 of any type (floats that are whole numbers too) or floats 0 to 1, `[t h w 3]` or
`[t 3 h w]`; of `[t 3k h w]`, k images stacked by a replay buffer, the last one is that of the step. Gray, alpha and
encoded images are read, too. Actions are kept
as stored: where a replay buffer wrote the file, action i is the one that led to image i, and the first is zero. Source:
thuml/iVideoGPT, its samples and `mbrl/metaworld_env.py`. Other stores of arrays (HDF5, zarr) build on `ArraysSource`.
"""

from __future__ import annotations

import math
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ...contracts import Array
from ...errors import DataError
from ..files import sample_key
from ..video.reader import is_video
from .array_images import ArrayHeader, check_images, colors_of, find_images, name_cameras
from .record import LAST_LEFT_OUT, FrameArray, Record, lacks_last_action
from .robot_signals import Column, RobotSignals
from .spec import EpisodeSpec, commanded, with_opening

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

_NUM_NAMED = 5

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

    def first(self, name: str) -> Any:
        """Read the first step of one array, which has one."""
        ...


def find_arrays(path: Path) -> list[Path]:
    """List the npz files of a folder, or of the folders in it; none where videos lie among them.

    A single npz file is listed alone.
    """
    if path.is_file():
        return [path] if path.suffix == ".npz" else []
    found = []
    for pattern in ("*", "*/*"):
        for file in path.glob(pattern):
            if is_video(file):
                return []
            if file.suffix == ".npz" and not file.name.startswith("."):
                found.append(file)
    return sorted(found)


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

    def first(self, name: str) -> Any:
        """Read the first step of one array, which has one."""
        return self.read(name)[0]

    def __str__(self) -> str:
        return str(self.file)


class ArraysSource:
    """Episodes of npz files, in sorted order; images are read where they are encoded.

    spec: names of arrays; without, what their names show. camera: name given to the first camera.
    """

    kind = "arrays"
    dropped_of_names = "$"

    def __init__(self, path: Path, *, spec: EpisodeSpec | None = None, camera: str = "static") -> None:
        self.path = path
        self.spec = spec
        self.camera = camera
        self._main = ""

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
        return self.spec or guess_spec(headers, self._cameras(_image_names(episode, headers)))

    def _cameras(self, images: Sequence[str]) -> dict[str, str]:
        """Name images; the first one of the first episode is called `camera` in all of them."""
        self._main = self._main or next(iter(images), "")
        return name_cameras(self.camera, self._main, images, self.dropped_of_names)

    def _instruction(self, episode: ArrayEpisode, headers: Mapping[str, ArrayHeader], spec: EpisodeSpec) -> str:
        return _instruction(episode, headers, spec)

    def _record(self, episode: ArrayEpisode, key: str) -> Record:
        headers = episode.headers()
        spec = self._spec(episode, headers)
        missing = sorted(spec.keys() - set(headers))
        if missing or not (spec.cameras or spec.actions):
            wanted = missing or [f"images such as {', '.join(_IMAGES[:3])}"]
            raise DataError(f"{episode}: expected the arrays {wanted}, got {sorted(headers)}; name them in a spec.")
        num_steps, repairs = _num_steps(episode, headers, spec)
        for name in spec.cameras.values():
            check_images(f"{episode}: {name}", headers[name])
        states = _matrix(episode, headers, spec.states, num_steps)
        actions = _matrix(episode, headers, spec.actions, num_steps, last_may_lack=not spec.actions_next)
        actions = commanded(actions, spec)
        if lacks_last_action(actions):
            num_steps, states, actions = num_steps - 1, states[:-1], actions[:-1]
            repairs.append(LAST_LEFT_OUT)
        rate = spec.control_hz or ASSUMED_HZ
        repairs += [] if spec.control_hz else [f"rate not stated, {ASSUMED_HZ:g} Hz assumed"]
        repairs += self._unread(headers, spec, num_steps)
        steps = bool(spec.actions)
        kept_states = states if steps else None
        kept_actions = with_opening(actions, spec.gripper) if steps else None
        described = self._described(headers, spec)
        embodiment = described.embodiment(kept_states, kept_actions, rate)
        return Record(
            key=key,
            videos={
                camera: FrameArray(
                    read=partial(
                        read_images,
                        episode,
                        name,
                        turned=camera in spec.turned_cameras,
                        bgr=camera in spec.bgr_cameras,
                        steps=num_steps,
                    ),
                    fps=rate,
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
            repairs=tuple(repairs),
        )

    def _unread(self, headers: Mapping[str, ArrayHeader], spec: EpisodeSpec, num_steps: int) -> list[str]:
        """Return, of an episode whose states, actions or cameras no name shows, what it holds beside what is read."""
        if self.spec is None and spec.states and not spec.actions:
            return [f"no actions known by name: {', '.join(spec.states)} not read (actions_next of a spec reads them)"]
        if self.spec is not None or not spec.actions or (spec.states and spec.cameras):
            return []
        read = spec.keys()
        left = sorted(
            name
            for name, header in headers.items()
            if name not in read and len(header.shape) > 1 and num_steps <= header.shape[0] <= num_steps + 1
        )
        lacking = " and ".join(name for name in ("states", "cameras") if not getattr(spec, name))
        named = ", ".join(left[:_NUM_NAMED]) + (", ..." if len(left) > _NUM_NAMED else "")
        return [f"no {lacking} known by name (not read: {named})"] if left else []

    @property
    def _name(self) -> str:
        return self.path.resolve().name.removesuffix(".npz")

    def _described(self, headers: Mapping[str, ArrayHeader], spec: EpisodeSpec) -> RobotSignals:
        widths = {name: math.prod(headers[name].shape[1:]) for name in (*spec.states, *spec.actions)}
        columns = {name: Column(width=width) for name, width in widths.items()}
        return RobotSignals(spec=spec, robot=spec.name or self._name, where=str(self.path), columns=columns)


def guess_spec(headers: Mapping[str, ArrayHeader], cameras: Mapping[str, str]) -> EpisodeSpec:
    """Infer states and actions by the names of arrays."""
    return EpisodeSpec(
        cameras=cameras,
        states=tuple(name for name in _STATES if name in headers)[:1],
        actions=tuple(name for name in _ACTIONS if name in headers)[:1],
    )


def _image_names(episode: ArrayEpisode, headers: Mapping[str, ArrayHeader]) -> list[str]:
    named = [name for name in _IMAGES if name in headers and (len(headers[name].shape) == 4 or name in _IMAGES[:2])]
    return named + [name for name in find_images(headers, episode.first) if name not in named]


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


def read_images(
    episode: ArrayEpisode, name: str, *, turned: bool = False, bgr: bool = False, steps: int | None = None
) -> Array:
    """Read the images of an episode as uint8 `[t h w 3]`.

    Args:
        episode: where they lie.
        name: of their array.
        turned: turn them by 180 degrees.
        bgr: they are stored as blue, green, red.
        steps: leave out those after this many.

    Raises:
        DataError: the array is missing or broken, of another shape, or its values are no colors.
    """
    images = colors_of(f"{episode}: {name}", episode.read(name))[:steps]
    images = images[..., ::-1] if bgr else images
    return np.ascontiguousarray(images[:, ::-1, ::-1] if turned else images)


def _num_steps(episode: ArrayEpisode, headers: Mapping[str, ArrayHeader], spec: EpisodeSpec) -> tuple[int, list[str]]:
    """Return the number of steps, and what is repaired: simulators keep the observation after the last action, too.

    Raises:
        DataError: the arrays have different numbers of steps, or none.
    """
    names = [*spec.cameras.values(), *spec.states, *spec.actions]
    lengths = {name: headers[name].shape[0] if headers[name].shape else 0 for name in names}
    fewest = min(lengths.values())
    seen = {lengths[name] for name in names if name not in spec.actions}
    acted = {lengths[name] for name in spec.actions}
    if fewest and acted == {fewest} and seen and seen <= {fewest, fewest + 1} and fewest + 1 in seen:
        return fewest, ["an observation after the last action left out"]
    if len(set(lengths.values())) != 1 or not fewest:
        raise DataError(f"{episode}: expected one number of steps, above 0, got {lengths}; leave the episode out.")
    return fewest, []


def _matrix(
    episode: ArrayEpisode,
    headers: Mapping[str, ArrayHeader],
    names: tuple[str, ...],
    num_steps: int,
    *,
    last_may_lack: bool = False,
) -> Array:
    """Put the first steps of arrays side by side: float32 `[t n]`, n = 0 without names."""
    parts = [np.zeros((num_steps, 0), np.float32)]
    for name in names:
        header = headers[name]
        if header.dtype.kind not in "iufb" or not header.shape:
            got = f"{header.dtype} {header.shape}"
            raise DataError(f"{episode}: {name}: expected numbers (steps, numbers), got {got}; correct the spec.")
        with np.errstate(over="ignore"):
            values = episode.read(name)[:num_steps].astype(np.float32)
        values = values.reshape(num_steps, -1)
        if not np.isfinite(values).all() and not (last_may_lack and lacks_last_action(values)):
            raise DataError(f"{episode}: {name}: expected finite numbers, got NaN or infinity; leave the episode out.")
        parts.append(values)
    return np.concatenate(parts, axis=1)


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
