"""What a policy learns of an embodiment: features of its state, and chunks of its actions seen from that state.

Every signal has a rule of its own. A commanded position or joint that the state measures under the same name is
learned as its distance from there. A commanded rotation is learned as the turn from there, a rotation vector. Other
rotations are learned in the continuous 6-D form, whatever their storage. A binary gripper is 0 or 1; all others are
learned as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, Literal

import numpy as np

from ..contracts import ActionTrajectory, JointTrajectory, SignalTrajectory, Trajectory
from ..embodiment import Embodiment, Signal
from ..errors import ShapeError
from .head import ChunkShape
from .quaternions import (
    _namespace,
    conjugate_quaternion,
    multiply_quaternions,
    quaternion_to_rotation_vector,
    rotation_columns,
    rotation_vector_to_quaternion,
)
from .rotations import from_quaternion, to_quaternion

Rule = Literal["distance", "turn", "rotation", "step_turn", "binary", "plain"]
GRIPPER_THRESHOLD = 0.5
"""Opening above which a commanded or predicted gripper counts as open."""
_WIDTHS = {"turn": 3, "rotation": 6, "step_turn": 3}


@dataclass(frozen=True, kw_only=True)
class Part:
    """An action signal, where its numbers stand in actions, chunks and (where it is measured) states, and its rule."""

    signal: Signal
    rule: Rule
    action: slice
    chunk: slice
    state: slice | None
    state_signal: Signal | None


class SignalCoding:
    """States to features, actions to chunks, and back. Functions take numpy arrays or torch tensors alike.

    read: state signals that the model reads; parts: action signals with their rules; tool: position, rotation and
    gripper where actions are absolute poses of one tool, else None; joints: joints and gripper where they are absolute
    joint positions [rad] of one arm, else None.

    Args:
        embodiment: whose numbers they are.
        joints: whether joints are read beside the tool's pose by a policy that commands tool poses; others always are.
    """

    def __init__(self, embodiment: Embodiment, *, joints: bool = False) -> None:
        self.embodiment = embodiment
        slices = embodiment.state_slices()
        skipped = _commands_tool_poses(embodiment) and not joints
        self.read = tuple(s for s in embodiment.state if not (skipped and s.kind == "joint_position"))
        self._read_slices = tuple(slices[s.name] for s in self.read)
        self.num_features = sum(6 if s.kind == "rotation" else s.width for s in self.read)
        measured = {s.name: s for s in embodiment.state}
        parts, start = [], 0
        for signal in embodiment.action:
            same = measured.get(signal.name)
            rule = _rule(signal, same)
            width = _WIDTHS.get(rule, signal.width)
            parts.append(
                Part(
                    signal=signal,
                    rule=rule,
                    action=embodiment.action_slices()[signal.name],
                    chunk=slice(start, start + width),
                    state=slices[same.name] if same is not None else None,
                    state_signal=same,
                )
            )
            start += width
        self.parts, self.width = tuple(parts), start
        self.tool, self.joints = _tool_parts(self.parts), _joint_parts(self.parts)

    def shape(self, length: int) -> ChunkShape:
        """Return the shape of a chunk of so many steps."""
        binary = [i for p in self.parts if p.rule == "binary" for i in range(p.chunk.start, p.chunk.stop)]
        return ChunkShape(length=length, width=max(self.width, 1), binary=tuple(binary))

    @cached_property
    def read_columns(self) -> tuple[int, ...]:
        """The numbers of a state that are read."""
        return tuple(i for s in self._read_slices for i in range(s.start, s.stop))

    def features(self, states: Any) -> Any:
        """Describe states `[.. s]` by `num_features` numbers that do not depend on the storage of rotations."""
        self._expect("states", states, self.embodiment.state_dim)
        parts = []
        for signal, at in zip(self.read, self._read_slices, strict=True):
            here = states[..., at]
            parts.append(rotation_columns(to_quaternion(here, signal.rotation)) if signal.kind == "rotation" else here)
        return _namespace(states).concatenate(parts, axis=-1) if parts else states[..., :0]

    def encode(self, state: Any, actions: Any) -> Any:
        """Express actions `[.. k a]` as a chunk `[.. k c]`, seen from the state `[.. s]` when it begins.

        Raises:
            ShapeError: a last axis that is not the embodiment's.
        """
        self._expect("state", state, self.embodiment.state_dim)
        self._expect("actions", actions, self.embodiment.action_dim)
        xp = _namespace(actions)
        return xp.concatenate([self._encode(part, state, actions[..., part.action]) for part in self.parts], axis=-1)

    @staticmethod
    def _encode(part: Part, state: Any, values: Any) -> Any:
        xp = _namespace(values)
        if part.rule == "distance":
            return values - state[..., None, part.state]
        if part.rule == "binary":
            return xp.where(values > GRIPPER_THRESHOLD, xp.ones_like(values), 0.0)
        if part.rule == "plain":
            return values
        q = to_quaternion(values, part.signal.rotation)
        if part.rule == "rotation":
            return rotation_columns(q)
        if part.rule == "turn":
            assert part.state_signal is not None
            now = to_quaternion(state[..., None, part.state], part.state_signal.rotation)
            q = multiply_quaternions(q, conjugate_quaternion(now))
        return quaternion_to_rotation_vector(q)

    def decode(self, state: Any, chunk: Any) -> Any:
        """Turn chunks `[.. k c]` into actions `[.. k a]` from states `[.. s]`, numpy; binary columns become 0 or 1."""
        state, chunk = np.asarray(state, np.float64), np.asarray(chunk, np.float64)
        self._expect("chunk", chunk, self.width)
        return np.concatenate([self._decode(part, state, chunk[..., part.chunk]) for part in self.parts], axis=-1)

    @staticmethod
    def _decode(part: Part, state: Any, values: Any) -> Any:
        if part.rule == "distance":
            return values + state[..., None, part.state]
        if part.rule == "binary":
            return (values > GRIPPER_THRESHOLD).astype(np.float64)
        if part.rule == "plain":
            return values
        if part.rule == "rotation":
            q = to_quaternion(values, "rotation_6d")
        else:
            q = rotation_vector_to_quaternion(values)
        if part.rule == "turn":
            assert part.state_signal is not None
            now = to_quaternion(state[..., None, part.state], part.state_signal.rotation)
            q = multiply_quaternions(q, now / np.linalg.norm(now, axis=-1, keepdims=True))
        return from_quaternion(q / np.linalg.norm(q, axis=-1, keepdims=True), part.signal.rotation)

    def after(self, state: Any, chunk: Any, steps: int) -> Any:
        """Return the states `[.. s]` that following chunks `[.. k c]` for so many control steps leads to.

        What is commanded is taken to be reached, fingers half-way; what no action commands is kept as it was.
        """
        xp = _namespace(state)
        rows = state.detach().cpu().double().numpy() if xp is not np else np.asarray(state, np.float64)
        values = chunk.detach().cpu().double().numpy() if xp is not np else np.asarray(chunk, np.float64)
        last = min(steps, values.shape[-2]) - 1
        action = self.decode(rows, values[..., last : last + 1, :])[..., 0, :]
        out, commands = rows.copy(), self.embodiment.state_slices()
        for part in self.parts:
            command = action[..., part.action]
            commanded = commands.get(f"{part.signal.name}_command")
            if commanded is not None:
                out[..., commanded] = command
            half_way = part.signal.kind == "gripper"
            if part.state is None or (part.rule in ("plain", "step_turn", "rotation") and not half_way):
                continue
            out[..., part.state] = 0.5 * (out[..., part.state] + command) if half_way else command
        return out if xp is np else xp.as_tensor(out, dtype=state.dtype, device=state.device)

    @staticmethod
    def _expect(name: str, array: Any, size: int) -> None:
        if array.shape[-1] != size:
            raise ShapeError(
                f"{name}: expected a last axis of {size}, got shape {tuple(array.shape)}; pass the numbers of the "
                "embodiment in its order."
            )


@lru_cache(maxsize=64)
def coding_of(embodiment: Embodiment, joints: bool = False) -> SignalCoding:
    """Return the coding of an embodiment, made once."""
    return SignalCoding(embodiment, joints=joints)


def _tool_parts(parts: Sequence[Part]) -> tuple[Part, Part, Part | None] | None:
    """Return position, rotation and gripper of a robot that is commanded by absolute poses of one tool, else None."""
    positions = [p for p in parts if p.signal.kind == "position"]
    rotations = [p for p in parts if p.signal.kind == "rotation"]
    grippers = [p for p in parts if p.signal.kind == "gripper"]
    one = len(positions) == len(rotations) == 1 and len(grippers) <= 1
    whole = len(parts) == 2 + len(grippers)
    fixed = all(p.signal.reference == "absolute" for p in parts)
    known = all(p.signal.is_opening for p in grippers)
    if not (one and whole and fixed and known):
        return None
    return positions[0], rotations[0], grippers[0] if grippers else None


def _joint_parts(parts: Sequence[Part]) -> tuple[Part, Part | None] | None:
    """Return joints and gripper of an arm that is commanded by absolute joint positions [rad], else None."""
    joints = [p for p in parts if p.signal.kind == "joint_position"]
    grippers = [p for p in parts if p.signal.kind == "gripper"]
    known = all(p.signal.reference == "absolute" for p in parts) and all(p.signal.is_opening for p in grippers)
    if len(joints) != 1 or len(grippers) > 1 or len(parts) != 1 + len(grippers) or not known:
        return None
    return (joints[0], grippers[0] if grippers else None) if joints[0].signal.unit == "rad" else None


def _commands_tool_poses(embodiment: Embodiment) -> bool:
    kinds = [{s.kind for s in signals} for signals in (embodiment.state, embodiment.action)]
    return all({"position", "rotation"} <= kind for kind in kinds) and "joint_position" not in kinds[1]


def _rule(signal: Signal, same: Signal | None) -> Rule:
    measured = same is not None and same.kind == signal.kind and (same.unit == signal.unit or same.kind == "rotation")
    if signal.kind == "gripper":
        return "binary" if signal.binary else "plain"
    if signal.kind == "rotation":
        if signal.reference in ("relative", "delta"):
            return "step_turn"
        return "turn" if measured and signal.reference == "absolute" else "rotation"
    alike = measured and same is not None and same.width == signal.width
    return "distance" if alike and signal.reference == "absolute" else "plain"


def place_chunk(coding: SignalCoding, chunk: Any, state: Any, *, dt: float, start_time: float) -> Trajectory:
    """Turn a chunk `[k c]` seen from a state `[s]` into what is to be followed; row i is due `(i + 1) * dt` [s] later.

    Returns:
        Tool poses or joint positions where one arm is commanded by absolute ones, else the actions as they are.
    """
    actions = coding.decode(state, chunk)
    if coding.joints is not None:
        joint, gripper = coding.joints
        opening = None if gripper is None else actions[:, gripper.action.start]
        return JointTrajectory(positions=actions[:, joint.action], gripper=opening, dt=dt, start_time=start_time)
    if coding.tool is None:
        return SignalTrajectory(values=actions, dt=dt, start_time=start_time)
    position, rotation, gripper = coding.tool
    opening = np.ones(len(actions)) if gripper is None else actions[:, gripper.action.start]
    return ActionTrajectory(
        positions=actions[:, position.action],
        quaternions=to_quaternion(actions[:, rotation.action], rotation.signal.rotation),
        gripper=opening,
        dt=dt,
        start_time=start_time,
    )
