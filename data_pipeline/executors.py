"""Worker processes that never outlive the command: a pool, and an ordered map with bounded memory."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import TypeVar

from ..gr_model.errors import WorkerDied

Item = TypeVar("Item")
Result = TypeVar("Result")

_PARENT_CHECK_S = 1.0


def _follow_parent(parent: int) -> None:
    """Leave Ctrl-C to the parent, and end this process when the parent is gone (killed, say)."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_PARENT_CHECK_S)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


@contextmanager
def worker_pool(num_workers: int) -> Iterator[ProcessPoolExecutor]:
    """Give fresh processes; an error or Ctrl-C ends them at once.

    They are spawned, not forked: decoders and torch hold threads.

    Raises:
        WorkerDied: a process ended without an answer.
    """
    pool = ProcessPoolExecutor(
        num_workers,
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_follow_parent,
        initargs=(os.getpid(),),
    )
    try:
        yield pool
    except BaseException as error:
        processes = list((pool._processes or {}).values())
        pool.shutdown(wait=False, cancel_futures=True)
        for process in processes:
            process.terminate()
        if isinstance(error, BrokenProcessPool):
            raise WorkerDied(
                "a worker process ended without an answer (killed, out of memory, or ended by what it ran); what is "
                "finished is kept: run the same command again to go on, with fewer workers where memory is short."
            ) from error
        raise
    pool.shutdown()


def ordered_map(function: Callable[[Item], Result], items: Iterable[Item], num_workers: int) -> Iterator[Result]:
    """Yield `function(item)` in the order of `items`; at most `2 * num_workers` items are in flight.

    Args:
        function: picklable (a module function or a `functools.partial` of one) where `num_workers > 1`.
        items: read lazily.
        num_workers: processes; 1 runs in this process.
    """
    if num_workers <= 1:
        yield from map(function, items)
        return
    with worker_pool(num_workers) as pool:
        waiting: deque[Future[Result]] = deque()
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) >= 2 * num_workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
