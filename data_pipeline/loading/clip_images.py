"""Images of single cameras from video shards, decoded where they are collected, for training image tokenizers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from ...contracts import Array
from ...errors import DataError
from ..locations import Location, as_location
from ..store.columns import ABSENT, open_columns
from ..store.stages import VIDEO_STAGES, read_manifest
from .clip_windows import ClipWindows
from .loader import Batch
from .token_windows import Split

_FRACTIONS = (0.03, 0.1, 0.3, 0.5)
"""Shares of the videos to try for validation: a small corpus needs a large one, to have any."""


class ClipImages:
    """Windows of a few images each, every one from one camera of one clip.

    Every window of every camera comes once an epoch. A batch holds `frames` (uint8 `[b f size size 3]`), `frame_mask`
    (bool `[b f]`, False for images behind the end of a clip and for clips that could not be decoded) and `problems`,
    the reasons of the latter.

    Args:
        paths: folders or URLs of video shards.
        size: height and width of the images [px].
        num_images: images a window.
        frame_step: distance of successive images [frames of the video].
        split: `train` and `validation` divide the videos.
        validation_fraction: share of the videos in the validation split.

    Raises:
        DataError: the shards are unfinished or hold no video.
    """

    def __init__(
        self,
        paths: Sequence[Location],
        *,
        size: int,
        num_images: int = 4,
        frame_step: int = 4,
        split: Split = "all",
        validation_fraction: float = 0.0,
    ) -> None:
        paths = [as_location(path) for path in paths]
        present = _clips_of_cameras(paths)
        if not present:
            raise DataError(
                f"{[str(p) for p in paths]}: expected clips of some camera, found none; write other shards."
            )
        self.size, self.num_images = size, num_images
        self.cameras = tuple(present)
        self._windows = [
            ClipWindows(
                paths, [camera], num_frames=num_images, frame_step=frame_step, stride=num_images * frame_step,
                size=size, split=split, validation_fraction=validation_fraction,
            )
            for camera in self.cameras
        ]  # fmt: skip
        self.num_clips = len(present[self.cameras[0]])
        self.counts: Array = np.concatenate([np.where(present[w.cameras[0]], w.counts, 0) for w in self._windows])
        self.source_starts = [0]

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"counts": np.zeros(0, np.int64)}

    def gather(self, episodes: Array, windows: Array, draw: int = 0) -> Batch:
        """Decode windows `[b]`; episode e is clip `e % num_clips` seen by camera `e // num_clips`."""
        frames = np.zeros((len(episodes), self.num_images, self.size, self.size, 3), np.uint8)
        mask = np.zeros((len(episodes), self.num_images), bool)
        problems: list[str] = []
        for number, (camera, clips) in enumerate(zip(self.cameras, self._windows, strict=True)):
            chosen = np.flatnonzero(episodes // self.num_clips == number)
            if len(chosen):
                batch = clips.gather(episodes[chosen] % self.num_clips, windows[chosen], draw)
                frames[chosen] = batch["frames"][camera].numpy()
                mask[chosen] = (batch["frame_mask"] & batch["camera_mask"][camera][:, None]).numpy()
                problems += batch["problems"]
        return {"frames": torch.from_numpy(frames), "frame_mask": torch.from_numpy(mask), "problems": problems}


def split_images(paths: Sequence[Location], *, size: int, share: float = 0.03) -> tuple[ClipImages, ClipImages]:
    """Return the images of training and of validation, which share no video.

    share: of the videos that is held out; more where it holds none.

    Raises:
        DataError: all images come from one video, or the shards cannot be read.
    """
    for fraction in (share, *(other for other in _FRACTIONS if other > share)):
        train = ClipImages(paths, size=size, split="train", validation_fraction=fraction)
        held_out = ClipImages(paths, size=size, split="validation", validation_fraction=fraction)
        if train.counts.any() and held_out.counts.any():
            return train, held_out
    raise DataError(
        f"{[str(p) for p in paths]}: expected videos for training and for validation, got too few to divide; write "
        "more shards, or train without streaming."
    )


def _clips_of_cameras(paths: Sequence[Location]) -> dict[str, Array]:
    """Return by camera which clips of all folders it saw, bool `[e]`."""
    folders = [open_columns(path, read_manifest(path, *VIDEO_STAGES)["columns"]) for path in paths]
    names = sorted({name for columns in folders for name in columns if f"{name}_size" in columns})
    seen = {
        name.removeprefix("video_"): np.concatenate(
            [np.asarray(c[name]) != ABSENT if name in c else np.zeros(len(c["shard"]), bool) for c in folders]
        )
        for name in names
        if name.startswith("video_")
    }
    return {camera: clips for camera, clips in seen.items() if clips.any()}
