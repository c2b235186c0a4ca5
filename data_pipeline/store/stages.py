"""A stage: shards in, shards out, and a manifest of what was done, with which parameters, and what was lost.

A finished stage with the same parameters is skipped, one with others is refused, an unfinished one resumes.
"""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ...errors import DataError
from ..executors import Executor, run_tasks
from ..files import write_json
from ..locations import Location, file_name, joined
from .shards import index_path, list_shards, read_document, read_index, remove_leftovers, shard_path

FORMAT = "gr2-stage-1"
NUM_EXAMPLES = 5

VIDEO_STAGES = ("video_shards", "curated_shards", "captioned_shards")
"""Stages whose result is video shards."""


@dataclass(slots=True, kw_only=True)
class Tally:
    """Counts of a stage while it runs.

    dropped: reason -> number; examples: reason -> the first few, with key, source and detail; repaired: what was read
    otherwise than it is written -> number of records.
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
    repaired: dict[str, int] = field(default_factory=dict)

    def drop(self, reason: str, key: str, source: str, detail: str) -> None:
        """Count one record as dropped."""
        self.dropped[reason] = self.dropped.get(reason, 0) + 1
        examples = self.examples.setdefault(reason, [])
        if len(examples) < NUM_EXAMPLES:
            examples.append({"key": key, "source": source, "detail": detail})

    def repair(self, repairs: Iterable[str]) -> None:
        """Count what was repaired of one record."""
        for reason in repairs:
            self.repaired[reason] = self.repaired.get(reason, 0) + 1

    def add(self, part: Tally) -> None:
        """Add the counts of a part; the first examples stay."""
        for name in ("records", "kept", "windows", "frames", "seconds", "captioned", "with_actions"):
            setattr(self, name, getattr(self, name) + getattr(part, name))
        for reason, count in part.dropped.items():
            self.dropped[reason] = self.dropped.get(reason, 0) + count
            self.examples[reason] = (self.examples.get(reason, []) + part.examples.get(reason, []))[:NUM_EXAMPLES]
        for reason, count in part.repaired.items():
            self.repaired[reason] = self.repaired.get(reason, 0) + count

    @property
    def num_dropped(self) -> int:
        """Sum the dropped records over all reasons."""
        return sum(self.dropped.values())

    def summary(self) -> str:
        """Return the result in one line."""
        lost = ", ".join(f"{reason} {count}" for reason, count in sorted(self.dropped.items())) or "none"
        kept = f"{self.kept} of {self.records} kept ({self.windows} windows, {self.seconds:.0f} s)"
        repaired = ", ".join(f"{reason} {count}" for reason, count in sorted(self.repaired.items()))
        return f"{kept}; dropped: {lost}" + (f"; repaired: {repaired}" if repaired else "")


def begun_or_finished(
    out: Path, stage: str, parameters: Mapping[str, Any], overwrite: bool
) -> Mapping[str, Any] | None:
    """Prepare the output folder of a stage as `begin_stage` does; where it is finished already, print that.

    Returns:
        The manifest of the finished stage, None where there is work to do.
    """
    if begin_stage(out, stage, parameters, overwrite):
        return None
    manifest = read_manifest(out, stage)
    print(f"{out}: finished already, {manifest['counts']['windows']} windows; pass overwrite to do it again")
    return manifest


def begun_parameters(out: Path, stage: str) -> Mapping[str, Any]:
    """Return the parameters of the stage that a folder holds, finished or not; none where it holds nothing.

    Raises:
        DataError: the folder holds another stage.
    """
    return _expect_stage(out, stage)["parameters"] if (out / "manifest.json").is_file() else {}


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
        DataError: where the folder holds the result of other parameters, or of another stage. A stage that ended
            before its first shard leaves nothing that binds the next one.
    """
    manifest = out / "manifest.json"
    if overwrite and manifest.is_file():
        _expect_stage(out, stage)
        abandon_stage(out)
    if manifest.is_file():
        found = _expect_stage(out, stage)
        begun = found["status"] == "complete" or any(out.glob("shard-*.index.json"))
        if begun and found["parameters"] != dict(parameters):
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


