"""One task of CALVIN as a Gymnasium environment: random starts by seed, a reward, and an end where it is done."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import gymnasium
import numpy as np

from ...errors import ConfigError, SimulationError
from ..playtable.cameras import CameraConfig
from ..playtable.environment import PlayTable
from ..playtable.instructions import evaluation_instructions
from ..playtable.tasks import task as find_task
from .episodes import task_start
from .failures import TaskWatch

Reward = Literal["sparse", "dense"]

_APPROACH = 10.0
"""Dense reward for each meter that the tool comes nearer."""


class TaskEnvironment(gymnasium.Env[dict[str, Any], np.ndarray]):
    """A task in a PlayTable; `reset` samples a scene in which the task can begin, the same one for the same seed.

    An episode terminates when the task is done by CALVIN's rules; the time limit is Gymnasium's (`TimeLimit`).
    `info` holds `success`, the same as `is_success`, and after a reset `instruction`. `world` is the PlayTable.

    Args:
        task: one of the 34 tasks; those that begin with a block in the hand, in the drawer or on another block are
            brought there by the scripted experts.
        reward: "sparse" is 1 when the task is done, else 0. "dense" adds 10 for each meter that the tool comes nearer
            to what the task moves, and subtracts as much for moving away.
        scene_name: A, B, C or D.
        camera: see `PlayTable`, as the other arguments.
        calvin_root: a clone of CALVIN, whose files and instructions are used.
        render_mode: None, or "rgb_array" for `render`.
        images: whether observations hold images; None: where there is a render mode.

    Raises:
        ConfigError: unknown task or reward.
    """

    metadata = PlayTable.metadata

    def __init__(
        self,
        task: str = "turn_on_led",
        *,
        reward: Reward = "sparse",
        scene_name: str = "D",
        camera: CameraConfig | None = None,
        calvin_root: Path | None = None,
        render_mode: str | None = None,
        images: bool | None = None,
    ) -> None:
        if reward not in ("sparse", "dense"):
            raise ConfigError(f"reward: expected sparse or dense, got {reward!r}; choose one of them.")
        self.task, self.reward = find_task(task), reward
        self._instruction = evaluation_instructions(calvin_root)[task]
        self.world = PlayTable(
            scene_name, camera=camera, calvin_root=calvin_root, render_mode=render_mode, images=images
        )
        self.render_mode = render_mode
        self.observation_space, self.action_space = self.world.observation_space, self.world.action_space
        self._distance = 0.0

    def reset(
        self, *, seed: int | None = None, options: Mapping[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Start the task in a scene sampled by `seed`, or in the next one of the last seed.

        Raises:
            SimulationError: options are given: the scene is sampled; or none was found in which the task can begin.
        """
        if options:
            raise SimulationError(
                f"reset: expected no options, for the scene of {self.task.name} is sampled, got {sorted(options)}; "
                "set states in gr2/PlayTable-v0."
            )
        super().reset(seed=seed)
        task_start(self.world, self.task.name, int(self.np_random.integers(2**31)), 0)
        self.world.begin(self.task.name)
        self._watch = TaskWatch(self.task.name, self.task.family, self.world)
        self._distance = self._watch.distance()
        return self.world.observe_calvin(), self._info(False) | {"instruction": self._instruction}

    def step(self, action: np.ndarray) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        """Move by one of CALVIN's relative actions; see `PlayTable.step`."""
        observation, *_ = self.world.step(action)
        done = self.world.success()
        reward = float(done)
        if self.reward == "dense":
            before, self._distance = self._distance, self._watch.distance()
            reward += _APPROACH * (before - self._distance)
        return observation, reward, done, False, self._info(done)

    def render(self) -> np.ndarray:  # type: ignore[override]
        """Draw the static camera."""
        return self.world.render()

    def close(self) -> None:
        """Close the world."""
        self.world.close()

    @staticmethod
    def _info(done: bool) -> dict[str, Any]:
        return {"success": done, "is_success": done}
