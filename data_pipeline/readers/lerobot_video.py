"""Find the frames of one episode in a video of a LeRobot dataset; nothing is decoded before a worker encodes them."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from ...errors import DataError, refuse_lfs_pointer
from .lerobot_layout import EpisodeVideo
from .record import FileMissing, ImageBytes, Video, VideoBytes, VideoSpan

_MOST_SHIFTED = 2
"""By how many frames a stated start may be beside the counted one and still be taken for a wrong statement of it."""

_MARGIN = 0.25
"""A span begins and ends this much early [frames]: time stamps are rounded, and sums of lengths drift."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VideoHeader:
    """What the head of a video holds; num_frames, fps: 0 where it does not; start: time of the first frame [s]."""

    num_frames: int
    fps: float
    start: float


@dataclass(frozen=True, slots=True, kw_only=True)
class EpisodeSpan:
    """The frames of one episode in a video of several; `encode` makes sure that they are `num_frames`."""

    span: VideoSpan
    num_frames: int

    def encode(self, short_side: int | None = None) -> VideoBytes:
        """Cut the frames out.

        Raises:
            DataError: the video is broken, or has another number of frames there.
        """
        video = self.span.encode(short_side)
        found = read_header(video.data).num_frames
        if found != self.num_frames:
            where = f"{self.span.file}: {self.span.start:.3f} to {self.span.stop:.3f} s"
            raise DataError(f"{where}: expected {self.num_frames} frames, one a step, got {found}; leave it out")
        return video


def read_header(video: Path | bytes) -> VideoHeader:
    """Read the head of a video file, or of the bytes of one.

    Raises:
        DataError: it is no video, or broken.
    """
    import av

    name = str(video) if isinstance(video, Path) else "video"
    if isinstance(video, Path):
        refuse_lfs_pointer(video)
    try:
        with av.open(str(video) if isinstance(video, Path) else io.BytesIO(video)) as container:
            stream = container.streams.best("video")
            if stream is None:
                raise DataError(f"{name}: holds no video stream, expected one; copy the file again")
            start = float((stream.start_time or 0) * (stream.time_base or 0))
            rate = getattr(stream, "average_rate", None)
            return VideoHeader(num_frames=stream.frames, fps=float(rate or 0), start=start)
    except (OSError, av.FFmpegError) as error:
        raise DataError(f"{name}: the video is truncated or corrupt ({error}); copy it again") from error


def part_of(video: Video, start: int, stop: int, fps: float, header_of: Callable[[Path], VideoHeader]) -> Video:
    """Return the frames `[start, stop)` of what `find_video` found, or of images."""
    if isinstance(video, ImageBytes):
        return replace(video, images=video.images[start:stop])
    if isinstance(video, Path):
        file, begin = video, header_of(video).start - _MARGIN / fps
    else:
        assert isinstance(video, EpisodeSpan)
        file, begin = video.span.file, video.span.start
    span = VideoSpan(file=file, start=begin + start / fps, stop=begin + stop / fps)
    return EpisodeSpan(span=span, num_frames=stop - start)


def lacks_last_frame(place: EpisodeVideo, length: int, header_of: Callable[[Path], VideoHeader]) -> bool:
    """Return whether a video of one episode alone has one frame less than the episode has steps: recorders stop so."""
    return place.start is None and place.file.is_file() and header_of(place.file).num_frames == length - 1 > 0


def is_shifted(place: EpisodeVideo, fps: float, header_of: Callable[[Path], VideoHeader]) -> bool:
    """Return whether the stated start is a frame or two beside the one that the lengths of the file's episodes give."""
    return 0 < abs(_frames_away(place, fps, header_of)) <= _MOST_SHIFTED


def _frames_away(place: EpisodeVideo, fps: float, header_of: Callable[[Path], VideoHeader]) -> int:
    """Return by how many frames the stated start lies beside the counted one; 0 unless the lengths fill the file."""
    if place.counted is None or place.start is None or not place.file.is_file():
        return 0
    header, (before, total) = header_of(place.file), place.counted
    return round((place.start - header.start) * fps) - before if header.num_frames == total else 0


def find_video(
    name: str,
    place: EpisodeVideo,
    length: int,
    fps: float,
    header_of: Callable[[Path], VideoHeader],
    *,
    trimmed: bool = False,
) -> Video:
    """Return the frames of an episode: the file, where it holds no others, else their span of it.

    Args:
        name: feature, for errors.
        place: where the metadata state the frames are.
        length: steps of the episode.
        fps: steps a second.
        header_of: reads the head of a file.
        trimmed: the episode has lost its last step, for which a whole video has a frame.

    Raises:
        DataError: the file is missing or broken, of another rate, or too short.
    """
    if not place.file.is_file():
        raise FileMissing(
            f"{name}: {place.file}: no such file, expected a video; copy it, or leave {name} out of a spec"
        )
    header = header_of(place.file)
    if header.fps and abs(header.fps - fps) > 0.01 * fps:
        raise DataError(f"{name}: {place.file}: expected {fps:g} frames a second, got {header.fps:g}; encode it again")
    start = header.start if place.start is None else place.start
    stop = start + length / fps
    away = _frames_away(place, fps, header_of)
    # There are datasets whose to_timestamp is the time of the last frame, not its end.
    if place.stop is not None and not -1.1 / fps <= place.stop - stop <= 0.1 / fps:
        raise DataError(f"{name}: expected a span to {stop:.4f} s for {length} frames, got {place.stop:.4f} s in meta; "
                        "copy meta again")  # fmt: skip
    if abs(away) > _MOST_SHIFTED:
        raise DataError(f"{name}: {place.file}: expected the start that the lengths of the episodes give, got one "
                        f"{abs(away)} frames beside it in meta; copy meta again")  # fmt: skip
    if away and place.counted is not None:
        start = header.start + place.counted[0] / fps
        stop = start + length / fps
    before = round((start - header.start) * fps)
    after = header.num_frames - before - length
    if header.num_frames and (before < 0 or after < 0 or (place.start is None and after > trimmed)):
        got = f"{header.num_frames - before} of {header.num_frames}"
        raise DataError(f"{name}: {place.file}: expected {length} frames, one a step, from frame {before} on, "
                        f"got {got}; encode the video again, or leave the episode out")  # fmt: skip
    if (place.start is None and not after) or (before == 0 and after == 0 and header.num_frames):
        return place.file
    span = VideoSpan(file=place.file, start=start - _MARGIN / fps, stop=stop - _MARGIN / fps)
    return EpisodeSpan(span=span, num_frames=length)
