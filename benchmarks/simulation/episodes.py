"""Test episodes: a policy acts until its task is done or time is up, one task or several in a row."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ...contracts import Observation, Policy
from ...errors import ConfigError
from .control import Control, delay_steps
from .simulator import Simulator
from .suite import TaskWatch

Watch = Callable[[int], None]
"""Called before each control step with its number: draws videos."""


@dataclass(frozen=True, kw_only=True)
class TaskResult:
    """Outcome of one task: success, the control steps it took (`max_steps` when it failed), and how it failed."""

    task: str
    success: bool
    steps: int
    failure: Mapping[str, Any] = field(default_factory=dict)


def check_latency(latency: float) -> float:
    """Return a latency [s].

    Raises:
        ConfigError: it is negative or not finite.
    """
    if not 0 <= latency < math.inf:
        raise ConfigError(f"--latency: expected 0 or more seconds, got {latency}; 0.1 is one of 100 ms.")
    return latency


def asking_period(executed_steps: int, latency: float, control_hz: float) -> int:
    """Return the control steps from one call of a policy to the next one, which waits for the answer to the last."""
    return max(executed_steps, delay_steps(latency, control_hz))


def last_step(executed_steps: int, latency: float, control_hz: float) -> int:
    """Return the last control step of a chunk that is carried out: until the next one arrives, late as well."""
    return asking_period(executed_steps, latency, control_hz) + delay_steps(latency, control_hz)


def run_task(
    simulator: Simulator,
    policy: Policy,
    control: Control,
    task: str,
    *,
    instruction: str,
    executed_steps: int,
    max_steps: int,
    latency: float = 0.0,
    watch: Watch | None = None,
    explain: TaskWatch | None = None,
    video: Callable[[Observation], None] | None = None,
) -> TaskResult:
    """Let a policy act until its task is done or time is up; the simulator judges after every control step.

    Args:
        instruction: what the policy is asked to do.
        executed_steps: control steps of each chunk that are carried out before the policy is asked again.
        max_steps: time limit in control steps (CALVIN: 360).
        latency: how long after its observation a chunk arrives [s]; what was followed before continues until then.
        explain: says how the task failed.
        video: collects what the policy sees.
    """
    period = asking_period(executed_steps, latency, simulator.control_hz)
    draws = video is not None or getattr(policy, "uses_images", True)
    policy.reset()
    simulator.begin(task)
    for step in range(max_steps):
        if watch:
            watch(step)
        if step % period == 0:
            observation = simulator.observe(instruction, images=draws)
            if video is not None:
                video(observation)
            control.follow(policy.act(observation), delay=latency)
        control.step()
        if simulator.success():
            return TaskResult(task=task, success=True, steps=step + 1)
        if explain is not None:
            explain.see()
    return TaskResult(task=task, success=False, steps=max_steps, failure={} if explain is None else explain.report())


def run_chain(
    simulator: Simulator,
    policy: Policy,
    control: Control,
    chain: Sequence[str],
    *,
    instruction: Callable[[str], str],
    executed_steps: int,
    max_steps: int,
    latency: float = 0.0,
    explain: Callable[[str], TaskWatch | None] = lambda task: None,
    video: Callable[[Observation], None] | None = None,
) -> list[TaskResult]:
    """Run tasks one after another without resetting the simulator; stop at the first failure."""
    results: list[TaskResult] = []
    for task in chain:
        result = run_task(
            simulator, policy, control, task, instruction=instruction(task), executed_steps=executed_steps,
            max_steps=max_steps, latency=latency, explain=explain(task), video=video,
        )  # fmt: skip
        results.append(result)
        if not result.success:
            break
    return results


def as_record(results: Sequence[TaskResult]) -> list[dict[str, Any]]:
    """Return results as JSON values."""
    return [{"task": r.task, "success": r.success, "steps": r.steps, **r.failure} for r in results]
