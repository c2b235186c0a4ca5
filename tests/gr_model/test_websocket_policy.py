"""`openpi://` and `vla-eval://` policies against servers that answer well, wrongly, late, or not at all."""

from __future__ import annotations

import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest
from scipy.spatial.transform import Rotation
from websockets.exceptions import ConnectionClosed
from websockets.sync.server import ServerConnection, serve
from websockets.utils import accept_key

from gr2.contracts import ActionTrajectory, JointTrajectory, Observation, SignalTrajectory
from gr2.embodiment import TOOL_ARM, Embodiment, Signal
from gr2.errors import ConfigError, EnvironmentMissing, Gr2Error, PolicyError, ShapeError
from gr2.gr_model.act.array_codec import pack, unpack
from gr2.gr_model.act.opening import is_of_user, open_policy, policy_fingerprint
from gr2.gr_model.act.remote import pack_observation
from gr2.gr_model.act.websocket_policy import OpenpiPolicy
from gr2.gr_model.act.wire_maps import open_map
from gr2.gr_model.serve import serving
from gr2.gr_model.serve.serving import make_dialect
from gr2.gr_model.serve.sessions import PolicyServer
from gr2.gr_model.serve.websocket_server import PolicyWebSocketServer

Handler = Callable[[ServerConnection], None]


@contextmanager
def fake(handler: Handler) -> Iterator[int]:
    def quietly(connection: ServerConnection) -> None:
        with suppress(ConnectionClosed):
            handler(connection)

    with serve(quietly, "127.0.0.1", 0, compression=None, max_size=None, close_timeout=0.2) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.socket.getsockname()[1]


def openpi(answer: Any, *, metadata: Any = None, seen: list[Any] | None = None) -> Handler:
    """Return a server that openpi's documents describe: metadata, then an answer to every observation."""

    def handle(connection: ServerConnection) -> None:
        connection.send(pack({} if metadata is None else metadata, "openpi"))
        while True:
            message = unpack(connection.recv())
            if seen is not None:
                seen.append(message)
            made = answer(message) if callable(answer) else answer
            if isinstance(made, str):
                connection.send(made)
                connection.close(1011, "Internal server error")
                return
            connection.send(made if isinstance(made, bytes) else pack(made, "openpi"))

    return handle


def vla_eval(
    answer: Any, *, hello: dict[str, Any] | None = None, seen: list[Any] | None = None, off: int = 0
) -> Handler:
    """Return a server of vla-eval's messages; `off` is added to the number of an answer."""

    def handle(connection: ServerConnection) -> None:
        while True:
            message = unpack(connection.recv())
            kind, payload = "action", answer
            if seen is not None:
                seen.append(message)
            if message["type"] == "hello":
                kind, payload = "hello", {"protocol_version": 1, "capabilities": {}} | (hello or {})
            elif message["type"] != "observation":
                continue
            elif isinstance(answer, str):
                kind, payload = "error", {"error": answer}
            raw = {"type": kind, "payload": payload, "seq": message["seq"] + off, "timestamp": time.time()}
            connection.send(msgpack.packb(raw) if isinstance(answer, bytes) else pack(raw, "vla-eval"))

    return handle


START = np.array([0.4, -0.1, 0.3])
TURN = Rotation.from_euler("xyz", [3.0, 0.1, 1.4])


def observation(time: float = 0.0, **changes: Any) -> Observation:
    fields: dict[str, Any] = {
        "images": {name: np.full((8, 8, 3), 7, np.uint8) for name in ("static", "gripper")}, "tool_position": START,
        "tool_quaternion": TURN.as_quat(), "gripper_opening": 1.0, "gripper_command": 1.0,
        "joint_positions": np.zeros(7), "instruction": "lift", "time": time,
    }  # fmt: skip
    return Observation(**(fields | changes))


