"""Read TFRecord files and the `tf.train.Example` messages in them with numpy alone; nothing is executed.

A record is its length (uint64), the masked CRC-32C of those 8 bytes (uint32), the data, and the masked CRC-32C of
the data, all little-endian. A message is a map from names to lists of bytes, float32 or int64.

Source: tensorflow/core/lib/io/record_writer.h, tensorflow/core/example/example.proto, the protobuf encoding guide.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TypeAlias

import numpy as np

from ...contracts import Array
from ...errors import DataError, refuse_lfs_pointer

Values: TypeAlias = list[bytes] | Array
"""One feature of an example: byte strings, float32 `[n]` or int64 `[n]`; an empty list where nothing is stored."""

_POLYNOMIAL = 0x82F63B78
"""Castagnoli's polynomial, bits reversed."""

_MASK_DELTA = 0xA282EAD8
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


def _crc_table(num_bits: int) -> Array:
    """Return what each value of `num_bits` bits adds to the register."""
    table: Array = np.arange(1 << num_bits, dtype=np.uint32)
    for _ in range(num_bits):
        table = (table >> 1) ^ (table & 1) * np.uint32(_POLYNOMIAL)
    return table


_TABLE_16 = _crc_table(16)
_TABLE_8: list[int] = _crc_table(8).tolist()


def _crc_bytes(register: int, data: bytes | memoryview) -> int:
    for byte in data:
        register = _TABLE_8[(register ^ byte) & 0xFF] ^ (register >> 8)
    return register


