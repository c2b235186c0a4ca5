"""The model that a training run begins with: a new one of a size, or a released one, with the chosen head."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from ...cvae_head.kinds import HeadConfig, HeadOptions
from ...embodiment import Embodiment, fitting
from ...errors import ConfigError
from ...fingerprints import image_fingerprint
from ..model import presets
from ..model.config import CameraSpec, ModelChanges, ModelConfig
from ..model.normalization import Normalization
from ..model.release import WEIGHTS, load_release, read_tensors, release_folder
from ..model.world_model import WorldModel
from .options import FinetuneOptions, TrainingOptions

_SETTINGS = ("steps", "draws", "sample_latent", "kl_weight", "kl_warmup", "free_bits", "temperature")
"""Options of heads that say how they are trained or asked: the same weights serve others."""


def model_config(
    options: TrainingOptions, facts: Mapping[str, Any], cameras: Sequence[str], robots: Sequence[Embodiment]
) -> ModelConfig:
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
        embodiments=tuple(robots),
    )
    return options.model.apply(config)


def new_model(
    options: TrainingOptions, facts: Mapping[str, Any], cameras: Sequence[str], robots: Sequence[Embodiment]
) -> WorldModel:
    """Make a model with weights that follow from the seed."""
    torch.manual_seed(options.seed)
    return WorldModel(model_config(options, facts, cameras, robots))


def first_model(
    options: FinetuneOptions,
    facts: Mapping[str, Any],
    cameras: Sequence[str],
    robots: Sequence[Embodiment],
    contacts: Sequence[str] = (),
) -> tuple[WorldModel, Normalization | None]:
    """Return the model that finetuning begins with, and what it normalizes with, None for one that never acted.

    Args:
        contacts: parts of a scene of which it is to say when they are touched.

    Raises:
        ConfigError: `init` has another context than asked for or acts in chunks of another length, changes of its model
            are asked for, or it acts for other robots than those of the data.
    """
    if options.init is None:
        torch.manual_seed(options.seed)
        config = model_config(options, facts, cameras, robots)
        return WorldModel(replace(config, contacts=tuple(contacts), keyposes=options.keyposes)), None
    if options.model != ModelChanges():
        raise ConfigError(f"--init {options.init}: its model is what it is, got changes of it, too; leave --model out.")
    encoders = {"tokenizer": image_fingerprint(facts), "text": str(facts["text_fingerprint"])}
    folder = release_folder(options.init)
    release = load_release(folder, **encoders)
    found, start = release.model.config, release.normalization
    if found.max_context != options.context:
        raise ConfigError(
            f"--init {options.init}: made for {found.max_context} context frames, asked for {options.context}; "
            "pretrain with the same number."
        )
    if start is not None and found.chunk_length != options.chunk_length:
        raise ConfigError(
            f"--init {options.init}: acts in chunks of {found.chunk_length}, asked for {options.chunk_length}; "
            f"finetune with --chunk-length {found.chunk_length}, or begin with a model that was only pretrained."
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
    other = [robot for robot in robots if not fitting(found.embodiments, robot)]
    if other and start is not None:
        known = " and ".join(robot.name for robot in found.embodiments)
        reasons = [d for d in found.embodiments[0].differences(other[0]) if not d.startswith("camera ")]
        raise ConfigError(
            f"--init {options.init}: finetuned for {known}, got data of {other[0].name} ({'; '.join(reasons[:3])}); "
            "start from a pretrained model, or train on data of that robot."
        )
    kept = start is not None or (not other and len(robots) == len(found.embodiments))
    robots = found.embodiments if kept else robots
    changes: dict[str, Any] = {"chunk_length": options.chunk_length, "contacts": contacts}
    changes |= {"keyposes": options.keyposes}
    return adapted(release.model, options.head, robots, **changes, weights=folder / WEIGHTS), start


def adapted(
    model: WorldModel,
    options: HeadOptions,
    robots: Sequence[Embodiment],
    *,
    chunk_length: int | None = None,
    contacts: Sequence[str] = (),
    keyposes: bool = False,
    weights: Path | None = None,
) -> WorldModel:
    """Return the model for some robots, with the chosen head and chunk; what depends on one that differs begins again.

    Args:
        chunk_length: control steps of a chunk, None for the model's.
        contacts: parts of a scene of which it is to say when they are touched; keyposes: whether it is to say them.
        weights: the file that the model came from; it is read again, in place of holding two models in memory.
    """
    wanted = replace(model.config, head=options.apply(model.config.head), embodiments=tuple(robots))
    length = chunk_length or wanted.chunk_length
    wanted = replace(wanted, contacts=tuple(contacts), keyposes=keyposes, chunk_length=length)
    if wanted == model.config:
        return model.train()
    kept = model.state_dict().items() if weights is None else read_tensors(weights)
    if weights is not None:
        model.to("meta")
    new = WorldModel(wanted)
    state = new.state_dict()
    same_head = _same_network(wanted.head, model.config.head) and wanted.embodiments == model.config.embodiments
    same_head = same_head and wanted.chunk_length == model.config.chunk_length
    for name, value in kept:
        if name in state and state[name].shape == value.shape and (same_head or not name.startswith("head.")):
            state[name].copy_(value)
    new.acts, new.predicts = model.acts, model.predicts
    return new.train()


def _same_network(one: HeadConfig, other: HeadConfig) -> bool:
    """Return whether two heads differ in nothing but `_SETTINGS`."""
    first, second = ({k: v for k, v in asdict(head).items() if k not in _SETTINGS} for head in (one, other))
    return first == second
