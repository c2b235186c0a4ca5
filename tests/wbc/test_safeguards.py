"""What keeps a wrong input from becoming a wrong motion: starts beyond a limit, wrapped angles, far poses, speed."""

from __future__ import annotations

import dataclasses
import math
import re

import numpy as np
import pytest

from gr2.contracts import ActionTrajectory, JointCommand, JointTrajectory
from gr2.errors import ConfigError, ControlError
from gr2.wbc.collision import CollisionConfig
from gr2.wbc.configuration import ControllerConfig
from gr2.wbc.controller import WholeBodyController
from gr2.wbc.robot.kinematics import Kinematics
from gr2.wbc.robot.robots import RobotModel, kinova_gen3
from gr2.wbc.robot.transforms import quaternion_from_matrix, rotation_exp, rotation_logs
from gr2.wbc.smoothing import SmoothingConfig
from gr2.wbc.validation import GuardConfig

GEN3 = kinova_gen3()
FREE = ControllerConfig(collision=CollisionConfig(self_collision=False))
DT = 0.005


def _started(robot: RobotModel, config: ControllerConfig = FREE) -> WholeBodyController:
    controller = WholeBodyController(robot, config)
    controller.reset(robot.home, 1.0, 0.0)
    return controller


def _chunk(robot: RobotModel, offsets: np.ndarray, start: float = 0.0, dt: float = 0.05) -> ActionTrajectory:
    """Poses at `offsets` `[k 3]` [m] from the home tool pose."""
    tool, offsets = Kinematics(robot).forward(robot.home).tool, np.atleast_2d(offsets)
    return ActionTrajectory(
        positions=tool[:3, 3] + offsets,
        quaternions=np.tile(quaternion_from_matrix(tool[:3, :3]), (len(offsets), 1)),
        gripper=np.ones(len(offsets)),
        dt=dt,
        start_time=start,
    )


def _run(controller: WholeBodyController, seconds: float, start: float = 0.0) -> list[JointCommand]:
    return [controller.step(start + i * DT) for i in range(round(seconds / DT))]


# --- a start beyond a limit ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("degrees", [0.5, 3.0, 9.9])
@pytest.mark.parametrize("side", [-1.0, 1.0])
def test_an_arm_that_begins_beyond_a_limit_moves_back_within_every_limit(degrees: float, side: float) -> None:
    q = GEN3.home.copy()
    q[1] = side * (GEN3.upper[1] + math.radians(degrees))
    controller = WholeBodyController(GEN3, FREE)
    controller.reset(q, 1.0, 0.0)
    commands = _run(controller, 1.5)
    positions = np.array([q] + [c.positions for c in commands])
    velocities = np.diff(positions, axis=0) / DT
    accelerations = np.diff(velocities, axis=0, prepend=0.0 * velocities[:1]) / DT
    assert np.all(np.abs(velocities) <= GEN3.velocity * (1 + 1e-6))
    assert np.all(np.abs(accelerations) <= GEN3.acceleration * (1 + 1e-6))
    assert np.all(np.diff(np.abs(positions[:, 1])) <= 1e-12)  # never farther out
    assert commands[0].status == "returning" and commands[-1].status == "hold"
    assert GEN3.lower[1] <= positions[-1, 1] <= GEN3.upper[1]
    assert np.abs(positions[-1] - np.clip(q, GEN3.lower, GEN3.upper)).max() < 1e-3


def test_a_chunk_waits_until_the_arm_is_back_within_its_limits() -> None:
    q = GEN3.home.copy()
    q[3] = GEN3.upper[3] + math.radians(4.0)
    controller = WholeBodyController(GEN3, FREE)
    controller.reset(q, 1.0, 0.0)
    tool = Kinematics(GEN3).forward(np.clip(q, GEN3.lower, GEN3.upper)).tool
    goal = tool[:3, 3] + [0.05, 0.0, 0.05]
    chunk = ActionTrajectory(
        positions=tool[:3, 3] + np.linspace(0.025, 1.0, 40)[:, None] * (goal - tool[:3, 3]),
        quaternions=np.tile(quaternion_from_matrix(tool[:3, :3]), (40, 1)),
        gripper=np.ones(40),
        dt=0.05,
        start_time=0.0,
    )
    assert controller.accept(chunk) == "pending"
    commands = _run(controller, 3.0)
    assert [e.code for e in controller.events if e.code in ("returning", "returned")] == ["returning", "returned"]
    assert np.linalg.norm(Kinematics(GEN3).forward(commands[-1].positions).tool[:3, 3] - goal) < 1e-3


