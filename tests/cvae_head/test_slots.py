"""Slots of several robots: equal signals share columns, others are apart, and what a robot lacks changes nothing."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from robot_cases import SIX_JOINTS

from gr2.cvae_head.diffusion import DiffusionConfig
from gr2.cvae_head.flow import FlowConfig
from gr2.cvae_head.head import ChunkShape, TrunkShape
from gr2.cvae_head.kinds import make_head
from gr2.cvae_head.signals import coding_of
from gr2.cvae_head.slots import Slot, SlotCoding
from gr2.cvae_head.tokens import TokensConfig, TokensHead
from gr2.embodiment import CLOSING, TOOL_ARM, Embodiment, Signal, fitting, with_different_names
from gr2.errors import ShapeError

BOTH = SlotCoding((TOOL_ARM, SIX_JOINTS))


def steps_of(robot: Embodiment, count: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """States `[b s]` and actions `[b 4 a]` of a robot, as wide as the widest, with noise behind its own numbers."""
    rng = np.random.default_rng(seed)
    state, actions = rng.normal(size=(count, 16)), rng.normal(size=(count, 4, 8))
    for signals, slices, rows in (
        (robot.state, robot.state_slices(), state),
        (robot.action, robot.action_slices(), actions),
    ):
        for signal in signals:
            if signal.kind == "rotation":
                rows[..., slices[signal.name]] /= np.linalg.norm(rows[..., slices[signal.name]], axis=-1, keepdims=True)
    return torch.tensor(state).float(), torch.tensor(actions).float()


def test_slots_of_one_robot_are_its_own_coding() -> None:
    for robot in (TOOL_ARM, SIX_JOINTS):
        slots, coding = SlotCoding((robot,)), coding_of(robot)
        state, actions = steps_of(robot, 3)
        state, actions = state[:, : robot.state_dim], actions[..., : robot.action_dim]
        assert torch.equal(slots.features(state), coding.features(state))
        assert torch.equal(slots.encode(state, actions), coding.encode(state, actions))
        assert (slots.num_features, slots.shape(4)) == (coding.num_features, coding.shape(4))
        assert slots.state_columns == (tuple(range(coding.num_features)),)
        assert slots.action_columns == (tuple(range(coding.width)),)


def test_equal_signals_share_columns_and_others_do_not() -> None:
    opening = Slot(name="gripper", kind="gripper", width=1, unit="")
    grasp = Slot(name="gripper", kind="gripper", width=1, unit="", rule="binary", reference="absolute")
    assert BOTH.state_slots[opening] == slice(9, 10) and BOTH.action_slots[grasp] == slice(6, 7)
    assert BOTH.state_columns[1] == (*range(11, 17), 9) and BOTH.action_columns[1] == (*range(7, 13), 6)
    assert BOTH.shape(4) == ChunkShape(length=4, width=13, binary=(6,))
    gripper = SIX_JOINTS.action[1]
    for changed in (replace(gripper, unit=CLOSING), replace(gripper, binary=False), replace(gripper, name="left")):
        apart = SlotCoding((TOOL_ARM, replace(SIX_JOINTS, action=(SIX_JOINTS.action[0], changed))))
        assert apart.width == 14
    # the same rotation in another storage is the same slot
    turned = Signal(name="tool_rotation", width=3, kind="rotation", rotation="euler_xyz")
    euler = replace(TOOL_ARM, state=(TOOL_ARM.state[0], turned), action=(TOOL_ARM.action[0], turned))
    assert SlotCoding((TOOL_ARM, euler)).action_columns[1] == tuple(range(6))


def test_a_mixed_batch_holds_the_coding_of_each_robot() -> None:
    pairs = [steps_of(robot, 2, seed) for seed, robot in enumerate((TOOL_ARM, SIX_JOINTS))]
    order, robots = [0, 2, 1, 3], torch.tensor([0, 1, 0, 1])
    state, actions = (torch.cat(parts)[order] for parts in zip(*pairs, strict=True))
    features, chunk = BOTH.features(state[:, None], robots)[:, 0], BOTH.encode(state, actions, robots)
    moved = BOTH.after(state, chunk, 3, robots)
    for number, robot in enumerate((TOOL_ARM, SIX_JOINTS)):
        rows, coding = robots == number, coding_of(robot)
        mine, acts = state[rows][:, : robot.state_dim], actions[rows][..., : robot.action_dim]
        own, absent = list(BOTH.state_columns[number]), ~BOTH.present_states()[number]
        assert torch.equal(features[rows][:, own], coding.features(mine)) and not features[rows][:, absent].any()
        assert torch.equal(BOTH.own(chunk[rows], number), coding.encode(mine, acts))
        assert not chunk[rows][..., ~BOTH.present_actions()[number]].any()
        assert torch.equal(moved[rows][:, : robot.state_dim], coding.after(mine, coding.encode(mine, acts), 3))
    assert not BOTH.present_actions()[-1].any()
    nobody = BOTH.encode(state, actions, torch.full((4,), -1))
    assert not nobody.any()
    with pytest.raises(ShapeError, match=r"place of each sample's robot among tool_arm, six_joints, got none"):
        BOTH.features(state)


@pytest.mark.parametrize("config", [FlowConfig(network="mlp", width=16, blocks=1), DiffusionConfig(
    network="mlp", width=16, blocks=1, steps=3)], ids=["flow", "diffusion"])  # fmt: skip
def test_what_a_network_says_of_absent_columns_does_not_change_the_answer(
    config: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    head = make_head(config, trunk=TrunkShape(width=8), shape=BOTH.shape(4))
    network = "velocity" if isinstance(config, FlowConfig) else "denoiser"
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    present = BOTH.present_actions()[torch.tensor([0, 1])]
    condition, noise = torch.randn(2, 8), torch.randn(2, head.noise_dim)
    first, quiet = head.sample(condition, noise, present), getattr(head, network).at_times

    def at_times(*inputs: Any) -> list[Any]:
        return [lambda chunk, at=at: at(chunk) + 9.0 * ~present[:, None] for at in quiet(*inputs)]

    monkeypatch.setattr(getattr(head, network), "at_times", at_times)
    again, free = head.sample(condition, noise, present), head.sample(condition, noise)
    keep = present[:, None].expand_as(first)
    assert torch.equal(first[keep], again[keep]) and not torch.allclose(first[keep], free[keep])


def test_absent_columns_take_the_tokens_of_zero() -> None:
    head = TokensHead(TokensConfig(bins=16), width=8, shape=BOTH.shape(4))
    present = BOTH.present_actions()[torch.tensor([0])]
    tokens = head.tokens_of_absent(present)
    zero = head.tokenize(torch.zeros(1, 4, BOTH.width))
    absent = ~present.repeat(1, 4)
    assert torch.equal(tokens[absent], zero[absent]) and bool((tokens[~absent] == -1).all())


def test_robots_are_found_by_signals_and_rate_whatever_their_cameras() -> None:
    bare, twin = replace(TOOL_ARM, cameras=()), replace(TOOL_ARM, name="twin")
    known = (SIX_JOINTS, twin, TOOL_ARM)
    assert fitting(known, bare) == [2] and fitting(known, replace(bare, name="other")) == [1, 2]
    assert fitting(known, replace(bare, control_hz=10.0)) == []
    names = [robot.name for robot in with_different_names((TOOL_ARM, SIX_JOINTS, TOOL_ARM, TOOL_ARM))]
    assert names == ["tool_arm", "six_joints", "tool_arm_2", "tool_arm_3"]
