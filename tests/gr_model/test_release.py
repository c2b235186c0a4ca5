"""The release format and the policy that runs from it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from model_cases import make_batch, make_context, make_model, small_config

from gr2.contracts import Observation
from gr2.cvae_head.ensemble import TemporalEnsemble
from gr2.errors import CheckpointError, ConfigError, ShapeError
from gr2.gr_model.act.loading import ReleasedPolicy
from gr2.gr_model.act.policy import GR2Policy
from gr2.gr_model.model.normalization import Statistics
from gr2.gr_model.model.release import RECORD, WEIGHTS, load_release, save_release
from gr2.gr_model.model.world_model import WorldModel
from gr2.gr_model.train.options import TrainingOptions

STATISTICS = Statistics(
    state_mean=tuple(float(i) for i in range(11)),
    state_std=(2.0,) * 11,
    action_mean=((0.01,) * 6,) * 5,
    action_std=((0.02,) * 6,) * 5,
)


def write(folder: Path) -> WorldModel:
    model = make_model(small_config())
    model.set_statistics(STATISTICS)
    save_release(
        folder,
        model,
        tokenizer="vq-1",
        text="clip-1",
        frame_step=5,
        control_hz=30.0,
        provenance={"seed": 3, "steps": 10},
    )
    return model


def test_round_trip(tmp_path: Path) -> None:
    model = write(tmp_path)
    release = load_release(tmp_path, tokenizer="vq-1", text="clip-1")
    context = make_context(model, make_batch(model.config))
    with torch.no_grad():
        assert torch.equal(release.model.act(context), model.act(context))
    assert release.model.config == model.config
    assert release.provenance["seed"] == 3 and release.provenance["command"]
    assert (release.frame_step, release.control_hz) == (5, 30.0)
    record = json.loads((tmp_path / RECORD).read_text())
    assert record["statistics"]["state_std"] == [2.0] * 11
    assert sorted(path.name for path in tmp_path.iterdir()) == ["README.md", RECORD, WEIGHTS]
    assert len({path.stat().st_mode for path in tmp_path.iterdir()}) == 1  # readable by whom the umask says


def edit(folder: Path, **changes: Any) -> None:
    record = json.loads((folder / RECORD).read_text())
    (folder / RECORD).write_text(json.dumps({**record, **changes}))


def test_whether_a_model_acts_is_kept_and_an_old_record_tells_by_its_statistics(tmp_path: Path) -> None:
    model = make_model(small_config())
    for acts in (False, True):
        model.acts = acts
        save_release(
            tmp_path, model, tokenizer="vq", text="clip", frame_step=5, control_hz=30.0, provenance={"seed": 0}
        )
        assert load_release(tmp_path).model.acts == acts  # with statistics that are the identity
    for statistics in (None, STATISTICS):
        if statistics is not None:
            model.set_statistics(statistics)
        save_release(
            tmp_path, model, tokenizer="vq", text="clip", frame_step=5, control_hz=30.0, provenance={"seed": 0}
        )
        record = json.loads((tmp_path / RECORD).read_text())
        del record["acts"]
        (tmp_path / RECORD).write_text(json.dumps(record))
        assert load_release(tmp_path).model.acts == (statistics is not None)


def test_unusable_releases_say_why(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="got no config"):
        load_release(tmp_path)
    write(tmp_path)
    with pytest.raises(CheckpointError, match="tokenizer encoder vq-2"):
        load_release(tmp_path, tokenizer="vq-2")
    with pytest.raises(CheckpointError, match="text encoder other"):
        load_release(tmp_path, text="other")
    whole = (tmp_path / WEIGHTS).read_bytes()
    (tmp_path / WEIGHTS).write_bytes(whole[:-100])
    with pytest.raises(CheckpointError, match="truncated or changed"):
        load_release(tmp_path)
    (tmp_path / WEIGHTS).unlink()
    with pytest.raises(CheckpointError, match="expected the weight file"):
        load_release(tmp_path)
    (tmp_path / WEIGHTS).write_bytes(whole)
    model = json.loads((tmp_path / RECORD).read_text())["model"]
    statistics = json.loads((tmp_path / RECORD).read_text())["statistics"]
    edit(tmp_path, statistics={**statistics, "state_mean": [1.0, *statistics["state_mean"][1:]]})
    with pytest.raises(CheckpointError, match="expected one normalization"):
        load_release(tmp_path)
    edit(tmp_path, statistics=statistics)
    edit(tmp_path, model={**model, "depth": 3})
    with pytest.raises(CheckpointError, match="tensors of the configuration"):
        load_release(tmp_path)
    edit(tmp_path, model={**model, "flux": 1})
    with pytest.raises(CheckpointError, match="flux"):
        load_release(tmp_path)
    edit(tmp_path, model={**model, "width": -1})
    with pytest.raises(CheckpointError, match="positive number"):
        load_release(tmp_path)
    edit(tmp_path, format_version=99)
    with pytest.raises(CheckpointError, match="version 1, got 99"):
        load_release(tmp_path)
    (tmp_path / RECORD).write_text("{")
    with pytest.raises(CheckpointError, match="unreadable JSON"):
        load_release(tmp_path)


SIDES = {"static": 32, "gripper": 16, "top": 8}
"""Side of each camera's image [px]."""


