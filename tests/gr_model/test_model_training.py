"""Training learns, resumes exactly and refuses what it cannot use."""

from __future__ import annotations

import csv
import math
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from model_cases import RandomLoader, make_batch, make_model, small_config

from gr2.cvae_head.kinds import HeadKind, HeadOptions, small
from gr2.errors import CheckpointError, DataError, ShapeError
from gr2.gr_model.model.normalization import Statistics, measure_statistics
from gr2.gr_model.model.objectives import evaluation_metrics, training_losses
from gr2.gr_model.train.averaging import WeightAverage
from gr2.gr_model.train.beginning import adapted
from gr2.gr_model.train.loop import train
from gr2.gr_model.train.metrics_log import MetricsLog
from gr2.gr_model.train.module import TrainingModule
from gr2.gr_model.train.optimizer import BatchedMuon, MuonAdamW, muon_matrices
from gr2.gr_model.train.recipe import TrainingConfig, learning_rate_factor


def fit(out: Path, *, steps: int = 4, stop_after: int | None = None, **changes: Any) -> TrainingModule:
    """Train a small model with every kind of randomness switched on."""
    config = small_config(dropout=0.1, token_dropout=0.1, text_dropout=0.2, state_dropout=0.2, scored_share=0.5)
    settings = {"weight_average": 0.9, "frame_fraction": 0.5, "warmup": 2, "precision": "32"} | changes
    module = TrainingModule(make_model(config), TrainingConfig(**settings), steps=steps)
    train(
        module=module,
        loader=RandomLoader(config),
        validation=[make_batch(config, seed=99)],
        out=out,
        batch_size=4,
        log_every=1,
        validate_every=2,
        checkpoint_every=1,
        stop_after=stop_after,
    )
    return module


def read_rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("precision", ["32", "bf16"])
def test_resumed_training_equals_unbroken_training(tmp_path: Path, precision: str) -> None:
    whole = fit(tmp_path / "whole", precision=precision)
    fit(tmp_path / "broken", stop_after=2, precision=precision)
    resumed = fit(tmp_path / "broken", precision=precision)
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, resumed.model.state_dict()[name]), name
    assert whole.average is not None and resumed.average is not None
    assert all(torch.equal(a, b) for a, b in zip(whole.average.values, resumed.average.values, strict=True))
    assert whole.last_metrics == resumed.last_metrics
    rows = [read_rows(tmp_path / name / "metrics.csv") for name in ("whole", "broken")]
    losses = [[(row["step"], row["train/loss"], row["val/action_l1_mm"]) for row in each] for each in rows]
    assert losses[0] == losses[1]
    assert [row[0] for row in losses[0]] == ["1", "2", "3", "4"]


def test_muon_turns_matrices_whole_and_adamw_moves_the_rest() -> None:
    torch.manual_seed(0)
    model = torch.nn.ModuleDict({"trunk": torch.nn.Linear(8, 16), "other": torch.nn.Linear(8, 4)})
    trunk, other = model["trunk"], model["other"]
    before = [p.detach().clone() for p in (trunk.weight, other.weight)]
    optimizer = MuonAdamW(
        model, [trunk.weight], learning_rate=0.01, muon_learning_rate=0.01, weight_decay=0.0, betas=(0.9, 0.95)
    )
    assert [group["lr"] for group in optimizer.param_groups] == [0.01] * 3
    x = torch.randn(1, 8)
    (trunk(x).sum() + other(x).sum()).backward()  # gradients of rank one
    optimizer.step()
    moved = [(p - b).detach() for p, b in zip((trunk.weight, other.weight), before, strict=True)]
    rms = 0.01 * 0.2 * 16**0.5  # one singular value of about 1, scaled by 0.2 sqrt(larger side)
    assert torch.linalg.matrix_norm(moved[0], 2).item() == pytest.approx(rms, rel=0.35)
    assert moved[1].abs().mean().item() == pytest.approx(0.01, rel=0.01)
    again = MuonAdamW(
        model, [trunk.weight], learning_rate=0.5, muon_learning_rate=0.5, weight_decay=0.0, betas=(0.9, 0.95)
    )
    again.load_state_dict(optimizer.state_dict())
    assert [group["lr"] for group in again.param_groups] == [0.01] * 3
    both = [trunk.weight, other.weight]
    unlike = MuonAdamW(model, both, learning_rate=0.5, muon_learning_rate=0.5, weight_decay=0.0, betas=(0.9, 0.95))
    with pytest.raises(CheckpointError, match=r"another version of gr2.*--init"):
        unlike.load_state_dict(optimizer.state_dict())


