"""Recorded episodes on disk: one folder each, videos beside arrays beside a description.

    root/episode_000042/static.mp4  gripper.mp4  steps.npz (states, actions)  episode.json

A folder appears only when it is whole. Unlabeled play has an empty instruction. `episode.json` keeps the embodiment of
robots other than `TOOL_ARM`.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...contracts import Array, Episode
from ...embodiment import Embodiment
from ...errors import ConfigError, DataError
from ..files import camera_name, read_json, write_json
from ..video.reader import open_video, write_video

FORMAT = "gr2-episode-1"


@dataclass(frozen=True, slots=True, kw_only=True)
class EpisodeFiles:
    """A recorded episode before its videos are decoded.

    videos: camera name -> file.
    states: `[t s]`; actions: `[t a]`, the pose commanded at each step.
    fps: frames a second of the videos, `control_hz / frame_stride`.
    facts: whatever the recorder noted (task, scene, success, seed).
    embodiment: what the numbers are; None where the recording does not say, as those of `TOOL_ARM`.
    """

    folder: Path
    videos: Mapping[str, Path]
    states: Array
    actions: Array
    instruction: str
    control_hz: float
    frame_stride: int
    fps: float
    facts: Mapping[str, Any]
    embodiment: Embodiment | None = None


def write_episode(
    root: Path, index: int, episode: Episode, facts: Mapping[str, Any], *, embodiment: Embodiment | None = None
) -> Path:
    """Write one episode as `root/episode_{index:06d}`, replacing nothing.

    Args:
        root: folder of the recording.
        index: number of the episode.
        episode: images, states, actions, instruction.
        facts: JSON values kept in `episode.json` (task, scene, success, seed).
        embodiment: what states and actions are, where they are not those of `TOOL_ARM`.

    Returns:
        The folder written.

    Raises:
        DataError: where the folder exists, or images and steps do not match.
    """
    folder = root / f"episode_{index:06d}"
    if folder.exists():
        raise DataError(f"{folder}: exists already, expected a new index; choose another index or remove it.")
    _check_lengths(str(folder), {c: len(f) for c, f in episode.images.items()}, episode)
    fps = episode.control_hz / episode.frame_stride
    temporary = root / f".{folder.name}.{os.getpid()}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        for camera, frames in episode.images.items():
            write_video(temporary / f"{camera_name(camera)}.mp4", frames, fps)
        np.savez(
            temporary / "steps.npz",
            states=np.asarray(episode.states, np.float32),
            actions=np.asarray(episode.actions, np.float32),
        )
        description = {
            "format": FORMAT,
            "instruction": episode.instruction,
            "control_hz": episode.control_hz,
            "frame_stride": episode.frame_stride,
            "fps": fps,
            "cameras": [camera_name(camera) for camera in episode.images],
            "num_steps": len(episode.states),
            "source": episode.source,
            "facts": dict(facts),
        } | ({} if embodiment is None else {"embodiment": embodiment.to_dict()})
        write_json(temporary / "episode.json", description)
        os.replace(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


def list_episodes(root: Path) -> list[Path]:
    """List the whole episode folders below `root`, sorted by index."""
    return sorted(path.parent for path in root.glob("episode_*/episode.json"))


def read_description(folder: Path) -> Mapping[str, Any]:
    """Read `episode.json`.

    Raises:
        DataError: where it is missing, broken, or of another format version.
    """
    description = read_json(folder / "episode.json")
    got = description.get("format") if isinstance(description, dict) else type(description).__name__
    if got != FORMAT:
        raise DataError(f"{folder}: expected format {FORMAT!r}, got {got!r}; record the episodes again.")
    return description


def read_facts(folder: Path) -> Mapping[str, Any]:
    """Read what the recorder noted about an episode."""
    facts: Mapping[str, Any] = read_description(folder)["facts"]
    return facts


def read_episode_files(folder: Path) -> EpisodeFiles:
    """Read all of an episode but its images.

    Raises:
        DataError: where a file is missing or broken.
    """
    description = read_description(folder)
    try:
        with np.load(folder / "steps.npz", allow_pickle=False) as steps:
            states, actions = steps["states"], steps["actions"]
    except (OSError, ValueError, KeyError, EOFError) as error:
        raise DataError(f"{folder}/steps.npz: cannot be read ({error}); record the episode again.") from error
    embodiment = _embodiment(folder, description, states, actions)
    return EpisodeFiles(
        folder=folder,
        videos={camera: folder / f"{camera}.mp4" for camera in description["cameras"]},
        states=states,
        actions=actions,
        instruction=description["instruction"],
        control_hz=description["control_hz"],
        frame_stride=description["frame_stride"],
        fps=description["fps"],
        facts=description["facts"],
        embodiment=embodiment,
    )


def _embodiment(folder: Path, description: Mapping[str, Any], states: Array, actions: Array) -> Embodiment | None:
    """Return the embodiment that an episode keeps, checked against its steps."""
    if "embodiment" not in description:
        return None
    try:
        kept = Embodiment.from_dict(description["embodiment"])
    except ConfigError as error:
        raise DataError(f"{folder}/episode.json: {error}") from error
    wanted, got = (kept.state_dim, kept.action_dim), (states.shape[-1], actions.shape[-1])
    if wanted != got:
        raise DataError(
            f"{folder}: expected {wanted[0]} numbers of a state and {wanted[1]} of an action, as its embodiment says, "
            f"got {got[0]} and {got[1]}; record the episode again."
        )
    return kept


def read_episode(folder: Path) -> Episode:
    """Read one episode, its videos decoded.

    Raises:
        DataError: where a file is missing or broken, or images and steps do not match.
    """
    files = read_episode_files(folder)
    images = {}
    for camera, path in files.videos.items():
        with open_video(path) as reader:
            images[camera] = reader.get_batch(range(len(reader)))
    episode = Episode(
        images=images,
        states=files.states,
        actions=files.actions,
        instruction=files.instruction,
        control_hz=files.control_hz,
        frame_stride=files.frame_stride,
        source=str(folder),
    )
    _check_lengths(str(folder), {c: len(f) for c, f in images.items()}, episode)
    return episode


def _check_lengths(name: str, num_frames: Mapping[str, int], episode: Episode) -> None:
    expected = -(-len(episode.states) // episode.frame_stride)
    wrong = {camera: got for camera, got in num_frames.items() if got != expected}
    if wrong:
        raise DataError(
            f"{name}: expected {expected} frames a camera ({len(episode.states)} steps, one frame each "
            f"{episode.frame_stride}), got {wrong}; record frame i at step i * frame_stride."
        )
