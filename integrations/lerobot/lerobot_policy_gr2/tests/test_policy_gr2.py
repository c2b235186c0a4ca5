"""gr2's policy under LeRobot: it learns, is saved and loaded, acts as gr2 does, and names what does not fit."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from lerobot.configs import PreTrainedConfig
from lerobot.datasets.factory import resolve_delta_timestamps
from lerobot.datasets.lerobot_dataset import LeRobotDataset, LeRobotDatasetMetadata
from lerobot.policies import make_policy, make_pre_post_processors
from lerobot.utils.import_utils import register_third_party_plugins
from lerobot_policy_gr2.configuration_gr2 import GR2Config
from lerobot_policy_gr2.convert import checkpoint_of_release, release_of_checkpoint
from lerobot_policy_gr2.modeling_gr2 import GR2Policy

from gr2.contracts import Episode, Observation
from gr2.data_pipeline.store.episodes import write_episode
from gr2.data_pipeline.store.lerobot_writer import export
from gr2.errors import ConfigError
from gr2.gr_model.act.loading import load_policy, load_world_model

warnings.filterwarnings("ignore", message="Text: words that the text encoder was not trained on")
STEPS, SIDE = 24, 64


def dataset(folder: Path, *, rotation: bool = True) -> Path:
    """Write two short episodes of an arm as a LeRobot dataset; without `rotation`, under names of joints."""
    for number in range(2):
        rng = np.random.default_rng(number)
        path = np.cumsum(rng.normal(size=(STEPS, 3)) * 0.01, 0)
        turn = np.tile([0.0, 0.0, 0.0, 1.0], (STEPS, 1))
        opening = (np.arange(STEPS) < STEPS // 2).astype(float)[:, None]
        images = np.zeros((STEPS, SIDE, SIDE, 3), np.uint8)
        for step in range(STEPS):
            images[step, :, (2 * step) % SIDE : (2 * step) % SIDE + 8] = 200
        episode = Episode(
            images={"static": images, "gripper": images[::-1].copy()},
            states=np.concatenate([path, turn, opening, opening, np.zeros((STEPS, 7))], 1).astype(np.float32),
            actions=np.concatenate([path + 0.01, turn, opening], 1).astype(np.float32),
            instruction="open the drawer",
            control_hz=30.0,
            frame_stride=1,
        )
        write_episode(folder / "record", number, episode, {"task": "open_drawer"})
    export(source=folder / "record", out=folder / "set")
    if not rotation:
        (folder / "set" / "meta" / "gr2_embodiment.json").unlink()
        info = json.loads((folder / "set" / "meta" / "info.json").read_text())
        for key, width in (("observation.state", 16), ("action", 8)):
            info["features"][key]["names"] = [f"joint_{i}.pos" for i in range(width)]
        (folder / "set" / "meta" / "info.json").write_text(json.dumps(info))
    return folder / "set"


def made(root: Path, **options: object) -> tuple[GR2Policy, LeRobotDataset]:
    meta = LeRobotDatasetMetadata("test/set", root=root)
    config = GR2Config(device="cpu", push_to_hub=False, **options)
    policy = make_policy(config, ds_meta=meta)
    assert isinstance(policy, GR2Policy)
    return policy, LeRobotDataset("test/set", root=root, delta_timestamps=resolve_delta_timestamps(config, meta))


def batch_of(data: LeRobotDataset, size: int = 8) -> dict[str, object]:
    return next(iter(torch.utils.data.DataLoader(data, batch_size=size)))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return dataset(tmp_path_factory.mktemp("data"))


def test_lerobot_finds_the_policy_by_the_name_of_the_package() -> None:
    register_third_party_plugins()
    assert PreTrainedConfig.get_choice_class("gr2") is GR2Config


def test_the_config_names_frames_and_actions_relative_to_the_newest_frame() -> None:
    config = GR2Config(device="cpu", n_obs_steps=3, frame_step=4, chunk_size=6)
    assert config.observation_delta_indices == [-8, -4, 0, 4]
    assert config.action_delta_indices == [0, 1, 2, 3, 4, 5]
    assert GR2Config(device="cpu", frame_weight=0.0).observation_delta_indices == [0]
    with pytest.raises(ConfigError, match="n_action_steps"):
        GR2Config(device="cpu", chunk_size=4, n_action_steps=5)
    with pytest.raises(ConfigError, match=r"keep beside --policy\.release"):
        GR2Config(device="cpu", statistics="keep")
    with pytest.raises(ConfigError, match="expected 10 as in pretrained"):
        GR2Config(device="cpu", release="pretrained", chunk_size=7)


def test_it_learns_and_the_encoders_stay_frozen(root: Path) -> None:
    torch.manual_seed(0)
    policy, data = made(root)
    batch = batch_of(data)
    optimizer = torch.optim.AdamW(policy.get_optim_params(), lr=3e-3)
    learned = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert not [p for p in policy.frozen_parameters() if id(p) in learned or p.requires_grad]
    before = [p.clone() for p in policy.frozen_parameters()]
    policy.train()
    assert not policy.image_tokenizer.training and not policy.text_tower.training
    losses = []
    for _ in range(25):
        loss, parts = policy.forward(batch)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        policy.update()
        losses.append(float(loss.detach()))
    assert {"frame_loss", "action_loss"} <= set(parts)
    assert np.mean(losses[-5:]) < 0.7 * np.mean(losses[:3])
    assert int(policy.steps) == 25
    assert all(torch.equal(a, b) for a, b in zip(before, policy.frozen_parameters(), strict=True))


def test_a_saved_policy_acts_as_before_and_a_lacking_weight_is_refused(root: Path, tmp_path: Path) -> None:
    policy, data = made(root, frame_weight=0.0)
    seen = {name: value for name, value in batch_of(data, 2).items() if "is_pad" not in name}
    seen["observation.state"] = seen["observation.state"][:, -1]  # of images at one time LeRobot drops the axis
    noise = torch.randn(2, policy.model.head.noise_dim)
    wanted = policy.predict_action_chunk(seen, noise=noise)
    policy.save_pretrained(tmp_path)
    loaded = GR2Policy.from_pretrained(tmp_path)
    assert torch.equal(loaded.predict_action_chunk(seen, noise=noise), wanted)
    assert wanted.shape == (2, 10, 8)
    del policy.text_tower.ln_final
    policy.save_pretrained(tmp_path)
    with pytest.raises(RuntimeError, match="ln_final"):
        GR2Policy.from_pretrained(tmp_path)


def test_actions_of_a_chunk_are_executed_one_by_one(root: Path) -> None:
    policy, data = made(root, n_obs_steps=2, frame_step=2, n_action_steps=3, frame_weight=0.0)
    seen = batch_of(data, 2)
    steps = [
        {"task": seen["task"]} | {n: v[:, i % 2].clone() for n, v in seen.items() if n.startswith("observation.")
                                  and "is_pad" not in n} for i in range(7)
    ]  # fmt: skip
    asked = []
    act = policy.model.act
    policy.model.act = lambda context, **options: (asked.append(context), act(context, **options))[1]  # type: ignore[method-assign]
    for step in steps:
        assert policy.select_action(step).shape == (2, 8)
    frames = [next(iter(context.codes.values())).shape[1] for context in asked]
    assert frames == [1, 2, 2], "a chunk every three steps, with the frame of two steps before where there is one"
    policy.reset()
    policy.select_action(steps[0])
    assert next(iter(asked[-1].codes.values())).shape[1] == 1


def test_the_shipped_release_acts_alike_under_both_and_survives_both_conversions(tmp_path: Path) -> None:
    checkpoint_of_release("pretrained", tmp_path / "checkpoint")
    policy = GR2Policy.from_pretrained(tmp_path / "checkpoint")
    rng = np.random.default_rng(0)
    images = {name: rng.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8) for name in ("static", "gripper")}
    ours = load_policy("pretrained")
    seen = Observation(
        images=images, tool_position=np.array([0.5, 0.1, 0.3]), tool_quaternion=np.array([1.0, 0, 0, 0]),
        gripper_opening=1.0, gripper_command=1.0, joint_positions=np.array([-1.2, 1.0, 2.1, -2.3, 0.4, 1.7, 1.0]),
        instruction="open the drawer", time=0.0,
    )  # fmt: skip
    wanted = ours.act(seen)
    batch = {f"observation.images.{n}": torch.as_tensor(i).permute(2, 0, 1)[None] / 255 for n, i in images.items()}
    batch |= {"observation.state": torch.as_tensor(seen.state_vector())[None], "task": ["open the drawer"]}
    chunk = policy.predict_action_chunk(batch, noise=torch.as_tensor(ours.noise(seen))[None])[0].numpy()
    np.testing.assert_allclose(chunk[:, :3], wanted.positions, atol=1e-5)
    np.testing.assert_allclose(chunk[:, 7], wanted.gripper, atol=1e-5)
    release_of_checkpoint(tmp_path / "checkpoint", tmp_path / "release")
    back, first = load_world_model(tmp_path / "release").release, load_world_model("pretrained").release
    assert (back.frame_step, back.control_hz) == (first.frame_step, first.control_hz)
    for name, tensor in first.model.state_dict().items():
        assert torch.equal(back.model.state_dict()[name], tensor), name
    again = load_policy(tmp_path / "release").act(seen)
    np.testing.assert_array_equal(again.positions, wanted.positions)


def test_finetuning_begins_with_the_weights_of_a_release_of_the_same_robot(root: Path, tmp_path: Path) -> None:
    policy, _ = made(root, release="pretrained")
    first = load_world_model("pretrained").release.model.state_dict()
    for name, tensor in policy.model.state_dict().items():
        if not name.endswith((".mean", ".std")):
            assert torch.equal(tensor, first[name]), name
    kept = made(root, release="pretrained", statistics="keep")[0].model.state_dict()
    assert all(torch.equal(tensor, first[name]) for name, tensor in kept.items())
    other = dataset(tmp_path, rotation=False)
    with pytest.raises(ConfigError, match="start from a pretrained model"):
        made(other, release="pretrained")
    policy.save_pretrained(tmp_path / "checkpoint")
    config = PreTrainedConfig.from_pretrained(tmp_path / "checkpoint")
    config.pretrained_path = tmp_path / "checkpoint"
    with pytest.raises(ConfigError, match="as the checkpoint was trained on"):
        make_policy(config, ds_meta=LeRobotDatasetMetadata("test/set", root=other))


def test_another_robot_is_learned_from_its_names(tmp_path: Path) -> None:
    policy, data = made(dataset(tmp_path, rotation=False), head="regression")
    (robot,) = policy.model.config.embodiments
    assert [signal.kind for signal in robot.action] == ["joint_position"]
    loss, _ = policy.forward(batch_of(data))
    assert torch.isfinite(loss)
    with pytest.raises(ConfigError, match="sample_weighting"):
        policy.forward({}, reduction="none")


def test_a_config_survives_lerobots_files(root: Path, tmp_path: Path) -> None:
    policy, _ = made(root)
    policy.save_pretrained(tmp_path)
    read = PreTrainedConfig.from_pretrained(tmp_path)
    assert read == policy.config
    before, after = make_pre_post_processors(read, dataset_stats=None)
    before.save_pretrained(tmp_path)
    after.save_pretrained(tmp_path)
    make_pre_post_processors(read, pretrained_path=str(tmp_path))
