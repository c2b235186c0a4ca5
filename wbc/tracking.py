"""One tick of the controller: joint velocities within every limit, near a plan's or following a tool twist.

    joint form  min  |v - v_plan|^2
    tool form   min  |W (J v - xdot)|^2 + damping |v|^2 + w_p^2 |v - v_secondary|^2 + w_a^2 |v - v_previous|^2
    both        s.t. velocity box (position, velocity and acceleration limits)
                     grad d . v + drift >= -allowed approach, for every near pair

A tick that has no solution climbs a ladder: first the emergency acceleration, then a plain brake to rest.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import daqp
import numpy as np

from .collision import Clearances, CollisionConfig, CollisionModel
from .fast import make_collisions, make_kinematics
from .kinematics import ArmPose
from .limits import shortest_turn, velocity_box
from .robots import RobotModel
from .transforms import Array

NOMINAL, EMERGENCY, BRAKE = "nominal", "emergency_acceleration", "brake"
"""Rungs of the ladder, in order."""
SOFT = 8
"""How daqp marks a constraint that may be violated at a price."""
STANDING = 0.05
"""Joint speed [rad/s] below which an arm that cannot keep clear moves out as well as it can."""
ESCAPE_SPEED = 1.0
"""Joint speed [rad/s] at which an arm moves out of a place that is too near to something."""
LEAST_LEVERAGE = 0.05
"""Change of a distance with the joints [m/rad] up to which a pair need not open."""
BEND_MARGIN = 1e-3
"""Distance kept beyond the clearance on the way to a stop [m], for what the linear rows do not see."""
SLOWED_LACK = 2e-3
"""Braking all joints together is as good as a solution while it brings no pair nearer than it may by more [m]."""
STOP_SHARES = np.array([1.0, 2.0, 3.0]) / 3.0
"""Where on the way to a stop the pairs are looked at."""


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


@dataclass(frozen=True, slots=True)
class _Rows:
    """What near pairs demand: `gradients . v >= floor` `[p]` [m/s], each to last for `times` `[p]` [s].

    shares: `[p]` how much of the way to a stop lies before the pose of each row; None for the present pose throughout.
    """

    gradients: Array
    floor: Array
    times: Array
    shares: Array | None = None

    def within(self, previous: Array, least: Array, greatest: Array) -> _Rows:
        """Ask a pair that must open for no more than half of what the box adds to its present speed, and than its
        leverage allows: a pair that hardly moves with any joint is not worth turning the arm for.
        """
        fastest = np.where(self.gradients > 0.0, self.gradients * greatest, self.gradients * least).sum(-1)
        leverage = np.sqrt(np.square(self.gradients).sum(-1)) - LEAST_LEVERAGE
        possible = np.minimum(0.5 * (self.gradients @ previous + fastest), ESCAPE_SPEED * leverage)
        return replace(self, floor=np.minimum(self.floor, np.maximum(possible, 0.0)))

    def before(self, share: float) -> _Rows:
        """Return the rows of poses within a share of the way to a stop."""
        if self.shares is None:
            return self
        kept = self.shares <= share + 1e-9
        return _Rows(self.gradients[kept], self.floor[kept], self.times[kept], self.shares[kept])

    def lack(self, velocity: Array) -> float:
        """Return how much nearer [m] than it may `velocity` `[j]` brings the pair that is worst off."""
        return float((self.times * (self.floor - self.gradients @ velocity)).max(initial=0.0))

    def binding(self, least: Array, greatest: Array) -> tuple[Array, Array]:
        """Return the rows, and their floors, that some velocity of the box does not meet."""
        slowest = np.where(self.gradients > 0.0, self.gradients * least, self.gradients * greatest).sum(-1)
        chosen = slowest < self.floor
        return np.ascontiguousarray(self.gradients[chosen]), self.floor[chosen]


def braked_gain(error: Array, gain: float, deceleration: float) -> Array:
    """Return the speed that removes `error` `[3]`: proportional when near, still able to brake when far."""
    size = math.sqrt(float(error @ error))
    if size < 1e-12:
        return np.zeros(3)
    return error * (min(gain * size, math.sqrt(2.0 * deceleration * size)) / size)


class TickSolver:
    """Solves ticks for one robot, with its obstacles."""

    def __init__(
        self,
        robot: RobotModel,
        tracking: TrackingConfig,
        collision: CollisionConfig,
        dt: float,
        backend: str = "numpy",
    ) -> None:
        """Prepare limits and pairs; `dt` is the duration of a tick [s], `backend` as in `fast`."""
        self.kinematics = make_kinematics(robot, backend)
        self.collisions = make_collisions(robot, collision, backend)
        self.config, self.dt = tracking, dt
        self.lower, self.upper = robot.lower, robot.upper
        self.velocity = robot.velocity * tracking.velocity_scale
        self.acceleration = robot.acceleration * tracking.acceleration_scale
        self.emergency = np.maximum(robot.emergency_acceleration, self.acceleration)
        self._squares = np.array([1.0] * 3 + [tracking.rotation_weight**2] * 3)
        self._identity = np.eye(robot.num_joints)
        self._gain_in_tick = self.acceleration * dt
        self._seen: tuple[Array, float, Clearances] | None = None

    def watch(self, collisions: CollisionModel) -> None:
        """Keep clear of another scene from now on."""
        self.collisions, self._seen = collisions, None

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

    def must_brake_together(self, q: Array, previous: Array, change: Array, elapsed: float = 0.0) -> bool:
        """Tell whether a stop of each joint by itself would come nearer than the clearance, and than now."""
        if self.collisions.num_pairs == 0:
            return False
        each = np.abs(previous) / change
        times = np.minimum(np.linspace(0.0, 1.0, 6)[:, None] * each.max(), each)
        way = q + previous * times - 0.5 * np.copysign(change, previous) * times**2
        found = self.collisions.clearances(self.kinematics.forward_many(way), np.inf, elapsed)
        now = float(found.distances[found.poses == 0].min())
        return found.nearest < min(now, self.collisions.config.clearance + BEND_MARGIN)

    def follow(self, q: Array, previous: Array, wanted: Array, elapsed: float = 0.0) -> Tick:
        """Choose the joint velocities nearest to `wanted` `[j]` [rad/s] (joint form).

        Args:
            q: joint positions [rad]; previous: joint velocities of the last tick [rad/s].
            wanted: what the plan asks for.
            elapsed: age of the obstacles' positions [s].
        """
        return self._climb(self._identity, -wanted, q, previous, self._rows(q, previous, None, elapsed))

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
        return self._climb(hessian, gradient, q, previous, self._rows(q, previous, pose, elapsed))

    def _climb(self, hessian: Array, gradient: Array, q: Array, previous: Array, rows: _Rows | None) -> Tick:
        """Solve under the nominal bounds or, failing that, on the next rung of the ladder."""
        for rung, change in ((NOMINAL, self.acceleration), (EMERGENCY, self.emergency)):
            least, greatest = self.box(q, previous, change)
            demand = None if rows is None else rows.within(previous, least, greatest)
            solution = self._solve(hessian, gradient, (least, greatest), demand)
            if solution is None and demand is not None:
                slowed = self._slowed(previous, change, least, greatest)
                if np.abs(previous).max() < STANDING:
                    solution = self._solve(hessian, gradient, (least, greatest), demand, SOFT)
                elif demand.lack(slowed) < SLOWED_LACK:
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

    def _rows(self, q: Array, previous: Array, pose: ArmPose | None, elapsed: float) -> _Rows | None:
        """Return what the near pairs demand of the velocity, or None where all are certainly far.

        All joints together can stop in `T = max |v| / a`, along a straight line in joint space. The pairs are looked at
        here and, where that line could reach them, along it: whoever leaves room for the stop now can still stop in
        the next tick, however the distances bend on the way.

        What one look at all pairs showed also bounds the distances of the ticks after it, so that the next look waits
        until something could have come near.
        """
        model = self.collisions
        if model.num_pairs == 0:
            return None
        influence, clearance = model.config.influence, model.config.clearance
        stop = float((np.abs(previous) / self.acceleration).max()) + self.dt
        way = max(self.dt + 0.5 * stop, 1.0 / model.config.approach_rate)
        if self._seen is not None:
            before, then, pairs = self._seen
            moved = model.fastest_obstacle * (abs(elapsed - then) + stop)
            if float(self._room(pairs, q - before, previous, way).min()) > clearance + moved:
                return None
        pose = pose or self.kinematics.forward(q)
        pairs = model.clearances(pose, np.inf, elapsed)
        self._seen = (q, elapsed, pairs)
        room = self._room(pairs, np.zeros_like(q), previous, way)
        tight = room <= clearance + model.fastest_obstacle * stop
        if not np.any(tight):
            return None
        near = np.flatnonzero(pairs.distances < influence)
        rate = model.config.approach_rate
        here = _Rows(
            pairs.gradients[near],
            -rate * (pairs.distances[near] - clearance) - pairs.drifts[near],
            np.full(len(near), 1.0 / rate),
        )
        reached = self.dt + 0.5 * stop * STOP_SHARES
        passed = elapsed + self.dt + stop * (1.0 - np.sqrt(1.0 - STOP_SHARES))
        along = self.kinematics.forward_many(q + reached[:, None] * previous)
        ahead = model.clearances(along, influence, passed, tight)
        times = reached[ahead.poses]
        floor = ahead.gradients @ previous - (ahead.distances - clearance - BEND_MARGIN) / times
        return _Rows(
            np.concatenate([here.gradients, ahead.gradients]),
            np.concatenate([here.floor, floor]),
            np.concatenate([here.times, times]),
            np.concatenate([np.zeros(len(here.floor)), STOP_SHARES[ahead.poses]]),
        )

    def _room(self, pairs: Clearances, shift: Array, previous: Array, way: float) -> Array:
        """Return what no distance `[p]` [m] falls below after a shift and `way` [s] more at the fastest next speed.

        Along a straight line in joint space a distance is at least its tangent less half the turning times the
        travel of the arm, since the distance of convex bodies bends upwards in their relative shift.
        """
        fastest = np.minimum(np.abs(previous) + self._gain_in_tick, self.velocity) * way
        total = np.abs(shift) + fastest
        bend = 0.5 * float(total.sum()) * float(self.collisions.reach @ total)
        closing = np.abs(pairs.gradients) @ self._gain_in_tick - pairs.gradients @ previous
        room: Array = pairs.distances + pairs.gradients @ shift - np.maximum(closing, 0.0) * way - bend
        return room

    def _solve(
        self, hessian: Array, gradient: Array, box: tuple[Array, Array], demand: _Rows | None, sense: int = 0
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
        """Tell whether the nearness of a position limit, and no other bound, decided a joint's velocity."""
        near_lower = (solution <= least + 1e-12) & (
            least > np.maximum(-self.velocity, previous - self.acceleration * self.dt) + 1e-9
        )
        near_upper = (solution >= greatest - 1e-12) & (
            greatest < np.minimum(self.velocity, previous + self.acceleration * self.dt) - 1e-9
        )
        return bool(np.any(near_lower | near_upper))
