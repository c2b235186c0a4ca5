"""Whatever ROS 2 controls: joint positions on a topic of ros2_control, joint states from `/joint_states`.

Two controllers are served: one that forwards positions (`forward_command_controller`, `Float64MultiArray`) and
`joint_trajectory_controller` (`JointTrajectory` of one point each). Joints are matched by name, not by order. What the
arm does where commands cease is up to its hardware interface. Source: rclpy and ros2_control documentation (Humble).
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from ...errors import ConfigError, ControlError, EnvironmentMissing
from ..robot.robots import RobotModel
from ..robot.transforms import Array
from .driver import Pacer
from .streaming import ArmState, StreamingDriver

POSITIONS, TRAJECTORY = "positions", "trajectory"
"""Kinds of controllers."""

TOPICS = {
    POSITIONS: "/forward_position_controller/commands",
    TRAJECTORY: "/joint_trajectory_controller/joint_trajectory",
}
"""Where they listen as a rule."""

OLDEST = 0.1
"""Age [s] of the joint states from which on an answer counts as lost."""
DISCOVERY = 3.0
"""How long [s] publishers and subscribers may take to find each other."""
AHEAD = 2.0
"""Periods after which the point of a trajectory is due."""


class Ros2Endpoint:
    """The wire to an arm under ros2_control."""

    def __init__(
        self,
        robot: RobotModel,
        *,
        kind: str = POSITIONS,
        topic: str | None = None,
        states: str = "/joint_states",
        rate_hz: float = 100.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Prepare.

        Args:
            robot: the arm's model; its joints have the names of the controller's, in the controller's order.
            kind: of the controller, `positions` or `trajectory`.
            topic: where it listens, None for its usual name.
            states: topic of the joint states.
            rate_hz: commands a second, at most the controller manager's rate.
            clock: returns seconds.

        Raises:
            ConfigError: another kind.
            EnvironmentMissing: rclpy is not installed.
        """
        if kind not in TOPICS:
            raise ConfigError(f"kind: expected one of {list(TOPICS)}, got '{kind}'.")
        self.rate_hz = rate_hz
        self._names, self._kind = list(robot.joint_names), kind
        self._topic, self._states = topic or TOPICS[kind], states
        self._rclpy, self._messages = _rclpy()
        self._clock = clock
        self._node: Any = None
        self._seen: float = -np.inf
        self._other_names: list[str] = []
        self._state = ArmState(positions=robot.home, velocities=0.0 * robot.home)

    def open(self) -> None:
        """Make a node that listens to the joint states."""
        rclpy = self._rclpy
        self._context = rclpy.context.Context()
        # Without this, Ctrl-C would end the node instead of reaching the loop, which brakes.
        handlers = rclpy.signals.SignalHandlerOptions.NO
        rclpy.init(context=self._context, signal_handler_options=handlers)
        self._node = rclpy.create_node("gr2_driver", context=self._context)
        self._executor = rclpy.executors.SingleThreadedExecutor(context=self._context)
        self._executor.add_node(self._node)
        message = self._messages[self._kind]
        self._publisher = self._node.create_publisher(message, self._topic, 1)
        self._node.create_subscription(self._messages["states"], self._states, self._hear, 1)
        self._seen = -np.inf
        self._spin_until(lambda: self._seen > -np.inf, DISCOVERY)
        if self._seen == -np.inf:
            names = f"joints {self._other_names}" if self._other_names else "nothing"
            raise ControlError(
                f"{self._states}: expected the joints {self._names} within {DISCOVERY:.0f} s, got {names}; start the "
                "joint state broadcaster, or load the URDF that it uses."
            )

    def read(self) -> ArmState:
        """Return the newest joint states."""
        self._spin_once(0.0)
        self._spin_until(lambda: self._clock() - self._seen <= OLDEST, 1.0 / self.rate_hz)
        age = self._clock() - self._seen
        if age > OLDEST:
            raise ControlError(f"{self._states}: the last joint states are {age:.2f} s old; expected {OLDEST} at most.")
        return self._state

    def begin(self, state: ArmState) -> None:
        """Check that one controller listens, and nobody else commands it."""
        self._spin_until(lambda: self._publisher.get_subscription_count() > 0, DISCOVERY)
        if self._publisher.get_subscription_count() == 0:
            raise ControlError(
                f"Nobody listens to {self._topic}; activate the controller (`ros2 control list_controllers` names "
                "them), or give its topic."
            )
        others = self._node.count_publishers(self._topic) - 1
        if others > 0:
            raise ControlError(f"{self._topic}: expected no other publisher, got {others}; end it: two would fight.")
        self.write(state.positions, 0.0)

    def write(self, positions: Array, gripper: float) -> None:
        """Publish one command; the gripper has a controller of its own."""
        if self._node is None:
            raise ControlError("There is no node; call connect first.")
        message = self._messages[self._kind]()
        if self._kind == POSITIONS:
            message.data = positions.tolist()
        else:
            point = self._messages["point"]()
            point.positions = positions.tolist()
            point.time_from_start.nanosec = round(1e9 * AHEAD / self.rate_hz)
            message.joint_names, message.points = list(self._names), [point]
        self._publisher.publish(message)

    def hold(self) -> None:
        """Command where the arm is."""
        self.write(self._state.positions, 0.0)

    def close(self) -> None:
        """End the node."""
        if self._node is not None:
            node, self._node = self._node, None
            self._executor.shutdown()
            node.destroy_node()
            self._rclpy.shutdown(context=self._context)

    def _hear(self, message: Any) -> None:
        """Take joint states that have all joints of the arm."""
        places = {name: place for place, name in enumerate(message.name)}
        if not all(name in places for name in self._names):
            self._other_names = list(message.name)
            return
        chosen = [places[name] for name in self._names]
        positions = np.array(message.position, dtype=np.float64)[chosen]
        # Velocities are optional in the message.
        whole = len(message.velocity) == len(message.name)
        velocities = np.array(message.velocity, dtype=np.float64)[chosen] if whole else np.zeros(len(chosen))
        self._state, self._seen = ArmState(positions=positions, velocities=velocities), self._clock()

    def _spin_once(self, within: float) -> None:
        if self._node is None:
            raise ControlError("There is no node; call connect first.")
        self._executor.spin_once(timeout_sec=within)

    def _spin_until(self, done: Callable[[], bool], within: float) -> None:
        """Let the node work until `done`, for a time [s] at most."""
        deadline = self._clock() + within
        while not done() and self._clock() < deadline:
            self._spin_once(0.01)


