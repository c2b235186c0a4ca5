"""`gr2 serve` in openpi's and vla-eval's protocols, by what their clients send: recorded forms, mistakes, bounds."""

from __future__ import annotations

import http.client
import json
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from scipy.spatial.transform import Rotation
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from gr2.contracts import ActionTrajectory, JointTrajectory, Observation, Trajectory
from gr2.embodiment import TOOL_ARM
from gr2.errors import ConfigError, EnvironmentMissing
from gr2.gr_model.act import array_codec
from gr2.gr_model.act.array_codec import pack, unpack
from gr2.gr_model.serve import http_server, serving
from gr2.gr_model.serve.serving import make_dialect
from gr2.gr_model.serve.sessions import PolicyServer
from gr2.gr_model.serve.websocket_server import PolicyWebSocketServer


class Rising:
    """Rises by 1 cm a row; the gripper shows how often it was reset, modulo 2."""

    executed_steps, embodiment, made = 3, TOOL_ARM, 0

    def __init__(self) -> None:
        Rising.made += 1
        self.resets, self.asked = 0, 0
        self.seen: list[Observation] = []
        self.closed = False

    def reset(self) -> None:
        self.resets += 1

    def act(self, observation: Observation) -> Trajectory:
        self.seen.append(observation)
        if observation.instruction == "fail":
            raise RuntimeError("no idea")
        if observation.instruction == "exit":
            raise SystemExit(3)
        if observation.instruction == "joints":
            return JointTrajectory(positions=np.ones((4, 6)), dt=0.1, start_time=observation.time)
        rise = np.linspace(0.01, 0.05, 5)[:, None] * [0.0, 0.0, 1.0]
        return ActionTrajectory(
            positions=observation.tool_position + rise,
            quaternions=np.repeat(observation.tool_quaternion[None], 5, 0),
            gripper=np.full(5, float(self.resets % 2)), dt=1 / 30, start_time=observation.time,
        )  # fmt: skip

    def close(self) -> None:
        self.closed = True


@contextmanager
def serving_at(protocol: Any, keys: str = "", **options: Any) -> Iterator[tuple[int, PolicyServer, list[Rising]]]:
    made: list[Rising] = []

    def make() -> Rising:
        made.append(Rising())
        return made[-1]

    policies = PolicyServer(make, max_sessions=options.pop("max_sessions", 8))
    with PolicyWebSocketServer("127.0.0.1", 0, **options) as server:
        dialect = make_dialect(protocol, policies, "rising", fingerprint="f", keys=keys)
        thread = threading.Thread(target=server.serve, args=(dialect,), daemon=True)
        thread.start()
        until = time.monotonic() + 5
        while server._server is None and time.monotonic() < until:
            time.sleep(0.005)
        yield server.server_address[1], policies, made
        server.shutdown()
        thread.join(5)
        assert not thread.is_alive()
    policies.close()


def client(port: int, **options: Any) -> ClientConnection:
    return connect(f"ws://127.0.0.1:{port}", compression=None, max_size=None, proxy=None, **options)


QUATERNION = Rotation.from_euler("xyz", [3.0, 0.1, 1.5]).as_quat()


def openpi_message(**changes: Any) -> dict[str, Any]:
    message = {
        "observation/images/static": np.zeros((4, 4, 3), np.uint8),
        "observation/images/gripper": np.zeros((4, 4, 3), np.uint8),
        "observation/state/tool_position": np.array([0.1, 0.2, 0.3]), "observation/state/tool_rotation": QUATERNION,
        "observation/state/gripper": np.array([1.0]), "observation/state/gripper_command": 1.0,
        "observation/state/joint_positions": np.zeros(7), "prompt": "rise",
    }  # fmt: skip
    return message | changes


def ask(connection: ClientConnection, message: Any) -> Any:
    connection.send(pack(message, "openpi"))
    answer = connection.recv(timeout=10)
    return answer if isinstance(answer, str) else unpack(answer)


