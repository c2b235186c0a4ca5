"""One tick of the controller: joint velocities within every limit, near a plan's or following a tool twist.

    joint form  min  |v - v_plan|^2
    tool form   min  |W (J v - xdot)|^2 + damping |v|^2 + w_p^2 |v - v_secondary|^2 + w_a^2 |v - v_previous|^2
    both        s.t. velocity box (position, velocity and acceleration limits)
                     grad d . v + drift >= -allowed approach, for every near pair

A tick that has no solution climbs a ladder: first the emergency acceleration, then a plain brake to rest.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import daqp
import numpy as np

from .collision import Clearances, CollisionConfig, CollisionModel
from .kinematics import ArmPose, Kinematics
from .limits import velocity_box
from .robots import RobotModel
from .transforms import Array

NOMINAL, EMERGENCY, BRAKE = "nominal", "emergency_acceleration", "brake"
"""Rungs of the ladder, in order."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrackingConfig:
    """Gains and weights of the tick.

    gain: pull towards the reference [1/s].
    correction_deceleration: the pull slows down like a brake at this rate: linear [m/s^2] and angular
        [rad/s^2].
    rotation_weight: weight of rad/s against m/s.
    damping: weight of the joint velocity; singular_damping is added as the manipulability falls below
        singular_manipulability.
    posture_weight: weight of the secondary motion; smoothing_weight: weight of the change of velocity.
    posture_gain: pull of the secondary motion towards the posture [1/s].
    manipulability_gain: pull of the secondary motion up the manipulability, below low_manipulability [rad/s].
    velocity_scale, acceleration_scale: shares of the robot's limits in use, at most 1.
    """

    gain: float = 30.0
    correction_deceleration: tuple[float, float] = (2.0, 6.0)
    rotation_weight: float = 0.3
    damping: float = 1e-3
    singular_damping: float = 0.05
    singular_manipulability: float = 0.02
    posture_weight: float = 2e-3
    smoothing_weight: float = 2e-3
    posture_gain: float = 1.0
    manipulability_gain: float = 0.5
    low_manipulability: float = 0.04
    velocity_scale: float = 1.0
    acceleration_scale: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Tick:
    """Result of one tick: joint velocities `[j]` [rad/s], the rung, and whether a position limit decided."""

    velocity: Array
    rung: str
    limited: bool


def braked_gain(error: Array, gain: float, deceleration: float) -> Array:
    """Return the speed that removes `error` `[3]`: proportional when near, still able to brake when far."""
    size = math.sqrt(float(error @ error))
    if size < 1e-12:
        return np.zeros(3)
    return error * (min(gain * size, math.sqrt(2.0 * deceleration * size)) / size)


