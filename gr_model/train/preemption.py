"""Stopping a run from outside: SIGTERM or SIGUSR1 saves after the step at hand; the same command resumes later.

A pre-empted run exits with status 75, "temporary failure, try again". SLURM requeues by itself where the cluster's
`RequeueExit` lists 75. Elsewhere the last line of a job script does it:

    #SBATCH --requeue --signal=USR1@120
    srun gr2 pretrain ... --devices 8 --num-nodes 4
    [ $? -ne 75 ] || scontrol requeue $SLURM_JOB_ID

Source: sysexits.h (EX_TEMPFAIL); https://slurm.schedmd.com/slurm.conf.html, RequeueExit.
"""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

from ...errors import Gr2Error

EXIT_STATUS = 75
SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGUSR1") if hasattr(signal, name))


class Preempted(Gr2Error):
    """The run was asked to stop; its checkpoint is written and the same command resumes from it."""


class StopRequest:
    """Remembers that SIGTERM or SIGUSR1 came, for the duration of a `with` block.

    The handlers only set a flag: what the signal interrupts, a write or a collective, is always finished.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self._before: dict[int, Any] = {}

    @property
    def came(self) -> bool:
        """Whether a signal came."""
        return self.signal is not None

    def listen(self) -> None:
        """Take the signals over, also from a library that took them since `with`; threads cannot."""
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                before = signal.signal(number, self._remember)
                self._before.setdefault(number, before)

    def _remember(self, number: int, frame: FrameType | None) -> None:
        self.signal = number

    def __enter__(self) -> StopRequest:
        self.listen()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, before in self._before.items():
            signal.signal(number, signal.SIG_DFL if before is None else before)
        self._before = {}
