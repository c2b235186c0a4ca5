"""Test episodes: a policy acts until its task is done or time is up, one task or several in a row."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ...contracts import Observation, Policy, SignalTrajectory, Trajectory
from ...errors import ConfigError, PolicyError
from .control import Control
from .simulator import Simulator
from .suite import TaskWatch
from .timeline import delay_steps, steps_between

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
    max_steps: int,
    executed_steps: int | None = None,
    latency: float = 0.0,
    watch: Watch | None = None,
    explain: TaskWatch | None = None,
    video: Callable[[Observation], None] | None = None,
) -> TaskResult:
    """Let a policy act until its task is done or time is up; the simulator judges after every control step.

    Args:
        instruction: what the policy is asked to do.
        max_steps: time limit in control steps (CALVIN: 360).
        executed_steps: control steps of each chunk that are carried out before the policy is asked again; None takes
            what the policy says.
        latency: how long after its observation a chunk arrives [s], unless the policy says so itself; what was followed
            before continues until then.
        explain: says how the task failed; one that nothing can be done about ends at once, unless it is filmed.
        video: collects what the policy sees.

    Raises:
        PolicyError: a chunk is shorter than what is to be carried out of it, or all chunks were refused for a fault
            of their own.
    """
    executed_steps = executed_steps or policy.executed_steps
    latency = getattr(policy, "chunk_latency", latency)
    period = asking_period(executed_steps, latency, simulator.control_hz)
    draws = video is not None or getattr(policy, "uses_images", True)
    policy.reset()
    simulator.begin(task)
    if explain is not None and explain.hopeless and video is None:
        return TaskResult(task=task, success=False, steps=max_steps, failure=explain.report())
    for step in range(max_steps):
        if watch:
            watch(step)
        if step % period == 0:
            observation = simulator.observe(instruction, images=draws)
            if video is not None:
                video(observation)
            chunk = policy.act(observation)
            _check_length(chunk, executed_steps, simulator.control_hz)
            control.follow(chunk, delay=latency)
        control.step()
        if simulator.success():
            control.refusal()
            return TaskResult(task=task, success=True, steps=step + 1)
        if explain is not None:
            explain.see()
    if fault := control.refusal():
        raise PolicyError(f"policy: our controller refused every chunk of a whole task, for {fault}.")
    return TaskResult(task=task, success=False, steps=max_steps, failure={} if explain is None else explain.report())


def _check_length(chunk: Trajectory, executed_steps: int, control_hz: float) -> None:
    rows = len(chunk.values if isinstance(chunk, SignalTrajectory) else chunk.positions)
    lasts = rows * steps_between(chunk.dt, control_hz)
    if lasts < executed_steps - 1e-6:
        raise PolicyError(
            f"policy: expected chunks of at least the {executed_steps} control steps that are carried out, got {rows} "
            f"rows of {chunk.dt:g} s, {lasts:g} steps; answer with longer ones, or carry out less (--executed-steps)."
        )


def run_chain(
    simulator: Simulator,
    policy: Policy,
    control: Control,
    chain: Sequence[str],
    *,
    instruction: Callable[[str], str],
    max_steps: int,
    executed_steps: int | None = None,
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