class TickSolver:
    """Solves ticks for one robot, with its obstacles."""

    def __init__(self, robot: RobotModel, tracking: TrackingConfig, collision: CollisionConfig, dt: float) -> None:
        """Prepare limits and pairs; `dt` is the duration of a tick [s]."""
        self.kinematics = Kinematics(robot)
        self.collisions = CollisionModel(robot, collision)
        self.config, self.collision_config, self.dt = tracking, collision, dt
        self.lower, self.upper = robot.lower, robot.upper
        self.velocity = robot.velocity * tracking.velocity_scale
        self.acceleration = robot.acceleration * tracking.acceleration_scale
        self.emergency = np.maximum(robot.emergency_acceleration, self.acceleration)
        self._squares = np.array([1.0] * 3 + [tracking.rotation_weight**2] * 3)
        self._identity = np.eye(robot.num_joints)
        self._free_until: tuple[Array, float, float] | None = None

    def watch(self, collisions: CollisionModel, config: CollisionConfig) -> None:
        """Keep clear of another scene from now on."""
        self.collisions, self.collision_config, self._free_until = collisions, config, None

    def box(self, q: Array, previous: Array, change: Array) -> tuple[Array, Array]:
        """Return the velocity box at `q` [rad], `previous` [rad/s], under the bound `change` [rad/s^2]."""
        return velocity_box(q, previous, self.lower, self.upper, self.velocity, self.acceleration, change, self.dt)

    def brake(self, q: Array, previous: Array, change: Array) -> Array:
        """Return the velocity `[j]` nearest to zero that the limits allow."""
        least, greatest = self.box(q, previous, change)
        return np.minimum(np.maximum(0.0, least), greatest)

    def follow(self, q: Array, previous: Array, wanted: Array, elapsed: float = 0.0) -> Tick:
        """Choose the joint velocities nearest to `wanted` `[j]` [rad/s] (joint form).

        Args:
            q: joint positions [rad]; previous: joint velocities of the last tick [rad/s].
            wanted: what the plan asks for.
            elapsed: age of the obstacles' positions [s].
        """
        return self._climb(self._identity, -wanted, q, previous, self._near(q, None, elapsed))

    def solve(
        self, q: Array, previous: Array, pose: ArmPose, twist: Array, posture: Array | None, elapsed: float = 0.0
    ) -> Tick:
        """Choose the joint velocities that give the tool the wanted twist (tool form).

        Args:
            q: joint positions [rad]; previous: joint velocities of the last tick [rad/s].
            pose: kinematics at `q`.
            twist: wanted tool motion `[6]` [m/s, rad/s].
            posture: joint positions [rad] that spare freedom drifts to, None for no drift.
            elapsed: age of the obstacles' positions [s].
        """
        hessian, gradient = self._cost(q, previous, pose, twist, posture)
        return self._climb(hessian, gradient, q, previous, self._near(q, pose, elapsed))

    def _climb(self, hessian: Array, gradient: Array, q: Array, previous: Array, near: Clearances | None) -> Tick:
        """Solve under the nominal bounds or, failing that, on the next rung of the ladder."""
        for rung, change in ((NOMINAL, self.acceleration), (EMERGENCY, self.emergency)):
            least, greatest = self.box(q, previous, change)
            solution = self._solve(hessian, gradient, previous, (least, greatest), near)
            if solution is not None:
                return Tick(
                    velocity=solution,
                    rung=rung,
                    limited=self._at_limit(q, previous, solution, least, greatest),
                )
        return Tick(velocity=self.brake(q, previous, self.emergency), rung=BRAKE, limited=True)

    def _cost(
        self, q: Array, previous: Array, pose: ArmPose, twist: Array, posture: Array | None
    ) -> tuple[Array, Array]:
        config, jacobian = self.config, pose.jacobian
        weighted = jacobian.T * self._squares
        gram = jacobian @ jacobian.T
        measure = math.sqrt(max(float(np.linalg.det(gram)), 0.0))
        diagonal = config.damping**2 + config.smoothing_weight**2 + config.posture_weight**2
        if measure < config.singular_manipulability:
            diagonal += (config.singular_damping * (1.0 - measure / config.singular_manipulability)) ** 2
        gradient = -(weighted @ twist) - config.smoothing_weight**2 * previous
        if posture is not None:
            secondary = config.posture_gain * (posture - q)
            if measure < config.low_manipulability:
                _, slope = self.kinematics.manipulability_gradient(jacobian)
                share = config.manipulability_gain * (1.0 - measure / config.low_manipulability)
                secondary = secondary + share * slope / max(float(np.linalg.norm(slope)), 1e-6)
            gradient -= config.posture_weight**2 * secondary
        return weighted @ jacobian + diagonal * self._identity, gradient

    def _near(self, q: Array, pose: ArmPose | None, elapsed: float) -> Clearances | None:
        """Return the pairs within the influence distance, or None where all are certainly farther.

        No pair's distance can change faster than the joint motion times the arm's reach, so after a look at
        all pairs the next one waits until that motion could have used up the margin.
        """
        if self.collisions.num_pairs == 0:
            return None
        influence = self.collision_config.influence
        if self._free_until is not None:
            seen, margin, then = self._free_until
            used = float(self.collisions.reach @ np.abs(q - seen))
            if used + self.collisions.fastest_obstacle * abs(elapsed - then) < margin:
                return None
        near = self.collisions.clearances(pose or self.kinematics.forward(q), influence, elapsed)
        self._free_until = None
        if len(near.distances) == 0:
            self._free_until = (q, near.nearest - influence, elapsed)
            return None
        return near

    def _allowed_approach(self, distances: Array) -> Array:
        """Return how fast each pair may close `[p]` [m/s]; negative means that it must open."""
        way = distances - self.collision_config.clearance
        linear = self.collision_config.approach_rate * way
        return np.minimum(linear, np.sqrt(2.0 * self.collision_config.approach_deceleration * np.maximum(way, 0.0)))

    def _solve(
        self,
        hessian: Array,
        gradient: Array,
        previous: Array,
        box: tuple[Array, Array],
        near: Clearances | None,
    ) -> Array | None:
        """Solve one quadratic program and check the answer; None where there is none.

        In joint form the point of the box that is nearest to the plan is the answer wherever it keeps clear.
        A pair that must open is asked for no more than half of what the box adds to its present speed.
        """
        least, greatest = box
        rows, floor = np.empty((0, len(least))), np.empty(0)
        nearest = np.minimum(np.maximum(-gradient, least), greatest) if hessian is self._identity else None
        if near is None and nearest is not None:
            return nearest
        if near is not None:
            rows = near.gradients
            floor = -self._allowed_approach(near.distances) - near.drifts
            if nearest is not None and bool(np.all(rows @ nearest >= floor)):
                return nearest
            fastest = np.where(rows > 0.0, rows * greatest, rows * least).sum(-1)
            floor = np.minimum(floor, np.maximum(0.5 * (rows @ previous + fastest), 0.0))
            slowest = np.where(rows > 0.0, rows * least, rows * greatest).sum(-1)
            binding = slowest < floor
            rows, floor = np.ascontiguousarray(rows[binding]), floor[binding]
        above = np.concatenate([greatest, np.full(len(floor), 1e30)])
        below = np.concatenate([least, floor])
        senses = np.zeros(len(above), dtype=np.int32)
        solution, _, flag, _ = daqp.solve(hessian, gradient, rows, above, below, senses)
        if flag != 1 or not np.all(np.isfinite(solution)):
            return None
        solution = np.minimum(np.maximum(solution, least), greatest)
        if len(floor) and float((rows @ solution - floor).min()) < -1e-5:
            return None
        return solution

    def _at_limit(self, q: Array, previous: Array, solution: Array, least: Array, greatest: Array) -> bool:
        """Tell whether the nearness of a position limit, and no other bound, decided a joint's velocity."""
        near_lower = (solution <= least + 1e-12) & (
            least > np.maximum(-self.velocity, previous - self.acceleration * self.dt) + 1e-9
        )
        near_upper = (solution >= greatest - 1e-12) & (
            greatest < np.minimum(self.velocity, previous + self.acceleration * self.dt) - 1e-9
        )
        return bool(np.any(near_lower | near_upper))
