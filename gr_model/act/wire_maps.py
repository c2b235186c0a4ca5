"""Maps between another program's messages and ours: presets, and files of one's own (YAML or JSON), for both sides.

`gr2 serve --keys MAP` reads a client's observations and writes its actions by one; `--policy openpi://host:port?map=MAP`
and `vla-eval://...` write a server's observations and read its actions by one. A file:

    images: {static: observation/image, gripper: observation/wrist_image}    # our camera: their key
    image_size: 224                                                          # when we send them; 0 as they are
    prompt: prompt
    state:                                   # a number: so many numbers in the order of the policy's state
      observation/state: [tool_position, {name: tool_rotation, rotation: euler_xyz}, {name: gripper, open: 0.08}]
    base_in_world: [-0.34, -0.46, 0.24]      # with it, tool poses of state and actions are those of the world
    actions:                                 # none: as the policy answers
      columns: [position, rotation, gripper]
      reference: delta                       # absolute; relative to the chunk's beginning; delta from the step before
      rotation: rotation_vector
      gripper: {closed: -1, open: 1, binary: true}
      dt: 0.1
      executed_steps: 5
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

import yaml

from ...embodiment import TOOL_ARM, Embodiment
from ...errors import ConfigError
from .wire_actions import ActionMap, Base, GripperRange
from .wire_observations import ObservationMap, StateKey, StatePart, part_record, state_part

Protocol = Literal["openpi", "vla-eval"]

_FIELDS = ("images", "image_size", "channels_first", "prompt", "time", "state", "base_in_world", "actions", "note")


@dataclass(frozen=True, slots=True, kw_only=True)
class WireMap:
    """Keys of observations and columns of actions.

    actions: None where actions are the numbers that the policy answers, as `natural_columns` names them.
    """

    observations: ObservationMap
    actions: ActionMap | None = None

    @staticmethod
    def from_dict(values: Any, where: str) -> WireMap:
        """Read a map from plain values.

        Args:
            values: as a file holds them.
            where: what errors call it.

        Raises:
            ConfigError: a field is missing, unknown or unusable.
        """
        if not isinstance(values, Mapping) or (unknown := sorted(set(map(str, values)) - set(_FIELDS))):
            got = f"{unknown} as well" if isinstance(values, Mapping) else type(values).__name__
            raise ConfigError(f"{where}: expected fields of {', '.join(_FIELDS)}, got {got}; see docs/serving.md.")
        try:
            base = _base(values.get("base_in_world"))
            images = values.get("images", {})
            observations = ObservationMap(
                images={} if isinstance(images, str) else {str(k): str(v) for k, v in images.items()},
                camera_prefix=images if isinstance(images, str) else "",
                image_size=int(values.get("image_size", 0)),
                channels_first=bool(values.get("channels_first", False)),
                prompt=str(values.get("prompt", "prompt")),
                time=str(values.get("time", "")),
                state=tuple(_state_key(str(k), v) for k, v in values.get("state", {}).items()),
                world=base is not None,
                base=base or Base(),
            )
            stated = values.get("actions")
            return WireMap(observations=observations, actions=None if stated is None else _actions(stated, base))
        except (TypeError, ValueError, AttributeError) as error:
            raise ConfigError(f"{where}: expected a map as in docs/serving.md, got {error}; correct it.") from error
        except ConfigError as error:
            raise ConfigError(f"{where}: {error}") from error

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, which `from_dict` reads."""
        seen, record = self.observations, dict[str, Any]()
        record["images"] = dict(seen.images) or seen.camera_prefix
        for name in ("image_size", "channels_first", "prompt", "time"):
            if getattr(seen, name):
                record[name] = getattr(seen, name)
        record["state"] = {k.key: [part_record(p) for p in k.parts] if k.parts else k.width for k in seen.state}
        if seen.world:
            record["base_in_world"] = [*seen.base.position, *seen.base.quaternion]
        if self.actions is not None:
            plain = {f.name: getattr(self.actions, f.name) for f in fields(ActionMap) if f.name != "base"}
            plain["columns"] = list(self.actions.columns)
            ends = self.actions.gripper
            plain["gripper"] = {"closed": ends.closed, "open": ends.open, "binary": ends.binary}
            record["actions"] = {name: value for name, value in plain.items() if value is not None}
        return record


def _base(values: Any) -> Base | None:
    if values is None:
        return None
    numbers = tuple(map(float, values))
    if len(numbers) not in (3, 7):
        raise ConfigError(f"base_in_world: expected a position, or that and a quaternion xyzw, got {list(numbers)}.")
    return Base(position=numbers[:3]) if len(numbers) == 3 else Base(position=numbers[:3], quaternion=numbers[3:])


