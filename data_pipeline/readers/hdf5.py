"""Read episodes kept in HDF5 files, with h5py (`pip install 'gr2[hdf5]'`).

robomimic and LIBERO keep a file a task, with a group an episode: `data/demo_0/{obs/..., actions}`; what the robot's
controller takes stands in `env_args`, the words in `problem_info` or `ep_meta`. Of others, an episode is each group
that holds `actions` or `action`, or the file; without actions, a clip is each of several groups whose names differ by a
number alone and are those of clips (`clip_0`, `episode_1`, `2`). A spec reads any other layout: an episode is the
file, or each group of it, below which all names of the spec are found.

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
from .array_images import ArrayHeader, find_images, is_image_file
from .arrays import ArrayEpisode, ArraysSource
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

_OTHER_STATES = ("observations/qpos", "observations/state", "obs/state", "state", "qpos")
"""States of any width; the first are those of ACT and ALOHA."""

_ACTIONS = ("actions", "action")
_DEEPEST = 4
"""Groups around an episode that are searched."""

_CLIP = re.compile(
    r"(ep|episode|demo|traj|trajectory|clip|video|seq|sequence|run|rollout|trial|take|sample|recording)?[_-]?\d+$",
    re.IGNORECASE,
)
"""Names of groups that are clips; others that differ by a number (`sensor_0`) may be cameras."""

_GRIPPER = Signal(name="gripper", width=1, kind="gripper")


def find_hdf5(path: Path) -> list[Path]:
    """List the HDF5 files of a folder and of the folders in it, two deep; one file is listed alone."""
    if path.is_file():
        return [path] if path.suffix.lower() in SUFFIXES else []
    found = (file for pattern in ("*", "*/*", "*/*/*") for file in path.glob(pattern))
    return sorted(file for file in found if file.suffix.lower() in SUFFIXES and not file.name.startswith("."))


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
        """Read one array; the letters of a text come as text, the bytes of image files as they are."""
        return self._part(name, ())

    def first(self, name: str) -> Any:
        """Read the first step of one array, which has one."""
        return self._part(name, slice(0, 1))[0]

    def _part(self, name: str, part: Any) -> Array:
        with _open(self.file) as file:
            try:
                array = np.asarray(file[self.group][name][part])
            except (OSError, KeyError, TypeError, ValueError, RuntimeError) as error:
                raise DataError(f"{self}: {name}: cannot be read ({error}); copy the file again.") from error
        first = array.reshape(-1)[0] if array.dtype.kind == "O" and array.size else None
        if not isinstance(first, bytes) or is_image_file(first):
            return array
        texts = [value.decode("utf-8", "replace") for value in array.reshape(-1)]
        return np.array(texts).reshape(array.shape)

    def __str__(self) -> str:
        return f"{self.file}: {self.group}"


class Hdf5Source(ArraysSource):
    """Episodes of HDF5 files, file by file, `demo_2` before `demo_10`.

    spec: names of arrays below an episode's group; without, the layout of robomimic and LIBERO, or what names show.

    Raises:
        EnvironmentMissing: h5py is not installed.
    """

    kind = "hdf5"
    dropped_of_names = "_(image|rgb)$"

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
            if self.spec is None:
                return sorted(_episode_groups(opened) or _clip_groups(opened), key=_natural) or ["/"]
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
        spec = _guess(headers, self._cameras(find_images(headers, episode.first)))
        if episode.group != "/" and not spec.actions and self._acts(episode.file):
            wanted = f"{_ACTIONS[0]} in each episode, as in those beside it"
            raise DataError(f"{episode}: expected {wanted}, got {sorted(headers)}; leave the episode out.")
        if not episode.group.startswith("data/"):
            return spec
        return _of_controller(spec, self._environment(episode.file)[0], _width(headers, "actions"))

    def _acts(self, file: Path) -> bool:
        """Return whether an episode of a file has actions."""
        with _open(file) as opened:
            return bool(_episode_groups(opened))

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


def _episode_groups(opened: Any) -> list[str]:
    """List the groups that hold actions of their own, and those of the same name but for its number beside them."""
    found: list[str] = []

    def search(group: Any, path: str, depth: int) -> None:
        members = {name: _member(group, name) for name in group}
        if any(hasattr(members.get(name), "shape") for name in _ACTIONS):
            found.append(path or "/")
        elif depth < _DEEPEST:
            for name, member in members.items():
                if hasattr(member, "keys"):
                    search(member, f"{path}/{name}".lstrip("/"), depth + 1)

    search(opened, "", 0)
    alike = {re.sub(r"\d+", "#", path) for path in found}
    for parent in {path.rpartition("/")[0] for path in found if path != "/"}:
        group = opened[parent or "/"]
        beside = (f"{parent}/{name}".lstrip("/") for name in group if hasattr(_member(group, name), "keys"))
        found += [path for path in beside if path not in found and re.sub(r"\d+", "#", path) in alike]
    return found


def _clip_groups(opened: Any) -> list[str]:
    """List, in a file without actions, the groups that are named as clips are, two or more beside each other."""
    found: list[str] = []

    def search(group: Any, path: str, depth: int) -> None:
        groups = [name for name in group if hasattr(_member(group, name), "keys")]
        clips = [name for name in groups if _CLIP.match(name)]
        if len(clips) > 1:
            found.extend(f"{path}/{name}".lstrip("/") for name in clips)
        elif depth < _DEEPEST:
            for name in groups:
                search(group[name], f"{path}/{name}", depth + 1)

    search(opened, "", 0)
    return found


def _member(group: Any, name: str) -> Any:
    """Return what a group holds by a name, None for a link to nothing."""
    try:
        return group[name]
    except (KeyError, OSError, RuntimeError):
        return None


def _guess(headers: Mapping[str, ArrayHeader], cameras: Mapping[str, str]) -> EpisodeSpec:
    """Infer states and actions, by the layouts that are known."""
    actions = tuple(name for name in _ACTIONS if name in headers)[:1]
    states: tuple[str, ...] = ()
    signals: tuple[Signal, ...] = ()
    for names, parts in _STATES:
        if [_width(headers, name) for name in names] == [part.width for part in parts]:
            states, signals = names, parts
    if not states:
        states = tuple(name for name in _OTHER_STATES if name in headers)[:1]
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
