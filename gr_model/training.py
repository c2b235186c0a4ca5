"""One training module for pretraining (frames alone) and finetuning (frames and actions).

Every random draw of step i follows from (seed, rank, i), so that a resumed run repeats the unbroken one
exactly without storing generators.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Literal

import lightning as L
import torch
from torch import Tensor

from .averaging import WeightAverage
from .errors import CheckpointError, ConfigError, DataError, EnvironmentMissing
from .layers import fast_bfloat16
from .metrics_log import MetricsLog
from .objectives import Batch, evaluation_figures, training_losses
from .optimizer import MuonAdamW
from .run import Progress, SaveLast, StatefulLoader, StepStream
from .world_model import WorldModel

Precision = Literal["auto", "32", "bf16"]
Device = Literal["auto", "cpu", "cuda"]


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """Optimisation.

    with_actions: train the trajectory head (finetuning) or frames alone (pretraining).
    frame_weight, action_weight: factors of the losses.
    frame_fraction: share of the steps that predict frames when actions are trained, too; frames double the
        sequence.
    learning_rate, muon_learning_rate: peaks of AdamW and, for the trunk's matrices, of Muon; they rise
        over `warmup` steps and fall along a cosine to `final_rate` times the peak.
    weight_average: decay of the moving average of the weights; 0 evaluates the last weights.
    """

    with_actions: bool = True
    frame_weight: float = 0.3
    action_weight: float = 1.0
    frame_fraction: float = 1.0
    learning_rate: float = 1e-3
    muon_learning_rate: float = 4e-3
    warmup: int = 50
    final_rate: float = 0.01
    weight_decay: float = 0.05
    betas: tuple[float, float] = (0.9, 0.95)
    clip_norm: float = 1.0
    weight_average: float = 0.0
    precision: Precision = "auto"
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.frame_fraction <= 1 or not 0 <= self.weight_average < 1:
            raise ConfigError(
                "TrainingConfig: expected frame_fraction in [0, 1] and weight_average in [0, 1), got "
                f"{self.frame_fraction} and {self.weight_average}; change the values."
            )


def choose_accelerator(device: Device) -> str:
    """Return Lightning's name of a device.

    Raises:
        EnvironmentMissing: CUDA is asked for and absent.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise EnvironmentMissing(
            "--device cuda: expected a CUDA device, found none; `gr2 doctor` says what is missing, "
            "--device cpu runs here."
        )
    return {"auto": "auto", "cpu": "cpu", "cuda": "gpu"}[device]


def learning_rate_factor(step: int, *, steps: int, warmup: int, final: float) -> float:
    """Return the factor of the peak rate: linear rise, then a cosine down to `final`."""
    if step < warmup:
        return (step + 1) / warmup
    progress = min((step - warmup) / max(steps - warmup, 1), 1.0)
    return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * progress))


def lightning_precision(precision: Precision) -> str:
    """Choose mixed bfloat16 where the machine computes it faster than float32, for "auto"."""
    if precision == "auto":
        precision = "bf16" if fast_bfloat16() else "32"
    return "bf16-mixed" if precision == "bf16" else "32-true"


