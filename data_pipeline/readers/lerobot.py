"""Read LeRobot datasets v2.0, v2.1 and v3.0 with pyarrow alone: parquet files of steps beside videos or images.

What the files hold counts, not what `meta/info.json` states: codec, folder and shapes are often wrong there. An
episode whose steps are not at k / fps, or whose video has another number of frames, has a problem. A video of several
episodes is cut where it is needed; one of a single episode stays as it is.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from ...embodiment import Embodiment
from ...errors import ConfigError, DataError
from ..files import camera_name, read_json
from .lerobot_layout import EMBODIMENT_FILE, EpisodeEntry, LeRobotLayout, frames_before, read_layout, read_schema
from .lerobot_rows import EpisodeRows, check_times, images_below, images_of, matrix_of, numbers_of
from .lerobot_video import VideoHeader, find_video, is_shifted, lacks_last_frame, part_of, read_header
from .record import LAST_LEFT_OUT, FileMissing, ImageBytes, Record, Times, Video, lacks_last_action
from .robot_signals import Column, RobotSignals
from .signal_names import flat_names, words_of
from .spec import KNOWN_SPECS, EpisodeSpec, commanded, with_opening

_IMAGES = "observation.images."
_STATES = ("observation.state", "state", "states")
_ACTIONS = ("action", "actions")
_NUM_NAMED = 5
_BOOKKEEPING = ("timestamp", "frame_index", "episode_index", "task_index")


class LeRobotSource:
    """Episodes of a dataset, in the order of its metadata; what is broken or missing is a record with the reason.

    An episode without cameras is a record without videos, good for statistics; one without actions is video alone.
    """

    kind = "lerobot"

    def __init__(
        self, path: Path, *, spec: EpisodeSpec | None = None, camera: str = "static", times: Times = "check"
    ) -> None:
        """Open a dataset.

        Args:
            path: folder that holds `meta`.
            spec: where the parts of an episode lie; without, a known dataset or what the names show.
            camera: name given to the camera where there is one.
            times: whether the times of the steps must be those of the rate, or their order is enough.

        Raises:
            DataError: the metadata are missing or broken, or the dataset has not what the spec names.
            ConfigError: the spec states another rate than the dataset.
        """
        self.path, self.times = path, times
        self.layout = read_layout(path)
        self._columns = self._first_columns()
        available = {*self._columns, *_videos(self.layout), *_image_folders(self.layout)}
        self._name = path.resolve().name
        known = KNOWN_SPECS.get(self._name)
        self._guessed = spec is None
        if spec is None:
            spec = known if known and known.keys() <= available else guess_spec(self.layout, self._columns, camera)
        missing = sorted(spec.keys() - available)
        if missing:
            raise DataError(f"{path}: expected {missing}, got {sorted(available)}; correct the names in the spec.")
        if spec.control_hz not in (None, self.layout.fps):
            got = f"{spec.control_hz:g} Hz in the spec"
            raise ConfigError(f"{path}: expected the {self.layout.fps:g} Hz of meta/info.json, got {got}; correct it.")
        self.spec = spec
        depth = [name for name, feature in self.layout.features.items() if _is_depth(feature)]
        if self._guessed:
            depth += [n for n in available if _is_called_depth(n) and n not in (*depth, *spec.cameras.values())]
        self._left_out = tuple(f"{name} left out, it is depth" for name in depth)
        self._left_out += _unread(spec, self._columns) if self._guessed else ()
        robot = self.layout.robot if self.layout.robot.lower() != "unknown" else ""
        names = {
            name: Column(**_described(self.layout.features.get(name, {}))) for name in (*spec.states, *spec.actions)
        }
        self._kept = _kept_embodiment(self.layout) if self._guessed else None
        self._signals = RobotSignals(spec=spec, robot=robot or spec.name or self._name, where=str(path), columns=names)

    def _first_columns(self) -> dict[str, str]:
        """Return the columns of the first parquet file that is there, by name, with their types."""
        for row in self.layout.rows:
            try:
                data = self.layout.entry(row).data
                if data.is_file():
                    return read_schema(data)
            except DataError:  # a broken file is the problem of its own record
                continue
        return {name: "" for name, feature in self.layout.features.items() if feature.get("dtype") != "video"}

    def __iter__(self) -> Iterator[Record]:
        spec, opened = self.spec, _OpenFile([*sorted(self.spec.keys()), *_BOOKKEEPING])
        kept = {*self._columns, *_image_folders(self.layout)}
        cameras = [key for key in dict.fromkeys(spec.cameras.values()) if key not in kept]
        header_of = lru_cache(maxsize=2 * len(cameras) + 1)(read_header)
        counted = {key: frames_before(self.layout.rows, key) for key in cameras} if self.layout.version == 3 else {}
        widths: dict[str, int] = {}
        for row in self.layout.rows:
            key, source = f"episode_{row['episode_index']:06d}", f"episode {row['episode_index']}"
            try:
                entry = self.layout.entry(row, cameras, counted)
                source = f"{entry.data.relative_to(self.path).as_posix()}: {source}"
                record, tasks = self._record(key, source, entry, opened.rows(entry.data), header_of)
                _check_widths(record, widths)
            except DataError as error:
                missing = isinstance(error, FileMissing)
                yield Record(key=key, videos={}, source=source, problem=f"{source}: {error}.", missing=missing)
                continue
            yield from _parts(record, tasks, self.layout.fps, header_of)

    def _record(
        self,
        key: str,
        source: str,
        entry: EpisodeEntry,
        file: EpisodeRows,
        header_of: Callable[[Path], VideoHeader],
    ) -> tuple[Record, list[_Task]]:
        """Return an episode, and its tasks in the order of its steps."""
        spec, fps = self.spec, self.layout.fps
        rows = file.only_episode() if self.layout.version == 2 else file.episode(entry.index)
        if rows.num_rows != entry.length or not entry.length:
            raise DataError(f"expected the {entry.length} steps that meta promises, got {rows.num_rows}; copy it again")
        repairs = [*self._left_out, *entry.repairs, check_times(rows, fps, trust_order=self.times == "order")]
        length = entry.length
        if any(lacks_last_frame(place, length, header_of) for place in entry.videos.values()):
            length, rows = length - 1, rows.slice(0, length - 1)
            repairs.append("video one frame shorter than the steps")
        videos: dict[str, Video] = {}
        for camera, name in spec.cameras.items():
            if name in rows.column_names:
                images = images_of(name, rows.column(name), self.path)
                videos[camera] = ImageBytes(images=images, fps=fps, source=f"{source}: {name}")
            elif (folder := self.path / "images" / name / f"episode_{entry.index:06d}").is_dir():
                videos[camera] = images_below(name, folder, length, fps)
            elif name not in entry.videos and camera not in spec.optional_cameras:
                raise DataError(f"expected the column {name}, got {sorted(rows.column_names)}; write the file again")
            elif name in entry.videos and self._is_missed(entry, camera):
                repairs.append(f"no video of {camera}")
            elif name in entry.videos and (entry.videos[name].file.is_file() or camera not in spec.optional_cameras):
                place, trimmed = entry.videos[name], length < entry.length
                repairs.append("start of a video by the lengths before it" if is_shifted(place, fps, header_of) else "")
                videos[camera] = find_video(name, place, length, fps, header_of, trimmed=trimmed)
        tasks = self._tasks(rows, entry)
        if len(entry.tasks) > 1 and len({task.text for task in tasks}) == 1 and tasks[0].text == entry.tasks[0]:
            repairs.append("several tasks whose steps are not stated, the first is the caption")
        steps = bool(spec.actions)
        facts = spec.facts(self._name) | {"episode_index": entry.index}
        facts |= {"robot": self.layout.robot} if self.layout.robot else {}
        states = matrix_of(rows, spec.states) if steps else None
        actions = commanded(matrix_of(rows, spec.actions, last_may_lack=not spec.actions_next), spec) if steps else None
        if states is not None and actions is not None and lacks_last_action(actions):
            states, actions = states[:-1], actions[:-1]
            videos = {name: part_of(video, 0, len(actions), fps, header_of) for name, video in videos.items()}
            tasks = [replace(task, stop=min(task.stop, len(actions))) for task in tasks if task.start < len(actions)]
            repairs.append(LAST_LEFT_OUT)
        actions = None if actions is None else with_opening(actions, spec.gripper)
        embodiment = self._kept if steps and self._kept else self._signals.embodiment(states, actions, fps)
        facts |= self._signals.facts(embodiment)
        record = Record(
            key=key,
            videos=videos,
            caption=tasks[0].text,
            states=states,
            actions=actions,
            control_hz=fps if steps else None,
            embodiment=embodiment,
            source=source,
            facts=facts,
            repairs=tuple(dict.fromkeys(filter(None, repairs))),
        )
        return record, tasks

    def _is_missed(self, entry: EpisodeEntry, camera: str) -> bool:
        """Return whether a camera lacks its video here, no spec asked for it, and another one has its own."""
        there = any(place.file.is_file() for place in entry.videos.values())
        return self._guessed and there and not entry.videos[self.spec.cameras[camera]].file.is_file()

    def _tasks(self, rows: Any, entry: EpisodeEntry) -> list[_Task]:
        """Return the runs of steps with one instruction: of the spec's columns, else of the tasks, else of meta."""
        for name in self.spec.instructions:
            if name in rows.column_names:
                texts = [str(value or "").strip() for value in rows.column(name).to_pylist()]
                if any(texts):
                    return _runs(texts)
        if "task_index" in rows.column_names:
            numbers = numbers_of("task_index", rows.column("task_index")).reshape(-1).tolist()
            texts = [self.layout.tasks.get(number, "").strip() for number in numbers]
            if any(texts):
                return _runs(texts)
        return [_Task(text=next((t.strip() for t in entry.tasks if t.strip()), ""), start=0, stop=rows.num_rows)]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Task:
    """Steps `[start, stop)` of an episode, and their instruction."""

    text: str
    start: int
    stop: int


