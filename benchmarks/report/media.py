"""Videos inside the page: small mp4 files, enlarged with square pixels, as H.264 that every browser plays."""

from __future__ import annotations

import base64
import io
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ...errors import DataError

TARGET_WIDTH = 256
"""Small videos are enlarged by a whole factor to about this width [pixels]."""


def embed_video(path: Path) -> str:
    """Encode a video file as a `data:` address (H.264, yuv420p), enlarged to about `TARGET_WIDTH`.

    Raises:
        DataError: The file is missing, is no video or holds no frame.
    """
    frames, rate = _read_frames(path)
    factor = max(1, round(TARGET_WIDTH / frames[0].shape[1]))
    content = encode_mp4([frame.repeat(factor, axis=0).repeat(factor, axis=1) for frame in frames], rate)
    return "data:video/mp4;base64," + base64.b64encode(content).decode("ascii")


def encode_mp4(frames: list[npt.NDArray[np.uint8]], rate: Fraction) -> bytes:
    """Encode frames `[h w 3]` at `rate` a second as an mp4 file in memory, cut to even height and width."""
    import av

    height, width = (size - size % 2 for size in frames[0].shape[:2])
    buffer = io.BytesIO()
    with av.open(buffer, mode="w", format="mp4") as container:
        stream: Any = container.add_stream("libx264", rate=rate)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.options = {"crf": "20", "preset": "veryfast", "threads": "1"}
        for frame in frames:
            image = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame[:height, :width]), format="rgb24")
            container.mux(stream.encode(image))
        container.mux(stream.encode())
    return buffer.getvalue()


def _read_frames(path: Path) -> tuple[list[npt.NDArray[np.uint8]], Fraction]:
    import av

    try:
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            rate = Fraction(stream.average_rate or 10)
            frames = [np.asarray(frame.to_ndarray(format="rgb24"), np.uint8) for frame in container.decode(stream)]
    except (av.error.FFmpegError, OSError, IndexError) as error:
        raise DataError(f"Video {path.name}: expected an mp4 file, got {error}; record it again.") from error
    if not frames:
        raise DataError(f"Video {path.name}: expected at least one frame, got none; record it again.")
    return frames, rate
