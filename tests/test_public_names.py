"""What `import gr2` offers: each name loads when asked for, nothing heavy before, and the README's example runs."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import gr2

ROOT = Path(__file__).resolve().parents[1]


def test_dir_shows_exactly_the_public_names() -> None:
    assert sorted(dir(gr2)) == sorted(gr2.__all__)
    assert (ROOT / "py.typed").is_file()


@pytest.mark.parametrize("name", gr2.__all__)
def test_every_public_name_loads(name: str) -> None:
    assert getattr(gr2, name) is not None


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(AttributeError, match="dir\\(gr2\\) lists the public names"):
        gr2.load_polciy  # noqa: B018


def test_importing_gr2_imports_no_torch() -> None:
    code = "import sys, gr2; gr2.__version__; sys.exit(any(m in sys.modules for m in ('torch', 'pybullet', 'scipy')))"
    assert subprocess.run([sys.executable, "-c", code], timeout=120).returncode == 0


def test_the_first_example_of_the_readme_runs() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8").split("## Use it from Python")[1]
    block = re.search(r"(?:^    .*\n|^\n)+", text, re.MULTILINE)
    assert block is not None
    code = "\n".join(line[4:] for line in block[0].splitlines())
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "[" in done.stdout
