"""Stages around the tokenizers: train the VQGAN and the text tower on video shards, write token shards."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from tqdm import tqdm

from ...contracts import Array
from ...data_pipeline.locations import Location, as_location
from ...data_pipeline.store.shards import list_shards, read_index, read_indexed
from ...data_pipeline.store.stages import expect_video_shards
from ...data_pipeline.tokens import DecodedWindow, decode_sample, write_token_shards
from ...data_pipeline.video.frames import ImageFit, stated_fit
from ...errors import ConfigError, DataError
from ...tokenizers.training_options import VQGANTrainingConfig

if TYPE_CHECKING:
    from ...tokenizers.text import TextEncoder
    from ...tokenizers.vqgan import VQGAN


def _decoded_windows(shards: Path, image_size: int) -> Iterator[DecodedWindow]:
    """Yield the decodable windows of video shards, in order, with a progress bar."""
    files = list_shards(shards)
    with tqdm(total=sum(len(read_index(file)["samples"]) for file in files), desc="decode", unit="clip") as progress:
        for sample in (sample for file in files for sample in read_indexed(file)):
            yield from (window for window in decode_sample(sample, image_size, None) if not window.problem)
            progress.update()


def read_frames(
    shards: Path, *, image_size: int, max_frames: int, seed: int, validation_share: float = 0.03
) -> tuple[Array, Array]:
    """Decode images of all cameras for tokenizer training.

    Args:
        image_size: side [px].
        max_frames: keep a random choice of at most so many.
        validation_share: share of the windows that is held out, one at least.

    Returns:
        Training and validation frames, uint8 `[n size size 3]`; whole windows fall on one side.

    Raises:
        DataError: fewer than two windows can be decoded.
    """
    rng = np.random.default_rng(seed)
    kept: list[Array] = []
    num_frames = 0
    for number, window in enumerate(_decoded_windows(shards, image_size), start=1):
        frames = np.concatenate(list(window.images.values()))
        if num_frames + len(frames) <= max_frames:
            kept.append(frames)
            num_frames += len(frames)
        elif (place := int(rng.integers(number))) < len(kept):  # every window stays with the same probability
            num_frames += len(frames) - len(kept[place])
            kept[place] = frames
    if len(kept) < 2:
        raise DataError(f"{shards}: expected at least two decodable clips, got {len(kept)}; write more shards.")
    num_validation = held_out_count(len(kept), validation_share)
    order = rng.permutation(len(kept))
    validation = np.concatenate([kept[i] for i in order[:num_validation]])
    return np.concatenate([kept[i] for i in order[num_validation:]]), validation[:1024]


def train_tokenizer(
    *,
    shards: Path,
    out: Path,
    preset: Literal["small", "f16_1024", "f16_16384"] = "small",
    steps: int = 4000,
    batch_size: int = 32,
    max_frames: int = 100_000,
    stream: bool = False,
    num_workers: int = 0,
    training: VQGANTrainingConfig = VQGANTrainingConfig(),  # noqa: B008  (frozen)
    validation_share: float = 0.03,
    validate_every: int | None = None,
    checkpoint_every: int = 500,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    seed: int = 0,
) -> None:
    """Train the VQGAN image tokenizer on the images of video shards.

    Args:
        shards: folder that `gr2 data shards` wrote.
        out: folder for the weights, the log and images of reconstructions; a stopped run resumes.
        preset: shape of the network.
        steps: optimization steps.
        batch_size: images a step.
        max_frames: images held in memory; without streaming, the training sees no more than these.
        stream: decode images as they are needed, so that the corpus may be larger than memory.
        num_workers: processes that decode ahead when streaming; 0 decodes in this process.
        training: optimization and losses; where nothing is chosen, f16 presets take the published learning rate.
        validation_share: share of the videos that is held out, one at least.
        validate_every: steps between metrics and images of held-out videos; a tenth of the run by default.
        checkpoint_every: steps between checkpoints.
        device: where to train; auto takes a GPU where there is one.
        seed: seed of weights and batches.
    """
    import torch

    from ...tokenizers import vqgan
    from ...tokenizers.training import train_vqgan
    from ...tokenizers.training_options import f16_recipe
    from .image_batches import open_image_stream
    from .loop import choose_accelerator

    expect_video_shards(shards)
    if not 0 <= validation_share < 1:
        raise ConfigError(f"--validation-share: expected a share of 0 to below 1, got {validation_share}.")
    accelerator = choose_accelerator(device)
    torch.set_num_threads(2 if torch.get_num_threads() > 2 else torch.get_num_threads())
    config = {"small": vqgan.small, "f16_1024": vqgan.f16_1024, "f16_16384": vqgan.f16_16384}[preset]()
    if preset != "small" and training == VQGANTrainingConfig():
        training = f16_recipe(batch_size)
    sample_batch: Any
    if stream:
        sample_batch, validation = open_image_stream(
            shards, image_size=config.resolution, steps=steps, batch_size=batch_size, num_workers=num_workers,
            seed=seed, validation_share=validation_share,
        )  # fmt: skip
    else:
        train, validation = read_frames(
            shards, image_size=config.resolution, max_frames=max_frames, seed=seed,
            validation_share=validation_share,
        )  # fmt: skip

        def sample_batch(size: int, generator: np.random.Generator) -> Array:
            return train[generator.integers(len(train), size=size)]

    train_vqgan(
        sample_batch=sample_batch, validation=validation, out=out, config=config, training=training, steps=steps,
        batch_size=batch_size, seed=seed, checkpoint_every=checkpoint_every, validate_every=validate_every,
        accelerator=accelerator,
    )  # fmt: skip


def train_text(
    *,
    shards: Path,
    out: Path,
    image_size: int = 64,
    steps: int = 1500,
    batch_size: int = 64,
    learning_rate: float = 2e-3,
    warmup: int = 50,
    weight_decay: float = 0.05,
    validation_share: float = 0.03,
    checkpoint_every: int = 500,
    seed: int = 0,
) -> None:
    """Train the small CLIP on first and last frames of captioned clips; keep its text tower.

    Args:
        shards: folder that `gr2 data shards` wrote.
        out: folder for the weights and the log; a stopped run resumes.
        image_size: image side [px].
        steps: optimization steps.
        batch_size: pairs a step.
        learning_rate: peak of AdamW's.
        warmup: steps over which the learning rate rises.
        weight_decay: of AdamW.
        validation_share: share of the clips that is held out, one at least.
        checkpoint_every: steps between checkpoints.
        seed: seed of weights and batches.
    """
    from ...tokenizers import text_training

    pairs, captions = [], []
    for window in _decoded_windows(shards, image_size):
        if window.description["caption"]:
            frames = next(iter(window.images.values()))
            pairs.append(np.stack([frames[0], frames[-1]]))
            captions.append(window.description["caption"])
    if len(pairs) < 2:
        raise DataError(f"{shards}: expected captioned clips, got {len(pairs)}; give shards with captions.")
    stacked = np.stack(pairs)
    order = np.random.default_rng(seed).permutation(len(pairs))
    held, kept = np.split(order, [held_out_count(len(order), validation_share)])

    def pick(indices: Array) -> tuple[Array, list[str]]:
        return stacked[indices], [captions[i] for i in indices]

    text_training.train_text(
        sample_pairs=lambda size, generator: pick(kept[generator.integers(len(kept), size=size)]),
        captions=sorted(set(captions)),
        validation=pick(held),
        out=out,
        training=text_training.TextTrainingConfig(
            learning_rate=learning_rate, warmup=warmup, weight_decay=weight_decay
        ),
        steps=steps,
        batch_size=batch_size,
        seed=seed,
        checkpoint_every=checkpoint_every,
    )


def held_out_count(clips: int, share: float) -> int:
    """Return how many of two or more clips are held out: one at least, and one at least is left.

    Raises:
        ConfigError: a share of all clips, or more.
    """
    if not 0 <= share < 1:
        raise ConfigError(f"--validation-share: expected a share of 0 to below 1, got {share}.")
    return min(max(1, round(clips * share)), clips - 1)


def tokenizer_facts(vqgan: VQGAN, text: TextEncoder) -> dict[str, Any]:
    """Return what identifies a pair of tokenizers: kept in token shards and in checkpoints."""
    return {
        "codebook_size": int(vqgan.codebook.shape[0]),
        "codebook_dim": int(vqgan.codebook.shape[1]),
        "grid": list(vqgan.grid),
        "image_fingerprint": vqgan.fingerprint(),
        "text_fingerprint": text.fingerprint,
        "text_width": text.width,
        "text_length": text.context_length,
    }


class ImageEncoder:
    """Encodes frames where it is called: a worker that was sent one moves the network to its own device.

    threads: of the process that encodes, 0 for torch's choice.
    """

    def __init__(self, vqgan: VQGAN, device: Literal["auto", "cpu", "cuda"], threads: int = 0) -> None:
        self.vqgan, self.device, self.threads = vqgan, device, threads

    def __call__(self, frames: Array) -> Array:
        """Return the codes, integers `[f n]`, of uint8 frames `[f h w 3]`."""
        import torch

        if self.threads:
            torch.set_num_threads(self.threads)
        device = ("cuda" if torch.cuda.is_available() else "cpu") if self.device == "auto" else self.device
        return self.vqgan.to(device).encode_frames(frames)


def tokens(
    *,
    shards: str,
    out: Path,
    tokenizer: str = "small",
    text: str = "small",
    text_features: bool = True,
    image_fit: ImageFit = "crop",
    target_fps: float | None = None,
    jitter: float = 0.0,
    seed: int = 0,
    executor: Literal["local", "ray"] = "local",
    num_workers: int = 1,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    overwrite: bool = False,
) -> Mapping[str, Any]:
    """Encode every image and caption of video shards with the frozen tokenizers.

    Args:
        shards: folder of video shards, its URL, or tars by pattern (`https://host/shard-{000000..000127}.tar`).
        out: folder for the token shards.
        tokenizer: "small" (shipped), a folder of `gr2 tokenizer train`, or a published VQGAN checkpoint.
        text: "small" (shipped), a folder of `gr2 text train`, or an open_clip model (`ViT-B-32:openai`).
        text_features: encode the captions too; without, only the captions are kept (a corpus in which every clip has
            its own caption would need about 160 KB of features for each).
        image_fit: how images that are no squares become such: `crop` keeps their middle, `pad` puts black bars around
            them, `stretch` squeezes them. Models trained on the tokens do the same with what they see.
        target_fps: frames a second to keep; all by default.
        jitter: change brightness, contrast and saturation of each clip by up to this share before encoding, all frames
            and cameras alike: a second folder of the same shards to train on beside the plain one (`--tokens A B`).
        seed: of the jitter.
        executor: `local` works on this machine, `ray` on a shard in each worker of the cluster at RAY_ADDRESS.
        num_workers: processes that decode for this one; without a GPU, and with several shards, processes that encode a
            shard each on one thread; workers of Ray.
        device: where images are encoded; auto takes a GPU where there is one. With Ray, `cuda` gives each worker one.
        overwrite: replace an earlier result.
    """
    import torch

    from ...tokenizers.text_weights import load_text_encoder
    from ...tokenizers.weights import load_vqgan

    if device == "cuda" and executor == "local":
        from .loop import choose_accelerator

        choose_accelerator(device)  # states what is missing before any work
    expect_video_shards(as_location(shards))  # before weights are loaded
    vqgan, encoder = load_vqgan(tokenizer), load_text_encoder(text)
    on_cpu = device == "cpu" or not torch.cuda.is_available()
    shard_each = executor == "local" and on_cpu and min(num_workers, len(list_shards(as_location(shards)))) > 1
    manifest = write_token_shards(
        shards=shards,
        out=out,
        encode_images=ImageEncoder(vqgan, device, threads=int(shard_each)),
        encode_texts=encoder.encode if text_features else None,
        tokenizer_facts=tokenizer_facts(vqgan, encoder),
        image_size=vqgan.config.resolution,
        image_fit=image_fit,
        target_fps=target_fps,
        jitter=jitter,
        seed=seed,
        executor=executor,
        num_workers=num_workers,
        num_gpus=int(device == "cuda"),
        shard_each=shard_each,
        overwrite=overwrite,
    )
    _tell_fit(vqgan, encoder, shards, out, manifest)
    return manifest


def _tell_fit(vqgan: VQGAN, encoder: TextEncoder, shards: Location, out: Path, manifest: Mapping[str, Any]) -> None:
    """Print how well the encoders fit the images and captions that they have encoded."""
    from ...tokenizers.fit import describe_images, describe_texts

    frames = sampled_frames(shards, vqgan.config.resolution, stated_fit(manifest["tokenizer"]))
    texts = (text for name in manifest["shards"] for text in read_index(out / name)["note"]["sentences"])
    lines = [describe_images(vqgan, frames) if len(frames) else "", describe_texts(encoder, texts)]
    print(*filter(None, lines), sep="\n")


def sampled_frames(shards: Location, image_size: int, image_fit: ImageFit, *, most: int = 64) -> Array:
    """Return up to `most` images, uint8 `[n size size 3]`: of the first clips of some shards, evenly spread."""
    files = list_shards(shards)
    found: list[Array] = []
    for file in files[:: -(-len(files) // 8)]:
        for sample in islice(read_indexed(file), 4):
            for window in decode_sample(sample, image_size, None, image_fit):
                for frames in () if window.problem else window.images.values():
                    found.append(frames[:: -(-len(frames) // 2)])
    images = np.concatenate(found) if found else np.zeros((0, image_size, image_size, 3), np.uint8)
    return images[:: -(-len(images) // most)] if len(images) else images
