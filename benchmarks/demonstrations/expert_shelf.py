"""Experts at the cabinet: take a block out of it, put one in, with the sliding door pushed out of the way."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..playtable.scenes import DOOR_WIDTH, SceneSpec
from ..playtable.world import WorldState
from .expert_blocks import let_go, lift
from .expert_clearance import block_at_hand, block_yaw, held_block
from .expert_doors import slider
from .expert_motion import HOVER_Z, ExpertStyle, Goal, travel, yaw_error

_SHELF_TILT = -0.6
"""Pitch of the hand in the cabinet [rad]: the fingers point inwards."""
_SHELF_WALL_YAW = 0.17
"""How far the hand at least turns away from a near side wall of the cabinet [rad]."""
_SHELF_FRONT_Y = -0.10
_ABOVE_DESK_BLOCKS = 0.05
"""How far above a shelf block the fingers enter [m], so that they clear blocks on the desk before it."""
_DOOR_CLEARANCE = 0.1
"""Distance of the sliding door's edge from a block that is taken out of the cabinet [m]."""
_SHELF_CLEARANCE = 0.075
"""Distance from other blocks, and half the opening beside the door, at which a block can be put on the shelf [m]."""
_HALF_HAND = 0.12
"""Room that the hand needs beside the tool [m]."""
HELD_WIDTH = (0.03, 0.062)
"""Between which widths the fingers hold a block, along its side or along its length [m]."""


def lift_from_shelf(color: str, state: WorldState, spec: SceneSpec, style: ExpertStyle) -> Goal:
    """Push the door out of the way, then reach into the cabinet with a tilted hand, level with the block."""
    position, quaternion = state.blocks[color]
    tool = state.tool_position
    euler = (np.pi, _SHELF_TILT, _shelf_yaw(position[0], block_yaw(quaternion), spec))
    if held_block(state) == color:
        rise = [0, 0, 0.1] if HELD_WIDTH[0] < state.finger_width < HELD_WIDTH[1] else [0, 0, 0]
        return Goal(position=tool + rise, euler=euler, gripper=0.0, speed=0.8)
    direction = _door_in_the_way(position[0], state, spec)
    if direction:
        return slider(direction, state, spec, style)
    sideways, deep, low = abs(tool[0] - position[0]), position[1] - tool[1], abs(tool[2] - position[2])
    turned = yaw_error(state, euler) < 0.2
    if sideways < 0.014 and abs(deep) < 0.014 and low < 0.014:
        return Goal(position=position, euler=euler, gripper=0.0)
    if sideways < 0.02 and deep > -0.02 and turned and state.finger_width > 0.06 and tool[2] < position[2] + 0.09:
        above = _ABOVE_DESK_BLOCKS * float(np.clip((abs(deep) - 0.015) / 0.03, 0.0, 1.0))
        return Goal(position=position + [0, 0, above], euler=euler, gripper=1.0, speed=0.8)
    front = np.array([position[0], _SHELF_FRONT_Y, position[2] + _ABOVE_DESK_BLOCKS])
    return _to_shelf_front(state, front, euler, 1.0, style)


def _shelf_yaw(x: float, yaw: float, spec: SceneSpec) -> float:
    """Turn the hand to the block as far as the wrist and the side walls of the cabinet allow [rad]."""
    low, high = np.pi / 2 - 0.4, np.pi / 2 + 0.4
    if x > spec.cabinet_x[1] - _HALF_HAND:
        high = np.pi / 2 - _SHELF_WALL_YAW
    if x < spec.cabinet_x[0] + _HALF_HAND:
        low = np.pi / 2 + _SHELF_WALL_YAW
    return float(np.clip(yaw, low, high))


def _door_in_the_way(x: float, state: WorldState, spec: SceneSpec) -> int:
    """Return in which direction the door must move before the hand can reach in at `x` [m], 0 where it need not."""
    left, right = spec.slider_x - state.slider, spec.slider_x - state.slider + DOOR_WIDTH
    if x + _DOOR_CLEARANCE < left or x - _DOOR_CLEARANCE > right:
        return 0
    if x > (left + right) / 2:
        return -1 if state.slider < spec.slider_travel - 0.01 else 0
    return 1 if state.slider > 0.01 else 0