MAP = """
images: {static: observation/image}
image_size: 16
prompt: prompt
state: {observation/state: [tool_position, {name: tool_rotation, rotation: rotation_vector}, gripper]}
actions:
  reference: delta
  rotation: rotation_vector
  position_scale: 0.02
  gripper: {closed: 1, open: -1}
  dt: 0.1
  executed_steps: 2
"""


@pytest.fixture
def map_file(tmp_path: Path) -> str:
    (tmp_path / "map.yaml").write_text(MAP)
    return str(tmp_path / "map.yaml")


def test_an_openpi_server_is_written_and_read_by_a_map(map_file: str) -> None:
    seen: list[Any] = []
    rows = np.array([[0.5, 0, 0, 0, 0, 0.1, -1.0], [0.5, 0, 1, 0, 0, 0.1, 0.0]], np.float32)
    with (
        fake(openpi({"actions": rows}, seen=seen)) as port,
        closing(open_policy(f"openpi://127.0.0.1:{port}?map={map_file}")) as policy,
    ):
        assert isinstance(policy, OpenpiPolicy) and policy.executed_steps == 2 and policy.uses_images
        policy.reset()
        trajectory = policy.act(observation(0.5))
    assert isinstance(trajectory, ActionTrajectory) and trajectory.dt == 0.1 and trajectory.start_time == 0.5
    assert np.allclose(trajectory.positions - START, [[0.01, 0, 0], [0.02, 0, 0.02]])
    last = Rotation.from_quat(trajectory.quaternions[1]) * TURN.inv()
    assert np.allclose(last.as_rotvec(), [0, 0, 0.2], atol=1e-6) and np.allclose(trajectory.gripper, [1, 0.5])
    assert set(seen[0]) == {"observation/image", "observation/state", "prompt"}
    assert seen[0]["observation/image"].shape == (16, 16, 3) and seen[0]["observation/state"].shape == (7,)
    assert np.allclose(seen[0]["observation/state"][3:6], TURN.as_rotvec())


def test_joints_and_an_empty_gripper(tmp_path: Path) -> None:
    (tmp_path / "joints.json").write_text('{"actions": {"columns": ["joints"], "joints": 6, "dt": 0.05}}')
    with (
        fake(openpi({"actions": np.ones((4, 6))})) as port,
        closing(open_policy(f"openpi://127.0.0.1:{port}?map={tmp_path}/joints.json")) as policy,
    ):
        trajectory = policy.act(observation())
        assert isinstance(trajectory, JointTrajectory) and trajectory.gripper is None
        assert not policy.uses_images  # type: ignore[attr-defined]


def test_deltas_go_on_from_what_was_commanded() -> None:
    """vla-eval's CALVIN: world frame, euler angles added, one action a step, above 0 opens."""
    seen: list[Any] = []
    action = {"actions": np.array([0.01, 0, 0, 0, 0, 0.02, 0.5])}
    with (
        fake(vla_eval(action, seen=seen)) as port,
        closing(open_policy(f"vla-eval://127.0.0.1:{port}?map=calvin-delta")) as policy,
    ):
        assert policy.executed_steps == 1
        policy.reset()
        made = [policy.act(observation(step / 30)) for step in range(3)]
        policy.reset()  # a sub-task: from the pose that is measured, as the benchmark does
        made.append(policy.act(observation(3 / 30)))
        policy.reset()
        policy.act(observation(0.0))
    for step, trajectory in enumerate(made):
        assert isinstance(trajectory, ActionTrajectory) and trajectory.gripper[0] == 1
        steps = step + 1 if step < 3 else 1
        assert np.allclose(trajectory.positions, [START + [0.01 * steps, 0, 0]])
        euler = Rotation.from_quat(trajectory.quaternions[0]).as_euler("xyz")
        assert np.allclose(euler, [3.0, 0.1, 1.4 + 0.02 * steps])
    assert [m["type"] for m in seen] == [
        "hello", "episode_start", *["observation"] * 4, "episode_end", "episode_start", "observation", "episode_end"
    ]  # fmt: skip
    restarts = ["episode_restart" in m["payload"] for m in seen if m["type"] == "observation"]
    assert restarts == [False, False, False, True, False]
    sent = seen[2]["payload"]
    assert sent["images"]["rgb_static"].shape == (200, 200, 3) and sent["task_description"] == "lift"
    assert np.allclose(sent["states"][:3], START + [-0.34, -0.46, 0.24]) and np.allclose(sent["states"][6:], [0.08, 1])


