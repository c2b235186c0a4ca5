"""Two arms on one clock: each follows its own chunks, all stop together, and side by side they stay apart."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from gr2.contracts import ActionTrajectory, JointTrajectory
from gr2.errors import ControlError
from gr2.wbc.arm_group import ArmGroup
from gr2.wbc.collision import CollisionConfig
from gr2.wbc.collision_pairs import ArmCapsules
from gr2.wbc.configuration import ControllerConfig
from gr2.wbc.controller import WholeBodyController
from gr2.wbc.other_arms import OtherArm
from gr2.wbc.robot.geometry import closest_on_segments, point_separation
from gr2.wbc.robot.kinematics import Kinematics
from gr2.wbc.robot.robots import Capsule, kinova_gen3, panda
from gr2.wbc.robot.transforms import quaternion_from_matrix

LEFT, RIGHT, DT = kinova_gen3(), panda(tool_z=0.14), 0.005
FREE = ControllerConfig(collision=CollisionConfig(self_collision=False))


def _chunk(arm: str, offset: float, start: float = 0.0) -> JointTrajectory:
    home = {"left": LEFT, "right": RIGHT}.get(arm, LEFT).home
    share = np.linspace(0.05, 1.0, 20)[:, None]
    return JointTrajectory(positions=home + share * offset, dt=0.05, start_time=start, arm=arm)


def _started() -> ArmGroup:
    group = ArmGroup({"left": WholeBodyController(LEFT, FREE), "right": WholeBodyController(RIGHT, FREE)})
    group.reset({"left": LEFT.home, "right": RIGHT.home}, {"left": 1.0, "right": 0.0}, 0.0)
    return group


def test_each_arm_follows_its_own_chunks_as_it_would_alone() -> None:
    group, alone = _started(), WholeBodyController(LEFT, FREE)
    alone.reset(LEFT.home, 1.0, 0.0)
    assert group.accept(_chunk("left", 0.2)) == group.accept(_chunk("right", -0.1)) == "accepted"
    assert alone.accept(_chunk("left", 0.2)) == "accepted"
    for index in range(500):
        commands = group.step(index * DT)
        np.testing.assert_array_equal(commands["left"].positions, alone.step(index * DT).positions)
    np.testing.assert_allclose(commands["left"].positions, LEFT.home + 0.2, atol=5e-3)
    np.testing.assert_allclose(commands["right"].positions, RIGHT.home - 0.1, atol=5e-3)
    assert [commands[arm].gripper for arm in ("left", "right")] == [1.0, 0.0]


def test_a_chunk_for_no_arm_of_the_group_is_refused() -> None:
    group = _started()
    for arm in ("", "middle"):
        assert group.accept(_chunk(arm, 0.2)) == "rejected_arm"
    broken = _chunk("left", 0.2)
    object.__setattr__(broken, "arm", ["left"])
    assert group.accept(broken) == "rejected_arm"
    assert not np.any(group.step(0.0)["left"].velocities)


def test_one_arm_that_stops_stops_all_and_a_reset_releases_all() -> None:
    group = _started()
    for arm in ("left", "right"):
        assert group.accept(_chunk(arm, 0.3)) == "accepted"
    for index in range(60):
        commands = group.step(index * DT)
    assert all(np.any(command.velocities) for command in commands.values())
    group.step(0.3, {"left": commands["left"].positions + 0.2})
    for index in range(61, 120):
        commands = group.step(index * DT)
    assert (commands["left"].status, commands["right"].status) == ("protective_stop", "emergency_stop")
    assert not any(np.any(command.velocities) for command in commands.values())
    assert group.accept(_chunk("right", 0.1, 0.6)) == "rejected_stopped"
    group.reset({arm: c.positions for arm, c in commands.items()}, {"left": 1.0, "right": 1.0}, 0.6)
    assert group.accept(_chunk("right", 0.1, 0.6)) == "accepted"
    group.emergency_stop()
    assert {c.status for c in group.step(0.605).values()} == {"emergency_stop"}


def test_groups_that_cannot_be_are_named() -> None:
    faster = WholeBodyController(RIGHT, dataclasses.replace(FREE, tick_hz=500.0))
    with pytest.raises(ControlError, match="tick rate"):
        ArmGroup({"left": WholeBodyController(LEFT, FREE), "right": faster})
    with pytest.raises(ControlError, match="right"):
        _started().reset({"left": LEFT.home}, {"left": 1.0, "right": 1.0}, 0.0)


# Side by side


PANDA = panda(tool_z=0.14)


def _base(y: float) -> np.ndarray:
    pose = np.eye(4)
    pose[1, 3] = y
    return pose


BASES = {"left": _base(0.0), "right": _base(-0.6)}


def _beside(bases: dict[str, np.ndarray] | None, **config: Any) -> ArmGroup:
    controllers = {arm: WholeBodyController(PANDA, ControllerConfig(**config)) for arm in BASES}
    group = ArmGroup(controllers, bases)
    group.reset(dict.fromkeys(BASES, PANDA.home), dict.fromkeys(BASES, 1.0), 0.0)
    return group


def _sideways(arm: str, now: float, shift: float) -> ActionTrajectory:
    """A second of a motion that takes the tool `shift` [m] to the other arm's side in two seconds."""
    tool = Kinematics(PANDA).forward(PANDA.home).tool
    share = np.clip((now + 0.05 * np.arange(1, 21)) / 2.0, 0.0, 1.0)[:, None]
    share = share**3 * (10.0 - 15.0 * share + 6.0 * share**2)
    side = np.array([0.0, -shift if arm == "left" else shift, 0.0])
    turns = np.tile(quaternion_from_matrix(tool[:3, :3]), (20, 1))
    return ActionTrajectory(
        positions=tool[:3, 3] + share * side, quaternions=turns, gripper=np.ones(20), dt=0.05, start_time=now, arm=arm
    )


