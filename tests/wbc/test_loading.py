"""Files as people have them: which joints are the arm, what is repaired, what is refused and with which way out."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from wbc_cases import robot_from_urdf

from gr2.benchmarks.wbc import built_in
from gr2.benchmarks.wbc.built_in import built_in_cases
from gr2.benchmarks.wbc.run import choose_cases
from gr2.cli.main import main
from gr2.contracts import ActionTrajectory
from gr2.errors import ConfigError, DataError
from gr2.wbc.collision import CollisionConfig, CollisionModel
from gr2.wbc.controller import WholeBodyController
from gr2.wbc.robot.capsule_fit import read_vertices
from gr2.wbc.robot.catalog import load_robot
from gr2.wbc.robot.kinematics import Kinematics
from gr2.wbc.robot.robots import RobotModel
from gr2.wbc.robot.transforms import quaternion_from_matrix
from gr2.wbc.robot.urdf_reader import UrdfOptions

BALL = '<collision><geometry><sphere radius="0.02"/></geometry></collision>'
AXES = ("0 0 1", "0 1 0", "0 1 0", "1 0 0", "0 1 0", "1 0 0")
LIMIT = '<limit lower="-2.5" upper="2.5" velocity="2" effort="10"/>'


def _joint(
    name: str,
    parent: str,
    child: str,
    kind: str = "revolute",
    xyz: str = "0 0 0.2",
    axis: str = "0 0 1",
    inside: str = LIMIT,
) -> str:
    """Return a joint and its child link."""
    return (
        f'<joint name="{name}" type="{kind}"><parent link="{parent}"/><child link="{child}"/><origin xyz="{xyz}"/>'
        f'<axis xyz="{axis}"/>{inside}</joint><link name="{child}">{BALL}</link>'
    )


def _arm(count: int = 6, prefix: str = "", base: str = "base") -> list[str]:
    """Return the joints of an arm that ends in the link `<prefix>l<count>`."""
    names = [base, *(f"{prefix}l{number}" for number in range(1, count + 1))]
    return [
        _joint(f"{prefix}j{number + 1}", names[number], names[number + 1], axis=AXES[number]) for number in range(count)
    ]


def _robot(*parts: str, base: str = "base") -> str:
    return f'<robot name="r"><link name="{base}">{BALL}</link>{"".join(parts)}</robot>'


FIXED = {"kind": "fixed", "inside": "", "xyz": "0.05 0 0"}


@pytest.mark.parametrize(
    ("parts", "tool"),
    [
        ([_joint("f", "l6", "flange", **FIXED), _joint("t", "flange", "tool0", **FIXED)], "tool0"),
        ([_joint("a", "l6", "ee_link", **FIXED), _joint("t", "l6", "tool0", **FIXED)], "tool0"),
        ([_joint("a", "l6", "hand", **FIXED), _joint("t", "hand", "hand_tcp", **FIXED)], "hand_tcp"),
        ([_joint("a", "l6", "mount", **FIXED), _joint("b", "mount", "camera_optical_frame", **FIXED)], "mount"),
        ([_joint("a", "l6", "left", **FIXED), _joint("b", "l6", "right", **FIXED)], "l6"),
        ([_joint("a", "l6", "p", **FIXED), _joint("b", "p", "left", **FIXED), _joint("c", "p", "right", **FIXED)], "p"),
        ([_joint("jaw", "l6", "moving_jaw")], "l6"),
        ([_joint("7", "l6", "moving_jaw"), _joint("a", "l6", "gripper_frame", **FIXED)], "gripper_frame"),
        ([_joint("a", "l6", "x", axis="1 0 0"), _joint("b", "l6", "y", axis="-1 0 0")], "l6"),
        ([_joint("a", "l6", "x", kind="prismatic"), _joint("b", "l6", "y", kind="prismatic")], "l6"),
        ([_joint("gripper", "l6", "x", kind="prismatic")], "l6"),
        ([_joint("a", "l6", "x"), _joint("b", "x", "x2"), _joint("c", "l6", "y"), _joint("d", "y", "y2")], "l6"),
        (
            [_joint("w1", "base", "wheel_1", kind="continuous"), _joint("w2", "base", "wheel_2", kind="continuous")],
            "l6",
        ),
        ([_joint("k", "l6", "x", inside=LIMIT + '<mimic joint="j6"/>')], "l6"),
        ([_joint("pan", "base", "head"), _joint("tilt", "head", "face")], "l6"),
    ],
)
def test_hands_wheels_and_sensors_are_no_part_of_the_arm(parts: Sequence[str], tool: str) -> None:
    model = robot_from_urdf(_robot(*_arm(), *parts))
    assert model.joint_names == ("j1", "j2", "j3", "j4", "j5", "j6")
    expected = robot_from_urdf(_robot(*_arm(), *parts), tool_link=tool)
    q = np.linspace(-1.0, 1.0, 6)
    np.testing.assert_allclose(Kinematics(model).forward(q).tool, Kinematics(expected).forward(q).tool)
    links = re.findall(r'child link="([^"]+)"', "".join(parts))
    assert tool == "l6" or any(f"tool link '{tool}'" in note for note in model.notes)
    assert len(model.capsules) == 7 + len(links) or "wheel_1" in links or "head" in links


def test_five_joints_and_a_jaw() -> None:
    """As on an SO-101: the jaw is named so, and stays where side_joints puts it."""
    parts = [
        *_arm(5),
        _joint("6", "l5", "moving_jaw", xyz="0.02 0 0"),
        _joint("f", "l5", "gripper_frame_link", **FIXED),
    ]
    model, opened = (robot_from_urdf(_robot(*parts), side_joints=places) for places in (None, {"6": 1.0}))
    assert model.num_joints == opened.num_joints == 5
    assert any("joints of the hand, held at 0: '6'" in note for note in model.notes)
    named = robot_from_urdf(_robot(*parts), tool_link="moving_jaw")
    assert named.joint_names[-1] == "6"


def test_a_wrist_that_is_named_after_its_gripper_belongs_to_the_arm() -> None:
    parts = [
        *_arm(4),
        _joint("gripper_roll", "l4", "gripper", axis="1 0 0"),
        _joint("gripper_finger", "gripper", "tip"),
    ]
    assert robot_from_urdf(_robot(*parts)).joint_names[-1] == "gripper_roll"


def test_two_arms_are_named_and_one_is_taken_by_its_tool() -> None:
    text = _robot(*_arm(prefix="left_"), *_arm(prefix="right_"))
    with pytest.raises(ConfigError, match=r"2 limbs of 6 joints; .*tool_link=.*'left_l6', 'right_l6'"):
        robot_from_urdf(text)
    assert robot_from_urdf(text, tool_link="right_l6").joint_names[0] == "right_j1"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (_robot(_joint("w", "base", "wheel", kind="continuous")), "no branch .* is an arm: its joints 'w'"),
        (_robot(_joint("x", "base", "left_finger")), "no branch .* is an arm"),
        (_robot(_joint("f", "base", "top", **FIXED)), "no branch .* has a joint that moves"),
    ],
)
def test_what_is_no_arm_is_refused_in_one_sentence(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        robot_from_urdf(text)


def test_a_sliding_joint_is_refused_by_name_and_both_ways_out_work() -> None:
    text = _robot(_joint("lift", "base", "torso", kind="prismatic"), *_arm(base="torso"))
    with pytest.raises(ConfigError, match=r"joint 'lift' .* prismatic; .*base_link='torso'.*side_joints={'lift': 0.0}"):
        robot_from_urdf(text)
    above = robot_from_urdf(text, base_link="torso")
    held = robot_from_urdf(text, side_joints={"lift": 0.3})
    assert above.joint_names == held.joint_names
    tools = [Kinematics(model).forward(np.zeros(6)).tool[:3, 3] for model in (above, held)]
    np.testing.assert_allclose(tools[1] - tools[0], [0.0, 0.0, 0.5])
    scara = _robot(*_arm(3), _joint("quill", "l3", "end", kind="prismatic"))
    with pytest.raises(ConfigError, match=r"joint 'quill' .* prismatic"):
        robot_from_urdf(scara)


def test_a_base_that_floats_is_where_the_arm_stands() -> None:
    text = _robot(_joint("free", "world", "base", kind="floating", inside=""), *_arm(), base="world")
    text = text.replace(f'<link name="base">{BALL}</link>', "", 0)
    model = robot_from_urdf(text)
    assert model.num_joints == 6
    assert any("base link 'base'" in note for note in model.notes)


def test_a_joint_in_mid_arm_that_leaves_the_rest_free_is_refused_with_both_ways_out() -> None:
    free = _joint("free", "l3", "base2", kind="floating", inside="")
    text = _robot(*_arm(3), free, *_arm(4, prefix="r_", base="base2"))
    with pytest.raises(
        ConfigError, match=r"'free' .* floating, and 'j1', 'j2', 'j3' .*base_link='base2'.*tool_link='l3'"
    ):
        robot_from_urdf(text)
    assert robot_from_urdf(text, base_link="base2").joint_names[0] == "r_j1"
    assert robot_from_urdf(text, tool_link="l3").joint_names == ("j1", "j2", "j3")


@pytest.mark.parametrize(
    ("soft", "limits"),
    [
        ('soft_lower_limit="-1.5" soft_upper_limit="2"', (-1.5, 2.0)),
        ('soft_lower_limit="-1.5" soft_upper_limit="9"', (-1.5, 2.5)),
        ('soft_lower_limit="-2.5" soft_upper_limit="2.5" k_position="100"', (-2.5, 2.5)),
        ('k_velocity="40"', (-2.5, 2.5)),
        ('soft_lower_limit="0" soft_upper_limit="0" k_velocity="40"', (-2.5, 2.5)),
    ],
)
def test_soft_limits_of_a_safety_controller_are_kept(soft: str, limits: tuple[float, float]) -> None:
    text = _robot(*_arm(5), _joint("j6", "l5", "l6", axis=AXES[5], inside=f"{LIMIT}<safety_controller {soft}/>"))
    model = robot_from_urdf(text)
    assert (model.lower[5], model.upper[5]) == limits
    assert any("'j6' is held in" in note for note in model.notes) == (limits != (-2.5, 2.5))
    own = robot_from_urdf(text, lower=-2.5, upper=2.5)
    assert (own.lower[5], own.upper[5]) == (-2.5, 2.5)
    above = robot_from_urdf(text, upper=2.4)
    assert (above.lower[5], above.upper[5]) == (limits[0], 2.4)  # the other end stays that of the file


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('type="revolute"', 'type="revolute" dont_collapse="true"'),
        ('velocity="2"', 'velocity="2" drake:acceleration="10"'),
        ('velocity="2"', 'velocity="2" damping="1"'),
        ("<axis xyz", '<axis rpy="0 0 0" xyz'),
        ('effort="10"', 'effort="0"'),
        ('effort="10"', ""),
        (BALL, BALL + "<collision/>"),
        (BALL, BALL + "<collision><geometry/></collision>"),
        (BALL, BALL + '<collision><geometry><box size="0 0 0"/></geometry></collision>'),
        (BALL, BALL + '<collision><geometry><sphere radius="0"/></geometry></collision>'),
    ],
)
def test_what_other_readers_take_is_taken(old: str, new: str) -> None:
    text = _robot(*_arm())
    assert old in text
    model, plain = robot_from_urdf(text.replace(old, new)), robot_from_urdf(text)
    assert model.capsules == plain.capsules
    np.testing.assert_array_equal(model.home, plain.home)
    assert np.all(np.isinf(model.effort)) == ("effort" in old)


def test_flat_and_round_shapes_are_covered() -> None:
    for shape in (
        '<box size="0.1 0.2 0"/>',
        '<cylinder radius="0.05" length="0"/>',
        '<capsule radius="0.1" length="0"/>',
    ):
        model = robot_from_urdf(_robot(*_arm(2)).replace('<sphere radius="0.02"/>', shape))
        assert len(model.capsules) == 3
        assert all(0.0 < c.radius <= 0.2 for c in model.capsules)


def test_an_arm_without_geometry_is_controlled_where_that_is_asked_for() -> None:
    text = _robot(*_arm()).replace(BALL, "")
    with pytest.raises(ConfigError, match="no <collision> geometry"):
        robot_from_urdf(text)
    model = robot_from_urdf(text, capsules=[])
    controller = WholeBodyController(model)
    controller.reset(model.home, gripper=1.0, time=0.0)
    tool = Kinematics(model).forward(model.home).tool
    points = tool[:3, 3] + np.linspace(0.0, 0.05, 20)[:, None] * [0.0, 1.0, 0.0]
    turns = np.tile(quaternion_from_matrix(tool[:3, :3]), (20, 1))
    chunk = ActionTrajectory(positions=points, quaternions=turns, gripper=np.ones(20), dt=0.05, start_time=0.0)
    assert controller.accept(chunk) == "accepted"
    for tick in range(400):
        command = controller.step(tick * controller.dt)
    end = Kinematics(model).forward(command.positions).tool
    assert np.linalg.norm(end[:3, 3] - points[-1]) < 1e-3


COLLADA = """<COLLADA xmlns="http://www.collada.org/2005/11/COLLADASchema" version="1.4.1">
<asset><unit name="centimeter" meter="0.01"/><up_axis>Y_UP</up_axis></asset>
<library_geometries><geometry id="g"><mesh>
<source id="p"><float_array id="a" count="12">0 0 0 10 0 0 0 20 0 0 0 30</float_array><technique_common>
<accessor source="#a" count="4" stride="3"/></technique_common></source>
<vertices id="v"><input semantic="POSITION" source="#p"/></vertices></mesh></geometry></library_geometries>
<library_visual_scenes><visual_scene id="s"><node id="n"><matrix>0 -1 0 5 1 0 0 0 0 0 1 0 0 0 0 1</matrix>
<node><translate>0 0 2</translate><rotate>0 0 1 90</rotate><scale>2 1 1</scale><instance_geometry url="#g"/></node>
</node></visual_scene></library_visual_scenes><scene><instance_visual_scene url="#s"/></scene></COLLADA>"""


def test_collada_is_placed_by_its_nodes_and_in_meters(tmp_path: Path) -> None:
    path = tmp_path / "part.dae"
    path.write_text(COLLADA)
    corners = np.array([[0.0, 0, 0], [20, 0, 0], [0, 20, 0], [0, 0, 30]])
    quarter = np.array([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]])
    expected = 0.01 * ((corners @ quarter.T + [0, 0, 2]) @ quarter.T + [5, 0, 0])
    np.testing.assert_allclose(read_vertices(path), expected, atol=1e-12)
    for old, new, message in (
        ('source="#p"', 'source="#q"', "refers to 'q'"),
        ("20 0 0 0 30", "20 0 0 0", "11 numbers"),
        ("20 0 0 0 30", "x 0 0 0 30", "damaged"),
        ("<translate>0 0 2", "<translate>0 2", "2 numbers instead of 3"),
        ("<node><translate>", '<node><instance_node url="#n"/><translate>', "nodes more than"),
        ("<COLLADA", '<!DOCTYPE x [<!ENTITY y "z">]><COLLADA', "document type"),
        ("</COLLADA>", "", "well-formed"),
    ):
        path.write_text(COLLADA.replace(old, new, 1))
        with pytest.raises(ConfigError, match=message):
            read_vertices(path)


def _with_mesh(folder: Path, name: str, scale: float = 1.0) -> Path:
    """Write an arm whose links have a mesh of 10 x 20 x 30 cm times `scale` under `name`."""
    folder.mkdir(parents=True, exist_ok=True)
    mesh = f'<mesh filename="{name}"/>'
    path = folder / "arm.urdf"
    path.write_text(_robot(*_arm()).replace('<sphere radius="0.02"/>', mesh))
    lines = [
        f"v {scale * x} {scale * y} {scale * z}\n" for x, y, z in ((0, 0, 0), (0.1, 0, 0), (0, 0.2, 0), (0, 0, 0.3))
    ]
    (folder / "part.obj").write_text("".join(lines))
    return path


def test_meshes_in_another_unit_are_refused_with_the_way_out(tmp_path: Path) -> None:
    good = load_robot(_with_mesh(tmp_path / "m", "part.obj"))
    large = _with_mesh(tmp_path / "mm", "part.obj", 1000.0)
    with pytest.raises(ConfigError, match=r"mesh file 'part.obj' of link 'base' is 300 m long; .*mesh_scale=0.001"):
        load_robot(large)
    small = _with_mesh(tmp_path / "km", "part.obj", 0.001)
    with pytest.raises(ConfigError, match=r"largest part of the arm is 0\.[1-4]\d* mm long.*mesh_scale= .*1000"):
        load_robot(small)
    for path, scale in ((large, 0.001), (small, 1000.0)):
        model = load_robot(path, mesh_scale=scale)
        np.testing.assert_allclose([c.radius for c in model.capsules], [c.radius for c in good.capsules], rtol=1e-3)
    with pytest.raises(ConfigError, match=r"mesh_scale=0.0 cannot be used"):
        load_robot(large, mesh_scale=0.0)


def test_limits_in_degrees_are_refused_or_read_as_such() -> None:
    text = _robot(*_arm()).replace('lower="-2.5" upper="2.5"', 'lower="-143" upper="143"')
    with pytest.raises(ConfigError, match=r"joint 'j1' .* 23 turns"):
        robot_from_urdf(text)
    np.testing.assert_allclose(robot_from_urdf(text, limits_in_degrees=True).upper, np.radians(143))
    model = robot_from_urdf(text, lower=-1.0, upper=[1.0, 1.1, 1.2, 1.3, 1.4, 1.5])
    np.testing.assert_array_equal(model.upper, [1.0, 1.1, 1.2, 1.3, 1.4, 1.5])
    for options in ({"lower": "x"}, {"lower": [1.0]}):
        with pytest.raises(ConfigError, match=r"lower=.* cannot be used"):
            robot_from_urdf(text, **options)


def test_velocity_limits_that_no_arm_has_are_replaced_and_named() -> None:
    text = _robot(*_arm()).replace('velocity="2"', 'velocity="1000"', 1)
    model = robot_from_urdf(text)
    np.testing.assert_array_equal(model.velocity, 2.0)
    assert any("not believed" in note and "'j1'" in note for note in model.notes)
    np.testing.assert_array_equal(robot_from_urdf(text, velocity=30.0).velocity, 30.0)


@pytest.mark.parametrize(
    ("urdf", "mesh", "name"),
    [
        ("robots/arm_description/urdf", "robots/arm_description", "package://arm_description/part.obj"),
        ("robots/arm_description/a/b/urdf", "robots/arm_description", "package://arm_description/part.obj"),
        ("repository/urdf", "repository/meshes", "package://another_name/meshes/part.obj"),
        ("repository/a/b/urdf", "repository/meshes", "package://another_name/meshes/part.obj"),
        ("arm_description/urdf", "arm_description/meshes/v2/collision", "package://collision/part.obj"),
        ("arm/urdf", "arm/urdf", "model://arm/urdf/part.obj"),
        ("arm/urdf", "arm/urdf", "PART.OBJ"),
        ("arm/urdf", "arm/meshes", "..\\meshes\\part.obj"),
    ],
)
def test_meshes_are_found_by_looking_around(urdf: str, mesh: str, name: str, tmp_path: Path) -> None:
    path = _with_mesh(tmp_path / urdf, name)
    (tmp_path / mesh).mkdir(parents=True, exist_ok=True)
    (path.parent / "part.obj").rename(tmp_path / mesh / "part.obj")
    assert {capsule.link for capsule in load_robot(path).capsules} == set(range(7))


def test_two_meshes_that_are_as_alike_are_not_guessed(tmp_path: Path) -> None:
    path = _with_mesh(tmp_path / "arm_description" / "urdf", "package://collision/part.obj")
    (path.parent / "part.obj").unlink()
    for version in ("v1", "v2"):
        place = tmp_path / "arm_description" / "meshes" / version / "collision"
        place.mkdir(parents=True)
        (place / "part.obj").write_text("v 0 0 0\n")
    with pytest.raises(ConfigError, match=r"package_dirs= .*capsules=\[\]"):
        load_robot(path)


def test_packages_are_found_where_ros_lists_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = _with_mesh(tmp_path / "work" / "here", "package://arm_description/part.obj")
    place = tmp_path / "ros" / "share" / "arm_description"
    place.mkdir(parents=True)
    (path.parent / "part.obj").rename(place / "part.obj")
    with pytest.raises(ConfigError, match="package_dirs"):
        load_robot(path)
    monkeypatch.setenv("AMENT_PREFIX_PATH", f"/nowhere:{tmp_path / 'ros'}")
    assert {capsule.link for capsule in load_robot(path).capsules} == set(range(7))


def test_mesh_files_that_hold_nothing_cover_nothing(tmp_path: Path) -> None:
    path = _with_mesh(tmp_path, "part.stl")
    path.write_text(path.read_text().replace('<mesh filename="part.stl"/>', '<sphere radius="0.02"/>', 6))
    for data in (bytes(80), bytes(84)):
        (tmp_path / "part.stl").write_bytes(data)
        assert len(load_robot(path).capsules) == 6
    (tmp_path / "part.stl").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    with pytest.raises(DataError, match="git lfs pull"):
        load_robot(path)
    (tmp_path / "part.stl").rename(tmp_path / "arm.urdf")
    with pytest.raises(DataError, match="git lfs pull"):
        load_robot(tmp_path / "arm.urdf")


def test_xacro_is_answered_by_the_command_that_expands_it(tmp_path: Path) -> None:
    path = tmp_path / "arm.urdf.xacro"
    path.write_text("<robot/>")
    with pytest.raises(ConfigError, match=r"xacro FILE.urdf.xacro > FILE.urdf"):
        load_robot(path)
    with pytest.raises(ConfigError, match=r"<xacro:arm>: it is xacro source; .*xacro FILE"):
        robot_from_urdf(_robot('<xacro:arm name="x"/>'))


def test_options_are_checked(tmp_path: Path) -> None:
    path = tmp_path / "arm.xml"
    path.write_text(_robot(*_arm()))
    model = load_robot(path, velocity=1.0, acceleration=np.full(6, 3.0))
    assert (model.velocity[0], model.acceleration[0], model.num_joints) == (1.0, 3.0, 6)
    with pytest.raises(TypeError, match="tol_link"):
        load_robot(path, tol_link="l6")
    with pytest.raises(ConfigError, match=r"options are for .urdf files"):
        load_robot("panda", tool_link="l6")
    assert load_robot("panda", UrdfOptions(package_dirs=[])).joint_names[0] == "joint_1"


def _bent(model: RobotModel) -> float:
    """Return the least singular value of the Jacobian at home, lengths in units of half the reach."""
    jacobian = Kinematics(model).forward(model.home).jacobian.copy()
    jacobian[:3] *= 2.0 / model.reach
    rows = jacobian if model.num_joints >= 6 else jacobian[:3]
    return float(np.linalg.svd(rows, compute_uv=False)[min(rows.shape) - 1])


@pytest.mark.parametrize("count", [3, 4, 5, 6])
@pytest.mark.parametrize("limits", ['lower="-2.5" upper="2.5"', 'lower="0" upper="1.5"', 'lower="-6.2" upper="6.2"'])
def test_home_is_bent_within_the_limits_and_clear(count: int, limits: str) -> None:
    text = _robot(*_arm(count), _joint("t", f"l{count}", "tool0", **FIXED)).replace('lower="-2.5" upper="2.5"', limits)
    model = robot_from_urdf(text)
    assert np.all(model.home > model.lower + 0.05)
    assert np.all(model.home < model.upper - 0.05)
    assert _bent(model) > 0.1
    pose = Kinematics(model).forward(model.home)
    assert pose.tool[2, 3] > 0.0
    if model.self_pairs:
        assert CollisionModel(model, CollisionConfig()).clearances(pose).nearest > 0.02
    np.testing.assert_array_equal(model.home, robot_from_urdf(text).home)
    given = 0.2 * np.ones(count)
    np.testing.assert_array_equal(robot_from_urdf(text, home=given).home, given)


def test_every_option_is_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "arm.urdf"
    path.write_text(_robot(*_arm(), _joint("slide", "l6", "tip_finger", kind="prismatic")))
    options = ["velocity", "1.5", "home", "[0, 0.5, 0.5, 0.3, 0.5, 0]", "side-joints", "{slide: 0.1}", "capsules", "[]"]
    words = [f"--urdf.{word}" if number % 2 == 0 else word for number, word in enumerate(options)]
    printed = ["wbc", "track", "--robot", str(path), *words, "--print_config"]
    with pytest.raises(SystemExit):
        main(printed)
    shown = capsys.readouterr().out
    for line in ("velocity: 1.5", "slide: 0.1", "capsules: []", "- 0.3"):
        assert line in shown
    assert all(f"{field.name}:" in shown for field in dataclasses.fields(UrdfOptions))
    assert main(["wbc", "track", "--robot", str(path), "--urdf.tol-link", "l6"]) == 2
    assert "did you mean '--urdf.tool-link'?" in capsys.readouterr().err
    assert main(["wbc", "track", "--robot", str(path), "--urdf.tool-link", "tip_finger"]) == 1
    assert "joint 'slide' between 'base' and the tool is prismatic" in capsys.readouterr().err


def test_any_arm_has_a_built_in_motion(monkeypatch: pytest.MonkeyPatch) -> None:
    robot = robot_from_urdf(_robot(*_arm(5)).replace("0 0 0.2", "0 0 0.08"))
    (case,) = built_in_cases(robot, 1)
    assert case.poses.shape[1:] == (4, 4)
    monkeypatch.setattr(built_in, "MAX_TRIES", 3)
    stiff = robot_from_urdf(_robot(*_arm()), acceleration=1e-3)
    with pytest.raises(ConfigError, match=r"no built-in motion fits r around its home"):
        choose_cases(stiff, [], "", 0, count=1)
