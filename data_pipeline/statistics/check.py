"""Report where data, or a robot's state, contradict the statistics of what a checkpoint was trained on."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from ...contracts import Array
from .datasets import LARGEST_NUMBER, DatasetStatistics, action_layout, state_layout
from .normalize import RowStatistics

GRIPPER_MARGIN = 0.25
"""Openings are in [0, 1]; noise of a sensor may pass the ends by this much, ranges of -1 or 255 do not."""

_UNIT_FACTOR = 10.0
"""Numbers that are larger by more than this, and above `LARGEST_NUMBER`, are of another unit (57 for degrees, 100 for
[cm], 1000 for [mm])."""

_SMALLEST_RANGE = 0.05
"""[m] or [rad]: what hardly moved in training may differ by this much."""

_STATE_MARGIN = 0.5
"""[m] or [rad]: a single state may lie so far outside of all that was seen, or as far as that is wide."""

_GAIN = 0.05
"""Difference of measured openings from which on an opening can be distinguished from a closing."""


def contradictions(stored: DatasetStatistics, new: DatasetStatistics) -> list[str]:
    """Return how new data differ from those a model was trained on by more than data of one kind do.

    Quaternions are left out: `q` and `-q` are the same rotation.

    Returns:
        For each contradiction the dimension and the two metrics, such as "states, x [m]: ..."; nothing where the new
        data fit.
    """
    found = _compare("states", stored.states, new.states, stored.state_gripper)
    found += _compare("actions", stored.actions, new.actions, stored.action_gripper)
    then, now = stored.gripper_gain, new.gripper_gain
    if then is not None and now is not None and then * now < 0 and min(abs(then), abs(now)) > _GAIN:
        found.append(
            f"actions, gripper: commanded to open, the opening changed by {then:+.2g} in training, {now:+.2g} here "
            "(open and closed swapped?)"
        )
    return found


def _compare(kind: str, stored: RowStatistics | None, new: RowStatistics | None, gripper: Sequence[int]) -> list[str]:
    if stored is None or new is None:
        return []
    if stored.width != new.width:
        return [f"{kind}: {stored.width} numbers a step in training, {new.width} here"]
    layout = state_layout(stored.width) if kind == "states" else action_layout(stored.width)
    found = []
    for i, name in enumerate(layout.names):
        if i in layout.quaternion_parts:
            continue
        reason = _gripper_reason(stored, new, i) if i in gripper else _number_reason(stored, new, i)
        if reason:
            found.append(f"{kind}, {f'dimension {name}' if name.isdigit() else name}: {reason}")
    return found


def _number_reason(stored: RowStatistics, new: RowStatistics, i: int) -> str:
    """Compare a position, an angle or a number of unknown meaning; return the reason, empty where it fits."""
    low, high = float(stored.quantiles["q01"][i]), float(stored.quantiles["q99"][i])
    then = max(abs(low), abs(high))
    now = max(abs(float(new.quantiles["q01"][i])), abs(float(new.quantiles["q99"][i])))
    if max(now, then) > LARGEST_NUMBER and max(now, then) > _UNIT_FACTOR * min(now, then):
        return f"up to {then:.4g} in training, up to {now:.4g} here (other units: degrees or [mm]?)"
    span = max(high - low, _SMALLEST_RANGE)
    mean = float(new.mean[i])
    if not low - span <= mean <= high + span:
        return f"from {low:.4g} to {high:.4g} in training (1 % to 99 %), {mean:.4g} on average here"
    return ""


def _gripper_reason(stored: RowStatistics, new: RowStatistics, i: int) -> str:
    """Compare the range that openings are given in; return the reason, empty where it fits."""
    low, high, new_low, new_high = (float(v[i]) for v in (stored.min, stored.max, new.min, new.max))
    then, now = max(abs(low), abs(high)), max(abs(new_low), abs(new_high))
    # a gripper that never moved does not show how its range is signed
    moves = not stored.constant[i] and not new.constant[i]
    signed, new_signed = low < -GRIPPER_MARGIN, new_low < -GRIPPER_MARGIN
    mirrored, new_mirrored = signed and high < GRIPPER_MARGIN, new_signed and new_high < GRIPPER_MARGIN
    larger = max(then, now) / max(min(then, now), 1e-9)
    counts = max(then, now) > 1 + GRIPPER_MARGIN and larger > 2
    if not counts and not (moves and ((signed, mirrored) != (new_signed, new_mirrored) or larger > _UNIT_FACTOR)):
        return ""
    return (
        f"from {low:.4g} to {high:.4g} in training, from {new_low:.4g} to {new_high:.4g} here (another gripper range)"
    )


def state_contradiction(datasets: Mapping[str, DatasetStatistics], state: Array, read: Collection[int]) -> str:
    """Return how a state differs from all that a model was trained on by more than a robot of that kind can.

    Args:
        datasets: what the model was trained on.
        state: `[s]`, the robot's state now.
        read: the numbers that the model reads.

    Returns:
        The dimension and the metrics, of the dataset that fits best; empty where the state fits one, or none is known.
    """
    reasons = [
        _state_reasons(statistics.states, state, statistics.state_gripper, read)
        for statistics in datasets.values()
        if statistics.states is not None
    ]
    return next(iter(sorted(reasons, key=len)[0]), "") if reasons else ""


def _state_reasons(rows: RowStatistics, state: Array, gripper: Sequence[int], read: Collection[int]) -> list[str]:
    if rows.width != len(state):
        return [f"{rows.width} numbers in training, {len(state)} here"]
    layout, reasons = state_layout(rows.width), []
    for i in sorted(read):
        if i in layout.quaternion_parts:
            continue
        span = float(rows.max[i] - rows.min[i])
        margin = GRIPPER_MARGIN * max(span, 1.0) if i in gripper else max(span, _STATE_MARGIN)
        if not rows.min[i] - margin <= state[i] <= rows.max[i] + margin:
            reasons.append(
                f"{layout.names[i]}: from {rows.min[i]:.4g} to {rows.max[i]:.4g} in training, {state[i]:.4g} here"
            )
    return reasons
