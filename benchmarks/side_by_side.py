"""Trainings side by side: each in a process and a folder of its own, as many at once as there are workers.

Without a GPU a small model gains little from threads or from processes that share its batches, and two of them, one
thread each, train faster together than one after the other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import as_completed
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ..data_pipeline.executors import worker_pool


def how_many(num_workers: int) -> int:
    """Return how many trainings go side by side: one where there is a GPU."""
    import torch

    return 1 if torch.cuda.is_available() else num_workers


def threads(num_workers: int) -> int:
    """Return the threads of each of them, 0 for torch's choice."""
    return 1 if how_many(num_workers) > 1 else 0


def side_by_side(
    stage: Callable[..., Any], tasks: Sequence[tuple[Any, ...]], names: Sequence[str], *, num_workers: int, logs: Path
) -> list[Any]:
    """Call a function of a module with every tuple of arguments; return what it gives, in order.

    Args:
        stage: the function; arguments and results are pickled.
        tasks: its arguments.
        names: what each is called.
        num_workers: processes; of one, everything happens in this process.
        logs: folder for what each prints, where there are several.

    Raises:
        Gr2Error: one has failed; what others have finished is kept.
    """
    processes = min(how_many(num_workers), len(tasks))
    if processes <= 1:
        return [stage(*task) for task in tasks]
    logs.mkdir(parents=True, exist_ok=True)
    files = [logs / f"{name}.txt" for name in names]
    with worker_pool(processes) as pool, tqdm(total=len(tasks), desc=stage.__name__.strip("_"), unit="run") as bar:
        futures = [pool.submit(_quietly, stage, file, task) for file, task in zip(files, tasks, strict=True)]
        for future in as_completed(futures):
            future.result()
            bar.update()
        return [future.result() for future in futures]


def _quietly(stage: Callable[..., Any], file: Path, task: tuple[Any, ...]) -> Any:
    """Call a function with what it prints in a file, since lines of several processes would mix."""
    with file.open("a") as log, redirect_stdout(log), redirect_stderr(log):
        return stage(*task)