def refused(handler: Handler, scheme: str, query: str, **options: Any) -> str:
    """Return the sentence with which a policy ends."""

    def use(port: int) -> None:
        with closing(open_policy(f"{scheme}://127.0.0.1:{port}{query}")) as policy:
            policy.timeout = options.get("timeout", 10.0)  # type: ignore[attr-defined]
            policy.reset()
            policy.act(observation())
            policy.act(observation(1.0))

    with fake(handler) as port, pytest.raises(Gr2Error) as error:
        use(port)
    text = str(error.value)
    assert "\n" not in text and ("127.0.0.1" in text or "map" in text)
    return text


def dies(connection: ServerConnection) -> None:
    connection.send(pack({}, "openpi"))
    connection.recv()
    connection.close_socket()


def stalls(connection: ServerConnection) -> None:
    connection.send(pack({}, "openpi"))
    connection.recv()
    time.sleep(0.5)


@pytest.mark.parametrize(
    ("handler", "sentence"),
    [
        (dies, "expected a running server of openpi's protocol, got a lost connection"),
        (stalls, "expected an answer within 0.2 s, got none"),
        (openpi("Traceback (most recent call last):\n  File x\nKeyError: 'observation/state'"), "failed: KeyError"),
        (openpi({"actions": np.full((2, 7), np.nan)}), "expected finite actions, got nan in column 0"),
        (openpi({"actions": np.ones((2, 8))}), "expected 7 columns .position 3, rotation 3, gripper 1., got 8"),
        (openpi({"actions": np.ones((2, 2, 7))}), r"expected actions \(rows, columns\), got shape \(2, 2, 7\)"),
        (openpi({"actions": "none"}), "expected numbers as actions, got str"),
        (openpi({"action_chunk": np.ones(7)}), "expected the key 'actions' in its answer, got action_chunk"),
        (openpi(b"\xc1"), "expected msgpack"),
        (openpi([1]), "expected a dict, got list"),
        (lambda connection: connection.send("hello"), "expected openpi's metadata first, got a text: hello"),
        (lambda connection: connection.send(b"\x93"), "expected msgpack"),
        (lambda connection: None, "got the connection closed with 1000"),
    ],
)  # fmt: skip
def test_an_openpi_server_that_fails_is_one_sentence(map_file: str, handler: Handler, sentence: str) -> None:
    text = refused(handler, "openpi", f"?map={map_file}", timeout=0.2 if handler is stalls else 10.0)
    assert re.search(sentence, text), text


@pytest.mark.parametrize(
    ("handler", "query", "sentence"),
    [
        (vla_eval({"actions": np.ones(7)}, hello={"protocol_version": 2}), "?map=calvin", "version 1, got version 2"),
        (vla_eval({"actions": np.ones(7)}, off=1), "?map=calvin", "expected the answer to message 1, got the one to 2"),
        (vla_eval("predict failed"), "?map=calvin", "failed: predict failed"),
        (vla_eval({"actions": np.ones(6)}), "?map=calvin", "expected 7 columns .* got 6"),
        (vla_eval({"actions": np.full(7, np.inf)}), "?map=calvin", "expected finite actions, got inf"),
        (
            vla_eval({"actions": np.ones(7)}, hello={"observation_params": {"absolute_action": True}}),
            "?map=calvin-delta", "expected a map of absolute actions, as .map=calvin is, .* got delta ones",
        ),
        (vla_eval({"actions": np.ones(7)}), "", r"expected \?map= with libero, .* got none"),
        (openpi({}), "?map=calvin", "expected a dict of type, payload, seq and timestamp, got no payload"),
    ],
)  # fmt: skip
def test_a_vla_eval_server_that_fails_is_one_sentence(handler: Handler, query: str, sentence: str) -> None:
    text = refused(handler, "vla-eval", query)
    assert re.search(sentence, text), text


