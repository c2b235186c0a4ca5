"""What imagined frames continue: an image or the beginning of a clip, at the model's frame rate and size."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from ...contracts import Array
from ...data_pipeline.video.reader import is_video, open_video
from ...errors import ConfigError, DataError

if TYPE_CHECKING:
    from ...gr_model.act.loading import Assembled

_FRAMES_AT_ONCE = 32
"""Frames of a clip that are held before they are resized."""


@dataclass(frozen=True, kw_only=True)
class Start:
    """Images to continue, at the model's frame rate and size, camera -> uint8 `[f h w 3]`.

    real: what came after the images; no frames for a single image.
    frame_s: time from frame to frame [s].
    """

    images: dict[str, Array]
    real: dict[str, Array]
    frame_s: float

    @property
    def num_frames(self) -> int:
        """Images of each camera."""
        return len(next(iter(self.images.values())))


def read_start(
    parts: Assembled,
    image: Path | Mapping[str, Path] | None,
    clip: Path | Mapping[str, Path] | None,
    num_frames: int,
) -> Start:
    """Read the start of a rollout from an image or a clip (or one for each camera), resized for the model.

    A clip is read at the model's frame rate: its first `max_context` frames are the start, `num_frames` more are real.

    Raises:
        ConfigError: image and clip together, neither, or a camera that the model does not know.
        DataError: a file that is missing or broken.
    """
    if (image is None) == (clip is None):
        raise ConfigError("imagine: expected either --image or --clip, got both or neither; name one of them.")
    config = parts.release.model.config
    cameras = [camera.name for camera in config.cameras]
    source = image if clip is None else clip
    files = dict(source) if isinstance(source, Mapping) else {cameras[0]: Path(str(source))}
    unknown = sorted(set(files) - set(cameras))
    if unknown or not files:
        raise ConfigError(f"imagine: expected cameras of {cameras}, got {unknown}; name them as the model does.")
    frame_s = parts.release.frame_step / parts.release.control_hz
    h = config.max_context
    if clip is None:
        frames = {name: parts.resize(_read_image(file)) for name, file in files.items()}
    else:
        frames = {name: _read_clip(file, frame_s, h + num_frames, parts.resize) for name, file in files.items()}
    shortest = min(map(len, frames.values()))
    return Start(
        images={name: values[: min(h, shortest)] for name, values in frames.items()},
        real={name: values[h:shortest] for name, values in frames.items()},
        frame_s=frame_s,
    )


def _read_image(file: Path) -> Array:
    if is_video(file):
        raise DataError(f"{file}: expected an image to start from, got a video; give it as --clip.")
    try:
        with Image.open(file) as image:
            return np.asarray(image.convert("RGB"))[None]
    except FileNotFoundError as error:
        raise DataError(f"{file}: no such file, expected an image; check the path.") from error
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(
            f"{file}: expected an image, got a file that is none or broken ({error}); save it again."
        ) from error


def _read_clip(file: Path, frame_s: float, most: int, resize: Callable[[Array], Array]) -> Array:
    """Read the frames of a video that lie nearest to every `frame_s` [s], at most `most`, resized."""
    with open_video(file) as reader:
        times = reader.times
        wanted = np.arange(0.0, times[-1] + 1e-6, frame_s)[:most]
        nearest = np.searchsorted((times[1:] + times[:-1]) / 2, wanted)
        blocks = [nearest[i : i + _FRAMES_AT_ONCE] for i in range(0, len(nearest), _FRAMES_AT_ONCE)]
        return np.concatenate([resize(reader.get_batch(block)) for block in blocks])
