"""Stages that train the model: pretraining on video tokens, finetuning on robot episodes."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ...cvae_head.kinds import HeadOptions
from ...data_pipeline.loading.loader import LoaderConfig
from ...errors import CheckpointError, ConfigError, DataError
from ..model.config import ModelChanges

if TYPE_CHECKING:
    from ...data_pipeline.loading.loader import BatchLoader
    from ...data_pipeline.loading.token_store import TokenStore
    from ...data_pipeline.locations import Location
    from ...data_pipeline.statistics.datasets import DatasetStatistics
    from ...tokenizers.text import TextEncoder
    from ...tokenizers.vqgan import VQGAN
    from ..model.config import ModelConfig
    from ..model.normalization import Normalization, Statistics
    from ..model.release import Release
    from ..model.world_model import WorldModel
    from .distributed import Distribution
    from .module import TrainingConfig

Size = Literal["tiny", "S", "B", "L", "XL"]
Device = Literal["auto", "cpu", "cuda"]
StrategyName = Literal["auto", "ddp", "fsdp"]
LogName = Literal["auto", "csv", "tensorboard", "wandb"]
CAMERAS = ("static", "gripper")
_VALIDATION_SHARE, _VALIDATION_BATCHES = 0.03, 8


@dataclass(frozen=True, kw_only=True)
class ComputeConfig:
    """How a step is computed; the losses are the same up to rounding.

    precision: bf16 computes matrix products in bfloat16, 32 everything in float32; auto takes the faster one.
    compile: fuse the trunk's blocks with torch.compile.
    gradient_checkpointing: compute activations twice instead of keeping them; null does so for L and XL.
    """

    precision: Literal["auto", "32", "bf16"] = "auto"
    compile: bool = False
    gradient_checkpointing: bool | None = None


@dataclass(frozen=True, kw_only=True)
class FrozenEncoders:
    """The image tokenizer of a token store, where it was loaded from, and the fingerprints of both encoders.

    text: the text encoder where some sentences have no features yet, else None.
    """

    vqgan: VQGAN
    text: TextEncoder | None
    tokenizer_source: str
    text_source: str
    facts: Mapping[str, Any]


def _load_encoders(store: TokenStore, tokenizer: str, text: str) -> FrozenEncoders:
    """Load the tokenizer, and the text encoder where it is needed; check that they are those of the tokens.

    Raises:
        CheckpointError: one is another one.
    """
    from ...tokenizers.weights import load_vqgan
    from .texts import load_encoder_of
    from .tokenizer_stages import codebook_fingerprint

    vqgan = load_vqgan(tokenizer)
    if codebook_fingerprint(vqgan) != store.tokenizer["sha256"]:
        raise CheckpointError(
            f"--tokenizer {tokenizer}: expected the tokenizer that made the tokens, got another one; name the one that "
            "was given to `gr2 data tokens`, or encode the shards again."
        )
    encoder = None if store.has_text_features else load_encoder_of(store.tokenizer, text)
    return FrozenEncoders(
        vqgan=vqgan, text=encoder, tokenizer_source=tokenizer, text_source=text, facts=store.tokenizer
    )


def model_config(
    size: Size, facts: Mapping[str, Any], *, chunk_length: int, context: int, changes: ModelChanges, head: HeadOptions
) -> ModelConfig:
    """Return the configuration of a size, with `changes`, for the tokenizers that `facts` describes."""
    from ..model import presets
    from ..model.config import CameraSpec

    grid = (int(facts["grid"][0]), int(facts["grid"][1]))
    cameras = tuple(CameraSpec(name=name, grid=grid) for name in CAMERAS)
    config = presets.tiny(grid=grid) if size == "tiny" else presets.of_size(size)
    config = replace(
        config,
        cameras=cameras,
        codebook_size=int(facts["codebook_size"]),
        codebook_dim=int(facts["codebook_dim"]),
        text_dim=int(facts["text_width"]),
        text_length=int(facts["text_length"]),
        chunk_length=chunk_length,
        max_context=context,
        state_dropout=0.1,
        head=head.apply(config.head),
    )
    return changes.apply(config)


def _set_threads(threads: int) -> None:
    import torch

    if threads:
        torch.set_num_threads(threads)


def _run(
    model: WorldModel,
    training: TrainingConfig,
    loaders: tuple[BatchLoader, BatchLoader],
    encoders: FrozenEncoders,
    *,
    out: Path,
    steps: int,
    batch_size: int,
    store: TokenStore,
    distribution: Distribution,
    log: LogName,
    description: str,
    frame_step: int,
    datasets: Mapping[str, DatasetStatistics] | None = None,
) -> dict[str, float]:
    """Train, then write the release with the averaged weights, on the first process."""
    from ..model.release import save_release
    from .loop import TrainingModule, train
    from .texts import give_sentences

    model.embed.set_codebook(encoders.vqgan.codebook.detach())
    give_sentences(model, store, encoders.text)
    module = TrainingModule(model, training, steps=steps)
    loader, held_out = loaders
    validation = list(islice(iter(held_out), min(_VALIDATION_BATCHES, len(held_out))))
    figures = train(
        module=module, loader=loader, validation=validation, out=out, batch_size=batch_size,
        validate_every=max(100, steps // 20), checkpoint_every=max(100, steps // 20),
        distribution=distribution, log=log, name_episode=store.key, description=description,
    )  # fmt: skip
    if distribution.rank:
        return figures
    sources = _keep_encoders(encoders, out)
    save_release(
        out,
        module.use_average(),
        tokenizer=str(encoders.facts["sha256"]),
        text=str(encoders.facts["text_fingerprint"]),
        frame_step=frame_step * int(np.median(store.frame_stride)),
        control_hz=30.0,
        provenance={"steps": steps, "seed": training.seed, "windows": loader.num_windows, **sources},
        datasets=datasets,
    )
    return figures | {"windows": loader.num_windows, "steps": steps}


def _keep_encoders(encoders: FrozenEncoders, out: Path) -> dict[str, str]:
    """Copy encoders of our own into the release, so that it works by itself; names of others are kept."""
    kept = {}
    for kind, stem, source in (
        ("tokenizer", "vqgan", encoders.tokenizer_source),
        ("text", "text", encoders.text_source),
    ):
        folder = Path(source)
        kept[f"{kind}_source"] = source
        if folder.is_dir() and (folder / f"{stem}.safetensors").is_file():
            target = out / kind
            target.mkdir(parents=True, exist_ok=True)
            for file in folder.glob(f"{stem}.*"):
                shutil.copyfile(file, target / file.name)
            kept[f"{kind}_source"] = kind
    return kept


def _open(
    tokens: Sequence[Location], tokenizer: str, text: str, *, load_steps: bool
) -> tuple[TokenStore, FrozenEncoders]:
    from ...data_pipeline.loading.token_store import TokenStore

    if not tokens:
        raise ConfigError("--tokens: expected at least one folder, as in --tokens '[\"runs/a/tokens\"]'.")
    store = TokenStore.open(tokens, CAMERAS, load_steps=load_steps)
    return store, _load_encoders(store, tokenizer, text)


def _loaders(
    store: TokenStore, config: LoaderConfig, *, batch_size: int, chunk_length: int, context: int, frame_step: int,
    seed: int, labelled_only: bool, distribution: Distribution,
) -> tuple[BatchLoader, BatchLoader]:  # fmt: skip
    """Return this process's part of the training windows, and the held-out windows, the same on every process."""
    from ...data_pipeline.loading.loader import BatchLoader
    from ...data_pipeline.loading.token_windows import TokenWindows

    def make(
        split: Literal["train", "validation"], size: int, config: LoaderConfig, rank: int, world_size: int
    ) -> BatchLoader:
        windows = TokenWindows(
            store, num_frames=context + 1, frame_step=frame_step, chunk_length=chunk_length, context=context,
            labelled_only=labelled_only, split=split, validation_fraction=_VALIDATION_SHARE,
        )  # fmt: skip
        return BatchLoader(windows, batch_size=size, seed=seed, rank=rank, world_size=world_size, config=config)

    held_out = LoaderConfig(weights=config.weights)
    training = make("train", batch_size, config, distribution.rank, distribution.world_size)
    return training, make("validation", min(batch_size, 16), held_out, 0, 1)


