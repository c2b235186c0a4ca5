"""Training the image tokenizer: it learns, resumes exactly, and stops on nonsense."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from gr2.errors import CheckpointError, ConfigError, Gr2Error, ShapeError
from gr2.tokenizers.losses import reconstruction_loss
from gr2.tokenizers.quality import measure_vqgan
from gr2.tokenizers.quantize import CodebookAverage
from gr2.tokenizers.steps import StepLoader, warmup_cosine
from gr2.tokenizers.training import train_vqgan
from gr2.tokenizers.training_module import VQGANTraining
from gr2.tokenizers.training_options import LossConfig, VQGANTrainingConfig, f16_recipe
from gr2.tokenizers.vqgan import VQGAN, VQGANConfig, normalize_frames
from gr2.tokenizers.weights import load_vqgan

torch.set_num_threads(1)

TINY = VQGANConfig(resolution=32, patch_size=4, channels=32, channel_mult=(1, 1), z_channels=32, embed_dim=8,
                   codebook_size=64, decoder_res_blocks=0)  # fmt: skip
FAST = VQGANTrainingConfig(warmup=5, quantize_start=10, precision="32", learning_rate=3e-3)


def blocks(count: int, generator: np.random.Generator) -> np.ndarray:
    """Return images of a colored block somewhere on a plain table."""
    frames = np.full((count, 32, 32, 3), (150, 120, 90), np.uint8)
    for frame in frames:
        row, column = generator.integers(0, 28, 2)
        frame[row : row + 4, column : column + 4] = generator.choice([(200, 30, 30), (30, 30, 200)])
    return frames


def read_log(out: Path, start: int = 0) -> list[dict[str, str]]:
    """Return the rows of the log of one start of a run."""
    with (out / "log" / f"version_{start}" / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def train(
    out: Path,
    steps: int,
    stop_after: int | None = None,
    training: VQGANTrainingConfig = FAST,
    sample_batch=blocks,
    validate_every: int | None = None,
) -> VQGAN:
    """Train the tiny network on blocks."""
    return train_vqgan(
        sample_batch=sample_batch,
        validation=blocks(8, np.random.default_rng(99)),
        out=out,
        config=TINY,
        training=training,
        steps=steps,
        batch_size=4,
        seed=3,
        checkpoint_every=3,
        stop_after=stop_after,
        validate_every=validate_every,
    )


def test_one_batch_is_overfitted(tmp_path: Path) -> None:
    batch = blocks(4, np.random.default_rng(0))
    plain = measure_vqgan(train(tmp_path / "untrained", 1), batch)
    model = train_vqgan(
        sample_batch=lambda size, generator: batch,
        validation=batch,
        out=tmp_path / "trained",
        config=TINY,
        training=FAST,
        steps=100,
        batch_size=4,
    )
    trained = measure_vqgan(model, batch)
    assert trained["psnr"] > 26
    assert trained["detail_psnr"] > 20
    assert trained["psnr"] > plain["psnr"] + 10


def test_resuming_equals_an_uninterrupted_run(tmp_path: Path) -> None:
    averaged = replace(FAST, weight_average=0.9)
    whole = train(tmp_path / "whole", 8, training=averaged)
    train(tmp_path / "parts", 8, stop_after=5, training=averaged)
    parts = train(tmp_path / "parts", 8, training=averaged)
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, parts.state_dict()[name]), name


@pytest.mark.parametrize(
    "training",
    [
        replace(FAST, codebook_decay=0.0, accumulate=2),
        replace(FAST, losses=LossConfig(adversarial=0.1, adversarial_start=3, critic_channels=8)),
        replace(FAST, precision="bf16"),
    ],
    ids=["gradient codebook in parts", "critic", "bfloat16"],
)
def test_a_crashed_run_goes_on_exactly(tmp_path: Path, training: VQGANTrainingConfig) -> None:
    whole = train(tmp_path / "whole", 8, training=training)
    calls = 0

    def crashing(count: int, generator: np.random.Generator) -> np.ndarray:
        nonlocal calls
        calls += 1
        if calls == 6:
            raise ZeroDivisionError("power failure")
        return blocks(count, generator)

    with pytest.raises(ZeroDivisionError):
        train(tmp_path / "parts", 8, training=training, sample_batch=crashing)
    assert torch.load(tmp_path / "parts" / "last.ckpt", weights_only=True)["global_step"] == 3
    parts = train(tmp_path / "parts", 8, training=training)
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, parts.state_dict()[name]), name


def test_default_options_train_as_the_plain_loop_does_bit_for_bit(tmp_path: Path) -> None:
    default = VQGANTrainingConfig(precision="32")
    found = train(tmp_path, 8, stop_after=5, training=default)
    torch.manual_seed(3)
    model = VQGAN(TINY)
    average = CodebookAverage(codebook_size=64, embed_dim=8)
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3, betas=(0.9, 0.99), weight_decay=1e-4)
    for step in range(5):
        optimizer.param_groups[0]["lr"] = 3e-3 * (step + 1) / 50
        images = normalize_frames(torch.from_numpy(blocks(4, np.random.default_rng([3, step]))))
        latents = vectors = model.latents(images)
        generator, codebook_loss = torch.Generator().manual_seed(step), 0.0
        flat = latents.detach().permute(0, 2, 3, 1).flatten(0, 2)
        if step == 2:
            average.start(model.quantize, flat, generator)
        if step >= 2:
            vectors, codebook_loss, codes = model.quantize(latents)
            average.update(model.quantize, flat, codes.flatten(), revive_with=generator)
        optimizer.zero_grad()
        (reconstruction_loss(model.images(vectors), images, LossConfig()) + codebook_loss).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, found.state_dict()[name]), name


@pytest.mark.parametrize("parts", [2, 3, 4])
def test_a_step_in_parts_has_the_gradient_of_the_whole(tmp_path: Path, parts: int) -> None:
    losses = LossConfig(perceptual=0.0)
    plain = replace(FAST, clip_norm=1e9, codebook_decay=0.0, losses=losses)
    whole = train(tmp_path / "whole", 1, training=plain)
    split = train(tmp_path / "split", 1, training=replace(plain, accumulate=parts))
    for (name, a), (_, b) in zip(whole.named_parameters(), split.named_parameters(), strict=True):
        torch.testing.assert_close(b.grad, a.grad, rtol=1e-3, atol=1e-5, msg=name)
        assert a.grad.abs().max() > 0 or "bias" in name or name.startswith("quantize"), name


def test_codes_of_a_codebook_by_gradient_are_revived(tmp_path: Path) -> None:
    plain = replace(FAST, codebook_decay=0.0)
    train(tmp_path, 8, stop_after=3, training=plain)
    stored = torch.load(tmp_path / "last.ckpt", weights_only=True)
    stored["state_dict"]["codebook_average.uses"][:32] = 0.0
    torch.save(stored, tmp_path / "last.ckpt")
    train(tmp_path, 8, stop_after=4, training=plain)
    before = stored["state_dict"]["model.quantize.embedding.weight"]
    after = torch.load(tmp_path / "last.ckpt", weights_only=True)["state_dict"]["model.quantize.embedding.weight"]
    revived = float(next(row for row in read_log(tmp_path, start=1) if row["codes_revived"])["codes_revived"])
    moved = int(((after - before).abs().amax(1) > 0.02).sum())  # an optimization step moves a number by 0.003
    assert 0 < moved <= revived <= 32
    assert (after - before)[32:].abs().max() < 0.02


def test_held_out_images_are_measured_and_shown_at_intervals(tmp_path: Path) -> None:
    model = train(tmp_path, 7, validate_every=3)
    shown = sorted(path.name for path in (tmp_path / "grids").iterdir())
    assert shown == ["step_0000003.png", "step_0000006.png", "step_0000007.png"]
    measured = {int(row["step"]): row for row in read_log(tmp_path) if row["val_psnr"]}
    assert sorted(measured) == [3, 6, 7]
    names = {f"val_{name}" for name in ("psnr", "detail_psnr", "ssim", "l1", "codes_used", "perplexity")}
    assert names <= set(measured[3])
    final = measure_vqgan(model, blocks(8, np.random.default_rng(99)))
    assert float(measured[7]["val_ssim"]) == pytest.approx(final["ssim"], abs=1e-4)


def test_measuring_does_not_change_what_is_learnt(tmp_path: Path) -> None:
    often = train(tmp_path / "often", 6, validate_every=1, training=replace(FAST, weight_average=0.9)).state_dict()
    seldom = train(tmp_path / "seldom", 6, validate_every=6, training=replace(FAST, weight_average=0.9)).state_dict()
    assert all(torch.equal(often[name], seldom[name]) for name in often)


def test_the_critic_is_logged_from_its_first_step_on(tmp_path: Path) -> None:
    losses = LossConfig(adversarial=0.1, adversarial_start=3, critic_channels=8)
    train(tmp_path, 6, training=replace(FAST, losses=losses))
    rows = [row for row in read_log(tmp_path) if row["loss"]]
    assert [bool(row["critic"]) for row in rows] == [bool(row["adaptive_weight"]) for row in rows]
    assert [bool(row["critic"]) for row in rows] == [False] * 3 + [True] * 3


@pytest.mark.parametrize(
    "wrong", [{"accumulate": 0}, {"codebook_decay": 1.0}, {"learning_rate": float("nan")}, {"weight_average": -0.1}]
)
def test_impossible_options_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=r"VQGANTrainingConfig.*expected"):
        VQGANTrainingConfig(**wrong)


def test_the_published_rate_grows_with_the_batch() -> None:
    assert f16_recipe(12).learning_rate == pytest.approx(5.4e-5)
    assert f16_recipe(24).learning_rate == 2 * f16_recipe(12).learning_rate


def test_running_a_finished_run_again_changes_nothing(tmp_path: Path) -> None:
    first = train(tmp_path, 4).state_dict()
    again = train(tmp_path, 4).state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)


def test_a_checkpoint_of_another_network_is_refused(tmp_path: Path) -> None:
    train(tmp_path, 4)
    with pytest.raises(CheckpointError, match="does not fit"):
        train(tmp_path, 8, training=replace(FAST, losses=LossConfig(adversarial=0.1)))


def test_outputs_tell_what_was_done(tmp_path: Path) -> None:
    model = train(tmp_path, 4)
    record = json.loads((tmp_path / "vqgan.json").read_text())
    assert record["steps"] == 4
    assert record["seed"] == 3
    assert record["config"]["codebook_size"] == 64
    assert record["metrics"]["psnr"] == pytest.approx(
        measure_vqgan(model, blocks(8, np.random.default_rng(99)))["psnr"], abs=1e-3
    )
    rows = read_log(tmp_path)
    assert {"loss", "l1", "perplexity", "psnr", "codes_in_batch", "images_per_s"} <= set(rows[0])
    assert (tmp_path / "vqgan.png").stat().st_size > 500
    loaded = load_vqgan(tmp_path)
    assert not any(p.requires_grad for p in loaded.parameters())
    frames = blocks(3, np.random.default_rng(1))
    assert np.array_equal(loaded.encode_frames(frames), model.encode_frames(frames))
    assert not list(tmp_path.glob(".*"))


def test_critic_joins_at_its_step(tmp_path: Path) -> None:
    losses = LossConfig(adversarial=0.1, adversarial_start=3, critic_channels=8)
    training = replace(FAST, losses=losses)
    torch.manual_seed(3)
    fresh = VQGANTraining(TINY, training, steps=6).critic
    assert fresh is not None

    def critic_after(step: int) -> dict[str, torch.Tensor]:
        train(tmp_path / str(step), 6, stop_after=step, training=training)
        state = torch.load(tmp_path / str(step) / "last.ckpt", weights_only=True)
        assert state["global_step"] == step
        return {k.removeprefix("critic."): v for k, v in state["state_dict"].items() if k.startswith("critic.")}

    before, after = critic_after(3), critic_after(4)
    weights = [k for k in before if k.endswith("weight")]
    assert all(torch.equal(before[k], fresh.state_dict()[k]) for k in weights)
    assert not any(torch.equal(before[k], after[k]) for k in weights)


def test_a_loss_that_is_no_number_stops_the_run(tmp_path: Path) -> None:
    with pytest.raises(Gr2Error, match="finite loss"):
        train(tmp_path, 30, training=replace(FAST, learning_rate=1e30, clip_norm=1e30))


def test_wrong_inputs_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ShapeError, match="validation"):
        train_vqgan(sample_batch=blocks, validation=np.zeros((2, 64, 64, 3), np.uint8), out=tmp_path, config=TINY)
    with pytest.raises(ConfigError, match="steps"):
        train(tmp_path, 0)


def test_loader_gives_every_step_its_own_batch_whatever_came_before() -> None:
    whole = list(StepLoader(lambda g: float(g.random()), steps=6, seed=1))
    first = StepLoader(lambda g: float(g.random()), steps=6, seed=1)
    iterator = iter(first)
    begun = [next(iterator) for _ in range(2)]
    rest = StepLoader(lambda g: float(g.random()), steps=6, seed=1)
    rest.load_state_dict(first.state_dict())
    assert begun + list(rest) == whole
    assert len(set(whole)) == 6


def test_schedule_rises_then_falls_to_its_floor() -> None:
    factors = [warmup_cosine(s, steps=100, warmup=10) for s in range(100)]
    assert factors[9] == factors[10] == max(factors) == 1.0
    assert factors[:10] == sorted(factors[:10])
    assert factors[10:] == sorted(factors[10:], reverse=True)
    assert factors[-1] == pytest.approx(0.01, abs=1e-3)
