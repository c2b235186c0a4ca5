"""What the numbers of a source are: the embodiment of its episodes, from its spec and the names in its metadata.

The spec's signals come first, then names; what both leave open is one signal of kind `other`, and marked as unknown.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ...contracts import Array
from ...embodiment import AS_STORED, Embodiment, Signal
from ...errors import ConfigError
from .signal_names import different_names, kind_of_words, signals_of_names, words_of
from .spec import KNOWN_SPECS, EpisodeSpec, action_kind_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """A column of states or actions as the metadata describe it; width: numbers a step, 0 where it is not known."""

    width: int = 0
    names: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class RobotSignals:
    """Gives the embodiment of the records of one source.

    spec: where the parts of an episode lie.
    robot: name of the robot, or of the dataset.
    where: the source, for errors.
    columns: what the metadata state of the columns that the spec names.
    """

    spec: EpisodeSpec
    robot: str
    where: str
    columns: Mapping[str, Column] = field(default_factory=dict)
    _known: dict[tuple[int, int, float], Embodiment] = field(default_factory=dict)

    def embodiment(self, states: Array | None, actions: Array | None, control_hz: float | None) -> Embodiment | None:
        """Return what the steps `[t s]` and `[t a]` of a record are; None for video alone.

        Raises:
            ConfigError: the widths of the spec's signals do not add up to those of the steps.
        """
        if states is None or actions is None or control_hz is None:
            return None
        key = (states.shape[1], actions.shape[1], control_hz)
        if key not in self._known:
            self._known[key] = self._of_widths(*key)
        return self._known[key]

    def facts(self, embodiment: Embodiment | None) -> dict[str, Any]:
        """Return the fact `action_kind` where the names show what the spec does not."""
        kind = action_kind_of(embodiment.action) if embodiment else "as_stored"
        return {"action_kind": kind} if self.spec.action_kind == "as_stored" and kind != "as_stored" else {}

    def _of_widths(self, state_width: int, action_width: int, control_hz: float) -> Embodiment:
        spec = self.spec
        state = self._stated("state", spec.state_signals, spec.states, state_width)
        action = self._stated("action", spec.action_signals, spec.actions, action_width)
        return Embodiment(
            name=self.robot,
            cameras=tuple(spec.cameras),
            state=self._states(state_width) if state is None else state,
            action=self._actions(action_width) if action is None else action,
            control_hz=control_hz,
        )

    def _stated(
        self, role: str, signals: tuple[Signal, ...], columns: Sequence[str], width: int
    ) -> tuple[Signal, ...] | None:
        total = sum(signal.width for signal in signals)
        if not signals or total == width:
            return signals or None
        if any(known.state_signals == self.spec.state_signals for known in KNOWN_SPECS.values()):
            return None  # a dataset that has a known name and other numbers
        listed = ", ".join(f"{signal.name} {signal.width}" for signal in signals)
        raise ConfigError(
            f"{self.where}: {role}_signals: expected widths that add up to the {width} numbers of "
            f"{', '.join(columns)}, got {total} ({listed}); correct the spec."
        )

    def _states(self, width: int) -> tuple[Signal, ...]:
        signals = self._of_columns("state", self.spec.states, width)
        if self.spec.state_gripper and signals and signals[-1].kind != "gripper":
            signals = _with_last(signals, Signal(name="gripper", width=1, kind="gripper", unit=AS_STORED))
        return different_names([replace(signal, reference="absolute") for signal in signals])

    def _actions(self, width: int) -> tuple[Signal, ...]:
        spec = self.spec
        signals = self._of_columns("action", spec.actions, width)
        if spec.action_kind == "joint":
            signals = [_as_joints(signal) for signal in signals]
        if spec.gripper != "as_stored" and signals:
            name = signals[-1].name if signals[-1].kind == "gripper" else "gripper"
            signals = _with_last(signals, Signal(name=name, width=1, kind="gripper"))
        same = self._names(spec.actions) and self._names(spec.actions) == self._names(spec.states)
        kinds = {"joint": "absolute", "absolute_pose": "absolute", "delta_pose": "delta"}
        found = []
        for signal in signals:
            reference: Any = signal.reference
            measured = signal.kind in ("joint_position", "joint_velocity", "gripper", "base_velocity")
            if reference == "unknown" and signal.kind != "gripper" and spec.action_kind in kinds:
                reference = kinds[spec.action_kind]
            elif reference == "unknown" and (spec.actions_next or (same and measured)):
                reference = "absolute"
            found.append(replace(signal, reference=reference))
        return different_names(found)

    def _names(self, columns: Sequence[str]) -> list[str]:
        return [name for column in columns for name in self.columns.get(column, Column()).names]

    def _of_columns(self, role: str, columns: Sequence[str], width: int) -> list[Signal]:
        described = [self.columns.get(name, Column()) for name in columns]
        if len(described) == 1:
            described = [replace(described[0], width=width)]
        if not all(column.width for column in described) or sum(column.width for column in described) != width:
            return [Signal(name=role, width=width, reference="unknown")] if width else []
        found: list[Signal] = []
        for name, column in zip(columns, described, strict=True):
            found += _of_column(role if len(columns) == 1 else name, name, column)
        return list(different_names(found))


def signals_of_widths(
    spec: EpisodeSpec, *, robot: str, where: str, states: Array, actions: Array, control_hz: float
) -> Embodiment:
    """Return what a spec alone states of steps `[t s]` and `[t a]`, whose columns have no names."""
    described = RobotSignals(spec=spec, robot=robot, where=where).embodiment(states, actions, control_hz)
    assert described is not None
    return described


def _of_column(called: str, name: str, column: Column) -> list[Signal]:
    """Return the signals of one column: by the names of its numbers, else by its own."""
    leaf = name.replace("/", ".").rpartition(".")[2]
    called = called.replace("/", ".").rpartition(".")[2]
    if len(column.names) == column.width:
        return list(signals_of_names(column.names, otherwise=called))
    kind = kind_of_words(words_of(leaf))
    if kind == "gripper":
        return [Signal(name="gripper", width=column.width, kind=kind, unit=AS_STORED, reference="unknown")]
    if kind != "other":
        names = {"joint_position": "joint_positions", "joint_velocity": "joint_velocities"}
        return [Signal(name=names[kind], width=column.width, kind=kind, unit="", reference="unknown")]
    return [Signal(name=called, width=column.width, reference="unknown")]


def _with_last(signals: Sequence[Signal], last: Signal) -> list[Signal]:
    """Replace the last number by a signal of its own."""
    *before, cut = signals
    if cut.width == 1:
        return [*before, replace(last, parts=cut.parts)]
    rest = Signal(name=cut.name, width=cut.width - 1, reference=cut.reference, parts=cut.parts[:-1])
    if cut.kind.startswith("joint"):
        rest = replace(rest, kind=cut.kind, unit=cut.unit)
    return [*before, rest, replace(last, parts=cut.parts[-1:])]


def _as_joints(signal: Signal) -> Signal:
    if signal.kind != "other":
        return signal
    return replace(signal, name="joint_positions", kind="joint_position", unit="")
