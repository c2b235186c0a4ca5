"""The same bits in a new process, in the official calvin_env where it is installed, and EGL's where it works."""

from __future__ import annotations

import functools
import importlib.util
import json
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gr2.benchmarks.calvin.gallery import images
from gr2.benchmarks.calvin.official import OfficialTable
from gr2.benchmarks.calvin.speed import speed
from gr2.benchmarks.doctor import run_probe
from gr2.benchmarks.playtable.cameras import CameraConfig, Renderer
from gr2.benchmarks.playtable.environment import PlayTable
from gr2.errors import ConfigError, EnvironmentMissing

CALVIN = Path(__file__).resolve().parents[3] / "shared" / "calvin"
needs_calvin = pytest.mark.skipif(not CALVIN.is_dir(), reason="CALVIN's files (../shared/calvin) are absent")
has_official = importlib.util.find_spec("calvin_env") is not None


@functools.cache
def egl_works() -> bool:
    """Ask in a process of its own: a driver that fails may end it."""
    return all(finding.state == "ok" for finding in run_probe("egl", limit_s=60))


def run_apart(code: str, *arguments: str) -> object:
    """Run code in a new process and return what it prints last, as JSON."""
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
    return json.loads([line for line in done.stdout.splitlines() if line.startswith("JSON")][-1][4:])


_ROLLOUT = """
import hashlib, sys
import numpy as np
from pathlib import Path
from gr2.benchmarks.playtable.cameras import CameraConfig
from gr2.benchmarks.playtable.environment import PlayTable
from gr2.benchmarks.playtable.sampling import sample_scene
root = Path(sys.argv[1]) if sys.argv[1] else None
env = PlayTable("C", camera=CameraConfig(static_px=32, gripper_px=32), calvin_root=root)
rng = np.random.default_rng(5)
scene_obs = sample_scene(env.spec_scene, rng)
actions = np.concatenate([rng.uniform(-1, 1, (40, 3)) - [0, 0, 0.4], 0.2 * rng.uniform(-1, 1, (40, 3))], axis=1)
actions = np.concatenate([actions, rng.choice([-1.0, 1.0], (40, 1))], axis=1)
digests = []
for _ in range(int(sys.argv[2])):
    digest = hashlib.sha256()
    seen, _ = env.reset(seed=1, options={"scene_obs": scene_obs})
    for action in actions:
        for name in sorted(seen):
            digest.update(np.ascontiguousarray(seen[name]).tobytes())
        seen, *_ = env.step(action)
    digests.append(digest.hexdigest())
print("JSON" + __import__("json").dumps(digests))
"""


@pytest.mark.parametrize("root", ["", pytest.param(str(CALVIN), marks=needs_calvin)], ids=["built-in", "calvin"])
def test_a_new_process_and_a_second_reset_see_the_same_bits(root: str) -> None:
    twice = run_apart(_ROLLOUT, root, "2")
    once = run_apart(_ROLLOUT, root, "1")
    assert isinstance(twice, list) and isinstance(once, list)
    assert {*twice, *once} == {once[0]}


_EGL_FRAMES = """
import json, sys
import numpy as np
from pathlib import Path
from gr2.benchmarks.playtable.cameras import CameraConfig
from gr2.benchmarks.playtable.environment import PlayTable
root, differences = Path(sys.argv[1]), []
env = PlayTable("D", calvin_root=root, camera=CameraConfig(renderer="egl"), render_mode=None)
for number in (5, 189, 281, 603):
    split = "training" if number < 557 else "validation"
    with np.load(root / "mini_dataset" / split / f"episode_{number:07d}.npz", allow_pickle=False) as frame:
        env.reset(options={"robot_obs": frame["robot_obs"], "scene_obs": frame["scene_obs"]})
        differences.append(float(np.abs(env.draw("static").astype(float) - frame["rgb_static"]).mean()))
print("\\nJSON" + json.dumps(differences))
"""


@needs_calvin
def test_egl_draws_the_images_of_the_dataset_from_the_first_one_on() -> None:
    if not egl_works():
        pytest.skip("EGL is not available here (gr2 doctor)")
    differences = run_apart(_EGL_FRAMES, str(CALVIN))
    assert isinstance(differences, list) and max(differences) < 0.1  # of 255 gray levels


@pytest.mark.skipif(not has_official, reason="calvin_env is not installed (docs/calvin.md)")
@needs_calvin
@pytest.mark.parametrize("letter", ["A", "B", "C", "D"])
@pytest.mark.parametrize("renderer", ["tiny", "egl"])
def test_the_official_simulator_moves_and_draws_the_same_bits(letter: str, renderer: Renderer) -> None:
    if renderer == "egl" and not egl_works():
        pytest.skip("EGL is not available here (gr2 doctor)")
    with np.load(CALVIN / "golden" / "rollouts" / f"rollout_{letter}.npz", allow_pickle=False) as file:
        actions = file["rel_actions"][:120]
        start = {"robot_obs": file["neutral_robot_obs"], "scene_obs": file["initial_scene_obs"]}
    camera = CameraConfig(renderer=renderer)
    worlds = [
        OfficialTable(letter, camera=camera),
        PlayTable(letter, calvin_root=CALVIN, camera=camera, render_mode=None),
    ]
    for world in worlds:
        world.reset(options=start)
    for step, action in enumerate(actions):
        seen = [world.observe("", images=step % 12 == 0) for world in worlds]
        for name in seen[0].images:
            assert np.array_equal(seen[0].images[name], seen[1].images[name]), (step, name)
        assert np.array_equal(seen[0].tool_quaternion, seen[1].tool_quaternion)
        for world, one in zip(worlds, seen, strict=True):
            world.step_pose(world.robot_obs()[:3] + 0.02 * action[:3], one.tool_quaternion, float(action[6] > 0))
        theirs, ours = (np.concatenate([world.robot_obs(), world.scene_obs()]) for world in worlds)
        assert np.array_equal(theirs, ours), step
    for world in worlds:
        world.close()


def test_without_calvin_env_the_way_to_install_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "calvin_env", None)
    with pytest.raises(EnvironmentMissing, match=r"docs/calvin\.md"):
        OfficialTable("D")


def test_the_folder_of_the_clone_is_not_taken_for_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("calvin_env", "calvin_env.envs", "calvin_env.envs.play_table_env"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    with pytest.raises(EnvironmentMissing, match="start from another folder"):
        OfficialTable("D")


def test_the_gallery_shows_four_scenes(tmp_path: Path) -> None:
    assert images(image=tmp_path / "sheets" / "scenes.png") == 0
    sheet = np.asarray(Image.open(tmp_path / "sheets" / "scenes.png"))
    rows = sheet[22:].reshape(4, 204, *sheet.shape[1:])[:, :200]
    assert rows.shape[2] == 404 and rows.std(axis=(1, 2)).min() > 10
    assert np.abs(np.diff(rows.mean(axis=(1, 2)), axis=0)).max(axis=1).min() > 3  # no scene twice


def test_a_gallery_of_another_format_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"ends in \.png or \.webp, got '\.gif'"):
        images(image=tmp_path / "scenes.gif")
    assert not list(tmp_path.iterdir())


def test_a_speed_of_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match="at least one sequence, round and worker"):
        speed(sequences=0)
