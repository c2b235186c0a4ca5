"""Build the wheel, install it beside each promised Python that is on this machine, and run the chain in miniature.

python tests/smoke.py 3.10 3.12        (make smoke; from the network: about 90 s and 6 GB for each, removed after)
python tests/smoke.py --here           what runs in each: the installed gr2, with the Python that runs this
"""

from __future__ import annotations

import contextlib
import importlib
import io
import shutil
import subprocess
import sys
import tempfile
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("cli", "gr_model", "tokenizers", "data_pipeline", "cvae_head", "wbc", "benchmarks")
PROMISED = ("3.10", "3.11", "3.12", "3.13")
OPTIONAL = {"coal", "mediapipe", "mink", "pink", "pinocchio", "ray", "torchcodec", "transformers"}
"""Packages of extras, which the wheel alone does not install."""

WITH_SIMULATOR = sys.version_info < (3, 12)


def import_all() -> int:
    """Import every module; what needs an absent extra, or the simulator where it has no wheels, is left out."""
    import gr2

    absent = OPTIONAL if WITH_SIMULATOR else OPTIONAL | {"pybullet"}
    count = 0
    root = Path(gr2.__path__[0])
    files = [*root.glob("*.py"), *(file for folder in FOLDERS for file in (root / folder).rglob("*.py"))]
    for file in files:
        name = ".".join(("gr2", *file.relative_to(root).with_suffix("").parts)).removesuffix(".__init__")
        try:
            importlib.import_module(name)
            count += 1
        except ModuleNotFoundError as error:
            if (error.name or "").split(".")[0] not in absent:
                raise
    return count


def run(*words: object, status: int = 0) -> str:
    """Run a command of `gr2` in this process; return what it writes to standard error."""
    from gr2.cli.main import main

    errors = io.StringIO()
    print("gr2", *words)
    with contextlib.redirect_stderr(errors):
        got = main([str(word) for word in words])
    assert got == status, f"gr2 {words[0]}: expected the exit status {status}, got {got}: {errors.getvalue()[-2000:]}"
    return errors.getvalue()


def write_videos(folder: Path) -> None:
    """Write six short captioned videos of a square that moves."""
    import av
    import numpy as np

    folder.mkdir(parents=True)
    for number in range(6):
        with av.open(str(folder / f"push_the_block_{number}.mp4"), "w") as container:
            stream = container.add_stream("mpeg4", rate=10)
            stream.width = stream.height = 64
            stream.pix_fmt = "yuv420p"
            for time in range(24):
                image = np.full((64, 64, 3), 30 * number, np.uint8)
                image[20:36, 2 * time : 2 * time + 12] = (200, 40, 40)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
            container.mux(stream.encode(None))


def ask_a_server() -> None:
    """Ask a server of the shipped policy what it is."""
    from gr2.gr_model.act.opening import policy_maker
    from gr2.gr_model.serve.http_server import PolicyHTTPServer
    from gr2.gr_model.serve.sessions import PolicyServer

    policies = PolicyServer(policy_maker("pretrained"))
    with contextlib.closing(policies), PolicyHTTPServer("127.0.0.1", 0) as server:
        threading.Thread(target=server.serve, args=(policies, "pretrained"), daemon=True).start()
        with urllib.request.urlopen(f"http://127.0.0.1:{server.server_address[1]}/info", timeout=30) as answer:
            assert b"executed_steps" in answer.read()
        server.shutdown()


def smoke(folder: Path) -> None:
    """Run data, training, imagining, serving and control; the simulator runs, or says what is missing."""
    import numpy as np

    import gr2

    print(f"Python {sys.version.split()[0]}: {import_all()} modules imported")
    write_videos(folder / "videos")
    run("data", "shards", "--source", folder / "videos", "--out", folder / "shards", "--filters.min-motion", 0)
    run("data", "tokens", "--shards", folder / "shards", "--out", folder / "tokens")
    words = ("--steps", 2, "--batch-size", 2, "--device", "cpu")
    run("pretrain", "--tokens", f'["{folder}/tokens"]', "--out", folder / "pretrain", *words)
    image = folder / "image.png"
    from PIL import Image

    Image.fromarray(np.full((64, 64, 3), 90, np.uint8)).save(image)
    run("imagine", "--policy", folder / "pretrain", "--image", image, "--out", folder / "imagined", "--num-frames", 1)
    ask_a_server()
    controller = gr2.WholeBodyController(gr2.load_robot("kinova_gen3"))
    assert controller is not None
    if WITH_SIMULATOR:
        table = gr2.PlayTable("D")
        table.reset(seed=0)
        gr2.load_policy("pretrained").act(table.observe("open the drawer"))
        table.close()
    else:
        assert "needs pybullet" in run("rollout", "--policy", "pretrained", status=1)
    print("done")


def build_wheel(out: Path) -> Path:
    """Build the wheel from the files that git knows."""
    source = out / "gr2"
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout
    for name in filter(None, listed.decode().split("\0")):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, source / name)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(out), str(source)]
    subprocess.run(command, check=True)
    return next(out.glob("gr2-*.whl"))


@contextlib.contextmanager
def environment(version: str, wheel: Path, out: Path) -> Iterator[Path]:
    """Yield the Python of a new environment with the wheel and all that it requires; remove it afterwards."""
    home = out / f"python{version}"
    try:
        subprocess.run([f"python{version}", "-m", "venv", str(home)], check=True)
        python = home / "bin" / "python"
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", "--no-compile", str(wheel)], check=True)
        yield python
    finally:
        shutil.rmtree(home, ignore_errors=True)


def main(words: list[str]) -> int:
    """Run here, or in an environment of each version that is named and found; return the number of failures."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if words == ["--here"]:
            smoke(folder)
            return 0
        versions = [v for v in words or PROMISED if shutil.which(f"python{v}")]
        print(f"not on this machine: {', '.join(sorted({*(words or PROMISED)} - {*versions})) or 'none'}")
        wheel, failed = build_wheel(folder), 0
        for version in versions:
            with environment(version, wheel, folder) as python:
                failed += bool(subprocess.run([str(python), __file__, "--here"], cwd=folder).returncode)
        print(f"{len(versions) - failed} of {len(versions)} versions pass")
        return failed or not versions


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
