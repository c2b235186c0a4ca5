"""The CSV log of a run: one row a logged step, kept across resumes."""

from __future__ import annotations

import csv
import os
from collections.abc import Mapping
from pathlib import Path


class MetricsLog:
    """Rows of figures in `path`; columns appear as they are first logged, `step` leads.

    Args:
        path: CSV file.
        resume_step: rows of an earlier run up to this step are kept, later ones dropped.
    """

    def __init__(self, path: Path, *, resume_step: int = 0) -> None:
        self.path = path
        self.rows: list[dict[str, str]] = []
        if resume_step and path.is_file():
            with path.open(newline="") as file:
                self.rows = [row for row in csv.DictReader(file) if int(row["step"]) <= resume_step]

    def add(self, step: int, figures: Mapping[str, float]) -> None:
        """Append figures to the row of `step` and write the file, atomically."""
        values = {name: f"{value:.6g}" for name, value in figures.items()}
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
