"""An optional third decoder: torchcodec, which needs FFmpeg's shared libraries on the machine."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from ...contracts import Array
from ...errors import DataError, EnvironmentMissing
from .index import Source, index_video, open_container, video_stream


def load_torchcodec() -> ModuleType:
    """Import torchcodec, and torch with it.

    Raises:
        EnvironmentMissing: where it is not installed, or finds no FFmpeg.
    """
    try:
        import torchcodec.decoders
        import torchcodec.transforms
    except (ImportError, OSError, RuntimeError) as error:
        reason = (str(error).strip().splitlines() or [repr(error)])[0]
        raise EnvironmentMissing(
            f"torchcodec cannot be imported ({reason[:200]}); install it with `pip install torchcodec` and FFmpeg's "
            "shared libraries (Debian: `apt-get install ffmpeg`), or use backend='auto'."
        ) from error
    module: ModuleType = torchcodec
    return module


class TorchcodecDecoder:
    """Decode with torchcodec on the processor, one thread; each frame is proved by its time stamp."""

    name = "torchcodec"

    def __init__(self, source: Source, width: int | None, height: int | None) -> None:
        torchcodec = load_torchcodec()
        with open_container(source) as container:
            stream = video_stream(container)
            self.index = index_video(source, container, stream)
        if self.index.stamps is None:
            raise DataError("the packets carry no time stamps, by which torchcodec finds frames; use backend='auto'.")
        self._begin = self.index.stamps[0] * self.index.tick
        opened = str(source) if isinstance(source, Path) else source
        self._reader = self._open(torchcodec, opened, None)
        if len(self._reader) != self.index.num_frames:
            raise DataError(f"torchcodec finds {len(self._reader)} frames, the packets hold {self.index.num_frames}.")
        stored = self._reader.metadata
        self.size = (height or stored.height, width or stored.width)
        if self.size != (stored.height, stored.width):
            self._reader = self._open(torchcodec, opened, self.size)

    def _open(self, torchcodec: ModuleType, opened: str | bytes, size: tuple[int, int] | None) -> Any:
        return torchcodec.decoders.VideoDecoder(
            opened,
            stream_index=self.index.stream,
            dimension_order="NHWC",
            num_ffmpeg_threads=1,
            device="cpu",
            seek_mode="exact",
            transforms=None if size is None else [torchcodec.transforms.Resize(size)],
        )

    def frames(self, indices: Sequence[int]) -> Array:
        """Decode uint8 `[f h w 3]` in the order of `indices`."""
        batch = self._reader.get_frames_at(list(indices))
        late = np.abs(batch.pts_seconds.numpy() - self._begin - self.index.times[list(indices)])
        if float(late.max()) > max(0.6 * self.index.tick, 1e-6):
            wrong = int(np.argmax(late))
            raise DataError(
                f"torchcodec gave a frame {late[wrong]:.3f} s away from frame {indices[wrong]}; use backend='auto'."
            )
        pixels: Array = batch.data.numpy()
        return pixels

    def close(self) -> None:
        """Release the file."""
        self._reader = None
