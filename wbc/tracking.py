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

from .collision import CollisionConfig, CollisionModel
from .fast import make_collisions, make_kinematics
from .limits import shortest_turn, velocity_box
from .robot.kinematics import ArmPose
from .robot.robots import RobotModel
from .robot.transforms import Array, rotation_log
from .row_generation import SOFT
from .stopping import ClearanceDemand, ClearanceWatch
from .tool_speed import ToolSpeedCap

NOMINAL, EMERGENCY, BRAKE = "nominal", "emergency_acceleration", "brake"
"""Rungs of the ladder, in order."""
RETURN_SHARE = 0.25
"""Share of the velocity limits at which an arm that begins beyond a position limit moves back within."""
STANDING = 0.05
"""Joint speed [rad/s] below which an arm that cannot keep clear moves out as well as it can."""
SLOWED_LACK = 2e-3
"""Braking all joints together is as good as a solution while it brings no pair nearer than it may by more [m]."""


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


def wanted_twist(
    tool: Array,
    now: tuple[Array, Array],
    target: tuple[Array, Array],
    dt: float,
    config: TrackingConfig,
    caps: tuple[float, float],
) -> Array:
    """Return `[6]` [m/s, rad/s]: a reference's motion in one tick and the pull towards it, within the caps.

    Args:
        tool: present pose `[4 4]`.
        now, target: position `[3]` [m] and rotation `[3 3]` of the reference at the tick's beginning and end.
        dt: duration of the tick [s].
        config: gain and deceleration of the pull.
        caps: greatest linear [m/s] and angular [rad/s] speed.
    """
    linear = (target[0] - now[0]) / dt
    linear = linear + braked_gain(now[0] - tool[:3, 3], config.gain, config.correction_deceleration[0])
    angular = rotation_log(target[1] @ now[1].T) / dt
    turn = rotation_log(now[1] @ tool[:3, :3].T)
    angular = angular + braked_gain(turn, config.gain, config.correction_deceleration[1])
    linear *= min(1.0, caps[0] / max(float(np.linalg.norm(linear)), 1e-9))
    angular *= min(1.0, caps[1] / max(float(np.linalg.norm(angular)), 1e-9))
    return np.concatenate([linear, angular])


