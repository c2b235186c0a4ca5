"""LIBERO's simulated Panda: one task at a time, its official initial states and judge, two cameras."""

from __future__ import annotations

import atexit
from collections.abc import Mapping
from typing import Any

import numpy as np

from ...contracts import Array, Observation
from ...data_pipeline.readers.spec import LIBERO
from ...embodiment import Embodiment
from ...errors import ConfigError, ShapeError
from .package import load
from .tasks import INITIAL_STATES, SETTLING_STEPS

EMBODIMENT = Embodiment(
    name=LIBERO.name,
    cameras=tuple(LIBERO.cameras),
    state=LIBERO.state_signals,
    action=LIBERO.action_signals,
    control_hz=20.0,
)
"""What LIBERO's demonstrations hold, read with `--spec libero`: the tool's pose in the world and both fingers; the
tool's moves as shares of the controller's greatest (5 cm and half a radian), and the gripper, 1 open to 0 closed."""

SEED = 7
"""Seed of the places that initial states leave open, those of fixed furniture. Source: openpi, its LIBERO example."""

_CAMERAS = {"agentview": "agentview", "eye_in_hand": "robot0_eye_in_hand"}
_MAX_STEPS = 900
"""Control steps of an episode; robosuite goes no further than 1000."""

_DRAWN = (
    "xpos", "xquat", "xmat", "xipos", "ximat", "geom_xpos", "geom_xmat", "site_xpos", "site_xmat", "cam_xpos",
    "cam_xmat", "light_xpos", "light_xdir",
)  # fmt: skip
"""Places in MuJoCo's data that an image depends on."""