@pytest.mark.parametrize(
    ("source", "error", "sentence"),
    [
        (
            "openpi://127.0.0.1:9?map=calvin",
            EnvironmentMissing,
            "expected a running server of openpi's protocol, got Conn",
        ),
        ("openpi://", PolicyError, r"expected an address as in openpi://host:8000\?map=FILE"),
        ("vla-eval://h:99999", PolicyError, "expected an address as in vla-eval://host:8000"),
        ("openpi://h:80/path", PolicyError, "expected an address"),
        ("openpi://h:80?mop=x", PolicyError, "expected one map=FILE after the ., got mop=x"),
        ("openpi://h:80?map=a&map=b", PolicyError, "expected one map=FILE after the ., got map=a&map=b"),
        ("openpi://h:80#map=calvin", PolicyError, "expected an address"),
        ("openpi://me:word@h:80?map=calvin", PolicyError, "expected an address"),
        ("openpi://[::1", PolicyError, "expected an address"),
        ("http://[::1", PolicyError, "expected an address as in http://host:8000; fix"),
        ("http://h:99999", PolicyError, "expected an address"),
        ("http://h:80?map=calvin", PolicyError, "expected an address"),
    ],
)
def test_an_address_that_cannot_be(source: str, error: type[Gr2Error], sentence: str) -> None:
    assert not is_of_user(source)
    with pytest.raises(error, match=sentence):
        open_policy(source)


def test_a_map_without_actions_and_chunking_elsewhere(tmp_path: Path) -> None:
    with fake(openpi({"actions": np.ones((2, 7))})) as port:
        with pytest.raises(
            ConfigError, match="map libero: expected `actions`, what the server's numbers mean, got none"
        ):
            open_policy(f"openpi://127.0.0.1:{port}?map=libero")
        with pytest.raises(PolicyError, match="--chunking inpaint: expected a released model here"):
            open_policy(f"openpi://127.0.0.1:{port}?map=libero", chunking="inpaint")


def test_signals_of_an_openpi_server_for_libero() -> None:
    signals = (Signal(name="move", width=6, reference="delta"), Signal(name="gripper", width=1, kind="gripper"))
    robot = Embodiment(
        name="libero", cameras=("agentview", "eye_in_hand"), control_hz=20,
        state=(Signal(name="state", width=8),), action=signals,
    )  # fmt: skip
    seen: list[Any] = []
    rows = np.concatenate([np.full((10, 6), 0.5), [[-1.0]] * 9 + [[1.0]]], axis=1)
    with fake(openpi({"actions": rows}, seen=seen)) as port:
        source = f"openpi://127.0.0.1:{port}?map=libero"
        assert policy_fingerprint(source, embodiment=robot)
        with closing(open_policy(source, embodiment=robot)) as policy:
            images = {name: np.zeros((256, 256, 3), np.uint8) for name in robot.cameras}
            chunk = policy.act(Observation(images=images, state=np.arange(8.0), instruction="go", time=0.0))
    assert isinstance(chunk, SignalTrajectory) and chunk.dt == 0.05 and policy.executed_steps == 5
    assert (chunk.values[:, :6] == 0.5).all() and chunk.values[:, 6].tolist() == [1] * 9 + [0]
    assert seen[0]["observation/image"].shape == (224, 224, 3) and np.array_equal(
        seen[0]["observation/state"], range(8)
    )


