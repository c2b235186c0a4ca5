"""Run work in this process, in worker processes that never outlive the command, or on a Ray cluster.

`ordered_map` keeps order and bounds memory: for items that flow through one writer. `run_tasks` gives each task its own
output and tries failed ones again: for shards.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from ..errors import ConfigError, EnvironmentMissing, Gr2Error, WorkerDied

Item = TypeVar("Item")
Result = TypeVar("Result")
ExecutorKind = Literal["local", "ray"]

_PARENT_CHECK_S = 1.0


def _follow_parent(parent: int) -> None:
    """Leave Ctrl-C to the parent, and end this process when the parent is gone (killed, for instance)."""
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
            raise _died(error) from error
        raise
    pool.shutdown()


@dataclass(frozen=True, slots=True, kw_only=True)
class Executor:
    """Where work runs.

    kind: `local` (this process, or worker processes of this machine) or `ray` (the cluster at `RAY_ADDRESS`, else one
        that is started on this machine).
    num_workers: workers at a time; 1 with `local` runs in this process.
    retries: how often `run_tasks` tries a failed task again.
    num_gpus: GPUs that each worker of Ray gets.
    """

    kind: ExecutorKind = "local"
    num_workers: int = 1
    retries: int = 2
    num_gpus: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskFailure:
    """Why a task failed in the last attempt."""

    item: Any
    error: Exception


ONE_PROCESS = Executor()


def ordered_map(
    function: Callable[[Item], Result], items: Iterable[Item], executor: Executor = ONE_PROCESS
) -> Iterator[Result]:
    """Yield `function(item)` in the order of `items`; at most `2 * num_workers` items are in flight.

    Args:
        function: picklable (a module function or a `functools.partial` of one) beside `local` with one worker.
        items: read lazily, in this process.
        executor: where `function` runs.

    Raises:
        WorkerDied: a process ended without an answer.
    """
    if executor.kind == "local" and executor.num_workers <= 1:
        yield from map(function, items)
        return
    with _started(executor) as submit:
        waiting: deque[Future[Result]] = deque()
        for item in items:
            waiting.append(submit(function, item))
            if len(waiting) >= 2 * executor.num_workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def run_tasks(
    function: Callable[[Item], Any], items: Sequence[Item], executor: Executor, done: Callable[[Item], None]
) -> list[TaskFailure]:
    """Call `function` on every item, in any order, and try those that fail again.

    A `Gr2Error` states what to fix, so its task is not tried again; anything else is (a disk that did not answer, a
    worker that was killed).

    Args:
        function: picklable; its effect is the result (it writes a shard).
        items: the tasks.
        executor: where they run.
        done: called in this process with each item that is done.

    Returns:
        The failures that remain.
    """
    lost: list[TaskFailure] = []
    waiting = list(items)
    for attempt in range(executor.retries + 1):
        failures = list(_attempt(function, waiting, executor, done))
        again = [f for f in failures if not isinstance(f.error, Gr2Error) or isinstance(f.error, WorkerDied)]
        if attempt == executor.retries or not again:
            return lost + failures
        lost += [failure for failure in failures if failure not in again]
        waiting = [failure.item for failure in again]
    return lost


def _attempt(
    function: Callable[[Item], Any], items: Sequence[Item], executor: Executor, done: Callable[[Item], None]
) -> Iterator[TaskFailure]:
    """Run every item once; a pool whose worker died is replaced."""
    waiting = deque(items)
    if executor.kind == "local" and executor.num_workers <= 1:
        while waiting:
            item = waiting.popleft()
            try:
                function(item)
            except ConfigError:
                raise  # every task would fail alike
            except Exception as error:
                yield TaskFailure(item=item, error=error)
            else:
                done(item)
        return
    while waiting:
        broken = False
        with _started(executor) as submit:
            running: dict[Future[Any], Item] = {}
            while (waiting and not broken) or running:
                while waiting and not broken and len(running) < executor.num_workers:
                    item = waiting.popleft()
                    running[submit(function, item)] = item
                finished, _ = wait(running, return_when=FIRST_COMPLETED)
                for future in finished:
                    item, failure = running.pop(future), future.exception()
                    broken = broken or isinstance(failure, BrokenProcessPool)
                    if failure is None:
                        done(item)
                    elif isinstance(failure, ConfigError) or not isinstance(failure, Exception):
                        raise failure
                    else:
                        died = isinstance(failure, BrokenProcessPool)
                        yield TaskFailure(item=item, error=_died(failure) if died else failure)


@contextmanager
def _started(executor: Executor) -> Iterator[Callable[[Callable[[Item], Result], Item], Future[Result]]]:
    if executor.kind == "ray":
        with ray_cluster(executor.num_workers, executor.num_gpus) as submit:
            yield submit
    else:
        with worker_pool(executor.num_workers) as pool:
            yield pool.submit


@contextmanager
def ray_cluster(
    num_workers: int, num_gpus: int = 0
) -> Iterator[Callable[[Callable[[Item], Result], Item], Future[Result]]]:
    """Give a function that submits work to Ray: the cluster at `RAY_ADDRESS`, else one started here.

    Raises:
        EnvironmentMissing: Ray is not installed.
        WorkerDied: a worker ended without an answer.
    """
    try:
        import ray
    except ImportError as error:
        raise EnvironmentMissing(f"--executor ray: {error}; install gr2 with the extra `ray`.") from error
    started = not ray.is_initialized()
    if started:
        options: dict[str, Any] = {"log_to_driver": False, "logging_level": "warning"}
        if not os.environ.get("RAY_ADDRESS"):
            options |= {"num_cpus": num_workers, "include_dashboard": False}
        ray.init(**options)
    # retries are run_tasks's: it counts them and states which shards failed
    remote: Any = ray.remote(max_retries=0, num_gpus=num_gpus)(_call)
    stored: dict[int, Any] = {}

    def submit(function: Callable[[Item], Result], item: Item) -> Future[Result]:
        # the function may hold a tokenizer: it goes to the object store once, not with every item
        if id(function) not in stored:
            stored[id(function)] = ray.put(function)
        return _plain_errors(remote.remote(stored[id(function)], item).future())

    try:
        yield submit
    except ray.exceptions.RayError as error:
        raise _died(error) from error
    finally:
        if started:
            ray.shutdown()


def _call(function: Callable[[Item], Result], item: Item) -> Result:
    return function(item)


def _plain_errors(answer: Future[Result]) -> Future[Result]:
    """Give a future that fails with the task's own error, not with Ray's copy of it."""
    import ray

    plain: Future[Result] = Future()

    def pass_on(answer: Future[Result]) -> None:
        error = answer.exception()
        if error is None:
            plain.set_result(answer.result())
        elif isinstance(error, ray.exceptions.RayTaskError):
            plain.set_exception(error.cause if isinstance(error.cause, Exception) else error)
        else:
            plain.set_exception(_died(error))

    answer.add_done_callback(pass_on)
    return plain


def _died(error: BaseException) -> WorkerDied:
    return WorkerDied(
        "a worker process ended without an answer (killed, out of memory, or ended by what it ran); what is finished "
        f"is kept: run the same command again to resume, with fewer workers where memory is short "
        f"({type(error).__name__})."
    )
