"""What became of a dataset: every stage back to the source, what each dropped and why, and clips of both kinds.

Counts are those of the manifests. Distributions and images come from at most `_SHARDS_READ` shards, spread evenly, so
that a page about millions of clips takes minutes; the page states how many were read.
"""

from __future__ import annotations

import hashlib
import heapq
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import ConfigError, DataError
from ..locations import as_location, is_url
from ..store.shards import read_dropped, read_index
from ..store.stages import VIDEO_STAGES, read_manifest
from .caption_words import nouns_of, verb_of
from .report_clips import SampleClip, described, read_member, show_clip, show_video, source_file

STAGES = (*VIDEO_STAGES, "token_shards")
UNUSED_ANSWERS = "unused_answers"
NOT_STATED = "not stated"

_SHARDS_READ = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """A finished stage: its folder and its manifest."""

    folder: Path
    manifest: Mapping[str, Any]

    @property
    def name(self) -> str:
        """Return the name of the stage."""
        return str(self.manifest["stage"])

    @property
    def has_videos(self) -> bool:
        """Return whether the result is video shards."""
        return self.name in VIDEO_STAGES


@dataclass(slots=True, kw_only=True)
class ClipCounts:
    """What is known of the clips that are left.

    stage: whose clips; read: clips that were looked at; others: value -> number of clips, `caption_words` of captions,
    `verbs` and `nouns` of captions.
    """

    stage: str
    read: int = 0
    seconds: list[float] = field(default_factory=list)
    rates: Counter[str] = field(default_factory=Counter)
    sizes: Counter[str] = field(default_factory=Counter)
    caption_words: list[int] = field(default_factory=list)
    caption_kinds: Counter[str] = field(default_factory=Counter)
    verbs: Counter[str] = field(default_factory=Counter)
    nouns: Counter[str] = field(default_factory=Counter)
    datasets: Counter[str] = field(default_factory=Counter)
    licenses: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sheet:
    """Clips with one fate: `reason` of the stage that dropped them, empty for those that are left.

    count: how many there are; answer_only: the clip was kept, a caption written for it was not used.
    """

    stage: str
    reason: str
    count: int
    clips: Sequence[SampleClip]
    answer_only: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class DataReport:
    """Everything that stands on the page.

    stages: the oldest first; missing: why the chain does not reach the source, empty where it does.
    """

    folder: Path
    stages: Sequence[Stage]
    missing: str
    clips: ClipCounts
    sheets: Sequence[Sheet]


def collect_report(folder: Path, num_clips: int) -> DataReport:
    """Read what the page shows.

    Raises:
        DataError: the folder holds no finished stage, or its shards are damaged.
        ConfigError: a negative number of clips.
    """
    if num_clips < 0:
        raise ConfigError(f"num_clips: expected 0 or more, got {num_clips}; raise it.")
    stages, missing = follow_stages(folder)
    clips, kept = _look_at_kept(stages, num_clips)
    sheets = [kept] if kept is not None else []
    for number, stage in reversed(list(enumerate(stages))):
        before = stages[number - 1] if number else None
        sheets += _dropped_sheets(stage, before, missing, num_clips)
    return DataReport(folder=folder, stages=stages, missing=missing, clips=clips, sheets=sheets)


def follow_stages(folder: Path) -> tuple[list[Stage], str]:
    """Read the manifests from a folder back to the source.

    Returns:
        The stages, the oldest first, and why the chain ends before the source; empty where it does not.

    Raises:
        DataError: the folder itself holds no finished stage.
    """
    stages = [Stage(folder=folder, manifest=read_manifest(folder, *STAGES))]
    seen = {folder.resolve()}
    while "source" not in stages[0].manifest["parameters"]:
        named = str(stages[0].manifest["parameters"].get("shards", ""))
        earlier = _earlier_folder(stages[0].folder, named)
        if isinstance(earlier, str):
            return stages, f"{stages[0].folder.name} was made from {named}, {earlier}"
        if earlier.resolve() in seen:
            return stages, f"{stages[0].folder.name} was made from {named}, which was overwritten by a later stage"
        seen.add(earlier.resolve())
        try:
            manifest = read_manifest(earlier, *VIDEO_STAGES)
        except DataError as error:
            return stages, f"{stages[0].folder.name} was made from {named}, which cannot be read ({error})"
        stages.insert(0, Stage(folder=earlier, manifest=manifest))
    return stages, ""


def _earlier_folder(folder: Path, named: str) -> Path | str:
    """Find the folder that a stage was made from, where it was or beside the stage; else the reason."""
    if is_url(named):
        return "which is not on this machine"
    if "{" in named or named.endswith(".tar"):
        return "tars without a manifest"
    places = [Path(as_location(named)), folder.parent / Path(named).name]
    found = next((place for place in places if (place / "manifest.json").is_file()), None)
    return found if found is not None else "which is gone"


def spread_evenly(shards: Sequence[Any]) -> list[int]:
    """Choose the numbers of the shards that are read: all, or some spread evenly."""
    numbers = np.linspace(0, len(shards) - 1, min(len(shards), _SHARDS_READ))
    return np.unique(numbers.round().astype(int)).tolist()


