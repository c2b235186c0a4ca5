"""Meta-World's simulated Sawyer: one task at a time, its own starts, goals and judge, two cameras."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ...contracts import Array, Observation
from ...embodiment import EFFORT, Embodiment, Signal
from ...errors import ConfigError, ShapeError
from ..simulation.opengl import prepare_drawing
from .instructions import MT10
from .package import load

EMBODIMENT = Embodiment(
    name="metaworld",
    cameras=("corner2", "gripperPOV"),
    state=(
        Signal(name="hand_position", width=3, kind="position"),
        Signal(name="gripper", width=1, kind="gripper", binary=False),
    ),
    action=(
        Signal(name="hand_position", width=3, kind="position", unit="cm", reference="delta"),
        Signal(name="gripper_effort", width=1, kind="gripper", unit=EFFORT, binary=False),
    ),
    control_hz=80.0,
)
"""The first four numbers of Meta-World's observation, in the world's frame; and its action: a step of the hand's target
of at most 1 cm along each axis, and the effort of the fingers."""

MAX_STEPS = 500
"""Control steps of an episode, after which Meta-World goes no further."""

_CORNER_POSITION = (0.75, 0.075, 0.7)
"""Where `corner2` stands [m]: nearer than in Meta-World's files, as users of its images have it.

Source: Seo et al., Masked World Models for Visual Control, arXiv 2206.14244; LeRobot's Meta-World environment.
"""


class MetaWorld:
    """One of Meta-World's 50 tasks; `reset` chooses which.

    Args:
        image_px: image side of both cameras [px].

    Raises:
        ConfigError: no usable image side.
        EnvironmentMissing: Meta-World is not installed.
    """

    name, cameras, control_hz, embodiment = "metaworld", EMBODIMENT.cameras, EMBODIMENT.control_hz, EMBODIMENT

    def __init__(self, *, image_px: int = 64) -> None:
        if image_px < 1:
            raise ConfigError(f"--image-size: expected 1 or more pixels, got {image_px}.")
        self.image_px = image_px
        self._package = load()
        self._env: Any = None
        self._renderers: dict[int, Any] = {}
        self._task, self._success, self._steps = "", False, 0
        self._observed = np.zeros(39)

    @property
    def task(self) -> str:
        """The task of the episode."""
        return self._task

    @property
    def full_state(self) -> Array:
        """What Meta-World's experts read, `[39]`: hand, fingers, objects, the same one step ago, the goal."""
        return self._observed

    def reset(self, *, options: Mapping[str, Any] | None = None) -> None:
        """Start an episode; Meta-World samples places and goal by its own rules.

        Args:
            options: `task` (a name; else the present one, at first `reach-v3`) and `seed` (0).

        Raises:
            ConfigError: no such task.
        """
        wanted = dict(options or {})
        task, seed = str(wanted.pop("task", self._task or MT10[0])), int(wanted.pop("seed", 0))
        if wanted or task not in self._package.environments:
            got = f"{', '.join(wanted)} as well" if wanted else f"task {task!r}"
            raise ConfigError(f"metaworld: expected the options task (a name such as {MT10[0]}) and seed, got {got}.")
        if task != self._task:
            self._open(task)
        self._env.seed(seed)
        self._observed = self._env.reset()[0]
        self._success, self._steps = False, 0

    def begin(self, task: str) -> None:
        """Begin the task of the episode.

        Raises:
            ConfigError: another task, for which there is another environment.
        """
        if task != self._task:
            raise ConfigError(
                f"metaworld: expected the task of the episode, {self._task!r}, got {task!r}; reset first."
            )

    def success(self) -> bool:
        """Return whether Meta-World called the last step a success."""
        return self._success

    def observe(self, instruction: str, *, images: bool = True) -> Observation:
        """Return the images, the hand's position [m] and the fingers' opening; without images where none are wanted."""
        return Observation(
            images={name: self.draw(name) for name in self.cameras} if images else {},
            state=self._observed[:4].copy(),
            instruction=instruction,
            time=self._steps / self.control_hz,
        )

    def apply_action(self, values: Array) -> None:
        """Advance by one control step; numbers beyond -1 and 1 are clipped, as Meta-World does.

        Args:
            values: `[4]`, see `EMBODIMENT`.

        Raises:
            ConfigError: the episode is over, or has not begun.
            ShapeError: other than four finite numbers.
        """
        action = np.asarray(values, np.float64)
        if action.shape != (4,) or not np.isfinite(action).all():
            raise ShapeError(f"metaworld: expected an action of 4 finite numbers, got {values}; check the policy.")
        if self._env is None or self._steps >= MAX_STEPS:
            raise ConfigError(f"metaworld: expected a reset before the first and after {MAX_STEPS} steps, got none.")
        self._observed, _, _, _, info = self._env.step(np.clip(action, -1.0, 1.0))
        self._success = bool(info["success"])
        self._steps += 1

    def hold_action(self, last: Array | None) -> Array:
        """Return no step of the hand, and the last effort of the fingers; a reset leaves them open."""
        return np.array([0.0, 0.0, 0.0, -1.0 if last is None else last[3]])

    def draw(self, camera: str, *, px: int | None = None) -> Array:
        """Draw one camera without shadows, reflections and multisampling: uint8 `[px px 3]`."""
        renderer = self._renderer(px or self.image_px)
        self._place_what_is_drawn()
        renderer.update_scene(self._env.data, camera)
        image: Array = renderer.render()
        return np.ascontiguousarray(image[::-1, ::-1]) if camera == "corner2" else image  # it stands on its head

    def close(self) -> None:
        """Release the environment and the renderers."""
        for renderer in self._renderers.values():
            renderer.close()
        self._renderers = {}
        if self._env is not None:
            self._env.close()
        self._env, self._task = None, ""

    def _open(self, task: str) -> None:
        """Load the environment of a task, its goal observed by the experts, its starts sampled from its own seed."""
        self.close()
        env = self._package.environments[task]()
        env._partially_observable = False
        del env.sawyer_observation_space  # cached with the goal hidden
        env._set_task_called, env._freeze_rand_vec, env.seeded_rand_vec = True, False, True
        env.model.cam_pos[env.model.camera("corner2").id] = _CORNER_POSITION
        env.model.vis.quality.offsamples = 0
        self._env, self._task = env, task

    def _place_what_is_drawn(self) -> None:
        """Bring derived places up to date, goals to where they are: physics does not read them.

        After a reset Meta-World leaves the goal of an earlier sample in place until the first step.
        """
        mujoco, model, data = self._package.mujoco, self._env.model, self._env.data
        for update in (mujoco.mj_kinematics, mujoco.mj_comPos, mujoco.mj_camlight):
            update(model, data)
        for site, position in self._env._target_site_config:
            data.site(site).xpos[:] = position

    def _renderer(self, px: int) -> Any:
        if self._env is None:
            raise ConfigError("metaworld: expected a reset before the first image, got none.")
        if px not in self._renderers:
            prepare_drawing()
            size = self._env.model.vis.global_
            size.offwidth, size.offheight = max(size.offwidth, px), max(size.offheight, px)
            flags = self._package.mujoco.mjtRndFlag
            renderer = self._package.mujoco.Renderer(self._env.model, px, px)
            renderer.scene.flags[flags.mjRND_SHADOW] = renderer.scene.flags[flags.mjRND_REFLECTION] = 0
            self._renderers[px] = renderer
        return self._renderers[px]


def start_seed(*numbers: int) -> int:
    """Return the seed of a start, which follows from the numbers that name it."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])