def _rclpy() -> tuple[Any, dict[str, Any]]:
    """Return rclpy, and the types of messages by what they are for.

    Raises:
        EnvironmentMissing: ROS 2 is not there.
    """
    try:
        for name in ("context", "executors", "signals"):
            importlib.import_module(f"rclpy.{name}")
        rclpy = importlib.import_module("rclpy")
        trajectory = importlib.import_module("trajectory_msgs.msg")
        messages = {
            POSITIONS: importlib.import_module("std_msgs.msg").Float64MultiArray,
            TRAJECTORY: trajectory.JointTrajectory,
            "point": trajectory.JointTrajectoryPoint,
            "states": importlib.import_module("sensor_msgs.msg").JointState,
        }
    except ImportError as error:
        raise EnvironmentMissing(
            "The ROS 2 driver needs rclpy, which comes with ROS 2 and is not on PyPI: source "
            f"/opt/ros/<distro>/setup.bash and use the Python of that distribution ({error})."
        ) from error
    return rclpy, messages


def ros2_driver(
    robot: RobotModel,
    *,
    kind: str = POSITIONS,
    topic: str | None = None,
    states: str = "/joint_states",
    rate_hz: float = 100.0,
    pacer: Pacer | None = None,
    max_lost: int = 0,
) -> StreamingDriver:
    """Return a driver of an arm under ros2_control.

    Args:
        robot: the arm's model; its joints have the names of the controller's, in the controller's order.
        kind: of the controller, `positions` or `trajectory`.
        topic: where it listens, None for its usual name.
        states: topic of the joint states.
        rate_hz: commands a second.
        pacer: sets the rate, None for `rate_hz`.
        max_lost: answers in a row that may be missing.

    Raises:
        ConfigError: another kind.
        EnvironmentMissing: rclpy is not installed.
    """
    endpoint = Ros2Endpoint(robot, kind=kind, topic=topic, states=states, rate_hz=rate_hz)
    return StreamingDriver(robot, endpoint, pacer=pacer, max_lost=max_lost)
