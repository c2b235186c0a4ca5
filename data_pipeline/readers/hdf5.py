"""Read episodes kept in HDF5 files, with h5py (`pip install 'gr2[hdf5]'`).

robomimic and LIBERO keep a file a task, with a group an episode: `data/demo_0/{obs/..., actions}`; what the robot's
controller takes stands in `env_args`, the words in `problem_info` or `ep_meta`. A spec reads any other layout: an
episode is the file, or each group of it, below which all names of the spec are found.

Images are kept as they are stored; those of LIBERO stand on their head, as robosuite draws them. Source: robomimic's
documentation of its datasets; LIBERO, `libero/utils/dataset_utils` and its files; robosuite's controller `OSC_POSE`.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ...contracts import Array
from ...embodiment import AS_STORED, Signal
from ...errors import DataError, EnvironmentMissing, refuse_lfs_pointer
from ..files import camera_name
from .arrays import ArrayEpisode, ArrayHeader, ArraysSource, guess_spec
from .spec import EpisodeSpec

SUFFIXES = (".hdf5", ".h5")

_POSITION = Signal(name="tool_position", width=3, kind="position")
_QUATERNION = Signal(name="tool_rotation", width=4, kind="rotation", rotation="quaternion_xyzw")
_VECTOR = Signal(name="tool_rotation", width=3, kind="rotation", rotation="rotation_vector")
_FINGERS = Signal(name="gripper", width=2, kind="gripper", unit=AS_STORED)

_STATES: tuple[tuple[tuple[str, ...], tuple[Signal, ...]], ...] = (
    (
        ("obs/robot0_eef_pos", "obs/robot0_eef_quat", "obs/robot0_gripper_qpos"),
        (_POSITION, _QUATERNION, _FINGERS),
    ),
    (("obs/ee_pos", "obs/ee_ori", "obs/gripper_states"), (_POSITION, _VECTOR, _FINGERS)),
)
"""States of one arm as robomimic and LIBERO name them."""

_GRIPPER = Signal(name="gripper", width=1, kind="gripper")


def find_hdf5(path: Path) -> list[Path]:
    """List the HDF5 files of a folder, or of the folders in it; one file is listed alone."""
    if path.is_file():
        return [path] if path.suffix.lower() in SUFFIXES else []
    for pattern in ("*", "*/*"):
        found = [f for f in path.glob(pattern) if f.suffix.lower() in SUFFIXES and not f.name.startswith(".")]
        if found:
            return sorted(found)
    return []


def _open(file: Path) -> Any:
    """Open a file for reading.

    Raises:
        DataError: it is damaged, or no HDF5 file.
        EnvironmentMissing: h5py is not installed.
    """
    try:
        import h5py
    except ImportError as error:
        raise EnvironmentMissing(
            f"{file}: expected the package h5py, found none; `pip install 'gr2[hdf5]'`, or `pip install h5py`."
        ) from error
    refuse_lfs_pointer(file)
    try:
        return h5py.File(file, "r")
    except OSError as error:
        raise DataError(f"{file}: expected an HDF5 file, got another ({error}); copy it again.") from error


@dataclass(frozen=True, slots=True, kw_only=True)
class Hdf5Episode:
    """A group of an HDF5 file."""

    file: Path
    group: str
    source: str

    def headers(self) -> Mapping[str, ArrayHeader]:
        """Return shapes and types of all arrays below the group."""
        found = {}

        def visit(name: str, item: Any) -> None:
            if hasattr(item, "shape") and item.shape is not None:
                found[name] = ArrayHeader(shape=item.shape, dtype=item.dtype)

        with _open(self.file) as file:
            file[self.group].visititems(visit)
        return found

    def read(self, name: str) -> Array:
        """Read one array; the letters of a text come as text."""
        with _open(self.file) as file:
            try:
                dataset = file[self.group][name]
                values = dataset.asstr()[()] if dataset.dtype.kind == "O" else dataset[()]
            except (OSError, KeyError, TypeError, ValueError, RuntimeError) as error:
                raise DataError(f"{self}: {name}: cannot be read ({error}); copy the file again.") from error
        array = np.asarray(values)
        return array.astype(str) if array.dtype.kind == "O" else array

    def __str__(self) -> str:
        return f"{self.file}: {self.group}"


class Hdf5Source(ArraysSource):
    """Episodes of HDF5 files, file by file, `demo_2` before `demo_10`.

    spec: names of arrays below an episode's group; without, the layout of robomimic and LIBERO, or what names show.

    Raises:
        EnvironmentMissing: h5py is not installed.
    """

    kind = "hdf5"

    def __init__(self, path: Path, *, spec: EpisodeSpec | None = None, camera: str = "static") -> None:
        super().__init__(path, spec=spec, camera=camera)
        with _open(find_hdf5(path)[0]):
            self._facts: dict[Path, tuple[dict[str, Any], str]] = {}

    @property
    def _name(self) -> str:
        return self.path.resolve().stem

    def _episodes(self) -> Iterator[ArrayEpisode]:
        root = self.path.parent if self.path.is_file() else self.path
        for file in find_hdf5(self.path):
            name = file.relative_to(root).as_posix()
            for group in self._groups(file):
                source = f"{name}/{group.removeprefix('data/')}" if group != "/" else name
                yield Hdf5Episode(file=file, group=group, source=source)

    def _groups(self, file: Path) -> list[str]:
        with _open(file) as opened:
            data = opened.get("data")
            if self.spec is None:
                demos = [f"data/{name}" for name in data if "actions" in data[name]] if hasattr(data, "keys") else []
                return sorted(demos, key=_natural) or ["/"]
            wanted = self.spec.keys()
            if all(name in opened for name in wanted):
                return ["/"]
            found: list[str] = []

            def visit(name: str, item: Any) -> None:
                if hasattr(item, "keys") and all(part in item for part in wanted):
                    found.append(name)

            opened.visititems(visit)
        return sorted(found, key=_natural) or ["/"]  # whose episode then says what is missing

    def _spec(self, episode: ArrayEpisode, headers: Mapping[str, ArrayHeader]) -> EpisodeSpec:
        assert isinstance(episode, Hdf5Episode)
        if self.spec is not None:
            return self.spec
        spec = _guess(headers, self.camera)
        if not episode.group.startswith("data/"):
            return spec
        return _of_controller(spec, self._environment(episode.file)[0], _width(headers, "actions"))

    def _environment(self, file: Path) -> tuple[dict[str, Any], str]:
        """Return `env_args` of a file and the instruction of all its episodes."""
        if file not in self._facts:
            with _open(file) as opened:
                attributes = opened["data"].attrs
                problem = _json(attributes.get("problem_info"))
                words = problem.get("language_instruction", "")
                instruction = "".join(words) if isinstance(words, list) else str(words)
                self._facts[file] = _json(attributes.get("env_args")), instruction.strip().strip('"')
        return self._facts[file]

    def _instruction(self, episode: ArrayEpisode, headers: Mapping[str, ArrayHeader], spec: EpisodeSpec) -> str:
        stated = super()._instruction(episode, headers, spec)
        if stated or not isinstance(episode, Hdf5Episode) or not episode.group.startswith("data/"):
            return stated
        with _open(episode.file) as opened:
            words = str(_json(opened[episode.group].attrs.get("ep_meta")).get("lang", "")).strip()
        return words or self._environment(episode.file)[1]


def _natural(name: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]


def _json(text: Any) -> dict[str, Any]:
    try:
        content = json.loads(text) if text is not None else {}
    except (ValueError, TypeError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _guess(headers: Mapping[str, ArrayHeader], camera: str) -> EpisodeSpec:
    """Infer images, states and actions; the first camera, in the order of names, is called `camera`."""
    images = [
        name
        for name, header in sorted(headers.items())
        if len(header.shape) == 4 and header.shape[-1] == 3 and header.dtype == np.uint8 and "next_obs" not in name
    ]
    if not images and "actions" not in headers:
        return guess_spec(headers, camera)
    words = [camera_name(re.sub(r"_(image|rgb)$", "", name.rpartition("/")[2])) for name in images]
    cameras = dict(zip([camera_name(camera), *words[1:]], images, strict=False))
    states: tuple[str, ...] = ()
    signals: tuple[Signal, ...] = ()
    for names, parts in _STATES:
        if [_width(headers, name) for name in names] == [part.width for part in parts]:
            states, signals = names, parts
    if not states and "observations/qpos" in headers:  # ACT, ALOHA
        states = ("observations/qpos",)
    actions = tuple(name for name in ("actions", "action") if name in headers)[:1]
    return EpisodeSpec(cameras=cameras, states=states, actions=actions, state_signals=signals)


def _width(headers: Mapping[str, ArrayHeader], name: str) -> int:
    return math.prod(headers[name].shape[1:]) if name in headers else -1


def _of_controller(spec: EpisodeSpec, environment: Mapping[str, Any], width: int) -> EpisodeSpec:
    """Add what `env_args` of robosuite state: the rate, and what the seven numbers of its pose controller are."""
    settings = environment.get("env_kwargs")
    settings = settings if isinstance(settings, dict) else {}
    rate = settings.get("control_freq")
    if isinstance(rate, int | float) and not isinstance(rate, bool) and 0 < rate < math.inf:
        spec = replace(spec, control_hz=float(rate))
    controller = settings.get("controller_configs")
    controller = controller if isinstance(controller, dict) else {}
    if controller.get("type") != "OSC_POSE" or width != 7 or not isinstance(controller.get("control_delta"), bool):
        return spec
    delta = controller["control_delta"]
    parts = tuple(
        replace(signal, reference="delta" if delta else "absolute", unit="" if delta else None)
        for signal in (_POSITION, _VECTOR)
    )  # moves are shares of the controller's greatest one
    return replace(spec, gripper="signed_closing", action_signals=(*parts, _GRIPPER))
