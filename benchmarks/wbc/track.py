"""`gr2 wbc track`: follow one motion with any arm, print the metrics, write a video and a page of plots."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from ...data_pipeline.files import write_bytes
from ...wbc.robot.catalog import load_robot
from ...wbc.robot.urdf_reader import AS_IN_FILE, UrdfOptions
from .built_in import NUM_SMOOTH
from .feeding import FeedingConfig, drive, feeding_of
from .metrics import broken, evaluate
from .plots import plot_page
from .run import OURS, choose_cases
from .tables import case_rows
from .video import write_tracking_video


def track(
    *,
    file: Path | None = None,
    robot: str = "kinova_gen3",
    urdf: UrdfOptions = AS_IN_FILE,
    case: str = "",
    view: bool = False,
    out: Path = Path("runs/wbc_track"),
    chunk_hz: float = 20.0,
    horizon: float = 1.0,
    replan_hz: float = 5.0,
) -> int:
    """Follow one motion and print its metrics; with --view write a video and a page of plots and print where.

    The status is 1 where a limit or a distance was broken.

    Args:
        file: .npz file of motions, see benchmarks/wbc/trajectories.py; the built-in motions where none is given.
        robot: kinova_gen3, panda, or the path of a .urdf file.
        urdf: how a .urdf file is read.
        case: name of the motion, or a part of it; the first one where none is given.
        view: Write the video and the plots.
        out: folder for them.
        chunk_hz: poses a second in a chunk.
        horizon: duration of a chunk [s].
        replan_hz: chunks a second.
    """
    arm = load_robot(robot, urdf)
    for note in arm.notes:
        print(note)
    files, count = [] if file is None else [file], NUM_SMOOTH if case else 1
    candidates = choose_cases(arm, files, case, noise_seeds=1 if case else 0, count=count)
    chosen = next((one for one in candidates if one.name == case), candidates[0])
    feeding = FeedingConfig(chunk_hz=chunk_hz, horizon=horizon, replan_hz=replan_hz)
    run = drive(arm, chosen, feeding_of(chosen, feeding))
    evaluation = evaluate(arm, chosen, run, OURS)
    print("\n".join(case_rows([evaluation])[1:]))
    if view:
        stem = re.sub(r"[^A-Za-z0-9_-]+", "_", chosen.name)
        plots, video = out / f"{stem}.svg", out / f"{stem}.mp4"
        write_bytes(plots, plot_page(arm, chosen, run, evaluation).encode())
        write_tracking_video(video, arm, chosen, run)
        print(f"plots: {plots}\nvideo: {video}")
    faults = broken(evaluation)
    for fault in faults:
        print(f"broken: {chosen.name}: {fault}", file=sys.stderr)
    return 1 if faults else 0