def _runs(texts: Sequence[str]) -> list[_Task]:
    starts = [i for i, text in enumerate(texts) if i == 0 or text != texts[i - 1]]
    borders = zip(starts, [*starts[1:], len(texts)], strict=True)
    return [_Task(text=texts[start], start=start, stop=stop) for start, stop in borders]


def _parts(
    record: Record, tasks: Sequence[_Task], fps: float, header_of: Callable[[Path], VideoHeader]
) -> Iterator[Record]:
    """Divide an episode where its instruction changes; an episode of one instruction stays whole."""
    if len(tasks) == 1:
        yield record
        return
    for number, task in enumerate(tasks):
        steps = slice(task.start, task.stop)
        yield replace(
            record,
            key=f"{record.key}_{number:03d}",
            caption=task.text,
            videos={name: part_of(v, task.start, task.stop, fps, header_of) for name, v in record.videos.items()},
            states=None if record.states is None else record.states[steps],
            actions=None if record.actions is None else record.actions[steps],
            source=f"{record.source}: steps {task.start} to {task.stop}",
            facts={**record.facts, "steps": [task.start, task.stop]},
            repairs=(*record.repairs, "divided where the task changes"),
        )


class _OpenFile:
    """The one parquet file that is open: episodes that lie in one file follow each other."""

    def __init__(self, columns: Sequence[str]) -> None:
        self._columns = columns
        self._file: EpisodeRows | None = None

    def rows(self, path: Path) -> EpisodeRows:
        if self._file is None or self._file.path != path:
            self._file = None
            self._file = EpisodeRows(path, self._columns)
        return self._file


