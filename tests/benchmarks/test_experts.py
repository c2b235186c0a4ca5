"""Scripted experts: where they find room, how they come near the cabinet, and that they try again."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from gr2.benchmarks.demonstrations import record as recording
from gr2.benchmarks.demonstrations.expert_clearance import (
    block_at_hand,
    free_desk_place,
    grasp,
    hand,
    level_hand,
    neighbor_to_move,
    out_of_bar_gap,
    out_of_cabinet,
    yaw_and_tilt,
)
from gr2.benchmarks.demonstrations.expert_motion import ExpertStyle
from gr2.benchmarks.demonstrations.expert_shelf import place_on_shelf, take_again
from gr2.benchmarks.demonstrations.experts import act
from gr2.benchmarks.demonstrations.next_task import deal, emphasis_of
from gr2.benchmarks.playtable.environment import PlayTable
from gr2.benchmarks.playtable.feasibility import drawer_is_open, feasible, prerequisites
from gr2.benchmarks.playtable.scenes import ROBOT_BASE, scene
from gr2.benchmarks.playtable.tasks import ALL_TASKS, COLORS
from gr2.benchmarks.playtable.world import WorldState
from gr2.contracts import ActionTrajectory, Observation

SPEC = scene("D")
UPRIGHT = np.array([0.0, 0.0, np.sin(np.pi / 4), np.cos(np.pi / 4)])
DESK = frozenset({("table", "base_link")})
Place = tuple[float, float, float]
LEFT_SLOT, RIGHT_SLOT, BESIDE_BUTTON = (-0.241, 0.092, 0.461), (0.07, 0.092, 0.461), (-0.063, -0.12, 0.46)


def state(
    tool: Place = (0.0, -0.2, 0.6), *, hand_at: tuple[float, ...] = hand(np.pi / 2), **blocks: Place
) -> WorldState:
    """Three blocks on the desk, far from each other unless stated otherwise; grasped across x."""
    places = {"red": (0.30, -0.10, 0.46), "blue": (0.15, -0.10, 0.46), "pink": (0.02, -0.10, 0.46)} | blocks
    return WorldState(
        tool_position=np.array(tool), tool_quaternion=Rotation.from_euler("xyz", hand_at).as_quat(),
        finger_width=0.08, gripper_command=1.0, slider=0.0, drawer=0.0, button=0.0, switch=0.0, bulb=False, led=False,
        blocks={color: (np.array(place), UPRIGHT) for color, place in places.items()},
        contacts=dict.fromkeys(places, DESK), velocities={color: np.zeros(6) for color in places},
    )  # fmt: skip


@pytest.fixture(scope="module")
def env() -> Iterator[PlayTable]:
    world = PlayTable("D", render_mode=None)
    yield world
    world.close()


def scene_obs(*, slider: float = 0.0, drawer: float = 0.0, yaw: float = np.pi / 2, **blocks: Place) -> np.ndarray:
    """A `scene_obs` with the doors and blocks of `state`."""
    values = [slider, drawer, 0.0, 0.0, 0.0, 0.0]
    for color in SPEC.blocks:
        values += [*blocks.get(color, state().blocks[color][0]), 0.0, 0.0, yaw]
    return np.array(values)


def does(env: PlayTable, task: str, *, limit: int = 300) -> bool:
    """Let the expert do a task; return whether it succeeded in time."""
    start = env.world_state()
    for _ in range(limit):
        env.step_pose(*act(task, env.world_state(), SPEC, ExpertStyle()))
        if ALL_TASKS[task].done(start, env.world_state()):
            return True
    return False


def test_a_free_block_is_grasped_centered_across_its_long_side() -> None:
    one = grasp("red", state(), SPEC)
    assert np.array_equal(one.place, [0.30, -0.10, 0.46])
    assert one.euler == (np.pi, 0.0, pytest.approx(np.pi / 2)) and one.clearance > 0.004


def test_a_neighbor_beside_a_short_block_turns_the_grasp() -> None:
    one = grasp("red", state(blue=(0.30 + 0.06, -0.10, 0.46)), SPEC)
    assert np.sin(one.euler[2]) == pytest.approx(0.0, abs=1e-6) and one.clearance > 0.0


def test_a_long_block_is_never_grasped_along_its_length() -> None:
    one = grasp("pink", state(blue=(0.02 + 0.062, -0.10, 0.46)), SPEC)
    assert one.euler[2] == pytest.approx(np.pi / 2)
    assert one.place[0] < 0.02  # to the side, away from the neighbor


def test_the_button_beside_a_short_block_turns_the_grasp() -> None:
    assert grasp("blue", state(blue=BESIDE_BUTTON, pink=LEFT_SLOT), SPEC).euler[2] % np.pi == pytest.approx(
        0.0, abs=1e-6
    )


def test_at_the_handle_the_hand_tilts_back_and_else_it_does_not() -> None:
    handle = SPEC.handle_x
    near = grasp("blue", state(blue=(handle + 0.06, -0.045, 0.46)), SPEC)
    far = grasp("blue", state(blue=(handle + 0.20, -0.045, 0.46)), SPEC)
    moved_away = grasp("blue", replace(state(blue=(handle + 0.06, -0.045, 0.46)), slider=0.2), SPEC)
    assert near.euler != far.euler and far.euler[:2] == moved_away.euler[:2] == (np.pi, 0.0)
    pointing = Rotation.from_euler("xyz", near.euler).apply([0.0, 0.0, 1.0])
    assert pointing[1] > 0.3 and pointing[2] < -0.7  # towards the cabinet and down: the palm stays behind


@pytest.mark.parametrize(("yaw", "tilt"), [(1.2, 0.0), (1.9, 0.35), (0.4, 0.6)])
def test_yaw_and_tilt_are_read_back(yaw: float, tilt: float) -> None:
    assert yaw_and_tilt(state(hand_at=hand(yaw, tilt))) == (pytest.approx(yaw), pytest.approx(tilt))


def test_a_block_that_hangs_askew_is_brought_level_by_the_least_turn() -> None:
    askew = state(tool=(0.3, -0.1, 0.46))
    tilt = Rotation.from_euler("x", 0.5)
    blocks = dict(askew.blocks) | {"red": (askew.blocks["red"][0], (tilt * Rotation.from_quat(UPRIGHT)).as_quat())}
    held = Rotation.from_quat(askew.tool_quaternion)
    wanted = Rotation.from_euler("xyz", level_hand("red", replace(askew, blocks=blocks)))
    assert (wanted * held.inv() * tilt).apply([0.0, 0.0, 1.0]) == pytest.approx([0.0, 0.0, 1.0], abs=1e-9)
    assert (wanted * held.inv()).magnitude() == pytest.approx(0.5)
    flipped = tilt * Rotation.from_euler("x", np.pi)
    on_its_head = blocks | {"red": (blocks["red"][0], flipped.as_quat())}
    wanted = Rotation.from_euler("xyz", level_hand("red", replace(askew, blocks=on_its_head)))
    assert (wanted * held.inv() * flipped).apply([0.0, 0.0, 1.0]) == pytest.approx([0.0, 0.0, -1.0], abs=1e-9)
    assert level_hand("red", askew, yaw=1.0)[2] == pytest.approx(1.0)
    turned = Rotation.from_euler("xyz", level_hand("red", askew, turn=-0.3))
    assert (turned * held.inv()).as_rotvec() == pytest.approx([0.0, 0.0, -0.3], abs=1e-9)


def test_what_is_put_down_goes_where_nothing_stands() -> None:
    crowded = state(tool=(0.15, -0.10, 0.55))
    place = free_desk_place(crowded.tool_position, "red", crowded, SPEC)
    others = [crowded.blocks[c][0][:2] for c in ("blue", "pink")] + [np.array(SPEC.button_xy)]
    assert min(float(np.linalg.norm(place - o)) for o in others) > 0.075
    assert SPEC.spawn_x[0] <= place[0] <= SPEC.spawn_x[1]
    alone = state(tool=(0.20, -0.10, 0.55), blue=(-0.24, 0.09, 0.46), pink=(-0.3, 0.09, 0.46))
    assert free_desk_place(alone.tool_position, "red", alone, SPEC) == pytest.approx([0.20, -0.10])


def test_a_block_makes_way_only_where_it_must() -> None:
    assert neighbor_to_move("lift_pink_block_table", state(), SPEC) is None
    boxed_in = state(blue=(0.02 + 0.045, -0.10, 0.46), red=(0.02 - 0.045, -0.10, 0.46))
    assert neighbor_to_move("lift_pink_block_table", boxed_in, SPEC) in ("blue", "red")
    behind = state(red=(0.15 + 0.09, -0.10, 0.46), pink=(-0.24, 0.09, 0.46))
    assert neighbor_to_move("push_blue_block_left", behind, SPEC) == "red"
    assert neighbor_to_move("push_blue_block_right", behind, SPEC) is None
    shelf = state(red=(-0.24, 0.125, 0.461), blue=(-0.24, 0.06, 0.461))
    assert neighbor_to_move("lift_red_block_slider", shelf, SPEC) == "blue"
    assert neighbor_to_move("lift_blue_block_slider", shelf, SPEC) is None


@pytest.mark.parametrize(
    ("tool", "command", "found"),
    [
        ((0.30, -0.10, 0.52), 1.0, "red"),  # the open fingers still reach around it
        ((0.30, -0.10, 0.52), 0.0, None),
        ((0.30, -0.10, 0.47), 0.0, "red"),
        ((0.25, -0.10, 0.47), 1.0, None),
    ],
)
def test_the_block_at_the_hand(tool: Place, command: float, found: str | None) -> None:
    assert block_at_hand(replace(state(tool=tool), gripper_command=command)) == found


def test_the_ways_out_drag_nothing_along() -> None:
    inside, before = state(tool=(0.1, 0.08, 0.5)), state(tool=(0.1, -0.1, 0.5))
    out = out_of_cabinet(inside)
    assert out is not None and out.position[1] < 0 and out.position[0] == 0.1 and out_of_cabinet(before) is None
    gap = replace(state(tool=(SPEC.drawer_x, -0.345, 0.36)), drawer=0.12)
    up = out_of_bar_gap(gap, SPEC)
    assert up is not None and up.position[:2] == pytest.approx(gap.tool_position[:2]) and up.position[2] > 0.42
    assert out_of_bar_gap(before, SPEC) is None


def moves(task: str, now: WorldState) -> tuple[np.ndarray, float]:
    """The expert's next move from the tool [m] and its gripper command."""
    position, _, gripper = act(task, now, SPEC, ExpertStyle())
    return position - now.tool_position, gripper


