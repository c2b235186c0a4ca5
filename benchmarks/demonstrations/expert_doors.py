"""Experts at the furniture: drawer, sliding door, switch and button."""

from __future__ import annotations

import numpy as np

from ..playtable.scenes import PANEL_OUT, PANEL_UP, SceneSpec
from ..playtable.world import WorldState
from .expert_motion import ExpertStyle, Goal, clearance_share, ramp, travel, yaw_error


def drawer(opens: bool, state: WorldState, spec: SceneSpec, style: ExpertStyle) -> Goal:
    """Pull the drawer's bar from behind, or push it from before."""
    tool, x = state.tool_position, spec.drawer_x + 0.04 * style.offset
    bar_y = -0.25 - state.drawer
    low = tool[2] < 0.405
    across = abs(tool[0] - spec.drawer_x) < 0.085
    if opens:
        in_gap = bar_y + 0.012 < tool[1] < bar_y + 0.066
        if low and across and in_gap:
            if tool[2] > 0.372:
                return Goal(position=np.array([tool[0], bar_y + 0.036, 0.36]))
            return Goal(position=np.array([tool[0], tool[1] - 0.1, 0.36]))
        entry = np.array([x, bar_y + 0.037, 0.36])
    else:
        if low and across and tool[1] < bar_y - 0.02:
            return Goal(position=np.array([tool[0], tool[1] + 0.1, 0.36]))
        entry = np.array([x, bar_y - 0.055, 0.36])
    near = np.linalg.norm(tool[:2] - entry[:2])
    if near < (0.012 if opens else 0.025) or (low and near < 0.02):
        return Goal(position=entry)
    if low:
        away = [0.0, 0.0, 0.1] if opens else [0.0, -0.03, 0.1]
        return Goal(position=tool + away)
    return travel(state, entry + [0, 0, 0.1], 0.52 + style.hover if tool[1] > -0.2 else 0.46)


def slider(direction: int, state: WorldState, spec: SceneSpec, style: ExpertStyle) -> Goal:
    """Push the sliding door by its handle, to the left for direction -1."""
    tool = state.tool_position
    handle = spec.handle_x - state.slider
    contact = np.array([handle - direction * 0.045, -0.015, 0.53 + 0.012 * style.offset])
    behind = (handle - tool[0]) * direction
    if 0.015 < behind < 0.11 and abs(tool[1] + 0.015) < 0.022 and abs(tool[2] - 0.53) < 0.05:
        return Goal(position=np.array([tool[0] + direction * 0.1, -0.015, contact[2]]))
    start_x = contact[0] - direction * 0.02
    beside = float(np.hypot(tool[0] - start_x, max(0.0, abs(tool[2] - contact[2]) - 0.02)))
    clearance = ramp(beside, 0.02, 3.0, 0.11)
    share = clearance_share(clearance, -0.012 - float(tool[1]))
    return Goal(position=np.array([tool[0] + share * (start_x - tool[0]), -0.012 - clearance, contact[2]]))


_TILT = -0.75
"""Pitch of the hand at the switch [rad]: the fingers point at the tilted front."""


def switch(turns_on: bool, state: WorldState, spec: SceneSpec, style: ExpertStyle) -> Goal:
    """Push the switch's bar along the tilted front with a tilted hand."""
    tool = state.tool_position
    euler = (np.pi, _TILT, np.pi / 2)
    origin = np.array([spec.switch_x + 0.015 * style.offset, 0.0609, 0.4949])
    bar = origin + PANEL_UP * state.switch + PANEL_OUT * 0.046
    along = float(np.dot(tool - bar, PANEL_UP))
    out = float(np.dot(tool - bar, PANEL_OUT))
    across = float(tool[0] - origin[0])
    sign = 1.0 if turns_on else -1.0
    wrong_turn = max(0.0, yaw_error(state, euler) - 0.25)
    if abs(across) < 0.025 and sign * along < -0.006 and abs(out) < 0.03 and wrong_turn == 0:
        return Goal(position=tool + sign * PANEL_UP * 0.1 - PANEL_OUT * out, euler=euler, speed=0.8)
    contact = bar - sign * PANEL_UP * 0.052
    beside = float(np.hypot(across, along + sign * 0.052))
    clearance = max(ramp(beside, 0.015, 3.0, 0.075), ramp(abs(across), 0.05, 1.0, 0.1), 0.3 * wrong_turn)
    goal = contact + PANEL_OUT * clearance
    goal[0] = tool[0] + clearance_share(clearance, out) * (goal[0] - tool[0])
    if np.linalg.norm(tool - goal) > 0.12 and tool[2] < 0.5:
        return Goal(position=np.array([tool[0], tool[1] - 0.02, 0.6]), euler=euler)
    return Goal(position=goal, euler=euler)


def button(state: WorldState, spec: SceneSpec, style: ExpertStyle) -> Goal:
    """Press the button from above."""
    tool = state.tool_position
    x, y = spec.button_x + 0.008 * style.offset, -0.12
    if np.hypot(tool[0] - x, tool[1] - y) < 0.016:
        return Goal(position=np.array([x, y, 0.462]))
    return travel(state, np.array([x, y, 0.54]), 0.54 + 0.5 * style.hover)
