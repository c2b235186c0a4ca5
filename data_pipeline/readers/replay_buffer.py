"""Read Diffusion Policy's replay buffers, with zarr (`pip install 'gr2[zarr]'`).

`data/` holds one array each for images, states and actions, all episodes one after the other; `meta/episode_ends` the
step after each of them. A folder (`name.zarr`) or a zip file (`name.zarr.zip`), of zarr format 2 or 3. Source:
real-stanford/diffusion_policy, `diffusion_policy/common/replay_buffer.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...contracts import Array
from ...errors import DataError, EnvironmentMissing
from .array_images import ArrayHeader, find_images
from .arrays import ArrayEpisode, ArraysSource
from .spec import EpisodeSpec

_STATES = (
    ("state",),
    ("robot0_eef_pos", "robot0_eef_rot_axis_angle", "robot0_gripper_width"),
    ("robot_eef_pose",),
    ("agent_pos",),
)
"""States as PushT, UMI and the real robots of Diffusion Policy name them; the first that is there."""


def is_replay_buffer(path: Path) -> bool:
    """Return whether a path is a replay buffer: a zarr folder or zip file."""
    if path.is_file():
        return path.name.endswith((".zarr.zip", ".zarr"))
    return any((path / name).is_file() for name in ("zarr.json", ".zgroup")) and (path / "data").is_dir()


def _open(path: Path) -> Any:
    """Open the root group.

    Raises:
        DataError: it cannot be read.
        EnvironmentMissing: zarr is not installed.
    """
    try:
        import zarr
        import zarr.storage
    except ImportError as error:
        raise EnvironmentMissing(
            f"{path}: expected the package zarr, found none; `pip install 'gr2[zarr]'`, or `pip install zarr`."
        ) from error
    try:
        store: Any = zarr.storage.ZipStore(str(path), mode="r") if path.is_file() else str(path)
        return zarr.open_group(store, mode="r")
    except Exception as error:  # each version of zarr has errors of its own
        raise DataError(f"{path}: expected a zarr group, got another ({error}); copy it again.") from error


def _array(path: Path, name: str) -> Any:
    try:
        return _open(path)[name]
    except KeyError as error:
        raise DataError(f"{path}: expected a replay buffer with {name}, got none; copy it again.") from error


@dataclass(frozen=True, slots=True, kw_only=True)
class BufferEpisode:
    """Steps `[start, stop)` of a replay buffer."""

    path: Path
    start: int
    stop: int
    source: str

    def headers(self) -> Mapping[str, ArrayHeader]:
        """Return shapes, of this episode, and types of the arrays."""
        found = {}
        for name, array in _array(self.path, "data").arrays():
            steps = max(0, min(self.stop, array.shape[0]) - self.start) if array.shape else 0
            found[name] = ArrayHeader(shape=(steps, *array.shape[1:]), dtype=np.dtype(array.dtype))
        return found

    def read(self, name: str) -> Array:
        """Read the steps of one array."""
        return self._between(name, self.start, self.stop)

    def first(self, name: str) -> Any:
        """Read the first step of one array."""
        return self._between(name, self.start, self.start + 1)[0]

    def _between(self, name: str, start: int, stop: int) -> Array:
        try:
            return np.asarray(_array(self.path, f"data/{name}")[start:stop])
        except DataError:
            raise
        except Exception as error:  # codecs have errors of their own
            raise DataError(f"{self}: {name}: cannot be read ({error}); install its codec or copy it again.") from error

    def __str__(self) -> str:
        return f"{self.path}: {self.source}"


class ReplayBufferSource(ArraysSource):
    """Episodes of a replay buffer, in order.

    spec: names of arrays below `data`; without, what their names and shapes show.

    Raises:
        DataError: `meta/episode_ends` is not there or does not rise.
        EnvironmentMissing: zarr is not installed.
    """

    kind = "replay buffer"

    def __init__(self, path: Path, *, spec: EpisodeSpec | None = None, camera: str = "static") -> None:
        super().__init__(path, spec=spec, camera=camera)
        ends = np.asarray(_array(path, "meta/episode_ends")[:])
        if ends.ndim != 1 or ends.dtype.kind not in "iu" or not (np.diff(ends, prepend=0) > 0).all():
            raise DataError(f"{path}: meta/episode_ends: expected rising whole numbers, got {ends[:5]}; copy it again.")
        self._ends = ends.astype(int).tolist()

    @property
    def _name(self) -> str:
        return self.path.resolve().name.removesuffix(".zip").removesuffix(".zarr")

    def _episodes(self) -> Iterator[ArrayEpisode]:
        starts = [0, *self._ends]
        for number, (start, stop) in enumerate(zip(starts, self._ends, strict=False)):
            yield BufferEpisode(path=self.path, start=start, stop=stop, source=f"episode_{number:06d}")

    def _spec(self, episode: ArrayEpisode, headers: Mapping[str, ArrayHeader]) -> EpisodeSpec:
        if self.spec is not None:
            return self.spec
        cameras = self._cameras(find_images(headers, episode.first))
        states = next((found for found in _STATES if all(name in headers for name in found)), ())
        actions = ("action",) if "action" in headers else ()
        return EpisodeSpec(cameras=cameras, states=states, actions=actions)
