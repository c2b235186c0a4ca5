"""Images of single clips for the data report: a strip of frames from a shard, or why there is none."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ...contracts import Array
from ...errors import DataError
from ..locations import as_location, is_url
from ..store.shards import read_index
from ..video.reader import open_video
from .caption import jpeg_bytes

_STRIP_FRAMES = 4
_FRAME_HEIGHT = 112
_FRAME_WIDTH = 200
"""Greatest size of a frame on the page [px]."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleClip:
    """A clip shown on the page.

    detail: the metric that dropped it; span: its frames in the video, in words; strip: JPEG of frames side by
        side; missing: why there is none.
    """

    key: str
    source: str
    caption: str
    detail: str = ""
    span: str = ""
    strip: bytes = b""
    missing: str = ""


def source_file(source: str, name: str) -> Path | None:
    """Find the file of a record in the dataset, where it is one and the dataset is still there."""
    if is_url(source) or not name or Path(name).is_absolute() or ".." in Path(name).parts:
        return None
    root = Path(as_location(source))
    file = root if root.is_file() else root / name
    return file if file.is_file() else None


def show_clip(shard: Path, entry: Mapping[str, Any]) -> SampleClip:
    """Take the images of a clip from the shard that holds its video."""
    try:
        sample = next((one for one in read_index(shard)["samples"] if one["key"] == entry["key"]), None)
        if sample is None:
            return described(entry, missing=f"not in {shard.name} any more")
        description = json.loads(read_member(shard, sample, "json"))
        video = read_member(shard, sample, next(iter(description["videos"].values()))["member"])
    except (DataError, OSError) as error:
        return described(entry, missing=str(error))
    caption = entry.get("caption") or description["caption"]
    return show_video(video, {**entry, "caption": caption}, int(entry.get("start", 0)), entry.get("stop"))


def show_video(video: Path | bytes, entry: Mapping[str, Any], start: int, stop: int | None) -> SampleClip:
    """Take the images of frames `[start, stop)` of a video; None for the end of it."""
    try:
        with open_video(video) as reader:
            last = (stop if stop is not None else len(reader)) - 1
            frames = reader.get_batch(np.linspace(start, last, _STRIP_FRAMES).round().astype(int))
    except DataError as error:
        return described(entry, missing=str(error))
    return described(entry, strip=strip_of(frames))


def described(entry: Mapping[str, Any], strip: bytes = b"", missing: str = "") -> SampleClip:
    """Describe a clip by what is known of it: its entry in a list of what was dropped, or its window."""
    words = {name: str(entry.get(name) or "") for name in ("key", "source", "caption", "detail")}
    span = f" frames {entry['start']} to {entry['stop'] - 1}" if "stop" in entry else ""
    return SampleClip(strip=strip, missing=missing, span=span, **words)


def strip_of(frames: Array) -> bytes:
    """Lay frames uint8 `[f h w 3]` side by side, small, in one JPEG file."""
    height, width = frames.shape[1:3]
    scale = min(_FRAME_HEIGHT / height, _FRAME_WIDTH / width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    sheet = Image.new("RGB", ((size[0] + 2) * len(frames) - 2, size[1]), (128, 128, 128))
    for number, frame in enumerate(frames):
        sheet.paste(Image.fromarray(frame).resize(size, Image.Resampling.BOX), ((size[0] + 2) * number, 0))
    return jpeg_bytes(sheet, quality=72)


def read_member(shard: Path, sample: Mapping[str, Any], suffix: str) -> bytes:
    """Read one member of a sample, without the others.

    Raises:
        DataError: the sample has no such member, or it is damaged.
    """
    if suffix not in sample["members"]:
        raise DataError(f"{shard}: {sample['key']}: expected a member {suffix!r}, got none; write the shard again.")
    offset, size, crc = sample["members"][suffix]
    with shard.open("rb") as file:
        file.seek(offset)
        data = file.read(size)
    if zlib.crc32(data) != crc:
        raise DataError(f"{shard}: {sample['key']}.{suffix}: the checksum is wrong; copy or write the shard again.")
    return data
