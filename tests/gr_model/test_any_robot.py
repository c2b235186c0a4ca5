"""A robot that nobody named before: from token shards to a policy that answers with its signals, at its rate."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gr2.contracts import ActionTrajectory, Observation, SignalTrajectory
from gr2.data_pipeline.embodiments import EmbodimentTally
from gr2.data_pipeline.files import array_bytes
from gr2.data_pipeline.store.shards import ShardWriter, finished_shards
from gr2.data_pipeline.store.stages import Tally, begin_stage
from gr2.data_pipeline.tokens import finish_token_shards
from gr2.embodiment import TOOL_ARM, Embodiment, Signal
from gr2.errors import ConfigError, DataError, ShapeError
from gr2.gr_model.act.loading import load_policy
from gr2.gr_model.act.remote import pack_observation, pack_trajectory, unpack_observation, unpack_trajectory
from gr2.gr_model.model.release import load_release
from gr2.gr_model.train.options import FinetuneOptions, TrainingOptions
from gr2.gr_model.train.stages import finetune, pretrain
from gr2.gr_model.train.tokenizer_stages import tokenizer_facts
from gr2.tokenizers.text_weights import load_text_encoder
from gr2.tokenizers.weights import load_vqgan

CAMERAS = ("front", "wrist", "overhead")
JOINTS = (
    Signal(name="joint_positions", width=5, kind="joint_position", unit=""),
    Signal(name="gripper", width=1, kind="gripper", unit="as stored", binary=False),
)
SO101 = Embodiment(name="so101", cameras=CAMERAS, state=JOINTS, action=JOINTS, control_hz=5)
STEPS: dict[str, Any] = {"steps": 2, "batch_size": 4, "threads": 1, "device": "cpu"}


def write_tokens(out: Path, robot: Embodiment, num_episodes: int = 40) -> Path:
    """Token shards that the shipped tokenizers might have made, of random codes and smooth motions."""
    encoder, rng = load_text_encoder("small"), np.random.default_rng(0)
    facts = tokenizer_facts(load_vqgan("small"), encoder)
    num_codes = facts["grid"][0] * facts["grid"][1]
    begin_stage(out, "token_shards", {}, overwrite=False)
    robots = EmbodimentTally()
    description = f'{{"fps": {robot.control_hz}, "frame_stride": 1, "control_hz": {robot.control_hz}}}'.encode()
    with ShardWriter(out, max_bytes=1 << 30) as writer:
        for number in range(num_episodes):
            path = np.cumsum(rng.normal(0, 0.02, (21, robot.state_dim)), axis=0).astype(np.float32)
            for signals, slices in ((robot.state, robot.state_slices()), (robot.action, robot.action_slices())):
                if signals is robot.state:
                    for signal in signals:
                        if signal.kind == "rotation":
                            path[:, slices[signal.name]] = [0, 0, 0, 1]
            states = path[:-1]
            wanted = [path[1:, robot.state_slices()[signal.name]] for signal in robot.action]
            actions = np.concatenate(wanted, axis=1)
            robots.add(robot, robot.cameras, states, actions)
            codes = rng.integers(0, facts["codebook_size"], (20, num_codes)).astype(np.uint16)
            members = {f"codes.{camera}.npy": array_bytes(codes) for camera in robot.cameras}
            members |= {"states.npy": array_bytes(states), "actions.npy": array_bytes(actions), "json": description}
            row = {"frames": 20, "stride": 1, "steps": 20, "cameras": list(robot.cameras), "embodiment": 0}
            row |= {"state_dim": robot.state_dim, "action_dim": robot.action_dim, "code_bytes": num_codes * 2}
            writer.write(f"episode_{number}", members, row | {"text": 0, "video": f"v{number}"})
        writer.finish_shard({"sentences": ["fold it"], "embodiments": robots.to_list()})
    finish_token_shards(out, {}, Tally(), [tar.name for tar in finished_shards(out)], facts, encoder.encode)
    return out


def observe(robot: Embodiment, width: int | None = None) -> Observation:
    state = np.zeros(robot.state_dim if width is None else width)
    images = {camera: np.zeros((64, 64, 3), np.uint8) for camera in robot.cameras}
    return Observation(images=images, instruction="fold it", time=3.0, state=state + 0.01)


def test_five_joints_at_five_hertz_become_a_policy(tmp_path: Path) -> None:
    tokens, out = write_tokens(tmp_path / "tokens", SO101), tmp_path / "run"
    finetune(FinetuneOptions(tokens=[str(tokens)], out=out, **STEPS))
    release = load_release(out)
    assert release.control_hz == 5 and release.model.config.embodiment.differences(SO101) == []
    assert {camera.name for camera in release.model.config.cameras} == set(CAMERAS)
    policy = load_policy(out)
    answer = policy.act(observe(SO101))
    assert isinstance(answer, SignalTrajectory)
    assert answer.values.shape == (10, 6) and answer.dt == pytest.approx(0.2) and answer.start_time == 3.0
    again = policy.act(observe(SO101))
    np.testing.assert_array_equal(again.values, answer.values)
    one_camera = Observation(images={"wrist": np.zeros((64, 64, 3), np.uint8)}, instruction="fold it", time=0.0,
                             state=np.zeros(6))  # fmt: skip
    policy.reset()
    assert isinstance(policy.act(one_camera), SignalTrajectory)


def test_a_model_of_one_robot_starts_another_only_before_it_acts(tmp_path: Path) -> None:
    arm = Embodiment(name="arm", cameras=CAMERAS, state=TOOL_ARM.state, action=TOOL_ARM.action, control_hz=30)
    first = write_tokens(tmp_path / "arm", arm)
    second = write_tokens(tmp_path / "so101", SO101)
    pretrain(TrainingOptions(tokens=[str(first)], out=tmp_path / "pretrained", **STEPS))
    kept = load_release(tmp_path / "pretrained").model
    finetune(FinetuneOptions(tokens=[str(second)], out=tmp_path / "run", init=tmp_path / "pretrained", **STEPS))
    assert load_release(tmp_path / "run").model.config.embodiment.name == "so101"
    assert kept.config.embodiment.name == "arm"
    with pytest.raises(ConfigError, match=r"finetuned for so101, got data of arm \(.*start from a pretrained model"):
        finetune(FinetuneOptions(tokens=[str(first)], out=tmp_path / "no", init=tmp_path / "run", **STEPS))
    with pytest.raises(DataError, match=r"expected episodes of one robot, got 2 .*finetune a policy for each"):
        finetune(FinetuneOptions(tokens=[str(first), str(second)], out=tmp_path / "no", **STEPS))
    assert not (tmp_path / "no").exists()


def test_states_of_another_width_are_refused_in_a_sentence(tmp_path: Path) -> None:
    tokens, out = write_tokens(tmp_path / "tokens", SO101), tmp_path / "run"
    finetune(FinetuneOptions(tokens=[str(tokens)], out=out, **STEPS))
    with pytest.raises(ShapeError, match="6 numbers in training, 7 here"):
        load_policy(out).act(observe(SO101, 7))


def test_observations_and_answers_of_any_robot_travel() -> None:
    sent = observe(SO101)
    got, session = unpack_observation(pack_observation(sent, "s"))
    assert session == "s" and set(got.images) == set(CAMERAS)
    np.testing.assert_allclose(got.state_vector(), sent.state_vector())
    answer = SignalTrajectory(values=np.ones((3, 6)), dt=0.2, start_time=1.0)
    back = unpack_trajectory(pack_trajectory(answer))
    assert isinstance(back, SignalTrajectory) and not isinstance(back, ActionTrajectory)
    np.testing.assert_array_equal(back.values, answer.values)
    assert (back.dt, back.start_time) == (0.2, 1.0)
