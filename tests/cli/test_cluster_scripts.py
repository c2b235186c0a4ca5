"""The scripts of examples/cluster call gr2 with options that it has; stand-ins take the place of cluster and gr2."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from gr2.cli.main import COMMANDS, build_parser

SCRIPTS = Path(__file__).parents[2] / "examples/cluster"
NOTES = f"""#!{sys.executable}
import json, os, pathlib, sys
name = pathlib.Path(sys.argv[0]).name
with open(os.environ["NOTES"], "a") as notes:
    notes.write(json.dumps([name, *sys.argv[1:]]) + "\\n")
sys.exit(int(os.environ.get("STATUS", 0)))
"""
RUNS = """#!/bin/bash
while [ "${1#-}" != "$1" ] || [ "$1" = job ] || [ "$1" = submit ]; do
  case $1 in --entrypoint-*) shift;; esac
  shift
done
exec "$@"
"""


def run(folder: Path, script: str, *arguments: str, **variables: str) -> tuple[int, list[list[str]]]:
    """Run a script; return its status and what was called."""
    for name, text in {"gr2": NOTES, "scontrol": NOTES, "srun": RUNS, "ray": RUNS}.items():
        (folder / name).write_text(text)
        (folder / name).chmod(stat.S_IRWXU)
    notes = folder / "notes"
    path = f"{folder}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", SCRIPTS / script, *arguments], env=os.environ | variables | {"PATH": path, "NOTES": str(notes)},
        cwd=folder, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    return done.returncode, [json.loads(line) for line in notes.read_text().splitlines()]


def expect_options(call: list[str]) -> None:
    """Parse a call of gr2 as gr2 does."""
    words = [" ".join(call[1:n]) for n in (4, 3, 2)]
    command = next(c for name in words for c in COMMANDS if c.words == name)
    parser = build_parser(command, command.target())
    known = {option for action in parser._actions for option in action.option_strings}
    options = [word.replace("_", "-") for word in call[1 + len(command.words.split()) :] if word.startswith("--")]
    assert set(options) <= {option.replace("_", "-") for option in known}, (call, known)


def test_tokens_are_made_in_parts(tmp_path: Path) -> None:
    status, calls = run(
        tmp_path, "tokens.sbatch", SOURCE="videos", OUT="out", SLURM_ARRAY_TASK_ID="3", SLURM_ARRAY_TASK_COUNT="8"
    )
    assert status == 0 and [call[1:3] for call in calls] == [["data", "shards"], ["data", "curate"], ["data", "tokens"]]
    assert "3/8" in calls[0] and "out/tokens/3" in calls[2]
    for call in calls:
        expect_options(call)


@pytest.mark.parametrize("status", [0, 1, 75])
def test_a_preempted_training_goes_back_into_the_queue(tmp_path: Path, status: int) -> None:
    ended, calls = run(
        tmp_path, "train.sbatch", "pretrain", "--tokens", "t", "--out", "o", STATUS=str(status), SLURM_NNODES="2",
        SLURM_NTASKS_PER_NODE="4", SLURM_JOB_ID="7",
    )  # fmt: skip
    assert ended == status and calls[0][-4:] == ["--num-nodes", "2", "--devices", "4"]
    assert calls[1:] == ([["scontrol", "requeue", "7"]] if status == 75 else [])
    expect_options(calls[0])


def test_an_evaluation_runs_in_parts(tmp_path: Path) -> None:
    status, calls = run(
        tmp_path, "evaluate.sbatch", "eval", "--policy", "p", SLURM_ARRAY_TASK_ID="2", SLURM_ARRAY_TASK_COUNT="4"
    )
    assert status == 0 and "eval/part-2" in calls[0] and "2/4" in calls[0]
    expect_options(calls[0])


def test_jobs_of_ray(tmp_path: Path) -> None:
    for part in (1, 2):
        (tmp_path / f"out/calvin/part-{part}").mkdir(parents=True)
        (tmp_path / f"out/calvin/part-{part}/episodes.jsonl").write_text(f"{part}\n")
    status, calls = run(tmp_path, "ray_jobs.sh", SOURCE="videos", OUT="out", PARTS="2", POLICY="p", GPUS="4")
    assert status == 0 and len(calls) == 7
    assert [call[1] for call in calls] == ["data", "data", "data", "pretrain", "benchmark", "benchmark", "benchmark"]
    for call in calls:
        expect_options(call)
    assert (tmp_path / "out/calvin/all/episodes.jsonl").read_text() == "1\n2\n"
