"""Images streamed from video shards: every image once, from the right camera, resumed exactly, trained on."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gr2.contracts import Episode
from gr2.data_pipeline.curation.ingest import write_video_shards
from gr2.data_pipeline.loading.clip_images import ClipImages, split_images
from gr2.data_pipeline.loading.loader import BatchLoader
from gr2.data_pipeline.store.episodes import write_episode
from gr2.data_pipeline.store.shards import list_shards, read_indexed
from gr2.data_pipeline.video.reader import open_video
from gr2.errors import DataError
from gr2.gr_model.train.image_batches import open_image_stream
from gr2.gr_model.train.tokenizer_stages import train_tokenizer
from gr2.tokenizers.streaming import ImageStream, collect_images
from gr2.tokenizers.training import train_vqgan
from gr2.tokenizers.training_options import VQGANTrainingConfig
from gr2.tokenizers.vqgan import VQGANConfig
from gr2.tokenizers.weights import load_vqgan

torch.set_num_threads(1)

TINY = VQGANConfig(resolution=32, patch_size=4, channels=32, channel_mult=(1, 1), z_channels=32, embed_dim=8,
                   codebook_size=64, decoder_res_blocks=0)  # fmt: skip


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write video shards of twelve episodes, every third without a gripper camera, of 18 to 29 frames."""
    root = tmp_path_factory.mktemp("stream")
    for index in range(12):
        count = 18 + index
        gray = np.linspace(20, 220, count)[:, None, None, None]
        static = np.broadcast_to(gray, (count, 64, 64, 3)).astype(np.uint8).copy()
        static[:, :, : 5 * index] = 255 - static[:, :, : 5 * index]
        images = {"static": static} | ({} if index % 3 == 0 else {"gripper": static[:, ::-1, ::-1].copy()})
        steps = np.zeros((count, 8), np.float32)
        episode = Episode(images=images, states=steps, actions=steps, instruction="lift it", control_hz=10.0)
        write_episode(root / "in", index, episode, {})
    write_video_shards(source=str(root / "in"), out=root / "shards")
    return root / "shards"


def videos(shards: Path) -> list[tuple[str, np.ndarray]]:
    """Decode all videos of all cameras with the plain reader, 32 pixels a side."""
    found = []
    for shard in list_shards(shards):
        for _, members in read_indexed(shard):
            for name, data in members.items():
                if name.endswith(".mp4"):
                    with open_video(data, width=32, height=32) as reader:
                        found.append((name.split(".")[-2], reader.get_batch(range(len(reader)))))
    return found


