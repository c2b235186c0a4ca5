"""The published openpi-client and vla-eval on the other side, each in an environment of its own (nightly)."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
import sysconfig
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gr2.contracts import ActionTrajectory, Observation
from gr2.embodiment import TOOL_ARM
from gr2.gr_model.act.opening import open_policy, policy_maker
from gr2.gr_model.serve.serving import make_dialect
from gr2.gr_model.serve.sessions import PolicyServer
from gr2.gr_model.serve.websocket_server import PolicyWebSocketServer

pytestmark = pytest.mark.nightly


def environment(folder: Path, *packages: str) -> Path:
    """Make a virtual environment with packages and return its Python; skip where pip cannot."""
    subprocess.run([sys.executable, "-m", "venv", folder], check=True, timeout=300)
    python = folder / "bin" / "python"
    done = subprocess.run(
        [python, "-m", "pip", "install", "--quiet", *packages], capture_output=True, text=True, timeout=900
    )
    if done.returncode:
        pytest.skip(f"pip cannot install {' '.join(packages)}: {done.stderr.strip().splitlines()[-1:]}")
    return python


@pytest.fixture(scope="module")
def openpi_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return environment(
        tmp_path_factory.mktemp("openpi") / "env", "openpi-client==0.1.2", "typing_extensions"
    )  # it imports the latter and does not require it


@pytest.fixture(scope="module")
def vla_eval_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("vla_eval") / "env"
    python = environment(folder, "vla-eval==0.8.0")
    site = next((folder / "lib").glob("python*/site-packages"))
    # gr2 and what it needs, behind the packages of this environment
    (site / "gr2_tests.pth").write_text(f"import site; site.addsitedir({sysconfig.get_paths()['purelib']!r})\n")
    return python


class Still:
    """Stays where the tool was at the start of an episode; remembers what it saw."""

    executed_steps, embodiment = 4, TOOL_ARM
    seen: list[Observation] = []  # noqa: RUF012 (of all sessions)

    def __init__(self) -> None:
        self.pose: tuple[Any, Any] | None = None

    def reset(self) -> None:
        self.pose = None

    def act(self, observation: Observation) -> ActionTrajectory:
        if observation.instruction == "fail":
            raise RuntimeError("no idea")
        Still.seen.append(observation)
        self.pose = self.pose or (observation.tool_position, observation.tool_quaternion)
        return ActionTrajectory(
            positions=np.repeat(self.pose[0][None], 5, 0), quaternions=np.repeat(self.pose[1][None], 5, 0),
            gripper=np.ones(5), dt=1 / 30, start_time=observation.time,
        )  # fmt: skip

    def close(self) -> None: ...


@contextmanager
def served(protocol: Any, keys: str = "") -> Iterator[int]:
    Still.seen.clear()
    policies = PolicyServer(Still)
    with PolicyWebSocketServer("127.0.0.1", 0) as server:
        dialect = make_dialect(protocol, policies, "still", fingerprint="f", keys=keys)
        threading.Thread(target=server.serve, args=(dialect,), daemon=True).start()
        while server._server is None:
            time.sleep(0.01)
        yield server.server_address[1]


def run(python: Path, script: str, *arguments: object) -> Any:
    """Run a script and return the JSON of its last line."""
    command = [python, "-c", script, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.strip().splitlines()[-1])


@contextmanager
def running(python: Path, script: str) -> Iterator[int]:
    """Run a server's script, whose first line is its port."""
    process = subprocess.Popen([python, "-u", "-c", script], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield int(process.stdout.readline())
    finally:
        process.terminate()
        process.wait(10)


OPENPI_CLIENT = """
import json, sys
import numpy as np
from openpi_client.websocket_client_policy import WebsocketClientPolicy
policy = WebsocketClientPolicy("127.0.0.1", int(sys.argv[1]))
observation = {
    "observation/images/static": np.full((224, 224, 3), 3, np.uint8),
    "observation/images/gripper": np.zeros((224, 224, 3), np.uint8),
    "observation/state/tool_position": np.array([0.1, 0.2, 0.3]),
    "observation/state/tool_rotation": np.array([0.0, 0.0, 0.0, 1.0], np.float32),
    "observation/state/gripper": np.float32(1.0), "observation/state/gripper_command": np.array([1.0]),
    "observation/state/joint_positions": np.zeros(7), "prompt": "stay",
}
answers = [policy.infer(observation) for _ in range(2)]
policy.reset()
error = ""
try:
    policy.infer(observation | {"prompt": "fail"})
except RuntimeError as failure:
    error = str(failure)
actions = answers[0]["actions"]
print(json.dumps({
    "metadata": policy.get_server_metadata()["policy"], "dtype": str(actions.dtype), "shape": actions.shape,
    "row": actions[0].tolist(), "timing": sorted(answers[1]["server_timing"]), "error": error,
}))
"""


def test_openpis_client_asks_our_server(openpi_python: Path) -> None:
    with served("openpi") as port:
        got = run(openpi_python, OPENPI_CLIENT, port)
    assert got["metadata"] == "still" and got["dtype"] == "float32" and got["shape"] == [5, 8]
    assert np.allclose(got["row"], [0.1, 0.2, 0.3, 0, 0, 0, 1, 1])
    assert got["timing"] == ["infer_ms", "prev_total_ms"]
    assert "Error in inference server" in got["error"] and "RuntimeError: no idea" in got["error"]
    assert Still.seen[0].images["static"].shape == (224, 224, 3) and Still.seen[1].time == pytest.approx(4 / 30)


OPENPI_SERVER = """
import numpy as np
from openpi_client import msgpack_numpy
from websockets.sync.server import serve

def handle(connection):
    connection.send(msgpack_numpy.packb({"model": "fixed"}))
    while True:
        observation = msgpack_numpy.unpackb(connection.recv())
        state = observation["observation/state"]
        assert observation["observation/image"].dtype == np.uint8 and observation["prompt"]
        actions = np.tile(np.concatenate([state[:6], [-1.0]]), (10, 1)).astype(np.float32)
        connection.send(msgpack_numpy.packb({"actions": actions, "server_timing": {"infer_ms": np.float64(1.0)}}))

with serve(handle, "127.0.0.1", 0, compression=None, max_size=None) as server:
    print(server.socket.getsockname()[1])
    server.serve_forever()
"""


def observation(seconds: float = 0.0) -> Observation:
    return Observation(
        images={name: np.zeros((64, 64, 3), np.uint8) for name in ("static", "gripper")},
        tool_position=np.array([0.3, 0.1, 0.4]), tool_quaternion=np.array([0.0, 0.6, 0.0, 0.8]), gripper_opening=1.0,
        gripper_command=1.0, joint_positions=np.zeros(7), instruction="stay", time=seconds,
    )  # fmt: skip


def test_our_client_asks_a_server_of_openpis_codec(openpi_python: Path, tmp_path: Path) -> None:
    (tmp_path / "map.yaml").write_text(
        "images: {static: observation/image}\nimage_size: 224\n"
        "state: {observation/state: [tool_position, {name: tool_rotation, rotation: rotation_vector}, gripper]}\n"
        "actions: {rotation: rotation_vector, gripper: {closed: 1, open: -1}, dt: 0.05, executed_steps: 8}\n"
    )
    with (
        running(openpi_python, OPENPI_SERVER) as port,
        closing(open_policy(f"openpi://127.0.0.1:{port}?map={tmp_path}/map.yaml")) as policy,
    ):
        policy.reset()
        trajectory = policy.act(observation())
        policy.reset()
        policy.act(observation())
    assert isinstance(trajectory, ActionTrajectory) and policy.executed_steps == 8
    assert np.allclose(trajectory.positions, np.tile([0.3, 0.1, 0.4], (10, 1)), atol=1e-6)
    assert np.allclose(trajectory.quaternions, [0, 0.6, 0, 0.8], atol=1e-6) and np.all(trajectory.gripper == 1)


VLA_EVAL_RUN = """
import json, sys
import vla_eval
benchmark = {
    "benchmark": "gr2.benchmarks.calvin.vla_eval:CalvinBenchmark", "mode": "sync", "episodes_per_task": 1,
    "max_tasks": 2, "max_steps": 30, "params": {"num_sequences": 2},
}
config = {"server": {"url": f"ws://127.0.0.1:{sys.argv[1]}"}, "benchmarks": [benchmark], "output_dir": sys.argv[2]}
results = vla_eval.run(config, docker=False, no_save=True)
print(json.dumps(results, default=str))
"""


@pytest.mark.parametrize("keys", ["calvin", "calvin-delta"])
def test_vla_eval_runs_gr2s_calvin_against_our_server(vla_eval_python: Path, tmp_path: Path, keys: str) -> None:
    """The whole circle: what the benchmark sends is read, what is answered holds the arm where it is."""
    with served("vla-eval", keys) as port:
        results = run(vla_eval_python, VLA_EVAL_RUN, port, tmp_path)
    text = json.dumps(results)
    assert "failure_reason" not in text or '"failure_reason": null' in text, text[:2000]
    assert len(Still.seen) == 2 * 8, "30 steps of each sequence, asked every 4"
    for seen in (Still.seen[:8], Still.seen[8:]):
        moved = np.linalg.norm([o.tool_position - seen[0].tool_position for o in seen], axis=1)
        assert moved.max() < 5e-3, "the arm stays"
        assert all(o.gripper_opening > 0.9 and o.gripper_command == 1 for o in seen)
        assert np.allclose([o.time for o in seen], np.arange(8) * 4 / 30)
        assert seen[0].images["static"].shape == seen[0].images["gripper"].shape == (200, 200, 3)


VLA_EVAL_SERVER = """
import time
import numpy as np
from vla_eval.api import serve_background
from vla_eval.model_servers.predict import PredictModelServer
from vla_eval.specs import GRIPPER_CLOSE_POS, IMAGE_RGB, POSITION_ABSOLUTE, ROTATION_AA

class Hold(PredictModelServer):
    def predict(self, obs, ctx):
        assert obs["images"]["rgb_static"].shape == (200, 200, 3) and obs["task_description"] == "stay"
        turn = np.array([0.0, 0.1 * (ctx.step + 1), 0.0])
        return {"actions": np.concatenate([obs["states"][:3], turn, [-1.0]])}
    def get_action_spec(self):
        return {"position": POSITION_ABSOLUTE, "rotation": ROTATION_AA, "gripper": GRIPPER_CLOSE_POS}
    def get_observation_spec(self):
        return {"rgb_static": IMAGE_RGB}
    def get_observation_params(self):
        return {"send_state": True, "absolute_action": True}

handle = serve_background(Hold())
print(handle.port, flush=True)
time.sleep(600)
"""


def test_our_client_asks_vla_evals_server(vla_eval_python: Path) -> None:
    with (
        running(vla_eval_python, VLA_EVAL_SERVER) as port,
        closing(open_policy(f"vla-eval://127.0.0.1:{port}?map=calvin")) as policy,
    ):
        policy.reset()
        made = [policy.act(observation(step / 30)) for step in range(3)]
        policy.reset()
        made.append(policy.act(observation(0.0)))
    assert policy.executed_steps == 1
    for trajectory, step in zip(made, (0, 1, 2, 0), strict=True):
        assert isinstance(trajectory, ActionTrajectory) and trajectory.gripper[0] == 1
        assert np.allclose(trajectory.positions[0], [0.3, 0.1, 0.4], atol=1e-6)
        assert np.allclose(trajectory.quaternions[0][1], np.sin(0.05 * (step + 1)), atol=1e-6)


EIGHT_CLIENTS = """
import pickle, sys, threading, time
from contextlib import closing
from gr2.gr_model.act.opening import open_policy, policy_maker

observation = pickle.load(sys.stdin.buffer)
ready = threading.Barrier(9)

def ask():
    with closing(open_policy(f"{sys.argv[1]}://127.0.0.1:{sys.argv[2]}")) as policy:
        policy.reset()
        policy.act(observation)
        ready.wait()
        for _ in range(int(sys.argv[3])):
            policy.act(observation)
        ready.wait()

for _ in range(8):
    threading.Thread(target=ask).start()
ready.wait()
began = time.perf_counter()
ready.wait()
print(time.perf_counter() - began)
"""


@pytest.mark.parametrize("protocol", ["openpi", "vla-eval"])
def test_eight_clients_get_nine_tenths_of_the_rate_in_process(protocol: Any) -> None:
    """The shipped policy, asked by eight threads here and by eight clients of another process, in turn."""
    import torch

    torch.set_num_threads(1)
    policies = PolicyServer(policy_maker("pretrained"))
    seen, asked = observation(), 12

    def here() -> float:
        ready = threading.Barrier(9)

        def ask(session: str) -> None:
            policies.reset(session)
            policies.act(session, seen)
            ready.wait()
            for _ in range(asked):
                policies.act(session, seen)
            ready.wait()

        for number in range(8):
            threading.Thread(target=ask, args=(str(number),)).start()
        ready.wait()
        began = time.perf_counter()
        ready.wait()
        return time.perf_counter() - began

    def there(port: int) -> float:
        command = [sys.executable, "-c", EIGHT_CLIENTS, protocol, str(port), str(asked)]
        done = subprocess.run(command, input=pickle.dumps(seen), capture_output=True, check=True, timeout=600)
        return float(done.stdout)

    with PolicyWebSocketServer("127.0.0.1", 0) as server, closing(policies):
        dialect = make_dialect(protocol, policies, "pretrained")
        threading.Thread(target=server.serve, args=(dialect,), daemon=True).start()
        pairs = [(here(), there(server.server_address[1])) for _ in range(5)]
    rates = [[8 * asked / seconds for seconds in pair] for pair in pairs]
    print("observations a second in process and behind the server:", np.round(rates, 1).tolist())
    assert np.median([served / alone for alone, served in rates]) >= 0.9
