"""What the tests of the data stages share: a kill in the middle, and the bytes of a folder."""

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gr2.data_pipeline.store.shards import ShardWriter


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
