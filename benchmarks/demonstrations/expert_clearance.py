"""Where an expert has room: the grasp that clears what stands around, a free place on the desk, the way out."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy.spatial.transform import Rotation

from ..playtable.scenes import BUTTON_RADIUS, SceneSpec, reachable
from ..playtable.world import WorldState
from .expert_motion import Goal

_FINGER_FROM_TOOL, _FINGER_RADIUS = 0.05, 0.016
"""Where the open fingers are, to both sides of the tool, and the circle around each [m]."""
_GRASP_SHIFT = 0.009
"""How far to a side of a block's middle the open hand may come down [m]."""
_FRONT_Y, _HANDLE_Y, _HANDLE_ABOVE = -0.002, -0.027, 0.03
"""Where the cabinet begins at the height of the desk, the door's handle, and how far that is above the tool [m]."""
_HANDLE_REACH_Y, _HALF_PALM = -0.065, 0.13
"""Where the palm of a hand that points down meets the door's handle [m]."""
_PALM_HEIGHT, _PALM_DEPTH = 0.065, 0.035
"""Underside of the palm above the tool, and half its thickness [m]."""
_ASKEW = 0.35
"""How far a hand between block and handle may stay parallel to the cabinet [rad]."""
_SAME_LEVEL = 0.035
_APART = (0.15, 0.11, 0.075)
"""Distances from other blocks at which one is put down, the first that can be had [m]."""
_SHORT = 0.06
"""Blocks up to this length can be grasped along either side [m]."""


def block_yaw(quaternion: np.ndarray) -> float:
    """Return the grasp yaw [rad] in [0, pi) across a block's long side (it looks the same after half a turn)."""
    x_axis = Rotation.from_quat(quaternion).apply([1.0, 0.0, 0.0])
    return float(np.arctan2(x_axis[1], x_axis[0]) % np.pi)


@dataclass(frozen=True, kw_only=True)
class Grasp:
    """How to come down on a block: where `[3]` [m], the hand's euler angles [rad], and the clearance it leaves [m]."""

    place: np.ndarray
    euler: tuple[float, float, float]
    clearance: float


def grasp(color: str, state: WorldState, spec: SceneSpec) -> Grasp:
    """Choose a grasp: across the long side, centered, pointing down where nothing stands near; else with most room."""
    center, quaternion = state.blocks[color]
    yaw = block_yaw(quaternion)
    yaws = [yaw] if spec.length(color) > _SHORT else [yaw, min(yaw + np.pi / 2, yaw - np.pi / 2, key=_from_natural)]
    tilts = [0.0]
    if center[1] > _HANDLE_REACH_Y and abs(center[0] - spec.handle_x + state.slider) < _HALF_PALM:
        tilts = [0.0, 0.35, 0.6]
        yaws.append(float(np.clip(yaw, np.pi / 2 - _ASKEW, np.pi / 2 + _ASKEW)))
    best = Grasp(place=center, euler=hand(yaw), clearance=-1.0)
    for shift, tilt, angle in itertools.product((0.0, _GRASP_SHIFT, -_GRASP_SHIFT), tilts, yaws):
        across = np.array([np.sin(angle), -np.cos(angle), 0.0])
        place = center + shift * across
        fingers = (_clearance(place + side * _FINGER_FROM_TOOL * across, tilt, color, state, spec) for side in (-1, 1))
        clearance = min(
            *(finger - _FINGER_RADIUS for finger in fingers), _palm_clearance(place, across, tilt, state, spec)
        )
        if clearance > 0.004:
            return Grasp(place=place, euler=hand(angle, tilt), clearance=clearance)
        if clearance > best.clearance + 0.002:
            best = Grasp(place=place, euler=hand(angle, tilt), clearance=clearance)
    return best


def _palm_clearance(place: np.ndarray, across: np.ndarray, tilt: float, state: WorldState, spec: SceneSpec) -> float:
    """Return how far the underside of the palm stays before the door's handle [m]."""
    along = np.linspace(-0.1, 0.1, 9)
    x, y = place[0] + along * across[0], place[1] + along * across[1]
    front = y - _PALM_HEIGHT * np.sin(tilt) + _PALM_DEPTH * np.cos(tilt)
    before = np.abs(x - spec.handle_x + state.slider) < 0.035
    return float(np.min(_HANDLE_Y - front[before], initial=1.0))


