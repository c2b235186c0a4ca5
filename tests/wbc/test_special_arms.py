"""Starts and arms that the usual equations leave out: a stretched elbow, fewer than six joints, a toggling gripper."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from wbc_cases import robot_from_urdf

from gr2.contracts import ActionTrajectory
from gr2.wbc.collision import CollisionConfig, CollisionModel, Plane
from gr2.wbc.configuration import ControllerConfig
from gr2.wbc.controller import WholeBodyController
from gr2.wbc.gripper import GripperSchedule
from gr2.wbc.robot.kinematics import Kinematics
from gr2.wbc.robot.robots import Capsule, RobotModel, kinova_gen3
from gr2.wbc.robot.transforms import quaternion_from_matrix
from gr2.wbc.validation import GuardConfig

GEN3 = kinova_gen3()
FREE = ControllerConfig(collision=CollisionConfig(self_collision=False))
DT = 0.005
FINGER = Capsule(link=5, start=(0.0, 0.0, 0.0), end=(0.0, 0.0, 0.05), radius=0.01)
_LINK = '<link name="{0}"/>'
_JOINT = (
    '<joint name="j{0}" type="revolute"><parent link="l{1}"/><child link="l{0}"/><origin xyz="{2}"/><axis xyz="{3}"/>'
    '<limit lower="-2.9" upper="2.9" velocity="3" effort="10"/></joint>'
)
FIVE = (
    '<robot name="five">'
    + "".join(_LINK.format(f"l{k}") for k in range(6))
    + '<link name="tool"/>'
    + _JOINT.format(1, 0, "0 0 0.06", "0 0 1")
    + _JOINT.format(2, 1, "0.03 0 0.05", "0 1 0")
    + _JOINT.format(3, 2, "0 0 0.115", "0 1 0")
    + _JOINT.format(4, 3, "0.135 0 0", "0 1 0")
    + _JOINT.format(5, 4, "0.06 0 0", "1 0 0")
    + '<joint name="end" type="fixed"><parent link="l5"/><child link="tool"/><origin xyz="0.1 0 0"/></joint></robot>'
)


def _follow(robot: RobotModel, q0: np.ndarray, way: np.ndarray, seconds: float) -> tuple[np.ndarray, set[str], float]:
    """Tool positions after each tick, statuses and the last rotation error; `way` `[n 3]` is shown 20 times a second.

    The orientation of the start is asked for all along.
    """
    kinematics, controller = Kinematics(robot), WholeBodyController(robot, FREE)
    tool = kinematics.forward(q0).tool
    controller.reset(q0, 1.0, 0.0)
    found, statuses = [], set()
    for index in range(round(seconds / DT)):
        if index % 40 == 0:
            shown = way[np.minimum(index // 10 + np.arange(1, 21), len(way) - 1)]
            chunk = ActionTrajectory(
                positions=tool[:3, 3] + shown,
                quaternions=np.tile(quaternion_from_matrix(tool[:3, :3]), (20, 1)),
                gripper=np.ones(20),
                dt=0.05,
                start_time=index * DT,
            )
            assert controller.accept(chunk) == "accepted"
        command = controller.step(index * DT)
        found.append(kinematics.forward(command.positions).tool[:3, 3] - tool[:3, 3])
        statuses.add(command.status)
    return np.array(found), statuses, command.rotation_error


@pytest.mark.parametrize("elbow", [0.0, 1e-6])
def test_a_fully_stretched_elbow_bends(elbow: float) -> None:
    q0 = np.array([0.0, np.pi / 2, 0.0, elbow, 0.0, 0.0, 0.0])
    outward = Kinematics(GEN3).forward(q0).tool[:3, 3] * [1, 1, 0]
    way = np.clip(np.arange(120) * 0.05 / 2, 0, 1)[:, None] * (-0.1 * outward / np.linalg.norm(outward))
    found, statuses, _ = _follow(GEN3, q0, way, 4.0)
    assert np.linalg.norm(found[-1] - way[-1]) < 1e-3
    assert "unreachable" not in statuses


def test_five_joints_put_the_position_first_and_report_the_rotation() -> None:
    robot = robot_from_urdf(FIVE, capsules=[FINGER], acceleration=8.0)
    times = 0.05 * np.arange(140)
    share = np.minimum(1.0, times)[:, None]
    ramp = share * share * (3.0 - 2.0 * share)
    way = ramp * np.stack([0.03 * np.cos(times) - 0.03, 0.03 * np.sin(times), 0.0 * times], axis=1)
    found, statuses, turned = _follow(robot, np.array([0.0, -0.3, 0.6, 0.6, 0.0]), way, 6.0)
    errors = np.linalg.norm(found[9::10] - way[1 : 1 + len(found[9::10])], axis=1)
    assert errors.max() < 3e-4
    assert statuses == {"track"} and turned > 0.01


def test_a_gripper_that_toggles_with_every_pose_does_not_chatter() -> None:
    gripper, openings = GripperSchedule(1.0, 60.0, 0.05, dwell=0.2), []
    gripper.follow(0.05 * np.arange(1, 81), np.tile([0.0, 1.0], 40))
    for index in range(800):
        openings.append(gripper.step(index * DT, DT))
    turns = np.diff(np.sign(np.diff(openings))[np.diff(openings) != 0.0])
    assert np.count_nonzero(turns) <= 4.0 / 0.2
    prompt = GripperSchedule(1.0, 60.0, 0.05, dwell=0.2)
    prompt.follow(np.array([0.05, 1.0]), np.array([0.0, 1.0]))
    assert prompt.step(0.005, DT) < 1.0


# --- streams: one pose a message -------------------------------------------------------------------------------------


def _streamed(
    pose_at: Callable[[float], np.ndarray], hz: int, seconds: float, config: ControllerConfig
) -> tuple[np.ndarray, WholeBodyController, set[str]]:
    """Commands `[n+1 j]` of the Gen3 at 200 Hz, shown one pose a message; orientation is held."""
    kinematics = Kinematics(GEN3)
    tool, controller = kinematics.forward(GEN3.home).tool, WholeBodyController(GEN3, config)
    controller.reset(GEN3.home, 1.0, 0.0)
    q, flagged, period = [GEN3.home], set(), round(1.0 / hz / DT)
    for index in range(round(seconds / DT)):
        if index % period == 0:
            chunk = ActionTrajectory(
                positions=(tool[:3, 3] + pose_at(index * DT + 1.0 / hz))[None],
                quaternions=quaternion_from_matrix(tool[:3, :3])[None],
                gripper=np.ones(1),
                dt=1.0 / hz,
                start_time=index * DT,
            )
            assert controller.accept(chunk) == "accepted"
        command = controller.step(index * DT)
        q.append(command.positions)
        flagged.add(command.status)
    return np.array(q), controller, flagged


@pytest.mark.parametrize("hz", [100, 50])
def test_a_stream_of_single_poses_is_followed_within_40_ms(hz: int) -> None:
    def pose_at(time: float) -> np.ndarray:
        return np.array([0.0, 0.1 * np.sin(2 * time), 0.05 * np.sin(3 * time)])

    q, controller, flagged = _streamed(pose_at, hz, 3.0, FREE)
    found = Kinematics(GEN3).forward_many(q).tool[:, :3, 3] - Kinematics(GEN3).forward(GEN3.home).tool[:3, 3]
    times = DT * np.arange(len(found))
    lags = np.arange(0.0, 0.1, DT)
    misses = [np.linalg.norm(found[200:] - [pose_at(t - lag) for t in times[200:]], axis=1).mean() for lag in lags]
    assert lags[int(np.argmin(misses))] <= 0.04 and min(misses) < 1e-3
    assert flagged == {"track"} and controller.counters["streamed"] > 100


def test_a_jumping_stream_keeps_limits_clearance_and_the_cap() -> None:
    scene = CollisionConfig(plane=Plane(offset=0.0))
    config = ControllerConfig(collision=scene, guard=GuardConfig(max_jump=np.inf))
    rng = np.random.default_rng(0)

    def pose_at(time: float) -> np.ndarray:
        return rng.uniform([-0.3, -0.4, -0.3], [0.1, 0.4, 0.3]) if rng.random() < 0.05 else last[-1]

    last = [np.zeros(3)]

    def kept(time: float) -> np.ndarray:
        last.append(pose_at(time))
        return last[-1]

    q, _, flagged = _streamed(kept, 50, 6.0, config)
    velocities = np.diff(q, axis=0) / DT
    accelerations = np.diff(velocities, axis=0, prepend=0.0 * velocities[:1]) / DT
    assert np.all(q >= GEN3.lower - 1e-6) and np.all(q <= GEN3.upper + 1e-6)
    assert np.all(np.abs(velocities) <= GEN3.velocity * (1 + 1e-6))
    bound = GEN3.emergency_acceleration if "emergency_brake" in flagged else GEN3.acceleration
    assert np.all(np.abs(accelerations) <= bound * (1 + 1e-6) + 1e-6)
    poses = Kinematics(GEN3).forward_many(q)
    assert CollisionModel(GEN3, scene).clearances(poses).nearest > 0.009
    speeds = np.linalg.norm(np.diff(poses.tool[:, :3, 3], axis=0), axis=1) / DT
    assert speeds.max() <= 1.05 * config.smoothing.linear_speed
    assert np.abs(np.diff(q, axis=0)).sum() > 5.0
