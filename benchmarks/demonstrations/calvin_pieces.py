"""Demonstrations in CALVIN's layout: pieces written by many processes, joined into one split."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...contracts import Array
from ...data_pipeline.files import read_json, write_json
from ...data_pipeline.store.calvin_layout import (
    Annotation,
    CalvinWriter,
    RunningStatistics,
    absolute_actions,
    relative_actions,
)
from ...errors import DataError
from .calvin_sidecars import embed_instructions, evaluation_embeddings, simulator_settings

_PIECES = "pieces"

SHORTEST = 34
"""Fewest frames of a piece with an instruction: CALVIN's loaders take windows of up to 32 frames that begin in it."""

FIRST_FRAME = 64
"""Number of the first frame; CALVIN's loaders refuse ranges and windows that end at a number below 32."""


def write_piece(
    out: Path,
    index: int,
    *,
    images: Mapping[str, Array],
    depths: Mapping[str, Array],
    robot_obs: Array,
    scene_obs: Array,
    instruction: str,
    task: str,
    scene: str,
) -> None:
    """Write the frames of one piece (a skill with its instruction, or play) beside those of others.

    Args:
        out: folder of the split.
        index: number of the piece.
        images: camera -> uint8 `[t h w 3]`.
        depths: camera -> float32 `[t h w]` [m].
        robot_obs, scene_obs: `[t+1 15]`, `[t+1 24]`; the last row is the state after the last step.
        instruction: empty for play.
        task: name of the task, empty for play.
        scene: letter of the scene.
    """
    folder = out / _PIECES / f"{index:06d}"
    shutil.rmtree(folder, ignore_errors=True)
    actions = absolute_actions(robot_obs)
    relative = relative_actions(actions, robot_obs[:-1])
    writer = CalvinWriter(folder)
    for i in range(len(actions)):
        named = {f"rgb_{camera}": frames[i] for camera, frames in images.items()}
        named |= {f"depth_{camera}": frames[i] for camera, frames in depths.items()}
        numbers = {"actions": actions[i], "rel_actions": relative[i], "robot_obs": robot_obs[i]}
        writer.write_frame(named | numbers | {"scene_obs": scene_obs[i]})
    facts = {"index": index, "frames": len(actions), "sentence": instruction, "task": task, "scene": scene}
    write_json(out / _PIECES / f"{index:06d}.json", facts)


def join_pieces(out: Path, calvin_root: Path | None = None) -> None:
    """Number the frames of all pieces, scene after scene, and write what marks the split as whole.

    It can be stopped and run again: a frame that has been moved is left where it is. An instruction's window ends
    before the last frame of its range, as in CALVIN's data; its loaders read nothing past it.

    Args:
        out: folder of the split.
        calvin_root: a clone of CALVIN, whose instructions and surfaces are stated to its code.

    Raises:
        DataError: frames are missing.
    """
    pieces = sorted(
        (read_json(path) for path in sorted((out / _PIECES).glob("*.json"))), key=lambda p: (p["scene"], p["index"])
    )
    if not pieces:
        raise DataError(f"{out}: expected recorded pieces, found none; every attempt of the experts failed.")
    ranges: list[tuple[int, int]] = []
    annotations: list[Annotation] = []
    scenes: dict[str, tuple[int, int]] = {}
    first = start = _first_frame(out)
    for piece in pieces:
        stop = first + piece["frames"]
        for source, target in _moves(out, piece, first):
            if source.exists():
                os.replace(source, target)
            elif not target.exists():
                raise DataError(f"{source}: expected a recorded frame, found none; record into an empty folder.")
        ranges.append((first, stop - 1))
        if piece["sentence"]:
            annotations.append(
                Annotation(start=first, stop=stop - 1, instruction=piece["sentence"], task=piece["task"])
            )
        scenes[piece["scene"]] = (scenes.get(piece["scene"], (first, 0))[0], stop - 1)
        first = stop
    CalvinWriter(out, start).finish(
        ranges, annotations, scenes, _statistics(out, ranges),
        embeddings=embed_instructions([annotation.instruction for annotation in annotations]) if annotations else None,
        evaluation=evaluation_embeddings(calvin_root),
        settings=simulator_settings(pieces[-1]["scene"], calvin_root),
    )  # fmt: skip


def _first_frame(out: Path) -> int:
    """Return the number of the first frame: a recording of gr2 0.1.0 begins at 0."""
    ranges = out / "ep_start_end_ids.npy"
    return int(np.load(ranges, allow_pickle=False)[0, 0]) if ranges.is_file() else FIRST_FRAME


def _moves(out: Path, piece: Mapping[str, Any], first: int) -> Iterator[tuple[Path, Path]]:
    for i in range(piece["frames"]):
        source = out / _PIECES / f"{piece['index']:06d}" / f"episode_{i:07d}.npz"
        yield source, out / f"episode_{first + i:07d}.npz"


def _statistics(out: Path, ranges: Sequence[tuple[int, int]]) -> dict[str, Any]:
    running = RunningStatistics()
    for first, last in ranges:
        columns: dict[str, list[Array]] = {"robot_obs": [], "scene_obs": [], "actions": []}
        for i in range(first, last + 1):
            with np.load(out / f"episode_{i:07d}.npz", allow_pickle=False) as frame:
                for key, column in columns.items():
                    column.append(frame[key])
        running.add(*(np.stack(column) for column in columns.values()))
    return running.as_dict()
