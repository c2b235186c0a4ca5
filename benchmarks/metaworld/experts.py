"""Meta-World's scripted experts, and the policy that they are: the ceiling that a learned policy is compared with."""

from __future__ import annotations

from typing import Any

import numpy as np

from ...contracts import Array, Observation, SignalTrajectory
from .package import load
from .simulator import MetaWorld


class Expert:
    """The expert of whichever task an episode has; it reads the simulator's state, not images."""

    def __init__(self, world: MetaWorld) -> None:
        self.world, self._task = world, ""
        self._policy: Any = None

    def reset(self) -> None:
        """Begin an episode."""
        self._task = ""

    def action(self) -> Array:
        """Return the action `[4]` for the present state, within -1 and 1."""
        if self._task != self.world.task:
            self._task = self.world.task
            self._policy = load().experts[self._task]()
        return np.clip(np.asarray(self._policy.get_action(self.world.full_state), np.float64), -1.0, 1.0)


class ScriptedPolicy:
    """The experts behind the interface of a policy; asked at every step, since they react to the state."""

    executed_steps = 1
    uses_images = False

    def __init__(self, world: MetaWorld) -> None:
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
