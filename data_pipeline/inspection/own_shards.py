"""Read our own video and token shards through their indexes, checking every checksum and offset; damage is named."""

from __future__ import annotations

import json
import tarfile
import zlib
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...contracts import Array
from ...errors import DataError
from ..curation.filters import VideoFacts
from ..embodiments import kept_embodiment
from ..files import load_array, read_json
from ..readers.record import Record, Video, VideoBytes
from ..store.columns import open_columns
from ..store.shards import FORMAT, index_path, read_index


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredCodes:
    """The codes of one camera of an episode, `[f n]`; fps: frames a second; grid: rows and columns of an image."""

    codes: Array
    fps: float
    grid: tuple[int, int]

    def facts(self) -> VideoFacts:
        """Describe them as a video of `grid` whose motion is the share of codes that change."""
        changed = float((self.codes[1:] != self.codes[:-1]).mean()) if len(self.codes) > 1 else 0.0
        height, width = self.grid
        return VideoFacts(
            frames=len(self.codes), fps=self.fps, height=height, width=width, backend="codes", motion=255.0 * changed
        )

    def encode(self, short_side: int | None = None) -> VideoBytes:
        """Refuse: codes become images only through their tokenizer.

        Raises:
            DataError: always.
        """
        raise DataError("codes: expected images, got codes of a tokenizer; read the video shards they came from.")


def find_own_shards(path: Path) -> list[Path]:
    """List the tars of a folder that `gr2` wrote, finished or not (or one such tar); empty for any other folder."""
    if path.is_file():
        return [path] if path.suffix == ".tar" and index_path(path).is_file() else []
    tars = sorted(path.glob("shard-*.tar"))
    indexes = {index_path(tar) for tar in tars} | set(path.glob("shard-*.index.json"))
    manifest = path / "manifest.json"
    if not (any(index.is_file() for index in indexes) or (tars and manifest.is_file())):
        return []
    return sorted(index.with_name(index.name.removesuffix(".index.json") + ".tar") for index in indexes)