def _state_key(key: str, values: Any) -> StateKey:
    if isinstance(values, int) and not isinstance(values, bool) and values > 0:
        return StateKey(key=key, width=values)
    if not isinstance(values, list) or not values:
        raise ConfigError(f"state {key!r}: expected a number of numbers or a list of signals, got {values!r}.")
    parts = tuple(map(state_part, values))
    return StateKey(key=key, width=sum(part.width for part in parts), parts=parts)


def _actions(values: Any, base: Base | None) -> ActionMap:
    allowed = [f.name for f in fields(ActionMap) if f.name != "base"]
    if not isinstance(values, Mapping) or (unknown := sorted(set(map(str, values)) - set(allowed))):
        got = f"{unknown} as well" if isinstance(values, Mapping) else type(values).__name__
        raise ConfigError(f"actions: expected fields of {', '.join(allowed)}, got {got}.")
    chosen = dict(values) | {"columns": tuple(values.get("columns", ActionMap().columns))}
    chosen["gripper"] = GripperRange(**values.get("gripper", {}))
    chosen.setdefault("frame", "base" if base is None else "world")
    if chosen["frame"] == "world" and base is None:
        raise ConfigError("actions.frame: expected base_in_world beside world, got none; state where the base stands.")
    for name, choices in (("reference", ("absolute", "relative", "delta")), ("frame", ("base", "world", "tool"))):
        if chosen.get(name, choices[0]) not in choices:
            raise ConfigError(f"actions.{name}: expected one of {', '.join(choices)}, got {chosen[name]!r}.")
    return ActionMap(**chosen, base=base or Base())


# -- presets -----------------------------------------------------------------------------------------------------


def _cameras(robot: Embodiment | None, keys: Mapping[str, str], ours: Mapping[str, str]) -> dict[str, str]:
    """Return our cameras' keys: those of the robot by the kind of view that their names show.

    Args:
        robot: that the policy was trained on.
        keys: kind of view ("outside", "wrist") -> key.
        ours: kind -> camera where the robot is not known.
    """
    names = list(robot.cameras) if robot is not None else []
    kinds = {
        name: "wrist" if any(w in name.lower() for w in ("wrist", "gripper", "hand")) else "outside" for name in names
    }
    found = {name: keys[kind] for name, kind in kinds.items() if kind in keys}
    if len(set(found.values())) != len(found):
        raise ConfigError(
            f"--keys: expected one camera of each of {', '.join(keys)}, got {', '.join(names)}; write a map that names "
            "the key of each camera."
        )
    return found or {ours[kind]: key for kind, key in keys.items()}


def _libero(robot: Embodiment | None) -> WireMap:
    """Source: openpi-client's LIBERO example: two images of 224 px, position, axis-angle and two fingers.

    A robot whose action is six moves and an opening sends and takes a gripper of 1 closed to -1 open.
    """
    keys = {"outside": "observation/image", "wrist": "observation/wrist_image"}
    images = _cameras(robot, keys, {"outside": "image", "wrist": "wrist_image"})
    state = (StateKey(key="observation/state", width=8),)
    moves, opening = ((), ()) if robot is None else (robot.action[:-1], robot.action[-1:])
    ours = sum(s.width for s in moves) == 6 and all(s.reference == "delta" for s in moves)
    actions = ActionMap(
        columns=("signals", "gripper"), signals=6, gripper=GripperRange(closed=1.0, open=-1.0), dt=1 / 20,
        executed_steps=5,
    )  # fmt: skip
    return WireMap(
        observations=ObservationMap(images=images, image_size=224, state=state),
        actions=actions if ours and all(s.is_opening and s.width == 1 for s in opening) else None,
    )


def _droid(robot: Embodiment | None) -> WireMap:
    """Source: openpi-client's DROID example: seven joints [rad] and a gripper of 0 open to 1 closed."""
    keys = {"outside": "observation/exterior_image_1_left", "wrist": "observation/wrist_image_left"}
    images = _cameras(robot, keys, {"outside": "exterior_image_1_left", "wrist": "wrist_image_left"})
    widths = {"observation/joint_position": 7, "observation/gripper_position": 1}
    state = tuple(StateKey(key=key, width=width) for key, width in widths.items())
    return WireMap(observations=ObservationMap(images=images, image_size=224, state=state))


def _aloha(robot: Embodiment | None) -> WireMap:
    """Source: openpi's ALOHA example: images `[3 h w]` in a dict, and 14 joints of two arms."""
    names = ("cam_high", "cam_low", "cam_left_wrist", "cam_right_wrist")
    cameras = [c for c in robot.cameras if c in names] if robot is not None and robot.cameras else list(names)
    observations = ObservationMap(
        images={name: f"images/{name}" for name in cameras}, image_size=224, channels_first=True,
        state=(StateKey(key="state", width=14),),
    )  # fmt: skip
    return WireMap(observations=observations)