class TickSolver:
    """Solves ticks for one robot, with its obstacles.

    scene_time: when the obstacles were where the scene says [s].
    cap: of the tool's speed.
    """

    def __init__(
        self,
        robot: RobotModel,
        tracking: TrackingConfig,
        collision: CollisionConfig,
        dt: float,
        backend: str = "numpy",
        caps: tuple[float, float] = (math.inf, math.inf),
    ) -> None:
        """Prepare limits and pairs.

        Args:
            robot: the arm.
            tracking, collision: gains and scene.
            dt: duration of a tick [s].
            backend: as in `fast`.
            caps: greatest speed of the tool, linear [m/s] and angular [rad/s].
        """
        self.kinematics = make_kinematics(robot, backend)
        self.config, self.dt = tracking, dt
        self.lower, self.upper = robot.lower, robot.upper
        self.velocity = robot.velocity * tracking.velocity_scale
        self.acceleration = robot.acceleration * tracking.acceleration_scale
        self.emergency = np.maximum(robot.emergency_acceleration, self.acceleration)
        self.cap = ToolSpeedCap(self.kinematics, *caps)
        self._squares = np.array([1.0] * 3 + [tracking.rotation_weight**2] * 3)
        self._identity = np.eye(robot.num_joints)
        self.keep_clear_of(make_collisions(robot, collision, backend))

    def keep_clear_of(self, collisions: CollisionModel, time: float = 0.0) -> None:
        """Take over another scene, whose obstacles are where it says at `time` [s]."""
        self.scene_time = time
        self.watch = ClearanceWatch(self.kinematics, collisions, self.velocity, self.acceleration, self.dt)

    def box(self, q: Array, previous: Array, change: Array) -> tuple[Array, Array]:
        """Return the velocity box at `q` [rad], `previous` [rad/s], under the bound `change` [rad/s^2]."""
        return velocity_box(q, previous, self.lower, self.upper, self.velocity, self.acceleration, change, self.dt)

    def brake(self, q: Array, previous: Array, change: Array, together: bool) -> Array:
        """Return the velocity `[j]` of a braking tick.

        Args:
            q: joint positions [rad]; previous: joint velocities of the last tick [rad/s].
            change: deceleration [rad/s^2].
            together: keep the direction, so that the arm stops on the way that earlier ticks kept clear, rather
                than each joint as soon as it can.
        """
        least, greatest = self.box(q, previous, change)
        if together:
            return self._slowed(previous, change, least, greatest)
        return np.minimum(np.maximum(0.0, least), greatest)

    def pulled(self, q: Array, now: Array, target: Array) -> Array:
        """Return the joint velocities `[j]` [rad/s] of a plan in one tick, with a braked pull towards it.

        Args:
            q: joint positions; now, target: the plan's at the tick's beginning and end [rad].
        """
        error = now - q
        distance = np.abs(error)
        pull = np.minimum(self.config.gain * distance, np.sqrt(self.acceleration * distance))
        wanted: Array = (target - now) / self.dt + np.copysign(pull, error)
        return wanted

    def beyond(self, q: Array) -> Array:
        """Return how far each joint of `q` `[j]` lies beyond its limits [rad], negative below the lower one."""
        return q - np.minimum(np.maximum(q, self.lower), self.upper)

    def back_within(self, q: Array) -> Array:
        """Return the joint velocities `[j]` [rad/s] that lead from beyond the limits to them, braking on the way."""
        beyond = self.beyond(q)
        speed = np.minimum(RETURN_SHARE * self.velocity, np.sqrt(self.acceleration * np.abs(beyond)))
        wanted: Array = -np.copysign(speed, beyond)
        return wanted

    def follow(self, q: Array, previous: Array, wanted: Array, elapsed: float = 0.0) -> Tick:
        """Choose the joint velocities nearest to `wanted` `[j]` [rad/s] (joint form).

        Args:
            q: joint positions [rad]; previous: joint velocities of the last tick [rad/s].
            wanted: what the plan asks for.
            elapsed: age of the obstacles' positions [s].
        """
        share = self.cap.share(q, wanted)
        if share < 1.0:
            wanted = share * wanted
        return self._climb(self._identity, -wanted, q, previous, self.watch.demand(q, previous, None, elapsed))

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
        return self._climb(hessian, gradient, q, previous, self.watch.demand(q, previous, pose, elapsed))

    def _climb(self, hessian: Array, gradient: Array, q: Array, previous: Array, rows: ClearanceDemand | None) -> Tick:
        """Solve under the nominal bounds or, failing that, on the next rung of the ladder."""
        for rung, change in ((NOMINAL, self.acceleration), (EMERGENCY, self.emergency)):
            least, greatest = self.box(q, previous, change)
            demand = None if rows is None else rows.within(previous, least, greatest)
            slowed = self._slowed(previous, change, least, greatest)
            stops = demand is not None and demand.lack(slowed) < SLOWED_LACK
            # In an emergency the arm brakes where that is enough; it does not continue along the plan.
            solution = slowed if rung == EMERGENCY and stops else None
            if solution is None:
                solution = self._solve(hessian, gradient, (least, greatest), demand)
            if solution is None and np.abs(previous).max() < STANDING:
                solution = self._solve(hessian, gradient, (least, greatest), demand, SOFT)
            elif solution is None and stops:
                solution = slowed
            if solution is not None:
                limited = self._at_limit(q, previous, solution, least, greatest)
                return Tick(velocity=solution, rung=rung, limited=limited)
            if rows is not None:
                rows = rows.before(float((self.acceleration / self.emergency).max()))
        return Tick(velocity=self._slowed(previous, self.emergency, least, greatest), rung=BRAKE, limited=True)

    def _slowed(self, previous: Array, change: Array, least: Array, greatest: Array) -> Array:
        """Return the velocity after braking all joints together, along the present direction: the stop that every
        earlier tick made sure of.
        """
        stop = float((np.abs(previous) / change).max())
        share = max(0.0, 1.0 - self.dt / stop) if stop > 0.0 else 0.0
        return np.minimum(np.maximum(share * previous, least), greatest)

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
            secondary = config.posture_gain * shortest_turn(posture - q, np.isinf(self.upper))
            if measure < config.low_manipulability:
                _, slope = self.kinematics.manipulability_gradient(jacobian)
                share = config.manipulability_gain * (1.0 - measure / config.low_manipulability)
                secondary = secondary + share * slope / max(float(np.linalg.norm(slope)), 1e-6)
            gradient -= config.posture_weight**2 * secondary
        return weighted @ jacobian + diagonal * self._identity, gradient

    def _solve(
        self, hessian: Array, gradient: Array, box: tuple[Array, Array], demand: ClearanceDemand | None, sense: int = 0
    ) -> Array | None:
        """Solve one quadratic program and check the answer; None where there is none.

        In joint form the point of the box that is nearest to the plan is the answer wherever it keeps clear.
        """
        least, greatest = box
        if hessian is self._identity:
            nearest = np.minimum(np.maximum(-gradient, least), greatest)
            if demand is None or demand.lack(nearest) <= 0.0:
                return nearest
        rows, below = np.empty((0, len(least))), np.empty(0)
        if demand is not None:
            rows, below = demand.binding(least, greatest)
        upper = np.concatenate([greatest, np.full(len(below), 1e30)])
        lower = np.concatenate([least, below])
        senses = np.concatenate([np.zeros(len(least)), np.full(len(below), sense)]).astype(np.int32)
        solution, _, flag, _ = daqp.solve(hessian, gradient, rows, upper, lower, senses)
        if flag not in (1, 2) or not np.all(np.isfinite(solution)):
            return None
        solution = np.minimum(np.maximum(solution, least), greatest)
        if sense == 0 and len(below) and float((rows @ solution - below).min()) < -1e-5:
            return None
        return solution

    def _at_limit(self, q: Array, previous: Array, solution: Array, least: Array, greatest: Array) -> bool:
        """Return whether the nearness of a position limit, and no other bound, decided a joint's velocity."""
        if float(np.minimum(solution - least, greatest - solution).min()) > 1e-12:
            return False
        near_lower = (solution <= least + 1e-12) & (
            least > np.maximum(-self.velocity, previous - self.acceleration * self.dt) + 1e-9
        )
        near_upper = (solution >= greatest - 1e-12) & (
            greatest < np.minimum(self.velocity, previous + self.acceleration * self.dt) - 1e-9
        )
        return bool(np.any(near_lower | near_upper))
