"""Experts that handle blocks: turn, take from shelf and drawer, put on a shelf, into the drawer, on another block."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from scipy.spatial.transform import Rotation

from .expert_blocks import block_yaw, grasp_from_above, lift
from .expert_motion import HOVER_Z, ExpertStyle, Goal, travel, yaw_error
from .scenes import DOOR_WIDTH, SceneSpec
from .world import WorldState

_SHELF_TILT = -0.45
"""Pitch of the hand in the cabinet [rad]: the fingers point inwards."""
_SHELF_FRONT_Y = -0.10
_ABOVE_DESK_BLOCKS = 0.05
"""How far above a shelf block the fingers enter [m], so that they clear blocks on the desk before it."""
_HALF_HAND = 0.12
"""Room that the hand needs beside the tool [m]."""
_HELD_WIDTH = (0.03, 0.046)


def held_block(state: WorldState) -> str | None:
    """Return the colour of the block between the closed fingers."""
    for colour, (position, _) in state.blocks.items():
        near = np.linalg.norm(position - state.tool_position) < 0.03
        if near and state.gripper_command == 0 and ("robot", "") in state.contacts[colour]:
            return colour
    return None


def rotate(colour: str, direction: int, state: WorldState, style: ExpertStyle) -> Goal:
    """Grasp a block where it stands and turn the hand: to the right is clockwise from above."""
    position, quaternion = state.blocks[colour]
    tool = state.tool_position
    yaw = _room_to_turn(block_yaw(quaternion), direction)
    euler = (np.pi, 0.0, yaw)
    error = float(np.linalg.norm(tool[:2] - position[:2]))
    height = tool[2] - position[2]
    if held_block(state) == colour and _HELD_WIDTH[0] < state.finger_width < _HELD_WIDTH[1]:
        # Pressed lightly on the desk: a block that hangs in the air does not count as turned.
        down = np.array([tool[0], tool[1], position[2] - 0.004 - max(0.0, position[2] - 0.46)])
        return Goal(position=down, euler=(np.pi, 0.0, _tool_yaw(state) - direction * 0.6), gripper=0.0)
    if error < 0.02 and height < 0.02 and state.gripper_command == 0:
        return Goal(position=position, euler=(np.pi, 0.0, _tool_yaw(state)), gripper=0.0)
    return grasp_from_above(position, euler, state, style)


def _tool_yaw(state: WorldState) -> float:
    return float(Rotation.from_quat(state.tool_quaternion).as_euler("xyz")[2])


def _room_to_turn(yaw: float, direction: int) -> float:
    """Choose among a block's equal grasps the one from which the wrist can turn far enough."""
    best = np.pi / 2 + 0.6 * direction
    return min((yaw + k * np.pi for k in (-1, 0, 1)), key=lambda angle: abs(angle - best))


def lift_from_shelf(colour: str, state: WorldState, style: ExpertStyle) -> Goal:
    """Reach into the cabinet with a tilted hand, level with the block."""
    position, quaternion = state.blocks[colour]
    tool = state.tool_position
    yaw = float(np.clip(block_yaw(quaternion), np.pi / 2 - 0.4, np.pi / 2 + 0.4))
    euler = (np.pi, _SHELF_TILT, yaw)
    if held_block(state) == colour:
        rise = [0, 0, 0.1] if _HELD_WIDTH[0] < state.finger_width < _HELD_WIDTH[1] else [0, 0, 0]
        return Goal(position=tool + rise, euler=euler, gripper=0.0, speed=0.8)
    sideways, deep, low = abs(tool[0] - position[0]), position[1] - tool[1], abs(tool[2] - position[2])
    turned = yaw_error(state, euler) < 0.2
    if sideways < 0.014 and abs(deep) < 0.014 and low < 0.014:
        return Goal(position=position, euler=euler, gripper=0.0)
    if sideways < 0.02 and deep > -0.02 and turned and state.finger_width > 0.06 and tool[2] < position[2] + 0.09:
        above = _ABOVE_DESK_BLOCKS * float(np.clip((abs(deep) - 0.015) / 0.03, 0.0, 1.0))
        return Goal(position=position + [0, 0, above], euler=euler, gripper=1.0, speed=0.8)
    front = np.array([position[0], _SHELF_FRONT_Y, position[2] + _ABOVE_DESK_BLOCKS])
    return _to_shelf_front(state, front, euler, 1.0, style)


def _to_shelf_front(
    state: WorldState, front: np.ndarray, euler: tuple[float, float, float], gripper: float, style: ExpertStyle
) -> Goal:
    """Come out of the cabinet if need be, then go to a place before it from above."""
    tool = state.tool_position
    if tool[1] > -0.06 and tool[2] < 0.72:
        return Goal(position=np.array([tool[0], _SHELF_FRONT_Y - 0.03, tool[2] + 0.005]), euler=euler, gripper=gripper)
    return travel(state, front, HOVER_Z + style.hover, euler=euler, gripper=gripper)


