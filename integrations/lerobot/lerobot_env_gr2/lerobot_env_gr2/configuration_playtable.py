"""Options of PlayTable under LeRobot."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import gymnasium
from lerobot.configs import FeatureType, PolicyFeature
from lerobot.envs import EnvConfig
from lerobot.envs.utils import freeze_after_episode_end
from lerobot.utils.constants import ACTION, OBS_IMAGES, OBS_STATE

from gr2.benchmarks.playtable.cameras import CameraConfig
from gr2.benchmarks.playtable.tasks import ALL_TASKS, TASKS
from gr2.errors import ConfigError

from .environment import CAMERAS, PlayTableTask, dimensions
from .remote import RemoteTask

_SETS = {"demonstrated": tuple(TASKS), "all": tuple(ALL_TASKS)}


@EnvConfig.register_subclass("playtable")
@dataclass
class PlayTableEnv(EnvConfig):
    """CALVIN's tasks in PlayTable; every task is one of LeRobot's task ids.

    Args:
        task: names separated by commas, "demonstrated" (17) or "all" (34).
        control: "pose" (absolute tool poses, as `gr2 data export` writes them) or "calvin" (relative actions `[7]`).
        scene: A, B, C or D.
        image_size: side of the images [px]; 0 is CALVIN's, 200 and 84.
        calvin_root: a clone of CALVIN, whose files are used instead of the built-in ones.
        episode_length: control steps until an episode is cut off.
        simulator_python: a Python with gr2 and pybullet that runs the simulator, where this one has no pybullet.
    """

    task: str | None = "turn_on_led"
    fps: int = 30
    control: str = "pose"
    scene: str = "D"
    image_size: int = 64
    calvin_root: str | None = None
    episode_length: int = 360
    simulator_python: str = ""
    features: dict[str, PolicyFeature] = field(default_factory=dict)
    features_map: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.control not in ("pose", "calvin"):
            raise ConfigError(f"--env.control: expected pose or calvin, got {self.control!r}; choose one.")
        if self.image_size < 0 or self.episode_length < 1:
            raise ConfigError(
                "--env.image_size and episode_length: expected 0 or more and 1 or more, got "
                f"{self.image_size} and {self.episode_length}; change them."
            )
        state, action = dimensions(self.control)  # type: ignore[arg-type]
        camera = CameraConfig()
        sides = (self.image_size or camera.static_px, self.image_size or camera.gripper_px)
        self.features = {
            ACTION: PolicyFeature(type=FeatureType.ACTION, shape=(action,)),
            "agent_pos": PolicyFeature(type=FeatureType.STATE, shape=(state,)),
        }
        self.features_map = {ACTION: ACTION, "agent_pos": OBS_STATE}
        for name, px in zip(CAMERAS, sides, strict=True):
            self.features[f"pixels/{name}"] = PolicyFeature(type=FeatureType.VISUAL, shape=(px, px, 3))
            self.features_map[f"pixels/{name}"] = f"{OBS_IMAGES}.{name}"
        self.tasks()

    def tasks(self) -> tuple[str, ...]:
        """Return the names of the tasks.

        Raises:
            ConfigError: an unknown one, or none.
        """
        asked = self.task or ""
        names = _SETS.get(asked) or tuple(name.strip() for name in asked.split(",") if name.strip())
        if unknown := [name for name in names if name not in ALL_TASKS] or ([] if names else ["none"]):
            raise ConfigError(
                f"--env.task: expected demonstrated, all, or some of {', '.join(ALL_TASKS)}, got {unknown[0]!r}."
            )
        return names

    @property
    def package_name(self) -> str:
        """Return the package of the environment."""
        return "lerobot_env_gr2"

    @property
    def gym_kwargs(self) -> dict[str, Any]:
        """Return the options of `PlayTableTask`."""
        names = ("control", "scene", "image_size", "calvin_root", "episode_length")
        return {name: getattr(self, name) for name in names}

    def create_envs(
        self, n_envs: int, use_async_envs: bool = False
    ) -> dict[str, dict[int, gymnasium.vector.VectorEnv[Any, Any, Any]]]:
        """Return {"playtable": {place of a task: its vector environment}}; the simulators start at the first reset."""
        return {"playtable": {i: self._vector(name, n_envs, use_async_envs) for i, name in enumerate(self.tasks())}}

    def _vector(self, task: str, n_envs: int, use_async: bool) -> gymnasium.vector.VectorEnv[Any, Any, Any]:
        """Make n environments of a task; one that is done stands still until the others are."""
        kind = partial(RemoteTask, python=self.simulator_python) if self.simulator_python else PlayTableTask
        make: Callable[[], Any] = freeze_after_episode_end(partial(kind, task, **self.gym_kwargs))
        mode = gymnasium.vector.AutoresetMode.NEXT_STEP
        if use_async and n_envs > 1:
            return gymnasium.vector.AsyncVectorEnv([make] * n_envs, context="forkserver", autoreset_mode=mode)
        return gymnasium.vector.SyncVectorEnv([make] * n_envs, autoreset_mode=mode)
