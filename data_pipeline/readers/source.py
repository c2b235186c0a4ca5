"""Recognize how a dataset is laid out and open the reader for it."""

from __future__ import annotations

from pathlib import Path

from ...errors import ConfigError, DataError
from ..locations import Location, is_url
from ..store.calvin_layout import find_splits
from ..store.episodes import list_episodes
from ..video.reader import is_video
from .annotated import AnnotatedSource
from .arrays import ArraysSource, find_arrays
from .calvin import CalvinSource
from .ego4d import Ego4dSource, find_ego4d
from .epic import EpicSource, find_epic
from .folder import FolderSource
from .frame_folders import FrameFoldersSource, find_frame_folders
from .hdf5 import Hdf5Source, find_hdf5
from .howto100m import HowTo100mSource, find_howto100m
from .hub_cache import cached_dataset, download_command, is_dataset_id
from .kinetics import KineticsSource, find_kinetics
from .lerobot import LeRobotSource
from .lerobot_layout import is_lerobot
from .record import RecordSource, Times, is_animated_webp
from .recorded import RecordedSource
from .replay_buffer import ReplayBufferSource, is_replay_buffer
from .rlds import RldsSource, find_rlds
from .something import SomethingSource, find_something
from .spec import EpisodeSpec, read_spec
from .video_rows import VideoRowsSource, find_video_rows
from .webdataset import WebdatasetSource, find_tars


def open_source(
    path: Location,
    camera: str = "static",
    spec: Path | None = None,
    times: Times = "check",
    fps: float | None = None,
) -> RecordSource:
    """Open a dataset in any layout that has a reader; a folder of videos (or one video) is the last guess.

    Args:
        path: folder or file; webdataset tars also by URL or pattern; a dataset of the Hugging Face hub by its id, where
            it is in the cache of this machine.
        camera: name given to the camera of datasets that have one without a name.
        spec: YAML file that states where the parts of a robot dataset lie, or `libero`.
        times: "order" takes the rows of a LeRobot episode for steps at its rate, whatever their times.
        fps: frames a second of folders of frames.

    Raises:
        DataError: where nothing is there, or a file is no video.
        ConfigError: a spec that cannot be read, or spec, times or fps given for a layout that needs none.
    """
    given = read_spec(spec) if spec is not None else None
    source = _recognize(path, camera, given, times, fps)
    if fps is not None and not isinstance(source, FrameFoldersSource):
        raise ConfigError(f"{path}: expected folders of frames for --fps, got {source.kind!r}; leave the option out.")
    if times != "check" and not isinstance(source, LeRobotSource):
        raise ConfigError(f"{path}: expected a LeRobot dataset for --times, got {source.kind!r}; leave the option out.")
    if spec is not None and not isinstance(source, RldsSource | LeRobotSource | ArraysSource):
        raise ConfigError(
            f"{path}: expected RLDS, LeRobot, HDF5, zarr or npz for a spec, got {source.kind!r}; leave the spec out."
        )
    for field in ("turned_cameras", "bgr_cameras"):
        if given is not None and getattr(given, field) and not isinstance(source, ArraysSource):
            raise ConfigError(
                f"{path}: expected HDF5, zarr or npz for {field}, got {source.kind!r}; leave them out of the spec."
            )
    return source


def _recognize(path: Location, camera: str, spec: EpisodeSpec | None, times: Times, fps: float | None) -> RecordSource:
    if is_url(path) or (not Path(path).is_dir() and find_tars(path)):
        return WebdatasetSource(path, camera)
    path = Path(path).expanduser()
    if not path.exists():
        path = _from_hub(path)
    if is_replay_buffer(path):
        return ReplayBufferSource(path, spec=spec, camera=camera)
    if find_hdf5(path):
        return Hdf5Source(path, spec=spec, camera=camera)
    if path.suffix == ".parquet" and find_video_rows(path):
        return VideoRowsSource(path, camera)
    if path.is_file() and not is_video(path) and not find_arrays(path) and not is_animated_webp(path):
        raise DataError(
            f"{path}: expected a folder, a video, or an npz, HDF5 or zarr file, got {path.suffix or 'no suffix'}."
        )
    if path.is_dir() and list_episodes(path):
        return RecordedSource(path)
    if path.is_dir() and find_splits(path):
        return CalvinSource(path)
    if find_rlds(path):
        return RldsSource(path, spec=spec)
    if is_lerobot(path):
        return LeRobotSource(path, spec=spec, camera=camera, times=times)
    if (path / "annotation").is_dir() and (path / "videos").is_dir():
        return AnnotatedSource(path, camera)
    if find_something(path):
        return SomethingSource(path, camera)
    if find_epic(path):
        return EpicSource(path, camera)
    if find_ego4d(path):
        return Ego4dSource(path, camera)
    if find_howto100m(path):
        return HowTo100mSource(path, camera)
    if find_kinetics(path):
        return KineticsSource(path, camera)
    if find_arrays(path):
        return ArraysSource(path, spec=spec, camera=camera)
    # last: a corpus may keep the archives that it came in beside what they held
    if find_tars(path):
        return WebdatasetSource(path, camera)
    if find_video_rows(path):
        return VideoRowsSource(path, camera)
    if path.is_dir() and find_frame_folders(path):
        return FrameFoldersSource(path, fps=fps, camera=camera)
    inside = _only_folder(path)
    if inside is not None:
        found = _recognize(inside, camera, spec, times, fps)
        if not isinstance(found, FolderSource):  # whose captions may name the outer folder
            return found
    return FolderSource(path, camera)


def _only_folder(path: Path) -> Path | None:
    """Return the folder that a folder holds and nothing beside it, as unpacked archives have it."""
    shown = [entry for entry in path.iterdir() if not entry.name.startswith(".")] if path.is_dir() else []
    return shown[0] if len(shown) == 1 and shown[0].is_dir() else None


def _from_hub(path: Path) -> Path:
    """Return the folder of a dataset that is named by its id.

    Raises:
        DataError: there is neither a path of this name nor a dataset in the cache.
    """
    name = path.as_posix()
    if not is_dataset_id(name):
        raise DataError(f"{path}: no such file or folder, expected a dataset; check the path.")
    found = cached_dataset(name)
    if found is None:
        raise DataError(
            f"{path}: no such file or folder, and no dataset of this id in the Hugging Face cache; check the path, or "
            f"run `{download_command(name)}`."
        )
    return found
