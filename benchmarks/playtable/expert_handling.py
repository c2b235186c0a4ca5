"""Experts that handle blocks: turn, take from shelf and drawer, put on a shelf, into the drawer, on another block."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .expert_blocks import grasp_from_above, let_go, lift
from .expert_doors import drawer, slider
from .expert_motion import HOVER_Z, ExpertStyle, Goal, travel, yaw_error
from .expert_room import block_at_hand, block_yaw, grasp, hand, level_hand, yaw_and_lean
from .scenes import DOOR_WIDTH, SceneSpec
from .world import WorldState

_SHELF_TILT = -0.6
"""Pitch of the hand in the cabinet [rad]: the fingers point inwards."""
_SHELF_WALL_YAW = 0.17
"""How far the hand at least turns away from a near side wall of the cabinet [rad]."""
_SHELF_FRONT_Y = -0.10
_ABOVE_DESK_BLOCKS = 0.05
"""How far above a shelf block the fingers enter [m], so that they clear blocks on the desk before it."""
_DOOR_CLEARANCE = 0.1
"""Distance of the sliding door's edge from a block that is taken out of the cabinet [m]."""
_SHELF_ROOM = 0.075
"""Distance from other blocks, and half the opening beside the door, at which a block can be put on the shelf [m]."""
_HALF_HAND = 0.12
"""Room that the hand needs beside the tool [m]."""
OPEN_ENOUGH = 0.11
"""How far out the drawer must be to reach into it [m]."""
_STACK_ROOM = 0.09
"""Distance of other things from a block that another is put on [m]."""
_ROOM_TO_TURN_Y = -0.08
"""How far from the cabinet a block is turned [m]."""
_HELD_WIDTH = (0.03, 0.046)


def held_block(state: WorldState) -> str | None:
    """Return the colour of the block between the closed fingers."""
    for colour, (position, _) in state.blocks.items():
        near = np.linalg.norm(position - state.tool_position) < 0.04
        if near and state.gripper_command == 0 and ("robot", "") in state.contacts[colour]:
            return colour
    return None


def rotate(colour: str, direction: int, state: WorldState, spec: SceneSpec, style: ExpertStyle) -> Goal:
    """Grasp a block where it stands and turn the hand: to the right is clockwise from above."""
    position = state.blocks[colour][0]
    tool = state.tool_position
    error = float(np.linalg.norm(tool[:2] - position[:2]))
    height = tool[2] - position[2]
    if held_block(state) == colour and position[2] > 0.485:
        return let_go(colour, state, spec, style)
    if held_block(state) == colour and _HELD_WIDTH[0] < state.finger_width < _HELD_WIDTH[1]:
        # Pressed lightly on the desk: a block that hangs in the air does not count as turned. Near the cabinet, where
        # the hand has no room to turn, away from it.
        z = position[2] - 0.004 - max(0.0, position[2] - 0.46)
        down = np.array([tool[0], min(float(tool[1]), _ROOM_TO_TURN_Y), z])
        return Goal(position=down, euler=level_hand(colour, state, turn=-direction * 0.6), gripper=0.0)
    if error < 0.02 and height < 0.02 and state.gripper_command == 0:
        return Goal(position=position, euler=hand(*yaw_and_lean(state)), gripper=0.0)
    one = grasp(colour, state, spec)
    euler = one.euler
    if one.euler[:2] == (np.pi, 0.0):  # where there is room, with the wrist turned back beforehand
        euler = (np.pi, 0.0, _room_to_turn(one.euler[2], direction))
    return grasp_from_above(one.place, euler, state, style, reach=0.012 if one.room > 0 else 0.019)


def _room_to_turn(yaw: float, direction: int) -> float:
    """Choose among a block's equal grasps the one from which the wrist can turn far enough."""
    best = np.pi / 2 + 0.6 * direction
    return min((yaw + k * np.pi for k in (-1, 0, 1)), key=lambda angle: abs(angle - best))


def lift_from_shelf(colour: str, state: WorldState, spec: SceneSpec, style: ExpertStyle) -> Goal:
    """Push the door out of the way, then reach into the cabinet with a tilted hand, level with the block."""
    position, quaternion = state.blocks[colour]
    tool = state.tool_position
    euler = (np.pi, _SHELF_TILT, _shelf_yaw(position[0], block_yaw(quaternion), spec))
    if held_block(state) == colour:
        rise = [0, 0, 0.1] if _HELD_WIDTH[0] < state.finger_width < _HELD_WIDTH[1] else [0, 0, 0]
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


