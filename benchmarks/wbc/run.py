"""`gr2 benchmark wbc`: follow every case, ours and others in turn, and print, keep and judge the metrics."""

from __future__ import annotations

import os
import platform
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from tqdm import tqdm

from ...data_pipeline.files import write_json
from ...errors import ConfigError, EnvironmentMissing
from ...wbc.robot.catalog import load_robot
from ...wbc.robot.robots import RobotModel
from ...wbc.robot.urdf_reader import AS_IN_FILE, UrdfOptions
from .built_in import NUM_SMOOTH, built_in_cases, noisy_cases
from .feeding import FeedingConfig, Run, drive, feeding_of
from .metrics import Evaluation, broken, evaluate
from .peer import Peer
from .peers import follow, make_peers
from .reachability import Demand, demand_of
from .tables import case_rows, group_rows, missed
from .trajectories import TrackingCase, load_cases

OURS = "gr2"
MAX_SHORTFALLS = 12
"""Lines about marks that were missed, at most."""

Method = Callable[[TrackingCase], Run]

PACKAGES = ("gr2", "numpy", "scipy", "daqp", "pybullet", "pin", "pin-pink", "mink", "mujoco")


def benchmark(
    *,
    files: list[Path] | None = None,
    robot: str = "kinova_gen3",
    urdf: UrdfOptions = AS_IN_FILE,
    peers: str = "",
    only: str = "",
    noise_seeds: int = 3,
    cases: bool = False,
    chunk_hz: float = 20.0,
    horizon: float = 1.0,
    replan_hz: float = 5.0,
    earliest: float = 0.0,
    latest: float = 0.0,
    drop: float = 0.0,
    jitter: float = 0.0,
    seed: int = 0,
    json: Path | None = None,
) -> int:
    """Follow motions, smooth, hard and noisy ones, and print errors, limits, distances, jerk and times.

    The status is 1 where the controller broke a position, velocity or acceleration limit, or came nearer than 9 mm to
    itself or to an obstacle although it started farther away.

    Args:
        files: .npz files of motions, see benchmarks/wbc/trajectories.py; the built-in motions where none is given.
        robot: kinova_gen3, panda, or the path of a .urdf file.
        urdf: how a .urdf file is read.
        peers: others to measure on the same targets, some of pink,mink,pybullet.
        only: words, with commas between them; cases whose name holds one of them.
        noise_seeds: how often each smooth motion is shown with noise too.
        cases: Print a row for each case.
        chunk_hz: poses a second in a chunk.
        horizon: duration of a chunk [s].
        replan_hz: chunks a second.
        earliest: least delay of a chunk [s], negative for early ones.
        latest: greatest delay of a chunk [s].
        drop: share of the chunks that never arrive.
        jitter: greatest deviation of a tick's time [s].
        seed: seed of delays, drops and jitter.
        json: file for the metrics.
    """
    if not 0 <= noise_seeds <= 100:
        raise ConfigError(f"--noise-seeds: expected 0 to 100, got {noise_seeds}.")
    feeding = FeedingConfig(
        chunk_hz=chunk_hz,
        horizon=horizon,
        replan_hz=replan_hz,
        delay=(earliest, latest),
        drop=drop,
        jitter=jitter,
        seed=seed,
    )
    arm = load_robot(robot, urdf)
    for note in arm.notes:
        print(note)
    chosen = choose_cases(arm, files or [], only, noise_seeds)
    methods = {OURS: lambda case: drive(arm, case, feeding_of(case, feeding))} | _peers(arm, peers)
    print(
        f"{machine()}\n{len(chosen)} cases, {len(methods)} methods, chunks of {horizon} s, {chunk_hz} poses/s, "
        f"{replan_hz} chunks/s; noisy ones 10 poses/s, 2 chunks/s",
        flush=True,
    )
    evaluations = list(_evaluated(arm, chosen, methods))
    print("\n".join(group_rows(evaluations)))
    if cases:
        print("\n".join(case_rows(evaluations)))
    ours = [e for e in evaluations if e.method == OURS]
    faults = [f"{e.case}: {fault}" for e in ours for fault in broken(e)]
    shortfalls = missed(ours)
    for shortfall in shortfalls[:MAX_SHORTFALLS]:
        print(f"short of the mark: {shortfall}")
    if len(shortfalls) > MAX_SHORTFALLS:
        print(f"short of the mark: {len(shortfalls) - MAX_SHORTFALLS} more, see --json")
    for fault in faults:
        print(f"broken: {fault}", file=sys.stderr)
    if json is not None:
        write_json(json, _metrics(arm, feeding, evaluations, faults, shortfalls))
    return 1 if faults else 0


