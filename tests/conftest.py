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
