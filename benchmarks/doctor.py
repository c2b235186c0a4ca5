"""Report what this machine has, lacks, and how to fix it: `gr2 doctor`."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from importlib import metadata
from json import dumps, loads
from pathlib import Path

from .doctor_probes import CHECKS

OK, WARNING, MISSING = "ok", "warning", "missing"

PROBE_LIMIT_S = 12.0
"""Time that the probes may take together [s]."""

MINIMUM_PYTHON = (3, 10)
WANTED_DISK_GIB = 5.0
WANTED_MEMORY_GIB = 4.0

WITHOUT_PYBULLET = (
    "only for the simulator: take Python 3.10 or 3.11, or build it with a C++ compiler: pip install pybullet"
)
"""What a Python needs that gr2 does not ask pybullet of, for it has no wheels there."""

REMEDIES: Mapping[str, tuple[str, str]] = {
    "h264 encoding": (MISSING, "reinstall PyAV from its wheel: pip install --force-reinstall av"),
    "h264 decoding, PyAV": (MISSING, "reinstall PyAV from its wheel: pip install --force-reinstall av"),
    "h264 decoding, decord": (WARNING, "only needed to compare decoders; on x86-64: pip install decord"),
    "PyBullet software renderer": (MISSING, "pip install --force-reinstall pybullet"),
    "PyBullet EGL renderer": (WARNING, "the software renderer is used; for EGL install the driver's libEGL"),
    "import torch": (MISSING, "pip install torch"),
    "CUDA device": (WARNING, "everything runs on the CPU; use the tiny preset"),
    "import taming": (MISSING, "pip install taming-transformers==0.0.1"),
    "import open_clip": (MISSING, "pip install open_clip_torch"),
}
"""Check -> its state where it fails, and how to fix it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One check: `state` is "ok", "warning" or "missing" (needed and absent); `fix` states how to fix it."""

    name: str
    state: str
    detail: str
    fix: str = ""


def doctor(*, plan: bool = False, gpu: str = "A100", json: Path | None = None) -> int:
    """Check this machine: Python, packages, video, simulator, graphics card, disk and memory.

    Args:
        plan: list instead the commands from CALVIN's download to a row beside the published ones, with the disk, time
            and memory that each takes (docs/official.md).
        gpu: whose speed the plan counts with, as A100 or H100.
        json: File to write the findings to as well.

    Returns:
        1 where something needed is missing, else 0.

    Raises:
        ConfigError: the speed of that GPU is not known.
    """
    if plan:
        from .plan import describe_plan, official_plan

        print(describe_plan(official_plan(gpu=gpu), gpu))
        return 0
    findings = examine()
    for finding in findings:
        print(f"{finding.state:<8} {finding.name:<28} {finding.detail}")
        if finding.fix:
            print(f"{'':<8} {'':<28} -> {finding.fix}")
    counts = {state: sum(finding.state == state for finding in findings) for state in (OK, WARNING, MISSING)}
    print(", ".join(f"{number} {state}" for state, number in counts.items()))
    if json is not None:
        json.parent.mkdir(parents=True, exist_ok=True)
        temporary = json.with_name(f".{json.name}.{os.getpid()}.tmp")
        temporary.write_text(dumps([asdict(finding) for finding in findings], indent=2) + "\n", encoding="utf-8")
        os.replace(temporary, json)
    return 1 if counts[MISSING] else 0


def examine() -> list[Finding]:
    """Run every check, the probes of drivers and libraries beside each other in processes of their own."""
    with ThreadPoolExecutor(max_workers=len(CHECKS)) as pool:
        probes = [pool.submit(run_probe, name) for name in CHECKS]
        findings = [
            check_python(),
            *check_packages(),
            check_cores(),
            check_memory(),
            check_disk(),
            check_writing(),
        ]
        for probe in probes:
            findings += probe.result()
    return findings


def check_python() -> Finding:
    """Check the version of Python."""
    wanted = ".".join(map(str, MINIMUM_PYTHON))
    good = sys.version_info[:2] >= MINIMUM_PYTHON
    return Finding(
        name="Python",
        state=OK if good else MISSING,
        detail=f"{platform.python_version()} on {platform.system()} {platform.machine()}",
        fix="" if good else f"install Python {wanted} or newer",
    )


def check_packages(*, version_of: Callable[[str], str] = metadata.version) -> list[Finding]:
    """Check the version of every package that gr2 declares; extras and other platforms are left out."""
    try:
        declared = metadata.requires("gr2") or []
    except metadata.PackageNotFoundError:
        return [
            Finding(
                name="gr2",
                state=MISSING,
                detail="not installed",
                fix="pip install -e . in the repository root",
            )
        ]
    return [_check_package(line, version_of) for line in declared if "extra ==" not in line]


def check_cores() -> Finding:
    """Count the processor cores that this process may use."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    good = cores >= 2
    return Finding(
        name="cores",
        state=OK if good else WARNING,
        detail=str(cores),
        fix="" if good else "training on one core is slow",
    )


