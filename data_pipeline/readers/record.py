"""What every reader yields: where a clip lies and what is known of it, without decoding anything."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from ...gr_model.contracts import Array


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One clip or episode of a source.

    key: unique in the source, the same in every run, without dots and slashes.
    videos: camera name -> file.
    states: `[t s]`; actions: `[t a]`; both None for video alone.
    control_hz: steps a second, None without steps.
    frame_stride: picture i belongs to step `i * frame_stride`.
    facts: JSON values of the source kept with the clip.
    problem: why the record cannot be used (a broken annotation), empty where it can.
    """

    key: str
    videos: Mapping[str, Path]
    caption: str = ""
    states: Array | None = None
    actions: Array | None = None
    control_hz: float | None = None
    frame_stride: int = 1
    source: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)
    problem: str = ""


class RecordSource(Protocol):
    """A dataset on disk; iterating yields its records in the same order every time."""

    kind: str
    path: Path

    def __iter__(self) -> Iterator[Record]: ...
