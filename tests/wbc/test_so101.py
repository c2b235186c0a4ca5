"""The SO-101 on a serial bus that speaks the servos' frames: checksums, calibration, faults, lost answers."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from wbc_cases import Clock, short_arm, stretched

from gr2.errors import ConfigError, ControlError, EnvironmentMissing
from gr2.wbc.drivers.feetech import frame, from_register, to_register
from gr2.wbc.drivers.so101 import RAD_A_TICK, So101Endpoint, read_calibration, so101_driver
from gr2.wbc.drivers.streaming import StreamingDriver

NAMES = ("shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex", "wrist_roll")
ARM = short_arm(*NAMES)
MIDDLE = 2100.0
RANGE = {"range_min": 200, "range_max": 4000}


def _rows() -> dict[str, Any]:
    rows = {
        name: {"id": number, "drive_mode": 0, "homing_offset": -7 * number, **RANGE}
        for number, name in enumerate(NAMES, start=1)
    }
    return rows | {"gripper": {"id": 6, "drive_mode": 0, "homing_offset": 12, "range_min": 2000, "range_max": 3000}}


def _file(folder: Path, rows: Any = None) -> Path:
    path = folder / "arm.json"
    path.write_text(json.dumps(_rows() if rows is None else rows), encoding="utf-8")
    return path


class Bus:
    """A serial port with six servos behind it, each 80 bytes of registers; goals are reached at once."""

    def __init__(self) -> None:
        self.memory = {number: bytearray(80) for number in range(1, 7)}
        self.buffer, self.closed = b"", 0
        self.silent: set[int] = set()
        self.mute, self.flip = 0, False
        self.errors = dict.fromkeys(self.memory, 0)
        self.goals: list[dict[int, int]] = []
        for number, memory in self.memory.items():
            memory[3:5] = (777).to_bytes(2, "little")
            memory[31:33] = to_register(-7 * number if number < 6 else 12, 11)
            ticks = round(MIDDLE + ARM.home[number - 1] / RAD_A_TICK) if number < 6 else 2250
            memory[56:58] = to_register(ticks, 15)

    def write(self, data: bytes) -> int:
        assert data[:2] == b"\xff\xff" and len(data) == data[3] + 4
        assert (sum(data[2:]) & 0xFF) == 0xFF, "the checksum makes the sum of all bytes 255"
        identity, instruction, parameters = data[2], data[4], data[5:-1]
        if self.mute:
            self.mute -= 1
        elif instruction == 0x83:
            address, size = parameters[:2]
            rows = [parameters[i : i + size + 1] for i in range(2, len(parameters), size + 1)]
            assert identity == 0xFE and (address, size) == (42, 2) and all(len(row) == 3 for row in rows)
            self.goals.append({row[0]: from_register(row[1:], 15) for row in rows})
            for row in rows:
                self.memory[row[0]][42:44] = row[1:]
                if self.memory[row[0]][40]:
                    self.memory[row[0]][56:58] = row[1:]
        elif instruction == 0x82:
            for servo in parameters[2:]:
                self._reply(servo, bytes(self.memory[servo][parameters[0] : parameters[0] + parameters[1]]))
        elif instruction == 0x02:
            self._reply(identity, bytes(self.memory[identity][parameters[0] : parameters[0] + parameters[1]]))
        elif instruction == 0x03:
            self.memory[identity][parameters[0] : parameters[0] + len(parameters) - 1] = parameters[1:]
            self._reply(identity, b"")
        elif instruction == 0x01:
            self._reply(identity, b"")
        return len(data)

    def _reply(self, servo: int, parameters: bytes) -> None:
        if servo in self.silent:
            return
        body = bytes([servo, len(parameters) + 2, self.errors[servo]]) + parameters
        self.buffer += b"\xff\xff" + body + bytes([~sum(body) & 0xFF ^ self.flip])

    def read(self, size: int = 1) -> bytes:
        data, self.buffer = self.buffer[:size], self.buffer[size:]
        return data

    def reset_input_buffer(self) -> None:
        self.buffer = b""

    def close(self) -> None:
        self.closed += 1


def _driver(folder: Path, bus: Bus, **options: Any) -> StreamingDriver:
    return so101_driver(ARM, _file(folder), bus, pacer=Clock().pacer(100.0), **options)


def test_frames_are_those_of_the_protocol_manual() -> None:
    assert frame(1, 0x01).hex(" ") == "ff ff 01 02 01 fb"
    assert frame(1, 0x02, bytes([0x38, 0x02])).hex(" ") == "ff ff 01 04 02 38 02 be"
    assert frame(0xFE, 0x03, bytes([0x05, 0x01])).hex(" ") == "ff ff fe 04 03 05 01 f4"
    for value in (-2047, -1, 0, 5, 2047):
        assert from_register(to_register(value, 11), 11) == value
    assert to_register(-5, 11) == b"\x05\x08"
    with pytest.raises(ValueError, match="cannot hold"):
        to_register(2048, 11)


def test_an_arm_follows_a_chunk_within_a_tick_of_its_servos(tmp_path: Path) -> None:
    bus = Bus()
    with _driver(tmp_path, bus) as driver:
        assert all(memory[40] == 1 for memory in bus.memory.values())
        assert bus.memory[6][48:50] == (500).to_bytes(2, "little")
        first = driver.read()
        np.testing.assert_allclose(first.positions, ARM.home, atol=RAD_A_TICK)
        assert first.gripper == pytest.approx(0.25)
        loop, target = stretched(driver)
        assert loop.stop_reason == "" and loop.max_following_error <= 0.5 * RAD_A_TICK + 1e-9
        np.testing.assert_allclose(driver.read().positions, target, atol=5e-3)
    assert bus.closed == 1
    assert bus.memory[1][40] == 1, "the arm must not fall when the program ends"


def test_the_first_goals_are_where_the_servos_stand(tmp_path: Path) -> None:
    bus = Bus()
    stands = {number: from_register(bytes(memory[56:58]), 15) for number, memory in bus.memory.items()}
    with _driver(tmp_path, bus):
        assert bus.goals[0] == bus.goals[1] == stands


def test_signs_and_ranges_are_those_of_the_calibration(tmp_path: Path) -> None:
    rows = _rows()
    rows["elbow_flex"]["drive_mode"] = 1
    bus = Bus()
    bus.memory[3][56:58] = to_register(round(MIDDLE - ARM.home[2] / RAD_A_TICK) - 100, 15)
    bus.memory[3][58:60] = to_register(-50, 15)
    endpoint = So101Endpoint(ARM, _file(tmp_path, rows), bus)
    endpoint.open()
    state = endpoint.read()
    assert state.positions[2] == pytest.approx(ARM.home[2] + 100 * RAD_A_TICK, abs=RAD_A_TICK)
    assert state.velocities[2] == pytest.approx(50 * RAD_A_TICK)
    endpoint.write(np.array([9.0, -9.0, 9.0, 0.0, 0.0]), 2.0)
    assert bus.goals[-1] == {1: 4000, 2: 200, 3: 200, 4: 2100, 5: 2100, 6: 3000}


@pytest.mark.parametrize(
    ("address", "data", "match"),
    [
        (3, (1280).to_bytes(2, "little"), r"Servo 2 \(shoulder_lift\) is model 1280"),
        (31, to_register(90, 11), "another arm"),
        (33, b"\x01", "mode 1; expected 0"),
        (56, to_register(7, 15), "their zeros"),
    ],
)
def test_an_arm_that_the_calibration_is_not_of_is_refused(
    tmp_path: Path, address: int, data: bytes, match: str
) -> None:
    bus = Bus()
    bus.memory[2][address : address + len(data)] = data
    with pytest.raises(ControlError, match=match):
        _driver(tmp_path, bus).connect()
    assert bus.closed == 1 and all(memory[40] == 0 for memory in bus.memory.values()) and not bus.goals


def test_lost_and_damaged_answers_stop_the_arm_when_there_are_too_many(tmp_path: Path) -> None:
    bus = Bus()
    with _driver(tmp_path, bus, max_lost=1) as driver:
        loop, _ = stretched(driver, duration=0.3)
        bus.flip = True
        with pytest.raises(ControlError, match="with its checksum, got ff ff 01"):
            loop.run(0.1)
        assert driver.lost == 2 and loop.over
    bus = Bus()
    bus.silent = {4}
    with pytest.raises(ControlError, match=r"Servo 4 did not answer \(0 of 8 bytes\)"):
        _driver(tmp_path, bus).connect()


def test_a_servo_that_complains_is_named(tmp_path: Path) -> None:
    bus = Bus()
    with _driver(tmp_path, bus) as driver:
        loop, _ = stretched(driver, duration=0.2)
        bus.errors[3] = 0x60
        assert "servo 3 (elbow_flex): overload; servo 3 (elbow_flex): error bits 0x40" in loop.run(0.1)


def test_a_calibration_that_cannot_be_is_refused(tmp_path: Path) -> None:
    rows = _rows()
    rows["gripper"]["id"] = 1
    with pytest.raises(ConfigError, match="two servos have one id"):
        read_calibration(_file(tmp_path, rows))
    for bad in ({"range_min": 4000, "range_max": 10}, {"homing_offset": "x"}):
        with pytest.raises(ConfigError, match="'wrist_roll'"):
            read_calibration(_file(tmp_path, {"wrist_roll": {"id": 1, "homing_offset": 0, **RANGE, **bad}}))
    for text in ("[]", "{", "{}"):
        (tmp_path / "arm.json").write_text(text, encoding="utf-8")
        with pytest.raises(ConfigError, match="lerobot-calibrate"):
            read_calibration(tmp_path / "arm.json")
    with pytest.raises(ConfigError, match="nowhere"):
        read_calibration(tmp_path / "nowhere.json")
    with pytest.raises(ConfigError, match="expected the joints"):
        So101Endpoint(short_arm("a", "b"), _file(tmp_path), Bus())


def test_the_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "serial", None)
    with pytest.raises(EnvironmentMissing, match=r"pip install 'gr2\[so101\]'"):
        so101_driver(ARM, _file(tmp_path), "/dev/ttyACM0")
