"""Picking among obstacles, with dynamics: a scripted policy with noise drives the controller, every step is judged."""

from __future__ import annotations

import math
import multiprocessing
import statistics
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np

from ...contracts import ActionTrajectory
from ...data_pipeline.files import write_json
from ...data_pipeline.video.reader import write_video
from ...errors import ConfigError, ControlError
from ...wbc.collision import Box, CollisionConfig, CollisionModel
from ...wbc.controller import ControllerConfig, WholeBodyController
from ...wbc.drivers.loop import ControlLoop
from ...wbc.robot.kinematics import Kinematics
from ...wbc.robot.transforms import Array, quaternion_from_matrix, rotation_exp, rotation_log
from ..metrics.statistics import wilson_interval
from ..playtable.bullet import pybullet
from .picking_scenes import (
    FLOOR,
    GRASP_Z,
    ROUTES,
    Scene,
    held_capsule,
    picking_robot,
    place_yaw,
    sample_scene,
    straight_way_blocked,
    tool_down,
)
from .picking_scenes import block_grasp_yaw as yaw_for
from .picking_simulation import FingerDriver, Judge, WatchedController, World

REPLAN_HZ, LATENCY = 5.0, 0.1
"""How often the policy looks [1/s], and the time from its look to its chunk [s]."""
CHUNK_POSES, CHUNK_PERIOD = 10, 0.1
BIAS, JITTER = (0.01, math.radians(3.0)), (0.002, math.radians(1.0))
"""Noise of the policy: greatest error common to a chunk, and deviation of each pose along each axis ([m], [rad])."""
TRAVEL_SPEED, FINE_SPEED, TURN_SPEED = 0.25, 0.12, 1.0
"""Speed of the policy's poses on the way, near block and tray [m/s], and in turning [rad/s]."""
PATIENCE, PROGRESS = 2.0, 0.015
"""Time [s] in which the tool must come nearer by that much [m]; else the policy tries the next higher route."""
TIME_LIMIT = 45.0
"""Time after which a trial is given up [s]."""
ACTIVE = 0.02
"""Distance [m] from an obstacle below which the collision rows are called active."""
BAR = 0.95
"""Least success rate."""


class Policy:
    """Writes chunks of straight lines from the measured pose through the stages of picking; it knows no obstacles.

    stage: what it is at; retries: grasps that missed; raised: how often it gave up a route for a higher one.
    """

    def __init__(self, scene: Scene, rng: np.random.Generator) -> None:
        self.scene, self.rng = scene, rng
        self.stage, self.retries, self.raised = "approach", 0, 0
        self._route, self._since, self._nearest, self._progress_at = 0, 0.0, math.inf, 0.0

    def chunk(self, now: float, tool: Array, opening: float, block: Box) -> ActionTrajectory:
        """Look at tool pose `[4 4]`, measured opening and block at time `now` [s]; return the next second."""
        goal, rotation = self._goal(block)
        self._advance(now, tool, opening, float(np.linalg.norm(goal - tool[:3, 3])), rotation)
        goal, rotation = self._goal(block)
        corners = [goal]
        if self.raised and self.stage in ("approach", "carry") and tool[2, 3] < ROUTES[self._route] - 0.03:
            corners = [np.append(tool[:2, 3], ROUTES[self._route]), goal]
        fine = self.stage in ("descend", "lower", "lift", "retreat")
        steps = CHUNK_PERIOD * np.arange(1.0, CHUNK_POSES + 1.0)
        positions = along(tool[:3, 3], corners, (FINE_SPEED if fine else TRAVEL_SPEED) * steps)
        turn = rotation_log(rotation @ tool[:3, :3].T)
        share = np.minimum(TURN_SPEED * steps / max(float(np.linalg.norm(turn)), 1e-9), 1.0)
        bias = [size * _in_ball(self.rng) for size in BIAS]
        positions = positions + bias[0] + self.rng.normal(0.0, JITTER[0], positions.shape)
        off = bias[1] + self.rng.normal(0.0, JITTER[1], positions.shape)
        rotations = [rotation_exp(o) @ rotation_exp(s * turn) @ tool[:3, :3] for o, s in zip(off, share, strict=True)]
        closed = self.stage in ("close", "lift", "carry", "lower")
        return ActionTrajectory(
            positions=positions,
            quaternions=np.stack([quaternion_from_matrix(r) for r in rotations]),
            gripper=np.full(CHUNK_POSES, 0.0 if closed else 1.0),
            dt=CHUNK_PERIOD,
            start_time=now,
        )

    def _goal(self, block: Box) -> tuple[Array, Array]:
        """Return position [m] and rotation that the present stage heads for."""
        at_block = self.stage in ("approach", "descend", "close", "lift")
        heights = {
            "approach": ROUTES[self._route],
            "carry": ROUTES[self._route],
            "descend": GRASP_Z,
            "close": GRASP_Z,
            "lift": 0.17,
            "lower": GRASP_Z + FLOOR + 0.004,
            "release": GRASP_Z + FLOOR + 0.004,
        }
        x, y = block.center[:2] if at_block else self.scene.tray
        yaw = yaw_for(block if self.stage in ("approach", "descend") else self.scene.block)
        rotation = tool_down(yaw if at_block else place_yaw(self.scene))
        return np.array([x, y, heights.get(self.stage, 0.25)]), rotation

    def _advance(self, now: float, tool: Array, opening: float, way: float, rotation: Array) -> None:
        """Pass to the next stage when this one is done, or to a higher route when it does not get on."""
        angle = float(np.linalg.norm(rotation_log(rotation @ tool[:3, :3].T)))
        waited = now - self._since
        following = {
            "approach": ("descend", way < 0.02 and angle < 0.1),
            "descend": ("close", way < 0.01 and angle < 0.1),
            "close": ("lift", waited > 1.0),
            "lift": ("carry", tool[2, 3] > 0.15),
            "carry": ("lower", way < 0.02 and angle < 0.1),
            "lower": ("release", way < 0.012),
            "release": ("retreat", waited > 0.8),
            "retreat": ("done", tool[2, 3] > 0.2),
            "done": ("done", False),
        }
        stage, over = following[self.stage]
        if over:
            if stage == "carry" and opening < 0.1:
                self.retries, stage = self.retries + 1, "approach"
            self.stage, self._since = stage, now
            self._nearest, self._progress_at = math.inf, now
            if stage == "carry":
                self._route = 0
        elif way < self._nearest - PROGRESS:
            self._nearest, self._progress_at = way, now
        elif now - self._progress_at > PATIENCE and self.stage in ("approach", "carry"):
            if self._route + 1 < len(ROUTES):
                self._route, self.raised = self._route + 1, self.raised + 1
            self._nearest, self._progress_at = math.inf, now


