"""CALVIN's world, whoever simulates it: the state that tasks and experts read, and its methods beside a simulator's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ..simulation.simulator import PoseSimulator
from .scenes import SceneSpec


@dataclass(frozen=True, kw_only=True)
class WorldState:
    """Simulator state that tasks and scripted experts read.

    tool_position [m] and tool_quaternion xyzw in the world; finger_width [m]; gripper_command 0 or 1;
    slider, drawer, button, switch: joint values [m]; bulb, led: lit or not;
    blocks: color -> (position `[3]` [m], quaternion `[4]` xyzw);
    contacts: block color -> set of (body, link) names that touch it, link "" except for the table's;
    robot_contacts: names of the bodies that touch the robot; velocities: color -> linear [m/s] and angular
    [rad/s] velocity, `[6]`.
    """

    tool_position: np.ndarray
    tool_quaternion: np.ndarray
    finger_width: float
    gripper_command: float
    slider: float
    drawer: float
    button: float
    switch: float
    bulb: bool
    led: bool
    blocks: Mapping[str, tuple[np.ndarray, np.ndarray]]
    contacts: Mapping[str, frozenset[tuple[str, str]]] = field(default_factory=dict)
    robot_contacts: frozenset[str] = frozenset()
    velocities: Mapping[str, np.ndarray] = field(default_factory=dict)


class World(PoseSimulator, Protocol):
    """A simulator of CALVIN's world: `PlayTable`, or the official one (`calvin.official`).

    The options of `reset` are `robot_obs` `[15]` and `scene_obs` `[24]`; either may be absent.

    judged: the state that `success` judged last, or that the task began in.
    """

    spec_scene: SceneSpec
    judged: WorldState
    calvin_root: Path | None

    def set_state(self, robot_obs: Any = None, scene_obs: Any = None) -> None:
        """Put arm and scene in place in the present world."""

    def step(self, action: np.ndarray) -> Any:
        """Move by one of CALVIN's relative actions `[7]`."""

    def apply_action(self, values: np.ndarray) -> None:
        """Advance by one control step by a relative `[7]` or absolute `[8]` action of CALVIN."""

    def step_pose(self, position: np.ndarray, quaternion: np.ndarray, gripper: float) -> None:
        """Move for one control step towards a tool pose in world coordinates with CALVIN's own control."""

    def world_state(self) -> WorldState:
        """Return the privileged state that tasks and experts read."""
        ...

    def robot_obs(self) -> np.ndarray:
        """Return CALVIN's `robot_obs` `[15]`."""
        ...

    def scene_obs(self) -> np.ndarray:
        """Return CALVIN's `scene_obs` `[24]`."""
        ...
