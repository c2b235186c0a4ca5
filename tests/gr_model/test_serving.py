"""`gr2 serve` beside hostile and careless clients: bounds, sentences that fit, silence when they leave."""

from __future__ import annotations

import http.client
import io
import json
import re
import socket
import threading
import time
import zipfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gr2.contracts import ActionTrajectory, Observation
from gr2.embodiment import TOOL_ARM
from gr2.errors import ConfigError, DataError, EnvironmentMissing, PolicyError, ServerBusy, ShapeError
from gr2.gr_model.act import remote
from gr2.gr_model.act.remote import RemotePolicy, pack, pack_observation, unpack, unpack_observation
from gr2.gr_model.serve import http_server, serving, sessions
from gr2.gr_model.serve.http_server import PolicyHTTPServer
from gr2.gr_model.serve.sessions import PolicyServer


class Still:
    """Stays where the tool is; remembers what it was asked."""

    executed_steps, embodiment, image_size = 3, TOOL_ARM, 48

    def __init__(self) -> None:
        self.resets, self.closed, self.pause = 0, False, 0.0

    def reset(self) -> None:
        self.resets += 1

    def act(self, observation: Observation) -> ActionTrajectory:
        if observation.instruction == "fail":
            raise RuntimeError("no idea")
        if observation.instruction == "exit":
            raise SystemExit(3)
        time.sleep(self.pause)
        return ActionTrajectory(
            positions=np.repeat(observation.tool_position[None], 3, 0),
            quaternions=np.repeat(observation.tool_quaternion[None], 3, 0),
            gripper=np.full(3, float(self.resets)), dt=1 / 30, start_time=observation.time,
        )  # fmt: skip

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def served(request: pytest.FixtureRequest) -> Iterator[tuple[str, int, PolicyServer]]:
    options: dict[str, Any] = getattr(request, "param", {})
    policies = PolicyServer(Still, max_sessions=options.pop("max_sessions", 8))
    with PolicyHTTPServer("127.0.0.1", 0, **options) as server:
        thread = threading.Thread(target=server.serve, args=(policies, "still"), daemon=True)
        thread.start()
        yield "127.0.0.1", server.server_address[1], policies
        server.shutdown()
        thread.join()
    policies.close()


def observation(**changes: Any) -> Observation:
    fields: dict[str, Any] = {
        "images": {"static": np.zeros((4, 4, 3), np.uint8)}, "tool_position": np.array([0.1, 0.2, 0.3]),
        "tool_quaternion": np.array([0.0, 0.0, 0.0, 1.0]), "gripper_opening": 1.0, "gripper_command": 1.0,
        "joint_positions": np.zeros(7), "instruction": "stay", "time": 0.0,
    }  # fmt: skip
    return Observation(**(fields | changes))


def ask(place: tuple[str, int], request: bytes, *, wait: float = 10.0) -> bytes:
    """Send bytes and return all that comes back until the server closes, or a whole answer is there."""
    with socket.create_connection(place, timeout=wait) as connection:
        connection.sendall(request)
        answer = http.client.HTTPResponse(connection)
        answer.begin()
        return b"%d " % answer.status + answer.read()


def post(path: str, body: bytes = b"", **headers: str) -> bytes:
    stated = {"Content-Length": str(len(body))} | {name.replace("_", "-"): value for name, value in headers.items()}
    lines = [f"POST {path} HTTP/1.1", "Host: x", *(f"{name}: {value}" for name, value in stated.items())]
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body


SESSION = pack({"session": np.array("a")})