def get(port: int, path: str, **headers: str) -> tuple[int, str]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request("GET", path, headers={name.replace("_", "-"): value for name, value in headers.items()})
    answer = connection.getresponse()
    return answer.status, answer.read().decode()


def wait_for(what: Callable[[], bool]) -> None:
    until = time.monotonic() + 10
    while not (seen := what()) and time.monotonic() < until:
        time.sleep(0.01)
    assert seen


# -- openpi ------------------------------------------------------------------------------------------------------


def test_openpi_metadata_first_then_actions() -> None:
    with serving_at("openpi") as (port, _, made), client(port) as connection:
        metadata = unpack(connection.recv(timeout=10))
        assert metadata["policy"] == "rising" and metadata["executed_steps"] == 3 and metadata["fingerprint"] == "f"
        assert [(c["name"], c["width"]) for c in metadata["columns"]] == [
            ("tool_position", 3), ("tool_rotation", 4), ("gripper", 1)
        ]  # fmt: skip
        assert metadata["dt"] == pytest.approx(1 / 30) and "observation/state/gripper" in metadata["map"]["state"]
        answer = ask(connection, openpi_message())
        assert answer["actions"].dtype == np.float32 and answer["actions"].shape == (5, 8)
        assert np.allclose(answer["actions"][:, 2], 0.3 + np.linspace(0.01, 0.05, 5))
        assert answer["server_timing"]["infer_ms"] >= 0 and "prev_total_ms" not in answer["server_timing"]
        again = ask(connection, openpi_message(actions_dtype="float64", reset=True))
        assert again["actions"].dtype == np.float64 and again["server_timing"]["prev_total_ms"] > 0
        assert made[0].resets == 2
        ask(connection, openpi_message())
        times = [seen.time for seen in made[0].seen]
        assert times == [0.0, 0.0, 3 / 30], "without a time in the message, requests are counted"
        ask(connection, openpi_message(**{"observation/time": 2.5}))
        assert made[0].seen[-1].time == 2.5
        assert ask(connection, openpi_message(prompt="joints"))["trajectory"] == "joint_positions"
    wait_for(lambda: made[0].closed)


@pytest.mark.parametrize(
    ("again", "resets"),
    [(True, 2), (np.bool_(True), 2), (1, 2), (np.array([True]), 2), (False, 1), (np.bool_(False), 1)],
)
def test_an_openpi_episode_begins_with_any_true_reset(again: Any, resets: int) -> None:
    with serving_at("openpi") as (port, _, made), client(port) as connection:
        connection.recv(timeout=10)
        ask(connection, openpi_message())
        ask(connection, openpi_message(reset=again))
        assert made[0].resets == resets
        assert "reset: expected 1 numbers in a row, got str" in ask(connection, openpi_message(reset="yes"))


def test_openpi_state_is_kept_by_connection() -> None:
    with serving_at("openpi") as (port, _, made):
        for _ in range(2):
            with client(port) as connection:
                connection.recv(timeout=10)
                assert ask(connection, openpi_message())["actions"][0, 7] == 1, "reset once, at connect"
        wait_for(lambda: all(policy.closed for policy in made))
        assert [policy.resets for policy in made] == [1, 1]


@pytest.mark.parametrize(
    ("message", "text"),
    [
        ({"prompt": "rise"}, "observation: expected the keys observation/images/static"),
        ([1], "observation: expected a dict, got list"),
        (openpi_message(prompt="fail"), "RuntimeError: no idea"),
        (openpi_message(prompt="exit"), "SystemExit: 3"),
        (openpi_message(**{"observation/state/gripper": np.nan}), "expected finite numbers"),
    ],
)
def test_an_openpi_error_is_a_text_and_the_end(message: Any, text: str) -> None:
    with serving_at("openpi") as (port, _, _), client(port) as connection:
        connection.recv(timeout=10)
        answer = ask(connection, message)
        assert isinstance(answer, str) and text in answer
        assert ("Traceback" in answer) == ("Error:" in text or "Exit:" in text)
        with pytest.raises(ConnectionClosed) as closed:
            connection.recv(timeout=10)
        assert closed.value.rcvd is not None and closed.value.rcvd.code == 1011
        with client(port) as other:  # the server goes on
            other.recv(timeout=10)
            assert ask(other, openpi_message())["actions"].shape == (5, 8)