def crc32c(data: bytes) -> int:
    """Return the CRC-32C of `data`.

    The data are cut into lanes that advance together, two bytes a step. The register is linear over GF(2): 32 more
    lanes of zeros, one for each bit, show how one lane moves the register, which joins the lanes in order.
    """
    width = 2 * int(len(data) ** 0.5 / 2)
    if width < 64:
        return _crc_bytes(0xFFFFFFFF, data) ^ 0xFFFFFFFF
    num_lanes = len(data) // width
    words = np.frombuffer(data, "<u2", num_lanes * width // 2).reshape(num_lanes, width // 2)
    registers = np.zeros(num_lanes + 32, np.uint32)
    registers[0] = 0xFFFFFFFF
    registers[num_lanes:] = np.uint32(1) << np.arange(32, dtype=np.uint32)
    columns = np.zeros((width // 2, num_lanes + 32), np.uint16)
    columns[:, :num_lanes] = words.T
    for column in columns:
        registers = _TABLE_16[registers.astype(np.uint16) ^ column] ^ (registers >> 16)
    lanes, bits = registers[:num_lanes].tolist(), registers[num_lanes:]
    weights = np.arange(32, dtype=np.uint32)
    register = lanes[0]
    for lane in lanes[1:]:
        moved = np.bitwise_xor.reduce(bits[(np.uint32(register) >> weights) & 1 == 1])
        register = int(moved) ^ lane
    return _crc_bytes(register, memoryview(data)[num_lanes * width :]) ^ 0xFFFFFFFF


def masked_crc32c(data: bytes) -> int:
    """Return the CRC-32C of `data` as TFRecord files keep it: rotated by 15 bits, plus a constant."""
    crc = crc32c(data)
    return ((crc >> 15 | crc << 17) + _MASK_DELTA) & 0xFFFFFFFF


def read_records(path: Path, *, check_crc: bool = True) -> Iterator[bytes]:
    """Yield the records of a TFRecord file in order, one in memory at a time.

    Args:
        path: file.
        check_crc: compare the checksums; without, only the lengths are checked.

    Raises:
        DataError: the file cannot be opened, ends within a record, or a checksum is wrong.
    """
    refuse_lfs_pointer(path)
    try:
        file = path.open("rb")
    except OSError as error:
        raise DataError(f"{path}: cannot be opened ({error}); check the path.") from error
    with file:
        size, number = os.fstat(file.fileno()).st_size, 0
        while file.tell() < size:
            where = f"{path}: record {number}"
            head = file.read(12)
            if len(head) < 12:
                raise DataError(f"{where}: expected a header of 12 bytes, got {len(head)}; copy the file again.")
            if check_crc:
                _check_crc(f"{where}: length", head[:8], head[8:])
            length, left = int.from_bytes(head[:8], "little"), size - file.tell()
            if length + 4 > left:
                raise DataError(
                    f"{where}: expected {length} bytes and a checksum, got {left} bytes to the end of the file; "
                    "copy the file again."
                )
            data, crc = file.read(length), file.read(4)
            if check_crc:
                _check_crc(f"{where}: data", data, crc)
            yield data
            number += 1


def _check_crc(where: str, data: bytes, stored: bytes) -> None:
    expected, got = int.from_bytes(stored, "little"), masked_crc32c(data)
    if expected != got:
        raise DataError(
            f"{where}: expected the checksum {expected:#010x}, got {got:#010x}; the file is damaged or no "
            "uncompressed TFRecord file, copy it again."
        )


def parse_example(data: bytes) -> dict[str, Values]:
    """Parse a `tf.train.Example`.

    Returns:
        Feature name -> values. Lists of numbers may be packed or not; unknown fields are passed over.

    Raises:
        DataError: the bytes are no such message.
    """
    examples: dict[str, Values] = {}
    try:
        for features in _messages(memoryview(data), 1):
            for entry in _messages(features, 1):
                name = b"".join(bytes(part) for part in _messages(entry, 1)).decode()
                examples[name] = next((_values(feature) for feature in _messages(entry, 2)), [])
    except (ValueError, IndexError) as error:
        raise DataError(f"expected a tf.train.Example, got {len(data)} bytes that are none ({error})") from error
    return examples


def _values(feature: memoryview) -> Values:
    for kind, _, content in _fields(feature):
        if not isinstance(content, memoryview):
            continue
        if kind == 1:
            return [bytes(value) for value in _messages(content, 1)]
        if kind == 2:
            return _numbers(content, _FIXED32)
        if kind == 3:
            return _numbers(content, _VARINT)
    return []


def _numbers(content: memoryview, wire: int) -> Array:
    parts: list[Array] = []
    for number, got, value in _fields(content):
        if number != 1:
            continue
        if got not in (_BYTES, wire):
            raise ValueError(f"wire type {got} in a list of numbers")
        if isinstance(value, memoryview):
            parts.append(np.frombuffer(value, "<f4") if wire == _FIXED32 else _varints(np.frombuffer(value, np.uint8)))
        else:
            parts.append(np.array([value], np.uint64).view(np.int64))
    return np.concatenate(parts) if parts else np.zeros(0, np.float32 if wire == _FIXED32 else np.int64)


def _varints(data: Array) -> Array:
    """Decode packed varints, all at once: int64 `[n]`."""
    ends = np.flatnonzero(data < 0x80)
    if len(data) and (not len(ends) or ends[-1] != len(data) - 1):
        raise ValueError("a number is cut off")
    starts = np.concatenate([[0], ends[:-1] + 1])[: len(ends)]
    lengths = ends - starts + 1
    if len(ends) and lengths.max() > 10:
        raise ValueError("a number of more than 10 bytes")
    values = np.zeros(len(ends), np.uint64)
    for i in range(int(lengths.max()) if len(ends) else 0):
        longer = lengths > i
        values[longer] |= (data[starts[longer] + i] & 0x7F).astype(np.uint64) << np.uint64(7 * i)
    return values.view(np.int64)


def _messages(data: memoryview, wanted: int) -> list[memoryview]:
    """Return every length-delimited field of the number `wanted`."""
    return [value for number, _, value in _fields(data) if number == wanted and isinstance(value, memoryview)]


def _fields(data: memoryview) -> Iterator[tuple[int, int, int | memoryview]]:
    """Yield number, wire type and value of each field."""
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        number, wire = tag >> 3, tag & 7
        if wire == _VARINT:
            value, at = _varint(data, at)
            yield number, wire, value
            continue
        if wire == _BYTES:
            length, at = _varint(data, at)
        elif wire in (_FIXED64, _FIXED32):
            length = 8 if wire == _FIXED64 else 4
        else:
            raise ValueError(f"wire type {wire} at byte {at}")
        if at + length > len(data):
            raise ValueError(f"field {number} is cut off at byte {at}")
        yield number, wire, data[at : at + length]
        at += length


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & 0xFFFFFFFFFFFFFFFF, at
    raise ValueError(f"a number of more than 10 bytes at byte {at}")
