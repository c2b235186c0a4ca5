"""Policies from outside: a class of the user's, a server; what they do wrong is named in one sentence."""

from __future__ import annotations

import socket
import struct
import sys
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pybullet
import pytest
import torch
from model_cases import make_model, small_config

from gr2.benchmarks.calvin.episodes import task_start
from gr2.benchmarks.calvin.evaluate import evaluate
from gr2.benchmarks.calvin.suite import CalvinSuite, EvaluationConfig
from gr2.benchmarks.playtable.environment import PlayTable
from gr2.benchmarks.rollout import rollout
from gr2.benchmarks.simulation.control import make_control
from gr2.benchmarks.simulation.episodes import run_task
from gr2.benchmarks.simulation.fit import check_fit
from gr2.benchmarks.simulation.jobs import Job, run_jobs
from gr2.contracts import ActionTrajectory, Observation
from gr2.embodiment import TOOL_ARM, Embodiment, Signal
from gr2.errors import DataError, EnvironmentMissing, Gr2Error, PolicyError
from gr2.gr_model.act.opening import open_policy, policy_fingerprint, policy_maker
from gr2.gr_model.act.policy import GR2Policy, act_together
from gr2.gr_model.act.remote import (
    RemotePolicy,
    pack,
    pack_observation,
    pack_trajectory,
    unpack,
    unpack_observation,
    unpack_trajectory,
)
from gr2.gr_model.serve import serving
from gr2.gr_model.serve.http_server import PolicyHTTPServer
from gr2.gr_model.serve.sessions import PolicyServer

USER_POLICY = '''
import numpy as np
from gr2.contracts import ActionTrajectory

class Still:
    """Stay where the tool is."""
    def reset(self):
        pass
    def act(self, observation):
        k = 10
        return ActionTrajectory(
            positions=np.repeat(observation.tool_position[None], k, 0),
            quaternions=np.repeat(observation.tool_quaternion[None], k, 0),
            gripper=np.ones(k), dt=1 / 30, start_time=observation.time)

class Nan(Still):
    def act(self, observation):
        good = super().act(observation)
        return ActionTrajectory(positions=good.positions * np.nan, quaternions=good.quaternions,
                                gripper=good.gripper, dt=good.dt, start_time=good.start_time)

class Silent(Still):
    def act(self, observation):
        return None

class Tidy(Still):
    """Note what happens, at once where several are asked."""
    events = []
    executed_steps = 2
    def act(self, observation):
        self.events.append("act")
        return super().act(observation)
    def act_together(self, policies, observations):
        self.events.append(f"together {len(policies)}")
        return [Still.act(policy, seen) for policy, seen in zip(policies, observations)]
    def close(self):
        self.events.append("close")

class Few(Still):
    def act_together(self, policies, observations):
        return []

class NoAct:
    def reset(self):
        pass

class Picky:
    def __init__(self, size):
        pass

number = 3
'''


@pytest.fixture(scope="module")
def world() -> Iterator[PlayTable]:
    env = PlayTable("D", render_mode=None)
    yield env
    env.close()


@pytest.fixture
def user_file(tmp_path: Path) -> Path:
    path = tmp_path / "mine.py"
    path.write_text(USER_POLICY)
    return path


def observation(seed: int = 0, instruction: str = "open the drawer") -> Observation:
    rng = np.random.default_rng(seed)
    return Observation(
        images={name: rng.integers(0, 255, (32, 32, 3)).astype(np.uint8) for name in ("static", "gripper")},
        tool_position=rng.normal(size=3),
        tool_quaternion=np.array([0.0, 0.0, 0.0, 1.0]),
        gripper_opening=0.5,
        gripper_command=1.0,
        joint_positions=rng.normal(size=7),
        instruction=instruction,
        time=0.1 * seed,
    )