def _on_shelf(colour: str, state: WorldState) -> bool:
    return ("table", "plank_link") in state.contacts[colour]


def _take_again(state: WorldState, spec: SceneSpec, style: ExpertStyle) -> Goal:
    """Fetch what fell out of the hand: the block nearest to it, one outside of the cabinet where there is any."""
    tool = state.tool_position
    colour = min(state.blocks, key=lambda c: (_on_shelf(c, state), float(np.linalg.norm(state.blocks[c][0] - tool))))
    return (lift_from_shelf if _on_shelf(colour, state) else lift)(colour, state, spec, style)


def place_on_shelf(state: WorldState, spec: SceneSpec, style: ExpertStyle) -> Goal:
    """Carry what is held into the open side of the cabinet, put it down, come out.

    Where the door leaves no room, put it on the desk, push the door, and take it again.
    """
    tool, colour = state.tool_position, held_block(state)
    euler = (np.pi, _SHELF_TILT, np.pi / 2)
    if colour is None and tool[1] > 0.01 and _in_cabinet(tool):
        return Goal(position=tool + [0, -0.08, 0.02], euler=euler, gripper=1.0)
    taken = [p[0] for c, (p, _) in state.blocks.items() if c != colour and _on_shelf(c, state)]
    side, interval = _open_shelf(state, spec)
    x, room = _free_place(interval, taken)
    at_end = state.slider > spec.slider_travel - 0.04 if side == 1 else state.slider < 0.04
    if room < _SHELF_ROOM and not at_end:
        near = block_at_hand(state)
        return slider(-side, state, spec, style) if near is None else let_go(near, state, spec, style)
    if colour is None:
        return _take_again(state, spec, style)
    # Where another block stands in the middle, come in low and push it back.
    inside = np.array([x, 0.08, 0.505 if room > _SHELF_ROOM else 0.48])
    if tool[1] > 0.05 and abs(tool[0] - x) < 0.05:
        resting = ("table", "plank_link") in state.contacts[colour] or tool[2] < 0.466
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


def _free_place(interval: tuple[float, float], taken: Sequence[float]) -> tuple[float, float]:
    """Return the place of an interval farthest from its ends and from what lies in it, and its room [m]."""
    width = interval[1] - interval[0]
    places = np.linspace(interval[0] + min(_HALF_HAND, width / 2), interval[1] - min(_HALF_HAND, width / 2), 9)
    others = [min([abs(p - o) for o in taken], default=1.0) for p in places]
    best = int(np.argmax([o - 0.2 * abs(p - np.mean(interval)) for p, o in zip(places, others, strict=True)]))
    return float(places[best]), min(others[best], width / 2)


def place_in_drawer(state: WorldState, spec: SceneSpec, style: ExpertStyle) -> Goal:
    """Carry what is held over the open drawer and let it go."""
    tool, colour = state.tool_position, held_block(state)
    euler = (np.pi, 0.0, np.pi / 2)
    if colour is None:
        nearest = min((p for p, _ in state.blocks.values()), key=lambda p: float(np.linalg.norm(p - tool)))
        if _over_drawer(nearest):
            return Goal(position=tool + [0, 0, 0.1], euler=euler, gripper=1.0)
        return _take_again(state, spec, style)
    others = [p[0] for c, (p, _) in state.blocks.items() if c != colour and p[1] < -0.19 and p[2] < 0.43]
    x, _ = _free_place((spec.drawer_x - 0.13, spec.drawer_x + 0.13), others)
    above = np.array([x, -0.19 - 0.47 * state.drawer, 0.44])
    if np.linalg.norm(tool[:2] - above[:2]) < 0.025 and tool[2] < above[2] + 0.015:
        return Goal(position=above, euler=euler, gripper=1.0)
    if np.linalg.norm(tool[:2] - above[:2]) < 0.03:
        return Goal(position=above, euler=euler, gripper=0.0)
    return travel(state, above + [0, 0, 0.04], HOVER_Z + style.hover, euler=euler, gripper=0.0)