@pytest.mark.parametrize(("kind", "trained"), [("cvae", 0), ("regression", 0), ("flow", 13), ("diffusion", 13)])
def test_muon_trains_the_trunk_and_all_layers_of_a_denoising_head(kind: HeadKind, trained: int) -> None:
    model = make_model(small_config(head=small(kind)))
    matrices = muon_matrices(model)
    assert sum(any(p is m for m in matrices) for p in model.gpt.parameters()) == 4 * len(model.gpt.blocks)
    assert sum(any(p is m for m in matrices) for p in model.head.parameters()) == trained
    assert len(matrices) == 4 * len(model.gpt.blocks) + trained


@pytest.mark.parametrize("bfloat16", [False, True])
def test_muon_of_several_matrices_is_that_of_torch_up_to_rounding(bfloat16: bool) -> None:
    torch.manual_seed(0)
    start = [torch.randn(shape) for shape in ((8, 24), (24, 8), (16, 16), (8, 24), (8, 24))]
    ours, theirs = ([torch.nn.Parameter(matrix.clone()) for matrix in start] for _ in range(2))
    options: dict[str, Any] = {"lr": 0.02, "weight_decay": 0.1}
    optimizers = (
        BatchedMuon(ours, bfloat16=bfloat16, **options),
        torch.optim.Muon(theirs, adjust_lr_fn="match_rms_adamw", **options),
    )
    for step in range(5):
        for number, pair in enumerate(zip(ours, theirs, strict=True)):
            gradient = None if (step, number) == (2, 3) else torch.randn(pair[0].shape)
            for parameter in pair:
                parameter.grad = None if gradient is None else gradient.clone()
        for optimizer in optimizers:
            optimizer.step()
    for matrix, mine, reference in zip(start, ours, theirs, strict=True):
        assert (mine - reference).norm() < 0.02 * (reference - matrix).norm()
    assert set(optimizers[0].state_dict()["state"][0]) == set(optimizers[1].state_dict()["state"][0])


def test_finished_run_is_not_repeated(tmp_path: Path) -> None:
    first = fit(tmp_path)
    again = fit(tmp_path)
    assert torch.equal(first.model.frame_codes.weight, again.model.frame_codes.weight)
    assert first.last_metrics == again.last_metrics


def test_a_finished_run_goes_on_where_more_steps_are_asked_for(tmp_path: Path, capsys) -> None:
    first = fit(tmp_path, steps=3)
    longer = fit(tmp_path, steps=5)
    assert longer.trainer.global_step == 5
    assert not torch.equal(first.model.frame_codes.weight, longer.model.frame_codes.weight)
    assert [row["step"] for row in read_rows(tmp_path / "metrics.csv")] == ["1", "2", "3", "4", "5"]
    assert "resumes a run of --steps 3, now 5: the schedule is the new one from here on" in capsys.readouterr().err
    shorter = fit(tmp_path, steps=4, learning_rate=0.01)
    assert torch.equal(shorter.model.frame_codes.weight, longer.model.frame_codes.weight)
    told = capsys.readouterr()
    assert "--learning-rate 0.001, now 0.01" in told.err and "holds step 5 already, asked for 4" in told.out