def test_a_class_of_the_user_acts(world: PlayTable, user_file: Path) -> None:
    policy = open_policy(f"{user_file}:Still")
    task_start(world, "open_drawer", 1, 0)
    control = make_control("calvin", world)
    control.reset()
    result = run_task(
        world, policy, control, "open_drawer", instruction="open the drawer", executed_steps=policy.executed_steps,
        max_steps=6,
    )  # fmt: skip
    policy.close()  # the class has none
    assert not result.success and result.steps == 6


def test_a_policy_says_how_many_steps_of_a_chunk_are_carried_out(tmp_path: Path, user_file: Path) -> None:
    events = tmp_path / "asked"
    text = (
        USER_POLICY
        + f"""
class Short(Still):
    executed_steps = 2
    def act(self, observation):
        with open({str(events)!r}, "a") as file:
            file.write("a")
        chunk = super().act(observation)
        return ActionTrajectory(positions=chunk.positions[:3], quaternions=chunk.quaternions[:3],
                                gripper=chunk.gripper[:3], dt=chunk.dt, start_time=chunk.start_time)
"""
    )
    user_file.write_text(text)
    common = {"policy": f"{user_file}:Short", "sequences": 0, "starts": 1, "tasks": "open_drawer", "max_steps": 6}
    own = evaluate(out=tmp_path / "own", num_workers=1, **common)
    assert own["executed_steps"] == 2 and events.read_text() == "aaa"
    given = evaluate(out=tmp_path / "given", num_workers=1, executed_steps=3, **common)
    assert given["executed_steps"] == 3 and events.read_text() == "aaaaa"
    with pytest.raises(PolicyError, match=r"at least the 4 control steps .* got 3 rows of 0\.0333333 s, 3 steps"):
        evaluate(out=tmp_path / "long", num_workers=1, executed_steps=4, **common)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("gripper=-good.gripper", "a gripper from -1 to -1, expected 0 .closed. to 1"),
        ("positions=good.positions + 50.0", "positions up to 50.* expected meters in the robot's base frame"),
        ("quaternions=5 * good.quaternions", "quaternions of length 5, expected unit ones in the order x, y, z, w"),
    ],
)
def test_chunks_that_are_all_refused_end_an_evaluation(
    tmp_path: Path, user_file: Path, change: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    text = """
from dataclasses import replace
class Mixed(Still):
    asked = 0
    def act(self, observation):
        good = super().act(observation)
        Mixed.asked += 1
        return replace(good, CHANGE) if Mixed.asked > KEPT else good
"""
    common = {"policy": f"{user_file}:Mixed", "sequences": 0, "starts": 1, "tasks": "open_drawer", "max_steps": 11}
    user_file.write_text(USER_POLICY + text.replace("CHANGE", change).replace("KEPT", "0"))
    with pytest.raises(PolicyError, match=words):
        evaluate(out=tmp_path / "all", num_workers=1, **common)
    user_file.write_text(USER_POLICY + text.replace("CHANGE", change).replace("KEPT", "1"))
    some = evaluate(out=tmp_path / "some", num_workers=1, **common)
    assert sum(some["controls"]["wbc"]["rejected"].values()) == 2
    assert "wbc: 2 chunks refused by the controller: rejected_" in capsys.readouterr().out


def test_the_experts_act_as_a_policy(world: PlayTable) -> None:
    policy = open_policy("scripted", expert=lambda: CalvinSuite(world, seed=0).expert("calvin", 5))
    task_start(world, "turn_on_led", 1, 0)
    control = make_control("calvin", world)
    control.reset()
    acted = {"instruction": "", "executed_steps": 5, "max_steps": 60}
    assert run_task(world, policy, control, "turn_on_led", **acted).success
    policy.close()


def test_without_a_simulator_there_are_no_experts() -> None:
    with pytest.raises(PolicyError, match="--policy scripted: expected a policy that needs no simulator"):
        policy_maker("scripted")


def test_an_evaluation_leaves_no_simulator_behind(tmp_path: Path) -> None:
    def connected() -> list[int]:
        return [client for client in range(64) if pybullet.isConnected(client)]

    config = EvaluationConfig(
        policy="scripted", weights="", scene="D", calvin_root="", executed_steps=5, max_steps=5, image_px=16,
        renderer="tiny", fast_drawing=False, backend="gr2", seed=0,
    )  # fmt: skip
    before = connected()
    for index in range(2):
        run_jobs(config, [Job(control="calvin", kind="open_drawer", index=index)], "none", tmp_path)
    assert connected() == before


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Nan", "act.. failed.*expected finite numbers"),
        ("Silent", "expected act.. to return an ActionTrajectory, got NoneType"),
    ],
)
def test_a_wrong_answer_is_named(user_file: Path, name: str, message: str) -> None:
    policy = open_policy(f"{user_file}:{name}")
    with pytest.raises(PolicyError, match=message):
        policy.act(observation())


