"""When a policy at two speeds thinks, and which thought it acts on: the slow part's answer arrives late."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor

from ..model.context import Context, Thought
from ..model.world_model import WorldModel


@dataclass(frozen=True, kw_only=True)
class _Begun:
    """A thought about the observation of a time [s]; it may still be under way."""

    output: Future[Tensor]
    seen_at: float


class Thoughts:
    """The thought that is acted on, and the next one, which arrives later.

    A thought begins as soon as the one before has arrived. The first one of an episode is waited for.

    Args:
        latency: how long a thought takes [s]; None is as long as it really does.
        frame_seconds: distance of the frames of training [s], in which ages are counted.
    """

    def __init__(self, latency: float | None, frame_seconds: float) -> None:
        self.latency, self.frame_seconds = latency, frame_seconds
        self._current: _Begun | None = None
        self._next: _Begun | None = None

    def reset(self) -> None:
        """Forget both; called when an episode begins."""
        self._current = self._next = None

    def is_free(self, time: float) -> bool:
        """Take over the next thought if it has arrived; return whether another one may begin."""
        if self._next is not None:
            late = time < self._next.seen_at + (self.latency or 0.0) - 1e-9
            if late if self.latency is not None else not self._next.output.done():
                return False
            self._current, self._next = self._next, None
        return True

    def begin(self, output: Future[Tensor], time: float) -> None:
        """Remember a thought about the observation of this time; the first one, and an instant one, is acted on."""
        self._next = _Begun(output=output, seen_at=time)
        if self._current is None or self.latency == 0:
            self._current = self._next
        if self.latency == 0:
            self._next = None

    def newest(self, time: float) -> tuple[Tensor, float]:
        """Return the thought that is acted on `[d]` and its age [frames]."""
        assert self._current is not None, "a thought has begun"
        return self._current.output.result(), (time - self._current.seen_at) / self.frame_seconds


_THINKER = ThreadPoolExecutor(max_workers=1, thread_name_prefix="gr2 thinks")
"""One thought at a time, beside acting; PyTorch lets go of the interpreter while it multiplies."""


@torch.inference_mode()
def _think(model: WorldModel, context: Context) -> Tensor:
    return model.think(context).output[0]


def think_of(model: WorldModel, context: Context, *, waits: bool) -> Future[Tensor]:
    """Think of what is seen, here and now or beside what goes on."""
    if not waits:
        return _THINKER.submit(_think, model, context)
    done: Future[Tensor] = Future()
    done.set_result(_think(model, context))
    return done


def stack_thoughts(thoughts: Sequence[Thoughts], times: Sequence[float]) -> Thought:
    """Return the thoughts that several policies act on."""
    found = [one.newest(time) for one, time in zip(thoughts, times, strict=True)]
    outputs = torch.stack([output for output, _ in found])
    return Thought(output=outputs, age=outputs.new_tensor([age for _, age in found]))
