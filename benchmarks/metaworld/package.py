"""The installed Meta-World: its environments, its experts and MuJoCo; where it is missing, one sentence."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from ...errors import EnvironmentMissing


@dataclass(frozen=True, kw_only=True)
class MetaWorldPackage:
    """What is used of the packages.

    environments: class of each task's environment; experts: class of each task's scripted policy; mujoco: the module.
    """

    environments: Mapping[str, Callable[[], Any]]
    experts: Mapping[str, Callable[[], Any]]
    mujoco: Any


@cache
def load() -> MetaWorldPackage:
    """Import Meta-World and MuJoCo. On Linux MuJoCo draws through EGL unless MUJOCO_GL says otherwise.

    Raises:
        EnvironmentMissing: they are not installed.
    """
    if sys.platform == "linux":
        os.environ.setdefault("MUJOCO_GL", "egl")  # needs no screen; read when MuJoCo is imported
    try:
        import mujoco
        from metaworld.env_dict import ALL_V3_ENVIRONMENTS
        from metaworld.policies import ENV_POLICY_MAP
    except ImportError as error:
        raise EnvironmentMissing(
            f"Meta-World needs metaworld 3 and MuJoCo, which cannot be imported ({error}); "
            "pip install 'gr2[metaworld]'."
        ) from error
    # its experts' steps may be longer than an action can be, which the environments clip
    warnings.filterwarnings("ignore", message=r"Constant\(s\) may be too high", category=UserWarning)
    return MetaWorldPackage(environments=ALL_V3_ENVIRONMENTS, experts=ENV_POLICY_MAP, mujoco=mujoco)
