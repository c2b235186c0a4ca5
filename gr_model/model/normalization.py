"""Statistics of state features and chunk poses, the layer that applies them inside the model, and what they stand for.

The model takes and returns physical numbers. The statistics are buffers of its state dict, so that a checkpoint cannot
be used with those of another data set. The statistics of the data beside them show whether other data fit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from ...contracts import Array
from ...cvae_head.signals import SignalCoding, coding_of
from ...cvae_head.slots import SlotCoding
from ...data_pipeline.files import read_json, write_json
from ...data_pipeline.locations import Location
from ...data_pipeline.statistics.check import contradictions
from ...data_pipeline.statistics.datasets import DatasetStatistics, read_datasets
from ...data_pipeline.statistics.normalize import Mode, Normalizer, measure_rows
from ...embodiment import TOOL_ARM
from ...errors import CheckpointError, ConfigError, DataError

StatisticsChoice = Literal["check", "keep", "measure"]
"""What to do with the statistics of a checkpoint: check that the new data fit and measure theirs, keep them, or measure
unchecked."""

_CONSTANT_ACTION = 1e-3
"""Scale of an action that never changes: what a head adds to 0 must not move it."""

STATISTICS_FILE = "statistics.json"
"""What a training run began with, beside its `last.ckpt`."""


@dataclass(frozen=True, kw_only=True)
class Statistics:
    """Offset and scale of state features `[s]` and of chunk poses `[k 6]` ([m], [rad]): mean and standard deviation, or
    middle and half width of the 1 % to 99 % range.

    Poses have statistics for each step of the chunk: they spread with time, and the first ones, which are carried
    out, must not count less than the last. Those of several embodiments have one row each, `[e s]` and `[e k c]`.
    """

    state_mean: tuple[Any, ...]
    state_std: tuple[Any, ...]
    action_mean: tuple[Any, ...]
    action_std: tuple[Any, ...]

    def to_dict(self) -> dict[str, list[Any]]:
        """Return plain lists, for JSON."""
        return {name: list(values) for name, values in asdict(self).items()}

    @staticmethod
    def from_dict(value: Mapping[str, Any]) -> Statistics:
        """Read what `to_dict` gave."""
        return Statistics(**{name: _tuples(value[name]) for name in Statistics.__dataclass_fields__})

    def row(self, number: int) -> Statistics:
        """Return the statistics of one of several embodiments."""
        return Statistics(**{name: values[number] for name, values in asdict(self).items()})

    @staticmethod
    def stack(rows: Sequence[Statistics]) -> Statistics:
        """Join the statistics of several embodiments, all in the same columns; `row` takes them apart."""
        names = Statistics.__dataclass_fields__
        return Statistics(**{name: tuple(getattr(row, name) for row in rows) for name in names})

    def in_slots(self, slots: SlotCoding, number: int, chunk_length: int) -> Statistics:
        """Place the statistics of one embodiment in the columns of its slots; others are left as they are."""
        shape, own = slots.shape(chunk_length), slots.codings[number].shape(chunk_length).continuous
        columns = slots.action_columns[number]
        states = list(slots.state_columns[number])
        actions = [shape.continuous.index(columns[i]) for i in own]
        neutral = Statistics.neutral(slots.num_features, chunk_length, len(shape.continuous))
        placed = {}
        for name, at in zip(Statistics.__dataclass_fields__, (states, states, actions, actions), strict=True):
            values = np.array(getattr(neutral, name))
            values[..., at] = getattr(self, name)
            placed[name] = _tuples(values.tolist())
        return Statistics(**placed)

    @staticmethod
    def neutral(state_dim: int, chunk_length: int, num_continuous: int = 6) -> Statistics:
        """Return statistics that change nothing."""
        return Statistics(
            state_mean=(0.0,) * state_dim,
            state_std=(1.0,) * state_dim,
            action_mean=((0.0,) * num_continuous,) * chunk_length,
            action_std=((1.0,) * num_continuous,) * chunk_length,
        )


def _tuples(value: Any) -> Any:
    """Return nested lists as nested tuples."""
    return tuple(map(_tuples, value)) if isinstance(value, list | tuple) else value


def measure_statistics(
    states: Array,
    actions: Array,
    action_mask: Array | None = None,
    *,
    coding: SignalCoding = coding_of(TOOL_ARM),  # noqa: B008  (made once)
    mode: Mode = "moments",
) -> Statistics:
    """Measure statistics on training windows.

    Args:
        states: `[m s]`, the state at which each chunk begins.
        actions: `[m k a]`; action_mask: `[m k]`, True = keep.
        coding: what is learned of them.
        mode: what is mapped to where.

    Raises:
        DataError: no step is kept, or a number is not finite.
    """
    features = coding.features(np.asarray(states, np.float64))
    chunk = coding.encode(np.asarray(states, np.float64), np.asarray(actions, np.float64))
    poses = chunk[..., list(coding.shape(chunk.shape[-2]).continuous)]
    keep = np.ones(poses.shape[:2], bool) if action_mask is None else np.asarray(action_mask, bool)
    kept = poses[keep]
    if not len(kept) or not keep.any(0).all() or not (np.isfinite(kept).all() and np.isfinite(features).all()):
        raise DataError(
            f"measure_statistics: expected finite states and actions with steps to keep, got {len(kept)} "
            f"steps"
            f"{' and NaN or infinity' if len(kept) else ''}; check the episodes of the training set."
        )
    state = Normalizer.fit(measure_rows(features), mode)
    steps = [
        Normalizer.fit(measure_rows(poses[keep[:, i], i]), mode, constant_scale=_CONSTANT_ACTION)
        for i in range(poses.shape[1])
    ]
    return Statistics(
        state_mean=tuple(state.offset.tolist()),
        state_std=tuple(state.scale.tolist()),
        action_mean=tuple(tuple(step.offset.tolist()) for step in steps),
        action_std=tuple(tuple(step.scale.tolist()) for step in steps),
    )


class Standardize(nn.Module):
    """A `Normalizer` inside a model: offset and scale are the buffers `mean` and `std`.

    Those of several embodiments have one row each; `embodiment` `[b]` says which row a sample takes.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, *size: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("std", torch.ones(size))

    def set(self, mean: Sequence[Any], std: Sequence[Any]) -> None:
        """Copy statistics in."""
        self.mean.copy_(torch.tensor(mean))
        self.std.copy_(torch.tensor(std))

    def forward(self, values: Tensor, embodiment: Tensor | None = None) -> Tensor:
        """Normalize `[.. *size]`; with embodiments `[b .. *size]`, where the buffers are `[e *size]`."""
        normalized: Tensor = self._normalizer(values, embodiment).apply(values)
        return normalized

    def invert(self, values: Tensor, embodiment: Tensor | None = None) -> Tensor:
        """Undo `forward`."""
        physical: Tensor = self._normalizer(values, embodiment).invert(values)
        return physical

    def _normalizer(self, values: Tensor, embodiment: Tensor | None) -> Normalizer:
        if embodiment is None:
            return Normalizer(offset=self.mean, scale=self.std)
        offset, scale = self.mean[embodiment], self.std[embodiment]
        between = (len(embodiment), *[1] * (values.ndim - offset.ndim), *offset.shape[1:])
        return Normalizer(offset=offset.view(between), scale=scale.view(between))


