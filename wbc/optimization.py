"""Optimize a chunk in joint space: a quintic B-spline that follows the tool poses within every limit.

The joints move along `q(t) = B(t) c`. The first three control points are given by the commanded position, velocity
and acceleration, the last three are one (rest at the end); the free ones minimize, over the waypoints i,

    sum_i w_i |W e_i|^2 + jerk_weight * integral |q'''|^2 dt
        + w_q |N (q - posture)|^2 - w_m max(0, 1 - m/m_0) N grad(m) . dq,    e_i = [p_i - p(q_i); log(R_i R(q_i)')]

with `w_i` the time that a waypoint stands for, N the projector on the motions that leave the tool where it is, and m
the manipulability. Where a chunk asks for joint positions, `w_j^2 |q_i - q|^2` replaces the first term and the last
line, since no freedom is spare; all else is the same. Subject to position, velocity and acceleration bounds on a grid
of times and `d + grad(d) . dq >= clearance` for the pairs that come near. Each iteration is one quadratic program
(Gauss-Newton); rows enter it only when they are violated or about to be. Collision and limit rows are soft, so that
an answer always exists; the tick enforces them again, hard.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from ..errors import ConfigError
from .collision import CollisionModel
from .limits import shortest_turn
from .plan_rows import cap_rows, near_rows
from .robot.kinematics import ArmPose, Kinematics, away_from_singularity, manipulabilities
from .robot.robots import RobotModel
from .robot.transforms import Array, rotation_logs
from .row_generation import Limits, solve_by_row_generation
from .spline_grid import SplineGrid
from .splines import JointSpline
from .waypoints import (
    AnyWaypoints,
    BlendConfig,
    JointWaypoints,
    Waypoints,
    blended,
    blended_joints,
    drawn_to_joints,
    drawn_to_tool,
    eased,
    eased_joints,
    roughness,
    with_end,
)

POSITION_FIRST = 0.003
"""Most weight of a radian of rotation against a meter for arms with fewer than six joints."""
SHARE = 0.05
"""Time [s] that a sample of weight one stands for; it fixes the unit of every weight against the tool's error."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimizationConfig:
    """Shape, weights and bounds of the plan.

    span: duration of a polynomial piece, about [s]; max_spans: most pieces.
    max_samples: most waypoints; more of them are averaged in groups.
    settle: time after the last waypoint in which the arm comes to rest on it [s].
    jerk_weight: weight of the joint jerk squared against a meter squared; grows with the square of the waypoints'
        noise above noise_floor [m], up to max_smoothing times.
    blend: how a chunk is pulled towards the plan before it.
    response: natural frequency [rad/s] of the critically damped motion in which the arm closes in on its waypoints,
        `2 / response` [s] late; 0 passes them on time.
    rotation_weight: weight of a radian of the tool's rotation against a meter; joint_weight: of a joint.
    posture_weight: weight of the spare freedom's distance from the posture; posture_step: most that one plan moves
        it [rad].
    manipulability_weight: pull up the manipulability, below low_manipulability.
    proximity_weight: weight of the change in one iteration, which keeps the spare freedom still.
    residual_damping: more of it for each meter of tool error, which keeps an arm still that stretches after a pose
        out of reach.
    iterations: most quadratic programs; tolerance: change that ends them earlier [rad].
    trust: largest change of a control point in one iteration [rad].
    max_error: largest error that one iteration tries to remove, linear [m] and angular [rad].
    velocity_share, acceleration_share: shares of the limits the plan uses.
    position_margin: distance kept from the position limits [rad].
    clearance_margin: distance kept beyond the clearance of the tick [m]; escape_speed: at which pairs open that begin
        nearer than that [m/s].
    influence: distance below which pairs are constrained [m].
    """

    span: float = 0.15
    max_spans: int = 16
    max_samples: int = 24
    settle: float = 0.5
    jerk_weight: float = 5e-8
    max_smoothing: float = 8.0
    noise_floor: float = 1e-3
    blend: BlendConfig = field(default_factory=BlendConfig)
    response: float = 0.0
    rotation_weight: float = 0.3
    joint_weight: float = 0.5
    posture_weight: float = 1e-3
    posture_step: float = 0.1
    manipulability_weight: float = 2e-3
    low_manipulability: float = 0.04
    proximity_weight: float = 1e-4
    residual_damping: float = 0.2
    iterations: int = 4
    tolerance: float = 1e-3
    trust: float = 0.4
    max_error: tuple[float, float] = (0.15, 0.5)
    velocity_share: float = 0.98
    acceleration_share: float = 0.95
    position_margin: float = 0.02
    clearance_margin: float = 0.002
    escape_speed: float = 0.05
    influence: float = 0.08

    def __post_init__(self) -> None:
        if not (0.01 <= self.span <= 10.0 and 2 <= self.max_spans <= 64 and 2 <= self.max_samples <= 256):
            raise ConfigError("optimization: expected span in 0.01..10 s, max_spans in 2..64, max_samples in 2..256.")
        for name in ("velocity_share", "acceleration_share"):
            if not 0.0 < getattr(self, name) <= 1.0:
                raise ConfigError(f"optimization.{name}: expected a number in (0, 1], got {getattr(self, name)}.")
        if not 0.0 <= self.response <= 1000.0:
            raise ConfigError(
                f"optimization.response: expected 0..1000 rad/s, got {self.response}; 0 passes waypoints on time."
            )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Plan:
    """An optimized chunk: the motion, how many programs it took, and the largest error at a waypoint: of the tool [m],
    or of a joint [rad] where the waypoints are joint positions.
    """

    trajectory: JointSpline
    iterations: int
    max_error: float


