"""gr2's CALVIN as a benchmark of vla-eval: its conventions, the official starts, and that it is imported late."""

from __future__ import annotations

import sys
import types
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from gr2.benchmarks.calvin import vla_eval as ours
from gr2.benchmarks.calvin.sequences import initial_scene, official_sequences
from gr2.benchmarks.demonstrations.expert_motion import ExpertStyle
from gr2.benchmarks.demonstrations.experts import act
from gr2.errors import ConfigError, EnvironmentMissing, PolicyError


class Benchmark(ABC):
    @abstractmethod
    def get_tasks(self) -> Any: ...

    @abstractmethod
    def reset(self, task: Any) -> Any: ...

    @abstractmethod
    def step(self, action: Any) -> Any: ...

    @abstractmethod
    def make_obs(self, raw_obs: Any, task: Any) -> Any: ...

    @abstractmethod
    def get_step_result(self, step_result: Any) -> Any: ...


@dataclass
class StepResult:
    obs: Any
    reward: float
    done: bool
    info: Any


class Recorder:
    def record_step(self, **fields: Any) -> None: ...

    def record_video(self, frame: Any) -> None: ...


@pytest.fixture
def benchmark_class(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """vla-eval's part that the class stands on."""
    package, benchmarks, base = (
        types.ModuleType(f"vla_eval{name}") for name in ("", ".benchmarks", ".benchmarks.base")
    )
    package.__path__ = benchmarks.__path__ = []  # type: ignore[attr-defined]
    base.StepBenchmark, base.StepResult = Benchmark, StepResult  # type: ignore[attr-defined]
    for module in (package, benchmarks, base):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    ours._benchmark_class.cache_clear()
    yield ours.CalvinBenchmark
    ours._benchmark_class.cache_clear()


def opened(benchmark_class: Any, **options: Any) -> Any:
    benchmark = benchmark_class(num_sequences=3, send_state=True, send_wrist_image=True, **options)
    benchmark._recorder = Recorder()
    return benchmark


def test_sequences_start_officially_and_observations_are_vla_evals(benchmark_class: Any) -> None:
    benchmark = opened(benchmark_class)
    tasks = benchmark.get_tasks()
    assert [task["name"] for task in tasks] == ["seq_0000", "seq_0001", "seq_0002"]
    benchmark.reset(tasks[2])
    sequence = official_sequences()[2]
    wanted = initial_scene(dict(sequence.initial_state))
    assert np.abs(benchmark.chain.world.scene_obs() - wanted)[:18].max() < 5e-3, "one physics step later"
    observation = benchmark.make_obs(None, tasks[2])
    assert {n: i.shape for n, i in observation["images"].items()} == {
        "rgb_static": (200, 200, 3), "rgb_gripper": (200, 200, 3)
    }  # fmt: skip
    seen = benchmark.chain.world.robot_obs()
    assert observation["states"].dtype == np.float32 and np.allclose(observation["states"], [*seen[:7], seen[14]])
    assert observation["task_description"] and "episode_restart" not in observation
    assert benchmark.get_metadata() == {"max_steps": 1800}
    benchmark.cleanup()


def drive(benchmark: Any, task: dict[str, Any], *, limit: int) -> list[Any]:
    """Let the scripted expert do the first task of a sequence in the benchmark's terms; return the results."""
    benchmark.reset(task)
    chain, world, results = benchmark.chain, benchmark.chain.world, []
    for _ in range(limit):
        position, quaternion, gripper = act(world.task, world.world_state(), world.spec_scene, ExpertStyle())
        turn = Rotation.from_quat(quaternion)
        if chain.absolute:
            values = [*position, *turn.as_rotvec(), -1.0 if gripper > 0.5 else 1.0]
        else:
            euler = turn.as_euler("xyz") - chain._commanded[3:]
            values = [*(position - chain._commanded[:3]), *((euler + np.pi) % (2 * np.pi) - np.pi)]
            values += [1.0 if gripper > 0.5 else -1.0]
        results.append(benchmark.step({"actions": np.array(values)}))
        if chain.completed or results[-1].done:
            break
    return results


@pytest.mark.parametrize("absolute", [True, False])
def test_the_expert_does_a_task_in_both_modes(benchmark_class: Any, absolute: bool) -> None:
    benchmark = opened(benchmark_class, absolute_action=absolute)
    task = benchmark.get_tasks()[0]
    results = drive(benchmark, task, limit=200)
    assert results[-1].reward == 1 and results[-1].info == {"success": False, "completed": 1} and not results[-1].done
    assert benchmark.get_step_result(results[-1]) == {"success": False, "completed_subtasks": 1}
    following = benchmark.make_obs(None, task)
    assert following["episode_restart"] is True and "episode_restart" not in benchmark.make_obs(None, task)
    assert np.array_equal(benchmark.chain._commanded, benchmark.chain.world.robot_obs()[:6])
    benchmark.cleanup()


def test_time_runs_out_and_mistakes_are_sentences(benchmark_class: Any) -> None:
    benchmark = opened(benchmark_class, ep_len=2)
    benchmark.reset(benchmark.get_tasks()[0])
    assert not benchmark.step({"action": [0.0] * 6 + [1.0]}).done
    for wrong in ({}, {"actions": np.zeros(6)}, {"actions": np.full(7, np.nan)}, {"actions": "x"}):
        with pytest.raises(PolicyError, match="action: expected 7"):
            benchmark.step(wrong)
    assert benchmark.step({"actions": np.zeros((1, 7))}).done
    benchmark.cleanup()
    with pytest.raises(ConfigError, match="num_sequences: expected 1 to 1000, got 0"):
        benchmark_class(num_sequences=0)


def test_without_vla_eval_it_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vla_eval", None)
    ours._benchmark_class.cache_clear()
    with pytest.raises(EnvironmentMissing, match="pip install vla-eval"):
        _ = ours.CalvinBenchmark
    with pytest.raises(AttributeError):
        _ = ours.Nothing