def test_frames_and_actions_of_one_batch_are_learned() -> None:
    config = small_config(max_context=1)
    model = make_model(config)
    for block in model.gpt.blocks:
        torch.nn.init.normal_(block.attention.qkv.weight, std=0.02)  # type: ignore[union-attr,arg-type]
    batch = make_batch(config, size=4)
    model.set_statistics(
        measure_statistics(batch["states"][:, 0].numpy(), batch["actions"].numpy(), batch["action_mask"].numpy())
    )
    before = evaluation_metrics(model, batch, with_actions=True, with_frames=True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0)
    model.train()
    for _ in range(250):
        losses = training_losses(model, batch, with_actions=True, with_frames=True)
        optimizer.zero_grad()
        (losses["action_loss"] + losses["frame_loss"]).backward()
        optimizer.step()
    after = evaluation_metrics(model.eval(), batch, with_actions=True, with_frames=True)
    assert after["action_l1_mm"] < 0.15 * before["action_l1_mm"]
    assert after["action_l1_deg"] < 0.15 * before["action_l1_deg"]
    assert after["gripper_accuracy"] == 1
    assert after["token_accuracy"] > 0.95


def test_numbers_that_masks_leave_out_may_be_nan() -> None:
    model = make_model(small_config()).train()
    batch = make_batch(model.config)
    batch["action_mask"][1:, 3:] = False
    batch["frame_mask"][2, 0] = batch["state_mask"][1, -1] = False
    holes = dict(batch)
    holes["actions"] = batch["actions"].masked_fill(~batch["action_mask"][..., None], math.nan)
    kept = batch["frame_mask"] & batch["state_mask"]
    holes["states"] = batch["states"].masked_fill(~kept[..., None], math.nan)
    found = []
    for given in (batch, holes):
        torch.manual_seed(4)
        losses = training_losses(model, given, with_actions=True, with_frames=True, state_shares=(1.0, 1.0))
        sum(losses[name] for name in ("action_loss", "frame_loss")).backward()
        gradients = [p.grad.clone() for p in model.parameters() if p.grad is not None]
        model.zero_grad()
        found.append((losses, gradients))
    assert all(torch.equal(found[0][0][name], found[1][0][name]) for name in found[0][0])
    assert all(torch.equal(a, b) for a, b in zip(found[0][1], found[1][1], strict=True))


@pytest.mark.parametrize("code", [-1, 20])
def test_a_code_outside_the_codebook_is_refused(code: int) -> None:
    model = make_model(small_config())
    batch = make_batch(model.config)
    batch["codes"]["static"][1, 0, 3] = code
    with pytest.raises(ShapeError, match=r"codes\[static\]: expected values in \[0, 20\)"):
        training_losses(model, batch, with_actions=False, with_frames=True)


def test_loss_that_is_not_finite_names_the_step(tmp_path: Path) -> None:
    config = small_config()
    module = TrainingModule(make_model(config), TrainingConfig(precision="32"), steps=3)
    torch.nn.init.constant_(module.model.embed.state.weight, torch.nan)
    with pytest.raises(DataError, match="at step 0"):
        train(module=module, loader=RandomLoader(config), validation=[], out=tmp_path, batch_size=4)


def test_damaged_or_foreign_checkpoints_are_refused(tmp_path: Path) -> None:
    fit(tmp_path, stop_after=1)
    other = small_config(depth=3)
    module = TrainingModule(make_model(other), TrainingConfig(), steps=2)
    with pytest.raises(CheckpointError, match="depth"):
        train(module=module, loader=RandomLoader(other), validation=[], out=tmp_path, batch_size=4)
    whole = (tmp_path / "last.ckpt").read_bytes()
    (tmp_path / "last.ckpt").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match="cannot be read"):
        fit(tmp_path)


def test_pretraining_needs_no_actions(tmp_path: Path) -> None:
    config = small_config()
    before = make_model(config).head.state_dict()
    module = fit(tmp_path, with_actions=False)
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.model.head.state_dict().items())
    assert set(module.last_metrics) == {"frame_loss", "token_accuracy", "copy_accuracy", "changed_accuracy"}


def test_share_of_frame_steps_and_schedule() -> None:
    module = TrainingModule(make_model(small_config()), TrainingConfig(frame_fraction=0.25), steps=9)
    assert sum(module.predicts_frames(step) for step in range(100)) == 25
    rates = [learning_rate_factor(step, steps=100, warmup=10, final=0.1) for step in range(101)]
    assert rates[0] == pytest.approx(0.1) and max(rates) == 1 and rates[-1] == pytest.approx(0.1)
    assert sorted(rates[10:], reverse=True) == rates[10:]


