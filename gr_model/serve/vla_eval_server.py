"""The server's side of vla-eval's protocol, version 1: hello, episodes, observations and actions as msgpack messages.

A client asks at every control step and gets one action; the policy is asked when the steps that it wants carried out
are over. Source: vla-eval 0.8.0 (`protocol/messages`, `model_servers/serve`, `benchmarks/calvin`).
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import metadata
from typing import Any

from ...contracts import Trajectory
from ...errors import ConfigError, DataError, Gr2Error
from ..act.wire_actions import as_rows
from ..act.wire_maps import WireMap
from ..act.wire_messages import PROTOCOL_VERSION, action_spec, message, read_message
from .sessions import PolicyServer
from .wire_session import WireSession, describe

_STATES: Mapping[tuple[str, ...], str] = {
    ("tool_position", "tool_rotationeuler_xyz", "gripper", "gripper_command"): "eef_pos3_euler3_gripper2",
}  # fmt: skip


class VlaEvalDialect:
    """vla-eval's protocol over the policies of a server; see `websocket_server.Dialect`."""

    name = "vla-eval"

    def __init__(self, policies: PolicyServer, wire_map: WireMap, *, policy: str, fingerprint: str) -> None:
        self.policies, self.map = policies, wire_map
        self.info = describe(wire_map, policies, name=policy, fingerprint=fingerprint, protocol=self.name)

    def begin(self) -> VlaEvalConversation:
        """Begin a conversation with a client."""
        return VlaEvalConversation(self)

    def page(self, path: str, query: Mapping[str, str]) -> dict[str, Any] | None:
        """Return what `/health` and `/config` answer; `/config?max_batch_size=8&max_wait_time=0.01` changes them.

        Raises:
            ConfigError: no such setting, or a value that it cannot have.
        """
        if path == "/health":
            return {"status": "ok"}
        if path != "/config":
            return None
        applied: dict[str, float] = {}
        for key, text in query.items():
            try:
                value: float = int(text) if key == "max_batch_size" else float(text)
            except ValueError:
                value = -1.0
            low, high = {"max_batch_size": (1, 4096), "max_wait_time": (0.0, 1.0)}.get(key, (1.0, 0.0))
            if not low <= value <= high:
                raise ConfigError(
                    "/config: expected max_batch_size of 1 to 4096 or max_wait_time of 0 to 1 s, got "
                    f"{key[:40]}={text[:40]}."
                )
            applied[key] = value
        self.policies.max_batch = int(applied.get("max_batch_size", self.policies.max_batch))
        self.policies.max_wait = float(applied.get("max_wait_time", self.policies.max_wait))
        current = {"max_batch_size": self.policies.max_batch, "max_wait_time": self.policies.max_wait}
        return {"applied": applied, "config": current}

    def hello(self) -> dict[str, Any]:
        """Return the payload of our hello. `observation_params` tell vla-eval's CALVIN what to send and to take."""
        seen, actions = self.map.observations, self.map.actions
        names = {
            key.split("/")[-1]: {"name": "image", "dims": 0, "format": "rgb_hwc_uint8"} for key in seen.images.values()
        }
        form = _STATES.get(tuple(part.name + part.rotation for key in seen.state for part in key.parts), "raw")
        state = {"state": {"name": "state", "dims": sum(k.width for k in seen.state), "format": form}}
        params: dict[str, Any] = {"send_state": bool(seen.state), "send_wrist_image": len(seen.images) > 1}
        if actions is not None and "signals" not in actions.columns:
            params["absolute_action"] = actions.reference == "absolute"
        return {
            "harness_version": f"gr2 {metadata.version('gr2')}",
            "protocol_version": PROTOCOL_VERSION,
            "model_server": "gr2",
            "capabilities": {"chunks": True, "gr2": self.info},
            "action_spec": action_spec(actions),
            "observation_spec": names | state | {"language": {"name": "language", "dims": 0, "format": "language"}},
            "observation_params": params,
        }


class VlaEvalConversation:
    """One connection."""

    def __init__(self, dialect: VlaEvalDialect) -> None:
        self.dialect = dialect
        self.session = WireSession(dialect.policies, dialect.map)
        self._chunk: Trajectory | None = None
        self._row, self._begun = 0, False

    def greeting(self) -> None:
        """Return nothing: the client speaks first."""

    def answer(self, data: bytes | str) -> bytes | None:
        """Return the answer to a message, None for those that have none; mistakes are answered, too."""
        kind, payload, seq = read_message(data)
        try:
            return self._carry_out(kind, payload, seq)
        except Gr2Error as error:
            return message("error", {"error": str(error)}, seq)
        except BaseException as error:  # whatever a user's policy raises
            return message("error", {"error": f"the policy failed: {error!r}"}, seq)

    def _carry_out(self, kind: str, payload: dict[str, Any], seq: int) -> bytes | None:
        if kind == "hello":
            theirs = payload.get("protocol_version")
            if theirs != PROTOCOL_VERSION:
                raise DataError(
                    f"hello: expected protocol_version {PROTOCOL_VERSION}, got {theirs!r:.40}; use a vla-eval that "
                    "speaks it, or another version of gr2."
                )
            return message("hello", self.dialect.hello(), seq)
        if kind in ("episode_start", "episode_end"):
            if kind == "episode_start":
                self._begin()
            self._begun = kind == "episode_start"
        elif kind == "observation":
            if not self._begun:
                self._begin()
                self._begun = True
            elif payload.get("episode_restart"):
                self._begin(episode=False)
            try:
                return message("action", self._act(payload), seq)
            except BaseException:
                self._chunk = None
                raise
        return None

    def _begin(self, *, episode: bool = True) -> None:
        self._chunk = None
        self.session.begin(episode=episode)

    def _act(self, payload: dict[str, Any]) -> dict[str, Any]:
        session, policies = self.session, self.dialect.policies
        observation = session.read(payload)
        if payload.get("chunk") is True:
            trajectory = session.ask(observation)
            rows = session.rows(trajectory, observation, policies.executed_steps)
            session.steps += policies.executed_steps
            self._chunk = None
        else:
            if self._chunk is None or self._row >= policies.executed_steps:
                self._chunk, self._row = session.ask(observation), 0
            trajectory = self._chunk
            rows = session.one_row(trajectory, self._row, observation)
            self._row += 1
            session.steps += 1
            if self._row >= len(as_rows(trajectory)[0]):
                self._chunk = None
        return {
            "actions": rows,
            "trajectory": as_rows(trajectory)[1],
            "opening": getattr(trajectory, "gripper", None) is not None,
            "arm": getattr(trajectory, "arm", ""),
            "dt": float(trajectory.dt),
        }

    def refuse(self, error: BaseException) -> str:
        """Return the text that is sent before the connection is closed: the message could not be read."""
        return str(error)

    def close(self) -> None:
        """End the session."""
        self.session.close()