def test_a_task_begins_by_leaving_where_the_one_before_ended() -> None:
    move, _ = moves("turn_on_led", state(tool=(0.1, 0.08, 0.5)))
    assert move[1] < -0.01 and move[0] == 0.0
    move, _ = moves("turn_on_led", state(tool=(0.30, -0.10, 0.50)))  # the open fingers around a block
    assert move[2] > 0.01 and np.abs(move[:2]).max() < 1e-9


def test_a_block_too_near_to_sweep_is_grasped_first() -> None:
    rest = {"blue": LEFT_SLOT, "pink": RIGHT_SLOT}
    assert moves("push_red_block_right", state(red=(0.1, -0.028, 0.46), **rest))[1] == 1.0
    assert moves("push_red_block_right", state(red=(0.1, -0.100, 0.46), **rest))[1] == 0.0


def test_what_fell_while_stacking_is_fetched() -> None:
    move, gripper = moves("stack_block", state(tool=(0.20, -0.25, 0.60)))
    assert gripper == 1.0 and move[1] > 0.01


def test_a_block_is_stacked_where_it_stands_free() -> None:
    held = state(tool=(0.0, -0.12, 0.59), red=(0.0, -0.12, 0.59), blue=BESIDE_BUTTON, pink=(0.25, -0.10, 0.46))
    held = replace(held, gripper_command=0.0, finger_width=0.04, contacts={**held.contacts, "red": {("robot", "")}})
    assert moves("stack_block", held)[0][0] > 0.01  # to the farther one, away from the button


