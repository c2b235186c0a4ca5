"""Optimise a chunk in joint space: a quintic B-spline that follows the tool poses within every limit.

The joints move along `q(t) = B(t) c`. The first three control points are given by the commanded position, velocity
and acceleration, the last three are one (rest at the end); the free ones minimise, over the waypoints i,

    sum_i w_i |W e_i|^2 + jerk_weight * integral |q'''|^2 dt
        + w_q |N (q - posture)|^2 - w_m max(0, 1 - m/m_0) N grad(m) . dq,    e_i = [p_i - p(q_i); log(R_i R(q_i)')]

with `w_i` the time that a waypoint stands for, N the projector on the motions that leave the tool where it is, and m
the manipulability; subject to position, velocity and acceleration bounds on a grid of times and
`d + grad(d) . dq >= clearance` for the pairs that come near. Each iteration is one quadratic program (Gauss-Newton);
rows enter it only when they are violated or about to be. Collision and limit rows are soft, so that an answer always
exists; the tick enforces them again, hard.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import NamedTuple

import daqp
import numpy as np

from ..gr_model.errors import ConfigError, ControlError
from .collision import CollisionModel
from .kinematics import ArmPose, Kinematics
from .limits import shortest_turn
from .robots import RobotModel
from .splines import Basis, JointTrajectory, clamped_basis
from .transforms import Array, matrix_from_quaternion, rotation_exp, rotation_log

SOFT = 8
"""How daqp marks a constraint that may be violated at a price."""
UNBOUNDED = 1e30
PRESSING = 0.9
"""Share of a limit beyond which its row takes part from the beginning."""
NEARLY = 0.01
"""Distance beyond the clearance [m] below which a pair takes part from the beginning."""
MAX_ROUNDS = 4
"""How often rows are taken in before an answer is used as it is; the tick enforces what is left."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimizationConfig:
    """Shape, weights and bounds of the plan.

    span: duration of a polynomial piece, about [s]; max_spans: most pieces.
    max_samples: most waypoints; more of them are averaged in groups.
    settle: time after the last waypoint in which the arm comes to rest on it [s].
    jerk_weight: weight of the joint jerk squared against a metre squared; grows with the square of the waypoints'
        noise above noise_floor [m], up to max_smoothing times.
    blend: weight of the earlier plan against a new chunk's beginning (temporal ensembling), 0 for none; it fades
        towards the chunk's end, and as the two differ by blend_distance [m] or blend_angle [rad]; the earlier plan's
        last blend_tail [s], bent by its coming to rest, is left out.
    rotation_weight: weight of a radian against a metre.
    posture_weight: weight of the spare freedom's distance from the posture; posture_step: most that one plan moves
        it [rad].
    manipulability_weight: pull up the manipulability, below low_manipulability.
    proximity_weight: weight of the change in one iteration, which keeps the spare freedom still.
    residual_damping: more of it for each metre of tool error, which keeps an arm still that stretches after a pose
        out of reach.
    iterations: most quadratic programs; tolerance: change that ends them earlier [rad].
    trust: largest change of a control point in one iteration [rad].
    max_error: largest error that one iteration tries to remove, linear [m] and angular [rad].
    velocity_share, acceleration_share: shares of the limits the plan uses.
    position_margin: distance kept from the position limits [rad].
    clearance_margin: distance kept beyond the clearance of the tick [m].
    influence: distance from which pairs are looked at [m].
    """

    span: float = 0.15
    max_spans: int = 16
    max_samples: int = 24
    settle: float = 0.5
    jerk_weight: float = 5e-8
    max_smoothing: float = 8.0
    noise_floor: float = 1e-3
    blend: float = 2.0
    blend_distance: float = 0.03
    blend_angle: float = 0.2
    blend_tail: float = 0.05
    rotation_weight: float = 0.3
    posture_weight: float = 1e-3
    posture_step: float = 0.1
    manipulability_weight: float = 2e-3
    low_manipulability: float = 0.04
    proximity_weight: float = 1e-4
    residual_damping: float = 0.3
    iterations: int = 4
    tolerance: float = 1e-3
    trust: float = 0.4
    max_error: tuple[float, float] = (0.15, 0.5)
    velocity_share: float = 0.98
    acceleration_share: float = 0.95
    position_margin: float = 0.02
    clearance_margin: float = 0.002
    influence: float = 0.08

    def __post_init__(self) -> None:
        if not (0.01 <= self.span <= 10.0 and 2 <= self.max_spans <= 64 and 2 <= self.max_samples <= 256):
            raise ConfigError("optimization: expected span in 0.01..10 s, max_spans in 2..64, max_samples in 2..256.")
        for name in ("velocity_share", "acceleration_share"):
            if not 0.0 < getattr(self, name) <= 1.0:
                raise ConfigError(f"optimization.{name}: expected a number in (0, 1], got {getattr(self, name)}.")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Waypoints:
    """Tool poses to pass: times `[m]` [s], positions `[m 3]` [m], rotations `[m 3 3]`, weights `[m]` [s]."""

    times: Array
    positions: Array
    rotations: Array
    weights: Array


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Plan:
    """An optimised chunk: the motion, how many programs it took, and the largest tool error at a waypoint [m]."""

    trajectory: JointTrajectory
    iterations: int
    max_error: float