def test_a_policy_that_answers_too_few_is_named(user_file: Path) -> None:
    policy = open_policy(f"{user_file}:Few")
    with pytest.raises(PolicyError, match=r"expected act_together.. to return 1 trajectories, got 0"):
        policy.act_together([policy], [observation()])  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("NoAct", "without act"),
        ("Picky", "must work without arguments"),
        ("number", "expected a class or function 'number'"),
        ("Missing", "found none there"),
    ],
)
def test_what_is_no_policy_is_refused(user_file: Path, name: str, message: str) -> None:
    with pytest.raises(PolicyError, match=message):
        open_policy(f"{user_file}:{name}")


def test_modules_that_cannot_be_imported_are_named(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("def f(:\n")
    for source in (f"{tmp_path}/broken.py:f", f"{tmp_path}/absent.py:f", "no_such_package.policies:f"):
        with pytest.raises(PolicyError, match=r"cannot be imported|expected a Python file"):
            open_policy(source)


def test_messages_come_back() -> None:
    sent = observation(3, "größer")
    got, session = unpack_observation(pack_observation(sent, "s1"))
    assert session == "s1" and got.instruction == "größer" and got.time == sent.time
    assert np.array_equal(got.state_vector(), sent.state_vector())
    assert all(np.array_equal(got.images[name], sent.images[name]) for name in sent.images)
    trajectory = ActionTrajectory(
        positions=np.ones((4, 3)), quaternions=np.ones((4, 4)), gripper=np.zeros(4), dt=0.1, start_time=2.0
    )
    back = unpack_trajectory(pack_trajectory(trajectory))
    assert np.array_equal(back.positions, trajectory.positions) and (back.dt, back.start_time) == (0.1, 2.0)


def test_messages_hold_no_objects() -> None:
    with pytest.raises(DataError, match="expected an npz file"):
        unpack(b"nothing")
    with pytest.raises(DataError, match="Object arrays cannot be loaded"):
        unpack(pack({"a": np.array({"x": 1}, dtype=object)}))
    with pytest.raises(DataError, match="expected the arrays"):
        unpack_observation(pack({"time": np.array(1.0)}))


def small_policy() -> GR2Policy:
    """Make a policy whose tokenizers are stand-ins: codes are pixel values, words their lengths."""
    model = small_policy_model()
    grids = {camera.name: camera.grid for camera in model.config.cameras}

    def encode_images(frames: np.ndarray) -> np.ndarray:
        n = grids["static"][0] * grids["static"][1]
        return frames.reshape(len(frames), -1)[:, :n].astype(np.int64) % model.config.codebook_size

    def encode_text(texts: object) -> tuple[np.ndarray, np.ndarray]:
        words = [str(s).split() for s in texts]  # type: ignore[attr-defined]
        features = np.zeros((len(words), model.config.text_length, model.config.text_dim), np.float32)
        mask = np.zeros(features.shape[:2], bool)
        for row, text in enumerate(words):
            for column, word in enumerate(text[: model.config.text_length]):
                features[row, column] = len(word)
                mask[row, column] = True
        return features, mask

    return GR2Policy(model, encode_images=encode_images, encode_text=encode_text, control_hz=30.0, executed_steps=1)


_MODEL: list[torch.nn.Module] = []


def small_policy_model():  # type: ignore[no-untyped-def]
    if not _MODEL:
        from gr2.gr_model.model.config import CameraSpec

        cameras = (CameraSpec(name="static", grid=(4, 4)), CameraSpec(name="gripper", grid=(4, 4)))
        _MODEL.append(make_model(small_config(cameras=cameras)))
    return _MODEL[0]


def test_acting_together_equals_acting_alone() -> None:
    seen = [observation(i, text) for i, text in enumerate(["open the drawer", "push", "lift the red block up"])]
    alone = [small_policy().act(o) for o in seen]
    policies = [small_policy() for _ in seen]
    together = act_together(policies, seen)
    for left, right in zip(alone, together, strict=True):
        assert np.allclose(left.positions, right.positions, atol=1e-5)
        assert left.start_time == right.start_time
    policies[0].reset()
    mixed = act_together(policies, seen)  # histories of different length
    assert np.allclose(mixed[0].positions, alone[0].positions, atol=1e-5)


def test_a_pass_that_fails_is_not_remembered() -> None:
    good, bad = small_policy(), small_policy()

    def no_words(texts: object) -> tuple[np.ndarray, np.ndarray]:
        raise ValueError("no words")

    bad.encode_text = no_words
    with pytest.raises(ValueError, match="no words"):
        act_together([good, bad], [observation(0), observation(1)])
    assert len(good.history) == len(bad.history) == 0
    assert len(good.act(observation(0)).positions) and len(good.history) == 1


@contextmanager
def listening(policies: PolicyServer, name: str = "small", **options: Any) -> Iterator[str]:
    """Serve policies at a free port and return the address."""
    fingerprint = options.pop("fingerprint", "")
    with PolicyHTTPServer("127.0.0.1", 0, **options) as server:
        serve = partial(server.serve, policies, name, fingerprint=fingerprint)
        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()
    policies.close()


@pytest.fixture
def address() -> Iterator[str]:
    with listening(PolicyServer(small_policy, max_wait=0.02)) as url:
        yield url


def test_a_server_answers_many_clients_each_with_its_own_history(address: str) -> None:
    local, answers = small_policy(), {}
    expected = [local.act(observation(i)).positions for i in range(3)]

    def client(number: int) -> None:
        policy = open_policy(address)
        policy.reset()
        answers[number] = [policy.act(observation(i)).positions for i in range(3)]

    threads = [threading.Thread(target=client, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(answers) == 4
    for got in answers.values():
        assert all(np.allclose(a, b, atol=1e-5) for a, b in zip(got, expected, strict=True))


def ask(server: PolicyServer, number: int, answers: dict[int, ActionTrajectory]) -> None:
    answers[number] = server.act(f"session {number}", observation(number))


@pytest.mark.parametrize("name", ["Still", "Tidy"])
def test_any_policy_is_served_together_where_it_can(user_file: Path, name: str) -> None:
    server = PolicyServer(policy_maker(f"{user_file}:{name}"), max_wait=0.3)
    assert server.executed_steps == (5 if name == "Still" else 2)
    answers: dict[int, ActionTrajectory] = {}
    threads = [threading.Thread(target=ask, args=(server, number, answers)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number in range(3):
        assert np.array_equal(answers[number].positions[0], observation(number).tool_position)
    server.close()
    if name == "Tidy":
        events = sys.modules["gr2_user_policy_mine"].Tidy.events
        assert events == ["together 3", "close", "close", "close"]


def test_an_evaluation_closes_the_users_policy(user_file: Path, tmp_path: Path) -> None:
    config = EvaluationConfig(
        policy=f"{user_file}:Tidy", weights="", scene="D", calvin_root="", executed_steps=5, max_steps=5, image_px=16,
        renderer="tiny", fast_drawing=False, backend="gr2", seed=0,
    )  # fmt: skip
    run_jobs(config, [Job(control="calvin", kind="open_drawer", index=0)], "none", tmp_path)
    assert sys.modules["gr2_user_policy_mine"].Tidy.events == ["act", "close"]


def test_a_server_states_the_robot_of_its_policy(address: str, user_file: Path) -> None:
    policy = RemotePolicy(address)
    assert policy.embodiment == small_policy().embodiment
    policy.close()
    server = PolicyServer(policy_maker(f"{user_file}:Still"))
    assert server.embodiment is None
    server.close()


def other_robot() -> Embodiment:
    joints = (Signal(name="joint_positions", width=6, kind="joint_position"),)
    return Embodiment(name="so101", cameras=("static",), state=joints, action=joints, control_hz=30.0)


def test_a_policy_of_another_robot_is_refused(world: PlayTable) -> None:
    policy = small_policy()
    check_fit(policy, world)
    model = policy.model
    for robot, sentence in (
        (
            other_robot(),
            r"signals of .*, got a policy trained on so101 \(state signal joint_positions",
        ),
        (replace(TOOL_ARM, cameras=("wrist", "front")), r"one of the cameras static, gripper .* sees wrist, front"),
    ):
        policy.model = SimpleNamespace(config=replace(model.config, embodiments=(robot,)))  # type: ignore[assignment]
        with pytest.raises(PolicyError, match=sentence):
            check_fit(policy, world)
    policy.model = SimpleNamespace(config=replace(model.config, embodiments=(replace(TOOL_ARM, control_hz=10.0),)))  # type: ignore[assignment]
    check_fit(policy, world)


def test_an_evaluation_refuses_another_robot_before_any_episode(tmp_path: Path) -> None:
    file = tmp_path / "stranger.py"
    robot = f"Embodiment.from_dict({other_robot().to_dict()!r})"
    file.write_text(f"""
from gr2.embodiment import Embodiment

class Stranger:
    embodiment = {robot}
    def reset(self):
        raise AssertionError("an episode began")
    def act(self, observation):
        raise AssertionError("an episode began")
""")
    config = EvaluationConfig(
        policy=f"{file}:Stranger", weights="", scene="D", calvin_root="", executed_steps=5, max_steps=5, image_px=16,
        renderer="tiny", fast_drawing=False, backend="gr2", seed=0,
    )  # fmt: skip
    with pytest.raises(PolicyError, match="got a policy trained on so101"):
        run_jobs(config, [Job(control="calvin", kind="open_drawer", index=0)], "none", tmp_path)
    with pytest.raises(PolicyError, match="got a policy trained on so101"):
        rollout(policy=f"{file}:Stranger", tasks="open_drawer", control="calvin", video=tmp_path / "rollout.mp4")


def test_a_policy_that_changes_has_another_fingerprint(address: str, user_file: Path, tmp_path: Path) -> None:
    name = f"{user_file}:Still"
    first = policy_fingerprint(name)
    assert first == policy_fingerprint(name) and len(first) == 64
    user_file.write_text(USER_POLICY + "\n# another line\n")
    second = policy_fingerprint(name)
    assert second != first
    weights = tmp_path / "weights"
    user_file.write_text(USER_POLICY + f"\nStill.fingerprint = staticmethod(lambda: open({str(weights)!r}).read())\n")
    seen = {first, second}
    for stated in ("of May", "of June"):
        weights.write_text(stated)
        seen.add(policy_fingerprint(name))
    user_file.write_text(USER_POLICY + "\nStill.fingerprint = 'of July'\n")
    assert len(seen | {policy_fingerprint(name)}) == 5
    for wrong, sentence in (("lambda self: 'x'", "failed"), ("7", "got int"), ("property(str)", "got property")):
        user_file.write_text(USER_POLICY + f"\nStill.fingerprint = {wrong}\n")
        with pytest.raises(PolicyError, match=f"fingerprint.*{sentence}"):
            policy_fingerprint(name)
    assert policy_fingerprint("scripted") == "" and len(policy_fingerprint("pretrained")) == 64
    assert policy_fingerprint(address) == ""


def test_modules_beside_a_policy_count_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    helper, file = tmp_path / "gr2_test_helper.py", tmp_path / "uses_helper.py"
    file.write_text("import json\nimport numpy as np\nfrom gr2_test_helper import Base\nclass Mine(Base): ...\n")
    seen = []
    for number in (1, 2):
        sys.modules.pop("gr2_test_helper", None)
        helper.write_text(f"class Base:\n    number = {number:100d}\n" + "#" * number)
        seen += [policy_fingerprint(f"{file}:Mine"), policy_fingerprint(f"{file}:Mine")]
    assert seen[0] == seen[1] != seen[2] == seen[3]
    sys.modules.pop("gr2_test_helper", None)


def test_a_server_that_changes_its_policy_ends_an_evaluation(user_file: Path, tmp_path: Path) -> None:
    with listening(PolicyServer(policy_maker(f"{user_file}:Still")), fingerprint="second") as url:
        config = EvaluationConfig(
            policy=url, weights="first", scene="D", calvin_root="", executed_steps=1, max_steps=1, image_px=16,
            renderer="tiny", fast_drawing=False, backend="gr2", seed=0,
        )  # fmt: skip
        jobs = [Job(control="calvin", kind="open_drawer", index=0)]
        with pytest.raises(PolicyError, match=r"began with \(first\), got another one \(second\)"):
            run_jobs(config, jobs, "none", tmp_path)
        assert len(run_jobs(replace(config, weights="second"), jobs, "none", tmp_path)) == 1


def test_a_server_states_the_fingerprint_of_its_policy(user_file: Path) -> None:
    with listening(PolicyServer(policy_maker(f"{user_file}:Still")), fingerprint="abc") as url:
        assert policy_fingerprint(url) == "abc"


def test_serving_states_whatever_decides_about_answers(user_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stated = []

    def stop(self: PolicyHTTPServer, policies: PolicyServer, name: str, *, fingerprint: str) -> None:
        stated.append(fingerprint)

    monkeypatch.setattr(PolicyHTTPServer, "serve", stop)
    for latency in (0.0, 0.1):
        serving.serve(policy=f"{user_file}:Still", latency=latency, threads=0, port=free_port())
    weights = policy_fingerprint(f"{user_file}:Still")
    assert stated == [f"{weights} independent 0 s", f"{weights} independent 0.1 s"]


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def test_a_policy_that_is_not_there_leaves_no_folder(tmp_path: Path) -> None:
    for policy in (str(tmp_path / "missing"), "nowhere.py:Policy", "http://127.0.0.1:9"):
        with pytest.raises(Gr2Error, match=r"expected a"):
            evaluate(policy=policy, out=tmp_path / "out", sequences=1)
    assert not (tmp_path / "out").exists()


def test_a_server_says_what_is_wrong(address: str) -> None:
    policy = RemotePolicy(address)
    blind = Observation(**{name: getattr(observation(), name) for name in observation().__slots__} | {"images": {}})
    with pytest.raises(PolicyError, match="400: GR2Policy: expected an image"):
        policy.act(blind)
    assert policy.act(observation()).positions.shape[1] == 3
    policy.close()


def test_nobody_at_the_address_is_named() -> None:
    with pytest.raises(EnvironmentMissing, match="expected a running `gr2 serve`"):
        RemotePolicy("http://127.0.0.1:9")
    with pytest.raises(Gr2Error, match="expected an address"):
        RemotePolicy("https://host")


def test_clients_that_go_away_or_send_nonsense_leave_no_traceback(address: str, capfd: pytest.CaptureFixture) -> None:
    host, port = address.removeprefix("http://").split(":")
    for request in (
        b"POST /act HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\nab",
        "POST /act HTTP/1.1\r\nHost: a\r\nContent-Length: \u00b2\r\n\r\n".encode("latin-1"),
        b"POST /act HTTP/1.1\r\nHo",
    ):
        with socket.create_connection((host, int(port)), timeout=5) as client:
            client.sendall(request)
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # a reset, not an end
    answer = urllib.request.urlopen(f"{address}/info", timeout=5).read()
    assert b"executed_steps" in answer
    assert "Traceback" not in capfd.readouterr().err
