"""Scripted experts: closed-loop controllers on simulator state, one for each family of tasks.

An expert is a function of the present state alone: it has no phase counter. So it goes back and tries again after a
miss, it can label any state that a noisy hand reaches, and what it does can be learnt from one observation.
"""

from __future__ import annotations

import numpy as np
from scipy.spatial.transform import Rotation

from .expert_blocks import let_go, lift, push
from .expert_doors import button, drawer, slider, switch
from .expert_handling import into_drawer, lift_from_shelf, place_in_drawer, place_on_shelf, rotate, stack, unstack
from .expert_motion import ExpertStyle, Goal
from .scenes import SceneSpec
from .world import WorldState


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
    if name in ("place_in_slider", "place_in_drawer", "stack_block"):  # begin with a block in the hand
        if name == "stack_block":
            return stack(state, spec, style)
        return (place_on_shelf if name == "place_in_slider" else place_in_drawer)(state, spec, style)
    if name == "push_into_drawer":
        return into_drawer(state, spec, style)
    if name == "unstack_block":
        return unstack(state, style)
    verb, colour, *rest = name.split("_")
    held = next((c for c, (p, _) in state.blocks.items() if np.linalg.norm(p - state.tool_position) < 0.03), None)
    if held is not None and not (verb in ("lift", "rotate") and held == colour):
        return let_go(state, spec, style)
    if verb == "lift":
        return lift_from_shelf(colour, state, style) if rest[-1] == "slider" else lift(colour, state, style)
    if verb == "rotate":
        return rotate(colour, 1 if rest[-1] == "right" else -1, state, style)
    if verb == "push":
        return push(colour, 1 if rest[-1] == "right" else -1, state, style)
    if name.endswith("drawer"):
        return drawer(name == "open_drawer", state, spec, style)
    if name.startswith("move_slider"):
        return slider(-1 if name.endswith("left") else 1, state, spec, style)
    if name.endswith("lightbulb"):
        return switch(name == "turn_on_lightbulb", state, spec, style)
    return button(state, spec, style)
