"""The real-time data exchange of Universal Robots: named fields to and from the controller over one socket.

    package = size (uint16), type (uint8), content            all numbers big-endian, strings without length or end

Source: Universal Robots, Real-Time Data Exchange (RTDE) guide, protocol version 2.
"""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Mapping, Sequence

from ...errors import ControlError

PORT = 30004
PROTOCOL_VERSION = 2

REQUEST_VERSION, TEXT, DATA = ord("V"), ord("M"), ord("U")
SETUP_OUTPUTS, SETUP_INPUTS, START = ord("O"), ord("I"), ord("S")
"""Types of packages."""

FORMATS = {
    "BOOL": "?",
    "UINT8": "B",
    "UINT32": "I",
    "UINT64": "Q",
    "INT32": "i",
    "DOUBLE": "d",
    "VECTOR3D": "3d",
    "VECTOR6D": "6d",
    "VECTOR6INT32": "6i",
    "VECTOR6UINT32": "6I",
}
"""How the types of fields are packed."""

_HEADER = struct.Struct(">HB")
Value = float | tuple[float, ...]


class Recipe:
    """Fields of one direction, packed in this order behind the recipe's number."""

    def __init__(self, number: int, names: Sequence[str], types: Sequence[str]) -> None:
        """Lay out the fields.

        Raises:
            ControlError: a field that the controller does not have, or that another client writes.
        """
        bad = {name: kind for name, kind in zip(names, types, strict=False) if kind not in FORMATS}
        if bad or len(types) != len(names):
            raise ControlError(
                f"RTDE: expected types for the fields {list(names)}, got {list(types)}; IN_USE is a field that another "
                "program writes (a fieldbus, another client): end that program; NOT_FOUND one of newer software."
            )
        self.number, self.names = number, list(names)
        self._counts = [int(FORMATS[kind][:-1] or 1) for kind in types]
        self._struct = struct.Struct(">B" + "".join(FORMATS[kind] for kind in types))

    def pack(self, values: Mapping[str, Value]) -> bytes:
        """Return the content of a data package."""
        flat: list[float] = []
        for name in self.names:
            value = values[name]
            flat += value if isinstance(value, tuple) else [value]
        return self._struct.pack(self.number, *flat)

    def unpack(self, content: bytes) -> dict[str, Value]:
        """Return the fields of a data package by name.

        Raises:
            ControlError: content of another recipe or size.
        """
        if len(content) != self._struct.size or content[0] != self.number:
            raise ControlError(
                f"RTDE: expected {self._struct.size} bytes of recipe {self.number}, got {len(content)} of "
                f"{content[:1].hex()}."
            )
        flat = self._struct.unpack(content)[1:]
        fields: dict[str, Value] = {}
        for name, count in zip(self.names, self._counts, strict=True):
            fields[name], flat = (flat[0] if count == 1 else flat[:count]), flat[count:]
        return fields


class RtdeClient:
    """A connection that receives one recipe and sends another one."""

    def __init__(self, host: str, *, port: int = PORT, timeout: float = 2.0) -> None:
        """Connect, and agree on the version; `timeout` [s] bounds each answer of the setup.

        Raises:
            ControlError: no connection, or a controller that does not know version 2.
        """
        self._timeout, self._buffer = timeout, b""
        try:
            self._socket = socket.create_connection((host, port), timeout=timeout)
        except OSError as error:
            raise ControlError(
                f"The controller at {host}:{port} cannot be reached ({error}); check the address and the network."
            ) from error
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            accepted = self._ask(REQUEST_VERSION, struct.pack(">H", PROTOCOL_VERSION))
            if accepted != b"\x01":
                raise ControlError("The controller does not know RTDE version 2; expected PolyScope 3.4 or newer.")
        except BaseException:
            self.close()
            raise

    def receive_fields(self, names: Sequence[str], rate_hz: float) -> None:
        """Choose the fields to receive, and how often [Hz]."""
        answer = self._ask(SETUP_OUTPUTS, struct.pack(">d", rate_hz) + ",".join(names).encode())
        self._outputs = Recipe(answer[0] if answer else 0, names, answer[1:].decode().split(","))

    def send_fields(self, names: Sequence[str]) -> None:
        """Choose the fields to send."""
        answer = self._ask(SETUP_INPUTS, ",".join(names).encode())
        self._inputs = Recipe(answer[0] if answer else 0, names, answer[1:].decode().split(","))

    def start(self) -> None:
        """Begin the exchange.

        Raises:
            ControlError: the controller refuses.
        """
        if self._ask(START, b"") != b"\x01":
            raise ControlError("The controller refuses to begin the exchange (RTDE start); expected it to accept.")

    def send(self, values: Mapping[str, Value]) -> None:
        """Send all chosen fields."""
        self._write(DATA, self._inputs.pack(values))

    def receive(self, within: float) -> dict[str, Value]:
        """Return the newest fields, waiting up to `within` [s] for some.

        Raises:
            ControlError: none came, or the connection ended.
        """
        deadline, newest = time.monotonic() + within, None
        while True:
            package = self._package(0.0 if newest is not None else max(deadline - time.monotonic(), 0.0))
            if package is None:
                if newest is not None:
                    return self._outputs.unpack(newest)
                raise ControlError(f"The controller sent no state for {within:.3f} s; check the network.")
            if package[0] == DATA:
                newest = package[1]

    def close(self) -> None:
        """Close the connection."""
        self._socket.close()

    def _ask(self, kind: int, content: bytes) -> bytes:
        """Send a package and return the answer of the same type."""
        self._write(kind, content)
        deadline = time.monotonic() + self._timeout
        while (package := self._package(max(deadline - time.monotonic(), 0.0))) is not None:
            if package[0] == kind:
                return package[1]
        raise ControlError(f"The controller did not answer an RTDE request '{chr(kind)}' within {self._timeout} s.")

    def _write(self, kind: int, content: bytes) -> None:
        try:
            self._socket.settimeout(self._timeout)
            self._socket.sendall(_HEADER.pack(_HEADER.size + len(content), kind) + content)
        except OSError as error:
            raise ControlError(f"The connection to the controller ended ({error}).") from error

    def _package(self, within: float) -> tuple[int, bytes] | None:
        """Return the next package, or None where none came within a time [s]."""
        deadline = time.monotonic() + within
        while True:
            if len(self._buffer) >= _HEADER.size:
                size, kind = _HEADER.unpack_from(self._buffer)
                if size < _HEADER.size:
                    raise ControlError(f"RTDE: expected a package of at least {_HEADER.size} bytes, got {size}.")
                if len(self._buffer) >= size:
                    content, self._buffer = self._buffer[_HEADER.size : size], self._buffer[size:]
                    return kind, content
            # A timeout of zero would make the socket non-blocking, which reads the same but raises another error.
            self._socket.settimeout(max(deadline - time.monotonic(), 1e-6))
            try:
                data = self._socket.recv(65536)
            except (TimeoutError, BlockingIOError):
                return None
            except OSError as error:
                raise ControlError(f"The connection to the controller ended ({error}).") from error
            if not data:
                raise ControlError("The controller closed the connection; it may be restarting.")
            self._buffer += data
