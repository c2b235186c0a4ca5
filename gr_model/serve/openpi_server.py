"""The server's side of openpi's protocol: metadata first, then an observation and its actions in turn.

Source: openpi's `serving/websocket_policy_server` and openpi-client 0.1.2. It has no message for an episode: connecting
begins one, and `reset: True` in an observation does so again.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Mapping
from typing import Any

import numpy as np

from ...errors import DataError, Gr2Error
from ..act.array_codec import pack, unpack
from ..act.wire_actions import as_rows
from ..act.wire_maps import WireMap
from ..act.wire_messages import EXACT
from ..act.wire_observations import numbers
from .sessions import PolicyServer
from .wire_session import WireSession, describe


class OpenpiDialect:
    """openpi's protocol over the policies of a server; see `websocket_server.Dialect`."""

    name = "openpi"

    def __init__(self, policies: PolicyServer, wire_map: WireMap, *, policy: str, fingerprint: str) -> None:
        self.policies, self.map = policies, wire_map
        self.info = describe(wire_map, policies, name=policy, fingerprint=fingerprint, protocol=self.name)

    def begin(self) -> OpenpiConversation:
        """Begin a conversation with a client."""
        return OpenpiConversation(self)

    def page(self, path: str, query: Mapping[str, str]) -> dict[str, Any] | None:
        """Return no page: openpi has none but `/healthz`."""
        return None


class OpenpiConversation:
    """One connection."""

    def __init__(self, dialect: OpenpiDialect) -> None:
        self.dialect = dialect
        self.session = WireSession(dialect.policies, dialect.map)
        self._fresh, self._total_ms = True, 0.0

    def greeting(self) -> bytes:
        """Return the metadata."""
        return pack(self.dialect.info, "openpi")

    def answer(self, data: bytes | str) -> bytes:
        """Return the actions of an observation."""
        began = time.perf_counter()
        message = unpack(data)
        if not isinstance(message, Mapping):
            raise DataError(f"observation: expected a dict, got {type(message).__name__}.")
        again = message.get("reset")
        if self._fresh or (again is not None and numbers(again, 1, "reset")[0]):
            self.session.begin()
            self._fresh = False
        observation = self.session.read(message)
        asked = time.perf_counter()
        trajectory = self.session.ask(observation)
        infer_ms = 1000 * (time.perf_counter() - asked)
        steps = self.dialect.policies.executed_steps
        rows = self.session.rows(trajectory, observation, steps)
        self.session.steps += steps
        timing = {"infer_ms": infer_ms} | ({"prev_total_ms": self._total_ms} if self._total_ms else {})
        exact = message.get("actions_dtype") == EXACT
        answer = {
            "actions": rows.astype(np.float64 if exact else np.float32),
            "server_timing": timing,
            "trajectory": as_rows(trajectory)[1],
            "opening": getattr(trajectory, "gripper", None) is not None,
            "arm": getattr(trajectory, "arm", ""),
            "dt": float(trajectory.dt),
        }
        packed = pack(answer, "openpi")
        self._total_ms = 1000 * (time.perf_counter() - began)
        return packed

    def refuse(self, error: BaseException) -> str:
        """Return the text that is sent before the connection is closed."""
        if isinstance(error, Gr2Error):
            return str(error)
        return "".join(traceback.format_exception(error))

    def close(self) -> None:
        """End the session."""
        self.session.close()