def abandon_stage(out: Path) -> None:
    """Remove what a stage wrote to its folder; what others put there stays."""
    for path in [*out.glob("shard-*.index.json"), *out.glob("shard-*"), *out.glob("columns/*.npy")]:
        path.unlink(missing_ok=True)
    (out / "manifest.json").unlink(missing_ok=True)
    for folder in (out / "columns", out):
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()


def finish_stage(
    out: Path, stage: str, parameters: Mapping[str, Any], tally: Tally, result: Mapping[str, Any]
) -> Mapping[str, Any]:
    """Write the final manifest and give it back."""
    manifest = _manifest(stage, "complete", parameters) | {"counts": asdict(tally)} | dict(result)
    manifest["examples"] = manifest["counts"].pop("examples")
    write_json(out / "manifest.json", manifest)
    return manifest


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardTask:
    """One shard of a stage that makes shard i of shard i.

    source: the shard to read; out: the folder to write to; number: of the shard in both.
    """

    source: Location
    out: Path
    number: int


def map_shards(
    write_shard: Callable[[ShardTask], None], shards: Location, out: Path, executor: Executor, description: str
) -> tuple[Tally, list[str]]:
    """Write shard i of a stage from shard i of the stage before; finished shards are left alone.

    Args:
        write_shard: picklable; writes `shard_path(out, number)` and notes its tally in the index as `tally`.
        shards: folder, URL or pattern of the shards to read.
        out: folder that `begin_stage` prepared.
        executor: where the shards are worked on.
        description: title of the progress bar.

    Returns:
        The counts of all shards, and their names.

    Raises:
        DataError: some shards failed; the others are finished, and a second run tries only the failed ones.
    """
    tasks = [ShardTask(source=source, out=out, number=i) for i, source in enumerate(list_shards(shards))]
    waiting = [task for task in tasks if not index_path(shard_path(out, task.number)).is_file()]
    done, alone = len(tasks) - len(waiting), len(tasks) == 1
    with tqdm(total=len(tasks), initial=done, desc=description, unit="shard", disable=alone) as progress:
        failures = run_tasks(write_shard, waiting, executor, lambda _: progress.update())
    if failures:
        first = failures[0]
        raise DataError(
            f"{out}: {len(failures)} of {len(tasks)} shards failed after {executor.retries + 1} attempts at most; the "
            f"first, {file_name(first.item.source)}: {first.error} Fix it and run the same command again: the other "
            "shards are finished and stay."
        )
    tally = Tally()
    for task in tasks:
        tally.add(Tally(**read_index(shard_path(out, task.number))["note"]["tally"]))
    return tally, [shard_path(out, task.number).name for task in tasks]


def read_manifest(folder: Location, *stages: str) -> Mapping[str, Any]:
    """Read the manifest of a finished stage.

    Args:
        folder: where the stage wrote, or its URL.
        stages: names of the stages that will do.

    Raises:
        DataError: where there is none, it is of another stage, or the stage is not finished.
    """
    manifest = _expect_stage(folder, *stages)
    if manifest["status"] != "complete":
        stage = manifest["stage"]
        raise DataError(f"{folder}: the stage {stage!r} is not finished; run it again, it resumes where it stopped.")
    return manifest


def expect_video_shards(shards: Location) -> Mapping[str, Any]:
    """Read the manifest of finished video shards; a pattern of tars has none, and stands for itself.

    Raises:
        DataError: the folder holds something else, or a stage that is not finished.
    """
    return {} if "{" in str(shards) or str(shards).endswith(".tar") else read_manifest(shards, *VIDEO_STAGES)


def _expect_stage(folder: Location, *stages: str) -> Mapping[str, Any]:
    manifest = read_document(joined(folder, "manifest.json"))
    if manifest.get("format") != FORMAT or manifest.get("stage") not in stages:
        got = (manifest.get("format"), manifest.get("stage"))
        wanted = " or ".join(repr(stage) for stage in stages)
        raise DataError(f"{folder}: expected the stage {wanted} in format {FORMAT!r}, got {got}; check the folder.")
    return manifest


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