def test_fingerprints_tell_maps_and_servers_apart(map_file: str) -> None:
    found = []
    for metadata in ({"model": "a"}, {"model": "b"}):
        with fake(openpi({}, metadata=metadata)) as port:
            source = f"openpi://127.0.0.1:{port}?map={map_file}"
            found.append(policy_fingerprint(source))
            assert found[-1] == policy_fingerprint(source)
            Path(map_file).write_text(MAP + "# changed\n")
            found.append(policy_fingerprint(source))
            Path(map_file).write_text(MAP)
    assert len(set(found)) == 4


@pytest.mark.parametrize(
    "source",
    ["ws://h:8000", "wss://h", "OPENPI://h:8000", "vla_eval://h:8000", "127.0.0.1:8000", "openpi:127.0.0.1:8000"],
)
def test_an_unknown_beginning_of_an_address_names_the_known_ones(source: str) -> None:
    with pytest.raises(
        PolicyError, match=r"expected the address of a server as http://host:8000 \(gr2 serve\), openpi"
    ):
        open_policy(source)


def test_one_answer_too_many_is_not_taken_for_the_next(map_file: str) -> None:
    def twice(connection: ServerConnection) -> None:
        connection.send(pack({}, "openpi"))
        while True:
            connection.recv()
            for number in (0.0, 1.0):
                connection.send(pack({"actions": np.full((2, 7), number)}, "openpi"))

    with fake(twice) as port, closing(open_policy(f"openpi://127.0.0.1:{port}?map={map_file}")) as policy:
        policy.act(observation())
        time.sleep(0.2)
        with pytest.raises(PolicyError, match="expected one answer to each observation, got another one"):
            policy.act(observation(1.0))


def test_a_server_that_takes_nothing_is_not_waited_for_for_ever(map_file: str) -> None:
    """An observation larger than what the system holds for a server that has stopped reading."""
    Path(map_file).write_text(MAP.replace("image_size: 16", "image_size: 0"))
    listening = socket.create_server(("127.0.0.1", 0))
    held = []

    def deaf() -> None:
        connection, _ = listening.accept()
        held.append(connection)
        key = connection.recv(4096).decode().split("Sec-WebSocket-Key: ")[1].split("\r\n")[0]
        lines = ("HTTP/1.1 101 Switching Protocols", "Upgrade: websocket", "Connection: Upgrade")
        connection.sendall("\r\n".join((*lines, f"Sec-WebSocket-Accept: {accept_key(key)}", "", "")).encode())
        connection.sendall(b"\x82\x01\x80")  # metadata: an empty dict

    threading.Thread(target=deaf, daemon=True).start()
    large = {"static": np.zeros((3000, 3000, 3), np.uint8)}
    source = f"openpi://127.0.0.1:{listening.getsockname()[1]}?map={map_file}"
    with listening, closing(OpenpiPolicy(source, timeout=0.5)) as policy:
        began = time.monotonic()
        with pytest.raises(EnvironmentMissing, match="got one that takes no observation"):
            policy.act(observation(images=large))
        assert time.monotonic() - began < 10
    held[0].close()


