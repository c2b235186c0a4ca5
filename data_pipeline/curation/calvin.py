"""Look at a CALVIN dataset before hours of training: what is there, what is missing, and the known traps."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ...gr_model.errors import DataError
from ..calvin_layout import FRAME_KEYS, KNOWN_SCENES, CalvinSplit, find_splits
from ..pickled_arrays import load_pickled_array

_PROBED = 64
"""Frames opened in each split, spread evenly."""


def inspect_calvin(path: Path) -> dict[str, Any]:
    """Count frames, windows, sentences and scenes of every split, and name what is wrong with them."""
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
        "sentences": len({a.sentence for a in windows}),
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
        problems.append(("no sentences", "lang_annotations/auto_lang_ann.npy is missing: only video can be learned"))
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
                detail = f"frames {span[0]}..{span[1]} are scene {known}, scene_info.npy says {name}; {known} is used"
                problems.append(("scene_info", detail))
    elif split.path.name == "training":
        problems.append(("scene_info", "scene_info.npy is missing, scene D is assumed"))
    if not (split.path / "statistics.yaml").is_file():
        problems.append(("statistics", "statistics.yaml is missing; gr2 measures its own"))
    return problems
