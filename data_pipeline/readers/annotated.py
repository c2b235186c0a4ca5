"""Read RT-1 and Bridge laid out as `annotation/<split>/<id>.json` + `videos/<split>/<id>/rgb.mp4`.

The instruction is `texts[0]`; states come from `state.npy` beside the video, else from the JSON; actions from
the JSON. `action[i]` leads from state i to state i + 1, so there is one less than states; the last step gets
a motion of zero and keeps the gripper (the last column).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ...contracts import Array
from ...errors import DataError
from ..files import load_array, read_json, sample_key
from ..video.reader import open_video
from .record import FileMissing, Record


class AnnotatedSource:
    """Episodes of the annotation layout, in sorted order.

    camera: name given to the one camera (`rgb`) of this layout.
    """

    kind = "annotated"

    def __init__(self, path: Path, camera: str = "static") -> None:
        self.path = path
        self.camera = camera

    def __iter__(self) -> Iterator[Record]:
        for annotation in sorted((self.path / "annotation").glob("*/*.json")):
            split, name = annotation.parent.name, annotation.stem
            key = sample_key(f"{split}/{name}")
            try:
                yield self._record(annotation, key)
            except DataError as error:
                missing = isinstance(error, FileMissing)
                yield Record(key=key, videos={}, source=str(annotation), problem=str(error), missing=missing)

    def _record(self, annotation: Path, key: str) -> Record:
        content = read_json(annotation)
        if not isinstance(content, dict):
            raise DataError(f"{annotation}: expected a JSON object, got {type(content).__name__}; repair it.")
        video = _video_of(self.path, annotation, content)
        states = _states_of(video, content)
        actions = _actions_of(annotation, content, len(states)) if states is not None else None
        texts = content.get("texts") or [content.get("text", "")]
        with open_video(video) as reader:
            fps = reader.fps
        return Record(
            key=key,
            videos={self.camera: video},
            caption=str(texts[0]).strip(),
            states=states if actions is not None else None,
            actions=actions,
            control_hz=fps if actions is not None else None,
            source=annotation.relative_to(self.path).as_posix(),
            facts={"episode_id": str(content.get("episode_id", annotation.stem))},
        )


def _video_of(root: Path, annotation: Path, content: Mapping[str, Any]) -> Path:
    for entry in content.get("videos") or []:
        if isinstance(entry, dict) and "video_path" in entry and (root / entry["video_path"]).is_file():
            return root / str(entry["video_path"])
    video = root / "videos" / annotation.parent.name / annotation.stem / "rgb.mp4"
    if not video.is_file():
        raise FileMissing(f"{annotation}: its video {video} is missing; copy it, or remove the annotation.")
    return video


def _states_of(video: Path, content: Mapping[str, Any]) -> Array | None:
    beside = video.parent / "state.npy"
    if beside.is_file():
        return _matrix(str(beside), load_array(beside))
    return _matrix("state", content["state"]) if content.get("state") else None


def _actions_of(annotation: Path, content: Mapping[str, Any], num_steps: int) -> Array | None:
    if not content.get("action"):
        return None
    actions = _matrix(f"{annotation}: action", content["action"])
    if len(actions) == num_steps - 1:
        last = np.zeros_like(actions[-1:])
        last[:, -1] = actions[-1, -1]
        actions = np.concatenate([actions, last])
    if len(actions) != num_steps:
        raise DataError(
            f"{annotation}: expected {num_steps} or {num_steps - 1} actions for {num_steps} states, "
            f"got {len(actions)}; check the annotation."
        )
    return actions


def _matrix(name: str, value: Any) -> Array:
    try:
        matrix = np.asarray(value, np.float32)
    except (ValueError, TypeError) as error:
        raise DataError(f"{name}: expected rows of numbers of one length ({error}); repair it.") from error
    if matrix.ndim != 2 or not np.all(np.isfinite(matrix)):
        raise DataError(f"{name}: expected a finite matrix (steps, numbers), got shape {matrix.shape}; repair it.")
    return matrix