def test_pages_and_keys() -> None:
    with serving_at("openpi", api_key="secret") as (port, _, _):
        assert get(port, "/healthz") == (200, "OK\n")
        for headers in ({}, {"Authorization": "Api-Key wrong"}, {"Authorization": "Bearer secret"}):
            assert get(port, "/info", **headers)[0] == 401
            with pytest.raises(InvalidStatus) as refused:
                client(port, additional_headers=headers)
            assert b"expected Authorization: Api-Key" in (refused.value.response.body or b"")
        assert json.loads(get(port, "/info", Authorization="Api-Key secret")[1])["protocol"] == "openpi"
        with client(port, additional_headers={"Authorization": "Api-Key secret"}) as connection:
            assert isinstance(connection.recv(timeout=10), bytes)
    with serving_at("vla-eval") as (port, policies, _):
        assert json.loads(get(port, "/health")[1]) == {"status": "ok"}
        assert json.loads(get(port, "/config?max_batch_size=8")[1])["config"]["max_batch_size"] == 8
        assert policies.max_batch == 8
        for query in ("max_batch_size=0", "max_batch_size=x", "max_wait_time=nan", "other=1"):
            assert get(port, f"/config?{query}")[0] == 422
        assert policies.max_batch == 8


# -- vla-eval ----------------------------------------------------------------------------------------------------


class VlaEvalClient:
    """Sends what vla-eval 0.8.0's `Connection` sends."""

    def __init__(self, connection: ClientConnection) -> None:
        self.connection, self.seq = connection, 0

    def say(self, kind: str, payload: Any) -> int:
        self.seq += 1
        raw = {"type": kind, "payload": payload, "seq": self.seq, "timestamp": time.time()}
        self.connection.send(array_codec.pack(raw, "vla-eval"))
        return self.seq

    def ask(self, kind: str, payload: Any) -> tuple[str, Any]:
        seq = self.say(kind, payload)
        answer = unpack(self.connection.recv(timeout=10))
        assert answer["seq"] == seq and set(answer) == {"type", "payload", "seq", "timestamp"}
        return answer["type"], answer["payload"]


STATES = np.array([0.1, -0.2, 0.5, 3.0, 0.1, 1.5, 0.08, 1.0], np.float32)


def calvin_message(**changes: Any) -> dict[str, Any]:
    images = {name: np.zeros((200, 200, 3), np.uint8) for name in ("rgb_static", "rgb_gripper")}
    return {"images": images, "task_description": "rise", "states": STATES} | changes


def test_vla_evals_hello_states_what_calvin_is_to_send() -> None:
    for keys, absolute, form, gripper in (
        ("calvin", True, "absolute_xyz", "binary_close_positive"),
        ("calvin-delta", False, "delta_xyz", "binary_close_negative"),
    ):
        with serving_at("vla-eval", keys) as (port, _, _), client(port) as connection:
            kind, hello = VlaEvalClient(connection).ask("hello", {"protocol_version": 1, "harness_version": "0.8.0"})
            assert kind == "hello" and hello["protocol_version"] == 1 and hello["model_server"] == "gr2"
            assert hello["observation_params"] == {
                "send_state": True, "send_wrist_image": True, "absolute_action": absolute
            }  # fmt: skip
            assert hello["action_spec"]["position"]["format"] == form
            assert hello["action_spec"]["gripper"]["format"] == gripper
            assert all(set(spec) >= {"name", "dims", "format"} for spec in hello["observation_spec"].values())


