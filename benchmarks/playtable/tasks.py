"""CALVIN's tasks as plain functions of the state at the start and now.

Source: thresholds of CALVIN's task file (mees/calvin, new_playtable_tasks).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ...gr_model.errors import ConfigError
from .environment import WorldState
from .scenes import reachable

COLOURS = ("red", "blue", "pink")
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


def _pushed(colour: str, direction: int) -> Judge:
    """Judge a block that slid by more than 0.1 m along x and still stands on what it stood on."""

    def done(start: WorldState, now: WorldState) -> bool:
        before = {c for c in start.contacts[colour] if c[0] != "robot"}
        after = {c for c in now.contacts[colour] if c[0] != "robot"}
        distance = now.blocks[colour][0][0] - start.blocks[colour][0][0]
        return bool(before and after and before <= after and distance * direction > 0.1)

    return done


def _lifted(colour: str, height: float, link: str) -> Judge:
    """Judge a block that rose by `height` [m] from a link of the table and touches the robot alone."""

    def done(start: WorldState, now: WorldState) -> bool:
        rise = now.blocks[colour][0][2] - start.blocks[colour][0][2]
        held = {c[0] for c in now.contacts[colour]} == {"robot"}
        return bool(rise > height and held and ("table", link) in start.contacts[colour])

    return done


def _all_tasks() -> dict[str, Task]:
    rows: list[tuple[str, str, Judge]] = [
        ("open_drawer", "drawer", _moved("drawer", 0.12)),
        ("close_drawer", "drawer", _moved("drawer", -0.12)),
        ("move_slider_left", "slider", _moved("slider", 0.15)),
        ("move_slider_right", "slider", _moved("slider", -0.15)),
        ("turn_on_lightbulb", "lightbulb", _toggled("bulb", True)),
        ("turn_off_lightbulb", "lightbulb", _toggled("bulb", False)),
        ("turn_on_led", "led", _toggled("led", True)),
        ("turn_off_led", "led", _toggled("led", False)),
    ]
    for colour in COLOURS:
        rows.append((f"push_{colour}_block_left", "push", _pushed(colour, -1)))
        rows.append((f"push_{colour}_block_right", "push", _pushed(colour, 1)))
        rows.append((f"lift_{colour}_block_table", "lift", _lifted(colour, 0.05, "base_link")))
    return {name: Task(name=name, family=family, done=done) for name, family, done in rows}


TASKS = _all_tasks()
"""The 17 tasks of six families that the scripted experts demonstrate."""


def task(name: str) -> Task:
    """Return the task called `name`.

    Raises:
        ConfigError: no such task.
    """
    if name not in TASKS:
        raise ConfigError(f"Task: expected one of {', '.join(TASKS)}, got {name!r}.")
    return TASKS[name]


def feasible(name: str, state: WorldState, spawn_x: tuple[float, float], button_xy: tuple[float, float]) -> bool:
    """Say whether a task can be begun in this state: the door is open enough, the block is on the desk with room to go.

    Args:
        spawn_x: x-range of the desk that the arm works on [m]; button_xy: place of the button [m].
    """
    if name == "open_drawer":
        return state.drawer < 0.06
    if name == "close_drawer":
        return state.drawer > 0.15
    if name == "move_slider_left":
        return state.slider < 0.06
    if name == "move_slider_right":
        return state.slider > 0.18
    if name in ("turn_on_lightbulb", "turn_off_lightbulb"):
        return state.bulb is (name == "turn_off_lightbulb")
    if name in ("turn_on_led", "turn_off_led"):
        return state.led is (name == "turn_off_led")
    verb, colour, *_ = name.split("_")
    position = state.blocks[colour][0]
    if ("table", "base_link") not in state.contacts[colour] or position[1] > -0.005 or position[1] < -0.165:
        return False
    if not (spawn_x[0] - 0.12 < position[0] < spawn_x[1] + 0.03) or not reachable(position[0], position[1]):
        return False
    others = [p for c, (p, _) in state.blocks.items() if c != colour and p[2] < 0.5]
    if verb == "lift":
        return all(np.linalg.norm(o[:2] - position[:2]) > 0.065 for o in others) and not _near(
            position, button_xy, 0.085
        )
    direction = 1 if name.endswith("right") else -1
    goal_x = position[0] + direction * 0.13
    start_x = position[0] - direction * 0.09
    if not -0.38 < goal_x < 0.40 or not start_x > -0.33 or not reachable(start_x, position[1]):
        return False
    if not reachable(goal_x, position[1]):
        return False
    corridor = [*(o[:2] for o in others), np.array(button_xy)]
    for other in corridor:
        ahead = (other[0] - position[0]) * direction
        if -0.15 < ahead < 0.22 and abs(other[1] - position[1]) < 0.085:
            return False
    return True


def _near(position: np.ndarray, xy: tuple[float, float], distance: float) -> bool:
    return bool(np.hypot(position[0] - xy[0], position[1] - xy[1]) < distance)
