"""The picking benchmark: solvable scenes, fingers inside their capsules, judges that see, trials end to end."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pybullet
import pytest

from gr2.benchmarks.wbc import picking
from gr2.benchmarks.wbc.picking import Policy, Trial, VideoRecorder, along, passed, report, run_trial
from gr2.benchmarks.wbc.picking_scenes import (
    HAND,
    HOME_YAW,
    REACHABLE_CLEARANCE,
    ROUTES,
    TALLEST,
    Scene,
    apart,
    footprint,
    grasp_yaw,
    held_capsule,
    picking_robot,
    sample_scene,
    tool_down,
)
from gr2.benchmarks.wbc.picking_simulation import (
    FINGER_SIZE,
    FINGER_STROKE,
    FINGER_Z,
    PALM_RADIUS,
    PALM_Z,
    FingerDriver,
    Judge,
    WatchedController,
    World,
)
from gr2.contracts import JointCommand
from gr2.data_pipeline.video.reader import open_video
from gr2.wbc.collision import CollisionModel, Sphere
from gr2.wbc.controller import WholeBodyController
from gr2.wbc.drivers.driver import Measurement
from gr2.wbc.robot.kinematics import Kinematics
from gr2.wbc.robot.robots import kinova_gen3
from gr2.wbc.robot.transforms import Array, matrix_from_quaternion, matrix_from_rpy, pose_matrix

ROBOT = picking_robot()
KINEMATICS = Kinematics(ROBOT)
SCENES = [sample_scene(ROBOT, 3, trial) for trial in range(12)]


# Scenes


@pytest.mark.parametrize("scene", SCENES)
def test_things_stand_apart_and_within_bounds(scene: Scene) -> None:
    assert apart(scene) and 2 <= len(scene.obstacles) <= 4
    client = pybullet.connect(pybullet.DIRECT)
    try:
        world = World(client, scene)
        bodies = [body for body, name in world.obstacles.items() if name not in ("table", "tray")]
        bodies += [world.block]
        trays = [body for body, name in world.obstacles.items() if name == "tray"]
        for a, b in [*itertools.combinations(bodies, 2), *itertools.product(bodies, trays)]:
            assert not pybullet.getClosestPoints(a, b, 0.015, physicsClientId=client)
        assert all(pybullet.getAABB(body, physicsClientId=client)[1][2] < TALLEST + 0.005 for body in bodies)
    finally:
        pybullet.disconnect(client)
    for obstacle in scene.obstacles:
        center, radius = footprint(obstacle)
        assert np.linalg.norm(center - scene.block.center[:2]) >= HAND + radius


@pytest.mark.parametrize("scene", SCENES)
def test_the_start_is_clear(scene: Scene) -> None:
    pose = KINEMATICS.forward(np.array(scene.start))
    model = CollisionModel(ROBOT, scene.collision(block=scene.block))
    assert model.clearances(pose).distances.min() >= REACHABLE_CLEARANCE
    assert pose.tool[2, 2] == pytest.approx(-1.0, abs=1e-5)


def test_scenes_repeat_and_differ() -> None:
    assert sample_scene(ROBOT, 3, 0) == SCENES[0]
    assert sample_scene(ROBOT, 4, 0) != SCENES[0] != SCENES[1]
    kinds = Counter(type(o).__name__ for scene in SCENES for o in scene.obstacles)
    assert set(kinds) == {"Box", "Sphere", "Rod"}


def test_hands_open_across_the_arm_at_home() -> None:
    robot = kinova_gen3()
    tool = Kinematics(robot).forward(robot.home).tool
    np.testing.assert_allclose(tool[:3, :3], tool_down(HOME_YAW), atol=2e-3)
    for yaw in np.linspace(-7.0, 7.0, 29):
        chosen = grasp_yaw(yaw, 0.3)
        assert abs(chosen - HOME_YAW - 0.3) <= math.pi / 4 + 1e-9
        assert math.remainder(chosen - yaw, math.pi / 2) == pytest.approx(0.0, abs=1e-9)


# Fingers


def _depth(point: Array) -> float:
    """Return how deep [m] a point of the last link lies inside the controller's capsules."""
    best = -math.inf
    for capsule in (c for c in ROBOT.capsules if c.link == ROBOT.num_joints):
        start, end = np.array(capsule.start), np.array(capsule.end)
        share = np.clip((point - start) @ (end - start) / ((end - start) @ (end - start)), 0.0, 1.0)
        best = max(best, capsule.radius - float(np.linalg.norm(point - start - share * (end - start))))
    return best


