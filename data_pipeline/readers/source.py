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
from .howto100m import HowTo100mSource, find_howto100m
from .kinetics import KineticsSource, find_kinetics
from .lerobot import LeRobotSource
from .lerobot_layout import is_lerobot
from .record import RecordSource, Times
from .recorded import RecordedSource
from .rlds import RldsSource, find_rlds
from .something import SomethingSource, find_something
from .spec import EpisodeSpec, read_spec
from .webdataset import WebdatasetSource, find_tars


def open_source(
    path: Location, camera: str = "static", spec: Path | None = None, times: Times = "check"
) -> RecordSource:
    """Open a dataset in any layout that has a reader; a folder of videos (or one video) is the last guess.

    Args:
        path: folder or file; webdataset tars also by URL or pattern.
        camera: name given to the camera of datasets that have one without a name.
        spec: YAML file that states where the parts of a robot dataset lie.
        times: "order" takes the rows of a LeRobot episode for steps at its rate, whatever their times.

    Raises:
        DataError: where nothing is there, or a file is no video.
        ConfigError: a spec that cannot be read, or spec or times given for a layout that needs none.
    """
    source = _recognize(path, camera, read_spec(spec) if spec is not None else None, times)
    if times != "check" and not isinstance(source, LeRobotSource):
        raise ConfigError(f"{path}: expected a LeRobot dataset for --times, got {source.kind!r}; leave the option out.")
    if spec is not None and not isinstance(source, RldsSource | LeRobotSource | ArraysSource):
        raise ConfigError(f"{path}: expected RLDS, LeRobot or npz for a spec, got {source.kind!r}; leave the spec out.")
    return source


def _recognize(path: Location, camera: str, spec: EpisodeSpec | None, times: Times) -> RecordSource:
    if is_url(path) or (not Path(path).is_dir() and find_tars(path)):
        return WebdatasetSource(path, camera)
    path = Path(path).expanduser()
    if not path.exists():
        raise DataError(f"{path}: no such file or folder, expected a dataset; check the path.")
    if path.is_file() and not is_video(path) and not find_arrays(path):
        raise DataError(f"{path}: expected a folder, a video or an npz file, got {path.suffix or 'no suffix'}.")
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
    return FolderSource(path, camera)
