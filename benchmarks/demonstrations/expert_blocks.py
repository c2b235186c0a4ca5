"""Experts at the blocks: lift, push, and put down."""

from __future__ import annotations

import numpy as np
from scipy.spatial.transform import Rotation

from ..playtable.scenes import SceneSpec
from ..playtable.world import WorldState
from .expert_clearance import free_desk_place, grasp, hand, level_hand, tilt_at, yaw_and_tilt
from .expert_motion import HOVER_Z, ExpertStyle, Goal, clearance_share, ramp, travel, yaw_error


def let_go(color: str, state: WorldState, spec: SceneSpec, style: ExpertStyle) -> Goal:
    """Put down what a former task left in the hand, where nothing stands, then rise with the hand open."""
    tool = state.tool_position
    if state.gripper_command == 1:
        speed = 1.0 if state.finger_width > 0.06 else 0.1
        return Goal(position=tool + [0, 0, 0.12], euler=hand(*yaw_and_tilt(state)), gripper=1.0, speed=speed)
    euler = level_hand(color, state)
    place = free_desk_place(tool, color, state, spec)
    if np.linalg.norm(place - tool[:2]) > 0.012:
        return travel(state, np.array([*place, HOVER_Z - 0.04]), HOVER_Z - 0.02, euler=euler)
    opening = 1.0 if tool[2] < 0.476 else 0.0
    return Goal(position=np.array([*place, 0.464]), euler=euler, gripper=opening)


def lift(color: str, state: WorldState, spec: SceneSpec, style: ExpertStyle) -> Goal:
    """Grasp a block from above and raise it."""
    position = state.blocks[color][0]
    tool = state.tool_position
    error, height = float(np.linalg.norm(tool[:2] - position[:2])), tool[2] - position[2]
    closed_on_it = state.gripper_command == 0 and state.finger_width > 0.03 and error < 0.024 and height < 0.022
    if closed_on_it and ("robot", "") in state.contacts[color]:
        # Still closing above 0.066; a block that is held askew may stay above 0.052 and is raised slowly.
        rise = 0.0 if state.finger_width > 0.066 else 0.15
        speed = 1.0 if state.finger_width < 0.052 else 0.2
        return Goal(position=tool + [0, 0, rise], euler=hand(*yaw_and_tilt(state)), gripper=0.0, speed=speed)
    one = grasp(color, state, spec)
    return grasp_from_above(one.place, one.euler, state, style, reach=0.012 if one.clearance > 0 else 0.019)


def grasp_from_above(
    position: np.ndarray,
    euler: tuple[float, float, float],
    state: WorldState,
    style: ExpertStyle,
    *,
    reach: float = 0.012,
) -> Goal:
    """Come down on a block along the hand's own direction, open, the higher the less aligned, and close it there.

    Args:
        reach: how far above the block's middle the hand may close [m].
    """
    tool = state.tool_position
    height = float(tool[2] - position[2])
    up = Rotation.from_euler("xyz", euler).apply([0.0, 0.0, -1.0])
    position = position + np.array([*up[:2], 0.0]) / up[2] * max(0.0, height - 0.01)
    error = float(np.linalg.norm(tool[:2] - position[:2]))
    turn, narrow = yaw_error(state, euler), max(0.0, 0.06 - state.finger_width)
    if error < 0.010 and height < reach and turn < 0.25:
        return Goal(position=position, euler=euler, gripper=0.0)
    if error > 0.05:
        above = position + [0, 0, 0.085 + 0.5 * max(style.hover, 0)]
        return travel(state, above, HOVER_Z + style.hover, euler=euler, gripper=1.0)
    clearance = min(0.085, ramp(error, 0.009, 5.0, 0.085) + ramp(turn, 0.2, 0.3, 0.06) + 2.0 * narrow)
    across = clearance_share(clearance, height) * (position[:2] - tool[:2])
    goal = np.array([*(tool[:2] + across), position[2] - 0.002 + clearance])
    return Goal(position=goal, euler=euler, gripper=1.0, speed=0.8 if clearance == 0 else 1.0)


_NEAREST_Y = -0.042
"""How near the cabinet the closed hand gets while it sweeps [m]."""


def push(color: str, direction: int, state: WorldState, spec: SceneSpec, style: ExpertStyle) -> Goal:
    """Set the closed fingers beside a block and sweep it along x, to the right for direction 1."""
    position, quaternion = state.blocks[color]
    tool = state.tool_position
    behind = (position[0] - tool[0]) * direction
    line = min(float(position[1]), _NEAREST_Y)
    beside = abs(tool[1] - line)
    low = tool[2] < 0.482
    closed = state.finger_width < 0.02
    half = _half_extent_x(quaternion)
    start = np.array([position[0] - direction * (half + 0.05), line, 0.462])
    euler = hand(np.pi / 2, tilt_at((start[0], position[0] + direction * 0.13), line, state, spec))
    if low and closed and 0.02 < behind < 0.16 and beside < 0.05:
        # Beside the line, back to the start; on it, forward: one blends into the other.
        forward = max(0.0, 1.0 - max(0.0, beside - 0.012) / 0.02)
        x = forward * (tool[0] + direction * 0.1) + (1 - forward) * start[0]
        to_button = (spec.button_x - position[0]) * direction
        speed = 0.3 if 0.0 < to_button < 0.11 else 0.75
        return Goal(position=np.array([x, line, 0.462]), euler=euler, speed=speed)
    if np.linalg.norm(tool[:2] - start[:2]) < 0.018 and closed:
        return Goal(position=start, euler=euler)
    if tool[2] < 0.49 and np.linalg.norm(tool[:2] - start[:2]) > 0.03:
        return Goal(position=np.array([tool[0] - direction * 0.02, tool[1], HOVER_Z + style.hover]), euler=euler)
    return travel(state, start + [0, 0, 0.05], HOVER_Z + style.hover, euler=euler)


def _half_extent_x(quaternion: np.ndarray) -> float:
    """Bound the half length of a block along x [m] from its yaw."""
    axis = Rotation.from_quat(quaternion).apply([1.0, 0.0, 0.0])
    return float(0.02 + 0.02 * abs(axis[0]))
