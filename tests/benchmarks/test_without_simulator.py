"""Without pybullet everything but the simulator can be imported, and the simulator says what is missing."""

from __future__ import annotations

import subprocess
import sys

CODE = """
import sys
sys.modules["pybullet"] = None  # what importing an absent package does
import gr2.benchmarks.imagine.run, gr2.benchmarks.wbc.track, gr2.benchmarks.report.page, gr2.cli.main as cli
from gr2.errors import EnvironmentMissing
import gr2
try:
    gr2.PlayTable("D")
except EnvironmentMissing as error:
    print(error)
raise SystemExit(cli.main(["rollout", "--policy", "scripted"]))
"""


def test_what_needs_no_simulator_runs_without_pybullet() -> None:
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, timeout=300)
    assert done.returncode == 1, done.stderr
    for printed in (done.stdout, done.stderr):
        assert "the simulator needs pybullet, which is not installed" in printed
    assert "Traceback" not in done.stderr
