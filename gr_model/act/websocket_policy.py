"""Ask a policy behind openpi's or vla-eval's protocol: any server of them, and `gr2 serve` without a map."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

import numpy as np

from ...contracts import ActionTrajectory, Array, JointTrajectory, Observation, SignalTrajectory, Trajectory
from ...embodiment import Embodiment
from ...errors import ConfigError, DataError, EnvironmentMissing, Gr2Error, PolicyError, ShapeError
from .array_codec import pack, require_serving_packages, unpack
from .remote import API_KEY, MAX_BYTES
from .wire_actions import ActionMap, ToolPose, from_rows
from .wire_maps import PRESETS, WireMap, map_text, open_map
from .wire_messages import EXACT, PROTOCOL_VERSION, message, read_message

if TYPE_CHECKING:
    from websockets.sync.client import ClientConnection

SCHEMES = ("openpi", "vla-eval")


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
        parts = urlsplit(source)
        self.source, self.timeout, self.robot = source, timeout, robot
        options = parse_qs(parts.query, keep_blank_values=True)
        try:
            port = parts.port or 8000
        except ValueError:
            port = 0
        if (
            parts.scheme != self.scheme
            or not parts.hostname
            or parts.path.strip("/")
            or set(options) - {"map"}
            or not port
        ):
            raise PolicyError(
                f"policy {source}: expected an address as in {self.scheme}://host:8000?map=FILE; fix the address."
            )
        host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
        self.url = f"ws://{host}:{port}"
        self._map_name = options.get("map", [""])[-1]
        self._connection: ClientConnection | None = None
        self._open_connection = ExitStack()
        self._fresh = True
        self._commanded: tuple[float, Array, Array] | None = None
        info = self._open()
        self.info = info if isinstance(info.get("map"), dict) else {}
        self.map = self._find_map()
        stated = self.info.get("embodiment")
        self.embodiment = Embodiment.from_dict(stated) if isinstance(stated, dict) else None
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

    def _stated_steps(self) -> int:
        actions = self.map.actions
        stated = self.info.get("executed_steps") or (None if actions is None else actions.executed_steps)
        return int(stated or 1)

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
        if actions is None:
            return from_rows(
                rows, str(answer.get("trajectory")), dt=dt, start_time=float(observation.time),
                opening=bool(answer.get("opening", True)), arm=str(answer.get("arm", "")),
            )  # fmt: skip
        return self._mapped(rows, actions, observation, dt)

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
        if not isinstance(dt, int | float) or not dt > 0:
            raise ConfigError(f"map {self._map_name}: expected actions.dt, the seconds between rows, got none; add it.")
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

    def _connect(self) -> ClientConnection:
        from websockets.exceptions import InvalidStatus, WebSocketException
        from websockets.sync.client import connect

        key = os.environ.get(API_KEY, "")
        try:
            made = connect(
                self.url, compression=None, max_size=MAX_BYTES, open_timeout=min(self.timeout, 20.0),
                close_timeout=1.0, ping_interval=None, proxy=None,
                additional_headers={"Authorization": f"Api-Key {key}"} if key else None,
            )  # fmt: skip
            self._connection = self._open_connection.enter_context(made)  # releases of websockets from 17 on want it
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

    def _receive(self) -> bytes | str:
        from websockets.exceptions import ConnectionClosed

        assert self._connection is not None
        try:
            return self._connection.recv(timeout=self.timeout)
        except TimeoutError as error:
            self.close()
            raise EnvironmentMissing(
                f"policy {self.source}: expected an answer within {self.timeout:g} s, got none; see what the server "
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
        first = self._receive()
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
            info = self._open()
            if self.info and info.get("fingerprint") != self.info.get("fingerprint"):
                raise self._wrong("expected the policy that was served before, got another one; serve the first again")

    def _exchange(self, sent: dict[str, Any], observation: Observation) -> Mapping[str, Any]:
        if self._connection is None:
            self._open()
        if self.info:
            sent["actions_dtype"] = EXACT
        self._send(pack(sent, "openpi"))
        answer = self._receive()
        if isinstance(answer, str):
            self.close()
            raise PolicyError(f"policy {self.source} failed: {_last_line(answer)}")
        return self._unpack(answer)


class VlaEvalPolicy(WebSocketPolicy):
    """A policy behind vla-eval's protocol: it answers one action a control step, or a chunk where it can."""

    scheme = "vla-eval"

    def _open(self) -> dict[str, Any]:
        self._seq, self._time = 0, -1.0
        self._in_episode = False
        self._connect()
        payload = {"harness_version": "gr2", "protocol_version": PROTOCOL_VERSION}
        kind, hello = self._answer("hello", payload)
        if kind != "hello" or hello.get("protocol_version") != PROTOCOL_VERSION:
            self.close()
            got = f"version {hello.get('protocol_version')!r:.40}" if kind == "hello" else kind
            raise self._wrong(f"expected a hello of protocol version {PROTOCOL_VERSION}, got {got}; use a server of it")
        self._check_params(hello.get("observation_params"))
        capabilities = hello.get("capabilities")
        capabilities = capabilities if isinstance(capabilities, dict) else {}
        self._chunks = capabilities.get("chunks") is True
        ours = capabilities.get("gr2")
        if isinstance(ours, dict):
            return ours
        return {name: hello.get(name) for name in ("model_server", "action_spec", "observation_params")}

    def _check_params(self, params: Any) -> None:
        """Refuse a preset of CALVIN whose mode is not the one that the server asks for."""
        wanted = params.get("absolute_action") if isinstance(params, dict) else None
        stated = {"calvin": True, "calvin-delta": False}.get(self._map_name)
        if isinstance(wanted, bool) and stated is not None and wanted is not stated:
            raise ConfigError(
                f"policy {self.source}: expected ?map={'calvin' if wanted else 'calvin-delta'}, since the server asks "
                f"for absolute_action: {wanted}, got {self._map_name}; use the other one."
            )

    def _exchange(self, sent: dict[str, Any], observation: Observation) -> Mapping[str, Any]:
        if self._connection is None:
            self._open()
        if self._fresh:
            if self._in_episode and observation.time > self._time:
                sent["episode_restart"] = True  # a sub-task of the same episode
            else:
                self._begin()
        self._time = float(observation.time)
        if self._chunks:
            sent["chunk"] = True
        kind, payload = self._answer("observation", sent)
        if kind != "action":
            raise self._wrong(f"expected an action, got {kind}")
        return payload

    def _begin(self) -> None:
        if self._in_episode:
            self._say("episode_end", {"metrics": {}})
        self._say("episode_start", {"task": {"name": "gr2"}})
        self._in_episode = True

    def close(self) -> None:
        """End the episode and close the connection."""
        if self._connection is not None and getattr(self, "_in_episode", False):
            with suppress(Gr2Error):
                self._in_episode = False
                self._say("episode_end", {"metrics": {}})
        super().close()

    def _say(self, kind: str, payload: Mapping[str, Any]) -> int:
        self._seq += 1
        self._send(message(kind, payload, self._seq))
        return self._seq

    def _answer(self, kind: str, payload: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
        asked = self._say(kind, payload)
        try:
            kind, answer, seq = read_message(self._receive())
        except (DataError, ShapeError) as error:
            self.close()
            raise self._wrong(str(error).rstrip(".")) from error
        if kind == "error":
            raise PolicyError(f"policy {self.source} failed: {str(answer.get('error', answer))[:500]}")
        if seq != asked:
            raise self._wrong(f"expected the answer to message {asked}, got the one to {seq}")
        return kind, answer


def websocket_policy(
    source: str, *, executed_steps: int | None = None, robot: Embodiment | None = None
) -> WebSocketPolicy:
    """Return the client of a source: `openpi://...` or `vla-eval://...`."""
    kinds = {"openpi": OpenpiPolicy, "vla-eval": VlaEvalPolicy}
    return kinds[source.split(":", 1)[0]](source, executed_steps=executed_steps, robot=robot)


def _last_line(text: str) -> str:
    lines = [line for line in text.strip().splitlines() if line.strip()]
    return (lines[-1] if lines else "an empty text")[:500]


def _reason(error: BaseException) -> str:
    """Return why a connection ended, in a few words."""
    received = getattr(error, "rcvd", None)
    if received is not None:
        return f"the connection closed with {received.code} {received.reason}".strip()
    return "a lost connection" if type(error).__name__.startswith("ConnectionClosed") else repr(error)
