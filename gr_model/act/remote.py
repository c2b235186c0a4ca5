"""Ask a policy on another machine: the wire format and the client, without torch.

`gr2 serve` answers `GET /info` with JSON: `policy` (its name), `protocol` ("gr2"), `executed_steps`, `fingerprint` (of
its weights or source), `embodiment` (the robot it was trained on as `Embodiment.to_dict`) and of it `cameras`,
`state`, `action` and `control_hz`, null where the policy does not say; `image_size` [px], or null. It answers `POST
/reset`, `POST /act` and `POST /close` (which ends the session) with numpy's npz, which holds arrays and no pickled
object. Every client has a session of its own, so one server drives many robots or simulators.
"""

from __future__ import annotations

import http.client
import io
import json
import os
import uuid
import zlib
from collections.abc import Mapping
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit
from zipfile import BadZipFile, ZipFile, ZipInfo

import numpy as np

from ...contracts import (
    ActionTrajectory,
    Array,
    JointTrajectory,
    Observation,
    SignalTrajectory,
    Trajectory,
    rgb_image,
)
from ...embodiment import Embodiment
from ...errors import ConfigError, DataError, EnvironmentMissing, Gr2Error, PolicyError, ShapeError

MAX_BYTES = 64 << 20
"""Largest body that either side reads, and largest sum of what it unpacks to."""

API_KEY = "GR2_SERVE_KEY"
"""The environment variable with the key that a server wants."""

_IMAGE = "image_"
_MAX_TEXT = 4096
"""Longest instruction or name of a session [characters]."""

_NORM_TOLERANCE = 0.01
"""How far the norm of a quaternion may be from 1; single precision and rounding stay far below."""


def server_key(stated: str, where: str) -> str:
    """Return a server's key without the blanks and the line end around it.

    Args:
        stated: the key, empty where there is none.
        where: what errors call it.

    Raises:
        ConfigError: it is blank, or no header can hold it.
    """
    key = stated.strip()
    if (stated and not key) or not (key.isascii() and key.isprintable()):
        raise ConfigError(
            f"{where}: expected a key of printable ASCII characters in one line, got "
            f"{'other characters' if key else 'blanks alone'}; correct it."
        )
    return key


def key_header() -> dict[str, str]:
    """Return the header with the key that the environment holds for servers; empty where it holds none."""
    key = server_key(os.environ.get(API_KEY, ""), API_KEY)
    return {"Authorization": f"Api-Key {key}"} if key else {}


def pack(arrays: Mapping[str, Array]) -> bytes:
    """Write arrays as the bytes of an npz file."""
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)  # type: ignore[arg-type]
    return buffer.getvalue()


def unpack(data: bytes) -> dict[str, Array]:
    """Read what `pack` wrote, and nothing that unpacks to more than `MAX_BYTES`.

    Raises:
        DataError: the bytes are no npz file, hold objects, or would unpack to more.
    """
    try:
        with ZipFile(io.BytesIO(data)) as file:
            members = file.infolist()
            size = sum(member.file_size for member in members)
            names = [member.filename.removesuffix(".npy") for member in members]
            if size > MAX_BYTES or len(set(names)) != len(names):
                got = f"{size} bytes" if size > MAX_BYTES else "one twice"
                raise ValueError(f"expected arrays of at most {MAX_BYTES} bytes with names of their own, got {got}")
            return {name: _array(file, member) for name, member in zip(names, members, strict=True)}
    except (ValueError, OSError, EOFError, KeyError, RuntimeError, BadZipFile, zlib.error) as error:
        raise DataError(f"message of {len(data)} bytes: expected an npz file of plain arrays, got {error}.") from error


def _array(file: ZipFile, member: ZipInfo) -> Array:
    """Read one array, whose header must agree with what the member holds."""
    with file.open(member) as stream:
        version = np.lib.format.read_magic(stream)
        read_header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        if version not in read_header:
            raise ValueError(f"{member.filename} of npy version {version}")
        shape, fortran, dtype = read_header[version](stream)
        body = stream.read(MAX_BYTES + 1)
    if dtype.hasobject:
        raise ValueError(f"{member.filename}: Object arrays cannot be loaded")
    if dtype.itemsize * int(np.prod(shape, dtype=object)) != len(body):
        raise ValueError(f"{member.filename} of {len(body)} bytes called {dtype} {shape}")
    array = np.frombuffer(bytearray(body), dtype)
    return array.reshape(shape, order="F" if fortran else "C")


