"""Train a VQGAN on images that a function samples or that are streamed from video shards."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback

from ..contracts import Array
from ..errors import ShapeError
from .quality import measure_vqgan, save_grid
from .steps import run_steps
from .streaming import ImageStream
from .training_module import VQGANTraining
from .training_options import VQGANTrainingConfig
from .vqgan import VQGAN, VQGANConfig, small
from .weight_files import save_weights

_SHOWN = 64
"""Validation frames measured during training; all of them are measured at the end."""


class ValidationReports(Callback):
    """Log `val_*` metrics of validation frames every `every` steps, with `grids/step_{step}.png` beside the log."""

    def __init__(self, validation: Array, out: Path, every: int) -> None:
        # spread over all of them: neighbors come from one clip
        self.frames = validation[np.linspace(0, len(validation) - 1, min(_SHOWN, len(validation))).astype(int)]
        self.out, self.every = out, every

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Measure the model that would be released now, where it is time."""
        step = trainer.global_step
        if step % self.every and step != trainer.max_steps:
            return
        assert isinstance(pl_module, VQGANTraining) and trainer.logger is not None
        model = pl_module.released()
        metrics = measure_vqgan(model, self.frames)
        save_grid(model, self.frames, self.out / "grids" / f"step_{step:07d}.png")
        model.train()
        trainer.logger.log_metrics({f"val_{name}": value for name, value in metrics.items()}, step)
        pl_module.last_tick = time.perf_counter()  # the images a second are those of training


def train_vqgan(
    *,
    sample_batch: Callable[[int, np.random.Generator], Array] | ImageStream,
    validation: Array,
    out: Path,
    config: VQGANConfig | None = None,
    training: VQGANTrainingConfig | None = None,
    steps: int = 4000,
    batch_size: int = 16,
    seed: int = 0,
    checkpoint_every: int = 500,
    validate_every: int | None = None,
    resume: bool = True,
    stop_after: int | None = None,
    accelerator: str = "auto",
) -> VQGAN:
    """Train a VQGAN and write `vqgan.safetensors`, `vqgan.json`, `vqgan.png`, grids and the log to `out`.

    Args:
        sample_batch: samples uint8 frames `[b h w 3]` for a batch size and a generator; or a stream of `steps` batches
            of `batch_size` frames.
        validation: uint8 frames `[m h w 3]` that `sample_batch` never samples.
        out: folder of the run.
        config: shape of the network; `small()` by default.
        training: optimization.
        steps: optimization steps.
        batch_size: images a step.
        seed: of weights and batches.
        checkpoint_every: steps between checkpoints.
        validate_every: steps between metrics and grids of validation frames; a tenth of the run by default.
        resume: from the last checkpoint in `out`.
        stop_after: end early at this step, to be resumed later.
        accelerator: Lightning's name of the device.

    Raises:
        ShapeError: if the validation frames do not fit the network.
        Gr2Error: if the loss is no number.
    """
    config, training = config or small(), training or VQGANTrainingConfig()
    _check_validation(validation, config.resolution)
    torch.manual_seed(seed)
    module = VQGANTraining(config, training, steps=steps)
    begin = time.perf_counter()
    run_steps(
        module,
        sample_batch if isinstance(sample_batch, ImageStream) else _tensors(sample_batch, batch_size),
        out=out,
        steps=steps,
        seed=seed,
        checkpoint_every=checkpoint_every,
        log_every=max(1, min(50, steps // 10)),
        description="vqgan",
        resume=resume,
        stop_after=stop_after,
        accelerator=accelerator,
        callbacks=[ValidationReports(validation, out, validate_every or max(1, steps // 10))],
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


def _tensors(
    sample_batch: Callable[[int, np.random.Generator], Array], batch_size: int
) -> Callable[[np.random.Generator], torch.Tensor]:
    return lambda generator: torch.from_numpy(np.ascontiguousarray(sample_batch(batch_size, generator)))


def _check_validation(validation: Array, side: int) -> None:
    if validation.ndim != 4 or validation.shape[1:] != (side, side, 3) or not len(validation):
        raise ShapeError(
            f"train_vqgan.validation: expected uint8 frames (m, {side}, {side}, 3), got shape "
            f"{validation.shape}; resize them to the resolution of the tokenizer."
        )
