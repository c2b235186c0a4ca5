"""One episode or clip of a dataset, as a rerun recording."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import numpy as np

from ...contracts import Episode, VideoClip
from ...data_pipeline.readers.record import Record, Times
from ...data_pipeline.readers.source import open_source
from ...embodiment import Embodiment
from ...errors import DataError
from .recording import Recording


def record_episode(
    source: Path, number: int, out: Path, *, camera: str = "static", spec: Path | None = None, times: Times = "check"
) -> str:
    """Write the recording of the episode of a number, from 0; return what it shows.

    Raises:
        DataError: there are not so many episodes, or this one cannot be read.
    """
    record = next(islice(open_source(source, camera, spec, times), number, None), None)
    if record is None:
        raise DataError(f"--episode {number}: expected a number below the episodes of {source}; choose a smaller one.")
    clip = record.decode()
    if isinstance(clip, VideoClip):
        _write_clip(clip, record, out)
    else:
        _write_episode(clip, record, out)
    return f"{record.key}: {record.caption or 'no instruction'}"


def _write_clip(clip: VideoClip, record: Record, out: Path) -> None:
    with Recording(out, name=record.key, cameras=[["camera"]], plots=[], spatial=False) as recording:
        recording.at(0.0)
        recording.words("instruction", record.caption)
        for index, frame in enumerate(clip.frames):
            recording.at(index / clip.fps)
            recording.image("camera", frame)


def _write_episode(episode: Episode, record: Record, out: Path) -> None:
    robot = record.embodiment
    entities = _plots(robot)
    path = _tool_path(episode, robot)
    cameras = [[f"camera/{name}" for name in episode.images]]
    with Recording(out, name=record.key, cameras=cameras, plots=entities, spatial=path is not None) as recording:
        recording.at(0.0)
        recording.words("instruction", episode.instruction)
        for step in range(len(episode.states)):
            recording.at(step / episode.control_hz)
            for name, frames in episode.images.items():
                if step % episode.frame_stride == 0 and step // episode.frame_stride < len(frames):
                    recording.image(f"camera/{name}", frames[step // episode.frame_stride])
            if robot is None:
                recording.numbers("state", episode.states[step])
                recording.numbers("action", episode.actions[step])
            else:
                recording.signals("state", robot.state, robot.state_slices(), episode.states[step])
                recording.signals("action", robot.action, robot.action_slices(), episode.actions[step])
            if path is not None:
                recording.path("robot/tool", path[: step + 1])


def _plots(robot: Embodiment | None) -> list[str]:
    if robot is None:
        return ["state", "action"]
    signals = [("state", robot.state), ("action", robot.action)]
    return [f"{role}/{signal.name}" for role, part in signals for signal in part]


def _tool_path(episode: Episode, robot: Embodiment | None) -> np.ndarray | None:
    """Return the measured tool positions `[t 3]` where the robot has one tool."""
    if robot is None:
        return None
    places = [signal for signal in robot.state if signal.kind == "position" and signal.width == 3]
    return episode.states[:, robot.state_slices()[places[0].name]] if len(places) == 1 else None
