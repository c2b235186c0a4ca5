"""Keyposes: found in the actions, learned from the action query, kept in releases."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from model_cases import make_batch, make_model, small_config
from robot_cases import CAMERAS, SIX_JOINTS, SO101, STEPS, write_tokens

from gr2.cvae_head import kinds
from gr2.cvae_head.kinds import HeadOptions
from gr2.cvae_head.slots import SlotCoding
from gr2.data_pipeline.loading.token_store import TokenStore
from gr2.data_pipeline.loading.token_windows import TokenWindows
from gr2.embodiment import TOOL_ARM, Embodiment, Signal
from gr2.errors import ConfigError
from gr2.gr_model.model.keyposes import KeyposeOutlook
from gr2.gr_model.model.objectives import training_losses
from gr2.gr_model.model.release import load_release
from gr2.gr_model.train.options import FinetuneOptions
from gr2.gr_model.train.stages import finetune


@pytest.mark.parametrize("robot", [SIX_JOINTS, SO101])
def test_a_keypose_is_where_a_binary_gripper_changes_or_the_episode_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, robot: Embodiment
) -> None:
    store = TokenStore.open([write_tokens(tmp_path, robot, 2)])
    read, gripper = store.read_steps, robot.action_dim - 1

    def with_a_gripper(name: str, episodes: np.ndarray, steps: np.ndarray) -> np.ndarray:
        found = read(name, episodes, steps).copy()
        if name == "actions":
            found[..., gripper] = steps // 7 % 2
        return found

    monkeypatch.setattr(store, "read_steps", with_a_gripper)
    windows = TokenWindows(store, num_frames=1, frame_step=1, chunk_length=5, labeled_only=True, keyposes=True)
    anchors = np.arange(20)
    batch = windows.gather(np.ones(20, np.int64), anchors)
    changes = np.where(anchors < 7, 7, np.where(anchors < 14, 14, 19))
    steps = changes if robot is SIX_JOINTS else np.full(20, 19)
    assert np.array_equal(batch["keypose"], with_a_gripper("actions", np.ones(1, np.int64), steps[None])[0])


def test_it_is_learned_from_the_query_and_what_is_not_known_is_left_out() -> None:
    torch.manual_seed(0)
    outlook, seen = KeyposeOutlook(SlotCoding((TOOL_ARM,)), width=8), torch.eye(8)[:4]
    assert outlook.columns.tolist() == [0, 1, 2, 3, 4, 5]
    target, known = torch.randn(4, 7), torch.ones(4, 7, dtype=torch.bool)
    target[3], known[3] = torch.nan, False
    optimizer = torch.optim.AdamW(outlook.parameters(), lr=0.1)
    for _ in range(100):
        optimizer.zero_grad()
        loss = outlook.loss(seen, target, known)["keypose_loss"]
        loss.backward()
        optimizer.step()
    assert loss < 0.1 and torch.isfinite(outlook.where.weight).all()
    assert outlook.loss(seen, target, torch.zeros_like(known))["keypose_loss"] == 0


def test_its_loss_counts_beside_that_of_the_chunk() -> None:
    head = HeadOptions(kind="regression").apply(kinds.small())
    model = make_model(small_config(keyposes=True, head=head)).eval()
    batch = make_batch(model.config, size=4)
    plain = training_losses(model, batch, with_actions=True, with_frames=False)
    losses = training_losses(model, batch | {"keypose": batch["actions"][:, -1]}, with_actions=True, with_frames=False)
    assert "keypose_loss" not in plain and losses["keypose_loss"] > 0
    torch.testing.assert_close(losses["action_loss"], plain["action_loss"] + 0.2 * losses["keypose_loss"])


def test_heads_and_robots_must_fit() -> None:
    expert = HeadOptions(kind="flow", network="expert", width=16).apply(kinds.small())
    with pytest.raises(ConfigError, match="reads one action query"):
        make_model(small_config(keyposes=True, head=expert))
    moving = Signal(name="base", width=2, kind="base_velocity")
    with pytest.raises(ConfigError, match="absolute actions of what the state measures"):
        make_model(small_config(keyposes=True, embodiments=(replace(TOOL_ARM, action=(moving,)),)))


def test_finetuning_says_keyposes_of_several_robots_and_keeps_them(tmp_path: Path) -> None:
    arm = Embodiment(name="arm", cameras=CAMERAS, state=TOOL_ARM.state, action=TOOL_ARM.action, control_hz=5)
    tokens = [str(write_tokens(tmp_path / robot.name, robot, 8)) for robot in (arm, SO101)]
    options: dict[str, Any] = {"tokens": tokens, "head": HeadOptions(kind="flow"), **STEPS}
    finetune(FinetuneOptions(out=tmp_path / "policy", keyposes=True, **options))
    model = load_release(tmp_path / "policy").model
    assert model.config.keyposes and model.keypose is not None and len(model.keypose.columns) == 6 + 5
    assert "keypose_loss" in (tmp_path / "policy" / "metrics.csv").read_text()
    finetune(FinetuneOptions(out=tmp_path / "again", init=tmp_path / "policy", **options))
    assert load_release(tmp_path / "again").model.keypose is None