def _kept_embodiment(layout: LeRobotLayout) -> Embodiment | None:
    """Return what gr2 wrote of the robot when it exported the dataset; None where others wrote it.

    Raises:
        DataError: it cannot be read, or has other widths than the features.
    """
    file = layout.root / "meta" / EMBODIMENT_FILE
    if not file.is_file():
        return None
    widths = [list(layout.features.get(key, {}).get("shape", ())) for key in ("observation.state", "action")]
    try:
        robot = Embodiment.from_dict(read_json(file))
    except (ConfigError, DataError, KeyError, TypeError, ValueError) as error:
        raise DataError(f"{file}: expected what gr2 wrote of the robot, got {error}; remove it.") from error
    if widths != [[robot.state_dim], [robot.action_dim]]:
        raise DataError(
            f"{file}: expected the state and action numbers of the features {widths}, got {robot.state_dim} and "
            f"{robot.action_dim}; remove it."
        )
    return robot


def guess_spec(layout: LeRobotLayout, columns: Mapping[str, str], camera: str = "static") -> EpisodeSpec:
    """Infer the parts of an episode by name: `observation.images.*`, `observation.state`, `action`, or the short names.

    Several cameras are called by the last part of their name. The gripper is kept as stored.

    Args:
        layout: metadata.
        columns: columns of the parquet files, with their types.
        camera: name given to the camera where there is one.
    """
    in_rows = [name for name in columns if _holds_images(layout, columns, name)]
    images = list(dict.fromkeys([*_videos(layout), *in_rows, *_image_folders(layout)]))
    images = [name for name in images if name.startswith(_IMAGES)] or images
    images = [name for name in images if not _is_called_depth(name)]
    names = [camera_name(name.rpartition(".")[2]) for name in images]
    if len(set(names)) != len(names):
        names = [camera_name(name.removeprefix(_IMAGES)) for name in images]
    return EpisodeSpec(
        cameras={camera_name(camera): images[0]} if len(images) == 1 else dict(zip(names, images, strict=True)),
        states=tuple(name for name in _STATES if name in columns)[:1],
        actions=tuple(name for name in _ACTIONS if name in columns)[:1],
    )


