"""The serial bus of Feetech STS servos: frames with their checksums, registers, reads and writes of many servos.

    FF FF id length instruction parameters checksum          length = parameters + 2
    FF FF id length error       parameters checksum          checksum = ~(id + length + ... ) & FF

Numbers of two bytes are little-endian; signed ones have a sign bit and a magnitude. Source: Feetech's communication
protocol manual and memory table of the STS3215, and lerobot's table of registers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from ...errors import ControlError

BAUD_RATE = 1_000_000
"""Bits a second of a servo as delivered."""

PING, READ, WRITE, SYNC_READ, SYNC_WRITE = 0x01, 0x02, 0x03, 0x82, 0x83
BROADCAST = 0xFE
HEADER = b"\xff\xff"

ERROR_NAMES = {
    0x01: "voltage out of range",
    0x02: "angle sensor",
    0x04: "too hot",
    0x08: "too much current",
    0x20: "overload",
}
"""Bits of the error byte of an answer."""


class Port(Protocol):
    """What the bus needs of a serial port (`serial.Serial`): reads that return what came within a timeout."""

    def read(self, size: int = 1) -> bytes:
        """Return up to `size` bytes."""

    def write(self, data: bytes) -> int | None:
        """Send bytes."""

    def reset_input_buffer(self) -> None:
        """Forget what was received."""

    def close(self) -> None:
        """Close."""


def frame(identity: int, instruction: int, parameters: bytes = b"") -> bytes:
    """Return the bytes of an instruction to servo `identity`."""
    body = bytes([identity, len(parameters) + 2, instruction]) + parameters
    return HEADER + body + bytes([checksum(body)])


def checksum(body: bytes) -> int:
    """Return the last byte of a frame whose bytes between header and checksum are `body`."""
    return ~sum(body) & 0xFF


def to_register(value: int, sign_bit: int) -> bytes:
    """Return a signed number as two bytes: a magnitude below `1 << sign_bit`, and that bit for the sign.

    Raises:
        ValueError: a number of more bits.
    """
    if abs(value) >= 1 << sign_bit:
        raise ValueError(f"a register of {sign_bit} bits and a sign cannot hold {value}")
    return (abs(value) | ((value < 0) << sign_bit)).to_bytes(2, "little")


def from_register(data: bytes, sign_bit: int) -> int:
    """Return the signed number in two bytes; the inverse of `to_register`."""
    raw = int.from_bytes(data, "little")
    magnitude = raw & ((1 << sign_bit) - 1)
    return -magnitude if raw >> sign_bit & 1 else magnitude


class FeetechBus:
    """Talks to the servos of one bus.

    errors: the error byte of the last answer of each servo.
    """

    def __init__(self, port: Port) -> None:
        """Take over an open port, whose timeout bounds every answer."""
        self._port = port
        self.errors: dict[int, int] = {}

    def ping(self, identity: int) -> None:
        """Ask a servo for a sign of life.

        Raises:
            ControlError: no answer, or a damaged one.
        """
        self._ask(frame(identity, PING))
        self._answer(identity, 0)

    def read(self, identity: int, address: int, size: int) -> bytes:
        """Return `size` bytes from `address` of one servo.

        Raises:
            ControlError: no answer, or a damaged one.
        """
        self._ask(frame(identity, READ, bytes([address, size])))
        return self._answer(identity, size)

    def write(self, identity: int, address: int, data: bytes) -> None:
        """Write to one servo and wait for its answer.

        Raises:
            ControlError: no answer, or a damaged one.
        """
        self._ask(frame(identity, WRITE, bytes([address]) + data))
        self._answer(identity, 0)

    def sync_read(self, identities: Sequence[int], address: int, size: int) -> list[bytes]:
        """Return `size` bytes from `address` of many servos, asked by one frame.

        Raises:
            ControlError: a servo did not answer, or what came is damaged.
        """
        self._ask(frame(BROADCAST, SYNC_READ, bytes([address, size, *identities])))
        return [self._answer(identity, size) for identity in identities]

    def sync_write(self, address: int, values: Mapping[int, bytes]) -> None:
        """Write as many bytes to each of many servos by one frame, which none of them answers."""
        size = len(next(iter(values.values())))
        rows = b"".join(bytes([identity]) + data for identity, data in values.items())
        self._ask(frame(BROADCAST, SYNC_WRITE, bytes([address, size]) + rows))

    def close(self) -> None:
        """Close the port."""
        self._port.close()

    def _ask(self, data: bytes) -> None:
        """Send a frame, after dropping what is left of earlier answers."""
        self._port.reset_input_buffer()
        try:
            self._port.write(data)
        except OSError as error:
            raise ControlError(f"The serial port failed: {error}; check cable and power.") from error

    def _answer(self, identity: int, size: int) -> bytes:
        """Take the answer of one servo with `size` bytes of parameters."""
        try:
            data = self._port.read(6 + size)
        except OSError as error:
            raise ControlError(f"The serial port failed: {error}; check cable and power.") from error
        if len(data) < 6 + size:
            raise ControlError(
                f"Servo {identity} did not answer ({len(data)} of {6 + size} bytes); check its id, cable and power."
            )
        body = data[2:-1]
        if data[:2] != HEADER or body[0] != identity or body[1] != size + 2 or checksum(body) != data[-1]:
            raise ControlError(
                f"Servo {identity}: expected an answer of {6 + size} bytes with its checksum, got {data.hex(' ')}; "
                "check the cable, and that no two servos have one id."
            )
        self.errors[identity] = body[2]
        return body[3:]