@dataclass(frozen=True, kw_only=True)
class Normalization:
    """What a model normalizes with, and the data that it is for.

    datasets: fingerprint -> statistics of the data.
    """

    statistics: Statistics
    datasets: Mapping[str, DatasetStatistics] = field(default_factory=dict)


def write_normalization(folder: Path, normalization: Normalization) -> None:
    """Keep what a training run begins with."""
    datasets = {key: dataset.to_dict() for key, dataset in normalization.datasets.items()}
    write_json(folder / STATISTICS_FILE, {"model": normalization.statistics.to_dict(), "datasets": datasets})


def read_normalization(folder: Path) -> Normalization | None:
    """Read what a training run began with; None where it is not known.

    Raises:
        CheckpointError: the file is damaged.
    """
    path = folder / STATISTICS_FILE
    if not path.is_file():
        return None
    try:
        content = read_json(path)
        return Normalization(
            statistics=Statistics.from_dict(content["model"]), datasets=read_datasets(content["datasets"])
        )
    except (DataError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{path}: expected the statistics of the run, got others ({error}); remove the folder and train again."
        ) from error


def expect_fitting_data(
    stored: Mapping[str, DatasetStatistics], new: Mapping[str, DatasetStatistics], checkpoint: Path
) -> None:
    """Refuse data that contradict those a checkpoint was trained on; each must fit one of the stored.

    Raises:
        CheckpointError: naming the dimension and the two metrics.
    """
    if not stored:
        return
    for dataset in new.values():
        reasons = min((contradictions(old, dataset) for old in stored.values()), key=len)
        if reasons:
            raise CheckpointError(
                f"{dataset.name}: expected data like those {checkpoint} was trained on, got {reasons[0]}"
                f"{f' (and {len(reasons) - 1} more)' if len(reasons) > 1 else ''}; convert the data, or pass "
                "--statistics measure for a robot that moves otherwise, or --statistics keep to normalize with the "
                "checkpoint's."
            )


