"""The examples of docs/extend.md run as they stand, each in an empty folder, and stay short."""

from __future__ import annotations

import json
import re
import runpy
from pathlib import Path

import numpy as np
import pytest

import gr2
from gr2.gr_model.act.opening import open_policy

PAGE = (Path(__file__).resolve().parents[1] / "docs" / "extend.md").read_text(encoding="utf-8")
MAX_LINES = 40


def examples() -> dict[str, str]:
    """Return the code of each example under its heading and number."""
    found: dict[str, str] = {}
    for section in PAGE.split("\n## ")[1:]:
        for code in re.findall(r"^```python\n(.*?)^```$", section, re.MULTILINE | re.DOTALL):
            found[f"{section.partition(chr(10))[0]} {len(found)}"] = code
    return found


EXAMPLES = examples()


def test_the_page_has_an_example_of_everything() -> None:
    sections = [name.rpartition(" ")[0] for name in EXAMPLES]
    assert sections == ["A head", "A policy", "A robot", "A robot", "A simulator", "A dataset"]
    assert PAGE.count("```") == 2 * len(EXAMPLES), "a block was not read"


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_is_short_and_can_fail(name: str) -> None:
    lines = [line for line in EXAMPLES[name].splitlines() if line.strip()]
    assert len(lines) < MAX_LINES, f"expected fewer than {MAX_LINES} lines of code, got {len(lines)}"
    assert any(line.strip().startswith("assert ") for line in lines)


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "example.py"
    file.write_text(EXAMPLES[name], encoding="utf-8")
    runpy.run_path(str(file), run_name="__main__")


def test_the_policy_is_found_by_its_file(tmp_path: Path) -> None:
    (code,) = [code for name, code in EXAMPLES.items() if name.startswith("A policy")]
    file = tmp_path / "lift.py"
    file.write_text(code, encoding="utf-8")
    policy = open_policy(f"{file}:Lift")
    observation = gr2.Observation(
        images={}, tool_position=np.zeros(3), tool_quaternion=np.array([0.0, 0.0, 0.0, 1.0]), instruction="", time=0.0
    )
    answer = policy.act(observation)
    assert isinstance(answer, gr2.ActionTrajectory)
    assert policy.executed_steps == 10
    assert answer.positions[-1, 2] == pytest.approx(0.05)


NOTEBOOKS = sorted((Path(__file__).resolve().parents[1] / "examples" / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda file: file.stem)
def test_a_notebook_holds_code_alone(file: Path) -> None:
    notebook = json.loads(file.read_text(encoding="utf-8"))
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert code and not any(cell["outputs"] or cell["execution_count"] for cell in code), "clear its outputs"
    for cell in code:
        lines = "".join(cell["source"]).splitlines()
        compile("\n".join(line for line in lines if not line.startswith("!")), str(file), "exec")
    gone = [
        name for name in re.findall(r"\((\.\./\.\./[^)]+)\)", json.dumps(notebook)) if not (file.parent / name).exists()
    ]
    assert not gone


@pytest.mark.nightly
@pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda file: file.stem)
def test_a_notebook_runs(file: Path) -> None:
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    nbclient.NotebookClient(nbformat.read(file, 4), timeout=1200, kernel_name="python3").execute()
