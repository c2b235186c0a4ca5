"""CALVIN's own calls over a world of ours, and models written for them: `reset()` and `step(obs, goal)`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, Protocol

import numpy as np

from ...contracts import Array, Observation, SignalTrajectory
from ...errors import PolicyError, SimulationError
from ..playtable.bullet import pybullet
from ..playtable.environment import CAMERAS, CONTROL_HZ, PlayTable
from ..playtable.world import World
from .official import OfficialTable

Interface = Literal["gr2", "calvin"]
"""How a policy of a user's file is called: `act(Observation)`, or CALVIN's `step(obs, goal)`."""


class CalvinEnvironment:
    """The calls of calvin_env's PlayTableSimEnv: the same arguments, observations and infos.

    Observations are `{"rgb_obs": {rgb_static, rgb_gripper}, "depth_obs": {depth_static, depth_gripper}, "robot_obs"
    `[15]`, "scene_obs" `[24]`}`; infos are what CALVIN's task oracle reads.

    Args:
        world: `PlayTable` or `OfficialTable`.
    """

    def __init__(self, world: World) -> None:
        self.world = world

    def reset(self, robot_obs: Any = None, scene_obs: Any = None) -> dict[str, Any]:
        """Start with arm `[15]` and scene `[24]` as given, where None with the arm at rest and blocks on the desk."""
        given = {"robot_obs": robot_obs, "scene_obs": scene_obs}
        self.world.reset(options={name: value for name, value in given.items() if value is not None})
        return self.get_obs()

    def step(self, action: Any) -> tuple[dict[str, Any], int, bool, dict[str, Any]]:
        """Move for one control step (1/30 s) and return observation, reward 0, done False and info.

        Raises:
            SimulationError: the action has another form; see `calvin_action`.
        """
        self.world.apply_action(calvin_action(action))
        return self.get_obs(), 0, False, self.get_info()

    def get_obs(self) -> dict[str, Any]:
        """Draw both cameras and return what is seen now."""
        if isinstance(self.world, OfficialTable):
            return self.world.official_obs()
        assert isinstance(self.world, PlayTable)
        drawn = {name: self.world.draw_with_depth(name) for name in CAMERAS}
        return {
            "rgb_obs": {f"rgb_{name}": color for name, (color, _) in drawn.items()},
            "depth_obs": {f"depth_{name}": depth for name, (_, depth) in drawn.items()},
            "robot_obs": self.world.robot_obs(),
            "scene_obs": self.world.scene_obs(),
        }

    def get_info(self) -> dict[str, Any]:
        """Return `robot_info` and `scene_info`, contacts as PyBullet gives them."""
        if isinstance(self.world, OfficialTable):
            return self.world.official_info()
        assert isinstance(self.world, PlayTable)
        return {"robot_info": _robot_info(self.world), "scene_info": _scene_info(self.world)}

    def render(self, mode: str = "rgb_array") -> Array:
        """Return the static camera's image.

        Raises:
            SimulationError: another mode.
        """
        if mode != "rgb_array":
            raise SimulationError(f"render: expected rgb_array, got {mode!r}; show the image with a library of yours.")
        return self.world.draw("static")

    def close(self) -> None:
        """Close the world."""
        self.world.close()


def calvin_action(action: Any) -> Array:
    """Return a CALVIN action as a relative one `[7]`, or as an absolute one `[8]` (position, quaternion, gripper).

    Relative: an array of 7 numbers, in steps of 0.02 m and 0.05 rad. Absolute, in the world frame: a tuple (position
    `[3]` [m], euler angles `[3]` or quaternion xyzw `[4]`, gripper), or 8 numbers. Both also as a dict of `action` and
    `type`, "cartesian_rel" or "cartesian_abs". Tensors and a leading axis of 1 are taken. A gripper above 0 opens, any
    other closes, as in CALVIN's wrapper.

    Raises:
        SimulationError: it is none of these, or not finite.
    """
    kind = ""
    if isinstance(action, Mapping):
        kind, action = str(action.get("type")), action.get("action")
        if kind not in ("cartesian_rel", "cartesian_abs"):
            raise SimulationError(
                f"action: expected the type cartesian_rel or cartesian_abs, got {kind}; there are no joint actions."
            )
    try:
        if isinstance(action, tuple | list) and len(action) == 3:
            values = np.concatenate([_numbers(part) for part in action])
            kind = kind or "cartesian_abs"
        else:
            values = _numbers(action)
    except (TypeError, ValueError) as error:
        raise SimulationError(f"action: expected numbers, got {action!r:.80} ({error}).") from error
    absolute = kind == "cartesian_abs" or len(values) == 8
    if (kind == "cartesian_rel" and absolute) or len(values) not in (7, 8) or not np.all(np.isfinite(values)):
        raise SimulationError(
            "action: expected 7 finite numbers (relative), or a tuple of position, angles or quaternion, and gripper "
            f"(absolute), got {action!r:.80}; check what the model returns."
        )
    values[-1] = 1.0 if values[-1] > 0 else -1.0
    if absolute and len(values) == 7:
        return np.concatenate([values[:3], pybullet.getQuaternionFromEuler(values[3:6]), values[6:]])
    return values


def _numbers(values: Any) -> Array:
    """Return an array or tensor, of any shape, as float64 `[n]`."""
    if hasattr(values, "detach"):
        values = values.detach().cpu().float().numpy()
    return np.array(values, float).reshape(-1)


class CalvinModel(Protocol):
    """What repositories around CALVIN evaluate (`CustomModel`, `CalvinBaseModel`)."""

    def reset(self) -> None:
        """Begin a sub-task."""

    def step(self, obs: dict[str, Any], goal: str) -> Any:
        """Return the action after an observation of CALVIN, for an instruction."""
        ...


class CalvinModelPolicy:
    """A CALVIN model as a policy in a world: asked at every step, its actions go to the simulator as they are.

    Raises:
        PolicyError: it has no `reset()` and `step(obs, goal)`.
    """

    executed_steps, uses_images, simulator_actions = 1, False, True

    def __init__(self, model: Any, world: World) -> None:
        missing = [name for name in ("reset", "step") if not callable(getattr(model, name, None))]
        if missing:
            raise PolicyError(
                f"--interface calvin: expected an object with reset() and step(obs, goal), got {type(model).__name__} "
                f"without {' and '.join(missing)}; a policy with act(observation) needs no --interface."
            )
        self.model: CalvinModel = model
        self.environment = CalvinEnvironment(world)

    def reset(self) -> None:
        """Begin a sub-task."""
        self.model.reset()

    def act(self, observation: Observation) -> SignalTrajectory:
        """Return the model's action as a trajectory of one step."""
        action = calvin_action(self.model.step(self.environment.get_obs(), observation.instruction))
        return SignalTrajectory(values=action[None], dt=1 / CONTROL_HZ, start_time=observation.time)

    def close(self) -> None:
        """Close the model where it can be closed; the world belongs to whoever opened it."""
        close = getattr(self.model, "close", None)
        if callable(close):
            close()


