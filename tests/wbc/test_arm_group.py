"""Two arms on one clock: each follows its own chunks, all stop together."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from gr2.contracts import JointTrajectory
from gr2.errors import ControlError
from gr2.wbc.arm_group import ArmGroup
from gr2.wbc.collision import CollisionConfig
from gr2.wbc.configuration import ControllerConfig
from gr2.wbc.controller import WholeBodyController
from gr2.wbc.robot.robots import kinova_gen3, panda

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