def _followed(group: ArmGroup, duration: float, chunk: Callable[[str, float], Any], period: int) -> dict[str, Any]:
    """Return the joints `[t j]` of each arm that gets a chunk each `period` ticks."""
    joints: dict[str, list[np.ndarray]] = {arm: [] for arm in BASES}
    for index in range(round(duration / DT)):
        if index % period == 0:
            for arm in BASES:
                group.accept(chunk(arm, index * DT))
        for arm, command in group.step(index * DT).items():
            joints[arm].append(command.positions)
    return {arm: np.array(rows) for arm, rows in joints.items()}


def _apart(joints: dict[str, np.ndarray]) -> np.ndarray:
    """Return the least distance `[t]` [m] of any two capsules of the arms."""
    placed, capsules = [], PANDA.capsules
    for arm, q in joints.items():
        frames = Kinematics(PANDA).forward_many(q, jacobians=False).frames[:, [c.link for c in capsules]]
        ends = [np.array([getattr(c, end) for c in capsules]) for end in ("start", "end")]
        world = [(frames[..., :3, :3] @ e[..., None])[..., 0] + frames[..., :3, 3] + BASES[arm][:3, 3] for e in ends]
        placed.append(world)
    first, second = (grid.ravel() for grid in np.indices((len(capsules), len(capsules))))
    sides = (placed[0][0][:, first], placed[0][1][:, first], placed[1][0][:, second], placed[1][1][:, second])
    distances, _ = point_separation(*closest_on_segments(*(side.reshape(-1, 3) for side in sides)))
    radii = np.array([c.radius for c in capsules])
    return (distances.reshape(len(sides[0]), -1) - radii[first] - radii[second]).min(1)


@pytest.mark.parametrize("seen", [True, False])
def test_arms_whose_chunks_cross_stay_apart_where_they_know_their_bases(seen: bool) -> None:
    joints = _followed(_beside(BASES if seen else None), 2.2, lambda arm, now: _sideways(arm, now, 0.6), 60)
    nearest = _apart(joints).min()
    assert (nearest >= 0.009) if seen else (nearest < -0.1)


def test_arms_that_are_sent_to_one_point_wait_without_going_to_and_fro() -> None:
    joints = _followed(_beside(BASES), 6.0, lambda arm, now: _sideways(arm, now, 0.3), 40)
    assert _apart(joints).min() >= 0.009
    speeds = np.stack([np.diff(rows, axis=0) / DT for rows in joints.values()])
    early, late = speeds[:, 200:600], speeds[:, -200:]
    assert np.abs(late).max() < 0.5 * np.abs(early).max()
    directions = np.sign(np.where(np.abs(late) > 0.02, late, 0.0))
    assert not np.any(np.abs(np.diff(directions, axis=1)) == 2.0)
    assert all(np.count_nonzero(np.diff(signs[signs != 0.0])) == 0 for arm in directions for signs in arm.T)


