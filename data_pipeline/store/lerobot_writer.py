"""`gr2 data export`: robot episodes as a LeRobot dataset (v3.0), which LeRobot, openpi and GR00T read.

Several episodes share a file, in `data/` and for each camera in `videos/`; `meta/` says where each one lies.

Source: huggingface/lerobot, `datasets/utils.py` and `dataset_writer.py` of 0.4 to 0.6.
"""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
from tqdm import tqdm

from ...contracts import Array, Episode
from ...embodiment import Embodiment, Signal
from ...errors import ConfigError, DataError
from ..files import write_json
from ..readers.lerobot_layout import EMBODIMENT_FILE
from ..readers.record import Record, Times
from ..readers.source import open_source
from ..video.transcode import encode_frames

_CHUNK = 1000
"""Files of a chunk folder."""
_DATA_PATH = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
_VIDEO_PATH = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
_IMAGE_SAMPLES = 20
"""Images of an episode that the statistics of a camera are taken from."""


@dataclass(kw_only=True)
class _Sums:
    """Statistics of rows that come part by part."""

    count: int = 0
    total: Any = 0.0
    squares: Any = 0.0
    low: Any = np.inf
    high: Any = -np.inf

    def add(self, rows: Array) -> None:
        """Take rows `[n c]` in."""
        rows = np.asarray(rows, np.float64)
        self.count += len(rows)
        self.total, self.squares = self.total + rows.sum(0), self.squares + (rows**2).sum(0)
        self.low, self.high = np.minimum(self.low, rows.min(0)), np.maximum(self.high, rows.max(0))

    def as_dict(self, shape: Sequence[int] = (-1,)) -> dict[str, Any]:
        """Return min, max, mean, std and count."""
        mean = self.total / self.count
        std = np.sqrt(np.maximum(self.squares / self.count - mean**2, 0.0))
        values = {"min": self.low, "max": self.high, "mean": mean, "std": std}
        return {key: np.reshape(value, shape).tolist() for key, value in values.items()} | {"count": [self.count]}


