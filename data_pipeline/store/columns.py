"""What a loader must know of every clip, as flat columns: `columns/{name}.npy` in a folder of shards.

Columns are mapped into memory, not read: a folder of any size opens at once, and processes share its pages. They repeat
what the shards' indexes state; `write_columns` makes them from those when a stage is finished.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...contracts import Array
from ...errors import DataError
from ..files import array_bytes, write_bytes
from ..locations import Location, cached, joined
from .shards import read_index

FOLDER = "columns"

ABSENT = -1
"""Offset of a member that a sample does not have."""


_SMALL = frozenset(
    [
        "shard",
        "frames",
        "stride",
        "steps",
        "state_dim",
        "action_dim",
        "text_id",
        "embodiment",
        "start",
        "stop",
        "window",
        "contact_part",
        "contact_step",
    ]
)
"""Columns of int32."""


def write_columns(out: Path, columns: Mapping[str, Array]) -> list[str]:
    """Write columns of one length, and give their names, sorted."""
    for name, values in columns.items():
        write_bytes(out / FOLDER / f"{name}.npy", array_bytes(values))
    return sorted(columns)


def open_columns(folder: Location, names: Sequence[str]) -> dict[str, Array]:
    """Map columns into memory; those of a URL are kept in the cache folder.

    Raises:
        DataError: one is missing or broken.
    """
    columns: dict[str, Array] = {}
    for name in names:
        path = cached(joined(joined(folder, FOLDER), f"{name}.npy"))
        try:
            columns[name] = np.load(path, mmap_mode="r" if path.stat().st_size > 4096 else None, allow_pickle=False)
        except (OSError, ValueError) as error:
            raise DataError(
                f"{path}: cannot be read as a column ({error}); run the stage that wrote it again."
            ) from error
    return columns


def token_columns(
    shards: Sequence[Path],
    text_ids: Mapping[str, int],
    embodiment_ids: Sequence[Sequence[int]],
    contact_parts: Sequence[str] = (),
) -> dict[str, Array]:
    """Collect the columns of token shards.

    Args:
        shards: in order.
        text_ids: text -> row of the text features.
        embodiment_ids: for each shard, the number in the folder of each of its own embodiments.
        contact_parts: names of the parts that hands touch.

    Returns:
        `shard`, `frames`, `stride`, `steps`, `state_dim`, `action_dim`, `text_id` and `embodiment` (-1 for video alone)
        int32 `[e]`; `video` uint64 `[e]`, equal for episodes cut from one video; the first byte of what each member
        holds, int64 `[e]`: `codes_{camera}`, `states`, `actions`, -1 where there is none. Of episodes with contact
        labels also `contact_part`, the place in `contact_parts` of what is touched, -1 where it is unknown, and
        `contact_step`, the step at which it is.
    """
    pairs, part_ids = zip(shards, embodiment_ids, strict=True), {part: i for i, part in enumerate(contact_parts)}
    return _joined(
        _token_rows(number, read_index(shard), text_ids, ids, part_ids) for number, (shard, ids) in enumerate(pairs)
    )


def _token_rows(
    number: int,
    index: Mapping[str, Any],
    text_ids: Mapping[str, int],
    embodiment_ids: Sequence[int],
    part_ids: Mapping[str, int],
) -> Iterator[dict[str, int]]:
    texts = index["note"]["sentences"]
    for sample in index["samples"]:
        row, members = sample["row"], sample["members"]
        entry = {name: row[name] for name in ("frames", "stride", "steps", "state_dim", "action_dim")}
        entry |= {"shard": number, "text_id": text_ids[texts[row["text"]]], "video": video_id(row["video"])}
        local = row.get("embodiment", ABSENT)
        entry["embodiment"] = ABSENT if local == ABSENT else embodiment_ids[local]
        if "contact_part" in row:
            entry |= {"contact_part": part_ids[row["contact_part"]], "contact_step": row["contact_step"]}
        for camera in row["cameras"]:
            entry[f"codes_{camera}"] = _payload(members[f"codes.{camera}.npy"], row["frames"] * row["code_bytes"])
        for name in ("states", "actions"):
            entry[name] = _payload(members.get(f"{name}.npy"), row["steps"] * row[f"{name[:-1]}_dim"] * 4)
        yield entry


def video_columns(shards: Sequence[Path]) -> dict[str, Array]:
    """Collect the columns of video shards, one row for each window.

    Returns:
        `shard`, `start`, `stop` (frames) and `window` (its number in the sample) int32 `[e]`; `video` uint64 `[e]`;
        where the members lie, int64 `[e]`: `json`, `json_size`, `video_{camera}`, `video_{camera}_size`, -1 where there
        is none.
    """
    return _joined(_video_rows(number, read_index(shard)) for number, shard in enumerate(shards))


def _video_rows(number: int, index: Mapping[str, Any]) -> Iterator[dict[str, int]]:
    for sample in index["samples"]:
        places = {"json": sample["members"]["json"]}
        places |= {f"video_{camera}": sample["members"][name] for camera, name in sample["row"]["cameras"].items()}
        where = {name: place[0] for name, place in places.items()}
        where |= {f"{name}_size": place[1] for name, place in places.items()}
        for window, (start, stop) in enumerate(sample["row"]["windows"]):
            named = {"shard": number, "start": start, "stop": stop, "window": window, "video": video_id(sample["key"])}
            yield named | where


def _joined(shards: Iterable[Iterator[dict[str, int]]]) -> dict[str, Array]:
    """Join the rows of shards into columns, shard by shard; what a row does not name is -1."""
    parts: list[dict[str, Array]] = []
    counts: list[int] = []
    for rows in shards:
        if entries := list(rows):
            present = {name for entry in entries for name in entry}
            parts.append({n: np.array([e.get(n, ABSENT) for e in entries], _dtype(n)) for n in present})
            counts.append(len(entries))
    names = {name for part in parts for name in part}

    def column(name: str) -> Array:
        missing = [
            np.full(0 if name in part else count, ABSENT, np.int64) for part, count in zip(parts, counts, strict=True)
        ]
        return np.concatenate(
            [part.get(name, gap) for part, gap in zip(parts, missing, strict=True)], dtype=_dtype(name)
        )

    return {name: column(name) for name in sorted(names)}


def video_id(name: str) -> int:
    """Hash the name of a video: which split it falls into does not change when others join."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")


def _payload(member: Sequence[int] | None, num_bytes: int) -> int:
    """Return where the numbers of an npy member begin: they end where the member ends."""
    return ABSENT if member is None else member[0] + member[1] - num_bytes


def _dtype(name: str) -> Any:
    if name == "video":
        return np.uint64
    return np.int32 if name in _SMALL else np.int64
