"""CALVIN's layout on disk: one compressed npz a frame, ranges of frames, annotations; read, checked and written.

    task_X/{training,validation}/
        episode_0000000.npz ...             one frame at 30 Hz: FRAME_KEYS
        ep_start_end_ids.npy  ep_lens.npy   ranges of frames without a gap, ends included
        lang_annotations/auto_lang_ann.npy  instructions of windows
        lang_annotations/embeddings.npy     task -> instruction of an evaluation and its vector
        scene_info.npy                      scene -> first and last frame (training)
        statistics.yaml
        .hydra/merged_config.yaml           settings of the simulator

Conventions, and where the copies in use differ from the official description: docs/calvin.md.
"""

from __future__ import annotations

import bisect
import io
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import yaml
from scipy.spatial.transform import Rotation

from ...contracts import Array
from ...errors import DataError
from ..files import write_bytes
from .pickled_arrays import load_pickled_array

CONTROL_HZ = 30.0
ROBOT_BASE = (-0.34, -0.46, 0.24)
"""The arm's base in CALVIN's world frame [m]; it is not turned."""

FRAME_KEYS: Mapping[str, tuple[str, tuple[int, ...]]] = {
    "actions": ("float64", (7,)),
    "rel_actions": ("float64", (7,)),
    "robot_obs": ("float64", (15,)),
    "scene_obs": ("float64", (24,)),
    "rgb_static": ("uint8", (200, 200, 3)),
    "rgb_gripper": ("uint8", (84, 84, 3)),
    "depth_static": ("float32", (200, 200)),
    "depth_gripper": ("float32", (84, 84)),
}
"""Arrays of a frame; the official data has rgb_tactile and depth_tactile, too, which nothing here needs."""

BLOCK_ORDER = {
    "A": ("pink", "blue", "red"),
    "B": ("red", "blue", "pink"),
    "C": ("blue", "red", "pink"),
    "D": ("red", "blue", "pink"),
}
"""Which block comes first in `scene_obs`; the official description names B's order for all scenes."""

KNOWN_SCENES = {
    (0, 611098): "D",
    (611099, 1210008): "B",
    (1210009, 1802437): "C",
    (1802438, 2406143): "A",
    (0, 598909): "B",
    (598910, 1191338): "C",
    (1191339, 1795044): "A",
}
"""Frame ranges of the published ABCD and ABC splits; old copies of `scene_info.npy` call D's range A."""