def test_fingers_and_palm_lie_inside_the_capsules_at_every_opening() -> None:
    rotation = matrix_from_rpy(ROBOT.tool_rpy)
    flange = ROBOT.tool_position - rotation @ [0.0, 0.0, 0.12]
    x, y, z = FINGER_SIZE
    places = [
        [sign * (opening * FINGER_STROKE + a * x), (b - 0.5) * y, FINGER_Z + (c - 0.5) * z]
        for opening in np.linspace(0.0, 1.0, 18)
        for sign in (-1.0, 1.0)
        for a, b, c in itertools.product((0.0, 0.5, 1.0), (0.0, 0.5, 1.0), np.linspace(0.0, 1.0, 9))
    ]
    for angle in np.linspace(0.0, 6.0, 12):
        around = PALM_RADIUS * np.array([math.cos(angle), math.sin(angle)])
        places += [[*around, height] for height in np.linspace(0.0, PALM_Z, 7)]
    assert min(_depth(rotation @ np.array(place) + flange) for place in places) > -1e-6


def test_the_arm_has_one_capsule_a_link_and_then_the_palm() -> None:
    assert [c.link for c in kinova_gen3().capsules[: ROBOT.num_joints + 2]] == [*range(8), 7]
    assert ROBOT.capsules[:9] == kinova_gen3().capsules[:9] and len(ROBOT.capsules) == 11


def test_a_held_block_is_covered() -> None:
    block = SCENES[0].block
    tool = pose_matrix([block.center[0] + 0.004, block.center[1], 0.05], tool_down(0.7))
    capsule = held_capsule(block, tool)
    start, end = (tool[:3, :3] @ np.array(p) + tool[:3, 3] for p in (capsule.start, capsule.end))
    for signs in itertools.product((-1.0, 1.0), repeat=3):
        corner = block.center + matrix_from_quaternion(block.quaternion) @ (np.array(signs) * block.half_extents)
        share = np.clip((corner - start) @ (end - start) / ((end - start) @ (end - start)), 0.0, 1.0)
        assert np.linalg.norm(corner - start - share * (end - start)) < capsule.radius


# Judges


@pytest.fixture
def judged() -> Iterator[tuple[Judge, FingerDriver]]:
    client = pybullet.connect(pybullet.DIRECT)
    world = World(client, SCENES[0])
    driver = FingerDriver(ROBOT, client=client, start=SCENES[0].start)
    driver.connect()
    yield Judge(ROBOT, world, driver), driver
    pybullet.disconnect(client)


def _hold(driver: FingerDriver) -> Measurement:
    still = np.zeros(ROBOT.num_joints)
    driver.send(JointCommand(positions=np.array(SCENES[0].start), velocities=still, gripper=1.0, status="hold"))
    return driver.read()


def test_standing_still_is_no_fault(judged: tuple[Judge, FingerDriver]) -> None:
    judge, driver = judged
    for _ in range(48):
        judge.look(_hold(driver), held=False)
    assert not judge.contacts and not any(judge.violations.values())
    assert judge.clearance > REACHABLE_CLEARANCE - 0.001


def test_fingers_close_and_open_at_their_rate(judged: tuple[Judge, FingerDriver]) -> None:
    _, driver = judged
    still, q = np.zeros(ROBOT.num_joints), np.array(SCENES[0].start)
    seen = []
    for step in range(240):
        opening = max(1.0 - step / 240 * ROBOT.gripper_rate, 0.0)
        driver.send(JointCommand(positions=q, velocities=still, gripper=opening, status="hold"))
        seen.append(driver.gripper_opening())
    assert seen[-1] < 0.01 and np.abs(np.diff(seen)).max() * 240 < 1.3 * ROBOT.gripper_rate
    left, right = (pybullet.getJointState(driver.body, i, physicsClientId=driver.client)[0] for i in driver.fingers)
    assert left == pytest.approx(right, abs=1e-4)


@pytest.mark.parametrize("thing", ["obstacle", "block"])
def test_a_touch_is_seen(judged: tuple[Judge, FingerDriver], thing: str) -> None:
    judge, driver = judged
    palm = pybullet.getLinkState(driver.body, driver.fingers[0] - 1, physicsClientId=driver.client)[0]
    if thing == "block":
        body = judge.world.block
    else:
        body = judge.world._add(Sphere(center=(0.0, 0.0, 5.0), radius=0.03), (1.0, 0.0, 0.0, 1.0))
        judge.world.obstacles[body] = "ball"
    pybullet.resetBasePositionAndOrientation(body, palm, (0, 0, 0, 1), physicsClientId=driver.client)
    judge.look(_hold(driver), held=False)
    name = "block" if thing == "block" else "ball"
    assert any(pair.endswith(f" with {name}") for pair in judge.contacts)
    if thing == "obstacle":
        assert judge.clearance < 0.0


def test_the_block_against_an_obstacle_is_seen(judged: tuple[Judge, FingerDriver]) -> None:
    judge, driver = judged
    center, _ = footprint(SCENES[0].obstacles[0])
    place = (*center.tolist(), 0.05)
    pybullet.resetBasePositionAndOrientation(judge.world.block, place, (0, 0, 0, 1), physicsClientId=driver.client)
    judge.look(_hold(driver), held=False)
    assert any(pair.startswith("block with ") for pair in judge.contacts)


