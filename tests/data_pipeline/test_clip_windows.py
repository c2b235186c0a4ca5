"""Batches of decoded clips: the right frames, one augmentation a clip, masks for what is missing, exact resume."""

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch

from gr2.contracts import Episode
from gr2.data_pipeline.curation.filters import FilterConfig
from gr2.data_pipeline.curation.ingest import write_video_shards
from gr2.data_pipeline.loading.augment import (
    UNCHANGED,
    Augmentation,
    AugmentConfig,
    augment_frames,
    sample_augmentation,
)
from gr2.data_pipeline.loading.clip_windows import ClipWindows
from gr2.data_pipeline.loading.loader import BatchLoader, LoaderConfig
from gr2.data_pipeline.store.episodes import write_episode
from gr2.data_pipeline.store.shards import finished_shards
from gr2.data_pipeline.video.reader import open_video, write_video
from gr2.errors import ConfigError, DataError

KEEP_ALL = FilterConfig(min_frames=1, min_seconds=0, min_motion=0)


def noise(num_frames: int, size: int = 64, seed: int = 0) -> np.ndarray:
    """Draw coarse colored noise that changes with each frame: uint8 `[f h w 3]`."""
    coarse = np.random.default_rng(seed).integers(0, 255, (num_frames, 4, 4, 3), dtype=np.uint8)
    return coarse.repeat(size // 4, axis=1).repeat(size // 4, axis=2)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Write shards of six episodes with two cameras, and of four videos."""
    root = tmp_path_factory.mktemp("clips")
    for i in range(6):
        steps = np.zeros((20 + i, 8), np.float32)
        images = {"static": noise(20 + i, seed=i), "gripper": noise(20 + i, 32, seed=i + 100)}
        write_episode(
            root / "robot",
            i,
            Episode(images=images, states=steps, actions=steps, instruction=f"lift {i}", control_hz=10.0),
            {},
        )
    for i in range(4):
        write_video(root / f"web/clip_{i}.mp4", noise(5 + 9 * i, seed=i + 50), fps=10)
    for name in ("robot", "web"):
        write_video_shards(source=str(root / name), out=root / f"{name}_shards", filters=KEEP_ALL, shard_megabytes=0.1)
    return [root / "robot_shards", root / "web_shards"]


OPTIONS = {"num_frames": 6, "frame_step": 2, "stride": 4, "size": 32}


def test_windows_are_the_frames_of_the_files(shards: list[Path]) -> None:
    clips = ClipWindows(shards, ["static", "gripper"], **OPTIONS)
    assert clips.counts.tolist() == [max((n - 11) // 4 + 1, 1) for n in (20, 21, 22, 23, 24, 25, 5, 14, 23, 32)]
    batch = clips.gather(np.array([4, 6, 9]), np.array([3, 0, 5]))
    root = shards[0].parent
    wanted = [
        ("robot/episode_000004/static.mp4", range(12, 24, 2)),
        ("web/clip_0.mp4", [0, 2, 4, 4, 4, 4]),
        ("web/clip_3.mp4", [20, 22, 24, 26, 28, 30]),
    ]
    for i, (name, indices) in enumerate(wanted):
        with open_video(root / name, width=32, height=32) as reader:
            assert np.array_equal(batch["frames"]["static"][i], reader.get_batch(list(indices)))
    assert batch["camera_mask"]["static"].tolist() == [True, True, True]
    assert batch["camera_mask"]["gripper"].tolist() == [True, False, False]
    assert not batch["frames"]["gripper"][1:].any() and batch["frames"]["gripper"][0].any()
    assert batch["frame_mask"].tolist() == [[True] * 6, [True] * 3 + [False] * 3, [True] * 6]
    assert batch["captions"] == ["lift 4", "", ""] and batch["problems"] == []


def test_a_clip_that_does_not_decode_is_masked_and_named(shards: list[Path], tmp_path: Path) -> None:
    for file in shards[1].rglob("*"):
        if file.is_file():
            (tmp_path / file.relative_to(shards[1])).parent.mkdir(exist_ok=True)
            (tmp_path / file.relative_to(shards[1])).write_bytes(file.read_bytes())
    tar = finished_shards(tmp_path)[0]
    data = bytearray(tar.read_bytes())
    start = data.index(b"ftyp")
    data[start + 64 : start + 2000] = bytes(1936)
    tar.write_bytes(bytes(data))
    batch = ClipWindows([tmp_path], ["static"], **OPTIONS).gather(np.array([0, 3]), np.array([0, 0]))
    assert len(batch["problems"]) == 1
    assert batch["camera_mask"]["static"].tolist() == [False, True]
    assert not batch["frames"]["static"][0].any() and not batch["frame_mask"][0].any()


def same(a: dict, b: dict) -> bool:
    """Compare two batches exactly."""
    return (
        all(torch.equal(a["frames"][c], b["frames"][c]) for c in a["frames"])
        and torch.equal(a["frame_mask"], b["frame_mask"])
        and a["captions"] == b["captions"]
    )


def test_augmented_stream_resumes_with_other_workers(shards: list[Path]) -> None:
    def loader(num_workers: int, seed: int = 0) -> BatchLoader:
        clips = ClipWindows(shards, ["static", "gripper"], augment=AugmentConfig(), seed=seed, **OPTIONS)
        config = LoaderConfig(weights=[1.0, 2.0], num_workers=num_workers)
        return BatchLoader(clips, batch_size=3, seed=1, config=config)

    whole = list(itertools.islice(loader(0), 14))
    first = loader(2)
    assert all(same(a, b) for a, b in zip(whole[:5], itertools.islice(first, 5), strict=True))
    rest = loader(1)
    rest.load_state_dict(first.state_dict())
    assert all(same(a, b) for a, b in zip(whole[5:], itertools.islice(rest, 9), strict=True))
    assert not same(whole[0], next(iter(loader(0, seed=7))))
    assert len(loader(0)) < 14  # the second epoch draws other changes for the same windows


def test_all_frames_and_cameras_of_a_clip_change_alike() -> None:
    rng = np.random.default_rng(3)
    for _ in range(20):
        change = sample_augmentation(AugmentConfig(min_crop=0.5), rng)
        left, top, right, bottom = change.box
        assert 0 <= left < right <= 1 and 0 <= top < bottom <= 1
        assert (right - left) == pytest.approx(bottom - top) and 0.5 - 1e-9 <= (right - left) ** 2 <= 1
        still = np.repeat(noise(1, seed=5), 4, axis=0)
        changed = augment_frames(still, change, 48)
        assert changed.shape == (4, 48, 48, 3) and all(np.array_equal(frame, changed[0]) for frame in changed)
    assert np.array_equal(augment_frames(still, UNCHANGED, 64), still)
    left_half = Augmentation(box=(0.0, 0.0, 0.5, 0.5), brightness=1.0, contrast=1.0, saturation=1.0)
    assert np.abs(augment_frames(still, left_half, 32).astype(int) - still[:, :32, :32]).max() <= 1


def test_colors_change_as_their_names_say() -> None:
    frames = noise(3, seed=9) // 2 + 50

    def changed(**factors: float) -> np.ndarray:
        change = {"brightness": 1.0, "contrast": 1.0, "saturation": 1.0} | factors
        return augment_frames(frames, Augmentation(box=UNCHANGED.box, **change), 64).astype(float)

    assert changed(brightness=1.2).mean() == pytest.approx(1.2 * frames.mean(), rel=0.01)
    assert np.ptp(changed(saturation=0.0), axis=-1).max() == 0
    weights = np.array([0.299, 0.587, 0.114])
    for factor in (0.8, 1.2):
        gray = changed(contrast=factor) @ weights
        assert gray.mean() == pytest.approx((frames @ weights).mean(), abs=0.6)
        assert gray.std() == pytest.approx(factor * (frames @ weights).std(), rel=0.02)


def test_numbers_out_of_range_are_refused(shards: list[Path]) -> None:
    with pytest.raises(ConfigError, match="min_crop"):
        AugmentConfig(min_crop=0.0)
    with pytest.raises(ConfigError, match="stride"):
        ClipWindows(shards, ["static"], **(OPTIONS | {"stride": 0}))
    with pytest.raises(DataError, match="ask for others"):
        ClipWindows(shards, ["wrist"], **OPTIONS)
