"""A layer of language between seeing and acting: words follow from chunks, and chunks from words."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from model_cases import make_batch, make_context, make_model, small_config
from torch import Tensor

from gr2.contracts import Observation
from gr2.cvae_head import kinds
from gr2.cvae_head.kinds import HeadOptions
from gr2.cvae_head.motions import OWN, SUB_STEPS, LanguageMotion
from gr2.cvae_head.signals import coding_of
from gr2.embodiment import TOOL_ARM
from gr2.errors import ConfigError
from gr2.gr_model.act.corrections import CorrectedPolicy
from gr2.gr_model.act.policy import GR2Policy
from gr2.gr_model.model.config import ModelChanges
from gr2.gr_model.model.normalization import Statistics
from gr2.gr_model.model.objectives import training_losses
from gr2.gr_model.model.release import load_release, save_release
from gr2.gr_model.model.world_model import WorldModel

AXES = ("right", "forward", "up")


def layer() -> LanguageMotion:
    return LanguageMotion(AXES, coding_of(TOOL_ARM), width=8)


def way_chunks(ways: Tensor, length: int = 5) -> Tensor:
    """Chunks of a tool arm that go `ways` [m] and close the gripper."""
    chunk = torch.zeros(len(ways), length, 7)
    chunk[..., :3] = torch.linspace(1 / length, 1, length)[:, None] * ways[:, None]
    return chunk


def test_words_follow_from_the_way_of_the_tool() -> None:
    ways = torch.tensor([[0.03, 0.0, -0.02], [0.0, -0.05, 0.01], [0.001, 0.002, 0.003], [0.0, 0.0, 0.04]])
    chunk, mask = way_chunks(ways), torch.ones(4, 5, dtype=torch.bool)
    chunk[3, :, 6] = 1.0
    chunk[3, 2:] = torch.nan  # the episode ends
    mask[3, 2:] = False
    motion = layer().of_chunk(chunk, mask)
    assert [layer().phrase(row) for row in motion.tolist()] == [
        "keep: move arm right and down, close gripper", "keep: move arm back, close gripper",
        "keep: hold arm still, close gripper", "withdraw: move arm up, open gripper",
    ]  # fmt: skip


def test_sub_steps_follow_from_what_the_gripper_does_later() -> None:
    chunk, mask = way_chunks(torch.zeros(5, 3)), torch.ones(5, 5, dtype=torch.bool)
    chunk[:3, :, 6] = 1.0  # open now
    chunk[2, 3:, 6] = 0.0  # and closed within the chunk
    ahead = torch.zeros(5, 2, 7)
    ahead[:, 1, 6] = torch.tensor([1.0, 1.0, 1.0, 1.0, 0.0])
    ahead[1, 0, 6] = 1.0
    said = [SUB_STEPS[row[4]] for row in layer().of_chunk(chunk, mask, ahead).tolist()]
    assert said == ["reach", "withdraw", "reach", "carry", "keep"]
    alone = [SUB_STEPS[row[4]] for row in layer().of_chunk(chunk, mask).tolist()]
    assert alone == ["withdraw", "withdraw", "reach", "keep", "keep"]


def test_a_correction_is_read_and_leaves_the_rest_to_the_model() -> None:
    motions = layer()
    assert motions.parse("Move the arm left and down, close gripper!") == (0, 1, 0, 0, OWN)
    assert motions.parse("up") == (1, 1, 2, OWN, OWN) and motions.parse("hold still") == (1, 1, 1, OWN, OWN)
    assert motions.parse("open") == (OWN, OWN, OWN, 1, OWN) and motions.parse("carry") == (*[OWN] * 4, 2)
    for phrase in ("reach: hold arm still, open gripper", "carry: move arm left and forward and up, close gripper"):
        assert motions.phrase(motions.parse(phrase)) == phrase
    for bad in ("left and right", "open and close", "reach, then carry", "faster", ""):
        with pytest.raises(ConfigError, match="correction"):
            motions.parse(bad)


def test_axes_and_robot_must_fit() -> None:
    for axes in (("left", "right", "up"), ("left", "up"), ("north", "left", "up")):
        with pytest.raises(ConfigError, match="right,forward,up"):
            LanguageMotion(axes, coding_of(TOOL_ARM), width=8)
    expert = HeadOptions(kind="flow", network="expert", width=16).apply(kinds.small())
    with pytest.raises(ConfigError, match="reads one action query"):
        make_model(small_config(motions=AXES, head=expert))
    assert ModelChanges(motions="right, forward,up").apply(small_config()).motions == AXES


def way_batch(model: WorldModel, seed: int) -> tuple[dict[str, object], Tensor]:
    """A batch in which nothing that is seen tells the way, and the way itself."""
    batch = make_batch(model.config, size=32, seed=seed)
    rng = torch.Generator().manual_seed(seed)
    ways = 0.05 * torch.eye(3)[torch.randint(3, (32,), generator=rng)]
    ways = ways * (2.0 * torch.randint(2, (32, 1), generator=rng) - 1)
    start = batch["states"][:, 1, None]
    batch["actions"][..., :3] = start[..., :3] + way_chunks(ways)[..., :3]
    batch["actions"][..., 3:7] = start[..., 3:7]
    return batch, ways


@pytest.fixture(scope="module")
def trained() -> WorldModel:
    torch.manual_seed(0)
    model = make_model(small_config(motions=AXES, head=HeadOptions(kind="flow", width=64).apply(kinds.small())))
    scale = ((0.05, 0.05, 0.05, 1.0, 1.0, 1.0),) * 5
    model.set_statistics(
        Statistics(state_mean=(0.0,) * 11, state_std=(1.0,) * 11, action_mean=((0.0,) * 6,) * 5, action_std=scale)
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    model.train()
    for step in range(300):
        optimizer.zero_grad()
        losses = training_losses(model, way_batch(model, step)[0], with_actions=True, with_frames=False)
        losses["action_loss"].backward()
        optimizer.step()
    assert losses["motion_loss"] > 1.0  # it cannot be known
    return model.eval()


def test_what_is_done_follows_what_is_said(trained: WorldModel) -> None:
    context = make_context(trained, make_batch(trained.config, size=6))
    axes = torch.cat((torch.eye(3), -torch.eye(3)))
    words = torch.cat((1 + axes, torch.full((6, 2), float(OWN))), dim=1).long()
    with torch.no_grad():
        chunk = trained.act(context, noise=torch.randn(6, trained.head.noise_dim), motion=words)
        own = torch.full((6, 5), OWN)
        trained.act(context, motion=own)
    assert (words[:, 3] >= 0).all() and (own >= 0).all()  # the model has filled in its own
    along = (chunk[:, -1, :3] * axes).sum(1)
    assert (along > 0.03).all(), along
    assert ((chunk[:, -1, :3] - along[:, None] * axes).abs() < 0.03).all()


def test_a_policy_is_corrected_until_told_otherwise(trained: WorldModel, tmp_path: Path) -> None:
    folder = save_release(
        tmp_path, trained, tokenizer="t", text="x", frame_step=5, control_hz=30.0, provenance={"seed": 0}
    )
    model = load_release(folder).model
    assert model.config == trained.config

    def make_policy(model: WorldModel) -> GR2Policy:
        return GR2Policy(
            model, encode_images=lambda images: np.zeros((len(images), 24 if images.shape[1] == 4 else 16), np.int64),
            encode_text=lambda texts: (np.zeros((len(texts), 2, 12), np.float32), np.ones((len(texts), 2), bool)),
            control_hz=30.0,
        )  # fmt: skip

    policy, plain = make_policy(model), make_policy(make_model(small_config()))
    seen = Observation(
        images={"static": np.zeros((4, 6, 3), np.uint8)}, tool_position=np.zeros(3), time=0.0,
        tool_quaternion=np.array([0.0, 0.0, 0.0, 1.0]), joint_positions=np.zeros(7), instruction="go",
    )  # fmt: skip
    for words, axis, sign in (("left", 0, -1), ("up", 2, 1)):
        policy.correct(words)
        moved = policy.act(seen).positions[-1]
        assert sign * moved[axis] > 0.03 and f": move arm {words}, " in policy.said
    policy.correct(None)
    policy.reset()
    first = policy.act(seen)
    policy.correct("back")
    policy.reset()
    assert policy.said == "" and np.allclose(policy.act(seen).positions, first.positions)
    with pytest.raises(ConfigError, match=r"--model\.motions"):
        plain.correct("up")


def test_a_script_corrects_at_its_times(trained: WorldModel) -> None:
    policy = GR2Policy(
        trained, encode_images=lambda images: np.zeros((len(images), 24), np.int64),
        encode_text=lambda texts: (np.zeros((len(texts), 2, 12), np.float32), np.ones((len(texts), 2), bool)),
        control_hz=30.0,
    )  # fmt: skip
    corrected = CorrectedPolicy(policy, ["1 -", "0.5 move arm up", "0.7 left"])
    seen = Observation(
        images={"static": np.zeros((4, 6, 3), np.uint8)}, tool_position=np.zeros(3), time=0.0,
        tool_quaternion=np.array([0.0, 0.0, 0.0, 1.0]), joint_positions=np.zeros(7), instruction="go",
    )  # fmt: skip
    for _ in range(2):  # times are those of each task
        corrected.reset()
        said = []
        for now in (10.0, 10.5, 10.8, 11.2):
            corrected.act(replace(seen, time=now))
            said.append(policy.said)
        assert ": move arm up," in said[1] and ": move arm left," in said[2]
    assert corrected.executed_steps == policy.executed_steps
    with pytest.raises(ConfigError, match="expected a time"):
        CorrectedPolicy(policy, ["move arm up"])
    with pytest.raises(ConfigError, match="left and right"):
        CorrectedPolicy(policy, ["1 left and right"])
    with pytest.raises(ConfigError, match="says its motion"):
        CorrectedPolicy(object(), ["1 up"])  # type: ignore[arg-type]
