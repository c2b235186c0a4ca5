"""Shards: plain webdataset tars with an index of byte offsets beside each.

    shard-000042.tar          members {key}.{suffix}, all members of a sample next to each other
    shard-000042.index.json   samples, member offsets [bytes], sizes, SHA-256; a note of the writer

A tar and then its index appear under their names only when whole, so a shard is finished exactly when its
index exists. The same samples give the same bytes.
"""

from __future__ import annotations

import hashlib
import io
import os
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from ..gr_model.errors import DataError
from .files import read_json, write_json

FORMAT = "gr2-shard-1"


def shard_path(out: Path, number: int) -> Path:
    """Name the shard of a number."""
    return out / f"shard-{number:06d}.tar"


def index_path(shard: Path) -> Path:
    """Name the index of a shard."""
    return shard.with_suffix(".index.json")


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
        out.mkdir(parents=True, exist_ok=True)

    @property
    def is_full(self) -> bool:
        """Tell whether the open shard has reached its size limit."""
        return self._tar is not None and self._tar.offset >= self.max_bytes

    @property
    def _temporary(self) -> Path:
        final = shard_path(self.out, self.number)
        return final.with_name(f".{final.name}.tmp")

    def write(self, key: str, members: Mapping[str, bytes]) -> None:
        """Add one sample to the open shard; the caller ends a full shard with `finish_shard`.

        Args:
            key: name of the sample, without dots and slashes.
            members: suffix (`static.mp4`) -> bytes.

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
            entries[suffix] = {
                "offset": self._tar.offset - padded,
                "size": len(data),
                "sha256": hashlib.sha256(data).hexdigest(),
            }
        self._samples.append({"key": key, "members": entries})

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
        index = {
            "format": FORMAT,
            "shard": final.name,
            "bytes": final.stat().st_size,
            "note": dict(note or {}),
            "samples": self._samples,
        }
        write_json(index_path(final), index)
        self._tar, self._samples = None, []
        self.number += 1
        return final

    def abort(self) -> None:
        """Remove the unfinished shard."""
        if self._tar is not None:
            self._tar.close()
            self._tar, self._samples = None, []
        self._temporary.unlink(missing_ok=True)

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None and self._tar is not None:
            self.finish_shard()
        else:
            self.abort()


def list_shards(folder: Path) -> list[Path]:
    """List the finished shards of a folder by number.

    Raises:
        DataError: where there are none.
    """
    shards = finished_shards(folder)
    if not shards:
        raise DataError(f"{folder}: expected shards (shard-000000.tar and its index), found none; write them.")
    return shards


def finished_shards(folder: Path) -> list[Path]:
    """List the shards whose index exists, by number."""
    return sorted(tar for tar in folder.glob("shard-*.tar") if index_path(tar).is_file())


def remove_leftovers(folder: Path) -> None:
    """Remove what a killed writer left: temporary files, tars without an index."""
    for path in [*folder.glob(".*.tmp"), *folder.glob("shard-*.tar")]:
        if path.suffix == ".tmp" or not index_path(path).is_file():
            path.unlink()


def read_index(shard: Path) -> Mapping[str, Any]:
    """Read the index of a shard.

    Raises:
        DataError: where it is missing, broken, of another format, or the tar has another size.
    """
    index = read_json(index_path(shard))
    if index.get("format") != FORMAT:
        raise DataError(f"{shard}: expected format {FORMAT!r}, got {index.get('format')!r}; write it again.")
    size = shard.stat().st_size if shard.is_file() else 0
    if size != index["bytes"]:
        raise DataError(f"{shard}: expected {index['bytes']} bytes, got {size}; copy or write it again.")
    return index  # type: ignore[no-any-return]


def read_indexed(shard: Path) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Read (key, {suffix: bytes}) of one shard through its index, in order."""
    index = read_index(shard)
    with shard.open("rb") as file:
        for sample in index["samples"]:
            members = {}
            for suffix, entry in sample["members"].items():
                file.seek(entry["offset"])
                members[suffix] = file.read(entry["size"])
            yield sample["key"], members


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
