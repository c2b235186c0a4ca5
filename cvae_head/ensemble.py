"""Temporal ensembling: average what overlapping trajectories predict for the same instant."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar, cast

import numpy as np

from ..contracts import ActionTrajectory, Array, JointTrajectory, SignalTrajectory, Trajectory
from ..embodiment import Signal
from ..errors import ConfigError, ShapeError
from .rotations import from_quaternion, to_quaternion
from .signals import GRIPPER_THRESHOLD

Kind = TypeVar("Kind", bound=Trajectory)


@dataclass(frozen=True, kw_only=True)
class EnsembleConfig:
    """decay: weight of the i-th oldest prediction is `exp(-decay * i)`, i = 0 the oldest; 0 averages evenly.

    Source: ACT, arXiv 2304.13705, section IV-A.
    """

    decay: float = 0.01

    def __post_init__(self) -> None:
        if not np.isfinite(self.decay):
            raise ConfigError(f"EnsembleConfig.decay: expected a finite number, got {self.decay}; 0.01 is usual.")


def mean_quaternion(quaternions: Array, weights: Array) -> Array:
    """Average unit quaternions `[m 4]` with weights `[m]`, whatever their signs.

    Source: Markley et al. 2007, the dominant eigenvector of the weighted outer products.
    """
    _, vectors = np.linalg.eigh(np.einsum("m,mi,mj->ij", weights, quaternions, quaternions))
    mean = vectors[:, -1]
    return mean if mean @ quaternions[-1] >= 0 else -mean


@dataclass(frozen=True, kw_only=True)
class _Said:
    """What a trajectory says: numbers `[k n]` by name, rotations as quaternions `[k 4]`."""

    dt: float
    start_time: float
    length: int
    numbers: Mapping[str, Array]
    quaternions: Mapping[str, Array]

    @property
    def end(self) -> float:
        """When its last row is due [s]."""
        return self.start_time + self.length * self.dt


class TemporalEnsemble:
    """Keep recent trajectories and blend each new one with what they predict for the same instants."""

    def __init__(self, config: EnsembleConfig | None = None) -> None:
        self.config = config or EnsembleConfig()
        self._recent: deque[_Said] = deque()

    def reset(self) -> None:
        """Forget every trajectory."""
        self._recent.clear()

    def blend(self, trajectory: Kind, *, signals: Sequence[Signal] = ()) -> Kind:
        """Add `trajectory`; return it with every row replaced by the weighted mean over all that cover it.

        Args:
            trajectory: tool poses, joint positions or actions of any robot.
            signals: what the numbers of a `SignalTrajectory` are, in order: rotations are averaged as such, binary
                grippers stay 0 or 1. Without them all are averaged as plain numbers.

        Raises:
            ShapeError: another `dt` than before, or a start that is not a whole number of steps after the
                earlier ones.
        """
        newest = _read(trajectory, signals)
        while self._recent and self._recent[0].end < newest.start_time + 0.5 * newest.dt:
            self._recent.popleft()
        self._recent.append(newest)
        rows = [self._covering(i, newest) for i in range(newest.length)]
        numbers = {
            name: np.stack([weights @ np.stack([said.numbers[name][i] for said, i in seen]) for seen, weights in rows])
            for name in newest.numbers
        }
        quaternions = {
            name: np.stack(
                [
                    mean_quaternion(np.stack([s.quaternions[name][i] for s, i in seen]), weights)
                    for seen, weights in rows
                ]
            )
            for name in newest.quaternions
        }
        return cast(Kind, _written(trajectory, numbers, quaternions, signals))

    def _covering(self, index: int, newest: _Said) -> tuple[list[tuple[_Said, int]], Array]:
        """Return who covers a row of the newest trajectory, each with its own row, and their weights."""
        covering = []
        for said in self._recent:
            row = index + self._shift(said, newest)
            if row < said.length:
                covering.append((said, row))
        weights = np.exp(-self.config.decay * np.arange(len(covering)))
        return covering, weights / weights.sum()

    @staticmethod
    def _shift(older: _Said, newer: _Said) -> int:
        steps = (newer.start_time - older.start_time) / newer.dt
        if abs(older.dt - newer.dt) > 1e-9 or abs(steps - round(steps)) > 1e-3:
            raise ShapeError(
                f"TemporalEnsemble: expected trajectories on one time grid, got dt {older.dt} and "
                f"{newer.dt} s and "
                f"starts {steps:.3f} steps apart; reset the ensemble when the clock changes."
            )
        return round(steps)


def _read(trajectory: Trajectory, signals: Sequence[Signal]) -> _Said:
    """Take a trajectory apart."""
    numbers: dict[str, Array] = {}
    quaternions: dict[str, Array] = {}
    if isinstance(trajectory, SignalTrajectory):
        for signal, at in _places(trajectory, signals):
            if signal.kind == "rotation":
                quaternions[signal.name] = to_quaternion(trajectory.values[:, at], signal.rotation)
            else:
                numbers[signal.name] = trajectory.values[:, at]
        length = len(trajectory.values)
    else:
        numbers["positions"], length = trajectory.positions, len(trajectory.positions)
        if trajectory.gripper is not None:
            numbers["gripper"] = trajectory.gripper
        if isinstance(trajectory, ActionTrajectory):
            quaternions["quaternions"] = trajectory.quaternions
    return _Said(
        dt=trajectory.dt, start_time=trajectory.start_time, length=length, numbers=numbers, quaternions=quaternions
    )


def _written(
    trajectory: Trajectory,
    numbers: Mapping[str, Array],
    quaternions: Mapping[str, Array],
    signals: Sequence[Signal],
) -> Trajectory:
    """Return a trajectory with other rows."""
    if isinstance(trajectory, JointTrajectory):
        return replace(trajectory, positions=numbers["positions"], gripper=numbers.get("gripper"))
    if isinstance(trajectory, ActionTrajectory):
        return replace(
            trajectory,
            positions=numbers["positions"],
            quaternions=quaternions["quaternions"],
            gripper=numbers["gripper"],
        )
    values = np.empty_like(trajectory.values, dtype=np.float64)
    for signal, at in _places(trajectory, signals):
        if signal.kind == "rotation":
            values[:, at] = from_quaternion(quaternions[signal.name], signal.rotation)
        elif signal.binary:
            values[:, at] = numbers[signal.name] > GRIPPER_THRESHOLD
        else:
            values[:, at] = numbers[signal.name]
    return replace(trajectory, values=values)


def _places(trajectory: SignalTrajectory, signals: Sequence[Signal]) -> list[tuple[Signal, slice]]:
    """Return each signal and its columns; all columns as one signal of plain numbers where none is named."""
    width = trajectory.values.shape[-1]
    signals = signals or (Signal(name="values", width=width),)
    ends = np.cumsum([signal.width for signal in signals]).tolist()
    if ends[-1] != width:
        raise ShapeError(
            f"TemporalEnsemble: expected signals of {width} numbers together, got {ends[-1]}; pass the action signals "
            "of the trajectory."
        )
    return [(signal, slice(end - signal.width, end)) for signal, end in zip(signals, ends, strict=True)]