@dataclass(kw_only=True)
class _Group:
    """Episodes that share a file of each kind."""

    number: int
    rows: list[dict[str, Any]] = field(default_factory=list)
    tables: list[dict[str, Any]] = field(default_factory=list)
    videos: dict[str, list[bytes]] = field(default_factory=dict)
    frames: int = 0

    @property
    def place(self) -> dict[str, int]:
        """Where its files lie."""
        return {"chunk_index": self.number // _CHUNK, "file_index": self.number % _CHUNK}


def export(
    *,
    source: Path,
    out: Path,
    format: Literal["lerobot"] = "lerobot",
    camera: str = "static",
    spec: Path | None = None,
    times: Times = "check",
    frames_per_file: int = 10_000,
    max_episodes: int = 0,
) -> dict[str, Any]:
    """Write robot episodes as a LeRobot v3.0 dataset; what has no instruction or no steps is left out and counted.

    LeRobot wants an image of every step: where images are rarer than steps, each is repeated until the next one.

    Args:
        source: robot episodes in any layout that `gr2 data inspect` knows, recordings and video shards among them.
        out: folder of the dataset; missing or empty.
        format: the only one so far.
        camera: name given to the camera of datasets that have one without a name.
        spec: where cameras, states and actions lie in a robot dataset (YAML), or libero for its HDF5 files.
        times: "order" takes the rows of a LeRobot episode for steps at its rate.
        frames_per_file: steps after which the next file begins.
        max_episodes: at most so many episodes; 0 for all.

    Raises:
        DataError: something lies in `out`, no episode has steps and an instruction, or episodes differ in robot or
            image size.
    """
    if out.exists() and not _is_empty(out):
        raise DataError(f"{out}: expected a folder that is empty or does not exist, got another; choose another --out.")
    if frames_per_file < 1 or max_episodes < 0:
        raise ConfigError(
            f"--frames-per-file and --max-episodes: expected at least 1 and 0, got {frames_per_file}, {max_episodes}."
        )
    unfinished = out.with_name(f".{out.name}.part")
    shutil.rmtree(unfinished, ignore_errors=True)
    try:
        writer = _Writer(unfinished, frames_per_file)
        for record in tqdm(_episodes(source, camera, spec, times, writer.left_out, max_episodes), desc="export"):
            writer.add(record)
        writer.finish(source)
        out.mkdir(exist_ok=True)
        for part in sorted(unfinished.iterdir(), key=lambda part: part.name == "meta"):  # without meta it is no dataset
            part.rename(out / part.name)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return {"episodes": len(writer.rows), "frames": writer.steps, "left_out": dict(writer.left_out)}


def _is_empty(out: Path) -> bool:
    """Return whether nothing lies in a folder but hidden files, such as the lock of the command that writes it."""
    return out.is_dir() and all(entry.name.startswith(".") for entry in out.iterdir())


def _episodes(
    source: Path, camera: str, spec: Path | None, times: Times, left_out: dict[str, int], most: int
) -> Iterator[Record]:
    found = 0
    for record in open_source(source, camera, spec, times):
        reason = (
            "problem" if record.problem
            else "no steps" if record.states is None or record.actions is None or record.control_hz is None
            else "no instruction" if not record.caption else ""
        )  # fmt: skip
        if reason:
            left_out[reason] = left_out.get(reason, 0) + 1
            continue
        yield record
        found += 1
        if found == most:
            return


class _Writer:
    """Collects episodes in groups and writes a group at a time."""

    def __init__(self, root: Path, frames_per_file: int) -> None:
        self.root, self.frames_per_file = root, frames_per_file
        self.left_out: dict[str, int] = {}
        self.rows: list[dict[str, Any]] = []
        self.steps = 0
        self._tasks: dict[str, int] = {}
        self._sums: dict[str, _Sums] = {}
        self._features: dict[str, Any] = {}
        self._fps, self._embodiment = 0.0, cast(Embodiment | None, None)
        self._group = _Group(number=0)

    def add(self, record: Record) -> None:
        """Take an episode in; one that cannot be decoded is left out."""
        try:
            episode = record.decode()
        except DataError:
            self.left_out["cannot be decoded"] = self.left_out.get("cannot be decoded", 0) + 1
            return
        assert isinstance(episode, Episode)
        self._expect_alike(episode, record)
        number, steps, fps = len(self.rows), len(episode.states), episode.control_hz
        task = self._tasks.setdefault(episode.instruction, len(self._tasks))
        group, begin = self._group, self._group.frames / fps
        row: dict[str, Any] = {"episode_index": number, "tasks": [episode.instruction], "length": steps}
        row |= {f"data/{key}": value for key, value in group.place.items()}
        row |= {"dataset_from_index": self.steps, "dataset_to_index": self.steps + steps}
        for name, images in episode.images.items():
            key = f"observation.images.{name}"
            shown = images[np.minimum(np.arange(steps) // episode.frame_stride, len(images) - 1)]
            group.videos.setdefault(key, []).append(encode_frames(iter(shown), fps, crf=18, pixel_format="yuv420p"))
            row |= {f"videos/{key}/{part}": value for part, value in group.place.items()}
            row |= {f"videos/{key}/from_timestamp": begin, f"videos/{key}/to_timestamp": begin + steps / fps}
            sample = images[np.linspace(0, len(images) - 1, min(len(images), _IMAGE_SAMPLES)).astype(int)]
            self._sum(key, sample.reshape(-1, 3) / 255.0)
        group.tables.append({
            "observation.state": episode.states.astype(np.float32), "action": episode.actions.astype(np.float32),
            "timestamp": (np.arange(steps) / fps).astype(np.float32), "frame_index": np.arange(steps),
            "episode_index": np.full(steps, number), "index": self.steps + np.arange(steps),
            "task_index": np.full(steps, task),
        })  # fmt: skip
        self._sum("observation.state", episode.states)
        self._sum("action", episode.actions)
        self.rows.append(row | {"meta/episodes/chunk_index": 0, "meta/episodes/file_index": 0})
        self.steps, group.frames = self.steps + steps, group.frames + steps
        if group.frames >= self.frames_per_file:
            self._write_group()

    def finish(self, source: Path) -> None:
        """Write what is left and the metadata.

        Raises:
            DataError: there was no episode.
        """
        if not self.rows:
            raise DataError(
                f"{source}: expected robot episodes with steps and an instruction, got none ({self.left_out}); "
                "`gr2 data inspect` says what is there."
            )
        self._write_group()
        meta = self.root / "meta"
        _write_table(meta / "episodes" / "chunk-000" / "file-000.parquet", _columns(self.rows))
        _write_table(
            meta / "tasks.parquet", {"task_index": list(self._tasks.values()), "task": list(self._tasks)}, index="task"
        )
        stats = {name: sums.as_dict((3, 1, 1) if ".images." in name else (-1,)) for name, sums in self._sums.items()}
        write_json(meta / "stats.json", stats)
        fps = int(self._fps) if float(self._fps).is_integer() else self._fps
        if self._embodiment is not None:
            write_json(meta / EMBODIMENT_FILE, self._embodiment.to_dict())
        write_json(meta / "info.json", {
            "codebase_version": "v3.0", "robot_type": self._embodiment.name if self._embodiment else "unknown",
            "total_episodes": len(self.rows),
            "total_frames": self.steps, "total_tasks": len(self._tasks), "chunks_size": _CHUNK,
            "data_files_size_in_mb": 100, "video_files_size_in_mb": 200, "fps": fps,
            "splits": {"train": f"0:{len(self.rows)}"}, "data_path": _DATA_PATH, "video_path": _VIDEO_PATH,
            "features": self._features,
        })  # fmt: skip

    def _sum(self, name: str, rows: Array) -> None:
        self._sums.setdefault(name, _Sums()).add(rows)

    def _expect_alike(self, episode: Episode, record: Record) -> None:
        """Describe the features by the first episode, and expect them of all others."""
        features = _features(episode, record.embodiment)
        if not self._features:
            self._features, self._fps = features, episode.control_hz
            self._embodiment = record.embodiment
        elif (features, episode.control_hz, record.embodiment) != (self._features, self._fps, self._embodiment):
            differ = [key for key in {*features, *self._features} if features.get(key) != self._features.get(key)]
            raise DataError(
                f"{record.source or record.key}: expected episodes of one robot, rate and image size, got another "
                f"{', '.join(sorted(differ)) or 'rate or robot'}; export each set by itself."
            )

    def _write_group(self) -> None:
        group = self._group
        if not group.tables:
            return
        columns = {name: np.concatenate([table[name] for table in group.tables]) for name in group.tables[0]}
        _write_table(self.root / _DATA_PATH.format(**group.place), columns)
        for key, parts in group.videos.items():
            path = self.root / _VIDEO_PATH.format(video_key=key, **group.place)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(_joined(parts))
        self._group = _Group(number=group.number + 1)


def _features(episode: Episode, robot: Embodiment | None) -> dict[str, Any]:
    """Describe the columns and videos as `info.json` does."""
    fps = episode.control_hz
    features: dict[str, Any] = {}
    for key, rows, signals in (
        ("observation.state", episode.states, robot.state if robot else ()),
        ("action", episode.actions, robot.action if robot else ()),
    ):
        names = _names(signals) or [f"{key.split('.')[-1]}_{i}" for i in range(rows.shape[1])]
        features[key] = {"dtype": "float32", "shape": [rows.shape[1]], "names": names}
    for name, images in episode.images.items():
        height, width = images.shape[1:3]
        if height % 2 or width % 2:
            raise DataError(
                f"{name}: expected images of an even size, got {height} x {width}; LeRobot's videos need it."
            )
        features[f"observation.images.{name}"] = {
            "dtype": "video", "shape": [height, width, 3], "names": ["height", "width", "channels"],
            "info": {"video.height": height, "video.width": width, "video.codec": "h264", "video.pix_fmt": "yuv420p",
                     "video.is_depth_map": False, "video.fps": fps, "video.channels": 3, "has_audio": False},
        }  # fmt: skip
    single = {"shape": [1], "names": None}
    features["timestamp"] = {"dtype": "float32", **single}
    return features | {
        key: {"dtype": "int64", **single} for key in ("frame_index", "episode_index", "index", "task_index")
    }


def _names(signals: Sequence[Signal]) -> list[str]:
    """Return a name for every number."""
    names = []
    for signal in signals:
        parts = signal.parts or tuple(map(str, range(signal.width)))
        names += [signal.name] if signal.width == 1 else [f"{signal.name}.{part}" for part in parts]
    return names


def _columns(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    return {name: [row[name] for row in rows] for name in rows[0]}


def _write_table(path: Path, columns: Mapping[str, Any], index: str = "") -> None:
    """Write a parquet file; matrices become lists of a fixed length, and pandas takes `index` for the index."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    arrays = {}
    for name, values in columns.items():
        if isinstance(values, np.ndarray) and values.ndim == 2:
            arrays[name] = pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), values.shape[1])
        else:
            arrays[name] = pa.array(values)
    table = pa.table(arrays)
    if index:
        described = [{"name": name, "field_name": name, "pandas_type": "unicode" if name == index else "int64",
                      "numpy_type": "object" if name == index else "int64", "metadata": None}
                     for name in columns]  # fmt: skip
        facts = {"index_columns": [index], "column_indexes": [], "columns": described, "pandas_version": "2.0.0"}
        table = table.replace_schema_metadata({b"pandas": json.dumps(facts).encode()})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path)


def _joined(parts: Sequence[bytes]) -> bytes:
    """Put videos of one codec and size one after another without encoding them again."""
    import av

    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as target:
        out: Any = None
        begin = 0
        for part in parts:
            with av.open(io.BytesIO(part), "r") as video:
                stream: Any = video.streams.video[0]
                out = out or target.add_stream_from_template(stream)
                packets: list[Any] = [packet for packet in video.demux(stream) if packet.pts is not None]
                shift = begin - min(packet.pts for packet in packets)
                for packet in packets:
                    packet.pts, packet.dts, packet.stream = packet.pts + shift, packet.dts + shift, out
                    target.mux(packet)
                begin += len(packets) * round(1 / (stream.average_rate * stream.time_base))
    return buffer.getvalue()
