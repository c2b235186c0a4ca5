"""PlayTable as a LeRobot environment. LeRobot imports this package by its name, which registers `playtable`."""

from .configuration_playtable import PlayTableEnv

__all__ = ["PlayTableEnv"]
