"""What an optimized chunk is to pass, tool poses or joint positions, freed from some of their noise."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from .robot.transforms import Array, matrix_from_quaternion, rotation_exp, rotation_log, rotation_logs

FIRST_LOOK = 0.5
"""How much of a chunk is used to carry it back to the present [s]."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Waypoints:
    """Tool poses to pass: times `[m]` [s], positions `[m 3]` [m], rotations `[m 3 3]`, weights `[m]` [s]."""

    times: Array
    positions: Array
    rotations: Array
    weights: Array


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class JointWaypoints:
    """Joint positions to pass: times `[m]` [s], joints `[m j]` [rad], weights `[m]` [s]."""

    times: Array
    joints: Array
    weights: Array


AnyWaypoints = Waypoints | JointWaypoints


def waypoints_of(positions: Array, quaternions: Array, due: Array, period: float, limit: int) -> Waypoints:
    """Return the waypoints of a chunk, neighbors averaged in groups where there are more than `limit`.

    Args:
        positions: `[k 3]` [m]; quaternions: `[k 4]` xyzw; due: `[k]` [s]; period: time between them [s].
        limit: most waypoints.
    """
    rotations = np.stack([matrix_from_quaternion(q) for q in quaternions])
    groups = _groups(len(due), limit)
    if len(groups) < len(due):
        positions = np.stack([positions[g].mean(0) for g in groups])
        rotations = np.stack([_nearest_rotation(rotations[g].mean(0)) for g in groups])
        due = np.array([due[g].mean() for g in groups])
    return Waypoints(times=due, positions=positions, rotations=rotations, weights=_weights(groups, period))


def joint_waypoints_of(joints: Array, due: Array, period: float, limit: int) -> JointWaypoints:
    """Return joint positions `[k j]` [rad] as waypoints, neighbors averaged in groups where there are more than
    `limit`.

    Args:
        joints: without jumps of a turn; due: `[k]` [s]; period: time between them [s].
        limit: most waypoints.
    """
    groups = _groups(len(due), limit)
    if len(groups) < len(due):
        joints = np.stack([joints[g].mean(0) for g in groups])
        due = np.array([due[g].mean() for g in groups])
    return JointWaypoints(times=due, joints=joints, weights=_weights(groups, period))


