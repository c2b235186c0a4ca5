"""`gr2 serve`: any policy behind HTTP. Observations that wait at the same moment are answered together if it can."""

from __future__ import annotations

import json
import queue
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import closing
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Literal

from ...contracts import Chunking, Observation, Policy, Trajectory
from ...embodiment import Embodiment
from ...errors import ConfigError, EnvironmentMissing, Gr2Error
from .opening import policy_fingerprint, policy_maker
from .remote import MAX_BYTES, pack_trajectory, unpack_observation, unpack_session

_FORGET_AFTER = 3600.0
"""A session that has not asked for so long [s] is forgotten."""


@dataclass
class _Session:
    policy: Policy
    last_seen: float = field(default_factory=time.monotonic)


class PolicyServer:
    """A policy for each session: a thread gathers what waits and answers it, in one go where the policy offers that.

    Args:
        make: makes the policy of a new session; all are of one kind.
        max_batch: most observations in one go.
        max_wait: how long the first one waits for others [s].
    """

    def __init__(self, make: Callable[[], Policy], *, max_batch: int = 64, max_wait: float = 0.002) -> None:
        self.make, self.max_batch, self.max_wait = make, max_batch, max_wait
        self._spare: Policy | None = make()  # the first session gets it
        self.executed_steps = self._spare.executed_steps
        trained = getattr(self._spare, "embodiment", None)
        self.embodiment = trained if isinstance(trained, Embodiment) else None
        self._sessions: dict[str, _Session] = {}
        self._lock = threading.Lock()
        self._waiting: queue.Queue[tuple[Policy, Observation, Future[Trajectory]]] = queue.Queue()
        threading.Thread(target=self._answer, daemon=True).start()

    def reset(self, session: str) -> None:
        """Begin an episode of a session."""
        self._policy(session).reset()

    def act(self, session: str, observation: Observation) -> Trajectory:
        """Wait for the trajectory of a session's observation."""
        future: Future[Trajectory] = Future()
        self._waiting.put((self._policy(session), observation, future))
        return future.result()

    def close(self) -> None:
        """Close the policies of all sessions."""
        with self._lock:
            policies = [session.policy for session in self._sessions.values()]
            policies += [] if self._spare is None else [self._spare]
            self._sessions, self._spare = {}, None
        for policy in policies:
            policy.close()

    def _policy(self, session: str) -> Policy:
        with self._lock:
            now = time.monotonic()
            for name in [n for n, s in self._sessions.items() if now - s.last_seen > _FORGET_AFTER]:
                self._sessions.pop(name).policy.close()
            found = self._sessions.get(session)
            if found is None:
                policy, self._spare = self._spare or self.make(), None
                found = self._sessions[session] = _Session(policy)
            found.last_seen = now
            return found.policy

    def _answer(self) -> None:
        while True:
            batch = [self._waiting.get()]
            until = time.monotonic() + self.max_wait
            while len(batch) < self.max_batch:
                try:
                    batch.append(self._waiting.get(timeout=max(0.0, until - time.monotonic())))
                except queue.Empty:
                    break
            policies, observations, futures = zip(*batch, strict=True)
            together = getattr(policies[0], "act_together", None)
            if together is None or len(batch) == 1:
                self._answer_alone(batch)
                continue
            try:
                answers: Sequence[Trajectory] = together(policies, observations)
            except Exception:  # whoever sent something unusable gets the error, the others their answer
                self._answer_alone(batch)
                continue
            for future, answer in zip(futures, answers, strict=True):
                future.set_result(answer)

    @staticmethod
    def _answer_alone(batch: Sequence[tuple[Policy, Observation, Future[Trajectory]]]) -> None:
        for policy, observation, future in batch:
            try:
                future.set_result(policy.act(observation))
            except Exception as error:
                future.set_exception(error)


