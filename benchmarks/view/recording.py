"""A rerun recording (`.rrd`): images, signals, texts and the robot's body on one time line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from scipy.spatial.transform import Rotation

from ...contracts import Array
from ...embodiment import Signal
from ...errors import EnvironmentMissing
from ...wbc.robot.kinematics import Kinematics
from ...wbc.robot.robots import RobotModel

_QUALITY = 90
_BODY, _PATH, _CHUNK = (120, 140, 170, 255), (40, 90, 200), (230, 120, 30)


def import_rerun() -> Any:
    """Import rerun.

    Raises:
        EnvironmentMissing: it is not installed.
    """
    try:
        import rerun
    except ImportError as error:
        raise EnvironmentMissing("gr2 view needs rerun, which is not here; `pip install gr2[view]`.") from error
    return rerun


class Recording:
    """Writes what happens at a time; the file is whole once the recording is closed.

    Args:
        out: file to write, made with its folder.
        name: what the recording shows.
        cameras: image entities that get a view each, row by row.
        plots: entities whose numbers are drawn over time, one view each.
        spatial: whether there is a robot to be seen in 3-D.
    """

    def __init__(
        self, out: Path, *, name: str, cameras: Sequence[Sequence[str]], plots: Sequence[str], spatial: bool
    ) -> None:
        self._rr = import_rerun()
        out.parent.mkdir(parents=True, exist_ok=True)
        self._stream = self._rr.RecordingStream("gr2", recording_id=name, send_properties=True)
        self._stream.save(out, default_blueprint=self._layout(cameras, plots, spatial))

    def __enter__(self) -> Recording:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stream.flush()
        self._stream.disconnect()

    def at(self, seconds: float) -> None:
        """Set the time of what comes next [s]."""
        self._stream.set_time("time", duration=seconds)

    def image(self, entity: str, image: Array) -> None:
        """Show an image uint8 `[h w 3]`."""
        self._stream.log(entity, self._rr.Image(image).compress(jpeg_quality=_QUALITY))

    def numbers(self, entity: str, values: Array | Sequence[float]) -> None:
        """Plot numbers, a line each."""
        self._stream.log(entity, self._rr.Scalars(np.asarray(values, dtype=np.float64)))

    def signals(self, entity: str, signals: Sequence[Signal], slices: Mapping[str, slice], row: Array) -> None:
        """Plot a row `[s]` of states or actions, signal by signal."""
        for signal in signals:
            self.numbers(f"{entity}/{signal.name}", row[slices[signal.name]])

    def words(self, entity: str, words: str) -> None:
        """Show a text that stays."""
        self._stream.log(entity, self._rr.TextDocument(words))

    def event(self, entity: str, words: str) -> None:
        """Add a line to a log."""
        self._stream.log(entity, self._rr.TextLog(words))

    def path(self, entity: str, points: Array, *, chunk: bool = False) -> None:
        """Draw a line `[n 3]` [m] in the robot's base frame; a chunk is drawn in another color."""
        color = _CHUNK if chunk else _PATH
        self._stream.log(entity, self._rr.LineStrips3D([points], colors=[color], radii=[0.002]))

    def robot(self, entity: str, robot: RobotModel, kinematics: Kinematics, joints: Array) -> None:
        """Draw the capsules of an arm at joint positions `[j]` [rad]."""
        frames = kinematics.forward(joints).frames
        starts, lengths, turns = [], [], []
        for capsule in robot.capsules:
            frame = frames[capsule.link]
            start, end = (frame[:3, :3] @ np.array(p) + frame[:3, 3] for p in (capsule.start, capsule.end))
            starts.append(start)
            lengths.append(float(np.linalg.norm(end - start)))
            turns.append(_turn_from_z(end - start))
        body = self._rr.Capsules3D(
            lengths=lengths, radii=[capsule.radius for capsule in robot.capsules], translations=starts,
            quaternions=turns, colors=[_BODY] * len(starts), fill_mode="solid",
        )  # fmt: skip
        self._stream.log(entity, body)

    def _layout(self, cameras: Sequence[Sequence[str]], plots: Sequence[str], spatial: bool) -> Any:
        import rerun.blueprint as rrb

        rows = [rrb.Horizontal(*(rrb.Spatial2DView(origin=entity, name=entity) for entity in row)) for row in cameras]
        seen = [*rows, *([rrb.Spatial3DView(origin="robot", name="robot")] if spatial else [])]
        drawn = [rrb.TimeSeriesView(origin=entity, name=entity) for entity in plots]
        texts = [rrb.TextDocumentView(origin="instruction", name="instruction"), rrb.TextLogView(origin="events")]
        return rrb.Blueprint(
            rrb.Vertical(
                rrb.Horizontal(rrb.Vertical(*seen), rrb.Vertical(*drawn), column_shares=[3, 2]),
                rrb.Horizontal(*texts),
                row_shares=[5, 1],
            ),
            collapse_panels=True,
        )


def _turn_from_z(direction: Array) -> Array:
    """Return the quaternion xyzw that turns the z axis to a direction; any where it has no length."""
    length = np.linalg.norm(direction)
    if length < 1e-9:
        return np.array([0.0, 0.0, 0.0, 1.0])
    turn: Array = Rotation.align_vectors([direction / length], [[0.0, 0.0, 1.0]])[0].as_quat()
    return turn
