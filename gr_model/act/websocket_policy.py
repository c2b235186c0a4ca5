"""Ask a policy behind a websocket: what the protocols share, and openpi's; `gr2 serve` needs no map, others do."""

from __future__ import annotations

import hashlib
import json
import socket
import struct
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs

import numpy as np

from ...contracts import ActionTrajectory, Array, JointTrajectory, Observation, SignalTrajectory, Trajectory
from ...embodiment import Embodiment
from ...errors import ConfigError, DataError, EnvironmentMissing, PolicyError, ShapeError
from .array_codec import pack, require_serving_packages, unpack
from .remote import API_KEY, MAX_BYTES, key_header, split_address, stated_robot, stated_steps
from .wire_actions import ActionMap, ToolPose, from_rows
from .wire_maps import PRESETS, WireMap, map_text, open_map
from .wire_messages import EXACT

if TYPE_CHECKING:
    from websockets.sync.client import ClientConnection


class WebSocketPolicy:
    """A policy on another machine, behind a websocket.

    embodiment: the robot that it was trained on, where the server states it; fingerprint: what tells its answers from
    those of others: what the server states, and the map.

    Args:
        source: `openpi://host:port` or `vla-eval://host:port`; `?map=` and a preset's name or a file that says what
            the server's keys and numbers mean, which `gr2 serve` states by itself.
        executed_steps: rows of each answer that are carried out, where neither map nor server is to say it.
        robot: the robot to act for, whose state an observation may hold.
        timeout: longest wait for an answer [s].

    Raises:
        ConfigError: no map, or one that cannot be read.
        EnvironmentMissing: nobody answers there, or a package is missing.
        PolicyError: something else answers there.
    """

    scheme = ""

    def __init__(
        self, source: str, *, executed_steps: int | None = None, robot: Embodiment | None = None, timeout: float = 60.0
    ) -> None:
        require_serving_packages()
        self.source, self.timeout, self.robot = source, timeout, robot
        host, port, query = split_address(source, self.scheme, options="?map=FILE")
        options = parse_qs(query, keep_blank_values=True)
        maps = options.pop("map", [""])
        if options or len(maps) > 1:
            raise PolicyError(f"policy {source}: expected one map=FILE after the ?, got {query}; fix the address.")
        self.url = f"ws://[{host}]:{port or 8000}" if ":" in host else f"ws://{host}:{port or 8000}"
        self._map_name = maps[0]
        self._connection: ClientConnection | None = None
        self._open_connection = ExitStack()
        self._fresh = True
        self._commanded: tuple[float, Array, Array] | None = None
        info = self._open()
        self.info = info if isinstance(info.get("map"), dict) else {}
        self.map = self._find_map()
        self._check_map()
        self.embodiment = stated_robot(self.info.get("embodiment"), source)
        self.executed_steps = executed_steps or self._stated_steps()
        self.uses_images = bool(self.map.observations.images or self.map.observations.camera_prefix)
        self.fingerprint = self._fingerprint(info)

    # -- what a protocol says its own way --------------------------------------------------------------------------

    def _open(self) -> dict[str, Any]:
        """Connect and return what the server states of itself."""
        raise NotImplementedError

    def _exchange(self, sent: dict[str, Any], observation: Observation) -> Mapping[str, Any]:
        """Send an observation and return the answer's dict."""
        raise NotImplementedError

    def _check_map(self) -> None:
        """Compare the map with what the server states of its numbers."""

    def _stated_steps(self) -> int:
        actions = self.map.actions
        stated = self.info.get("executed_steps", None if actions is None else actions.executed_steps)
        return stated_steps(1 if stated is None else stated, self.source)

    # -- a policy ------------------------------------------------------------------------------------------------

    def reset(self) -> None:
        """Begin an episode or a sub-task."""
        self._fresh, self._commanded = True, None

    def act(self, observation: Observation) -> Trajectory:
        """Send the observation and return the trajectory.

        Raises:
            EnvironmentMissing: the server is gone, or does not answer in time.
            PolicyError: it answers something that is no action.
        """
        sent = self.map.observations.write(observation, robot=self.robot or self.embodiment, nested=self._nested())
        answer = self._exchange(sent, observation)
        self._fresh = False
        rows = self._rows(answer)
        actions = self.map.actions
        dt = self._dt(answer)
        try:
            if actions is not None:
                return self._mapped(rows, actions, observation, dt)
            return from_rows(
                rows, str(answer.get("trajectory")), dt=dt, start_time=float(observation.time),
                opening=bool(answer.get("opening", True)), arm=str(answer.get("arm", "")),
            )  # fmt: skip
        except ShapeError as error:  # numbers that are no rotation
            raise self._wrong(f"its actions: {error}".rstrip(".")) from error

    def close(self) -> None:
        """Close the connection."""
        if self._connection is not None:
            with suppress(Exception):  # it may be gone already
                self._open_connection.close()
            self._connection = None

    def _nested(self) -> bool:
        return self.scheme == "vla-eval" or self.map.observations.channels_first

    def _mapped(self, rows: Array, actions: ActionMap, observation: Observation, dt: float) -> Trajectory:
        start_time = float(observation.time)
        if "joints" in actions.columns:
            joints, _, opening = actions.read(rows, ToolPose(position=np.zeros(3), quaternion=np.zeros(4)))
            return JointTrajectory(positions=joints, gripper=opening, dt=dt, start_time=start_time)
        if "signals" in actions.columns:
            values, _, opening = actions.read(rows, ToolPose(position=np.zeros(3), quaternion=np.zeros(4)))
            values = values if opening is None else np.concatenate((values, opening[:, None]), axis=1)
            return SignalTrajectory(values=values, dt=dt, start_time=start_time)
        start = ToolPose(position=observation.tool_position, quaternion=observation.tool_quaternion)
        if actions.begins == "commanded" and self._commanded is not None:
            began, positions, quaternions = self._commanded
            done = min(max(round((start_time - began) / dt), 1), len(positions)) - 1
            start = ToolPose(position=positions[done], quaternion=quaternions[done])
        positions, quaternions, opening = actions.read(rows, start)
        self._commanded = (start_time, positions, quaternions)
        if opening is None:
            opening = np.full(len(positions), float(observation.gripper_command))
        return ActionTrajectory(
            positions=positions, quaternions=quaternions, gripper=opening, dt=dt, start_time=start_time
        )

    def _rows(self, answer: Mapping[str, Any]) -> Array:
        """Return the numbers of an answer `[k d]`, checked."""
        values = answer.get("actions", answer.get("action"))
        if values is None:
            raise self._wrong(f"expected the key 'actions' in its answer, got {', '.join(sorted(map(str, answer)))}")
        try:
            rows = np.atleast_2d(np.asarray(values))
            if rows.dtype.kind not in "fiu":
                raise ValueError(f"dtype {rows.dtype}")
        except ValueError as error:
            raise self._wrong(f"expected numbers as actions, got {type(values).__name__} ({error})") from error
        rows = rows.astype(float)
        if rows.ndim != 2 or not rows.size:
            raise self._wrong(f"expected actions (rows, columns), got shape {np.shape(values)}")
        if not np.all(np.isfinite(rows)):
            bad = int(np.argwhere(~np.isfinite(rows))[0][1])
            raise self._wrong(f"expected finite actions, got {rows[~np.isfinite(rows)][0]} in column {bad}")
        actions = self.map.actions
        if actions is not None and rows.shape[1] != actions.width:
            groups = ", ".join(f"{row['name']} {row['width']}" for row in actions.describe())
            raise self._wrong(f"expected {actions.width} columns ({groups}), got {rows.shape[1]}; correct the map")
        return rows

    def _dt(self, answer: Mapping[str, Any]) -> float:
        actions = self.map.actions
        stated = answer.get("dt") if self.info else None
        dt = stated or (actions.dt if actions is not None else None) or self.info.get("dt")
        if dt is None and actions is not None:
            raise ConfigError(f"map {self._map_name}: expected actions.dt, the seconds between rows, got none; add it.")
        if not isinstance(dt, int | float | np.floating) or not 0 < dt < np.inf:
            raise self._wrong(f"expected dt, the seconds between rows, in its answer, got {dt!r:.40}")
        return float(dt)

    def _find_map(self) -> WireMap:
        robot = self.robot
        if self._map_name:
            found = open_map(self._map_name, robot)
            if found.actions is None and not self.info:
                raise ConfigError(
                    f"map {self._map_name}: expected `actions`, what the server's numbers mean, got none; write a map "
                    "file with them (docs/serving.md)."
                )
            return found
        if self.info:
            return WireMap.from_dict(self.info["map"], f"policy {self.source}: its map")
        self.close()
        raise ConfigError(
            f"policy {self.source}: expected ?map= with {', '.join(PRESETS)} or a file that says what its keys and "
            f"numbers mean, got none; add it, as in '{self.scheme}://host:8000?map=my_robot.yaml' (docs/serving.md)."
        )

    def _fingerprint(self, info: Mapping[str, Any]) -> str:
        stated = str(info.get("fingerprint", ""))
        if not self._map_name:
            return stated
        text = map_text(self._map_name) + json.dumps(info, sort_keys=True, default=str)
        return f"{stated} {hashlib.sha256(text.encode()).hexdigest()}".strip()

    # -- the connection ------------------------------------------------------------------------------------------

    def _reopen(self) -> None:
        """Connect once more, to the policy that was there before."""
        if self._fingerprint(self._open()) != self.fingerprint:
            self.close()
            raise self._wrong("expected the policy that was served before, got another one; serve the first again")

    def _connect(self) -> ClientConnection:
        from websockets.exceptions import InvalidStatus, WebSocketException
        from websockets.sync.client import connect

        try:
            made = connect(
                self.url, compression=None, max_size=MAX_BYTES, open_timeout=min(self.timeout, 20.0),
                close_timeout=1.0, ping_interval=None, proxy=None, additional_headers=key_header(),
            )  # fmt: skip
            self._connection = self._open_connection.enter_context(made)  # releases of websockets from 17 on want it
            seconds = struct.pack("ll", int(self.timeout), int(self.timeout % 1 * 1e6))
            with suppress(OSError):  # not on every system; a server that takes nothing would be waited for for ever
                self._connection.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, seconds)
        except InvalidStatus as error:
            body = (error.response.body or b"").decode("utf-8", "replace").strip()[:300]
            hint = f" (set {API_KEY})" if error.response.status_code in (401, 403) else ""
            raise PolicyError(f"policy {self.source} answers {error.response.status_code}: {body}{hint}") from error
        except (OSError, WebSocketException) as error:
            raise self._gone(repr(error)) from error
        return self._connection

    def _send(self, data: bytes) -> None:
        from websockets.exceptions import ConnectionClosed

        connection = self._connection or self._connect()
        try:
            connection.send(data)
        except (ConnectionClosed, OSError) as error:
            self.close()
            raise self._gone(_reason(error)) from error

    def _receive(self, what: str = "an answer") -> bytes | str:
        from websockets.exceptions import ConnectionClosed

        assert self._connection is not None
        try:
            return self._connection.recv(timeout=self.timeout)
        except TimeoutError as error:
            self.close()
            raise EnvironmentMissing(
                f"policy {self.source}: expected {what} within {self.timeout:g} s, got none; see what the server "
                "does, or start it again."
            ) from error
        except (ConnectionClosed, OSError) as error:
            self.close()
            raise self._gone(_reason(error)) from error

    def _unpack(self, data: bytes | str) -> Mapping[str, Any]:
        try:
            values = unpack(data)
        except (DataError, ShapeError) as error:
            raise self._wrong(str(error).rstrip(".")) from error
        if not isinstance(values, Mapping):
            raise self._wrong(f"expected a dict, got {type(values).__name__}")
        return values

    def _wrong(self, what: str) -> PolicyError:
        return PolicyError(f"policy {self.source}: {what}.")

    def _gone(self, what: str) -> EnvironmentMissing:
        return EnvironmentMissing(
            f"policy {self.source}: expected a running server of {self.scheme}'s protocol, got {what}; start it, or "
            "fix the address."
        )


