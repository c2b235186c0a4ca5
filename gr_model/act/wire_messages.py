"""Words that both sides of the websocket protocols need: vla-eval's messages, and openpi's keys of our own."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from ...errors import DataError
from .array_codec import pack, unpack
from .wire_actions import ActionMap

EXACT = "float64"
"""What an openpi client asks for by `actions_dtype` to get the policy's numbers unrounded; others get float32."""

PROTOCOL_VERSION = 1
"""Of vla-eval."""

TYPES = ("hello", "observation", "action", "episode_start", "episode_end", "error")
"""Of vla-eval's messages."""

_ROTATIONS = {
    "euler_xyz": "euler_xyz", "rotation_vector": "axis_angle", "quaternion_xyzw": "quaternion_xyzw",
}  # fmt: skip
_RANGES = {
    (1.0, -1.0): "binary_close_positive", (-1.0, 1.0): "binary_close_negative", (0.0, 1.0): "continuous_01",
    (1.0, 0.0): "binary_close_01",
}  # fmt: skip


def message(kind: str, payload: Mapping[str, Any], seq: int) -> bytes:
    """Return a message of vla-eval."""
    return pack({"type": kind, "payload": dict(payload), "seq": seq, "timestamp": time.time()}, "vla-eval")


def read_message(data: bytes | str) -> tuple[str, dict[str, Any], int]:
    """Return type, payload and number of a message.

    Raises:
        DataError: it is none.
    """
    raw = unpack(data)
    if not isinstance(raw, dict) or (missing := {"type", "payload", "seq", "timestamp"} - set(raw)):
        got = type(raw).__name__ if not isinstance(raw, dict) else f"no {', '.join(sorted(missing))}"
        raise DataError(f"message: expected a dict of type, payload, seq and timestamp, got {got}.")
    kind, payload, seq = raw["type"], raw["payload"], raw["seq"]
    if kind not in TYPES or not isinstance(payload, dict) or type(seq) is not int:
        raise DataError(f"message: expected a type of {', '.join(TYPES)} with a dict, got {kind!r:.40}.")
    return kind, payload, seq


def action_spec(actions: ActionMap | None) -> dict[str, Any]:
    """Return the columns in vla-eval's words: name, dims and format of each group."""
    if actions is None or "position" not in actions.columns:
        return {"actions": {"name": "raw", "dims": 0, "format": "raw"}}
    ends = actions.gripper
    kind = "absolute_xyz" if actions.reference == "absolute" else "delta_xyz"
    width = actions.widths()
    return {
        "position": {"name": "position", "dims": 3, "format": kind},
        "rotation": {
            "name": "rotation", "dims": width["rotation"], "format": _ROTATIONS.get(actions.rotation, actions.rotation)
        },
        "gripper": {"name": "gripper", "dims": 1, "format": _RANGES.get((ends.closed, ends.open), "raw")},
    }  # fmt: skip
