"""A training run: from the first step, or from the last checkpoint, to the last step; on one device or on many."""

from __future__ import annotations

import shutil
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from pickle import UnpicklingError

import lightning as L
import torch
from lightning.pytorch.strategies import DDPStrategy, Strategy
from lightning.pytorch.utilities.exceptions import SIGTERMException

from ...errors import CheckpointError, ConfigError, EnvironmentMissing
from ..model.objectives import Batch
from .bad_samples import NameEpisode
from .distributed import Distribution, choose_accelerator, cluster_environment
from .memory_estimate import device_memory, estimate_memory
from .metrics_log import LogName, MetricsLog, open_sinks
from .module import TrainingModule
from .preemption import Preempted
from .progress import Progress, SaveLast, StatefulLoader, StepStream, restore_interrupted
from .recipe import Precision, computes_in_bfloat16
from .throughput import device_peak


def lightning_precision(precision: Precision) -> str:
    """Return Lightning's name of a precision."""
    return "bf16-mixed" if computes_in_bfloat16(precision) else "32-true"


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
    distribution: Distribution = Distribution(),  # noqa: B008  (frozen)
    log: LogName = "csv",
    name_episode: NameEpisode | None = None,
    description: str = "train",
) -> dict[str, float]:
    """Train for `module.steps` steps; write `metrics.csv` and `last.ckpt` (a folder under FSDP) to `out`.

    Args:
        loader: endless batches of this process; its state is stored, so that a resumed run sees the batches it has
            not seen.
        validation: fixed batches, the same on every process, measured every `validate_every` steps and at the end.
        batch_size: sequences a batch on each process.
        resume: from `out/last.ckpt` where there is one, also one of another number of processes.
        stop_after: end early at this step, to be resumed; the schedule stays that of all steps.
        distribution: devices, machines and strategy.
        log: where the metrics go beside the CSV file.
        name_episode: returns which episode a number of the batch's `episode` is, for messages.

    Returns:
        Metrics of the last validation.

    Raises:
        CheckpointError: `last.ckpt` cannot be read or is of another configuration.
        DataError: the loss is not finite.
        Preempted: SIGTERM or SIGUSR1 came; `last.ckpt` is that of the step at hand.
    """
    out.mkdir(parents=True, exist_ok=True)
    last = out / "last.ckpt"
    if distribution.rank == 0:
        restore_interrupted(last)
    start = read_step(last) if resume and last.exists() else 0
    begin = _readable(last, module, sharded=distribution.sharded) if start else None
    _check_loader(loader, distribution)
    device, bfloat16 = _prepare(module, distribution)
    _announce(module, distribution, batch_size, device, bfloat16)
    chief = distribution.rank == 0
    module.train()
    module.metrics = MetricsLog(
        out / "metrics.csv", resume_step=start, sinks=open_sinks(log, out, resume_step=start) if chief else ()
    )
    module.validation, module.log_every, module.validate_every = validation, log_every, validate_every
    module.batch_size = batch_size
    module.checkpoints, module.name_episode = SaveLast(last, checkpoint_every), name_episode
    if bfloat16 and device.type == "cuda":
        module.peak_flops = device_peak(torch.cuda.get_device_name(device))
    progress = Progress(description, batch_size, module.cost(), module.peak_flops)
    trainer = _make_trainer(module, distribution, progress, max_steps=min(module.steps, stop_after or module.steps))
    stream = _stream(loader, module, distribution)
    with module.stop_request:
        try:
            trainer.fit(module, stream, ckpt_path=begin, weights_only=True)
        except SIGTERMException:  # between Lightning taking the signal over and the first step
            module.stop_request.signal = module.stop_request.signal or 15
        finally:
            module.metrics.close()
            if module.evaluations is not None and trainer.global_step < trainer.max_steps:
                module.evaluations.stop()
    if begin is not None and begin != str(last):
        Path(begin).unlink(missing_ok=True)
    if trainer.global_step < trainer.max_steps:
        _leave(trainer, distribution, last)
    if trainer.global_step > trainer.max_steps and chief:
        print(f"{last} holds step {trainer.global_step} already, asked for {module.steps}: nothing to train")
    if not module.last_metrics and validation and not distribution.sharded:
        module.last_metrics = module.evaluate()
    return module.last_metrics


def _stream(loader: StatefulLoader, module: TrainingModule, distribution: Distribution) -> StepStream:
    """Return the batches of all steps; their kept parts are counted ahead where several make one step."""
    accumulate = module.config.accumulate
    announce = module.count_step if accumulate * distribution.world_size > 1 else None
    return StepStream(loader, steps=module.steps * accumulate, accumulate=accumulate, announce=announce)


