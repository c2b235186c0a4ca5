"""Read CALVIN's layout: an annotated window is an episode, what lies outside of all windows is video without words."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from ...embodiment import TOOL_ARM
from ...errors import DataError
from ..store.calvin_layout import CONTROL_HZ, CalvinSplit, action_poses, find_splits, state_vectors
from .record import FrameFiles, Record

CAMERAS = {"static": "rgb_static", "gripper": "rgb_gripper"}

EMBODIMENT = replace(TOOL_ARM, cameras=tuple(CAMERAS), control_hz=float(CONTROL_HZ))

_SHORTEST_PLAY, _LONGEST_PLAY = 16, 256
"""Frames of an unlabeled piece: shorter ones are left out, longer stretches are divided."""


class CalvinSource:
    """The windows of the training split, or of the one split that `path` is, in the order of the frames."""

    kind = "calvin"

    def __init__(self, path: Path) -> None:
        self.path = path
        self.split = CalvinSplit(find_splits(path)[0])

    def __iter__(self) -> Iterator[Record]:
        split = self.split
        pieces = [(a.start, a.stop, a.instruction, a.task) for a in split.annotations]
        for start, stop in split.unlabeled(_SHORTEST_PLAY):
            count = -(-(stop - start) // _LONGEST_PLAY)
            borders = [start + (stop - start) * i // count for i in range(count + 1)]
            pieces += [(a, b, "", "") for a, b in itertools.pairwise(borders)]
        for number, (start, stop, instruction, task) in enumerate(sorted(pieces)):
            yield self._record(f"{number:07d}_{start}_{stop}", start, stop, instruction, task)

    def _record(self, key: str, start: int, stop: int, instruction: str, task: str) -> Record:
        split, where = self.split, f"{self.split.path.name} {start}..{stop - 1}"
        try:
            robot_obs, actions = split.column("robot_obs", start, stop), split.column("actions", start, stop)
        except DataError as error:
            return Record(key=key, videos={}, source=where, problem=str(error))
        files = tuple(split.frame_path(index) for index in range(start, stop))
        return Record(
            key=key,
            videos={camera: FrameFiles(files=files, array=array, fps=CONTROL_HZ) for camera, array in CAMERAS.items()},
            caption=instruction,
            states=state_vectors(robot_obs),
            actions=action_poses(actions),
            control_hz=CONTROL_HZ,
            embodiment=EMBODIMENT,
            source=where,
            facts={"task": task or None, "scene": split.scene(start), "split": split.path.name},
        )
