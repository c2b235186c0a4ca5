"""Parts of a training run around the steps: the stream of batches, the progress bar, the checkpoint file."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import lightning as L
from lightning.pytorch.callbacks import Callback
from tqdm import tqdm

from .objectives import Batch


class StatefulLoader(Protocol):
    """Endless batches whose order can be resumed; `iter` goes on where the last iteration stopped."""

    def __iter__(self) -> Iterator[Batch]: ...

    def state_dict(self) -> dict[str, Any]:
        """Return what is needed to go on after the last batch."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken."""
        ...


class StepStream:
    """Exactly `steps` batches of an endless loader, as one resumable epoch.

    Having a length keeps Lightning from fetching a batch ahead, so that the loader's state is that of the
    batches used.
    """

    def __init__(self, loader: StatefulLoader, *, steps: int) -> None:
        self.loader, self.steps, self.step = loader, steps, 0

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[Batch]:
        source = iter(self.loader)
        while self.step < self.steps:
            batch = next(source)
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
    """Show sequences a second, the time left and the newest figures."""

    def __init__(self, description: str, batch_size: int) -> None:
        self.description, self.batch_size = description, batch_size
        self.bar: Any = None

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Open the bar at the resumed step."""
        size = self.batch_size * trainer.world_size
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

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Advance; show the loss now and then."""
        self.bar.update(trainer.global_step * self.batch_size * trainer.world_size - self.bar.n)
        if time.monotonic() - self._shown > 2.0:
            self._shown = time.monotonic()
            self.bar.set_postfix(step=trainer.global_step, loss=f"{float(outputs['loss']):.4g}", refresh=False)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Close the bar."""
        self.bar.close()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Close the bar before the error is shown."""
        if self.bar is not None:
            self.bar.close()


class SaveLast(Callback):
    """Write `path` every `every` steps and at the last one, replacing the file in one move."""

    def __init__(self, path: Path, every: int) -> None:
        self.path, self.every = path, every

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save where it is time."""
        if trainer.global_step % self.every == 0 or trainer.global_step >= trainer.max_steps:
            temporary = self.path.with_name(f".{self.path.name}.new")
            trainer.save_checkpoint(temporary)
            if trainer.is_global_zero:
                os.replace(temporary, self.path)
