"""Shards made for measuring: random codes, and videos of moving shapes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from ...contracts import Array
from ...data_pipeline.files import array_bytes
from ...data_pipeline.store.shards import ShardWriter, finished_shards
from ...data_pipeline.store.stages import Tally, begin_stage
from ...data_pipeline.tokens import finish_token_shards
from ...data_pipeline.video.transcode import encode_frames

CODEBOOK_SIZE, GRID, NUM_FRAMES = 1024, (16, 16), 10
"""A clip of ten frames of 16 x 16 codes out of 1024: 5,120 bytes."""

_CAPTION = "a hand picks up the red block and puts it into the drawer"


def write_clips(out: Path, count: int, shard_megabytes: float = 64.0) -> int:
    """Write token shards of random clips; return the bytes of their tars."""
    rng = np.random.default_rng(0)
    facts = {"codebook_size": CODEBOOK_SIZE, "grid": list(GRID), "image_size": 256}
    begin_stage(out, "token_shards", {}, overwrite=True)
    note = {"sentences": [_CAPTION]}
    description = json.dumps(
        {"caption": _CAPTION, "fps": 3.0, "cameras": ["static"], "num_frames": NUM_FRAMES}
    ).encode()
    row = {
        "frames": NUM_FRAMES, "stride": 1, "steps": 0, "state_dim": 0, "action_dim": 0, "cameras": ["static"],
        "code_bytes": GRID[0] * GRID[1] * 2, "text": 0,
    }  # fmt: skip
    with ShardWriter(out, max_bytes=int(shard_megabytes * 1e6)) as writer:
        for number in range(count):
            codes = rng.integers(0, CODEBOOK_SIZE, (NUM_FRAMES, GRID[0] * GRID[1]), dtype=np.uint16)
            members = {"codes.static.npy": array_bytes(codes), "json": description}
            writer.write(f"clip_{number:08d}", members, row | {"video": f"clip_{number:08d}"})
            if writer.is_full:
                writer.finish_shard(note)
        if count:
            writer.finish_shard(note)
    shards = finished_shards(out)
    finish_token_shards(out, {}, Tally(), [shard.name for shard in shards], facts, None)
    return sum(shard.stat().st_size for shard in shards)


def moving_shapes(num_frames: int, height: int, width: int, seed: int) -> Array:
    """Draw discs that move over a still, detailed background: uint8 `[f h w 3]`."""
    rng = np.random.default_rng(seed)
    coarse = rng.uniform(40, 215, (height // 8 + 1, width // 8 + 1, 3)).repeat(8, 0).repeat(8, 1)[:height, :width]
    background = coarse + rng.normal(0, 6, (height, width, 1))
    frames = np.repeat(background[None], num_frames, axis=0)
    rows, columns = np.mgrid[:height, :width]
    for _ in range(6):
        center, speed = rng.uniform(0.1, 0.9, 2) * (height, width), rng.uniform(-2, 2, 2)
        radius, color = rng.uniform(0.05, 0.15) * height, rng.uniform(0, 255, 3)
        for number in range(num_frames):
            row, column = center + number * speed
            frames[number][(rows - row) ** 2 + (columns - column) ** 2 < radius**2] = color
    return np.clip(frames, 0, 255).astype(np.uint8)


def write_videos(out: Path, count: int, num_frames: int = 90, height: int = 240, width: int = 320) -> None:
    """Write captioned H.264 videos at 30 frames a second into a folder, half color resolution as on the web."""
    out.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        frames = moving_shapes(num_frames, height, width, number)
        data = encode_frames(frames, 30.0, crf=23, pixel_format="yuv420p", key_frame_interval=48)
        (out / f"video_{number:04d}.mp4").write_bytes(data)
        (out / f"video_{number:04d}.txt").write_text(_CAPTION)