class _Goal(NamedTuple):
    """What one chunk asks for: targets at the samples `[m ...]`, their weights, and what holds for all iterations.

    wanted: what to pass, the last waypoint once more at the end; shares: `[m]` time that each sample stands for, in
    units of `SHARE`; posture: `[j]` [rad]; jerk_weight: scaled by the noise; collisions, elapsed: the pairs and
    the age of the obstacles [s]; now: `[num_pairs]` their distances [m] where one is too small already, else None.
    """

    wanted: AnyWaypoints
    shares: Array
    posture: Array
    jerk_weight: float
    collisions: CollisionModel
    elapsed: float
    now: Array | None


class ChunkOptimizer:
    """Plans chunks for one robot among its obstacles."""

    def __init__(
        self,
        robot: RobotModel,
        config: OptimizationConfig,
        scales: tuple[float, float] = (1.0, 1.0),
        caps: tuple[float, float] = (math.inf, math.inf),
    ) -> None:
        """Prepare the limits.

        `scales` are the shares of velocity and acceleration that the controller uses; `caps` the greatest speed of the
        tool, linear [m/s] and angular [rad/s].
        """
        self.config, self.kinematics = config, Kinematics(robot)
        margin = np.minimum(config.position_margin, 0.25 * (robot.upper - robot.lower))
        self.lower, self.upper = robot.lower + margin, robot.upper - margin
        self.velocity = config.velocity_share * scales[0] * robot.velocity
        self.acceleration = config.acceleration_share * scales[1] * robot.acceleration
        self._caps = config.velocity_share * caps[0], config.velocity_share * caps[1]
        upper = np.stack([self.upper, self.velocity, self.acceleration])[:, None]
        lower = np.stack([self.lower, -self.velocity, -self.acceleration])[:, None]
        self._bounds, self._diagonal = (lower, upper), np.arange(robot.num_joints)
        self._endless = np.isinf(robot.upper)
        # An arm with fewer than six joints cannot have both: the position first, the rotation as far as it goes.
        rotation = config.rotation_weight if robot.num_joints >= 6 else min(config.rotation_weight, POSITION_FIRST)
        self._weights = np.array([1.0] * 3 + [rotation] * 3)

    def plan(
        self,
        start: tuple[Array, Array, Array],
        time: float,
        waypoints: AnyWaypoints,
        posture: Array,
        collisions: CollisionModel,
        *,
        elapsed: float = 0.0,
        guess: JointSpline | None = None,
    ) -> Plan:
        """Plan from `start`, the commanded positions, velocities and accelerations `[j]`, at `time` [s].

        Args:
            start: [rad], [rad/s], [rad/s^2].
            time: time of `start` [s]; every waypoint comes later.
            waypoints: what the tool or the joints are to pass.
            posture: `[j]` where spare freedom drifts to [rad].
            collisions: pairs to keep apart.
            elapsed: age of the obstacles' positions at `time` [s].
            guess: earlier plan to begin from.

        Raises:
            ControlError: the quadratic program has no solution or one that is not finite.
        """
        config = self.config
        waypoints, noise = self._calmed(start, time, waypoints, guess)
        jerk_weight = config.jerk_weight * min(max((noise / config.noise_floor) ** 2, 1.0), config.max_smoothing)
        horizon = float(waypoints.times[-1]) - time + config.settle
        spans = min(max(math.ceil(horizon / config.span - 1e-6), 4), config.max_spans)
        span = horizon / spans
        grid = SplineGrid(spans, span, np.append(waypoints.times - time, horizon))
        toward, pose = shortest_turn(posture - start[0], self._endless), self.kinematics.forward(start[0])
        goal = _Goal(
            wanted=self._eased(pose, start, time, with_end(waypoints, time + horizon)),
            shares=np.append(waypoints.weights, config.settle) / SHARE,
            posture=start[0] + np.clip(toward, -config.posture_step, config.posture_step),
            jerk_weight=jerk_weight,
            collisions=collisions,
            elapsed=elapsed,
            now=self._too_near(pose, collisions, elapsed),
        )
        origin = np.stack([start[0], start[1] * span, start[2] * span**2])
        free, posed = self._first_guess(grid, origin, time, guess, goal)
        solved = 0
        for _ in range(config.iterations):
            step = self._iterate(grid, grid.control(origin, free), posed, goal)
            solved += 1
            free = free + step
            posed = self.kinematics.forward_many(grid.at_samples @ grid.control(origin, free))
            if float(np.abs(step).max()) < config.tolerance:
                break
        control = grid.control(origin, free)
        if isinstance(goal.wanted, JointWaypoints):
            worst = float(np.abs(grid.at_samples @ control - goal.wanted.joints)[:-1].max())
        else:
            worst = float(np.sqrt(np.square(posed.tool[:, :3, 3] - goal.wanted.positions)[:-1].sum(1).max()))
        coefficients = grid.basis.powers @ control
        trajectory = JointSpline(start_time=time, span=span, coefficients=coefficients)
        return Plan(trajectory=trajectory, iterations=solved, max_error=worst)

    def _calmed(
        self,
        start: tuple[Array, Array, Array],
        time: float,
        waypoints: AnyWaypoints,
        earlier: JointSpline | None,
    ) -> tuple[AnyWaypoints, float]:
        """Pull waypoints towards what is known already; return them and how noisy they are [m]."""
        if isinstance(waypoints, JointWaypoints):
            return self._calmed_joints(start, time, waypoints, earlier)
        config, noise = self.config, roughness(waypoints.positions)
        if config.blend.weight == 0.0:
            return waypoints, noise
        if earlier is None:
            if noise > config.noise_floor:
                pose = self.kinematics.forward(start[0])
                waypoints = drawn_to_tool(waypoints, time, pose.tool, pose.jacobian @ start[1], config.blend)
            return waypoints, noise
        shared = self._shared(waypoints.times, earlier)
        if shared == 0:
            return waypoints, noise
        before = self.kinematics.forward_many(earlier.many(waypoints.times[:shared])).tool
        waypoints, apart = blended(waypoints, before, config.blend)
        return waypoints, max(noise, math.sqrt(float(np.square(apart * self._weights).sum(1).mean())))

    def _calmed_joints(
        self, start: tuple[Array, Array, Array], time: float, waypoints: JointWaypoints, earlier: JointSpline | None
    ) -> tuple[JointWaypoints, float]:
        """Do to joint waypoints what `_calmed` does to tool poses; a radian is noise of `joint_weight` [m]."""
        config, noise = self.config, self.config.joint_weight * roughness(waypoints.joints)
        if config.blend.weight == 0.0:
            return waypoints, noise
        if earlier is None:
            if noise > config.noise_floor:
                waypoints = drawn_to_joints(waypoints, time, start[0], start[1], config.blend)
            return waypoints, noise
        shared = self._shared(waypoints.times, earlier)
        if shared == 0:
            return waypoints, noise
        waypoints, apart = blended_joints(waypoints, earlier.many(waypoints.times[:shared]), config.blend)
        return waypoints, max(noise, config.joint_weight * math.sqrt(float(np.square(apart).sum(1).mean())))

    def _eased(
        self, pose: ArmPose, start: tuple[Array, Array, Array], time: float, waypoints: AnyWaypoints
    ) -> AnyWaypoints:
        """Return waypoints as a damped arm at `pose` passes them that moves as `start` says at `time` [s]."""
        if self.config.response == 0.0:
            return waypoints
        if isinstance(waypoints, JointWaypoints):
            return eased_joints(waypoints, time, start[0], start[1], self.config.response)
        return eased(waypoints, time, pose.tool, pose.jacobian @ start[1], self.config.response)

    def _shared(self, times: Array, earlier: JointSpline) -> int:
        """Return how many of the first waypoints an earlier plan covers, its coming to rest left out."""
        return int(np.searchsorted(times, earlier.end_time - self.config.settle - self.config.blend.tail))

    def _too_near(self, pose: ArmPose, collisions: CollisionModel, elapsed: float) -> Array | None:
        """Return all distances `[num_pairs]` [m] where one of them is below what plans keep, else None."""
        if collisions.num_pairs == 0:
            return None
        found = collisions.clearances(pose, np.inf, elapsed)
        enough = collisions.config.clearance + self.config.clearance_margin
        return None if found.nearest > enough else found.distances

    def _first_guess(
        self, grid: SplineGrid, origin: Array, time: float, guess: JointSpline | None, goal: _Goal
    ) -> tuple[Array, ArmPose]:
        """Return free control points `[f j]` to begin from, and the poses at the samples.

        A chunk of tool poses begins from an earlier plan or, without one, from a rest at the start. A chunk of joint
        positions begins from those, as fast as the joints can follow, unless that leads through an obstacle: the
        programs would then push the arm out of it on any side.
        """
        times = time + grid.halves * grid.span
        if isinstance(goal.wanted, JointWaypoints):
            way = self._reachable(goal.wanted, origin[0], times, time)
            if guess is not None:
                # The earlier plan knows a way round obstacles; the iterations can come back this far from it.
                back = 0.5 * self.config.trust * self.config.iterations
                way += np.clip(guess.many(times) - way, -back, back)
            free = grid.through(way, origin)
            posed = self.kinematics.forward_many(grid.at_samples @ grid.control(origin, free))
            if goal.collisions.num_pairs == 0 or self._clear(posed, grid, goal):
                return free, posed
        if guess is None:
            free = np.tile(away_from_singularity(self.kinematics, origin[0], self.lower, self.upper), (grid.free, 1))
        else:
            free = grid.through(guess.many(times), origin)
        return free, self.kinematics.forward_many(grid.at_samples @ grid.control(origin, free))

    def _clear(self, posed: ArmPose, grid: SplineGrid, goal: _Goal) -> bool:
        """Return whether no pair is nearer than the clearance at the samples."""
        kept = goal.collisions.config.clearance
        return goal.collisions.clearances(posed, kept, goal.elapsed + grid.times).nearest >= kept

    def _reachable(self, wanted: JointWaypoints, q: Array, times: Array, time: float) -> Array:
        """Return joint positions `[m j]` at `times`: the wanted ones, followed within the velocity limits from `q`."""
        knots = np.append(time, wanted.times)
        joints = np.concatenate([q[None], np.clip(wanted.joints, self.lower, self.upper)])
        way = np.stack([np.interp(times, knots, column) for column in joints.T], axis=1)
        before, then = q, time
        for index, now in enumerate(times):
            most = self.velocity * (now - then)
            way[index] = before + np.clip(way[index] - before, -most, most)
            before, then = way[index], now
        return way

    def _iterate(self, grid: SplineGrid, control: Array, pose: ArmPose, goal: _Goal) -> Array:
        """Solve one quadratic program about control points `[n j]`; return the change of the free ones `[f j]`."""
        joints = control.shape[1]
        q = grid.at_samples @ control
        if isinstance(goal.wanted, JointWaypoints):
            grams, pulls = self._joint_task(q, goal.wanted, goal.shares)
        else:
            grams, pulls = self._tool_task(q, pose, goal.wanted, goal)
        # Gauss-Newton: the tool's error is linearized at the present joints of each sample, which gives
        # `dq' G dq / 2 - p' dq` there. The spline is linear in its control points: `dq_i = sum_k B_ik dc_k`. So the
        # block of control points k and l is `sum_i B_ik B_il G_i`. As one matrix product: `[f*f m] [m j*j]`.
        hessian = (grid.products @ grams.reshape(len(q), -1)).reshape(grid.free, grid.free, joints, joints)
        # The jerk couples control points, but never two joints: it stands on the diagonal of the blocks alone. The
        # last control points are one (rest at the end), which `spread` expands.
        hessian[:, :, self._diagonal, self._diagonal] += (grid.free_jerk * goal.jerk_weight)[:, :, None]
        # Distances are linearized at the same poses. Their rows and those of the limits are soft: a chunk through an
        # obstacle still has a solution, whose violation the next iteration and the tick remove.
        near = self._near(grid, control, pose, goal)
        fast = cap_rows(grid, control, pose.jacobian, self._caps)
        if fast is not None:
            near = np.concatenate([near[0], fast[0]]), np.concatenate([near[1], fast[1]])
        size = grid.free * joints
        # Unknowns are ordered by control point first, then by joint, as the rows of `Limit.rows` are.
        square = np.ascontiguousarray(hessian.transpose(0, 2, 1, 3).reshape(size, size))
        gradient = (goal.jerk_weight * grid.jerk.T @ control - grid.samples.T @ pulls).ravel()
        limits = self._limits(grid, control)
        # `trust` bounds the step, since the linearization holds near the present joints only.
        step = solve_by_row_generation(square, gradient, self.config.trust, limits, near)
        return step.reshape(-1, joints)

    def _tool_task(self, q: Array, pose: ArmPose, wanted: Waypoints, goal: _Goal) -> tuple[Array, Array]:
        """Return what tool poses ask of the joints at each sample: quadratic `[m j j]` and linear `[m j]` part."""
        config, joints = self.config, q.shape[1]
        turns = rotation_logs(wanted.rotations @ pose.tool[:, :3, :3].transpose(0, 2, 1))
        # Far targets are approached in steps, within which the Jacobian still holds.
        errors = np.concatenate(
            [
                _capped(wanted.positions - pose.tool[:, :3, 3], config.max_error[0]),
                _capped(turns, config.max_error[1]),
            ],
            axis=1,
        )
        jacobians = pose.jacobian * self._weights[:, None]
        scaled = jacobians * goal.shares[:, None, None]
        grams = np.matmul(scaled.transpose(0, 2, 1), jacobians)
        pulls = np.matmul(scaled.transpose(0, 2, 1), (errors * self._weights)[..., None])[..., 0]
        spare, drift = self._secondary(q, pose, jacobians, goal.posture)
        # An error that stays, because the pose is out of reach, must not swing the arm: it is damped by its size.
        stubborn = config.residual_damping * np.sqrt(np.square(errors[:, :3]).sum(1))
        still = config.proximity_weight + goal.shares * stubborn
        grams += (goal.shares * config.posture_weight**2)[:, None, None] * spare
        grams += still[:, None, None] * np.eye(joints)
        pulls += goal.shares[:, None] * drift
        return grams, pulls

    def _joint_task(self, q: Array, wanted: JointWaypoints, shares: Array) -> tuple[Array, Array]:
        """Return what joint positions ask of the joints at each sample: quadratic `[m j j]` and linear `[m j]` part.

        The task is linear, so that errors need no cap.
        """
        weights = self.config.joint_weight**2 * shares
        errors = np.clip(wanted.joints, self.lower, self.upper) - q
        grams = (weights + self.config.proximity_weight)[:, None, None] * np.eye(q.shape[1])
        return grams, weights[:, None] * errors

    def _secondary(self, q: Array, pose: ArmPose, jacobians: Array, posture: Array) -> tuple[Array, Array]:
        """Return projectors `[m j j]` on motions that leave the tool alone, and the pull along them `[m j]`."""
        config, joints = self.config, q.shape[1]
        square = np.matmul(jacobians, jacobians.transpose(0, 2, 1)) + 1e-8 * np.eye(6)
        spare = np.eye(joints) - np.matmul(jacobians.transpose(0, 2, 1), np.linalg.solve(square, jacobians))
        drift = config.posture_weight**2 * (posture - q)
        lack = np.maximum(1.0 - manipulabilities(pose.jacobian) / config.low_manipulability, 0.0)
        low = np.flatnonzero(lack)
        if len(low):
            _, slopes = self.kinematics.manipulability_gradients(pose.jacobian[low])
            drift[low] += config.manipulability_weight * lack[low, None] * slopes
        return spare, np.matmul(spare, drift[..., None])[..., 0]

    def _limits(self, grid: SplineGrid, control: Array) -> Limits:
        """Return position, velocity and acceleration on the grid of times, with their bounds."""
        return Limits(grid.grid, grid.at_grid @ control, *self._bounds)

    def _near(self, grid: SplineGrid, control: Array, pose: ArmPose, goal: _Goal) -> tuple[Array, Array]:
        """Return the rows of `near_rows` for one goal."""
        config, collisions = self.config, goal.collisions
        times = goal.elapsed + grid.times
        near = collisions.clearances(pose, config.influence, times) if collisions.num_pairs else None
        if near is None or len(near.distances) == 0:
            return np.empty((0, grid.free * len(self.lower))), np.empty(0)
        speed: Array | float = config.escape_speed
        if collisions.others:
            # Two arms that both made way for each other would go to and fro: each waits where it is.
            speed = speed * (1.0 - collisions.beside_others[near.pairs])
        opening = config.clearance_margin, speed
        return near_rows(grid, control, near, collisions.config, self.acceleration, opening, goal.now)


def _capped(errors: Array, limit: float) -> Array:
    """Shorten the errors `[m 3]` that are longer than `limit`."""
    length = np.sqrt(np.square(errors).sum(1, keepdims=True))
    return errors * np.minimum(1.0, limit / np.maximum(length, 1e-12))
