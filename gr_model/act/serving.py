"""`gr2 serve`: any policy behind a port."""

from __future__ import annotations

import sys
from contextlib import closing
from typing import Literal

from ...contracts import Chunking
from ...errors import ConfigError
from .http_server import PolicyHTTPServer
from .opening import policy_fingerprint, policy_maker
from .sessions import PolicyServer


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
    max_clients: int = 256,
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
        max_clients: most connections and most sessions at once.
        device: where a released model runs; auto takes a GPU where there is one.
        threads: CPU threads, 0 leaves torch's choice.

    Raises:
        ConfigError: an impossible number, or a robot that the model does not know.
        EnvironmentMissing: the port is taken, or there is no CUDA device.
    """
    if min(max_batch, max_clients) < 1 or not 0 < port < 65536 or threads < 0:
        raise ConfigError(
            "serve: expected --max-batch and --max-clients of 1 or more, a port from 1 to 65535 and --threads of 0 or "
            f"more, got {max_batch}, {max_clients}, {port} and {threads}."
        )
    with PolicyHTTPServer(host, port, max_clients=max_clients) as server:  # the port first: a model takes long to load
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
            print(f"policy {policy} listens at http://{host}:{port}", file=sys.stderr, flush=True)
            server.serve(policies, policy, fingerprint=stated)
