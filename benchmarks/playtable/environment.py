"""PlayTable: CALVIN's table-top world on PyBullet, as a Gymnasium environment.

30 Hz control, 240 Hz physics. Images are drawn only when asked for.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np

from ...contracts import JointCommand, Observation
from ...errors import ConfigError, EnvironmentMissing, SimulationError
from ...wbc.robot.robots import RobotModel
from . import cameras
from .assets import builtin_assets
from .bullet import pybullet
from .calvin_assets import calvin_assets
from .cameras import CameraConfig
from .robot import FINGER_OPEN, REST_JOINTS, SimulatedPanda, panda_model
from .scenes import NEUTRAL_JOINTS, ROBOT_BASE, SceneSpec, scene
from .table import Table
from .targets import TARGET_MASK, draw_target
from .world import WorldState

CONTROL_HZ = 30
SIM_HZ = 240
SUBSTEPS = SIM_HZ // CONTROL_HZ
CAMERAS = ("static", "gripper")
_LIGHT_COLORS = {"bulb": (1, 1, 0, 1), "led": (0, 1, 0, 1)}
_LIGHT_OFF = (1, 1, 1, 1)
_BUTTON_PRESSED, _SWITCH_ON = 0.01, 0.044


class PlayTable(Table, gymnasium.Env[dict[str, Any], np.ndarray]):
    """One table, one arm, one physics client.

    Gymnasium actions are CALVIN's relative ones: `[7]` = tool translation in units of 0.02 m, rotation (fixed-axis
    euler) in units of 0.05 rad, gripper -1 (close) or +1 (open), added to the stored target pose.
    `step_pose` and `step_joints` drive the arm by absolute tool poses and by joint commands.

    calvin_root: a clone of CALVIN, whose files are used instead of the built-in assets; the simulation is then
        CALVIN's own, call by call. render_mode: "rgb_array" or None. images: whether observations hold images, which
        are drawn at every step; None: where there is a render mode. window: open PyBullet's viewer.

    Raises:
        ConfigError: `calvin_root` is no clone of CALVIN, or an unknown render mode.
        SimulationError: unknown scene, action of the wrong shape or not finite.
    """

    name, control_hz, joint_hz = "playtable", CONTROL_HZ, SIM_HZ
    cameras: tuple[str, ...] = CAMERAS
    extra_cameras = (TARGET_MASK,)
    metadata = {"render_modes": ["rgb_array"], "render_fps": CONTROL_HZ}  # noqa: RUF012 (Gymnasium's own convention)

    def __init__(
        self,
        scene_name: str = "D",
        *,
        camera: CameraConfig | None = None,
        calvin_root: Path | None = None,
        render_mode: str | None = "rgb_array",
        images: bool | None = None,
        window: bool = False,
    ) -> None:
        if render_mode not in (None, *self.metadata["render_modes"]):
            raise ConfigError(f"render_mode: expected rgb_array or None, got {render_mode!r}; use one of them.")
        self.spec_scene: SceneSpec = scene(scene_name)
        self.calvin_root = calvin_root
        self.camera = camera or CameraConfig()
        self.files = (
            calvin_assets(calvin_root, self.spec_scene, light=self.camera.fast)
            if calvin_root
            else builtin_assets(self.spec_scene)
        )
        self.render_mode = render_mode
        self.images = render_mode is not None if images is None else images
        if window and not (os.environ.get("DISPLAY") or sys.platform in ("darwin", "win32")):
            raise EnvironmentMissing(
                "PlayTable window: expected a screen (DISPLAY is not set), got none; write a video instead, or log in "
                "with a desktop."
            )
        if self.camera.renderer == "egl" and not window:
            self.client = cameras.connect_egl(self.camera.supersample * max(self._side(name) for name in CAMERAS))
        else:
            self.client = pybullet.connect(pybullet.GUI if window else pybullet.DIRECT)
        self._load()
        if self.camera.renderer == "egl":
            for name in CAMERAS:  # the plug-in casts no shadows in its first two images
                self.draw(name)
        self.observation_space = gymnasium.spaces.Dict(self._image_spaces() | state_spaces())
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (7,), np.float64)
        self._steps = 0

    def _image_spaces(self) -> dict[str, gymnasium.Space[Any]]:
        sizes = {name: self._side(name) for name in CAMERAS} if self.images else {}
        return {f"rgb_{name}": gymnasium.spaces.Box(0, 255, (px, px, 3), np.uint8) for name, px in sizes.items()}

    def _load(self) -> None:
        client, spec, files = self.client, self.spec_scene, self.files
        pybullet.resetSimulation(physicsClientId=client)
        pybullet.setTimeStep(1 / SIM_HZ, physicsClientId=client)
        pybullet.setGravity(0, 0, -9.8, physicsClientId=client)
        self.robot = SimulatedPanda(client, files.robot, official=files.official)
        self.robot.reset(np.array(REST_JOINTS), FINGER_OPEN, 1.0)
        size = {"globalScaling": files.scaling, "physicsClientId": client}
        draw = self._block_poses(np.random.default_rng(0))
        self.blocks = {
            color: pybullet.loadURDF(str(file), pose[:3], pybullet.getQuaternionFromEuler(pose[3:]), **size)
            for color, file, pose in zip(spec.blocks, files.blocks, draw, strict=False)
        }
        self.table = pybullet.loadURDF(str(files.table), useFixedBase=not files.official, **size)
        self.table_links: dict[str, int] = {"base_link": -1}
        self._joints: dict[str, int] = {}
        for index in range(pybullet.getNumJoints(self.table, physicsClientId=client)):
            info = pybullet.getJointInfo(self.table, index, physicsClientId=client)
            self.table_links[info[12].decode()] = index
            self._joints[info[1].decode()] = index
        for name in ("base__slide", "base__drawer"):
            self._motor(name, pybullet.VELOCITY_CONTROL, 0.0)
        self._motor("base__button", pybullet.POSITION_CONTROL, 0.0)
        self._motor("base__switch", pybullet.VELOCITY_CONTROL, 0.0)
        self.plane = pybullet.loadURDF(str(files.plane), physicsClientId=client)
        self._link_names = {index: name for name, index in self.table_links.items()}
        self._body_names = {uid: f"block_{color}" for color, uid in self.blocks.items()}
        self._body_names |= {self.robot.uid: "robot", self.table: "table", self.plane: "plane"}
        self.bulb = self.led = False
        self._button_was_pressed = self.switch_is_on = False
        self._target = (np.zeros(3), np.zeros(3))
        if files.official:
            self._repeat_first_reset(draw)

    def _block_poses(self, generator: np.random.Generator) -> Iterator[np.ndarray]:
        """Sample block poses `[6]` for ever, as the official environment does; ours all begin at the origin."""
        surfaces = self.files.surfaces
        while True:
            if not self.files.official:
                yield np.zeros(6)
                continue
            low, high = np.array(surfaces[generator.choice(list(surfaces))])
            yield np.concatenate([generator.uniform(low, high), generator.uniform([0, 0, -np.pi], [0, 0, np.pi])])

    def _repeat_first_reset(self, draw: Iterator[np.ndarray]) -> None:
        """Do what the official environment does before it is used: a reset with blocks at random places.

        Contacts remember it, and where the blocks were loaded: without it, later ones come in another order, differ
        in their last digits, and then in all of them.
        """
        for _ in range(1000):
            poses = [next(draw) for _ in self.blocks]
            self._set_scene(np.concatenate([np.zeros(6), *poses]))
            pybullet.stepSimulation(physicsClientId=self.client)
            if not any(c[0].startswith("block_") for uid in self.blocks.values() for c in self.touching(uid)):
                break
        self.robot.reset(np.array(REST_JOINTS), FINGER_OPEN, 1.0)
        pybullet.stepSimulation(physicsClientId=self.client)

    def _motor(self, joint: str, mode: int, target: float) -> None:
        key = "targetVelocity" if mode == pybullet.VELOCITY_CONTROL else "targetPosition"
        pybullet.setJointMotorControl2(
            self.table, self._joints[joint], mode, force=4, physicsClientId=self.client, **{key: target}
        )

    def reset(
        self, *, seed: int | None = None, options: Mapping[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Start an episode.

        Args:
            seed: seeds `np_random`; the world itself has no randomness (`gr2/PlayTableTask-v0` samples scenes).
            options: `robot_obs` `[15]`, `scene_obs` `[24]` as in CALVIN; either may be absent.
        """
        super().reset(seed=seed)
        options = dict(options or {})
        unknown = set(options) - {"robot_obs", "scene_obs"}
        if unknown:
            raise SimulationError(f"reset: expected options robot_obs, scene_obs, got {sorted(unknown)}; fix the name.")
        # A fresh world: what PyBullet keeps from before (contact caches, motors) would change the last digits.
        self._load()
        self.set_state(options.get("robot_obs"), options.get("scene_obs"))
        return self.observe_calvin(), {}

    def set_state(self, robot_obs: Any = None, scene_obs: Any = None) -> None:
        """Put arm and scene in place in the present world: faster than `reset`, equal to it up to rounding.

        Args:
            robot_obs: `[15]` as in CALVIN, neutral where None; scene_obs: `[24]`.
        """
        robot_obs = _vector(robot_obs, 15, "robot_obs")
        scene_obs = _vector(scene_obs, 24, "scene_obs")
        joints, finger, command = np.array(NEUTRAL_JOINTS), FINGER_OPEN, 1.0
        if robot_obs is not None:
            joints, finger, command = robot_obs[7:14], robot_obs[6] / 2, float(robot_obs[14] > 0)
        self._set_scene(scene_obs if scene_obs is not None else self._default_scene())
        self.robot.reset(joints, finger, command)
        self._aim_at_tool()
        pybullet.stepSimulation(physicsClientId=self.client)
        if not self.files.official:
            # A block put down exactly on a surface sinks in slightly in that step; look again, so that it touches it.
            pybullet.performCollisionDetection(physicsClientId=self.client)
        self._steps = 0

    def _aim_at_tool(self) -> None:
        """Let relative actions start from where the tool is."""
        position, quaternion = self.robot.link_pose(self.robot.tcp)
        self._target = (position, np.array(pybullet.getEulerFromQuaternion(quaternion)))

    def _default_scene(self) -> np.ndarray:
        center = float(np.mean(self.spec_scene.spawn_x))
        blocks = [[center + dx, -0.09, 0.46, 0, 0, np.pi / 2] for dx in (-0.1, 0.0, 0.1)]
        return np.concatenate([np.zeros(6), np.array(blocks).ravel()])

    def _set_scene(self, scene_obs: np.ndarray) -> None:
        for name, value in zip(("slide", "drawer", "button", "switch"), scene_obs[:4], strict=True):
            joint = self._joints[f"base__{name}"]
            pybullet.resetJointState(self.table, joint, value, 0, physicsClientId=self.client)
        self.bulb, self.led = bool(scene_obs[4] > 0.5), bool(scene_obs[5] > 0.5)
        self.switch_is_on = False
        for uid, pose in zip(self.blocks.values(), scene_obs[6:].reshape(3, 6), strict=True):
            quaternion = pybullet.getQuaternionFromEuler(pose[3:])
            pybullet.resetBasePositionAndOrientation(uid, pose[:3], quaternion, physicsClientId=self.client)
        self._color_lights()

    def step(self, action: np.ndarray) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        """Move by one of CALVIN's relative actions; the reward is always 0, tasks are judged outside."""
        relative = _vector(action, 7, "action")
        assert relative is not None
        position, euler = self._target
        self._target = (position + relative[:3] * 0.02, euler + relative[3:6] * 0.05)
        quaternion = pybullet.getQuaternionFromEuler(self._target[1])
        self._follow(self._target[0], np.array(quaternion), float(relative[6] > 0))
        return self.observe_calvin(), 0.0, False, False, {}

    def step_pose(self, position: np.ndarray, quaternion: np.ndarray, gripper: float) -> None:
        """Move for one control step towards an absolute world tool pose with CALVIN's own control.

        Args:
            position: `[3]` [m]; quaternion: `[4]` xyzw; gripper: opening, above 0.5 is open.
        """
        quaternion = np.asarray(quaternion, float)
        self._target = (np.asarray(position, float), np.array(pybullet.getEulerFromQuaternion(quaternion)))
        self._follow(self._target[0], quaternion, gripper)

    def _follow(self, position: np.ndarray, quaternion: np.ndarray, gripper: float) -> None:
        self.robot.command_joints(self.robot.inverse_kinematics(position, quaternion))
        self.robot.command_gripper(gripper)
        for _ in range(SUBSTEPS):
            pybullet.stepSimulation(physicsClientId=self.client)
        self._finish_step()

    def step_joints(self, commands: Sequence[JointCommand]) -> None:
        """Move for one control step with one joint command for each of the 8 physics steps."""
        if len(commands) != SUBSTEPS:
            raise SimulationError(f"step_joints: expected {SUBSTEPS} commands (240 Hz), got {len(commands)}.")
        self.robot.command_gripper(commands[-1].gripper)
        for command in commands:
            self.robot.command_joints(command.positions, command.velocities)
            pybullet.stepSimulation(physicsClientId=self.client)
        self._aim_at_tool()
        self._finish_step()

    def _finish_step(self) -> None:
        self._steps += 1
        self._update_lights()

    def _update_lights(self) -> None:
        before = (self.bulb, self.led)
        pressed = self.joint("button") > _BUTTON_PRESSED
        if pressed and not self._button_was_pressed:
            self.led = not self.led
        self._button_was_pressed = pressed
        switched = self.joint("switch") > _SWITCH_ON
        if switched != self.switch_is_on:  # a bulb lit at the start beside a low switch stays lit, as in CALVIN
            self.bulb = switched
        self.switch_is_on = switched
        if before != (self.bulb, self.led):
            self._color_lights()

    def _color_lights(self) -> None:
        for name, link, lit in (("bulb", "light_link", self.bulb), ("led", "led_link", self.led)):
            color = _LIGHT_COLORS[name] if lit else _LIGHT_OFF
            pybullet.changeVisualShape(self.table, self.table_links[link], rgbaColor=color, physicsClientId=self.client)

    @property
    def arm(self) -> RobotModel:
        """The simulated arm with CALVIN's tool point."""
        return panda_model()

    @property
    def gripper_command(self) -> float:
        """The last commanded opening."""
        return self.robot.gripper_command

    def joint_state(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the arm's positions `[7]` [rad] and velocities `[7]` [rad/s]."""
        return self.robot.joint_state()

    def joint(self, name: str) -> float:
        """Return a table joint's value [m]: slide, drawer, button or switch."""
        return float(pybullet.getJointState(self.table, self._joints[f"base__{name}"], physicsClientId=self.client)[0])

    def draw(self, camera: str, *, px: int | None = None) -> np.ndarray:
        """Draw one camera: uint8 `[px px 3]`, at its own size unless another is asked for."""
        if camera == TARGET_MASK:
            return draw_target(self, self._start if self.task else None, px or self._side("static"))
        return cameras.draw(
            self.client, self._matrices(camera), px or self._side(camera),
            supersample=self.camera.supersample, shadows=self._shadows, renderer=self.camera.renderer,
        )  # fmt: skip

    def draw_with_depth(self, camera: str, *, px: int | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Draw one camera, uint8 `[px px 3]` without supersampling, and its depth [m], float32 `[px px]`."""
        return cameras.draw_with_depth(
            self.client, self._matrices(camera), px or self._side(camera),
            *(cameras.STATIC_RANGE if camera == "static" else cameras.GRIPPER_RANGE),
            shadows=self._shadows, renderer=self.camera.renderer,
        )  # fmt: skip

    def draw_depth(self, camera: str, *, px: int | None = None) -> np.ndarray:
        """Draw one camera's depth [m]: float32 `[px px]`."""
        return self.draw_with_depth(camera, px=px)[1]

    @property
    def _shadows(self) -> bool:
        return self.files.official and not self.camera.fast

    def contact_points(self, uid: int) -> tuple[Any, ...]:
        """Return PyBullet's contact points of a body."""
        return tuple(pybullet.getContactPoints(bodyA=uid, physicsClientId=self.client))

    def _side(self, camera: str) -> int:
        return self.camera.static_px if camera == "static" else self.camera.gripper_px

    def _matrices(self, camera: str) -> tuple[list[float], list[float]]:
        if camera == "static":
            return cameras.static_matrices()
        return cameras.gripper_matrices(*self.robot.link_pose(self.robot.camera))

    def render(self) -> np.ndarray:  # type: ignore[override]
        """Draw the static camera (Gymnasium's `rgb_array`)."""
        return self.draw("static")

    def observe(self, instruction: str, *, images: bool = True) -> Observation:
        """Return what policy and controller see; poses are in the robot base frame."""
        position, quaternion = self._tool_pose()
        return Observation(
            images={name: self.draw(name) for name in self.cameras} if images else {},
            tool_position=position - ROBOT_BASE,
            tool_quaternion=quaternion,
            gripper_opening=float(np.clip(self.robot.finger_width() / (2 * FINGER_OPEN), 0, 1)),
            gripper_command=self.robot.gripper_command,
            joint_positions=self.robot.joint_state()[0],
            instruction=instruction,
            time=self._steps / CONTROL_HZ,
        )

    def _tool_pose(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the tool's world position [m] and quaternion xyzw."""
        position, quaternion = self.robot.link_pose(self.robot.tcp)
        if self.files.official:  # it hands out angles only; the way back and forth changes the last digit
            quaternion = np.array(pybullet.getQuaternionFromEuler(pybullet.getEulerFromQuaternion(quaternion)))
        return position, quaternion

    def observe_calvin(self) -> dict[str, Any]:
        """Return CALVIN's observation: images, `robot_obs` `[15]`, `scene_obs` `[24]`, world frame."""
        images = {f"rgb_{name}": self.draw(name) for name in CAMERAS} if self.images else {}
        return images | {"robot_obs": self.robot_obs(), "scene_obs": self.scene_obs()}

    def robot_obs(self) -> np.ndarray:
        """Return tool position [m], euler xyz [rad], finger width [m], joints [rad], last gripper action: `[15]`."""
        position, quaternion = self.robot.link_pose(self.robot.tcp)
        euler = pybullet.getEulerFromQuaternion(quaternion)
        joints = self.robot.joint_state()[0]
        action = 2 * self.robot.gripper_command - 1
        return np.array([*position, *euler, self.robot.finger_width(), *joints, action])

    def scene_obs(self) -> np.ndarray:
        """Return slider, drawer, button, switch [m], bulb, led, then x y z euler of each block: `[24]`."""
        values = [self.joint(name) for name in ("slide", "drawer", "button", "switch")] + [
            float(self.bulb),
            float(self.led),
        ]
        for uid in self.blocks.values():
            position, quaternion = pybullet.getBasePositionAndOrientation(uid, physicsClientId=self.client)
            values += [*position, *pybullet.getEulerFromQuaternion(quaternion)]
        return np.array(values)

    def world_state(self) -> WorldState:
        """Return the privileged state that tasks and experts read."""
        position, quaternion = self._tool_pose()
        blocks, velocities = {}, {}
        for color, uid in self.blocks.items():
            pose = pybullet.getBasePositionAndOrientation(uid, physicsClientId=self.client)
            blocks[color] = (np.array(pose[0]), np.array(pose[1]))
            velocities[color] = np.concatenate(pybullet.getBaseVelocity(uid, physicsClientId=self.client))
        return WorldState(
            tool_position=position,
            tool_quaternion=quaternion,
            finger_width=self.robot.finger_width(),
            gripper_command=self.robot.gripper_command,
            slider=self.joint("slide"),
            drawer=self.joint("drawer"),
            button=self.joint("button"),
            switch=self.joint("switch"),
            bulb=self.bulb,
            led=self.led,
            blocks=blocks,
            contacts={color: self.touching(uid) for color, uid in self.blocks.items()},
            robot_contacts=frozenset(body for body, _ in self.touching(self.robot.uid)),
            velocities=velocities,
        )

    def touching(self, uid: int) -> frozenset[tuple[str, str]]:
        """Name what a body touches: bodies, and of the table the link."""
        pairs = set()
        for point in self.contact_points(uid):
            body = self._body_names[point[2]]
            pairs.add((body, self._link_names[point[4]] if body == "table" else ""))
        return frozenset(pairs)

    def close(self) -> None:
        """Disconnect from the physics server."""
        if self.client >= 0:
            pybullet.disconnect(physicsClientId=self.client)
            self.client = -1


def state_spaces() -> dict[str, gymnasium.Space[Any]]:
    """Return the spaces of `robot_obs` and `scene_obs`: wider than what physics makes of them, and finite."""
    far, turn, door, light = [100.0], [4.0], [1.0], [0.0]
    robot = np.array(far * 3 + turn * 3 + [0.2] + turn * 7 + [1.0])
    scene = np.array(door * 4 + [1.0, 1.0] + (far * 3 + turn * 3) * 3)
    lowest = np.concatenate([-scene[:4], light * 2, -scene[6:]])
    box = gymnasium.spaces.Box
    return {"robot_obs": box(-robot, robot, dtype=np.float64), "scene_obs": box(lowest, scene, dtype=np.float64)}


def _vector(values: Any, length: int, name: str) -> np.ndarray | None:
    if values is None:
        return None
    array = np.asarray(values, float)
    if array.shape != (length,) or not np.all(np.isfinite(array)):
        raise SimulationError(f"{name}: expected {length} finite numbers, got {array!r:.80}; check what produced it.")
    return array
