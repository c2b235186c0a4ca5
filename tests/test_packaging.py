"""The wheel holds the package `gr2` alone, and the folder `tokenizers` never hides HuggingFace's package."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("cli", "gr_model", "tokenizers", "data_pipeline", "cvae_head", "wbc", "benchmarks")
NOT_COPIED = shutil.ignore_patterns(
    ".git", ".venv", "runs", "build", "dist", "*.egg-info", "__pycache__", ".*_cache", "lightning_logs"
)


def run_python(*argv: str, cwd: Path, path: Path | None = None) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    if path is not None:
        environment["PYTHONPATH"] = str(path)
    return subprocess.run(
        [sys.executable, *argv], cwd=cwd, env=environment, capture_output=True, text=True, timeout=300
    )


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Build the wheel from a copy, with the setuptools that is installed, without the network."""
    source = tmp_path_factory.mktemp("source") / "gr2"
    shutil.copytree(ROOT, source, ignore=NOT_COPIED)
    out = tmp_path_factory.mktemp("wheel")
    options = ("--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", str(out), str(source))
    done = run_python("-m", "pip", "wheel", *options, cwd=out)
    assert done.returncode == 0, done.stderr[-2000:]
    (built,) = out.glob("gr2-*.whl")
    return built


def test_wheel_holds_gr2_alone_and_all_of_it(wheel):
    with zipfile.ZipFile(wheel) as archive:
        members = set(archive.namelist())
        (top_level,) = [m for m in members if m.endswith("top_level.txt")]
        assert archive.read(top_level).decode().split() == ["gr2"]
        (entries,) = [m for m in members if m.endswith("entry_points.txt")]
        assert "gr2 = gr2.cli.main:main" in archive.read(entries).decode()
    packages = {m.split("/")[0] for m in members if ".dist-info/" not in m}
    assert packages == {"gr2"}
    assert not [
        m for m in members if m.startswith(("gr2/tests", "gr2/docs", "gr2/examples", "gr2/integrations", "gr2/runs"))
    ]
    modules = {f"gr2/{f.relative_to(ROOT)}" for folder in FOLDERS for f in (ROOT / folder).rglob("*.py")}
    modules |= {f"gr2/{f.name}" for f in ROOT.glob("*.py")}
    weights = {f for folder in FOLDERS for f in (ROOT / folder).glob("weights/**/*") if f.is_file()}
    data = {
        f"gr2/{f.relative_to(ROOT)}"
        for f in (*weights, ROOT / "benchmarks" / "calvin" / "sequences.json", ROOT / "py.typed")
    }
    missing = sorted((modules | data) - members)
    assert not missing, f"the wheel lacks {missing}"
    assert any(m.endswith("licenses/LICENSE") for m in members)


def test_installed_wheel_is_the_one_imported(wheel, tmp_path):
    target = tmp_path / "site"
    options = ("--no-deps", "--no-index", "--quiet", "--target", str(target), str(wheel))
    done = run_python("-m", "pip", "install", *options, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    code = "import gr2, gr2.cli.main as c, gr2.wbc.robot.robots as w; print(*(m.__file__ for m in (gr2, c, w)))"
    done = run_python("-c", code, cwd=tmp_path, path=target)
    assert done.returncode == 0, done.stderr[-2000:]
    assert all(Path(file).is_relative_to(target) for file in done.stdout.split())
    assert not (target / "tokenizers").exists()


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_real_package_wins_over_a_folder_of_the_repository(folder, tmp_path):
    (tmp_path / folder).mkdir()
    (tmp_path / folder / "__init__.py").write_text("class Encoding: pass\n")
    code = f"import {folder}; from {folder} import Encoding; print({folder}.__file__)"
    done = run_python("-c", code, cwd=ROOT, path=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    assert Path(done.stdout.strip()) == tmp_path / folder / "__init__.py"


def test_lightning_imports_from_the_repository_root(tmp_path):
    (tmp_path / "tokenizers").mkdir()
    (tmp_path / "tokenizers" / "__init__.py").write_text("class Encoding: pass\n")
    code = "import tokenizers, lightning; print(tokenizers.Encoding.__module__, tokenizers.__file__)"
    done = run_python("-c", code, cwd=ROOT, path=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split() == ["tokenizers", str(tmp_path / "tokenizers" / "__init__.py")]


@pytest.mark.nightly
def test_lightning_imports_beside_the_real_transformers(tmp_path):
    """Install transformers beside this environment (needs the network), import what another layout breaks."""
    done = run_python(
        "-m",
        "pip",
        "install",
        "--quiet",
        "--target",
        str(tmp_path),
        "transformers",
        "--no-warn-conflicts",
        cwd=tmp_path,
    )
    if done.returncode != 0:
        pytest.skip(f"transformers could not be installed here: {done.stderr.strip().splitlines()[-1]}")
    code = (
        "import transformers, tokenizers, torchmetrics, lightning, open_clip, gr2.contracts;"
        "from tokenizers import Encoding; print(tokenizers.__file__)"
    )
    done = run_python("-c", code, cwd=ROOT, path=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    assert Path(done.stdout.strip()).is_relative_to(tmp_path)
