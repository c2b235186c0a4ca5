"""A robot that nobody named before: from token shards to a policy that answers with its signals, at its rate."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from robot_cases import CAMERAS, SO101, STEPS, write_tokens

from gr2.contracts import ActionTrajectory, Observation, SignalTrajectory
from gr2.embodiment import TOOL_ARM, Embodiment
from gr2.errors import ConfigError, ShapeError
from gr2.gr_model.act.loading import load_policy
from gr2.gr_model.act.remote import pack_observation, pack_trajectory, unpack_observation, unpack_trajectory
from gr2.gr_model.model.release import load_release
from gr2.gr_model.train.options import FinetuneOptions, TrainingOptions
from gr2.gr_model.train.stages import finetune, pretrain


def observe(robot: Embodiment, width: int | None = None) -> Observation:
    state = np.zeros(robot.state_dim if width is None else width)
    images = {camera: np.zeros((64, 64, 3), np.uint8) for camera in robot.cameras}
    return Observation(images=images, instruction="fold it", time=3.0, state=state + 0.01)


def test_five_joints_at_five_hertz_become_a_policy(tmp_path: Path) -> None:
    tokens, out = write_tokens(tmp_path / "tokens", SO101), tmp_path / "run"
    finetune(FinetuneOptions(tokens=[str(tokens)], out=out, **STEPS))
    release = load_release(out)
    assert release.control_hz == 5 and release.model.config.embodiments[0].differences(SO101) == []
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
    assert load_release(tmp_path / "run").model.config.embodiments[0].name == "so101"
    assert kept.config.embodiments[0].name == "arm"
    with pytest.raises(ConfigError, match=r"finetuned for so101, got data of arm \(.*start from a pretrained model"):
        finetune(FinetuneOptions(tokens=[str(first)], out=tmp_path / "no", init=tmp_path / "run", **STEPS))
    both = [str(second), str(first)]
    with pytest.raises(ConfigError, match=r"finetuned for so101, got data of arm \(.*start from a pretrained model"):
        finetune(FinetuneOptions(tokens=both, out=tmp_path / "no", init=tmp_path / "run", **STEPS))
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
