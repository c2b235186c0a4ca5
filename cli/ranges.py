"""Which numbers an option can hold, by its name: refused before any work begins, alike in every command."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from .failures import UsageError, spelled

LARGEST = 2**31 - 1
"""Greatest whole number of any option; seeds of every library end there."""

FROM_ZERO = {
    "adversarial_start", "chains", "damaged", "dct", "duplicate_bits", "evaluate_every", "kl_warmup", "max_clips",
    "metric_episodes", "noise_seeds", "num_clips", "quantize_start", "seed", "sequences", "shuffle_block", "starts",
    "threads", "top_k", "warmup",
}  # fmt: skip
"""Whole numbers that may be 0; the others begin at 1, or at 0 where that is their default."""

ZERO_WITHOUT_DEFAULT = {"image_size"}
"""The same where the option has no default: 0 then stands for several sizes at once."""

ABOVE_ZERO = {
    "chunk_hz", "clip_norm", "fps", "horizon", "learning_rate", "muon_factor", "rate", "replan_hz",
    "seconds", "shard_megabytes", "target_fps", "timeout_seconds", "top_p", "window_seconds",
}  # fmt: skip
"""Numbers with a fraction that must be above 0; the others may be 0."""

SHARES = {
    "camera_dropout", "code_permutation", "codebook_decay", "drop", "dropout", "frame_fraction", "held_out",
    "jitter", "max_dropped", "noise_share", "play_share", "revive_until", "state_dropout", "state_share",
    "target_state_share", "text_dropout", "token_dropout", "top_p", "validation_share", "weight_average",
}  # fmt: skip
"""Numbers up to 1."""

GREATEST = {"port": 65535}


def check_numbers(values: Mapping[str, Any], defaults: Mapping[str, Any]) -> None:
    """Refuse numbers that an option cannot hold.

    Args:
        values: option (`head.steps`) -> value.
        defaults: the same without anything chosen.

    Raises:
        UsageError: the first of them, with what was expected.
    """
    for option, value in values.items():
        for number in _numbers(value):
            expected = _refusal(option.rpartition(".")[2], number, defaults.get(option))
            if expected:
                raise UsageError(f"{spelled(option)}: expected {expected}, got {_short(number)}.")


def _short(number: float) -> str:
    text = str(number)
    return text if len(text) < 25 else f"{text[:8]}... ({len(text)} digits)"


def _numbers(value: Any) -> Iterator[float]:
    if isinstance(value, int | float) and not isinstance(value, bool):
        yield value
    elif isinstance(value, list):
        for part in value:
            yield from (part for part in _numbers(part) if isinstance(part, float))  # indices may count from the end


def _refusal(name: str, number: float, default: Any) -> str:
    """Return what was expected, nothing where the number can be used."""
    whole = isinstance(number, int)
    if whole and isinstance(default, float):
        number, whole = float(number), False
    if not whole and not math.isfinite(number):
        return "a finite number"
    greatest = 1 if name in SHARES else GREATEST.get(name, LARGEST if whole else math.inf)
    if whole:
        zero = default == 0 or name in FROM_ZERO or name in GREATEST
        least = 0 if zero or (default is None and name in ZERO_WITHOUT_DEFAULT) else 1
        fits, low = least <= number <= greatest, f"{least} or more"
    else:
        above = name in ABOVE_ZERO
        fits = (number > 0 if above else number >= 0) and number <= greatest
        low = "a number above 0" if above else "0 or more"
    if fits:
        return ""
    if greatest == math.inf or (greatest == LARGEST and number < 0):
        return low
    return f"{low}, up to {greatest}"
