"""A stage: shards in, shards out, and a manifest of what was done, with which parameters, and what was lost.

A finished stage with the same parameters is skipped, one with others is refused, an unfinished one goes on.
"""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..gr_model.errors import DataError
from .files import read_json, write_json
from .shards import remove_leftovers

FORMAT = "gr2-stage-1"
NUM_EXAMPLES = 5


@dataclass(slots=True, kw_only=True)
class Tally:
    """Counts of a stage while it runs.

    dropped: reason -> number; examples: reason -> the first few, with key, source and detail.
    """

    records: int = 0
    kept: int = 0
    windows: int = 0
    frames: int = 0
    seconds: float = 0.0
    captioned: int = 0
    with_actions: int = 0
    dropped: dict[str, int] = field(default_factory=dict)
    examples: dict[str, list[dict[str, str]]] = field(default_factory=dict)

    def drop(self, reason: str, key: str, source: str, detail: str) -> None:
        """Count one record as dropped."""
        self.dropped[reason] = self.dropped.get(reason, 0) + 1
        examples = self.examples.setdefault(reason, [])
        if len(examples) < NUM_EXAMPLES:
            examples.append({"key": key, "source": source, "detail": detail})

    @property
    def num_dropped(self) -> int:
        """Sum the dropped records over all reasons."""
        return sum(self.dropped.values())

    def sentence(self) -> str:
        """Say the result in one line."""
        lost = ", ".join(f"{reason} {count}" for reason, count in sorted(self.dropped.items())) or "none"
        kept = f"{self.kept} of {self.records} kept ({self.windows} windows, {self.seconds:.0f} s)"
        return f"{kept}; dropped: {lost}"


def begin_stage(out: Path, stage: str, parameters: Mapping[str, Any], overwrite: bool) -> bool:
    """Prepare the output folder of a stage.

    Args:
        out: folder of the shards.
        stage: name of the stage.
        parameters: JSON values that decide the result.
        overwrite: remove what an earlier run of this stage wrote.

    Returns:
        False where the same stage is finished already, True where there is work to do.

    Raises:
        DataError: where the folder holds the result of other parameters, or of another stage.
    """
    manifest = out / "manifest.json"
    if overwrite and manifest.is_file():
        _expect_stage(out, stage)
        for path in [*out.glob("shard-*.index.json"), *out.glob("shard-*.tar"), manifest]:
            path.unlink()
    if manifest.is_file():
        found = _expect_stage(out, stage)
        if found["parameters"] != dict(parameters):
            changed = sorted(
                name
                for name in {*found["parameters"], *parameters}
                if found["parameters"].get(name) != parameters.get(name)
            )
            raise DataError(
                f"{out}: holds a result of other parameters ({', '.join(changed)} changed); "
                "choose another folder or pass overwrite."
            )
        if found["status"] == "complete":
            return False
    elif out.is_dir() and any(out.glob("shard-*")):
        raise DataError(f"{out}: holds shards without a manifest; choose another folder or remove them.")
    out.mkdir(parents=True, exist_ok=True)
    remove_leftovers(out)
    write_json(manifest, _manifest(stage, "running", parameters))
    return True


def finish_stage(
    out: Path, stage: str, parameters: Mapping[str, Any], tally: Tally, result: Mapping[str, Any]
) -> Mapping[str, Any]:
    """Write the final manifest and give it back."""
    manifest = _manifest(stage, "complete", parameters) | {"counts": asdict(tally)} | dict(result)
    manifest["examples"] = manifest["counts"].pop("examples")
    write_json(out / "manifest.json", manifest)
    return manifest


def read_manifest(out: Path, stage: str) -> Mapping[str, Any]:
    """Read the manifest of a finished stage.

    Raises:
        DataError: where there is none, it is of another stage, or the stage is not finished.
    """
    manifest = _expect_stage(out, stage)
    if manifest["status"] != "complete":
        raise DataError(f"{out}: the stage {stage!r} is not finished; run it again, it goes on where it stopped.")
    return manifest


def _expect_stage(out: Path, stage: str) -> Mapping[str, Any]:
    manifest = read_json(out / "manifest.json")
    got = (manifest.get("format"), manifest.get("stage")) if isinstance(manifest, dict) else None
    if got != (FORMAT, stage):
        raise DataError(f"{out}: expected the stage {stage!r} in format {FORMAT!r}, got {got}; check the folder.")
    return manifest  # type: ignore[no-any-return]


def _manifest(stage: str, status: str, parameters: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "stage": stage,
        "status": status,
        "parameters": dict(parameters),
        "versions": _versions(),
    }


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for package in ("gr2", "numpy", "av", "decord"):
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "not installed"
    return versions