_GRIPPER_WIDTH = 0.08
_LINEAR_STEP, _ANGULAR_STEP = 0.02, 0.05
"""A relative action of 1: [m], [rad]."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Annotation:
    """An instruction and its task for the frames `start` to `stop - 1`."""

    start: int
    stop: int
    instruction: str
    task: str


def is_calvin_split(path: Path) -> bool:
    """Return whether a folder is a split (training or validation)."""
    return (path / "ep_start_end_ids.npy").is_file()


def find_splits(path: Path) -> list[Path]:
    """List the splits at or directly below `path`, training first."""
    if is_calvin_split(path):
        return [path]
    return [path / name for name in ("training", "validation") if is_calvin_split(path / name)]


class CalvinSplit:
    """One split, opened for reading frame by frame; nothing but ranges and instructions is kept in memory."""

    def __init__(self, path: Path) -> None:
        """Open a split.

        Raises:
            DataError: a file that states where the frames lie is missing or broken.
        """
        self.path = path
        ranges = np.asarray(load_pickled_array(path / "ep_start_end_ids.npy"))
        if ranges.ndim != 2 or ranges.shape[1] != 2 or ranges.dtype.kind not in "iu" or not len(ranges):
            raise DataError(
                f"{path}/ep_start_end_ids.npy: expected integers (n, 2), got {ranges.dtype} {ranges.shape}; "
                "copy the file again."
            )
        order = np.argsort(ranges[:, 0], kind="stable")
        self.ranges: Array = ranges[order].astype(np.int64)
        if (self.ranges[:, 1] < self.ranges[:, 0]).any() or (self.ranges[1:, 0] <= self.ranges[:-1, 1]).any():
            raise DataError(
                f"{path}/ep_start_end_ids.npy: expected ranges that do not overlap, got some that do; copy it again."
            )

    @property
    def num_frames(self) -> int:
        """Number of frames."""
        return int((self.ranges[:, 1] - self.ranges[:, 0] + 1).sum())

    @cached_property
    def _name(self) -> tuple[str, int]:
        """Prefix of the frame files and how many digits they count with."""
        for entry in os.scandir(self.path):
            if match := re.fullmatch(r"(episode_)(\d+)\.npz", entry.name):
                return match[1], len(match[2])
        raise DataError(f"{self.path}: expected frames named episode_0000000.npz, found none; unpack the data again.")

    def frame_path(self, index: int) -> Path:
        """Return the file of frame `index`."""
        prefix, digits = self._name
        return self.path / f"{prefix}{index:0{digits}d}.npz"

    def frame(self, index: int, keys: Sequence[str]) -> dict[str, Array]:
        """Read arrays of one frame.

        Raises:
            DataError: the file is missing or truncated, or lacks a key.
        """
        path = self.frame_path(index)
        try:
            with np.load(path, allow_pickle=False) as arrays:
                return {key: arrays[key] for key in keys}
        except KeyError as error:
            raise DataError(f"{path}: expected the array {error}, got none of that name; record it again.") from error
        except (OSError, ValueError, EOFError, BadZipFile) as error:
            raise DataError(f"{path}: the frame is missing, truncated or corrupt ({error}); copy it again.") from error

    def column(self, key: str, start: int, stop: int) -> Array:
        """Stack one array of the frames `start` to `stop - 1`."""
        return np.stack([self.frame(index, (key,))[key] for index in range(start, stop)])

    @cached_property
    def annotations(self) -> tuple[Annotation, ...]:
        """Instructions in the order of the file; none where the split has no `lang_annotations`."""
        path = self.path / "lang_annotations" / "auto_lang_ann.npy"
        if not path.is_file():
            return ()
        content = load_pickled_array(path)
        try:
            windows, language = content["info"]["indx"], content["language"]
            rows = list(zip(windows, language["ann"], language["task"], strict=True))
            found = tuple(
                Annotation(start=int(w[0]), stop=int(w[1]), instruction=str(s), task=str(t)) for w, s, t in rows
            )
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise DataError(
                f"{path}: expected language.ann, language.task and info.indx of one length, got another layout "
                f"({error!r}); copy it again."
            ) from error
        for a in found:
            if not (a.start < a.stop and self.holds(a.start, a.stop)):
                raise DataError(
                    f"{path}: expected windows inside the ranges of frames, got {a.start} to {a.stop} "
                    f"({a.instruction!r}); the instructions belong to another dataset."
                )
        return found

    def holds(self, start: int, stop: int) -> bool:
        """Return whether the frames `start` to `stop - 1` exist without a gap."""
        i = bisect.bisect_right(self.ranges[:, 0], start) - 1  # type: ignore[arg-type]
        return i >= 0 and stop - 1 <= int(self.ranges[i, 1])

    @cached_property
    def scenes(self) -> tuple[tuple[str, int, int], ...]:
        """(Scene, first frame, last frame) in order; the published ranges overrule a wrong file, validation is D."""
        path = self.path / "scene_info.npy"
        if not path.is_file():
            return (("D", int(self.ranges[0, 0]), int(self.ranges[-1, 1])),)
        content = load_pickled_array(path)
        try:
            rows = [(str(name)[-1], int(span[0]), int(span[1])) for name, span in content.items()]
        except (AttributeError, TypeError, ValueError, IndexError) as error:
            raise DataError(
                f"{path}: expected a dict of scene to [first, last], got {type(content).__name__}; copy it again."
            ) from error
        rows = [(KNOWN_SCENES.get((first, last), name), first, last) for name, first, last in rows]
        return tuple(sorted(rows, key=lambda row: row[1]))

    def scene(self, index: int) -> str:
        """Return the scene (A to D) of a frame."""
        return next((name for name, first, last in self.scenes if first <= index <= last), "D")

    def statistics(self) -> Mapping[str, Any]:
        """Read `statistics.yaml`: key -> {"mean": [..], "std": [..]}, and the bounds of absolute actions."""
        path = self.path / "statistics.yaml"
        try:
            content = yaml.safe_load(path.read_text())
        except (OSError, yaml.YAMLError) as error:
            raise DataError(f"{path}: cannot be read as YAML ({error}); copy it again.") from error
        return {key: value[0] if isinstance(value, list) and isinstance(value[0], dict) else value
                for key, value in content.items()}  # fmt: skip

    def unlabeled(self, shortest: int) -> Iterator[tuple[int, int]]:
        """Yield (start, stop) of the stretches outside every annotated window, of at least `shortest` frames."""
        windows = sorted((a.start, a.stop) for a in self.annotations)
        for first, last in self.ranges.tolist():
            begin = first
            for start, stop in windows[bisect.bisect_left(windows, (first, 0)) :]:
                if start > last:
                    break
                if start - begin >= shortest:
                    yield begin, start
                begin = max(begin, stop)
            if last + 1 - begin >= shortest:
                yield begin, last + 1


def state_vectors(robot_obs: Array) -> Array:
    """Convert `robot_obs` `[t 15]` (world frame) to states float32 `[t 16]` (robot base frame, STATE_DIM)."""
    opening = np.clip(robot_obs[:, 6:7] / _GRIPPER_WIDTH, 0, 1)
    command = (robot_obs[:, 14:15] + 1) / 2
    rotations = Rotation.from_euler("xyz", robot_obs[:, 3:6]).as_quat()
    parts = [robot_obs[:, :3] - ROBOT_BASE, rotations, opening, command, robot_obs[:, 7:14]]
    return np.concatenate(parts, axis=1).astype(np.float32)


def action_poses(actions: Array) -> Array:
    """Convert `actions` `[t 7]` (pose of the next frame, gripper -1 or 1) to float32 `[t 8]` (ACTION_DIM)."""
    rotations = Rotation.from_euler("xyz", actions[:, 3:6]).as_quat()
    gripper = (actions[:, 6:7] > 0).astype(float)
    return np.concatenate([actions[:, :3] - ROBOT_BASE, rotations, gripper], axis=1).astype(np.float32)


def absolute_actions(robot_obs: Array) -> Array:
    """Return CALVIN's `actions` `[t 7]` of `robot_obs` `[t+1 15]`: the pose of the next frame and its gripper."""
    gripper = np.where(robot_obs[1:, 14:15] > 0, 1.0, -1.0)
    return np.concatenate([robot_obs[1:, :6], gripper], axis=1)