def observe(time: float, *, cameras: Sequence[str] = ("static", "gripper"), word: str = "go") -> Observation:
    rng = np.random.default_rng(int(10 * time))
    quaternion = rng.normal(size=4)
    return Observation(
        images={name: rng.integers(0, 255, (SIDES[name], SIDES[name], 3), dtype=np.uint8) for name in cameras},
        tool_position=rng.normal(size=3),
        tool_quaternion=quaternion / np.linalg.norm(quaternion),
        gripper_opening=1.0,
        gripper_command=1.0,
        joint_positions=np.zeros(7),
        instruction=word,
        time=time,
    )


def make_policy(model: WorldModel, **changes: Any) -> GR2Policy:
    num_codes = {SIDES["static"]: 24, SIDES["gripper"]: 16}

    def encode_images(images: np.ndarray) -> np.ndarray:
        return np.full((len(images), num_codes[images.shape[1]]), int(images.sum()) % 20)

    def encode_text(texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        rng = np.random.default_rng(len(texts[0]))
        return rng.normal(size=(1, 6, 12)), np.array([[True, True, True, False, False, False]])

    return GR2Policy(model, encode_images=encode_images, encode_text=encode_text, control_hz=30.0, **changes)


def test_policy_starts_at_the_tool_and_forgets_on_reset() -> None:
    model = make_model(small_config())
    model.set_statistics(STATISTICS)
    policy = make_policy(model, executed_steps=3)
    first = policy.act(observe(0.0))
    assert first.positions.shape == (5, 3) and first.start_time == 0.0 and first.dt == pytest.approx(1 / 30)
    assert np.abs(first.positions - observe(0.0).tool_position).max() < 0.5
    assert set(np.unique(first.gripper)) <= {0.0, 1.0}
    second = policy.act(observe(0.1))
    policy.reset()
    fresh = policy.act(observe(0.1))
    assert not np.array_equal(second.positions, fresh.positions)
    policy.reset()
    np.testing.assert_array_equal(policy.act(observe(0.0)).positions, first.positions)
    policy.reset()
    assert not np.array_equal(policy.act(observe(0.0, word="stop")).positions, first.positions)


def test_policy_may_ensemble() -> None:
    model = make_model(small_config())
    policy = make_policy(model, ensemble=TemporalEnsemble(), executed_steps=1)
    plain = make_policy(model, executed_steps=1)
    times = [0.0, 1 / 30]
    blended, newest = [policy.act(observe(t)) for t in times], [plain.act(observe(t)) for t in times]
    np.testing.assert_allclose(blended[0].positions, newest[0].positions)
    assert not np.allclose(blended[1].positions[0], newest[1].positions[0])


def test_policy_refuses_what_it_cannot_use() -> None:
    model = make_model(small_config())
    with pytest.raises(ConfigError, match="executed_steps: expected 1 to 5"):
        make_policy(model, executed_steps=6)
    policy = GR2Policy(
        model, encode_images=lambda x: x, encode_text=lambda x: (np.zeros(1), np.zeros(1)), control_hz=30.0
    )
    with pytest.raises(ShapeError, match="switch the cameras on"):
        policy.act(observe(0.0, cameras=("top",)))


def test_a_model_that_never_acted_or_has_broken_weights_is_no_policy(tmp_path: Path) -> None:
    model = make_model(small_config())
    facts = {"tokenizer": "vq", "text": "clip", "frame_step": 5, "control_hz": 30.0, "provenance": {}}
    save_release(tmp_path, model, **facts)
    with pytest.raises(ConfigError, match="never saw an action; finetune it"):
        ReleasedPolicy(load_release(tmp_path), encode_images=lambda frames: frames, encode_text=lambda texts: texts)
    with torch.no_grad():
        model.frame_codes.weight[0, 0] = torch.nan
    save_release(tmp_path, model, **facts)
    with pytest.raises(CheckpointError, match=r"NaN or infinity in frame_codes\.weight"):
        load_release(tmp_path)


@pytest.mark.parametrize(
    "wrong",
    [{"steps": 0}, {"batch_size": -8}, {"learning_rate": -1.0}, {"seed": -1}, {"warmup": -2}, {"frame_step": 0}],
)
def test_impossible_numbers_of_a_training_are_refused(wrong: dict[str, Any]) -> None:
    (name,) = wrong
    with pytest.raises(ConfigError, match=f"--{name.replace('_', '-')}: expected"):
        TrainingOptions(tokens=["t"], out=Path("o"), **wrong)
