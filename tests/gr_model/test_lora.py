"""Finetuning by changes of low rank."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from model_cases import make_batch, make_model, small_config
from robot_cases import CAMERAS, STEPS, write_tokens

from gr2.embodiment import TOOL_ARM, Embodiment
from gr2.errors import CheckpointError, ConfigError
from gr2.gr_model.model.objectives import training_losses
from gr2.gr_model.model.release import load_release
from gr2.gr_model.model.world_model import WorldModel
from gr2.gr_model.train.lora import adapt, frozen_bytes, merged, rank_of
from gr2.gr_model.train.memory_estimate import estimate_memory
from gr2.gr_model.train.optimizer import muon_matrices
from gr2.gr_model.train.options import FinetuneOptions, LoraOptions, TrainingOptions
from gr2.gr_model.train.stages import finetune, pretrain


def _losses(model: WorldModel, batch: dict[str, Any]) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return training_losses(model, batch, with_actions=True, with_frames=True)


def test_changes_begin_as_nothing_and_merge_into_the_weights() -> None:
    model = make_model(small_config())
    batch, names = make_batch(model.config), set(model.state_dict())
    before = _losses(model, batch)["action_loss"].item()
    adapt(model, LoraOptions(rank=2))
    assert rank_of(model) == 2 and _losses(model, batch)["action_loss"].item() == before
    sum(_losses(model, batch)[name] for name in ("action_loss", "frame_loss")).backward()
    frozen = {name for name, p in model.gpt.named_parameters() if p.grad is None}
    assert frozen and all(p.requires_grad is (name not in frozen) for name, p in model.gpt.named_parameters())
    assert not {id(p) for p in muon_matrices(model)} & {id(p) for p in model.gpt.parameters()}
    with torch.no_grad():
        for name, p in model.gpt.named_parameters():
            if name.endswith(".up"):
                p.normal_()
    after, whole = _losses(model, batch)["action_loss"].item(), merged(model)
    assert after != before and set(whole.state_dict()) == names and merged(whole) is whole
    assert merged(model, in_place=True) is model and set(model.state_dict()) == names
    assert _losses(whole, batch)["action_loss"].item() == pytest.approx(after, rel=1e-6)


@pytest.mark.parametrize(("bits", "bytes_each", "loss"), [(32, 4, 0), (16, 2, 0.01), (8, 1, 0.01), (4, 0.5, 0.2)])
def test_frozen_weights_take_few_bits_and_pass_gradients_on(bits, bytes_each: float, loss: float) -> None:
    if bits < 16:
        pytest.importorskip("torchao")
    model, plain = (make_model(small_config(width=128, heads=4)) for _ in range(2))
    batch = make_batch(model.config)
    adapt(model, LoraOptions(rank=2, bits=bits))
    matrices = sum(p.numel() for p in plain.gpt.parameters() if p.ndim == 2)
    vectors = sum(p.numel() for p in plain.gpt.parameters() if p.ndim < 2)
    assert frozen_bytes(model) == bytes_each * matrices + 4 * vectors
    whole = merged(model)
    first, kept = dict(plain.named_parameters()), dict(whole.named_parameters())
    assert first.keys() == kept.keys() and all(p.requires_grad and p.dtype == torch.float32 for p in kept.values())
    for name, p in first.items():
        assert float((kept[name] - p).detach().norm()) <= loss * float(p.detach().norm())
    whole.set_texts(model.texts)
    for one in (model, whole):
        losses = _losses(one, batch)
        (losses["action_loss"] + losses["frame_loss"]).backward()
    wanted, got = whole.embed.image.weight.grad, model.embed.image.weight.grad
    assert wanted is not None and got is not None
    torch.testing.assert_close(got, wanted, rtol=1e-3, atol=1e-4 * float(wanted.abs().max()))


def test_checkpoints_hold_no_frozen_weights_and_want_the_same_ones_back(tmp_path: Path) -> None:
    arm = Embodiment(name="arm", cameras=CAMERAS, state=TOOL_ARM.state, action=TOOL_ARM.action, control_hz=30)
    tokens = [str(write_tokens(tmp_path / "tokens", arm))]
    for seed in (0, 1):
        pretrain(TrainingOptions(tokens=tokens, out=tmp_path / f"pretrained_{seed}", seed=seed, **STEPS))
    options: dict[str, Any] = {"tokens": tokens, "out": tmp_path / "run", "lora": LoraOptions(rank=2), **STEPS}
    finetune(FinetuneOptions(init=tmp_path / "pretrained_0", **options))
    checkpoint = torch.load(tmp_path / "run" / "last.ckpt", weights_only=False)
    names = [name for name in checkpoint["state_dict"] if name.startswith("model.gpt.blocks") and "norm" not in name]
    assert names and all(name.endswith((".down", ".up", ".bias")) for name in names)
    options["steps"] = options.get("steps", 2) + 2
    with pytest.raises(CheckpointError, match=r"the --init and --lora.bits that this run began with"):
        finetune(FinetuneOptions(init=tmp_path / "pretrained_1", **options))
    finetune(FinetuneOptions(init=tmp_path / "pretrained_0", **options))
    assert load_release(tmp_path / "run").provenance["steps"] == options["steps"]


def test_a_policy_is_finetuned_by_changes_of_low_rank_and_released_whole(tmp_path: Path) -> None:
    arm = Embodiment(name="arm", cameras=CAMERAS, state=TOOL_ARM.state, action=TOOL_ARM.action, control_hz=30)
    tokens = [str(write_tokens(tmp_path / "tokens", arm))]
    pretrain(TrainingOptions(tokens=tokens, out=tmp_path / "pretrained", **STEPS))
    options = {"tokens": tokens, "out": tmp_path / "run", "init": tmp_path / "pretrained", **STEPS}
    finetune(FinetuneOptions(lora=LoraOptions(rank=3), **options))
    first, last = (load_release(tmp_path / name).model for name in ("pretrained", "run"))
    changed = dict(last.gpt.named_parameters())
    for name, p in first.gpt.named_parameters():
        rank = torch.linalg.matrix_rank(changed[name] - p, atol=1e-6).item() if p.ndim == 2 else 0
        assert (0 < rank <= 3) if p.ndim == 2 else torch.equal(p, changed[name])
    assert last.acts and all(p.requires_grad for p in last.parameters())
    with pytest.raises(CheckpointError, match=r"expected --lora.rank 3 as this run began, got 2"):
        finetune(FinetuneOptions(lora=LoraOptions(rank=2), **(options | {"steps": 9})))


def test_what_cannot_be_adapted_is_refused_in_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="expected a model to adapt, got none; name it with --init"):
        FinetuneOptions(tokens=["a"], out=tmp_path, lora=LoraOptions(rank=4))
    with pytest.raises(ConfigError, match="expected whole weights on each device"):
        FinetuneOptions(tokens=["a"], out=tmp_path, init=tmp_path, strategy="fsdp", lora=LoraOptions(rank=4))
    with pytest.raises(ConfigError, match="rank of 0 or more and an alpha above 0"):
        LoraOptions(rank=-1)


def test_the_estimate_counts_no_optimizer_for_frozen_weights() -> None:
    model = make_model(small_config(width=256, depth=4))
    options = {"batch_size": 1, "text_length": 6, "with_actions": True, "weight_average": True, "bfloat16": False,
               "fused_attention": True}  # fmt: skip
    full = estimate_memory(model, **options)
    adapt(model, LoraOptions(rank=4))
    thin = estimate_memory(model, **options)
    assert thin.optimizer < 0.3 * full.optimizer and thin.gradients < 0.3 * full.gradients
