"""What the tests of stages share: a kill in the middle, the bytes of a folder, workers in this process."""

import os
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gr2.data_pipeline.store.shards import ShardWriter


class AtOnce:
    """A pool that works when it is given work."""

    def submit(self, function: Any, *values: Any) -> Future[Any]:
        """Do the work, and give a future that is done."""
        future: Future[Any] = Future()
        try:
            future.set_result(function(*values))
        except Exception as error:
            future.set_exception(error)
        return future


@contextmanager
def pool_at_once(num_workers: int) -> Iterator[AtOnce]:
    """Stand for `worker_pool`: a new process imports torch for seconds."""
    from gr2.benchmarks.simulation import jobs

    try:
        yield AtOnce()
    finally:
        jobs._close_session()
        jobs._failed.clear()


def contents(folder: Path) -> dict[str, bytes]:
    """Read every file of a folder."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def run_and_kill(stage: Callable[..., Any], after: int, arguments: dict) -> None:
    """Run a stage in a child that is killed by SIGKILL when it writes its sample number `after`."""
    child = os.fork()
    if child == 0:
        write, written = ShardWriter.write, []

        def write_or_die(self: ShardWriter, key: str, members: dict, row: dict) -> None:
            written.append(key)
            if len(written) > after:
                os.kill(os.getpid(), signal.SIGKILL)
            write(self, key, members, row)

        ShardWriter.write = write_or_die  # type: ignore[method-assign]
        stage(**arguments)
        os._exit(0)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
