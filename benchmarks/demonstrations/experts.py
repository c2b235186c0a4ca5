"""Scripted experts: closed-loop controllers on simulator state, one for each family of tasks.

An expert is a function of the present state alone: it has no phase counter. So it goes back and tries again after a
miss, it can label any state that a noisy hand reaches, and what it does can be learnt from one observation.
"""

from __future__ import annotations

import numpy as np
from scipy.spatial.transform import Rotation

from ..playtable.scenes import SceneSpec
from ..playtable.world import WorldState
from .expert_blocks import let_go, lift, push
from .expert_clearance import block_at_hand, neighbor_to_move, out_of_bar_gap, out_of_cabinet
from .expert_doors import button, drawer, slider, switch
from .expert_handling import (
    OPEN_ENOUGH,
    into_drawer,
    lift_from_drawer,
    place_in_drawer,
    rotate,
    stack,
    unstack,
)
from .expert_motion import ExpertStyle, Goal
from .expert_shelf import lift_from_shelf, place_on_shelf


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
    verb, color, *rest = name.split("_")
    out = _way_out(name, state, spec)
    if out is not None:
        return out
    if name in ("place_in_slider", "place_in_drawer", "stack_block"):  # begin with a block in the hand
        if name == "stack_block":
            return stack(state, spec, style)
        return (place_on_shelf if name == "place_in_slider" else place_in_drawer)(state, spec, style)
    if name == "push_into_drawer":
        return into_drawer(state, spec, style)
    if name == "unstack_block":
        return unstack(state, spec, style)
    held = block_at_hand(state)
    if verb in ("lift", "rotate", "push") and held != color:
        neighbor = neighbor_to_move(name, state, spec)
        if neighbor is not None:
            return (lift_from_shelf if rest[-1] == "slider" else lift)(neighbor, state, spec, style)
    if verb == "push" and state.blocks[color][0][1] > _SWEEPABLE_Y and (held is None or held == color):
        closed = state.gripper_command == 0 and held == color and state.finger_width < 0.052
        return (let_go if closed else lift)(color, state, spec, style)
    if held is not None and not (verb in ("lift", "rotate") and held == color):
        return let_go(held, state, spec, style)
    if verb == "lift":
        return _LIFT[rest[-1]](color, state, spec, style)
    if verb == "rotate":
        return rotate(color, 1 if rest[-1] == "right" else -1, state, spec, style)
    if verb == "push":
        return push(color, 1 if rest[-1] == "right" else -1, state, spec, style)
    if name.endswith("drawer"):
        return drawer(name == "open_drawer", state, spec, style)
    if name.startswith("move_slider"):
        return slider(-1 if name.endswith("left") else 1, state, spec, style)
    if name.endswith("lightbulb"):
        return switch(name == "turn_on_lightbulb", state, spec, style)
    return button(state, spec, style)


_SWEEPABLE_Y = -0.033
"""Up to where a block can be pushed along the cabinet [m]; nearer ones are first put down farther away."""
_LIFT = {"table": lift, "slider": lift_from_shelf, "drawer": lift_from_drawer}


def _way_out(name: str, state: WorldState, spec: SceneSpec) -> Goal | None:
    """Leave where the task before has ended, unless this one works there."""
    at_switch = name.endswith("lightbulb") and abs(state.tool_position[0] - spec.switch_x) < 0.1
    if not at_switch and not name.endswith("slider"):
        out = out_of_cabinet(state)
        if out is not None:
            return out
    pulls = name in ("open_drawer", "close_drawer") or (name.endswith("drawer") and state.drawer < OPEN_ENOUGH)
    return None if pulls else out_of_bar_gap(state, spec)
