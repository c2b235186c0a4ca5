"""Parts of a training run around the steps: the stream of batches, the progress bar, the checkpoint file."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import lightning as L
from lightning.pytorch.callbacks import Callback
from tqdm import tqdm

from ..model.objectives import Batch
from .throughput import StepCost, rate_metrics


class StatefulLoader(Protocol):
    """Endless batches whose order can be resumed; `iter` resumes where the last iteration stopped."""

    def __iter__(self) -> Iterator[Batch]: ...

    def state_dict(self) -> dict[str, Any]:
        """Return what is needed to resume after the last batch."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume where `state_dict` was taken."""
        ...


class StepStream:
    """Exactly `steps` batches of an endless loader, as one resumable epoch.

    The `accumulate` batches of an optimization step are read together and shown to `announce` before the first of them.

    Having a length keeps Lightning from fetching a batch ahead, so that the loader's state is that of the
    batches used.
    """

    def __init__(
        self,
        loader: StatefulLoader,
        *,
        steps: int,
        accumulate: int = 1,
        announce: Callable[[Sequence[Batch]], None] | None = None,
    ) -> None:
        self.loader, self.steps, self.step = loader, steps, 0
        self.accumulate, self.announce = accumulate, announce

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[Batch]:
        source = iter(self.loader)
        while self.step < self.steps:
            group = [next(source) for _ in range(self.accumulate)]
            if self.announce is not None:
                self.announce(group)
            for batch in group:
                self.step += 1
                yield batch

    def state_dict(self) -> dict[str, Any]:
        """Return the position and the loader's state."""
        return {"step": self.step, "loader": self.loader.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue after the batches that were used."""
        self.step = state["step"]
        self.loader.load_state_dict(state["loader"])


class Progress(Callback):
    """Show sequences and tokens a second, the share of the device's peak, the time left and the newest loss.

    Args:
        description: what the line begins with.
        batch_size: sequences a batch on each process.
        cost: of a sequence.
        peak: of a device [FLOP/s], None where it is not known.
    """

    def __init__(self, description: str, batch_size: int, cost: StepCost, peak: float | None = None) -> None:
        self.description, self.batch_size = description, batch_size
        self.cost, self.peak = cost, peak
        self.bar: Any = None

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Open the bar at the resumed step."""
        size = self._step_size(trainer)
        self.bar = tqdm(
            total=trainer.max_steps * size,
            initial=trainer.global_step * size,
            desc=self.description,
            unit="seq",
            unit_scale=True,
            mininterval=1.0,
            disable=not trainer.is_global_zero,
        )
        self._shown = time.monotonic()
        self._count = trainer.global_step * size

    def _step_size(self, trainer: L.Trainer) -> int:
        return self.batch_size * trainer.accumulate_grad_batches * trainer.world_size

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Advance; show metrics now and then."""
        count = trainer.global_step * self._step_size(trainer)
        self.bar.update(count - self.bar.n)
        seconds = time.monotonic() - self._shown
        if seconds > 2.0:
            metrics = rate_metrics((count - self._count) / seconds / trainer.world_size, self.cost, self.peak)
            rates = {"tok/s": f"{metrics['tokens_per_s'] * trainer.world_size:,.0f}"}
            if "mfu" in metrics:
                rates["MFU"] = f"{metrics['mfu']:.1%}"
            self._shown, self._count = time.monotonic(), count
            self.bar.set_postfix(
                {"step": trainer.global_step, "loss": f"{float(outputs['loss']):.4g}"} | rates, refresh=False
            )

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Close the bar."""
        self.bar.close()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Close the bar before the error is shown."""
        if self.bar is not None:
            self.bar.close()


class SaveLast:
    """Write `path` every `every` steps, at the last one and when asked to stop, replacing it in one move.

    A checkpoint is a file, or a folder where the weights are sharded. A folder cannot replace another in one move:
    the old one waits as `.NAME.old` until the new one is in place, and `restore_interrupted` puts it back.
    """

    def __init__(self, path: Path, every: int) -> None:
        self.path, self.every = path, every

    def after_step(self, trainer: L.Trainer, *, stop: bool) -> None:
        """Save where it is time; with `stop`, end the run."""
        if stop:
            trainer.should_stop = True
        if stop or trainer.global_step % self.every == 0 or trainer.global_step >= trainer.max_steps:
            temporary = self.path.with_name(f".{self.path.name}.new")
            if trainer.is_global_zero and temporary.is_dir():
                shutil.rmtree(temporary)
            trainer.save_checkpoint(temporary)
            if trainer.is_global_zero:
                _replace(temporary, self.path)


def _replace(new: Path, path: Path) -> None:
    """Put a file or folder in the place of `path`."""
    if not new.is_dir() and not path.is_dir():
        os.replace(new, path)
        return
    old = path.with_name(f".{path.name}.old")
    _remove(old)
    if path.exists():
        os.replace(path, old)
    os.replace(new, path)
    _remove(old)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def restore_interrupted(path: Path) -> None:
    """Put back the checkpoint that a kill between the two moves of a folder left aside."""
    old = path.with_name(f".{path.name}.old")
    if old.exists() and not path.exists():
        os.replace(old, path)
