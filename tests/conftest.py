"""What several test modules share: the cases that lie beside them, the arms, a simulator."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))


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
