"""Read webdataset tars, local or by URL, of whoever wrote them (img2dataset, video2dataset, or gr2 itself).

A sample is what shares a name up to its first dot. Its videos are the members with a video's suffix: `clip.mp4` is the
one camera, `clip.gripper.mp4` the camera `gripper`. The caption stands in `clip.txt`, or in `clip.json` under one of
the names that a table of captions may use. Where what follows the first dot is no name (`take 1.5.mp4`), and no member
has the name without it, the name goes on to the last dot.
"""

from __future__ import annotations

import json
import re
import tarfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ...errors import DataError, refuse_lfs_pointer
from ..embodiments import kept_embodiment
from ..files import load_array, sample_key
from ..locations import Location, file_name, is_url, local_copy
from ..store.shards import list_shards
from ..video.reader import is_video
from .caption_tables import CAPTION_COLUMNS
from .record import Record, VideoBytes


def find_tars(location: Location) -> list[Location]:
    """List the tars at a location: a folder of them, one tar, a pattern, or a URL; empty where it is something else."""
    text = str(location)
    if text.endswith((".tar.gz", ".tgz")):
        return [location]
    if is_url(location) or "{" in text or text.endswith(".tar"):
        return list_shards(location)
    folder = Path(location)
    return [*sorted(file for p in ("*.tar", "*.tar.gz", "*.tgz") for file in folder.glob(p))] if folder.is_dir() else []


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
        for tar in self._tars:
            name = file_name(tar)
            try:
                with local_copy(tar) as path:
                    refuse_lfs_pointer(path)
                    for sample, fault in read_tar(path):
                        yield self._record(name, sample, fault)
            except (tarfile.TarError, OSError, EOFError, zlib.error, DataError) as error:
                yield Record(
                    key=sample_key(name), videos={}, source=str(tar), problem=f"{tar}: cannot be read ({error})"
                )

    def _record(self, tar: str, sample: Mapping[str, Any], fault: str) -> Record:
        where = f"{tar}: {sample['__key__']}"
        key = sample_key(f"{tar}/{sample['__key__']}{fault and ' again'}")
        if fault:
            return Record(key=key, videos={}, source=where, problem=f"{where}: {fault}")
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


def read_tar(path: Path) -> Iterator[tuple[dict[str, Any], str]]:
    """Yield the samples of a tar in order: members by what follows the name, with the name as `__key__`.

    Beside each stands what is wrong with it, nothing as a rule: a member twice, or members that are not together.

    Raises:
        TarError, EOFError, zlib.error: the tar is broken, from there on.
    """
    with tarfile.open(path) as tar:
        names = _sample_names([member.name for member in tar if _is_member(member)])
    sample: dict[str, Any] = {}
    fault, done = "", set[str]()
    with tarfile.open(path, "r|*") as tar:
        for member in tar:
            if not _is_member(member):
                continue
            key, part = names[member.name]
            if sample and sample["__key__"] != key:
                done.add(sample["__key__"])
                yield sample, fault
                sample, fault = {}, ""
            if not sample:
                sample = {"__key__": key}
                fault = "its members are not next to each other; sort the tar by name" if key in done else ""
            if part in sample:
                fault = f"the member .{part} is there twice; write the tar again, each name once"
            file = tar.extractfile(member)
            sample[part] = b"" if file is None else file.read()
    if sample:
        yield sample, fault


def _is_member(member: tarfile.TarInfo) -> bool:
    return member.isfile() and "." in Path(member.name).name.lstrip(".") and not Path(member.name).name.startswith(".")


def _sample_names(members: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Return the sample's name and the part (`gripper.mp4`) of each member."""
    first = {name: _split(name, first=True) for name in members}
    plain = {key for key, part in first.values() if "." not in part}
    odd = {key for key, part in first.values() if not re.fullmatch(r"([A-Za-z_][\w-]*\.)*\w+", part)}
    return {name: _split(name, first=key in plain or key not in odd) for name, (key, _) in first.items()}


def _split(name: str, *, first: bool) -> tuple[str, str]:
    folder, slash, file = name.rpartition("/")
    stem, _, part = file.partition(".") if first else file.rpartition(".")
    return f"{folder}{slash}{stem}", part.lower()


def _caption(sample: Mapping[str, Any], described: Mapping[str, Any]) -> str:
    if "txt" in sample:
        return bytes(sample["txt"]).decode("utf-8", "replace").strip()
    found = (described[column] for column in CAPTION_COLUMNS if isinstance(described.get(column), str))
    return next(found, "").strip()