@pytest.mark.parametrize("seed", [0, 1])
def test_no_chunks_bring_two_arms_together(seed: int) -> None:
    rng = np.random.default_rng(seed)
    now_at = dict.fromkeys(BASES, PANDA.home)

    def towards(arm: str, now: float) -> JointTrajectory:
        target = rng.uniform(np.maximum(PANDA.lower, -2.5), np.minimum(PANDA.upper, 2.5))
        target[0] = rng.uniform(-2.0, -1.0) if arm == "left" else rng.uniform(1.0, 2.0)
        begin, now_at[arm] = now_at[arm], target
        share = np.linspace(0.2, 1.0, 5)[:, None]
        return JointTrajectory(positions=begin + share * (target - begin), dt=0.1, start_time=now, arm=arm)

    joints = _followed(_beside(BASES, optimization=None), 2.5, towards, 70)
    assert _apart(joints).min() >= 0.009
    fastest = max(float((np.abs(np.diff(rows, axis=0)) / DT / PANDA.velocity).max()) for rows in joints.values())
    assert fastest <= 1.0 + 1e-6


def test_arms_that_are_far_apart_move_as_if_they_were_alone() -> None:
    near = _followed(_beside(None), 0.6, lambda arm, now: _sideways(arm, now, 0.2), 60)
    far = _followed(_beside({"left": _base(0.0), "right": _base(9.0)}), 0.6, lambda a, t: _sideways(a, t, 0.2), 60)
    for arm in BASES:
        np.testing.assert_array_equal(near[arm], far[arm])


def test_a_grasped_object_is_kept_clear_of_the_other_arm() -> None:
    group = _beside(BASES)
    group.step(0.0)
    assert group._seen["right", "left"].num_capsules == len(PANDA.capsules)
    group.controllers["left"].attach(Capsule(link=0, start=(0.0, 0.0, 0.0), end=(0.0, 0.0, 0.3), radius=0.02))
    group.step(DT)
    watched = group.controllers["right"]._solver.watch.collisions.others
    assert [other.num_capsules for other in watched] == [len(PANDA.capsules) + 1]
    group.controllers["right"].update_scene(CollisionConfig(), 2 * DT)
    assert group.controllers["right"]._solver.watch.collisions.others == watched


def test_the_way_to_a_stop_is_covered_between_its_postures() -> None:
    rng = np.random.default_rng(0)
    capsules, kinematics = ArmCapsules(PANDA.capsules, PANDA.num_joints, 0), Kinematics(PANDA)
    for _ in range(5):
        q, stop = rng.uniform(PANDA.lower, PANDA.upper), rng.uniform(-0.3, 0.3, 7)
        other = OtherArm(_base(0.4), len(PANDA.capsules), 4)
        other.see(kinematics, capsules, q + np.linspace(0.0, 1.0, 4)[:, None] * stop)
        between = q + np.linspace(0.0, 1.0, 31)[:, None] * stop
        pose = kinematics.forward_many(between, jacobians=False)
        placed = capsules.place(pose.frames, pose.tool, np.zeros(31))
        for share in (0.0, 0.5, 1.0):
            axis = ((1.0 - share) * placed.starts + share * placed.stops)[..., None, :]
            around = rng.normal(size=(31, len(capsules.radii), 20, 3))
            around *= capsules.radii[:, None, None] / np.linalg.norm(around, axis=-1, keepdims=True)
            points = (axis + around).reshape(-1, 3) + [0.0, 0.4, 0.0]
            distances = []
            for start, end, radius in zip(*other.swept, strict=True):
                along = end - start
                place = np.clip((points - start) @ along / max(along @ along, 1e-12), 0.0, 1.0)[:, None]
                distances.append(np.linalg.norm(points - start - place * along, axis=1) - radius)
            assert np.min(distances, axis=0).max() < 2e-3


def test_bases_that_are_no_poses_are_refused() -> None:
    controllers = {"left": WholeBodyController(PANDA)}
    for bad in ({}, {"left": np.eye(3)}, {"left": 2.0 * np.eye(4)}, {"left": np.diag([1.0, 1.0, -1.0, 1.0])}):
        with pytest.raises(ControlError, match="the pose of its base"):
            ArmGroup(controllers, bad)
