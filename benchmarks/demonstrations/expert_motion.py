"""What scripted experts share: styles, goals, and how the tool travels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.spatial.transform import Rotation

from ..playtable.world import WorldState

HAND_DOWN = (np.pi, 0.0, np.pi / 2)
"""Fixed-axis euler angles of the hand that points down [rad]."""

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
        """Sample a style."""
        return ExpertStyle(lead=rng.uniform(0.028, 0.032), hover=rng.uniform(-0.01, 0.015), offset=rng.uniform(-1, 1))


@dataclass(frozen=True, kw_only=True)
class Goal:
    """Where the tool should go: position [m] and fixed-axis euler [rad] in the world, gripper 0 or 1, speed factor."""

    position: np.ndarray
    euler: tuple[float, float, float] = HAND_DOWN
    gripper: float = 0.0
    speed: float = 1.0


def travel(
    state: WorldState,
    above: np.ndarray,
    hover_z: float,
    *,
    euler: tuple[float, float, float] = HAND_DOWN,
    gripper: float = 0.0,
) -> Goal:
    """Go to a place by way of the travelling height: rise first, then move across, both slanted."""
    tool = state.tool_position
    across = float(np.linalg.norm(above[:2] - tool[:2]))
    if across > 0.04 and tool[2] < hover_z - 0.03:
        xy = tool[:2] + 0.15 * (above[:2] - tool[:2])
        return Goal(position=np.array([*xy, hover_z]), euler=euler, gripper=gripper)
    z = max(float(above[2]), hover_z) if across > 0.04 else float(above[2])
    return Goal(position=np.array([above[0], above[1], z]), euler=euler, gripper=gripper)


def yaw_error(state: WorldState, euler: tuple[float, float, float]) -> float:
    """Return the angle between the hand and the wanted orientation [rad]."""
    current = Rotation.from_quat(state.tool_quaternion)
    return float(np.linalg.norm((Rotation.from_euler("xyz", euler) * current.inv()).as_rotvec()))


def ramp(value: float, begin: float, slope: float, most: float) -> float:
    """Return 0 up to `begin`, then a rise with `slope` up to `most`: how far to keep away while not yet aligned.

    Experts approach through such cones. Rules with a border between coming and going would leave places where a
    learner that averages both hovers for ever.
    """
    return min(most, max(0.0, slope * (value - begin)))


def clearance_share(wanted: float, got: float) -> float:
    """Return the share of a sideways move to make now: 1 with the clearance `wanted` [m], 0 where 4 cm are missing."""
    return 1.0 - ramp(wanted - got, 0.01, 1 / 0.03, 1.0)
