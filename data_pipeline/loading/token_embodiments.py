"""Which robot each episode of a folder of token shards is of; those of gr2 0.1.0 keep none and hold `TOOL_ARM`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...contracts import Array
from ...embodiment import TOOL_ARM, Embodiment
from ...errors import ConfigError, DataError
from ..embodiments import has_tool_arm_widths, tool_arm
from ..locations import Location
from ..store.columns import ABSENT
from ..store.shards import read_index


@dataclass(frozen=True, slots=True, kw_only=True)
class FolderEmbodiments:
    """The embodiments of a folder; unnamed: the one of episodes with steps that name none, -1 where all name theirs."""

    embodiments: tuple[Embodiment, ...]
    unnamed: int = ABSENT


def read_embodiments(folder: Location, manifest: Mapping[str, Any]) -> FolderEmbodiments:
    """Read what the manifest of a folder names; nothing where it names none.

    Raises:
        DataError: an embodiment is broken.
    """
    try:
        return FolderEmbodiments(embodiments=tuple(map(Embodiment.from_dict, manifest.get("embodiments", ()))))
    except ConfigError as error:
        raise DataError(f"{folder}: {error}") from error


def with_unnamed(
    named: FolderEmbodiments, folder: Location, columns: Mapping[str, Array], cameras: tuple[str, ...], shards: Any
) -> FolderEmbodiments:
    """Add `TOOL_ARM` where episodes with steps name no embodiment: gr2 0.1.0 wrote them.

    Args:
        named: what the manifest names.
        folder: for errors.
        columns: of the folder.
        cameras: of the folder.
        shards: its `ShardFiles`.

    Raises:
        DataError: their steps are not those of `TOOL_ARM`.
    """
    lost = columns["steps"] > 0
    if "embodiment" in columns:
        lost = lost & (columns["embodiment"] == ABSENT)
    if not lost.any():
        return named
    widths = np.unique(np.stack([columns["state_dim"][lost], columns["action_dim"][lost]], axis=1), axis=0).tolist()
    if any(not has_tool_arm_widths(*pair) for pair in widths):
        got = ", ".join(f"{state} and {action}" for state, action in widths)
        raise DataError(
            f"{folder}: expected episodes that state which robot they are of, got states and actions of {got} numbers "
            "and no embodiment (gr2 0.1.0 wrote them); run `gr2 data tokens` again, or `gr2 data shards --spec` "
            "before it to state what the numbers are."
        )
    rate = _kept_rate(columns, int(np.flatnonzero(lost)[0]), shards)
    arm = tool_arm(cameras=[c for c in TOOL_ARM.cameras if c in cameras] or cameras, control_hz=rate)
    return FolderEmbodiments(embodiments=(*named.embodiments, arm), unnamed=len(named.embodiments))


def _kept_rate(columns: Mapping[str, Array], episode: int, shards: Any) -> float:
    """Read the control rate from the JSON of an episode [Hz]."""
    number = int(columns["shard"][episode])
    first = int(np.searchsorted(columns["shard"], number))
    sample = read_index(shards.shards[number])["samples"][episode - first]
    offset, size = sample["members"]["json"][:2]
    try:
        description = json.loads(shards.read(number, offset, size))
        return float(description.get("control_hz") or TOOL_ARM.control_hz)
    except (ValueError, TypeError, AttributeError) as error:
        where = f"{shards.shards[number]}: {sample['key']}.json"
        raise DataError(f"{where}: cannot be read ({error}); copy or write the shard again.") from error
