"""Pinocchio and coal against numpy: the same poses, Jacobians, distances and gradients."""

from __future__ import annotations

import pickle
import sys
import threading

import numpy as np
import pytest
from wbc_cases import configurations

from gr2.errors import ConfigError, EnvironmentMissing
from gr2.wbc.collision import Box, Clearances, CollisionConfig, CollisionModel, Plane, Rod, Sphere
from gr2.wbc.fast import make_collisions, make_kinematics
from gr2.wbc.robot.kinematics import Kinematics
from gr2.wbc.robot.robots import Capsule, RobotModel

TURNED = (0.0, 0.0, 0.38268343, 0.92387953)
SCENES = {
    "self": CollisionConfig(),
    "nothing": CollisionConfig(self_collision=False),
    "plane": CollisionConfig(plane=Plane(offset=-0.1)),
    "all": CollisionConfig(
        plane=Plane(normal=(0.0, 0.6, 0.8), offset=-0.2),
        spheres=(Sphere(center=(0.45, 0.1, 0.4), radius=0.06, velocity=(0.1, 0.0, 0.2)),),
        rods=(Rod(start=(0.5, 0.2, 0.1), end=(0.2, 0.4, 0.9), radius=0.03),),
        boxes=(
            Box(center=(0.4, -0.3, 0.2), half_extents=(0.1, 0.05, 0.2), quaternion=TURNED, velocity=(0.0, 0.3, 0.0)),
            Box(center=(-0.4, 0.0, 0.6), half_extents=(0.3, 0.2, 0.1)),
        ),
        workspace=((-0.5, -0.6, 0.0), (0.7, 0.6, 1.0)),
        attached=Capsule(link=0, start=(0.0, 0.0, 0.0), end=(0.0, 0.05, 0.05), radius=0.02),
    ),
}


@pytest.fixture
def _pinocchio() -> None:
    for name in ("pinocchio", "coal"):
        pytest.importorskip(name, reason=f"{name} comes with the extra 'fast'")


@pytest.mark.usefixtures("_pinocchio")
def test_pinocchio_places_the_arm_where_numpy_does(robot: RobotModel) -> None:
    slow, fast = Kinematics(robot), make_kinematics(robot, "pinocchio")
    kept = []
    for q in configurations(robot, 100, seed=2, widest=9.0):
        ours, theirs = slow.forward(q), fast.forward(q)
        kept.append((ours, theirs))
        measure, gradient = slow.manipulability_gradient(ours.jacobian)
        fast_measure, fast_gradient = fast.manipulability_gradient(theirs.jacobian)
        assert fast_measure == pytest.approx(measure, abs=1e-9)
        np.testing.assert_allclose(fast_gradient, gradient, atol=1e-9)
    for ours, theirs in kept:
        for name in ("frames", "tool", "axes", "moments", "jacobian"):
            np.testing.assert_allclose(getattr(theirs, name), getattr(ours, name), atol=1e-12)
    stretched = fast.manipulability_gradient(fast.forward(np.zeros(7)).jacobian)
    assert np.isfinite(stretched[1]).all()


def _assert_same(ours: Clearances, theirs: Clearances) -> None:
    np.testing.assert_allclose(theirs.distances, ours.distances, atol=1e-9)
    np.testing.assert_allclose(theirs.gradients, ours.gradients, atol=1e-6)
    np.testing.assert_allclose(theirs.drifts, ours.drifts, atol=1e-6)
    np.testing.assert_array_equal(theirs.poses, ours.poses)


@pytest.mark.usefixtures("_pinocchio")
@pytest.mark.parametrize("scene", sorted(SCENES))
def test_coal_measures_what_numpy_does(robot: RobotModel, scene: str) -> None:
    slow, fast = CollisionModel(robot, SCENES[scene]), make_collisions(robot, SCENES[scene], "pinocchio")
    kinematics = make_kinematics(robot, "pinocchio")
    assert (fast.num_pairs, fast.fastest_obstacle) == (slow.num_pairs, slow.fastest_obstacle)
    deep = 0
    for index, q in enumerate(configurations(robot, 100, seed=2, widest=9.0)):
        pose, elapsed = kinematics.forward(q), 0.01 * index
        ours, theirs = slow.clearances(pose, elapsed=elapsed), fast.clearances(pose, elapsed=elapsed)
        _assert_same(ours, theirs)
        assert len(theirs.distances) == slow.num_pairs
        deep += int(np.count_nonzero(ours.distances < -0.06))
        near = fast.clearances(pose, 0.1, elapsed)
        _assert_same(slow.clearances(pose, 0.1, elapsed), near)
        assert near.nearest <= theirs.distances.min(initial=np.inf) + 1e-12
    assert scene != "all" or deep > 20


@pytest.mark.usefixtures("_pinocchio")
def test_other_poses_are_measured_too(robot: RobotModel) -> None:
    config = SCENES["all"]
    slow, fast = CollisionModel(robot, config), make_collisions(robot, config, "pinocchio")
    q = configurations(robot, 5, seed=2, widest=9.0)
    many = Kinematics(robot).forward_many(q)
    _assert_same(slow.clearances(many, 0.2), fast.clearances(make_kinematics(robot, "pinocchio").forward_many(q), 0.2))
    one = Kinematics(robot).forward(q[0])
    _assert_same(slow.clearances(one), fast.clearances(one))


@pytest.mark.usefixtures("_pinocchio")
def test_threads_and_copies_do_not_disturb_each_other(robot: RobotModel) -> None:
    config = SCENES["all"]
    kinematics, model = make_kinematics(robot, "pinocchio"), make_collisions(robot, config, "pinocchio")
    slow, postures = CollisionModel(robot, config), configurations(robot, 200, seed=2, widest=9.0)
    failures = []

    def work(part: np.ndarray) -> None:
        try:
            for q in part:
                pose = kinematics.forward(q)
                np.testing.assert_allclose(pose.tool, Kinematics(robot).forward(q).tool, atol=1e-12)
                _assert_same(slow.clearances(pose, 0.1), model.clearances(pose, 0.1))
        except AssertionError as error:
            failures.append(error)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        threads = [threading.Thread(target=work, args=(part,)) for part in np.array_split(postures, 4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert not failures
    again, copied = pickle.loads(pickle.dumps((kinematics, model)))
    _assert_same(model.clearances(kinematics.forward(postures[0])), copied.clearances(again.forward(postures[0])))


def test_numpy_is_the_default_and_other_names_are_refused(robot: RobotModel) -> None:
    assert type(make_kinematics(robot)) is Kinematics
    assert type(make_collisions(robot, CollisionConfig())) is CollisionModel
    with pytest.raises(ConfigError, match="no backend 'mujoco'; expected one of"):
        make_kinematics(robot, "mujoco")


def test_a_missing_package_is_named_in_one_sentence(robot: RobotModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pinocchio", None)
    with pytest.raises(EnvironmentMissing, match=r"needs the package pinocchio .* run `pip install 'gr2\[fast\]'`"):
        make_kinematics(robot, "pinocchio")
    with pytest.raises(EnvironmentMissing, match="pinocchio"):
        make_collisions(robot, CollisionConfig(), "pinocchio")