def test_weight_average_follows_the_formula() -> None:
    layer = torch.nn.Linear(2, 1, bias=False)
    average = WeightAverage(layer, 0.5)
    expected = layer.weight.detach().clone()
    for update in range(1, 30):
        torch.nn.init.normal_(layer.weight)
        average.update()
        decay = min(0.5, (1 + update) / (10 + update))
        expected = decay * expected + (1 - decay) * layer.weight.detach()
    current = layer.weight.detach().clone()
    with average.applied():
        torch.testing.assert_close(layer.weight.detach(), expected)
    assert torch.equal(layer.weight, current)
    average.copy_to_module()
    torch.testing.assert_close(layer.weight.detach(), expected)


def test_statistics_center_and_scale_and_keep_constants() -> None:
    batch = make_batch(small_config(), size=200)
    states, actions = batch["states"][:, 1].numpy(), batch["actions"].numpy()
    states[:, 7] = 0.5
    statistics = measure_statistics(states, actions)
    assert statistics.state_mean[9] == pytest.approx(0.5) and statistics.state_std[9] == 1.0
    model = make_model(small_config())
    model.set_statistics(statistics)
    assert np.allclose(model.get_statistics().action_std, statistics.action_std)
    with pytest.raises(DataError, match="0 steps"):
        measure_statistics(states, actions, np.zeros(actions.shape[:2], dtype=bool))
    assert Statistics.neutral(11, 5).state_std == (1.0,) * 11


def test_log_survives_a_resume(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "metrics.csv")
    log.add(1, {"train/loss": 2.0})
    log.add(2, {"train/loss": 1.0})
    log.add(2, {"val/token_accuracy": 0.5})
    log.add(3, {"train/loss": 0.5})
    again = MetricsLog(tmp_path / "metrics.csv", resume_step=2)
    again.add(3, {"train/loss": 0.25})
    rows = read_rows(tmp_path / "metrics.csv")
    assert [row["train/loss"] for row in rows] == ["2", "1", "0.25"]
    assert [row["val/token_accuracy"] for row in rows] == ["", "0.5", ""]


@pytest.mark.parametrize(("border", "count"), [(1e9, 1), (1e-9, 0)])
def test_a_collapsed_posterior_is_named_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, border: float, count: int
) -> None:
    monkeypatch.setattr("gr2.cvae_head.cvae.COLLAPSED_KL", border)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(tmp_path, steps=4)
    messages = [str(w.message) for w in caught if "posterior collapse" in str(w.message)]
    assert len(messages) == count
    assert all(m.startswith("step 2: cvae head: ") and "--head.kl-weight" in m for m in messages)


def test_a_head_with_other_settings_keeps_its_weights() -> None:
    model = make_model(small_config(head=small("diffusion")))
    kept = adapted(model, HeadOptions(draws=2, steps=3), model.config.embodiments)
    assert (kept.config.head.draws, kept.config.head.steps) == (2, 3)
    assert all(torch.equal(kept.state_dict()[name], value) for name, value in model.state_dict().items())
    anew = adapted(
        model, HeadOptions(prediction="epsilon"), model.config.embodiments
    )  # the same shapes say another thing
    same = {name: torch.equal(anew.state_dict()[name], value) for name, value in model.state_dict().items()}
    assert all(same[name] for name in same if not name.startswith("head."))
    assert not all(same[name] for name in same if name.startswith("head."))


def test_a_model_for_chunks_of_another_length_keeps_its_trunk() -> None:
    model = make_model(small_config(head=small("flow")))
    other = adapted(model, HeadOptions(), model.config.embodiments, chunk_length=model.config.chunk_length + 3)
    assert other.config.chunk_length == model.config.chunk_length + 3
    state, kept = other.state_dict(), model.state_dict()
    assert all(torch.equal(state[name], kept[name]) for name in kept if name.startswith("trunk."))
    assert not any(
        torch.equal(state[name], value)
        for name, value in kept.items()
        if name.startswith("head.") and name.endswith("weight") and value.ndim == 2 and state[name].shape == value.shape
    )