CALVIN_BASE = Base(position=(-0.34, -0.46, 0.24))
"""Where the arm's base stands in CALVIN's world [m]; its axes are those of the world."""


def _calvin(robot: Embodiment | None) -> WireMap:
    """Source: vla-eval 0.8.0, `CALVINBenchmark` with `absolute_action`: a gripper above 0 closes."""
    names = {"static": "images/rgb_static", "gripper": "images/rgb_gripper"}
    cameras = (robot.cameras or None) if robot is not None else None
    parts = (
        state_part("tool_position"),
        state_part({"name": "tool_rotation", "rotation": "euler_xyz"}),
        state_part({"name": "gripper", "closed": 0.0, "open": 0.08}),
        state_part({"name": "gripper_command", "closed": -1.0, "open": 1.0, "binary": True}),
    )
    observations = ObservationMap(
        images={name: key for name, key in names.items() if cameras is None or name in cameras},
        image_size=200, prompt="task_description", state=(StateKey(key="states", width=8, parts=parts),),
        world=True, base=CALVIN_BASE,
    )  # fmt: skip
    actions = ActionMap(
        frame="world", base=CALVIN_BASE, rotation="rotation_vector", dt=1 / 30,
        gripper=GripperRange(closed=1.0, open=-1.0, binary=True),
    )  # fmt: skip
    return WireMap(observations=observations, actions=actions)


def _calvin_delta(robot: Embodiment | None) -> WireMap:
    """Source: vla-eval 0.8.0, `CALVINBenchmark` by default: added to the pose last commanded; above 0 opens."""
    absolute = _calvin(robot)
    assert absolute.actions is not None
    actions = replace(
        absolute.actions, reference="delta", begins="commanded", rotation="euler_xyz", turns="added",
        gripper=GripperRange(closed=-1.0, open=1.0, binary=True),
    )  # fmt: skip
    return replace(absolute, actions=actions)


PRESETS: Mapping[str, Callable[[Embodiment | None], WireMap]] = {
    "libero": _libero,
    "droid": _droid,
    "aloha": _aloha,
    "calvin": _calvin,
    "calvin-delta": _calvin_delta,
}
"""Maps by name, given the robot that the policy was trained on."""


def open_map(name: str, robot: Embodiment | None) -> WireMap:
    """Return the map of a preset's name, or of a YAML or JSON file.

    Raises:
        ConfigError: there is no such preset or file, or it is no map.
    """
    if name in PRESETS:
        return PRESETS[name](robot)
    path = Path(name)
    if not path.is_file():
        raise ConfigError(f"map {name}: expected one of {', '.join(PRESETS)}, or a YAML or JSON file, found none.")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))  # JSON is YAML
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"map {name}: expected YAML or JSON, got {' '.join(str(error).split())}.") from error
    return WireMap.from_dict(values, f"map {name}")


def map_text(name: str) -> str:
    """Return what tells a map from others of the same name: its file's text, or a preset's values."""
    if name in PRESETS:
        return str(PRESETS[name](None).to_dict())
    return Path(name).read_text(encoding="utf-8", errors="replace") if Path(name).is_file() else ""


def natural_map(robot: Embodiment | None, protocol: Protocol) -> WireMap:
    """Return the keys named after a robot's cameras and state signals; without a robot, those of one with one tool."""
    prefix = "observation/" if protocol == "openpi" else ""
    signals = (robot or TOOL_ARM).state
    state = tuple(
        StateKey(
            key=f"{prefix}state/{signal.name}",
            width=signal.width,
            parts=(StatePart(name=signal.name, width=signal.width, rotation=signal.rotation),),
        )
        for signal in signals
    )
    observations = ObservationMap(
        images={} if robot is None else {name: f"{prefix}images/{name}" for name in robot.cameras},
        camera_prefix=f"{prefix}images/" if robot is None or not robot.cameras else "",
        prompt="prompt" if protocol == "openpi" else "task_description",
        time=f"{prefix}time",
        state=state,
    )
    return WireMap(observations=observations)


def natural_columns(robot: Embodiment | None) -> list[dict[str, Any]]:
    """Return name, width and meaning of the columns that a policy answers by itself, as JSON values."""
    return [
        {
            "name": signal.name, "width": signal.width, "unit": signal.unit or "", "reference": signal.reference,
            "frame": "base", **({"rotation": signal.rotation} if signal.rotation else {}),
            **({"closed": 0.0, "open": 1.0, "binary": signal.binary} if signal.is_opening else {}),
        }
        for signal in (robot or TOOL_ARM).action
    ]  # fmt: skip
