"""Which keys of another program's message hold what we call an observation, and how its numbers are stored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image

from ...contracts import Array, Observation, rgb_image
from ...cvae_head.rotations import from_quaternion
from ...embodiment import CLOSING, TOOL_ARM, Embodiment, rotation_width
from ...errors import ConfigError, DataError, PolicyError, ShapeError
from .wire_actions import Base, GripperRange, ToolPose, read_turns

MAX_TEXT = 4096
"""Longest instruction [characters]."""

_FIELD_WIDTHS = {signal.name: signal.width for signal in TOOL_ARM.state}
_GRIPPERS = ("gripper", "gripper_command")


@dataclass(frozen=True, slots=True, kw_only=True)
class StatePart:
    """Numbers of a state that belong together: a signal of the policy's robot, or a field of our observation.

    name: of the signal (`tool_position`, `tool_rotation`, `gripper`, `gripper_command`, `joint_positions` are those of
        an arm with one tool); rotation: how a rotation is stored, empty for others; gripper: its numbers at both ends,
        None where they are as the policy's robot stores them.
    """

    name: str
    width: int
    rotation: str = ""
    gripper: GripperRange | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StateKey:
    """A key that holds numbers of the state: `width` of them, which `parts` name in order where there are any."""

    key: str
    width: int
    parts: tuple[StatePart, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ObservationMap:
    """The keys of an observation. A slash leads into a dict in a dict where there is no such key.

    images: camera -> key; empty with `camera_prefix`, the beginning of the keys of all cameras. image_size: side [px]
    that images are resized to when we send them, 0 as they are; channels_first: whether they are sent `[3 h w]`.
    prompt, time: keys of the instruction and of the seconds since the episode began; no time is counted by requests.
    state: in order. world: whether tool poses are those of the world, where the robot's base stands at `base`.
    """

    images: Mapping[str, str] = field(default_factory=dict)
    camera_prefix: str = ""
    image_size: int = 0
    channels_first: bool = False
    prompt: str = "prompt"
    time: str = ""
    state: tuple[StateKey, ...] = ()
    world: bool = False
    base: Base = field(default_factory=Base)

    def names(self) -> set[str]:
        """Return the signals that the map names."""
        return {part.name for key in self.state for part in key.parts}

    def keys(self) -> list[str]:
        """Return all keys in words, for messages."""
        cameras = list(self.images.values()) or [f"{self.camera_prefix}CAMERA"]
        return [*cameras, *(key.key for key in self.state), self.prompt]

    # -- from a message ------------------------------------------------------------------------------------------

    def read(self, message: Mapping[str, Any], *, robot: Embodiment | None, time: float) -> Observation:
        """Return the observation of a message.

        Args:
            message: of another program.
            robot: that the policy was trained on, None where it does not say.
            time: seconds since the episode began, where the message does not say.

        Raises:
            DataError: a key is missing, or holds something else.
            ShapeError: numbers of another width, or not finite.
        """
        if not isinstance(message, Mapping):
            raise DataError(
                f"observation: expected a dict with {', '.join(self.keys())}, got {type(message).__name__}."
            )
        stated = find(message, self.time) if self.time else None
        moment = time if stated is None else float(numbers(stated, 1, self.time)[0])
        instruction = self._instruction(message)
        images = {camera: _image(value, key) for camera, (key, value) in self._cameras(message, robot).items()}
        parts: dict[str, tuple[Array, StatePart]] = {}
        rest: list[Array] = []
        for key in self.state:
            values = numbers(self._need(message, key.key), key.width, key.key)
            at = 0
            for part in key.parts:
                parts[part.name] = (values[at : at + part.width], part)
                at += part.width
            rest += [] if key.parts else [values]
        common: dict[str, Any] = {"images": images, "instruction": instruction, "time": moment}
        if parts:
            return self._from_parts(parts, robot, common)
        vector = np.concatenate(rest) if rest else np.zeros(0)
        if robot is not None and len(vector) != robot.state_dim:
            raise ShapeError(
                f"observation: expected the {robot.state_dim} numbers of {robot.name}'s state "
                f"({', '.join(s.name for s in robot.state)}), got {len(vector)}; write a map of the keys (--keys)."
            )
        if robot is not None and _is_tool_arm(robot):
            named = {s.name: vector[at] for s, at in zip(robot.state, robot.state_slices().values(), strict=True)}
            return _tool_observation(named, common)
        return Observation(**common, state=vector) if len(vector) else _tool_observation({}, common)

    def _from_parts(
        self, parts: Mapping[str, tuple[Array, StatePart]], robot: Embodiment | None, common: dict[str, Any]
    ) -> Observation:
        values = {name: self._canonical(v, part) for name, (v, part) in parts.items()}
        if self.world and {"tool_position", "tool_rotation"} <= set(values):
            pose = self.base.to_base(ToolPose(position=values["tool_position"], quaternion=values["tool_rotation"]))
            values |= {"tool_position": pose.position, "tool_rotation": pose.quaternion}
        if robot is None or _is_tool_arm(robot):
            return _tool_observation(values, common)
        columns = []
        for signal in robot.state:
            value = values.get(signal.name, np.zeros(signal.width))
            part = parts[signal.name][1] if signal.name in parts else None
            if part is not None and part.rotation and not self.world and part.rotation == signal.rotation:
                value = parts[signal.name][0]  # not there and back
            elif part is not None and part.rotation:
                value = from_quaternion(value, signal.rotation)
            elif part is not None and part.gripper is not None and signal.unit == CLOSING:
                value = 1.0 - value
            columns.append(value)
        return Observation(**common, state=np.concatenate(columns))

    @staticmethod
    def _canonical(values: Array, part: StatePart) -> Array:
        if part.rotation:
            turns = read_turns(values, part.rotation, name=part.name, tolerance=0.01)
            return values if part.rotation == "quaternion_xyzw" else turns
        return values if part.gripper is None else part.gripper.read(values)

    def _cameras(self, message: Mapping[str, Any], robot: Embodiment | None) -> dict[str, tuple[str, Any]]:
        if self.images:
            wanted = self.images
            if robot is not None and robot.cameras:
                wanted = {camera: key for camera, key in self.images.items() if camera in robot.cameras}
            return {camera: (key, self._need(message, key)) for camera, key in wanted.items()}
        inside = find(message, self.camera_prefix.rstrip("/"))
        found = dict(inside) if isinstance(inside, Mapping) else {}
        found |= {k.removeprefix(self.camera_prefix): v for k, v in message.items() if k.startswith(self.camera_prefix)}
        if robot is not None and (missing := [camera for camera in robot.cameras if camera not in found]):
            raise self._missing(message, f"{self.camera_prefix}{missing[0]}")
        return {str(camera): (f"{self.camera_prefix}{camera}", value) for camera, value in found.items()}

    def _instruction(self, message: Mapping[str, Any]) -> str:
        text = self._need(message, self.prompt)
        if isinstance(text, np.ndarray) and text.dtype.kind == "U" and text.size == 1:
            text = str(text.reshape(-1)[0])
        if not isinstance(text, str) or len(text) > MAX_TEXT:
            got = f"{len(text)} characters" if isinstance(text, str) else type(text).__name__
            raise DataError(f"{self.prompt}: expected a text of at most {MAX_TEXT} characters, got {got}.")
        return text

    def _need(self, message: Mapping[str, Any], key: str) -> Any:
        value = find(message, key)
        if value is None:
            raise self._missing(message, key)
        return value

    def _missing(self, message: Mapping[str, Any], key: str) -> DataError:
        got = ", ".join(sorted(map(str, message)))[:300]
        return DataError(
            f"observation: expected the keys {', '.join(self.keys())}, got none called {key!r} among {got or 'none'}; "
            "send it, or start the server with a map of your keys (--keys)."
        )

    # -- to a message --------------------------------------------------------------------------------------------

    def write(self, observation: Observation, *, robot: Embodiment | None, nested: bool) -> dict[str, Any]:
        """Return an observation as a message.

        Args:
            observation: what a simulator or a robot sees.
            robot: whose signals the observation's `state` holds, None where it has none.
            nested: whether keys with a slash become a dict in a dict.

        Raises:
            PolicyError: the observation lacks what the map names.
            ShapeError: an image is not uint8 `[h w 3]`.
        """
        message: dict[str, Any] = {}
        images = self.images or {name: f"{self.camera_prefix}{name}" for name in observation.images}
        for camera, key in images.items():
            if camera not in observation.images:
                raise PolicyError(
                    f"policy map: expected an image of {camera!r}, got cameras {sorted(observation.images)}; correct "
                    "the map's images."
                )
            _put(message, key, self._sent(rgb_image(camera, observation.images[camera])), nested)
        values = self._values(observation, robot)
        at, vector = 0, observation.state_vector().astype(float)
        vector = np.asarray(observation.state, float) if len(observation.state) else vector
        for state in self.state:
            if state.parts:
                columns = [self._stored(values, part) for part in state.parts]
                _put(message, state.key, np.concatenate(columns), nested)
            else:
                _put(message, state.key, vector[at : at + state.width], nested)
                at += state.width
        if at not in (0, len(vector)):
            raise PolicyError(
                f"policy map: expected keys for all {len(vector)} numbers of the state, got some for {at}; name the "
                "parts of each key."
            )
        _put(message, self.prompt, observation.instruction, nested)
        if self.time:
            _put(message, self.time, float(observation.time), nested)
        return message

    def _sent(self, image: Array) -> Array:
        if self.image_size and image.shape[:2] != (self.image_size, self.image_size):
            size = (self.image_size, self.image_size)
            image = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR))
        return np.ascontiguousarray(image.transpose(2, 0, 1)) if self.channels_first else image

    def _values(self, observation: Observation, robot: Embodiment | None) -> dict[str, Array]:
        if len(observation.state):
            if robot is None or robot.state_dim != len(observation.state):
                return {}
            return {name: np.asarray(observation.state[at], float) for name, at in robot.state_slices().items()}
        pose = ToolPose(position=observation.tool_position, quaternion=observation.tool_quaternion)
        pose = self.base.to_world(pose) if self.world else pose
        return {
            "tool_position": np.asarray(pose.position, float),
            "tool_rotation": np.asarray(pose.quaternion, float),
            "gripper": np.array([float(observation.gripper_opening)]),
            "gripper_command": np.array([float(observation.gripper_command)]),
            "joint_positions": np.asarray(observation.joint_positions, float),
        }

    @staticmethod
    def _stored(values: Mapping[str, Array], part: StatePart) -> Array:
        value = values.get(part.name)
        if value is not None and part.rotation and len(value) == 4:
            value = from_quaternion(value, part.rotation)
        if value is not None and part.gripper is not None:
            value = part.gripper.write(value)
        if value is None or len(value) != part.width:
            got = "none" if value is None else f"{len(value)}"
            raise PolicyError(
                f"policy map: expected {part.width} numbers of {part.name}, got {got} in the robot's state; correct "
                "the map's state."
            )
        return np.asarray(value)


def state_part(values: Any) -> StatePart:
    """Read a part of a state from a name, or from a dict of name, width, rotation, closed, open and binary.

    Raises:
        ConfigError: an unknown field, or a width that is not known.
    """
    values = {"name": values} if isinstance(values, str) else values
    allowed = {"name", "width", "rotation", "closed", "open", "binary"}
    if not isinstance(values, Mapping) or "name" not in values or set(values) - allowed:
        raise ConfigError(
            f"state: expected a signal's name, or fields of {', '.join(sorted(allowed))}, got {values!r}."
        )
    name = str(values["name"])
    rotation = str(values.get("rotation", "quaternion_xyzw" if name == "tool_rotation" else ""))
    width = rotation_width(rotation) if rotation else values.get("width", _FIELD_WIDTHS.get(name))
    if type(width) is not int or width < 1:
        raise ConfigError(f"state: expected a width of 1 or more for {name!r}, got {width!r}; add it.")
    ends = {key: values[key] for key in ("closed", "open", "binary") if key in values}
    gripper = GripperRange(**ends) if ends or name in _GRIPPERS else None
    return StatePart(name=name, width=width, rotation=rotation, gripper=gripper)


def part_record(part: StatePart) -> dict[str, Any]:
    """Return a part of a state as JSON values, which `state_part` reads."""
    record: dict[str, Any] = {"name": part.name, "width": part.width}
    record |= {"rotation": part.rotation} if part.rotation else {}
    if part.gripper is not None:
        record |= {"closed": part.gripper.closed, "open": part.gripper.open, "binary": part.gripper.binary}
    return record


def find(message: Mapping[str, Any], key: str) -> Any:
    """Return what a key holds, or a path through dicts in dicts; None where there is nothing."""
    if key in message:
        return message[key]
    value: Any = message
    for step in key.split("/"):
        if not isinstance(value, Mapping) or step not in value:
            return None
        value = value[step]
    return value


def numbers(value: Any, width: int, key: str) -> Array:
    """Return finite numbers in a row as float64 `[width]`; leading axes of 1 are taken.

    Raises:
        ShapeError: something else.
    """
    try:
        array = np.asarray(value)
        array = array.astype(float) if array.dtype.kind in "biuf" else None  # type: ignore[assignment]
    except (TypeError, ValueError):
        array = None  # type: ignore[assignment]
    if array is None or array.size != width or array.size != np.shape(np.atleast_1d(array))[-1]:
        got = type(value).__name__ if array is None else f"shape {np.shape(value)}"
        raise ShapeError(f"{key}: expected {width} numbers in a row, got {got}; check what is sent.")
    if not np.all(np.isfinite(array)):
        raise ShapeError(f"{key}: expected finite numbers, got NaN or infinity; check the source of the array.")
    return array.reshape(-1)


def _image(value: Any, key: str) -> Array:
    if isinstance(value, np.ndarray) and value.dtype == np.uint8 and value.ndim == 3 and value.size:
        if value.shape[2] == 3:
            return value
        if value.shape[0] == 3:  # as openpi's ALOHA sends it
            return np.ascontiguousarray(value.transpose(1, 2, 0))
    got = f"{value.dtype} {value.shape}" if isinstance(value, np.ndarray) else type(value).__name__
    raise ShapeError(f"{key}: expected an image, uint8 (h, w, 3) or (3, h, w), got {got}; check what is sent.")


def _put(message: dict[str, Any], key: str, value: Any, nested: bool) -> None:
    *path, last = key.split("/") if nested else [key]
    for step in path:
        message = message.setdefault(step, {})
    message[last] = value


def _signature(robot: Embodiment) -> list[tuple[str, int, str]]:
    return [(signal.name, signal.width, signal.rotation) for signal in robot.state]


def _is_tool_arm(robot: Embodiment) -> bool:
    """Return whether the state is that of the fields of an observation."""
    return _signature(robot) == _signature(TOOL_ARM)


def _tool_observation(values: Mapping[str, Array], common: Mapping[str, Any]) -> Observation:
    def one(name: str, otherwise: float) -> float:
        return float(values[name][0]) if name in values else otherwise

    opening = one("gripper", 0.0)
    return Observation(
        **common,
        tool_position=values.get("tool_position", np.zeros(3)),
        tool_quaternion=values.get("tool_rotation", np.array([0.0, 0.0, 0.0, 1.0])),
        gripper_opening=opening,
        gripper_command=one("gripper_command", float(opening > 0.5)),
        joint_positions=values.get("joint_positions", np.zeros(_FIELD_WIDTHS["joint_positions"])),
    )


def unread(map_: ObservationMap, robot: Embodiment | None, reads: Sequence[str] | None) -> list[str]:
    """Return signals that a policy reads and a map does not give; empty where it gives all, or numbers without names.

    Args:
        map_: of the keys.
        robot: that the policy was trained on.
        reads: names of the state signals that it reads, None where it does not say.
    """
    if robot is None or not map_.names():
        return []
    wanted = [s.name for s in robot.state] if reads is None else list(reads)
    return [name for name in wanted if name not in map_.names()]
