"""Errors of predicted chunks on recorded episodes, signal by signal and step by step, beside two guesses."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from ...contracts import Array
from ...cvae_head.quaternions import conjugate_quaternion, multiply_quaternions, quaternion_to_rotation_vector
from ...cvae_head.rotations import to_quaternion
from ...cvae_head.signals import Part, SignalCoding
from ...data_pipeline.loading.loader import Batch
from ...gr_model.model.objectives import read_context
from ...gr_model.model.world_model import WorldModel

METHODS = ("policy", "hold", "mean")
"""The policy; commands that keep the robot where it is; the mean chunk of the training data."""

_SCALES = {"m": (1000.0, "mm"), "rad": (180 / np.pi, "deg")}


@dataclass(frozen=True, kw_only=True)
class SignalErrors:
    """Errors of one signal: `[e k]` for each method, a mean over the windows of each episode, NaN where there is none.

    unit: of the errors; rotations in [deg], positions in [mm], grippers that are binary as shares of wrong commands.
    """

    name: str
    unit: str
    by_method: dict[str, Array]


@dataclass
class ErrorTally:
    """Sums errors over windows, episode by episode."""

    length: int
    episodes: list[int] = field(default_factory=list)
    _sums: dict[tuple[str, str, int], list[Array]] = field(default_factory=dict)

    def add(self, name: str, method: str, episode: int, errors: Array, keep: Array) -> None:
        """Add the errors `[k]` of a window, where `keep` `[k]` is true."""
        if episode not in self.episodes:
            self.episodes.append(episode)
        total, count = self._sums.setdefault((name, method, episode), [np.zeros(self.length), np.zeros(self.length)])
        total += np.where(keep, errors, 0.0)
        count += keep

    def table(self, name: str, method: str) -> Array:
        """Return the mean errors `[e k]`."""
        rows = []
        for episode in self.episodes:
            total, count = self._sums[name, method, episode]
            rows.append(np.divide(total, count, out=np.full(self.length, np.nan), where=count > 0))
        return np.stack(rows)


def unit_of(part: Part) -> tuple[float, str]:
    """Return the factor from stored numbers to those that are shown, and their unit."""
    if part.rule == "binary":
        return 100.0, "% wrong"
    if part.signal.kind == "rotation":
        return 180 / np.pi, "deg"
    return _SCALES.get(part.signal.unit or "", (1.0, part.signal.unit or "stored"))


def part_errors(part: Part, predicted: Array, wanted: Array) -> Array:
    """Return the errors `[.. k]` of actions `[.. k a]`: angles of rotations, mean absolute differences of others."""
    a, b = predicted[..., part.action], wanted[..., part.action]
    factor, _ = unit_of(part)
    if part.rule == "binary":
        wrong: Array = factor * ((a > 0.5) != (b > 0.5)).mean(-1)
        return wrong
    if part.signal.kind == "rotation":
        q = to_quaternion(a, part.signal.rotation), to_quaternion(b, part.signal.rotation)
        turn = quaternion_to_rotation_vector(multiply_quaternions(q[0], conjugate_quaternion(q[1])))
        return factor * np.linalg.norm(turn, axis=-1)
    return factor * np.abs(a - b).mean(-1)


def hold_chunk(coding: SignalCoding, state: Array, length: int) -> Array:
    """Return chunks `[b k c]` that keep a robot in its state `[b s]`: measured signals stay, others are zero."""
    chunk = np.zeros((len(state), length, coding.width))
    for part in coding.parts:
        if part.rule in ("binary", "plain") and part.state is not None and part.signal.reference == "absolute":
            chunk[..., part.chunk] = state[:, None, part.state]
        if part.rule == "rotation":
            chunk[..., part.chunk] = (1, 0, 0, 0, 1, 0)
    return chunk


def mean_chunk(model: WorldModel, count: int, robot: int = 0) -> Array:
    """Return the mean chunk of the training data of a robot `[b k c]`; binary columns are closed."""
    slots, mean = model.config.slots, model.action_normalizer.mean.cpu().numpy()
    chunk = np.zeros((count, model.config.chunk_length, slots.width))
    chunk[..., model.continuous] = mean[robot] if slots.is_mixture else mean
    own: Array = slots.own(chunk, robot)
    return own


def add_batch(model: WorldModel, batch: Batch, tally: ErrorTally, generator: torch.Generator, robot: int = 0) -> None:
    """Let the model and both guesses answer a batch of windows of one robot, and add their errors."""
    context, h = read_context(model, batch)
    slots, keep = model.config.slots, batch["action_mask"].numpy()
    coding = slots.codings[robot]
    state = batch["states"][:, h - 1, : coding.embodiment.state_dim].double().numpy()
    wanted = batch["actions"][..., : coding.embodiment.action_dim].double().numpy()
    noise = torch.randn(len(state), model.head.noise_dim, generator=generator)
    with torch.no_grad():
        predicted = slots.own(model.act(context, noise=noise.to(model.device)), robot).float().cpu().numpy()
    held = hold_chunk(coding, state, keep.shape[1])
    chunks = {"policy": predicted, "hold": held, "mean": mean_chunk(model, len(state), robot)}
    for method, chunk in chunks.items():
        actions = coding.decode(state, chunk)
        for part in coding.parts:
            errors = part_errors(part, actions, wanted)
            for i, episode in enumerate(batch["episode"].tolist()):
                tally.add(part.signal.name, method, episode, errors[i], keep[i])


def collect(model: WorldModel, batches: Iterator[Any], seed: int = 0, robot: int = 0) -> list[SignalErrors]:
    """Return the errors of every action signal over batches of windows of one robot."""
    tally = ErrorTally(model.config.chunk_length)
    generator = torch.Generator().manual_seed(seed)
    for batch in batches:
        add_batch(model, batch, tally, generator, robot)
    found = []
    for part in model.config.slots.codings[robot].parts:
        name = part.signal.name
        by_method = {method: tally.table(name, method) for method in METHODS}
        found.append(SignalErrors(name=name, unit=unit_of(part)[1], by_method=by_method))
    return found
