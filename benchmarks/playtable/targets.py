"""What a task is about: the parts of the scene that its mask shows."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from . import cameras
from .tasks import ALL_TASKS, COLORS, held_alone, on_a_block_alone
from .world import WorldState

TARGET_MASK = "target_mask"
"""A camera that shows, white on black and from where the static camera stands, what the task is about."""

Part = tuple[str, str]
"""A body and its link, as contacts name them: ("table", "drawer_link"), or ("block_red", "")."""

_LINKS = {"slider": "slide_link", "drawer": "drawer_link", "lightbulb": "switch_link", "led": "button_link"}
_PLACES = {"place_in_slider": "plank_link", "place_in_drawer": "drawer_link"}


class _Scene(Protocol):
    """What of a simulator is drawn: its physics client, the numbers of bodies and links, and the task."""

    task: str
    client: int
    table: int
    blocks: dict[str, int]
    table_links: dict[str, int]
    camera: cameras.CameraConfig


def draw_target(world: _Scene, start: WorldState | None, px: int) -> np.ndarray:
    """Draw white what the task is about that began in `start`, and all else black: uint8 `[px px 3]`."""
    image = np.zeros((px, px, 3), np.uint8)
    if start is None:
        return image
    bodies = {f"block_{color}": uid for color, uid in world.blocks.items()} | {"table": world.table}
    wanted = [
        bodies[body] + ((world.table_links[link] + 1 << 24) if link else 0)
        for body, link in target_parts(world.task, start)
    ]
    drawn = cameras.draw_parts(world.client, cameras.static_matrices(), px, renderer=world.camera.renderer)
    image[np.isin(drawn, wanted)] = 255
    return image


def target_parts(task: str, start: WorldState) -> list[Part]:
    """Return the parts of the scene that a task names, given where it began.

    A block of any color stands for all that the task may be done with.
    """
    family = ALL_TASKS[task].family
    if family in _LINKS:
        return [("table", _LINKS[family])]
    if task in _PLACES:
        return [("table", _PLACES[task])]
    colors = [color for color in COLORS if color in task]
    if family == "stack":
        held = held_alone(start)
        colors = [color for color in COLORS if color != held]
    elif family == "unstack":
        colors = [color for color in COLORS if on_a_block_alone(color, start)]
    elif family == "push_into":
        colors = [color for color in COLORS if start.contacts[color] == {("table", "base_link")}]
    return [(f"block_{color}", "") for color in colors or COLORS]