def test_an_epoch_holds_every_window_of_every_camera_once(shards: Path) -> None:
    images = ClipImages([shards], size=32, num_images=3, frame_step=2)
    assert images.cameras == ("gripper", "static")
    found: Counter[bytes] = Counter()
    loader = BatchLoader(images, batch_size=1, seed=1)
    for _, batch in zip(range(len(loader)), loader, strict=False):
        assert batch["problems"] == [] and batch["frames"].shape == (1, 3, 32, 32, 3)
        found[batch["frames"][batch["frame_mask"]].numpy().tobytes()] += 1
    decoded = videos(shards)
    assert len(decoded) == 20
    expected: Counter[bytes] = Counter()
    for _, frames in decoded:
        for first in range(0, max(len(frames) - 5, 0) // 6 * 6 + 1, 6):
            expected[frames[first : first + 6 : 2].tobytes()] += 1
    assert found == expected


def test_short_clips_are_masked_behind_their_end(shards: Path) -> None:
    images = ClipImages([shards], size=32, num_images=8, frame_step=4)
    loader = BatchLoader(images, batch_size=20, seed=0)
    batch = next(iter(loader))
    assert sorted(batch["frame_mask"].sum(1).tolist()) == sorted(-(-len(frames) // 4) for _, frames in videos(shards))


def test_training_and_validation_share_no_image(shards: Path) -> None:
    train, held_out = split_images([shards], size=32)
    everything = ClipImages([shards], size=32)
    assert train.counts.any() and held_out.counts.any()
    assert not (train.counts * held_out.counts).any()
    assert np.array_equal(train.counts + held_out.counts, everything.counts)


def stream(shards: Path, steps: int, num_workers: int = 0) -> ImageStream:
    """Return a stream of batches of six images."""
    return open_image_stream(
        shards, image_size=32, steps=steps, batch_size=6, num_workers=num_workers, seed=4
    )[0]  # fmt: skip


def test_a_stream_resumes_exactly_and_workers_change_nothing(shards: Path) -> None:
    whole = list(stream(shards, 9))
    assert len(whole) == 9 and {batch.shape for batch in whole} == {(6, 32, 32, 3)}
    first = stream(shards, 9)
    iterator = iter(first)
    begun = [next(iterator) for _ in range(4)]
    state = json.loads(json.dumps(first.state_dict()))
    rest = stream(shards, 9, num_workers=1)
    rest.load_state_dict(state)
    resumed = begun + list(rest)
    assert all(torch.equal(a, b) for a, b in zip(resumed, whole, strict=True))
    assert len({batch.numpy().tobytes() for batch in whole}) == 9


class FixedWindows:
    """A loader of given batches, again and again."""

    def __init__(self, masks: list[list[bool]]) -> None:
        self.masks = masks

    def __iter__(self) -> Iterator[dict[str, Any]]:
        while True:
            for number, mask in enumerate(self.masks):
                frames = torch.arange(len(mask), dtype=torch.uint8).view(-1, 1, 1, 1, 1).expand(-1, 1, 2, 2, 3)
                problems = [f"clip {number} is broken"] if not all(mask) else []
                yield {"frames": frames, "frame_mask": torch.tensor(mask)[:, None], "problems": problems}

    def state_dict(self) -> dict[str, Any]:
        """Return nothing: the batches are always the same."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Accept anything."""


def test_missing_images_are_replaced_by_others_of_the_batch() -> None:
    loader = FixedWindows([[True, False, True, False], [False] * 4, [True] * 4])
    with pytest.warns(UserWarning, match="clip 1 is broken"):
        batches = [batch[:, 0, 0, 0].tolist() for batch in ImageStream(loader, steps=3, batch_size=3)]
    assert batches == [[0, 2, 0], [0, 1, 2], [0, 2, 0]]


@pytest.mark.filterwarnings("ignore:Left out")
def test_nothing_but_broken_clips_is_an_error() -> None:
    broken = FixedWindows([[False, False]])
    with pytest.raises(DataError, match="clip 0 is broken"):
        list(ImageStream(broken, steps=1, batch_size=2))
    with pytest.raises(DataError, match="clip 0 is broken"):
        collect_images(broken, num_batches=3, max_images=5)


def test_one_video_cannot_be_divided(tmp_path: Path) -> None:
    steps = np.zeros((30, 8), np.float32)
    images = {"static": np.random.default_rng(0).integers(0, 255, (30, 64, 64, 3), dtype=np.uint8)}
    write_episode(
        tmp_path / "in", 0, Episode(images=images, states=steps, actions=steps, instruction="", control_hz=10.0), {}
    )
    write_video_shards(source=str(tmp_path / "in"), out=tmp_path / "shards")
    with pytest.raises(DataError, match="too few to divide"):
        split_images([tmp_path / "shards"], size=32)
    with pytest.raises(DataError, match="manifest"):
        ClipImages([tmp_path / "in"], size=32)


def test_training_on_a_stream_resumes_exactly(shards: Path, tmp_path: Path) -> None:
    fast = replace(VQGANTrainingConfig(), warmup=5, precision="32")
    loader, validation = open_image_stream(
        shards, image_size=32, steps=6, batch_size=6, num_workers=0, seed=4
    )  # fmt: skip

    def train(name: str, source: ImageStream, stop_after: int | None) -> dict[str, torch.Tensor]:
        return train_vqgan(
            sample_batch=source, validation=validation, out=tmp_path / name, config=TINY, training=fast, steps=6,
            batch_size=6, checkpoint_every=2, stop_after=stop_after,
        ).state_dict()  # fmt: skip

    whole = train("whole", loader, None)
    train("parts", stream(shards, 6), 3)
    parts = train("parts", stream(shards, 6), None)
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_the_command_trains_on_a_stream(shards: Path, tmp_path: Path) -> None:
    options = VQGANTrainingConfig(accumulate=2)
    train_tokenizer(shards=shards, out=tmp_path, steps=2, batch_size=6, stream=True, training=options, device="cpu")
    record = json.loads((tmp_path / "vqgan.json").read_text())
    assert record["training"]["accumulate"] == 2 and record["steps"] == 2
    assert load_vqgan(tmp_path).grid == (16, 16)
    assert len(list((tmp_path / "grids").iterdir())) == 2
