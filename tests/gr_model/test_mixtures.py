"""One model of several robots: a tool arm with two cameras at 30 Hz and six joints with three cameras at 5 Hz."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from model_cases import make_batch, make_model, small_config
from robot_cases import CAMERAS, SIX_JOINTS, SO101, STEPS, write_tokens

from gr2.benchmarks.actions.run import benchmark
from gr2.contracts import ActionTrajectory, JointTrajectory, Observation
from gr2.cvae_head import kinds
from gr2.embodiment import TOOL_ARM, Embodiment
from gr2.errors import CheckpointError, ConfigError, DataError, ShapeError
from gr2.gr_model.act.loading import load_policy
from gr2.gr_model.act.opening import open_policy
from gr2.gr_model.act.policy import act_together
from gr2.gr_model.model.config import CameraSpec, ModelConfig
from gr2.gr_model.model.generation import imagine_frames
from gr2.gr_model.model.normalization import Statistics
from gr2.gr_model.model.objectives import drop_cameras, read_chunk, read_context, rows_of, training_losses
from gr2.gr_model.model.release import config_from_dict, load_release
from gr2.gr_model.model.world_model import WorldModel
from gr2.gr_model.train.module import evaluate
from gr2.gr_model.train.options import FinetuneOptions
from gr2.gr_model.train.stages import finetune

ROBOTS = (TOOL_ARM, SIX_JOINTS)
NAMES = (*TOOL_ARM.cameras, *SIX_JOINTS.cameras)


def mixture_config(**changes: Any) -> ModelConfig:
    cameras = tuple(CameraSpec(name=name, grid=(4, 4)) for name in NAMES)
    return small_config("raster", cameras=cameras, embodiments=ROBOTS, **changes)


def mixed_batch(config: ModelConfig, seed: int = 0) -> dict[str, Any]:
    """Two samples of the tool arm between three of the six joints, each with its own cameras."""
    batch, robots = make_batch(config, 5, seed), torch.tensor([1, 0, 1, 0, 1])
    for camera in NAMES:
        batch["camera_mask"][camera] = robots == int(camera in CAMERAS)
    batch["action_mask"][2, 3:] = False
    batch["actions"][robots == 1, :, 6] = torch.randint(2, (3, config.chunk_length)).float()
    return batch | {"embodiment": robots}


def physical_statistics(model: WorldModel) -> Statistics:
    """Different statistics for each robot, in the columns of its slots."""
    slots, rows = model.config.slots, []
    for number, coding in enumerate(slots.codings):
        n, k = coding.num_features, model.config.chunk_length
        own = coding.shape(k).continuous
        rows.append(
            Statistics(
                state_mean=(0.5 + number,) * n,
                state_std=(2.0 + number,) * n,
                action_mean=((0.25 * (number + 1),) * len(own),) * k,
                action_std=((2.0 + number,) * len(own),) * k,
            ).in_slots(slots, number, k)
        )
    return Statistics.stack(rows)


@pytest.fixture(scope="module")
def model() -> WorldModel:
    model = make_model(mixture_config(head=kinds.small("regression")))
    model.set_statistics(physical_statistics(model))
    return model


def test_losses_of_a_mixed_batch_are_those_of_its_robots_weighted_by_their_numbers(model: WorldModel) -> None:
    batch, h = mixed_batch(model.config), model.config.max_context
    together = training_losses(model, batch, with_actions=True, with_frames=True)
    binary = torch.zeros(model.config.slots.width, dtype=torch.bool)
    binary[list(model.config.chunk_shape.binary)] = True
    sums, counts = dict.fromkeys(("continuous_loss", "binary_loss", "frame_loss"), 0.0), dict[str, float]()
    for robot in (0, 1):
        own = rows_of(batch, batch["embodiment"] == robot)
        alone, mask = training_losses(model, own, with_actions=True, with_frames=True), read_chunk(model, own, h)[1]
        codes = 16 * sum(int(keep.sum()) for keep in own["camera_mask"].values())
        weights = {"continuous_loss": mask[..., ~binary].sum(), "binary_loss": mask[..., binary].sum()}
        for name, weight in (weights | {"frame_loss": torch.tensor(codes)}).items():
            sums[name] += float(weight * alone[name])
            counts[name] = counts.get(name, 0.0) + float(weight)
    for name, total in sums.items():
        assert float(together[name]) == pytest.approx(total / counts[name], rel=1e-4), name


def test_what_a_robot_lacks_changes_nothing_and_gets_no_gradient(model: WorldModel) -> None:
    batch = rows_of(mixed_batch(model.config), slice(0, 5, 2))  # six joints: 7 numbers of 16 and of 8
    other = {**batch, "states": batch["states"].clone(), "actions": batch["actions"].clone()}
    other["states"][..., 7:], other["actions"][..., 7:] = 5.0, 5.0
    other["codes"] = {c: v if c in CAMERAS else 19 - v for c, v in batch["codes"].items()}
    losses = [training_losses(model, b, with_actions=True, with_frames=True) for b in (batch, other)]
    assert all(torch.equal(losses[0][name], losses[1][name]) for name in losses[0])
    chunks = [model.act(read_context(model, b)[0]) for b in (batch, other)]
    assert torch.equal(*chunks) and not chunks[0][..., ~model.present[1]].any()
    model.zero_grad()
    losses[0]["action_loss"].backward()
    last = model.head.decoder.net[-1].weight.grad.unflatten(0, (model.config.chunk_length, -1))  # type: ignore[union-attr,operator,index]
    assert last[:, model.present[1]].any() and not last[:, ~model.present[1]].any()


def test_each_robot_is_normalized_by_its_own_statistics(model: WorldModel) -> None:
    batch, h = mixed_batch(model.config), model.config.max_context
    chunk, counts = read_chunk(model, batch, h)
    robots, slots = batch["embodiment"], model.config.slots
    physical = slots.encode(batch["states"][:, h - 1], batch["actions"], robots)
    for robot in (0, 1):
        own = [c for c in slots.action_columns[robot] if c in model.continuous]
        rows = robots == robot
        wanted = (physical[rows][..., own] - 0.25 * (robot + 1)) / (2.0 + robot)
        torch.testing.assert_close(chunk[rows][..., own], torch.where(counts[rows][..., own], wanted, 0.0))
        # an answer does not depend on which robots stand beside it
        alone = model.act(read_context(model, rows_of(batch, rows))[0])
        torch.testing.assert_close(model.act(read_context(model, batch)[0])[rows], alone)
    kept = model.get_statistics()
    assert Statistics.from_dict(json.loads(json.dumps(kept.to_dict()))) == kept
    assert Statistics.stack([kept.row(0), kept.row(1)]) == kept


def test_the_control_rate_is_an_input(model: WorldModel) -> None:
    fast = replace(SIX_JOINTS, name="fast", control_hz=50.0)
    twins = make_model(replace(model.config, embodiments=(SIX_JOINTS, fast), cameras=model.config.cameras[2:]))
    torch.nn.init.normal_(twins.embed.rate.weight, std=0.3)  # type: ignore[union-attr]
    batch = rows_of(mixed_batch(model.config), slice(0, 1))
    chunks = [twins.act(read_context(twins, {**batch, "embodiment": torch.tensor([i])})[0]) for i in (0, 1)]
    assert (chunks[0] - chunks[1]).abs().max() > 1e-4
    states = [twins.embed.states(batch["states"], torch.tensor([i])) for i in (0, 1)]
    rates = twins.embed.rates(torch.tensor([0, 1]))
    torch.testing.assert_close(states[1] - states[0], (rates[1] - rates[0]).expand_as(states[0]))
    assert (rates[1] - rates[0]).abs().max() > 0.1 and WorldModel(small_config()).embed.rate is None


@pytest.mark.parametrize("kind", ["cvae", "flow", "diffusion", "tokens", "bins"])
def test_every_head_learns_and_answers(kind: kinds.HeadKind) -> None:
    mixed = make_model(mixture_config(head=kinds.small(kind)))
    mixed.set_statistics(physical_statistics(mixed))
    batch = mixed_batch(mixed.config)
    assert torch.isfinite(training_losses(mixed.train(), batch, with_actions=True, with_frames=True)["action_loss"])
    context, _ = read_context(mixed.eval(), batch)
    chunk = mixed.act(context, noise=torch.randn(5, mixed.head.noise_dim))
    assert not chunk[~mixed.present[batch["embodiment"]][:, None].expand_as(chunk)].any()
    frames = imagine_frames(mixed, context, frame_step=2)  # along the model's own trajectories
    assert set(frames) == set(NAMES)


def test_a_model_of_several_robots_must_know_whose_numbers_it_sees(model: WorldModel) -> None:
    batch = mixed_batch(model.config)
    del batch["embodiment"]
    with pytest.raises(ShapeError, match=r"among tool_arm, six_joints, got none"):
        model.act(read_context(model, batch)[0])


def test_cameras_are_hidden_but_never_the_last(model: WorldModel) -> None:
    context, _ = read_context(model, mixed_batch(model.config))
    assert context.camera_mask is not None
    for probability in (0.0, 0.5, 1.0):
        torch.manual_seed(1)
        masks = drop_cameras(context, probability).camera_mask
        assert masks is not None
        here, kept = (torch.stack([m[name] for name in NAMES]) for m in (context.camera_mask, masks))
        assert bool(kept.any(0).all()) and not (kept & ~here).any()
        assert torch.equal(kept, here) == (probability != 0.5)
    with pytest.raises(ConfigError, match=r"camera_dropout: expected a probability"):
        mixture_config(camera_dropout=1.5)


def test_metrics_are_those_of_each_robot_too(model: WorldModel) -> None:
    metrics = evaluate(model, [mixed_batch(model.config)], with_actions=True)
    assert {"frame_loss", "tool_arm/frame_loss", "six_joints/frame_loss", "tool_arm/action_l1_mm"} <= set(metrics)
    assert metrics["action_l1_joint_position"] == metrics["six_joints/action_l1_joint_position"]
    assert metrics["frame_loss"] == pytest.approx(
        0.4 * metrics["tool_arm/frame_loss"] + 0.6 * metrics["six_joints/frame_loss"]
    )


def test_configurations_of_one_robot_and_of_several_are_read() -> None:
    config = mixture_config()
    values = json.loads(json.dumps(asdict(config)))
    assert config_from_dict(values) == config
    old = json.loads(json.dumps(asdict(small_config())))
    old["embodiment"] = old.pop("embodiments")[0]
    assert config_from_dict(old) == small_config()
    with pytest.raises(CheckpointError, match="different names"):
        config_from_dict(values | {"embodiments": [values["embodiments"][0]] * 2})
    assert [config.place_of(robot) for robot in ("six_joints", replace(TOOL_ARM, cameras=()))] == [1, 0]
    assert small_config().place_of(None) == small_config().place_of(SIX_JOINTS) == 0
    for robot, reason in ((None, "got none"), ("dog", "got 'dog'"), (SO101, "got one that fits so101")):
        with pytest.raises(ConfigError, match=rf"\(tool_arm, six_joints\), {reason}; name it, as in load_policy"):
            config.place_of(robot)


def observe(robot: Embodiment) -> Observation:
    images = {camera: np.zeros((64, 64, 3), np.uint8) for camera in robot.cameras}
    state = np.full(robot.state_dim, 0.01)
    if robot is TOOL_ARM:
        state[3:7] = 0, 0, 0, 1
    return Observation(images=images, instruction="fold it", time=3.0, state=state)


def test_two_robots_train_one_model_that_acts_for_each(tmp_path: Path) -> None:
    folders = [str(write_tokens(tmp_path / robot.name, robot, 12)) for robot in ROBOTS]
    out = tmp_path / "run"
    finetune(FinetuneOptions(tokens=folders, out=out, **STEPS))
    release = load_release(out)
    assert release.model.config.embodiments == ROBOTS and release.frame_steps == {"tool_arm": 1, "six_joints": 1}
    assert {camera.name for camera in release.model.config.cameras} == set(NAMES)
    arm, joints = load_policy(out, embodiment=TOOL_ARM), load_policy(out, embodiment="six_joints")
    assert arm.cameras == list(TOOL_ARM.cameras) and arm.embodiment is not joints.embodiment
    pose, motion = arm.act(observe(TOOL_ARM)), joints.act(observe(SIX_JOINTS))
    assert isinstance(pose, ActionTrajectory) and pose.dt == pytest.approx(1 / 30)
    assert isinstance(motion, JointTrajectory) and motion.dt == pytest.approx(0.2) and motion.positions.shape == (10, 6)
    arm.reset(), joints.reset()
    joints.model = arm.model
    again = act_together([arm, joints], [observe(TOOL_ARM), observe(SIX_JOINTS)])
    np.testing.assert_allclose(again[0].positions, pose.positions, atol=1e-5)  # type: ignore[union-attr]
    np.testing.assert_allclose(again[1].positions, motion.positions, atol=1e-5)  # type: ignore[union-attr]
    with pytest.raises(ConfigError, match=r"trained on \(tool_arm, six_joints\), got none; name it"):
        load_policy(out)
    assert open_policy(str(out), embodiment=TOOL_ARM).act(observe(TOOL_ARM)).dt == pytest.approx(1 / 30)
    result = benchmark(policy=str(out), tokens=folders[::-1], held_out=0.0, max_windows=32)
    assert set(result["robots"]) == {"tool_arm", "six_joints"}
    assert set(result["robots"]["six_joints"]["signals"]) == {"joint_positions", "gripper"}
    # more of one robot, numbered as the model numbers it; the other keeps its statistics
    finetune(FinetuneOptions(tokens=folders[1:], out=tmp_path / "more", init=out, **STEPS))
    before, after = (load_release(folder).model.get_statistics() for folder in (out, tmp_path / "more"))
    assert after.row(0) == before.row(0) and after.row(1) != after.row(0)
    third = write_tokens(tmp_path / "so101", SO101, 4)
    with pytest.raises(ConfigError, match=r"finetuned for tool_arm and six_joints, got data of so101"):
        finetune(FinetuneOptions(tokens=[str(third)], out=tmp_path / "no", init=out, **STEPS))


def test_a_store_refuses_robots_that_a_model_does_not_know(tmp_path: Path) -> None:
    from gr2.data_pipeline.loading.token_store import TokenStore

    store = TokenStore.open([write_tokens(tmp_path / "a", SIX_JOINTS, 2), write_tokens(tmp_path / "b", TOOL_ARM, 2)])
    store.number_embodiments(ROBOTS)
    assert store.embodiment_of(np.arange(4)).tolist() == [1, 1, 0, 0] and store.embodiments == ROBOTS
    with pytest.raises(DataError, match=r"expected episodes of so101, got some of tool_arm .*leave out the folders"):
        store.number_embodiments((SO101,))