def _over_drawer(position: np.ndarray) -> bool:
    return bool(position[1] < -0.19 and position[2] < 0.46)


def into_drawer(state: WorldState, spec: SceneSpec, style: ExpertStyle) -> Goal:
    """Take a block that stands alone on the desk to the drawer; pull the drawer out first where it is closed."""
    held, tool = held_block(state), state.tool_position
    if state.drawer < OPEN_ENOUGH:
        return drawer(True, state, spec, style) if held is None else let_go(held, state, spec, style)
    if held is not None:
        raised = tool[2] > HOVER_Z - 0.05 or tool[1] < -0.2
        return place_in_drawer(state, spec, style) if raised else lift(held, state, spec, style)
    on_desk = {c: contacts for c, contacts in state.contacts.items() if ("table", "base_link") in contacts}
    if not on_desk:
        return Goal(position=tool + [0, 0, 0.1], gripper=1.0)
    first = min(on_desk, key=lambda c: (len(on_desk[c] - {("robot", "")}), np.linalg.norm(state.blocks[c][0] - tool)))
    return lift(first, state, spec, style)


def lift_from_drawer(colour: str, state: WorldState, spec: SceneSpec, style: ExpertStyle) -> Goal:
    """Pull the drawer out where it hides the block, then lift."""
    if state.drawer < OPEN_ENOUGH and held_block(state) is None:
        return drawer(True, state, spec, style)
    return lift(colour, state, spec, style)


def stack(state: WorldState, spec: SceneSpec, style: ExpertStyle) -> Goal:
    """Put what is held on the other block of the desk that is nearest and free, let go, rise."""
    tool, colour = state.tool_position, held_block(state)
    if colour is None:
        if _stacked_alone(state):
            return Goal(position=tool + [0, 0, 0.1], euler=hand(*yaw_and_lean(state)), gripper=1.0)
        return _take_again(state, spec, style)
    others = {c: p for c, (p, _) in state.blocks.items() if c != colour and p[1] < 0.0 and p[2] > 0.41}
    if not others:
        return Goal(position=tool)
    low, high = spec.spawn_x
    desk = np.clip(tool[:2], [low, -0.15], [high, -0.03])

    def cost(c: str) -> float:
        place = others[c][:2]
        near = [p[:2] for o, (p, _) in state.blocks.items() if o not in (c, colour)]
        near += [np.array(spec.button_xy), np.array([spec.handle_x - state.slider, 0.0])]
        crowded = min(float(np.linalg.norm(place - p)) for p in near) < _STACK_ROOM
        return float(np.linalg.norm(place - desk)) + crowded

    base = min(others, key=cost)
    top, quaternion = state.blocks[base]
    euler = level_hand(colour, state, yaw=block_yaw(quaternion))
    # The block may hang askew in the hand: it is its own centre that goes over the other.
    offset = state.blocks[colour][0] - tool
    aim = np.array([*(top[:2] - offset[:2]), top[2] + 0.044 - offset[2]])
    error = float(np.linalg.norm(tool[:2] - aim[:2]))
    level = yaw_error(state, euler) < 0.2
    if error < 0.012 and level and tool[2] < aim[2] + 0.03:
        resting = (f"block_{base}", "") in state.contacts[colour]
        return Goal(position=aim - [0, 0, 0.012], euler=euler, gripper=float(resting and error < 0.012), speed=0.4)
    if error < 0.02 and level:
        return Goal(position=aim, euler=euler, speed=0.6)
    return travel(state, aim + [0, 0, 0.05], HOVER_Z + 0.03 + style.hover, euler=euler)


def _stacked_alone(state: WorldState) -> bool:
    """Say whether a block stands on another and touches at most the hand besides."""
    return any(
        {body.split("_")[0] for body, _ in contacts} in ({"block"}, {"block", "robot"}) and state.blocks[c][0][2] > 0.48
        for c, contacts in state.contacts.items()
    )


def unstack(state: WorldState, spec: SceneSpec, style: ExpertStyle) -> Goal:
    """Lift the block that stands on another one."""
    on_top = [c for c, contacts in state.contacts.items() if any(body.startswith("block_") for body, _ in contacts)]
    colour = held_block(state) or max(on_top or state.blocks, key=lambda c: float(state.blocks[c][0][2]))
    return lift(colour, state, spec, style)