def test_a_push_of_a_block_that_leans_on_the_door_cannot_be_begun() -> None:
    free = state(red=(0.15, -0.10, 0.46), blue=(-0.24, 0.09, 0.46), pink=(-0.3, 0.09, 0.46))
    assert feasible("push_red_block_right", free, SPEC)
    leaning = replace(free, contacts={**free.contacts, "red": DESK | {("table", "slide_link")}})
    assert not feasible("push_red_block_right", leaning, SPEC)


def test_where_the_shelf_has_no_room_the_held_block_is_put_down_first() -> None:
    full = state(tool=(0.05, -0.12, 0.53), red=(0.05, -0.12, 0.53), blue=(0.07, 0.092, 0.464), pink=(0.3, -0.1, 0.46))
    contacts = {"red": frozenset({("robot", "")}), "blue": frozenset({("table", "plank_link")}), "pink": DESK}
    full = replace(full, gripper_command=0.0, finger_width=0.04, slider=0.2, contacts=contacts)
    assert place_on_shelf(full, SPEC, ExpertStyle()).position[1] == pytest.approx(-0.12)  # to the desk
    opened = replace(full, slider=0.28)
    assert place_on_shelf(opened, SPEC, ExpertStyle()).position[1] == pytest.approx(-0.10)  # to the shelf


