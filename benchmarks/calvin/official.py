"""The official simulator: an installed calvin_env behind the methods that test episodes use."""

from __future__ import annotations

import contextlib
import importlib
import io
import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ...contracts import Observation
from ...data_pipeline.video.frames import resize_frames
from ...errors import DataError, EnvironmentMissing
from ..playtable.bullet import pybullet
from ..playtable.cameras import CameraConfig
from ..playtable.environment import CAMERAS, CONTROL_HZ
from ..playtable.robot import FINGER_OPEN
from ..playtable.scenes import ROBOT_BASE, SceneSpec, scene
from ..playtable.table import Table
from ..playtable.world import WorldState


class OfficialTable(Table):
    """calvin_env's environment, moved by its own control; `camera` sets sizes and renderer.

    Every `reset` makes a new environment, resets it once as the official data collection does, and then puts the world
    in place: in an environment used twice the last digits, and after some contacts all of them, depend on what was
    before.

    Raises:
        EnvironmentMissing: calvin_env is not installed, or its files lie elsewhere.
        SimulationError: unknown scene.
    """

    name, cameras, control_hz = "calvin_env", CAMERAS, CONTROL_HZ

    def __init__(self, scene_name: str = "D", *, camera: CameraConfig | None = None, draws: bool = True) -> None:
        self.spec_scene: SceneSpec = scene(scene_name)
        self.camera = camera or CameraConfig()
        self.calvin_root: Path | None = _installed()
        self._settings = _settings(self.calvin_root, scene_name, self.camera)
        if not draws:
            self._settings.cameras = {}
        self._env: Any = None
        self._seen: dict[str, Any] = {}
        self._steps = 0
        self.reset()

    def reset(self, *, options: Mapping[str, Any] | None = None) -> None:
        """Start an episode in a new environment; `options` may hold `robot_obs` `[15]` and `scene_obs` `[24]`."""
        instantiate = importlib.import_module("hydra.utils").instantiate
        self.close()
        with _quietly():
            self._env = instantiate(
                self._settings.env, show_gui=False, use_vr=False, use_scene_info=True, use_egl=self._settings.egl
            )
            self._seen = self._env.reset()
        if options:
            self.set_state(options.get("robot_obs"), options.get("scene_obs"))
        self._steps = 0

    def set_state(self, robot_obs: Any = None, scene_obs: Any = None) -> None:
        """Put arm and scene in place with the official reset."""
        self._seen = self._env.reset(robot_obs=robot_obs, scene_obs=scene_obs)
        self._steps = 0

    def step(self, action: np.ndarray) -> None:
        """Move by one of CALVIN's relative actions `[7]`; see `PlayTable.step`."""
        self._seen, *_ = self._env.step(np.asarray(action, float))
        self._steps += 1

    def step_pose(self, position: np.ndarray, quaternion: np.ndarray, gripper: float) -> None:
        """Move for one control step towards an absolute world tool pose; see `PlayTable.step_pose`."""
        absolute = (np.asarray(position, float), np.asarray(quaternion, float), 1 if gripper > 0.5 else -1)
        self._seen, *_ = self._env.step(absolute)
        self._steps += 1

    def world_state(self) -> WorldState:
        """Return what tasks read, from the official `get_info()`."""
        info = self._env.get_info()
        quaternion = np.array(pybullet.getQuaternionFromEuler(info["robot_info"]["tcp_orn"]))
        return replace(read_info(info), tool_quaternion=quaternion)

    def observe(self, instruction: str, *, images: bool = True) -> Observation:
        """Return what a policy sees; poses are in the robot base frame."""
        robot_obs = self.robot_obs()
        return Observation(
            images={name: self.draw(name) for name in CAMERAS} if images else {},
            tool_position=robot_obs[:3] - ROBOT_BASE,
            tool_quaternion=np.array(pybullet.getQuaternionFromEuler(robot_obs[3:6])),
            gripper_opening=float(np.clip(robot_obs[6] / (2 * FINGER_OPEN), 0, 1)),
            gripper_command=float(robot_obs[14] > 0),
            joint_positions=robot_obs[7:14],
            instruction=instruction,
            time=self._steps / CONTROL_HZ,
        )

    def draw(self, camera: str, *, px: int | None = None) -> np.ndarray:
        """Return the image of the last step: uint8 `[px px 3]`; the official environment draws after every one.

        Another size than the camera's is resized.
        """
        image = np.ascontiguousarray(self._seen["rgb_obs"][f"rgb_{camera}"])
        return image if px is None else resize_frames(image[None], px)[0]

    def official_obs(self) -> dict[str, Any]:
        """Return the official environment's own observation of the last step."""
        return self._seen

    def official_info(self) -> dict[str, Any]:
        """Return what the official `get_info()` returns."""
        return dict(self._env.get_info())

    def robot_obs(self) -> np.ndarray:
        """Return CALVIN's `robot_obs` `[15]`."""
        return np.array(self._seen["robot_obs"], float)

    def scene_obs(self) -> np.ndarray:
        """Return CALVIN's `scene_obs` `[24]`."""
        return np.array(self._seen["scene_obs"], float)

    def close(self) -> None:
        """Disconnect from the physics server."""
        if self._env is not None:
            with _quietly():
                self._env.close()
                self._env.ownsPhysicsClient = False  # its destructor closes once more
                self._env = None


