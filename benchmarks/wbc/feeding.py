"""Show a case to the controller as a policy would: chunk after chunk, on time or not, with noise or without."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from ...contracts import ActionTrajectory, Array, JointCommand
from ...errors import ConfigError
from ...wbc.controller import ControllerConfig, WholeBodyController
from ...wbc.robot.robots import RobotModel
from ...wbc.robot.transforms import quaternion_from_matrix, rotation_exp
from ...wbc.validation import GuardConfig
from .trajectories import TICK, TrackingCase


@dataclass(frozen=True, slots=True, kw_only=True)
class FeedingConfig:
    """How poses become chunks.

    chunk_hz: poses a second in a chunk; the first is due one period after the chunk's start.
    horizon: duration of a chunk [s].
    replan_hz: chunks a second.
    delay: least and greatest time from a chunk's start to its arrival [s], sampled for each chunk; negative is early.
    drop: share of the chunks that never arrive; the first always does, on time.
    jitter: greatest deviation of the time of a tick [s].
    seed: seed of what is sampled.
    """

    chunk_hz: float = 20.0
    horizon: float = 1.0
    replan_hz: float = 5.0
    delay: tuple[float, float] = (0.0, 0.0)
    drop: float = 0.0
    jitter: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        finite = np.all(np.isfinite([self.chunk_hz, self.horizon, self.replan_hz, *self.delay, self.drop, self.jitter]))
        if not (finite and 0.1 <= self.chunk_hz <= 200.0 and 0.1 <= self.replan_hz <= 200.0):
            raise ConfigError(
                f"expected chunk_hz and replan_hz in 0.1..200, got {self.chunk_hz} and {self.replan_hz}; "
                "a policy sends 5 to 30 poses a second."
            )
        if not (1.0 / self.chunk_hz <= self.horizon <= 60.0 and self.delay[0] <= self.delay[1]):
            raise ConfigError(
                f"expected a horizon of one period to 60 s and delays in order, got {self.horizon} s and {self.delay}."
            )
        if not (0.0 <= self.drop < 1.0 and 0.0 <= self.jitter < 0.5 * TICK):
            raise ConfigError(
                f"expected drop in [0, 1) and jitter in [0, {0.5 * TICK}) s, got {self.drop} and {self.jitter}."
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class NoiseConfig:
    """Errors of a policy: a bias for each chunk and noise for each pose.

    bias: greatest bias, linear [m] and angular [rad]; its size is uniform from zero on, its direction random.
    noise: standard deviation for each axis, linear [m] and angular [rad].
    """

    bias: tuple[float, float] = (0.01, np.deg2rad(3.0))
    noise: tuple[float, float] = (0.002, np.deg2rad(1.0))


NOISY_FEEDING = FeedingConfig(chunk_hz=10.0, horizon=1.0, replan_hz=2.0)
"""How noisy cases are shown: ten poses, ten a second, a new chunk each half second."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SentChunk:
    """A chunk and the time at which it arrives [s]."""

    arrival: float
    trajectory: ActionTrajectory


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Run:
    """What a method did in a case.

    q: `[n j]` joint positions [rad], the first row is the start.
    statuses: `[n-1]` names, empty where the method has none.
    tick_ms: `[n-1]` time of each tick [ms]; plan_ms: time of each chunk's planning [ms].
    counts: how often the method counted what.
    """

    q: Array
    statuses: tuple[str, ...]
    tick_ms: Array
    plan_ms: Array = field(default_factory=lambda: np.empty(0))
    counts: Counter[str] = field(default_factory=Counter)


class Controller(Protocol):
    """What is needed of a controller; `WholeBodyController` is one."""

    @property
    def counters(self) -> Counter[str]:
        """How often each event happened."""
        ...

    def reset(self, joint_positions: Array, gripper: float, time: float) -> None:
        """Start from these joints [rad]."""

    def accept(self, trajectory: ActionTrajectory) -> str:
        """Take over a chunk."""

    def step(self, time: float) -> JointCommand:
        """Return the command for the end of the tick that begins at `time` [s]."""


MakeController = Callable[[RobotModel, ControllerConfig], Controller]


