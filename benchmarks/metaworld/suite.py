"""Meta-World as a suite of test episodes: its simulator, starts, instructions and experts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ...contracts import Chunking, Policy
from .experts import ScriptedPolicy
from .instructions import TASKS, Wording, evaluation_instruction
from .simulator import MAX_STEPS, MetaWorld, start_seed

EVALUATION = 1
"""What the seeds of test starts begin with; those of demonstrations begin with another number."""


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """What is measured; equal configurations and policies give equal results.

    weights: fingerprint of the policy, so that results of others are not resumed with; executed_steps: control steps
    of each chunk that are carried out, 0 for as many as the policy says; max_steps: time limit a task [1/80 s];
    image_px: image side of both cameras [px]; latency: how long after its observation a chunk arrives [s]; chunking:
    how a chunk of a released model relates to the running one; wording: of the instructions.
    """

    policy: str
    weights: str
    executed_steps: int
    image_px: int
    seed: int
    max_steps: int = MAX_STEPS
    latency: float = 0.0
    chunking: Chunking = "independent"
    wording: Wording = "trained"

    def open_suite(self) -> MetaWorldSuite:
        """Open the simulator with the test episodes of this seed."""
        return MetaWorldSuite(MetaWorld(image_px=self.image_px), seed=self.seed, wording=self.wording)


class MetaWorldSuite:
    """Test episodes of single tasks.

    Args:
        world: the simulator; `close` closes it.
        seed: seed of the starts.
        wording: of the instructions.
    """

    def __init__(self, world: MetaWorld, *, seed: int, wording: Wording = "trained") -> None:
        self.simulator, self.seed, self.wording = world, seed, wording

    def start(self, kind: str, index: int) -> Sequence[str]:
        """Start a task; places and goal are sampled by Meta-World from a seed that belongs to the index."""
        seed = start_seed(EVALUATION, self.seed, TASKS.index(kind), index)
        self.simulator.reset(options={"task": kind, "seed": seed})
        return [kind]

    def instruction(self, task: str) -> str:
        """Return the instruction of a task."""
        return evaluation_instruction(task, self.wording)

    def watch(self, task: str) -> None:
        """Return nothing: failures are not explained."""

    def expert(self, control: str, executed_steps: int) -> Policy:
        """Return Meta-World's experts."""
        return ScriptedPolicy(self.simulator)

    def close(self) -> None:
        """Close the simulator."""
        self.simulator.close()
