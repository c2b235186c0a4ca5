"""Describe where the parts of an episode lie in a dataset of robot episodes: one small spec for each dataset.

RLDS, LeRobot and npz readers share it. A spec of one's own is a YAML file with the fields of `EpisodeSpec`:

    name: my_robot
    cameras: {static: observation.images.front, gripper: observation.images.wrist}
    states: [observation.state]
    actions: [action]
    gripper: closing
    control_hz: 30
    action_signals:
      - {name: joint_positions, width: 5, kind: joint_position, unit: deg}
      - {name: gripper, width: 1, kind: gripper}
"""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import yaml

from ...contracts import Array
from ...embodiment import CLOSING, Signal
from ...errors import ConfigError, DataError
from ..files import camera_name

Gripper = Literal["opening", "closing", "signed_opening", "signed_closing", "relative_closing", "as_stored"]
"""What the last number of an action means: 1 open 0 closed; 1 closed 0 open; +1 open -1 closed; +1 closed -1 open;
+1 closes, -1 opens, 0 keeps; or unknown, kept as it is. All but the last are read as 1 open, 0 closed."""

ActionKind = Literal["absolute_pose", "delta_pose", "joint", "as_stored"]
"""What the other numbers of an action are: the commanded tool pose in the robot base frame; its change from one step
to the next; commanded joint positions; or unknown. They are kept as they are: the kind only names them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EpisodeSpec:
    """Where the parts of an episode lie, as the dataset names them.

    RLDS: names of `features.json` joined by slashes (`steps/observation/image`); LeRobot: names of features
    (`observation.images.top`); npz: names of arrays; HDF5 and zarr: names of arrays from an episode's group on, joined
    by slashes (`obs/agentview_image`).

    name: of the dataset; empty takes the name that the dataset gives itself.
    cameras: camera name -> images.
    states, actions: numbers put side by side, in this order; the gripper is the last number of an action.
    instructions: the first that is not empty is taken.
    optional_cameras: left out of an episode that lacks them: no video file, or images of one color.
    turned_cameras: whose images are turned by 180 degrees when they are read; of npz, HDF5 and zarr alone.
    bgr_cameras: whose images are stored as blue, green, red, as OpenCV has them; of npz, HDF5 and zarr alone.
    control_hz: steps a second; None where the dataset states it.
    gripper, action_kind: what the numbers of an action mean.
    actions_next: the action of a step is what `actions` hold one step later, for recordings of motion without commands
        (UMI, hand guiding), whose `actions` are their `states`; the last step has none and is left out.
    state_gripper: whether the last number of a state is a gripper's opening or closing; None where that is not known.
    state_signals, action_signals: what the numbers are, in order, their widths adding up to those of `states` and
        `actions`; empty takes what the dataset's names show. They describe the numbers after `gripper` was applied.
    license: terms of the dataset, as its authors name them.

    Raises:
        ConfigError: a field has a value that it cannot have.
    """

    cameras: Mapping[str, str]
    states: tuple[str, ...] = ()
    actions: tuple[str, ...] = ()
    instructions: tuple[str, ...] = ()
    control_hz: float | None = None
    gripper: Gripper = "as_stored"
    action_kind: ActionKind = "as_stored"
    actions_next: bool = False
    state_gripper: bool | None = None
    optional_cameras: tuple[str, ...] = ()
    turned_cameras: tuple[str, ...] = ()
    bgr_cameras: tuple[str, ...] = ()
    name: str = ""
    license: str = ""
    state_signals: tuple[Signal, ...] = ()
    action_signals: tuple[Signal, ...] = ()

    def __post_init__(self) -> None:
        for field, kind in (("gripper", Gripper), ("action_kind", ActionKind)):
            value = getattr(self, field)
            if value not in get_args(kind):
                allowed = ", ".join(get_args(kind))
                raise ConfigError(f"{field}: expected one of {allowed}, got {value!r}; correct the spec.")
        if self.control_hz is not None and not 0 < self.control_hz < math.inf:
            raise ConfigError(f"control_hz: expected more than 0 Hz, got {self.control_hz}; correct the spec.")
        unfit = [camera for camera in self.cameras if not camera or camera_name(camera) != camera]
        if unfit:
            raise ConfigError(f"cameras: expected letters, digits, - and _ in a name, got {unfit}; rename the cameras.")
        for field in ("optional_cameras", "turned_cameras", "bgr_cameras"):
            unknown = sorted(set(getattr(self, field)) - set(self.cameras))
            if unknown:
                raise ConfigError(f"{field}: expected some of {sorted(self.cameras)}, got {unknown}; correct it.")
        if self.actions_next and not self.actions:
            raise ConfigError("actions_next: expected actions, which follow a step later, got none; name them.")
        self._compare_with_signals()

    def _compare_with_signals(self) -> None:
        """Take `action_kind`, `gripper` and `state_gripper` from the signals where they are not stated."""
        for role, signals in (("states", self.state_signals), ("actions", self.action_signals)):
            if signals and not getattr(self, role):
                raise ConfigError(f"{role[:-1]}_signals: expected {role} to describe, got none; name the {role}.")
        if self.action_signals:
            kind, last = action_kind_of(self.action_signals), self.action_signals[-1]
            if self.action_kind == "as_stored":
                object.__setattr__(self, "action_kind", kind)
            elif kind not in ("as_stored", self.action_kind):
                raise ConfigError(
                    f"action_kind: expected {kind} of these action_signals, got {self.action_kind}; correct it."
                )
            if self.gripper != "as_stored" and (last.kind != "gripper" or last.width != 1):
                got = f"{last.name} ({last.kind}, {last.width} numbers)"
                raise ConfigError(
                    f"action_signals: expected a gripper as the last number, got {got}; correct the spec."
                )
            if self.gripper == "as_stored" and last.is_opening and last.width == 1:
                object.__setattr__(self, "gripper", "opening")
        if self.state_signals and self.state_gripper is None:
            last = self.state_signals[-1]
            object.__setattr__(self, "state_gripper", last.kind == "gripper" and last.width == 1)

    def keys(self) -> set[str]:
        """Return every name that the dataset must have."""
        return {*self.cameras.values(), *self.states, *self.actions, *self.instructions}

    def facts(self, dataset: str) -> dict[str, Any]:
        """Return what a record of this dataset keeps: its name, what its actions mean, its terms."""
        facts: dict[str, Any] = {"dataset": self.name or dataset}
        if self.actions:
            facts |= {"action_kind": self.action_kind, "gripper": self.gripper}
        if self.states and self.state_gripper is not None:
            facts["state_gripper"] = self.state_gripper
        return facts | ({"license": self.license} if self.license else {})


def action_kind_of(signals: Sequence[Signal]) -> ActionKind:
    """Return the one kind of all signals but grippers, `as_stored` where they differ or have none of the names."""
    rest = [signal for signal in signals if signal.kind != "gripper"]
    kinds, references = {signal.kind for signal in rest}, {signal.reference for signal in rest}
    if kinds == {"joint_position"} and references == {"absolute"}:
        return "joint"
    if "position" not in kinds or not kinds <= {"position", "rotation"}:
        return "as_stored"
    if references == {"absolute"}:
        return "absolute_pose"
    return "delta_pose" if references == {"delta"} else "as_stored"


def read_spec(path: Path) -> EpisodeSpec:
    """Read a spec from a YAML file with the fields of `EpisodeSpec`; one name may stand for a list of one.

    Args:
        path: the file, or where there is none a name of `NAMED_SPECS`.

    Raises:
        ConfigError: the file cannot be read, or a field is unknown or of another type.
    """
    if _is_named(path):
        return NAMED_SPECS[str(path)]
    try:
        content = yaml.safe_load(path.expanduser().read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: cannot be read as YAML ({error}); check the path and the file.") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: expected fields such as `cameras:`, got {type(content).__name__}; write a spec.")
    known = [field.name for field in dataclasses.fields(EpisodeSpec)]
    for name in content:
        if name not in known:
            near = difflib.get_close_matches(str(name), known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"expected some of {', '.join(known)}."
            raise ConfigError(f"{path}: unknown field {name!r}; {hint}")
    try:
        fields: dict[str, Any] = {"cameras": {}, **content}
        return EpisodeSpec(**{name: _field(name, value) for name, value in fields.items()})
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def spec_text(path: Path) -> str:
    """Return what tells a spec from others: the text of its file, or its name."""
    return str(path) if _is_named(path) else path.read_text("utf-8")


def _is_named(path: Path) -> bool:
    return str(path) in NAMED_SPECS and not path.is_file()


def _field(name: str, value: Any) -> Any:
    """Check one field of a spec file and turn it into what `EpisodeSpec` holds."""
    if name == "cameras":
        if not isinstance(value, dict) or not all(isinstance(part, str) for pair in value.items() for part in pair):
            raise ConfigError(f"cameras: expected {{camera: name in the dataset}}, got {value!r}; correct the spec.")
        return value
    if name in ("states", "actions", "instructions", "optional_cameras", "turned_cameras", "bgr_cameras"):
        names = [value] if isinstance(value, str) else value
        if not isinstance(names, list) or not all(isinstance(part, str) for part in names):
            raise ConfigError(f"{name}: expected a list of names, got {value!r}; correct the spec.")
        return tuple(names)
    if name in ("state_signals", "action_signals"):
        if not isinstance(value, list):
            raise ConfigError(f"{name}: expected a list of signals, got {value!r}; correct the spec.")
        try:
            return tuple(Signal.from_dict(part) for part in value)
        except ConfigError as error:
            raise ConfigError(f"{name}: {error}") from error
    if name == "control_hz":
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
            raise ConfigError(f"control_hz: expected steps a second, got {value!r}; correct the spec.")
        return value
    if name in ("state_gripper", "actions_next"):
        if not isinstance(value, bool):
            raise ConfigError(f"{name}: expected true or false, got {value!r}; correct the spec.")
        return value
    if not isinstance(value, str):
        raise ConfigError(f"{name}: expected a word, got {value!r}; correct the spec.")
    return value


def commanded(actions: Array, spec: EpisodeSpec) -> Array:
    """Return the actions `[t a]` of stored ones: those of the next step, NaN in the last, where the spec says so.

    Raises:
        DataError: there is one step alone, which no other follows.
    """
    if not spec.actions_next:
        return actions
    if len(actions) < 2:
        raise DataError("actions_next: expected two steps or more, got one; leave the episode out")
    return np.concatenate([actions[1:], np.full_like(actions[:1], np.nan)])


def with_opening(actions: Array, gripper: Gripper) -> Array:
    """Turn the last number of each action into 1 open, 0 closed: `[t a]` -> float32 `[t a]`."""
    if not actions.shape[1]:
        return actions.astype(np.float32)
    last = actions[:, -1]
    if gripper == "closing":
        last = 1 - last
    elif gripper in ("signed_opening", "signed_closing"):
        last = (1 + last) / 2 if gripper == "signed_opening" else (1 - last) / 2
    elif gripper == "relative_closing":
        last = _opening_of_moves(last)
    return np.concatenate([actions[:, :-1], last[:, None]], axis=1, dtype=np.float32)


def _opening_of_moves(closing: Array) -> Array:
    """Integrate moves of the gripper; before the first one it is the other way, without any it is open.

    Source: Octo, `rel2abs_gripper_actions` (moves below 0.1 are none).
    """
    moves = np.flatnonzero(np.abs(closing) > 0.1)
    if not len(moves):
        return np.ones(len(closing), np.float32)
    opened = (closing[moves] < 0).astype(np.float32)
    latest = np.searchsorted(moves, np.arange(len(closing)), side="right") - 1
    return np.where(latest < 0, 1 - opened[0], opened[np.maximum(latest, 0)]).astype(np.float32)


_OBSERVATION, _ACTION = "steps/observation", "steps/action"
_POSITION = Signal(name="tool_position", width=3, kind="position")
_EULER = Signal(name="tool_rotation", width=3, kind="rotation", rotation="euler_xyz")
_QUATERNION = Signal(name="tool_rotation", width=4, kind="rotation", rotation="quaternion_xyzw")
_OPENING = Signal(name="gripper", width=1, kind="gripper")
_CLOSED = Signal(name="gripper", width=1, kind="gripper", unit=CLOSING)
_MOTION = (replace(_POSITION, reference="delta"), replace(_EULER, reference="delta"))

_BRIDGE_CAMERAS = {"static": "image_0", "image_1": "image_1", "image_2": "image_2", "image_3": "image_3"}

RT1 = EpisodeSpec(
    name="fractal20220817_data",
    cameras={"static": f"{_OBSERVATION}/image"},
    states=(f"{_OBSERVATION}/base_pose_tool_reached", f"{_OBSERVATION}/gripper_closed"),
    actions=(f"{_ACTION}/world_vector", f"{_ACTION}/rotation_delta", f"{_ACTION}/gripper_closedness_action"),
    instructions=(f"{_OBSERVATION}/natural_language_instruction",),
    control_hz=3,
    gripper="relative_closing",
    action_kind="delta_pose",
    state_gripper=True,
    license="CC-BY-4.0",
    state_signals=(_POSITION, _QUATERNION, _CLOSED),
    action_signals=(*_MOTION, replace(_OPENING, binary=True)),
)
"""Changes of position and of roll, pitch, yaw; the gripper gives which way it moves. States: position, quaternion xyzw,
gripper 1 closed 0 open (states keep their own sign). Source: the Open X-Embodiment dataset of this name; Octo,
`rt1_dataset_transform`, for the gripper."""

BRIDGE = EpisodeSpec(
    name="bridge_dataset",
    cameras={camera: f"{_OBSERVATION}/{name}" for camera, name in _BRIDGE_CAMERAS.items()},
    states=(f"{_OBSERVATION}/state",),
    actions=(_ACTION,),
    instructions=("steps/language_instruction",),
    control_hz=5,
    gripper="opening",
    action_kind="delta_pose",
    state_gripper=True,
    optional_cameras=("image_1", "image_2", "image_3"),
    license="CC-BY-4.0",
    state_signals=(_POSITION, _EULER, _OPENING),
    action_signals=(*_MOTION, _OPENING),
)
"""Changes of position and of roll, pitch, yaw. The flags `episode_metadata/has_image_*` are not to be trusted: there
are files with all of them false beside good images. Source: BridgeData V2, `bridge_dataset` 1.0.0;
rail-berkeley/bridge_data_v2 issue 26 for the meaning of states and actions (the text in features.json is wrong); the
robot's `transform2state` for the Euler angles, about fixed axes."""

