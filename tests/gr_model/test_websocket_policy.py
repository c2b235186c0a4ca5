"""`openpi://` and `vla-eval://` policies against servers that answer well, wrongly, late, or not at all."""

from __future__ import annotations

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

from gr2.contracts import ActionTrajectory, JointTrajectory, Observation, SignalTrajectory
from gr2.embodiment import TOOL_ARM, Embodiment, Signal
from gr2.errors import ConfigError, EnvironmentMissing, Gr2Error, PolicyError
from gr2.gr_model.act.array_codec import pack, unpack
from gr2.gr_model.act.opening import is_of_user, open_policy, policy_fingerprint
from gr2.gr_model.act.websocket_policy import OpenpiPolicy, websocket_policy
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
        with closing(websocket_policy(f"{scheme}://127.0.0.1:{port}{query}")) as policy:
            policy.timeout = options.get("timeout", 10.0)
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
    import re

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
            "?map=calvin-delta", "expected .map=calvin, since the server asks for absolute_action: True",
        ),
        (vla_eval({"actions": np.ones(7)}), "", r"expected \?map= with libero, .* got none"),
        (openpi({}), "?map=calvin", "expected a dict of type, payload, seq and timestamp, got no payload"),
    ],
)  # fmt: skip
def test_a_vla_eval_server_that_fails_is_one_sentence(handler: Handler, query: str, sentence: str) -> None:
    import re

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
        ("openpi://h:80?mop=x", PolicyError, "expected an address"),
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
        monkeypatch.setenv("GR2_SERVE_KEY", "secret")
        with closing(open_policy(f"{protocol}://127.0.0.1:{port}")) as policy:
            policy.act(observation())
