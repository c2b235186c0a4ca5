"""Test clips out of token shards: one window of each held-out video, and the mean of the frames of the others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ...contracts import Array
from ...data_pipeline.loading.loader import Batch
from ...data_pipeline.loading.token_store import TokenStore
from ...data_pipeline.loading.token_windows import TokenWindows, in_split
from ...data_pipeline.store.columns import ABSENT
from ...errors import ConfigError, DataError
from ...fingerprints import image_fingerprint, same_encoder
from ...gr_model.model.release import Release
from ...tokenizers.vqgan import VQGAN

MEAN_FRAMES = 256
"""Frames of a camera from which the mean frame is made; a frame of each of as many videos, where there are enough."""


@dataclass(frozen=True, kw_only=True)
class VideoClips:
    """Windows of `context` frames and the `num_frames` that really followed; `c` counts clips, each of its own video.

    batch: as a loader gives it, with `codes` {camera: int64 `[c context+num_frames n]`}; `text_id` counts `captions`.
    episodes, anchors: of each clip `[c]`, its episode in the store and its last context frame there.
    frame_step: distance of successive frames [frames of the store].
    """

    batch: Batch
    captions: tuple[str, ...]
    episodes: Array
    anchors: Array
    context: int
    num_frames: int
    frame_step: int

    def __len__(self) -> int:
        return len(self.episodes)

    @property
    def present(self) -> Mapping[str, Array]:
        """Which clips have a camera: camera -> bool `[c]`."""
        return {camera: mask.numpy() for camera, mask in self.batch["camera_mask"].items()}

    def codes(self, camera: str) -> Array:
        """Return the codes of a camera `[c context+num_frames n]`."""
        codes: Array = self.batch["codes"][camera].numpy()
        return codes


def open_store(tokens: Sequence[str], release: Release) -> TokenStore:
    """Open token shards for a model: its cameras, and robot states where it has learned what they mean.

    Raises:
        ConfigError: episodes of several robots.
        DataError: the shards cannot be used, or other tokenizers than the model's made them.
    """
    store = TokenStore.open(tokens, [c.name for c in release.model.config.cameras], load_steps=release.model.acts)
    got, wanted = image_fingerprint(store.tokenizer), release.tokenizer
    if not same_encoder(got, wanted):
        raise DataError(
            f"{', '.join(tokens)}: expected codes of the model's image tokenizer ({wanted[:12]}), got those of another "
            f"one ({got[:12]}); encode the shards with the tokenizer of the release: `gr2 data tokens --tokenizer ...`."
        )
    if release.model.acts and release.model.config.is_mixture:
        store.number_embodiments(release.model.config.embodiments)
        robots = [store.embodiments[i].name for i in _robots(store)]
        if len(robots) > 1:
            raise ConfigError(
                f"--tokens {' '.join(tokens)}: expected episodes of one robot, got {', '.join(robots)}; measure them "
                "one by one."
            )
    return store


def _robots(store: TokenStore) -> list[int]:
    """Return the places of the robots that episodes are of."""
    found: list[int] = np.unique(store.embodiment_of(np.arange(len(store)))).tolist()
    return [place for place in found if place >= 0]


def frames_between(store: TokenStore, release: Release) -> int:
    """Return how many frames of the store lie between two frames as the model was trained to see them.

    Raises:
        ConfigError: the store has no frames at that distance.
    """
    stride = int(np.median(store.frame_stride))
    frame_step = release.clocks_of(next(iter(_robots(store)), 0))[0]
    if frame_step % stride:
        raise ConfigError(
            f"--frame-step: the model predicts frames {frame_step} steps apart, the tokens hold one every "
            f"{stride}; set with --frame-step how many frames of the store one prediction goes ahead."
        )
    return frame_step // stride


def choose_clips(
    store: TokenStore, *, num_clips: int, context: int, num_frames: int, frame_step: int, held_out: float, seed: int
) -> VideoClips:
    """Sample one window of each of up to `num_clips` videos, so that clips are independent of each other.

    Args:
        store: the episodes.
        num_clips: videos wanted; fewer are taken where there are no more.
        context: frames that the model sees.
        num_frames: frames that follow.
        frame_step: distance of successive frames [frames of the store].
        held_out: share of the videos that training held out, from which alone clips are sampled; 0 samples from all.
        seed: of the choice.

    Raises:
        ConfigError: a number is out of range.
        DataError: fewer than two held-out videos are long enough.
    """
    if min(num_clips, num_frames, frame_step) < 1:
        raise ConfigError(
            f"clips: expected num_clips, num_frames and frame_step >= 1, got {num_clips}, {num_frames}, {frame_step}."
        )
    lowest = (context - 1) * frame_step
    highest = store.num_frames.astype(np.int64) - 1 - num_frames * frame_step
    videos = store.column("video")
    held = in_split(videos, "validation", held_out) if held_out else np.ones(len(videos), bool)
    usable = np.flatnonzero(held & (highest >= lowest))
    rng = np.random.default_rng(seed)
    shuffled = rng.permutation(usable)
    _, first = np.unique(videos[shuffled], return_index=True)
    episodes = shuffled[np.sort(first)][:num_clips]
    if len(episodes) < 2:
        raise DataError(
            f"clips: expected at least two held-out videos of {lowest + num_frames * frame_step + 1} frames or more, "
            f"got {len(episodes)} ({int(held.sum())} of {len(store)} episodes are held out); shorten --num-frames, or "
            "give tokens that the model was not trained on with --held-out 0."
        )
    anchors = rng.integers(lowest, highest[episodes] + 1)
    windows = TokenWindows(
        store, num_frames=context + num_frames, frame_step=frame_step, chunk_length=1, context=context
    )
    batch = dict(windows.gather(episodes, anchors))
    of_clip = [store.text(int(text)) for text in batch["text_id"]]
    captions = tuple(dict.fromkeys(of_clip))
    batch["text_id"] = torch.tensor([captions.index(caption) for caption in of_clip])
    return VideoClips(
        batch=batch, captions=captions, episodes=episodes, anchors=anchors, context=context, num_frames=num_frames,
        frame_step=frame_step,
    )  # fmt: skip


def mean_frames(
    store: TokenStore, vqgan: VQGAN, *, without: Sequence[int] | np.ndarray, held_out: float, seed: int
) -> dict[str, Array]:
    """Average decoded frames of training videos pixel by pixel: camera -> uint8 `[h w 3]`.

    Args:
        store: the training episodes.
        vqgan: the tokenizer that made the codes.
        without: hashes of videos to leave out, those of the test clips.
        held_out: share of the videos that training held out.
        seed: of the choice of frames.

    Raises:
        DataError: a camera of the store is in no training video.
    """
    rng = np.random.default_rng(seed)
    videos = store.column("video")
    training = in_split(videos, "train", held_out) & ~np.isin(videos, np.asarray(without, np.uint64))
    means = {}
    for camera in store.cameras:
        episodes = rng.permutation(np.flatnonzero(training & (store.num_frames > 0)))
        episodes = episodes[store.values(f"codes_{camera}", episodes, ABSENT) != ABSENT][:MEAN_FRAMES]
        if len(episodes) == 0:
            if not (store.values(f"codes_{camera}", np.arange(len(store)), ABSENT) != ABSENT).any():
                continue
            raise DataError(
                f"mean frame: expected training videos of camera '{camera}' beside the test clips, got none; lower "
                "--num-clips or name the training tokens with --train-tokens."
            )
        places = rng.integers(0, store.num_frames[episodes])
        codes, _ = store.read_codes(camera, episodes, places[:, None])
        frames = vqgan.decode_frames(codes[:, 0].astype(np.int64))
        means[camera] = np.rint(frames.mean(axis=0, dtype=np.float64)).astype(np.uint8)
    return means
