"""gr2: the open GR-2. A video-pretrained world model, trajectory policies, whole-body control, and CALVIN."""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .benchmarks.playtable.environment import PlayTable
    from .contracts import (
        ActionTrajectory,
        Episode,
        JointCommand,
        JointTrajectory,
        Observation,
        Policy,
        SignalTrajectory,
        VideoClip,
    )
    from .data_pipeline.readers.source import open_source
    from .embodiment import Embodiment, Signal
    from .gr_model.act.loading import load_policy, load_world_model
    from .wbc.controller import WholeBodyController
    from .wbc.robot.catalog import load_robot

try:
    __version__ = version("gr2")
except PackageNotFoundError:
    __version__ = "0.0.0+source"

__all__ = [
    "ActionTrajectory",
    "Embodiment",
    "Episode",
    "JointCommand",
    "JointTrajectory",
    "Observation",
    "PlayTable",
    "Policy",
    "Signal",
    "SignalTrajectory",
    "VideoClip",
    "WholeBodyController",
    "__version__",
    "load_policy",
    "load_robot",
    "load_world_model",
    "open_source",
]

_CONTRACTS = "contracts"
_PLACES = {
    **dict.fromkeys(("ActionTrajectory", "Episode", "JointCommand", "JointTrajectory", "Observation"), _CONTRACTS),
    **dict.fromkeys(("Policy", "SignalTrajectory", "VideoClip"), _CONTRACTS),
    **dict.fromkeys(("Embodiment", "Signal"), "embodiment"),
    **dict.fromkeys(("load_policy", "load_world_model"), "gr_model.act.loading"),
    "PlayTable": "benchmarks.playtable.environment",
    "WholeBodyController": "wbc.controller",
    "load_robot": "wbc.robot.catalog",
    "open_source": "data_pipeline.readers.source",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is asked for: `import gr2` alone costs nothing."""
    if name not in _PLACES:
        raise AttributeError(f"module 'gr2' has no attribute {name!r}; dir(gr2) lists the public names.")
    found = getattr(import_module(f".{_PLACES[name]}", __name__), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return list(__all__)
