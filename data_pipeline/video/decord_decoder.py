"""An optional decoder: decord, refused where it is known to give other frames than asked for.

decord gives no times of what it decodes, so nothing can be proved afterwards. Broken bytes can end the process.
"""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from ...contracts import Array
from ...errors import DataError, EnvironmentMissing
from .index import Source, VideoIndex, index_video, open_container, video_stream


def load_decord() -> ModuleType:
    """Import decord with its C++ log silenced and its endless retries at a broken end bounded.

    Raises:
        EnvironmentMissing: where decord is not installed (no wheel on this platform).
    """
    os.environ.setdefault("DECORD_EOF_RETRY_MAX", "512")
    try:
        import decord
    except (ImportError, OSError) as error:
        raise EnvironmentMissing(
            f"decord cannot be imported ({error}); install it with `pip install decord` (x86-64 only), "
            "or use backend='pyav'."
        ) from error
    decord.logging.set_level(decord.logging.QUIET)
    return decord


class DecordDecoder:
    """Decode with decord, one thread, without its (thread-local) bridges."""

    name = "decord"

    def __init__(self, source: Source, width: int | None, height: int | None) -> None:
        decord = load_decord()
        self.index = _index_for_decord(source)
        opened = str(source) if isinstance(source, Path) else io.BytesIO(source)
        self._reader: Any = decord.VideoReader(opened, num_threads=1, width=width or -1, height=height or -1)
        found, keys = len(self._reader), [key.frame for key in self.index.keys]
        if found != self.index.num_frames or list(self._reader.get_key_indices()) != keys:
            raise DataError(f"decord finds {found} frames where the packets hold {self.index.num_frames}.")
        self._size: tuple[int, int] | None = None

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the frames given [px]; decodes one where none was read yet."""
        if self._size is None:
            self.frames([0])
        assert self._size is not None
        return self._size

    def frames(self, indices: Sequence[int]) -> Array:
        """Decode uint8 `[f h w 3]` in the order of `indices`."""
        decoded: Array = self._reader.get_batch(list(indices)).asnumpy()
        self._size = self._size or (decoded.shape[1], decoded.shape[2])
        return decoded

    def close(self) -> None:
        """Release the file."""
        self._reader = None


def _index_for_decord(source: Source) -> VideoIndex:
    with open_container(source) as container:
        stream = video_stream(container)
        index = index_video(source, container, stream)
        reason = _why_decord_errs(index)
        if not reason and index.codec == "h264" and len(index.keys) > 1:
            reason = _why_keys_err(container, stream)
    if reason:
        raise DataError(f"decord gives other frames than asked for: {reason}; expected backend='auto'.")
    return index


def _why_decord_errs(index: VideoIndex) -> str:
    """Return what makes decord 0.6 give wrong frames without an error; empty where nothing is known to.

    Source: measured, frame by frame, against decoding from the start.
    """
    if not {"mov", "matroska"} & set(index.container.split(",")):
        return f"it seeks inexactly in the container {index.container}"
    if index.video_streams > 1:
        return f"the file holds {index.video_streams} video streams and it is unknown which to read"
    if index.stamps is None:
        return "the packets carry no time stamps"
    if index.hidden:
        return f"it shows {index.hidden} frames that the edit list hides"
    if any(key.number != key.frame for key in index.keys):
        return "key frames are not shown in the order of decoding"
    # FFmpeg searches MP4 by decoding time; where an edit list makes the first one negative, it allows for the delay.
    delay = max(index.stamps[0] - index.keys[0].dts, 0) if index.keys[0].dts < 0 else 0
    pairs = zip(index.keys, index.keys[1:], strict=False)
    if "mov" in index.container and any(later.dts + delay <= earlier.pts for earlier, later in pairs):
        return "key frames follow each other too closely for its seeking"
    return ""


def _why_keys_err(container: Any, stream: Any) -> str:
    """Find H.264 key frames that are no full restart (gradual refresh), after which FFmpeg holds frames back."""
    header = bytes(stream.codec_context.extradata or b"")
    length = (header[4] & 3) + 1 if header[:1] == b"\x01" and len(header) > 4 else 0
    container.seek(0)
    for packet in container.demux(stream):
        if packet.is_keyframe and packet.size and 5 not in _nal_types(bytes(packet), length):
            return "it holds key frames from which the image is refreshed bit by bit"
    return ""


def _nal_types(packet: bytes, length: int) -> set[int]:
    """Read the types of the units of an H.264 packet; `length` is the size of their length field, 0 for start codes."""
    types, at = set(), 0
    if not length:
        return {part[0] & 31 for part in packet.split(b"\x00\x00\x01")[1:] if part}
    while at + length < len(packet):
        types.add(packet[at + length] & 31)
        at += length + int.from_bytes(packet[at : at + length], "big")
    return types