@pytest.mark.parametrize(
    ("tasks", "start"),
    [
        (["lift_red_block_slider"], {"slider": 0.16, "red": RIGHT_SLOT}),  # the door is in the way
        (["lift_red_block_slider"], {"slider": 0.28, "red": RIGHT_SLOT, "yaw": 1.95}),  # the side wall is
        (["lift_red_block_slider"], {"red": (-0.24, 0.125, 0.461), "blue": (-0.24, 0.06, 0.461)}),  # another block is
        (["lift_red_block_slider", "stack_block", "turn_on_led", "unstack_block"], {"slider": 0.28, "red": RIGHT_SLOT}),
        (["lift_blue_block_slider", "place_in_drawer", "close_drawer"], {"drawer": 0.22, "blue": LEFT_SLOT}),
        (["lift_blue_block_table", "place_in_slider"], {"red": LEFT_SLOT}),  # taken: push it back
        (["lift_blue_block_table", "place_in_slider"], {"slider": 0.2, "red": RIGHT_SLOT, "pink": LEFT_SLOT}),
        (["open_drawer", "push_into_drawer"], {}),  # the drawer must stay open
        (["push_into_drawer", "lift_blue_block_drawer"], {"red": LEFT_SLOT, "pink": RIGHT_SLOT}),  # it is closed
        (["lift_pink_block_table"], {"pink": (0.15, -0.10, 0.46), "blue": (0.21, -0.10, 0.46)}),
        (["lift_blue_block_table"], {"blue": BESIDE_BUTTON}),
        (["lift_red_block_table", "stack_block", "close_drawer"], {"drawer": 0.22, "blue": BESIDE_BUTTON}),
        (["rotate_red_block_left"], {"red": (0.09, -0.037, 0.46)}),  # under the handle
        (["rotate_red_block_right"], {"red": (-0.02, -0.037, 0.46), "yaw": 1.0}),
        (["push_red_block_right"], {"red": (0.02, -0.030, 0.46), "pink": (0.02, -0.14, 0.46)}),  # too near to sweep
        (["push_blue_block_left"], {"red": (0.24, -0.10, 0.46), "pink": LEFT_SLOT}),  # one stands where the hand goes
    ],
)  # fmt: skip
def test_experts_clear_the_way(env: PlayTable, tasks: list[str], start: dict[str, object]) -> None:
    env.reset(options={"scene_obs": scene_obs(**start)})  # type: ignore[arg-type]
    for task in tasks:
        assert does(env, task), task


def test_a_push_towards_the_button_slows_down_before_it() -> None:
    def reach(x: float) -> float:
        places = {"blue": (x, -0.10, 0.46), "pink": LEFT_SLOT}
        sweeping = replace(state(tool=(x + 0.06, -0.10, 0.46), **places), finger_width=0.0)
        position, *_ = act("push_blue_block_left", sweeping, SPEC, ExpertStyle())
        return float(np.linalg.norm(position[:2] - sweeping.tool_position[:2]))

    assert 0.005 < reach(-0.05) < 0.5 * reach(0.10)


def test_the_fallen_block_is_looked_for_on_the_desk_before_the_shelf() -> None:
    both = state(tool=(0.05, -0.02, 0.55), red=(0.06, 0.09, 0.46), blue=(0.20, -0.12, 0.46), pink=(-0.2, 0.09, 0.46))
    shelf = frozenset({("table", "plank_link")})
    both = replace(both, slider=0.28, contacts={"red": shelf, "pink": shelf, "blue": DESK})
    goal = take_again(both, SPEC, ExpertStyle())
    assert goal.position[:2] == pytest.approx([0.20, -0.12])


def test_a_block_that_fell_is_taken_again(env: PlayTable) -> None:
    env.reset(options={"scene_obs": scene_obs(drawer=0.22)})
    assert does(env, "lift_red_block_table")
    start, dropped = env.world_state(), False
    for _ in range(300):
        command = act("place_in_drawer", env.world_state(), SPEC, ExpertStyle())
        if not dropped and env.world_state().tool_position[2] > 0.535:
            dropped = True
            for _ in range(8):
                env.step_pose(command[0], command[1], 1.0)
        else:
            env.step_pose(*command)
        if ALL_TASKS["place_in_drawer"].done(start, env.world_state()):
            assert dropped
            return
    pytest.fail("the block was not taken again")


