"""LIBERO as a suite of test episodes: its simulator, initial states, instructions, time limits and experts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ...contracts import Chunking, Policy
from .experts import ScriptedPolicy
from .simulator import Libero
from .tasks import TIME_LIMITS


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """What is measured; equal configurations and policies give equal results.

    weights: fingerprint of the policy, so that results of others are not resumed with; executed_steps: control steps
    of each chunk that are carried out, 0 for as many as the policy says; max_steps: time limit a task [1/20 s], 0 for
    the usual one of its suite; image_px: image side of both cameras [px]; fast_drawing: whether images lack
    reflections, shadows and multisampling; seed: of the places that initial states leave open; latency: how long after
    its observation a chunk arrives [s]; chunking: how a chunk of a released model relates to the running one.
    """

    policy: str
    weights: str
    executed_steps: int
    image_px: int
    fast_drawing: bool
    seed: int
    max_steps: int = 0
    latency: float = 0.0
    chunking: Chunking = "independent"

    def open_suite(self) -> LiberoSuite:
        """Open the simulator with the official initial states."""
        world = Libero(image_px=self.image_px, fast_drawing=self.fast_drawing, seed=self.seed)
        return LiberoSuite(world, max_steps=self.max_steps)


class LiberoSuite:
    """Test episodes of single tasks.

    Args:
        world: the simulator; `close` closes it.
        max_steps: time limit a task in control steps, 0 for the usual one of its suite.
    """

    def __init__(self, world: Libero, *, max_steps: int = 0) -> None:
        self.simulator, self._max_steps = world, max_steps

    def start(self, kind: str, index: int) -> Sequence[str]:
        """Start a task from the official initial state of this index."""
        self.simulator.reset(options={"task": kind, "index": index})
        return [kind]

    def time_limit(self, kind: str) -> int:
        """Return the control steps after which a task has failed."""
        return self._max_steps or TIME_LIMITS[kind.partition("/")[0]]

    def instruction(self, task: str) -> str:
        """Return LIBERO's instruction of a task."""
        return self.simulator.instruction(task)

    def watch(self, task: str) -> None:
        """Return nothing: failures are not explained."""

    def expert(self, control: str, executed_steps: int) -> Policy:
        """Return the experts."""
        return ScriptedPolicy(self.simulator)

    def close(self) -> None:
        """Close the simulator."""
        self.simulator.close()
