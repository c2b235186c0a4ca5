"""One training module for pretraining (frames alone) and finetuning (frames and actions).

Every random number of step i follows from (seed, rank, i), so that a resumed run repeats the unbroken one
exactly without storing generators.
"""

from __future__ import annotations

import math
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from typing import Any, TypeVar

import lightning as L
import torch
from torch import Tensor

from ...errors import CheckpointError, DataError
from ..model.config import ModelConfig
from ..model.objectives import Batch, count_kept, evaluation_metrics, rows_of, training_losses
from ..model.release import config_from_dict
from ..model.world_model import WorldModel
from .averaging import WeightAverage
from .bad_samples import NameEpisode, describe_bad_samples, find_bad_samples
from .distributed import WholePass, any_rank, full, gather_texts, mean_over_ranks, mean_tensor
from .evaluations import Evaluations
from .lora import fingerprint_of_frozen, frozen_names, rank_of
from .metrics_log import MetricsLog
from .optimizer import MuonAdamW, muon_matrices
from .preemption import StopRequest
from .progress import SaveLast
from .recipe import TrainingConfig, computes_in_bfloat16, learning_rate_factor
from .throughput import StepCost, rate_metrics, step_cost

Result = TypeVar("Result")


class TrainingModule(L.LightningModule):
    """Optimization, averaging, metrics and checkpoints of a `WorldModel`."""

    def __init__(self, model: WorldModel, config: TrainingConfig, *, steps: int) -> None:
        super().__init__()
        self.model, self.config, self.steps = model, config, steps
        self.average = WeightAverage(model, config.weight_average) if config.weight_average else None
        self.validation: Sequence[Batch] = ()
        self.metrics: MetricsLog | None = None
        self.checkpoints: SaveLast | None = None
        self.evaluations: Evaluations | None = None
        self.stop_request = StopRequest()
        self.name_episode: NameEpisode | None = None
        self.peak_flops: float | None = None
        self.log_every = self.validate_every = self.batch_size = 0
        self.last_metrics: dict[str, float] = {}
        self._sums: dict[str, tuple[Tensor, int]] = {}
        self._interval = (0, 0.0)
        self._kept: Tensor | None = None
        self._stopping = self._warned = False
        self._whole: list[WholePass] = []  # in a list, so that its weights are not registered twice
        self._gathered: dict[str, Tensor] | None = None
        if config.gradient_checkpointing is not None:
            model.gpt.gradient_checkpointing = config.gradient_checkpointing

    def configure_model(self) -> None:
        """Compile the blocks and, under FSDP, spread the weights over the processes."""
        if self.config.compile:
            for block in self.model.gpt.blocks[:-1]:  # the last one computes only what is read
                block.compile()
        from .sharding import ShardedStrategy, shard

        if isinstance(self.trainer.strategy, ShardedStrategy) and not self._whole:
            self._whole.append(WholePass(self.model))
            shard(self._whole[0], self.trainer.strategy.device_mesh["data_parallel"])
            if self.average is not None:
                self.average = WeightAverage(self.model, self.config.weight_average)

    def compute(self, function: Callable[[WorldModel], Result]) -> Result:
        """Return `function(model)`, with the weights gathered for it where they are spread over processes."""
        return self._whole[0](function) if self._whole else function(self.model)

    def configure_optimizers(self) -> Any:
        """Return Muon for the matrices of trunk and head and AdamW for the rest, with the rates changed every step."""
        c = self.config
        optimizer = MuonAdamW(
            self.model,
            muon_matrices(self.model),
            learning_rate=c.learning_rate,
            muon_learning_rate=c.muon_factor * c.learning_rate,
            weight_decay=c.weight_decay,
            betas=c.betas,
            bfloat16=computes_in_bfloat16(c.precision),
        )
        scheduler = torch.optim.lr_scheduler.LambdaLR(
            optimizer,
            lambda step: learning_rate_factor(step, steps=self.steps, warmup=c.warmup, final=c.final_rate),
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def optimizer_groups(self) -> list[list[list[str]]]:
        """Name the parameters of each group of each part of the optimizer."""
        optimizer = self.configure_optimizers()["optimizer"]
        names = {id(p): name for name, p in self.model.named_parameters()}
        return [[[names[id(p)] for p in group["params"]] for group in part.param_groups] for part in optimizer.parts]

    def predicts_frames(self, step: int) -> bool:
        """Return whether `step` computes the frame loss; the share over any stretch is `frame_fraction`."""
        if not self.config.with_actions:
            return True
        fraction = self.config.frame_fraction
        return math.floor((step + 1) * fraction) > math.floor(step * fraction)

    def count_step(self, batches: Sequence[Batch]) -> None:
        """Count what the batches of the coming step are averaged over, here and on the other processes.

        With it, accumulated batches and those of several processes weigh by what they hold, as in one large batch.
        """
        counts = [count_kept(self.model, batch, with_actions=self.config.with_actions) for batch in batches]
        self._kept = mean_tensor(torch.stack(counts).mean(0).to(self.device))

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the weighted loss."""
        c, step = self.config, self.global_step
        seed = (c.seed * 1_000_003 + step) * 4099 + self.global_rank
        torch.manual_seed(seed + batch_idx % c.accumulate * 2**50)
        losses = self.compute(lambda model: self._losses(model, batch))
        loss = self._weigh(losses)
        stopped = torch.full((), self.stop_request.came, device=self.device)
        flags = any_rank(torch.stack([~torch.isfinite(loss.detach()), stopped]))
        self._judged = flags, batch, loss.detach()
        for name, value in {"loss": loss, **losses}.items():
            self._add(name, value.detach())
        return loss

    def _losses(self, model: WorldModel, batch: Batch) -> dict[str, Tensor]:
        step, acts = self.global_step, self.config.with_actions
        shares = (self.config.state_share, self.config.target_state_share)
        return training_losses(
            model, batch, with_actions=acts, with_frames=self.predicts_frames(step), step=step, state_shares=shares,
            kept=self._kept,
        )  # fmt: skip

    def _weigh(self, losses: Mapping[str, Tensor]) -> Tensor:
        c = self.config
        loss = next(iter(losses.values())).new_zeros(())
        if "frame_loss" in losses:
            loss = loss + (c.frame_weight if c.with_actions else 1.0) * losses["frame_loss"]
        if "action_loss" in losses:
            loss = loss + c.action_weight * losses["action_loss"]
        return loss

    def _refuse_loss(self, batch: Batch, loss: Tensor) -> None:
        """Name the samples to blame, on every process, before anything is changed."""
        reason = ""
        if not torch.isfinite(loss):
            alone = None if self._whole else lambda sample: self._weigh(self._losses(self.model, sample))
            reason = describe_bad_samples(batch, find_bad_samples(batch, alone), self.name_episode)
            reason = reason or "no single sample of the batch"
        blamed = "; ".join(text for text in gather_texts(reason) if text)
        raise DataError(
            f"training: expected a finite loss, got {loss.item()} at step {self.global_step} from {blamed}; fix or "
            f"leave out these samples, or lower the learning rate ({self.config.learning_rate}). The weights are those "
            "of the step before, and so is the last checkpoint or older."
        )

    def _add(self, name: str, value: Tensor) -> None:
        total, count = self._sums.get(name, (torch.zeros_like(value), 0))
        self._sums[name] = (total + value, count + 1)

    def on_after_backward(self) -> None:
        """Stop at a loss that no one can learn from, before anything is changed.

        The answer of the other processes is read here, where the gradients have made them wait already.

        Raises:
            DataError: the loss is not finite, on this process or on another.
        """
        flags, batch, loss = self._judged
        bad, self._stopping = flags()
        if bad:
            self._refuse_loss(batch, loss)

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        """Clip the gradient's norm; Lightning's own clipping refuses fused optimizers in mixed precision.

        Raises:
            DataError: the norm is not finite.
        """
        norm = full(torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip_norm))
        if not torch.isfinite(norm):
            raise DataError(
                f"training: expected a finite gradient, got a norm of {norm.item()} at step {self.global_step} from a "
                f"finite loss; lower the learning rate ({self.config.learning_rate}) or train with "
                "--compute.precision 32. The weights are those of the step before."
            )
        self._add("gradient_norm", norm)

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
        """Step, then move the weight average."""
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        if self.average is not None:
            self.average.update()

    def on_train_start(self) -> None:
        """Take over the signals that Lightning has taken."""
        self.stop_request.listen()

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        """After a step, write the log, validate and save where it is time."""
        if (batch_idx + 1) % self.config.accumulate:
            return
        step = self.global_step
        if self.log_every and (step % self.log_every == 0 or step == self.steps):
            self._log_interval(step, batch)
        if self.validate_every and self.validation and (step % self.validate_every == 0 or step == self.steps):
            self.last_metrics = self.evaluate()
            self._write(step, {f"val/{name}": value for name, value in self.last_metrics.items()})
        if self.evaluations is not None:
            with self._averaged():
                self.evaluations.after_step(step)
        if self.checkpoints is not None:
            self.checkpoints.after_step(self.trainer, stop=self._stopping)

    def on_train_end(self) -> None:
        """Under FSDP, gather the released weights while all processes are there."""
        if self._whole:
            from .sharding import gathered_state

            with self._averaged():
                self._gathered = gathered_state(self.model)

    def _log_interval(self, step: int, batch: Batch) -> None:
        now = time.perf_counter()
        metrics = {f"train/{name}": float(total) / count for name, (total, count) in self._sums.items()}
        metrics = mean_over_ranks(metrics, self.device)
        begin, since = self._interval
        if since:
            rate = (step - begin) * len(batch["text_id"]) * self.config.accumulate / (now - since)
            metrics["train/sequences_per_s"] = rate * self.trainer.world_size
            rates = rate_metrics(rate, self.cost(), self.peak_flops)
            rates["tokens_per_s"] *= self.trainer.world_size
            metrics |= {f"train/{name}": value for name, value in rates.items()}
        metrics["train/learning_rate"] = self.trainer.optimizers[0].param_groups[0]["lr"]
        self._interval, self._sums = (step, now), {}
        self._write(step, metrics)
        self._warn(step, metrics)

    def _warn(self, step: int, metrics: Mapping[str, float]) -> None:
        """Warn once of a head that has gone wrong; early in training a head may still find its way."""
        if step < self.steps // 2 or self._warned or not self.trainer.is_global_zero:
            return
        losses = {name.removeprefix("train/"): value for name, value in metrics.items()}
        if warning := self.model.head.warning(losses):
            self._warned = True
            warnings.warn(f"step {step}: {warning}", stacklevel=2)

    def cost(self) -> StepCost:
        """Return what a sequence costs on average over the steps with and without frames."""
        length, acts = self.model.texts.length, self.config.with_actions
        share = self.config.frame_fraction if acts else 1.0
        tokens = flops = 0.0
        for weight, with_frames in ((share, True), (1 - share, False)):
            if weight:
                cost = step_cost(self.model, text_length=length, with_frames=with_frames, with_actions=acts)
                tokens, flops = tokens + weight * cost.tokens, flops + weight * cost.flops
        return StepCost(tokens=tokens, flops=flops)

    def _write(self, step: int, metrics: Mapping[str, float]) -> None:
        if self.metrics is not None and self.trainer.is_global_zero:
            self.metrics.add(step, metrics)

    def evaluate(self) -> dict[str, float]:
        """Measure the averaged (or last) weights on the validation batches; see `evaluation_metrics`."""
        with self._averaged():
            return evaluate(self.model, self.validation, with_actions=self.config.with_actions, compute=self.compute)

    def _averaged(self) -> AbstractContextManager[None]:
        return nullcontext() if self.average is None else self.average.applied()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Store the configuration, the weight average and the metrics of the interval at hand."""
        checkpoint["model_config"] = asdict(self.model.config)
        checkpoint["accumulate"], checkpoint["lora_rank"] = self.config.accumulate, rank_of(self.model)
        for name in frozen_names(self.model):  # they are those of --init
            del checkpoint["state_dict"][f"model.{name}"]
        if rank_of(self.model):
            checkpoint["lora_frozen"] = fingerprint_of_frozen(self.model)
        checkpoint["schedule"] = self._schedule()
        checkpoint["interval_sums"] = self._sums
        if self.average is not None:
            checkpoint["weight_average"] = self.average.state_dict()

    def _schedule(self) -> dict[str, float]:
        names = ("learning_rate", "muon_factor", "warmup", "weight_decay")
        return {"steps": self.steps, "batch_size": self.batch_size} | {n: getattr(self.config, n) for n in names}

    def _tell_changes(self, saved: Mapping[str, float]) -> None:
        """Say what this run takes otherwise than the one that it resumes."""
        ours = self._schedule()
        changed = [f"--{n.replace('_', '-')} {saved[n]:g}, now {ours[n]:g}" for n in saved if saved[n] != ours[n]]
        if changed and self.trainer.is_global_zero:
            print(f"resumes a run of {'; '.join(changed)}: the schedule is the new one from here on", file=sys.stderr)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the weight average and the metrics of the interval at hand.

        Raises:
            CheckpointError: the checkpoint is of another configuration.
        """
        ours = asdict(self.model.config)
        saved = asdict(config_from_dict(checkpoint["model_config"])) if "model_config" in checkpoint else {}
        if saved != ours:
            changed = [name for name in ours if saved.get(name) != ours[name]]
            raise CheckpointError(
                f"resume: expected a checkpoint of this configuration, got one that differs in {changed}; "
                "use another output folder or the same configuration."
            )
        accumulate = checkpoint.get("accumulate", 1)
        if accumulate != self.config.accumulate:
            raise CheckpointError(
                f"resume: expected --accumulate {accumulate} as this run began, got {self.config.accumulate}; keep it, "
                "or use another output folder."
            )
        rank = checkpoint.get("lora_rank", 0)
        if rank != rank_of(self.model):
            raise CheckpointError(
                f"resume: expected --lora.rank {rank} as this run began, got {rank_of(self.model)}; keep it, or use "
                "another output folder."
            )
        if rank and checkpoint.get("lora_frozen") != fingerprint_of_frozen(self.model):
            raise CheckpointError(
                "resume: expected the --init and --lora.bits that this run began with, got other frozen weights; put "
                "them back, or use another output folder."
            )
        frozen = self.model.state_dict()
        checkpoint["state_dict"] |= {f"model.{name}": frozen[name] for name in frozen_names(self.model)}
        self._tell_changes(checkpoint.get("schedule", {}))
        # a run that had come to its end goes on where more steps are asked for
        loop = checkpoint.get("loops", {}).get("fit_loop", {})
        loop.get("epoch_loop.batch_progress", {})["is_last_batch"] = False
        self._sums = {
            name: (total.to(self.device), count) for name, (total, count) in checkpoint.get("interval_sums", {}).items()
        }
        if self.average is not None and "weight_average" in checkpoint:
            self.average.load_state_dict(checkpoint["weight_average"])

    def use_average(self) -> WorldModel:
        """Return the model with the averaged weights for good, whole and in evaluation mode."""
        if self._gathered is not None:
            whole = WorldModel(self.model.config)
            whole.load_state_dict(self._gathered)
            whole.acts, whole.predicts = self.model.acts, self.model.predicts
            return whole.eval()
        if self.average is not None:
            self.average.copy_to_module()
        return self.model.eval()


def evaluate(
    model: WorldModel,
    batches: Sequence[Batch],
    *,
    with_actions: bool,
    compute: Callable[[Callable[[WorldModel], dict[str, Tensor]]], dict[str, Tensor]] | None = None,
) -> dict[str, float]:
    """Average `evaluation_metrics` over batches, in evaluation mode; the model's mode is restored.

    A model of several robots is measured robot by robot; `NAME/` leads the metrics of each.

    Args:
        compute: how a function of the model is run (see `TrainingModule.compute`); None calls it.
    """
    was_training = model.training
    model.eval()
    totals: dict[str, float] = {}
    weights: dict[str, int] = {}
    for robot, batch in (part for whole in batches for part in by_robot(model.config, whole)):
        moved = _to_device(batch, model.device)

        def measure(model: WorldModel, moved: Batch = moved) -> dict[str, Tensor]:
            return evaluation_metrics(model, moved, with_actions=with_actions, with_frames=True)

        with torch.no_grad():
            metrics = measure(model) if compute is None else compute(measure)
        size = len(batch["text_id"])
        for name, value in metrics.items():
            for key in (name, f"{robot}/{name}") if robot else (name,):
                totals[key] = totals.get(key, 0.0) + size * float(value)
                weights[key] = weights.get(key, 0) + size
    model.train(was_training)
    return {name: total / weights[name] for name, total in totals.items()}


def by_robot(config: ModelConfig, batch: Batch) -> Iterator[tuple[str, Batch]]:
    """Yield the samples of each robot of a mixture with its name; those of other models together, without one."""
    if not config.is_mixture or "embodiment" not in batch:
        yield "", batch
        return
    for number, rows in config.slots.groups(batch["embodiment"]):
        yield config.embodiments[number].name, rows_of(batch, rows)


def _to_device(value: Any, device: torch.device) -> Any:
    if isinstance(value, Mapping):
        return {name: _to_device(item, device) for name, item in value.items()}
    return value.to(device)