def test_a_start_far_beyond_a_limit_is_refused_with_the_joint_and_the_reason() -> None:
    q = GEN3.home.copy()
    q[1] = GEN3.upper[1] + math.radians(10.1)
    with pytest.raises(ControlError, match=r"joint 2 stands at 139.0 degrees, 10.1 beyond its limits"):
        WholeBodyController(GEN3, FREE).reset(q, 1.0, 0.0)
    config = dataclasses.replace(FREE, start_tolerance=0.2)
    WholeBodyController(GEN3, config).reset(q, 1.0, 0.0)


# --- joints without stops, measured within one turn ------------------------------------------------------------------


def test_a_joint_without_stops_may_be_measured_within_half_a_turn() -> None:
    tool = Kinematics(GEN3).forward(GEN3.home).tool
    controller, q = _started(GEN3), GEN3.home
    for index in range(1800):
        if index % 40 == 0:
            angles = 0.5 * (index * DT + 0.05 * np.arange(1, 21))
            turns = [rotation_exp([0.0, 0.0, angle]) for angle in angles]
            chunk = ActionTrajectory(
                positions=np.array([turn @ tool[:3, 3] for turn in turns]),
                quaternions=np.array([quaternion_from_matrix(turn @ tool[:3, :3]) for turn in turns]),
                gripper=np.ones(20),
                dt=0.05,
                start_time=index * DT,
            )
            assert controller.accept(chunk) == "accepted"
        command = controller.step(index * DT, np.where(np.isinf(GEN3.upper), (q + np.pi) % (2 * np.pi) - np.pi, q))
        q = command.positions
        assert command.status == "track"
    assert abs(q[0]) > np.pi


def test_a_whole_turn_of_a_joint_with_stops_still_stops_the_arm() -> None:
    controller = _started(GEN3)
    measured = GEN3.home.copy()
    measured[1] -= 2.0 * np.pi
    assert controller.step(0.0, measured).status == "protective_stop"


# --- far poses -------------------------------------------------------------------------------------------------------


def test_a_pose_meters_away_is_refused_with_the_reason() -> None:
    controller = _started(GEN3)
    assert controller.accept(_chunk(GEN3, np.tile([5.0, 2.0, 7.0], (5, 1)))) == "rejected_reach"
    assert re.search(
        r"a pose 9\.\d\d m from the arm's first joint; kinova_gen3 reaches 1\.15 m", controller.events[-1].detail
    )
    assert all(not np.any(c.velocities) for c in _run(controller, 0.1))


def test_a_jump_is_refused_from_the_tool_and_within_the_chunk_unless_there_is_time_for_it() -> None:
    controller, far = _started(GEN3), np.array([-0.2, 0.6, 0.2])
    assert controller.accept(_chunk(GEN3, np.tile(far, (20, 1)))) == "rejected_jump"
    assert "0.66 m from the tool, due 0.050 s after it" in controller.events[-1].detail
    within = np.concatenate([np.zeros((5, 3)), np.tile(far, (5, 1))])
    assert controller.accept(_chunk(GEN3, within)) == "rejected_jump"
    assert "from the pose before it" in controller.events[-1].detail
    assert controller.accept(_chunk(GEN3, far, dt=1.0)) == "accepted"
    free = dataclasses.replace(FREE, guard=GuardConfig(max_jump=math.inf))
    assert _started(GEN3, free).accept(_chunk(GEN3, np.tile(far, (20, 1)))) == "accepted"


def test_poses_somewhat_out_of_reach_are_still_approached() -> None:
    controller = _started(GEN3)
    away = np.linspace(0.05, 1.0, 20)[:, None] * np.array([1.0, 0.0, 0.2])
    assert controller.accept(_chunk(GEN3, away)) == "accepted"
    assert _run(controller, 6.0)[-1].status == "unreachable"


def test_a_guard_without_sense_is_refused() -> None:
    with pytest.raises(ConfigError, match="max_jump above 0"):
        GuardConfig(max_jump=0.0)


# --- speed of the tool -----------------------------------------------------------------------------------------------