@pytest.mark.parametrize(
    ("request_", "answer"),
    [
        (post("/act", b"", Content_Length="²"), "400 .*whole number as Content-Length, got '²'"),
        (post("/act", b"", Content_Length="-5"), "400 .*whole number as Content-Length, got '-5'"),
        (post("/act", b"", Content_Length="1000000000000"), "413 POST /act: expected at most .* got 1000000000000"),
        (post("/act"), "400 POST /act: expected an npz file, got an empty body"),
        (b"POST /act HTTP/1.1\r\nHost: x\r\n\r\n", "411 POST /act: expected a Content-Length, got none"),
        (
            b"POST /act HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n0\r\n\r\n",
            "411 .*got a chunked body",
        ),
        (post("/act", b"nonsense"), "400 message of 8 bytes: expected an npz file"),
        (post("/act", SESSION), "400 observation: expected the arrays .* none called 'tool_position'"),
        (post("/reset", pack({"name": np.array("a")})), "400 message: expected the array 'session'"),
        (post("/reset", pack({"session": np.array("a" * 5000)})), "400 session: expected a text of at most 4096"),
        (post("/reset", SESSION), "200 $"),
        (post("/close", SESSION), "200 $"),
        (post("/nowhere", b"x"), "404 expected GET /info, .*, got POST /nowhere"),
        (post("/info", b"x"), "405 expected GET /info, got POST"),
        (b"GET /act HTTP/1.1\r\n\r\n", "405 expected POST /act, got GET"),
        (b"PUT /act HTTP/1.1\r\n\r\n", "501 Unsupported method"),
    ],
)
def test_an_answer_fits_its_request(served: tuple[str, int, PolicyServer], request_: bytes, answer: str) -> None:
    got = ask(served[:2], request_).decode()
    assert re.match(answer, got), got


def test_info_names_what_is_sent_and_what_comes_back(served: tuple[str, int, PolicyServer]) -> None:
    info = json.loads(ask(served[:2], b"GET /info HTTP/1.1\r\n\r\n").partition(b" ")[2])
    assert info["policy"] == "still" and info["protocol"] == "gr2" and info["executed_steps"] == 3
    assert info["cameras"] == list(TOOL_ARM.cameras) and info["image_size"] == 48
    assert info["control_hz"] == TOOL_ARM.control_hz
    assert [signal["name"] for signal in info["state"]] == [signal.name for signal in TOOL_ARM.state]
    assert [signal["width"] for signal in info["action"]] == [signal.width for signal in TOOL_ARM.action]


def test_a_failing_policy_ends_its_request_not_the_server(served: tuple[str, int, PolicyServer]) -> None:
    policy = RemotePolicy(f"http://127.0.0.1:{served[1]}")
    for instruction, sentence in (("fail", "500: the policy failed: RuntimeError"), ("exit", "500: .*SystemExit")):
        with pytest.raises(PolicyError, match=sentence):
            policy.act(observation(instruction=instruction))
    assert len(policy.act(observation()).positions) == 3  # type: ignore[union-attr]
    policy.close()


def replaced(**arrays: Any) -> bytes:
    return pack(unpack(pack_observation(observation(), "a")) | {n: np.asarray(a) for n, a in arrays.items()})


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (replaced(time=np.nan), "time: expected finite"),
        (replaced(time=[0.0, 1.0]), "time: expected 1 numbers"),
        (replaced(joint_positions=[np.inf] * 7), "joint_positions: expected finite"),
        (replaced(joint_positions=np.zeros((2, 7))), "joint_positions: expected numbers in a row"),
        (replaced(gripper=[np.nan, 1]), "gripper: expected finite"),
        (replaced(tool_quaternion=[0.0, 0, 0, 5]), "unit quaternion .* of norm 5"),
        (replaced(tool_quaternion=[0.0, 0, 0, 0]), "unit quaternion .* of norm 0"),
        (replaced(tool_position=["a", "b", "c"]), "tool_position: expected numbers"),
        (replaced(image_static=np.zeros((4, 4, 3))), "image 'static': expected uint8 .* got float64"),
        (replaced(image_static=np.zeros((4, 4, 4), np.uint8)), "image 'static'"),
        (replaced(instruction=b"bytes"), "instruction: expected a text"),
        (replaced(state=[np.nan]), "state: expected finite"),
    ],
)
def test_an_observation_that_cannot_be_is_refused(data: bytes, sentence: str) -> None:
    with pytest.raises((DataError, ShapeError), match=sentence):
        unpack_observation(data)


def test_a_float32_quaternion_passes() -> None:
    quaternion = np.array([0.1, -0.2, 0.3, 0.9], np.float32)
    seen, session = unpack_observation(replaced(tool_quaternion=quaternion / np.linalg.norm(quaternion)))
    assert session == "a" and abs(np.linalg.norm(seen.tool_quaternion) - 1) < 1e-6


