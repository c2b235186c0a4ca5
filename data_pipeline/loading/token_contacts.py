"""Contact labels of a token store: which parts there are, and what is touched in which episode."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ...contracts import Array
from ..store.columns import ABSENT
from .token_store import TokenStore


def contact_parts(store: TokenStore) -> list[str]:
    """Name the parts that hands touch, sorted; none where no episode has contact labels."""
    return sorted({part for folder in store.folders for part in folder.contact_parts})


def contact_part_of(store: TokenStore, episodes: Array, parts: Sequence[str]) -> Array:
    """Return the place in `parts` of what is touched in episodes, int64 `[b]`; -1 where that is unknown."""
    out, source = store.values("contact_part", episodes, ABSENT), store.source_of(episodes)
    known = {part: place for place, part in enumerate(parts)}
    for number, folder in enumerate(store.folders):
        places = np.array([*(known.get(part, ABSENT) for part in folder.contact_parts), ABSENT], np.int64)
        here = source == number
        out[here] = places[out[here]]
    return out