def expect_same_data(
    stored: Mapping[str, DatasetStatistics], new: Mapping[str, DatasetStatistics], folder: Path
) -> None:
    """Refuse to resume a run on other data than it began with.

    Raises:
        CheckpointError: naming what differs.
    """
    added, gone = [new[key] for key in new.keys() - stored.keys()], [stored[key] for key in stored.keys() - new.keys()]
    if not added and not gone:
        return
    reasons = [reason for old in gone for dataset in added for reason in contradictions(old, dataset)]
    rows = [
        sum(part.rows for dataset in datasets.values() if (part := dataset.states or dataset.actions))
        for datasets in (stored, new)
    ]
    reason = reasons[0] if reasons else f"{len(stored)} sets of {rows[0]} steps then, {len(new)} of {rows[1]} now"
    raise CheckpointError(
        f"{folder}: expected the data that this run began with, got others ({reason}); choose another --out to train "
        "on them, or pass --statistics keep to resume with the run's normalization."
    )


def choose_normalization(
    choice: StatisticsChoice,
    *,
    tokens: Sequence[Location],
    out: Path,
    init: Path | None,
    start: Normalization | None,
    measure: Callable[[], Statistics],
) -> Normalization:
    """Return what a run normalizes with, its data compared with those of the checkpoint, and note it in `out`.

    Args:
        choice: what to do with the statistics of `start`; a run that is resumed (`out/last.ckpt`) keeps its own.
        tokens: folders or URLs of token shards with states and actions.
        out: folder of the run.
        init: the checkpoint to start from.
        start: what its model normalizes with, None where it was not finetuned.
        measure: measures the training windows.

    Raises:
        CheckpointError: the data contradict the checkpoint's, or are not those that the run in `out` began with.
        ConfigError: there is nothing to keep.
    """
    # the readers of all datasets come with it: not for everyone who loads a model
    from ...data_pipeline.statistics.steps import measure_steps, read_shard_steps

    datasets: dict[str, DatasetStatistics] = {}
    for folder in tokens:
        datasets |= measure_steps(read_shard_steps(folder), "/".join(str(folder).split("/")[-2:])).statistics()
    begun = read_normalization(out) if (out / "last.ckpt").is_file() else None
    if begun is not None:
        if choice != "keep":
            expect_same_data(begun.datasets, datasets, out)
        return begun
    if choice == "keep":
        if start is None:
            raise ConfigError(
                "--statistics keep: expected --init with a finetuned model, got none; leave it out to measure."
            )
        chosen = Normalization(statistics=start.statistics, datasets={**start.datasets, **datasets})
    else:
        if choice == "check" and start is not None:
            if not start.datasets:
                print(f"{init}: keeps no statistics of its data, so that the new data are not compared with them")
            expect_fitting_data(start.datasets, datasets, Path(init or "."))
        chosen = Normalization(statistics=measure(), datasets=datasets)
    write_normalization(out, chosen)
    return chosen