def _is_called_depth(name: str) -> bool:
    return "depth" in words_of(name.rpartition(".")[2])


def _unread(spec: EpisodeSpec, columns: Mapping[str, str]) -> tuple[str, ...]:
    """Return the columns that have other names than the known ones, where there are no actions of a known name."""
    left = [name for name in columns if re.match(r"(actions?|observation\.state)[._]", name)]
    if spec.actions or not left:
        return ()
    return (f"no actions known by name (not read: {', '.join(left[:_NUM_NAMED])})",)


def _described(feature: Mapping[str, Any]) -> dict[str, Any]:
    """Return how many numbers a feature has, 0 where its shape does not state it, and their names."""
    shape = feature.get("shape")
    sizes = list(shape) if isinstance(shape, list | tuple) else []
    whole = bool(sizes) and all(isinstance(size, int) for size in sizes)
    return {"width": math.prod(sizes) if whole else 0, "names": flat_names(feature.get("names"))}


def _videos(layout: LeRobotLayout) -> list[str]:
    """List the features kept as video files; images of depth are none."""
    found = []
    for name, feature in layout.features.items():
        if feature.get("dtype") == "video" and not _is_depth(feature):
            found.append(name)
    return found


def _image_folders(layout: LeRobotLayout) -> list[str]:
    """List the features kept as one file an image below `images`, as lerobot does before it encodes them."""
    named = [name for name, feature in layout.features.items() if feature.get("dtype") == "image"]
    return [n for n in named if (layout.root / "images" / n).is_dir() and not _is_depth(layout.features[n])]


def _is_depth(feature: Mapping[str, Any]) -> bool:
    info = feature.get("info") or feature.get("video_info") or {}
    return isinstance(info, dict) and bool(info.get("video.is_depth_map") or info.get("is_depth_map"))


def _holds_images(layout: LeRobotLayout, columns: Mapping[str, str], name: str) -> bool:
    feature = layout.features.get(name, {})
    images = columns[name].startswith("struct<bytes: binary") or feature.get("dtype") == "image"
    return images and not _is_depth(feature)


def _check_widths(record: Record, widths: dict[str, int]) -> None:
    """Check that every episode has as many numbers a step as the first one."""
    for name, values in (("states", record.states), ("actions", record.actions)):
        if values is not None and widths.setdefault(name, values.shape[1]) != values.shape[1]:
            got = f"{values.shape[1]} numbers a step"
            raise DataError(f"{name}: expected {widths[name]} as in the first episode, got {got}; leave it out")