def _to_shelf_front(
    state: WorldState, front: np.ndarray, euler: tuple[float, float, float], gripper: float, style: ExpertStyle
) -> Goal:
    """Come out of the cabinet if need be, then go to a place before it from above."""
    tool = state.tool_position
    if _in_cabinet(tool):
        return Goal(position=np.array([tool[0], _SHELF_FRONT_Y - 0.03, tool[2] + 0.005]), euler=euler, gripper=gripper)
    return travel(state, front, HOVER_Z + style.hover, euler=euler, gripper=gripper)


def _in_cabinet(tool: np.ndarray) -> bool:
    return bool(tool[1] > -0.06 and tool[2] < 0.72)


def _on_shelf(color: str, state: WorldState) -> bool:
    return ("table", "plank_link") in state.contacts[color]


def place_on_shelf(state: WorldState, spec: SceneSpec, style: ExpertStyle) -> Goal:
    """Carry what is held into the open side of the cabinet, put it down, come out.

    Where the door leaves no clearance, put it on the desk, push the door, and take it again.
    """
    tool, color = state.tool_position, held_block(state)
    euler = (np.pi, _SHELF_TILT, np.pi / 2)
    if color is None and tool[1] > 0.01 and _in_cabinet(tool):
        return Goal(position=tool + [0, -0.08, 0.02], euler=euler, gripper=1.0)
    taken = [p[0] for c, (p, _) in state.blocks.items() if c != color and _on_shelf(c, state)]
    side, interval = _open_shelf(state, spec)
    x, clearance = free_place(interval, taken)
    at_end = state.slider > spec.slider_travel - 0.04 if side == 1 else state.slider < 0.04
    if clearance < _SHELF_CLEARANCE and not at_end:
        near = block_at_hand(state)
        return slider(-side, state, spec, style) if near is None else let_go(near, state, spec, style)
    if color is None:
        return take_again(state, spec, style)
    # Where another block stands in the middle, come in low and push it back.
    inside = np.array([x, 0.08, 0.505 if clearance > _SHELF_CLEARANCE else 0.48])
    if tool[1] > 0.05 and abs(tool[0] - x) < 0.05:
        resting = ("table", "plank_link") in state.contacts[color] or tool[2] < 0.466
        down = np.array([tool[0], inside[1], tool[2] - 0.02])
        return Goal(position=down, euler=euler, gripper=float(resting), speed=0.6)
    if abs(tool[0] - x) < 0.02 and abs(tool[2] - inside[2]) < 0.03 and yaw_error(state, euler) < 0.2:
        return Goal(position=inside, euler=euler, speed=0.8)
    return _to_shelf_front(state, np.array([x, _SHELF_FRONT_Y, inside[2]]), euler, 0.0, style)


def _open_shelf(state: WorldState, spec: SceneSpec) -> tuple[int, tuple[float, float]]:
    """Return the open side of the cabinet, -1 left or 1 right of the door, and its x-range [m]."""
    left, right = spec.cabinet_x
    door = spec.slider_x - state.slider
    return (-1, (left, door)) if door - left > right - (door + DOOR_WIDTH) else (1, (door + DOOR_WIDTH, right))


def free_place(interval: tuple[float, float], taken: Sequence[float]) -> tuple[float, float]:
    """Return the place of an interval farthest from its ends and from what lies in it, and its clearance [m]."""
    width = interval[1] - interval[0]
    places = np.linspace(interval[0] + min(_HALF_HAND, width / 2), interval[1] - min(_HALF_HAND, width / 2), 9)
    others = [min([abs(p - o) for o in taken], default=1.0) for p in places]
    best = int(np.argmax([o - 0.2 * abs(p - np.mean(interval)) for p, o in zip(places, others, strict=True)]))
    return float(places[best]), min(others[best], width / 2)


def take_again(state: WorldState, spec: SceneSpec, style: ExpertStyle) -> Goal:
    """Fetch what fell out of the hand: the block nearest to it, one outside of the cabinet where there is any."""
    tool = state.tool_position
    color = min(state.blocks, key=lambda c: (_on_shelf(c, state), float(np.linalg.norm(state.blocks[c][0] - tool))))
    return (lift_from_shelf if _on_shelf(color, state) else lift)(color, state, spec, style)