DROID = EpisodeSpec(
    name="droid",
    cameras={
        "static": f"{_OBSERVATION}/exterior_image_1_left",
        "exterior_image_2_left": f"{_OBSERVATION}/exterior_image_2_left",
        "gripper": f"{_OBSERVATION}/wrist_image_left",
    },
    states=(f"{_OBSERVATION}/cartesian_position", f"{_OBSERVATION}/gripper_position"),
    actions=("steps/action_dict/cartesian_position", "steps/action_dict/gripper_position"),
    instructions=tuple(f"steps/language_instruction{suffix}" for suffix in ("", "_2", "_3")),
    control_hz=15,
    gripper="closing",
    action_kind="absolute_pose",
    state_gripper=True,
    license="CC-BY-4.0",
    state_signals=(_POSITION, _EULER, _CLOSED),
    action_signals=(_POSITION, _EULER, _OPENING),
)
"""Commanded poses (position, Euler angles about fixed axes) in the robot base frame. Source: the DROID dataset, RLDS
version 1.0; the robot driver of droid-dataset/droid, where the gripper position is 1 - width / greatest width:
1 closed, 0 open."""

KNOWN_SPECS: Mapping[str, EpisodeSpec] = {
    "fractal20220817_data": RT1,
    "bridge_dataset": BRIDGE,
    "bridge_orig": BRIDGE,
    "droid": DROID,
    "droid_100": DROID,
}
"""Specs by the name that a dataset gives itself."""

