"""Scripted experts for two suites, which carry one thing to another: seen by them, success is possible."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ...contracts import Array, Observation, SignalTrajectory
from ...errors import PolicyError
from .simulator import Libero

_CLOSE, _FAR = 0.01, 0.12
"""How near a place counts as reached, and how high above a thing the tool comes from [m]."""

_FINGERS = 0.05
"""How far the fingers reach down from the palm [m]."""

_GAIN = 40.0
"""Commanded share of the greatest move (5 cm a step) for each meter to go."""


@dataclass(frozen=True, kw_only=True)
class Grasp:
    """How a thing is carried.

    at: where the tool takes hold of it, from its middle `[3]` [m]; carry, release: how high above the goal the tool is
    on the way, and where it lets go [m].
    """

    at: tuple[float, float, float]
    carry: float
    release: float


GRASPS: Mapping[str, Grasp] = {
    "libero_object": Grasp(at=(0.0, 0.0, 0.0), carry=0.3, release=0.2),
    "libero_spatial": Grasp(at=(0.0, 0.05, 0.03), carry=0.3, release=0.08),
}
"""By suite: things are taken across their middle and dropped into the basket; bowls are taken by the rim."""


class Expert:
    """Carries the first thing that a task is about to the second one; it reads poses, not images."""

    def __init__(self, world: Libero) -> None:
        self.world = world
        self.reset()

    def reset(self) -> None:
        """Begin an episode."""
        self._phase, self._waited = 0, 0

    def action(self) -> Array:
        """Return the action `[7]` for the present state.

        Raises:
            PolicyError: there is no expert for the task.
        """
        suite = self.world.task.partition("/")[0]
        if suite not in GRASPS:
            raise PolicyError(
                f"--policy scripted: expected tasks of {' and '.join(GRASPS)}, got {self.world.task}; choose others."
            )
        grasp, seen = GRASPS[suite], self.world.full_state
        thing, goal = (np.asarray(seen[f"{name}_pos"]) for name in self.world.things[:2])
        tool = np.asarray(seen["robot0_eef_pos"])
        target, closed = self._target(grasp, tool, thing, goal)
        move = np.clip(_GAIN * (target - tool), -1.0, 1.0)
        return np.concatenate((move, np.zeros(3), [0.0 if closed else 1.0]))

    def _target(self, grasp: Grasp, tool: Array, thing: Array, goal: Array) -> tuple[Array, bool]:
        """Return where the tool goes next and whether it is closed; go on to the next phase where it has arrived."""
        tall = max(0.0, thing[2] - goal[2] - _FINGERS)  # the palm stays above what stands upright
        hold, held = thing + grasp.at + [0.0, 0.0, tall], goal + (tool - thing) * [1.0, 1.0, 0.0]
        phases = (
            (hold + [0.0, 0.0, _FAR], False),  # above the thing
            (hold, False),
            (tool, True),  # take hold
            (np.array([*tool[:2], goal[2] + grasp.carry]), True),
            (np.array([*held[:2], goal[2] + grasp.carry]), True),
            (np.array([*held[:2], goal[2] + grasp.release]), True),
            (tool, False),  # let go
        )
        target, closed = phases[self._phase]
        self._waited += 1
        arrived = np.linalg.norm(target - tool) < _CLOSE
        still = target is tool
        if self._phase < len(phases) - 1 and arrived and (not still or self._waited > 10):
            self._phase, self._waited = self._phase + 1, 0
        return target, closed


class ScriptedPolicy:
    """The experts behind the interface of a policy; asked at every step, since they react to the state."""

    executed_steps = 1
    uses_images = False

    def __init__(self, world: Libero) -> None:
        self._expert = Expert(world)

    def reset(self) -> None:
        """Begin an episode."""
        self._expert.reset()

    def act(self, observation: Observation) -> SignalTrajectory:
        """Return the action of the next control step."""
        dt = 1 / self._expert.world.control_hz
        return SignalTrajectory(values=self._expert.action()[None], dt=dt, start_time=observation.time)

    def close(self) -> None:
        """Do nothing: nothing is held open."""
