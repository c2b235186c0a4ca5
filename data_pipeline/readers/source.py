"""Recognise how a dataset is laid out and open the reader for it."""

from __future__ import annotations

from pathlib import Path

from ...gr_model.errors import DataError
from ..calvin_layout import find_splits
from ..episodes import list_episodes
from ..video import is_video
from .annotated import AnnotatedSource
from .calvin import CalvinSource
from .folder import FolderSource
from .record import RecordSource
from .recorded import RecordedSource


def open_source(path: Path, camera: str = "static") -> RecordSource:
    """Open a dataset: recorded episodes, CALVIN, the annotation layout, or a folder of videos (or one video).

    Args:
        path: folder or file.
        camera: name given to the camera of datasets that have one without a name.

    Raises:
        DataError: where nothing is there, or a file is no video.
    """
    path = path.expanduser()
    if not path.exists():
        raise DataError(f"{path}: no such file or folder, expected a dataset; check the path.")
    if path.is_file() and not is_video(path):
        raise DataError(f"{path}: expected a folder or a video file, got {path.suffix or 'no suffix'}.")
    if path.is_dir() and list_episodes(path):
        return RecordedSource(path)
    if path.is_dir() and find_splits(path):
        return CalvinSource(path)
    if (path / "annotation").is_dir() and (path / "videos").is_dir():
        return AnnotatedSource(path, camera)
    return FolderSource(path, camera)
