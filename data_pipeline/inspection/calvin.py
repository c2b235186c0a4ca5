"""Look at a CALVIN dataset before hours of training: what is there, what is missing, and the known traps."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import DataError
from ..readers.calvin import CAMERAS, EMBODIMENT
from ..statistics.steps import RecordSteps, measure_steps
from ..statistics.table import summarize
from ..store.calvin_layout import (
    CONTROL_HZ,
    FRAME_KEYS,
    KNOWN_SCENES,
    CalvinSplit,
    action_poses,
    find_splits,
    state_vectors,
)
from ..store.pickled_arrays import load_pickled_array
from .caption_tally import CaptionTally
from .source_tally import ProblemGroups, robot_facts

_PROBED = 64
"""Frames opened in each split, spread evenly."""

_MEASURED_WINDOWS, _MEASURED_FRAMES = 32, 64
"""Windows whose states and actions are measured, spread evenly, and the most frames of each."""

_SHORTEST_PLAY = 16


def summarize_calvin(path: Path, max_clips: int) -> dict[str, Any]:
    """Return what `inspect_source` returns of other datasets; frames are opened here and there, never all.

    Args:
        path: a dataset or one split of it.
        max_clips: validation frames compared with those of training at most; 0 for all.
    """
    splits = [CalvinSplit(folder) for folder in find_splits(path)]
    found = inspect_calvin(path)
    problems, captions = ProblemGroups(), CaptionTally()
    for problem in found.pop("problems"):
        problems.add(problem["source"], f"{problem['reason']}: {problem['detail']}")
    spans = {split.path.name: _spans(split) for split in splits}
    for caption in (caption for rows in spans.values() for _, _, caption in rows):
        captions.add(caption)
    unreadable = sum(g["count"] for g in problems.summary() if g["reason"].startswith("unreadable"))
    steps = measure_steps((row for split in splits for row in _some_steps(split, spans[split.path.name])), path.name)
    records = sum(map(len, spans.values()))
    return (
        {
            "source": str(path),
            "reader": "calvin",
            "version": "",
            "datasets": {"CALVIN": records},
            "licenses": {},
            "license_file": "",
            "records": records,
            "episodes": records,
            "clips": 0,
            "broken": unreadable,
            "broken_share": round(unreadable / (_PROBED * len(splits)), 4),
            "missing_videos": 0,
            "without_video": 0,
            "splits": {name: len(rows) for name, rows in spans.items()},
            "cameras": dict.fromkeys(CAMERAS, records),
            "missing_cameras": {},
            "captions": captions.summary(),
            "steps": _step_facts([stop - start for rows in spans.values() for start, stop, _ in rows], records)
            | {"statistics": summarize(path.name, steps) if steps.datasets else None},
            "embodiments": [robot_facts(EMBODIMENT, records)],
            "problems": problems.summary(),
            "details": {name: value for name, value in found.items() if name not in ("source", "reader")},
        }
        | _video_facts(splits, spans)
        | _shared_frames(splits, max_clips)
    )


def _spans(split: CalvinSplit) -> list[tuple[int, int, str]]:
    """List (start, stop, instruction) of the windows, and of what lies outside of all of them."""
    windows = [(a.start, a.stop, a.instruction) for a in split.annotations]
    return sorted(windows + [(start, stop, "") for start, stop in split.unlabeled(_SHORTEST_PLAY)])


def _some_steps(split: CalvinSplit, spans: Sequence[tuple[int, int, str]]) -> Iterator[RecordSteps]:
    count = min(_MEASURED_WINDOWS, len(spans))
    for number in np.linspace(0, len(spans) - 1, count).astype(int).tolist():
        start, stop = spans[number][0], min(spans[number][1], spans[number][0] + _MEASURED_FRAMES)
        where = f"{split.path.name} {start}..{stop - 1}"
        try:
            robot_obs, actions = split.column("robot_obs", start, stop), split.column("actions", start, stop)
        except DataError as error:
            yield RecordSteps(record=where, problem=str(error))
            continue
        yield RecordSteps(record=where, states=state_vectors(robot_obs), actions=action_poses(actions))


def _step_facts(lengths: Sequence[int], records: int) -> dict[str, Any]:
    lengths = lengths or [0]
    return {
        "control_hz": {f"{CONTROL_HZ:g}": records},
        "state_widths": {"16": records},
        "action_widths": {"8": records},
        "lengths": {
            "total": sum(lengths),
            "shortest": min(lengths),
            "median": int(np.median(lengths)),
            "longest": max(lengths),
        },
    }


def _video_facts(splits: Sequence[CalvinSplit], spans: Mapping[str, Sequence[tuple[int, int, str]]]) -> dict[str, Any]:
    """Return the facts of videos: single frames of both cameras at CALVIN's rate."""
    seconds = [(stop - start) / CONTROL_HZ for rows in spans.values() for start, stop, _ in rows] or [0.0]
    frames = sum(split.num_frames for split in splits)
    records = sum(map(len, spans.values()))
    sizes: Counter[str] = Counter()
    for split in splits:
        try:
            first = split.frame(int(split.ranges[0, 0]), tuple(CAMERAS.values()))
        except DataError:  # the probes name it
            continue
        sizes.update(f"{array.shape[1]}x{array.shape[0]}" for array in first.values())
    return {
        "probed": {"records": records, "of": records, "videos": len(CAMERAS) * records},
        "frames": frames,
        "seconds": {
            "total": round(frames / CONTROL_HZ, 2),
            "is_estimate": False,
            "shortest": round(min(seconds), 2),
            "median": round(float(np.median(seconds)), 2),
            "longest": round(max(seconds), 2),
        },
        "fps": {f"{CONTROL_HZ:g}": len(CAMERAS) * records},
        "sizes": dict(sizes.most_common()),
        "codecs": {"npz": frames},
        "pixel_formats": {},
        "containers": {},
        "decoders": {"numpy": frames},
        "counted": 0,
        "high_dynamic_range": 0,
        "variable_rate": 0,
        "decoding_cost": {},
        "would_be_dropped": {},
        "dropped_examples": [],
    }


