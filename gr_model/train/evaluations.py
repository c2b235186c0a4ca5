"""Evaluations beside training: snapshots act in `gr2 benchmark calvin`, and the best one is what is released."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import fmean
from typing import Any

_RESULTS = Path("act/results.json")


class Evaluations:
    """Measures a snapshot every so many steps by a process beside the training; a second one waits for the first.

    `folder` has `step_000500/act` with the results of each, and the best snapshot itself.

    Args:
        folder: of the snapshots.
        every: steps from one to the next; the last step is measured, too.
        options: of `gr2 benchmark calvin`, as in "--sequences 20 --num-workers 1".
        save: writes the release of the present weights, those of a step, to a folder.
    """

    def __init__(self, folder: Path, *, every: int, options: str, save: Callable[[Path, int], Any]) -> None:
        self.folder, self.every, self.options, self.save = folder, every, shlex.split(options), save
        self._running: tuple[Path, subprocess.Popen[bytes]] | None = None

    def after_step(self, step: int) -> None:
        """Begin to measure the present weights where it is time."""
        if step % self.every == 0:
            self._take(step)

    def finish(self, step: int, out: Path) -> None:
        """Measure the last step and what a stopped run has left; put the best snapshot in the place of `out`'s release.

        The last step's stays where nothing could be measured.
        """
        self._take(step)
        self._wait()
        for place in self._snapshots():
            if not (place / _RESULTS).exists() and any(place.glob("*.json")):
                self._start(place)
                self._wait()
        best = self._best()
        if best is not None:
            print(f"the best of {len(self._scores())} evaluated snapshots is {best.name}: it is released")
            shutil.copytree(best, out, dirs_exist_ok=True, ignore=shutil.ignore_patterns("act", "*.log"))

    def stop(self) -> None:
        """End the process that measures; the same command measures its snapshot again."""
        if self._running is not None:
            self._running[1].terminate()
            self._running[1].wait()
            self._running = None

    def _take(self, step: int) -> None:
        place = self.folder / f"step_{step:06d}"
        if not (place / _RESULTS).exists():
            self.save(place, step)
            self._wait()
            self._start(place)

    def _start(self, place: Path) -> None:
        command = [sys.executable, "-m", "gr2", "benchmark", "calvin", "--policy", str(place)]
        command += ["--out", str(place / "act"), *self.options]
        with (place / "evaluation.log").open("wb") as log:
            self._running = place, subprocess.Popen(command, stdout=log, stderr=log)

    def _wait(self) -> None:
        if self._running is None:
            return
        (place, process), self._running = self._running, None
        if process.wait():
            print(f"{place.name}: could not be evaluated, see {place / 'evaluation.log'}", file=sys.stderr)
            return
        length, success = self._scores()[place]
        words = [f"{success:.1%} of tasks"] * (success >= 0) + [f"{length:.2f} in a row"] * (length >= 0)
        print(f"{place.name}: {', '.join(words)}", file=sys.stderr)
        best = self._best()
        for other in self._snapshots():
            if other != best and (other / _RESULTS).exists():
                _keep_results_alone(other)

    def _snapshots(self) -> list[Path]:
        return sorted(self.folder.glob("step_*"))

    def _scores(self) -> dict[Path, tuple[float, float]]:
        files = [place / _RESULTS for place in self._snapshots()]
        return {file.parents[1]: _score(json.loads(file.read_text())) for file in files if file.exists()}

    def _best(self) -> Path | None:
        """Return the snapshot with most tasks in a row, then with most single tasks; of equal ones the last."""
        scores = self._scores()
        return max(sorted(scores, reverse=True), key=scores.__getitem__) if scores else None


def _keep_results_alone(place: Path) -> None:
    for path in place.iterdir():
        if path.is_dir() and path.name != "act":
            shutil.rmtree(path)
        elif path.is_file() and path.suffix != ".log":
            path.unlink()


def _score(results: dict[str, Any]) -> tuple[float, float]:
    """Return tasks in a row and share of single tasks, averaged over controls; -1 where there are none."""
    in_a_row, shares = [], []
    for control in results["controls"].values():
        in_a_row += control["sequences"] or control["chains"]
        if total := sum(task["total"] for task in control["tasks"].values()):
            shares.append(sum(task["success"] for task in control["tasks"].values()) / total)
    return fmean(in_a_row or [-1.0]), fmean(shares or [-1.0])