LIBERO = EpisodeSpec(
    name="libero",
    cameras={"agentview": "obs/agentview_rgb", "eye_in_hand": "obs/eye_in_hand_rgb"},
    turned_cameras=("agentview", "eye_in_hand"),
    states=("obs/ee_pos", "obs/ee_ori", "obs/gripper_states"),
    actions=("actions",),
    control_hz=20,
    gripper="signed_closing",
    license="CC-BY-4.0",
    state_signals=(
        _POSITION,
        replace(_EULER, rotation="rotation_vector"),
        Signal(name="fingers", width=2, kind="joint_position", unit="m"),
    ),
    action_signals=(
        replace(_POSITION, unit="5 cm", reference="delta"),
        replace(_EULER, rotation="rotation_vector", unit="", reference="delta"),
        _OPENING,
    ),
)
"""Demonstrations as LIBERO's authors publish them, HDF5. Tool poses are those of the world, whose axes are the base's;
a rotation of 1 is half a radian. Images are turned by 180 degrees, as OpenVLA and openpi train on them: upright then,
and mirrored. Source: LIBERO, its dataset scripts; robosuite 1.4, `osc_pose.json`; openpi, its LIBERO example."""

NAMED_SPECS: Mapping[str, EpisodeSpec] = {"libero": LIBERO}
"""Specs that are asked for by name, in place of a file."""