def test_emphasis_makes_tasks_that_failed_more_frequent(tmp_path) -> None:
    rows = {"open_drawer": {"success": 0, "total": 4}, "turn_on_led": {"success": 4, "total": 4}}
    (tmp_path / "results.json").write_text(json.dumps({"controls": {"wbc": {"tasks": rows, "attempts": {}}}}))
    emphasis = emphasis_of(tmp_path / "results.json")
    assert (emphasis["open_drawer"], emphasis["turn_on_led"], emphasis["stack_block"]) == (1.2, 0.2, 0.7)
    rng = np.random.default_rng(0)
    with closing(PlayTable("D", render_mode=None)) as env:
        env.reset()
        names = ["open_drawer", "turn_on_led"]
        dealt = [deal(env, names, rng, keep_arm=False, emphasis=emphasis)[0] for _ in range(40)]
    assert dealt.count("open_drawer") > 27


def test_a_scene_is_arranged_for_a_task_and_for_what_comes_before_it() -> None:
    rng = np.random.default_rng(0)
    with closing(PlayTable("D", render_mode=None)) as env:
        env.reset()
        dealt = []
        for _ in range(40):
            dealt.append(deal(env, list(ALL_TASKS), rng, keep_arm=False, emphasis={}))
            state = env.world_state()
            assert feasible(dealt[-1][0], state, env.spec_scene)
            assert "place_in_drawer" not in dealt[-1] or drawer_is_open(state)
        few = ["lift_red_block_table", "stack_block", "open_drawer"]
        assert {tuple(deal(env, few, rng, keep_arm=False, emphasis={})) for _ in range(20)} == {
            ("lift_red_block_table",), ("open_drawer",),
        }  # fmt: skip
    assert {1, 2, 3} == {len(upcoming) for upcoming in dealt}
    for upcoming in dealt:
        assert upcoming[:-1] in [prerequisites(upcoming[-1], color) for color in COLORS]


def test_a_recording_does_what_its_scene_was_arranged_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """What follows a skill that succeeded is what the scene was arranged for, not what is sampled."""
    dealt: list[list[str]] = []

    def deal_and_note(*args: Any, **options: Any) -> list[str]:
        dealt.append(deal(*args, **options))
        return list(dealt[-1])

    monkeypatch.setattr(recording, "deal", deal_and_note)
    config = recording.RecordConfig(
        scenes="D", tasks="all", layout="episodes", chains=8, episodes=0, play_share=0.0, noise_share=0.0, image_px=64,
        frame_stride=50, policy="", calvin_root="", seed=2,
    )  # fmt: skip
    followed = 0
    with closing(PlayTable("D", render_mode=None)) as env:
        for chain in (5, 6):
            dealt.clear()
            done = [facts["task"] for _, _, facts in recording._record_chain(env, config, chain, None)]
            assert done[: len(dealt[0])] == dealt[0][: len(done)]
            several = [upcoming for upcoming in dealt if len(upcoming) > 1]
            followed += sum(tasks == done[i : i + len(tasks)] for tasks in several for i in range(len(done)))
    assert followed == 2


def test_an_expert_labels_nothing_while_a_policy_drives(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is recorded is what the expert commands and what is carried out, without a gap."""

    class Stays:
        """A policy that stays where it is, so that every skill is left to the expert."""

        executed_steps = 5

        def reset(self) -> None: ...

        def close(self) -> None: ...

        def act(self, observation: Observation) -> ActionTrajectory:
            return ActionTrajectory(
                positions=np.repeat(observation.tool_position[None], 10, 0),
                quaternions=np.repeat(observation.tool_quaternion[None], 10, 0),
                gripper=np.ones(10), dt=1 / 30, start_time=observation.time,
            )  # fmt: skip

    carried: list[np.ndarray] = []
    step_pose = PlayTable.step_pose

    def note(self: PlayTable, position: np.ndarray, quaternion: np.ndarray, gripper: float) -> Any:
        carried.append(np.array([*(position - ROBOT_BASE), *quaternion, gripper]))
        return step_pose(self, position, quaternion, gripper)

    monkeypatch.setattr(PlayTable, "step_pose", note)
    config = recording.RecordConfig(
        scenes="D", tasks="all", layout="episodes", chains=8, episodes=0, play_share=0.0, noise_share=0.0,
        image_px=32, frame_stride=50, policy="", calvin_root="", seed=2,
    )  # fmt: skip
    with closing(PlayTable("D", render_mode=None)) as env:
        found = [np.stack(tape.actions) for tape, _, _ in recording._record_chain(env, config, 5, Stays())]
    steps = np.stack(carried)
    assert len(found) >= 3 and sum(map(len, found)) < len(steps)
    for actions in found:
        begins = np.flatnonzero((steps == actions[0]).all(axis=1))
        assert any(np.array_equal(steps[i : i + len(actions)], actions) for i in begins)