def _shared_frames(splits: Sequence[CalvinSplit], max_frames: int) -> dict[str, Any]:
    """Compare frames of the validation split with those of training: their sizes, then their bytes."""
    repeated: dict[str, Any] = {
        "compared": 0,
        "not_compared": 0,
        "told_by_size_and_ends": 0,
        "records": 0,
        "examples": [],
    }
    shared: dict[str, Any] = {"records": 0, "examples": []}
    if len(splits) > 1:
        by_size: dict[int, list[str]] = {}
        for entry in os.scandir(splits[0].path):
            if entry.name.endswith(".npz"):
                by_size.setdefault(entry.stat().st_size, []).append(entry.path)
        numbers = np.concatenate([np.arange(first, last + 1) for first, last in splits[1].ranges.tolist()])
        count = min(max_frames or len(numbers), len(numbers))
        chosen = numbers[np.linspace(0, len(numbers) - 1, count).round().astype(int)]
        for path in map(splits[1].frame_path, chosen.tolist()):
            alike = by_size.get(path.stat().st_size, []) if path.is_file() else []
            digest = _digest(path) if alike else b""
            twin = next((name for name in alike if _digest(Path(name)) == digest), None)
            repeated["compared"] += 1
            if twin is not None:
                shared["records"] += 1
                shared["examples"].append([f"train: {Path(twin).name}", f"validation: {path.name}"])
        shared["examples"] = shared["examples"][:3]
    return {"repeated": repeated, "shared_between_splits": shared}


def _digest(path: Path) -> bytes:
    return hashlib.sha256(path.read_bytes()).digest()


def inspect_calvin(path: Path) -> dict[str, Any]:
    """Count frames, windows, instructions and scenes of every split, and name what is wrong with them."""
    splits = [CalvinSplit(folder) for folder in find_splits(path)]
    summary: dict[str, Any] = {"source": str(path), "reader": "calvin"}
    problems: list[dict[str, str]] = []
    for split in splits:
        facts, found = _inspect_split(split)
        summary |= {f"{split.path.name} {name}": value for name, value in facts.items()}
        problems += [{"source": split.path.name, "reason": reason, "detail": detail} for reason, detail in found]
    return summary | {"problems": problems}


