"""Training the image tokenizer: it learns, resumes exactly, and stops on nonsense."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from gr2.gr_model.errors import CheckpointError, ConfigError, Gr2Error, ShapeError
from gr2.tokenizers.losses import LossConfig
from gr2.tokenizers.quality import measure_vqgan
from gr2.tokenizers.steps import StepLoader, warmup_cosine
from gr2.tokenizers.training import VQGANTraining, VQGANTrainingConfig, train_vqgan
from gr2.tokenizers.vqgan import VQGANConfig
from gr2.tokenizers.weights import load_vqgan

torch.set_num_threads(1)

TINY = VQGANConfig(resolution=32, patch_size=4, channels=32, channel_mult=(1, 1), z_channels=32, embed_dim=8,
                   codebook_size=64, decoder_res_blocks=0)  # fmt: skip
FAST = VQGANTrainingConfig(warmup=5, quantize_start=10, precision="32", learning_rate=3e-3)


def blocks(count: int, generator: np.random.Generator) -> np.ndarray:
    """Return pictures of a coloured block somewhere on a plain table."""
    frames = np.full((count, 32, 32, 3), (150, 120, 90), np.uint8)
    for frame in frames:
        row, column = generator.integers(0, 28, 2)
        frame[row : row + 4, column : column + 4] = generator.choice([(200, 30, 30), (30, 30, 200)])
    return frames


def train(out: Path, steps: int, stop_after: int | None = None, training: VQGANTrainingConfig = FAST):
    return train_vqgan(
        sample_batch=blocks,
        validation=blocks(8, np.random.default_rng(99)),
        out=out,
        config=TINY,
        training=training,
        steps=steps,
        batch_size=4,
        seed=3,
        checkpoint_every=3,
        stop_after=stop_after,
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
    with (tmp_path / "log" / "version_0" / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {"loss", "psnr", "codes_in_batch", "images_per_s"} <= set(rows[0])
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

    before, after = critic_after(3), critic_after(5)
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