def test_calvin_in_absolute_mode() -> None:
    """xyz of the world and axis-angle; above 0 closes."""
    with serving_at("vla-eval", "calvin") as (port, _, made), client(port) as connection:
        them = VlaEvalClient(connection)
        them.say("episode_start", {"task": {"name": "seq_0000"}})
        answers = [them.ask("observation", calvin_message())[1]["actions"] for _ in range(4)]
        assert len(made[0].seen) == 2, "asked when the executed steps are over"
        assert np.allclose(
            [a[:3] - STATES[:3] for a in answers], [[0, 0, z] for z in (0.01, 0.02, 0.03, 0.01)], atol=1e-6
        )
        turn = Rotation.from_rotvec(answers[0][3:6]) * Rotation.from_euler("xyz", STATES[3:6]).inv()
        assert turn.magnitude() < 1e-6
        assert answers[0][6] == -1, "open"
        them.ask("observation", calvin_message(episode_restart=True))
        assert made[0].resets == 2 and made[0].seen[-1].time == pytest.approx(4 / 30), "a sub-task: the time runs on"
        assert them.ask("observation", calvin_message())[1]["actions"][6] == 1, "closed"
        them.say("episode_end", {"metrics": {}})
        them.say("episode_start", {})
        them.ask("observation", calvin_message())
        assert made[0].resets == 3 and made[0].seen[-1].time == 0


def test_calvin_in_delta_mode() -> None:
    """Added to the pose commanded last, as vla-eval's benchmark adds it up; above 0 opens."""
    with serving_at("vla-eval", "calvin-delta") as (port, _, _), client(port) as connection:
        them = VlaEvalClient(connection)
        them.say("episode_start", {})
        last = np.array([*STATES[:6].astype(float), 0.0])
        moved = STATES.copy()
        for step in range(5):
            raw = them.ask("observation", calvin_message(states=moved))[1]["actions"]
            act = np.array([*last[:6], 0.0]) + raw
            act[3:6] = (act[3:6] + np.pi) % (2 * np.pi) - np.pi
            assert raw[6] == 1
            # rows 0, 1, 2 of a chunk seen from the first state, then 0, 1 of one seen from where the tool hangs back
            base = STATES[2] if step < 3 else STATES[2] + 0.015
            assert act[2] == pytest.approx(base + 0.01 * (step % 3 + 1), abs=1e-6)
            assert np.allclose(act[3:6], STATES[3:6], atol=1e-6)
            last = act
            moved[2] = STATES[2] + 0.005 * (step + 1)


def test_vla_eval_chunks_for_those_who_ask() -> None:
    with serving_at("vla-eval") as (port, _, _), client(port) as connection:
        message = {key.removeprefix("observation/"): value for key, value in openpi_message().items()}
        kind, payload = VlaEvalClient(connection).ask(
            "observation", message | {"task_description": "rise", "chunk": True}
        )
        assert kind == "action" and payload["actions"].shape == (5, 8) and payload["trajectory"] == "tool_poses"


@pytest.mark.parametrize(
    ("kind", "payload", "sentence"),
    [
        ("hello", {"protocol_version": 2}, "hello: expected protocol_version 1, got 2"),
        ("observation", {"images": {}}, "expected the keys images/rgb_static"),
        ("observation", calvin_message(task_description="fail"), "the policy failed: RuntimeError('no idea')"),
        ("observation", calvin_message(task_description="exit"), "the policy failed: SystemExit(3)"),
        ("observation", calvin_message(states=STATES * np.nan), "states: expected finite numbers"),
        ("observation", calvin_message(task_description="joints"), "expected a policy that commands position"),
    ],
)
def test_a_vla_eval_error_is_a_message_and_not_the_end(kind: str, payload: Any, sentence: str) -> None:
    with serving_at("vla-eval", "calvin") as (port, _, _), client(port) as connection:
        them = VlaEvalClient(connection)
        got, answer = them.ask(kind, payload)
        assert got == "error" and sentence in answer["error"]
        assert them.ask("observation", calvin_message())[0] == "action"


