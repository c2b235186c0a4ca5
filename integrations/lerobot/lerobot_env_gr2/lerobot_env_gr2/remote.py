"""A task whose simulator runs under another Python, where pybullet has wheels (3.10, 3.11)."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np

from gr2.errors import EnvironmentMissing, SimulationError

from .environment import PlayTableTask
from .worker import receive

_WORKER = Path(__file__).with_name("worker.py")


class RemoteTask(PlayTableTask):
    """`PlayTableTask` in a process of another Python; observations, actions and seeds are the same.

    Args:
        task, options: as `PlayTableTask` takes them.
        python: the interpreter, in whose environment gr2 and pybullet are installed.
    """

    def __init__(self, task: str, *, python: str, **options: Any) -> None:
        super().__init__(task, **options)
        self._command = [python, str(_WORKER), json.dumps({"task": task, **options})]
        self._process: subprocess.Popen[bytes] | None = None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Start the task, see `PlayTableTask`; the process starts with the first one.

        Raises:
            EnvironmentMissing: the interpreter cannot be run.
        """
        if self._process is None:
            try:
                self._process = subprocess.Popen(self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            except OSError as error:
                raise EnvironmentMissing(
                    f"--env.simulator_python {self._command[0]}: expected a Python that can be run, got {error}; name "
                    "that of an environment with gr2 and pybullet."
                ) from error
        answer, arrays = self._call({"call": "reset", "seed": seed})
        return _nested(arrays), answer["info"]

    def step(self, action: np.ndarray) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        """Move for one control step, see `PlayTableTask`."""
        answer, arrays = self._call({"call": "step", "action": np.asarray(action, np.float64).tolist()})
        return _nested(arrays), answer["reward"], answer["terminated"], answer["truncated"], answer["info"]

    def render(self) -> np.ndarray:  # type: ignore[override]
        """Draw the static camera at CALVIN's size."""
        return self._call({"call": "render"})[1]["image"]

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            assert self._process.stdin is not None
            self._process.stdin.close()
            try:
                self._process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                self._process.kill()
            self._process = None

    def _call(self, call: dict[str, Any]) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        if self._process is None:
            raise SimulationError("PlayTableTask: expected a reset before the first step, got none; call reset.")
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(call).encode() + b"\n")
            self._process.stdin.flush()
            values, arrays = receive(self._process.stdout)
        except (EOFError, BrokenPipeError) as error:
            raise EnvironmentMissing(
                f"--env.simulator_python {self._command[0]}: expected a Python with gr2 and pybullet, got a process "
                "that ended (its message stands above); `pip install gr2` under Python 3.10 or 3.11 installs both."
            ) from error
        if "error" in values:
            raise SimulationError(str(values["error"]))
        return values, arrays


def _nested(arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    """Return the observation whose arrays are named by paths."""
    pixels = {name.removeprefix("pixels/"): array for name, array in arrays.items() if name.startswith("pixels/")}
    return {"pixels": pixels, "agent_pos": arrays["agent_pos"]}