def test_measured_limits_are_seen(judged: tuple[Judge, FingerDriver]) -> None:
    judge, driver = judged
    fine = driver.read()
    judge.limits(fine)
    assert not any(judge.violations.values())
    judge.limits(dataclasses.replace(fine, velocities=1.03 * ROBOT.velocity))
    judge.limits(dataclasses.replace(fine, positions=fine.positions + [0, 3.0, 0, 0, 0, 0, 0]))
    assert judge.violations == {"measured position": 1, "measured velocity": 1}


@pytest.mark.parametrize(
    ("steps", "broken"),
    [
        ([0.0, 0.0], set()),
        ([0.0, 0.9 * 5.2 * 0.005**2], set()),
        ([0.0, 1.1 * 5.2 * 0.005**2], {"commanded acceleration"}),
        ([0.0, 1.01 * 1.3963 * 0.005], {"commanded acceleration", "commanded velocity"}),
        ([4.0, 0.0], {"commanded position", "commanded acceleration", "commanded velocity"}),
    ],
)
def test_commanded_limits_are_seen(steps: list[float], broken: set[str]) -> None:
    seen: Counter[str] = Counter()
    watched = WatchedController(WholeBodyController(ROBOT), seen)
    watched.reset(ROBOT.home, 1.0, 0.0)
    q = ROBOT.home
    for step in steps:
        q = q + step * np.eye(ROBOT.num_joints)[1]
        watched.judge(JointCommand(positions=q, velocities=0.0 * q, gripper=1.0, status="track"))
    assert {name for name, count in seen.items() if count} == broken


# Policy and trials


def test_poses_go_along_the_line_and_stop_at_its_end() -> None:
    corners = [np.array([0.0, 0.0, 0.1]), np.array([0.2, 0.0, 0.1])]
    points = along(np.zeros(3), corners, np.array([0.05, 0.2, 0.9]))
    np.testing.assert_allclose(points, [[0, 0, 0.05], [0.1, 0, 0.1], [0.2, 0, 0.1]], atol=1e-12)


def test_the_noise_is_what_it_says() -> None:
    scene = SCENES[0]
    tool = pose_matrix([*scene.block.center[:2], ROUTES[0]], tool_down(0.0))
    chunks = [Policy(scene, np.random.default_rng(s)).chunk(0.0, tool, 1.0, scene.block) for s in range(200)]
    wanted = np.array([*scene.block.center[:2], ROUTES[0]])
    means = np.array([np.linalg.norm(c.positions.mean(0) - wanted) for c in chunks if c.gripper[0] == 1.0])
    assert 0.006 < means.mean() < 0.009 and means.max() < picking.BIAS[0] + 0.003
    spread = np.array([c.positions.std(0, ddof=1) for c in chunks])
    assert np.sqrt(np.square(spread).mean()) == pytest.approx(picking.JITTER[0], rel=0.1)


def test_a_policy_that_does_not_get_on_goes_higher() -> None:
    scene = SCENES[0]
    policy = Policy(scene, np.random.default_rng(0))
    tool = pose_matrix([0.4, 0.0, 0.2], tool_down(HOME_YAW))
    lasts = [policy.chunk(0.2 * k, tool, 1.0, scene.block).positions[-1, 2] for k in range(40)]
    assert policy.raised == len(ROUTES) - 1 and policy.stage == "approach"
    assert lasts[-1] > ROUTES[-1] - 0.03 > lasts[0]


@pytest.mark.parametrize(("trial", "rate"), [(1, 240.0), (2, 240.0)])
def test_picks_and_places(trial: int, rate: float) -> None:
    result = run_trial(trial, seed=3, rate=rate)
    assert result.success, result.cause
    assert passed([result]) and result.clearance > 0.0 and result.following < math.radians(1.0)
    text = report([result])
    assert "100.0%" in text and "contacts          none" in text


def test_one_contact_fails_the_whole() -> None:
    fine = [Trial(trial=k, success=True, planning=[0.01], clearance=0.01) for k in range(99)]
    assert passed([*fine, Trial(trial=99, cause="block not in the tray")])
    assert not passed([*fine, Trial(trial=99, cause="contact", contacts={"palm with table": 1})])
    assert not passed([*fine[:90], *(Trial(trial=k, cause="out of time in stage carry") for k in range(6))])


def test_a_video_takes_an_image_in_its_time(judged: tuple[Judge, FingerDriver], tmp_path: Path) -> None:
    _, driver = judged
    video = VideoRecorder()
    for now in (0.0, 0.02, 0.04, 1 / 15, 0.1, 0.0, 1 / 15):
        video(driver.client, now)
    assert [frame.shape for frame in video.frames] == [(VideoRecorder.HEIGHT, VideoRecorder.WIDTH, 3)] * 4
    assert len(np.unique(video.frames[0].reshape(-1, 3), axis=0)) > 100
    video.write(tmp_path / "video.mp4")
    with open_video(tmp_path / "video.mp4") as reader:
        assert len(reader) == 4


@pytest.mark.nightly
def test_a_hundred_trials(tmp_path: Path) -> None:
    assert picking.benchmark(trials=100, seed=1, json=tmp_path / "metrics.json") == 0
