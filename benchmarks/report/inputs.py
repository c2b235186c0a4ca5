"""Read what a run folder holds; every part may be missing, and what is missing or broken is noted."""

from __future__ import annotations

import csv
import json
import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...errors import DataError

STAGES = "stages.json"
RUN = "run.json"
SHARDS = "shards/manifest.json"
PRETRAIN = "pretrain/metrics.csv"
FINETUNE = "finetune/metrics.csv"
ACT = "act/results.json"
IMAGINE = "imagine/metrics.json"
EPISODES = "imagine/episodes.json"
TRAINING = "metrics.csv"
TOKENIZER_LOGS = "log/version_*/metrics.csv"
"""Logs of a training whose own folder is the run: the world model's, and one a start of the tokenizers'."""

Curves = dict[str, list[tuple[float, float]]]
"""Metric name -> (step, value) pairs, as logged."""


@dataclass(slots=True, kw_only=True)
class RunFiles:
    """The parts of a run folder; an absent part is empty, `problems` states what could not be read."""

    folder: Path
    run: dict[str, Any]
    stages: list[dict[str, Any]]
    shards: dict[str, Any]
    pretrain: Curves
    finetune: Curves
    training: Curves
    act: dict[str, Any]
    imagine: dict[str, Any]
    episodes: list[dict[str, Any]]
    problems: list[str] = field(default_factory=list)

    def command_of(self, *names: str) -> str:
        """Return the command of the first stage whose name has one of `names` as a word, or nothing."""
        for stage in self.stages:
            if set(names) & set(re.split(r"[^a-z0-9]+", str(stage.get("name", "")).lower())):
                return str(stage.get("command", ""))
        return ""


def read_run(folder: Path) -> RunFiles:
    """Read the parts of a run folder.

    Raises:
        DataError: The folder does not exist or holds none of the known files.
    """
    if not folder.is_dir():
        raise DataError(
            f"Report: expected a run folder, got {folder}; pass the folder that the training commands wrote."
        )
    known = (STAGES, RUN, SHARDS, PRETRAIN, FINETUNE, ACT, IMAGINE, EPISODES, TRAINING)
    if not any((folder / name).is_file() for name in known) and not any(folder.glob(TOKENIZER_LOGS)):
        raise DataError(
            f"Report: expected at least one of {', '.join(known)}, got none in {folder}; run a stage first."
        )
    problems: list[str] = []
    return RunFiles(
        folder=folder,
        run=_read_json(folder, RUN, dict, problems),
        stages=_records(_read_json(folder, STAGES, list, problems), STAGES, problems),
        shards=_read_json(folder, SHARDS, dict, problems),
        pretrain=_read_curves(folder, PRETRAIN, problems),
        finetune=_read_curves(folder, FINETUNE, problems),
        training=_read_training(folder, problems),
        act=_read_json(folder, ACT, dict, problems),
        imagine=_read_json(folder, IMAGINE, dict, problems),
        episodes=_records(_read_json(folder, EPISODES, list, problems), EPISODES, problems),
        problems=problems,
    )


def _read_json(folder: Path, name: str, kind: type, problems: list[str]) -> Any:
    path = folder / name
    if not path.is_file():
        return kind()
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        problems.append(f"{name} could not be read: {error}")
        return kind()
    if not isinstance(content, kind):
        problems.append(f"{name} could not be used: expected a {kind.__name__}, got a {type(content).__name__}")
        return kind()
    return content


def _records(items: list[Any], name: str, problems: list[str]) -> list[dict[str, Any]]:
    records = [item for item in items if isinstance(item, dict)]
    if len(records) < len(items):
        problems.append(f"{name}: {len(items) - len(records)} entries are no objects and were left out")
    return records


def _read_training(folder: Path, problems: list[str]) -> Curves:
    """Read the log of a training in its own folder; a later start replaces the steps that it took again."""
    if (folder / TRAINING).is_file():
        return _read_curves(folder, TRAINING, problems)
    curves: Curves = {}
    logs = sorted(folder.glob(TOKENIZER_LOGS), key=lambda path: (len(path.parent.name), path.parent.name))
    for log in logs:
        for name, points in _read_curves(folder, log.relative_to(folder).as_posix(), problems).items():
            curves[name] = [point for point in curves.get(name, []) if point[0] < points[0][0]] + points
    return curves


def _read_curves(folder: Path, name: str, problems: list[str]) -> Curves:
    """Read a logger's table: one row per step, most cells empty."""
    path = folder / name
    if not path.is_file():
        return {}
    curves: Curves = {}
    skipped = 0
    try:
        with path.open(newline="", encoding="utf-8") as stream:
            for row in csv.DictReader(stream):
                skipped += _add_row(row, curves)
    except (OSError, csv.Error, UnicodeDecodeError) as error:
        problems.append(f"{name} could not be read: {error}")
        return {}
    if skipped:
        problems.append(f"{name}: {skipped} cells are no numbers and were left out")
    return curves


def _add_row(row: dict[str | Any, Any], curves: Curves) -> int:
    """Add the cells of a row to the curves and return how many were no numbers."""
    step = _number(row.get("step"))
    if step is None:
        return 1
    skipped = 0
    for metric, cell in row.items():
        if metric in ("step", "epoch", None) or cell in ("", None):
            continue
        value = _number(cell)
        if value is None:
            skipped += 1
        else:
            curves.setdefault(str(metric), []).append((step, value))
    return skipped


def _number(cell: Any) -> float | None:
    try:
        value = float(cell)
    except (TypeError, ValueError):
        return None
    return value if math.isfinite(value) else None
