"""Read webdataset tars, local or by URL, of whoever wrote them (img2dataset, video2dataset, or gr2 itself).

A sample is what shares a name up to its first dot. Its videos are the members with a video's suffix: `clip.mp4` is the
one camera, `clip.gripper.mp4` the camera `gripper`. The caption stands in `clip.txt`, or in `clip.json` under one of
the names that a table of captions may use.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ...errors import DataError
from ..embodiments import kept_embodiment
from ..files import load_array, sample_key
from ..locations import Location, file_name, is_url, local_copy
from ..store.shards import list_shards
from ..video.reader import is_video
from .folder import CAPTION_COLUMNS
from .record import Record, VideoBytes


def find_tars(location: Location) -> list[Location]:
    """List the tars at a location: a folder of them, one tar, a pattern, or a URL; empty where it is something else."""
    text = str(location)
    if is_url(location) or "{" in text or text.endswith(".tar"):
        return list_shards(location)
    return [*sorted(Path(location).glob("*.tar"))] if Path(location).is_dir() else []


class WebdatasetSource:
    """Samples of webdataset tars, in order; a broken tar ends with a record that gives the reason.

    camera: name given to the camera of samples with one video without a name.

    Raises:
        DataError: a tar is not there.
    """

    kind = "webdataset"

    def __init__(self, path: Location, camera: str = "static") -> None:
        self.path = Path(str(path))
        self.camera = camera
        self._tars = find_tars(path)
        gone = next((tar for tar in self._tars if not is_url(tar) and not Path(tar).is_file()), None)
        if gone is not None or not self._tars:
            raise DataError(f"{gone or path}: no such file, expected webdataset tars; check the path or the pattern.")

    def __iter__(self) -> Iterator[Record]:
        import webdataset

        for tar in self._tars:
            name = file_name(tar)
            try:
                with local_copy(tar) as path:
                    for sample in webdataset.WebDataset([str(path)], shardshuffle=False, empty_check=False):
                        yield self._record(name, sample)
            except Exception as error:
                # webdataset and tarfile raise what the tar's damage makes them trip over
                yield Record(
                    key=sample_key(name), videos={}, source=str(tar), problem=f"{tar}: cannot be read ({error})"
                )

    def _record(self, tar: str, sample: Mapping[str, Any]) -> Record:
        where = f"{tar}: {sample['__key__']}"
        key = sample_key(f"{tar}/{sample['__key__']}")
        try:
            described = json.loads(sample["json"]) if "json" in sample else {}
            described = described if isinstance(described, dict) else {}
            steps = {n: load_array(sample[f"{n}.npy"]) for n in ("states", "actions") if f"{n}.npy" in sample}
        except (ValueError, DataError) as error:
            return Record(key=key, videos={}, source=where, problem=f"{where}: cannot be read ({error})")
        both = len(steps) == 2 and described.get("control_hz")
        videos = self._videos(sample)
        try:
            kept = kept_embodiment(described, list(videos), steps["states"], steps["actions"]) if both else None
        except DataError as error:
            return Record(key=key, videos={}, source=where, problem=f"{where}: {error}")
        return Record(
            key=key,
            videos=videos,
            caption=_caption(sample, described),
            states=steps["states"] if both else None,
            actions=steps["actions"] if both else None,
            control_hz=float(described["control_hz"]) if both else None,
            embodiment=kept,
            frame_stride=int(described.get("frame_stride") or 1),
            source=where,
            facts=described.get("facts") or {},
        )

    def _videos(self, sample: Mapping[str, Any]) -> dict[str, VideoBytes]:
        names = [name for name in sample if is_video(f"x.{name}") and isinstance(sample[name], bytes)]
        videos = {}
        for name in names:
            camera, _, suffix = name.rpartition(".")
            videos[camera or self.camera] = VideoBytes(data=sample[name], suffix=f".{suffix}")
        return videos


def _caption(sample: Mapping[str, Any], described: Mapping[str, Any]) -> str:
    if "txt" in sample:
        return bytes(sample["txt"]).decode("utf-8", "replace").strip()
    found = (described[column] for column in CAPTION_COLUMNS if isinstance(described.get(column), str))
    return next(found, "").strip()
