"""The pixels that test clips were encoded from, out of the video shards that the tokens were made of."""

from __future__ import annotations

import json

import numpy as np

from ...contracts import Array
from ...data_pipeline.loading.token_store import ShardFiles, TokenStore
from ...data_pipeline.locations import as_location, joined
from ...data_pipeline.store.columns import ABSENT, open_columns
from ...data_pipeline.store.stages import VIDEO_STAGES, read_manifest
from ...data_pipeline.video.frames import resize_frames, stated_fit
from ...data_pipeline.video.reader import open_video
from ...errors import DataError
from ...tokenizers.vqgan import VQGAN
from .clips import VideoClips

_LEAST_AGREEMENT = 0.9
"""Share of codes that must come out again: decoders and devices differ in a few, other videos in most."""


def original_frames(shards: str, store: TokenStore, clips: VideoClips, vqgan: VQGAN) -> dict[str, Array]:
    """Decode the frames of clips: camera -> uint8 `[c f h w 3]`, black where a clip lacks the camera.

    Raises:
        DataError: the shards lack a clip, cannot be decoded, or are not those that the tokens were made of.
    """
    location = as_location(shards)
    manifest = read_manifest(location, *VIDEO_STAGES)
    columns = open_columns(location, manifest["columns"])
    files = ShardFiles([joined(location, name) for name in manifest["shards"]])
    side, length = vqgan.config.resolution, clips.context + clips.num_frames
    fit = stated_fit(store.tokenizer)
    frames = {c: np.zeros((len(clips), length, side, side, 3), np.uint8) for c in store.cameras}
    shift = (np.arange(length) - (clips.context - 1)) * clips.frame_step
    for i, (episode, anchor) in enumerate(zip(clips.episodes.tolist(), clips.anchors.tolist(), strict=True)):
        row = _window_row(shards, columns, store, episode)
        skip = _frame_distance(files, row, store, episode)
        for camera, present in clips.present.items():
            if present[i]:
                offset = row.get(f"video_{camera}", ABSENT)
                if offset == ABSENT:
                    raise _other_shards(shards, f"has no camera '{camera}' in the video of clip {i}")
                data = files.read(row["shard"], offset, row[f"video_{camera}_size"])
                with open_video(data) as reader:
                    found = reader.get_batch(row["start"] + (anchor + shift) * skip)
                    frames[camera][i] = resize_frames(found, side, fit)
    _expect_same_codes(shards, frames, clips, vqgan)
    return frames


def _window_row(shards: str, columns: dict[str, Array], store: TokenStore, episode: int) -> dict[str, int]:
    """Find the window of an episode: the windows of one video are encoded all, in order, or none of them."""
    videos = store.column("video")
    number = int((videos[:episode] == videos[episode]).sum())
    rows = np.flatnonzero(columns["video"] == videos[episode])
    if number >= len(rows):
        raise _other_shards(shards, f"lack window {number} of the video of episode {episode}")
    return {name: int(values[rows[number]]) for name, values in columns.items()}


def _frame_distance(files: ShardFiles, row: dict[str, int], store: TokenStore, episode: int) -> int:
    """Return how many frames of the video lie between two that were encoded (`--target-fps` leaves some out)."""
    description = json.loads(files.read(row["shard"], row["json"], row["json_size"]))
    return int(store.frame_stride[episode]) // int(description["frame_stride"])


def _expect_same_codes(shards: str, frames: dict[str, Array], clips: VideoClips, vqgan: VQGAN) -> None:
    equal = []
    for camera, present in clips.present.items():
        if present.any():
            found = vqgan.encode_frames(frames[camera][present].reshape(-1, *frames[camera].shape[2:]))
            equal.append((found.reshape(-1) == clips.codes(camera)[present].reshape(-1)).mean())
    if min(equal) < _LEAST_AGREEMENT:
        raise _other_shards(shards, f"give {min(equal):.0%} of the clips' codes when encoded again")


def _other_shards(shards: str, what: str) -> DataError:
    return DataError(f"{shards}: expected the video shards that the tokens were made of, but they {what}; name those.")