def _groups(count: int, limit: int) -> list[slice]:
    """Divide `count` waypoints into at most `limit` groups of neighbors; the first may be smaller than the others."""
    size = -(-count // limit)
    return [slice(max(end - size, 0), end) for end in range(count, 0, -size)][::-1]


def _weights(groups: list[slice], period: float) -> Array:
    """Return the time that each group stands for [s]."""
    return period * np.array([g.stop - g.start for g in groups], dtype=np.float64)


def _nearest_rotation(matrix: Array) -> Array:
    """Return the rotation nearest to a mean of rotations `[3 3]`."""
    left, _, right = np.linalg.svd(matrix)
    rotation: Array = left @ np.diag([1.0, 1.0, np.linalg.det(left @ right)]) @ right
    return rotation


@dataclass(frozen=True, slots=True, kw_only=True)
class BlendConfig:
    """How a chunk is pulled towards the plan before it (temporal ensembling).

    weight: of the earlier plan against the new chunk's beginning, 0 for none.
    distance, angle: difference [m], [rad] at which the weight fades.
    tail: last part of the earlier plan [s] that is left out, bent by its coming to rest.
    """

    weight: float = 2.0
    distance: float = 0.03
    angle: float = 0.2
    tail: float = 0.05


def blended(waypoints: Waypoints, before: Array, config: BlendConfig) -> tuple[Waypoints, Array]:
    """Draw waypoints towards the earlier plan's poses at their times, less and less along the chunk.

    Beyond the earlier plan they are shifted by the mean difference, since a policy errs alike on a whole chunk.

    Args:
        waypoints: of the new chunk.
        before: `[s 4 4]` poses of the earlier plan at the first s times, s >= 1.
        config: weights.

    Returns:
        The waypoints, and the differences `[s 6]` [m], [rad].

    Source: temporal ensembling, T. Zhao et al., Learning fine-grained bimanual manipulation (ACT), 2023.
    """
    shared, beyond = len(before), len(waypoints.times) - len(before)
    offsets = before[:, :3, 3] - waypoints.positions[:shared]
    turns = rotation_logs(before[:, :3, :3] @ waypoints.rotations[:shared].transpose(0, 2, 1))
    apart = np.concatenate([offsets, turns], axis=1)
    return _drawn(waypoints, np.concatenate([apart, np.tile(apart.mean(0), (beyond, 1))]), apart, config), apart


def blended_joints(waypoints: JointWaypoints, before: Array, config: BlendConfig) -> tuple[JointWaypoints, Array]:
    """Draw joint waypoints towards the earlier plan's joints `[s j]` [rad] at the first s times, as `blended` does.

    Returns:
        The waypoints, and the differences `[s j]` [rad].
    """
    apart = before - waypoints.joints[: len(before)]
    beyond = len(waypoints.times) - len(before)
    return _drawn_joints(waypoints, np.concatenate([apart, np.tile(apart.mean(0), (beyond, 1))]), apart, config), apart


def drawn_to_tool(waypoints: Waypoints, time: float, tool: Array, twist: Array, config: BlendConfig) -> Waypoints:
    """Pull a first chunk towards the tool: where the chunk, carried back to now, is beside it, it errs by that much.

    A parabola that begins with the tool's velocity is fitted to the waypoints of the next half second.

    Args:
        waypoints: of the chunk.
        time: now [s].
        tool: `[4 4]` pose; twist: `[6]` motion of the tool [m/s, rad/s].
        config: weights.
    """
    since = waypoints.times - time
    seen = since <= FIRST_LOOK + 1e-9
    if np.count_nonzero(seen) < 4:
        return waypoints
    turns = rotation_logs(waypoints.rotations[seen] @ tool[:3, :3].T)
    way = np.concatenate([waypoints.positions[seen] - tool[:3, 3], turns], axis=1) - np.outer(since[seen], twist)
    offset = _carried_back(way, since[seen])
    return _drawn(waypoints, np.tile(offset, (len(since), 1)), offset, config)


def drawn_to_joints(waypoints: JointWaypoints, time: float, q: Array, dq: Array, config: BlendConfig) -> JointWaypoints:
    """Pull a first chunk towards the joints `[j]` [rad], which move at `dq` [rad/s], as `drawn_to_tool` does."""
    since = waypoints.times - time
    seen = since <= FIRST_LOOK + 1e-9
    if np.count_nonzero(seen) < 4:
        return waypoints
    offset = _carried_back(waypoints.joints[seen] - q - np.outer(since[seen], dq), since[seen])
    return _drawn_joints(waypoints, np.tile(offset, (len(since), 1)), offset, config)


def _carried_back(way: Array, since: Array) -> Array:
    """Return minus the value now `[1 d]` of the parabola without slope through ways `[s d]` at times `[s]` [s]."""
    powers = np.stack([np.ones(len(way)), since**2], axis=1)
    return -np.asarray(np.linalg.lstsq(powers, way, rcond=None)[0][:1], dtype=np.float64)


def _drawn(waypoints: Waypoints, offsets: Array, apart: Array, config: BlendConfig) -> Waypoints:
    """Shift waypoints by a share of `offsets` `[m 6]` that fades along the chunk and with differences `apart`."""
    squares = np.square(apart[:, :3] / config.distance).sum(1) + np.square(apart[:, 3:] / config.angle).sum(1)
    fade = _fade(squares, len(offsets), config)
    rotations = [rotation_exp(t) @ r for t, r in zip(fade * offsets[:, 3:], waypoints.rotations, strict=True)]
    return replace(waypoints, positions=waypoints.positions + fade * offsets[:, :3], rotations=np.stack(rotations))


def _drawn_joints(waypoints: JointWaypoints, offsets: Array, apart: Array, config: BlendConfig) -> JointWaypoints:
    """Shift joint waypoints by a share of `offsets` `[m j]`, as `_drawn` does."""
    fade = _fade(np.square(apart / config.angle).sum(1), len(offsets), config)
    return replace(waypoints, joints=waypoints.joints + fade * offsets)


def _fade(squares: Array, count: int, config: BlendConfig) -> Array:
    """Return shares `[count 1]` that fall along the chunk, smaller the larger the squared differences are."""
    share = config.weight * math.exp(-float(squares.mean()))
    return share / (1.0 + share) * np.linspace(1.0, 0.0, count + 1)[:-1, None]


def eased(waypoints: Waypoints, time: float, tool: Array, twist: Array, frequency: float) -> Waypoints:
    """Return where a critically damped tool is at the times of the waypoints, each of them its goal since the one
    before.

    A policy learns from an arm that hangs back behind its commands, and never from one that swings: an arm that
    catches up with the waypoints has a speed with which it overshoots the next chunk.

    Args:
        waypoints: of the chunk.
        time: now [s].
        tool: `[4 4]` pose; twist: `[6]` motion of the tool [m/s, rad/s].
        frequency: natural frequency [rad/s]; a steady motion is followed `2 / frequency` [s] late.
    """
    positions, rotations = np.empty_like(waypoints.positions), np.empty_like(waypoints.rotations)
    rotation, motion, before = tool[:3, :3], twist, time
    position = tool[:3, 3]
    for index, now in enumerate(waypoints.times):
        goal, turned = waypoints.positions[index], waypoints.rotations[index]
        apart = np.concatenate([position - goal, rotation_log(rotation @ turned.T)])
        apart, motion = _damped(apart, motion, frequency, now - before)
        position, rotation, before = goal + apart[:3], rotation_exp(apart[3:]) @ turned, now
        positions[index], rotations[index] = position, rotation
    return replace(waypoints, positions=positions, rotations=rotations)


def eased_joints(waypoints: JointWaypoints, time: float, q: Array, dq: Array, frequency: float) -> JointWaypoints:
    """Return where critically damped joints are that begin at `q` `[j]` [rad] and `dq` [rad/s], as `eased` does."""
    joints, before = np.empty_like(waypoints.joints), time
    for index, now in enumerate(waypoints.times):
        apart, dq = _damped(q - waypoints.joints[index], dq, frequency, now - before)
        joints[index] = q = waypoints.joints[index] + apart
        before = now
    return replace(waypoints, joints=joints)


def _damped(apart: Array, motion: Array, frequency: float, duration: float) -> tuple[Array, Array]:
    """Return distance from the goal and speed of a critically damped system after `duration` [s]."""
    pull = motion + frequency * apart
    rest = math.exp(-frequency * duration)
    return rest * (apart + pull * duration), rest * (motion - frequency * pull * duration)


def with_end(waypoints: AnyWaypoints, end: float) -> AnyWaypoints:
    """Repeat the last waypoint at the time `end` [s]."""
    times = np.append(waypoints.times, end)
    weights = np.append(waypoints.weights, waypoints.weights[-1])
    if isinstance(waypoints, JointWaypoints):
        joints = np.concatenate([waypoints.joints, waypoints.joints[-1:]])
        return JointWaypoints(times=times, joints=joints, weights=weights)
    return Waypoints(
        times=times,
        positions=np.concatenate([waypoints.positions, waypoints.positions[-1:]]),
        rotations=np.concatenate([waypoints.rotations, waypoints.rotations[-1:]]),
        weights=weights,
    )


def roughness(positions: Array) -> float:
    """Return how far waypoints `[m d]`, in their own unit, scatter about a smooth curve, by their third differences."""
    if len(positions) < 5:
        return 0.0
    third = np.diff(positions, 3, axis=0)
    return math.sqrt(float(np.square(third).sum(1).mean()) / 20.0)