def test_an_answer_that_is_too_large_is_called_so(map_file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gr2.gr_model.act.websocket_policy.MAX_BYTES", 2000)
    text = refused(openpi({"actions": np.zeros((100, 7))}), "openpi", f"?map={map_file}")
    assert "got an answer of more than 2000 bytes" in text


@pytest.mark.parametrize("scheme", ["openpi", "vla-eval"])
def test_another_server_at_the_same_address_is_noticed(scheme: str, map_file: str) -> None:
    """A server that was started anew with another model in the middle of an evaluation."""
    model = ["a"]

    def changing(connection: ServerConnection) -> None:
        if scheme == "openpi":
            openpi({"actions": np.zeros((2, 7))}, metadata={"model": model[0]})(connection)
        vla_eval({"actions": np.zeros(7)}, hello={"model_server": model[0]})(connection)

    with fake(changing) as port, closing(open_policy(f"{scheme}://127.0.0.1:{port}?map={map_file}")) as policy:
        policy.act(observation())
        policy.close()
        policy.act(observation())
        model[0] = "b"
        policy.close()
        with pytest.raises(PolicyError, match="expected the policy that was served before, got another one"):
            policy.act(observation())


ROW = {"actions": np.tile([0.0, 0, 0, 0, 0, 0, 1, 1], (3, 1)), "trajectory": "tool_poses", "dt": 0.1}


@pytest.mark.parametrize(
    ("stated", "answer", "sentence"),
    [
        ({"executed_steps": "x"}, {}, "expected executed_steps of 1 or more from the server, got 'x'"),
        ({"executed_steps": -2}, {}, "expected executed_steps of 1 or more from the server, got -2"),
        ({"executed_steps": float("nan")}, {}, "expected executed_steps of 1 or more from the server, got nan"),
        ({"embodiment": {"name": 1, "cameras": 5}}, {}, "expected a robot's embodiment from the server"),
        ({"embodiment": [1]}, {}, "expected a robot's embodiment from the server"),
        ({}, {"dt": float("inf")}, "expected dt, the seconds between rows, in its answer, got inf"),
        ({}, {"dt": "0.1"}, "expected dt, the seconds between rows, in its answer, got '0.1'"),
        ({}, {"trajectory": None}, "expected 8 columns of tool poses, joint positions or signals, got 8 of 'None'"),
    ],
)
def test_a_server_that_states_nonsense_of_itself(stated: dict[str, Any], answer: dict[str, Any], sentence: str) -> None:
    metadata = {"policy": "p", "map": {"images": {"static": "i"}, "state": {"s": ["tool_position"]}}} | stated
    with pytest.raises(PolicyError) as error, fake(openpi(ROW | answer, metadata=metadata)) as port:
        open_policy(f"openpi://127.0.0.1:{port}").act(observation())
    assert sentence in str(error.value)


def test_a_step_of_single_precision_is_read() -> None:
    metadata = {"policy": "p", "map": {"images": {}, "state": {}}, "executed_steps": 2}
    with (
        fake(openpi(ROW | {"dt": np.float32(0.1)}, metadata=metadata)) as port,
        closing(open_policy(f"openpi://127.0.0.1:{port}")) as policy,
    ):
        assert policy.act(observation()).dt == pytest.approx(0.1)


INTERLEAVED = [1.0, 0, 0, -1, 0, 0]  # a tool that points down, row by row: its columns are no right angle


@pytest.mark.parametrize(
    ("rotation", "numbers"),
    [
        ("rotation_6d", [0.0] * 6), ("rotation_6d", INTERLEAVED), ("matrix", [0.0] * 9),
        ("matrix", (-np.eye(3)).ravel()), ("quaternion_xyzw", [0.0] * 4), ("quaternion_wxyz", [0.0, 0, 0, 0.3]),
    ],
)  # fmt: skip
def test_numbers_that_are_no_rotation_are_refused_on_both_sides(tmp_path: Path, rotation: str, numbers: Any) -> None:
    file = tmp_path / "map.yaml"
    file.write_text(
        f"images: {{static: i}}\nstate: {{s: [tool_position, {{name: tool_rotation, rotation: {rotation}}}]}}\n"
        f"actions: {{columns: [position, rotation], rotation: {rotation}, dt: 0.1}}\n"
    )
    rows = np.tile(np.concatenate([np.zeros(3), numbers]), (2, 1))
    text = refused(openpi({"actions": rows}), "openpi", f"?map={file}")
    wanted = f"a unit quaternion ({rotation[-4:]})" if "quat" in rotation else f"a rotation as {rotation}"
    assert f"its actions: rotation: expected {wanted}, got" in text
    seen = open_map(str(file), None).observations
    message = {"i": np.zeros((4, 4, 3), np.uint8), "s": rows[0], "prompt": ""}
    with pytest.raises(ShapeError, match=re.escape(f"tool_rotation: expected {wanted}, got")):
        seen.read(message, robot=None, time=0.0)


@pytest.mark.parametrize(
    "image",
    [np.zeros((8, 8, 3)), np.zeros((3, 8, 8), np.uint8), np.zeros((8, 8), np.uint8), np.zeros((1, 8, 8, 3), np.uint8)],
)
def test_only_images_of_bytes_are_sent(map_file: str, image: np.ndarray[Any, Any]) -> None:
    """Floats of 0 to 1 would become black bytes."""
    with (
        fake(openpi({"actions": np.ones((2, 7))})) as port,
        closing(open_policy(f"openpi://127.0.0.1:{port}?map={map_file}")) as policy,
        pytest.raises(ShapeError, match=r"image 'static': expected uint8 \(h, w, 3\), RGB from 0 to 255, got"),
    ):
        policy.act(observation(images={"static": image}))
    with pytest.raises(ShapeError, match="image 'static': expected uint8"):
        pack_observation(observation(images={"static": image}), "s")


def test_a_map_is_compared_with_what_vla_evals_server_states(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "map.yaml").write_text(
        "images: {static: images/rgb_static}\nprompt: task_description\n"
        "actions: {reference: delta, rotation: rotation_vector, gripper: {closed: -1, open: 1}, dt: 0.1}\n"
    )
    formats = {"position": "absolute_xyz", "rotation": "euler_xyz", "gripper": "binary_close_positive"}
    spec = {name: {"name": name, "dims": 3, "format": form} for name, form in formats.items()}
    query = f"?map={tmp_path}/map.yaml"
    with fake(vla_eval({"actions": np.zeros(7)}, hello={"action_spec": spec})) as port:
        open_policy(f"vla-eval://127.0.0.1:{port}{query}").close()
        err = capfd.readouterr().err
        assert "the server states position as absolute_xyz, the map reads delta_xyz; check the map" in err
        assert "states rotation as euler_xyz, the map reads axis_angle" in err
        assert "states gripper as binary_close_positive, the map reads binary_close_negative" in err
        open_policy(f"vla-eval://127.0.0.1:{port}?map=calvin").close()
        assert "states rotation" in (err := capfd.readouterr().err) and "states position" not in err
        assert "states gripper" not in err
    handler = vla_eval({"actions": np.zeros(7)}, hello={"observation_params": {"absolute_action": True}})
    assert "expected a map of absolute actions" in refused(handler, "vla-eval", query)


# -- gr2 on both sides -------------------------------------------------------------------------------------------


class Turning:
    """Answers what it saw, turned and lifted, in numbers that no float32 holds."""

    executed_steps, embodiment = 2, TOOL_ARM

    def __init__(self) -> None:
        self.resets = 0

    def reset(self) -> None:
        self.resets += 1

    def act(self, observation: Observation) -> ActionTrajectory:
        lift = np.array([[0.0, 0.0, 0.1 * n + observation.time / 3 + self.resets] for n in range(3)])
        return ActionTrajectory(
            positions=observation.tool_position + lift, quaternions=np.repeat(observation.tool_quaternion[None], 3, 0),
            gripper=np.array([1.0, 0.0, 1.0]), dt=1 / 30, start_time=observation.time,
        )  # fmt: skip

    def close(self) -> None: ...


@contextmanager
def served(protocol: Any, keys: str = "", **options: Any) -> Iterator[int]:
    policies = PolicyServer(Turning)
    with PolicyWebSocketServer("127.0.0.1", 0, **options) as server:
        dialect = make_dialect(protocol, policies, "turning", fingerprint="f", keys=keys)
        threading.Thread(target=server.serve, args=(dialect,), daemon=True).start()
        while server._server is None:
            time.sleep(0.005)
        yield server.server_address[1]


@pytest.mark.parametrize("protocol", ["openpi", "vla-eval"])
def test_gr2_behind_gr2_answers_bit_by_bit(protocol: str) -> None:
    alone = Turning()
    with served(protocol) as port, closing(open_policy(f"{protocol}://127.0.0.1:{port}")) as policy:
        assert policy.executed_steps == 2 and policy.embodiment == TOOL_ARM  # type: ignore[attr-defined]
        assert policy.fingerprint == "f" == policy_fingerprint(f"{protocol}://127.0.0.1:{port}")  # type: ignore[attr-defined]
        for episode in range(3):
            alone.reset()
            policy.reset()
            for step in range(episode, 4):
                there, here = policy.act(observation(step / 30)), alone.act(observation(step / 30))
                assert isinstance(there, ActionTrajectory)
                # openpi's episodes are connections, so its policy was reset once
                shift = 0 if protocol == "vla-eval" else alone.resets - 1
                assert np.array_equal(there.positions, here.positions) or shift
                assert np.allclose(there.positions + [0, 0, shift], here.positions)
                assert np.array_equal(there.quaternions, here.quaternions)
                assert (there.dt, there.start_time) == (here.dt, here.start_time)
                assert np.array_equal(there.gripper, here.gripper)


@pytest.mark.parametrize(
    ("protocol", "keys"), [("openpi", "calvin-delta"), ("vla-eval", "calvin"), ("vla-eval", "calvin-delta")]
)
def test_the_servers_map_is_the_clients(protocol: str, keys: str) -> None:
    with served(protocol, keys) as port, closing(open_policy(f"{protocol}://127.0.0.1:{port}")) as policy:
        alone = Turning()
        alone.reset()
        policy.reset()
        for step in (0, 2, 4):  # without a time among the keys, requests are counted, of two rows each
            there, here = policy.act(observation(step / 30)), alone.act(observation(step / 30))
            assert isinstance(there, ActionTrajectory)
            assert np.allclose(there.positions, here.positions, atol=1e-6 if protocol == "openpi" else 1e-9)
            assert np.array_equal(there.gripper, here.gripper)


@pytest.mark.parametrize("protocol", ["openpi", "vla-eval"])
def test_a_key_is_sent_where_the_environment_holds_one(protocol: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with served(protocol, api_key="secret") as port:
        with pytest.raises(PolicyError, match=r"answers 401: .*expected Authorization: Api-Key .*set GR2_SERVE_KEY"):
            open_policy(f"{protocol}://127.0.0.1:{port}")
        monkeypatch.setenv("GR2_SERVE_KEY", "secret\r\n")  # as a file of Windows holds it
        with closing(open_policy(f"{protocol}://127.0.0.1:{port}")) as policy:
            policy.act(observation())


@pytest.mark.parametrize("key", ["  ", "schl\u00fcssel", "two\nlines"])
def test_a_key_that_no_header_holds_is_one_sentence(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with served("openpi") as port:
        monkeypatch.setenv("GR2_SERVE_KEY", key)
        for source in (f"openpi://127.0.0.1:{port}", f"http://127.0.0.1:{port}"):
            with pytest.raises(ConfigError, match="GR2_SERVE_KEY: expected a key of printable ASCII characters"):
                open_policy(source)
        with pytest.raises(ConfigError, match="--api-key: expected a key of printable ASCII"):
            serving.serve(api_key=key, port=1, threads=0)


@pytest.mark.parametrize("protocol", ["openpi", "vla-eval"])
def test_the_wrong_scheme_names_the_right_one(protocol: str) -> None:
    with served(protocol) as port:
        with pytest.raises(
            PolicyError, match=f"expected gr2's own protocol there, got '{protocol}'; name it as {protocol}://"
        ):
            open_policy(f"http://127.0.0.1:{port}")
        if protocol == "vla-eval":
            with pytest.raises(EnvironmentMissing, match=r"expected openpi's metadata within 0\.3 s, got none"):
                OpenpiPolicy(f"openpi://127.0.0.1:{port}?map=calvin", timeout=0.3)