def npz(arrays: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as file:
        for name, content in arrays.items():
            file.writestr(f"{name}.npy", content)
    return buffer.getvalue()


def npy(shape: tuple[int, ...], body: bytes, descr: str = "|u1") -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": descr, "fortran_order": False, "shape": shape})
    return buffer.getvalue() + body


def test_what_unpacks_to_too_much_is_refused_unread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "MAX_BYTES", 1 << 20)
    bomb = npz({"extra": npy((2 << 20,), bytes(2 << 20))}, zipfile.ZIP_DEFLATED)
    assert len(bomb) < 5000
    with pytest.raises(DataError, match="at most 1048576 bytes"):
        unpack(bomb)
    two = npz({"a": npy((600000,), bytes(600000)), "b": npy((600000,), bytes(600000))}, zipfile.ZIP_DEFLATED)
    with pytest.raises(DataError, match="at most 1048576 bytes"):
        unpack(two)


@pytest.mark.parametrize(
    "data",
    [
        npz({"a": npy((1 << 40,), b"12")}),  # a header that promises a terabyte
        npz({"a": npy((-1, -2), b"12")}),
        npz({"a": npy((1,), b"\x80\x04N.", "|O")}),
        npz({"a": b"no array"}),
        npz({"a": npy((2,), b"12")})[:-30],
        npz({"a": b""}),
    ],
)
def test_headers_that_lie_are_refused(data: bytes) -> None:
    with pytest.raises(DataError, match="expected an npz file of plain arrays"):
        unpack(data)


def test_arrays_of_every_kind_come_through() -> None:
    arrays = {
        "empty": np.zeros(0), "text": np.array("é"), "nothing": np.array(""), "scalar": np.array(3.5),
        "fortran": np.asfortranarray(np.arange(6).reshape(2, 3)), "image": np.zeros((2, 0, 3), np.uint8),
    }  # fmt: skip
    for name, array in unpack(pack(arrays)).items():
        assert np.array_equal(array, arrays[name]) and array.dtype == arrays[name].dtype, name