def hand(yaw: float, tilt: float = 0.0) -> tuple[float, float, float]:
    """Return euler angles [rad] of a hand that points down with a yaw and tilts back from the cabinet."""
    if tilt == 0.0:
        return (np.pi, 0.0, yaw)
    return _euler(Rotation.from_euler("x", tilt) * Rotation.from_euler("xyz", (np.pi, 0.0, yaw)))


def yaw_and_tilt(state: WorldState) -> tuple[float, float]:
    """Return the hand's turn about the vertical and how far it tilts back [rad]: the inverse of `hand`."""
    rotation = Rotation.from_quat(state.tool_quaternion)
    _, forward, up = rotation.apply([0.0, 0.0, 1.0])
    tilt = float(np.arctan2(forward, -up))
    return float((Rotation.from_euler("x", -tilt) * rotation).as_euler("xyz")[2]), tilt


def tilt_at(x: tuple[float, float], y: float, state: WorldState, spec: SceneSpec) -> float:
    """Return the tilt [rad] with which the hand passes the door's handle on its way between two x at a y [m]."""
    handle = spec.handle_x - state.slider
    near = y > _HANDLE_REACH_Y and min(x) - _HALF_PALM < handle < max(x) + _HALF_PALM
    return 0.35 if near else 0.0


def _from_natural(yaw: float) -> float:
    return abs(yaw - np.pi / 2)


def _clearance(point: np.ndarray, tilt: float, color: str, state: WorldState, spec: SceneSpec) -> float:
    """Return the distance from a fingertip to the nearest thing around it but the block `color` [m]."""
    return min([_SAME_LEVEL * 10, *_distances(point, tilt, color, state, spec)])


def _distances(point: np.ndarray, tilt: float, color: str, state: WorldState, spec: SceneSpec) -> Iterator[float]:
    if abs(point[2] - 0.46) < _SAME_LEVEL:
        yield _FRONT_Y - float(point[1])
        aside = max(0.0, abs(float(point[0]) - spec.handle_x + state.slider) - 0.02)
        yield float(np.hypot(aside, max(0.0, _HANDLE_Y - float(point[1]) + _HANDLE_ABOVE * np.tan(tilt))))
        yield float(np.hypot(*(point[:2] - spec.button_xy))) - BUTTON_RADIUS
    for other, (center, quaternion) in state.blocks.items():
        if other != color and abs(center[2] - point[2]) < _SAME_LEVEL:
            local = np.einsum("jk,k->j", _to_block(quaternion.tobytes()), point - center)
            beyond = np.abs(local[:2]) - [spec.length(other) / 2, 0.02]
            yield float(np.linalg.norm(np.maximum(beyond, 0.0)) + min(0.0, max(beyond)))


@lru_cache(maxsize=16)
def _to_block(quaternion: bytes) -> np.ndarray:
    """Return the rotation `[3 3]` into a block's frame; its quaternion (float64) is asked for many times a step."""
    return Rotation.from_quat(np.frombuffer(quaternion)).inv().as_matrix()


def neighbor_to_move(name: str, state: WorldState, spec: SceneSpec) -> str | None:
    """Return the block that must go first: it stands where the hand must be for a lift, a rotation or a push."""
    verb, color, *rest = name.split("_")
    center = state.blocks[color][0]
    if verb == "push":
        behind = center[:2] - [0.085 if rest[-1] == "right" else -0.085, 0.0]
        near = {
            c: p
            for c, (p, _) in state.blocks.items()
            if c != color and np.all(np.abs(p[:2] - behind) < [0.06, 0.05]) and abs(p[2] - center[2]) < _SAME_LEVEL
        }
    elif rest[-1] == "slider":
        return _before_on_shelf(color, state)
    elif grasp(color, state, spec).clearance > -0.008:
        return None
    else:
        near = {c: p for c, (p, _) in state.blocks.items() if c != color and np.linalg.norm(p - center) < 0.12}
    free = [c for c in near if grasp(c, state, spec).clearance > -0.008]
    return min(free, key=lambda c: float(np.linalg.norm(near[c] - center)), default=None)


