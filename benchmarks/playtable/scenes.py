"""The four scenes of CALVIN as numbers: where things are, how far they move, which block is which.

Source: layout measured in the official simulator (calvin_env 797142c); lengths in meters, world frame.
"""

from __future__ import annotations

import colorsys
import re
from dataclasses import dataclass

import numpy as np

from ...errors import ConfigError

ROBOT_BASE = (-0.34, -0.46, 0.24)
"""Panda base position [m]; its axes are those of the world."""

NEUTRAL_JOINTS = (-1.21779124, 1.03987629, 2.11978254, -2.34205014, -0.87015899, 1.64119093, 0.55344928)
"""Joint angles at the start of an evaluation [rad]."""

REACH = 0.76
"""How far from the base, along the desk, the arm works with the hand pointing down [m]."""

DESK_Z = 0.44
DOOR_WIDTH = 0.28
"""How far the sliding door reaches to the right of its link frame [m]."""
BLOCK_HALF_HEIGHT = 0.02
DRAWER_TRAVEL = 0.22
SWITCH_TRAVEL = 0.088
BUTTON_TRAVEL = 0.02
BUTTON_RADIUS = 0.042
"""Radius of the button's housing [m]."""
PANEL_UP = np.array([0.0, 0.5, np.sqrt(0.75)])
"""Direction along the tilted cabinet front, upwards (the way the switch moves)."""
PANEL_OUT = np.array([0.0, -np.sqrt(0.75), 0.5])
"""Outward normal of the tilted cabinet front."""

BLOCK_COLORS = {"red": (1.0, 0.0, 0.0), "blue": (0.0, 0.0, 1.0), "pink": (1.0, 0.0, 1.0)}


@dataclass(frozen=True, kw_only=True)
class SceneSpec:
    """One PlayTable layout.

    blocks: colors in the order of `scene_obs`; block_lengths: long side of each [m].
    slider_x: x of the door's link frame at joint 0, the door reaches 0.28 m to its right; slider_travel [m].
    cabinet_x: x-range of the cabinet floor. spawn_x: x-range where blocks start on the desk.
    """

    name: str
    blocks: tuple[str, str, str]
    block_lengths: tuple[float, float, float]
    button_x: float
    switch_x: float
    slider_x: float
    slider_travel: float
    drawer_x: float
    led_x: float
    bulb_x: float
    cabinet_x: tuple[float, float]
    spawn_x: tuple[float, float]
    table_color: tuple[float, float, float]
    door_color: tuple[float, float, float]

    @property
    def handle_x(self) -> float:
        """x of the sliding door's handle at joint 0 [m]; it is smaller by the joint value."""
        return self.slider_x + 0.14

    @property
    def button_xy(self) -> tuple[float, float]:
        """Place of the button on the desk [m]."""
        return (self.button_x, -0.12)

    def length(self, color: str) -> float:
        """Return a block's long side [m]."""
        return self.block_lengths[self.blocks.index(color)]


_DARK, _LIGHT, _WOOD, _OAK = (0.42, 0.23, 0.16), (0.95, 0.80, 0.60), (0.68, 0.50, 0.32), (0.58, 0.43, 0.28)

