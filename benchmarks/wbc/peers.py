"""Other controllers on the same targets: one target a tick, joint positions out, measured by the same evaluator.

They are given position and velocity limits in their own way where they take them, pink in one variant acceleration
limits as well; ours sees chunks, up to a horizon ahead, where they see the target of the next tick.
"""

from __future__ import annotations

import time
from collections import Counter

import numpy as np

from ...contracts import Array
from ...errors import ConfigError
from ...wbc.robot.robots import RobotModel
from ...wbc.robot.transforms import matrix_from_quaternion, rotation_exp, rotation_log
from .feeding import NOISY_FEEDING, FeedingConfig, Run, chunks_of
from .peer import NotSolved, Peer
from .trajectories import TICK, TrackingCase

PEERS = ("pink", "mink", "pybullet")


def make_peers(name: str, robot: RobotModel) -> list[Peer]:
    """Return the variants of a peer for `robot`.

    Raises:
        ConfigError: no peer has that name.
        EnvironmentMissing: its packages are not installed.
    """
    if name == "pink":
        from .peer_pink import Pink

        return [Pink(robot), Pink(robot, accelerations=True), Pink(robot, barrier=True)]
    if name == "mink":
        from .peer_mink import Mink

        return [Mink(robot, avoid=False), Mink(robot, avoid=True)]
    if name == "pybullet":
        from .peer_pybullet import BulletIk

        return [BulletIk(robot, null_space=False), BulletIk(robot, null_space=True)]
    raise ConfigError(f"there is no peer '{name}'; expected some of {', '.join(PEERS)}.")


def follow(peer: Peer, case: TrackingCase, feeding: FeedingConfig = NOISY_FEEDING) -> Run:
    """Let a peer follow a case; a tick without an answer keeps the joints and is counted as `not_solved`.

    Args:
        peer: who follows.
        case: what is followed.
        feeding: how a noisy case becomes targets; others are followed pose by pose.
    """
    targets = targets_of(case, feeding)
    step = peer.start(case)
    q, counts = [np.asarray(case.q0)], Counter[str]()
    milliseconds = []
    for tick in range(case.num_ticks):
        begin = time.perf_counter()
        try:
            joints = step(tick, targets[tick + 1])
        except NotSolved:
            joints, counts["not_solved"] = q[-1], counts["not_solved"] + 1
        milliseconds.append((time.perf_counter() - begin) * 1e3)
        q.append(np.array(joints, dtype=np.float64))
    return Run(q=np.stack(q), statuses=(), tick_ms=np.array(milliseconds), counts=counts)


def targets_of(case: TrackingCase, feeding: FeedingConfig = NOISY_FEEDING) -> Array:
    """Return the pose `[n 4 4]` of each tick: the case's own, or the latest noisy chunk's, linear between its poses.

    Before the first pose of a chunk the target goes there from where it is.
    """
    if case.noise_seed is None:
        return case.poses
    targets = case.poses.copy()
    for chunk in chunks_of(case, feeding):
        trajectory = chunk.trajectory
        first = round(chunk.arrival / TICK)
        times = np.concatenate([[chunk.arrival], trajectory.start_time + _due(trajectory.dt, len(trajectory.gripper))])
        turns = [matrix_from_quaternion(q) for q in trajectory.quaternions]
        positions = np.concatenate([targets[first : first + 1, :3, 3], trajectory.positions])
        rotations = np.stack([targets[first, :3, :3], *turns])
        for tick in range(first + 1, len(targets)):
            at = min(tick * TICK, times[-1])
            after = min(int(np.searchsorted(times, at - 1e-9)), len(times) - 1)
            share = (at - times[after - 1]) / (times[after] - times[after - 1])
            turn = rotation_log(rotations[after] @ rotations[after - 1].T)
            targets[tick, :3, 3] = (1 - share) * positions[after - 1] + share * positions[after]
            targets[tick, :3, :3] = rotation_exp(share * turn) @ rotations[after - 1]
    return targets


def _due(dt: float, count: int) -> Array:
    due: Array = dt * np.arange(1, count + 1)
    return due
