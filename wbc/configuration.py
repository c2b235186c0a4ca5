"""Everything that can be set on the whole-body controller."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from ..errors import ConfigError
from .collision import CollisionConfig
from .optimization import OptimizationConfig
from .smoothing import SmoothingConfig
from .supervision import SupervisionConfig
from .tracking import TrackingConfig
from .validation import GuardConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class ControllerConfig:
    """The controller's settings, one group for each of its parts.

    backend: what computes kinematics and distances, `numpy` or `pinocchio` (`pip install gr2[fast]`), with one result.
    tick_hz: ticks a second; every call of `step` counts as one.
    optimization: the joint-space optimization of chunks; None follows the smoothed chunk instead.
    smooth_first: let the optimization follow the smoothed chunk, with its caps on the tool's speed and acceleration,
        rather than the waypoints themselves.
    guard: which tool poses are refused as mistakes; the tool's speed is capped by `smoothing.linear_speed` and
        `smoothing.angular_speed`.
    lead: how far ahead of the present tick a new chunk takes over [s]. 0 plans while `accept` holds the
        controller still, which suits simulated time. About 0.02 lets another thread keep ticking during planning.
    stream_period: chunks of one pose that follow one another by no more than this [s] are a stream (teleoperation): the
        ticks go straight for the next pose, instead of planning to rest on each; 0 for never.
    window: how much of a long chunk is planned at once [s]; the rest follows by itself.
    gripper_rate: fastest change of the opening [1/s], None for the robot's own.
    gripper_hysteresis: changes of the gripper command below this are ignored; gripper_dwell: least time between two
        reversals of its direction [s].
    hold_speed: joint speed [rad/s] below which the arm counts as standing; hold_timeout: time after which a finished
        chunk is given up [s].
    unreachable_distance: remaining tool error [m] of a standing arm that is reported; unreachable_angle: remaining
        error of a joint [rad], where the chunk is of joint positions; above what plans keep from position limits.
    track_distance: tool error [m] at the last pose that was due beyond which a moving arm is `deviating`, not tracking;
        track_angle: the same for its rotation or, for chunks of joint positions, for a joint [rad].
    start_tolerance: how far a measured joint may lie beyond its limit at a reset [rad]; the arm then moves back within
        before it follows anything. Farther out, the limits or the zero of the joint are more likely wrong.
    max_events: events kept, the latest ones.
    """

    backend: str = "numpy"
    tick_hz: float = 200.0
    smoothing: SmoothingConfig = field(default_factory=SmoothingConfig)
    optimization: OptimizationConfig | None = field(default_factory=OptimizationConfig)
    smooth_first: bool = False
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    collision: CollisionConfig = field(default_factory=CollisionConfig)
    supervision: SupervisionConfig = field(default_factory=SupervisionConfig)
    guard: GuardConfig = field(default_factory=GuardConfig)
    lead: float = 0.0
    stream_period: float = 0.05
    window: float = 1.5
    gripper_rate: float | None = None
    gripper_hysteresis: float = 0.05
    gripper_dwell: float = 0.2
    hold_speed: float = 0.01
    hold_timeout: float = 1.0
    unreachable_distance: float = 0.005
    unreachable_angle: float = 0.03
    track_distance: float = 0.02
    track_angle: float = 0.2
    start_tolerance: float = math.radians(10.0)
    max_events: int = 1000

    def __post_init__(self) -> None:
        if not 10.0 <= self.tick_hz <= 10000.0:
            raise ConfigError(f"tick_hz: expected 10 to 10000, got {self.tick_hz}; 200 is usual.")
        for name in ("velocity_scale", "acceleration_scale"):
            value = getattr(self.tracking, name)
            if not 0.0 < value <= 1.0:
                raise ConfigError(
                    f"tracking.{name}: expected a number in (0, 1], got {value}; 1 uses the robot's limits."
                )
        if not (0.0 <= self.lead <= 1.0 and 0.2 <= self.window <= 60.0):
            raise ConfigError(f"expected lead in 0..1 s and window in 0.2..60 s, got {self.lead} and {self.window}.")
