"""The log of a run: a CSV file with one row a logged step, kept across resumes; TensorBoard and wandb beside it."""

from __future__ import annotations

import csv
import os
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, Protocol

from ...errors import EnvironmentMissing

LogName = Literal["auto", "csv", "tensorboard", "wandb"]


class FigureSink(Protocol):
    """Another place that metrics go to."""

    def add(self, step: int, metrics: Mapping[str, float]) -> None:
        """Take metrics of a step."""
        ...

    def close(self) -> None:
        """Write what is left."""
        ...


class TensorBoardSink:
    """Event files in `folder`; what an earlier run logged after `resume_step` is hidden."""

    def __init__(self, folder: Path, *, resume_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer: Any = SummaryWriter(folder, purge_step=resume_step + 1 if resume_step else None)

    def add(self, step: int, metrics: Mapping[str, float]) -> None:
        """Write each metric as a scalar."""
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def close(self) -> None:
        """Close the file."""
        self._writer.close()


class WandbSink:
    """A wandb run named after the output folder; a resumed run continues in it."""

    def __init__(self, folder: Path) -> None:
        import wandb

        name = folder.resolve().name
        self._run = wandb.init(project="gr2", name=name, id=name, dir=folder, resume="allow")

    def add(self, step: int, metrics: Mapping[str, float]) -> None:
        """Send the metrics."""
        self._run.log(dict(metrics), step=step)

    def close(self) -> None:
        """Finish the run."""
        self._run.finish()


def open_sinks(log: LogName, out: Path, *, resume_step: int) -> list[FigureSink]:
    """Open what goes beside the CSV file: TensorBoard where it is installed, for "auto".

    Raises:
        EnvironmentMissing: the package that `log` names is not installed.
    """
    package = {"tensorboard": "tensorboard", "wandb": "wandb"}.get(log)
    if package is not None and find_spec(package) is None:
        raise EnvironmentMissing(
            f"--log {log}: expected the package {package}, found none; `pip install 'gr2[{package}]'`, "
            "or use --log csv."
        )
    if log == "wandb":
        return [WandbSink(out)]
    if log == "tensorboard" or (log == "auto" and find_spec("tensorboard") is not None):
        return [TensorBoardSink(out / "tensorboard", resume_step=resume_step)]
    return []


class MetricsLog:
    """Rows of metrics in `path`; columns appear as they are first logged, `step` leads.

    Args:
        path: CSV file.
        resume_step: rows of an earlier run up to this step are kept, later ones dropped.
        sinks: where else the metrics go.
    """

    def __init__(self, path: Path, *, resume_step: int = 0, sinks: Sequence[FigureSink] = ()) -> None:
        self.path, self.sinks = path, sinks
        self.rows: list[dict[str, str]] = []
        if resume_step and path.is_file():
            with path.open(newline="") as file:
                self.rows = [row for row in csv.DictReader(file) if int(row["step"]) <= resume_step]

    def add(self, step: int, metrics: Mapping[str, float]) -> None:
        """Append metrics to the row of `step` and write the file, atomically."""
        values = {name: f"{value:.6g}" for name, value in metrics.items()}
        if self.rows and int(self.rows[-1]["step"]) == step:
            self.rows[-1].update(values)
        else:
            self.rows.append({"step": str(step), **values})
        columns = ["step", *sorted({name for row in self.rows for name in row} - {"step"})]
        temporary = self.path.with_name(f".{self.path.name}.{os.getpid()}")
        with temporary.open("w", newline="") as file:
            writer = csv.DictWriter(file, columns, restval="")
            writer.writeheader()
            writer.writerows(self.rows)
        os.replace(temporary, self.path)
        for sink in self.sinks:
            sink.add(step, metrics)

    def close(self) -> None:
        """Write what the sinks still hold."""
        for sink in self.sinks:
            sink.close()