def pretrain(
    *,
    tokens: list[str],
    out: Path,
    size: Size = "tiny",
    model: ModelChanges = ModelChanges(),  # noqa: B008  (frozen)
    head: HeadOptions = HeadOptions(),  # noqa: B008  (frozen)
    tokenizer: str = "small",
    text: str = "small",
    steps: int = 1000,
    batch_size: int = 64,
    learning_rate: float = 1e-3,
    context: int = 1,
    frame_step: int = 1,
    chunk_length: int = 10,
    threads: int = 2,
    device: Device = "auto",
    devices: int | Literal["auto"] = 1,
    strategy: StrategyName = "auto",
    num_nodes: int = 1,
    accumulate: int = 1,
    compute: ComputeConfig = ComputeConfig(),
    log: LogName = "auto",
    loader: LoaderConfig = LoaderConfig(),  # noqa: B008  (frozen)
    seed: int = 0,
) -> dict[str, float]:
    """Train the GPT to predict the next frame of every video; no states, no actions.

    Args:
        tokens: folders that `gr2 data tokens` wrote, or their URLs.
        out: folder for the log, the checkpoint and the released model; a stopped run goes on.
        size: tiny (CPU), S, B, L or XL.
        model: what differs from the size.
        head: the trajectory head that finetuning will train.
        tokenizer: the image tokenizer that made the tokens: "small" or its folder or file.
        text: the text encoder that made the tokens.
        steps: optimisation steps.
        batch_size: windows a batch on each device; a step takes batch_size x accumulate x devices x num_nodes.
        learning_rate: peak learning rate of AdamW; Muon's, for the matrices of the trunk, is four times that.
        context: frames that the model sees.
        frame_step: frames of the tokens from one frame of a window to the next; windows begin at every frame.
        chunk_length: poses of the chunk that finetuning will add.
        threads: CPU threads, 0 leaves torch's choice.
        device: where to train; auto takes a GPU where there is one.
        devices: processes on each machine, one a GPU; auto takes all of them.
        strategy: ddp keeps all weights on each device, fsdp spreads them; auto is ddp on several devices.
        num_nodes: machines, each of which runs this command (srun or torchrun).
        accumulate: batches a step.
        compute: precision, compilation, and activations kept or computed twice.
        log: beside metrics.csv; auto adds TensorBoard where it is installed.
        loader: shares of the folders, workers, and how far windows are mixed.
        seed: seed of weights, order and masks.
    """
    import torch

    from ..model.world_model import WorldModel
    from .distributed import Distribution
    from .module import TrainingConfig

    _set_threads(threads)
    distribution = Distribution(device=device, devices=devices, strategy=strategy, num_nodes=num_nodes)
    store, encoders = _open(tokens, tokenizer, text, load_steps=False)
    torch.manual_seed(seed)
    world_model = WorldModel(
        model_config(size, encoders.facts, chunk_length=chunk_length, context=context, changes=model, head=head)
    )
    loaders = _loaders(
        store, loader, batch_size=batch_size, chunk_length=chunk_length, context=context, frame_step=frame_step,
        seed=seed, labelled_only=False, distribution=distribution,
    )  # fmt: skip
    training = TrainingConfig(
        with_actions=False, learning_rate=learning_rate, weight_average=0.99, accumulate=accumulate, seed=seed,
        **asdict(compute),
    )  # fmt: skip
    return _run(
        world_model, training, loaders, encoders, out=out, steps=steps, batch_size=batch_size, store=store,
        frame_step=frame_step, distribution=distribution, log=log, description="pretrain",
    )  # fmt: skip


