"""Score how surely hands act in a clip: a default without weights, and MediaPipe with a model file of the user."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import numpy as np
from scipy import ndimage

from ...contracts import Array
from ...errors import CheckpointError, EnvironmentMissing
from .quality import check_frames, shrink

_ROWS = 80


class HandDetector(Protocol):
    """Scores a clip from a few probed frames; picklable, so that worker processes can use it."""

    def __call__(self, frames: Array) -> float:
        """Score how surely hands act in the clip, from 0 to 1.

        Args:
            frames: 12-16 frames spread over the clip, uint8 `[f h w 3]`, 160-256 px on the short side.

        Raises:
            DataError: the frames are not uint8 `[f h w 3]`.
        """
        ...


class SkinMotionHands:
    """Find skin-colored things that keep moving; the default, without weights.

    White balance first (shades of gray), then skin chroma in YCrCb scaled by brightness, then the share of the moving
    image that is skin. A pixel moves where it differs from the frame before and from the frame after, so that what a
    robot uncovers does not count. Specks are dropped; frames of which skin color covers 60 % (a camera over wood, sand
    or a face) count as none. The score is that share over 0.5, less where under 0.2 % of the image is moving skin.

    It is a color test, with all that follows:

    - It is biased by skin tone and light. Chroma boundaries like these were drawn on images of mostly light and
      medium skin. Very dark skin in dim light, over-exposed light skin, gloves, tattoos and colored light are missed;
      a clip of them scores low however clear the hands are. Do not use it where such a loss would skew a data set.
    - Faces, wood, leather, cardboard, copper and bread that move score like hands.
    - A single still hand scores 0: hands must act.

    On real clips (14 frames, 160 px) hands kneading score 0.57, cutting 1.0, wrestling 0.59, and over-exposed hands at
    make-up only 0.33; robots score 0.11 to 0.17 with gray arms, and 0.37 and 0.43 where a copper-tinted pot or a wooden
    table moves or takes shadows. 0.5 separates these nine but for the make-up: a ranking, not a measurement. A filter
    that matters should use `MediapipeHands` or another detector.

    Source: Chai and Ngan, Face segmentation using skin-color map in videophone applications, 1999 (chroma in YCrCb);
    Finlayson and Trezzi, Shades of gray and color constancy, 2004 (white balance).
    """

    def __call__(self, frames: Array) -> float:
        """Score uint8 `[f h w 3]`; fewer than three frames show no lasting motion and score 0."""
        check_frames(frames)
        if len(frames) < 3:
            return 0.0
        balanced = _white_balance(shrink(frames, _ROWS))
        moves = np.abs(np.diff(balanced, axis=0)).max(-1) > 15
        moving = ndimage.median_filter((moves[1:] & moves[:-1]).astype(np.uint8), (1, 3, 3)).astype(bool)
        skin = _is_skin(balanced[1:-1])
        skin &= skin.mean((1, 2), keepdims=True) < 0.6
        hands = ndimage.binary_opening(moving & skin, np.ones((1, 2, 2), bool))
        share = hands.sum() / max(int(moving.sum()), 1)
        return float(min(share / 0.5, 1.0) * min(hands.mean() / 0.002, 1.0))


def _white_balance(frames: Array) -> Array:
    """Scale the channels of float `[f h w 3]` so that what is bright in all frames together becomes gray."""
    level = np.mean((frames / 255) ** 12, axis=(0, 1, 2), dtype=np.float64) ** (1 / 12)
    gain = level.max() / np.maximum(level, 1e-3)
    balanced: Array = np.minimum(frames * gain.astype(np.float32), 255)
    return balanced


def _is_skin(frames: Array) -> Array:
    """Test the chroma of RGB `[f h w 3]`, scaled to a luma of 128 so that shade does not matter: bool `[f h w]`."""
    red, green, blue = np.moveaxis(frames, -1, 0)
    luma = 0.299 * red + 0.587 * green + 0.114 * blue
    scale = 128 / np.maximum(luma, 16)
    cr, cb = 0.713 * (red - luma) * scale, 0.564 * (blue - luma) * scale
    skin: Array = (luma > 30) & (cr > 10) & (cr < 45) & (cb > -50) & (cb < 0) & (cr > -0.5 * cb)
    return skin


class MediapipeHands:
    """Find hands with MediaPipe's hand landmarker; needs the package and a model file, and downloads neither.

    The score is the mean over the frames of the most certain hand in each, 0 for a frame without one.

    Source: Zhang et al., MediaPipe Hands: On-device Real-time Hand Tracking, 2020.
    """

    def __init__(self, model: Path) -> None:
        """Name the model; it is loaded with the first clip, once in each process.

        Args:
            model: `hand_landmarker.task`, as published with MediaPipe Tasks.

        Raises:
            CheckpointError: there is no such file.
            EnvironmentMissing: mediapipe is not installed.
        """
        if not model.is_file():
            raise CheckpointError(
                f"{model}: no such file, expected a hand_landmarker.task of MediaPipe; copy it there."
            )
        _import_mediapipe()
        self.model = model
        self._landmarker: Any = None

    def __reduce__(self) -> tuple[type[MediapipeHands], tuple[Path]]:
        """Pickle the path alone; the loaded model belongs to one process."""
        return type(self), (self.model,)

    def __call__(self, frames: Array) -> float:
        """Score uint8 `[f h w 3]`."""
        check_frames(frames)
        mediapipe = _import_mediapipe()
        if self._landmarker is None:
            self._landmarker = self._load(mediapipe)
        scores = []
        for frame in frames:
            image = mediapipe.Image(image_format=mediapipe.ImageFormat.SRGB, data=np.ascontiguousarray(frame))
            found = self._landmarker.detect(image).handedness
            scores.append(max((hand[0].score for hand in found), default=0.0))
        return float(np.mean(scores))

    def _load(self, mediapipe: Any) -> Any:
        tasks = mediapipe.tasks
        options = tasks.vision.HandLandmarkerOptions(
            base_options=tasks.BaseOptions(model_asset_path=str(self.model)), num_hands=2
        )
        try:
            return tasks.vision.HandLandmarker.create_from_options(options)
        except (RuntimeError, ValueError) as error:
            raise CheckpointError(
                f"{self.model}: MediaPipe cannot load it ({error}); expected a hand_landmarker.task, copy it again."
            ) from error


def _import_mediapipe() -> Any:
    try:
        import mediapipe
    except (ImportError, OSError) as error:
        raise EnvironmentMissing(
            f"mediapipe cannot be imported ({error}); install it with `pip install mediapipe`, or use SkinMotionHands."
        ) from error
    return mediapipe
