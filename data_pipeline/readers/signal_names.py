"""Infer signals from the names of numbers: joints, grippers, positions and rotations, arm by arm.

The names are those that LeRobot keeps in `meta/info.json`: "shoulder_pan.pos", "left_waist", "kLeftShoulderPitch", "x".
What a name does not show stays unknown: joints and positions get no unit, generic names ("motor_0") no kind.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ...embodiment import AS_STORED, Signal, SignalKind

_SIDES = ("left", "right")
_HAND = {"hand", "finger", "thumb", "index", "middle", "ring", "pinky", "little"}
_LEG = {"hip", "knee", "ankle", "leg", "foot", "toe"}
_HEAD = {"head", "neck"}
_JOINT = {
    *(
        "joint",
        "joints",
        "shoulder",
        "elbow",
        "wrist",
        "waist",
        "forearm",
        "torso",
        "qpos",
        "pan",
        "tilt",
        "lift",
        "flex",
    ),
    *_HAND,
    *_LEG,
    *_HEAD,
}
_NUMBERED_JOINT = re.compile(r"(j|joint|q)\d+")
_RATES = {"vel", "velocity", "velocities", "speed", "qvel"}
_FORCES = {"torque", "effort", "force", "current"}
_QUANTITIES = {"pos", "position", "positions", "cmd", "command", "target", "goal", "action", "state", "m", "rad"}
_FRAMES = {"ee", "eef", "end", "effector", "tool", "tcp", "arm", "pose", "cartesian", "delta", "link", "world", "xyz"}
_ROTATED = {"rot", "rotation", "ori", "orientation", "quat", "quaternion", "euler", "rpy", "rotvec", "axisangle"}
_BASE = {"base", "body", "linear", "angular"}
_AXES = {"x", "y", "z", "w", "qx", "qy", "qz", "qw", "rx", "ry", "rz", "roll", "pitch", "yaw", "theta"}
_DELTA_AXES = {f"d{axis}": axis for axis in ("x", "y", "z", "roll", "pitch", "yaw")}

_ROTATIONS: Mapping[tuple[str, ...], str] = {
    ("qx", "qy", "qz", "qw"): "quaternion_xyzw",
    ("qw", "qx", "qy", "qz"): "quaternion_wxyz",
    ("x", "y", "z", "w"): "quaternion_xyzw",
    ("w", "x", "y", "z"): "quaternion_wxyz",
    ("roll", "pitch", "yaw"): "euler_xyz",
    ("yaw", "pitch", "roll"): "euler_ZYX",
}
"""Axes in a row -> convention; roll, pitch and yaw turn about the fixed x, y and z. Source: REP 103 of ROS."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Number:
    """One number: kind is empty for an axis of a pose; prefix: `left_arm.` or the like; rest: words beside the axis."""

    name: str
    kind: SignalKind | None
    prefix: str
    axis: str = ""
    rest: frozenset[str] = frozenset()

    @property
    def pose(self) -> tuple[str, frozenset[str]]:
        """What the axes of one pose share."""
        return self.prefix, self.rest


def flat_names(names: Any) -> tuple[str, ...]:
    """Return the names of numbers in order, from any form in which LeRobot keeps them; empty where there are none.

    Forms: a list, a list in a list, `{"motors": [...]}`, or name -> place.
    """
    if isinstance(names, Mapping):
        values = list(names.values())
        if values and all(isinstance(value, int) and not isinstance(value, bool) for value in values):
            return tuple(str(name) for name, _ in sorted(names.items(), key=lambda item: item[1]))
        names = values
    if isinstance(names, str) or not isinstance(names, Sequence):
        return ()
    found: list[str] = []
    for name in names:
        found += flat_names(name) if isinstance(name, Mapping | list | tuple) else [str(name)]
    return tuple(found)


def signals_of_names(names: Sequence[str], *, otherwise: str) -> tuple[Signal, ...]:
    """Group numbers into signals by their names, in order.

    Args:
        names: one for each number.
        otherwise: name of a signal whose names show nothing.

    Returns:
        Signals whose widths add up to the number of names; their reference is `delta` where the names show that, else
        `unknown`.
    """
    numbers = [_number(name) for name in names]
    signals: list[Signal] = []
    i = 0
    while i < len(numbers):
        signal = _pose_signal(numbers[i:]) or _plain_signal(numbers[i:], otherwise)
        if signals and signal.kind == "other" and signals[-1].kind == "other" and signals[-1].name == signal.name:
            last = signals.pop()
            signal = replace(signal, width=last.width + signal.width, parts=last.parts + signal.parts)
            i -= last.width
        signals.append(signal)
        i += signal.width
    return different_names(signals)