def finetune(
    *,
    tokens: list[str],
    out: Path,
    init: Path | None = None,
    size: Size = "tiny",
    model: ModelChanges = ModelChanges(),  # noqa: B008  (frozen)
    head: HeadOptions = HeadOptions(),  # noqa: B008  (frozen)
    tokenizer: str = "small",
    text: str = "small",
    steps: int = 4000,
    batch_size: int = 64,
    learning_rate: float = 1e-3,
    frame_weight: float = 0.3,
    frame_fraction: float = 1.0,
    context: int = 1,
    frame_step: int = 1,
    chunk_length: int = 10,
    statistics: Literal["check", "keep", "measure"] = "check",
    normalization: Literal["moments", "quantiles"] = "moments",
    threads: int = 2,
    device: Device = "auto",
    devices: int | Literal["auto"] = 1,
    strategy: StrategyName = "auto",
    num_nodes: int = 1,
    accumulate: int = 1,
    compute: ComputeConfig = ComputeConfig(),
    log: LogName = "auto",
    loader: LoaderConfig = LoaderConfig(),  # noqa: B008  (frozen)
    seed: int = 0,
) -> dict[str, float]:
    """Train frames and trajectories together on labelled robot episodes.

    Args:
        tokens: folders that `gr2 data tokens` wrote, with states and actions.
        out: folder for the log, the checkpoint and the released model; a stopped run goes on.
        init: a pretrained model to start from; none starts from nothing.
        size: tiny (CPU), S, B, L or XL, where there is no `init`.
        model: what differs from the size, where there is no `init`.
        head: the trajectory head; one unlike that of `init` is trained from nothing.
        tokenizer: the image tokenizer that made the tokens: "small" or its folder or file.
        text: the text encoder that made the tokens.
        steps: optimisation steps.
        batch_size: windows a batch on each device; a step takes batch_size x accumulate x devices x num_nodes.
        learning_rate: peak learning rate of AdamW; Muon's, for the matrices of the trunk, is four times that.
        frame_weight: weight of the frame loss beside the action loss.
        frame_fraction: share of the steps that predict frames too.
        context: frames that the model sees.
        frame_step: frames of the tokens from one frame of a window to the next; windows begin at every frame.
        chunk_length: poses of a chunk, one for each control step.
        statistics: check the data's against those of `init`, keep the latter, or measure the former unchecked.
        normalization: mean 0 and deviation 1, or the 1 % and 99 % quantiles at -1 and 1.
        threads: CPU threads, 0 leaves torch's choice.
        device: where to train; auto takes a GPU where there is one.
        devices: processes on each machine, one a GPU; auto takes all of them.
        strategy: ddp keeps all weights on each device, fsdp spreads them; auto is ddp on several devices.
        num_nodes: machines, each of which runs this command (srun or torchrun).
        accumulate: batches a step.
        compute: precision, compilation, and activations kept or computed twice.
        log: beside metrics.csv; auto adds TensorBoard where it is installed.
        loader: shares of the folders, workers, and how far windows are mixed.
        seed: seed of weights, order and masks.
    """
    from ..model.normalization import choose_normalization
    from .distributed import Distribution
    from .module import TrainingConfig

    distribution = Distribution(device=device, devices=devices, strategy=strategy, num_nodes=num_nodes)
    _set_threads(threads)
    store, encoders = _open(tokens, tokenizer, text, load_steps=True)
    config = model_config(size, encoders.facts, chunk_length=chunk_length, context=context, changes=model,
        head=head)  # fmt: skip
    world_model, start = _first_model(init, config, encoders, changed=model != ModelChanges(), head=head, seed=seed)
    loaders = _loaders(store, loader, batch_size=batch_size, chunk_length=chunk_length, context=context,
        frame_step=frame_step, seed=seed, labelled_only=True, distribution=distribution)  # fmt: skip
    chosen = choose_normalization(statistics, tokens=tokens, out=out, init=init, start=start,
        measure=lambda: _measure(loaders[0], batch_size, context, normalization))  # fmt: skip
    world_model.set_statistics(chosen.statistics)
    recipe = TrainingConfig(frame_weight=frame_weight, frame_fraction=frame_fraction, accumulate=accumulate, seed=seed,
        learning_rate=learning_rate, weight_average=0.998 if steps > 1000 else 0.99, **asdict(compute))  # fmt: skip
    return _run(world_model, recipe, loaders, encoders, out=out, steps=steps, batch_size=batch_size, store=store,
        frame_step=frame_step, distribution=distribution, log=log, description="finetune",
        datasets=chosen.datasets)  # fmt: skip