def _prepare(module: TrainingModule, distribution: Distribution) -> tuple[torch.device, bool]:
    """Return the device of this process and whether it computes in bfloat16."""
    cuda = distribution.device != "cpu" and torch.cuda.is_available()
    index = distribution.rank % distribution.processes_per_node
    device = torch.device("cuda", index) if cuda else torch.device("cpu")
    if module.config.compile and not cuda and not any(map(shutil.which, ("c++", "g++", "clang++"))):
        raise EnvironmentMissing(
            "--compute.compile true: expected a C++ compiler, found none; install one (g++), or leave compilation out."
        )
    return device, lightning_precision(module.config.precision) == "bf16-mixed"


def _announce(
    module: TrainingModule, distribution: Distribution, batch_size: int, device: torch.device, bfloat16: bool
) -> None:
    """Print what a step takes together and what memory it needs; warn where the device has less."""
    if distribution.rank:
        return
    needed = estimate_memory(
        module.model,
        batch_size=batch_size,
        text_length=module.model.texts.length,
        with_actions=module.config.with_actions,
        weight_average=module.average is not None,
        bfloat16=bfloat16,
        fused_attention=device.type != "cpu",
        shards=distribution.world_size if distribution.sharded else 1,
    )
    print(distribution.describe(batch_size, module.config.accumulate), needed.describe(), sep="\n", file=sys.stderr)
    processes = distribution.processes_per_node if device.type == "cpu" else 1
    warning = needed.warning(device_memory(device) / processes)
    if warning is not None:
        warnings.warn(f"training may run out of memory: {warning}", stacklevel=3)


def _check_loader(loader: StatefulLoader, distribution: Distribution) -> None:
    """Refuse a loader that gives every process the same batches.

    Raises:
        ConfigError: it was made for another number of processes.
    """
    ours = (distribution.rank, distribution.world_size)
    theirs = (getattr(loader, "rank", ours[0]), getattr(loader, "world_size", ours[1]))
    if theirs != ours:
        raise ConfigError(
            f"training: expected a loader for process {ours[0]} of {ours[1]}, got one for {theirs[0]} of {theirs[1]}; "
            "hand distribution.rank and distribution.world_size to the loader."
        )


def _make_trainer(
    module: TrainingModule, distribution: Distribution, progress: Progress, *, max_steps: int
) -> L.Trainer:
    environment = cluster_environment()
    return L.Trainer(
        accelerator=choose_accelerator(distribution.device),
        devices=distribution.processes_per_node,
        num_nodes=distribution.num_nodes,
        strategy=_strategy(distribution),
        plugins=None if environment is None else [environment],
        precision=lightning_precision(module.config.precision),  # type: ignore[arg-type]
        accumulate_grad_batches=module.config.accumulate,
        max_epochs=1,
        max_steps=max_steps,
        callbacks=[progress],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
    )


def _strategy(distribution: Distribution) -> str | Strategy:
    """Return the strategy that Lightning runs."""
    if distribution.sharded:
        from .sharding import ShardedStrategy

        return ShardedStrategy(distribution.world_size)
    if distribution.world_size == 1:
        return "auto"
    # a step without frames or without actions leaves their heads out; no buffer changes in training
    return DDPStrategy(find_unused_parameters=True, broadcast_buffers=False)


def _leave(trainer: L.Trainer, distribution: Distribution, last: Path) -> None:
    """End a run that was asked to stop; processes that Lightning started leave the word to the one that did.

    Raises:
        Preempted: always, on that one.
    """
    if distribution.rank and cluster_environment() is None:
        raise SystemExit(0)  # Lightning kills all processes when one of its own fails
    kept = f"{last} holds step {trainer.global_step}" if last.exists() else "nothing was trained yet"
    raise Preempted(f"stopped by a signal at step {trainer.global_step}: {kept}; the same command resumes from there.")


def _readable(last: Path, module: TrainingModule, *, sharded: bool) -> str:
    """Return the checkpoint to load: a sharded one becomes a file for a run that is not."""
    if last.is_dir() and not sharded:
        from .sharding import as_one_file

        return str(as_one_file(last, module, last.with_name(f".{last.name}.whole")))
    return str(last)


def read_step(path: Path) -> int:
    """Return the step at which a training checkpoint was written.

    Raises:
        CheckpointError: the file is truncated or no checkpoint.
    """
    try:
        if path.is_dir():
            path = path / "run.pt"
        return int(torch.load(path, map_location="cpu", weights_only=True)["global_step"])
    except (RuntimeError, KeyError, EOFError, OSError, ValueError, TypeError, UnpicklingError) as error:
        raise CheckpointError(
            f"{path}: expected a training checkpoint, got a file that cannot be read ({error}); "
            "delete it to start again, or put back a whole one."
        ) from error
