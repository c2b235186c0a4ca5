"""Token shards, opened for reading at any place: columns mapped into memory, codes and steps read when asked for.

Opening costs the same for a thousand clips and for fifty million; memory holds what a batch needs. The operating system
keeps what is read often, so a small corpus is read from memory after the first epoch.
"""

from __future__ import annotations

import json
import os
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from ...contracts import Array
from ...embodiment import TOOL_ARM, Embodiment, fitting
from ...errors import DataError
from ...fingerprints import differing_facts
from ..embodiments import joined_embodiments
from ..locations import Location, as_location, cached, joined
from ..store.columns import ABSENT, open_columns
from ..store.shards import read_index
from ..store.stages import read_manifest
from ..video.frames import stated_fit
from .token_embodiments import FolderEmbodiments, read_embodiments, with_unnamed

_OPEN_FILES = 256
"""Shards that a process keeps open, over all folders: many systems allow 1024 files."""

_open: OrderedDict[str, int] = OrderedDict()


class ShardFiles:
    """Read byte ranges of shards, from one thread of each process."""

    def __init__(self, shards: Sequence[Location]) -> None:
        self.shards = tuple(shards)
        for shard in self.shards:  # it may have been written again since this process opened it
            if (descriptor := _open.pop(str(shard), None)) is not None:
                os.close(descriptor)

    def read(self, shard: int, offset: int, size: int) -> bytes:
        """Read `size` bytes of a shard.

        Raises:
            DataError: the shard cannot be opened or ends before.
        """
        data = os.pread(_descriptor(self.shards[shard]), size, offset)
        if len(data) != size:
            raise DataError(
                f"{self.shards[shard]}: expected {size} bytes at {offset}, got {len(data)}; the shard is truncated, "
                "copy or write it again."
            )
        return data


def _descriptor(shard: Location) -> int:
    name = str(shard)
    found = _open.get(name)
    if found is not None:
        _open.move_to_end(name)
        return found
    try:
        descriptor = os.open(cached(shard), os.O_RDONLY)
    except OSError as error:
        raise DataError(f"{shard}: cannot be opened ({error}); copy or write it again.") from error
    _open[name] = descriptor
    if len(_open) > _OPEN_FILES:
        os.close(_open.popitem(last=False)[1])
    return descriptor


class TokenFolder:
    """One folder of token shards.

    columns: as `columns.token_columns` describes them.
    cameras: in the order in which the episodes have them.
    named: the embodiments that the manifest names.
    has_text_features: whether the features of the texts lie beside them.
    is_square: whether all images are known to have been squares.
    contact_parts: what hands touch, as `contact_part` counts it; none without contact labels.
    """

    def __init__(self, folder: Location) -> None:
        self.folder = as_location(folder)
        manifest = read_manifest(self.folder, "token_shards")
        self.tokenizer: Mapping[str, Any] = manifest["tokenizer"]
        self.is_square: bool = manifest.get("is_square", False)
        self.names: list[str] = manifest["columns"]
        self.columns = open_columns(self.folder, [n for n in self.names if not n.startswith("sentence_")])
        self.files = ShardFiles([joined(self.folder, name) for name in manifest["shards"]])
        self.num_texts: int = manifest["num_texts"]
        self.has_text_features: bool = manifest["parameters"].get("texts", True)
        self.named = read_embodiments(self.folder, manifest)
        self.contact_parts: list[str] = manifest.get("contact_parts", [])
        present = [name.removeprefix("codes_") for name in self.names if name.startswith("codes_")]
        seen = (*manifest.get("cameras", ()), *TOOL_ARM.cameras, *sorted(present))
        self.cameras = tuple(camera for camera in dict.fromkeys(seen) if camera in present)

    def __len__(self) -> int:
        return len(self.columns["frames"])

    def embodiments(self) -> FolderEmbodiments:
        """Return the embodiment of every episode with steps.

        Raises:
            DataError: episodes of a robot that nobody names.
        """
        return with_unnamed(self.named, self.folder, self.columns, self.cameras, self.files)

    @cached_property
    def text_ends(self) -> Array:
        """Return where each text ends in `sentence_bytes`, int64 `[s]`."""
        return open_columns(self.folder, ["sentence_ends"])["sentence_ends"]

    @cached_property
    def _text_bytes(self) -> Array:
        return open_columns(self.folder, ["sentence_bytes"])["sentence_bytes"]

    def text(self, text_id: int) -> str:
        """Return the text of a number.

        Raises:
            DataError: the columns of texts are broken.
        """
        start = int(self.text_ends[text_id - 1]) if text_id else 0
        data = bytes(self._text_bytes[start : int(self.text_ends[text_id])])
        try:
            if len(data) != self.text_ends[text_id] - start:
                raise ValueError(f"it ends after {len(self._text_bytes)} bytes")
            return data.decode()
        except ValueError as error:
            raise DataError(
                f"{self.folder}: text {text_id} cannot be read from sentence_bytes.npy ({error}); run "
                "`gr2 data tokens` again."
            ) from error

    def descriptions(self) -> list[Mapping[str, Any]]:
        """Read what the first episode of each shard states of itself: cameras in order, fps, frame_stride, control_hz.

        Raises:
            DataError: a shard cannot be read.
        """
        found = []
        for number, shard in enumerate(self.files.shards):
            samples = read_index(shard)["samples"]
            if samples:
                offset, size, _ = samples[0]["members"]["json"]
                found.append(json.loads(self.files.read(number, offset, size)))
        return found

    def __getstate__(self) -> dict[str, Any]:
        # mapped columns travel by name: a worker maps them again instead of receiving copies
        return {"folder": self.folder}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["folder"])  # type: ignore[misc]