def make_server(policy: PolicyServer, name: str, host: str, port: int, *, fingerprint: str = "") -> ThreadingHTTPServer:
    """Return a server that listens; `serve_forever` answers.

    Args:
        policy: what answers.
        name: stated to clients.
        host: address to listen at.
        port: port to listen at.
        fingerprint: of weights or source and of what else decides about answers, stated to clients.

    Raises:
        EnvironmentMissing: the port cannot be had.
    """

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            """Name the policy that answers here and the robot it was trained on."""
            if self.path == "/info":
                robot = None if policy.embodiment is None else policy.embodiment.to_dict()
                info = {"policy": name, "executed_steps": policy.executed_steps, "embodiment": robot}
                info |= {"fingerprint": fingerprint}
                self._send(200, json.dumps(info).encode())
            else:
                self._send(404, b"expected GET /info, POST /reset or POST /act")

        def do_POST(self) -> None:
            """Reset a session, or answer its observation."""
            stated = self.headers.get("Content-Length") or ""
            length = int(stated) if stated.isdigit() else 0
            if not 0 < length <= MAX_BYTES:
                self.close_connection = True
                self._send(413, f"expected a Content-Length of 1 to {MAX_BYTES}, got {stated!r}".encode())
                return
            body = self.rfile.read(length)
            try:
                if self.path == "/reset":
                    policy.reset(unpack_session(body))
                    self._send(200, b"")
                elif self.path == "/act":
                    observation, session = unpack_observation(body)
                    self._send(200, pack_trajectory(policy.act(session, observation)))
                else:
                    self._send(404, b"expected GET /info, POST /reset or POST /act")
            except Gr2Error as error:
                self._send(400, str(error).encode())
            except Exception as error:
                self._send(500, repr(error).encode())

        def _send(self, status: int, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Keep quiet: a line for each control step helps nobody."""

    try:
        server = ThreadingHTTPServer((host, port), Handler)
    except OSError as error:
        raise EnvironmentMissing(
            f"--host {host} --port {port}: expected a free port, got {error.strerror}; choose another one."
        ) from error
    server.daemon_threads = True
    return server


def serve(
    *,
    policy: str = "pretrained",
    host: str = "127.0.0.1",
    port: int = 8000,
    executed_steps: int | None = None,
    chunking: Chunking = "independent",
    latency: float = 0.0,
    embodiment: str | None = None,
    max_batch: int = 64,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    threads: int = 2,
) -> None:
    """Answer observations with trajectories over HTTP until interrupted.

    Args:
        policy: "pretrained" (shipped), a folder with a released model, or "file.py:name" or "package.module:name",
            which makes a policy of your own for each client (docs/calvin.md).
        host: address to listen at; 0.0.0.0 lets other machines ask (there is no password: use a trusted network).
        port: port to listen at.
        executed_steps: control steps of each chunk carried out before the policy is asked again, if not as many as the
            policy says (5 for a released model).
        chunking: how a chunk of a released model relates to the running one: independent, averaged with it (ensemble),
            sampled as its continuation (inpaint: flow, diffusion), or what its head can (auto).
        latency: how long after its observation a chunk is followed [s]; inpainting freezes what is executed until then.
        embodiment: name of the robot to act for, where a released model serves several.
        max_batch: most observations in one forward pass.
        device: where a released model runs; auto takes a GPU where there is one.
        threads: CPU threads, 0 leaves torch's choice.

    Raises:
        ConfigError: an impossible number, or a robot that the model does not know.
        EnvironmentMissing: the port is taken, or there is no CUDA device.
    """
    import torch

    from ..train.distributed import torch_device

    if max_batch < 1 or not 0 < port < 65536:
        raise ConfigError(f"serve: expected --max-batch >= 1 and a port up to 65535, got {max_batch} and {port}.")
    if threads:
        torch.set_num_threads(threads)
    make = policy_maker(
        policy,
        executed_steps=executed_steps,
        device=torch_device(device),
        chunking=chunking,
        latency=latency,
        embodiment=embodiment,
    )
    sessions = PolicyServer(make, max_batch=max_batch)
    stated = f"{policy_fingerprint(policy)} {chunking} {latency:g} s {embodiment or ''}".rstrip()
    with closing(sessions), make_server(sessions, policy, host, port, fingerprint=stated) as server:
        print(f"policy {policy} listens at http://{host}:{port}", file=sys.stderr, flush=True)
        server.serve_forever()
