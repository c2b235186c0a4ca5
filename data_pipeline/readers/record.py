"""What every reader yields: where a clip lies and what is known of it, without decoding anything."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Protocol
from zipfile import BadZipFile

import numpy as np
from PIL import Image, UnidentifiedImageError

from ...contracts import Array, Episode, VideoClip
from ...embodiment import Embodiment
from ...errors import DataError, refuse_lfs_pointer
from ..files import printable
from ..video.reader import open_video
from ..video.transcode import cut_video, encode_frames


class FileMissing(DataError):
    """A file that a dataset's annotations name is not there: often no fault, a corpus is rarely downloaded whole."""


class StoredVideo(Protocol):
    """A video that is no file of its own; `encode` makes one, in the worker that needs it."""

    def encode(self, short_side: int | None = None) -> VideoBytes:
        """Encode the video.

        Args:
            short_side: greatest length of the shorter side [px]; None keeps the size.

        Raises:
            DataError: a frame is missing or broken.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class VideoSpan:
    """A part of a longer video file: the frames shown in `[start, stop)` [s]."""

    file: Path
    start: float
    stop: float

    def encode(self, short_side: int | None = None) -> VideoBytes:
        """Cut the part out."""
        return VideoBytes(data=cut_video(self.file, self.start, self.stop, short_side), suffix=".mp4")


@dataclass(frozen=True, slots=True, kw_only=True)
class FrameFiles:
    """A video kept as one npz a frame.

    array: name of the image in each file; fps: frames a second.
    """

    files: Sequence[Path]
    array: str
    fps: float

    def encode(self, short_side: int | None = None) -> VideoBytes:
        """Read the frames and encode them as a video."""
        return VideoBytes(data=encode_frames(map(self._read, self.files), self.fps, short_side), suffix=".mp4")

    def _read(self, path: Path) -> Array:
        try:
            with np.load(path, allow_pickle=False) as arrays:
                frame: Array = arrays[self.array]
        except (OSError, ValueError, KeyError, EOFError, BadZipFile) as error:
            raise DataError(f"{path}: {self.array} cannot be read ({error}); copy the frame again.") from error
        return frame


IMAGE_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF")
"""Formats of single images, as PIL names them."""


def load_image(data: bytes) -> Image.Image:
    """Decode an image file, its format and mode kept; `convert("RGB")` makes gray, palettes and transparency RGB.

    Raises:
        DataError: it is none of `IMAGE_FORMATS`, broken, or of more than 8 bits a channel, as depth is.
    """
    try:
        image = Image.open(io.BytesIO(data), formats=IMAGE_FORMATS)
        image.load()
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        reason = "none of them" if isinstance(error, UnidentifiedImageError) else str(error)
        raise DataError(f"expected a {', '.join(IMAGE_FORMATS)} file, got {reason}; leave it out.") from error
    if image.mode.startswith(("I", "F")):
        raise DataError("expected 8 bits a channel, got more, as depth images have; leave the camera out.")
    return image


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageBytes:
    """A video kept as one image file a frame, in memory.

    images: the files; fps: frames a second; source: where they came from, for errors.
    """

    images: Sequence[bytes]
    fps: float
    source: str

    def encode(self, short_side: int | None = None) -> VideoBytes:
        """Decode the images and encode them as a video."""
        frames = (self._decode(number, data) for number, data in enumerate(self.images))
        return VideoBytes(data=encode_frames(frames, self.fps, short_side), suffix=".mp4")

    def _decode(self, number: int, data: bytes) -> Array:
        try:
            return np.asarray(load_image(data).convert("RGB"))
        except DataError as error:
            raise DataError(f"{self.source}: image {number}: {error}") from error


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageFiles:
    """A video kept as one image file a frame, in a folder; fps: frames a second."""

    files: Sequence[Path]
    fps: float

    def encode(self, short_side: int | None = None) -> VideoBytes:
        """Read the images and encode them as a video."""
        return VideoBytes(data=encode_frames(map(self._read, self.files), self.fps, short_side), suffix=".mp4")

    def _read(self, path: Path) -> Array:
        refuse_lfs_pointer(path)
        try:
            return np.asarray(load_image(path.read_bytes()).convert("RGB"))
        except (OSError, DataError) as error:
            raise DataError(f"{path}: {error}") from error


@dataclass(frozen=True, slots=True, kw_only=True)
class AnimatedImage:
    """An animated WEBP file, which not every FFmpeg decodes; frames stand as long as the file states."""

    file: Path

    def encode(self, short_side: int | None = None) -> VideoBytes:
        """Decode the frames and encode them as a video; one that stands longer is repeated."""
        try:
            with Image.open(self.file, formats=("WEBP",)) as image:
                frames, times = [], []
                for number in range(getattr(image, "n_frames", 1)):
                    image.seek(number)
                    image.load()
                    frames.append(np.asarray(image.convert("RGB")))
                    times.append(max(float(image.info.get("duration", 0)), 0.0))
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise DataError(f"{self.file}: expected an animated WEBP file, got another ({error}).") from error
        if min(times) <= 0:
            raise DataError(f"{self.file}: its frames state no time; make a video of it with FFmpeg and its rate.")
        shortest = min(times)
        repeated = [frame for frame, time in zip(frames, times, strict=True) for _ in range(round(time / shortest))]
        return VideoBytes(data=encode_frames(iter(repeated), 1000 / shortest, short_side), suffix=".mp4")


def is_animated_webp(path: Path) -> bool:
    """Return, by its first bytes, whether a file is a WEBP with several frames."""
    try:
        with path.open("rb") as file:
            head = file.read(21)
    except OSError:
        return False
    return head[:4] == b"RIFF" and head[8:16] == b"WEBPVP8X" and len(head) == 21 and bool(head[20] & 2)


@dataclass(frozen=True, slots=True, kw_only=True)
class FrameArray:
    """A video kept as pixels of an array; `read` gives uint8 `[f h w 3]` and is picklable."""

    read: Callable[[], Array]
    fps: float

    def encode(self, short_side: int | None = None) -> VideoBytes:
        """Encode the pixels as a video."""
        return VideoBytes(data=encode_frames(iter(self.read()), self.fps, short_side), suffix=".mp4")


@dataclass(frozen=True, slots=True, kw_only=True)
class VideoBytes:
    """A whole video file in memory; like a path, it has a suffix and can be read."""

    data: bytes
    suffix: str

    def read_bytes(self) -> bytes:
        """Return the file."""
        return self.data


Video = Path | VideoBytes | StoredVideo

Times = Literal["check", "order"]
"""Whether the times of an episode's steps must be those of its rate, or the order of the steps is enough."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One clip or episode of a source.

    key: unique in the source, the same in every run, without dots and slashes.
    videos: camera name -> file, or what `with_video_files` turns into one.
    states: `[t s]`; actions: `[t a]`; both None for video alone.
    control_hz: steps a second, None without steps.
    embodiment: what the numbers of states and actions are, None where the reader does not know.
    frame_stride: image i belongs to step `i * frame_stride`.
    facts: JSON values of the source kept with the clip; `dataset` names the dataset where it is a known one.
    problem: why the record cannot be used (a broken annotation), empty where it can.
    missing: the problem is that a file is not there.
    repairs: what was not as it should be and is read in the one way that makes sense, in a few words each.
    """

    key: str
    videos: Mapping[str, Video]
    caption: str = ""
    states: Array | None = None
    actions: Array | None = None
    control_hz: float | None = None
    embodiment: Embodiment | None = None
    frame_stride: int = 1
    source: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)
    problem: str = ""
    missing: bool = False
    repairs: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Make names printable that are no UTF-8."""
        object.__setattr__(self, "source", printable(self.source))
        object.__setattr__(self, "problem", printable(self.problem))

    def decode(self) -> VideoClip | Episode:
        """Decode all images: an `Episode` where the record has steps, else a `VideoClip` of its first camera.

        Raises:
            DataError: the record has a problem, or a video cannot be read.
        """
        record = with_video_files(self)
        if record.problem or not record.videos:
            raise DataError(f"{self.source}: {record.problem or 'the record names no video'}; leave it out.")
        images, fps = {}, 0.0
        for camera, video in record.videos.items():
            with open_video(video.data if isinstance(video, VideoBytes) else _path(video)) as reader:
                images[camera], fps = reader.get_batch(range(len(reader))), fps or reader.fps
        if self.states is None or self.actions is None or self.control_hz is None:
            return VideoClip(frames=next(iter(images.values())), fps=fps, caption=self.caption, source=self.source)
        return Episode(
            images=images,
            states=self.states,
            actions=self.actions,
            instruction=self.caption,
            control_hz=self.control_hz,
            frame_stride=self.frame_stride,
            source=self.source,
        )


def _path(video: Video) -> Path:
    assert isinstance(video, Path)
    return video


def with_video_files(record: Record, short_side: int | None = None) -> Record:
    """Encode what is no file yet; files stay as they are. A broken frame becomes the record's problem."""
    try:
        videos = {
            camera: video if isinstance(video, Path | VideoBytes) else video.encode(short_side)
            for camera, video in record.videos.items()
        }
    except DataError as error:
        return replace(record, videos={}, problem=str(error))
    return replace(record, videos=videos)


LAST_LEFT_OUT = "a last step without an action left out"
"""Repair of an episode whose recorder noted no action at its end."""


def lacks_last_action(actions: Array) -> bool:
    """Return whether of `[t a]` the last step alone holds what is no finite number: nothing followed it."""
    finite = np.asarray(np.isfinite(actions).all(axis=1))
    return len(finite) > 1 and not finite[-1] and bool(finite[:-1].all())


class RecordSource(Protocol):
    """A dataset on disk; iterating yields its records in the same order every time."""

    kind: str
    path: Path

    def __iter__(self) -> Iterator[Record]: ...