def _inspect_split(split: CalvinSplit) -> tuple[dict[str, Any], list[tuple[str, str]]]:
    windows = split.annotations
    lengths = np.array([a.stop - a.start for a in windows] or [0])
    covered = _covered(split)
    facts: dict[str, Any] = {
        "frames": split.num_frames,
        "hours": round(split.num_frames / 30 / 3600, 3),
        "ranges": len(split.ranges),
        "windows": len(windows),
        "frames in windows": f"{covered} ({covered / split.num_frames:.0%})",
        "window lengths": f"{lengths.min()} to {lengths.max()}, median {int(np.median(lengths))} (end excluded)",
        "sentences": len({a.instruction for a in windows}),
        "tasks": dict(Counter(a.task for a in windows).most_common()),
        "scenes": {name: f"{first}..{last}" for name, first, last in split.scenes},
    }
    probed, problems = _probe(split)
    return facts | probed, problems + _metadata_problems(split)


def _covered(split: CalvinSplit) -> int:
    """Count the frames that lie in some window."""
    count, end = 0, -1
    for start, stop in sorted((a.start, a.stop) for a in split.annotations):
        count += max(0, stop - max(start, end))
        end = max(end, stop)
    return count


def _probe(split: CalvinSplit) -> tuple[dict[str, Any], list[tuple[str, str]]]:
    """Open some frames: which arrays they hold, and whether robot state and actions agree."""
    starts = split.ranges[np.linspace(0, len(split.ranges) - 1, min(_PROBED, len(split.ranges))).astype(int)]
    indices = np.unique(np.linspace(starts[:, 0], starts[:, 1], max(2, _PROBED // len(starts))).astype(int))
    keys: Counter[str] = Counter()
    problems: list[tuple[str, str]] = []
    opened = 0
    for index in indices.tolist():
        path = split.frame_path(index)
        try:
            with np.load(path, allow_pickle=False) as arrays:
                seen = {key: (str(arrays[key].dtype), arrays[key].shape) for key in arrays}
        except Exception as error:
            problems.append(("unreadable", f"{path.name}: {error}"))
            continue
        opened += 1
        keys.update(f"{key} {dtype} {shape}" for key, (dtype, shape) in seen.items())
        missing = [key for key in FRAME_KEYS if key not in seen and not key.startswith("depth")]
        if missing:
            problems.append(("missing arrays", f"{path.name}: {', '.join(missing)}"))
    facts = {"probed frames": f"{opened} of {len(indices)} could be opened", "arrays": dict(keys)}
    return facts, problems + _action_problems(split, starts)


def _action_problems(split: CalvinSplit, starts: Any) -> list[tuple[str, str]]:
    """Check on a few pairs of frames that an action is the pose of the next frame."""
    worst = 0.0
    for first, last in starts[:16].tolist():
        if last == first:
            continue
        try:
            now = split.frame(first, ("actions",))["actions"]
            then = split.frame(first + 1, ("robot_obs",))["robot_obs"]
        except DataError:
            continue
        worst = max(worst, float(np.abs(now[:3] - then[:3]).max()))
    if worst > 5e-3:
        return [("actions", f"expected the pose of the next frame, differ from it by up to {worst:.3f} m")]
    return []


def _metadata_problems(split: CalvinSplit) -> list[tuple[str, str]]:
    problems = []
    if not split.annotations:
        problems.append(("no instructions", "lang_annotations/auto_lang_ann.npy is missing: only video can be learned"))
    else:
        content: Mapping[str, Any] = load_pickled_array(split.path / "lang_annotations" / "auto_lang_ann.npy")
        vectors = np.asarray(content["language"].get("emb", np.zeros(0)))
        if not vectors.any():
            problems.append(("embeddings", "language.emb is all zeros, a placeholder; gr2 does not read it"))
    info = split.path / "scene_info.npy"
    if info.is_file():
        for name, span in load_pickled_array(info).items():
            known = KNOWN_SCENES.get((int(span[0]), int(span[1])))
            if known and known != str(name)[-1]:
                detail = f"frames {span[0]}..{span[1]} are scene {known}, scene_info.npy states {name}; {known} is used"
                problems.append(("scene_info", detail))
    elif split.path.name == "training":
        problems.append(("scene_info", "scene_info.npy is missing, scene D is assumed"))
    if not (split.path / "statistics.yaml").is_file():
        problems.append(("statistics", "statistics.yaml is missing; gr2 measures its own"))
    return problems