class Libero:
    """One of LIBERO's tasks; `reset` chooses which.

    Args:
        image_px: image side of both cameras [px].
        fast_drawing: draw without reflections, shadows and multisampling.
        seed: of the places that initial states leave open.

    Raises:
        ConfigError: no usable image side.
        EnvironmentMissing: LIBERO is not installed.
    """

    name, cameras, control_hz, embodiment = "libero", EMBODIMENT.cameras, EMBODIMENT.control_hz, EMBODIMENT

    def __init__(self, *, image_px: int = 256, fast_drawing: bool = False, seed: int = SEED) -> None:
        if image_px < 1:
            raise ConfigError(f"--image-size: expected 1 or more pixels, got {image_px}.")
        self.image_px, self.fast_drawing, self.seed = image_px, fast_drawing, seed
        self._package = load()
        self._wrapper: Any = None
        self._env: Any = None
        self._task, self._success, self._steps = "", False, 0
        self._states = np.zeros((0, 0))
        self._loaded: tuple[Array, Array] = (np.zeros((0, 3)), np.zeros((0, 4)))
        self._seen: dict[str, Array] = {}
        self._observed: Mapping[str, Any] = {}

    @property
    def task(self) -> str:
        """The task of the episode, as `suite/name`."""
        return self._task

    @property
    def full_state(self) -> Mapping[str, Any]:
        """What LIBERO observes apart from images, the poses of all things among it."""
        return self._observed

    @property
    def things(self) -> list[str]:
        """Names of the things that the task is about, in the order of LIBERO's description."""
        return list(self._env.obj_of_interest)

    def instruction(self, task: str) -> str:
        """Return LIBERO's instruction of a task."""
        suite, _, name = task.partition("/")
        return str(self._package.tasks[suite][name].language)

    def reset(self, *, options: Mapping[str, Any] | None = None) -> None:
        """Start an episode from an official initial state, and let things settle.

        Args:
            options: `task` (`suite/name`; else the present one, at first that of index 0 of libero_spatial) and
                `index` of the initial state (0).

        Raises:
            ConfigError: no such task or initial state.
        """
        wanted, tasks = dict(options or {}), self._package.tasks
        first = f"libero_spatial/{next(iter(tasks['libero_spatial']))}"
        task, index = str(wanted.pop("task", self._task or first)), int(wanted.pop("index", 0))
        suite, _, name = task.partition("/")
        if wanted or name not in tasks.get(suite, {}) or not 0 <= index < INITIAL_STATES:
            got = f"{', '.join(wanted)} as well" if wanted else f"task {task!r}, index {index}"
            raise ConfigError(
                f"libero: expected the options task (suite/name) and index (below {INITIAL_STATES}), got {got}."
            )
        if task != self._task:
            self._open(task)
        self._place()
        self._observed = self._wrapper.set_init_state(self._states[index])
        self._steps = 0
        for _ in range(SETTLING_STEPS):
            self._advance(self.hold_action(None))
        self._steps = 0

    def begin(self, task: str) -> None:
        """Begin the task of the episode.

        Raises:
            ConfigError: another task, for which there is another environment.
        """
        if task != self._task:
            raise ConfigError(f"libero: expected the task of the episode, {self._task!r}, got {task!r}; reset first.")

    def success(self) -> bool:
        """Return whether LIBERO's predicate holds after the last step."""
        return self._success

    def observe(self, instruction: str, *, images: bool = True) -> Observation:
        """Return the images, the tool's position [m] and rotation [rad] in the world, and the fingers [m]."""
        seen = self._observed
        parts = (
            seen["robot0_eef_pos"], self._package.axis_angle(np.array(seen["robot0_eef_quat"])),
            seen["robot0_gripper_qpos"],
        )  # fmt: skip
        return Observation(
            images={name: self.draw(name) for name in self.cameras} if images else {},
            state=np.concatenate(parts),
            instruction=instruction,
            time=self._steps / self.control_hz,
        )

    def apply_action(self, values: Array) -> None:
        """Advance by one control step; moves beyond -1 and 1 are clipped, as robosuite does.

        Args:
            values: `[7]`, see `EMBODIMENT`; robosuite closes the gripper below an opening of 0.5, opens it above.

        Raises:
            ConfigError: the episode has not begun, or has lasted too long.
            ShapeError: other than seven finite numbers, or no opening of 0 to 1.
        """
        action = np.asarray(values, np.float64)
        if action.shape != (7,) or not np.isfinite(action).all() or not -0.05 <= action[6] <= 1.05:
            raise ShapeError(
                "libero: expected an action of 7 finite numbers, the last an opening of 0 closed to 1 open, got "
                f"{values}; check the policy (robosuite's own 1 closed to -1 open is 0 to 1 here)."
            )
        if self._env is None or self._steps >= _MAX_STEPS:
            raise ConfigError(f"libero: expected a reset before the first and after {_MAX_STEPS} steps, got none.")
        self._advance(action)

    def hold_action(self, last: Array | None) -> Array:
        """Return no move, and the last opening; a reset leaves the gripper open."""
        return np.array([0.0] * 6 + [1.0 if last is None else last[6]])

    def draw(self, camera: str, *, px: int | None = None) -> Array:
        """Draw one camera as robosuite does and turn it by 180 degrees: uint8 `[px px 3]`.

        robosuite's observations are those of the last but one physics step, 2 ms old; so are the images.
        """
        if self._env is None:
            raise ConfigError("libero: expected a reset before the first image, got none.")
        side, sim = px or self.image_px, self._env.sim
        now = {name: np.array(getattr(sim.data, name)) for name in _DRAWN}
        self._make_current()
        try:
            self._set_places(self._seen)
            image: Array = sim.render(camera_name=_CAMERAS[camera], width=side, height=side)
        finally:
            self._set_places(now)
        return np.ascontiguousarray(image[::-1, ::-1])

    def close(self) -> None:
        """Release the environment and what it draws with."""
        atexit.unregister(self.close)
        if self._wrapper is not None:
            self._make_current()
            self._wrapper.close()
        self._wrapper, self._env, self._task = None, None, ""

    def _advance(self, action: Array) -> None:
        own = np.append(np.clip(action[:6], -1.0, 1.0), 1.0 - 2.0 * action[6])
        self._observed, _, self._success, _ = self._env.step(own)
        self._success = bool(self._success)
        self._steps += 1

    def _open(self, task: str) -> None:
        """Load the environment of a task."""
        self.close()
        suite, _, name = task.partition("/")
        description = self._package.description(suite, name)
        self._wrapper = self._package.environment(bddl_file_name=str(description), use_camera_obs=False)
        atexit.register(self.close)  # before robosuite, which registered itself just now, ends the display
        self._env = self._wrapper.env
        self._states = self._package.initial_states(suite, name)
        self._env.add_observable(self._package.observable("gr2_places", self._see, self.control_hz))
        loaded = self._package.simulation.from_xml_string(self._env.model.get_xml()).model
        self._loaded = loaded.body_pos.copy(), loaded.body_quat.copy()
        self._env.hard_reset = False
        self._env.sim.reset = self._reset_simulation
        if self.fast_drawing:
            self._draw_fast()
        self._task = task

    def _place(self) -> None:
        """Have LIBERO place everything, from the seed alone."""
        kept = np.random.get_state()  # noqa: NPY002 (its samplers share this generator)
        np.random.seed(self.seed)  # noqa: NPY002
        self._env.robots[0].gripper.current_action = np.zeros(self._env.robots[0].gripper.dof)
        try:
            while True:
                try:
                    self._env.reset()
                    return
                except self._package.placement_error:
                    continue
        finally:
            np.random.set_state(kept)  # noqa: NPY002

    def _reset_simulation(self) -> None:
        """Bring MuJoCo to where it is after loading.

        LIBERO builds the model anew for each episode, which takes seconds; this ends with the same numbers to the last
        bit. It leaves out that LIBERO then samples drawers and doors once more for each episode before.
        """
        sim = self._env.sim
        sim.model.body_pos[:], sim.model.body_quat[:] = self._loaded
        type(sim).reset(sim)
        sim.forward()
        sim.forward()  # as robosuite does when it prepares to draw

    def _see(self) -> Array:
        """Keep what an image of this moment depends on; robosuite calls it when it observes."""
        self._seen = {name: np.array(getattr(self._env.sim.data, name)) for name in _DRAWN}
        return np.zeros(1)

    def _set_places(self, places: Mapping[str, Array]) -> None:
        for name, values in places.items():
            getattr(self._env.sim.data, name)[:] = values

    def _make_current(self) -> None:
        """Draw, and free, in the context of this simulator: robosuite does so in the one that was used last."""
        self._env.sim._render_context_offscreen.gl_ctx.make_current()

    def _draw_fast(self) -> None:
        context, flags = self._env.sim._render_context_offscreen, self._package.flags
        self._make_current()
        context.model.vis.quality.offsamples = 0
        context.con.free()
        context._set_mujoco_context_and_buffers()
        context.scn.flags[flags.mjRND_SHADOW] = context.scn.flags[flags.mjRND_REFLECTION] = 0
