"""One training run of a fixed number of steps: batches by step number, schedule, log, checkpoints, resume."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import CSVLogger
from tqdm import tqdm

from ..errors import CheckpointError, ConfigError, Gr2Error
from .weight_files import write_atomically


class StepLoader:
    """Yield `sample_batch(generator)` for every remaining step; the generator depends on seed and step alone.

    A resumed run therefore sees exactly the batches that it would have seen.
    """

    def __init__(self, sample_batch: Callable[[np.random.Generator], Any], *, steps: int, seed: int) -> None:
        self.sample_batch, self.steps, self.seed = sample_batch, steps, seed
        self.next_step = 0

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[Any]:
        for step in range(self.next_step, self.steps):
            self.next_step = step + 1
            yield self.sample_batch(np.random.default_rng([self.seed, step]))
        self.next_step = 0

    def state_dict(self) -> dict[str, int]:
        """Return the number of the next step."""
        return {"next_step": self.next_step}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue at the step that `state_dict` returned."""
        self.next_step = state["next_step"]


def warmup_cosine(step: int, *, steps: int, warmup: int, floor: float = 0.01) -> float:
    """Return the learning-rate factor: a linear rise over `warmup` steps, then a cosine down to `floor`."""
    if step < warmup:
        return (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - warmup)
    return floor + (1.0 - floor) * 0.5 * (1.0 + math.cos(math.pi * min(progress, 1.0)))


def require_finite(loss: torch.Tensor, step: int) -> None:
    """Stop the run where the loss is no number.

    Raises:
        Gr2Error: if the loss is NaN or infinite.
    """
    if not torch.isfinite(loss):
        raise Gr2Error(
            f"Training: expected a finite loss, got {loss.item()} at step {step}; lower the learning rate "
            "and check the images, then resume from the last checkpoint."
        )


class _Progress(Callback):
    """Show steps, the latest logged numbers and the time left."""

    def __init__(self, description: str, every: int = 20) -> None:
        self.description, self.every = description, every

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.bar = tqdm(
            total=trainer.max_steps,
            initial=trainer.global_step,
            desc=self.description,
            unit="step",
            mininterval=1.0,
        )

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.bar.update(trainer.global_step - self.bar.n)
        if trainer.global_step % self.every == 0:
            self.bar.set_postfix({k: f"{float(v):.4g}" for k, v in trainer.callback_metrics.items()})

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.bar.close()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        if hasattr(self, "bar"):
            self.bar.close()


class _Checkpoints(Callback):
    """Replace `path` by the state after every `every`-th step and after the last one, whole at any moment."""

    def __init__(self, path: Path, every: int) -> None:
        self.path, self.every = path, every

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step = trainer.global_step
        if step % self.every == 0 or step == trainer.max_steps:
            write_atomically(self.path, trainer.save_checkpoint)


def run_steps(
    module: L.LightningModule,
    sample_batch: Callable[[np.random.Generator], Any] | Iterable[Any],
    *,
    out: Path,
    steps: int,
    seed: int,
    checkpoint_every: int,
    log_every: int,
    description: str,
    resume: bool,
    stop_after: int | None = None,
    accelerator: str = "auto",
    callbacks: Sequence[Callback] = (),
) -> None:
    """Train `module` for `steps` steps; the CSV logs lie in `out/log`, one a start.

    `sample_batch` returns a batch, or is a loader of `steps` batches with `state_dict` and `load_state_dict`.
    `accelerator` is Lightning's name of the device; `callbacks` see every step before it is stored.

    With `resume` the run resumes from `out/last.ckpt` where there is one. `stop_after` ends the run early at
    that step, with a checkpoint, and leaves the schedule as it is.

    Raises:
        ConfigError: if `steps`, `checkpoint_every` or `log_every` is not positive.
        CheckpointError: if the checkpoint cannot be read or belongs to another model.
    """
    for name, value in (("steps", steps), ("checkpoint_every", checkpoint_every), ("log_every", log_every)):
        if value < 1:
            raise ConfigError(f"{name}: expected a positive number, got {value}; give at least 1.")
    last = out / "last.ckpt"
    torch.manual_seed(seed)
    trainer = L.Trainer(
        accelerator=accelerator,
        devices=1,
        max_epochs=1,
        max_steps=min(steps, stop_after or steps),
        logger=CSVLogger(out, name="log", flush_logs_every_n_steps=log_every),
        callbacks=[
            _Progress(description),
            *callbacks,
            _Checkpoints(last, checkpoint_every),
        ],
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=log_every,
        enable_checkpointing=False,
        num_sanity_val_steps=0,
    )
    loader = StepLoader(sample_batch, steps=steps, seed=seed) if callable(sample_batch) else sample_batch
    start = str(last) if resume and last.is_file() else None
    try:
        trainer.fit(module, loader, ckpt_path=start, weights_only=True)
    except (RuntimeError, KeyError, EOFError) as error:
        if start is None or trainer.global_step > 0:
            raise
        raise CheckpointError(
            f"{last}: expected a checkpoint of this run, got one that does not fit ({error}); delete it or "
            "choose another output folder."
        ) from error
