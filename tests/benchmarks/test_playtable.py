"""The simulator: layout, control, determinism, tasks, experts."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import numpy as np
import pytest

from gr2.benchmarks.calvin.episodes import chain_start, start_state, task_start
from gr2.benchmarks.demonstrations.expert_motion import ExpertStyle
from gr2.benchmarks.demonstrations.experts import act
from gr2.benchmarks.playtable.cameras import CameraConfig
from gr2.benchmarks.playtable.environment import PlayTable
from gr2.benchmarks.playtable.feasibility import feasible
from gr2.benchmarks.playtable.sampling import sample_scene
from gr2.benchmarks.playtable.scenes import scene
from gr2.benchmarks.playtable.tasks import TASKS
from gr2.benchmarks.playtable.world import WorldState
from gr2.benchmarks.policies.scripted import ScriptedPolicy
from gr2.benchmarks.simulation.control import PoseControl, WbcControl
from gr2.benchmarks.simulation.episodes import run_chain
from gr2.contracts import ActionTrajectory
from gr2.errors import ConfigError, SimulationError

GOLDEN = Path(__file__).resolve().parents[2] / ".." / "shared" / "calvin" / "golden"


@pytest.fixture
def env():
    world = PlayTable("D", camera=CameraConfig(static_px=64, gripper_px=64), render_mode=None)
    yield world
    world.close()


def test_unknown_scene_is_named():
    with pytest.raises(ConfigError, match="expected one of A, B, C, D"):
        scene("E")


def test_reset_refuses_numbers_that_are_not_finite(env):
    with pytest.raises(SimulationError, match="24 finite"):
        env.reset(options={"scene_obs": np.full(24, np.nan)})


def test_reset_refuses_a_misspelt_option(env):
    with pytest.raises(SimulationError, match="robot_obs, scene_obs"):
        env.reset(options={"scene": np.zeros(24)})


@pytest.mark.parametrize("name", "ABCD")
def test_layout_agrees_with_the_recorded_calvin(name):
    if not GOLDEN.is_dir():
        pytest.skip("recordings of the official simulator (../shared/calvin) are absent")
    layout = json.loads((GOLDEN / "scene_layout.json").read_text())[name]
    world = PlayTable(name, render_mode=None)
    import pybullet

    for joint, facts in layout["joints"].items():
        info = pybullet.getJointInfo(world.table, world._joints[joint], physicsClientId=world.client)
        place = pybullet.getLinkState(world.table, world._joints[joint], physicsClientId=world.client)[4]
        assert np.allclose(place, facts["world_link_frame_pos"], atol=6e-3), joint
        if facts["type"] == 1:
            assert np.allclose(info[8:10], facts["limits"], atol=1e-6), joint
    assert [f"block_{c}" for c in world.spec_scene.blocks] == list(layout["movable"])
    world.close()


def test_neutral_tool_pose_agrees_with_calvin(env):
    env.reset()
    expected = [0.02586889, -0.2313129, 0.5712808, 3.09045411, -0.02908596, 1.50013585]
    assert np.allclose(env.robot_obs()[:6], expected, atol=2e-3)


def test_tracking_lag_agrees_with_calvin(env):
    env.reset()
    begin = env.robot_obs()[0]
    action = np.array([1.0, 0, 0, 0, 0, 0, 1])
    path = [env.step(action)[0]["robot_obs"][0] - begin for _ in range(8)]
    measured = [0.0098, 0.0248, 0.0423, 0.0608, 0.0798, 0.0988, 0.1178, 0.1366]
    assert np.allclose(path, measured, atol=5e-3)


def test_same_actions_after_reset_give_identical_observations(env):
    rng = np.random.default_rng(0)
    scene_obs = sample_scene(env.spec_scene, rng)
    actions = np.concatenate([rng.uniform(-1, 1, (25, 6)), rng.choice([-1, 1], (25, 1))], axis=1)
    runs = []
    for _ in range(2):
        env.reset(options={"scene_obs": scene_obs})
        runs.append([np.concatenate([env.step(a)[0][k] for k in ("robot_obs", "scene_obs")]) for a in actions])
    assert np.array_equal(runs[0], runs[1])


def test_images_have_the_size_asked_for_and_show_the_light(env):
    off, on = np.zeros(24), np.zeros(24)
    for obs in (off, on):
        obs[6:] = env._default_scene()[6:]
    on[5] = 1
    images = []
    for obs in (off, on):
        env.reset(options={"scene_obs": obs})
        images.append(env.draw("static"))
    assert images[0].shape == (64, 64, 3)
    assert env.draw("gripper", px=84).shape == (84, 84, 3)
    changed = np.any(images[0] != images[1], axis=-1)
    assert 3 < changed.sum() < 200
    assert images[1][changed][:, 1].mean() > images[1][changed][:, 0].mean() + 80


def test_button_toggles_once_a_press(env):
    env.reset()
    states = []
    for pressed in (0.02, 0.02, 0.0, 0.02):
        import pybullet

        pybullet.resetJointState(env.table, env._joints["base__button"], pressed, physicsClientId=env.client)
        env._update_lights()
        states.append(env.led)
    assert states == [True, True, True, False]


@pytest.mark.parametrize("name", list(TASKS))
def test_expert_does_its_task(env, name):
    task_start(env, name, 3, 0)
    start = env.world_state()
    for _ in range(150):
        env.step_pose(*act(name, env.world_state(), env.spec_scene, ExpertStyle()))
        if TASKS[name].done(start, env.world_state()):
            return
    pytest.fail(f"{name} was not done in 150 steps")


def test_generated_scenes_are_parts_of_the_training_scenes():
    specs = [scene(f"R{number}") for number in range(40)]
    training = [scene(letter) for letter in "ABC"]
    for spec in specs:
        assert (spec.button_x, spec.spawn_x) in [(one.button_x, one.spawn_x) for one in training]
        assert (spec.switch_x, spec.slider_x, spec.cabinet_x) in [
            (s.switch_x, s.slider_x, s.cabinet_x) for s in training
        ]
        assert sorted(spec.block_lengths) == [0.04, 0.056, 0.08]
        assert min(spec.table_color) > 0.1 and spec.table_color not in [one.table_color for one in training]


def test_no_generated_scene_has_the_furniture_of_scene_d():
    def furniture(spec):
        return spec.button_x, spec.switch_x, spec.slider_x, spec.drawer_x

    assert furniture(scene("D")) not in {furniture(scene(f"R{number}")) for number in range(500)}


def test_generated_scenes_are_many():
    specs = [scene(f"R{number}") for number in range(40)]
    assert specs == [scene(f"R{number}") for number in range(40)]
    assert len({(s.button_x, s.switch_x, s.slider_x, s.drawer_x, s.blocks, s.block_lengths) for s in specs}) > 30


@pytest.mark.parametrize("name", ["push_red_block_left", "lift_blue_block_table", "open_drawer", "turn_on_lightbulb"])
def test_expert_does_its_task_in_a_generated_scene(name):
    with contextlib.closing(PlayTable("R3", render_mode=None)) as env:
        test_expert_does_its_task(env, name)


def test_nothing_is_done_at_the_start(env):
    for index in range(5):
        start_state(env, sample_scene(env.spec_scene, np.random.default_rng(index)))
        state = env.world_state()
        assert not any(task.done(state, state) for task in TASKS.values())


def _state(**changes) -> WorldState:
    values = {
        "tool_position": np.zeros(3), "tool_quaternion": np.array([0, 0, 0, 1.0]), "finger_width": 0.08,
        "gripper_command": 1.0, "slider": 0.0, "drawer": 0.0, "button": 0.0, "switch": 0.0, "bulb": False,
        "led": False,
        "blocks": {c: (np.array([0.1, -0.1, 0.46]), np.array([0, 0, 0, 1.0])) for c in ("red", "blue", "pink")},
        "contacts": {c: frozenset({("table", "base_link")}) for c in ("red", "blue", "pink")},
    }  # fmt: skip
    return WorldState(**(values | changes))


@pytest.mark.parametrize(("drawer", "done"), [(0.119, False), (0.121, True)])
def test_drawer_threshold(drawer, done):
    assert TASKS["open_drawer"].done(_state(), _state(drawer=drawer)) is done


def test_lift_needs_the_robot_alone():
    up = {c: (np.array([0.1, -0.1, 0.52]), np.array([0, 0, 0, 1.0])) for c in ("red", "blue", "pink")}
    held = {"red": frozenset({("robot", "")})}
    resting = {"red": frozenset({("robot", ""), ("table", "base_link")})}
    assert TASKS["lift_red_block_table"].done(_state(), _state(blocks=up, contacts=held))
    assert not TASKS["lift_red_block_table"].done(_state(), _state(blocks=up, contacts=resting))


def test_feasibility_wants_the_block_on_the_desk():
    spec = scene("D")
    state = _state(contacts={c: frozenset({("table", "plank_link")}) for c in ("red", "blue", "pink")})
    assert not feasible("lift_red_block_table", state, spec)


@pytest.mark.parametrize("make", [PoseControl, WbcControl])
def test_chain_under_both_controls_breaks_no_limit(env, make):
    policy, control = ScriptedPolicy(env), make(env)
    _, chain = chain_start(env, 11, 0)
    control.reset()
    results = run_chain(env, policy, control, chain[:3], instruction=str, executed_steps=5, max_steps=200)
    assert [(r.task, r.success) for r in results] == [(name, True) for name in chain[:3]]
    policy.close()
    if isinstance(control, WbcControl):
        for counter in (control.commanded, control.measured):
            assert counter.ticks > 0
            assert counter.position_violations == counter.velocity_violations == 0


def test_under_whole_body_control_the_arm_hangs_back_and_arrives(env):
    env.reset(seed=0)
    control = WbcControl(env)
    control.reset()
    tool = env.observe("", images=False)
    way = 0.2 / 30 * np.arange(1, 11)  # 0.2 m/s
    chunk = ActionTrajectory(
        positions=tool.tool_position + way[:, None] * [1.0, 0.0, 0.0],
        quaternions=np.repeat(tool.tool_quaternion[None], 10, 0),
        gripper=np.ones(10),
        dt=1 / 30,
        start_time=0.0,
    )
    control.follow(chunk)
    passed = []
    for _ in range(45):
        control.step()
        passed.append(env.observe("", images=False).tool_position[0] - tool.tool_position[0])
    behind = way - passed[:10]
    assert 0.010 < behind[-1] < 0.025  # 2 / RESPONSE late, less half a step
    assert max(passed) < way[-1] + 0.005 and passed[-1] == pytest.approx(way[-1], abs=0.004)


@pytest.mark.parametrize("push", [0.05, -0.05])
def test_a_joint_that_contacts_push_over_its_limit_is_taken_back(monkeypatch, push):
    env = PlayTable("D", render_mode=None)
    control, arm, joint = WbcControl(env), env.arm, 6
    start = env.joint_state()[0]
    start[joint] = arm.upper[joint] - 0.03 if push > 0 else arm.lower[joint] + 0.03
    state = [start]
    pushed = np.where(np.arange(arm.num_joints) == joint, push, 0.0)
    monkeypatch.setattr(env, "joint_state", lambda: (state[-1], np.zeros(arm.num_joints)))
    control.reset()
    monkeypatch.setattr(env, "step_joints", lambda commands: state.append(commands[-1].positions + pushed))
    for _ in range(30):
        control.step()
    env.close()
    margin = np.minimum(np.stack(state) - arm.lower, arm.upper - np.stack(state))[:, joint]
    assert margin[1] == pytest.approx(-0.02) and min(margin[4:]) > 0
    assert np.ptp(margin[-10:]) < 1e-3 and margin[-1] == pytest.approx(0.015, abs=1e-3)
    assert control.commanded.velocity_violations == control.commanded.position_violations == 0


def test_commands_to_an_arm_that_cannot_move_stay_near_it(monkeypatch):
    env = PlayTable("D", render_mode=None)
    control, sent = WbcControl(env), []
    control.reset()
    monkeypatch.setattr(env, "step_joints", sent.extend)  # the arm is held
    tool = env.observe("", images=False)
    far = np.linspace(0.02, 0.2, 10)[:, None] * [1.0, 0.0, 0.0]
    for _ in range(10):
        control.follow(
            ActionTrajectory(
                positions=tool.tool_position + far,
                quaternions=np.repeat(tool.tool_quaternion[None], 10, 0),
                gripper=np.zeros(10),
                dt=1 / 30,
                start_time=0.0,
            )
        )
        for _ in range(5):
            control.step()
    ahead = np.abs([c.positions - tool.joint_positions for c in sent]).max()
    env.close()
    assert 0.05 < ahead <= 0.06 + 1e-9
