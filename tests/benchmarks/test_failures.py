"""How a failed task is explained: what moved, and how near the tool came."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace

import numpy as np
import pytest

from gr2.benchmarks.calvin.episodes import demonstrate, neutral_robot, task_start
from gr2.benchmarks.calvin.failures import NEAR, TaskWatch
from gr2.benchmarks.calvin.results import summarize
from gr2.benchmarks.playtable.environment import PlayTable
from gr2.benchmarks.playtable.tasks import ALL_TASKS, COLORS, can_succeed
from gr2.benchmarks.policies.scripted import ScriptedPolicy
from gr2.benchmarks.simulation.control import PoseControl
from gr2.benchmarks.simulation.episodes import as_record, run_chain


@pytest.fixture(scope="module")
def env():
    with closing(PlayTable("D", render_mode=None)) as table:
        yield table


def _watch(env: PlayTable, task: str) -> TaskWatch:
    return TaskWatch(task, ALL_TASKS[task].family, env)


def _moved_block(env: PlayTable, color: str, offset: float) -> None:
    scene = env.scene_obs()
    place = {"red": 6, "blue": 12, "pink": 18}[color]
    scene[place] += offset
    env.set_state(neutral_robot(env), scene)


def test_a_tool_that_stays_away_fails_in_the_approach(env):
    task_start(env, "push_red_block_left", 0, 0)
    watch = _watch(env, "push_red_block_left")
    watch.see()
    report = watch.report()
    assert report["phase"] == "approach" and report["closest_m"] > NEAR


def test_what_moved_says_how_far_a_task_got(env):
    task_start(env, "push_red_block_left", 0, 0)
    right, wrong = _watch(env, "push_red_block_left"), _watch(env, "push_blue_block_left")
    furniture = _watch(env, "open_drawer")
    _moved_block(env, "red", -0.04)
    for watch in (right, wrong, furniture):
        watch.see()
    assert right.report()["phase"] == "motion"
    assert wrong.report()["phase"] == furniture.report()["phase"] == "wrong object"


@pytest.mark.parametrize("task", ["open_drawer", "turn_on_led", "turn_on_lightbulb", "move_slider_left"])
def test_furniture_that_moves_is_motion_and_the_tool_is_near_it(env, task):
    task_start(env, task, 0, 1)
    watch = _watch(env, task)
    step = env.step_pose

    def seen(*pose):
        step(*pose)
        watch.see()

    env.step_pose = seen
    try:
        assert demonstrate(env, task)
        for _ in range(30):  # away again, so that the button springs back
            at = env.world_state()
            env.step_pose(at.tool_position + [0.0, -0.05, 0.05], at.tool_quaternion, 1.0)
    finally:
        del env.step_pose
    report = watch.report()
    assert report["phase"] == "motion" and report["closest_m"] < 2 * NEAR


def test_a_block_in_the_hand_stays_there_or_is_let_go(env):
    task_start(env, "place_in_drawer", 0, 0)
    watch = _watch(env, "place_in_drawer")
    watch.see()
    assert watch.report()["phase"] == "in hand" and np.isfinite(watch.report()["closest_m"])
    seen = env.observe("", images=False)
    pose = env.world_state()
    for _ in range(30):
        env.step_pose(pose.tool_position, pose.tool_quaternion, 1.0)
    watch.see()
    assert watch.report()["phase"] == "let go", seen


def test_placing_needs_a_block_in_the_hand(env):
    task_start(env, "open_drawer", 0, 0)
    watch = _watch(env, "stack_block")
    watch.see()
    assert watch.report()["phase"] == "empty hand"


def test_what_no_judge_can_accept_is_said_to_be_impossible(env):
    """A block that the hand touches as a task begins does not stand on the desk alone."""
    task_start(env, "push_into_drawer", 0, 0)
    start = env.world_state()
    desk, hand, block = ("table", "base_link"), ("robot", ""), ("block_blue", "")

    def possible(task, **contacts):
        others = dict.fromkeys(COLORS, frozenset({("table", "plank_link")}))
        touched = {color: frozenset(found) for color, found in contacts.items()}
        return can_succeed(ALL_TASKS[task], replace(start, contacts={**others, **touched}))

    assert possible("push_into_drawer", red={desk}) and not possible("push_into_drawer", red={desk, hand})
    assert not possible("push_into_drawer")
    assert possible("push_red_block_left", red={desk, hand}) and not possible("push_red_block_left", red={hand})
    assert possible("lift_red_block_table", red={desk, hand}) and not possible("lift_red_block_table")
    assert possible("lift_red_block_slider") and not possible("lift_red_block_drawer")
    assert possible("unstack_block", red={block}) and not possible("unstack_block", red={block, hand})
    assert possible("stack_block") and not possible("stack_block", red={block}, blue={block}, pink={block})
    assert not possible("place_in_slider", red={desk}) and possible("open_drawer", red={desk, hand})
    watch = TaskWatch("unstack_block", "unstack", env)
    watch.see()
    assert watch.report()["phase"] == "impossible"


def test_what_is_impossible_ends_at_once_and_counts_as_failed(env):
    task_start(env, "push_red_block_left", 0, 0)
    before, control = env.world_state(), PoseControl(env)

    class Asleep:
        def reset(self): ...

    found = run_chain(
        env, Asleep(), control, ["unstack_block", "open_drawer"], instruction=str, executed_steps=5, max_steps=360,
        explain=lambda task: _watch(env, task),
    )  # fmt: skip
    assert [(r.task, r.success, r.steps, r.failure["phase"]) for r in found] == [
        ("unstack_block", False, 360, "impossible")
    ]
    assert 0 < found[0].failure["closest_m"] < 1
    assert np.array_equal(before.blocks["red"][0], env.world_state().blocks["red"][0])  # no step was taken
    with pytest.raises(AttributeError):  # what can be done is asked of the policy
        run_chain(env, Asleep(), control, ["open_drawer"], instruction=str, executed_steps=5, max_steps=3)


def test_a_task_is_watched_after_each_step_and_its_failure_is_kept(env):
    class Steps:
        count, hopeless = 0, False

        def see(self):
            self.count += 1

        def report(self):
            return {"phase": "approach", "closest_m": 0.1 * self.count}

    task_start(env, "open_drawer", 0, 0)
    policy, control = ScriptedPolicy(env), PoseControl(env)
    results = run_chain(
        env, policy, control, ["open_drawer"], instruction=str, executed_steps=5, max_steps=3,
        explain=lambda task: Steps(),
    )  # fmt: skip
    policy.close()
    (record,) = as_record(results)
    assert record == {
        "task": "open_drawer", "success": False, "steps": 3, "phase": "approach", "closest_m": pytest.approx(0.3)
    }  # fmt: skip


def test_failures_are_gathered_by_task_the_most_frequent_first():
    def record(task: str, **more: object) -> dict[str, object]:
        return {"results": [{"task": task, "success": not more, "steps": 9, **more}]}

    far, near = {"phase": "approach", "closest_m": 0.2}, {"phase": "contact", "closest_m": 0.02}
    records = {
        "calvin/stack_block/0": record("stack_block", **far),
        "calvin/stack_block/1": record("stack_block", **near),
        "calvin/stack_block/2": record("stack_block", **near),
        "calvin/open_drawer/0": record("open_drawer", **far),
        "calvin/open_drawer/1": record("open_drawer"),
    }
    failures = summarize(records, ["calvin"])["calvin"]["failures"]
    assert list(failures) == ["stack_block", "open_drawer"]
    assert failures["stack_block"] == {"failed": 3, "phases": {"contact": 2, "approach": 1}, "closest_m": 0.02}