class TrainingModule(L.LightningModule):
    """Optimisation, averaging, figures and checkpoints of a `WorldModel`."""

    def __init__(self, model: WorldModel, config: TrainingConfig, *, steps: int) -> None:
        super().__init__()
        self.model, self.config, self.steps = model, config, steps
        self.average = WeightAverage(model, config.weight_average) if config.weight_average else None
        self.validation: Sequence[Batch] = ()
        self.metrics: MetricsLog | None = None
        self.log_every = self.validate_every = 0
        self.last_figures: dict[str, float] = {}
        self._sums: dict[str, tuple[Tensor, int]] = {}
        self._interval = (0, 0.0)

    def configure_optimizers(self) -> Any:
        """Return Muon for the trunk's matrices and AdamW for the rest, with the rates changed every step."""
        c = self.config
        optimizer = MuonAdamW(
            self.model,
            [p for p in self.model.gpt.parameters() if p.ndim == 2],
            learning_rate=c.learning_rate,
            muon_learning_rate=c.muon_learning_rate,
            weight_decay=c.weight_decay,
            betas=c.betas,
        )
        scheduler = torch.optim.lr_scheduler.LambdaLR(
            optimizer,
            lambda step: learning_rate_factor(step, steps=self.steps, warmup=c.warmup, final=c.final_rate),
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def predicts_frames(self, step: int) -> bool:
        """Say whether `step` computes the frame loss; the share over any stretch is `frame_fraction`."""
        if not self.config.with_actions:
            return True
        fraction = self.config.frame_fraction
        return math.floor((step + 1) * fraction) > math.floor(step * fraction)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the weighted loss.

        Raises:
            DataError: the loss is not finite.
        """
        c, step = self.config, self.global_step
        torch.manual_seed((c.seed * 1_000_003 + step) * 4099 + self.global_rank)
        losses = training_losses(self.model, batch, with_actions=c.with_actions, with_frames=self.predicts_frames(step))
        loss = next(iter(losses.values())).new_zeros(())
        if "frame_loss" in losses:
            loss = loss + (c.frame_weight if c.with_actions else 1.0) * losses["frame_loss"]
        if "action_loss" in losses:
            loss = loss + c.action_weight * losses["action_loss"]
        if not torch.isfinite(loss):
            raise DataError(
                f"training: expected a finite loss, got {loss.item()} at step {step}; check the batches for "
                f"NaN, or lower "
                f"the learning rate ({c.learning_rate}). The last checkpoint holds finite weights."
            )
        for name, value in {"loss": loss, **losses}.items():
            self._add(name, value.detach())
        return loss

    def _add(self, name: str, value: Tensor) -> None:
        total, count = self._sums.get(name, (torch.zeros_like(value), 0))
        self._sums[name] = (total + value, count + 1)

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        """Clip the gradient's norm; Lightning's own clipping refuses fused optimisers in mixed precision."""
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip_norm)
        self._add("gradient_norm", norm)

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
        """Step, then move the weight average."""
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        if self.average is not None:
            self.average.update()

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        """Write the log and validate where it is time."""
        step = self.global_step
        if self.log_every and (step % self.log_every == 0 or step == self.steps):
            self._log_interval(step, batch)
        if self.validate_every and self.validation and (step % self.validate_every == 0 or step == self.steps):
            self.last_figures = self.evaluate()
            self._write(step, {f"val/{name}": value for name, value in self.last_figures.items()})

    def _log_interval(self, step: int, batch: Batch) -> None:
        now = time.perf_counter()
        figures = {f"train/{name}": float(total) / count for name, (total, count) in self._sums.items()}
        begin, since = self._interval
        if since:
            rate = (step - begin) * len(batch["text_id"]) * self.trainer.world_size / (now - since)
            figures["train/sequences_per_s"] = rate
        figures["train/learning_rate"] = self.trainer.optimizers[0].param_groups[0]["lr"]
        self._interval, self._sums = (step, now), {}
        self._write(step, figures)

    def _write(self, step: int, figures: Mapping[str, float]) -> None:
        if self.metrics is not None and self.trainer.is_global_zero:
            self.metrics.add(step, figures)

    def evaluate(self) -> dict[str, float]:
        """Measure the averaged (or last) weights on the validation batches; see `evaluation_figures`."""
        if self.average is None:
            return evaluate(self.model, self.validation, with_actions=self.config.with_actions)
        with self.average.applied():
            return evaluate(self.model, self.validation, with_actions=self.config.with_actions)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Store the configuration and the weight average."""
        checkpoint["model_config"] = asdict(self.model.config)
        if self.average is not None:
            checkpoint["weight_average"] = self.average.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the weight average.

        Raises:
            CheckpointError: the checkpoint is of another configuration.
        """
        saved, ours = checkpoint.get("model_config"), asdict(self.model.config)
        if saved != ours:
            changed = [name for name in ours if not isinstance(saved, dict) or saved.get(name) != ours[name]]
            raise CheckpointError(
                f"resume: expected a checkpoint of this configuration, got one that differs in {changed}; "
                "use another output folder or the same configuration."
            )
        if self.average is not None and "weight_average" in checkpoint:
            self.average.load_state_dict(checkpoint["weight_average"])

    def use_average(self) -> WorldModel:
        """Put the averaged weights into the model for good and return it, in evaluation mode."""
        if self.average is not None:
            self.average.copy_to_module()
        return self.model.eval()


def evaluate(model: WorldModel, batches: Sequence[Batch], *, with_actions: bool) -> dict[str, float]:
    """Average `evaluation_figures` over batches, in evaluation mode; the model's mode is restored."""
    was_training = model.training
    model.eval()
    totals: dict[str, float] = {}
    weight = 0
    for batch in batches:
        moved = _to_device(batch, model.device)
        figures = evaluation_figures(model, moved, with_actions=with_actions, with_frames=True)
        size = len(batch["text_id"])
        weight += size
        for name, value in figures.items():
            totals[name] = totals.get(name, 0.0) + size * float(value)
    model.train(was_training)
    return {name: total / weight for name, total in totals.items()}


def _to_device(value: Any, device: torch.device) -> Any:
    if isinstance(value, Mapping):
        return {name: _to_device(item, device) for name, item in value.items()}
    return value.to(device)


def train(
    *,
    module: TrainingModule,
    loader: StatefulLoader,
    validation: Sequence[Batch],
    out: Path,
    batch_size: int,
    log_every: int = 20,
    validate_every: int = 200,
    checkpoint_every: int = 200,
    resume: bool = True,
    stop_after: int | None = None,
    devices: int | Literal["auto"] = 1,
    device: Device = "auto",
    description: str = "train",
) -> dict[str, float]:
    """Train for `module.steps` steps; write `metrics.csv` and `last.ckpt` to `out`.

    Args:
        loader: endless batches; its state is stored, so that a resumed run sees the batches it has not seen.
        validation: fixed batches, measured every `validate_every` steps and at the end.
        batch_size: sequences a batch, for the progress bar.
        resume: go on from `out/last.ckpt` where there is one.
        stop_after: end early at this step, to be resumed; the schedule stays that of all steps.

    Returns:
        Figures of the last validation.

    Raises:
        CheckpointError: `last.ckpt` cannot be read or is of another configuration.
        DataError: the loss is not finite.
    """
    out.mkdir(parents=True, exist_ok=True)
    last = out / "last.ckpt"
    start = read_step(last) if resume and last.is_file() else 0
    module.train()
    module.metrics = MetricsLog(out / "metrics.csv", resume_step=start)
    module.validation, module.log_every, module.validate_every = validation, log_every, validate_every
    trainer = L.Trainer(
        accelerator=choose_accelerator(device),
        devices=devices,
        strategy="auto" if devices == 1 else "ddp_find_unused_parameters_true",
        precision=lightning_precision(module.config.precision),  # type: ignore[arg-type]
        max_epochs=1,
        max_steps=min(module.steps, stop_after or module.steps),
        callbacks=[Progress(description, batch_size), SaveLast(last, checkpoint_every)],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
    )
    stream = StepStream(loader, steps=module.steps)
    trainer.fit(module, stream, ckpt_path=str(last) if start else None, weights_only=True)
    if not module.last_figures and validation:
        module.last_figures = module.evaluate()
    return module.last_figures


def read_step(path: Path) -> int:
    """Return the step at which a training checkpoint was written.

    Raises:
        CheckpointError: the file is truncated or no checkpoint.
    """
    try:
        return int(torch.load(path, map_location="cpu", weights_only=True)["global_step"])
    except (RuntimeError, KeyError, EOFError, OSError, ValueError, TypeError, UnpicklingError) as error:
        raise CheckpointError(
            f"{path}: expected a training checkpoint, got a file that cannot be read ({error}); "
            "delete it to start anew, or put back a whole one."
        ) from error
