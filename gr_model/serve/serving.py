"""`gr2 serve`: any policy behind a port, in gr2's own protocol, openpi's or vla-eval's."""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from typing import Literal

from ...contracts import Chunking
from ...errors import ConfigError
from ..act.array_codec import require_serving_packages
from ..act.opening import policy_fingerprint, policy_maker
from ..act.remote import API_KEY, server_key
from ..act.wire_maps import map_text, natural_map, open_map
from .http_server import PolicyHTTPServer
from .openpi_server import OpenpiDialect
from .sessions import PolicyServer
from .vla_eval_server import VlaEvalDialect
from .websocket_server import Dialect, PolicyWebSocketServer
from .wire_session import check_map

ServedProtocol = Literal["gr2", "openpi", "vla-eval"]


def serve(
    *,
    policy: str = "pretrained",
    host: str = "127.0.0.1",
    port: int = 8000,
    protocol: ServedProtocol = "gr2",
    keys: str = "",
    api_key: str = "",
    executed_steps: int | None = None,
    chunking: Chunking = "independent",
    latency: float = 0.0,
    embodiment: str | None = None,
    max_batch: int = 64,
    max_clients: int = 256,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    threads: int = 2,
) -> None:
    """Answer observations with actions until interrupted: over HTTP, or over websockets as openpi or vla-eval.

    Args:
        policy: "pretrained" (shipped), a folder with a released model, or "file.py:name" or "package.module:name",
            which makes a policy of your own for each client (docs/calvin.md).
        host: address to listen at; 0.0.0.0 lets other machines ask (nothing is encrypted: use a trusted network).
        port: port to listen at.
        protocol: whose clients are answered: gr2's (HTTP), openpi's or vla-eval's (websockets).
        keys: of openpi's and vla-eval's messages: libero, droid, aloha, calvin, calvin-delta, or a YAML or JSON file
            (docs/serving.md); if not given, keys are named after the policy's cameras and state signals.
        api_key: what clients must state in "Authorization: Api-Key KEY"; if not given, the environment variable
            GR2_SERVE_KEY, and where that is empty, everybody is answered.
        executed_steps: control steps of each chunk carried out before the policy is asked again, if not as many as the
            policy says (5 for a released model).
        chunking: how a chunk of a released model relates to the running one: independent, averaged with it (ensemble),
            sampled as its continuation (inpaint: flow, diffusion), or what its head can (auto).
        latency: how long after its observation a chunk is followed [s]; inpainting freezes what is executed until then.
        embodiment: name of the robot to act for, where a released model serves several.
        max_batch: most observations in one forward pass.
        max_clients: most connections and most sessions at once.
        device: where a released model runs; auto takes a GPU where there is one.
        threads: CPU threads, 0 leaves torch's choice.

    Raises:
        ConfigError: an impossible number, a map of keys that does not fit, or a robot that the model does not know.
        EnvironmentMissing: the port is taken, a package is missing, or there is no CUDA device.
    """
    if min(max_batch, max_clients) < 1 or not 0 < port < 65536 or threads < 0:
        raise ConfigError(
            "serve: expected --max-batch and --max-clients of 1 or more, a port from 1 to 65535 and --threads of 0 or "
            f"more, got {max_batch}, {max_clients}, {port} and {threads}."
        )
    if keys and protocol == "gr2":
        raise ConfigError(f"--keys {keys}: expected --protocol openpi or vla-eval, got gr2; leave --keys out.")
    key = server_key(api_key, "--api-key") or server_key(os.environ.get(API_KEY, ""), API_KEY)
    with _listen(protocol, host, port, max_clients, key) as answer:  # the port first: a model takes long to load
        import torch

        from ..train.distributed import torch_device

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
        stated = f"{policy_fingerprint(policy)} {chunking} {latency:g} s {embodiment or ''}".rstrip()
        with closing(PolicyServer(make, max_batch=max_batch, max_sessions=max_clients)) as policies:
            answer(policies, policy, stated, keys)


Answer = Callable[[PolicyServer, str, str, str], None]
"""Given policies, their name and fingerprint and the name of a map of keys, answers until interrupted."""


def _listen(
    protocol: ServedProtocol, host: str, port: int, max_clients: int, api_key: str
) -> AbstractContextManager[Answer]:
    """Take the port, and give what answers there."""
    if protocol == "gr2":
        return _listen_http(host, port, max_clients, api_key)
    require_serving_packages()
    return _listen_websocket(protocol, host, port, max_clients, api_key)


@contextmanager
def _listen_http(host: str, port: int, max_clients: int, api_key: str) -> Iterator[Answer]:
    with PolicyHTTPServer(host, port, max_clients=max_clients, api_key=api_key) as server:

        def answer(policies: PolicyServer, policy: str, fingerprint: str, keys: str) -> None:
            print(f"policy {policy} listens at http://{_bracketed(host)}:{port}", file=sys.stderr, flush=True)
            server.serve(policies, policy, fingerprint=fingerprint)

        yield answer


@contextmanager
def _listen_websocket(
    protocol: Literal["openpi", "vla-eval"], host: str, port: int, max_clients: int, api_key: str
) -> Iterator[Answer]:
    with PolicyWebSocketServer(host, port, max_clients=max_clients, api_key=api_key) as server:

        def answer(policies: PolicyServer, policy: str, fingerprint: str, keys: str) -> None:
            dialect = make_dialect(protocol, policies, policy, fingerprint=fingerprint, keys=keys)
            print(f"policy {policy} listens at {protocol}://{_bracketed(host)}:{port}", file=sys.stderr, flush=True)
            server.serve(dialect)

        yield answer


def _bracketed(host: str) -> str:
    """Return a host as an address holds it."""
    return f"[{host}]" if ":" in host else host


def make_dialect(
    protocol: Literal["openpi", "vla-eval"],
    policies: PolicyServer,
    policy: str,
    *,
    fingerprint: str = "",
    keys: str = "",
) -> Dialect:
    """Return a protocol over the policies of a server.

    Args:
        protocol: which one.
        policies: what answers.
        policy: its name, stated to clients.
        fingerprint: of weights or source, stated to clients; that of the map is added.
        keys: name of a map, empty for the natural one.

    Raises:
        ConfigError: there is no such map, or it does not give what the policy reads.
    """
    robot = policies.embodiment
    wire_map = open_map(keys, robot) if keys else natural_map(robot, protocol)
    check_map(wire_map, policies, keys or "(none)")
    if keys:
        fingerprint += f" {keys} {hashlib.sha256(map_text(keys).encode()).hexdigest()[:16]}"
    make = OpenpiDialect if protocol == "openpi" else VlaEvalDialect
    return make(policies, wire_map, policy=policy, fingerprint=fingerprint)