@pytest.mark.parametrize(
    "data", [b"\xc1", b"\x80", pack({"type": "x", "payload": {}, "seq": 1, "timestamp": 0}, "vla-eval")]
)
def test_what_is_no_message_ends_the_connection(data: bytes) -> None:
    with serving_at("vla-eval") as (port, _, _), client(port) as connection:
        connection.send(data)
        assert "message" in str(connection.recv(timeout=10))
        with pytest.raises(ConnectionClosed):
            connection.recv(timeout=10)


# -- bounds ------------------------------------------------------------------------------------------------------


def test_there_is_a_bound_on_clients() -> None:
    with serving_at("openpi", max_clients=2) as (port, _, _):
        held = [client(port) for _ in range(2)]
        assert get(port, "/healthz")[0] == 503
        with pytest.raises(InvalidStatus) as refused:
            client(port)
        assert b"expected fewer clients at once" in (refused.value.response.body or b"")
        for connection in held:
            connection.close()
        wait_for(lambda: get(port, "/healthz")[0] == 200)


def test_a_message_that_is_too_large_ends_the_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gr2.gr_model.serve.websocket_server.MAX_BYTES", 1000)
    with serving_at("openpi") as (port, _, _), client(port) as connection:
        connection.recv(timeout=10)
        connection.send(bytes(5000))
        with pytest.raises(ConnectionClosed) as closed:
            connection.recv(timeout=10)
        assert closed.value.rcvd is not None and closed.value.rcvd.code == 1009


def test_silent_and_stalling_clients_are_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_server, "IDLE_TIMEOUT", 0.2)
    with serving_at("openpi") as (port, policies, _):
        with client(port) as connection:
            connection.recv(timeout=10)
            with pytest.raises(ConnectionClosed):
                connection.recv(timeout=10)
        monkeypatch.setattr(http_server, "IDLE_TIMEOUT", 60.0)
        monkeypatch.setattr(http_server, "REQUEST_TIMEOUT", 0.2)
        with client(port) as connection:
            connection.recv(timeout=10)
            connection.socket.sendall(struct.pack("!BBH4s", 0x82, 0x80 | 126, 500, b"\0" * 4) + b"x" * 10)
            with pytest.raises(ConnectionClosed):
                connection.recv(timeout=10)
        wait_for(lambda: not policies._sessions)


def test_a_message_in_pieces_must_arrive_in_time_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Frames of one byte each, all of them whole."""
    monkeypatch.setattr(http_server, "REQUEST_TIMEOUT", 0.5)
    with serving_at("openpi") as (port, _, _), client(port) as connection:
        connection.recv(timeout=10)
        connection.socket.sendall(struct.pack("!BB4s", 0x02, 0x80, b"\0" * 4))

        def refused() -> bool:
            try:
                connection.socket.sendall(struct.pack("!BB4sB", 0x00, 0x81, b"\0" * 4, 7))
            except OSError:
                return True
            return False

        wait_for(refused)


HANGING = """
import signal, threading
from gr2.gr_model.serve.serving import make_dialect
from gr2.gr_model.serve.sessions import PolicyServer
from gr2.gr_model.serve.websocket_server import PolicyWebSocketServer

signal.signal(signal.SIGINT, signal.default_int_handler)  # tests in the background inherit that it is ignored

class Hanging:
    executed_steps = 1
    def reset(self): ...
    def act(self, observation):
        print("asked", flush=True)
        threading.Event().wait()

with PolicyWebSocketServer("127.0.0.1", 0) as server:
    dialect = make_dialect("openpi", PolicyServer(Hanging), "hanging")
    print(server.server_address[1], flush=True)
    server.serve(dialect)
