"""The benchmark of whole-body control: cases and files, chunks, the evaluator by hand, exit codes, peers, video."""

from __future__ import annotations

import importlib.util
import json
import sys
import xml.etree.ElementTree as ElementTree
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gr2.benchmarks.wbc import peers, run, track
from gr2.benchmarks.wbc.built_in import built_in_cases, followable, noisy_cases
from gr2.benchmarks.wbc.clearances import distances, segment_distances
from gr2.benchmarks.wbc.feeding import FeedingConfig, NoiseConfig, Run, chunks_of, drive, with_noise
from gr2.benchmarks.wbc.metrics import broken, derivatives, evaluate, recovery_time
from gr2.benchmarks.wbc.motions import there_and_back
from gr2.benchmarks.wbc.reachability import Demand, continuation, demand_of
from gr2.benchmarks.wbc.tables import missed
from gr2.benchmarks.wbc.trajectories import TICK, TrackingCase, load_cases
from gr2.cli.main import main
from gr2.contracts import ActionTrajectory, JointCommand
from gr2.errors import ConfigError, DataError
from gr2.wbc.collision import CollisionModel, Plane, Sphere
from gr2.wbc.robot.kinematics import Kinematics
from gr2.wbc.robot.robots import kinova_gen3
from gr2.wbc.robot.transforms import matrix_from_quaternion, rotation_exp, rotation_log

ROBOT = kinova_gen3()
ARM = Kinematics(ROBOT)


def still(ticks: int = 20, **changes: Any) -> TrackingCase:
    """The tool stays where the home pose has it."""
    poses = np.tile(ARM.forward(ROBOT.home).tool, (ticks + 1, 1, 1))
    return TrackingCase(**({"name": "still", "group": "smooth", "poses": poses, "q0": ROBOT.home} | changes))


def lifting(seconds: float = 0.4, group: str = "smooth") -> TrackingCase:
    """The tool goes up by 2 cm and back."""
    poses = np.tile(ARM.forward(ROBOT.home).tool, (round(seconds / TICK) + 1, 1, 1))
    poses[:, 2, 3] += 0.02 * there_and_back(seconds)
    return TrackingCase(name="lifting", group=group, poses=poses, q0=ROBOT.home)


def ran(q: np.ndarray, statuses: tuple[str, ...] = ()) -> Run:
    return Run(q=q, statuses=statuses, tick_ms=np.arange(1.0, len(q)), plan_ms=np.array([4.0, 8.0]))


def arrays(**changes: Any) -> dict[str, Any]:
    """The arrays of a file with one smooth and one hard case."""
    case = lifting()
    content = {
        "T": case.poses[None],
        "q0": case.q0[None],
        "kind": np.array(["lift"]),
        "dt": np.array(TICK),
        "hard_ball_T": case.poses,
        "hard_ball_q0": case.q0,
        "hard_ball_obs": np.array([[0.7, 0.0, 0.3, 0.05, 0.0, 0.1, 0.0]]),
    }
    return {key: value for key, value in (content | changes).items() if value is not None}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "motions.npz"
    np.savez(path, **arrays())
    return path


def test_a_file_becomes_its_cases(file: Path) -> None:
    smooth, hard = load_cases(file)
    assert (smooth.name, smooth.group, hard.name, hard.group) == ("00_lift", "smooth", "ball", "hard")
    np.testing.assert_array_equal(hard.poses, lifting().poses)
    assert hard.spheres == (Sphere(center=(0.7, 0.0, 0.3), radius=0.05, velocity=(0.0, 0.1, 0.0)),)
    assert smooth.plane == Plane() and smooth.num_ticks == 80


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"q0": None}, "expected an array q0"),
        ({"T": None, "q0": None, "hard_ball_T": None}, "expected arrays T and q0 or hard_<name>_T"),
        ({"hard_ball_q0": None}, "expected an array hard_ball_q0"),
        ({"T": np.zeros((1, 5, 4))}, "expected T [c n 4 4]"),
        ({"T": np.full((1, 5, 4, 4), np.nan)}, "expected finite numbers"),
        ({"T": np.zeros((1, 5, 4, 4))}, "expected rigid poses"),
        ({"hard_ball_T": np.eye(4)[None]}, "n > 1"),
        ({"hard_ball_T": np.array(["a", "b"])}, "expected numbers"),
        ({"hard_ball_obs": np.zeros((1, 4))}, "radius > 0"),
        ({"hard_ball_obs": np.zeros((1, 3))}, "expected rows"),
        ({"dt": np.array(0.01)}, "expected dt = 0.005 s"),
        ({"kind": np.array(["a", "b"])}, "one name for each motion"),
        ({"kind": np.array([{}], dtype=object)}, "expected a whole .npz archive"),
    ],
)
def test_a_file_of_another_layout_is_refused_in_one_sentence(tmp_path: Path, changes: Any, words: str) -> None:
    path = tmp_path / "bad.npz"
    np.savez(path, **arrays(**changes))
    with pytest.raises(DataError) as error:
        load_cases(path)
    assert words in str(error.value) and str(path) in str(error.value) and "\n" not in str(error.value)


