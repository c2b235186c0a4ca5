"""What lets a stopped recording resume: its configuration, and the counts of what is finished."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from ...data_pipeline.files import write_json
from ...errors import DataError


def as_kept(config: Any) -> dict[str, Any]:
    """Return a configuration, a dataclass, as `recording.json` holds it.

    Without fields that have a default and hold it: they were added since 0.1.0.
    """
    usual = {f.name: f.default_factory() if callable(f.default_factory) else f.default for f in fields(config)}
    kept = {name: value for name, value in asdict(config).items() if value != usual[name]}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in kept.items()}


def check_configuration(out: Path, wanted: Mapping[str, Any]) -> None:
    """Write the configuration of a recording to `out`, or compare it with the one of the recording that is there.

    Raises:
        DataError: `out` holds a recording of another configuration.
    """
    (out / "chains").mkdir(parents=True, exist_ok=True)
    file = out / "recording.json"
    if file.exists():
        found = json.loads(file.read_text())
        if found == wanted:
            return
        if any(out.glob("chains/*.json")):
            raise DataError(
                f"{out}: expected a recording with {wanted}, found one with {found}; choose another folder."
            )
    write_json(file, dict(wanted))


def note_finished(out: Path, number: int, counts: Mapping[str, int]) -> None:
    """Note the counts of labeled episodes and pieces of play of a finished chain."""
    write_json(out / "chains" / f"{number:06d}.json", dict(counts))


def finished_counts(out: Path) -> dict[int, dict[str, int]]:
    """Return the counts of the chains that are recorded, by number."""
    found = {int(p.stem): json.loads(p.read_text()) for p in sorted((out / "chains").glob("*.json"))}
    return {n: {"labeled" if k == "labelled" else k: v for k, v in c.items()} for n, c in found.items()}  # 0.1.0's key