def read_info(info: Mapping[str, Any]) -> WorldState:
    """Turn the official simulator's `get_info()` into what our tasks read.

    Raises:
        DataError: something is missing.
    """
    try:
        robot, scene = info["robot_info"], info["scene_info"]
        table, movable = scene["fixed_objects"]["table"], scene["movable_objects"]
        bodies = {robot["uid"]: "robot", table["uid"]: "table"} | {o["uid"]: name for name, o in movable.items()}
        links = {index: name for name, index in table["links"].items()}

        def touching(contacts: list[list[int]]) -> frozenset[tuple[str, str]]:
            named = ((bodies.get(c[2], f"body_{c[2]}"), c[4]) for c in contacts)
            return frozenset((body, links[link] if body == "table" else "") for body, link in named)

        blocks = {name.removeprefix("block_"): one for name, one in movable.items()}
        return WorldState(
            tool_position=np.array(robot["tcp_pos"]),
            tool_quaternion=np.array([0.0, 0.0, 0.0, 1.0]),
            finger_width=float(robot["gripper_opening_width"]),
            gripper_command=float(robot["gripper_action"] > 0),
            slider=float(scene["doors"]["base__slide"]["current_state"]),
            drawer=float(scene["doors"]["base__drawer"]["current_state"]),
            button=float(scene["buttons"]["base__button"]["joint_state"]),
            switch=float(scene["switches"]["base__switch"]["joint_state"]),
            bulb=bool(scene["lights"]["lightbulb"]["logical_state"]),
            led=bool(scene["lights"]["led"]["logical_state"]),
            blocks={c: (np.array(o["current_pos"]), np.array(o["current_orn"])) for c, o in blocks.items()},
            contacts={c: touching(o["contacts"]) for c, o in blocks.items()},
            robot_contacts=frozenset(body for body, _ in touching(robot["contacts"])),
            velocities={c: np.array([*o["current_lin_vel"], *o["current_ang_vel"]]) for c, o in blocks.items()},
        )
    except (KeyError, TypeError, IndexError) as error:
        raise DataError(f"state of the official simulator: {error} is missing; record it again.") from error


def _installed() -> Path:
    """Return the folder of the installed calvin_env's clone, which holds `conf` and `data`."""
    try:
        package = importlib.import_module("calvin_env.envs.play_table_env")
    except Exception as error:  # its dependencies fail in many ways
        raise EnvironmentMissing(
            f"--backend official: expected an installed calvin_env, got {error!r}; docs/calvin.md shows how to install "
            "it, --backend gr2 needs nothing."
        ) from error
    if getattr(sys.modules["calvin_env"], "__file__", None) is None:
        raise EnvironmentMissing(
            "--backend official: expected the package calvin_env, got the folder of its clone, which the working "
            "folder or PYTHONPATH puts first; start from another folder."
        )
    root = Path(str(package.__file__)).resolve().parents[2]
    if not (root / "conf" / "scene").is_dir() or not (root / "data").is_dir():
        raise EnvironmentMissing(
            f"--backend official: expected conf and data beside the package in {root}, found them not; install "
            "calvin_env from its clone (pip install -e)."
        )
    return root


def _settings(root: Path, scene_name: str, camera: CameraConfig) -> Any:
    """Put together what hydra would compose for `config_data_collection` with both cameras."""
    OmegaConf = importlib.import_module("omegaconf").OmegaConf

    def load(*names: str) -> Any:
        parts = [OmegaConf.load(root / "conf" / f"{name}.yaml") for name in names]
        for part in parts:
            part.pop("defaults", None)
        return OmegaConf.merge(*parts)

    cameras = {name: load(f"cameras/cameras/{name}") for name in CAMERAS}
    for name, side in zip(CAMERAS, (camera.static_px, camera.gripper_px), strict=True):
        cameras[name].width = cameras[name].height = side
    return OmegaConf.create(
        {
            "cameras": cameras,
            "scene": load(f"scene/calvin_scene_{scene_name}"),
            "robot": load("robot/panda", "robot/panda_longer_finger"),
            "env": load("env/play_table_env"),
            "data_path": str(root / "data"),
            "use_vr": False,
            "egl": camera.renderer == "egl",
        }
    )


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Keep the official environment's prints out of tables and progress bars."""
    with contextlib.redirect_stdout(io.StringIO()):
        yield
