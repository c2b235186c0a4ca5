"""Scripted experts: closed-loop controllers on simulator state, one for each family of tasks.

An expert is a function of the present state alone: it has no phase counter. So it goes back and tries again after a
miss, it can label any state that a noisy hand reaches, and what it does can be learnt from one observation.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.spatial.transform import Rotation

from .environment import WorldState
from .scenes import PANEL_OUT, PANEL_UP, SceneSpec

HOVER_Z = 0.56
"""Height at which the tool travels above the desk [m]."""


@dataclass(frozen=True, kw_only=True)
class ExpertStyle:
    """What varies from demonstration to demonstration.

    lead: how far ahead of the tool its target is put along each axis [m] (speed); hover: extra height while
    travelling [m]; offset: where along the handle it acts [m].
    """

    lead: float = 0.03
    hover: float = 0.0
    offset: float = 0.0

    @staticmethod
    def sample(rng: np.random.Generator) -> ExpertStyle:
        """Draw a style."""
        return ExpertStyle(lead=rng.uniform(0.028, 0.032), hover=rng.uniform(-0.01, 0.015), offset=rng.uniform(-1, 1))


@dataclass(frozen=True, kw_only=True)
class Goal:
    """Where the tool should go: position [m] and fixed-axis euler [rad] in the world, gripper 0 or 1, speed factor."""

    position: np.ndarray
    euler: tuple[float, float, float] = (np.pi, 0.0, np.pi / 2)
    gripper: float = 0.0
    speed: float = 1.0


def act(name: str, state: WorldState, spec: SceneSpec, style: ExpertStyle) -> tuple[np.ndarray, np.ndarray, float]:
    """Return the pose to command now: position `[3]` [m], quaternion `[4]` xyzw (world), gripper 0 or 1."""
    goal = _goal(name, state, spec, style)
    # Each axis goes at full speed until it has arrived. Far from the goal only signs matter, so a learner that is
    # unsure of the place still moves the right way, and corrects itself as it comes near.
    lead = style.lead * goal.speed
    position = state.tool_position + np.clip(goal.position - state.tool_position, -lead, lead)
    current = Rotation.from_quat(state.tool_quaternion)
    turn = (Rotation.from_euler("xyz", goal.euler) * current.inv()).as_rotvec()
    angle = float(np.linalg.norm(turn))
    turn *= min(1.0, 0.16 * goal.speed / max(angle, 1e-9))
    return position, (Rotation.from_rotvec(turn) * current).as_quat(), goal.gripper


def _goal(name: str, state: WorldState, spec: SceneSpec, style: ExpertStyle) -> Goal:
    target = name.split("_")[1] if name.startswith("lift") else None
    held = next((c for c, (p, _) in state.blocks.items() if np.linalg.norm(p - state.tool_position) < 0.03), None)
    if held is not None and held != target:
        return _let_go(state, spec, style)
    if target is not None:
        return _lift(target, state, style)
    if name.startswith("push"):
        return _push(name.split("_")[1], 1 if name.endswith("right") else -1, state, style)
    if name.endswith("drawer"):
        return _drawer(name == "open_drawer", state, spec, style)
    if name.startswith("move_slider"):
        return _slider(-1 if name.endswith("left") else 1, state, spec, style)
    if name.endswith("lightbulb"):
        return _switch(name == "turn_on_lightbulb", state, spec, style)
    return _button(state, spec, style)


def _let_go(state: WorldState, spec: SceneSpec, style: ExpertStyle) -> Goal:
    """Put down what a former task left in the hand, then rise with the hand open."""
    tool = state.tool_position
    yaw = Rotation.from_quat(state.tool_quaternion).as_euler("xyz")[2]
    euler = (np.pi, 0.0, float(yaw))
    if state.gripper_command == 1 and state.finger_width > 0.06:
        return Goal(position=tool + [0, 0, 0.12], euler=euler, gripper=1.0)
    low, high = spec.spawn_x
    place = np.array([np.clip(tool[0], low, high), np.clip(tool[1], -0.13, -0.05), 0.464])
    if np.linalg.norm(place[:2] - tool[:2]) > 0.03:
        return Goal(position=np.array([place[0], place[1], max(tool[2], HOVER_Z - 0.04)]), euler=euler)
    opening = 1.0 if tool[2] < 0.476 else 0.0
    return Goal(position=place, euler=euler, gripper=opening)


def _travel(state: WorldState, above: np.ndarray, hover_z: float, **goal: object) -> Goal:
    """Go to a place by way of the travelling height: rise first, then move across, both slanted."""
    tool = state.tool_position
    across = float(np.linalg.norm(above[:2] - tool[:2]))
    z = max(float(above[2]), hover_z) if across > 0.04 else float(above[2])
    if across > 0.04 and tool[2] < hover_z - 0.03:
        return Goal(position=np.array([*(tool[:2] + 0.15 * (above[:2] - tool[:2])), hover_z]), **goal)  # type: ignore[arg-type]
    return Goal(position=np.array([above[0], above[1], z]), **goal)  # type: ignore[arg-type]


def _block_yaw(quaternion: np.ndarray) -> float:
    """Return the grasp yaw [rad] nearest to pi/2 (a block looks the same after half a turn)."""
    x_axis = Rotation.from_quat(quaternion).apply([1.0, 0.0, 0.0])
    yaw = np.arctan2(x_axis[1], x_axis[0])
    return float((yaw - np.pi / 2 + np.pi / 2) % np.pi - np.pi / 2 + np.pi / 2)


def _lift(colour: str, state: WorldState, style: ExpertStyle) -> Goal:
    position, quaternion = state.blocks[colour]
    euler = (np.pi, 0.0, _block_yaw(quaternion))
    tool = state.tool_position
    error = float(np.linalg.norm(tool[:2] - position[:2]))
    height = tool[2] - position[2]
    closed_on_it = state.gripper_command == 0 and state.finger_width > 0.03 and error < 0.02 and height < 0.02
    if closed_on_it and ("robot", "") in state.contacts[colour]:
        if state.finger_width < 0.046:
            return Goal(position=tool + [0, 0, 0.15], euler=euler, gripper=0.0)
        return Goal(position=position, euler=euler, gripper=0.0)
    aligned = _yaw_error(state, euler) < 0.15
    if error < 0.009 and height < 0.012 and aligned:
        return Goal(position=position, euler=euler, gripper=0.0)
    if error < (0.012 if height > 0.05 else 0.022) and aligned and state.finger_width > 0.06:
        return Goal(position=position - [0, 0, 0.002], euler=euler, gripper=1.0, speed=0.8)
    above = position + [0, 0, 0.085 + 0.5 * max(style.hover, 0)]
    if height < 0.06 and error < 0.05:
        return Goal(position=tool + [0, 0, 0.06], euler=euler, gripper=1.0)
    return _travel(state, above, HOVER_Z + style.hover, euler=euler, gripper=1.0)


def _yaw_error(state: WorldState, euler: tuple[float, float, float]) -> float:
    current = Rotation.from_quat(state.tool_quaternion)
    return float(np.linalg.norm((Rotation.from_euler("xyz", euler) * current.inv()).as_rotvec()))


def _push(colour: str, direction: int, state: WorldState, style: ExpertStyle) -> Goal:
    position, quaternion = state.blocks[colour]
    tool = state.tool_position
    behind = (position[0] - tool[0]) * direction
    beside = abs(tool[1] - position[1])
    low = tool[2] < 0.482
    closed = state.finger_width < 0.02
    half = _half_extent_x(quaternion)
    start = np.array([position[0] - direction * (half + 0.05), position[1], 0.462])
    if low and closed and 0.02 < behind < 0.16 and beside < 0.05:
        # Beside the line, back to the start; on it, forward: one blends into the other.
        forward = max(0.0, 1.0 - max(0.0, beside - 0.012) / 0.02)
        x = forward * (tool[0] + direction * 0.1) + (1 - forward) * start[0]
        return Goal(position=np.array([x, position[1], 0.462]), speed=0.75)
    if np.linalg.norm(tool[:2] - start[:2]) < 0.018 and closed:
        return Goal(position=start)
    if tool[2] < 0.49 and np.linalg.norm(tool[:2] - start[:2]) > 0.03:
        return Goal(position=np.array([tool[0] - direction * 0.02, tool[1], HOVER_Z + style.hover]))
    return _travel(state, start + [0, 0, 0.05], HOVER_Z + style.hover)


def _half_extent_x(quaternion: np.ndarray) -> float:
    """Bound the half length of a block along x [m] from its yaw."""
    axis = Rotation.from_quat(quaternion).apply([1.0, 0.0, 0.0])
    return float(0.02 + 0.02 * abs(axis[0]))


def _drawer(opens: bool, state: WorldState, spec: SceneSpec, style: ExpertStyle) -> Goal:
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
    return _travel(state, entry + [0, 0, 0.1], 0.52 + style.hover if tool[1] > -0.2 else 0.46)


def _slider(direction: int, state: WorldState, spec: SceneSpec, style: ExpertStyle) -> Goal:
    tool = state.tool_position
    handle = spec.handle_x - state.slider
    contact = np.array([handle - direction * 0.045, -0.015, 0.53 + 0.012 * style.offset])
    behind = (handle - tool[0]) * direction
    if 0.015 < behind < 0.11 and abs(tool[1] + 0.015) < 0.022 and abs(tool[2] - 0.53) < 0.05:
        return Goal(position=np.array([tool[0] + direction * 0.1, -0.015, contact[2]]))
    front = np.array([contact[0] - direction * 0.02, -0.12, contact[2]])
    if abs(tool[0] - front[0]) < 0.03 and abs(tool[2] - front[2]) < 0.03:
        return Goal(position=np.array([front[0], -0.012, contact[2]]))
    if tool[1] > -0.09 and tool[2] < 0.7:
        return Goal(position=np.array([tool[0] - direction * 0.02, -0.14, max(tool[2], 0.53)]))
    return Goal(position=front + [0, 0, 0.02 if abs(tool[0] - front[0]) > 0.1 else 0.0])


_TILT = -0.75
"""Pitch of the hand at the switch [rad]: the fingers point at the tilted front."""


def _switch(turns_on: bool, state: WorldState, spec: SceneSpec, style: ExpertStyle) -> Goal:
    tool = state.tool_position
    euler = (np.pi, _TILT, np.pi / 2)
    origin = np.array([spec.switch_x + 0.015 * style.offset, 0.0609, 0.4949])
    bar = origin + PANEL_UP * state.switch + PANEL_OUT * 0.046
    along = float(np.dot(tool - bar, PANEL_UP))
    out = float(np.dot(tool - bar, PANEL_OUT))
    across = float(tool[0] - origin[0])
    sign = 1.0 if turns_on else -1.0
    wrong_turn = max(0.0, _yaw_error(state, euler) - 0.25)
    if abs(across) < 0.025 and sign * along < -0.006 and abs(out) < 0.03 and wrong_turn == 0:
        return Goal(position=tool + sign * PANEL_UP * 0.1 - PANEL_OUT * out, euler=euler, speed=0.8)
    # A funnel towards the contact: the farther beside it, the farther out. Without a border between coming and going
    # there is no place where a learner that averages both would hover.
    contact = bar - sign * PANEL_UP * 0.052
    beside = float(np.hypot(across, along + sign * 0.052))
    clearance = min(0.075, max(0.0, 3.0 * (beside - 0.015), 0.3 * wrong_turn))
    goal = contact + PANEL_OUT * clearance
    if np.linalg.norm(tool - goal) > 0.12 and tool[2] < 0.5:
        return Goal(position=np.array([tool[0], tool[1] - 0.02, 0.6]), euler=euler)
    return Goal(position=goal, euler=euler)


def _button(state: WorldState, spec: SceneSpec, style: ExpertStyle) -> Goal:
    tool = state.tool_position
    x, y = spec.button_x + 0.008 * style.offset, -0.12
    if np.hypot(tool[0] - x, tool[1] - y) < 0.016:
        if state.button > 0.008 and tool[2] < 0.5:
            return Goal(position=np.array([x, y, 0.462]))
        return Goal(position=np.array([x, y, 0.462]))
    return _travel(state, np.array([x, y, 0.54]), 0.54 + 0.5 * style.hover)
