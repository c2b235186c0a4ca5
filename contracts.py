"""Types that cross folder borders: frozen, keyword-only, numpy arrays alone; and what a policy is.

Axes: `t` steps, `f` video frames, `h` rows, `w` columns, `n` image tokens of a frame, `k` poses of a chunk, `j` joints.
Quaternions are `xyzw`, unit length. Tool poses map tool coordinates to the robot base frame.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from .errors import ShapeError

Array = npt.NDArray[Any]

STATE_DIM = 16
"""Robot state: position [m] 0-2, quaternion xyzw 3-6, gripper opening in [0, 1] 7, last gripper command in [0, 1] 8,
joints [rad] 9-15."""

ACTION_DIM = 8
"""Commanded tool pose: position [m] 0-2, quaternion xyzw 3-6, gripper command 7 (1 open, 0 closed)."""


def _empty() -> Array:
    return np.zeros(0)


def _expect(name: str, array: Array, shape: tuple[int | None, ...]) -> None:
    got = np.shape(array)
    if len(got) != len(shape) or any(s is not None and s != g for s, g in zip(shape, got, strict=True)):
        wanted = tuple("*" if s is None else s for s in shape)
        raise ShapeError(f"{name}: expected shape {wanted}, got {got}; check the axes of the array that was passed.")
    if np.issubdtype(np.asarray(array).dtype, np.floating) and not np.all(np.isfinite(array)):
        raise ShapeError(f"{name}: expected finite numbers, got NaN or infinity; check the source of the array.")


def rgb_image(name: str, image: Any) -> Array:
    """Return an image, which must be uint8 `[h w 3]`: other numbers and layouts would be taken for another image.

    Raises:
        ShapeError: it is something else.
    """
    array = np.asarray(image)
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3 or not array.size:
        raise ShapeError(
            f"image {name!r}: expected uint8 (h, w, 3), RGB from 0 to 255, got {array.dtype} {array.shape}; convert it."
        )
    return array


@dataclass(frozen=True, slots=True, kw_only=True)
class VideoClip:
    """A captioned piece of video.

    frames: uint8 `[f h w 3]`, RGB.
    fps: frames a second.
    caption: what happens in it, empty where there is none.
    source: where the clip came from (file, dataset, time window).
    """

    frames: Array
    fps: float
    caption: str
    source: str

    def __post_init__(self) -> None:
        _expect("VideoClip.frames", self.frames, (None, None, None, 3))


@dataclass(frozen=True, slots=True, kw_only=True)
class Episode:
    """A robot episode: images, states, actions and its instruction.

    images: camera name -> uint8 `[f h w 3]`; image i belongs to step `i * frame_stride`.
    states: float32 `[t s]`, s = `STATE_DIM` for our own recordings.
    actions: float32 `[t a]`, a = `ACTION_DIM`: the pose commanded at that step, robot base frame.
    instruction: what the robot is to do, empty for play without labels.
    control_hz: steps a second.
    """

    images: Mapping[str, Array]
    states: Array
    actions: Array
    instruction: str
    control_hz: float
    frame_stride: int = 1
    source: str = ""

    def __post_init__(self) -> None:
        for camera, frames in self.images.items():
            _expect(f"Episode.images[{camera}]", frames, (None, None, None, 3))
        _expect("Episode.states", self.states, (None, None))
        _expect("Episode.actions", self.actions, (len(self.states), None))


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenSequence:
    """Image codes of one camera.

    codes: integers `[f n]`, row-major over the grid, each in `[0, codebook_size)`.
    grid: rows and columns of tokens, `n = grid[0] * grid[1]`.
    """

    codes: Array
    grid: tuple[int, int]
    codebook_size: int
    camera: str

    def __post_init__(self) -> None:
        _expect("TokenSequence.codes", self.codes, (None, self.grid[0] * self.grid[1]))


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """What a policy or a controller sees at one instant.

    images: camera name -> uint8 `[h w 3]`; empty where no image was asked for.
    tool_position: `[3]` [m], robot base frame; empty for a robot that is described by `state` alone.
    tool_quaternion: `[4]` xyzw; empty likewise.
    gripper_opening: 0 closed to 1 open.
    gripper_command: last commanded opening.
    joint_positions: `[j]` [rad].
    time: seconds since the episode began.
    state: `[s]` in the order of an embodiment's state signals; empty where it is packed from the fields above.
    """

    images: Mapping[str, Array]
    tool_position: Array = field(default_factory=_empty)
    tool_quaternion: Array = field(default_factory=_empty)
    gripper_opening: float = 0.0
    gripper_command: float = 0.0
    joint_positions: Array = field(default_factory=_empty)
    instruction: str
    time: float
    state: Array = field(default_factory=_empty)

    def __post_init__(self) -> None:
        if len(self.state):
            _expect("Observation.state", self.state, (None,))
            return
        _expect("Observation.tool_position", self.tool_position, (3,))
        _expect("Observation.tool_quaternion", self.tool_quaternion, (4,))

    def state_vector(self) -> Array:
        """Return `state` as float32 `[s]`; without one, pack the other fields in the order of `STATE_DIM`."""
        if len(self.state):
            return np.asarray(self.state, np.float32)
        return np.concatenate(
            [
                self.tool_position,
                self.tool_quaternion,
                [self.gripper_opening, self.gripper_command],
                self.joint_positions,
            ]
        ).astype(np.float32)


@dataclass(frozen=True, slots=True, kw_only=True)
class ActionTrajectory:
    """Timed tool poses for the controller, robot base frame.

    positions: `[k 3]` [m]; quaternions: `[k 4]` xyzw; gripper: `[k]` in [0, 1], 1 open.
    Pose i is due at `start_time + (i + 1) * dt` [s].
    arm: which arm of several it is for; empty where there is one.
    """

    positions: Array
    quaternions: Array
    gripper: Array
    dt: float
    start_time: float
    arm: str = ""

    def __post_init__(self) -> None:
        k = len(self.positions)
        _expect("ActionTrajectory.positions", self.positions, (k, 3))
        _expect("ActionTrajectory.quaternions", self.quaternions, (k, 4))
        _expect("ActionTrajectory.gripper", self.gripper, (k,))


@dataclass(frozen=True, slots=True, kw_only=True)
class JointTrajectory:
    """Timed joint positions for the controller.

    positions: `[k j]` [rad]; gripper: `[k]` in [0, 1], 1 open; None leaves the gripper as it is.
    Row i is due at `start_time + (i + 1) * dt` [s].
    arm: which arm of several it is for; empty where there is one.
    """

    positions: Array
    gripper: Array | None = None
    dt: float
    start_time: float
    arm: str = ""

    def __post_init__(self) -> None:
        _expect("JointTrajectory.positions", self.positions, (None, None))
        if self.gripper is not None:
            _expect("JointTrajectory.gripper", self.gripper, (len(self.positions),))


ControlTrajectory = ActionTrajectory | JointTrajectory
"""What a controller accepts as a chunk: tool poses or joint positions."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SignalTrajectory:
    """Timed actions of any robot, in the order, units and references of its embodiment's action signals.

    values: `[k a]`; row i is due at `start_time + (i + 1) * dt` [s].
    """

    values: Array
    dt: float
    start_time: float

    def __post_init__(self) -> None:
        _expect("SignalTrajectory.values", self.values, (None, None))


