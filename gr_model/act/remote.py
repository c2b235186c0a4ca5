"""Ask a policy on another machine: the wire format and the client, without torch.

`gr2 serve` answers `GET /info` with JSON: `policy` (its name), `executed_steps`, `embodiment` (the robot it
was trained on as `Embodiment.to_dict`, or null), and `fingerprint` (of its weights or source). It answers `POST /reset`
and `POST /act` with numpy's npz, which holds arrays and no pickled object. Every client has a session of its own, so
one server drives many robots or simulators.
"""

from __future__ import annotations

import http.client
import io
import json
import uuid
from collections.abc import Mapping
from urllib.parse import urlsplit
from zipfile import BadZipFile

import numpy as np

from ...contracts import ActionTrajectory, Array, JointTrajectory, Observation, SignalTrajectory, Trajectory
from ...embodiment import Embodiment
from ...errors import DataError, EnvironmentMissing, PolicyError

MAX_BYTES = 64 << 20
"""Largest body that either side reads."""

_IMAGE = "image_"


def pack(arrays: Mapping[str, Array]) -> bytes:
    """Write arrays as the bytes of an npz file."""
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)  # type: ignore[arg-type]
    return buffer.getvalue()


def unpack(data: bytes) -> dict[str, Array]:
    """Read what `pack` wrote.

    Raises:
        DataError: the bytes are no npz file, or hold objects.
    """
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays}
    except (ValueError, OSError, EOFError, KeyError, BadZipFile) as error:
        raise DataError(f"message of {len(data)} bytes: expected an npz file of plain arrays, got {error}.") from error


def pack_observation(observation: Observation, session: str) -> bytes:
    """Write an observation as a message."""
    images = {f"{_IMAGE}{name}": np.asarray(frame, np.uint8) for name, frame in observation.images.items()}
    return pack(images | {
        "tool_position": np.asarray(observation.tool_position, float),
        "tool_quaternion": np.asarray(observation.tool_quaternion, float),
        "gripper": np.array([observation.gripper_opening, observation.gripper_command]),
        "joint_positions": np.asarray(observation.joint_positions, float),
        "instruction": np.array(observation.instruction),
        "time": np.array(observation.time),
        "state": np.asarray(observation.state, float),
        "session": np.array(session),
    })  # fmt: skip


def unpack_observation(data: bytes) -> tuple[Observation, str]:
    """Read what `pack_observation` wrote: the observation and the session.

    Raises:
        DataError: an array is missing.
        ShapeError: an array has another shape, or is not finite.
    """
    arrays = unpack(data)
    try:
        observation = Observation(
            images={name.removeprefix(_IMAGE): a for name, a in arrays.items() if name.startswith(_IMAGE)},
            tool_position=arrays["tool_position"],
            tool_quaternion=arrays["tool_quaternion"],
            gripper_opening=float(arrays["gripper"][0]),
            gripper_command=float(arrays["gripper"][1]),
            joint_positions=arrays["joint_positions"],
            instruction=str(arrays["instruction"]),
            time=float(arrays["time"]),
            state=arrays.get("state", np.zeros(0)),
        )
        return observation, str(arrays["session"])
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise DataError(f"observation: expected the arrays of `pack_observation`, got {sorted(arrays)}.") from error


def unpack_session(data: bytes) -> str:
    """Read the session of a message.

    Raises:
        DataError: the message names none.
    """
    arrays = unpack(data)
    if "session" not in arrays:
        raise DataError(f"message: expected the array 'session', got {sorted(arrays)}.")
    return str(arrays["session"])


def pack_trajectory(trajectory: Trajectory) -> bytes:
    """Write a trajectory as a message."""
    times = np.array([trajectory.dt, trajectory.start_time])
    if isinstance(trajectory, SignalTrajectory):
        return pack({"values": trajectory.values, "times": times})
    if isinstance(trajectory, JointTrajectory):
        opening = {} if trajectory.gripper is None else {"gripper": trajectory.gripper}
        return pack({"joint_positions": trajectory.positions, "times": times, **opening})
    return pack({
        "positions": trajectory.positions,
        "quaternions": trajectory.quaternions,
        "gripper": trajectory.gripper,
        "times": np.array([trajectory.dt, trajectory.start_time]),
        "arm": np.array(trajectory.arm),
    })  # fmt: skip


def unpack_trajectory(data: bytes) -> Trajectory:
    """Read what `pack_trajectory` wrote.

    Raises:
        DataError: an array is missing.
    """
    arrays = unpack(data)
    try:
        dt, start_time = arrays["times"].tolist()
        if "values" in arrays:
            return SignalTrajectory(values=arrays["values"], dt=dt, start_time=start_time)
        if "joint_positions" in arrays:
            joints, opening = arrays["joint_positions"], arrays.get("gripper")
            return JointTrajectory(positions=joints, gripper=opening, dt=dt, start_time=start_time)
        return ActionTrajectory(
            positions=arrays["positions"], quaternions=arrays["quaternions"], gripper=arrays["gripper"],
            dt=dt, start_time=start_time, arm=str(arrays.get("arm", "")),
        )  # fmt: skip
    except (KeyError, ValueError) as error:
        raise DataError(f"trajectory: expected the arrays of `pack_trajectory`, got {sorted(arrays)}.") from error


class RemotePolicy:
    """A policy that `gr2 serve` runs.

    embodiment: the robot that it was trained on, None where that is unknown; fingerprint: of its weights or source, ""
        where the server states none.

    Args:
        url: where it listens, as in http://10.0.0.2:8000.
        timeout: longest wait for an answer [s].

    Raises:
        EnvironmentMissing: nobody answers there.
    """

    def __init__(self, url: str, *, timeout: float = 60.0) -> None:
        self.url, self.session = url, uuid.uuid4().hex
        parts = urlsplit(url)
        if parts.scheme != "http" or not parts.hostname:
            raise PolicyError(f"policy {url}: expected an address as in http://host:8000; fix the address.")
        self._connection = http.client.HTTPConnection(parts.hostname, parts.port or 80, timeout=timeout)
        info = json.loads(self._ask("GET", "/info"))
        self.executed_steps = int(info["executed_steps"])
        self.name = str(info["policy"])
        self.fingerprint = str(info.get("fingerprint", ""))
        stated = info.get("embodiment")  # servers of gr2 0.1.0 state none
        self.embodiment = None if stated is None else Embodiment.from_dict(stated)

    def reset(self) -> None:
        """Begin a new episode or sub-task."""
        self._ask("POST", "/reset", pack({"session": np.array(self.session)}))

    def act(self, observation: Observation) -> Trajectory:
        """Send the observation and return the trajectory."""
        return unpack_trajectory(self._ask("POST", "/act", pack_observation(observation, self.session)))

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def _ask(self, method: str, path: str, body: bytes | None = None) -> bytes:
        try:
            self._connection.request(method, path, body=body, headers={"Content-Type": "application/octet-stream"})
            response = self._connection.getresponse()
            data = response.read(MAX_BYTES)
        except (OSError, http.client.HTTPException) as error:
            self._connection.close()
            raise EnvironmentMissing(
                f"policy {self.url}: expected a running `gr2 serve`, got {error!r}; start it, or fix the address."
            ) from error
        if response.status != 200:
            raise PolicyError(f"policy {self.url} answers {response.status}: {data.decode('utf-8', 'replace')[:500]}")
        return data
