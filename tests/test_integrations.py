"""Plug-ins of other projects in `integrations/`: their layout, and the simulator's process, without those projects."""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from gr2.benchmarks.calvin.task_environment import TaskEnvironment
from gr2.benchmarks.playtable.cameras import CameraConfig

ROOT = Path(__file__).resolve().parents[1]
LEROBOT = ROOT / "integrations" / "lerobot"
PREFIXES = ("lerobot_policy_", "lerobot_env_", "lerobot_robot_", "lerobot_camera_", "lerobot_teleoperator_")
PLUGINS = sorted(path.parent for path in LEROBOT.glob("*/pyproject.toml"))
FILES = sorted(file for plugin in PLUGINS for file in plugin.rglob("*.py"))


def module_of(file: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_there_are_plugins():
    assert [plugin.name for plugin in PLUGINS] == ["lerobot_env_gr2", "lerobot_policy_gr2"]


@pytest.mark.parametrize("plugin", PLUGINS, ids=lambda plugin: plugin.name)
def test_a_plugin_is_named_as_lerobot_looks_for_it(plugin):
    """LeRobot imports the module that is named like the metadata; pip would take dashes too, LeRobot does not."""
    tomllib = pytest.importorskip("tomllib", reason="tomllib comes with Python 3.11")
    stated = tomllib.loads((plugin / "pyproject.toml").read_text(encoding="utf-8"))
    project = stated["project"]
    assert project["name"] == plugin.name and plugin.name.startswith(PREFIXES)
    assert stated["tool"]["setuptools"]["packages"] == [plugin.name]
    assert (plugin / plugin.name / "__init__.py").is_file()
    assert (plugin / project["readme"]).is_file() and list((plugin / "tests").glob("test_*.py"))
    assert {name.split(">")[0] for name in project["dependencies"]} == {"gr2", "lerobot"}


def test_the_policy_has_the_names_that_lerobot_derives():
    folder = LEROBOT / "lerobot_policy_gr2" / "lerobot_policy_gr2"
    trees = {
        name: ast.parse((folder / f"{name}_gr2.py").read_text()) for name in ("configuration", "modeling", "processor")
    }
    (config,) = [node for node in trees["configuration"].body if isinstance(node, ast.ClassDef)]
    assert config.name == "GR2Config"
    assert "PreTrainedConfig.register_subclass('gr2')" in [ast.unparse(d) for d in config.decorator_list]
    (policy,) = [node for node in trees["modeling"].body if isinstance(node, ast.ClassDef)]
    assert policy.name == "GR2Policy"
    stated = {ast.unparse(node) for node in policy.body if isinstance(node, ast.Assign)}
    assert {"config_class = GR2Config", "name = 'gr2'"} <= stated
    functions = [node.name for node in trees["processor"].body if isinstance(node, ast.FunctionDef)]
    assert "make_gr2_pre_post_processors" in functions


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_modules_are_described_and_short(file):
    tree = ast.parse(file.read_text(encoding="utf-8"))
    assert ast.get_docstring(tree), f"{file}: begins without a docstring"
    if "tests" in file.parts:
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
            assert ast.get_docstring(node), f"{file.name}:{node.lineno} {node.name}: no docstring"
            assert (node.end_lineno or node.lineno) - node.lineno < 80, f"{file.name}: {node.name} is long"


def test_the_simulators_process_answers_as_the_simulator_does():
    folder = LEROBOT / "lerobot_env_gr2" / "lerobot_env_gr2"
    worker = module_of(folder / "worker.py")
    options = {"task": "open_drawer", "image_size": 16, "episode_length": 2}
    calls = [
        {"call": "reset", "seed": 3},
        {"call": "step", "action": [0.5, 0, 0.5, 1.0, 0, 0, 0, 1.0]},
        {"call": "step", "action": [0.5, 0, 0.5, 0, 0, 0, 0, 1.0]},
    ]
    command = [sys.executable, str(folder / "worker.py"), json.dumps(options)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write("".join(f"{json.dumps(call)}\n" for call in calls).encode())
    process.stdin.close()
    (_, start), (step, _), (refused, _) = (worker.receive(process.stdout) for _ in calls)
    with pytest.raises(EOFError):
        worker.receive(process.stdout)
    assert process.wait(timeout=60) == 0
    process.stdout.close()

    environment = TaskEnvironment("open_drawer", camera=CameraConfig(static_px=16, gripper_px=16), images=False)
    environment.reset(seed=3)
    seen = environment.world.observe("")
    np.testing.assert_array_equal(start["agent_pos"], seen.state_vector())
    np.testing.assert_array_equal(start["pixels/static"], seen.images["static"])
    environment.close()
    assert (step["terminated"], step["truncated"], step["info"]) == (False, False, {"is_success": False})
    assert "expected a quaternion" in refused["error"]


@pytest.mark.nightly
@pytest.mark.parametrize("plugin", PLUGINS, ids=lambda plugin: plugin.name)
def test_the_plugins_own_tests_pass_under_lerobot(plugin):
    python = os.environ.get("GR2_LEROBOT_PYTHON")
    if not python:
        pytest.skip("GR2_LEROBOT_PYTHON names no Python with lerobot, gr2 and the plug-ins")
    environment = {**os.environ, "GR2_SIMULATOR_PYTHON": sys.executable}
    command = [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(plugin / "tests")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
