"""A simulator that knows nothing of CALVIN goes through the same evaluation, and so does its expert."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stage_cases import pool_at_once

from gr2.benchmarks.playtable.environment import PlayTable
from gr2.benchmarks.simulation import control as simulation_control
from gr2.benchmarks.simulation import jobs as jobs_module
from gr2.benchmarks.simulation.control import SignalControl, controller_fingerprint, make_control
from gr2.benchmarks.simulation.episodes import run_task
from gr2.benchmarks.simulation.jobs import Job, _finished, run_evaluation, run_jobs
from gr2.benchmarks.simulation.simulator import JointSimulator
from gr2.contracts import ActionTrajectory, Array, Observation, Policy, SignalTrajectory
from gr2.embodiment import Embodiment, Signal
from gr2.errors import ConfigError, DataError, EnvironmentMissing, PolicyError

TARGETS = {"left": -0.2, "right": 0.2}


class PointSimulator:
    """A tool without an arm that jumps where it is commanded; a task is done at its target."""

    name, cameras, control_hz = "point", ("eye",), 10.0

    def __init__(self) -> None:
        self.position, self.task, self.steps, self.draws, self.closed = np.zeros(3), "", 0, 0, False

    def reset(self, *, options: Mapping[str, Any] | None = None) -> None:
        self.position, self.steps = np.array([(options or {}).get("x", 0.0), 0.0, 0.0]), 0

    def begin(self, task: str) -> None:
        self.task = task

    def success(self) -> bool:
        return abs(self.position[0] - TARGETS[self.task]) < 1e-6

    def observe(self, instruction: str, *, images: bool = True) -> Observation:
        return Observation(
            images={"eye": self.draw("eye")} if images else {}, tool_position=self.position,
            tool_quaternion=np.array([0.0, 0.0, 0.0, 1.0]), gripper_opening=1.0, gripper_command=1.0,
            joint_positions=np.zeros(0), instruction=instruction, time=self.steps / self.control_hz,
        )  # fmt: skip

    def apply(self, position: Array, quaternion: Array, gripper: float) -> None:
        self.position, self.steps = np.array(position), self.steps + 1

    def draw(self, camera: str, *, px: int | None = None) -> Array:
        self.draws += 1
        return np.zeros((px or 8, px or 8, 3), np.uint8)

    def close(self) -> None:
        self.closed = True


class PointExpert:
    """Goes to the target of the task that was begun, in four steps."""

    executed_steps, uses_images = 2, False

    def __init__(self, simulator: PointSimulator) -> None:
        self.simulator, self.closed = simulator, False

    def reset(self) -> None: ...

    def act(self, observation: Observation) -> ActionTrajectory:
        goal = np.array([TARGETS[self.simulator.task], 0.0, 0.0])
        share = np.linspace(0.25, 1.0, 4)[:, None]
        return ActionTrajectory(
            positions=(1 - share) * observation.tool_position + share * goal,
            quaternions=np.repeat(observation.tool_quaternion[None], 4, 0),
            gripper=np.ones(4), dt=0.1, start_time=observation.time,
        )  # fmt: skip

    def close(self) -> None:
        self.closed = True


class PointSuite:
    """Starts at a place that follows from the index."""

    def __init__(self) -> None:
        self.simulator, self.experts = PointSimulator(), []

    def start(self, kind: str, index: int) -> Sequence[str]:
        self.simulator.reset(options={"x": 0.1 * index})
        return ["left", "right"] if kind == "chain" else [kind]

    def instruction(self, task: str) -> str:
        return f"go {task}"

    def watch(self, task: str) -> None:
        return None

    def expert(self, control: str, executed_steps: int) -> Policy:
        self.experts.append(PointExpert(self.simulator))
        return self.experts[-1]

    def close(self) -> None:
        self.simulator.close()


class StepSimulator(PointSimulator):
    """A tool that is commanded by steps along x [cm] and a lamp that is on or off; both are signals."""

    name = "step"

    embodiment = Embodiment(
        name="step",
        cameras=("eye",),
        state=(Signal(name="place", width=1),),
        action=(Signal(name="place", width=1, reference="delta", unit="cm"), Signal(name="lamp", width=1)),
        control_hz=10.0,
    )

    def __init__(self) -> None:
        super().__init__()
        self.applied: list[list[float]] = []

    def observe(self, instruction: str, *, images: bool = True) -> Observation:
        return Observation(
            images={}, state=self.position[:1], instruction=instruction, time=self.steps / self.control_hz
        )

    def apply_action(self, values: Array) -> None:
        self.applied.append([float(value) for value in values])
        self.position = self.position + [0.01 * float(values[0]), 0.0, 0.0]
        self.steps += 1

    def hold_action(self, last: Array | None) -> Array:
        return np.array([0.0, -1.0 if last is None else last[1]])


def signals(rows: Sequence[Sequence[float]], dt: float = 0.1) -> SignalTrajectory:
    return SignalTrajectory(values=np.array(rows, float), dt=dt, start_time=0.0)


def test_signals_are_carried_out_row_by_row_and_then_the_robot_holds_still() -> None:
    world = StepSimulator()
    control = make_control("actions", world)
    assert isinstance(control, SignalControl)
    control.step()
    control.follow(signals([[1, 0], [2, 1]]))
    for _ in range(4):
        control.step()
    assert world.applied == [[0, -1], [1, 0], [2, 1], [0, 1], [0, 1]], "a step is not repeated, a switch is kept"
    control.reset()
    control.step()
    assert world.applied[-1] == [0, -1] and control.refusal() == "" and control.report() == {}


def test_rows_that_are_past_when_signals_arrive_are_skipped() -> None:
    world = StepSimulator()
    control = make_control("actions", world)
    control.follow(signals([[1, 0]] * 9))
    control.step()
    control.follow(signals([[5, 1], [6, 1], [7, 1], [8, 1]]), delay=0.2)
    for _ in range(3):
        control.step()
    assert [row[0] for row in world.applied] == [1, 1, 1, 7]


def test_a_policy_of_signals_solves_a_task() -> None:
    class Right:
        executed_steps, uses_images = 5, False

        def reset(self) -> None: ...

        def act(self, observation: Observation) -> SignalTrajectory:
            return signals([[1, 0]] * 5)

        def close(self) -> None: ...

    world = StepSimulator()
    control = make_control("actions", world)
    result = run_task(world, Right(), control, "right", instruction="go right", max_steps=30)
    assert result.success and result.steps == 20


def test_what_a_simulator_of_signals_cannot_follow_is_refused() -> None:
    control = make_control("actions", StepSimulator())
    poses = ActionTrajectory(
        positions=np.zeros((2, 3)), quaternions=np.tile([0.0, 0, 0, 1], (2, 1)), gripper=np.ones(2), dt=0.1,
        start_time=0.0,
    )  # fmt: skip
    with pytest.raises(PolicyError, match=r"SignalTrajectory of 2 numbers a row for step \(place, lamp\), got Action"):
        control.follow(poses)
    with pytest.raises(PolicyError, match="got 3 numbers"):
        control.follow(signals([[1, 0, 0]]))
    with pytest.raises(PolicyError, match=r"rows of 1/10 s for step, .* got rows of 0\.05 s"):
        control.follow(signals([[1, 0]], dt=0.05))


OPENED: list[PointSuite] = []


@dataclass(frozen=True, kw_only=True)
class PointEvaluation:
    """What is measured."""

    policy: str = "scripted"
    executed_steps: int = 4
    max_steps: int = 8

    def open_suite(self) -> PointSuite:
        OPENED.append(PointSuite())
        return OPENED[-1]


def test_another_simulator_is_evaluated_without_a_change(tmp_path: Path) -> None:
    jobs = [Job(control="point", kind="chain", index=0), Job(control="point", kind="left", index=1)]
    records = run_jobs(PointEvaluation(), jobs, "none", tmp_path)
    assert [record["key"] for record in records] == ["point/chain/0", "point/left/1"]
    assert records[0]["results"] == [{"task": name, "success": True, "steps": 4} for name in ("left", "right")]
    assert OPENED[-1].simulator.closed and all(expert.closed for expert in OPENED[-1].experts)
    assert OPENED[-1].simulator.draws == 0, "an expert that reads the state needs no images"


def test_a_worker_keeps_simulator_and_policy_open_until_it_ends_or_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs_module, "_failed", [])
    before, jobs = len(OPENED), [Job(control="point", kind="left", index=i) for i in range(2)]
    records = [jobs_module._run_in_worker(PointEvaluation(), job, "none", tmp_path) for job in jobs]
    assert [record["key"] for record in records] == ["point/left/0", "point/left/1"]
    suite = OPENED[-1]
    assert len(OPENED) == before + 1 and len(suite.experts) == 1 and not suite.simulator.closed
    jobs_module._close_session()
    assert suite.simulator.closed and suite.experts[0].closed
    with pytest.raises(KeyError):
        jobs_module._run_in_worker(PointEvaluation(), Job(control="point", kind="none", index=0), "none", tmp_path)
    assert OPENED[-1].simulator.closed
    opened = len(OPENED)
    with pytest.raises(KeyError):  # what waits in the queue fails at once
        jobs_module._run_in_worker(PointEvaluation(), jobs[0], "none", tmp_path)
    assert len(OPENED) == opened


def test_videos_are_drawn_where_they_are_wanted(tmp_path: Path) -> None:
    run_jobs(PointEvaluation(), [Job(control="point", kind="left", index=2)], "all", tmp_path)
    assert OPENED[-1].simulator.draws > 0 and (tmp_path / "point-left-2.mp4").is_file()


def test_results_of_another_evaluation_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "episodes.jsonl"
    jobs: list[Job] = []
    run_evaluation(PointEvaluation(), jobs, file=file, num_workers=1)
    with file.open("a") as log:
        log.write(json.dumps({"key": "point/left/0"}) + "\n")
    with pytest.raises(DataError, match="choose another --out"):
        run_evaluation(PointEvaluation(max_steps=9), jobs, file=file, num_workers=1)


class TiringExpert:
    """Acts until it is worn out: so many calls in all processes that read the file."""

    executed_steps = 4

    def __init__(self, file: Path) -> None:
        self.file = file

    def reset(self) -> None: ...

    def close(self) -> None: ...

    def act(self, observation: Observation) -> ActionTrajectory:
        left = int(self.file.read_text())
        if not left:
            raise EnvironmentMissing("policy openpi://there: expected a running server, got none; start it.")
        self.file.write_text(str(left - 1))
        return PointExpert(OPENED[-1].simulator).act(observation)


@dataclass(frozen=True, kw_only=True)
class TiringEvaluation(PointEvaluation):
    """What is measured."""

    file: str = ""

    def open_suite(self) -> PointSuite:
        suite = PointEvaluation.open_suite(self)
        suite.expert = lambda control, executed_steps: TiringExpert(Path(self.file))  # type: ignore[method-assign]
        return suite


def test_results_before_a_server_died_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls, file = tmp_path / "left", tmp_path / "episodes.jsonl"
    calls.write_text("3")
    evaluation = TiringEvaluation(file=str(calls))
    jobs = [Job(control="point", kind="left", index=i) for i in range(4)]
    monkeypatch.setattr("gr2.benchmarks.simulation.jobs.worker_pool", pool_at_once)
    with pytest.raises(EnvironmentMissing, match="expected a running server"):
        run_evaluation(evaluation, jobs, file=file, num_workers=1)
    kept = [json.loads(line)["key"] for line in file.read_text().splitlines()[1:]]
    assert len(kept) == 3
    calls.write_text("10")
    assert set(run_evaluation(evaluation, jobs, file=file, num_workers=1)) == {job.key for job in jobs}
    assert int(calls.read_text()) == 10 - (len(jobs) - len(kept)), "the others were not acted out again"


def test_settings_of_our_controller_are_part_of_an_evaluation(monkeypatch: pytest.MonkeyPatch) -> None:
    ours = controller_fingerprint()
    monkeypatch.setattr(simulation_control, "RESPONSE", 19.0)
    slower = controller_fingerprint()
    monkeypatch.setattr(simulation_control, "_MOST_AHEAD", 0.1)
    assert len({ours, slower, controller_fingerprint()}) == 3
    monkeypatch.undo()
    assert controller_fingerprint() == ours


def test_our_controller_needs_joint_commands() -> None:
    with pytest.raises(ConfigError, match="takes joint commands, got point"):
        make_control("wbc", PointSimulator())
    world = PlayTable("D", render_mode=None)
    assert isinstance(world, JointSimulator)
    world.close()


def test_results_from_before_a_field_was_added_are_resumed(tmp_path: Path) -> None:
    file = tmp_path / "episodes.jsonl"
    file.write_text('{"config": {"policy": "scripted", "executed_steps": 4}}\n{"key": "point/left/0"}\n')
    assert list(run_evaluation(PointEvaluation(), [], file=file, num_workers=1)) == ["point/left/0"]
    with pytest.raises(DataError, match="choose another --out"):
        run_evaluation(PointEvaluation(max_steps=9), [], file=file, num_workers=1)


@dataclass(frozen=True, kw_only=True)
class Numbered:
    """Stand-in for the configuration of an evaluation."""

    seed: int = 0


def test_results_of_parts_one_after_the_other_are_one_file(tmp_path):
    file = tmp_path / "episodes.jsonl"
    head = json.dumps({"config": {"seed": 0}})
    rows = [json.dumps({"key": f"wbc/starts/{number}"}) for number in range(3)]
    file.write_text("\n".join([head, rows[0], rows[1], head, rows[2]]) + "\n")
    assert [row["key"] for row in _finished(file, Numbered()).values()] == [f"wbc/starts/{i}" for i in range(3)]
    assert file.read_text().count("config") == 1
    with pytest.raises(DataError, match="choose another --out"):
        _finished(file, Numbered(seed=1))


def test_an_evaluation_that_ended_before_its_first_episode_does_not_bind_the_folder(tmp_path):
    file = tmp_path / "episodes.jsonl"
    assert _finished(file, Numbered()) == {}
    assert _finished(file, Numbered(seed=1)) == {}
    assert json.loads(file.read_text())["config"] == {"seed": 1}
