"""Read and write video files: one reader for every container, one writer that keeps small colored things.

PyAV reads by default: it proves each frame by its time stamp and survives broken bytes. decord and torchcodec are
asked for by name; decord gives wrong frames of some files (refused where that is known) and can end the process.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Literal

import numpy as np

from ...contracts import Array
from ...errors import ConfigError, DataError, EnvironmentMissing, refuse_lfs_pointer
from ..files import write_bytes
from .decoders import AvDecoder, Decoder
from .decord_decoder import DecordDecoder
from .index import Source
from .torchcodec_decoder import TorchcodecDecoder
from .transcode import encode_frames

VIDEO_SUFFIXES = frozenset({
    ".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".gif", ".apng", ".mpg", ".mpeg", ".mpe", ".m2v", ".ts", ".mts",
    ".m2ts", ".vob", ".3gp", ".3g2", ".flv", ".f4v", ".asf", ".wmv", ".divx", ".ogv", ".h264", ".264", ".hevc", ".265",
})  # fmt: skip

Backend = Literal["auto", "decord", "pyav", "torchcodec"]


def is_video(path: Path | str) -> bool:
    """Return, by the suffix, whether a file is a video (animated GIF included)."""
    return Path(path).suffix.lower() in VIDEO_SUFFIXES


class VideoReader:
    """Frames of one video by index; made by `open_video`, used in the process that opened it.

    fps: frames a second: what the file states, where the times of its frames agree within 1 %, else their mean rate.
    backend: the decoder in use, `pyav`, `decord` or `torchcodec`.
    """

    def __init__(self, decoder: Decoder, name: str) -> None:
        self._decoder = decoder
        self._name = name
        self.backend = decoder.name
        self.fps = decoder.index.fps

    @property
    def shape(self) -> tuple[int, int, int]:
        """Frames, height and width [px], rotation applied; pixels are given as stored, square or not."""
        return (len(self), *self._decoder.size)

    @property
    def times(self) -> Array:
        """Presentation time of every frame relative to the first, float64 `[f]` [s]; the same from every decoder."""
        return self._decoder.index.times.copy()

    @property
    def is_constant_rate(self) -> bool:
        """Return whether the frames follow each other at one rate, but for the rounding of time stamps."""
        return self._decoder.index.is_constant_rate

    def __len__(self) -> int:
        return self._decoder.index.num_frames

    def get_batch(self, indices: Sequence[int] | Array) -> Array:
        """Decode frames, uint8 `[f h w 3]` RGB, in the order of `indices`.

        Raises:
            DataError: for an index outside the video, or where the bytes cannot be decoded.
        """
        wanted = [int(i) for i in indices]
        if not wanted:
            return np.empty((0, *self.shape[1:], 3), np.uint8)
        if min(wanted) < 0 or max(wanted) >= len(self):
            raise DataError(
                f"{self._name}: frame {min(wanted) if min(wanted) < 0 else max(wanted)} was asked for, "
                f"expected an index in [0, {len(self)}); check the window against the length of the video."
            )
        try:
            frames = self._decoder.frames(wanted)
        except Exception as error:
            raise _unreadable(self._name, error) from error
        if frames.shape != (len(wanted), *self.shape[1:], 3):
            raise DataError(
                f"{self._name}: expected frames {(len(wanted), *self.shape[1:], 3)}, got {frames.shape}; "
                "encode the video again."
            )
        return frames

    def close(self) -> None:
        """Release the file."""
        self._decoder.close()

    def __enter__(self) -> VideoReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def open_video(
    source: str | Path | bytes,
    backend: Backend = "auto",
    width: int | None = None,
    height: int | None = None,
) -> VideoReader:
    """Open a video file, or the bytes of one, for reading frames by index.

    Args:
        source: path, or the whole file as bytes (a tar member).
        backend: `auto` is PyAV; `torchcodec` and `decord` need their packages.
        width: resize to this width while decoding [px]; None keeps the width.
        height: resize to this height while decoding [px]; None keeps the height.

    Raises:
        ConfigError: for a backend that does not exist.
        DataError: for a file that is missing, empty, truncated or corrupt, with the reason.
        EnvironmentMissing: where the backend is not installed.
    """
    source = Path(source) if isinstance(source, str) else source
    name = str(source) if isinstance(source, Path) else f"video of {len(source)} bytes"
    if isinstance(source, Path) and not source.is_file():
        kind = "is a folder" if source.is_dir() else "no such file"
        raise DataError(f"{name}: {kind}, expected a video; check the path.")
    if isinstance(source, Path):
        refuse_lfs_pointer(source)
    if (source.stat().st_size if isinstance(source, Path) else len(source)) == 0:
        raise DataError(f"{name}: the file is empty, expected a video; copy or download it again.")
    decoders: dict[str, Callable[[Source, int | None, int | None], Decoder]] = {
        "auto": AvDecoder,
        "pyav": AvDecoder,
        "decord": DecordDecoder,
        "torchcodec": TorchcodecDecoder,
    }
    if backend not in decoders:
        raise ConfigError(f"video: expected a backend of {', '.join(decoders)}, got {backend!r}; name one of them.")
    try:
        return VideoReader(decoders[backend](source, width, height), name)
    except EnvironmentMissing:
        raise
    except Exception as error:
        raise _unreadable(name, error) from error


def video_codec(path: Path) -> str:
    """Name the codec of a video, as FFmpeg calls its decoder (`h264`, `libdav1d`).

    Raises:
        DataError: where the file cannot be opened or holds no video.
    """
    import av

    try:
        with av.open(str(path)) as container:
            stream = container.streams.best("video")
    except (OSError, av.FFmpegError) as error:
        raise _unreadable(str(path), error) from error
    if stream is None:
        raise DataError(f"{path}: holds no video stream, expected one; leave it out.")
    return str(stream.codec_context.name)


def _unreadable(name: str, failure: Exception) -> DataError:
    # decord and torchcodec wrap one line of reason in a C++ stack trace.
    reason = str(failure).strip().splitlines()[0] if str(failure).strip() else repr(failure)
    kind = "is truncated or corrupt" if not isinstance(failure, DataError) else "cannot be used"
    return DataError(f"{name}: the video {kind} ({reason[:200]}); copy it again or leave it out.")


def write_video(
    path: Path,
    frames: Array,
    fps: float,
    crf: int = 10,
    pixel_format: str = "yuv444p",
    key_frame_interval: int = 16,
) -> None:
    """Encode uint8 `[f h w 3]` as H.264 in MP4, as `transcode.encode_frames` does; the file appears only when whole.

    Args:
        path: target, `.mp4`.
        frames: RGB frames.
        fps: frames a second.
        crf: constant rate factor, 0 (lossless but for the color conversion) to 51.
        pixel_format: `yuv444p`, or `yuv420p` (even height and width), which browsers need.
        key_frame_interval: frames between key frames; smaller seeks faster and costs bytes.

    Raises:
        DataError: for frames of another shape or type, none at all, or an odd size with yuv420p.
    """
    frames = np.asarray(frames)
    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8 or len(frames) == 0:
        raise DataError(
            f"{path}: expected frames uint8 (f, h, w, 3) with f > 0, got {frames.dtype} {frames.shape}; "
            "convert them first."
        )
    data = encode_frames(frames, fps, crf=crf, pixel_format=pixel_format, key_frame_interval=key_frame_interval)
    write_bytes(path, data)
