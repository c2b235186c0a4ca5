"""Train a VQGAN on pictures that a function draws."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import lightning as L
import numpy as np
import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from ..gr_model.contracts import Array
from ..gr_model.errors import ShapeError
from ..gr_model.layers import fast_bfloat16
from .losses import (
    LossConfig,
    PerceptualLoss,
    adaptive_weight,
    hinge_loss,
    make_critic,
    reconstruction_loss,
)
from .quality import measure_vqgan, psnr, save_grid
from .quantize import CodebookAverage
from .steps import require_finite, run_steps, warmup_cosine
from .vqgan import VQGAN, VQGANConfig, normalize_frames, small
from .weight_files import save_weights


@dataclass(frozen=True, kw_only=True, slots=True)
class VQGANTrainingConfig:
    """How a VQGAN is trained.

    learning_rate: peak; it rises over `warmup` steps and falls along a cosine.
    quantize_start: step at which the quantiser is put between encoder and decoder, its codebook placed by
        k-means on the latents of one batch; at most a quarter of the run.
    codebook_decay: decay of the codebook's moving averages; 0 learns the codebook by gradient.
    revive_until: fraction of the steps after which dead codes are left alone.
    weight_average: decay of the moving average of all weights that is released; 0 releases the last weights.
    precision: of encoder and decoder; "auto" takes bfloat16 where the machine computes it faster.
    """

    learning_rate: float = 3e-3
    warmup: int = 50
    weight_decay: float = 1e-4
    clip_norm: float = 1.0
    quantize_start: int = 50
    codebook_decay: float = 0.98
    revive_until: float = 0.8
    weight_average: float = 0.0
    precision: Literal["auto", "32", "bf16"] = "auto"
    losses: LossConfig = field(default_factory=LossConfig)


class VQGANTraining(L.LightningModule):
    """Optimisation steps of a VQGAN, with and without a critic."""

    def __init__(self, config: VQGANConfig, training: VQGANTrainingConfig, *, steps: int) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.training_config, self.steps = training, steps
        self.model = VQGAN(config)
        losses = training.losses
        self.critic = make_critic(losses) if losses.adversarial > 0 else None
        # Not a sub-module: its frozen weights come from their own file and stay out of the checkpoints.
        self.perceptual: list[PerceptualLoss] = []
        if losses.perceptual > 0:
            self.perceptual.append(PerceptualLoss(vgg_file=losses.vgg_file, heads_file=losses.heads_file))
        self.codebook_average = CodebookAverage(
            codebook_size=config.codebook_size,
            embed_dim=config.embed_dim,
            decay=training.codebook_decay or 0.98,
        )
        self.average = (
            AveragedModel(self.model, multi_avg_fn=get_ema_multi_avg_fn(training.weight_average))
            if training.weight_average > 0
            else None
        )
        self.last_tick = time.perf_counter()
        self.use_bfloat16 = training.precision == "bf16" or (training.precision == "auto" and fast_bfloat16())

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        """Return AdamW for the VQGAN and, with a critic, one for the critic."""
        t = self.training_config
        betas = (0.5, 0.9) if self.critic is not None else (0.9, 0.99)
        groups = [(self.model.parameters(), t.weight_decay)]
        if self.critic is not None:
            groups.append((self.critic.parameters(), 0.0))
        return [torch.optim.AdamW(p, t.learning_rate, betas=betas, weight_decay=w) for p, w in groups]

    def training_step(self, frames: Tensor, batch_idx: int) -> None:
        """Take one step on uint8 frames `[b h w 3]`."""
        step, t = self.global_step, self.training_config
        images = normalize_frames(frames)
        optimizers: Any = self.optimizers()
        optimizers = optimizers if isinstance(optimizers, list) else [optimizers]
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = t.learning_rate * warmup_cosine(step, steps=self.steps, warmup=t.warmup)
        reconstruction, codebook_loss, used = self._reconstruct(images, step)
        loss = reconstruction_loss(reconstruction, images, t.losses)
        metrics = {"reconstruction": loss.detach()}
        if self.perceptual:
            distance = self.perceptual[0].to(images.device)(reconstruction, images)
            loss = loss + t.losses.perceptual * distance
            metrics["perceptual"] = distance.detach()
        adversarial = self.critic is not None and step >= t.losses.adversarial_start
        if adversarial:
            term, metrics["adaptive_weight"] = self._adversarial_term(reconstruction, loss)
            loss = loss + t.losses.adversarial * term
        loss = loss + t.losses.codebook * codebook_loss
        require_finite(loss.detach(), step)
        optimizers[0].zero_grad()
        self.manual_backward(loss)
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), t.clip_norm)
        optimizers[0].step()
        if adversarial:
            metrics["critic"] = self._critic_step(images, reconstruction.detach(), optimizers[1])
        if self.average is not None:
            self.average.update_parameters(self.model)
        tick, self.last_tick = self.last_tick, time.perf_counter()
        self.log_dict(
            metrics
            | {
                "loss": loss.detach(),
                "codebook_loss": codebook_loss.detach(),
                "codes_in_batch": float(used),
                "psnr": psnr(reconstruction.detach().clamp(-1, 1), images),
                "images_per_s": len(frames) / (self.last_tick - tick),
            }
        )

    def _reconstruct(self, images: Tensor, step: int) -> tuple[Tensor, Tensor, int]:
        """Return reconstruction, codebook loss and the number of codes used, with the codebook updated."""
        t, model = self.training_config, self.model
        with self._mixed(images):
            latents = model.latents(images)
        latents = latents.float()
        flat = latents.detach().permute(0, 2, 3, 1).flatten(0, 2)
        start = min(t.quantize_start, self.steps // 4)
        if step < start:
            return self._decode(latents), latents.new_zeros(()), 0
        # Seeded by the step, so that a resumed run draws what the whole run would have drawn.
        generator = torch.Generator().manual_seed(step)
        if step == start:
            self.codebook_average.start(model.quantize, flat, generator)
        vectors, loss, codes = model.quantize(latents)
        if t.codebook_decay > 0:
            draws = generator if step < t.revive_until * self.steps else None
            self.codebook_average.update(model.quantize, flat, codes.flatten(), revive_with=draws)
        return self._decode(vectors), loss, len(codes.unique())

    def _decode(self, vectors: Tensor) -> Tensor:
        with self._mixed(vectors):
            images = self.model.images(vectors)
        return images.float()

    def _mixed(self, tensor: Tensor) -> torch.autocast:
        """Return the bfloat16 region for encoder and decoder; quantiser and losses stay in float32."""
        return torch.autocast(tensor.device.type, torch.bfloat16, enabled=self.use_bfloat16)

    def _adversarial_term(self, reconstruction: Tensor, loss: Tensor) -> tuple[Tensor, Tensor]:
        assert self.critic is not None
        term = -self.critic(reconstruction).mean()
        weight = adaptive_weight(loss, term, self.model.decoder.conv_out.weight)
        return weight * term, weight

    def _critic_step(self, images: Tensor, reconstruction: Tensor, optimizer: Any) -> Tensor:
        assert self.critic is not None
        loss = hinge_loss(self.critic(images), self.critic(reconstruction))
        optimizer.zero_grad()
        self.manual_backward(loss)
        # The wrapped optimizer, so that `global_step` does not count the steps of the critic.
        optimizer.optimizer.step()
        return loss.detach()

    def released(self) -> VQGAN:
        """Return the model to release, in evaluation mode."""
        model = self.model if self.average is None else self.average.module
        assert isinstance(model, VQGAN)
        return model.eval()


def train_vqgan(
    *,
    sample_batch: Callable[[int, np.random.Generator], Array],
    validation: Array,
    out: Path,
    config: VQGANConfig | None = None,
    training: VQGANTrainingConfig | None = None,
    steps: int = 4000,
    batch_size: int = 16,
    seed: int = 0,
    checkpoint_every: int = 500,
    resume: bool = True,
    stop_after: int | None = None,
) -> VQGAN:
    """Train a VQGAN and write `vqgan.safetensors`, `vqgan.json`, `vqgan.png` and the log to `out`.

    Args:
        sample_batch: draws uint8 frames `[b h w 3]` for a batch size and a generator.
        validation: uint8 frames `[m h w 3]` that `sample_batch` never draws.
        out: folder of the run.
        config: shape of the network; `small()` by default.
        training: optimisation.
        steps: optimisation steps.
        batch_size: pictures a step.
        seed: of weights and batches.
        checkpoint_every: steps between checkpoints.
        resume: go on from the last checkpoint in `out`.
        stop_after: end early at this step, to be resumed later.

    Raises:
        ShapeError: if the validation frames do not fit the network.
        Gr2Error: if the loss is no number.
    """
    config, training = config or small(), training or VQGANTrainingConfig()
    side = config.resolution
    if validation.ndim != 4 or validation.shape[1:] != (side, side, 3) or not len(validation):
        raise ShapeError(
            f"train_vqgan.validation: expected uint8 frames (m, {side}, {side}, 3), got shape "
            f"{validation.shape}; resize them to the resolution of the tokenizer."
        )
    torch.manual_seed(seed)
    module = VQGANTraining(config, training, steps=steps)
    begin = time.perf_counter()
    run_steps(
        module,
        lambda generator: torch.from_numpy(np.ascontiguousarray(sample_batch(batch_size, generator))),
        out=out,
        steps=steps,
        seed=seed,
        checkpoint_every=checkpoint_every,
        log_every=max(1, min(50, steps // 10)),
        description="vqgan",
        resume=resume,
        stop_after=stop_after,
    )
    model = module.released()
    record = {
        "kind": "vqgan",
        "config": asdict(config),
        "training": asdict(training),
        "command": " ".join(["gr2", *sys.argv[1:]]),
        "steps": module.global_step,
        "batch_size": batch_size,
        "seed": seed,
        "seconds": round(time.perf_counter() - begin, 1),
        "metrics": measure_vqgan(model, validation),
    }
    save_weights(out / "vqgan.safetensors", model.state_dict(), record)
    save_grid(model, validation, out / "vqgan.png")
    return model
