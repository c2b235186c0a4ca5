"""Find records with the same content: sizes are compared first, then the ends of the files, then the whole."""

from __future__ import annotations

import hashlib
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from ..readers.lerobot_video import EpisodeSpan
from ..readers.record import ImageBytes, Record, Video, VideoBytes, VideoSpan

_END_BYTES = 1 << 16

_WHOLE_BYTES = 1 << 31
"""What is read at most to prove that files whose size and ends are equal are equal in between."""

_SPLITS = {
    "train": "train",
    "training": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "validate": "validation",
    "dev": "validation",
    "test": "test",
    "testing": "test",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class NamedContent:
    """What a record shows.

    source, split: of the record; split is empty where none is named.
    parts: one for each camera: a file, or a digest of what is no file of its own.
    """

    source: str
    split: str
    parts: tuple[Path | str, ...]


def split_of(record: Record) -> str:
    """Infer the split of a record from its reader, else a folder of that name, else the name of its TFRecord."""
    split = record.facts.get("split")
    if isinstance(split, str) and split:
        return _SPLITS.get(split.lower(), split)
    for folder in PurePosixPath(record.source).parts[:-1]:
        if folder.lower() in _SPLITS:
            return _SPLITS[folder.lower()]
    found = re.search(r"-(\w+)\.(?:tfrecord|tar)\b", record.source)
    return _SPLITS.get(found[1].lower(), "") if found else ""


@dataclass(slots=True)
class ContentIndex:
    """Collects what records show; `repeated` reads only files of equal size.

    compared, skipped: records that could be compared, and those that could not (single frames, arrays not read).
    unproven: of the repeated ones, those inferred from size and both ends alone, where the whole is too much to read.
    """

    compared: int = 0
    skipped: int = 0
    unproven: int = 0
    _by_size: dict[int, list[NamedContent]] = field(default_factory=lambda: defaultdict(list))

    def add(self, record: Record) -> None:
        """Take a record whose videos lie on disk or in memory."""
        parts, size = list[Path | str](), 0
        for video in record.videos.values():
            part, num_bytes = _content(video)
            if part is None:
                self.skipped += 1
                return
            parts.append(part)
            size += num_bytes
        if parts and size:
            self._take(NamedContent(source=record.source, split=split_of(record), parts=tuple(parts)), size)

    def add_digests(self, record: Record, digests: Sequence[str]) -> None:
        """Take a record that `add` had to skip, after its arrays were read."""
        self.skipped -= 1
        self._take(NamedContent(source=record.source, split=split_of(record), parts=tuple(digests)), -1)

    def _take(self, content: NamedContent, size: int) -> None:
        self.compared += 1
        self._by_size[size].append(content)

    def repeated(self) -> list[list[NamedContent]]:
        """Return the groups of two or more records that show the same, in the order they came."""
        groups, left = list[list[NamedContent]](), _WHOLE_BYTES
        for size, same_size in self._by_size.items():
            for alike in _grouped(same_size, _END_BYTES):
                left -= size * len(alike) if isinstance(alike[0].parts[0], Path) else 0
                if left < 0:
                    self.unproven += len(alike)
                groups += [alike] if left < 0 else _grouped(alike, None)
        return groups


def _content(video: Video) -> tuple[Path | str | None, int]:
    """Return a file or a digest, and the number of bytes (1 for a part of a file, 0 for what is not there)."""
    if isinstance(video, Path):
        try:
            return video, video.stat().st_size
        except OSError:
            return video, 0
    if isinstance(video, EpisodeSpan):
        video = video.span
    if isinstance(video, VideoSpan):
        return f"{video.file} {video.start:.3f} {video.stop:.3f}", 1
    if isinstance(video, VideoBytes):
        return hashlib.sha256(video.data).hexdigest(), len(video.data)
    if isinstance(video, ImageBytes):
        digest = hashlib.sha256()
        for image in video.images:
            digest.update(len(image).to_bytes(8, "little") + image)
        return digest.hexdigest(), sum(map(len, video.images))
    return None, 0


def _grouped(contents: Sequence[NamedContent], num_bytes: int | None) -> Iterator[list[NamedContent]]:
    if len(contents) < 2:
        return
    groups: dict[tuple[str, ...], list[NamedContent]] = defaultdict(list)
    for content in contents:
        try:
            digests = tuple(p if isinstance(p, str) else _digest(p, num_bytes) for p in content.parts)
        except OSError:  # a file that cannot be read is a finding of the probes
            continue
        groups[digests].append(content)
    yield from (group for group in groups.values() if len(group) > 1)


def _digest(path: Path, num_bytes: int | None) -> str:
    """Hash both ends of a file, or all of it for None."""
    with path.open("rb") as file:
        if num_bytes is not None:
            head = file.read(num_bytes)
            file.seek(max(path.stat().st_size - num_bytes, 0))
            return hashlib.sha256(head + file.read(num_bytes)).hexdigest()
        digest = hashlib.sha256()
        while piece := file.read(1 << 20):
            digest.update(piece)
        return digest.hexdigest()
