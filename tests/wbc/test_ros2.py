"""The ROS 2 driver against a stand-in for rclpy: joints by name, one commander, states that are not too old."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from wbc_cases import Clock, short_arm, stretched

from gr2.errors import ConfigError, ControlError, EnvironmentMissing
from gr2.wbc.drivers.ros2 import Ros2Endpoint, ros2_driver
from gr2.wbc.drivers.streaming import StreamingDriver

ARM = short_arm("j1", "j2", "j3", "j4", "j5", "j6")


class Message(types.SimpleNamespace):
    """A message with the fields that are set, or nested ones."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        setattr(self, name, Message())
        return getattr(self, name)


class Graph:
    """A ROS graph with one controller: it moves where it is told and publishes its joints each time it is spun."""

    def __init__(self, clock: Clock) -> None:
        self.clock, self.q = clock, ARM.home.copy()
        self.names = ["gripper", *reversed(ARM.joint_names)]
        self.listeners, self.publishers, self.velocities = 1, 1, True
        self.quiet, self.log = False, []
        self.sent: list[Message] = []
        self.hear: Callable[[Message], None] = lambda message: None

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        graph = self

        class Publisher:
            def get_subscription_count(self) -> int:
                return graph.listeners

            def publish(self, message: Message) -> None:
                graph.sent.append(message)
                graph.q = np.array(message.data if "data" in vars(message) else graph.point(message))

        class Node:
            def create_publisher(self, message: type, topic: str, qos: int) -> Publisher:
                graph.log.append(("publish", message.__name__, topic, qos))
                return Publisher()

            def create_subscription(self, message: type, topic: str, hear: Any, qos: int) -> None:
                graph.log.append(("listen", message.__name__, topic, qos))
                graph.hear = hear

            def count_publishers(self, topic: str) -> int:
                return graph.publishers

            def destroy_node(self) -> None:
                graph.log.append(("destroyed",))

        class SingleThreadedExecutor:
            def __init__(self, *, context: Any) -> None: ...

            def add_node(self, node: Node) -> None: ...

            def spin_once(self, timeout_sec: float | None = None) -> None:
                graph.clock.now += timeout_sec or 0.0
                if not graph.quiet:
                    graph.hear(graph.states())

            def shutdown(self) -> None: ...

        def module(name: str, **content: Any) -> Any:
            made = types.ModuleType(name)
            vars(made).update(content)
            monkeypatch.setitem(sys.modules, name, made)
            return made

        rclpy = module("rclpy")
        rclpy.context = module("rclpy.context", Context=object)
        rclpy.executors = module("rclpy.executors", SingleThreadedExecutor=SingleThreadedExecutor)
        options = types.SimpleNamespace(NO="no handlers")
        rclpy.signals = module("rclpy.signals", SignalHandlerOptions=options)
        rclpy.init = lambda *, context, signal_handler_options: graph.log.append(("init", signal_handler_options))
        rclpy.create_node = lambda name, *, context: Node()
        rclpy.shutdown = lambda *, context: graph.log.append(("shutdown",))
        for package, names in (
            ("std_msgs", ["Float64MultiArray"]),
            ("sensor_msgs", ["JointState"]),
            ("trajectory_msgs", ["JointTrajectory", "JointTrajectoryPoint"]),
        ):
            module(package)
            module(f"{package}.msg", **{name: type(name, (Message,), {}) for name in names})

    def point(self, message: Message) -> Any:
        assert message.joint_names == list(ARM.joint_names) and len(message.points) == 1
        assert message.points[0].time_from_start.nanosec == 20_000_000
        return message.points[0].positions

    def states(self) -> Message:
        by_name = dict(zip(ARM.joint_names, self.q.tolist(), strict=True)) | {"gripper": 0.3, "rail": 0.0}
        positions = [by_name.get(name, 0.0) for name in self.names]
        return Message(name=self.names, position=positions, velocity=[0.0] * len(positions) if self.velocities else [])


@pytest.fixture
def graph(monkeypatch: pytest.MonkeyPatch) -> Graph:
    made = Graph(Clock())
    made.install(monkeypatch)
    return made


def _driver(graph: Graph, **options: Any) -> StreamingDriver:
    endpoint = Ros2Endpoint(ARM, clock=graph.clock, **options)
    return StreamingDriver(ARM, endpoint, pacer=graph.clock.pacer(100.0))


@pytest.mark.parametrize("kind", ["positions", "trajectory"])
def test_an_arm_follows_a_chunk_whatever_the_order_of_its_joints(graph: Graph, kind: str) -> None:
    graph.velocities = kind == "positions"
    with _driver(graph, kind=kind) as driver:
        loop, target = stretched(driver)
        assert loop.stop_reason == "" and loop.max_following_error < 1e-9
        np.testing.assert_allclose(graph.q, target, atol=5e-3)
    topic = {
        "positions": ("Float64MultiArray", "/forward_position_controller/commands"),
        "trajectory": ("JointTrajectory", "/joint_trajectory_controller/joint_trajectory"),
    }[kind]
    assert graph.log == [
        ("init", "no handlers"),
        ("publish", *topic, 1),
        ("listen", "JointState", "/joint_states", 1),
        ("destroyed",),
        ("shutdown",),
    ]


def test_states_that_lack_joints_or_cease_are_named(graph: Graph) -> None:
    graph.names = ["j1", "j2", "rail"]
    with pytest.raises(ControlError, match=r"expected the joints .*got joints \['j1', 'j2', 'rail'\]"):
        _driver(graph).connect()
    graph.quiet = True
    with pytest.raises(ControlError, match="got nothing; start the joint state broadcaster"):
        _driver(graph).connect()
    graph.names, graph.quiet = list(ARM.joint_names), False
    with _driver(graph) as driver:
        loop, _ = stretched(driver, duration=0.2)
        graph.quiet = True
        with pytest.raises(ControlError, match="s old"):
            loop.run(0.5)
        assert loop.over


def test_a_topic_without_a_listener_or_with_another_commander_is_refused(graph: Graph) -> None:
    graph.listeners = 0
    with pytest.raises(ControlError, match="Nobody listens"):
        _driver(graph, topic="/arm/commands").connect()
    graph.listeners, graph.publishers = 1, 2
    with pytest.raises(ControlError, match="two would fight"):
        _driver(graph).connect()
    assert not graph.sent and graph.log[-1] == ("shutdown",)


def test_another_kind_and_missing_ros_are_named(graph: Graph, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="positions"):
        ros2_driver(ARM, kind="velocity")
    monkeypatch.setitem(sys.modules, "rclpy.context", None)
    with pytest.raises(EnvironmentMissing, match=r"setup\.bash"):
        ros2_driver(ARM)