def _before_on_shelf(color: str, state: WorldState) -> str | None:
    x, y, z = state.blocks[color][0]
    for other, (position, _) in state.blocks.items():
        aside, before, above = abs(position[0] - x), y - position[1], position[2] - z
        if other != color and position[1] > 0 and aside < 0.045 and (before > 0.02 or above > 0.02):
            return other
    return None


def free_desk_place(near: np.ndarray, color: str, state: WorldState, spec: SceneSpec) -> np.ndarray:
    """Return the place of the desk `[2]` nearest to a tool position where nothing else stands."""
    others = [p[:2] for c, (p, _) in state.blocks.items() if c != color and abs(p[2] - 0.46) < 0.06]
    others.append(np.array(spec.button_xy))
    low, high = spec.spawn_x
    wanted = np.array([np.clip(near[0], low, high), np.clip(near[1], -0.13, -0.05)])
    places = [wanted, *(np.array([x, y]) for x in np.linspace(low, high, 15) for y in (-0.13, -0.09, -0.05))]
    for apart in _APART:
        free = [p for p in places if reachable(*p) and min(float(np.linalg.norm(p - o)) for o in others) > apart]
        if free:
            return min(free, key=lambda p: float(np.linalg.norm(p - near[:2])))
    return wanted


def block_at_hand(state: WorldState) -> str | None:
    """Return the block in the hand, or the one that the open fingers still reach around."""
    for color, (position, _) in state.blocks.items():
        x, y, z = state.tool_position - position
        if np.hypot(x, y) < 0.03 and abs(z) < (0.065 if state.gripper_command == 1 and z > 0 else 0.03):
            return color
    return None


def held_block(state: WorldState) -> str | None:
    """Return the color of the block between the closed fingers."""
    for color, (position, _) in state.blocks.items():
        near = np.linalg.norm(position - state.tool_position) < 0.04
        if near and state.gripper_command == 0 and ("robot", "") in state.contacts[color]:
            return color
    return None


def level_hand(
    color: str, state: WorldState, *, yaw: float | None = None, turn: float = 0.0
) -> tuple[float, float, float]:
    """Return the hand's euler angles [rad] that bring the block in it level.

    Args:
        yaw: bring the hand to this turn about the vertical, too [rad].
        turn: turn hand and block on about the vertical by this much [rad].
    """
    hand, block = Rotation.from_quat(state.tool_quaternion), Rotation.from_quat(state.blocks[color][1])
    axes = block.as_matrix().T
    up = max([*axes, *-axes], key=lambda axis: float(axis[2]))
    axis = np.cross(up, [0.0, 0.0, 1.0])
    sine = float(np.linalg.norm(axis))
    upright = Rotation.from_rotvec(axis / max(sine, 1e-9) * np.arcsin(min(1.0, sine)))
    if yaw is not None:
        now = float((upright * hand).as_euler("xyz")[2])
        turn += yaw - now
    return _euler(Rotation.from_euler("z", turn) * upright * hand)


def out_of_cabinet(state: WorldState) -> Goal | None:
    """Return how to draw the hand out of the cabinet without turning it, None where it is not in there."""
    x, y, z = state.tool_position
    if y < 0.01 or z > 0.7:
        return None
    euler = _euler(Rotation.from_quat(state.tool_quaternion))
    return Goal(position=np.array([x, y - 0.1, z + 0.01]), euler=euler, gripper=state.gripper_command)


def out_of_bar_gap(state: WorldState, spec: SceneSpec) -> Goal | None:
    """Return how to rise from beside the drawer's bar without dragging it along, None where the hand is not there."""
    x, y, z = state.tool_position
    bar_y = -0.25 - state.drawer
    if z > 0.42 or abs(x - spec.drawer_x) > 0.11 or not -0.06 < y - bar_y < 0.07:
        return None
    euler = _euler(Rotation.from_quat(state.tool_quaternion))
    return Goal(position=np.array([x, y, z + 0.1]), euler=euler, gripper=state.gripper_command)


def _euler(rotation: Rotation) -> tuple[float, float, float]:
    roll, pitch, yaw = rotation.as_euler("xyz")
    return float(roll), float(pitch), float(yaw)
