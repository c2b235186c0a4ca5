"""What a robot sees, measures and commands: its cameras, state signals, action signals and control rate.

An `Embodiment` comes with the data, is kept in token shards and releases, and is compared wherever a policy meets a
dataset, a robot or a simulator.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, get_args

from .errors import ConfigError

SignalKind = Literal["position", "rotation", "joint_position", "joint_velocity", "gripper", "base_velocity", "other"]

Reference = Literal["absolute", "relative", "delta", "unknown"]
"""What the numbers of an action are counted from: a fixed frame or zero; the state when the chunk is predicted; the
step before; or not known, so that they can only be learned as they are."""

UNITS: Mapping[str, str] = {
    "position": "m",
    "rotation": "",
    "joint_position": "rad",
    "joint_velocity": "rad/s",
    "gripper": "",
    "base_velocity": "m/s",
    "other": "",
}
"""Usual unit of each kind of signal; rotations that are angles are in [rad]. Another kind with no unit has an unknown
one."""

CLOSING, EFFORT, AS_STORED = "closing", "effort", "as stored"
"""Units of a gripper that is not 0 closed to 1 open: 1 closed to 0 open; an effort of 1 (close) to -1 (open); of a
range and sense that are not known."""

_ROTATION_WIDTHS = {"quaternion_xyzw": 4, "quaternion_wxyz": 4, "rotation_vector": 3, "rotation_6d": 6, "matrix": 9}
_EULER = re.compile(r"euler_([xyz]{3}|[XYZ]{3})")


def rotation_width(convention: str) -> int:
    """Return how many numbers a rotation takes in storage.

    Args:
        convention: quaternion_xyzw, quaternion_wxyz, rotation_vector [rad], rotation_6d (first two columns of the
            matrix), matrix (row by row), or euler_ and three axes [rad], lower case about fixed axes, upper case about
            moving ones, as in scipy.

    Raises:
        ConfigError: no such convention.
    """
    euler = _EULER.fullmatch(convention)
    if euler and all(a != b for a, b in zip(euler[1], euler[1][1:], strict=False)):
        return 3
    if convention not in _ROTATION_WIDTHS:
        allowed = ", ".join([*_ROTATION_WIDTHS, "euler_xyz", "euler_ZYX"])
        raise ConfigError(f"rotation: expected one of {allowed} or other axes, got {convention!r}; correct the spec.")
    return _ROTATION_WIDTHS[convention]


@dataclass(frozen=True, slots=True, kw_only=True)
class Signal:
    """Numbers of a state or of an action that belong together.

    name: of the signal, unique among the states or among the actions of an embodiment; the two of one quantity share
        it (`left_arm.joint_positions` is measured and commanded).
    width: how many numbers are stored.
    kind: what they are. A position and a rotation of the same prefix (`tool_position`, `tool_rotation`) are one pose.
    unit: of the stored numbers; None is the usual one of the kind, empty is unknown where the kind has a usual one. A
        gripper without a unit is 0 closed to 1 open; others are `closing`, `effort` or `as stored`.
    rotation: how a rotation is stored, see `rotation_width`; empty for others.
    binary: a gripper that is only open (1) or closed (0); None where only the data can show it, which
        they do when tokens are written.
    reference: what an action is counted from; states are absolute.
    parts: a name for each number, such as the joints'; may be empty.

    Raises:
        ConfigError: a field has a value that it cannot have.
    """

    name: str
    width: int
    kind: SignalKind = "other"
    unit: str | None = None
    rotation: str = ""
    binary: bool | None = None
    reference: Reference = "absolute"
    parts: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        where = f"signal {self.name!r}"
        if not self.name:
            raise ConfigError("signal: expected a name, got none; name every signal.")
        if self.kind not in get_args(SignalKind):
            raise ConfigError(f"{where}: expected a kind of {', '.join(get_args(SignalKind))}, got {self.kind!r}.")
        if self.reference not in get_args(Reference):
            allowed = ", ".join(get_args(Reference))
            raise ConfigError(f"{where}: expected a reference of {allowed}, got {self.reference!r}.")
        if self.unit is None:
            angles = self.kind == "rotation" and rotation_width(self.rotation) == 3
            object.__setattr__(self, "unit", "rad" if angles else UNITS[self.kind])
        if self.kind == "rotation":
            wanted = rotation_width(self.rotation)
            if self.width != wanted:
                raise ConfigError(f"{where}: expected {wanted} numbers for {self.rotation}, got {self.width}.")
            if self.unit not in ("", "rad"):
                raise ConfigError(f"{where}: expected a rotation in rad, got {self.unit!r}; convert the data.")
        elif self.rotation:
            raise ConfigError(f"{where}: expected no rotation convention for a {self.kind}, got {self.rotation!r}.")
        if self.width < 1 or (self.kind == "position" and self.width != 3):
            wanted_width = "3 numbers" if self.kind == "position" else "1 or more numbers"
            raise ConfigError(f"{where}: expected {wanted_width}, got {self.width}.")
        if self.kind != "gripper":
            if self.binary:
                raise ConfigError(f"{where}: expected only a gripper to be binary, got a {self.kind}.")
            object.__setattr__(self, "binary", False)
        if self.parts and len(self.parts) != self.width:
            raise ConfigError(f"{where}: expected {self.width} part names, got {len(self.parts)}.")

    @property
    def is_opening(self) -> bool:
        """Return whether this is a gripper of 0 closed to 1 open."""
        return self.kind == "gripper" and not self.unit

    def unknown(self, is_action: bool) -> list[str]:
        """Return what is not known of the numbers, in words for people; empty where all is."""
        found = ["what the numbers are"] if self.kind == "other" else []
        angles = self.kind == "rotation" and self.width == 3
        if self.unit == AS_STORED:
            found.append("which end is open")
        elif (self.kind not in ("other", "gripper", "rotation") and not self.unit) or (angles and not self.unit):
            found.append("unit")
        if is_action and self.reference == "unknown":
            found.append("absolute or delta")
        return found

    @staticmethod
    def from_dict(values: Any) -> Signal:
        """Read a signal from plain values, those of a spec file too; `unit` and others may be left out.

        Raises:
            ConfigError: a field is missing, unknown or of another type.
        """
        if not isinstance(values, Mapping):
            raise ConfigError(f"signal: expected fields such as name and width, got {values!r}; correct the spec.")
        unknown = sorted(map(str, set(values) - set(_FIELD_TYPES)))
        if unknown:
            raise ConfigError(f"signal: expected only {', '.join(_FIELD_TYPES)}, got {unknown} as well; update gr2.")
        missing = sorted({"name", "width"} - set(values))
        if missing:
            raise ConfigError(f"signal: expected a name and a width, got no {' and no '.join(missing)} in {values}.")
        for name, value in values.items():
            kinds = _FIELD_TYPES[name]
            if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
                raise ConfigError(f"signal {values['name']!r}: {name} cannot be {value!r}; correct it.")
        parts = tuple(map(str, values.get("parts", ())))
        return Signal(**{**values, "parts": parts})


@dataclass(frozen=True, slots=True, kw_only=True)
class Embodiment:
    """A robot as a policy sees it.

    name: of the robot or of its dataset.
    cameras: names, in the order of the sequence.
    state, action: signals, in the order in which their numbers stand side by side.
    control_hz: actions a second [Hz].

    Raises:
        ConfigError: two cameras or signals of one name, or no usable rate.
    """

    name: str
    cameras: tuple[str, ...] = ()
    state: tuple[Signal, ...] = ()
    action: tuple[Signal, ...] = ()
    control_hz: float

    def __post_init__(self) -> None:
        if not 0 < self.control_hz < math.inf:
            raise ConfigError(f"embodiment {self.name!r}: expected more than 0 Hz, got {self.control_hz}.")
        for what, names in (
            ("camera", self.cameras),
            ("state signal", [signal.name for signal in self.state]),
            ("action signal", [signal.name for signal in self.action]),
        ):
            twice = sorted({name for name in names if list(names).count(name) > 1})
            if twice:
                raise ConfigError(f"embodiment {self.name!r}: expected different {what} names, got {twice} twice.")

    @property
    def state_dim(self) -> int:
        """Numbers of a stored state."""
        return sum(signal.width for signal in self.state)

    @property
    def action_dim(self) -> int:
        """Numbers of a stored action."""
        return sum(signal.width for signal in self.action)

    def state_slices(self) -> dict[str, slice]:
        """Return where each state signal stands in a stored state."""
        return _slices(self.state)

    def action_slices(self) -> dict[str, slice]:
        """Return where each action signal stands in a stored action."""
        return _slices(self.action)

    def rows(self) -> list[tuple[str, str, str, str, str]]:
        """Return a table for people: role, name, numbers, unit, meaning."""
        rows = [("camera", name, "", "", "") for name in self.cameras]
        for role, signals in (("state", self.state), ("action", self.action)):
            for signal in signals:
                words = [signal.kind, signal.rotation, "binary" if signal.binary else ""]
                words.append(signal.reference if role == "action" and signal.reference != "unknown" else "")
                unknown = signal.unknown(role == "action")
                words.append(f"unknown: {' and '.join(unknown)}" if unknown else "")
                meaning = ", ".join(word for word in words if word)
                rows.append((role, signal.name, str(signal.width), signal.unit or "", meaning))
        return [*rows, ("rate", "", "", "Hz", f"{self.control_hz:g}")]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, for JSON; `from_dict` reads them."""
        values = asdict(self)
        for role in ("state", "action"):
            values[role] = [{**signal, "parts": list(signal["parts"])} for signal in values[role]]
        return {**values, "cameras": list(self.cameras)}

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> Embodiment:
        """Read what `to_dict` gave.

        Raises:
            ConfigError: a value is missing, unknown or unusable.
        """
        try:
            return Embodiment(
                name=str(values["name"]),
                cameras=tuple(values["cameras"]),
                state=tuple(Signal.from_dict(value) for value in values["state"]),
                action=tuple(Signal.from_dict(value) for value in values["action"]),
                control_hz=float(values["control_hz"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ConfigError(
                f"embodiment: expected name, cameras, state, action and control_hz, got others ({error}); "
                "write the data again."
            ) from error

    def differences(self, other: Embodiment) -> list[str]:
        """Return how `other` departs from this one, most telling first; names of robots and parts do not count."""
        found = self.signal_differences(other)
        missing = [name for name in self.cameras if name not in other.cameras]
        added = [name for name in other.cameras if name not in self.cameras]
        found += [f"camera {name} is missing" for name in missing] + [f"camera {name} is new" for name in added]
        if not math.isclose(self.control_hz, other.control_hz, rel_tol=1e-3):
            found.append(f"{other.control_hz:g} Hz in place of {self.control_hz:g} Hz")
        return found

    def signal_differences(self, other: Embodiment) -> list[str]:
        """Return how the state and action signals of `other` depart from these; empty where they agree."""
        state = _signal_differences("state", self.state, other.state)
        return state + _signal_differences("action", self.action, other.action)


def fitting(known: Sequence[Embodiment], robot: Embodiment) -> list[int]:
    """Return the places in `known` of those with the signals and the rate of `robot`, whatever their cameras.

    Where one of them has its name, too, that one alone.
    """
    places = [i for i, other in enumerate(known) if not other.differences(replace(robot, cameras=other.cameras))]
    return [i for i in places if known[i].name == robot.name][:1] or places


def with_different_names(embodiments: Sequence[Embodiment]) -> tuple[Embodiment, ...]:
    """Number those whose name an earlier one has: `arm`, `arm_2`."""
    found: list[Embodiment] = []
    for embodiment in embodiments:
        names, number, name = {other.name for other in found}, 2, embodiment.name
        while name in names:
            name, number = f"{embodiment.name}_{number}", number + 1
        found.append(embodiment if name == embodiment.name else replace(embodiment, name=name))
    return tuple(found)


def _slices(signals: Sequence[Signal]) -> dict[str, slice]:
    begin, found = 0, {}
    for signal in signals:
        found[signal.name] = slice(begin, begin + signal.width)
        begin += signal.width
    return found


_FIELD_TYPES: Mapping[str, tuple[type, ...]] = {
    "name": (str,),
    "width": (int,),
    "kind": (str,),
    "unit": (str, type(None)),
    "rotation": (str,),
    "binary": (bool, type(None)),
    "reference": (str,),
    "parts": (list, tuple),
}
"""What `Signal.from_dict` takes."""


def _signal_differences(role: str, ours: Sequence[Signal], theirs: Sequence[Signal]) -> list[str]:
    mine, found = {signal.name: signal for signal in ours}, []
    for signal in theirs:
        if signal.name not in mine:
            found.append(f"{role} signal {signal.name} is new")
            continue
        for field in ("width", "kind", "unit", "rotation", "reference", "binary"):
            wanted, got = getattr(mine[signal.name], field), getattr(signal, field)
            if wanted != got and not (field == "binary" and None in (wanted, got)):
                found.append(f"{role} signal {signal.name}: {field} {got!r} in place of {wanted!r}")
    names = [signal.name for signal in theirs]
    found += [f"{role} signal {name} is missing" for name in mine if name not in names]
    if not found and list(mine) != names:
        found.append(f"{role} signals in the order {', '.join(names)} in place of {', '.join(mine)}")
    return found


TOOL_ARM = Embodiment(
    name="tool_arm",
    cameras=("static", "gripper"),
    state=(
        Signal(name="tool_position", width=3, kind="position"),
        Signal(name="tool_rotation", width=4, kind="rotation", rotation="quaternion_xyzw"),
        Signal(name="gripper", width=1, kind="gripper", binary=False),
        Signal(name="gripper_command", width=1, kind="gripper", binary=True),
        Signal(name="joint_positions", width=7, kind="joint_position"),
    ),
    action=(
        Signal(name="tool_position", width=3, kind="position"),
        Signal(name="tool_rotation", width=4, kind="rotation", rotation="quaternion_xyzw"),
        Signal(name="gripper", width=1, kind="gripper", binary=True),
    ),
    control_hz=30.0,
)
"""An arm of seven joints, commanded by tool poses in its base frame: PlayTable and CALVIN, and what data of gr2 0.1.0,
which name no embodiment, hold."""