def test_a_file_that_is_no_archive_or_cut_short_is_refused(file: Path, tmp_path: Path) -> None:
    whole = file.read_bytes()
    broken_files = {"text.npz": b"no archive", "empty.npz": b"", "cut.npz": whole[: len(whole) // 2]}
    for name, content in broken_files.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match="expected a whole"):
            load_cases(tmp_path / name)
    np.save(tmp_path / "array.npy", np.zeros(3))
    with pytest.raises(DataError, match="expected a whole"):
        load_cases(tmp_path / "array.npy")
    with pytest.raises(DataError, match="no file"):
        load_cases(tmp_path / "missing.npz")


def test_built_in_cases_begin_where_the_arm_stands_and_smooth_ones_can_be_followed() -> None:
    cases = built_in_cases()
    assert len({case.name for case in cases}) == len(cases)
    assert Counter(case.group for case in cases) == {"smooth": 20, "hard": 17}
    for case in cases:
        if case.name != "noisy_10Hz_steps":
            np.testing.assert_allclose(case.poses[0], ARM.forward(case.q0).tool, atol=1e-9)
    for case in [c for c in cases if c.name in ("tool_quintic_00", "tool_quintic_09")]:
        assert followable(ROBOT, continuation(ROBOT, case.poses, case.q0))
    start = {c.name: distances(ROBOT, c, c.q0[None]).least()[0] for c in cases if c.group == "hard"}
    assert start.pop("start_in_collision") < 0.0 and min(start.values()) > 0.009


def test_chunks_show_the_poses_that_are_due_after_them() -> None:
    case = lifting(0.4)
    chunks = chunks_of(case, FeedingConfig(chunk_hz=20.0, horizon=0.2, replan_hz=5.0))
    assert [c.arrival for c in chunks] == pytest.approx([0.0, 0.2])
    for chunk in chunks:
        trajectory = chunk.trajectory
        assert trajectory.dt == 0.05 and len(trajectory.positions) == 4
        for index in range(4):
            due = trajectory.start_time + (index + 1) * trajectory.dt
            pose = case.poses[min(round(due / TICK), case.num_ticks)]
            np.testing.assert_allclose(trajectory.positions[index], pose[:3, 3])
            np.testing.assert_allclose(matrix_from_quaternion(trajectory.quaternions[index]), pose[:3, :3], atol=1e-12)


def test_chunks_come_late_early_in_another_order_or_not_at_all() -> None:
    case = still(1000)
    late = chunks_of(case, FeedingConfig(delay=(0.0, 0.3)))
    delays = [c.arrival - c.trajectory.start_time for c in late]
    starts = [c.trajectory.start_time for c in late]
    assert delays[0] == 0.0 and min(delays) >= 0.0 and 0.2 < max(delays) <= 0.3 and len(late) == 25
    assert starts != sorted(starts) and [c.arrival for c in late] == sorted(c.arrival for c in late)
    early = chunks_of(case, FeedingConfig(delay=(-0.1, -0.1)))
    assert all(c.arrival == pytest.approx(max(c.trajectory.start_time - 0.1, 0.0)) for c in early)
    kept = chunks_of(case, FeedingConfig(drop=0.5))
    assert 5 < len(kept) < 20 and kept[0].trajectory.start_time == 0.0


def test_feeding_that_cannot_be_is_refused() -> None:
    for wrong in ({"chunk_hz": 0.0}, {"horizon": 0.01}, {"delay": (1.0, 0.0)}, {"drop": 1.0}, {"jitter": 0.01}):
        with pytest.raises(ConfigError):
            FeedingConfig(**wrong)
    with pytest.raises(ConfigError):
        FeedingConfig(replan_hz=float("nan"))


def test_noise_has_a_bias_for_each_chunk_and_a_spread_for_each_pose() -> None:
    rng, pose = np.random.default_rng(0), ARM.forward(ROBOT.home).tool
    shifts, turns = [], []
    for _ in range(400):
        noisy = with_noise(np.tile(pose, (10, 1, 1)), NoiseConfig(), rng)
        shifts.append(noisy[:, :3, 3] - pose[:3, 3])
        turns.append([rotation_log(n[:3, :3] @ pose[:3, :3].T) for n in noisy])
    for errors, bias, noise in ((np.array(shifts), 0.01, 0.002), (np.array(turns), np.deg2rad(3), np.deg2rad(1))):
        means = np.linalg.norm(errors.mean(axis=1), axis=1)
        within = errors - errors.mean(axis=1, keepdims=True)
        assert np.sqrt(np.square(within).mean() * 10 / 9) == pytest.approx(noise, rel=0.03)
        expected = bias**2 / 3 + 3 * noise**2 / 10
        assert np.square(means).mean() == pytest.approx(expected, rel=0.15)
        assert means.max() < bias + 3 * noise


def test_noisy_cases_differ_by_seed_alone_and_keep_the_truth() -> None:
    first, second = noisy_cases([lifting()], 2)
    np.testing.assert_array_equal(first.poses, lifting().poses)
    shown = [chunks_of(case, FeedingConfig())[0].trajectory.positions for case in (first, first, second)]
    np.testing.assert_array_equal(shown[0], shown[1])
    assert np.abs(shown[0] - shown[2]).max() > 1e-4


def test_errors_are_those_computed_by_hand() -> None:
    case = still(20)
    case.poses[1:, 0, 3] += 0.003
    case.poses[11:, 0, 3] += 0.001
    case.poses[1:, :3, :3] = rotation_exp([0.0, 0.0, np.deg2rad(2.0)]) @ case.poses[1:, :3, :3]
    found = evaluate(ROBOT, case, ran(np.tile(ROBOT.home, (21, 1))), "x")
    assert found.position_rms_mm == pytest.approx(np.sqrt((9 + 16) / 2))
    assert found.position_max_mm == pytest.approx(4.0) and found.position_final_mm == pytest.approx(4.0)
    assert found.rotation_rms_deg == pytest.approx(2.0) and found.rotation_max_deg == pytest.approx(2.0)
    assert found.jerk_max == 0.0 and found.velocity_ratio == 0.0 and found.path_ratio == pytest.approx(0.0)
    assert found.recovery_s == 0.0 and broken(found) == [] and found.finite
    assert (found.tick_ms_median, found.tick_ms_max, found.plan_ms_median, found.plan_ms_max) == (10.5, 20.0, 6.0, 8.0)


def test_derivatives_are_those_of_a_cubic_from_rest() -> None:
    q = np.zeros((8, 1))
    q[3:, 0] = 1e-6
    velocity, acceleration, jerk = derivatives(q)
    assert velocity.max() == pytest.approx(1e-6 / TICK)
    assert acceleration[:, 0] == pytest.approx(np.array([0, 0, 1, -1, 0, 0, 0]) * 1e-6 / TICK**2)
    assert jerk[:, 0] == pytest.approx(np.array([0, 1, -2, 1, 0, 0]) * 1e-6 / TICK**3)


def test_limits_are_judged_tick_by_tick() -> None:
    case = still(4)
    q = np.tile(ROBOT.home, (5, 1))
    q[1:, 0] += 1.5 * ROBOT.velocity[0] * TICK
    found = evaluate(ROBOT, case, ran(q), "x")
    assert found.velocity_violations == 1 and found.velocity_ratio == pytest.approx(1.5)
    assert found.acceleration_violations == 2 and found.emergency_violations == 2
    step = 2.0 * ROBOT.acceleration[0] * TICK**2
    q = np.tile(ROBOT.home, (5, 1))
    q[1:, 0] += step * np.array([1.0, 2.0, 3.0, 4.0])
    quiet = evaluate(ROBOT, case, ran(q, ("track",) * 4), "x")
    emergency = evaluate(ROBOT, case, ran(q, ("emergency_brake", "track", "track", "track")), "x")
    assert quiet.acceleration_violations == 1 and quiet.acceleration_ratio == pytest.approx(2.0)
    assert emergency.acceleration_violations == 0 and emergency.emergency_violations == 0
    assert any("acceleration" in fault for fault in broken(quiet)) and broken(emergency) == []
    q = np.tile(ROBOT.home, (5, 1))
    q[3, 1] = ROBOT.upper[1] + 0.1
    over = evaluate(ROBOT, case, ran(q), "x")
    assert over.position_violations == 1 and over.position_excess == pytest.approx(0.1)
    assert any("position limit" in fault for fault in broken(over))
    q[3:] = np.nan
    assert "joints that are not finite" in broken(evaluate(ROBOT, case, ran(q), "x"))


def test_distances_equal_those_of_the_controller_and_of_samples() -> None:
    rng = np.random.default_rng(1)
    q = np.clip(ROBOT.home + 0.8 * rng.normal(size=(40, 7)), ROBOT.lower, ROBOT.upper)
    ball = Sphere(center=(0.4, 0.1, 0.3), radius=0.07)
    case = still(39, spheres=(ball,))
    found = distances(ROBOT, case, q)
    model = CollisionModel(ROBOT, case.scene)
    for row, least in zip(q, found.least(), strict=True):
        assert least == pytest.approx(model.clearances(ARM.forward(row)).nearest, abs=1e-9)
    a, b, c, d = rng.normal(size=(4, 50, 3))
    shares = np.linspace(0.0, 1.0, 60)[:, None, None]
    along, across = a + shares * (b - a), c + shares * (d - c)
    sampled = np.linalg.norm(along[:, None] - across[None], axis=-1).min(axis=(0, 1))
    exact = segment_distances(a, b, c, d)
    assert np.all(exact <= sampled + 1e-12) and np.abs(exact - sampled).max() < 0.05
    assert segment_distances(a, b, a, b).max() < 1e-12


def test_a_sphere_moves_while_the_arm_stands() -> None:
    tool = ARM.forward(ROBOT.home).tool[:3, 3]
    ball = Sphere(center=(float(tool[0]), float(tool[1]) - 0.5, 0.2), radius=0.05, velocity=(0.0, 0.3, 0.0))
    found = distances(ROBOT, still(100, spheres=(ball,)), np.tile(ROBOT.home, (101, 1))).spheres
    assert found is not None
    later = Sphere(center=(ball.center[0], ball.center[1] + 0.15, 0.2), radius=0.05)
    again = distances(ROBOT, still(1, spheres=(later,)), ROBOT.home[None]).spheres
    assert again is not None and found[-1] == pytest.approx(again[0])
    assert found[0] - found[-1] == pytest.approx(0.15, abs=0.02)


def test_a_distance_counts_from_nine_millimeters_or_from_where_it_began() -> None:
    tool = ARM.forward(ROBOT.home).tool[:3, 3]
    for height, fault in ((0.012, False), (0.0095, False), (0.005, False)):
        gap = float(distances(ROBOT, still(), ROBOT.home[None]).least()[0]) - height
        found = evaluate(ROBOT, still(plane=Plane(offset=gap)), ran(np.tile(ROBOT.home, (21, 1))), "x")
        assert bool(broken(found)) is fault and found.clearance_mm == pytest.approx(height * 1e3, abs=1e-6)
    q = np.tile(ROBOT.home, (21, 1))
    q[:, 1] += np.linspace(0.0, 0.02, 21)
    lower = evaluate(ROBOT, still(plane=Plane(offset=gap)), ran(q), "x")
    assert tool[2] > 0.0 and any("must be kept" in fault for fault in broken(lower))


def test_recovery_is_the_time_after_the_last_pose_that_could_not_be_followed() -> None:
    case = still(300)
    errors = np.zeros(300)
    followable_poses = np.ones(301, dtype=bool)
    assert recovery_time(ROBOT, case, errors, None) == (0.0, True)
    errors[50:120] = 20.0
    followable_poses[60:101] = False
    demand = Demand(reachable=followable_poses, followable=followable_poses)
    assert recovery_time(ROBOT, case, errors, demand) == (pytest.approx(20 * TICK), True)
    errors[50:] = 20.0
    assert recovery_time(ROBOT, case, errors, demand) == (pytest.approx(None), False)
    followable_poses[150:] = False
    assert recovery_time(ROBOT, case, errors, demand) == (None, None)


def test_demand_tells_what_can_be_reached_and_what_comes_too_fast() -> None:
    case = still(100)
    case.poses[50:, 0, 3] += 2.0
    reachable = demand_of(ROBOT, case).reachable
    assert reachable[:41].all() and not reachable[50:].any()
    jump = still(200)
    jump.poses[50:, 1, 3] += 0.1
    demand = demand_of(ROBOT, jump)
    assert demand.reachable.all() and demand.followable[:41].all() and demand.followable[-1]
    assert not demand.followable[51:61].any()


def test_the_controller_follows_a_lift_and_stands_in_time() -> None:
    case = lifting(1.6)
    found = evaluate(ROBOT, case, drive(ROBOT, case), "gr2")
    assert found.position_max_mm < 0.6 and broken(found) == [] and missed([found]) == []
    assert found.chunks == 8 and found.counts["accepted"] == 8 and found.statuses["track"] > 200
    irregular = FeedingConfig(delay=(0.0, 0.3), drop=0.3, jitter=0.002, seed=4)
    late = evaluate(ROBOT, case, drive(ROBOT, case, irregular), "gr2")
    assert broken(late) == []


class Leaping:
    """Stands for a controller that breaks the velocity limit in its fifth tick."""

    def __init__(self, robot: Any, config: Any) -> None:
        self.counters: Counter[str] = Counter()
        self.ticks = 0

    def reset(self, joint_positions: Any, gripper: float, time: float) -> None:
        self.q = np.array(joint_positions)

    def accept(self, trajectory: ActionTrajectory) -> str:
        return "accepted"

    def step(self, time: float) -> JointCommand:
        self.ticks += 1
        self.q = self.q + (0.1 if self.ticks == 5 else 0.0)
        return JointCommand(positions=self.q, velocities=0 * self.q, gripper=1.0, status="track")


def test_the_command_prints_writes_and_succeeds(file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "a" / "metrics.json"
    assert main(["benchmark", "wbc", str(file), str(file), "--noise-seeds", "1", "--cases", "--json", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "2 smooth" in printed and "2 hard" in printed and "2 noisy" in printed and "00_lift" in printed
    metrics = json.loads(out.read_text())
    assert {"machine", "versions", "robot", "feeding", "samples", "cases", "broken", "short"} <= set(metrics)
    assert metrics["samples"] == {"gr2": 480} and metrics["broken"] == [] and len(metrics["cases"]) == 6
    assert {"position_rms_mm", "jerk_rms", "tick_ms_p99", "plan_ms_max", "statuses"} <= set(metrics["cases"][0])


def test_a_broken_limit_is_the_status_and_names_the_case(
    file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(run, "drive", partial(drive, make=Leaping))
    assert main(["benchmark", "wbc", str(file), "--noise-seeds", "0"]) == 1
    printed = capsys.readouterr().err
    assert "broken: 00_lift: velocity" in printed and "broken: ball: velocity" in printed


def test_bad_arguments_end_in_one_sentence(file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = tmp_path / "six.npz"
    np.savez(other, **arrays(q0=np.zeros((1, 6))))
    for argv, words in (
        (["benchmark", "wbc", str(tmp_path / "none.npz")], "no file"),
        (["benchmark", "wbc", str(other)], "expected 7 joints"),
        (["benchmark", "wbc", str(file), "--only", "unknown"], "no case is called like"),
        (["benchmark", "wbc", str(file), "--peers", "nobody"], "there is no peer"),
        (["wbc", "track", str(file), "--robot", "r2d2"], "there is no robot"),
    ):
        assert main(argv) == 1
        printed = capsys.readouterr().err
        assert words in printed and printed.count("\n") == 1
    assert main(["benchmark", "wbc", str(file), "--drop", "2"]) == 2
    assert "--drop: expected 0 or more, up to 1, got 2.0" in capsys.readouterr().err


def test_pybullet_follows_the_lift_and_a_missing_peer_is_named(
    monkeypatch: pytest.MonkeyPatch, file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for peer in peers.make_peers("pybullet", ROBOT):
        found = evaluate(ROBOT, lifting(), peers.follow(peer, lifting()), peer.name)
        assert found.position_max_mm < 2.0 and found.statuses == {} and found.plan_ms_max is None

    monkeypatch.setitem(sys.modules, "mujoco", None)
    assert main(["benchmark", "wbc", str(file), "--only", "lift", "--noise-seeds", "0", "--peers", "mink"]) == 0
    assert "mink is left out" in capsys.readouterr().out


@pytest.mark.parametrize(("name", "module"), [("pink", "pink"), ("mink", "mink")])
def test_an_installed_peer_follows_the_lift(name: str, module: str) -> None:
    if importlib.util.find_spec(module) is None:
        pytest.skip(f"{module} is not installed (pip install 'gr2[peers]')")
    ball = Sphere(center=(0.6, 0.4, 0.3), radius=0.05, velocity=(0.0, 0.1, 0.0))
    case = TrackingCase(name="lift", group="hard", poses=lifting().poses, q0=ROBOT.home, spheres=(ball,))
    for peer in peers.make_peers(name, ROBOT):
        found = evaluate(ROBOT, case, peers.follow(peer, case), peer.name)
        assert found.position_max_mm < 0.2 and found.velocity_violations == 0 and found.counts == {}


def test_noisy_targets_run_through_the_poses_of_the_latest_chunk() -> None:
    case = noisy_cases([still(300)], 1)[0]
    feeding = FeedingConfig(chunk_hz=10.0, replan_hz=2.0)
    targets = peers.targets_of(case, feeding)
    chunks = chunks_of(case, feeding)
    np.testing.assert_array_equal(targets[0], case.poses[0])
    for chunk, last in ((chunks[0], 5), (chunks[1], 5)):
        for index in range(last):
            tick = round((chunk.arrival + 0.1 * (index + 1)) / TICK)
            np.testing.assert_allclose(targets[tick, :3, 3], chunk.trajectory.positions[index], atol=1e-12)
    middle = 0.5 * (chunks[0].trajectory.positions[0] + chunks[0].trajectory.positions[1])
    np.testing.assert_allclose(targets[30, :3, 3], middle, atol=1e-12)


def test_track_writes_a_video_and_a_page(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("gr2.benchmarks.wbc.video.SIZE", (160, 120))
    out = tmp_path / "view"
    assert main(["wbc", "track", str(file), "--view", "--case", "ball", "--out", str(out)]) == 0
    assert str(out / "ball.mp4") in capsys.readouterr().out
    root = ElementTree.parse(out / "ball.svg").getroot()
    assert root.tag.endswith("svg") and len(root.findall(".//{*}polyline")) > 20
    from gr2.data_pipeline.video.reader import open_video

    with open_video(out / "ball.mp4") as reader:
        assert reader.shape == (11, 120, 160) and reader.fps == 25
        assert reader.get_batch([10]).std() > 10.0


def test_track_takes_a_urdf(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from gr2.wbc.robot.urdf import robot_urdf

    urdf = tmp_path / "arm.urdf"
    urdf.write_text(robot_urdf(ROBOT))
    file = tmp_path / "one.npz"
    np.savez(file, hard_lift_T=lifting(0.2).poses, hard_lift_q0=ROBOT.home)
    assert track.track(file=file, robot=str(urdf)) in (0, 1)
    assert "lift" in capsys.readouterr().out
