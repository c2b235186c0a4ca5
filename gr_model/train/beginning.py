"""The model that a training run begins with: a new one of a size, or a released one, with the chosen head."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from ...cvae_head.kinds import HeadOptions, make_head
from ...errors import ConfigError
from ..model import presets
from ..model.config import CameraSpec, ModelChanges, ModelConfig
from ..model.normalization import Normalization
from ..model.release import load_release
from ..model.world_model import WorldModel
from .options import FinetuneOptions, TrainingOptions


def model_config(options: TrainingOptions, facts: Mapping[str, Any], cameras: Sequence[str]) -> ModelConfig:
    """Return the configuration of the size that is asked for, for the tokenizers that `facts` describes."""
    grid = (int(facts["grid"][0]), int(facts["grid"][1]))
    config = presets.tiny(grid=grid) if options.size == "tiny" else presets.of_size(options.size)
    config = replace(
        config,
        cameras=tuple(CameraSpec(name=name, grid=grid) for name in cameras),
        codebook_size=int(facts["codebook_size"]),
        codebook_dim=int(facts["codebook_dim"]),
        text_dim=int(facts["text_width"]),
        text_length=int(facts["text_length"]),
        chunk_length=options.chunk_length,
        max_context=options.context,
        state_dropout=0.1,
        head=options.head.apply(config.head),
    )
    return options.model.apply(config)


def new_model(options: TrainingOptions, facts: Mapping[str, Any], cameras: Sequence[str]) -> WorldModel:
    """Make a model with weights that follow from the seed."""
    torch.manual_seed(options.seed)
    return WorldModel(model_config(options, facts, cameras))


def first_model(
    options: FinetuneOptions, facts: Mapping[str, Any], cameras: Sequence[str]
) -> tuple[WorldModel, Normalization | None]:
    """Return the model that finetuning begins with, and what it normalizes with, None for one that never acted.

    Raises:
        ConfigError: `init` has another chunk or context than asked for, or changes of its model are asked for.
    """
    if options.init is None:
        return new_model(options, facts, cameras), None
    if options.model != ModelChanges():
        raise ConfigError(f"--init {options.init}: its model is what it is, got changes of it, too; leave --model out.")
    encoders = {"tokenizer": str(facts["sha256"]), "text": str(facts["text_fingerprint"])}
    release = load_release(options.init, **encoders)
    found = release.model.config
    if (found.chunk_length, found.max_context) != (options.chunk_length, options.context):
        raise ConfigError(
            f"--init {options.init}: made for chunks of {found.chunk_length} and {found.max_context} context frames, "
            f"asked for {options.chunk_length} and {options.context}; pretrain with the same numbers."
        )
    names = [camera.name for camera in found.cameras]
    if not set(names) & set(cameras):
        raise ConfigError(
            f"--init {options.init}: made for the cameras {names}, got data of {list(cameras)}; rename the cameras of "
            "the data, or start from nothing."
        )
    if extra := [name for name in cameras if name not in names]:
        print(f"{options.init}: was not made for the cameras {extra} of the data; they are left out")
    torch.manual_seed(options.seed)
    return with_head(release.model, options.head).train(), release.normalization


def with_head(model: WorldModel, options: HeadOptions) -> WorldModel:
    """Return the model, with a new trajectory head where the options ask for another than it has."""
    config = model.config
    wanted = options.apply(config.head)
    if wanted == config.head:
        return model
    model.config = replace(config, head=wanted)
    model.head = make_head(wanted, condition_dim=config.width, shape=config.chunk_shape)
    return model
