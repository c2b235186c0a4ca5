"""Stages that train the model: pretraining on video tokens, finetuning on robot episodes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from ...data_pipeline.loading.loader import LoaderConfig
from ...data_pipeline.video.frames import stated_fit
from ...embodiment import TOOL_ARM, with_different_names
from ...errors import ConfigError, DataError
from .encoders import FrozenEncoders, keep_encoders, load_encoders
from .options import FinetuneOptions, TrainingOptions

if TYPE_CHECKING:
    from ...cvae_head.slots import SlotCoding
    from ...data_pipeline.loading.loader import BatchLoader
    from ...data_pipeline.loading.token_store import TokenStore
    from ...data_pipeline.loading.token_windows import TokenWindows
    from ...data_pipeline.statistics.datasets import DatasetStatistics
    from ..model.normalization import Normalization, Statistics
    from ..model.world_model import WorldModel
    from .distributed import Distribution
    from .recipe import TrainingConfig

_VALIDATION_BATCHES = 8

_KEPT_TEXTS = 2000
"""Different instructions up to which a release keeps those that it was trained on."""


@dataclass(frozen=True, kw_only=True)
class _Inputs:
    """What a stage trains on: token shards, their encoders, windows for training and held-out ones, and where."""

    store: TokenStore
    encoders: FrozenEncoders
    loader: BatchLoader
    held_out: BatchLoader | None
    distribution: Distribution


def _open(options: TrainingOptions, *, labeled_only: bool) -> _Inputs:
    """Open tokens, encoders and loaders; every process has its own part of the training windows."""
    import torch

    from ...data_pipeline.loading.loader import BatchLoader
    from ...data_pipeline.loading.token_store import TokenStore
    from ...data_pipeline.loading.token_windows import TokenWindows
    from .distributed import Distribution

    if options.threads:
        torch.set_num_threads(options.threads)
    distribution = Distribution(
        device=options.device, devices=options.devices, strategy=options.strategy, num_nodes=options.num_nodes
    )
    store = TokenStore.open(options.tokens, load_steps=labeled_only)
    says_motions, parts = labeled_only and _says_motions(options), _contact_parts(options, store)

    def windows_of(split: Literal["train", "validation"]) -> TokenWindows:
        return TokenWindows(
            store,
            num_frames=options.context + 1,
            frame_step=options.frame_step,
            chunk_length=options.chunk_length,
            context=options.context,
            labeled_only=labeled_only,
            split=split,
            validation_fraction=options.validation_share,
            look_ahead=says_motions,
            contact_parts=parts,
            keyposes=isinstance(options, FinetuneOptions) and options.keyposes,
        )

    training = BatchLoader(
        windows_of("train"),
        batch_size=options.batch_size,
        seed=options.seed,
        rank=distribution.rank,
        world_size=distribution.world_size,
        config=options.loader,
    )
    return _Inputs(
        store=store,
        encoders=load_encoders(store, options.tokenizer, options.text),
        loader=training,
        held_out=_held_out(windows_of("validation"), options),
        distribution=distribution,
    )


def _says_motions(options: TrainingOptions) -> bool:
    """Return whether the model to be trained says its motion."""
    from ..model.release import read_record, release_folder

    if isinstance(options, FinetuneOptions) and options.init is not None:
        return bool(read_record(release_folder(options.init))["model"].get("motions"))
    return options.model.motions is not None


def _contact_parts(options: TrainingOptions, store: TokenStore) -> tuple[str, ...]:
    """Return the parts of which the model to be trained says when they are touched: those of `init`, else of the data.

    Raises:
        ConfigError: contacts are asked for, and no episode has contact labels.
    """
    from ...data_pipeline.loading.token_contacts import contact_parts
    from ..model.release import read_record, release_folder

    if not isinstance(options, FinetuneOptions) or not options.contacts:
        return ()
    known = read_record(release_folder(options.init))["model"].get("contacts") if options.init is not None else ()
    if not (found := contact_parts(store)):
        raise ConfigError(
            "--contacts: expected episodes with contact labels, got none; record some with `gr2 data record "
            "--contacts`, or leave it out."
        )
    return tuple(known or found)


def _held_out(windows: TokenWindows, options: TrainingOptions) -> BatchLoader | None:
    """Return the held-out windows, the same on every process; None, with a printed line, where there are none."""
    from ...data_pipeline.loading.loader import BatchLoader

    batch_size = min(options.batch_size, 16, int(windows.counts.sum()))
    if batch_size < 1:
        print("no video can be held out: training without validation; it takes two with windows of their own")
        return None
    config = LoaderConfig(weights=options.loader.weights)
    return BatchLoader(windows, batch_size=batch_size, seed=options.seed, config=config)


def _run(
    model: WorldModel,
    inputs: _Inputs,
    options: TrainingOptions,
    recipe: TrainingConfig,
    datasets: Mapping[str, DatasetStatistics] | None = None,
) -> dict[str, float]:
    """Train, then write the release with the averaged weights, on the first process."""
    from ..model.release import save_release
    from .evaluations import Evaluations
    from .loop import TrainingModule, train
    from .lora import merged
    from .texts import give_texts

    store, encoders = inputs.store, inputs.encoders
    robots = model.config.embodiments
    rates = [robots[0].control_hz] if recipe.with_actions else store.step_rates() or [TOOL_ARM.control_hz]
    model.embed.set_codebook(encoders.vqgan.codebook.detach())
    give_texts(model, store, encoders.text)
    frames = not recipe.with_actions or recipe.frame_fraction > 0
    begins_anew = isinstance(options, FinetuneOptions) and options.init is None
    model.predicts = frames or (model.predicts and not begins_anew)
    module = TrainingModule(model, recipe, steps=options.steps)
    held_out = inputs.held_out
    validation = list(islice(iter(held_out), min(_VALIDATION_BATCHES, len(held_out)))) if held_out is not None else []
    usual_every = max(100, options.steps // 20)
    windows = {"steps": options.steps, "windows": inputs.loader.num_windows}
    frame_steps = _frame_steps(store, options.frame_step) if model.config.is_mixture else {}
    usual = options.frame_step * int(np.median(store.frame_stride))

    def release(folder: Path, weights: WorldModel, step: int = options.steps) -> None:
        sources = keep_encoders(encoders, folder)
        save_release(
            folder,
            weights,
            tokenizer=encoders.vqgan.fingerprint(),
            text=str(encoders.facts["text_fingerprint"]),
            frame_step=frame_steps.get(robots[0].name, usual),
            control_hz=float(np.median(rates)),
            provenance={
                "seed": options.seed,
                **windows,
                "steps": step,
                **sources,
                "image_fit": stated_fit(encoders.facts),
                "instructions": store.different_texts(_KEPT_TEXTS) if recipe.with_actions else None,
            },
            datasets=datasets,
            frame_steps=frame_steps,
        )

    chief = inputs.distribution.rank == 0
    if isinstance(options, FinetuneOptions) and options.evaluate_every and chief:
        module.evaluations = Evaluations(
            options.out / "evaluations", every=options.evaluate_every, options=options.evaluate,
            save=lambda folder, step: release(folder, merged(module.model), step),
        )  # fmt: skip
    metrics = train(
        module=module,
        loader=inputs.loader,
        validation=validation,
        out=options.out,
        batch_size=options.batch_size,
        validate_every=options.validate_every or usual_every,
        checkpoint_every=options.checkpoint_every or usual_every,
        distribution=inputs.distribution,
        log=options.log,
        name_episode=store.key,
        description="finetune" if recipe.with_actions else "pretrain",
    )
    if not chief:
        return metrics
    release(options.out, merged(module.use_average(), in_place=True))
    if module.evaluations is not None:
        module.evaluations.finish(options.steps, options.out)
    return metrics | windows


def _frame_steps(store: TokenStore, frame_step: int) -> dict[str, int]:
    """Return how many control steps of each robot lie between two frames of a window."""
    robot_of, strides = store.embodiment_of(np.arange(len(store))), store.frame_stride
    steps = {}
    for number, robot in enumerate(store.embodiments):
        own = strides[robot_of == number]
        steps[robot.name] = frame_step * int(np.median(own)) if len(own) else frame_step
    return steps


def pretrain(options: TrainingOptions) -> dict[str, float]:
    """Train the GPT to predict the next frame of every video; no states, no actions.

    Returns:
        Metrics on held-out windows, and how many windows there are to train on.
    """
    from .beginning import new_model

    inputs = _open(options, labeled_only=False)
    found = inputs.store.embodiments
    robots = found if len(found) == 1 else (TOOL_ARM,)  # of several, finetuning says for which ones
    model = new_model(options, inputs.encoders.facts, inputs.store.cameras, robots)
    return _run(model, inputs, options, options.recipe(with_actions=False))


def finetune(options: FinetuneOptions) -> dict[str, float]:
    """Train frames and trajectories together on labeled robot episodes, of one robot or of several.

    Returns:
        Metrics on held-out windows, and how many windows there are to train on.
    """
    from ..model.normalization import choose_normalization
    from .beginning import first_model
    from .lora import adapt

    inputs = _open(options, labeled_only=True)
    robots = with_different_names(inputs.store.embodiments)
    parts = _contact_parts(options, inputs.store)
    model, start = first_model(options, inputs.encoders.facts, inputs.store.cameras, robots, parts)
    inputs.store.number_embodiments(model.config.embodiments)
    chosen = choose_normalization(
        options.statistics,
        tokens=options.tokens,
        out=options.out,
        init=options.init,
        start=start,
        measure=lambda: _measure(inputs.loader, options, model.config.slots, start),
    )
    model.set_statistics(chosen.statistics)
    if options.lora.rank:
        adapt(model, options.lora)
    recipe = options.recipe(with_actions=True, frame_weight=options.frame_weight, frame_fraction=options.frame_fraction)
    return _run(model, inputs, options, recipe, chosen.datasets)


def _measure(
    loader: BatchLoader, options: FinetuneOptions, slots: SlotCoding, start: Normalization | None
) -> Statistics:
    """Measure normalization statistics on up to 20,000 windows of the training split, those of each robot apart.

    Every process measures the same windows, not those of its own part: all of them must normalize alike. A robot that
    the data lack keeps those of `start`.

    Raises:
        DataError: no windows, or none of a robot that nothing is known of.
    """
    from ...data_pipeline.loading.loader import BatchLoader
    from ..model.normalization import Statistics, measure_statistics

    whole = BatchLoader(loader.dataset, batch_size=options.batch_size, seed=options.seed, config=options.loader)
    batches = list(islice(iter(whole), max(1, min(len(whole), 20_000 // options.batch_size))))
    if not batches:
        raise DataError("finetune: expected labeled episodes with actions, got none; record or convert some.")

    def gather(name: str) -> np.ndarray:
        return np.concatenate([batch[name].numpy() for batch in batches])

    states, actions, mask = gather("states")[:, options.context - 1], gather("actions"), gather("action_mask")
    if not slots.is_mixture:
        return measure_statistics(states, actions, mask, coding=slots.codings[0], mode=options.normalization)
    robot_of, rows = gather("embodiment"), []
    for number, (robot, coding) in enumerate(zip(slots.embodiments, slots.codings, strict=True)):
        mine = robot_of == number
        if mine.any():
            own = states[mine, : robot.state_dim], actions[mine, :, : robot.action_dim], mask[mine]
            measured = measure_statistics(*own, coding=coding, mode=options.normalization)
            rows.append(measured.in_slots(slots, number, options.chunk_length))
        elif start is not None:
            rows.append(start.statistics.row(number))
        else:
            raise DataError(
                f"finetune: expected windows of {robot.name} among the first {len(states)}, got none; give its folder "
                "a greater share with --loader.weights, or leave it out."
            )
    return Statistics.stack(rows)