def chunks_of(case: TrackingCase, feeding: FeedingConfig, noise: NoiseConfig = NoiseConfig()) -> list[SentChunk]:
    """Cut a case into chunks, in the order of their arrival; after its last pose a case stands still.

    Noise is added where the case has a `noise_seed`.
    """
    rng = np.random.default_rng([feeding.seed, 1])
    errors = None if case.noise_seed is None else np.random.default_rng([case.noise_seed, 2])
    period = 1.0 / feeding.chunk_hz
    count = max(1, round(feeding.horizon * feeding.chunk_hz))
    sent = []
    for number in range(int(np.ceil(case.num_ticks * TICK * feeding.replan_hz - 1e-9))):
        start = round(number / feeding.replan_hz / TICK) * TICK
        due = start + period * np.arange(1, count + 1)
        poses = case.poses[np.minimum(np.round(due / TICK).astype(int), case.num_ticks)]
        if errors is not None:
            poses = with_noise(poses, noise, errors)
        arrival = start + float(rng.uniform(*feeding.delay))
        dropped = bool(rng.random() < feeding.drop)
        trajectory = ActionTrajectory(
            positions=poses[:, :3, 3],
            quaternions=np.stack([quaternion_from_matrix(pose[:3, :3]) for pose in poses]),
            gripper=np.ones(count),
            dt=period,
            start_time=start,
        )
        if number == 0:
            arrival, dropped = 0.0, False
        if not dropped:
            sent.append(SentChunk(arrival=max(arrival, 0.0), trajectory=trajectory))
    return sorted(sent, key=lambda chunk: chunk.arrival)


def with_noise(poses: Array, noise: NoiseConfig, rng: np.random.Generator) -> Array:
    """Return the poses `[k 4 4]` of one chunk with a common bias and noise for each pose."""
    twists = rng.normal(size=(len(poses), 2, 3)) * np.asarray(noise.noise)[:, None]
    for part, greatest in enumerate(noise.bias):
        direction = rng.normal(size=3)
        twists[:, part] += greatest * rng.random() * direction / np.linalg.norm(direction)
    noisy = poses.copy()
    noisy[:, :3, 3] += twists[:, 0]
    noisy[:, :3, :3] = np.stack([rotation_exp(t) for t in twists[:, 1]]) @ poses[:, :3, :3]
    return noisy


def feeding_of(case: TrackingCase, feeding: FeedingConfig) -> FeedingConfig:
    """Return how a case is shown: as asked, a noisy one as `NOISY_FEEDING`."""
    return feeding if case.noise_seed is None else NOISY_FEEDING


def drive(
    robot: RobotModel,
    case: TrackingCase,
    feeding: FeedingConfig = FeedingConfig(),
    config: ControllerConfig | None = None,
    make: MakeController = WholeBodyController,
) -> Run:
    """Let the controller follow a case, tick by tick, with a plant that does what it is commanded.

    Args:
        robot: the arm.
        case: what to follow.
        feeding: how it is shown.
        config: settings of the controller; the case's scene with the defaults where it is None.
        make: makes the controller.
    """
    # The hard cases jump on purpose, by more than the guard of a controller in use lets through.
    usual = ControllerConfig(collision=case.scene, guard=GuardConfig(max_jump=math.inf))
    controller = make(robot, usual if config is None else config)
    controller.reset(case.q0, 1.0, 0.0)
    waiting = chunks_of(case, feeding)
    rng = np.random.default_rng([feeding.seed, 3])
    q, statuses, tick_ms, plan_ms, verdicts = [case.q0], [], [], [], Counter[str]()
    for tick in range(case.num_ticks):
        now = tick * TICK
        while waiting and waiting[0].arrival <= now + 1e-9:
            trajectory = waiting.pop(0).trajectory
            begin = time.perf_counter()
            verdicts[controller.accept(trajectory)] += 1
            plan_ms.append((time.perf_counter() - begin) * 1e3)
        clock = max(0.0, now + float(rng.uniform(-feeding.jitter, feeding.jitter)))
        begin = time.perf_counter()
        command = controller.step(clock)
        tick_ms.append((time.perf_counter() - begin) * 1e3)
        q.append(command.positions)
        statuses.append(command.status)
    return Run(
        q=np.stack(q),
        statuses=tuple(statuses),
        tick_ms=np.array(tick_ms),
        plan_ms=np.array(plan_ms),
        counts=Counter(controller.counters) | verdicts,
    )
