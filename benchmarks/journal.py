"""Commands one after another in one folder, finished ones remembered, so that a stopped run resumes where it was."""

from __future__ import annotations

import csv
import json
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from ..data_pipeline.files import write_json
from ..errors import DataError
from ..targets import call


class Journal:
    """Remembers finished stages in `stages.json`, with their command, time and summary.

    A stage that runs makes what was done after it stale: later stages run again.
    """

    def __init__(self, out: Path, stages: int) -> None:
        self.file, self.stages, self.number = out / "stages.json", stages, 0
        self.rows: list[dict[str, Any]] = json.loads(self.file.read_text()) if self.file.exists() else []
        self._passed: list[str] = []

    def run(self, words: str, target: Callable[..., Any], options: Mapping[str, Any], *, name: str = "") -> Any:
        """Run a stage unless the same command is finished; return its summary."""
        name = name or words.split()[-1]
        command = " ".join(["gr2", words, *_arguments(options)])
        self.number += 1
        done = next((row for row in self.rows if row["name"] == name and row["command"] == command), None)
        print(f"\n[{self.number}/{self.stages}] {name}: {command}", flush=True)
        self._passed.append(name)
        if done is not None:
            print(f"    done before, in {done['seconds']:.0f} s", flush=True)
            return done["summary"]
        started_at, begin = time.strftime("%Y-%m-%dT%H:%M:%S"), time.monotonic()
        result = run_apart(command, options["out"]) if options.get("devices", 1) > 1 else call(target, options)
        seconds = time.monotonic() - begin
        summary = (
            {k: v for k, v in result.items() if isinstance(v, int | float | str)} if isinstance(result, dict) else {}
        )
        self.rows = [row for row in self.rows if row["name"] in self._passed[:-1]]
        self.rows.append(
            {
                "name": name,
                "command": command,
                "seconds": round(seconds, 1),
                "started_at": started_at,
                "summary": summary,
            }
        )
        write_json(self.file, self.rows)
        print(f"    finished in {seconds:.0f} s", flush=True)
        return summary


def run_apart(command: str, out: Path) -> dict[str, float]:
    """Run a training command of several processes; return its last validation metrics.

    Lightning starts the other processes by repeating the command line, so it must be that of the training.
    """
    with subprocess.Popen([sys.executable, "-m", "gr2", *shlex.split(command)[1:]]) as process:
        before = signal.signal(signal.SIGTERM, lambda *_: process.terminate())
        try:
            status = process.wait()
        finally:
            signal.signal(signal.SIGTERM, before)
    if status < 0:
        raise DataError(
            f"{out}: the training was killed by signal {-status}, for lack of memory as a rule; free some, and run the "
            "same command again to resume."
        )
    if status:
        raise SystemExit(status)  # the command has printed why
    with (out / "metrics.csv").open(newline="") as file:
        rows = [{k: v for k, v in row.items() if k.startswith("val/") and v} for row in csv.DictReader(file)]
    return {
        name.removeprefix("val/"): float(value) for name, value in ([row for row in rows if row] or [{}])[-1].items()
    }


def spread(processes: int, batch_size: int, num_workers: int) -> dict[str, int]:
    """Return options that spread a finetuning with `batch_size` windows a step over `processes` where there is no GPU:
    small models gain little from threads."""
    import torch

    processes = 1 if torch.cuda.is_available() else min(processes, num_workers)
    if processes == 1:
        return {}
    return {
        "devices": processes,
        "threads": max(1, num_workers // processes),
        "batch_size": batch_size // processes,
    }


def _arguments(options: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Yield options as a command line has them; of groups of options those that differ from the default."""
    for key, value in options.items():
        if is_dataclass(value):
            chosen = {f.name: getattr(value, f.name) for f in fields(value) if getattr(value, f.name) != f.default}
            yield from _arguments(chosen, f"{prefix}{key}.")
        else:
            yield f"--{prefix}{key.replace('_', '-')} {_text(value)}"


def _text(value: object) -> str:
    text = json.dumps([str(item) for item in value]) if isinstance(value, list) else str(value)
    return shlex.quote(text)
