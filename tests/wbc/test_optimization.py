"""The plan of a chunk: its spline, its waypoints, its bounds, and what it does with noise."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from gr2.errors import ConfigError
from gr2.wbc.collision import CollisionConfig, CollisionModel, Sphere
from gr2.wbc.optimization import ChunkOptimizer, OptimizationConfig, Plan
from gr2.wbc.robot.kinematics import Kinematics
from gr2.wbc.robot.robots import kinova_gen3
from gr2.wbc.robot.transforms import quaternion_from_matrix, rotation_exp, rotation_logs
from gr2.wbc.row_generation import Limits, solve_by_row_generation
from gr2.wbc.splines import clamped_basis
from gr2.wbc.waypoints import (
    BlendConfig,
    JointWaypoints,
    Waypoints,
    blended,
    drawn_to_tool,
    eased,
    eased_joints,
    roughness,
    waypoints_of,
)

ROBOT = kinova_gen3()
KINEMATICS = Kinematics(ROBOT)
FREE = CollisionModel(ROBOT, CollisionConfig(self_collision=False))
AT_REST = (ROBOT.home, np.zeros(7), np.zeros(7))


def _waypoints(offsets: np.ndarray, period: float = 0.05) -> Waypoints:
    tool = KINEMATICS.forward(ROBOT.home).tool
    quaternions = np.tile(quaternion_from_matrix(tool[:3, :3]), (len(offsets), 1))
    times = period * np.arange(1.0, len(offsets) + 1.0)
    return waypoints_of(tool[:3, 3] + offsets, quaternions, times, period, 24)


def _plan(waypoints: Waypoints, collisions: CollisionModel = FREE, **config: float) -> Plan:
    return ChunkOptimizer(ROBOT, OptimizationConfig(**config)).plan(AT_REST, 0.0, waypoints, ROBOT.home, collisions)


def test_the_basis_is_a_partition_of_one_and_its_derivatives_are_those() -> None:
    basis, places, step = clamped_basis(5), np.linspace(0.0, 5.0, 37), 1e-5
    np.testing.assert_allclose(basis.rows(places).sum(1), 1.0, atol=1e-12)
    inner = places[1:-1]
    for order in range(3):
        finite = (basis.rows(inner + step, order) - basis.rows(inner - step, order)) / (2 * step)
        np.testing.assert_allclose(basis.rows(inner, order + 1), finite, atol=2e-4)
    fine = (np.arange(20000) + 0.5) / 4000
    third = basis.rows(fine, 3)
    np.testing.assert_allclose(basis.jerk, third.T @ third / 4000, rtol=1e-4, atol=1e-4)


def test_a_plan_begins_as_commanded_ends_at_rest_and_keeps_the_limits() -> None:
    start = (
        ROBOT.home,
        np.array([0.3, -0.2, 0.1, 0.4, 0.0, -0.3, 0.2]),
        np.array([1.0, 0.5, -1.0, 0.2, 0.3, 0.0, -2.0]),
    )
    waypoints = _waypoints(np.linspace(0.05, 1.0, 20)[:, None] * np.array([0.3, -0.2, 0.2]))
    plan = ChunkOptimizer(ROBOT, OptimizationConfig()).plan(start, 0.0, waypoints, ROBOT.home, FREE).trajectory
    for got, wanted in zip(plan.state(0.0), start, strict=True):
        np.testing.assert_allclose(got, wanted, atol=1e-9)
    end = plan.state(plan.end_time - 1e-9)
    assert np.abs(end[1]).max() < 1e-6 and np.abs(end[2]).max() < 1e-4
    motion = [plan.state(t) for t in np.linspace(0.05, plan.end_time - 1e-9, 400)]
    assert max(np.abs(m[1] / ROBOT.velocity).max() for m in motion) < 1.0
    assert max(np.abs(m[2] / ROBOT.acceleration).max() for m in motion) < 1.0


def test_a_plan_passes_its_waypoints_and_keeps_clear_of_what_lies_between() -> None:
    share = 0.5 - 0.5 * np.cos(np.pi * np.linspace(0.05, 1.0, 20))
    waypoints = _waypoints(share[:, None] * np.array([0.0, 0.3, 0.0]))
    assert _plan(waypoints).max_error < 5e-3
    tool = KINEMATICS.forward(ROBOT.home).tool[:3, 3]
    ball = Sphere(center=tuple(tool + [0.0, 0.15, 0.02]), radius=0.04)
    scene = CollisionModel(ROBOT, CollisionConfig(self_collision=False, spheres=(ball,)))
    plans = {name: _plan(waypoints, model).trajectory for name, model in (("free", FREE), ("scene", scene))}
    times = np.linspace(0.0, 1.5, 100)
    near = {n: scene.clearances(KINEMATICS.forward_many(p.many(times))).nearest for n, p in plans.items()}
    assert near["free"] < 0.0 < 0.010 < near["scene"]


def test_the_manipulability_term_climbs() -> None:
    """The tool stands; spare freedom alone moves."""
    q = ROBOT.home + np.array([0.0, 0.1, 0.6, 0.0, 0.5, 0.3, 0.0])
    tool, times = KINEMATICS.forward(q).tool, 0.05 * np.arange(1.0, 21.0)
    quaternions = np.tile(quaternion_from_matrix(tool[:3, :3]), (20, 1))
    waypoints = waypoints_of(np.tile(tool[:3, 3], (20, 1)), quaternions, times, 0.05, 24)
    least = []
    for weight in (0.0, 0.02):
        config = OptimizationConfig(manipulability_weight=weight, low_manipulability=0.2, posture_weight=1e-6)
        plan = ChunkOptimizer(ROBOT, config).plan((q, 0.0 * q, 0.0 * q), 0.0, waypoints, q, FREE)
        assert plan.max_error < 1e-3
        jacobians = KINEMATICS.forward_many(plan.trajectory.many(np.array([1.0]))).jacobian
        least.append(KINEMATICS.manipulability_gradients(jacobians)[0][0])
    assert least[1] > least[0] + 1e-3


def test_rows_that_were_left_out_are_found() -> None:
    """Of three unknowns drawn to 5, each between -1 and 1 by a row of its own, with one sum below 1.5."""
    limits = Limits(np.eye(3)[None], np.zeros((1, 3, 1)), np.full((1, 1, 1), -1.0), np.full((1, 1, 1), 1.0))
    near = (np.array([[-1.0, -1.0, -1.0]]), np.array([-1.5]))
    x = solve_by_row_generation(np.eye(3), np.full(3, -5.0), 10.0, limits, near)
    np.testing.assert_allclose(x, 0.5, atol=1e-4)
    x = solve_by_row_generation(np.eye(3), np.full(3, -5.0), 10.0, limits, (np.empty((0, 3)), np.empty(0)))
    np.testing.assert_allclose(x, 1.0, atol=1e-4)


def test_many_waypoints_are_averaged_in_groups() -> None:
    turns = np.linspace(0.0, 1.0, 60)[:, None] * np.array([0.0, 0.0, 1.0])
    quaternions = np.array([quaternion_from_matrix(rotation_exp(t)) for t in turns])
    positions, times = np.cumsum(np.ones((60, 3)), axis=0), 0.01 * np.arange(1.0, 61.0)
    few = waypoints_of(positions, quaternions, times, 0.01, 24)
    assert len(few.times) == 20 and few.weights.sum() == pytest.approx(0.6)
    np.testing.assert_allclose(few.positions[:, 0], few.times / 0.01, atol=1e-9)
    np.testing.assert_allclose(rotation_logs(few.rotations)[:, 2], (few.times / 0.01 - 1.0) / 59.0, atol=1e-9)


def test_a_chunk_is_drawn_towards_the_earlier_plan_and_less_when_they_disagree() -> None:
    waypoints = _waypoints(np.zeros((10, 3)))
    before = np.tile(KINEMATICS.forward(ROBOT.home).tool, (6, 1, 1))
    before[:, :3, 3] += [0.006, 0.0, 0.0]
    drawn, apart = blended(waypoints, before, BlendConfig(weight=2.0))
    shift = drawn.positions - waypoints.positions
    assert shift[0, 0] == pytest.approx(0.006 * 2 / 3, rel=0.05) and np.all(np.diff(shift[:, 0]) < 0.0)
    np.testing.assert_allclose(apart[:, 0], 0.006, atol=1e-12)
    before[:, :3, 3] += [0.2, 0.0, 0.0]
    assert np.abs(blended(waypoints, before, BlendConfig())[0].positions - waypoints.positions).max() < 1e-9


def test_a_first_chunk_that_begins_beside_the_tool_is_drawn_to_it() -> None:
    times = 0.1 * np.arange(1.0, 11.0)
    truth = 0.05 * times[:, None] ** 2 * np.array([1.0, 0.0, -0.5])
    biased = _waypoints(truth + [0.0, 0.008, 0.0], 0.1)
    tool = KINEMATICS.forward(ROBOT.home).tool
    drawn = drawn_to_tool(biased, 0.0, tool, np.zeros(6), BlendConfig())
    np.testing.assert_allclose(drawn.positions[0] - biased.positions[0], [0.0, -0.008 * 2 / 3, 0.0], atol=4e-4)
    clean = _waypoints(truth, 0.1)
    np.testing.assert_allclose(drawn_to_tool(clean, 0.0, tool, np.zeros(6), BlendConfig()).positions, clean.positions)


def test_an_eased_tool_follows_a_steady_motion_late_and_overshoots_nothing() -> None:
    waypoints = _waypoints(np.outer(np.arange(1, 25) * 0.005, [1.0, 0.0, 0.0]))  # 0.1 m/s
    tool = KINEMATICS.forward(ROBOT.home).tool
    late = eased(waypoints, 0.0, tool, np.zeros(6), 20.0)
    # Each waypoint is the goal for the 0.05 s before its time, which takes half of that off the 2 / 20 s.
    behind = (waypoints.positions - late.positions)[-1, 0]
    assert behind == pytest.approx(0.1 * (2 / 20.0 - 0.05 / 2), abs=5e-4)
    there = _waypoints(np.tile([0.1, 0.0, 0.0], (40, 1)))
    way = eased(there, 0.0, tool, np.zeros(6), 20.0).positions[:, 0] - tool[0, 3]
    assert np.all(np.diff(way) > 0) and way[-1] == pytest.approx(0.1, abs=1e-6) and way.max() < 0.1 + 1e-9


def test_eased_joints_and_rotations_move_as_a_critically_damped_system_does() -> None:
    times, frequency = np.array([0.1, 0.25, 0.3]), 8.0
    joints = np.tile([0.5, -0.2], (3, 1))
    got = eased_joints(
        JointWaypoints(times=times, joints=joints, weights=np.ones(3)),
        0.0,
        np.zeros(2),
        np.array([1.0, 0.0]),
        frequency,
    ).joints
    for column, (goal, speed) in enumerate([(0.5, 1.0), (-0.2, 0.0)]):
        x, v, step = 0.0, speed, 1e-5  # the differential equation, in small steps
        passed = []
        for index in range(30000):
            v += step * (frequency**2 * (goal - x) - 2 * frequency * v)
            x += step * v
            if any(abs((index + 1) * step - t) < step / 2 for t in times):
                passed.append(x)
        np.testing.assert_allclose(got[:, column], passed, atol=1e-4)
    tool = KINEMATICS.forward(ROBOT.home).tool
    turned = rotation_exp(np.array([0.0, 0.0, 0.4])) @ tool[:3, :3]
    still = np.tile(tool[:3, 3], (3, 1))
    waypoints = Waypoints(times=times, positions=still, rotations=np.tile(turned, (3, 1, 1)), weights=np.ones(3))
    way = eased(waypoints, 0.0, tool, np.zeros(6), frequency)
    angles = rotation_logs(way.rotations @ tool[:3, :3].T)
    expected = 0.4 * (1 - (1 + frequency * times) * np.exp(-frequency * times))
    np.testing.assert_allclose(angles, expected[:, None] * [0.0, 0.0, 1.0], atol=1e-9)
    np.testing.assert_allclose(way.positions, still, atol=1e-12)


def test_a_plan_with_a_response_hangs_back_and_rests_on_its_last_waypoint() -> None:
    share = 0.5 - 0.5 * np.cos(np.pi * np.linspace(0.05, 1.0, 20))
    waypoints = _waypoints(share[:, None] * np.array([0.0, 0.2, 0.0]))
    plan = _plan(waypoints, response=20.0)
    assert plan.max_error < 5e-3  # of what it follows
    tools = KINEMATICS.forward_many(plan.trajectory.many(waypoints.times)).tool[:, :3, 3]
    behind = (waypoints.positions - tools)[:, 1]
    assert behind[8:12].min() > 0.015  # 0.31 m/s, some 75 ms late
    end = KINEMATICS.forward(plan.trajectory.positions(plan.trajectory.end_time)).tool[:3, 3]
    np.testing.assert_allclose(end, waypoints.positions[-1], atol=2e-3)


def test_roughness_is_the_noise() -> None:
    times = np.linspace(0.0, 1.0, 400)[:, None]
    noise = 0.002 * np.random.default_rng(0).normal(size=(400, 3))
    assert roughness(np.sin(times) + noise) == pytest.approx(0.002 * 3**0.5, rel=0.1)
    assert roughness(np.sin(times) * np.ones(3)) < 1e-6


def test_settings_that_cannot_be_are_named() -> None:
    with pytest.raises(ConfigError, match="velocity_share"):
        OptimizationConfig(velocity_share=1.5)
    with pytest.raises(ConfigError, match="span"):
        dataclasses.replace(OptimizationConfig(), span=0.0)
    with pytest.raises(ConfigError, match="response"):
        OptimizationConfig(response=-1.0)