def pack_observation(observation: Observation, session: str) -> bytes:
    """Write an observation as a message.

    Raises:
        ShapeError: an image is not uint8 `[h w 3]`.
    """
    images = {f"{_IMAGE}{name}": rgb_image(name, frame) for name, frame in observation.images.items()}
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
        DataError: an array is missing, or of another kind.
        ShapeError: an array has another shape, is not finite, or is no unit quaternion.
    """
    arrays = unpack(data)
    wanted = ("tool_position", "tool_quaternion", "gripper", "joint_positions", "instruction", "time", "session")
    if missing := [name for name in wanted if name not in arrays]:
        raise DataError(f"observation: expected the arrays of `pack_observation`, got none called {missing[0]!r}.")
    images = {name.removeprefix(_IMAGE): a for name, a in arrays.items() if name.startswith(_IMAGE)}
    for name, image in images.items():
        rgb_image(name, image)
    opening, command = _numbers(arrays, "gripper", 2)
    joints = _numbers(arrays, "joint_positions", None)
    quaternion = _numbers(arrays, "tool_quaternion", None)
    if len(quaternion) == 4 and abs(norm := float(np.linalg.norm(quaternion)) - 1) > _NORM_TOLERANCE:
        raise ShapeError(
            f"tool_quaternion: expected a unit quaternion (x y z w), got {quaternion.tolist()} of norm {norm + 1:.4g}."
        )
    observation = Observation(
        images=images,
        tool_position=_numbers(arrays, "tool_position", None),
        tool_quaternion=quaternion,
        gripper_opening=float(opening),
        gripper_command=float(command),
        joint_positions=joints,
        instruction=_text(arrays, "instruction"),
        time=float(_numbers(arrays, "time", 1)[0]),
        state=_numbers({"state": np.zeros(0)} | arrays, "state", None),
    )
    return observation, _text(arrays, "session")


def _numbers(arrays: Mapping[str, Array], name: str, length: int | None) -> Array:
    """Return an array of finite numbers as float64 `[n]`."""
    array = np.atleast_1d(arrays[name])
    if array.dtype.kind not in "fiu" or array.ndim != 1 or length not in (None, len(array)):
        wanted = "numbers" if length is None else f"{length} numbers"
        raise ShapeError(f"{name}: expected {wanted} in a row, got {array.dtype} {array.shape}.")
    if not np.all(np.isfinite(array)):
        raise ShapeError(f"{name}: expected finite numbers, got NaN or infinity; check the source of the array.")
    return array.astype(float)


def _text(arrays: Mapping[str, Array], name: str) -> str:
    array = arrays[name]
    if array.dtype.kind != "U" or array.ndim or len(text := str(array)) > _MAX_TEXT:
        raise DataError(
            f"{name}: expected a text of at most {_MAX_TEXT} characters, got {array.dtype} {array.shape}; send "
            "np.array(text)."
        )
    return text


def unpack_session(data: bytes) -> str:
    """Read the session of a message.

    Raises:
        DataError: the message names none.
    """
    arrays = unpack(data)
    if "session" not in arrays:
        raise DataError(f"message: expected the array 'session', got {sorted(arrays)}.")
    return _text(arrays, "session")


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
    except (KeyError, ValueError, TypeError) as error:
        raise DataError(f"trajectory: expected the arrays of `pack_trajectory`, got {sorted(arrays)}.") from error


def split_address(source: str, scheme: str, *, options: str = "") -> tuple[str, int | None, str]:
    """Return host, port (None where none is stated) and query of a server's address.

    Args:
        source: as in `scheme://host:port`.
        scheme: the only one that is taken.
        options: the query that may follow, as messages show it; without it none may.

    Raises:
        PolicyError: it is another address, or holds something that would be left aside.
    """
    try:
        parts = urlsplit(source)
        host, port = parts.hostname, parts.port
    except ValueError:
        host = None
    beside = host and (parts.path.strip("/") or parts.fragment or "@" in parts.netloc or (parts.query and not options))
    if not host or parts.scheme != scheme or beside or port == 0:
        raise PolicyError(f"policy {source}: expected an address as in {scheme}://host:8000{options}; fix the address.")
    return host, port, parts.query


def stated_steps(steps: Any, source: str) -> int:
    """Return the rows of an answer that a server wants carried out.

    Raises:
        PolicyError: it states something else.
    """
    if not isinstance(steps, int) or steps < 1:
        raise PolicyError(f"policy {source}: expected executed_steps of 1 or more from the server, got {steps!r:.40}.")
    return steps


def stated_robot(robot: Any, source: str) -> Embodiment | None:
    """Return the robot that a server's policy was trained on, None where it states none.

    Raises:
        PolicyError: it states something else.
    """
    try:
        return None if robot is None else Embodiment.from_dict(robot)
    except (ConfigError, TypeError, ValueError, AttributeError) as error:
        raise PolicyError(f"policy {source}: expected a robot's embodiment from the server, got {error}") from error


class RemotePolicy:
    """A policy that `gr2 serve` runs.

    embodiment: the robot that it was trained on, None where that is unknown; fingerprint: of its weights or source, ""
        where the server states none.

    Args:
        url: where it listens, as in http://10.0.0.2:8000.
        timeout: longest wait for an answer [s].

    Raises:
        EnvironmentMissing: nobody answers there.
        PolicyError: something else answers there.
    """

    def __init__(self, url: str, *, timeout: float = 60.0) -> None:
        self.url, self.session = url, uuid.uuid4().hex
        host, port, _ = split_address(url, "http")
        self._connection = http.client.HTTPConnection(host, port or 80, timeout=timeout)
        self._asked = False
        info = self._read_info()
        self.executed_steps = stated_steps(info["executed_steps"], url)
        self.name = str(info["policy"])
        self.fingerprint = str(info.get("fingerprint", ""))
        self.embodiment = stated_robot(info.get("embodiment"), url)  # servers of gr2 0.1.0 state none

    def reset(self) -> None:
        """Begin a new episode or sub-task."""
        self._ask("POST", "/reset", pack({"session": np.array(self.session)}))

    def act(self, observation: Observation) -> Trajectory:
        """Send the observation and return the trajectory."""
        return unpack_trajectory(self._ask("POST", "/act", pack_observation(observation, self.session)))

    def close(self) -> None:
        """End the session and close the connection."""
        if self._asked:
            with suppress(Gr2Error):  # the server is gone, or of gr2 0.1.0, which forgets sessions by itself
                self._ask("POST", "/close", pack({"session": np.array(self.session)}))
        self._connection.close()

    def _read_info(self) -> dict[str, Any]:
        data = self._ask("GET", "/info")
        self._asked = False
        try:
            info = json.loads(data)
        except ValueError:
            info = None
        if isinstance(info, dict) and {"executed_steps", "policy"} <= set(info):
            if (protocol := info.get("protocol", "gr2")) != "gr2":
                raise PolicyError(
                    f"policy {self.url}: expected gr2's own protocol there, got {protocol!r:.40}; name it as "
                    f"{str(protocol)[:40]}://host:port, or serve it with --protocol gr2."
                )
            return info
        raise PolicyError(f"policy {self.url}: expected `gr2 serve` there, got {data[:80]!r}; fix the address.")

    def _ask(self, method: str, path: str, body: bytes | None = None) -> bytes:
        try:
            status, data = self._exchange(method, path, body)
        except (OSError, http.client.HTTPException) as error:
            self._connection.close()
            raise EnvironmentMissing(
                f"policy {self.url}: expected a running `gr2 serve`, got {error!r}; start it, or fix the address."
            ) from error
        self._asked = True
        if status != 200:
            hint = f" (set {API_KEY})" if status in (401, 403) else ""
            text = data.decode("utf-8", "replace").strip()[:500]
            raise PolicyError(f"policy {self.url} answers {status}: {text}{hint}")
        return data

    def _exchange(self, method: str, path: str, body: bytes | None) -> tuple[int, bytes]:
        """Send a request and return status and body; once more where the server had closed an idle connection."""
        reused = self._connection.sock is not None
        try:
            return self._send(method, path, body)
        except (http.client.RemoteDisconnected, BrokenPipeError, ConnectionResetError):
            self._connection.close()
            if not reused:
                raise
            return self._send(method, path, body)

    def _send(self, method: str, path: str, body: bytes | None) -> tuple[int, bytes]:
        headers = {"Content-Type": "application/octet-stream", **key_header()}
        self._connection.request(method, path, body=body, headers=headers)
        response = self._connection.getresponse()
        data = response.read(MAX_BYTES)
        return response.status, data
