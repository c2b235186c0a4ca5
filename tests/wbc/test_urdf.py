"""Robots as URDF: what is written, read by pybullet, moves and weighs the same; what others wrote is read."""

from __future__ import annotations

import dataclasses
import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from wbc_cases import ROBOTS, configurations, robot_from_urdf

from gr2.errors import ConfigError, ShapeError
from gr2.wbc.collision import Box, CollisionConfig, CollisionModel, Plane, Sphere
from gr2.wbc.robot.capsule_fit import capsule_around_box, capsule_around_cylinder, fit_capsule, read_vertices
from gr2.wbc.robot.catalog import load_robot
from gr2.wbc.robot.kinematics import Kinematics, cross
from gr2.wbc.robot.robots import Capsule, RobotModel, kinova_gen3, panda, solid_capsules
from gr2.wbc.robot.self_pairs import HOME_GAP
from gr2.wbc.robot.transforms import matrix_from_quaternion
from gr2.wbc.robot.urdf import robot_urdf

pybullet = pytest.importorskip("pybullet", reason="pybullet is the independent reader of URDF")


def _load(path: Path, client: int) -> int:
    flags = pybullet.URDF_USE_INERTIA_FROM_FILE
    return pybullet.loadURDF(str(path), useFixedBase=True, flags=flags, physicsClientId=client)


