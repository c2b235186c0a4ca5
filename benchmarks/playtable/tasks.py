"""CALVIN's tasks as plain functions of the state at the start and now.

Source: thresholds of CALVIN's task file (mees/calvin, new_playtable_tasks).
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.spatial.transform import Rotation

from ...errors import ConfigError
from .world import WorldState

COLORS = ("red", "blue", "pink")
Judge = Callable[[WorldState, WorldState], bool]


@dataclass(frozen=True, kw_only=True)
class Task:
    """A task: its name, its family (one family at most once in a chain), and when it is done."""

    name: str
    family: str
    done: Judge


def _moved(field: str, change: float) -> Judge:
    """Judge a joint that moved by more than `change` [m], in its direction."""

    def done(start: WorldState, now: WorldState) -> bool:
        difference = getattr(now, field) - getattr(start, field)
        return bool(difference > change if change > 0 else difference < change)

    return done


def _toggled(light: str, on: bool) -> Judge:
    def done(start: WorldState, now: WorldState) -> bool:
        return getattr(start, light) is not on and getattr(now, light) is on

    return done


def _pushed(color: str, direction: int) -> Judge:
    """Judge a block that slid by more than 0.1 m along x and still stands on what it stood on."""

    def done(start: WorldState, now: WorldState) -> bool:
        before = {c for c in start.contacts[color] if c[0] != "robot"}
        after = {c for c in now.contacts[color] if c[0] != "robot"}
        distance = now.blocks[color][0][0] - start.blocks[color][0][0]
        return bool(before and after and before <= after and distance * direction > 0.1)

    return done


_LINKS = {"table": "base_link", "slider": "plank_link", "drawer": "drawer_link"}
"""What of the table a block is lifted from."""


def _lifted(color: str, height: float, link: str) -> Judge:
    """Judge a block that rose by `height` [m] from a link of the table and touches the robot alone."""

    def done(start: WorldState, now: WorldState) -> bool:
        rise = now.blocks[color][0][2] - start.blocks[color][0][2]
        held = {c[0] for c in now.contacts[color]} == {"robot"}
        return bool(rise > height and held and ("table", link) in start.contacts[color])

    return done


def _rotated(color: str, degrees: float) -> Judge:
    """Judge a block turned about the vertical by more than `degrees`, in its direction, in place, not in the air."""

    def done(start: WorldState, now: WorldState) -> bool:
        (before, first), (after, last) = start.blocks[color], now.blocks[color]
        turn = Rotation.from_quat(last) * Rotation.from_quat(first).inv()
        x, y, z = turn.as_euler("xyz", degrees=True)
        in_place = np.linalg.norm(after - before) <= 0.1 and abs(x) < 30 and abs(y) < 30
        standing = any(body != "robot" for body, _ in now.contacts[color])
        return bool(in_place and standing and (z > degrees if degrees > 0 else z < degrees))

    return done


def held_alone(state: WorldState) -> str | None:
    """Return the color of the block that is all the robot touches and that touches nothing else."""
    held = [color for color in COLORS if state.robot_contacts == {f"block_{color}"}]
    if held and {body for body, _ in state.contacts[held[0]]} == {"robot"}:
        return held[0]
    return None


def _placed(link: str) -> Judge:
    """Judge a block that was held and now lies, let go, on a link of the table."""

    def done(start: WorldState, now: WorldState) -> bool:
        held = held_alone(start)
        if held is None:
            return False
        return ("table", link) in now.contacts[held] and all(body != "robot" for body, _ in now.contacts[held])

    return done


def on_a_block_alone(color: str, state: WorldState) -> bool:
    """Return whether a block at rest touches one other block and nothing else."""
    bodies = {body for body, _ in state.contacts[color]}
    slow = bool(np.all(np.abs(state.velocities[color]) < 1.0))
    return slow and len(bodies) == 1 and next(iter(bodies)).startswith("block_")


def _touches_a_block(color: str, state: WorldState) -> bool:
    return any(body.startswith("block_") for body, _ in state.contacts[color])


def _stacked(start: WorldState, now: WorldState) -> bool:
    return any(not _touches_a_block(c, start) and on_a_block_alone(c, now) for c in COLORS)


def _unstacked(start: WorldState, now: WorldState) -> bool:
    return any(on_a_block_alone(c, start) and not _touches_a_block(c, now) for c in COLORS)


def _pushed_into_drawer(start: WorldState, now: WorldState) -> bool:
    """Judge a block that stood on the desk alone and now touches the drawer (that the robot may not is dead code)."""
    return any(
        start.contacts[c] == {("table", "base_link")} and ("table", "drawer_link") in now.contacts[c] for c in COLORS
    )


def can_succeed(task: Task, start: WorldState) -> bool:
    """Return whether a task can be judged done at all from where it began, whatever is done then.

    CALVIN's judges compare with the start: a block that the hand still touches when a task begins stands on nothing
    alone, and can then be brought into the drawer without success.
    """
    color = next((c for c in COLORS if c in task.name), "")
    if task.family == "push":
        return any(body != "robot" for body, _ in start.contacts[color])
    if task.family == "lift":
        return ("table", _LINKS[task.name.rpartition("_")[2]]) in start.contacts[color]
    if task.family == "place":
        return held_alone(start) is not None
    if task.family == "stack":
        return any(not _touches_a_block(c, start) for c in COLORS)
    if task.family == "unstack":
        return any(on_a_block_alone(c, start) for c in COLORS)
    if task.family == "push_into":
        return any(start.contacts[c] == {("table", "base_link")} for c in COLORS)
    return True


def _all_tasks() -> dict[str, Task]:
    rows: list[tuple[str, str, Judge]] = []
    for verb, judge, scale in (("rotate", _rotated, -60), ("push", _pushed, 1)):
        for color in COLORS:
            for side, sign in (("right", 1), ("left", -1)):
                rows.append((f"{verb}_{color}_block_{side}", verb, judge(color, sign * scale)))
    rows += [
        ("move_slider_left", "slider", _moved("slider", 0.15)),
        ("move_slider_right", "slider", _moved("slider", -0.15)),
        ("open_drawer", "drawer", _moved("drawer", 0.12)),
        ("close_drawer", "drawer", _moved("drawer", -0.12)),
    ]
    for color in COLORS:
        for place, height in (("table", 0.05), ("slider", 0.03), ("drawer", 0.05)):
            rows.append((f"lift_{color}_block_{place}", "lift", _lifted(color, height, _LINKS[place])))
    rows += [
        ("place_in_slider", "place", _placed("plank_link")),
        ("place_in_drawer", "place", _placed("drawer_link")),
        ("stack_block", "stack", _stacked),
        ("unstack_block", "unstack", _unstacked),
        ("turn_on_lightbulb", "lightbulb", _toggled("bulb", True)),
        ("turn_off_lightbulb", "lightbulb", _toggled("bulb", False)),
        ("turn_on_led", "led", _toggled("led", True)),
        ("turn_off_led", "led", _toggled("led", False)),
        ("push_into_drawer", "push_into", _pushed_into_drawer),
    ]
    return {name: Task(name=name, family=family, done=done) for name, family, done in rows}


ALL_TASKS = _all_tasks()
"""CALVIN's 34 tasks, in its order."""

_FIXED = (
    *("open_drawer", "close_drawer", "move_slider_left", "move_slider_right"),
    *("turn_on_lightbulb", "turn_off_lightbulb", "turn_on_led", "turn_off_led"),
)
_BLOCK = ("push_{}_block_left", "push_{}_block_right", "lift_{}_block_table")
TASKS = {name: ALL_TASKS[name] for name in (*_FIXED, *(form.format(color) for color in COLORS for form in _BLOCK))}
"""The 17 tasks of six families that the scripted experts demonstrate."""


def task(name: str) -> Task:
    """Return the task called `name`.

    Raises:
        ConfigError: no such task.
    """
    if name not in ALL_TASKS:
        near = difflib.get_close_matches(name, ALL_TASKS, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"expected one of {', '.join(ALL_TASKS)}."
        raise ConfigError(f"Task: got {name!r}; {hint}")
    return ALL_TASKS[name]


def choose_tasks(names: str) -> list[str]:
    """Return the tasks that an option names: "demonstrated" (17), "all" (34), or names separated by commas.

    Raises:
        ConfigError: no such task.
    """
    if names in ("demonstrated", "all"):
        return list(TASKS if names == "demonstrated" else ALL_TASKS)
    return [task(name.strip()).name for name in names.split(",")]
