"""One evaluator for all methods: errors, limits, distances, smoothness, recovery and time of a run."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np

from ...contracts import Array
from ...wbc.robot.kinematics import Kinematics
from ...wbc.robot.robots import RobotModel
from ...wbc.status import EMERGENCY_BRAKE
from .clearances import distances
from .feeding import Run
from .reachability import Demand, demand_of, rotation_errors
from .trajectories import TICK, TrackingCase

ROUNDING = 1e-6
"""Share of a limit, and joint angle [rad], that counts as rounding."""

KEPT_CLEARANCE_MM = 9.0
"""Distance that must be kept: the controller's 10 mm less what a tick may take."""

RECOVERED_MM = 5.0
"""Tool error below which the arm is back."""

RECOVERY_S = 1.0
"""Time in which the arm must be back."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """The metrics of one method in one case; None where a metric has no meaning.

    position_*: tool error [mm], rotation_* [deg], from the second pose on.
    position_violations, velocity_violations: ticks beyond a limit; acceleration_violations: ticks beyond the nominal
        limit that no `emergency_brake` announces, emergency_violations: ticks beyond the emergency limit.
    position_excess: greatest angle beyond a limit [rad]; *_ratio: greatest share of a limit.
    self_mm, plane_mm, sphere_mm: least distances [mm]; start_mm: the least of all at the start.
    jerk_rms, jerk_max: third difference of the joints at the tick [rad/s^3].
    manipulability: least `sqrt(det(J J'))`.
    path_ratio: way of the tool by way of the target.
    recovery_s: time from the last pose that could not be followed (see `reachability`) until the error stays below
        5 mm; recovered: whether that happened. None where the end of the case is not followable for a second.
    """

    case: str
    group: str
    method: str
    position_rms_mm: float
    position_max_mm: float
    position_final_mm: float
    rotation_rms_deg: float
    rotation_max_deg: float
    rotation_final_deg: float
    position_violations: int
    position_excess: float
    velocity_violations: int
    velocity_ratio: float
    acceleration_violations: int
    acceleration_ratio: float
    emergency_violations: int
    emergency_ratio: float
    self_mm: float | None
    plane_mm: float | None
    sphere_mm: float | None
    start_mm: float | None
    jerk_rms: float
    jerk_max: float
    manipulability: float
    path_ratio: float | None
    recovery_s: float | None
    recovered: bool | None
    finite: bool
    statuses: dict[str, int]
    counts: dict[str, int]
    ticks: int
    tick_ms_median: float
    tick_ms_p99: float
    tick_ms_max: float
    chunks: int
    plan_ms_median: float | None
    plan_ms_max: float | None

    @property
    def clearance_mm(self) -> float | None:
        """Return the least distance of all kinds [mm]."""
        present = [d for d in (self.self_mm, self.plane_mm, self.sphere_mm) if d is not None]
        return min(present, default=None)


def evaluate(robot: RobotModel, case: TrackingCase, run: Run, method: str, demand: Demand | None = None) -> Evaluation:
    """Measure a run against the case's poses, which are the truth also where the method saw noise.

    Joints that are not finite are replaced by the last ones that were.

    Args:
        robot: the arm.
        case: what was to be followed.
        run: what was done, one row a pose.
        method: name of the method.
        demand: what could be followed, where it is known already; decided only if the error exceeds 5 mm.
    """
    finite = bool(np.all(np.isfinite(run.q)))
    q = run.q if finite else _last_finite(run.q)
    arms = Kinematics(robot).forward_many(q)
    errors = np.linalg.norm(arms.tool[1:, :3, 3] - case.poses[1:, :3, 3], axis=1) * 1e3
    turns = rotation_errors(case.poses[1:, :3, :3], arms.tool[1:, :3, :3])
    angles = np.degrees(np.linalg.norm(turns, axis=1))
    velocity, acceleration, jerk = derivatives(q)
    announced = np.array([s == EMERGENCY_BRAKE for s in run.statuses] or [False] * len(acceleration))
    speed, nominal = np.abs(velocity) / robot.velocity, np.abs(acceleration) / robot.acceleration
    emergency = np.abs(acceleration) / robot.emergency_acceleration
    excess = np.maximum(np.maximum(robot.lower - q, q - robot.upper), 0.0)
    gaps = distances(robot, case, q)
    square = arms.jacobian @ arms.jacobian.transpose(0, 2, 1)
    way, wanted = (np.linalg.norm(np.diff(p[:, :3, 3], axis=0), axis=1).sum() for p in (arms.tool, case.poses))
    recovery, recovered = recovery_time(robot, case, errors, demand)
    beyond = 1.0 + ROUNDING
    return Evaluation(
        case=case.name,
        group=case.group,
        method=method,
        position_rms_mm=_rms(errors),
        position_max_mm=float(errors.max()),
        position_final_mm=float(errors[-1]),
        rotation_rms_deg=_rms(angles),
        rotation_max_deg=float(angles.max()),
        rotation_final_deg=float(angles[-1]),
        position_violations=int((excess[1:] > ROUNDING).any(axis=1).sum()),
        position_excess=float(excess[1:].max()),
        velocity_violations=int((speed > beyond).any(axis=1).sum()),
        velocity_ratio=float(speed.max()),
        acceleration_violations=int(((nominal > beyond).any(axis=1) & ~announced).sum()),
        acceleration_ratio=float(nominal.max()),
        emergency_violations=int((emergency > beyond).any(axis=1).sum()),
        emergency_ratio=float(emergency.max()),
        self_mm=_least_mm(gaps.own),
        plane_mm=_least_mm(gaps.plane),
        sphere_mm=_least_mm(gaps.spheres),
        start_mm=None if gaps.least().ndim == 0 else float(gaps.least()[0]) * 1e3,
        jerk_rms=_rms(jerk),
        jerk_max=float(np.abs(jerk).max()),
        manipulability=float(np.sqrt(np.maximum(np.linalg.det(square), 0.0)).min()),
        path_ratio=float(way / wanted) if wanted > 1e-3 else None,
        recovery_s=recovery,
        recovered=recovered,
        finite=finite,
        statuses=dict(Counter(s for s in run.statuses if s)),
        counts=dict(run.counts),
        ticks=len(run.tick_ms),
        tick_ms_median=float(np.median(run.tick_ms)),
        tick_ms_p99=float(np.percentile(run.tick_ms, 99)),
        tick_ms_max=float(run.tick_ms.max()),
        chunks=len(run.plan_ms),
        plan_ms_median=float(np.median(run.plan_ms)) if len(run.plan_ms) else None,
        plan_ms_max=float(run.plan_ms.max()) if len(run.plan_ms) else None,
    )


def derivatives(q: Array) -> tuple[Array, Array, Array]:
    """Return velocity `[n-1 j]`, acceleration `[n-1 j]` and jerk `[n-2 j]` of joints `[n j]` that start from rest."""
    velocity = np.diff(q, axis=0) / TICK
    acceleration = np.diff(velocity, axis=0, prepend=np.zeros((1, q.shape[1]))) / TICK
    return velocity, acceleration, np.diff(acceleration, axis=0) / TICK


def recovery_time(
    robot: RobotModel, case: TrackingCase, errors: Array, demand: Demand | None
) -> tuple[float | None, bool | None]:
    """Return the time until the arm is back [s], and whether it came back.

    Args:
        robot: the arm.
        case: what was to be followed.
        errors: `[n-1]` tool errors [mm] from the second pose on.
        demand: see `evaluate`.
    """
    far = np.flatnonzero(errors >= RECOVERED_MM)
    if len(far) == 0:
        return 0.0, True
    if demand is None:
        demand = demand_of(robot, case)
    too_much = np.flatnonzero(~demand.followable[1:])
    since, over = (int(too_much[-1]) if len(too_much) else -1), len(errors) - 1
    back = max(int(far[-1]), since)
    if back < over:
        return (back - since) * TICK, True
    return (None, None) if (over - since) * TICK < RECOVERY_S else (None, False)


def broken(evaluation: Evaluation) -> list[str]:
    """Name the limits that a run broke; the distance counts from 9 mm, or from where it began if that is nearer."""
    e, found = evaluation, []
    if not e.finite:
        found.append("joints that are not finite")
    if e.position_violations:
        found.append(f"position limit exceeded by {e.position_excess:.2g} rad in {e.position_violations} ticks")
    if e.velocity_violations:
        found.append(f"velocity {e.velocity_ratio:.3f} of its limit in {e.velocity_violations} ticks")
    if e.acceleration_violations:
        found.append(f"acceleration {e.acceleration_ratio:.3f} of its limit in {e.acceleration_violations} ticks")
    if e.emergency_violations:
        found.append(f"emergency acceleration {e.emergency_ratio:.3f} of its limit in {e.emergency_violations} ticks")
    if e.clearance_mm is not None and e.start_mm is not None:
        least = KEPT_CLEARANCE_MM if e.start_mm >= KEPT_CLEARANCE_MM else e.start_mm - 0.5
        if e.clearance_mm < least:
            found.append(f"distance {e.clearance_mm:.2f} mm, {least:.2f} mm must be kept")
    return found


def _rms(values: Array) -> float:
    return float(np.sqrt(np.mean(np.square(values))))


def _least_mm(gaps: Array | None) -> float | None:
    return None if gaps is None else float(gaps.min()) * 1e3


def _last_finite(q: Array) -> Array:
    good = np.isfinite(q).all(axis=1)
    index = np.maximum.accumulate(np.where(good, np.arange(len(q)), 0))
    rows: Array = q[index]
    return rows
