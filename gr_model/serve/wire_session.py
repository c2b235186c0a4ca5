"""One client of a websocket server: its session with the policy, its clock, and the pose that it was told last."""

from __future__ import annotations

import sys
import uuid
from typing import Any

import numpy as np

from ...contracts import ActionTrajectory, Array, Observation, Trajectory
from ...errors import ConfigError
from ..act.wire_actions import ToolPose, as_rows, some_rows
from ..act.wire_maps import WireMap, natural_columns
from ..act.wire_observations import unread
from .sessions import PolicyServer

CONTROL_HZ = 30.0
"""Rate at which requests are counted where neither the policy nor its answers state one [Hz]."""


class WireSession:
    """A session of a client whose messages a map reads; the caller says when an episode begins.

    time: seconds since the episode began, counted by the steps that the client has carried out.

    Args:
        policies: what answers.
        wire_map: of the client's keys and columns.
    """

    def __init__(self, policies: PolicyServer, wire_map: WireMap) -> None:
        self.policies, self.map = policies, wire_map
        self.name = uuid.uuid4().hex
        self.steps = 0
        self._dt: float | None = None
        self._commanded: ToolPose | None = None

    @property
    def time(self) -> float:
        """Seconds since the episode began."""
        if self.policies.embodiment is not None:
            return self.steps / self.policies.embodiment.control_hz
        return self.steps / CONTROL_HZ if self._dt is None else self.steps * self._dt

    def begin(self, *, episode: bool = True) -> None:
        """Begin an episode, or a sub-task of one, whose time runs on."""
        self.policies.reset(self.name)
        self._commanded = None
        self.steps = 0 if episode else self.steps

    def read(self, message: Any) -> Observation:
        """Return the observation of a message."""
        return self.map.observations.read(message, robot=self.policies.embodiment, time=self.time)

    def ask(self, observation: Observation) -> Trajectory:
        """Return the policy's trajectory."""
        trajectory = self.policies.act(self.name, observation)
        self._dt = trajectory.dt
        return trajectory

    def rows(self, trajectory: Trajectory, observation: Observation, executed: int) -> Array:
        """Return a trajectory as the client's numbers `[k d]`; it is taken to carry out `executed` of the rows."""
        actions = self.map.actions
        if actions is None:
            return as_rows(trajectory)[0]
        start = None
        if len(observation.tool_position):
            start = ToolPose(position=observation.tool_position, quaternion=observation.tool_quaternion)
        if actions.begins == "commanded" and self._commanded is not None:
            start = self._commanded
        rows = actions.write(trajectory, start)
        if start is not None and isinstance(trajectory, ActionTrajectory):
            last = actions.read(rows[:executed], start)  # as the client adds it up, rounded as it rounds
            self._commanded = ToolPose(position=last[0][-1], quaternion=last[1][-1])
        return rows

    def one_row(self, trajectory: Trajectory, index: int, observation: Observation) -> Array:
        """Return one row of a trajectory as the client's numbers `[d]`."""
        return np.asarray(self.rows(some_rows(trajectory, index, index + 1), observation, 1)[0])

    def close(self) -> None:
        """End the session."""
        self.policies.end(self.name)


def check_map(wire_map: WireMap, policies: PolicyServer, name: str) -> None:
    """Refuse a map that does not give what the policy reads; say it where the policy does not state what it reads.

    Raises:
        ConfigError: a state signal is missing, or all cameras.
    """
    robot, seen = policies.embodiment, wire_map.observations
    missing = unread(seen, robot, policies.reads)
    if missing and policies.reads is None:
        note = f"gr2 serve: the keys give no {', '.join(missing)}; a policy that reads them gets zeros."
        print(note, file=sys.stderr, flush=True)
    elif missing:
        raise ConfigError(
            f"--keys {name}: expected keys for all state signals that the policy reads, got none for "
            f"{', '.join(missing)}; add them to the map's state."
        )
    if robot is not None and robot.cameras and seen.images and not set(robot.cameras) & set(seen.images):
        raise ConfigError(
            f"--keys {name}: expected a key for one of the policy's cameras {', '.join(robot.cameras)}, got them for "
            f"{', '.join(seen.images)}; correct the map's images."
        )


def describe(
    wire_map: WireMap, policies: PolicyServer, *, name: str, fingerprint: str, protocol: str
) -> dict[str, Any]:
    """Return what a client must send and gets, as JSON values: what `GET /info` states, the map, and the columns.

    `columns` have name, width, unit, reference and frame; `dt` [s] is null where only the answers state it.
    """
    robot, actions = policies.embodiment, wire_map.actions
    stated = None if actions is None else actions.dt
    columns = natural_columns(robot) if actions is None else actions.describe()
    return {"policy": name, "protocol": protocol, "fingerprint": fingerprint} | policies.describe() | {
        "map": wire_map.to_dict(),
        "columns": columns,
        "dt": stated or (None if robot is None else 1 / robot.control_hz),
    }  # fmt: skip