def check_memory() -> Finding:
    """Measure the free memory, the limit of a container included."""
    free = _free_memory()
    if free is None:
        return Finding(name="free memory", state=WARNING, detail="unknown", fix="make sure that 4 GiB are free")
    good = free >= WANTED_MEMORY_GIB
    fix = "" if good else f"free {WANTED_MEMORY_GIB:.0f} GiB, or lower the batch size and the loader workers"
    return Finding(name="free memory", state=OK if good else WARNING, detail=f"{free:.1f} GiB", fix=fix)


def check_disk() -> Finding:
    """Measure the free disk of the working folder."""
    free = shutil.disk_usage(Path.cwd()).free / 2**30
    good = free >= WANTED_DISK_GIB
    fix = "" if good else f"free {WANTED_DISK_GIB:.0f} GiB, or work in another folder"
    return Finding(name="free disk", state=OK if good else WARNING, detail=f"{free:.1f} GiB here", fix=fix)


def check_writing() -> Finding:
    """Check that files can be written to the working folder."""
    try:
        with tempfile.NamedTemporaryFile(dir=Path.cwd(), prefix=".gr2-doctor-"):
            return Finding(name="write permission", state=OK, detail="this folder")
    except OSError as error:
        fix = "work in a folder that you own"
        return Finding(name="write permission", state=MISSING, detail=str(error.strerror), fix=fix)


def run_probe(name: str, *, limit_s: float = PROBE_LIMIT_S) -> list[Finding]:
    """Run a probe in a process of its own, at most `limit_s` [s], and judge each of its checks."""
    command = [sys.executable, "-m", "gr2.benchmarks.doctor_probes", name]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit_s, env=environment, check=False)
        output, end = done.stdout, f"the process ended with status {done.returncode}"
    except subprocess.TimeoutExpired as error:
        output = error.stdout.decode() if isinstance(error.stdout, bytes) else error.stdout or ""
        end = f"no answer within {limit_s:.0f} s"
    outcomes: dict[str, tuple[str, str]] = {}
    for line in output.splitlines():
        if line.startswith('{"name"'):
            record = loads(line)
            outcomes[record["name"]] = (record["state"], record["detail"])
    return [_judge(check, outcomes.get(check, ("", "")), end) for check in CHECKS[name]]


def _judge(check: str, outcome: tuple[str, str], end: str) -> Finding:
    state, detail = outcome
    if state == "ok":
        return Finding(name=check, state=OK, detail=detail)
    worst, fix = REMEDIES[check]
    if "No module named 'pybullet'" in detail and not _wants_pybullet():
        return Finding(name=check, state=WARNING, detail="no pybullet", fix=WITHOUT_PYBULLET)
    if state == "failed":
        return Finding(name=check, state=worst, detail=detail, fix=fix)
    slow = end.startswith("no answer")
    return Finding(
        name=check,
        state=WARNING if slow else worst,
        detail=end if state == "begun" else f"not reached: {end}",
        fix="the machine may be busy: run again" if slow else fix,
    )


def _check_package(line: str, version_of: Callable[[str], str]) -> Finding:
    match = re.match(r"[A-Za-z0-9._-]+", line)
    assert match is not None
    name, requirement = match[0], line.split(";")[0].strip()
    optional = ";" in line
    try:
        version = version_of(name)
    except metadata.PackageNotFoundError:
        state = WARNING if optional else MISSING
        fix = f'pip install "{requirement}"'
        if name == "pybullet" and not _wants_pybullet():
            fix = WITHOUT_PYBULLET
        return Finding(name=name, state=state, detail="not installed", fix=fix)
    least = re.search(r"[>=]=\s*([0-9.]+)", requirement)
    if least and _numbers(version) < _numbers(least[1]):
        detail = f"{version}, expected {requirement.removeprefix(name)}"
        return Finding(name=name, state=MISSING, detail=detail, fix=f'pip install "{requirement}"')
    return Finding(name=name, state=OK, detail=version)


def _wants_pybullet() -> bool:
    """Return whether gr2 asks for pybullet under this Python (setup.cfg)."""
    return sys.version_info[:2] < (3, 12)


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version.split("+")[0])[:3])


def _free_memory() -> float | None:
    """Read the free memory [GiB]: what the kernel calls available, within the container's limit."""
    table = Path("/proc/meminfo")
    if not table.is_file():
        return None
    match = re.search(r"MemAvailable:\s+(\d+) kB", table.read_text())
    if match is None:
        return None
    free = int(match[1]) * 1024
    limit, used = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    if limit.is_file() and used.is_file() and (words := limit.read_text().strip()).isdigit():
        free = min(free, int(words) - int(used.read_text()))
    return free / 2**30