class OpenpiPolicy(WebSocketPolicy):
    """A policy behind openpi's protocol. It has no message for an episode, so each begins with a new connection."""

    scheme = "openpi"

    def _open(self) -> dict[str, Any]:
        self._connect()
        first = self._receive("openpi's metadata")
        if isinstance(first, str):
            self.close()
            raise self._wrong(f"expected openpi's metadata first, got a text: {first[-300:]}")
        return dict(self._unpack(first))

    def reset(self) -> None:
        """Begin an episode or a sub-task, on a new connection where the present one was used."""
        used = not self._fresh or self._connection is None
        super().reset()
        if used:
            self.close()
            self._reopen()

    def _exchange(self, sent: dict[str, Any], observation: Observation) -> Mapping[str, Any]:
        if self._connection is None:
            self._reopen()
        if self.info:
            sent["actions_dtype"] = EXACT
        self._expect_silence()
        self._send(pack(sent, "openpi"))
        answer = self._receive()
        if isinstance(answer, str):
            self.close()
            raise PolicyError(f"policy {self.source} failed: {_last_line(answer)}")
        return self._unpack(answer)

    def _expect_silence(self) -> None:
        """Refuse a server that sent more than one answer: they have no number, an old one would pass for the next."""
        from websockets.exceptions import ConnectionClosed

        assert self._connection is not None
        try:
            self._connection.recv(timeout=0)
        except (TimeoutError, ConnectionClosed, OSError):  # a lost connection is named where it is used
            return
        self.close()
        raise self._wrong("expected one answer to each observation, got another one before the next was sent")


def _last_line(text: str) -> str:
    lines = [line for line in text.strip().splitlines() if line.strip()]
    return (lines[-1] if lines else "an empty text")[:500]


def _reason(error: BaseException) -> str:
    """Return why a connection ended, in a few words."""
    if isinstance(error.__cause__, BlockingIOError):
        return "one that takes no observation"
    sent, received = getattr(error, "sent", None), getattr(error, "rcvd", None)
    if sent is not None and sent.code == 1009:
        return f"an answer of more than {MAX_BYTES} bytes"
    if received is not None:
        return f"the connection closed with {received.code} {received.reason}".strip()
    return "a lost connection" if type(error).__name__.startswith("ConnectionClosed") else repr(error)
