"""What is recorded of one segment, until it is written."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from ...contracts import Episode
from ..playtable.environment import CAMERAS, CONTROL_HZ, PlayTable
from ..playtable.scenes import ROBOT_BASE


@dataclass
class Tape:
    """Images, states and labels of one segment; CALVIN's own arrays where its layout is written."""

    images: dict[str, list[np.ndarray]]
    states: list[np.ndarray]
    actions: list[np.ndarray]
    robot_obs: list[np.ndarray]
    scene_obs: list[np.ndarray]
    depths: dict[str, list[np.ndarray]]
    touched: dict[str, int] = field(default_factory=dict)
    """Part of the scene -> step of its first touch."""

    @staticmethod
    def empty() -> Tape:
        """Begin one."""
        return Tape({}, [], [], [], [], {name: [] for name in CAMERAS})

    def record(
        self, env: PlayTable, position: np.ndarray, quaternion: np.ndarray, gripper: float, *, stride: int
    ) -> None:
        """Append a step: what is seen where an image is due, the state, and what the expert commands.

        Args:
            stride: control steps from image to image; 0 for CALVIN's arrays of every step instead.
        """
        observation = env.observe("", images=stride > 0 and len(self.actions) % stride == 0)
        for name, frame in observation.images.items():
            self.images.setdefault(name, []).append(frame)
        if not stride:
            self.shoot(env)
        self.states.append(observation.state_vector())
        self.actions.append(np.array([*(position - ROBOT_BASE), *quaternion, gripper]))

    def note(self, env: PlayTable) -> None:
        """Append CALVIN's arrays of this moment."""
        self.robot_obs.append(env.robot_obs())
        self.scene_obs.append(env.scene_obs())

    def shoot(self, env: PlayTable) -> None:
        """Append images and depths of this moment, and CALVIN's arrays."""
        for name in CAMERAS:
            image, depth = env.draw_with_depth(name)
            self.images.setdefault(name, []).append(image)
            self.depths[name].append(depth)
        self.note(env)

    def episode(self, instruction: str, stride: int, source: str) -> Episode:
        """Stack the tape into an episode; image i belongs to step `i * stride`."""
        return Episode(
            images={name: np.stack(frames) for name, frames in self.images.items()},
            states=np.stack(self.states).astype(np.float32),
            actions=np.stack(self.actions).astype(np.float32),
            instruction=instruction,
            control_hz=float(CONTROL_HZ),
            frame_stride=stride,
            source=source,
        )