def test_clients_that_leave_or_stall_are_silent(
    served: tuple[str, int, PolicyServer], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(http_server, "REQUEST_TIMEOUT", 0.2)
    before = threading.active_count()
    for number in range(20):
        with socket.create_connection(served[:2]) as connection:
            connection.sendall(post("/act", b"ab", Content_Length="1000"))
            if number % 2:  # reset the connection
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
    stalled = [socket.create_connection(served[:2]) for _ in range(5)]
    for connection in stalled:
        connection.sendall(post("/act", b"ab", Content_Length="1000"))
    for connection in stalled:
        connection.settimeout(5)
        assert connection.recv(100) == b""  # closed by the server
        connection.close()
    until = time.monotonic() + 5
    while threading.active_count() > before and time.monotonic() < until:
        time.sleep(0.02)
    assert threading.active_count() <= before
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("head", [b"GET /info HTTP/1.1\r\nX-Slow: ", b"", post("/act", b"", Content_Length="1000")])
def test_a_request_that_drips_is_let_go(
    served: tuple[str, int, PolicyServer], monkeypatch: pytest.MonkeyPatch, head: bytes
) -> None:
    """Each byte comes in time, the whole never does."""
    monkeypatch.setattr(http_server, "REQUEST_TIMEOUT", 0.4)
    with socket.create_connection(served[:2]) as connection:
        connection.sendall(head)
        until = time.monotonic() + 10
        try:
            while time.monotonic() < until:
                connection.sendall(b"a")
                time.sleep(0.05)
        except OSError:  # closed by the server
            return
    pytest.fail("the server waits for ever")


def test_a_server_at_an_address_of_ip_version_6(monkeypatch: pytest.MonkeyPatch) -> None:
    policies = PolicyServer(Still)
    try:
        server = PolicyHTTPServer("::1", 0)
    except EnvironmentMissing:
        pytest.skip("this machine has no IPv6")
    with server:
        threading.Thread(target=server.serve, args=(policies, "still"), daemon=True).start()
        with closing(RemotePolicy(f"http://[::1]:{server.server_address[1]}")) as policy:
            policy.reset()
            assert len(policy.act(observation()).gripper) == 3  # type: ignore[union-attr,arg-type]
        server.shutdown()
    policies.close()


def test_a_client_goes_on_where_an_idle_connection_was_closed(
    served: tuple[str, int, PolicyServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_server, "IDLE_TIMEOUT", 0.05)
    policy = RemotePolicy(f"http://127.0.0.1:{served[1]}")
    policy.reset()
    time.sleep(0.3)
    assert policy.act(observation()).gripper[0] == 1  # type: ignore[union-attr,index]
    policy.close()


@pytest.mark.parametrize("served", [{"max_clients": 2}], indirect=True)
def test_there_is_a_bound_on_connections(served: tuple[str, int, PolicyServer]) -> None:
    held = [socket.create_connection(served[:2]) for _ in range(2)]
    for connection in held:
        connection.sendall(b"GET /info HTTP/1.1\r\n\r\n")
        assert connection.recv(100).startswith(b"HTTP/1.1 200")
    assert ask(served[:2], b"GET /info HTTP/1.1\r\n\r\n").startswith(b"503 gr2 serve: expected fewer clients")
    for connection in held:
        connection.close()
    until = time.monotonic() + 5
    while not (got := ask(served[:2], b"GET /info HTTP/1.1\r\n\r\n")).startswith(b"200") and time.monotonic() < until:
        time.sleep(0.02)
    assert got.startswith(b"200")


@pytest.mark.parametrize("served", [{"api_key": "secret"}], indirect=True)
def test_a_key_is_asked_for(served: tuple[str, int, PolicyServer], monkeypatch: pytest.MonkeyPatch) -> None:
    for request in (
        b"GET /info HTTP/1.1\r\n\r\n",
        post("/reset", SESSION),
        post("/act", b"x", Authorization="Bearer secret"),
    ):
        assert ask(served[:2], request).startswith(b"401 gr2 serve: expected Authorization: Api-Key")
    assert ask(served[:2], post("/reset", SESSION, Authorization="Api-Key secret")) == b"200 "
    with pytest.raises(PolicyError, match="answers 401"):
        RemotePolicy(f"http://127.0.0.1:{served[1]}")
    monkeypatch.setenv("GR2_SERVE_KEY", "secret")
    policy = RemotePolicy(f"http://127.0.0.1:{served[1]}")
    assert len(policy.act(observation()).positions) == 3  # type: ignore[union-attr]
    policy.close()


@pytest.mark.parametrize("served", [{"max_sessions": 2}], indirect=True)
def test_there_is_a_bound_on_sessions(served: tuple[str, int, PolicyServer], monkeypatch: pytest.MonkeyPatch) -> None:
    url = f"http://127.0.0.1:{served[1]}"
    first, second, third = (RemotePolicy(url) for _ in range(3))
    first.act(observation())
    second.act(observation())
    with pytest.raises(PolicyError, match="503: gr2 serve: expected at most 2 sessions"):
        third.act(observation())
    second.close()  # ends its session
    third.act(observation())
    monkeypatch.setattr(sessions, "IDLE_AFTER", -1.0)
    first.close()
    for _ in range(3):  # clients that never say goodbye
        served[2].act(f"{_}", observation())
    monkeypatch.setattr(sessions, "IDLE_AFTER", 60.0)
    with pytest.raises(ServerBusy):
        served[2].act("more", observation())


def test_one_session_is_answered_in_order() -> None:
    policies, order = PolicyServer(Still), []
    policies._spare.pause = 0.05  # type: ignore[union-attr]

    def client(number: int) -> None:
        policies.act("one", observation(time=float(number)))
        order.append(number)

    threads = [threading.Thread(target=client, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
        time.sleep(0.01)
    for thread in threads:
        thread.join()
    assert order == [0, 1, 2]
    policies.close()


def test_a_taken_port_is_found_before_the_model_loads(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def load(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(serving, "policy_maker", load)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(EnvironmentMissing, match="expected a free port"):
            serving.serve(policy=str(tmp_path), port=taken.getsockname()[1], threads=0)
    with pytest.raises(EnvironmentMissing, match=r"--host 203\.0\.113\.7"):
        serving.serve(policy=str(tmp_path), host="203.0.113.7", threads=0)
    for options in ({"port": 0}, {"max_clients": 0}, {"max_batch": 0}, {"threads": -1}):
        with pytest.raises(ConfigError, match="serve: expected"):
            serving.serve(policy=str(tmp_path), **options)  # type: ignore[arg-type]


def test_something_else_at_the_address_is_named() -> None:
    from http.server import BaseHTTPRequestHandler, HTTPServer

    class Other(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"<html>")

        def log_message(self, format: str, *args: object) -> None: ...

    with HTTPServer(("127.0.0.1", 0), Other) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with pytest.raises(PolicyError, match="expected `gr2 serve` there, got"):
            RemotePolicy(f"http://127.0.0.1:{server.server_address[1]}")
        server.shutdown()
