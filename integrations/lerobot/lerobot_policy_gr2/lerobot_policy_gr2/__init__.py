"""gr2 as a LeRobot policy. LeRobot imports this package by its name, which registers `--policy.type=gr2`."""

from .configuration_gr2 import GR2Config

__all__ = ["GR2Config"]
