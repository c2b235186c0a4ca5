"""Read and write video files: one reader for every container, one writer that keeps small coloured things.

Reading starts with decord; a file it cannot open or decode (AV1, GIF) goes to PyAV, file by file. AVI goes to
PyAV at once: decord gives a wrong last frame, without an error, for some of them when it has to seek.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Literal

import numpy as np

from ..gr_model.contracts import Array
from ..gr_model.errors import DataError, EnvironmentMissing, Gr2Error
from .decoders import AvDecoder, Decoder, DecordDecoder, Source
from .files import write_bytes
from .transcode import encode_frames

VIDEO_SUFFIXES = frozenset({".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".gif", ".mpg", ".mpeg", ".ts"})

Backend = Literal["auto", "decord", "pyav"]


def is_video(path: Path | str) -> bool:
    """Tell from the suffix whether a file is a video (animated GIF included)."""
    return Path(path).suffix.lower() in VIDEO_SUFFIXES


class VideoReader:
    """Frames of one video by index; made by `open_video`, used in the process that opened it.

    fps: frames a second.
    shape: (frames, height, width) [px], rotation applied.
    backend: the decoder in use.
    """

    def __init__(self, decoder: Decoder, name: str, fallback: Callable[[], Decoder] | None) -> None:
        self._decoder = decoder
        self._name = name
        self._fallback = fallback
        self.fps = decoder.fps
        self.shape = (decoder.num_frames, decoder.height, decoder.width)

    @property
    def backend(self) -> str:
        """Name the decoder in use: `decord` or `pyav`."""
        return self._decoder.name

    def __len__(self) -> int:
        return self.shape[0]

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
            return self._decoder.frames(wanted)
        except Exception as error:
            if self._fallback is None:
                raise _unreadable(self._name, [error]) from error
            self._switch(error)
            return self.get_batch(wanted)

    def _switch(self, first: Exception) -> None:
        assert self._fallback is not None
        make, self._fallback = self._fallback, None
        try:
            decoder = make()
        except Exception as error:
            raise _unreadable(self._name, [first, error]) from error
        self._decoder.close()
        self._decoder = decoder
        if (decoder.num_frames, decoder.height, decoder.width) != self.shape:
            raise DataError(
                f"{self._name}: decord and PyAV disagree about the video, expected (frames, height, width) "
                f"{self.shape}, got {(decoder.num_frames, decoder.height, decoder.width)}; re-encode "
                "the file."
            )

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
    source: Path | bytes,
    backend: Backend = "auto",
    width: int | None = None,
    height: int | None = None,
) -> VideoReader:
    """Open a video file, or the bytes of one, for reading frames by index.

    Args:
        source: path, or the whole file as bytes (a tar member).
        backend: `auto` tries decord, then PyAV.
        width: resize to this width while decoding [px]; None keeps the width.
        height: resize to this height while decoding [px]; None keeps the height.

    Raises:
        DataError: for a file that is missing, empty, truncated or corrupt, with the reason.
    """
    name = str(source) if isinstance(source, Path) else f"video of {len(source)} bytes"
    if isinstance(source, Path) and not source.is_file():
        raise DataError(f"{name}: no such file, expected a video; check the path.")
    if (source.stat().st_size if isinstance(source, Path) else len(source)) == 0:
        raise DataError(f"{name}: the file is empty, expected a video; copy or download it again.")

    def make_av() -> Decoder:
        return AvDecoder(source, width, height)

    def make_decord() -> Decoder:
        return DecordDecoder(source, width, height)

    automatic = [make_av] if _is_avi(source) else [make_decord, make_av]
    makers = {"auto": automatic, "decord": [make_decord], "pyav": [make_av]}[backend]
    failures: list[Exception] = []
    for i, make in enumerate(makers):
        try:
            return VideoReader(make(), name, makers[i + 1] if i + 1 < len(makers) else None)
        except Exception as error:
            failures.append(error)
    missing = next((e for e in failures if isinstance(e, EnvironmentMissing)), None)
    if missing is not None and len(makers) == 1:
        raise missing
    raise _unreadable(name, failures) from failures[-1]


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
        raise _unreadable(str(path), [error]) from error
    if stream is None:
        raise DataError(f"{path}: holds no video stream, expected one; leave it out.")
    return str(stream.codec_context.name)


def _is_avi(source: Source) -> bool:
    if isinstance(source, bytes):
        return source[:4] == b"RIFF"
    with source.open("rb") as file:
        return file.read(4) == b"RIFF"


def _unreadable(name: str, failures: Sequence[Exception]) -> Gr2Error:
    # decord wraps one line of reason in a C++ stack trace; the last failure is PyAV's, which reads better.
    reason = str(failures[-1]).strip().splitlines()[0] if str(failures[-1]).strip() else repr(failures[-1])
    kind = "is truncated or corrupt" if not isinstance(failures[-1], DataError) else "cannot be used"
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
        crf: constant rate factor, 0 (lossless but for the colour conversion) to 51.
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
