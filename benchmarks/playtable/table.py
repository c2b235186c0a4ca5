"""What every simulator of CALVIN's world shares: judging tasks, and tool poses in the robot base frame."""

from __future__ import annotations

from abc import abstractmethod

import numpy as np

from .scenes import ROBOT_BASE
from .tasks import ALL_TASKS
from .tasks import task as find_task
from .world import WorldState


class Table:
    """Judges CALVIN's tasks by the state at their beginning and now; a simulator offers state and steps.

    judged: the state that was judged last, or that the task began in.
    """

    task = ""
    judged: WorldState
    _start: WorldState

    def begin(self, task: str) -> None:
        """Begin a task in the present state.

        Raises:
            ConfigError: unknown task.
        """
        self.task, self._start = find_task(task).name, self.world_state()
        self.judged = self._start

    def success(self) -> bool:
        """Return whether the task that was begun last is done."""
        self.judged = self.world_state()
        return ALL_TASKS[self.task].done(self._start, self.judged)

    def apply(self, position: np.ndarray, quaternion: np.ndarray, gripper: float) -> None:
        """Advance by one control step towards a tool pose in the robot base frame with CALVIN's own control."""
        self.step_pose(position + ROBOT_BASE, quaternion, gripper)

    def apply_action(self, values: np.ndarray) -> None:
        """Advance by one control step by a CALVIN action.

        Args:
            values: `[7]` relative, as for `step`; or `[8]` absolute in world coordinates: position [m], quaternion
                xyzw, gripper 1 (open) or -1 (closed).
        """
        if len(values) == 8:
            self.step_pose(values[:3], values[3:7], float(values[7] > 0))
        else:
            self.step(values)

    @abstractmethod
    def step(self, action: np.ndarray) -> object:
        """Move for one control step by a relative action `[7]`."""

    @abstractmethod
    def world_state(self) -> WorldState:
        """Return the state that tasks read."""

    @abstractmethod
    def step_pose(self, position: np.ndarray, quaternion: np.ndarray, gripper: float) -> None:
        """Move for one control step towards a tool pose in world coordinates."""
