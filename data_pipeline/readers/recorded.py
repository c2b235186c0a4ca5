"""Read the episodes that `data_pipeline.episodes` wrote."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ...errors import DataError
from ..embodiments import has_tool_arm_widths, tool_arm
from ..store.episodes import list_episodes, read_episode_files
from .record import Record


class RecordedSource:
    """Recorded episodes below a folder, by index."""

    kind = "recorded"

    def __init__(self, path: Path) -> None:
        self.path = path

    def __iter__(self) -> Iterator[Record]:
        for folder in list_episodes(self.path):
            try:
                files = read_episode_files(folder)
            except DataError as error:
                yield Record(key=folder.name, videos={}, source=folder.name, problem=str(error))
                continue
            arm = None
            if has_tool_arm_widths(files.states.shape[-1], files.actions.shape[-1]):
                arm = tool_arm(cameras=files.videos, control_hz=files.control_hz)
            yield Record(
                key=folder.name,
                videos=files.videos,
                caption=files.instruction,
                states=files.states,
                actions=files.actions,
                control_hz=files.control_hz,
                embodiment=files.embodiment or arm,
                frame_stride=files.frame_stride,
                source=folder.name,
                facts=files.facts,
            )
