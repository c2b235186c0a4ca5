"""PyBullet, the physics of the simulator; where it is not installed, one sentence when it is first used."""

from __future__ import annotations

import sys
from typing import Any

from ...errors import EnvironmentMissing


class _Missing:
    """Stand in for an absent pybullet, so that what needs no simulator can be imported without it."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        newer = sys.version_info >= (3, 12)
        raise EnvironmentMissing(
            "the simulator needs pybullet, which is not installed"
            + (f" and has no wheels for Python {sys.version_info[0]}.{sys.version_info[1]}" if newer else "")
            + ("; use Python 3.10 or 3.11, or build it with a C++ compiler: " if newer else "; ")
            + "`pip install pybullet`."
        )


pybullet: Any
try:
    import pybullet  # type: ignore[no-redef]
except ModuleNotFoundError:
    pybullet = _Missing()