def along(start: Array, corners: Sequence[Array], lengths: Array) -> Array:
    """Return the points `[k 3]` at `lengths` `[k]` [m] along the line from `start` through `corners`, the end kept."""
    line = np.stack([start, *corners])
    marks = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(line, axis=0), axis=1))])
    return np.stack([np.interp(lengths, marks, line[:, axis]) for axis in range(3)], axis=1)


def _in_ball(rng: np.random.Generator) -> Array:
    direction = rng.normal(size=3)
    ball: Array = direction / np.linalg.norm(direction) * rng.uniform() ** (1 / 3)
    return ball


@dataclass(slots=True, kw_only=True)
class Trial:
    """What one trial showed.

    cause: why it failed, empty where it did not; contacts, violations: steps by name; clearance: least distance [m];
    following: greatest following error of a joint [rad]; planning: processor time of each chunk [s].
    active: share of ticks with an obstacle nearer than `ACTIVE`; blocked: whether the straight ways ran through one.
    """

    trial: int
    success: bool = False
    cause: str = ""
    duration: float = 0.0
    contacts: dict[str, int] = field(default_factory=dict)
    violations: dict[str, int] = field(default_factory=dict)
    clearance: float = math.inf
    following: float = 0.0
    planning: list[float] = field(default_factory=list)
    active: float = 0.0
    blocked: bool = False
    braked: int = 0
    retries: int = 0
    raised: int = 0
    counters: dict[str, int] = field(default_factory=dict)


def run_trial(
    trial: int,
    *,
    seed: int,
    rate: float = 240.0,
    blind: bool = False,
    after_step: Callable[[int, float], None] | None = None,
) -> Trial:
    """Run one trial.

    Args:
        trial: number of the trial; seed: of the benchmark. Both together set scene and noise.
        rate: physics steps a second.
        blind: the controller knows nothing but the arm itself, for comparison.
        after_step: called after each physics step with pybullet's client and the time [s].
    """
    robot = picking_robot()
    scene = sample_scene(robot, seed, trial)
    policy = Policy(scene, np.random.default_rng([seed, trial, 1]))
    client = pybullet.connect(pybullet.DIRECT)
    try:
        world = World(client, scene)
        driver = FingerDriver(robot, rate_hz=rate, client=client, start=scene.start)
        driver.connect()
        judge = Judge(robot, world, driver)
        known = CollisionConfig() if blind else scene.collision(block=scene.block)
        inner = WholeBodyController(robot, ControllerConfig(collision=known))
        controller = WatchedController(inner, judge.violations)
        loop = ControlLoop(controller, driver)
        result = Trial(trial=trial, blocked=straight_way_blocked(scene, Kinematics(robot)))
        try:
            loop.start()
            _work(loop, inner, policy, judge, None if blind else scene, after_step, result)
        except ControlError as error:
            result.cause = f"error: {error}"
        _conclude(result, loop, controller, policy, judge)
        return result
    finally:
        pybullet.disconnect(client)