def _tool_speeds(robot: RobotModel, commands: list[JointCommand]) -> tuple[float, float]:
    """Peak linear [m/s] and angular [rad/s] speed of the tool between commands."""
    tools = Kinematics(robot).forward_many(np.stack([robot.home, *(c.positions for c in commands)])).tool
    linear = np.linalg.norm(np.diff(tools[:, :3, 3], axis=0), axis=1) / DT
    turns = rotation_logs(tools[1:, :3, :3] @ tools[:-1, :3, :3].transpose(0, 2, 1))
    return float(linear.max()), float(np.linalg.norm(turns, axis=1).max()) / DT


@pytest.mark.parametrize("kind", ["optimized", "smooth_first", "smoothed", "joints"])
@pytest.mark.parametrize("caps", [(1.0, 2.5), (0.25, 0.6)])
def test_no_chunk_drives_the_tool_faster_than_its_caps(kind: str, caps: tuple[float, float]) -> None:
    smoothing = SmoothingConfig(linear_speed=caps[0], angular_speed=caps[1])
    config = dataclasses.replace(
        FREE, smoothing=smoothing, guard=GuardConfig(max_jump=math.inf), smooth_first=kind == "smooth_first"
    )
    if kind == "smoothed":
        config = dataclasses.replace(config, optimization=None)
    controller = _started(GEN3, config)
    chunk: ActionTrajectory | JointTrajectory = _chunk(GEN3, np.tile([-0.2, 0.6, 0.2], (20, 1)))
    if kind == "joints":
        goal = GEN3.home + np.array([1.5, -0.6, 0.4, -0.8, 0.5, -0.9, 1.0])
        chunk = JointTrajectory(positions=np.tile(goal, (20, 1)), gripper=None, dt=0.05, start_time=0.0)
    assert controller.accept(chunk) == "accepted"
    commands = _run(controller, 5.0)
    linear, angular = _tool_speeds(GEN3, commands)
    assert linear <= 1.01 * caps[0] and angular <= 1.01 * caps[1]
    assert linear >= 0.8 * caps[0] or angular >= 0.8 * caps[1]
    assert caps[0] < 1.0 or commands[-1].status == "hold"


def test_chunks_that_are_too_fast_for_the_tool_replace_one_another() -> None:
    """A plan that is run through late must not hold back the chunks that come after it."""
    config = dataclasses.replace(FREE, smoothing=SmoothingConfig(linear_speed=0.2))
    controller = _started(GEN3, config)
    for index in range(400):
        if index % 40 == 0:
            wide = 0.2 * np.sin(2.0 * np.pi * (index * DT + 0.05 * np.arange(1, 21)))[:, None] * [0.0, 1.0, 0.0]
            assert controller.accept(_chunk(GEN3, wide, index * DT)) == "accepted"
        controller.step(index * DT)
    assert controller.counters["capped"] > 0 and controller.counters["accepted"] == 10


# --- tracking error --------------------------------------------------------------------------------------------------


def test_an_arm_that_is_far_from_its_poses_is_not_called_tracking() -> None:
    """Poses at 1.5 m/s, which the tool's cap does not allow, are passed late, and the command says by how much."""
    controller = _started(GEN3)
    chunk = _chunk(GEN3, np.linspace(0.05, 1.0, 10)[:, None] * [-0.1, 0.45, 0.1], dt=0.03)
    assert controller.accept(chunk) == "accepted"
    commands = _run(controller, 2.5)
    assert max(c.position_error for c in commands) > 0.1
    for command in commands:
        far = command.position_error > FREE.track_distance
        assert command.status in ({"deviating"} if far else {"track", "hold"})
    assert {c.status for c in commands} == {"track", "deviating", "hold"}
    assert commands[-1].position_error < 5e-3 and controller.tracking_error.distance == commands[-1].position_error
    assert any("mm from the wanted pose" in e.detail for e in controller.events if e.code == "deviating")


def test_an_arm_on_its_poses_reports_how_near_it_is() -> None:
    controller = _started(GEN3)
    chunk = _chunk(GEN3, np.linspace(0.05, 1.0, 20)[:, None] * [0.05, 0.05, 0.0])
    assert controller.accept(chunk) == "accepted"
    commands = _run(controller, 2.0)
    tools = Kinematics(GEN3).forward_many(np.stack([c.positions for c in commands])).tool[:, :3, 3]
    for index, position in enumerate(chunk.positions):
        at = 10 * (index + 1)
        assert commands[at].position_error == pytest.approx(np.linalg.norm(tools[at - 1] - position), abs=1e-9)
    assert {c.status for c in commands} == {"track", "hold"}
    assert 0.0 < max(c.position_error for c in commands) < 5e-3 and max(c.rotation_error for c in commands) < 5e-3