def different_names(signals: Sequence[Signal]) -> tuple[Signal, ...]:
    """Number the signals of one name: `gripper`, `gripper_2`."""
    seen, found = Counter[str](), []
    for signal in signals:
        seen[signal.name] += 1
        count = seen[signal.name]
        found.append(signal if count == 1 else replace(signal, name=f"{signal.name}_{count}"))
    return tuple(found)


def words_of(name: str) -> list[str]:
    """Split a name into small words: `kLeftShoulderPitch` -> left, shoulder, pitch."""
    name = re.sub(r"^k(?=[A-Z])", "", name)
    name = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name)
    return [word for word in re.split(r"[^a-z0-9]+", name.lower()) if word]


def kind_of_words(words: Sequence[str]) -> SignalKind:
    """Infer the kind of a number, or of a column of them, from the words of its name; `other` where they do not."""
    found = set(words)
    if any("gripper" in word for word in words):
        return "other" if found & (_RATES | _FORCES) else "gripper"
    if found & _FORCES or not (found & _JOINT or any(_NUMBERED_JOINT.fullmatch(word) for word in words)):
        return "other"
    return "joint_velocity" if found & _RATES else "joint_position"


def _number(name: str) -> _Number:
    words = words_of(name)
    prefix = _prefix(words)
    core = [word for word in words if word not in (*_SIDES, *_QUANTITIES, *_RATES)]
    axis, rest = (core[-1], frozenset(core[:-1])) if core else ("", frozenset[str]())
    if axis in _DELTA_AXES:
        axis, rest = _DELTA_AXES[axis], rest | {"delta"}
    if axis in _AXES and not set(words) & _FORCES:
        if set(words) & _RATES:
            return _Number(name=name, kind="base_velocity" if rest <= _BASE else "other", prefix=prefix)
        if rest <= _FRAMES | _ROTATED:
            return _Number(name=name, kind=None, prefix=prefix, axis=axis, rest=rest)
    return _Number(name=name, kind=kind_of_words(words), prefix=prefix)


def _prefix(words: Sequence[str]) -> str:
    """Name the limb that a number belongs to; the only arm has no name."""
    found = set(words)
    limbs = (("hand", _HAND), ("leg", _LEG), ("head", _HEAD))
    limb = "" if "gripper" in found else next((limb for limb, those in limbs if found & those), "")
    side = next((side for side in _SIDES if side in words), "")
    if not side:
        return f"{limb}." if limb else ""
    return f"{side}_{limb or 'arm'}."


def _pose_signal(numbers: Sequence[_Number]) -> Signal | None:
    """Return the position or rotation that numbers begin with, None where they begin with none."""
    first = numbers[0]
    if first.kind is not None:
        return None
    for count in (4, 3):
        row = numbers[:count]
        if len(row) < count or any(n.kind is not None or n.pose != first.pose for n in row):
            continue
        axes = tuple(n.axis for n in row)
        parts = tuple(n.name for n in row)
        reference: Any = "delta" if "delta" in first.rest else "unknown"
        if axes in _ROTATIONS:
            return Signal(
                name=f"{first.prefix}tool_rotation",
                width=count,
                kind="rotation",
                unit="",
                rotation=_ROTATIONS[axes],
                reference=reference,
                parts=parts,
            )
        if axes == ("x", "y", "z") and not first.rest & _ROTATED:
            position: SignalKind = "position"
            name = f"{first.prefix}tool_position"
            return Signal(name=name, width=3, kind=position, unit="", reference=reference, parts=parts)
        if axes in (
            ("rx", "ry", "rz"),
            ("x", "y", "z"),
        ):  # Euler angles or a rotation vector: the names do not show which
            return Signal(name=f"{first.prefix}tool_rotation", width=3, reference=reference, parts=parts)
    return None


def _plain_signal(numbers: Sequence[_Number], otherwise: str) -> Signal:
    """Return the signal of the numbers of one kind and limb that come first; a gripper stands alone."""
    kind, prefix = numbers[0].kind or "other", numbers[0].prefix
    count = 1 if kind in ("gripper", "other") else _run(numbers, kind, prefix)
    names: dict[str, str] = {
        "gripper": f"{prefix}gripper",
        "joint_position": f"{prefix}joint_positions",
        "joint_velocity": f"{prefix}joint_velocities",
        "base_velocity": "base_velocity",
    }
    parts = tuple(n.name for n in numbers[:count])
    unit = AS_STORED if kind == "gripper" else ""
    return Signal(name=names.get(kind, otherwise), width=count, kind=kind, unit=unit, reference="unknown", parts=parts)


def _run(numbers: Sequence[_Number], kind: str, prefix: str) -> int:
    count = 0
    while count < len(numbers) and (numbers[count].kind, numbers[count].prefix) == (kind, prefix):
        count += 1
    return count
