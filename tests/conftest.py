"""What several test modules share: the cases that lie beside them, the arms, a simulator."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    """Keep torch at one thread, whatever a test trains with: workers share the cores, and threads that wait spin."""
    import torch

    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "set_num_threads", lambda count: None)
        yield


@pytest.fixture(params=["kinova_gen3", "panda"])
def robot(request: pytest.FixtureRequest) -> Any:
    """Give each arm."""
    from wbc_cases import ROBOTS

    return ROBOTS[request.param]


@pytest.fixture
def client() -> Iterator[int]:
    """Give a pybullet without a window."""
    import pybullet

    number = pybullet.connect(pybullet.DIRECT)
    yield number
    pybullet.disconnect(number)


@pytest.fixture(scope="module")
def workers_at_once() -> Iterator[list[str]]:
    """Record and act in this process; give the names under which workers would be started."""
    from stage_cases import pool_at_once

    pools = [f"gr2.benchmarks.{module}.worker_pool" for module in ("demonstrations.record", "simulation.jobs")]
    with pytest.MonkeyPatch.context() as patch:
        for pool in pools:
            patch.setattr(pool, pool_at_once)
        yield pools
