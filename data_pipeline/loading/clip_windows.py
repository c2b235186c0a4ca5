"""Windows of video shards, decoded where they are collected: images for tokenizer training, with their captions."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from ...contracts import Array
from ...errors import ConfigError, DataError
from ..locations import Location, as_location, joined
from ..store.columns import ABSENT, open_columns
from ..store.stages import VIDEO_STAGES, read_manifest
from ..video.reader import open_video
from .augment import UNCHANGED, AugmentConfig, augment_frames, sample_augmentation
from .loader import Batch
from .token_store import ShardFiles
from .token_windows import Split, in_split


class ClipWindows:
    """Windows of `num_frames` frames from the clips of video shards.

    Window i of a clip begins at frame `i * stride` of it. A batch holds `frames` {camera: uint8 `[b f size size 3]`},
    `camera_mask` {camera: bool `[b]`}, `frame_mask` bool `[b f]` (False for frames behind the end, which repeat the
    last one), `captions` (list of `b`) and `problems`, the reasons of clips that could not be decoded: those
    are black and False in every mask.

    Args:
        paths: folders or URLs of video shards.
        cameras: cameras to decode; a clip may lack some of them.
        num_frames: frames a window.
        frame_step: distance of successive frames [frames of the video].
        stride: distance of successive windows [frames of the video].
        size: height and width of the images [px].
        augment: how far clips are changed; None leaves them as they are.
        seed: seed of the augmentation.
        split: `train` and `validation` divide the videos, never the windows of one video.
        validation_fraction: share of the videos in the validation split.

    Raises:
        ConfigError: for numbers out of range.
        DataError: no clip has one of the cameras.
    """

    def __init__(
        self,
        paths: Sequence[Location],
        cameras: Sequence[str],
        *,
        num_frames: int,
        frame_step: int = 1,
        stride: int = 16,
        size: int = 256,
        augment: AugmentConfig | None = None,
        seed: int = 0,
        split: Split = "all",
        validation_fraction: float = 0.0,
    ) -> None:
        if min(num_frames, frame_step, stride, size) < 1:
            raise ConfigError(
                "clips: expected num_frames, frame_step, stride and size >= 1, got "
                f"{num_frames}, {frame_step}, {stride} and {size}."
            )
        self.paths, self.cameras = tuple(as_location(path) for path in paths), tuple(cameras)
        self.num_frames, self.frame_step, self.stride, self.size = num_frames, frame_step, stride, size
        self.augment, self.seed = augment, seed
        self._open()
        lengths = np.concatenate([c["stop"] - c["start"] for c in self._columns])
        videos = np.concatenate([c["video"] for c in self._columns])
        self.counts = np.maximum((lengths - (num_frames - 1) * frame_step - 1) // stride + 1, 1)
        self.counts[(lengths < 1) | ~in_split(videos, split, validation_fraction)] = 0
        if not any(f"video_{camera}" in columns for camera in cameras for columns in self._columns):
            raise DataError(
                f"{[str(p) for p in self.paths]}: expected clips with one of {list(cameras)}; ask for others."
            )

    def _open(self) -> None:
        self._columns, self._files, sizes = [], [], [0]
        for path in self.paths:
            manifest = read_manifest(path, *VIDEO_STAGES)
            self._columns.append(open_columns(path, manifest["columns"]))
            self._files.append(ShardFiles([joined(path, name) for name in manifest["shards"]]))
            sizes.append(len(self._columns[-1]["shard"]))
        self._starts = np.cumsum(sizes)
        self.source_starts: list[int] = self._starts[:-1].tolist()

    def __getstate__(self) -> dict[str, Any]:
        left_here = {"_columns": [], "_files": [], "counts": np.zeros(0, np.int64)}
        return self.__dict__ | left_here

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._open()

    def gather(self, episodes: Array, windows: Array, draw: int = 0) -> Batch:
        """Decode windows `[b]` of clips `[b]`; clip i is changed by what `seed` and `draw + i` give."""
        shape = (len(episodes), self.num_frames)
        frames = {c: np.zeros((*shape, self.size, self.size, 3), np.uint8) for c in self.cameras}
        camera_mask = {camera: np.zeros(len(episodes), bool) for camera in self.cameras}
        frame_mask = np.zeros(shape, bool)
        captions, problems = [], []
        for i, (episode, window) in enumerate(zip(episodes.tolist(), windows.tolist(), strict=True)):
            source = int(np.searchsorted(self._starts, episode, side="right")) - 1
            row = {n: int(v[episode - self._starts[source]]) for n, v in self._columns[source].items()}
            captions.append("")
            try:
                captions[i] = self._caption(source, row)
                wanted = row["start"] + window * self.stride + np.arange(self.num_frames) * self.frame_step
                change = UNCHANGED
                if self.augment is not None:
                    change = sample_augmentation(self.augment, np.random.default_rng([self.seed, draw + i]))
                for camera in self.cameras:
                    if row.get(f"video_{camera}", ABSENT) != ABSENT:
                        found = self._decode(source, row, camera, np.minimum(wanted, row["stop"] - 1))
                        frames[camera][i] = augment_frames(found, change, self.size)
                        camera_mask[camera][i] = True
                frame_mask[i] = wanted < row["stop"]
            except DataError as error:
                problems.append(str(error))
                for camera in self.cameras:
                    frames[camera][i], camera_mask[camera][i] = 0, False
        return {
            "frames": {camera: torch.from_numpy(pixels) for camera, pixels in frames.items()},
            "camera_mask": {camera: torch.from_numpy(mask) for camera, mask in camera_mask.items()},
            "frame_mask": torch.from_numpy(frame_mask),
            "captions": captions,
            "problems": problems,
        }

    def _caption(self, source: int, row: Mapping[str, int]) -> str:
        description = json.loads(self._files[source].read(row["shard"], row["json"], row["json_size"]))
        caption: str = description["windows"][row["window"]]["caption"]
        return caption

    def _decode(self, source: int, row: Mapping[str, int], camera: str, indices: Array) -> Array:
        data = self._files[source].read(row["shard"], row[f"video_{camera}"], row[f"video_{camera}_size"])
        # resizing while decoding costs next to nothing; what a crop enlarges again is decoded that much larger
        side = self.size if self.augment is None else math.ceil(self.size / self.augment.min_crop**0.5)
        with open_video(data, width=side, height=side) as reader:
            return reader.get_batch(indices)