def waypoints_of(positions: Array, quaternions: Array, due: Array, period: float, limit: int) -> Waypoints:
    """Return the waypoints of a chunk, neighbours averaged in groups where there are more than `limit`.

    Args:
        positions: `[k 3]` [m]; quaternions: `[k 4]` xyzw; due: `[k]` [s]; period: time between them [s].
        limit: most waypoints.
    """
    rotations = np.stack([matrix_from_quaternion(q) for q in quaternions])
    size = -(-len(due) // limit)
    if size > 1:
        groups = [slice(max(end - size, 0), end) for end in range(len(due), 0, -size)][::-1]
        positions = np.stack([positions[g].mean(0) for g in groups])
        rotations = np.stack([_nearest_rotation(rotations[g].mean(0)) for g in groups])
        weights = period * np.array([g.stop - g.start for g in groups], dtype=np.float64)
        due = np.array([due[g].mean() for g in groups])
    else:
        weights = np.full(len(due), period)
    return Waypoints(times=due, positions=positions, rotations=rotations, weights=weights)


def _nearest_rotation(matrix: Array) -> Array:
    """Return the rotation nearest to a mean of rotations `[3 3]`."""
    left, _, right = np.linalg.svd(matrix)
    rotation: Array = left @ np.diag([1.0, 1.0, np.linalg.det(left @ right)]) @ right
    return rotation


def rotation_logs(rotations: Array) -> Array:
    """Map rotation matrices `[m 3 3]` to rotation vectors `[m 3]` [rad]."""
    vee = 0.5 * np.stack(
        [
            rotations[:, 2, 1] - rotations[:, 1, 2],
            rotations[:, 0, 2] - rotations[:, 2, 0],
            rotations[:, 1, 0] - rotations[:, 0, 1],
        ],
        axis=1,
    )
    sine, cosine = np.sqrt(np.square(vee).sum(1)), 0.5 * (np.trace(rotations, axis1=1, axis2=2) - 1.0)
    logs: Array = vee * np.where(sine > 1e-9, np.arctan2(sine, cosine) / np.maximum(sine, 1e-9), 1.0)[:, None]
    for index in np.flatnonzero(cosine < -0.9):
        logs[index] = rotation_log(rotations[index])
    return logs


class _Grid:
    """Constant matrices of one duration: rows of the free and the fixed control points, at samples and grid."""

    def __init__(self, basis: Basis, spans: int, span: float, samples: Array) -> None:
        self.spans, self.span, self.times = spans, span, samples
        self.free = spans
        size = spans + 5
        first = np.concatenate([basis.rows(np.zeros(1), order) for order in range(3)])[:, :3]
        self.fixed = np.zeros((size, 3))
        self.fixed[:3] = np.linalg.inv(first)
        self.spread = np.zeros((size, spans))
        self.spread[3 : 2 + spans, : spans - 1] = np.eye(spans - 1)
        self.spread[-3:, -1] = 1.0
        self.basis = basis
        places = samples / span
        self.at_samples = basis.rows(places)
        dense = np.linspace(0.0, spans, 4 * spans + 1)[1:]
        self.at_grid = basis.rows(dense)
        self.speed_at_grid = basis.rows(dense, 1) / span
        self.acceleration_at_grid = basis.rows(dense, 2) / span**2
        self.speed_at_samples = basis.rows(places, 1) / span
        self.samples, self.speed_samples = self.at_samples @ self.spread, self.speed_at_samples @ self.spread
        self.grid = [m @ self.spread for m in (self.at_grid, self.speed_at_grid, self.acceleration_at_grid)]
        self.jerk = basis.jerk / span**5

    def control(self, start: Array, free: Array) -> Array:
        """Return all control points `[n j]` from the start's derivatives `[3 j]` in pieces and the free ones."""
        points: Array = self.fixed @ start + self.spread @ free
        return points


class _Limit(NamedTuple):
    """One quantity on the grid of times: its rows by the free control points `[t f]`, values `[t j]`, bounds `[j]`."""

    matrix: Array
    values: Array
    lower: Array
    upper: Array

    def pressing(self, values: Array, share: float) -> np.ndarray:
        """Return `[t j]`: where `values` lie outside their range shrunk to `share` about its middle."""
        half = 0.5 * np.minimum(self.upper - self.lower, UNBOUNDED)
        spare = (1.0 - share) * half
        return (values < self.lower + spare) | (values > self.upper - spare)

    def rows(self, mask: np.ndarray) -> tuple[Array, Array, Array]:
        """Return the chosen rows `[r f*j]` on the change of the control points, and their bounds `[r]`."""
        times, joints = np.nonzero(mask)
        rows = np.zeros((len(times), self.matrix.shape[1], self.values.shape[1]))
        rows[np.arange(len(times)), :, joints] = self.matrix[times]
        values = self.values[times, joints]
        least = np.maximum(self.lower[joints] - values, -UNBOUNDED)
        greatest = np.minimum(self.upper[joints] - values, UNBOUNDED)
        return rows.reshape(len(times), rows.shape[1] * rows.shape[2]), least, greatest


class ChunkOptimizer:
    """Plans chunks for one robot among its obstacles."""

    def __init__(self, robot: RobotModel, config: OptimizationConfig, scales: tuple[float, float] = (1.0, 1.0)) -> None:
        """Prepare the limits; `scales` are the shares of velocity and acceleration that the controller uses."""
        self.config, self.kinematics = config, Kinematics(robot)
        margin = np.minimum(config.position_margin, 0.25 * (robot.upper - robot.lower))
        self.lower, self.upper = robot.lower + margin, robot.upper - margin
        self.velocity = config.velocity_share * scales[0] * robot.velocity
        self.acceleration = config.acceleration_share * scales[1] * robot.acceleration
        self._endless = np.isinf(robot.upper)
        self._weights = np.array([1.0] * 3 + [config.rotation_weight] * 3)

    def plan(
        self,
        start: tuple[Array, Array, Array],
        time: float,
        waypoints: Waypoints,
        posture: Array,
        collisions: CollisionModel,
        *,
        elapsed: float = 0.0,
        guess: JointTrajectory | None = None,
    ) -> Plan:
        """Plan from `start`, the commanded positions, velocities and accelerations `[j]`, at `time` [s].

        Args:
            start: [rad], [rad/s], [rad/s^2].
            time: time of `start` [s]; every waypoint comes later.
            waypoints: what the tool is to pass.
            posture: `[j]` where spare freedom drifts to [rad].
            collisions: pairs to keep apart.
            elapsed: age of the obstacles' positions at `time` [s].
            guess: earlier plan to begin from.

        Raises:
            ControlError: the quadratic program has no solution or one that is not finite.
        """
        config = self.config
        noise = _roughness(waypoints.positions)
        if guess is not None:
            waypoints, disagreement = self._blended(waypoints, guess)
            noise = max(noise, disagreement)
        jerk_weight = config.jerk_weight * min(max((noise / config.noise_floor) ** 2, 1.0), config.max_smoothing)
        horizon = float(waypoints.times[-1]) - time + config.settle
        spans = min(max(math.ceil(horizon / config.span - 1e-6), 4), config.max_spans)
        span = horizon / spans
        samples = np.append(waypoints.times - time, horizon)
        targets = np.concatenate([waypoints.positions, waypoints.positions[-1:]])
        rotations = np.concatenate([waypoints.rotations, waypoints.rotations[-1:]])
        weights = np.append(waypoints.weights, config.settle)
        grid = _Grid(clamped_basis(spans), spans, span, samples)
        toward = shortest_turn(posture - start[0], self._endless)
        posture = start[0] + np.clip(toward, -config.posture_step, config.posture_step)
        origin = np.stack([start[0], start[1] * span, start[2] * span**2])
        free = self._first_guess(grid, origin, time, guess)
        posed = self.kinematics.forward_many(grid.at_samples @ grid.control(origin, free))
        solved, worst = 0, np.inf
        for _ in range(config.iterations):
            step = self._iterate(
                grid,
                origin,
                free,
                posed,
                targets,
                rotations,
                weights,
                posture,
                collisions,
                elapsed,
                jerk_weight,
            )
            solved += 1
            free = free + step
            posed = self.kinematics.forward_many(grid.at_samples @ grid.control(origin, free))
            if float(np.abs(step).max()) < config.tolerance:
                break
        worst = float(np.sqrt(np.square(posed.tool[:-1, :3, 3] - waypoints.positions).sum(1).max()))
        control = grid.control(origin, free)
        coefficients = grid.basis.powers @ control
        trajectory = JointTrajectory(start_time=time, span=span, coefficients=coefficients)
        return Plan(trajectory=trajectory, iterations=solved, max_error=worst)

    def _blended(self, waypoints: Waypoints, earlier: JointTrajectory) -> tuple[Waypoints, float]:
        """Draw the waypoints towards what an earlier plan does at their times, less and less along the chunk.

        Beyond the earlier plan they are shifted by the mean difference, since a policy errs alike on a whole chunk.

        Source: temporal ensembling, T. Zhao et al., Learning fine-grained bimanual manipulation (ACT), 2023.
        """
        config = self.config
        shared = int(np.searchsorted(waypoints.times, earlier.end_time - config.settle - config.blend_tail))
        if shared == 0 or config.blend == 0.0:
            return waypoints, 0.0
        before = self.kinematics.forward_many(earlier.many(waypoints.times[:shared])).tool
        offsets = before[:, :3, 3] - waypoints.positions[:shared]
        turns = rotation_logs(before[:, :3, :3] @ waypoints.rotations[:shared].transpose(0, 2, 1))
        disagreement = np.square(offsets / config.blend_distance).sum(1) + np.square(turns / config.blend_angle).sum(1)
        share = config.blend * float(np.exp(-disagreement.mean()))
        share = share / (1.0 + share)
        fade = share * np.linspace(1.0, 0.0, len(waypoints.times) + 1)[:-1, None]
        beyond = len(waypoints.times) - shared
        positions = waypoints.positions + fade * np.concatenate([offsets, np.tile(offsets.mean(0), (beyond, 1))])
        turned = fade * np.concatenate([turns, np.tile(turns.mean(0), (beyond, 1))])
        rotations = np.stack([rotation_exp(t) @ r for t, r in zip(turned, waypoints.rotations, strict=True)])
        apart = float(np.sqrt((np.square(offsets).sum(1) + np.square(config.rotation_weight * turns).sum(1)).mean()))
        return replace(waypoints, positions=positions, rotations=rotations), apart

    def _first_guess(self, grid: _Grid, origin: Array, time: float, guess: JointTrajectory | None) -> Array:
        """Return free control points `[f j]` near an earlier plan, or of a rest at the start."""
        if guess is None:
            return np.tile(origin[0], (grid.free, 1))
        places = np.linspace(0.0, grid.spans, 2 * grid.spans + 1)[1:]
        rows = grid.basis.rows(places)
        wanted = guess.many(time + places * grid.span) - rows @ grid.fixed @ origin
        fit: Array = np.linalg.lstsq(rows @ grid.spread, wanted, rcond=None)[0]
        return fit

    def _iterate(
        self,
        grid: _Grid,
        origin: Array,
        free: Array,
        pose: ArmPose,
        targets: Array,
        rotations: Array,
        weights: Array,
        posture: Array,
        collisions: CollisionModel,
        elapsed: float,
        jerk_weight: float,
    ) -> Array:
        """Solve one quadratic program; return the change of the free control points `[f j]`."""
        config, joints = self.config, len(posture)
        control = grid.control(origin, free)
        errors = np.concatenate(
            [
                _capped(targets - pose.tool[:, :3, 3], config.max_error[0]),
                _capped(rotation_logs(rotations @ pose.tool[:, :3, :3].transpose(0, 2, 1)), config.max_error[1]),
            ],
            axis=1,
        )
        jacobians = pose.jacobian * self._weights[:, None]
        scaled = jacobians * (weights / 0.05)[:, None, None]
        grams = np.matmul(scaled.transpose(0, 2, 1), jacobians)
        pulls = np.matmul(scaled.transpose(0, 2, 1), (errors * self._weights)[..., None])[..., 0]
        spare, drift = self._secondary(grid.at_samples @ control, pose, jacobians, posture)
        stubborn = config.residual_damping * np.sqrt(np.square(errors[:, :3]).sum(1))
        share = (weights / 0.05)[:, None]
        still = config.proximity_weight + share[:, 0] * stubborn
        grams += (share * config.posture_weight**2)[..., None] * spare + still[:, None, None] * np.eye(joints)
        pulls += share * drift
        products = (grid.samples[:, :, None] * grid.samples[:, None, :]).reshape(len(weights), -1)
        hessian = (products.T @ grams.reshape(len(weights), -1)).reshape(grid.free, grid.free, joints, joints)
        jerk = grid.jerk @ grid.spread
        smooth = grid.spread.T @ jerk * jerk_weight
        for joint in range(joints):
            hessian[:, :, joint, joint] += smooth
        near = self._near(grid, control, pose, collisions, elapsed)
        size = grid.free * joints
        square = np.ascontiguousarray(hessian.transpose(0, 2, 1, 3).reshape(size, size))
        gradient = (jerk_weight * jerk.T @ control - grid.samples.T @ pulls).ravel()
        step = self._solve(square, gradient, self._limits(grid, control), near)
        return step.reshape(-1, joints)

    def _secondary(self, q: Array, pose: ArmPose, jacobians: Array, posture: Array) -> tuple[Array, Array]:
        """Return projectors `[m j j]` on motions that leave the tool alone, and the pull along them `[m j]`."""
        config, joints = self.config, q.shape[1]
        square = np.matmul(jacobians, jacobians.transpose(0, 2, 1)) + 1e-8 * np.eye(6)
        spare = np.eye(joints) - np.matmul(jacobians.transpose(0, 2, 1), np.linalg.solve(square, jacobians))
        drift = config.posture_weight**2 * (posture - q)
        measures, slopes = self.kinematics.manipulability_gradients(pose.jacobian)
        lack = np.maximum(1.0 - measures / config.low_manipulability, 0.0)
        drift += config.manipulability_weight * lack[:, None] * slopes
        return spare, np.matmul(spare, drift[..., None])[..., 0]

    def _limits(self, grid: _Grid, control: Array) -> list[_Limit]:
        """Return position, velocity and acceleration on the grid of times, with their bounds."""
        q, dq, ddq = (m @ control for m in (grid.at_grid, grid.speed_at_grid, grid.acceleration_at_grid))
        return [
            _Limit(grid.grid[0], q, self.lower, self.upper),
            _Limit(grid.grid[1], dq, -self.velocity, self.velocity),
            _Limit(grid.grid[2], ddq, -self.acceleration, self.acceleration),
        ]

    def _near(
        self, grid: _Grid, control: Array, pose: ArmPose, collisions: CollisionModel, elapsed: float
    ) -> tuple[Array, Array]:
        """Return rows `[r f*j]` on the near distances, and their least values `[r]` [m].

        Each pair gives two: its distance, and its distance less the way in which the arm could stop closing it, as
        the tick will demand.
        """
        joints = len(self.lower)
        if collisions.num_pairs == 0:
            return np.empty((0, grid.free * joints)), np.empty(0)
        near = collisions.clearances(pose, self.config.influence, elapsed + grid.times)
        speeds = grid.speed_at_samples @ control
        stops = 0.5 * np.maximum((np.abs(speeds) / self.acceleration).max(1), 2.0 / collisions.config.approach_rate)
        at, stop = near.poses, stops[near.poses]
        way = near.distances - collisions.config.clearance
        ahead = grid.samples + stops[:, None] * grid.speed_samples
        rows = np.concatenate(
            [
                grid.samples[at][:, :, None] * near.gradients[:, None, :],
                ahead[at][:, :, None] * near.gradients[:, None, :],
            ]
        )
        closing = (near.gradients * speeds[at]).sum(1) + near.drifts
        least = np.concatenate([self.config.clearance_margin - way, -way - stop * closing])
        return rows.reshape(len(rows), grid.free * joints), least

    def _solve(self, hessian: Array, gradient: Array, limits: list[_Limit], near: tuple[Array, Array]) -> Array:
        """Solve the program, taking in rows until none that was left out is violated.

        Raises:
            ControlError: no solution, or one that is not finite.
        """
        size, config = len(gradient), self.config
        chosen = [limit.pressing(limit.values, PRESSING) for limit in limits]
        chosen_near = near[1] > -NEARLY
        for _ in range(MAX_ROUNDS):
            parts = [limit.rows(mask) for limit, mask in zip(limits, chosen, strict=True)]
            matrix = np.concatenate([p[0] for p in parts] + [near[0][chosen_near]])
            trust = np.full(size, config.trust)
            least = np.concatenate([-trust, *(p[1] for p in parts), near[1][chosen_near]])
            greatest = np.concatenate([trust, *(p[2] for p in parts), np.full(int(chosen_near.sum()), UNBOUNDED)])
            senses = np.concatenate([np.zeros(size), np.full(len(matrix), SOFT)]).astype(np.int32)
            step, _, flag, _ = daqp.solve(hessian, gradient, np.ascontiguousarray(matrix), greatest, least, senses)
            if flag not in (1, 2) or not np.all(np.isfinite(step)):
                raise ControlError(f"The chunk optimisation found no solution (daqp exit flag {flag}).")
            change = step.reshape(limits[0].matrix.shape[1], -1)
            more = [
                limit.pressing(limit.values + limit.matrix @ change, 1.0 + 1e-9) & ~mask
                for limit, mask in zip(limits, chosen, strict=True)
            ]
            more_near = (near[0] @ step < near[1] - 1e-7) & ~chosen_near
            if not (np.any(more_near) or any(np.any(m) for m in more)):
                break
            chosen = [mask | m for mask, m in zip(chosen, more, strict=True)]
            chosen_near = chosen_near | more_near
        solution: Array = step
        return solution


def _roughness(positions: Array) -> float:
    """Return how far waypoints `[m 3]` [m] scatter about a smooth curve, by their third differences."""
    if len(positions) < 5:
        return 0.0
    third = np.diff(positions, 3, axis=0)
    return math.sqrt(float(np.square(third).sum(1).mean()) / 20.0)


def _capped(errors: Array, limit: float) -> Array:
    """Shorten the errors `[m 3]` that are longer than `limit`."""
    length = np.sqrt(np.square(errors).sum(1, keepdims=True))
    return errors * np.minimum(1.0, limit / np.maximum(length, 1e-12))
