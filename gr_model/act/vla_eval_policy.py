"""Ask a policy behind vla-eval's protocol, version 1: any model server of it, and `gr2 serve` without a map."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from ...contracts import Observation
from ...errors import ConfigError, DataError, Gr2Error, PolicyError, ShapeError
from .websocket_policy import WebSocketPolicy
from .wire_messages import PROTOCOL_VERSION, action_spec, message, read_message

_FORMATS = {
    "position": ("absolute_xyz", "delta_xyz"),
    "rotation": ("euler_xyz", "axis_angle", "quaternion_xyzw", "rot6d_interleaved"),
    "gripper": ("binary_close_positive", "binary_close_negative"),
}
"""What vla-eval's `specs` call a group of columns, where the words leave no doubt."""


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
        self._hello = hello
        capabilities = hello.get("capabilities")
        capabilities = capabilities if isinstance(capabilities, dict) else {}
        self._chunks = capabilities.get("chunks") is True
        ours = capabilities.get("gr2")
        if isinstance(ours, dict):
            return ours
        return {name: hello.get(name) for name in ("model_server", "action_spec", "observation_params")}

    def _check_map(self) -> None:
        """Refuse a map that contradicts the mode that the server asks for; name columns that it states otherwise.

        The latter only are named: servers of vla-eval state them as hints, and not always rightly.
        """
        actions = self.map.actions
        if actions is None or "position" not in actions.columns:
            return
        params, spec = (self._hello.get(name) for name in ("observation_params", "action_spec"))
        wanted = params.get("absolute_action") if isinstance(params, dict) else None
        if isinstance(wanted, bool) and wanted is not (actions.reference == "absolute"):
            raise ConfigError(
                f"policy {self.source}: expected a map of {'absolute' if wanted else 'delta'} actions, as ?map="
                f"{'calvin' if wanted else 'calvin-delta'} is, since the server asks for absolute_action: {wanted}, "
                f"got {actions.reference} ones; use another map."
            )
        for name, ours in action_spec(actions).items():
            group = spec.get(name) if isinstance(spec, dict) else None
            theirs = str(group.get("format")) if isinstance(group, dict) else ""
            read = ours["format"]
            if name == "gripper":
                read = f"binary_close_{'positive' if actions.gripper.closed > actions.gripper.open else 'negative'}"
                theirs = theirs.replace("close_01", "close_positive")
            if theirs in _FORMATS[name] and theirs != read and not (name == "position" and wanted is not None):
                note = (
                    f"policy {self.source}: the server states {name} as {theirs}, the map reads {read}; check the map."
                )
                print(note, file=sys.stderr, flush=True)

    def _exchange(self, sent: dict[str, Any], observation: Observation) -> Mapping[str, Any]:
        if self._connection is None:
            self._reopen()
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
