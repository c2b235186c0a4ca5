"""Shards: plain webdataset tars with an index of byte offsets beside each.

    shard-000042.tar            members {key}.{suffix}, all members of a sample next to each other
    shard-000042.dropped.jsonl  what was not written, with the reason, where there was any
    shard-000042.index.json     samples, member offsets and sizes [bytes], CRC-32; a note of the writer

A tar and then its index appear under their names only when whole, so a shard is finished exactly when its
index exists. The same samples give the same bytes.
"""

from __future__ import annotations

import io
import json
import os
import re
import tarfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from ...errors import DataError
from ..files import read_json, write_bytes, write_json
from ..locations import Location, file_name, is_url, joined, local_copy, read_location, sibling

FORMAT = "gr2-shard-2"


def shard_path(out: Path, number: int) -> Path:
    """Name the shard of a number."""
    return out / f"shard-{number:06d}.tar"


def index_path(shard: Path) -> Path:
    """Name the index of a shard."""
    return shard.with_suffix(".index.json")


def dropped_path(shard: Path) -> Path:
    """Name the list of what was dropped while a shard was written."""
    return shard.with_suffix(".dropped.jsonl")


class ShardWriter:
    """Write samples into numbered shards, starting a new one when the size limit is passed.

    Used as a context manager; leaving it by an error removes the unfinished shard.

    Args:
        out: folder of the shards.
        max_bytes: a shard that has reached this size takes no further sample.
        first_number: number of the first shard.
    """

    def __init__(self, out: Path, max_bytes: int, first_number: int = 0) -> None:
        self.out = out
        self.max_bytes = max_bytes
        self.number = first_number
        self._tar: tarfile.TarFile | None = None
        self._samples: list[dict[str, Any]] = []
        self._dropped: list[Mapping[str, Any]] = []
        out.mkdir(parents=True, exist_ok=True)

    @property
    def is_full(self) -> bool:
        """Return whether the open shard has reached its size limit."""
        return self._tar is not None and self._tar.offset >= self.max_bytes

    @property
    def _temporary(self) -> Path:
        final = shard_path(self.out, self.number)
        return final.with_name(f".{final.name}.tmp")

    def write(self, key: str, members: Mapping[str, bytes], row: Mapping[str, Any] | None = None) -> None:
        """Add one sample to the open shard; the caller ends a full shard with `finish_shard`.

        Args:
            key: name of the sample, without dots and slashes.
            members: suffix (`static.mp4`) -> bytes.
            row: small JSON values kept in the index, so that a loader need not open the sample.

        Raises:
            DataError: for a key with a dot or a slash, at which webdataset would split it, or the key of the
                sample before, with which webdataset would join it.
        """
        if "." in key or "/" in key or not key:
            raise DataError(f"sample key {key!r}: expected no dots and no slashes; rename the sample.")
        if any(sample["key"] == key for sample in self._samples[-1:]):
            raise DataError(f"sample key {key!r}: expected a new key, got the last one again; rename the sample.")
        if self._tar is None:
            self._tar = tarfile.open(self._temporary, "w", format=tarfile.GNU_FORMAT)  # noqa: SIM115
        entries = {}
        for suffix, data in members.items():
            info = tarfile.TarInfo(f"{key}.{suffix}")
            info.size, info.mode = len(data), 0o644
            self._tar.addfile(info, io.BytesIO(data))
            padded = -(-len(data) // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
            entries[suffix] = [self._tar.offset - padded, len(data), zlib.crc32(data)]
        sample = {"key": key, "members": entries}
        self._samples.append(sample | {"row": dict(row)} if row else sample)

    def drop(self, entry: Mapping[str, Any]) -> None:
        """Note what is not written: key, source, reason, detail, and whatever else shows why."""
        self._dropped.append(entry)

    def finish_shard(self, note: Mapping[str, Any] | None = None) -> Path:
        """Close the open shard (an empty one where nothing was written) and give it its name.

        Args:
            note: JSON values kept in the index (how far the writer had come).
        """
        final = shard_path(self.out, self.number)
        if self._tar is None:
            self._tar = tarfile.open(self._temporary, "w", format=tarfile.GNU_FORMAT)  # noqa: SIM115
        self._tar.close()
        os.replace(self._temporary, final)
        if self._dropped:
            lines = [json.dumps(entry, ensure_ascii=False) + "\n" for entry in self._dropped]
            write_bytes(dropped_path(final), "".join(lines).encode())
        index = {
            "format": FORMAT,
            "shard": final.name,
            "bytes": final.stat().st_size,
            "note": dict(note or {}),
            "samples": self._samples,
        }
        write_json(index_path(final), index, compact=True)
        self._tar, self._samples, self._dropped = None, [], []
        self.number += 1
        return final

    def abort(self) -> None:
        """Remove the unfinished shard."""
        if self._tar is not None:
            self._tar.close()
            self._tar, self._samples, self._dropped = None, [], []
        self._temporary.unlink(missing_ok=True)

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None and (self._samples or self._dropped):
            self.finish_shard()
        else:
            self.abort()


def list_shards(source: Location) -> list[Location]:
    """List the finished shards of a folder by number, or the tars that a pattern names.

    Args:
        source: a folder; the URL of one with a `manifest.json`; or tars as webdataset writes them,
            `https://host/clips/shard-{000000..000127}.tar`, each with its index beside it.

    Raises:
        DataError: where there are none.
    """
    if "{" in str(source) or str(source).endswith(".tar"):
        return _expanded(source)
    shards: list[Location]
    if is_url(source):
        shards = [joined(source, name) for name in read_document(joined(source, "manifest.json")).get("shards", [])]
    else:
        shards = [*finished_shards(Path(source))]
    if not shards:
        raise DataError(f"{source}: expected shards (shard-000000.tar and its index), found none; write them.")
    return shards


def _expanded(source: Location) -> list[Location]:
    import braceexpand

    try:
        names = list(braceexpand.braceexpand(str(source)))
    except ValueError as error:
        raise DataError(f"{source}: expected a pattern such as shard-{{000000..000127}}.tar ({error}).") from error
    return [name if is_url(name) else Path(name) for name in names]


def finished_shards(folder: Path) -> list[Path]:
    """List the shards whose index exists, by number."""
    return sorted(tar for tar in folder.glob("shard-*.tar") if index_path(tar).is_file())


def remove_leftovers(folder: Path) -> None:
    """Remove what a killed writer left: temporary files, tars and lists without an index."""
    for path in (p for pattern in (".*.tmp", "*/.*.tmp", "shard-*.tar", "shard-*.jsonl") for p in folder.glob(pattern)):
        stem = re.sub(r"\.(tar|dropped\.jsonl)$", "", path.name)
        if path.suffix == ".tmp" or not (folder / f"{stem}.index.json").is_file():
            path.unlink()


def read_index(shard: Location) -> Mapping[str, Any]:
    """Read the index of a shard.

    Raises:
        DataError: where it is missing, broken, of another format, or the tar has another size.
    """
    name = f"{file_name(shard).removesuffix('.tar')}.index.json"
    index = read_document(sibling(shard, name))
    if index.get("format") != FORMAT:
        raise DataError(f"{shard}: expected format {FORMAT!r}, got {index.get('format')!r}; write it again.")
    if not is_url(shard):
        size = Path(shard).stat().st_size if Path(shard).is_file() else 0
        if size != index["bytes"]:
            raise DataError(f"{shard}: expected {index['bytes']} bytes, got {size}; copy or write it again.")
    return index


def read_document(location: Location) -> Mapping[str, Any]:
    """Read a JSON object from a file or URL.

    Raises:
        DataError: it is missing, or is no JSON object.
    """
    if not is_url(location):
        content = read_json(Path(location))
    else:
        try:
            content = json.loads(read_location(location))
        except ValueError as error:
            raise DataError(f"{location}: cannot be read as JSON ({error}); upload it again.") from error
    if not isinstance(content, dict):
        raise DataError(f"{location}: expected a JSON object, got {type(content).__name__}; write it again.")
    return content


def read_indexed(shard: Location) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Read (key, {suffix: bytes}) of one shard through its index, in order, checking every checksum.

    Raises:
        DataError: where the index does not fit the tar, or a member is damaged.
    """
    index = read_index(shard)
    with local_copy(shard) as path, path.open("rb") as file:
        for sample in index["samples"]:
            members = {}
            for suffix, (offset, size, crc) in sample["members"].items():
                file.seek(offset)
                data = file.read(size)
                if len(data) != size or zlib.crc32(data) != crc:
                    raise DataError(
                        f"{shard}: {sample['key']}.{suffix}: expected the checksum {crc:#010x}, got "
                        f"{zlib.crc32(data):#010x}; the shard is damaged, copy or write it again."
                    )
                members[suffix] = data
            yield sample["key"], members


def _lines(path: Path) -> list[str]:
    """Return the lines of a file; texts may hold other line breaks than the newline."""
    return [line for line in path.read_text("utf-8").split("\n") if line]


def read_dropped(shard: Path) -> list[dict[str, Any]]:
    """Read what was dropped while a shard was written; nothing where nothing was."""
    path = dropped_path(shard)
    return [json.loads(line) for line in _lines(path)] if path.is_file() else []


def read_samples(shards: Path | Sequence[Path]) -> Iterator[dict[str, Any]]:
    """Read samples through webdataset, in order, undecoded.

    Args:
        shards: a folder of shards, or the tars.

    Returns:
        Dictionaries with `__key__` and one entry of bytes for each suffix.
    """
    import webdataset

    tars = list_shards(shards) if isinstance(shards, Path) else shards
    yield from webdataset.WebDataset([str(tar) for tar in tars], shardshuffle=False)
