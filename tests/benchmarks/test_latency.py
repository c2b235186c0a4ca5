"""Chunks that arrive late: when the policy is asked, which steps are skipped, what is held, and what is counted."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from gr2.benchmarks.calvin.evaluate import evaluate
from gr2.benchmarks.calvin.results import summarize, table
from gr2.benchmarks.metrics.jerk import JerkMeter
from gr2.benchmarks.playtable.environment import PlayTable
from gr2.benchmarks.rollout import rollout
from gr2.benchmarks.simulation.control import PoseControl, WbcControl
from gr2.benchmarks.simulation.episodes import asking_period, last_step, run_chain, run_task
from gr2.contracts import ActionTrajectory, Array, Observation
from gr2.errors import ConfigError, PolicyError

HZ, STILL = 30.0, -1.0
QUATERNION = np.array([0.0, 0.0, 0.0, 1.0])


class Recorder:
    """A simulator that notes what it is commanded; the tool rests at -1."""

    name, cameras, control_hz, task = "recorder", (), HZ, ""

    def __init__(self, done_at: int = 10**9) -> None:
        self.commands: list[float] = []
        self.done_at = done_at

    def reset(self, *, options: Any = None) -> None: ...

    def begin(self, task: str) -> None:
        self.task = task

    def success(self) -> bool:
        return len(self.commands) == self.done_at

    def observe(self, instruction: str, *, images: bool = True) -> Observation:
        return Observation(
            images={}, tool_position=np.full(3, STILL), tool_quaternion=QUATERNION, gripper_opening=0.3,
            gripper_command=1.0, instruction=instruction, time=len(self.commands) / HZ,
        )  # fmt: skip

    def apply(self, position: Array, quaternion: Array, gripper: float) -> None:
        assert gripper == 1.0
        self.commands.append(round(float(position[0])))

    def draw(self, camera: str, *, px: int | None = None) -> Array:
        return np.zeros((8, 8, 3), np.uint8)

    def close(self) -> None: ...


class Counting:
    """Chunks whose poses tell the number of the call (hundreds) and the step at which they are due, from 1."""

    executed_steps, uses_images = 5, False

    def __init__(self, length: int = 10, dt: float = 1 / HZ) -> None:
        self.length, self.dt = length, dt
        self.asked: list[int] = []

    def reset(self) -> None: ...

    def act(self, observation: Observation) -> ActionTrajectory:
        self.asked.append(round(observation.time * HZ))
        due = np.arange(1, self.length + 1) * round(self.dt * HZ)
        numbers = 100.0 * len(self.asked) + due
        return ActionTrajectory(
            positions=np.repeat(numbers[:, None], 3, 1), quaternions=np.repeat(QUATERNION[None], self.length, 0),
            gripper=np.ones(self.length), dt=self.dt, start_time=observation.time,
        )  # fmt: skip

    def close(self) -> None: ...


def act_out(
    latency: float, *, executed_steps: int = 5, steps: int = 16, **chunks: Any
) -> tuple[list[float], list[int]]:
    simulator, policy = Recorder(), Counting(**chunks)
    run_task(
        simulator, policy, PoseControl(simulator), "t", instruction="", executed_steps=executed_steps, max_steps=steps,
        latency=latency,
    )  # fmt: skip
    return simulator.commands, policy.asked


def test_without_latency_every_chunk_begins_at_its_first_step() -> None:
    commands, asked = act_out(0.0)
    assert asked == [0, 5, 10, 15]
    assert commands == [101, 102, 103, 104, 105, 201, 202, 203, 204, 205, 301, 302, 303, 304, 305, 401]


def test_a_chunk_whose_dt_was_rounded_lasts_as_long_as_its_rows() -> None:
    """A map states 0.0333 s for a thirtieth of a second; ten rows are then 9.99 steps."""
    for dt in (0.0333, 0.033):
        commands, asked = act_out(0.0, executed_steps=10, length=10, dt=dt, steps=20)
        assert asked == [0, 10]
        assert commands == [*range(101, 111), *range(201, 211)]
    with pytest.raises(PolicyError, match="expected chunks of at least the 10 control steps"):
        act_out(0.0, executed_steps=10, length=9, steps=20)


def test_a_late_chunk_skips_what_is_past_and_the_one_before_runs_on() -> None:
    commands, asked = act_out(0.1)
    assert asked == [0, 5, 10, 15]
    assert commands[:3] == [STILL] * 3, "the robot holds still until the first chunk arrives"
    assert commands[3:8] == [104, 105, 106, 107, 108]
    assert commands[8:13] == [204, 205, 206, 207, 208]
    assert commands[13:] == [304, 305, 306]


def test_a_slow_policy_is_asked_when_its_answer_has_arrived_and_the_last_command_is_held() -> None:
    commands, asked = act_out(0.25, executed_steps=2, steps=17)  # 7.5 steps
    assert asked == [0, 8, 16]
    assert commands == [STILL] * 8 + [109, 110] + [110] * 6 + [209]


def test_a_chunk_of_another_clock_is_entered_at_the_pose_that_is_due() -> None:
    commands, _ = act_out(0.1, length=5, dt=2 / HZ, steps=8)
    assert commands == [STILL] * 3 + [104, 106, 106, 108, 108]


def test_a_new_task_drops_what_was_asked_for_the_one_before() -> None:
    simulator, policy = Recorder(done_at=6), Counting()
    run_chain(
        simulator, policy, PoseControl(simulator), ["a", "b"], instruction=str, executed_steps=5, max_steps=8,
        latency=0.1,
    )  # fmt: skip
    assert policy.asked == [0, 5, 6, 11]
    assert simulator.commands[6:] == [107, 108, 109, 304, 305, 306, 307, 308]


def test_periods_and_last_steps() -> None:
    assert (asking_period(5, 0.0, HZ), last_step(5, 0.0, HZ)) == (5, 5)
    assert (asking_period(5, 0.1, HZ), last_step(5, 0.1, HZ)) == (5, 8)
    assert (asking_period(5, 0.3, HZ), last_step(5, 0.3, HZ)) == (9, 18)


def test_our_controller_holds_still_and_drops_past_poses() -> None:
    world = PlayTable("D", render_mode=None)
    try:
        world.reset(seed=0)
        control = WbcControl(world)
        control.reset()
        start = world.joint_state()[0]
        seen = world.observe("", images=False)
        away = 0.003 * np.arange(1, 11)[:, None] * np.array([[0.0, 0.0, 1.0]])
        chunk = ActionTrajectory(
            positions=seen.tool_position + away, quaternions=np.repeat(seen.tool_quaternion[None], 10, 0),
            gripper=np.full(10, seen.gripper_command), dt=1 / HZ, start_time=0.0,
        )  # fmt: skip
        control.follow(chunk, delay=0.11)
        for _ in range(3):
            control.step()
            assert np.abs(world.joint_state()[0] - start).max() < 1e-3
        assert "accepted" not in control.report()["counters"]
        control.step()  # 0.11 s lies within it
        counters = control.report()["counters"]
        assert counters["accepted"] == 1 and counters["poses_dropped"] == 3
        for _ in range(8):
            control.step()
        rise = world.observe("", images=False).tool_position - seen.tool_position
        assert rise[2] > 0.02 and control.report()["joint_jerk"] > 0
    finally:
        world.close()


def test_jerk_is_the_mean_squared_third_difference() -> None:
    time = np.arange(20) / HZ
    meter = JerkMeter(HZ)
    for t in time:
        meter.see(np.array([t**3, 0.0]))
    assert meter.mean_square == pytest.approx(18.0)  # the third derivative is 6 in one of two joints
    meter.begin()
    meter.see(np.array([5.0, 5.0]))  # a jump by a reset is no jerk
    assert meter.mean_square == pytest.approx(18.0)
    assert JerkMeter(HZ).mean_square is None


def test_the_summary_states_the_jerk_of_each_control() -> None:
    record = {"results": [{"task": "t", "success": True, "steps": 3}], "joint_jerk": 10.0}
    records = {f"calvin/t/{i}": record | {"joint_jerk": 10.0 + i} for i in range(3)}
    summary = summarize(records, ["calvin"])
    jerk = summary["calvin"]["joint_jerk"]
    assert jerk["mean_square"] == pytest.approx(11.0) and jerk["episodes"] == 3
    assert jerk["interval_95"][0] <= 11.0 <= jerk["interval_95"][1]
    assert any("mean squared joint jerk 11 [10, 12] rad^2/s^6, 3 episodes" in line for line in table(summary))


@pytest.mark.parametrize("latency", [-0.1, float("inf"), float("nan")])
def test_an_impossible_latency_is_refused(latency: float) -> None:
    with pytest.raises(ConfigError, match="--latency: expected 0 or more seconds, got"):
        evaluate(latency=latency)
    with pytest.raises(ConfigError, match="--latency: expected 0 or more seconds, got"):
        rollout(pretrained=True, latency=latency)