def place_on_shelf(state: WorldState, spec: SceneSpec, style: ExpertStyle) -> Goal:
    """Carry what is held into the open side of the cabinet, put it down, come out."""
    tool, colour = state.tool_position, held_block(state)
    euler = (np.pi, _SHELF_TILT, np.pi / 2)
    if colour is None:
        return Goal(position=tool + [0, -0.08, 0.02], euler=euler, gripper=1.0)
    x = _free_place(_open_shelf(state, spec), (p[0] for c, (p, _) in state.blocks.items() if c != colour and p[1] > 0))
    inside = np.array([x, 0.08, 0.505])
    if tool[1] > 0.06 and abs(tool[0] - x) < 0.05:
        resting = ("table", "plank_link") in state.contacts[colour]
        return Goal(position=tool - [0, 0, 0.02], euler=euler, gripper=float(resting), speed=0.6)
    if abs(tool[0] - x) < 0.02 and abs(tool[2] - inside[2]) < 0.03 and yaw_error(state, euler) < 0.2:
        return Goal(position=inside, euler=euler, speed=0.8)
    return _to_shelf_front(state, np.array([x, _SHELF_FRONT_Y, inside[2]]), euler, 0.0, style)


def _open_shelf(state: WorldState, spec: SceneSpec) -> tuple[float, float]:
    """Return the x-range [m] of the cabinet floor that the door leaves open."""
    left, right = spec.cabinet_x
    door = spec.slider_x - state.slider
    return (left, door) if door - left > right - (door + DOOR_WIDTH) else (door + DOOR_WIDTH, right)


def _free_place(interval: tuple[float, float], taken: Iterable[float]) -> float:
    """Return the place of an interval farthest from its ends and from what lies in it."""
    margin = min(_HALF_HAND, 0.5 * (interval[1] - interval[0]))
    places = np.linspace(interval[0] + margin, interval[1] - margin, 9)
    others = [*taken]
    room = [min([abs(p - o) for o in others], default=1.0) - 0.2 * abs(p - np.mean(interval)) for p in places]
    return float(places[int(np.argmax(room))])


def place_in_drawer(state: WorldState, spec: SceneSpec, style: ExpertStyle) -> Goal:
    """Carry what is held over the open drawer and let it go."""
    tool, colour = state.tool_position, held_block(state)
    euler = (np.pi, 0.0, np.pi / 2)
    if colour is None:
        return Goal(position=tool + [0, 0, 0.1], euler=euler, gripper=1.0)
    others = (p[0] for c, (p, _) in state.blocks.items() if c != colour and p[1] < -0.19 and p[2] < 0.43)
    x = _free_place((spec.drawer_x - 0.13, spec.drawer_x + 0.13), others)
    above = np.array([x, -0.19 - 0.47 * state.drawer, 0.44])
    if np.linalg.norm(tool[:2] - above[:2]) < 0.025 and tool[2] < above[2] + 0.015:
        return Goal(position=above, euler=euler, gripper=1.0)
    if np.linalg.norm(tool[:2] - above[:2]) < 0.03:
        return Goal(position=above, euler=euler, gripper=0.0)
    return travel(state, above + [0, 0, 0.04], HOVER_Z + style.hover, euler=euler, gripper=0.0)


def into_drawer(state: WorldState, spec: SceneSpec, style: ExpertStyle) -> Goal:
    """Take the block that stands alone on the desk to the drawer."""
    held, tool = held_block(state), state.tool_position
    if held is not None:
        raised = tool[2] > HOVER_Z - 0.05 or tool[1] < -0.2
        return place_in_drawer(state, spec, style) if raised else lift(held, state, style)
    alone = [c for c, contacts in state.contacts.items() if contacts == {("table", "base_link")}]
    if not alone:
        return Goal(position=tool + [0, 0, 0.1], gripper=1.0)
    return lift(min(alone, key=lambda c: float(np.linalg.norm(state.blocks[c][0] - tool))), state, style)


def stack(state: WorldState, spec: SceneSpec, style: ExpertStyle) -> Goal:
    """Put what is held on the nearest other block of the desk, let go, rise."""
    tool, colour = state.tool_position, held_block(state)
    if colour is None:
        return Goal(position=tool + [0, 0, 0.1], euler=(np.pi, 0.0, _tool_yaw(state)), gripper=1.0)
    low, high = spec.spawn_x
    others = {c: p for c, (p, _) in state.blocks.items() if c != colour and p[1] < 0.0 and p[2] > 0.44}
    if not others:
        return Goal(position=tool)
    base = min(others, key=lambda c: float(np.linalg.norm(others[c][:2] - np.clip(tool[:2], low, high))))
    top, quaternion = state.blocks[base]
    euler = (np.pi, 0.0, block_yaw(quaternion))
    # The block may hang askew in the hand: it is its own centre that goes over the other.
    offset = state.blocks[colour][0] - tool
    aim = np.array([*(top[:2] - offset[:2]), top[2] + 0.044 - offset[2]])
    error = float(np.linalg.norm(tool[:2] - aim[:2]))
    if error < 0.012 and tool[2] < aim[2] + 0.03:
        resting = (f"block_{base}", "") in state.contacts[colour]
        return Goal(position=aim - [0, 0, 0.012], euler=euler, gripper=float(resting and error < 0.012), speed=0.4)
    if error < 0.02 and yaw_error(state, euler) < 0.2:
        return Goal(position=aim, euler=euler, speed=0.6)
    return travel(state, aim + [0, 0, 0.05], HOVER_Z + 0.03 + style.hover, euler=euler)


def unstack(state: WorldState, style: ExpertStyle) -> Goal:
    """Lift the block that stands on another one."""
    on_top = [c for c, contacts in state.contacts.items() if any(body.startswith("block_") for body, _ in contacts)]
    colour = held_block(state) or max(on_top or state.blocks, key=lambda c: float(state.blocks[c][0][2]))
    return lift(colour, state, style)