class TokenStore:
    """The episodes of some folders of token shards, numbered through; `e` counts episodes, `s` texts.

    cameras: the cameras asked for, in that order; an episode may lack some of them.
    embodiments: the robots of the episodes; folders of one robot share it.
    tokenizer: facts of the tokenizers that made the codes, `codebook_size` and `grid` among them.
    source_starts: number of the first episode of each folder.
    state_dim, action_dim: numbers of the widest state and of the widest action, 0 for video alone.
    """

    def __init__(self, folders: Sequence[TokenFolder], cameras: Sequence[str], load_steps: bool) -> None:
        self.folders = tuple(folders)
        self.cameras = tuple(cameras)
        self.tokenizer = _leading(self.folders).tokenizer
        self.load_steps = load_steps
        self._starts = np.cumsum([0, *(len(folder) for folder in folders)])
        self.source_starts: list[int] = self._starts[:-1].tolist()
        self._text_starts = np.cumsum([0, *(folder.num_texts for folder in folders)])
        self._code_dtype = np.min_scalar_type(self.tokenizer["codebook_size"] - 1)
        self.num_tokens = int(self.tokenizer["grid"][0] * self.tokenizer["grid"][1])
        self.state_dim, self.action_dim = self._step_dims() if load_steps else (0, 0)
        found = [folder.embodiments() if load_steps else folder.named for folder in folders]
        joined, numbers = joined_embodiments([part.embodiments for part in found])
        self.embodiments: tuple[Embodiment, ...] = tuple(joined)
        # indexed by the number in the folder; -1, the last, stands for an episode that names none
        self._embodiment_ids = [
            np.array([*ids, ABSENT if part.unnamed == ABSENT else ids[part.unnamed]], np.int64)
            for ids, part in zip(numbers, found, strict=True)
        ]

    @classmethod
    def open(
        cls, paths: Sequence[Location], cameras: Sequence[str] | None = None, load_steps: bool = True
    ) -> TokenStore:
        """Open token shards.

        Args:
            paths: folders or URLs that `write_token_shards` wrote.
            cameras: cameras to read, an episode may lack some of them; None reads all, in the order of the folders.
            load_steps: read states and actions; False for video alone.

        Raises:
            DataError: where a stage is not finished, the tokenizers differ, no episode has one of the cameras, or
                nothing states what the numbers of states and actions are.
        """
        if not paths or (cameras is not None and not cameras):
            raise DataError(f"token store: expected folders and cameras, got {list(paths)}, {cameras}.")
        folders = [TokenFolder(path) for path in paths]
        if cameras is None:
            cameras = list(dict.fromkeys(camera for folder in folders for camera in folder.cameras))
        for folder in folders:
            _expect_same_tokenizer(folder, _leading(folders))
            if not set(folder.cameras) & set(cameras):
                raise DataError(
                    f"{folder.folder}: expected episodes with one of the cameras {list(cameras)}, found only "
                    f"{sorted(folder.cameras)}; ask for one of those."
                )
        return cls(folders, cameras, load_steps)

    def __len__(self) -> int:
        return int(self._starts[-1])

    def step_rates(self) -> list[float]:
        """Return the different numbers of steps a second [Hz], ascending; of video alone, of frames.

        Read from the first episode of each shard; empty where none states them.
        """
        found = [description for folder in self.folders for description in folder.descriptions()]
        return sorted({round(d["fps"] * d["frame_stride"], 3) for d in found if {"fps", "frame_stride"} <= d.keys()})

    def column(self, name: str) -> Array:
        """Return a column of all episodes `[e]`, mapped from the file where there is one folder."""
        parts = [folder.columns[name] for folder in self.folders]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def values(self, name: str, episodes: Array, absent: int = 0) -> Array:
        """Return a column at some episodes, int64 `[b]`; `absent` where a folder has no such column."""
        out = np.full(len(episodes), absent, np.int64)
        source = self.source_of(episodes)
        for number, folder in enumerate(self.folders):
            if name in folder.columns:
                here = source == number
                out[here] = folder.columns[name][episodes[here] - self._starts[number]]
        return out

    def source_of(self, episodes: Array) -> Array:
        """Return which folder episodes come from, int64 `[b]`."""
        return np.searchsorted(self._starts, episodes, side="right") - 1

    def embodiment_of(self, episodes: Array) -> Array:
        """Return the place in `embodiments` of episodes, int64 `[b]`; -1 for video alone."""
        out, source = self.values("embodiment", episodes, ABSENT), self.source_of(episodes)
        for number, ids in enumerate(self._embodiment_ids):
            here = source == number
            out[here] = ids[out[here]]
        out[self.values("steps", episodes) == 0] = ABSENT
        return out

    def number_embodiments(self, known: Sequence[Embodiment]) -> None:
        """Number the robots of the episodes as a model does; `embodiments` is `known` from then on.

        Raises:
            DataError: a robot that is none of them.
        """
        places = [next(iter(fitting(known, robot)), ABSENT) for robot in self.embodiments]
        if ABSENT in places:
            robot = self.embodiments[places.index(ABSENT)]
            names = ", ".join(other.name for other in known)
            raise DataError(
                f"token store: expected episodes of {names}, got some of {robot.name} "
                f"({'; '.join(known[0].differences(robot)[:3])}); leave out the folders with them."
            )
        numbers = np.array([*places, ABSENT], np.int64)  # -1, the last, stays
        self._embodiment_ids = [numbers[ids] for ids in self._embodiment_ids]
        self.embodiments = tuple(known)

    @property
    def num_frames(self) -> Array:
        """Frames of each episode, int32 `[e]`."""
        return self.column("frames")

    @property
    def frame_stride(self) -> Array:
        """Steps between two frames of each episode, int32 `[e]`."""
        return self.column("stride")

    @property
    def num_steps(self) -> Array:
        """Steps of each episode that are read, int32 `[e]`; 0 for video alone."""
        steps = self.column("steps")
        return steps if self.load_steps else np.zeros_like(steps)

    @property
    def labeled(self) -> Array:
        """Return which episodes have actions and an instruction, bool `[e]`."""
        labels = [np.diff(folder.text_ends, prepend=0)[folder.columns["text_id"]] > 0 for folder in self.folders]
        return (self.num_steps > 0) & np.concatenate(labels)

    def text_ids(self, episodes: Array) -> Array:
        """Return the row of `text_features` and the argument of `text` of episodes, int64 `[b]`."""
        return self.values("text_id", episodes) + self._text_starts[self.source_of(episodes)]

    def text(self, text_id: int) -> str:
        """Return the text of a number that `text_ids` gave.

        Raises:
            DataError: there is none of this number, or it cannot be read.
        """
        if not 0 <= text_id < self._text_starts[-1]:
            raise DataError(
                f"token store: expected a text_id below {self._text_starts[-1]}, got {text_id}; take "
                "numbers from the batches of this store."
            )
        number = int(np.searchsorted(self._text_starts, text_id, side="right")) - 1
        return self.folders[number].text(int(text_id - self._text_starts[number]))

    def different_texts(self, most: int) -> list[str] | None:
        """Return the different texts of all episodes, sorted and without the empty one; None of more than `most`."""
        numbers = np.unique(self.text_ids(np.arange(len(self))))
        if len(numbers) > most:
            return None
        return sorted({self.text(int(number)) for number in numbers} - {""})

    @property
    def has_text_features(self) -> bool:
        """Return whether every folder holds the features of its texts."""
        return all(folder.has_text_features for folder in self.folders)

    @cached_property
    def text_features(self) -> tuple[Array, Array]:
        """Load the features of all texts: float32 `[s l d]`, and their mask bool `[s l]`.

        Raises:
            DataError: they were not encoded, or the file is broken.
        """
        from safetensors import SafetensorError
        from safetensors.numpy import load_file

        parts = []
        for folder in self.folders:
            if not folder.has_text_features:
                raise DataError(
                    f"{folder.folder}: expected text features, got texts alone; encode them while "
                    "training (`gr2 pretrain --text`), or write the tokens again without `--text-features false`."
                )
            path = cached(joined(folder.folder, "texts.safetensors"))
            try:
                parts.append(load_file(path))
            except (OSError, SafetensorError) as error:
                raise DataError(f"{path}: cannot be read ({error}); encode the texts again.") from error
        return np.concatenate([p["features"] for p in parts]), np.concatenate([p["mask"] for p in parts])

    def key(self, episode: int) -> str:
        """Return the name of an episode, from the index of its shard."""
        number = int(self.source_of(np.array([episode]))[0])
        folder, local = self.folders[number], episode - int(self._starts[number])
        shards = folder.columns["shard"]
        first = int(np.searchsorted(shards, shards[local]))
        key: str = read_index(folder.files.shards[int(shards[local])])["samples"][local - first]["key"]
        return f"{folder.folder}: {key}"

    def read_codes(self, camera: str, episodes: Array, frames: Array) -> tuple[Array, Array]:
        """Read codes of frames.

        Args:
            camera: one of `cameras`.
            episodes: `[b]`; frames: `[b h]`, each inside its episode.

        Returns:
            Unsigned `[b h n]`, 0 where the camera is absent, and bool `[b]`, True where it is present.
        """
        offsets = self.values(f"codes_{camera}", episodes, ABSENT)
        out = np.zeros((*frames.shape, self.num_tokens), self._code_dtype)
        self._read_rows(out, episodes, offsets, frames, np.full(len(episodes), self.num_tokens))
        size = int(self.tokenizer["codebook_size"])
        if out.size and out.max() >= size:
            wrong = int(episodes[(out.reshape(len(out), -1) >= size).any(1).argmax()])
            raise DataError(
                f"{self.key(wrong)}: expected codes below {size}, the size of the codebook, got {int(out.max())} in "
                f"camera {camera}; the shard is damaged or of another tokenizer: encode it again."
            )
        return out, offsets != ABSENT

    def read_steps(self, name: str, episodes: Array, steps: Array) -> Array:
        """Read `states` or `actions` of episodes `[b]` at steps `[b i]`.

        Returns:
            float32 `[b i d]` with the numbers of each episode's embodiment first, 0 beyond them and where there are
            none.
        """
        dim = self.state_dim if name == "states" else self.action_dim
        out = np.zeros((*steps.shape, dim), np.float32)
        widths = self.values(f"{name[:-1]}_dim", episodes)
        offsets = np.where(widths > 0, self.values(name, episodes, ABSENT), ABSENT)
        self._read_rows(out, episodes, offsets, steps, widths)
        return out

    def _read_rows(self, out: Array, episodes: Array, offsets: Array, rows: Array, widths: Array) -> None:
        """Fill `out` `[b r w]` with rows `[b r]` of arrays that begin at `offsets` `[b]`, one read for each episode.

        The rows of an episode are `widths` `[b]` numbers wide; what is beyond them stays.
        """
        dtype = out.dtype
        size = widths * dtype.itemsize
        first, last = rows.min(axis=1), rows.max(axis=1)
        sources, shards = self.source_of(episodes).tolist(), self.values("shard", episodes).tolist()
        starts, counts = (offsets + first * size).tolist(), (last - first + 1).tolist()
        shifted = rows - first[:, None]
        for i, present in enumerate((offsets != ABSENT).tolist()):
            if present:
                width = int(widths[i])
                data = self.folders[sources[i]].files.read(shards[i], starts[i], counts[i] * width * dtype.itemsize)
                out[i, :, :width] = np.frombuffer(data, dtype).reshape(counts[i], width)[shifted[i]]

    def _step_dims(self) -> tuple[int, int]:
        state, action = (
            max(int(folder.columns[name].max(initial=0)) for folder in self.folders)
            for name in ("state_dim", "action_dim")
        )
        return state, action


def _leading(folders: Sequence[TokenFolder]) -> TokenFolder:
    """Return the first folder whose images were no squares, which states how they became such; else the first."""
    return next((folder for folder in folders if not folder.is_square), folders[0])


def _expect_same_tokenizer(folder: TokenFolder, first: TokenFolder) -> None:
    changed = differing_facts(folder.tokenizer, first.tokenizer)
    if folder.is_square:
        changed = [name for name in changed if name != "image_fit"]
    if changed == ["image_fit"]:
        raise DataError(
            f"{folder.folder}: images that are no squares were made such by `{stated_fit(folder.tokenizer)}`, those of "
            f"{first.folder} by `{stated_fit(first.tokenizer)}` (earlier versions: stretch); encode one of them again "
            "with the other's `gr2 data tokens --image-fit`."
        )
    if changed:
        raise DataError(
            f"{folder.folder}: expected the tokenizer of {first.folder}, but {', '.join(changed)} differ; encode "
            "both with the same tokenizers."
        )