def relative_actions(actions: Array, robot_obs: Array) -> Array:
    """Return CALVIN's `rel_actions` `[t 7]`: the motion to `actions`, in steps of 2 cm and 0.05 rad, clipped to 1."""
    turn = (actions[:, 3:6] - robot_obs[:, 3:6] + np.pi) % (2 * np.pi) - np.pi
    linear = np.clip((actions[:, :3] - robot_obs[:, :3]) / _LINEAR_STEP, -1, 1)
    return np.concatenate([linear, np.clip(turn / _ANGULAR_STEP, -1, 1), actions[:, 6:7]], axis=1)


def blocks_by_color(scene_obs: Array, scene: str) -> dict[str, Array]:
    """Split `scene_obs` `[.. 24]` into block poses `[.. 6]` by color, whatever the scene's own order is."""
    return {color: scene_obs[..., 6 + 6 * place : 12 + 6 * place] for place, color in enumerate(BLOCK_ORDER[scene])}


class CalvinWriter:
    """Write one split, frame by frame; `finish` writes what states that it is whole.

    Frames are numbered from `first`; a frame file appears only when it is whole, so a stopped recording is resumed
    from the number of frames that its owner knows to be written.
    """

    def __init__(self, path: Path, first: int = 0) -> None:
        self.path, self.next_frame = path, first
        path.mkdir(parents=True, exist_ok=True)

    def write_frame(self, arrays: Mapping[str, Array]) -> int:
        """Write one frame of the arrays in FRAME_KEYS (images of any size; depth may be left out).

        Returns:
            Its number.

        Raises:
            DataError: an array is missing or has another type or shape.
        """
        content = {}
        for key, (dtype, shape) in FRAME_KEYS.items():
            if key not in arrays:
                if key.startswith("depth"):
                    continue
                raise DataError(f"{self.path}: frame {self.next_frame}: expected the array {key!r}, got none.")
            array = np.asarray(arrays[key])
            sized = array.ndim == len(shape) and (len(shape) > 1 or array.shape == shape)
            if array.dtype != dtype or not sized:
                raise DataError(
                    f"{self.path}: frame {self.next_frame}: expected {key} as {dtype} of shape {shape}, got "
                    f"{array.dtype} {array.shape}; convert it first."
                )
            content[key] = array
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **content)  # type: ignore[arg-type]
        write_bytes(self.path / f"episode_{self.next_frame:07d}.npz", buffer.getvalue())
        self.next_frame += 1
        return self.next_frame - 1

    def finish(
        self,
        ranges: Sequence[tuple[int, int]],
        annotations: Sequence[Annotation],
        scenes: Mapping[str, tuple[int, int]],
        statistics: Mapping[str, Any],
        *,
        embeddings: Array | None = None,
        evaluation: Mapping[str, Any] | None = None,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        """Write ranges (ends included), instructions, scenes and statistics.

        Args:
            ranges: first and last frame of each piece without a gap.
            annotations: instructions; CALVIN's own loaders read a window only where it ends before its range does.
            scenes: scene -> first and last frame.
            statistics: of all frames.
            embeddings: a vector of each annotation `[n 1 d]`; zeros of the official shape where there are none.
            evaluation: content of `embeddings.npy`: task -> `ann` and `emb`.
            settings: content of `.hydra/merged_config.yaml`.
        """
        if evaluation is not None:
            (self.path / "lang_annotations").mkdir(exist_ok=True)
            _save(self.path / "lang_annotations" / "embeddings.npy", np.array(dict(evaluation), dtype=object))
        if settings is not None:
            (self.path / ".hydra").mkdir(exist_ok=True)
            text = yaml.safe_dump(dict(settings), sort_keys=False)
            write_bytes(self.path / ".hydra" / "merged_config.yaml", text.encode())
        spans = np.array(ranges, np.int64).reshape(-1, 2)
        _save(self.path / "ep_start_end_ids.npy", spans)
        _save(self.path / "ep_lens.npy", spans[:, 1] - spans[:, 0] + 1)
        if scenes:
            info = {f"calvin_scene_{name}": [int(a), int(b)] for name, (a, b) in scenes.items()}
            _save(self.path / "scene_info.npy", np.array(info, dtype=object))
        language: dict[str, Any] = {
            "language": {
                "ann": [a.instruction for a in annotations],
                "task": [a.task for a in annotations],
                "emb": np.zeros((len(annotations), 1, 384), np.float32) if embeddings is None else embeddings,
            },
            "info": {"episodes": [], "indx": [(a.start, a.stop) for a in annotations]},
        }
        folder = self.path / "lang_annotations"
        folder.mkdir(exist_ok=True)
        _save(folder / "auto_lang_ann.npy", np.array(language, dtype=object))
        write_bytes(self.path / "statistics.yaml", yaml.safe_dump(dict(statistics), sort_keys=False).encode())


class RunningStatistics:
    """Measures what `statistics.yaml` holds, piece by piece, in memory that does not grow."""

    def __init__(self) -> None:
        self._count = 0
        self._mean: dict[str, Array] = {}
        self._squares: dict[str, Array] = {}
        self._low, self._high = np.full(7, np.inf), np.full(7, -np.inf)

    def add(self, robot_obs: Array, scene_obs: Array, actions: Array) -> None:
        """Add frames `[t ..]`. Source: Chan, Golub and LeVeque 1983, for two sets of samples."""
        new = len(robot_obs)
        total = self._count + new
        for name, values in (("robot_obs", robot_obs), ("scene_obs", scene_obs)):
            mean = values.mean(0)
            squares = ((values - mean) ** 2).sum(0)
            old = self._mean.get(name, np.zeros_like(mean))
            self._squares[name] = self._squares.get(name, 0.0) + squares + (mean - old) ** 2 * self._count * new / total
            self._mean[name] = old + (mean - old) * new / total
        self._count = total
        self._low, self._high = np.minimum(self._low, actions.min(0)), np.maximum(self._high, actions.max(0))

    def as_dict(self) -> dict[str, Any]:
        """Return the content of `statistics.yaml`."""
        return {
            name: [{
                "_target_": "calvin_agent.utils.transforms.NormalizeVector",
                "mean": self._mean[name].round(6).tolist(),
                "std": np.sqrt(self._squares[name] / self._count).round(6).tolist(),
            }]
            for name in self._mean
        } | {"act_min_bound": self._low.round(6).tolist(), "act_max_bound": self._high.round(6).tolist()}  # fmt: skip


def _save(path: Path, array: Array) -> None:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=array.dtype.hasobject)
    write_bytes(path, buffer.getvalue())