def _mass_matrix_and_gravity(robot: RobotModel, q: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the joint-space inertia `[j j]` [kg m^2] and the torques [N m] that hold the arm, link by link."""
    pose = Kinematics(robot).forward(q)
    matrix, torque = np.zeros((robot.num_joints, robot.num_joints)), np.zeros(robot.num_joints)
    for link in range(1, robot.num_joints + 1):
        rotation = pose.frames[link, :3, :3]
        center = rotation @ robot.mass_centers[link] + pose.frames[link, :3, 3]
        linear, angular = (pose.moments + cross(pose.axes, center[None])).T, pose.axes.T.copy()
        linear[:, link:], angular[:, link:] = 0.0, 0.0
        matrix += robot.masses[link] * linear.T @ linear
        matrix += angular.T @ (rotation @ robot.inertias[link] @ rotation.T) @ angular
        torque += 9.81 * robot.masses[link] * linear[2]
    return matrix, torque


def test_written_masses_give_pybullet_the_same_dynamics(robot: RobotModel, client: int, tmp_path: Path) -> None:
    path = tmp_path / "robot.urdf"
    path.write_text(robot_urdf(robot))
    body = _load(path, client)
    pybullet.setGravity(0, 0, -9.81, physicsClientId=client)
    still = [0.0] * robot.num_joints
    for q in configurations(robot, 10):
        matrix, torque = _mass_matrix_and_gravity(robot, q)
        theirs = np.array(pybullet.calculateMassMatrix(body, q.tolist(), physicsClientId=client))
        np.testing.assert_allclose(matrix, theirs, atol=2e-5)
        held = pybullet.calculateInverseDynamics(body, q.tolist(), still, still, physicsClientId=client)
        np.testing.assert_allclose(torque, held, atol=2e-4)


def test_inertias_are_those_of_real_bodies(robot: RobotModel) -> None:
    assert robot.masses.shape == (robot.num_joints + 1,)
    assert np.all(robot.masses > 0.0)
    for inertia in robot.inertias:
        np.testing.assert_array_equal(inertia, inertia.T)
        least, middle, most = np.linalg.eigvalsh(inertia)
        assert least > 0.0
        assert least + middle >= most


def test_totals_are_the_makers() -> None:
    assert kinova_gen3().masses.sum() == pytest.approx(8.2 + 0.9, abs=0.02)
    assert panda().masses.sum() == pytest.approx(16.7 + 0.76, abs=0.05)


def test_masses_left_out_follow_from_the_capsules() -> None:
    bare = dataclasses.replace(ROBOTS["panda"], masses=np.empty(0))
    ball = Capsule(link=0, start=(0.1, 0.0, 0.0), end=(0.1, 0.0, 0.0), radius=0.05)
    body = solid_capsules([ball])
    assert body.mass == pytest.approx(1000.0 * np.pi * 0.05**3 * 4 / 3)
    np.testing.assert_allclose(body.inertia, 0.4 * body.mass * 0.05**2 * np.eye(3))
    np.testing.assert_allclose(bare.masses[1], solid_capsules([c for c in bare.capsules if c.link == 1]).mass)
    assert bare.inertias.shape == (8, 3, 3)
    assert dataclasses.replace(bare, capsules=(), self_pairs=(), masses=np.empty(0)).masses.tolist() == [1.0] * 8
    with pytest.raises(ShapeError, match="one row for each link"):
        dataclasses.replace(bare, masses=np.ones(7))


def test_inertia_of_a_capsule_equals_a_sum_over_points() -> None:
    capsule = Capsule(link=0, start=(0.1, 0.2, 0.0), end=(0.3, -0.1, 0.2), radius=0.1)
    start, end = np.array(capsule.start), np.array(capsule.end)
    points = np.random.default_rng(1).uniform([0.0, -0.2, -0.1], [0.4, 0.3, 0.3], (400_000, 3))
    share = np.clip((points - start) @ (end - start) / ((end - start) @ (end - start)), 0.0, 1.0)
    inside = points[np.linalg.norm(points - start - share[:, None] * (end - start), axis=1) < capsule.radius]
    body, cell = solid_capsules([capsule]), 1000.0 * 0.4 * 0.5 * 0.4 / len(points)
    offsets = inside - body.center
    scatter = np.trace(offsets.T @ offsets) * np.eye(3) - offsets.T @ offsets
    assert body.mass == pytest.approx(cell * len(inside), rel=0.01)
    np.testing.assert_allclose(body.inertia, cell * scatter, atol=0.02 * np.trace(body.inertia))


def test_own_robots_come_back_from_their_urdf(robot: RobotModel, tmp_path: Path) -> None:
    path = tmp_path / "robot.urdf"
    path.write_text(robot_urdf(robot))
    back = robot_from_urdf(path, acceleration=robot.acceleration, home=robot.home, self_pairs=robot.self_pairs)
    for name in ("lower", "upper", "velocity", "acceleration", "effort", "masses", "home"):
        np.testing.assert_array_equal(getattr(back, name), getattr(robot, name))
    np.testing.assert_allclose(back.mass_centers, robot.mass_centers, atol=1e-14)
    np.testing.assert_allclose(back.inertias, robot.inertias, atol=1e-14)
    assert len(back.capsules) == len(robot.capsules)
    config = CollisionConfig(spheres=(Sphere(center=(0.4, 0.1, 0.3), radius=0.1),))
    for q in configurations(robot, 20):
        ours, theirs = Kinematics(robot).forward(q), Kinematics(back).forward(q)
        np.testing.assert_allclose(theirs.frames, ours.frames, atol=1e-14)
        np.testing.assert_allclose(theirs.tool, ours.tool, atol=1e-14)
        found = [CollisionModel(r, config).clearances(ours).distances for r in (robot, back)]
        np.testing.assert_allclose(found[1], found[0], atol=1e-14)


MAKERS = {"panda": "franka_panda/panda.urdf", "iiwa": "kuka_iiwa/model.urdf"}

SIX_AXES = """<?xml version="1.0"?>
<robot name="six">
  <link name="world"/>
  <joint name="mount" type="fixed"><parent link="world"/><child link="foot"/>
    <origin xyz="0 0 0.1" rpy="0 0 0.7"/></joint>
  <link name="foot"><collision><geometry><cylinder radius="0.08" length="0.1"/></geometry></collision></link>
  <joint name="pan" type="revolute"><parent link="foot"/><child link="shoulder"/><origin xyz="0 0 0.09"/>
    <axis xyz="0 0 2"/><limit lower="-6.2" upper="6.2" velocity="2" effort="150"/></joint>
  <link name="shoulder"><collision><geometry><sphere radius="0.07"/></geometry></collision></link>
  <joint name="lift" type="revolute"><parent link="shoulder"/><child link="upper"/>
    <origin xyz="0 0.13 0" rpy="0 1.5707963 0"/><axis xyz="0 1 0"/>
    <limit lower="-3.1" upper="3.1" velocity="2" effort="150"/></joint>
  <link name="upper"><inertial><origin xyz="0 0 0.2" rpy="0.3 0.2 0.1"/><mass value="8.4"/>
    <inertia ixx="0.13" ixy="0.01" ixz="0" iyy="0.13" iyz="0" izz="0.02"/></inertial>
    <collision><origin xyz="0 0 0.2"/><geometry><cylinder radius="0.05" length="0.4"/></geometry></collision></link>
  <joint name="elbow" type="revolute"><parent link="upper"/><child link="fore"/>
    <origin xyz="0 -0.12 0.425"/><axis xyz="0 1 0"/>
    <limit lower="-2.8" upper="2.8" velocity="3" effort="150"/></joint>
  <link name="fore"><collision><origin xyz="0 0 0.2" rpy="0 0.1 0"/>
    <geometry><box size="0.08 0.06 0.4"/></geometry></collision></link>
  <joint name="wrist_1" type="revolute"><parent link="fore"/><child link="w1"/>
    <origin xyz="0 0 0.392" rpy="0.1 1.5707963267948966 0.4"/><axis xyz="1 0 0"/>
    <limit lower="-6.2" upper="6.2" velocity="3" effort="28"/></joint>
  <link name="w1"/>
  <joint name="wrist_2" type="continuous"><parent link="w1"/><child link="w2"/>
    <origin xyz="0 0.09 0"/><axis xyz="0 0 -1"/><limit velocity="3" effort="28"/></joint>
  <link name="w2"/>
  <joint name="wrist_3" type="revolute"><parent link="w2"/><child link="w3"/>
    <origin xyz="0 0 0.09" rpy="0.2 0 0"/><axis xyz="0.6 -0.5 0.3"/>
    <limit lower="-6.2" upper="6.2" velocity="3" effort="28"/></joint>
  <link name="w3"><collision><origin xyz="0 0.05 0" rpy="1.57 0 0"/>
    <geometry><capsule radius="0.04" length="0.1"/></geometry></collision></link>
  <joint name="slide" type="prismatic"><parent link="w3"/><child link="finger"/><origin xyz="0 0.1 0"/>
    <axis xyz="1 0 0"/><limit lower="0" upper="0.05" velocity="1" effort="1"/></joint>
  <link name="finger"><collision><geometry><sphere radius="0.01"/></geometry></collision></link>
  <joint name="flange" type="fixed"><parent link="w3"/><child link="adapter"/>
    <origin xyz="0 0.08 0" rpy="0 0 1.57"/></joint>
  <link name="adapter"/>
  <joint name="tcp" type="fixed"><parent link="adapter"/><child link="tool0"/>
    <origin xyz="0.1 0 0" rpy="0 1.57 0"/></joint>
  <link name="tool0"/>
</robot>"""


def _path(name: str, tmp_path: Path) -> Path:
    if name in MAKERS:
        data = pytest.importorskip("pybullet_data", reason="pybullet_data holds public robots")
        return Path(data.getDataPath()) / MAKERS[name]
    (tmp_path / "six.urdf").write_text(SIX_AXES)
    return tmp_path / "six.urdf"


@pytest.mark.parametrize(
    ("name", "tool", "joints"),
    [("panda", "panda_grasptarget", 7), ("iiwa", "lbr_iiwa_link_7", 7), ("six", "tool0", 6)],
)
def test_arms_of_others_stand_where_pybullet_puts_them(
    name: str, tool: str, joints: int, client: int, tmp_path: Path
) -> None:
    path = _path(name, tmp_path)
    model, body = load_robot(path), _load(path, client)
    infos = [pybullet.getJointInfo(body, k, client) for k in range(pybullet.getNumJoints(body, client))]
    links = {info[12].decode(): k for k, info in enumerate(infos)}
    free = [k for k, info in enumerate(infos) if info[2] == pybullet.JOINT_REVOLUTE][:joints]
    assert model.num_joints == joints
    for q in configurations(model, 50):
        for joint, value in zip(free, q, strict=True):
            pybullet.resetJointState(body, joint, value, physicsClientId=client)
        pose = Kinematics(model).forward(q)
        states = pybullet.getLinkStates(
            body, [*free, links[tool]], computeForwardKinematics=True, physicsClientId=client
        )
        for frame, state in zip([*pose.frames[1:], pose.tool], states, strict=True):
            np.testing.assert_allclose(frame[:3, 3], state[4], atol=1e-6)
        np.testing.assert_allclose(pose.tool[:3, :3], matrix_from_quaternion(states[-1][5]), atol=2e-6)
        for joint, state, axis in zip(free, states, pose.axes, strict=False):
            theirs = matrix_from_quaternion(state[1]) @ np.array(infos[joint][13])
            np.testing.assert_allclose(axis, theirs / np.linalg.norm(theirs), atol=2e-6)


@pytest.mark.parametrize("name", ["panda", "iiwa", "six"])
def test_masses_of_others_give_pybullet_the_same_dynamics(name: str, client: int, tmp_path: Path) -> None:
    """A body that has no mass in the file is left out of the comparison: it gets that of its capsules."""
    model = load_robot(_path(name, tmp_path))
    path = tmp_path / "again.urdf"
    path.write_text(robot_urdf(model))
    assert max(map(len, path.read_text().splitlines())) < 8192  # pybullet cuts longer lines
    body = _load(path, client)
    for q in configurations(model, 5):
        matrix, _ = _mass_matrix_and_gravity(model, q)
        theirs = np.array(pybullet.calculateMassMatrix(body, q.tolist(), physicsClientId=client))
        np.testing.assert_allclose(matrix, theirs, atol=1e-4)
    if name != "panda":
        return
    original = _load(_path(name, tmp_path), client)
    q = model.home
    theirs = np.array(pybullet.calculateMassMatrix(original, [*q.tolist(), 0.0, 0.0], physicsClientId=client))
    np.testing.assert_allclose(_mass_matrix_and_gravity(model, q)[0], theirs[:7, :7], atol=1e-4)


def _outside(capsules: list[Capsule], points: np.ndarray) -> float:
    """Return how far the farthest point lies outside the union of capsules [m]."""
    gaps = []
    for capsule in capsules:
        start, along = np.array(capsule.start), np.subtract(capsule.end, capsule.start)
        share = np.clip((points - start) @ along / max(float(along @ along), 1e-12), 0.0, 1.0)
        gaps.append(np.linalg.norm(points - start - share[:, None] * along, axis=1) - capsule.radius)
    return float(np.min(gaps, axis=0).max())


@pytest.mark.parametrize(("name", "meshes"), [("panda", "collision/*.obj"), ("iiwa", "link_*.stl")])
def test_capsules_cover_every_vertex_of_the_meshes(name: str, meshes: str, client: int, tmp_path: Path) -> None:
    path = _path(name, tmp_path)
    model, body = load_robot(path), _load(path, client)
    zero = Kinematics(model).forward(np.zeros(7)).frames
    count = 0
    for link in range(-1, pybullet.getNumJoints(body, client)):
        for shape in pybullet.getCollisionShapeData(body, link, client):
            assert shape[2] == pybullet.GEOM_MESH
            vertices = read_vertices(Path(shape[4].decode()))
            rotation = matrix_from_quaternion(shape[6])
            points = vertices @ rotation.T + shape[5]
            center, turn = pybullet.getDynamicsInfo(body, link, client)[3:5]
            points = points @ matrix_from_quaternion(turn).T + center
            if link >= 0:
                state = pybullet.getLinkState(body, link, physicsClientId=client)
                place, turn = state[4], state[5]
            else:
                place, turn = (0.0, 0.0, 0.0), (0.0, 0.0, 0.0, 1.0)
            index = min(link + 1, 7)
            points = points @ matrix_from_quaternion(turn).T + place
            local = (points - zero[index][:3, 3]) @ zero[index][:3, :3]
            assert _outside([c for c in model.capsules if c.link == index], local) < 1e-5
            count += 1
    assert count <= len(model.capsules) <= 6 * count


def test_home_of_a_read_robot_is_clear(tmp_path: Path) -> None:
    for name in ("panda", "iiwa", "six"):
        model = load_robot(_path(name, tmp_path))
        assert model.self_pairs
        clear = CollisionModel(model, CollisionConfig()).clearances(Kinematics(model).forward(model.home))
        assert clear.nearest >= HOME_GAP - 1e-9
        assert all(model.capsules[b].link - model.capsules[a].link >= 2 for a, b in model.self_pairs)


def test_what_the_file_says_is_what_the_model_holds(tmp_path: Path) -> None:
    model = robot_from_urdf(SIX_AXES)
    np.testing.assert_array_equal(model.upper, [6.2, 3.1, 2.8, 6.2, np.inf, 6.2])
    np.testing.assert_array_equal(model.velocity, [2, 2, 3, 3, 3, 3])
    np.testing.assert_array_equal(model.effort, [150, 150, 150, 28, 28, 28])
    np.testing.assert_array_equal(model.acceleration, 6 * [5.0])
    assert model.masses[2] == 8.4
    assert [c.link for c in model.capsules] == [0, 1, 2, 3, 6, 6]
    still, moved = model.capsules[-1], robot_from_urdf(SIX_AXES, side_joints={"slide": 0.05}).capsules[-1]
    assert np.linalg.norm(np.subtract(moved.start, still.start)) == pytest.approx(0.05)
    inner = robot_from_urdf(SIX_AXES, base_link="shoulder", tool_link="w2", acceleration=[1, 2, 3, 4], capsules=[])
    assert (inner.num_joints, inner.capsules, inner.self_pairs) == (4, (), ())
    np.testing.assert_array_equal(inner.acceleration, [1, 2, 3, 4])
    assert load_robot("panda").name == "panda"
    assert load_robot("kinova_gen3").num_joints == 7


def test_simple_shapes_are_covered_and_little_more() -> None:
    turns = np.linspace(0, 2 * np.pi, 60)
    for radius, length in ((0.05, 0.4), (0.1, 0.1), (0.2, 0.001)):
        rim = np.stack([radius * np.cos(turns), radius * np.sin(turns), np.full(60, length / 2)], axis=1)
        around = capsule_around_cylinder(radius, length)
        assert abs(around.excess(np.vstack([rim, rim * [1, 1, -1]]))) < 1e-6
        assert around.radius < np.hypot(radius, length / 2) + 1e-9
    corners = np.array(np.meshgrid(*(3 * [[-0.5, 0.5]]))).reshape(3, -1).T * [0.2, 0.5, 0.1]
    assert abs(capsule_around_box(np.array([0.2, 0.5, 0.1])).excess(corners)) < 1e-6


def test_fitted_capsule_finds_the_one_the_points_came_from() -> None:
    rng = np.random.default_rng(3)
    directions = rng.normal(size=(2000, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    ends = np.array([[0.1, 0.2, 0.3], [-0.2, 0.1, 0.2]])
    points = ends[rng.integers(0, 2, 2000)] + 0.05 * directions
    fitted = fit_capsule(points)
    assert fitted.excess(points) <= 0.0
    assert fitted.radius == pytest.approx(0.05, abs=1e-3)
    assert min(np.linalg.norm(fitted.start - end) for end in ends) < 2e-3
    for few in (points[:1], points[:2], points[:3], points[:1].repeat(5, 0), points * [1, 1, 0], points * [1, 0, 0]):
        assert fit_capsule(few).excess(few) <= 0.0
    with pytest.raises(ShapeError, match="check the mesh"):
        fit_capsule(np.array([[0.0, np.nan, 0.0]]))


def _write_meshes(folder: Path) -> np.ndarray:
    """Write one tetrahedron as text STL, binary STL and OBJ; return its corners."""
    corners = np.array([[0.0, 0, 0], [0.25, 0, 0], [0, 0.5, 0], [0, 0, 0.125]])
    faces = corners[[[0, 1, 2], [0, 1, 3], [0, 2, 3], [1, 2, 3]]]
    text = ["solid t"]
    for face in faces:
        text += [
            "facet normal 0 0 0",
            "outer loop",
            *(f"vertex {x} {y} {z}" for x, y, z in face),
            "endloop",
            "endfacet",
        ]
    (folder / "text.stl").write_text("\n".join([*text, "endsolid t"]))
    rows = [struct.pack("<12fH", 0, 0, 0, *face.ravel(), 0) for face in faces]
    (folder / "binary.STL").write_bytes(b"solid that is not text".ljust(80) + struct.pack("<I", 4) + b"".join(rows))
    (folder / "shape.obj").write_text("".join(f"v {x} {y} {z}\n" for x, y, z in corners) + "f 1 2 3\nf 1 2 4\n")
    return corners


def test_meshes_are_found_and_scaled(tmp_path: Path) -> None:
    (tmp_path / "arm" / "meshes").mkdir(parents=True)
    (tmp_path / "arm" / "urdf").mkdir()
    corners = _write_meshes(tmp_path / "arm" / "meshes")
    for name in ("text.stl", "binary.STL", "shape.obj"):
        read = np.unique(read_vertices(tmp_path / "arm" / "meshes" / name), axis=0)
        np.testing.assert_allclose(read, np.unique(corners, axis=0))
    for reference in (
        "package://arm/meshes/text.stl",
        "../meshes/binary.STL",
        f"file://{tmp_path}/arm/meshes/shape.obj",
        str(tmp_path / "arm" / "meshes" / "text.stl"),
    ):
        mesh = f'<mesh filename="{reference}" scale="2 2 -2"/>'
        text = SIX_AXES.replace('<box size="0.08 0.06 0.4"/>', mesh).replace('rpy="0 0.1 0"', "")
        path = tmp_path / "arm" / "urdf" / "six.urdf"
        path.write_text(text)
        cover = [c for c in load_robot(path).capsules if c.link == 3]
        turn = np.array([[1.0, 0, 0], [0, 0, 1], [0, -1, 0]])
        points = (corners * [2, 2, -2] + [0, 0, 0.2]) @ turn
        assert _outside(cover, points) < 1e-8
        assert max(capsule.radius for capsule in cover) < 0.5
    with pytest.raises(ConfigError, match="package_dirs"):
        robot_from_urdf(text.replace(reference, "package://arm/meshes/text.stl"))
    elsewhere = robot_from_urdf(text.replace(reference, "package://arm/meshes/text.stl"), package_dirs=[tmp_path])
    assert {capsule.link for capsule in elsewhere.capsules} == {0, 1, 2, 3, 6}


ENTITIES = """<?xml version="1.0"?><!DOCTYPE r [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;&a;">]><robot name="&b;"/>"""
FILES = """<?xml version="1.0"?><!DOCTYPE r [<!ENTITY x SYSTEM "file:///etc/passwd">]><robot name="r">&x;</robot>"""
LIFT_LIMIT = '<limit lower="-3.1" upper="3.1" velocity="2" effort="150"/>'


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (SIX_AXES, ENTITIES, "document type"),
        (SIX_AXES, FILES, "document type"),
        (SIX_AXES, SIX_AXES[:-40], "truncated"),
        (SIX_AXES, "<sdf/>", "expected a <robot>"),
        (SIX_AXES, "<robot/>", "0 root links"),
        ('lower="-3.1"', 'lower="nan"', "joint 'lift': lower of <limit> is 'nan'; expected 1 finite number"),
        ('lower="-3.1"', 'lowr="-3.1"', "joint 'lift': <limit> has an attribute 'lowr'"),
        ('lower="-3.1"', 'lower="3.2"', "expected lower < upper"),
        ('lower="-3.1"', "", "None to 3.1"),
        (LIFT_LIMIT, LIFT_LIMIT.replace("limit", "limits"), "did you mean <limit>"),
        (LIFT_LIMIT, "", "joint 'lift' has position limits None"),
        (LIFT_LIMIT, LIFT_LIMIT.replace('velocity="2"', 'velocity="0"'), "joint 'lift' has no velocity limit above 0"),
        ('<axis xyz="0 0 2"/>', '<axis xyz="0 0 0"/>', "its axis is zero"),
        ('<axis xyz="0 0 2"/>', '<axis xyz="0 0"/>', "expected 3 finite numbers"),
        ('xyz="0 0.13 0"', 'xyz="0 ${d} 0"', "run xacro first"),
        ('<link name="w1"/>', '<xacro:arm name="w1"/>', "xacro source"),
        ('<link name="w1"/>', '<link name="w2"/>', "more than once"),
        ('<link name="w1"/>', "", "names a link 'w1'"),
        ('name="elbow" type="revolute"', 'name="elbow" type="prismatic"', "joint 'elbow' between 'world' and the tool"),
        ('name="elbow" type="revolute"', 'name="elbow" type="rotary"', "of type 'rotary'; expected one of"),
        ('name="elbow" type="revolute">', 'name="elbow" type="revolute"><mimic joint="lift"/>', "is mimic"),
        ('<child link="fore"/>', '<child link="upper"/>', "hangs on two joints"),
        ('<parent link="world"/>', '<parent link="tool0"/>', "no branch of the URDF"),
        ('<link name="world"/>', '<link name="world"/><link name="second"/>', "2 root links"),
        ('<mass value="8.4"/>', '<mass value="-1"/>', "link 'upper': a negative mass"),
        ('<mass value="8.4"/>', "", "link 'upper': <inertial> has no <mass>"),
        ('<sphere radius="0.07"/>', '<sphere radius="-1"/>', "expected 0 or more"),
        ('<sphere radius="0.07"/>', '<sphere radius="1e308"/>', "radius of <sphere> is '1e308'"),
        ('<sphere radius="0.07"/>', '<cone radius="1"/>', "unknown shape"),
        ('<sphere radius="0.07"/>', '<mesh filename="a.dae"/>', "none of"),
        ('lower="-3.1" upper="3.1"', 'lower="-178" upper="178"', "28 turns.*limits_in_degrees"),
        ('rpy="0 1.5707963 0"', 'rpy="0 90 0"', "rpy of <origin> is '0 90 0', 14 turns; expected radians"),
        ('xyz="0 -0.12 0.425"', 'xyz="0 -120 425"', "m long together; .*in meters"),
        ('<sphere radius="0.07"/>', '<mesh filename="https://host/a.stl"/>', "expected a file; download it"),
        ('<sphere radius="0.07"/>', '<mesh filename="a.stl" scale="1 1 0"/>', "expected no zero"),
    ],
)
def test_bad_files_are_refused_in_one_sentence(old: str, new: str, message: str) -> None:
    assert old in SIX_AXES
    with pytest.raises(ConfigError, match=message) as caught:
        robot_from_urdf(SIX_AXES.replace(old, new), tool_link="tool0" if "prismatic" in new or "mimic" in new else None)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"base_link": "no"}, "no link 'no'"),
        ({"base_link": "w3", "tool_link": "upper"}, "does not hang on"),
        ({"tool_link": "foot"}, "no joint turns"),
        ({"tool_link": "finger"}, "joint 'slide' .* is prismatic"),
        ({"velocity": [1.0, 2.0]}, "one for each of 6 joints"),
        ({"acceleration": -1.0}, "expected numbers above 0"),
        ({"effort": float("nan")}, "expected a finite number"),
        ({"home": 6 * [4.0]}, "within the limits"),
        ({"side_joints": {"elbow": 0.0}}, "no joint of a side branch"),
        ({"self_pairs": [(0, 99)]}, "expected indices below 6"),
        ({"capsules": [Capsule(link=9, start=(0, 0, 0), end=(0, 0, 1), radius=0.1)]}, "expected a link of 0 to 6"),
    ],
)
def test_bad_options_are_refused_in_one_sentence(options: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        robot_from_urdf(SIX_AXES, **options)


def test_bad_mesh_files_are_refused_in_one_sentence(tmp_path: Path) -> None:
    _write_meshes(tmp_path)
    whole = (tmp_path / "binary.STL").read_bytes()
    damaged = {
        "cut.stl": whole[:-7].replace(b"solid", b"bytes"),
        "text.stl": (tmp_path / "text.stl").read_bytes()[:-20],
        "short.obj": b"v 1 2\n",
        "nan.obj": b"v 1 2 nan\n",
        "words.obj": b"v one two three\n",
        "empty.obj": b"",
        "shape.dae": b"<COLLADA/>",
    }
    for name, data in damaged.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(ConfigError, match=name.replace(".", r"\.")):
            read_vertices(tmp_path / name)
    for name in ("nothing.urdf", "spot"):
        with pytest.raises(ConfigError, match=name):
            load_robot(name)


ROUNDING = 0.001
"""Radius [m] of the edges of pybullet's boxes, whose faces are where they should be."""


def _shape_body(
    client: int,
    kind: int,
    center: Sequence[float] | np.ndarray,
    quaternion: Sequence[float] | np.ndarray,
    **sizes: object,
) -> int:
    shape = pybullet.createCollisionShape(kind, physicsClientId=client, **sizes)
    return pybullet.createMultiBody(
        baseCollisionShapeIndex=shape, basePosition=center, baseOrientation=quaternion, physicsClientId=client
    )


def test_distances_to_obstacles_agree_with_pybullet(robot: RobotModel, client: int) -> None:
    box_turn = (0.1, 0.2, 0.3, 0.9273618495495703)
    core = (0.1 - ROUNDING, 0.05 - ROUNDING, 0.2 - ROUNDING)
    config = CollisionConfig(
        plane=Plane(offset=-0.3),
        spheres=(Sphere(center=(0.45, 0.1, 0.4), radius=0.06),),
        boxes=(Box(center=(0.4, -0.3, 0.2), half_extents=core, quaternion=box_turn),),
    )
    upright = np.array([0.0, 0.0, 0.0, 1.0])
    sphere = _shape_body(client, pybullet.GEOM_SPHERE, np.array([0.45, 0.1, 0.4]), upright, radius=0.06)
    ground = _shape_body(client, pybullet.GEOM_BOX, np.array([0, 0, -1.3]), upright, halfExtents=[4, 4, 1])
    box = _shape_body(client, pybullet.GEOM_BOX, np.array([0.4, -0.3, 0.2]), box_turn, halfExtents=[0.1, 0.05, 0.2])
    arm = []
    for capsule in robot.capsules:
        length = float(np.linalg.norm(np.subtract(capsule.end, capsule.start)))
        arm.append(
            _shape_body(client, pybullet.GEOM_CAPSULE, np.zeros(3), upright, radius=capsule.radius, height=length)
        )

    def apart(a: int, b: int) -> float:
        return min(point[8] for point in pybullet.getClosestPoints(a, b, 10.0, physicsClientId=client))

    model, kinematics = CollisionModel(robot, config), Kinematics(robot)
    exposed = [k for k, capsule in enumerate(robot.capsules) if capsule.link >= config.first_link]
    compared = 0
    for q in configurations(robot, 12):
        pose = kinematics.forward(q)
        for capsule, body in zip(robot.capsules, arm, strict=True):
            frame = pose.frames[capsule.link]
            start, end = (frame[:3, :3] @ np.array(p) + frame[:3, 3] for p in (capsule.start, capsule.end))
            along = (end - start) / np.linalg.norm(end - start)
            quaternion = np.array([-along[1], along[0], 0.0, 1.0 + along[2]])
            quaternion /= np.linalg.norm(quaternion)
            pybullet.resetBasePositionAndOrientation(body, (start + end) / 2, quaternion, physicsClientId=client)
        theirs = [apart(arm[a], arm[b]) for a, b in robot.self_pairs]
        theirs += [apart(arm[k], sphere) for k in exposed]
        lower = [apart(arm[k], ground) for k in exposed]
        boxed = [apart(arm[k], box) for k in exposed]
        ours = model.clearances(pose).distances
        count, width = len(robot.self_pairs) + len(exposed), len(exposed)
        ground_ours = np.minimum(ours[count : count + width], ours[count + width : count + 2 * width])
        for mine, other in (
            (ours[:count], theirs),
            (ground_ours, lower),
            (ours[count + 2 * width :] - ROUNDING, boxed),
        ):
            outside = np.asarray(mine) > 1e-3
            np.testing.assert_allclose(np.asarray(mine)[outside], np.asarray(other)[outside], atol=1e-5)
            compared += int(np.count_nonzero(outside))
    assert compared > 500