Trajectory = ActionTrajectory | JointTrajectory | SignalTrajectory
"""What a policy answers: tool poses or joint positions where the robot is commanded by them, else its actions."""


Chunking = Literal["independent", "ensemble", "inpaint", "auto"]
"""How a policy's next chunk relates to the running one: not at all; averaged with it; sampled as its continuation; or
inpaint for a head that can (flow, diffusion) and ensemble for the others."""


class Policy(Protocol):
    """What drives a robot or a simulator: observations in, trajectories out.

    executed_steps: poses of a trajectory to be executed before the next call of `act`.

    A policy may have more members, which are looked up and may be absent:
    `act_together(policies, observations) -> list[Trajectory]` lets policies of one kind, this one among them, act
    in one go; `uses_images = False` spares drawing the images of its observations; `embodiment` is the robot that it
    was trained on, which simulators compare with their own; `chunk_latency` says how long after its observation a
    chunk of it arrives [s], for a policy that is late with something else; `simulator_actions = True` says that its
    signals are actions in the simulator's own terms.
    """

    executed_steps: int

    def reset(self) -> None:
        """Forget the past; called when an episode or a sub-task begins."""

    def act(self, observation: Observation) -> Trajectory:
        """Return the trajectory that follows `observation`."""
        ...

    def close(self) -> None:
        """Release what the policy holds open; it is not asked again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JointCommand:
    """One tick of the controller: positions `[j]` [rad], velocities `[j]` [rad/s], gripper opening, status name.

    position_error, rotation_error: of the tool [m] [rad] at the last pose of a chunk that was due; for chunks of joint
    positions of the tool [m] and of the joint that is farthest off [rad].
    """

    positions: Array
    velocities: Array
    gripper: float
    status: str
    position_error: float = 0.0
    rotation_error: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationReport:
    """Result of a benchmark; `metrics` maps a name to (value, low, high) of a 95 % interval."""

    benchmark: str
    metrics: Mapping[str, tuple[float, float, float]]
    episodes: int
    seed: int
    versions: Mapping[str, str]
    renderer: str
