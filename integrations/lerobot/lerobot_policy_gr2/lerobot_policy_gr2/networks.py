"""gr2's networks for a LeRobot dataset: made anew, taken from a release, or empty for the weights of a checkpoint."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from gr2.contracts import Array
from gr2.cvae_head.kinds import HeadOptions
from gr2.cvae_head.signals import coding_of
from gr2.data_pipeline.embodiments import EmbodimentTally
from gr2.data_pipeline.readers.lerobot import LeRobotSource
from gr2.data_pipeline.video.frames import stated_fit
from gr2.embodiment import Embodiment, fitting
from gr2.errors import CheckpointError, ConfigError, DataError
from gr2.gr_model.act.loading import assemble
from gr2.gr_model.model.normalization import measure_statistics
from gr2.gr_model.model.release import config_from_dict
from gr2.gr_model.model.world_model import WorldModel
from gr2.gr_model.train.beginning import adapted, new_model
from gr2.gr_model.train.options import TrainingOptions
from gr2.tokenizers.text import TextConfig, TextEncoder
from gr2.tokenizers.text_weights import build_text_tower, load_text_encoder
from gr2.tokenizers.vqgan import VQGAN, GumbelVQGAN, VQGANConfig
from gr2.tokenizers.weights import load_vqgan

from .configuration_gr2 import GR2Config

_MOST_WINDOWS = 20_000
"""Windows that normalization statistics are measured on."""


@dataclass(frozen=True, kw_only=True)
class Networks:
    """The world model and its frozen encoders; token_ids: the byte pairs of a small vocabulary, None for all."""

    model: WorldModel
    image_tokenizer: VQGAN
    text_tower: nn.Module
    token_ids: torch.Tensor | None


@dataclass(frozen=True, kw_only=True)
class RobotData:
    """What a dataset shows of its robot.

    cameras: feature -> camera of gr2.
    states `[m s]`, actions `[m k a]`, mask `[m k]`: windows, as the policy is trained on them.
    """

    robot: Embodiment
    cameras: Mapping[str, str]
    states: Array
    actions: Array
    mask: Array


def read_robot(root: Path, chunk_length: int) -> RobotData:
    """Read states and actions of a LeRobot dataset, no video.

    Raises:
        DataError: no episode can be read.
    """
    source = LeRobotSource(root)
    tally, episodes, problems = EmbodimentTally(), list[tuple[Array, Array]](), list[str]()
    for record in source:
        if record.problem or record.states is None or record.actions is None or record.embodiment is None:
            problems.append(record.problem or f"{record.source}: no states or no actions")
            continue
        tally.add(record.embodiment, list(source.spec.cameras), record.states, record.actions)
        episodes.append((record.states, record.actions))
    if not episodes or len(tally.result()) != 1:
        got = problems[0] if problems else f"{len(tally.result())} robots"
        raise DataError(f"{root}: expected episodes of one robot with states and actions, got {got}.")
    if problems:
        print(f"{root}: {len(problems)} episodes are left out of the statistics, such as {problems[0]}")
    cameras = {feature: camera for camera, feature in source.spec.cameras.items()}
    return RobotData(robot=tally.result()[0], cameras=cameras, **_windows(episodes, chunk_length))


def first_robot(root: Path) -> Embodiment | None:
    """Return what the first readable episode of a dataset says of its robot."""
    return next((record.embodiment for record in LeRobotSource(root) if record.embodiment is not None), None)


def _windows(episodes: list[tuple[Array, Array]], k: int) -> dict[str, Array]:
    """Lay a window over every step, or over evenly spaced ones of a large dataset."""
    every = max(1, sum(len(states) for states, _ in episodes) // _MOST_WINDOWS)
    states, actions, masks = [], [], []
    for own_states, own_actions in episodes:
        begin = np.arange(0, len(own_states), every)
        at = begin[:, None] + np.arange(k)
        states.append(own_states[begin])
        actions.append(own_actions[np.minimum(at, len(own_actions) - 1)])
        masks.append(at < len(own_actions))
    return {"states": np.concatenate(states), "actions": np.concatenate(actions), "mask": np.concatenate(masks)}


def make_networks(config: GR2Config, root: Path) -> Networks:
    """Make the networks for a dataset, and write into `config` what their shapes follow from.

    Raises:
        ConfigError: the release is of another robot or other cameras, or the dataset lacks images for the features.
    """
    data = read_robot(root, config.horizon)
    wanted = {feature: camera for feature, camera in data.cameras.items() if feature in config.image_features}
    if not wanted:
        raise ConfigError(
            f"{root}: expected images of {sorted(config.image_features)}, got {sorted(data.cameras)}; correct the "
            "names."
        )
    robot = replace(data.robot, cameras=tuple(wanted.values()))
    found = _of_release(config, robot) if config.release else _new(config, robot)
    model, vqgan, text = found
    names = [camera.name for camera in model.config.cameras]
    if config.statistics == "measure" or not model.acts:
        coding = coding_of(robot, model.config.state_joints)
        model.set_statistics(measure_statistics(data.states, data.actions, data.mask, coding=coding))
    config.cameras = {feature: camera for feature, camera in wanted.items() if camera in names}
    if not config.cameras:
        raise ConfigError(
            f"--policy.release {config.release}: made for the cameras {names}, got data of {sorted(wanted.values())}; "
            "name one of the dataset's cameras so, or start a new model."
        )
    return described(config, model, vqgan, text)


def described(config: GR2Config, model: WorldModel, vqgan: VQGAN, text: TextEncoder) -> Networks:
    """Write into `config` what the shapes of the networks follow from, so that a checkpoint can be read."""
    shape = asdict(vqgan.config) | {"gumbel": isinstance(vqgan, GumbelVQGAN)}
    config.model, config.image_tokenizer = (json.loads(json.dumps(part)) for part in (asdict(model.config), shape))
    config.tokenizer_fingerprint, config.text_fingerprint = vqgan.fingerprint(), text.fingerprint
    config.text_encoder = _describe_text(text, config.text)
    ids = None if text.vocabulary is None else torch.as_tensor(text.vocabulary.token_ids)
    return Networks(model=model, image_tokenizer=vqgan, text_tower=text.tower, token_ids=ids)


def _new(config: GR2Config, robot: Embodiment) -> tuple[WorldModel, VQGAN, TextEncoder]:
    vqgan, text = load_vqgan(config.tokenizer), load_text_encoder(config.text)
    options = TrainingOptions(
        tokens=["LeRobot"],
        out=Path(),
        size=config.size,  # type: ignore[arg-type]
        head=HeadOptions(kind=config.head or None),  # type: ignore[arg-type]
        context=config.n_obs_steps,
        chunk_length=config.horizon,
        seed=torch.initial_seed() % 2**31,
    )
    facts = {
        "grid": vqgan.grid,
        "codebook_size": len(vqgan.codebook),
        "codebook_dim": vqgan.codebook.shape[1],
        "text_width": text.width,
        "text_length": text.context_length,
    }
    model = new_model(options, facts, robot.cameras, [robot])
    model.embed.set_codebook(vqgan.codebook.detach())
    return model, vqgan, text


def _of_release(config: GR2Config, robot: Embodiment) -> tuple[WorldModel, VQGAN, TextEncoder]:
    """Take the model and the encoders of a release; what depends on the robot begins again for another one."""
    parts = assemble(config.release)
    release, known = parts.release, parts.release.model.config.embodiments
    fits = bool(fitting(known, robot))
    if len(known) > 1:
        raise ConfigError(
            f"--policy.release {config.release}: expected a model of one robot, got one of {len(known)}; finetune it "
            "with `gr2 finetune`, which reads LeRobot datasets too."
        )
    if release.model.acts and not fits:
        reasons = [reason for reason in known[0].differences(robot) if not reason.startswith("camera ")]
        raise ConfigError(
            f"--policy.release {config.release}: finetuned for {' and '.join(e.name for e in known)}, got data of "
            f"{robot.name} ({'; '.join(reasons[:3])}); start from a pretrained model, or from a new one without it."
        )
    config.image_fit = stated_fit(release.provenance)
    config.text = str(release.provenance.get("text_source", "small"))
    head = HeadOptions(kind=config.head or None)  # type: ignore[arg-type]
    return adapted(release.model, head, known if fits else [robot]), parts.vqgan, parts.text


def _describe_text(text: TextEncoder, source: str) -> dict[str, Any]:
    """Return the shape of a small text tower, or where another one comes from."""
    if text.vocabulary is None:
        return {"source": source}
    tower: Any = text.tower
    shape = TextConfig(
        width=text.width,
        heads=int(tower.heads),
        layers=len(tower.transformer.resblocks),
        context_length=text.context_length,
        embed_dim=int(tower.output_dim),
    )
    return asdict(shape) | {"rows": len(text.vocabulary)}


def empty_networks(config: GR2Config) -> Networks:
    """Make the networks that a checkpoint was written of; its weights fill them.

    Raises:
        CheckpointError: the configuration is not one that this version wrote.
    """
    shape, text = dict(config.image_tokenizer), dict(config.text_encoder)
    try:
        kind = GumbelVQGAN if shape.pop("gumbel") else VQGAN
        known = {entry.name for entry in fields(VQGANConfig)}
        values = {name: tuple(value) if isinstance(value, list) else value for name, value in shape.items()}
        vqgan = kind(VQGANConfig(**{name: values[name] for name in known})).requires_grad_(False).eval()
        if "source" in text:
            tower: nn.Module = load_text_encoder(text["source"]).tower
            ids = None
        else:
            rows = int(text.pop("rows"))
            tower = build_text_tower(TextConfig(**text), rows).requires_grad_(False).eval()
            ids = torch.zeros(rows - 1, dtype=torch.int64)
    except (KeyError, TypeError) as error:
        raise CheckpointError(
            f"gr2: expected the configuration of a checkpoint of this version, got another ({error}); train it again."
        ) from error
    model = WorldModel(config_from_dict(config.model))
    model.acts = True
    return Networks(model=model, image_tokenizer=vqgan, text_tower=tower, token_ids=ids)


def expect_same_robot(config: GR2Config, root: Path) -> None:
    """Refuse a dataset of another robot than a checkpoint is of; cameras may differ.

    Raises:
        ConfigError: naming what differs.
    """
    robot, known = first_robot(root), config_from_dict(config.model).embodiments
    if robot is not None and not fitting(known, robot):
        reasons = [reason for reason in known[0].differences(robot) if not reason.startswith("camera ")]
        raise ConfigError(
            f"{root}: expected data of {known[0].name} as the checkpoint was trained on, got {robot.name} "
            f"({'; '.join(reasons[:3])}); start a new model, or from a pretrained release with --policy.release."
        )