def _robot_info(world: PlayTable) -> dict[str, Any]:
    robot_obs, robot = world.robot_obs(), world.robot
    return {
        "tcp_pos": tuple(robot_obs[:3]),
        "tcp_orn": tuple(robot_obs[3:6]),
        "gripper_opening_width": float(robot_obs[6]),
        "arm_joint_states": robot_obs[7:14].tolist(),
        "gripper_action": int(robot_obs[14]),
        "uid": robot.uid,
        "contacts": world.contact_points(robot.uid),
    }


def _scene_info(world: PlayTable) -> dict[str, Any]:
    state = world.world_state()
    table = {"uid": world.table, "links": world.table_links, "contacts": world.contact_points(world.table)}
    blocks = {}
    for color, uid in world.blocks.items():
        (position, quaternion), velocity = state.blocks[color], state.velocities[color]
        blocks[f"block_{color}"] = {
            "current_pos": tuple(position),
            "current_orn": tuple(quaternion),
            "current_lin_vel": tuple(velocity[:3]),
            "current_ang_vel": tuple(velocity[3:]),
            "contacts": world.contact_points(uid),
            "uid": uid,
        }
    return {
        "fixed_objects": {"table": table},
        "movable_objects": blocks,
        "doors": {"base__slide": {"current_state": state.slider}, "base__drawer": {"current_state": state.drawer}},
        "buttons": {"base__button": {"joint_state": state.button, "logical_state": int(state.led)}},
        "switches": {"base__switch": {"joint_state": state.switch, "logical_state": int(world.switch_is_on)}},
        "lights": {"lightbulb": {"logical_state": int(state.bulb)}, "led": {"logical_state": int(state.led)}},
    }
