"""Experts that handle blocks: turn them, take from the drawer and put into it, stack and unstack."""

from __future__ import annotations

import numpy as np

from ..playtable.scenes import SceneSpec
from ..playtable.world import WorldState
from .expert_blocks import grasp_from_above, let_go, lift
from .expert_clearance import block_yaw, grasp, hand, held_block, level_hand, yaw_and_tilt
from .expert_doors import drawer
from .expert_motion import HOVER_Z, ExpertStyle, Goal, travel, yaw_error
from .expert_shelf import HELD_WIDTH, free_place, take_again

OPEN_ENOUGH = 0.11
"""How far out the drawer must be to reach into it [m]."""
_STACK_ROOM = 0.09
"""Distance of other things from a block that another is put on [m]."""
_ROOM_TO_TURN_Y = -0.08
"""How far from the cabinet a block is turned [m]."""


def rotate(color: str, direction: int, state: WorldState, spec: SceneSpec, style: ExpertStyle) -> Goal:
    """Grasp a block where it stands and turn the hand: to the right is clockwise from above."""
    position = state.blocks[color][0]
    tool = state.tool_position
    error = float(np.linalg.norm(tool[:2] - position[:2]))
    height = tool[2] - position[2]
    if held_block(state) == color and position[2] > 0.485:
        return let_go(color, state, spec, style)
    if held_block(state) == color and HELD_WIDTH[0] < state.finger_width < HELD_WIDTH[1]:
        # Pressed lightly on the desk: a block that hangs in the air does not count as turned. Near the cabinet, where
        # the hand has no clearance to turn, away from it.
        pressed = any(body != "robot" for body, _ in state.contacts[color])
        down = np.array([tool[0], min(float(tool[1]), _ROOM_TO_TURN_Y), tool[2] - (0.002 if pressed else 0.012)])
        return Goal(position=down, euler=level_hand(color, state, turn=-direction * 0.6), gripper=0.0)
    if error < 0.02 and height < 0.02 and state.gripper_command == 0:
        return Goal(position=position, euler=hand(*yaw_and_tilt(state)), gripper=0.0)
    one = grasp(color, state, spec)
    euler = one.euler
    if one.euler[:2] == (np.pi, 0.0):  # where there is clearance, with the wrist turned back beforehand
        euler = (np.pi, 0.0, _room_to_turn(one.euler[2], direction))
    return grasp_from_above(one.place, euler, state, style, reach=0.012 if one.clearance > 0 else 0.019)


def _room_to_turn(yaw: float, direction: int) -> float:
    """Choose among a block's equal grasps the one from which the wrist can turn far enough."""
    best = np.pi / 2 + 0.6 * direction
    return min((yaw + k * np.pi for k in (-1, 0, 1)), key=lambda angle: abs(angle - best))


def place_in_drawer(state: WorldState, spec: SceneSpec, style: ExpertStyle) -> Goal:
    """Carry what is held over the open drawer and let it go."""
    tool, color = state.tool_position, held_block(state)
    euler = (np.pi, 0.0, np.pi / 2)
    if color is None:
        nearest = min((p for p, _ in state.blocks.values()), key=lambda p: float(np.linalg.norm(p - tool)))
        if _over_drawer(nearest):
            return Goal(position=tool + [0, 0, 0.1], euler=euler, gripper=1.0)
        return take_again(state, spec, style)
    others = [p[0] for c, (p, _) in state.blocks.items() if c != color and p[1] < -0.19 and p[2] < 0.43]
    x, _ = free_place((spec.drawer_x - 0.13, spec.drawer_x + 0.13), others)
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


def lift_from_drawer(color: str, state: WorldState, spec: SceneSpec, style: ExpertStyle) -> Goal:
    """Pull the drawer out where it hides the block, then lift."""
    if state.drawer < OPEN_ENOUGH and held_block(state) is None:
        return drawer(True, state, spec, style)
    return lift(color, state, spec, style)


def stack(state: WorldState, spec: SceneSpec, style: ExpertStyle) -> Goal:
    """Put what is held on the other block of the desk that is nearest and free, let go, rise."""
    tool, color = state.tool_position, held_block(state)
    if color is None:
        if _stacked_alone(state):
            return Goal(position=tool + [0, 0, 0.1], euler=hand(*yaw_and_tilt(state)), gripper=1.0)
        return take_again(state, spec, style)
    others = {c: p for c, (p, _) in state.blocks.items() if c != color and p[1] < 0.0 and p[2] > 0.41}
    if not others:
        return Goal(position=tool)
    low, high = spec.spawn_x
    desk = np.clip(tool[:2], [low, -0.15], [high, -0.03])

    def cost(c: str) -> float:
        place = others[c][:2]
        near = [p[:2] for o, (p, _) in state.blocks.items() if o not in (c, color)]
        near += [np.array(spec.button_xy), np.array([spec.handle_x - state.slider, 0.0])]
        crowded = min(float(np.linalg.norm(place - p)) for p in near) < _STACK_ROOM
        return float(np.linalg.norm(place - desk)) + crowded

    base = min(others, key=cost)
    top, quaternion = state.blocks[base]
    euler = level_hand(color, state, yaw=block_yaw(quaternion))
    # The block may hang askew in the hand: it is its own center that goes over the other.
    offset = state.blocks[color][0] - tool
    aim = np.array([*(top[:2] - offset[:2]), top[2] + 0.044 - offset[2]])
    error = float(np.linalg.norm(tool[:2] - aim[:2]))
    level = yaw_error(state, euler) < 0.2
    if error < 0.012 and level and tool[2] < aim[2] + 0.03:
        resting = (f"block_{base}", "") in state.contacts[color]
        return Goal(position=aim - [0, 0, 0.012], euler=euler, gripper=float(resting and error < 0.012), speed=0.4)
    if error < 0.02 and level:
        return Goal(position=aim, euler=euler, speed=0.6)
    return travel(state, aim + [0, 0, 0.05], HOVER_Z + 0.03 + style.hover, euler=euler)


def _stacked_alone(state: WorldState) -> bool:
    """Return whether a block stands on another and touches at most the hand besides."""
    return any(
        {body.split("_")[0] for body, _ in contacts} in ({"block"}, {"block", "robot"}) and state.blocks[c][0][2] > 0.48
        for c, contacts in state.contacts.items()
    )


def unstack(state: WorldState, spec: SceneSpec, style: ExpertStyle) -> Goal:
    """Lift the block that stands on another one."""
    on_top = [c for c, contacts in state.contacts.items() if any(body.startswith("block_") for body, _ in contacts)]
    color = held_block(state) or max(on_top or state.blocks, key=lambda c: float(state.blocks[c][0][2]))
    return lift(color, state, spec, style)
