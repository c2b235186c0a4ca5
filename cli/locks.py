"""One command at a time on an output folder: a second one is refused with the name of the first."""

from __future__ import annotations

import errno
import json
import os
import platform
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..errors import DataError

LOCK = ".gr2.lock"
_LEFTOVER = re.compile(r"\..+\.\d+\.tmp")
"""Names of files that a killed process had half written, as `data_pipeline.files` names them."""


@contextmanager
def locked(folder: Path, command: str) -> Iterator[None]:
    """Keep other processes off a folder; the system ends the lock with the process, however that ends.

    Half-written files of killed processes are removed. What was made for the lock alone is removed afterwards. The
    other processes of one training run (ranks above 0) are let in.

    Args:
        folder: made where it is not there.
        command: what the other process is told.

    Raises:
        DataError: another process works there.
    """
    try:
        import fcntl
    except ImportError:  # no POSIX system
        fcntl = None  # type: ignore[assignment]
    if fcntl is None or _is_helper():
        yield
        return
    made = _make(folder)
    file = _take(folder / LOCK, command)
    if file is None:
        yield
        return
    try:
        for entry in folder.iterdir():
            if _LEFTOVER.fullmatch(entry.name) and entry.is_file():
                entry.unlink(missing_ok=True)
        yield
    finally:
        (folder / LOCK).unlink(missing_ok=True)
        os.close(file)
        for empty in made:
            try:
                empty.rmdir()
            except OSError:  # not empty
                break


def _is_helper() -> bool:
    """Return whether this process is another one than the first of a run that several processes train."""
    return any(
        os.environ.get(name, "0") not in ("", "0") for name in ("RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID")
    )


def _make(folder: Path) -> list[Path]:
    """Make a folder; return what was made, the innermost first."""
    made = [folder, *folder.parents]
    made = [place for place in made if not place.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    return made


def _take(path: Path, command: str) -> int | None:
    """Lock a file and write into it who has it; None where nobody may write into its folder.

    POSIX locks belong to the process: worker processes that outlive it do not hold them.
    """
    import fcntl

    while True:
        try:
            file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except OSError as error:
            if isinstance(error, PermissionError) or error.errno == errno.EROFS:
                return None  # what is finished there may still be read
            raise
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as error:
            os.close(file)
            raise DataError(_refusal(path)) from error
        except OSError:  # a file system without locks
            return file
        try:
            current = os.fstat(file).st_ino == path.stat().st_ino
        except FileNotFoundError:
            current = False
        if current:
            break
        os.close(file)  # the one before removed it meanwhile
    who = {"pid": os.getpid(), "host": platform.node(), "since": time.strftime("%Y-%m-%d %H:%M:%S"), "command": command}
    os.ftruncate(file, 0)
    os.write(file, json.dumps(who).encode())
    return file


def _refusal(path: Path) -> str:
    try:
        who: dict[str, Any] = json.loads(path.read_text())
        name = f"`{who['command']}` (process {who['pid']} on {who['host']}, since {who['since']})"
    except (OSError, ValueError, KeyError, TypeError):
        name = "another process"
    return f"{path.parent}: {name} works in this folder; wait until it ends, or choose another --out."