def _metrics(
    robot: RobotModel,
    feeding: FeedingConfig,
    evaluations: Sequence[Evaluation],
    faults: Sequence[str],
    shortfalls: Sequence[str],
) -> dict[str, object]:
    """Return what the JSON file holds: the metrics of each run, and how they were made."""
    return {
        "machine": machine(),
        "versions": versions(),
        "robot": robot.name,
        "feeding": asdict(feeding),
        "samples": dict(sum((Counter({e.method: e.ticks}) for e in evaluations), Counter[str]())),
        "cases": [asdict(e) for e in evaluations],
        "broken": list(faults),
        "short": list(shortfalls),
    }


def choose_cases(
    robot: RobotModel, files: Sequence[Path], only: str, noise_seeds: int, *, count: int = NUM_SMOOTH
) -> list[TrackingCase]:
    """Return the cases of the files, or the built-in ones, `count` of each kind, noisy copies of the smooth ones last.

    Raises:
        ConfigError: a case for another number of joints, or no case of that name.
        DataError: a file that cannot be used.
    """
    found = [case for file in files for case in load_cases(file)] if files else built_in_cases(robot, count)
    if not found:
        raise ConfigError(
            f"no built-in motion fits {robot.name} around its home {robot.home.round(2).tolist()} within its limits "
            "and clear of itself; give another home= (--urdf.home), looser limits, or a file of motions (--file)."
        )
    for case in found:
        if len(case.q0) != robot.num_joints:
            raise ConfigError(
                f"{case.name}: expected {robot.num_joints} joints as {robot.name} has, got {len(case.q0)}; "
                "name the right --robot."
            )
    found += noisy_cases(found, noise_seeds)
    words = [word.strip() for word in only.split(",") if word.strip()]
    chosen = [case for case in found if not words or any(word in case.name for word in words)]
    if not chosen:
        raise ConfigError(f"no case is called like '{only}'; expected one of {', '.join(c.name for c in found)}.")
    return chosen


def _peers(robot: RobotModel, names: str) -> dict[str, Method]:
    """Return the installed ones of the named peers; print what is missing for the others."""
    methods: dict[str, Method] = {}
    for name in [word.strip() for word in names.split(",") if word.strip()]:
        try:
            variants = make_peers(name, robot)
        except EnvironmentMissing as error:
            print(error)
            continue
        methods |= {peer.name: _following(peer) for peer in variants}
    return methods


def _following(peer: Peer) -> Method:
    return lambda case: follow(peer, case)


def _evaluated(robot: RobotModel, cases: Sequence[TrackingCase], methods: dict[str, Method]) -> Iterator[Evaluation]:
    """Run the methods case by case, each time beginning with another one."""
    names = list(methods)
    with tqdm(total=len(cases) * len(names), unit="run", disable=None, leave=False) as bar:
        for number, case in enumerate(cases):
            demand: Demand | None = demand_of(robot, case) if case.group == "hard" else None
            first, found = number % len(names), dict[str, Evaluation]()
            for name in names[first:] + names[:first]:
                bar.set_description(f"{case.name}, {name}")
                found[name] = evaluate(robot, case, methods[name](case), name, demand)
                bar.update()
            yield from (found[name] for name in names)


def machine() -> str:
    """Describe this machine: processor, cores, load, and the versions that matter."""
    return (
        f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, "
        f"python {platform.python_version()}, "
        + ", ".join(f"{name} {number}" for name, number in versions().items() if number != "missing")
    )


def versions() -> dict[str, str]:
    """Return the versions of the packages that the metrics depend on, `missing` where one is not installed."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "missing"
    return found