_SCENES = {
    "A": SceneSpec(
        name="A",
        blocks=("pink", "blue", "red"),
        block_lengths=(0.04, 0.08, 0.056),
        button_x=-0.28,
        switch_x=0.30,
        slider_x=-0.10,
        slider_travel=0.28,
        drawer_x=0.10,
        led_x=-0.28,
        bulb_x=0.30,
        cabinet_x=(-0.364, 0.164),
        spawn_x=(-0.20, 0.35),
        table_color=_DARK,
        door_color=_DARK,
    ),
    "B": SceneSpec(
        name="B",
        blocks=("red", "blue", "pink"),
        block_lengths=(0.04, 0.08, 0.056),
        button_x=0.28,
        switch_x=-0.32,
        slider_x=0.088,
        slider_travel=0.304,
        drawer_x=0.18,
        led_x=0.28,
        bulb_x=-0.32,
        cabinet_x=(-0.184, 0.344),
        spawn_x=(-0.35, 0.15),
        table_color=_LIGHT,
        door_color=_LIGHT,
    ),
    "C": SceneSpec(
        name="C",
        blocks=("blue", "red", "pink"),
        block_lengths=(0.04, 0.08, 0.056),
        button_x=-0.12,
        switch_x=-0.32,
        slider_x=0.06,
        slider_travel=0.24,
        drawer_x=0.10,
        led_x=-0.12,
        bulb_x=-0.32,
        cabinet_x=(-0.184, 0.344),
        spawn_x=(0.0, 0.35),
        table_color=_WOOD,
        door_color=_DARK,
    ),
    "D": SceneSpec(
        name="D",
        blocks=("red", "blue", "pink"),
        block_lengths=(0.056, 0.04, 0.08),
        button_x=-0.12,
        switch_x=0.30,
        slider_x=-0.10,
        slider_travel=0.28,
        drawer_x=0.18,
        led_x=-0.12,
        bulb_x=0.30,
        cabinet_x=(-0.364, 0.164),
        spawn_x=(0.0, 0.35),
        table_color=_OAK,
        door_color=_OAK,
    ),
}

_PARTS_OF_D = ("C", "A", "B")
"""Of which scenes the desk, the cabinet and the drawer of scene D are."""


def reachable(x: float, y: float) -> bool:
    """Return whether the arm works at a place of the desk with the hand pointing down."""
    return bool(np.hypot(x - ROBOT_BASE[0], y - ROBOT_BASE[1]) < REACH)


def scene(name: str) -> SceneSpec:
    """Return the scene called `name`: A to D, or R and a number for a generated one.

    Raises:
        ConfigError: no such scene.
    """
    if re.fullmatch(r"R\d{1,9}", name):
        return _generate(int(name[1:]))
    if name not in _SCENES:
        raise ConfigError(
            f"Scene: expected one of A, B, C, D, or R and a number for a generated one, got {name!r}; correct the name."
        )
    return _SCENES[name]


def _generate(number: int) -> SceneSpec:
    """Return the scene `R<number>`, always the same one: parts of A, B and C, other colors of wood and block lengths.

    What belongs together stays together: button, LED and where blocks start; switch, bulb, cabinet and door. The one
    way of putting them together that is scene D is left out, so that D stays a scene that no generated one shows.
    """
    rng = np.random.default_rng([4, number])
    parts = _parts(rng)
    while parts == _PARTS_OF_D:
        parts = _parts(rng)
    desk, cabinet, drawer = (_SCENES[letter] for letter in parts)
    blocks = [str(color) for color in rng.permutation(list(BLOCK_COLORS))]
    lengths = [float(length) for length in rng.permutation(list(desk.block_lengths))]
    table, door = _wood(rng), _wood(rng)
    return SceneSpec(
        name=f"R{number}",
        blocks=(blocks[0], blocks[1], blocks[2]),
        block_lengths=(lengths[0], lengths[1], lengths[2]),
        button_x=desk.button_x,
        led_x=desk.led_x,
        spawn_x=desk.spawn_x,
        switch_x=cabinet.switch_x,
        bulb_x=cabinet.bulb_x,
        slider_x=cabinet.slider_x,
        slider_travel=cabinet.slider_travel,
        cabinet_x=cabinet.cabinet_x,
        drawer_x=drawer.drawer_x,
        table_color=table,
        door_color=door if rng.random() < 0.5 else table,
    )


def _parts(rng: np.random.Generator) -> tuple[str, ...]:
    """Draw of which scenes the desk, the cabinet and the drawer are."""
    return tuple(str(rng.choice(list("ABC"))) for _ in range(3))


def _wood(rng: np.random.Generator) -> tuple[float, float, float]:
    """Sample a color between dark and light wood."""
    return colorsys.hsv_to_rgb(rng.uniform(0.03, 0.11), rng.uniform(0.3, 0.65), rng.uniform(0.35, 0.98))
