"""How a task of CALVIN failed: how near the tool came to what it should have moved, and how far the motion got."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import numpy as np

from ..playtable.scenes import PANEL_OUT, PANEL_UP, SceneSpec
from ..playtable.tasks import ALL_TASKS, COLORS, can_succeed, held_alone, on_a_block_alone
from ..playtable.world import World, WorldState

Phase = Literal["approach", "contact", "motion", "wrong object", "in hand", "let go", "empty hand", "impossible"]
"""Where a failed task ended.

approach: the tool never came near; contact: it came near, nothing moved; motion: the right thing moved, not enough;
wrong object: another block or joint moved instead. Where a block is to be placed: in hand, it still is; let go,
it lies elsewhere; empty hand, none was there to place. impossible: whatever is done, the judge cannot be satisfied from
where the task before left the scene (`playtable.tasks.can_succeed`).
"""

NEAR = 0.05
"""Distance of the tool from its target [m] below which it has arrived."""
_MOVED = 0.01
"""How far a block has to move to count [m]."""
_TURNED = {"slider": 0.02, "drawer": 0.02, "switch": 0.005, "button": 0.001}
"""How far a joint of the furniture has to move to count [m]."""

_FURNITURE = {"slider": "slider", "drawer": "drawer", "lightbulb": "switch", "led": "button"}


class TaskWatch:
    """Watches one task from step to step."""

    def __init__(self, task: str, family: str, world: World, look: Callable[[], WorldState] | None = None) -> None:
        """Begin in the present state of `world`; `look` gives the state after a step, where it was read already."""
        self._world, self._spec, self._start = world, world.spec_scene, world.world_state()
        self._look = look or world.world_state
        self._joint = _FURNITURE.get(family, "")
        self._places = family in ("place", "stack")
        self._held = held_alone(self._start) if self._places else None
        self._colors = [] if self._joint or self._held else _blocks_of(task, self._start)
        self.hopeless = not can_succeed(ALL_TASKS[task], self._start)
        self._link = {"place_in_slider": "plank_link", "place_in_drawer": "drawer_link"}.get(task, "")
        self._turned: set[str] = set()
        self.closest = np.inf

    def see(self) -> None:
        """Note how near the tool is, and which joints have moved: the button springs back."""
        state = self._look()
        self._turned |= {n for n, least in _TURNED.items() if abs(getattr(state, n) - getattr(self._start, n)) > least}
        self.closest = min(self.closest, self._distance(state))

    def distance(self) -> float:
        """Return how far the tool, or the block in the hand, is now from where it has to go [m]."""
        return self._distance(self._world.world_state())

    def _distance(self, state: WorldState) -> float:
        targets = np.stack(self._targets(state))
        if self._held is not None:
            near = np.linalg.norm(targets[:, :2] - state.blocks[self._held][0][:2], axis=1)
        else:
            near = np.linalg.norm(targets - state.tool_position, axis=1)
        return float(near.min())

    def report(self) -> dict[str, Any]:
        """Return phase and closest approach [m] of a task that has failed, as JSON values."""
        closest = self.closest if np.isfinite(self.closest) else self.distance()
        return {"phase": self._phase(self._world.world_state()), "closest_m": round(closest, 4)}

    def _targets(self, state: WorldState) -> list[np.ndarray]:
        """Return where the tool, or the block in the hand, has to go `[n] [3]` [m]."""
        if self._joint:
            return [_handle(self._joint, state, self._spec)]
        if self._held is not None:
            if self._link:
                shelf = np.array([state.blocks[self._held][0][0], 0.08, 0.5])  # anywhere along it will do
                drawer = np.array([self._spec.drawer_x, -0.25 - state.drawer + 0.1, 0.36])
                return [shelf if self._link == "plank_link" else drawer]
            return [position for color, (position, _) in state.blocks.items() if color != self._held]
        return [state.blocks[color][0] for color in self._colors]

    def _phase(self, now: WorldState) -> Phase:
        start = self._start
        moved = {c for c in COLORS if np.linalg.norm(now.blocks[c][0] - start.blocks[c][0]) > _MOVED}
        if self._places and self._held is None:
            return "empty hand"
        if self.hopeless:
            return "impossible"
        if self._held is not None:
            return "in hand" if held_alone(now) == self._held else "let go"
        if self._joint in self._turned or moved & set(self._colors):
            return "motion"
        if moved or self._turned:
            return "wrong object"
        return "contact" if self.closest < NEAR else "approach"


def _blocks_of(task: str, start: WorldState) -> list[str]:
    """Return the colors of the blocks that a task may move."""
    named = [color for color in COLORS if color in task]
    if named:
        return named
    if task == "unstack_block":
        return [color for color in COLORS if on_a_block_alone(color, start)] or list(COLORS)
    return list(COLORS)


def _handle(joint: str, state: WorldState, spec: SceneSpec) -> np.ndarray:
    """Return where the hand takes hold of the furniture `[3]` [m]."""
    if joint == "slider":
        return np.array([spec.handle_x - state.slider, -0.015, 0.53])
    if joint == "drawer":
        return np.array([spec.drawer_x, -0.25 - state.drawer, 0.36])
    if joint == "button":
        return np.array([*spec.button_xy, 0.47])
    return np.asarray([spec.switch_x, 0.0609, 0.4949] + PANEL_UP * state.switch + PANEL_OUT * 0.046)
