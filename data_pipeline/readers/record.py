"""What every reader yields: where a clip lies and what is known of it, without decoding anything."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Protocol
from zipfile import BadZipFile

import numpy as np

from ...gr_model.contracts import Array
from ...gr_model.errors import DataError
from ..video import write_video


@dataclass(frozen=True, slots=True, kw_only=True)
class FrameFiles:
    """A video kept as one npz a frame.

    array: name of the picture in each file; fps: frames a second.
    """

    files: Sequence[Path]
    array: str
    fps: float

    def encode(self) -> VideoBytes:
        """Read the frames and encode them as a video.

        Raises:
            DataError: a frame is missing or broken.
        """
        frames = []
        for path in self.files:
            try:
                with np.load(path, allow_pickle=False) as arrays:
                    frames.append(arrays[self.array])
            except (OSError, ValueError, KeyError, EOFError, BadZipFile) as error:
                raise DataError(f"{path}: {self.array} cannot be read ({error}); copy the frame again.") from error
        with TemporaryDirectory() as folder:
            path = Path(folder) / "video.mp4"
            write_video(path, np.stack(frames), self.fps)
            return VideoBytes(data=path.read_bytes(), suffix=path.suffix)


@dataclass(frozen=True, slots=True, kw_only=True)
class VideoBytes:
    """A whole video file in memory; like a path, it has a suffix and can be read."""

    data: bytes
    suffix: str

    def read_bytes(self) -> bytes:
        """Return the file."""
        return self.data


Video = Path | VideoBytes | FrameFiles


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One clip or episode of a source.

    key: unique in the source, the same in every run, without dots and slashes.
    videos: camera name -> file, or frames that `with_video_files` turns into one.
    states: `[t s]`; actions: `[t a]`; both None for video alone.
    control_hz: steps a second, None without steps.
    frame_stride: picture i belongs to step `i * frame_stride`.
    facts: JSON values of the source kept with the clip.
    problem: why the record cannot be used (a broken annotation), empty where it can.
    """

    key: str
    videos: Mapping[str, Video]
    caption: str = ""
    states: Array | None = None
    actions: Array | None = None
    control_hz: float | None = None
    frame_stride: int = 1
    source: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)
    problem: str = ""


def with_video_files(record: Record) -> Record:
    """Encode what is kept as single frames; the rest stays as it is. A broken frame becomes the record's problem."""
    try:
        videos = {c: video.encode() if isinstance(video, FrameFiles) else video for c, video in record.videos.items()}
    except DataError as error:
        return replace(record, videos={}, problem=str(error))
    return replace(record, videos=videos)


class RecordSource(Protocol):
    """A dataset on disk; iterating yields its records in the same order every time."""

    kind: str
    path: Path

    def __iter__(self) -> Iterator[Record]: ...
