"""Probes of this machine, each run in its own process because a broken driver ends the process that loads it.

`python -m gr2.benchmarks.doctor_probes NAME` prints a JSON line {"name", "state", "detail"} before and after
each check.
"""

from __future__ import annotations

import io
import json
import sys
import tempfile
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np

from ..errors import EnvironmentMissing

FRAMES, SIZE = 8, 64


def begin(name: str) -> None:
    """Announce a check, so that a crash can be distinguished from a check that was never reached."""
    print(json.dumps({"name": name, "state": "begun", "detail": ""}), flush=True)


def finish(name: str, detail: str, *, state: str = "ok") -> None:
    """Report the outcome of a check."""
    print(json.dumps({"name": name, "state": state, "detail": detail}), flush=True)


def attempt(name: str, check: Callable[[], str]) -> None:
    """Run a check that returns what it found; any error becomes its outcome."""
    begin(name)
    try:
        finish(name, check())
    except EnvironmentMissing as error:
        finish(name, str(error), state="failed")
    except Exception as error:
        finish(name, f"{type(error).__name__}: {error}", state="failed")


def probe_video() -> None:
    """Encode a moving square as H.264 and read it back through PyAV and decord."""
    clip = np.full((FRAMES, SIZE, SIZE, 3), 60, dtype=np.uint8)
    for index in range(FRAMES):
        clip[index, 16:48, 4 * index : 4 * index + 24] = 200
    content: dict[str, bytes] = {}

    def encode() -> str:
        import av

        from .report.media import encode_mp4

        content["mp4"] = encode_mp4(list(clip), Fraction(10))
        return f"PyAV {av.__version__}, {len(content['mp4'])} bytes"

    def decode_av() -> str:
        import av

        with av.open(io.BytesIO(content["mp4"]), mode="r") as container:
            frames = np.stack(
                [frame.to_ndarray(format="rgb24") for frame in container.decode(container.streams.video[0])]
            )
        return _compare(frames, clip)

    def decode_decord() -> str:
        import decord

        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "probe.mp4"
            path.write_bytes(content["mp4"])
            reader = decord.VideoReader(str(path), num_threads=1)
            return f"decord {decord.__version__}, " + _compare(reader.get_batch(list(range(FRAMES))).asnumpy(), clip)

    attempt("h264 encoding", encode)
    attempt("h264 decoding, PyAV", decode_av)
    attempt("h264 decoding, decord", decode_decord)


def probe_simulator() -> None:
    """Draw a box with PyBullet's software renderer."""

    def draw() -> str:
        import pybullet

        client = pybullet.connect(pybullet.DIRECT)
        return _draw(client, pybullet.ER_TINY_RENDERER)

    attempt("PyBullet software renderer", draw)


def probe_egl() -> None:
    """Draw a box with PyBullet's EGL plug-in, the fast renderer of machines with a graphics card."""

    def draw() -> str:
        import importlib.util

        import pybullet

        found = importlib.util.find_spec("eglRenderer")
        if found is None or found.origin is None:
            raise EnvironmentMissing("the eglRenderer plug-in is not installed beside pybullet")
        client = pybullet.connect(pybullet.DIRECT)
        if pybullet.loadPlugin(found.origin, "_eglRendererPlugin", physicsClientId=client) < 0:
            raise EnvironmentMissing("the eglRenderer plug-in does not load")
        return _draw(client, pybullet.ER_BULLET_HARDWARE_OPENGL)

    attempt("PyBullet EGL renderer", draw)


def probe_torch() -> None:
    """Import torch and what is built on it, and look for a CUDA device."""

    def load_torch() -> str:
        import torch

        return f"torch {torch.__version__}, {torch.get_num_threads()} threads"

    def cuda() -> str:
        import torch

        if not torch.cuda.is_available():
            raise EnvironmentMissing("none found")
        free, total = torch.cuda.mem_get_info()
        return f"{torch.cuda.get_device_name(0)}, {free / 2**30:.0f} of {total / 2**30:.0f} GiB free"

    def taming() -> str:
        from taming.modules.diffusionmodules.model import Decoder, Encoder

        return f"{Encoder.__name__} and {Decoder.__name__} found"

    def clip() -> str:
        import open_clip

        return f"open_clip {open_clip.__version__}"

    attempt("import torch", load_torch)
    attempt("CUDA device", cuda)
    attempt("import taming", taming)
    attempt("import open_clip", clip)


PROBES: dict[str, Callable[[], None]] = {
    "video": probe_video,
    "simulator": probe_simulator,
    "egl": probe_egl,
    "torch": probe_torch,
}
"""Name on the command line -> probe."""

CHECKS: dict[str, tuple[str, ...]] = {
    "video": ("h264 encoding", "h264 decoding, PyAV", "h264 decoding, decord"),
    "simulator": ("PyBullet software renderer",),
    "egl": ("PyBullet EGL renderer",),
    "torch": ("import torch", "CUDA device", "import taming", "import open_clip"),
}
"""Probe -> the checks that it reports, in their order."""


def _compare(frames: np.ndarray, clip: np.ndarray) -> str:
    if frames.shape != clip.shape:
        raise EnvironmentMissing(f"expected frames {clip.shape}, got {frames.shape}")
    error = float(np.abs(frames.astype(int) - clip.astype(int)).mean())
    if error > 10:
        raise EnvironmentMissing(f"decoded frames differ from the encoded ones by {error:.1f} of 255")
    return f"{len(frames)} frames, mean error {error:.1f} of 255"


def _draw(client: int, renderer: int) -> str:
    import pybullet

    shape = pybullet.createVisualShape(
        pybullet.GEOM_BOX, halfExtents=[0.3] * 3, rgbaColor=[1, 0, 0, 1], physicsClientId=client
    )
    pybullet.createMultiBody(baseVisualShapeIndex=shape, physicsClientId=client)
    view = pybullet.computeViewMatrix([2, 0, 1], [0, 0, 0], [0, 0, 1])
    lens = pybullet.computeProjectionMatrixFOV(45, 1, 0.1, 10)
    image = pybullet.getCameraImage(SIZE, SIZE, view, lens, renderer=renderer, physicsClientId=client)
    pixels = np.asarray(image[2], dtype=np.uint8).reshape(SIZE, SIZE, 4).astype(int)
    red = int(np.sum(pixels[..., 0] - pixels[..., 1] > 60))
    pybullet.disconnect(client)
    if red < 50:
        raise EnvironmentMissing(f"expected a red box, got {red} red pixels of {SIZE * SIZE}")
    return f"a box drawn, {red} red pixels"


if __name__ == "__main__":
    PROBES[sys.argv[1]]()
