"""Errors of predicted chunks: units, guesses, and the command on a robot of five joints."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from robot_cases import SO101, STEPS, write_tokens
from scipy.spatial.transform import Rotation

from gr2.benchmarks.actions.errors import METHODS, ErrorTally, SignalErrors, hold_chunk, part_errors, unit_of
from gr2.benchmarks.actions.run import _summary, benchmark
from gr2.cvae_head.signals import SignalCoding, coding_of
from gr2.embodiment import TOOL_ARM
from gr2.errors import ConfigError
from gr2.gr_model.train.options import FinetuneOptions, TrainingOptions
from gr2.gr_model.train.stages import finetune, pretrain


def test_errors_are_in_millimeters_degrees_and_shares() -> None:
    position, rotation, gripper = coding_of(TOOL_ARM).parts
    wanted = np.zeros((1, 4, 8))
    wanted[..., 6] = 1
    got = wanted.copy()
    got[..., 0] += 0.003
    got[..., 3:7] = Rotation.from_rotvec([0, 0, np.deg2rad(30)]).as_quat()
    got[0, :2, 7] = 1
    np.testing.assert_allclose(part_errors(position, got, wanted), 1.0)  # a mean over three axes
    np.testing.assert_allclose(part_errors(rotation, got, wanted), 30)
    np.testing.assert_allclose(part_errors(gripper, got, wanted), [[100, 100, 0, 0]])
    assert [unit_of(part)[1] for part in (position, rotation, gripper)] == ["mm", "deg", "% wrong"]


def test_holding_keeps_the_robot_where_it_is() -> None:
    coding, rng = SignalCoding(SO101), np.random.default_rng(0)
    state = rng.normal(size=(5, 6))
    np.testing.assert_allclose(coding.decode(state, hold_chunk(coding, state, 3)), np.repeat(state[:, None], 3, axis=1))


def test_windows_are_averaged_within_their_episode_first() -> None:
    tally, keep = ErrorTally(2), np.array([True, False])
    tally.add("a", "policy", 7, np.array([1.0, 9.0]), keep)
    tally.add("a", "policy", 7, np.array([3.0, 5.0]), np.array([True, True]))
    tally.add("a", "policy", 9, np.array([8.0, 9.0]), keep)
    np.testing.assert_array_equal(tally.table("a", "policy"), [[2.0, 5.0], [8.0, np.nan]])


def test_the_command_measures_a_policy_beside_both_guesses(tmp_path: Path) -> None:
    tokens, out = write_tokens(tmp_path / "tokens", SO101), tmp_path / "run"
    finetune(FinetuneOptions(tokens=[str(tokens)], out=out, **STEPS))
    file = tmp_path / "actions.json"
    result = benchmark(policy=str(out), tokens=[str(tokens)], held_out=0.0, json=file)
    assert result["episodes"] == 40 and set(result["signals"]) == {"joint_positions", "gripper"}
    joints = result["signals"]["joint_positions"]
    assert joints["unit"] == "stored" and len(joints["by_step"]["hold"]) == 10
    # the motions wander: holding gets worse with every step
    assert joints["by_step"]["hold"][0] < joints["by_step"]["hold"][4] < joints["by_step"]["hold"][9]
    assert json.loads(file.read_text())["signals"].keys() == result["signals"].keys()
    pretrain(TrainingOptions(tokens=[str(tokens)], out=tmp_path / "pretrained", **STEPS))
    with pytest.raises(ConfigError, match="expected a finetuned model"):
        benchmark(policy=str(tmp_path / "pretrained"), tokens=[str(tokens)])


def test_a_signal_that_never_moves_has_nothing_to_beat() -> None:
    still = {method: np.zeros((3, 4)) for method in METHODS}
    summary = _summary(SignalErrors(name="wheel", unit="m/s", by_method=still))
    assert summary["constant"] and not summary["beats_both"]
