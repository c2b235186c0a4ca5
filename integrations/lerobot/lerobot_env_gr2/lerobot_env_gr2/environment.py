"""One task of CALVIN's world, with the observations and actions of LeRobot's policies and gr2's exported datasets."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import gymnasium
import numpy as np

from gr2.benchmarks.calvin.task_environment import TaskEnvironment
from gr2.benchmarks.playtable.cameras import CameraConfig
from gr2.benchmarks.playtable.instructions import evaluation_instructions
from gr2.benchmarks.playtable.tasks import task as find_task
from gr2.embodiment import TOOL_ARM
from gr2.errors import SimulationError

Control = Literal["pose", "calvin"]
CAMERAS = ("static", "gripper")
ROBOT_OBS_DIM, CALVIN_DIM = 15, 7


def dimensions(control: Control) -> tuple[int, int]:
    """Return how many numbers a state and an action have."""
    return (TOOL_ARM.state_dim, TOOL_ARM.action_dim) if control == "pose" else (ROBOT_OBS_DIM, CALVIN_DIM)


class PlayTableTask(gymnasium.Env[dict[str, Any], np.ndarray]):
    """A task from random starts; the simulator is made at the first reset.

    Observations hold `pixels` {camera: uint8 `[h w 3]`} and `agent_pos`. `info` holds `is_success`. With control
    "pose", `agent_pos` `[16]` and actions `[8]` are those of `gr2 data export`: tool position [m], quaternion xyzw and
    opening of the gripper in the robot base frame. With "calvin" they are CALVIN's `robot_obs` `[15]` and relative
    actions `[7]`.

    Args:
        task: one of the 34 tasks.
        control: what actions and states are.
        scene: A, B, C or D.
        image_size: side of the images [px]; 0 is CALVIN's, 200 and 84.
        calvin_root: a clone of CALVIN, whose files and instructions are used.
        episode_length: control steps (30 Hz) until an episode is cut off.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 30}  # noqa: RUF012 (Gymnasium's own convention)

    def __init__(
        self,
        task: str,
        *,
        control: Control = "pose",
        scene: str = "D",
        image_size: int = 64,
        calvin_root: str | None = None,
        episode_length: int = 360,
    ) -> None:
        self.task = find_task(task).name
        self._root = Path(calvin_root) if calvin_root else None
        self.task_description = evaluation_instructions(self._root)[task]
        self.control, self.scene, self._max_episode_steps = control, scene, episode_length
        self._camera = CameraConfig(static_px=image_size, gripper_px=image_size) if image_size else CameraConfig()
        self.render_mode = "rgb_array"
        self._environment: TaskEnvironment | None = None
        self._steps = 0
        box = gymnasium.spaces.Box
        sides = {"static": self._camera.static_px, "gripper": self._camera.gripper_px}
        state, action = dimensions(control)
        self.observation_space = gymnasium.spaces.Dict(
            {
                "pixels": gymnasium.spaces.Dict({n: box(0, 255, (px, px, 3), np.uint8) for n, px in sides.items()}),
                "agent_pos": box(-np.inf, np.inf, (state,), np.float32),
            }
        )
        self.action_space = box(-1.0, 1.0, (action,), np.float32)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Start the task in a scene sampled by `seed`, or in the next one of the last seed; options are not read."""
        super().reset(seed=seed)
        if self._environment is None:
            self._environment = TaskEnvironment(
                self.task, scene_name=self.scene, camera=self._camera, calvin_root=self._root, images=False
            )
        self._environment.reset(seed=seed)
        self._steps = 0
        return self._observe(), {"is_success": False}

    def step(self, action: np.ndarray) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        """Move for one control step; the reward is 1 when the task is done.

        Raises:
            SimulationError: before the first reset, or numbers that are no action.
        """
        world, values = self._world, np.asarray(action, np.float64)
        if values.shape != self.action_space.shape or not np.isfinite(values).all():
            raise SimulationError(f"action: expected {self.action_space.shape[0]} finite numbers, got {values!r:.80}.")
        if self.control == "calvin":
            world.step(values)
        else:
            length = float(np.linalg.norm(values[3:7]))
            if length < 1e-3:
                raise SimulationError("action: expected a quaternion at numbers 3 to 6, got zeros; check the policy.")
            world.apply(values[:3], values[3:7] / length, float(values[7]))
        self._steps += 1
        done = world.success()
        cut = self._steps >= self._max_episode_steps and not done
        return self._observe(), float(done), done, cut, {"is_success": done}

    @property
    def _world(self) -> Any:
        if self._environment is None:
            raise SimulationError("PlayTableTask: expected a reset before the first step, got none; call reset.")
        return self._environment.world

    def _observe(self) -> dict[str, Any]:
        world = self._world
        seen = world.observe(self.task_description)
        state = seen.state_vector() if self.control == "pose" else world.robot_obs()
        return {"pixels": dict(seen.images), "agent_pos": np.asarray(state, np.float32)}

    def render(self) -> np.ndarray:  # type: ignore[override]
        """Draw the static camera at CALVIN's size."""
        image: np.ndarray = self._world.draw("static", px=CameraConfig().static_px)
        return image

    def close(self) -> None:
        """Close the simulator."""
        if self._environment is not None:
            self._environment.close()
            self._environment = None
