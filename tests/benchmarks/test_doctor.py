"""The doctor finds what is there, names what is missing and how to fix it, and survives broken libraries."""

from __future__ import annotations

import json
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest

from gr2.benchmarks import doctor as module
from gr2.benchmarks.doctor import Finding, check_packages, check_python, doctor, run_probe
from gr2.benchmarks.doctor_probes import CHECKS, PROBES

REAL_RUN = module.subprocess.run


def by_name(findings: list[Finding]) -> dict[str, Finding]:
    return {finding.name: finding for finding in findings}


def replace_probe(monkeypatch: pytest.MonkeyPatch, program: str) -> None:
    """Let every probe run a small Python program in place of the real one."""

    def run(command: list[str], **options: object) -> object:
        return REAL_RUN([sys.executable, "-c", program], **options)

    monkeypatch.setattr(module.subprocess, "run", run)


def test_every_probe_has_checks_and_every_check_a_remedy() -> None:
    assert PROBES.keys() == CHECKS.keys()
    checks = [check for names in CHECKS.values() for check in names]
    assert set(checks) == module.REMEDIES.keys() and len(set(checks)) == len(checks)


def test_video_and_simulator_work_here() -> None:
    for probe in ("video", "simulator"):
        for finding in run_probe(probe, limit_s=60):
            assert finding.state == "ok" and finding.detail and not finding.fix, finding


def test_packages_are_found_missing_or_too_old() -> None:
    found = by_name(check_packages())
    assert found["numpy"].state == "ok" and found["numpy"].detail == version("numpy")
    assert "pytest" not in found

    def pretend(name: str) -> str:
        if name in ("torch", "decord"):
            raise PackageNotFoundError(name)
        return "0.0.1" if name == "numpy" else version(name)

    found = by_name(check_packages(version_of=pretend))
    assert found["torch"].state == "missing" and 'pip install "torch' in found["torch"].fix
    assert found["decord"].state == "warning"
    assert found["numpy"].state == "missing" and "expected" in found["numpy"].detail


def test_a_python_without_wheels_of_pybullet_lacks_the_simulator_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    line = {"name": "PyBullet software renderer", "state": "failed", "detail": "No module named 'pybullet'"}
    replace_probe(monkeypatch, f"print({json.dumps(line)!r})")

    def pretend(name: str) -> str:
        if name == "pybullet":
            raise PackageNotFoundError(name)
        return version(name)

    (drawing,) = run_probe("simulator", limit_s=60)
    assert drawing.state == "missing"
    monkeypatch.setattr(module, "_wants_pybullet", lambda: False)
    (drawing,) = run_probe("simulator", limit_s=60)
    package = by_name(check_packages(version_of=pretend))["pybullet"]
    for finding in (drawing, package):
        assert finding.state == "warning" and "Python 3.10 or 3.11" in finding.fix


def test_a_crashing_library_is_blamed_and_what_follows_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    line = '{"name": "h264 encoding", "state": "begun", "detail": ""}'
    replace_probe(monkeypatch, f"import os; print('{line}', flush=True); os.abort()")
    first, second, third = run_probe("video", limit_s=20)
    assert first.state == "missing" and "ended with status -6" in first.detail and first.fix
    assert second.detail.startswith("not reached") and third.detail.startswith("not reached")


def test_a_hanging_library_is_stopped_and_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    line = '{"name": "PyBullet EGL renderer", "state": "begun", "detail": ""}'
    replace_probe(monkeypatch, f"import time; print('{line}', flush=True); time.sleep(30)")
    (finding,) = run_probe("egl", limit_s=1)
    assert finding.state == "warning" and finding.detail == "no answer within 1 s"


@pytest.mark.parametrize(("state", "status"), [("ok", 0), ("warning", 0), ("missing", 1)])
def test_exit_status_and_json_tell_the_same(
    state: str,
    status: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    finding = Finding(name="thing", state=state, detail="seen", fix="" if state == "ok" else "do this")
    monkeypatch.setattr(module, "examine", lambda: [check_python(), finding])
    assert doctor(json=tmp_path / "deep" / "found.json") == status
    records = json.loads((tmp_path / "deep" / "found.json").read_text())
    assert records[1] == {"name": "thing", "state": state, "detail": "seen", "fix": finding.fix}
    printed = capsys.readouterr().out
    assert "thing" in printed and ("-> do this" in printed) == (state != "ok")
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["found.json"]