def _work(
    loop: ControlLoop,
    controller: WholeBodyController,
    policy: Policy,
    judge: Judge,
    known: Scene | None,
    after_step: Callable[[int, float], None] | None,
    result: Trial,
) -> None:
    """Let policy and loop run until the policy is done and the block has come to rest, or time is up."""
    world, scene, kinematics = judge.world, policy.scene, Kinematics(loop.driver.robot)
    obstacles = CollisionModel(loop.driver.robot, scene.bare())
    waiting: ActionTrajectory | None = None
    looks, near, done_at = 0, 0, math.inf
    stage = policy.stage
    while loop.time < min(TIME_LIMIT, done_at + 1.0) and not loop.stop_reason:
        if loop.time >= looks / REPLAN_HZ - 1e-9:
            measured = loop.driver.read()
            pose = kinematics.forward(measured.positions)
            waiting = policy.chunk(loop.time, pose.tool, measured.gripper, world.block_box())
            looks += 1
            near += int(float(obstacles.clearances(pose).distances.min()) < ACTIVE)
            if policy.stage != stage and known is not None:
                stage = policy.stage
                _tell(controller, stage, known.collision(), world.block_box(), pose.tool, loop.time)
            if policy.stage == "done":
                done_at = min(done_at, loop.time)
        if waiting is not None and loop.time >= waiting.start_time + LATENCY - 1e-9:
            loop.accept(waiting)
            waiting = None
        while loop.produce():
            pass
        judge.look(loop.publish(), held=policy.stage in ("lift", "carry"))
        if after_step is not None:
            after_step(world.client, loop.time)
    result.active = near / max(looks, 1)


def _tell(
    controller: WholeBodyController, stage: str, scene: CollisionConfig, block: Box, tool: Array, now: float
) -> None:
    """Give the controller the block: an obstacle until it is to be grasped, then a part of the hand."""
    if stage == "approach":
        controller.update_scene(replace(scene, boxes=(*scene.boxes, block)), now)
    elif stage == "descend":
        controller.update_scene(scene, now)
    elif stage == "carry":
        controller.attach(held_capsule(block, tool))
    elif stage == "lower":
        controller.detach()


def _conclude(result: Trial, loop: ControlLoop, controller: WatchedController, policy: Policy, judge: Judge) -> None:
    """Write down what was seen and decide."""
    result.duration, result.following = loop.time, loop.max_following_error
    result.contacts = dict(judge.contacts)
    result.violations = {name: count for name, count in judge.violations.items() if count}
    result.clearance, result.planning = judge.clearance, controller.planning
    result.braked, result.retries, result.raised = controller.braked, policy.retries, policy.raised
    result.counters = dict(controller.controller.counters)
    if not result.cause:
        if loop.stop_reason:
            result.cause = f"stopped: {loop.stop_reason}"
        elif result.violations:
            result.cause = "limit"
        elif result.contacts:
            result.cause = "contact"
        elif policy.stage != "done":
            result.cause = f"out of time in stage {policy.stage}"
        elif not judge.world.block_in_tray():
            result.cause = "block not in the tray"
    result.success = not result.cause


class VideoRecorder:
    """Images of a trial for a video of twice the pace."""

    WIDTH, HEIGHT, FPS = 480, 360, 30.0
    BACKGROUND = (226, 233, 240)

    def __init__(self) -> None:
        self.frames: list[np.ndarray] = []
        self._last = math.inf
        self._view = pybullet.computeViewMatrix((1.3, -0.5, 0.85), (0.24, 0.0, 0.24), (0.0, 0.0, 1.0))
        self._lens = pybullet.computeProjectionMatrixFOV(42.0, self.WIDTH / self.HEIGHT, 0.1, 4.0)

    def __call__(self, client: int, now: float) -> None:
        """Draw the world if it is time for an image; a time before the last one begins another trial."""
        if self._last <= now < self._last + 2.0 / self.FPS - 1e-9:
            return
        self._last = now
        _, _, image, _, bodies = pybullet.getCameraImage(
            self.WIDTH,
            self.HEIGHT,
            self._view,
            self._lens,
            lightDirection=(0.6, -0.5, 1.5),
            shadow=1,
            renderer=pybullet.ER_TINY_RENDERER,
            physicsClientId=client,
        )
        frame = np.reshape(np.asarray(image, dtype=np.uint8), (self.HEIGHT, self.WIDTH, 4))[..., :3].copy()
        frame[np.reshape(bodies, (self.HEIGHT, self.WIDTH)) < 0] = self.BACKGROUND
        self.frames.append(frame)

    def write(self, path: Path) -> None:
        """Write the video so that every browser plays it."""
        write_video(path, np.stack(self.frames), self.FPS, crf=26, pixel_format="yuv420p", key_frame_interval=60)


