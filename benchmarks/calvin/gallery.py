"""The four scenes as each way of drawing shows them, on one sheet with the time that an image takes."""

from __future__ import annotations

import io
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ...contracts import Array
from ...data_pipeline.files import write_bytes
from ...errors import ConfigError, EnvironmentMissing
from ..playtable.cameras import CameraConfig
from ..playtable.environment import CAMERAS, PlayTable
from ..playtable.sampling import sample_scene
from .episodes import start_state

_PX, _GAP, _CAPTION = 200, 4, 22
_TIMED = 5


def images(*, image: Path = Path("runs/scenes.png"), calvin_root: Path | None = None, seed: int = 1) -> int:
    """Draw scenes A to D with both cameras, one column for each way of drawing, and write one image.

    Args:
        image: the sheet; its name ends in .png or .webp.
        calvin_root: a clone of mees/calvin, for columns with the official files.
        seed: of the places of blocks, doors and lights, the same in every column.

    Raises:
        ConfigError: `image` is no name of such an image.
    """
    if image.suffix not in (".png", ".webp"):
        raise ConfigError(f"--image {image}: expected a name that ends in .png or .webp, got {image.suffix!r}; fix it.")
    ways: list[tuple[str, Path | None, CameraConfig]] = [("built-in", None, CameraConfig())]
    if calvin_root is not None:
        ways += [
            ("CALVIN's files", calvin_root, CameraConfig()),
            ("light arm, no shadows", calvin_root, CameraConfig(fast=True)),
            ("EGL", calvin_root, CameraConfig(renderer="egl")),
        ]
    columns = []
    for name, root, camera in ways:
        try:
            columns.append(_column(name, list(_scenes(root, camera, seed))))
        except EnvironmentMissing as error:
            print(error)
    encoded = io.BytesIO()
    Image.fromarray(np.concatenate(columns, axis=1)).save(encoded, format=image.suffix[1:], quality=70)
    write_bytes(image, encoded.getvalue())
    print(image)
    return 0


def _scenes(root: Path | None, camera: CameraConfig, seed: int) -> Iterator[tuple[Array, float]]:
    """Yield an image of both cameras and the milliseconds that it took, scene by scene."""
    for name in "ABCD":
        env = PlayTable(name, calvin_root=root, camera=camera, render_mode=None)
        try:
            start_state(env, sample_scene(env.spec_scene, np.random.default_rng(seed)))
            times = []
            for _ in range(_TIMED):
                begin = time.perf_counter()
                drawn = [env.draw(name) for name in CAMERAS]
                times.append(1e3 * (time.perf_counter() - begin))
        finally:
            env.close()
        square = [np.asarray(Image.fromarray(one).resize((_PX, _PX), Image.Resampling.NEAREST)) for one in drawn]
        yield np.concatenate(square, axis=1), float(np.median(times))


def _column(name: str, scenes: list[tuple[Array, float]]) -> Array:
    """Put scenes below each other under the name of what drew them and its median time."""
    milliseconds = np.median([time for _, time in scenes])
    rows = np.concatenate([np.pad(image, ((0, _GAP), (0, _GAP), (0, 0)), constant_values=255) for image, _ in scenes])
    sheet = Image.new("RGB", (rows.shape[1], rows.shape[0] + _CAPTION), (255, 255, 255))
    sheet.paste(Image.fromarray(rows), (0, _CAPTION))
    text = f"{name}, {milliseconds:.0f} ms"
    ImageDraw.Draw(sheet).text((4, 4), text, fill=(20, 20, 20), font=ImageFont.load_default(13))
    return np.asarray(sheet)
