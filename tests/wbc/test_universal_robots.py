"""The UR driver against a controller on sockets: RTDE packages, registers, a program with a watchdog."""

from __future__ import annotations

import re
import socket
import struct
import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from wbc_cases import short_arm, stretched

from gr2.contracts import JointCommand
from gr2.errors import ConfigError, ControlError
from gr2.wbc.drivers.rtde import Recipe, RtdeClient
from gr2.wbc.drivers.streaming import StreamingDriver
from gr2.wbc.drivers.universal_robots import UniversalRobotsEndpoint, universal_robots_driver

ARM = short_arm("shoulder_pan", "shoulder_lift", "elbow", "wrist_1", "wrist_2", "wrist_3")
TYPES = {
    "timestamp": ("DOUBLE", "d"),
    "actual_q": ("VECTOR6D", "6d"),
    "actual_qd": ("VECTOR6D", "6d"),
    "robot_mode": ("INT32", "i"),
    "safety_mode": ("INT32", "i"),
    "runtime_state": ("UINT32", "I"),
    "output_int_register_24": ("INT32", "i"),
    "input_int_register_24": ("INT32", "i"),
} | {f"input_double_register_{24 + joint}": ("DOUBLE", "d") for joint in range(6)}
PATIENCE = 20.0
"""The controller here waits this many times as long as the program's watchdog asks for: the tests' machine is busy."""


class Controller:
    """The controller of an arm at rest: RTDE on one port, programs on another one."""

    def __init__(self, start: np.ndarray = ARM.home) -> None:
        self.q = start.copy()
        self.robot_mode, self.safety_mode, self.runtime_state, self.echo = 7, 1, 1, 0
        self.inputs: dict[str, float] = {}
        self.in_use: set[str] = set()
        self.programs: list[str] = []
        self.seen: list[np.ndarray] = []
        self.version_known = self.starts_programs = True
        self.silent = threading.Event()
        self.updated, self.watchdog = time.monotonic(), np.inf
        self.over = threading.Event()
        self.lock = threading.Lock()
        self.servers = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
        self.ports = tuple(server.getsockname()[1] for server in self.servers)
        for server, serve in zip(self.servers, (self._rtde, self._programs), strict=True):
            threading.Thread(target=self._accept, args=(server, serve), daemon=True).start()

    def close(self) -> None:
        self.over.set()
        for server in self.servers:
            server.close()

    def _accept(self, server: socket.socket, serve: Any) -> None:
        while not self.over.is_set():
            try:
                connection = server.accept()[0]
            except OSError:
                return
            with connection:
                try:
                    serve(connection)
                except (OSError, EOFError):
                    continue

    def _programs(self, connection: socket.socket) -> None:
        text = connection.recv(65536).decode()
        self.programs.append(text)
        if self.starts_programs:
            hz = re.search(r'rtde_set_watchdog\("input_int_register_24", (\d+), "stop"\)', text)
            assert hz is not None and "servoj(q, t=0.0080, lookahead_time=0.030, gain=300)" in text
            self.watchdog, self.runtime_state = PATIENCE / int(hz[1]), 2

    def _rtde(self, connection: socket.socket) -> None:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        outputs: list[str] = []
        inputs: list[str] = []
        while True:
            kind, content = _package(connection)
            if kind == "V":
                _reply(connection, kind, bytes([self.version_known and content == b"\x00\x02"]))
            elif kind == "v":
                _reply(connection, kind, struct.pack(">4I", 5, 11, 0, 0))
            elif kind == "O":
                self.rate = struct.unpack(">d", content[:8])[0]
                outputs = content[8:].decode().rstrip(",").split(",")
                types = [TYPES[name][0] if name in TYPES else "NOT_FOUND" for name in outputs]
                _reply(connection, kind, b"\x01" + ",".join(types).encode())
            elif kind == "I":
                inputs = content.decode().split(",")
                types = ["IN_USE" if name in self.in_use else TYPES[name][0] for name in inputs]
                _reply(connection, kind, b"\x01" + ",".join(types).encode())
            elif kind == "S":
                _reply(connection, "M", b"\x05hello\x03gr2\x02")
                _reply(connection, kind, b"\x01")
                threading.Thread(target=self._stream, args=(connection, outputs), daemon=True).start()
            elif kind == "U":
                self._take(inputs, content)

    def _take(self, inputs: list[str], content: bytes) -> None:
        layout = ">B" + "".join(TYPES[name][1] for name in inputs)
        number, *values = struct.unpack(layout, content)
        assert number == 1
        with self.lock:
            self.inputs = dict(zip(inputs, values, strict=True))
            self.updated = time.monotonic()
            self._run()

    def _run(self) -> None:
        """Do what the program does in one cycle."""
        count = int(self.inputs.get("input_int_register_24", 0))
        if self.runtime_state == 2 and (count == 0 or time.monotonic() - self.updated > self.watchdog):
            self.runtime_state = 1
        if self.runtime_state == 2:
            self.echo = count
            self.q = np.array([self.inputs[f"input_double_register_{24 + joint}"] for joint in range(6)])
            self.seen.append(self.q)

    def _stream(self, connection: socket.socket, outputs: list[str]) -> None:
        while not self.over.wait(1.0 / self.rate):
            with self.lock:
                self._run()
                fields: dict[str, Any] = {
                    "timestamp": (time.monotonic(),),
                    "actual_q": self.q.tolist(),
                    "actual_qd": [0.0] * 6,
                    "robot_mode": (self.robot_mode,),
                    "safety_mode": (self.safety_mode,),
                    "runtime_state": (self.runtime_state,),
                    "output_int_register_24": (self.echo,),
                }
            if self.silent.is_set():
                continue
            data = b"".join(struct.pack(">" + TYPES[name][1], *fields[name]) for name in outputs)
            try:
                _reply(connection, "U", b"\x01" + data)
            except OSError:
                return


