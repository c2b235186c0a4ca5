"""gr2: the open GR-2. A video-pretrained world model, a CVAE trajectory policy, whole-body control, and CALVIN."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("gr2")
except PackageNotFoundError:
    __version__ = "0.0.0+source"
