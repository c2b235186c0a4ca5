"""Whether a task can begin in a state: the door is open enough, a block has clearance, the hand holds the right one."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from .scenes import DOOR_WIDTH, SceneSpec, reachable
from .tasks import COLORS, held_alone, on_a_block_alone
from .world import WorldState

_HAND_ROOM = 0.065
"""Distance between block centers that leaves room for the fingers [m]."""


def feasible(name: str, state: WorldState, spec: SceneSpec) -> bool:
    """Return whether a task can be begun; a block in the hand is put down first where the task does not need it."""
    if name in _FURNITURE:
        return _FURNITURE[name](state)
    if name in _HANDLING:
        return _HANDLING[name](state, spec)
    verb, color, *rest = name.split("_")
    if verb == "lift":
        return {"table": _on_desk, "slider": _on_shelf, "drawer": _in_drawer}[rest[-1]](color, state, spec) and _free(
            color, state, spec
        )
    if not _on_desk(color, state, spec):
        return False
    if verb == "rotate":
        return _free(color, state, spec)
    # What a block touches at the start of a push it must touch at the end: one that leans on the door cannot.
    if state.contacts[color] - {("robot", "")} != {("table", "base_link")}:
        return False
    return _way_is_free(color, 1 if name.endswith("right") else -1, state, spec)


_AFTER_A_LIFT = ("place_in_slider", "place_in_drawer", "stack_block", "unstack_block")


def prerequisites(name: str, color: str) -> list[str]:
    """Return the tasks to do before `name` can be begun from a fresh scene, with the block of a color where any will
    do."""
    if name.startswith("lift_") and name.endswith("_drawer"):
        return [name.replace("_drawer", "_table"), "place_in_drawer"]
    if name not in _AFTER_A_LIFT:
        return []
    lift = f"lift_{color}_block_table"
    return [lift, "stack_block"] if name == "unstack_block" else [lift]


def sample_prerequisites(name: str, rng: np.random.Generator) -> list[str]:
    """Return `prerequisites` with a block of a random color."""
    return prerequisites(name, COLORS[rng.integers(len(COLORS))] if name in _AFTER_A_LIFT else "")


def drawer_is_open(state: WorldState) -> bool:
    """Return whether the drawer is far enough out for a block."""
    return state.drawer > 0.15


_FURNITURE: dict[str, Callable[[WorldState], bool]] = {
    "open_drawer": lambda state: state.drawer < 0.06,
    "close_drawer": drawer_is_open,
    "move_slider_left": lambda state: state.slider < 0.06,
    "move_slider_right": lambda state: state.slider > 0.18,
    "turn_on_lightbulb": lambda state: not state.bulb,
    "turn_off_lightbulb": lambda state: state.bulb,
    "turn_on_led": lambda state: not state.led,
    "turn_off_led": lambda state: state.led,
}


def _can_stack(state: WorldState, spec: SceneSpec) -> bool:
    held = held_alone(state)
    return held is not None and any(
        c != held and _on_desk(c, state, spec) and _free(c, state, spec) for c in state.blocks
    )


def _can_push_into_drawer(state: WorldState, spec: SceneSpec) -> bool:
    alone = [c for c in COLORS if state.contacts[c] == {("table", "base_link")}]
    return drawer_is_open(state) and any(_on_desk(c, state, spec) and _free(c, state, spec) for c in alone)


_HANDLING: dict[str, Callable[[WorldState, SceneSpec], bool]] = {
    "place_in_slider": lambda state, spec: held_alone(state) is not None,
    "place_in_drawer": lambda state, spec: held_alone(state) is not None and drawer_is_open(state),
    "stack_block": _can_stack,
    "unstack_block": lambda state, spec: any(on_a_block_alone(c, state) for c in COLORS),
    "push_into_drawer": _can_push_into_drawer,
}


def _on_desk(color: str, state: WorldState, spec: SceneSpec) -> bool:
    x, y, _ = state.blocks[color][0]
    if ("table", "base_link") not in state.contacts[color] or not -0.165 <= y <= -0.005:
        return False
    return spec.spawn_x[0] - 0.12 < x < spec.spawn_x[1] + 0.03 and reachable(x, y)


def _on_shelf(color: str, state: WorldState, spec: SceneSpec) -> bool:
    """Return whether a block stands in the cabinet and not behind the door."""
    x = state.blocks[color][0][0]
    door = spec.slider_x - state.slider
    behind = door - _HAND_ROOM < x < door + DOOR_WIDTH + _HAND_ROOM
    return ("table", "plank_link") in state.contacts[color] and not behind


def _in_drawer(color: str, state: WorldState, spec: SceneSpec) -> bool:
    """Return whether a block lies in the drawer and the drawer is far enough out."""
    return ("table", "drawer_link") in state.contacts[color] and state.blocks[color][0][1] < -0.215


def _others(color: str, state: WorldState) -> list[np.ndarray]:
    return [p[:2] for c, (p, _) in state.blocks.items() if c != color and p[2] < 0.5]


def _free(color: str, state: WorldState, spec: SceneSpec) -> bool:
    """Return whether the fingers have clearance around a block."""
    place = state.blocks[color][0][:2]
    if any(np.linalg.norm(other - place) <= _HAND_ROOM for other in _others(color, state)):
        return False
    return bool(np.linalg.norm(place - spec.button_xy) >= 0.085)


def _way_is_free(color: str, direction: int, state: WorldState, spec: SceneSpec) -> bool:
    """Return whether a block can be pushed by 0.13 m and the hand has clearance behind it."""
    x, y, _ = state.blocks[color][0]
    goal_x, start_x = x + direction * 0.13, x - direction * 0.09
    if not -0.38 < goal_x < 0.40 or not start_x > -0.33 or not reachable(start_x, y) or not reachable(goal_x, y):
        return False
    for other in [*_others(color, state), np.array(spec.button_xy)]:
        if -0.15 < (other[0] - x) * direction < 0.22 and abs(other[1] - y) < 0.085:
            return False
    return True