class CheckedShards:
    """Samples of our own shards in order; a damaged one is a record that states which shard and which member.

    kind: `video_shards` (curated and captioned ones too) or `token_shards`.
    version: of the format; manifest: of the folder, empty where there is none.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.shards = find_own_shards(path)
        folder = path if path.is_dir() else path.parent
        try:
            content = read_json(folder / "manifest.json") if (folder / "manifest.json").is_file() else {}
        except DataError:
            content = {}
        self.manifest: Mapping[str, Any] = content if isinstance(content, dict) else {}
        self.version = FORMAT
        tokens = self.manifest.get("stage") == "token_shards" or (not self.manifest and self._holds_codes())
        self.kind = "token_shards" if tokens else "video_shards"

    def _holds_codes(self) -> bool:
        try:
            samples = read_index(self.shards[0])["samples"]
        except DataError:
            return False
        return bool(samples) and any(suffix.startswith("codes.") for suffix in samples[0]["members"])

    def __iter__(self) -> Iterator[Record]:
        return (self._record(*place) for place in self._places())

    def at(self, numbers: Collection[int]) -> Iterator[Record]:
        """Read some of the records, by their number."""
        return (self._record(*place) for number, place in enumerate(self._places()) if number in numbers)

    def _places(self) -> Iterator[tuple[Path, Mapping[str, Any], str]]:
        """Yield shard, entry of the index, and why the shard cannot be read at all."""
        for shard in self.shards:
            try:
                samples = _read_index_alone(shard)["samples"]
                shard.stat()
            except (DataError, OSError) as error:
                yield shard, {"key": shard.stem}, f"{shard.name}: {error}"
                continue
            yield from ((shard, sample, "") for sample in samples)

    def _record(self, shard: Path, sample: Mapping[str, Any], problem: str) -> Record:
        key = str(sample["key"])
        where = f"{shard.name}: {key}"
        if problem:
            return Record(key=key, videos={}, source=shard.name, problem=problem)
        members, damaged = _read_members(shard, sample)
        if damaged:
            return Record(key=key, videos={}, source=where, problem=f"{where}: damaged: {damaged}")
        try:
            description = json.loads(members["json"])
            steps = {n: load_array(members[f"{n}.npy"]) for n in ("states", "actions") if f"{n}.npy" in members}
            read = self._codes if self.kind == "token_shards" else _videos
            videos = read(description, members)
            embodiment = kept_embodiment(description, list(videos), steps.get("states"), steps.get("actions"))
        except (KeyError, TypeError, ValueError, DataError) as error:
            return Record(key=key, videos={}, source=where, problem=f"{where}: another layout inside ({error!r})")
        return Record(
            key=key,
            videos=videos,
            caption=str(description.get("caption") or ""),
            states=steps.get("states"),
            actions=steps.get("actions"),
            control_hz=description.get("control_hz") if steps else None,
            embodiment=embodiment,
            frame_stride=int(description.get("frame_stride") or 1),
            source=where,
            facts=description.get("facts") or {},
        )

    def _codes(self, description: Mapping[str, Any], members: Mapping[str, bytes]) -> dict[str, Video]:
        facts = self.manifest.get("tokenizer") or {}
        size = int(facts.get("codebook_size") or 0)
        videos: dict[str, Video] = {}
        for camera in description["cameras"]:
            codes = load_array(members[f"codes.{camera}.npy"])
            tokens = codes.shape[1] if codes.ndim == 2 else 0
            rows, columns = facts.get("grid") or (tokens, 1)
            if codes.dtype.kind != "u" or codes.shape != (description["num_frames"], rows * columns):
                raise DataError(
                    f"codes of {camera}: expected whole numbers ({description['num_frames']}, {rows * columns}), got "
                    f"{codes.dtype} {codes.shape}"
                )
            if size and codes.size and int(codes.max()) >= size:
                raise DataError(f"codes of {camera}: expected less than {size}, got {int(codes.max())}")
            videos[camera] = StoredCodes(codes=codes, fps=float(description["fps"]), grid=(int(rows), int(columns)))
        return videos

    def problems(self) -> list[tuple[str, str]]:
        """Return what is wrong with the folder and with whole shards: (name, reason)."""
        found = []
        if self.path.is_dir():
            found += list(self._manifest_problems())
        for shard in self.shards:
            found += [(shard.name, reason) for reason in _shard_problems(shard)]
        return found

    def _manifest_problems(self) -> Iterator[tuple[str, str]]:
        if not self.manifest:
            yield "manifest.json", "missing or no JSON: no stage will read this folder"
            return
        if self.manifest.get("status") != "complete":
            yield "manifest.json", f"the stage {self.manifest.get('stage')!r} is not finished"
        names = {shard.name for shard in self.shards}
        for name in self.manifest.get("shards") or []:
            if name not in names:
                yield str(name), "the manifest names it, but neither the tar nor its index is there"
        columns = self.manifest.get("columns") or []
        try:
            open_columns(self.path, [str(name) for name in columns])
        except DataError as error:
            yield "columns", str(error)


def _read_index_alone(shard: Path) -> Mapping[str, Any]:
    """Read an index whatever size the tar has: the samples before a cut are good."""
    index = read_json(index_path(shard))
    if not isinstance(index, dict) or index.get("format") != FORMAT or not isinstance(index.get("samples"), list):
        raise DataError(f"its index is none of {FORMAT!r}")
    return index


def _read_members(shard: Path, sample: Mapping[str, Any]) -> tuple[dict[str, bytes], str]:
    """Read the members of a sample; return which of them are damaged, empty where none is."""
    members, damaged = {}, []
    with shard.open("rb") as file:
        for suffix, (offset, size, crc) in sample["members"].items():
            file.seek(offset)
            data = file.read(size)
            members[suffix] = data
            if len(data) != size:
                damaged.append(f"{suffix} is cut off ({len(data)} of {size} bytes)")
            elif zlib.crc32(data) != crc:
                damaged.append(f"{suffix} has another checksum")
    return members, ", ".join(damaged)


def _shard_problems(shard: Path) -> Iterator[str]:
    """Compare a tar with its index: sizes, and where each member lies."""
    try:
        index, size = _read_index_alone(shard), shard.stat().st_size
    except (DataError, OSError):  # its one record is the report
        return
    if size != index.get("bytes"):
        yield f"expected {index.get('bytes')} bytes, got {size}"
    wanted = {
        f"{sample['key']}.{suffix}": tuple(place[:2])
        for sample in index["samples"]
        for suffix, place in sample["members"].items()
    }
    try:
        with tarfile.open(shard, "r:") as tar:
            found = {info.name: (info.offset_data, info.size) for info in tar}
    except (tarfile.TarError, OSError, EOFError) as error:
        yield f"its headers cannot be read as a tar ({error})"
        return
    wrong = sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name))
    if wrong:
        named = ", ".join(wrong[:3])
        yield f"the index and the tar disagree on where {len(wrong)} members lie ({named})"


def _videos(description: Mapping[str, Any], members: Mapping[str, bytes]) -> dict[str, Video]:
    names = {camera: str(video["member"]) for camera, video in description["videos"].items()}
    return {camera: VideoBytes(data=members[name], suffix=Path(name).suffix) for camera, name in names.items()}


def count_windows(shards: CheckedShards) -> int:
    """Count the windows that the indexes of video shards name, of those that can be read."""
    count = 0
    for shard in shards.shards:
        try:
            count += sum(
                len(sample.get("row", {}).get("windows", [])) for sample in _read_index_alone(shard)["samples"]
            )
        except DataError:  # the shard is a problem of its own
            continue
    return count