def passed(trials: Sequence[Trial]) -> bool:
    """Return whether the bar is met and no limit was broken and nothing was touched."""
    rate = sum(t.success for t in trials) / len(trials)
    return rate >= BAR and not any(t.contacts or t.violations for t in trials)


def report(trials: Sequence[Trial]) -> str:
    """Return the metrics for people."""
    rate = wilson_interval(sum(t.success for t in trials), len(trials))
    causes, contacts, violations = Counter(t.cause for t in trials if t.cause), Counter[str](), Counter[str]()
    for t in trials:
        contacts.update(t.contacts)
        violations.update(t.violations)
    planning = np.concatenate([np.asarray(t.planning) for t in trials]) * 1e3
    clearances = [t.clearance * 1e3 for t in trials]
    following = [math.degrees(t.following) for t in trials]
    more = len(contacts) - 4
    rows = {
        "success": f"{rate.value:.1%} [{rate.low:.1%}, {rate.high:.1%}], {len(trials)} trials",
        "failures": ", ".join(f"{cause} ({count})" for cause, count in causes.most_common()) or "none",
        "limits broken": ", ".join(f"{name} ({count} steps)" for name, count in violations.items()) or "none",
        "contacts": ", ".join(f"{name} ({count} steps)" for name, count in contacts.most_common(4)) or "none",
        "least clearance": f"{min(clearances):.1f} mm, median of trials {statistics.median(clearances):.1f} mm",
        "following error": f"{max(following):.2f} deg, median of trials {statistics.median(following):.2f} deg",
        "planning a chunk": f"median {np.median(planning):.1f} ms, 99 % {np.percentile(planning, 99):.1f} ms, "
        f"greatest {planning.max():.1f} ms (processor time)",
        "obstacles": f"in the straight way in {sum(t.blocked for t in trials)} trials; nearer than "
        f"{ACTIVE * 1e3:.0f} mm during {np.mean([t.active for t in trials]):.1%} of the time",
        "policy": f"tried a higher route {sum(t.raised for t in trials)} times, "
        f"grasped again {sum(t.retries for t in trials)} times",
        "emergency brakes": f"{sum(t.braked for t in trials)} ticks",
        "duration": f"median {statistics.median(t.duration for t in trials):.1f} s",
    }
    rows["contacts"] += f" and {more} more pairs" if more > 0 else ""
    return "\n".join(f"{name:18}{text}" for name, text in rows.items())


def benchmark(
    *,
    trials: int = 100,
    seed: int = 0,
    rate: float = 240.0,
    num_workers: int = 2,
    blind: bool = False,
    json: Path | None = None,
    video: Path | None = None,
) -> int:
    """Pick a block among obstacles and put it into a tray, in pybullet; print success and what was broken.

    The status is 1 below 95 % success, or where a limit was broken or anything was touched.

    Args:
        trials: Trials, each with a world of its own.
        seed: Sets all worlds and all noise.
        rate: Physics steps and commands a second, 240 or 1000.
        num_workers: Processes, 1 or 2.
        blind: Give the controller nothing of table, tray and obstacles, for comparison.
        json: File for the metrics of every trial.
        video: mp4 file of three trials with an obstacle in the way.
    """
    if trials < 1 or num_workers not in (1, 2):
        raise ConfigError(f"expected at least one trial and --num-workers 1 or 2, got {trials} and {num_workers}.")
    one = partial(run_trial, seed=seed, rate=rate, blind=blind)
    if num_workers == 1:
        results = [one(trial) for trial in range(trials)]
    else:
        with ProcessPoolExecutor(num_workers, mp_context=multiprocessing.get_context("spawn")) as pool:
            results = list(pool.map(one, range(trials)))
    print(report(results))
    if json is not None:
        metrics = {"seed": seed, "rate_hz": rate, "blind": blind, "passed": passed(results)}
        write_json(json, metrics | {"trials": [asdict(result) for result in results]})
    if video is not None:
        recorder = VideoRecorder()
        for result in [r for r in results if r.blocked][:3] or results[:1]:
            run_trial(result.trial, seed=seed, rate=rate, blind=blind, after_step=recorder)
        recorder.write(video)
    return 0 if passed(results) else 1
