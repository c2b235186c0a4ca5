"""The simulator in a Python of its own: reads calls from standard input, answers on standard output.

A call is one line of JSON. An answer is one line of JSON, followed by the bytes of the arrays that it lists. Run by
`RemoteTask` as a file, under a Python that has gr2 and pybullet but neither LeRobot nor this package.
"""

from __future__ import annotations

import json
import os
import sys
from typing import IO, Any

import numpy as np


def send(stream: IO[bytes], values: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
    """Write one answer; arrays are named by paths such as `pixels/static`."""
    listed = [[name, array.dtype.str, list(array.shape)] for name, array in arrays.items()]
    stream.write(json.dumps({**values, "arrays": listed}).encode() + b"\n")
    for array in arrays.values():
        stream.write(np.ascontiguousarray(array).tobytes())
    stream.flush()


def receive(stream: IO[bytes]) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Read one answer.

    Raises:
        EOFError: the other process has ended.
    """
    line = stream.readline()
    if not line.endswith(b"\n"):
        raise EOFError("the process has ended")
    values, arrays = json.loads(line), {}
    for name, kind, shape in values.pop("arrays"):
        dtype = np.dtype(kind)
        data = stream.read(dtype.itemsize * int(np.prod(shape)))
        arrays[name] = np.frombuffer(data, dtype).reshape(shape).copy()
    return values, arrays


def _flat(observation: dict[str, Any]) -> dict[str, np.ndarray]:
    images = {f"pixels/{name}": image for name, image in observation["pixels"].items()}
    return {**images, "agent_pos": observation["agent_pos"]}


def _answer(environment: Any, call: dict[str, Any]) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    if call["call"] == "reset":
        observation, info = environment.reset(seed=call["seed"])
        return {"info": info}, _flat(observation)
    if call["call"] == "step":
        observation, reward, terminated, truncated, info = environment.step(np.asarray(call["action"]))
        end = {"reward": reward, "terminated": terminated, "truncated": truncated, "info": info}
        return end, _flat(observation)
    return {}, {"image": environment.render()}


def main() -> None:
    """Make the task that the first argument describes, and answer until the input ends."""
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # pybullet prints
    from environment import PlayTableTask  # type: ignore[import-not-found]

    from gr2.errors import Gr2Error

    environment = PlayTableTask(**json.loads(sys.argv[1]))
    for line in sys.stdin.buffer:
        try:
            values, arrays = _answer(environment, json.loads(line))
        except Gr2Error as error:
            values, arrays = {"error": str(error)}, {}
        send(out, values, arrays)
    environment.close()


if __name__ == "__main__":
    main()