def _look_at_kept(stages: Sequence[Stage], num_clips: int) -> tuple[ClipCounts, Sheet | None]:
    """Count the clips that are left, in the last stage with videos, else in the tokens; and sample some."""
    stage = next((stage for stage in reversed(stages) if stage.has_videos), stages[-1])
    counts = ClipCounts(stage=stage.name)
    shards = [stage.folder / name for name in stage.manifest["shards"]]
    drawn: list[tuple[str, int, int, dict[str, Any]]] = []
    for number in spread_evenly(shards):
        found = (_drawable(number, clip) for clip in _count_clips(shards[number], counts))
        drawn = heapq.nsmallest(num_clips, [*drawn, *found], key=lambda one: one[:3])
    if not stage.has_videos:
        return counts, None
    clips = [show_clip(shards[number], clip) for _, number, _, clip in drawn]
    return counts, Sheet(stage=stage.name, reason="", count=stage.manifest["counts"]["windows"], clips=clips)


def _drawable(number: int, clip: dict[str, Any]) -> tuple[str, int, int, dict[str, Any]]:
    """Put a digest before a clip: the smallest ones are a sample that is the same in every run."""
    start = int(clip.get("start", 0))
    return hashlib.sha256(f"{clip['key']}/{start}".encode()).hexdigest(), number, start, clip


def _count_clips(shard: Path, counts: ClipCounts) -> Iterator[dict[str, Any]]:
    """Count the clips of a video or token shard and yield them: key, source, caption, start, stop."""
    for sample in read_index(shard)["samples"]:
        description = json.loads(read_member(shard, sample, "json"))
        windows = description.get("windows") or [
            {"start": 0, "stop": description["num_frames"], "caption": description["caption"]}
        ]
        for window in windows:
            _count_clip(counts, description, window)
            yield {"key": sample["key"], "source": description["source"], **window}


def _count_clip(counts: ClipCounts, description: Mapping[str, Any], window: Mapping[str, Any]) -> None:
    caption, facts = window["caption"], description["facts"]
    counts.read += 1
    counts.seconds.append((window["stop"] - window["start"]) / description["fps"])
    counts.rates[f"{description['fps']:.4g}"] += 1
    counts.sizes.update(f"{video['width']} x {video['height']}" for video in description.get("videos", {}).values())
    counts.caption_words.append(len(caption.split()))
    kinds = {one["kind"] for one in window.get("captions", [])}
    kind = next((one["kind"] for one in window.get("captions", []) if one["text"] == caption), "")
    kind = kind or ("both" if len(kinds) > 1 else str(facts.get("caption_kind") or "original"))
    counts.caption_kinds[kind if caption else "none"] += 1
    if verb := verb_of(caption):
        counts.verbs[verb] += 1
    counts.nouns.update(nouns_of(caption))
    counts.datasets[str(facts.get("dataset") or NOT_STATED)] += 1
    counts.licenses[str(facts.get("license") or NOT_STATED)] += 1


def _dropped_sheets(stage: Stage, before: Stage | None, missing: str, num_clips: int) -> list[Sheet]:
    """Sample what a stage dropped, one sheet for each reason, the most frequent first."""
    dropped = stage.manifest["counts"]["dropped"]
    unused = stage.manifest.get(UNUSED_ANSWERS, {})
    shards = [stage.folder / name for name in stage.manifest["shards"]]
    drawn: dict[str, list[tuple[str, int, int, dict[str, Any]]]] = {}
    for number in spread_evenly(shards):
        for entry in read_dropped(shards[number]):
            chosen = drawn.setdefault(entry["reason"], [])
            chosen.append(_drawable(number, entry))
            if len(chosen) > 4 * num_clips:
                drawn[entry["reason"]] = heapq.nsmallest(num_clips, chosen, key=lambda one: one[:3])
    sheets = []
    for reason, count in sorted((dropped | unused).items(), key=lambda pair: (-pair[1], pair[0])):
        chosen = heapq.nsmallest(num_clips, drawn.get(reason, []), key=lambda one: one[:3])
        clips = [_show_dropped(stage, before, missing, number, entry) for _, number, _, entry in chosen]
        if not chosen:  # none in the shards that were read: the manifest keeps the first few
            clips = [
                described(entry, missing="not in the shards that were read")
                for entry in stage.manifest["examples"].get(reason, [])[:num_clips]
            ]
        sheet = Sheet(stage=stage.name, reason=reason, count=count, clips=clips, answer_only=reason not in dropped)
        sheets.append(sheet)
    return sheets


def _show_dropped(
    stage: Stage, before: Stage | None, missing: str, number: int, entry: Mapping[str, Any]
) -> SampleClip:
    if before is not None:
        shards = before.manifest["shards"]
        if number >= len(shards):
            return described(entry, missing=f"{before.folder.name} has been written again")
        return show_clip(before.folder / shards[number], entry)
    if "source" not in stage.manifest["parameters"]:
        return described(entry, missing=f"no images: {missing}")
    file = source_file(str(stage.manifest["parameters"]["source"]), str(entry["source"]))
    if file is None:
        return described(
            entry, missing="dropped before it was written to a shard, and no file of its own in the source"
        )
    return show_video(file, entry, 0, None)
