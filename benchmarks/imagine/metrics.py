"""Imagined futures of test episodes against what really came, in the form of `imagine/metrics.json`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

import numpy as np
from tqdm import tqdm

from ..metrics.frames import StepMetrics, compare_futures, gather_steps
from ..playtable.environment import CAMERAS
from .episodes import TestEpisode
from .imagination import Imagination

_BATCH = 64
"""Starts imagined in one forward pass."""


def measure_futures(dream: Imagination, episodes: Sequence[TestEpisode], horizon: int) -> dict[str, Any]:
    """Compare rollouts from every frame that has `horizon` frames after it with what really came.

    Starts and cameras of one episode are averaged first: episodes are independent, neighboring frames are not.
    """
    starts = [(e, i) for e, ep in enumerate(episodes) for i in range(len(ep.images["static"]) - horizon)]
    compared: dict[int, list[list[StepMetrics]]] = {}
    for begin in tqdm(range(0, len(starts), _BATCH), desc="imagine", unit="batch"):
        batch = starts[begin : begin + _BATCH]
        first = {name: np.stack([episodes[e].images[name][i] for e, i in batch]) for name in CAMERAS}
        states = np.stack([episodes[e].states[i] for e, i in batch])
        predicted = dream.futures(first, [episodes[e].instruction for e, _ in batch], horizon, states)
        for row, (e, i) in enumerate(batch):
            for name in CAMERAS:
                window = episodes[e].images[name][i : i + 1 + horizon]
                codes = dream.encode(window)
                steps = compare_futures(
                    predicted=predicted.images[name][row],
                    real=window[1:],
                    current=window[0],
                    predicted_codes=predicted.codes[name][row],
                    real_codes=codes[1:],
                    current_codes=codes[0],
                )
                compared.setdefault(e, []).append(steps)
    return gather_steps([_average(rows) for rows in compared.values()])


def _average(rows: list[list[StepMetrics]]) -> list[StepMetrics]:
    """Average comparisons step by step; what is undefined (no pixel moved) is left out."""
    averaged = []
    for steps in zip(*rows, strict=True):
        values = {}
        for field in fields(StepMetrics):
            column = np.array([getattr(step, field.name) for step in steps], float)
            finite = column[np.isfinite(column)]
            values[field.name] = float(finite.mean()) if len(finite) else float("nan")
        values["horizon"] = steps[0].horizon
        averaged.append(StepMetrics(**values))  # type: ignore[arg-type]
    return averaged
