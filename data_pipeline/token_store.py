"""Token shards in memory: flat arrays of all episodes, ready for vectorised gathers.

A frame of 256 codes below 65,536 takes 512 bytes: a million frames are half a gigabyte.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..gr_model.contracts import Array
from ..gr_model.errors import DataError
from .files import load_array, read_json
from .shards import list_shards, read_indexed
from .stages import read_manifest


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenStore:
    """All episodes of some token shards; `e` counts episodes, `S` sentences.

    cameras: the cameras asked for, in that order.
    codes: camera -> unsigned `[F n]`, the frames of all episodes one after another.
    frame_offsets: camera -> int64 `[e]`, first row of an episode, -1 where it lacks the camera.
    num_frames, frame_stride: int64 `[e]`; frame i belongs to step `i * frame_stride`.
    states: float32 `[T s]`; actions: float32 `[T a]`; the steps of all episodes one after another.
    step_offsets, num_steps: int64 `[e]`, no steps for video alone.
    text_id: int64 `[e]`, row of `text_features` float32 `[S l d]`, `text_mask` bool `[S l]`, and `sentences`.
    source_id: int64 `[e]`, which of the opened folders.
    keys: name of each episode; videos: name of the video it was cut from.
    tokenizer: facts of the tokenizers that made the codes, `codebook_size` and `grid` among them.
    """

    cameras: tuple[str, ...]
    codes: Mapping[str, Array]
    frame_offsets: Mapping[str, Array]
    num_frames: Array
    frame_stride: Array
    states: Array
    actions: Array
    step_offsets: Array
    num_steps: Array
    text_id: Array
    sentences: tuple[str, ...]
    text_features: Array
    text_mask: Array
    source_id: Array
    keys: tuple[str, ...]
    videos: tuple[str, ...]
    tokenizer: Mapping[str, Any]

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def has_sentence(self) -> Array:
        """Tell which episodes have a sentence, bool `[e]`."""
        return np.array([sentence != "" for sentence in self.sentences], bool)[self.text_id]

    @property
    def labelled(self) -> Array:
        """Tell which episodes have actions and a sentence, bool `[e]`."""
        return (self.num_steps > 0) & self.has_sentence

    @classmethod
    def open(cls, paths: Sequence[Path], cameras: Sequence[str], load_steps: bool = True) -> TokenStore:
        """Load token shards.

        Args:
            paths: folders that `write_token_shards` wrote.
            cameras: cameras to load; an episode may lack some of them, not all.
            load_steps: load states and actions; False for video alone, or sources of different dimensions.

        Raises:
            DataError: where a stage is not finished, the tokenizers differ, no episode has one of the
                cameras, or sources have states or actions of different dimensions.
        """
        if not paths or not cameras:
            raise DataError(f"token store: expected folders and cameras, got {list(paths)}, {list(cameras)}.")
        tokenizer = _common_tokenizer(paths)
        sentences, features, mask = _read_texts(paths)
        collected = _Collected(tuple(cameras), {sentence: i for i, sentence in enumerate(sentences)})
        for number, path in enumerate(paths):
            before = len(collected.keys)
            for key, members in _read_folder(path):
                collected.add(key, members, number, load_steps)
            if len(collected.keys) == before:
                raise DataError(
                    f"{path}: expected episodes with one of the cameras {list(cameras)}, found only "
                    f"{sorted(collected.cameras_seen)}; ask for one of those."
                )
        arrays = collected.arrays(tokenizer)
        return cls(
            cameras=tuple(cameras),
            sentences=tuple(sentences),
            text_features=features,
            text_mask=mask,
            keys=tuple(collected.keys),
            videos=tuple(collected.videos),
            tokenizer=tokenizer,
            **arrays,
        )


class _Collected:
    """Lists that grow while shards are read; `arrays` joins them."""

    def __init__(self, cameras: tuple[str, ...], sentence_rows: Mapping[str, int]) -> None:
        self.cameras = cameras
        self.sentence_rows = sentence_rows
        self.cameras_seen: set[str] = set()
        self.keys: list[str] = []
        self.videos: list[str] = []
        self.codes: dict[str, list[Array]] = {camera: [] for camera in cameras}
        self.rows: dict[str, int] = dict.fromkeys(cameras, 0)
        self.frame_offsets: dict[str, list[int]] = {camera: [] for camera in cameras}
        self.states: list[Array] = []
        self.actions: list[Array] = []
        self.columns: dict[str, list[int]] = {
            name: [] for name in ("num_frames", "frame_stride", "num_steps", "text_id", "source_id")
        }

    def add(self, key: str, members: Mapping[str, bytes], source: int, load_steps: bool) -> None:
        """Take one episode, unless it has none of the cameras."""
        description = json.loads(members["json"])
        self.cameras_seen.update(description["cameras"])
        present = [camera for camera in self.cameras if camera in description["cameras"]]
        if not present:
            return
        for camera in self.cameras:
            self.frame_offsets[camera].append(self.rows[camera] if camera in present else -1)
        for camera in present:
            codes = load_array(members[f"codes.{camera}.npy"])
            self.codes[camera].append(codes)
            self.rows[camera] += len(codes)
        num_steps = 0
        if load_steps and "actions.npy" in members:
            self.states.append(load_array(members["states.npy"]))
            self.actions.append(load_array(members["actions.npy"]))
            num_steps = len(self.actions[-1])
        self.keys.append(key)
        self.videos.append(description["video"])
        values = (
            description["num_frames"],
            description["frame_stride"],
            num_steps,
            self.sentence_rows[description["caption"]],
            source,
        )
        for column, value in zip(self.columns.values(), values, strict=True):
            column.append(value)

    def arrays(self, tokenizer: Mapping[str, Any]) -> dict[str, Any]:
        """Join the lists."""
        for name, parts in (("states", self.states), ("actions", self.actions)):
            widths = {part.shape[1] for part in parts}
            if len(widths) > 1:
                raise DataError(
                    f"token store: the sources have {name} of {sorted(widths)} numbers, expected one width; "
                    "open them apart, or without steps."
                )
        columns = {name: np.asarray(column, np.int64) for name, column in self.columns.items()}
        tokens = tokenizer["grid"][0] * tokenizer["grid"][1]
        dtype = np.min_scalar_type(tokenizer["codebook_size"] - 1)
        # one row at least, so that a gather for an absent camera or absent steps has something to read
        return {
            **columns,
            "codes": {c: np.concatenate(p) if p else np.zeros((1, tokens), dtype) for c, p in self.codes.items()},
            "frame_offsets": {c: np.asarray(o, np.int64) for c, o in self.frame_offsets.items()},
            "states": np.concatenate(self.states) if self.states else np.zeros((1, 0), np.float32),
            "actions": np.concatenate(self.actions) if self.actions else np.zeros((1, 0), np.float32),
            "step_offsets": np.cumsum(columns["num_steps"]) - columns["num_steps"],
        }


def _read_folder(path: Path) -> Iterator[tuple[str, dict[str, bytes]]]:
    for shard in list_shards(path):
        yield from read_indexed(shard)


def _common_tokenizer(paths: Sequence[Path]) -> Mapping[str, Any]:
    facts: list[Mapping[str, Any]] = [read_manifest(path, "token_shards")["tokenizer"] for path in paths]
    for path, other in zip(paths, facts, strict=True):
        if other != facts[0]:
            names = {*facts[0], *other}
            changed = sorted(name for name in names if facts[0].get(name) != other.get(name))
            raise DataError(
                f"{path}: expected the tokenizer of {paths[0]}, but {', '.join(changed)} differ; "
                "encode both with the same tokenizers."
            )
    return facts[0]


def _read_texts(paths: Sequence[Path]) -> tuple[list[str], Array, Array]:
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    rows: dict[str, tuple[Array, Array]] = {}
    for path in paths:
        sentences = read_json(path / "texts.json")["sentences"]
        try:
            texts = load_file(path / "texts.safetensors")
        except (OSError, SafetensorError) as error:
            raise DataError(f"{path}/texts.safetensors: cannot be read ({error}); encode again.") from error
        for i, sentence in enumerate(sentences):
            rows.setdefault(sentence, (texts["features"][i], texts["mask"][i]))
    features, mask = zip(*rows.values(), strict=True)
    return list(rows), np.stack(features), np.stack(mask)