def _package(connection: socket.socket) -> tuple[str, bytes]:
    size, kind = struct.unpack(">HB", _exactly(connection, 3))
    return chr(kind), _exactly(connection, size - 3)


def _exactly(connection: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        piece = connection.recv(size - len(data))
        if not piece:
            raise EOFError
        data += piece
    return data


def _reply(connection: socket.socket, kind: str, content: bytes) -> None:
    connection.sendall(struct.pack(">HB", 3 + len(content), ord(kind)) + content)


@pytest.fixture
def controller() -> Iterator[Controller]:
    made = Controller()
    yield made
    made.close()


def _driver(controller: Controller, robot: Any = ARM, **options: Any) -> StreamingDriver:
    return StreamingDriver(robot, UniversalRobotsEndpoint("127.0.0.1", ports=controller.ports), max_lost=3, **options)


def test_an_arm_follows_a_chunk_and_its_program_ends(controller: Controller) -> None:
    with _driver(controller) as driver:
        assert controller.rate == 125.0
        np.testing.assert_allclose(controller.seen[0], ARM.home)
        loop, target = stretched(driver, duration=0.5, change=0.02)
        assert loop.stop_reason == ""
        np.testing.assert_allclose(driver.read().positions, target, atol=5e-3)
        assert loop.max_following_error < 0.01
    for _ in range(200):
        if controller.runtime_state == 1:
            break
        time.sleep(0.01)
    assert controller.runtime_state == 1 and controller.inputs["input_int_register_24"] == 0
    assert len(controller.programs) == 1
    steps = np.abs(np.diff(np.array(controller.seen), axis=0)).max()
    assert steps < 0.02, "the registers were never followed before they held joints"


def test_the_watchdog_stops_an_arm_that_is_left_alone_and_the_driver_sees_it(controller: Controller) -> None:
    with _driver(controller) as driver:
        command = JointCommand(positions=ARM.home, velocities=0.0 * ARM.home, gripper=1.0, status="track")
        driver.send(command)
        controller.watchdog = 0.0
        for _ in range(50):
            if driver.read().fault:
                break
            driver.send(command)
        with pytest.raises(ControlError, match="program was stopped"):
            driver.send(command)


@pytest.mark.parametrize(
    ("safety", "mode", "match"), [(3, 7, "protective stop; release it"), (1, 5, "robot mode 5"), (12, 7, "mode 12")]
)
def test_an_arm_that_takes_no_commands_is_named(controller: Controller, safety: int, mode: int, match: str) -> None:
    controller.safety_mode, controller.robot_mode = safety, mode
    with pytest.raises(ControlError, match=match):
        _driver(controller).connect()
    assert not controller.programs


def test_a_safety_stop_while_moving_ends_the_motion(controller: Controller) -> None:
    with _driver(controller) as driver:
        loop, _ = stretched(driver, duration=0.1, change=0.01)
        controller.safety_mode = 6
        assert "emergency stop of the system" in loop.run(0.5)


def test_silence_is_a_lost_answer_and_stops_the_arm(controller: Controller) -> None:
    with _driver(controller) as driver:
        loop, _ = stretched(driver, duration=0.1, change=0.01)
        controller.silent.set()
        with pytest.raises(ControlError, match="sent no state"):
            loop.run(1.0)
        assert driver.lost == 4 and loop.over
        for _ in range(200):
            if controller.inputs["input_int_register_24"] == 0:
                break
            time.sleep(0.01)
        assert controller.inputs["input_int_register_24"] == 0


def test_registers_of_another_client_and_programs_that_do_not_start_are_named(
    controller: Controller, monkeypatch: pytest.MonkeyPatch
) -> None:
    controller.in_use = {"input_double_register_26"}
    with pytest.raises(ControlError, match="IN_USE"):
        _driver(controller).connect()
    controller.in_use = set()
    controller.starts_programs = False
    monkeypatch.setattr("gr2.wbc.drivers.universal_robots.START_TIME", 0.2)
    with pytest.raises(ControlError, match="remote control"):
        _driver(controller).connect()
    controller.version_known = False
    with pytest.raises(ControlError, match="version 2"):
        RtdeClient("127.0.0.1", port=controller.ports[0])


def test_what_is_not_there_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    with pytest.raises(ControlError, match="cannot be reached"):
        RtdeClient("127.0.0.1", port=port, timeout=0.5)
    with pytest.raises(ConfigError, match="expected the 6"):
        universal_robots_driver(short_arm("a", "b"), "127.0.0.1")
    with pytest.raises(ConfigError, match="lookahead"):
        UniversalRobotsEndpoint("127.0.0.1", lookahead=0.01)
    with pytest.raises(ControlError, match="NOT_FOUND"):
        Recipe(1, ["actual_q", "no_such"], ["VECTOR6D", "NOT_FOUND"])
    with pytest.raises(ControlError, match="expected 9 bytes"):
        Recipe(1, ["timestamp"], ["DOUBLE"]).unpack(b"\x01\x00")
