"""What the other controllers have in common: their interface, and the weights and the distance given to all of them."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any, Protocol

from ...contracts import Array
from ...errors import EnvironmentMissing
from .trajectories import TrackingCase

POSITION_COST, ORIENTATION_COST, POSTURE_COST = 1.0, 0.3, 2e-3
"""Weights of a meter, a radian of the tool and a radian of a joint, the same for all of them."""

CLEARANCE = 0.01
"""Distance they are asked to keep [m], as ours."""

Step = Callable[[int, Array], Array]
"""From the tick and the target pose `[4 4]` of its end to the joint positions `[j]` [rad] of its end."""


class NotSolved(Exception):
    """A peer found no answer in a tick; the joints stay where they are."""


class Peer(Protocol):
    """A controller of other people."""

    name: str

    def start(self, case: TrackingCase) -> Step:
        """Stand at the start of a case; return what is called at each tick."""


def package(name: str, needed: str) -> Any:
    """Import a package of the extra `peers`.

    Raises:
        EnvironmentMissing: it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise EnvironmentMissing(
            f"{needed} is left out, the package {name} is missing; run `pip install 'gr2[peers]'` to measure it."
        ) from error