def _first_model(
    init: Path | None, config: ModelConfig, encoders: FrozenEncoders, *, changed: bool, head: HeadOptions, seed: int
) -> tuple[WorldModel, Normalization | None]:
    """Return the model that finetuning begins with, and what it normalizes with, None for one that never acted."""
    import torch

    from ..model.world_model import WorldModel

    if init is not None:
        if changed:
            raise ConfigError(f"--init {init}: its model is what it is, got changes of it, too; leave --model out.")
        start = _load_start(Path(init), encoders, config)
        torch.manual_seed(seed)
        return with_head(start.model, head).train(), start.normalization
    torch.manual_seed(seed)
    return WorldModel(config), None


def with_head(model: WorldModel, options: HeadOptions) -> WorldModel:
    """Return the model, with a new trajectory head where the options ask for another than it has."""
    from ...cvae_head.kinds import make_head

    config = model.config
    wanted = options.apply(config.head)
    if wanted == config.head:
        return model
    model.config = replace(config, head=wanted)
    model.head = make_head(wanted, condition_dim=config.width, shape=config.chunk_shape)
    return model


def _load_start(init: Path, encoders: FrozenEncoders, config: ModelConfig) -> Release:
    """Load the model to start from.

    Raises:
        ConfigError: it has another chunk or context.
    """
    from ..model.release import load_release

    facts = {"tokenizer": str(encoders.facts["sha256"]), "text": str(encoders.facts["text_fingerprint"])}
    release = load_release(init, **facts)
    found = release.model.config
    if found.chunk_length != config.chunk_length or found.max_context != config.max_context:
        raise ConfigError(
            f"--init {init}: made for chunks of {found.chunk_length} and {found.max_context} context frames, asked for "
            f"{config.chunk_length} and {config.max_context}; pretrain with the same numbers."
        )
    return release


def _measure(
    loader: BatchLoader, batch_size: int, context: int, mode: Literal["moments", "quantiles"] = "moments"
) -> Statistics:
    """Measure normalisation statistics on up to 20,000 windows of the training split."""
    from ..model.normalization import measure_statistics

    state = loader.state_dict()
    batches = list(islice(iter(loader), max(1, min(len(loader), 20_000 // batch_size))))
    loader.load_state_dict(state)
    if not batches:
        raise DataError("finetune: expected labelled episodes with actions, got none; record or convert some.")

    def gather(name: str) -> np.ndarray:
        return np.concatenate([batch[name].numpy() for batch in batches])

    states = gather("states")[:, context - 1]
    return measure_statistics(states, gather("actions"), gather("action_mask"), mode=mode)