"""


def test_ctrl_c_ends_a_server_whose_policy_hangs() -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", HANGING], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    try:
        with client(int(process.stdout.readline())) as connection:
            connection.recv(timeout=60)
            connection.send(pack(openpi_message(), "openpi"))
            assert process.stdout.readline() == "asked\n"
            process.send_signal(signal.SIGINT)
            with pytest.raises(ConnectionClosed):
                connection.recv(timeout=60)
        _, error = process.communicate(timeout=60)
        assert "KeyboardInterrupt" in error and process.returncode
    finally:
        process.kill()


def test_clients_that_vanish_leave_nothing_behind(capfd: pytest.CaptureFixture[str]) -> None:
    with serving_at("openpi") as (port, policies, made):
        for _ in range(5):
            connection = client(port)
            connection.recv(timeout=10)
            ask(connection, openpi_message())
            connection.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            connection.socket.close()
        with socket.create_connection(("127.0.0.1", port)) as raw:
            raw.sendall(b"nonsense\r\n\r\n")
        wait_for(lambda: not policies._sessions and all(policy.closed for policy in made))
    assert capfd.readouterr().err == ""


@pytest.mark.nightly
@pytest.mark.parametrize("protocol", ["openpi", "vla-eval"])
def test_nothing_grows_over_many_requests(protocol: str) -> None:
    """10,000 requests over 200 connections, a failing one among each 50: memory, threads, files and sessions stay."""
    psutil = pytest.importorskip("psutil")
    process, openpi = psutil.Process(), protocol == "openpi"
    message = openpi_message()
    if not openpi:
        message = {key.removeprefix("observation/"): value for key, value in message.items()}
        message["task_description"] = message.pop("prompt")

    def requests(port: int, connections: int) -> None:
        for _ in range(connections):
            with client(port) as connection:
                if openpi:
                    connection.recv(timeout=30)
                them = VlaEvalClient(connection)
                for number in range(50):
                    text = "fail" if number == 49 else "rise"
                    if openpi:
                        ask(connection, message | {"prompt": text})
                    else:
                        them.ask("observation", message | {"task_description": text, "chunk": True})

    with serving_at(protocol) as (port, policies, made):
        requests(port, 40)
        wait_for(lambda: not policies._sessions)
        made.clear()
        before = process.memory_info().rss, process.num_threads(), process.num_fds()
        for _ in range(4):
            requests(port, 40)
            made.clear()  # the test's own record of what was seen
        wait_for(lambda: not policies._sessions)
        wait_for(lambda: process.num_threads() <= before[1])
        assert process.memory_info().rss - before[0] < 8 << 20
        assert process.num_fds() <= before[2] + 2


def test_maps_that_do_not_fit_are_refused_before_anybody_asks(tmp_path: Any, capfd: pytest.CaptureFixture[str]) -> None:
    policies = PolicyServer(Rising)
    make_dialect("vla-eval", policies, "rising", keys="calvin")
    assert "the keys give no joint_positions" in capfd.readouterr().err
    policies.reads = ("tool_position", "joint_positions")
    with pytest.raises(ConfigError, match="got none for joint_positions; add them"):
        make_dialect("vla-eval", policies, "rising", keys="calvin")
    file = tmp_path / "map.yaml"
    file.write_text("images: {front: image}\nstate: {a: 16}\n")
    with pytest.raises(ConfigError, match="expected a key for one of the policy's cameras static, gripper"):
        make_dialect("openpi", policies, "rising", keys=str(file))
    with pytest.raises(ConfigError, match="--keys libero: expected --protocol openpi or vla-eval"):
        serving.serve(policy=str(tmp_path), keys="libero", threads=0)
    policies.close()


def test_a_missing_package_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    import builtins

    real = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith(("msgpack", "websockets")):
            raise ImportError(f"No module named {name!r}")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(EnvironmentMissing, match=r"pip install 'gr2\[serve\]'"):
        serving.serve(protocol="openpi", port=8001, threads=0)
