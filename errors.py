"""The exception tree. Every message states what happened, what was expected, what was got, and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path


class Gr2Error(Exception):
    """Root of every error that a user can fix; the command line prints it as one sentence."""


class ConfigError(Gr2Error):
    """An option, preset or configuration value that cannot be used."""


class DataError(Gr2Error):
    """A video, shard, episode or dataset folder that is missing, truncated, corrupt or of another layout."""


class CheckpointError(Gr2Error):
    """A checkpoint or weight file that is missing, corrupt, of another version or for other data."""


class ShapeError(Gr2Error):
    """An array of the wrong shape, type or range (NaN included)."""


class PolicyError(Gr2Error):
    """A policy that cannot be found, does not answer, or answers with something that is no trajectory."""


class ServerBusy(Gr2Error):
    """A server that has as many clients or sessions as it may have; try again later."""


class ControlError(Gr2Error):
    """A trajectory or a state that the controller refuses."""


class SimulationError(Gr2Error):
    """The simulator cannot be built, reset or stepped as asked."""


class EnvironmentMissing(Gr2Error):
    """A package, device or permission of this machine that the command needs."""


class WorkerDied(Gr2Error):
    """A worker process that ended without an answer: killed, out of memory, or ended by what it ran."""


class HubError(Gr2Error):
    """A repository of the Hugging Face Hub that cannot be read or written."""


def did_you_mean(word: str, known: Sequence[str]) -> str:
    """Return `; did you mean 'x'?` for the nearest known word, or the list of known words."""
    near = difflib.get_close_matches(word, known, n=1)
    return f"; did you mean '{near[0]}'?" if near else f"; expected one of {', '.join(known)}."


_LFS_HEAD = b"version https://git-lfs"


def refuse_lfs_pointer(path: Path) -> None:
    """Refuse a file whose content Git LFS has not fetched.

    Raises:
        DataError: it is a pointer.
    """
    if path.is_file() and path.stat().st_size < 1024 and path.read_bytes().startswith(_LFS_HEAD):
        raise DataError(f"{path}: is a pointer of Git LFS, expected its content; run `git lfs pull` in the repository.")
