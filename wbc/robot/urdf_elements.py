"""Read the XML of a URDF strictly: every number finite, every name known, nothing fetched or executed."""

from __future__ import annotations

import difflib
import math
import os
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree
from xml.etree.ElementTree import Element
from xml.parsers import expat

import numpy as np

from ...errors import ConfigError, refuse_lfs_pointer
from .inertia import Inertial
from .transforms import Array, matrix_from_rpy, pose_matrix, rotation_exp

MAX_BYTES = 64 * 2**20
"""Size above which a URDF is refused."""

LARGEST = 1e6
"""Greatest length, angle or mass [m, rad, kg] that is believed; limits may be greater."""

TURNING = ("revolute", "continuous")
KINDS = (*TURNING, "fixed", "prismatic", "planar", "floating")
ATTRIBUTES = {
    "joint": {"name", "type"},
    "parent": {"link"},
    "child": {"link"},
    "origin": {"xyz", "rpy"},
    "axis": {"xyz"},
    "limit": {"lower", "upper", "velocity", "effort", "acceleration", "deceleration", "jerk"},
    "safety_controller": {"soft_lower_limit", "soft_upper_limit", "k_position", "k_velocity"},
    "mass": {"value"},
    "inertia": {"ixx", "ixy", "ixz", "iyy", "iyz", "izz"},
    "sphere": {"radius"},
    "cylinder": {"radius", "length"},
    "capsule": {"radius", "length"},
    "box": {"size"},
    "mesh": {"filename", "scale"},
}
CHILDREN = {
    "robot": {"link", "joint", "material", "transmission", "gazebo"},
    "joint": {"origin", "parent", "child", "axis", "limit", "mimic", "dynamics", "calibration", "safety_controller"},
    "link": {"inertial", "visual", "collision"},
    "inertial": {"origin", "mass", "inertia"},
    "collision": {"origin", "geometry", "material"},
    "geometry": {"sphere", "cylinder", "capsule", "box", "mesh"},
}
"""What is read or known to be of no matter; a child that is nearly one of these is a misspelling."""

_SOFT = {"soft_lower_limit", "soft_upper_limit"}

MISSPELT = 0.75
"""Likeness from which an unknown attribute is a misspelling of an absent one."""

_LARGEST_ANGLE = 4 * np.pi
"""An angle of an origin above this is in degrees [rad]; exporters write a turn or two at most."""

EXPAND = "expand it with `xacro FILE.urdf.xacro > FILE.urdf` (ROS has it, or `pip install xacro`) and load the .urdf"


@dataclass(frozen=True, slots=True, kw_only=True)
class UrdfShape:
    """One collision shape: `kind` is sphere, cylinder, capsule, box or mesh.

    pose: `[4 4]` in the link frame.
    radius, length: [m], of round shapes (length without the balls of a capsule).
    size: `[3]` edges of a box [m], or scale of a mesh.
    """

    kind: str
    pose: Array
    radius: float = 0.0
    length: float = 0.0
    size: tuple[float, ...] = (1.0, 1.0, 1.0)
    filename: str = ""

    @property
    def empty(self) -> bool:
        """Whether the shape has no extent, as a placeholder has."""
        if self.kind == "box":
            return max(self.size) == 0.0
        return self.kind != "mesh" and self.radius == 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class UrdfLink:
    """A link: its inertial numbers, if the file gives a mass, and its collision shapes."""

    name: str
    inertial: Inertial | None
    shapes: tuple[UrdfShape, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class UrdfJoint:
    """A joint: `origin` `[4 4]` places its frame in the parent link, `axis` `[3]` is a unit vector.

    limits: the attributes of `<limit>` that the file has [rad, rad/s, rad/s^2, N m, or the same with m and N], and
        `soft_lower_limit` and `soft_upper_limit` of its `<safety_controller>`.
    mimic: name of the joint that it follows, None for a joint of its own.
    """

    name: str
    kind: str
    parent: str
    child: str
    origin: Array
    axis: Array
    limits: dict[str, float]
    mimic: str | None = None

    @property
    def mimics(self) -> bool:
        """Whether the joint follows another one."""
        return self.mimic is not None

    def placed(self, value: float) -> Array:
        """Return the pose `[4 4]` of the child link in the parent link at `value` [rad or m]."""
        if self.kind in TURNING:
            return self.origin @ pose_matrix(np.zeros(3), rotation_exp(value * self.axis))
        return self.origin @ pose_matrix(value * self.axis if self.kind == "prismatic" else np.zeros(3), np.eye(3))


@dataclass(frozen=True, slots=True, kw_only=True)
class UrdfFile:
    """A whole file: links and joints by name, and the folder it lies in (None for text)."""

    name: str
    links: dict[str, UrdfLink]
    joints: dict[str, UrdfJoint]
    folder: Path | None


def read_urdf(path_or_text: str | os.PathLike[str]) -> UrdfFile:
    """Read a file, or the text itself (a string that contains `<`).

    Raises:
        ConfigError: no URDF, or one with an element that is missing, misspelt or no finite number.
    """
    if isinstance(path_or_text, str) and "<" in path_or_text:
        data, folder = path_or_text.encode(), None
    else:
        path = Path(path_or_text)
        if not path.is_file():
            raise ConfigError(f"URDF file {path} does not exist; give the path of a .urdf file.")
        if path.stat().st_size > MAX_BYTES:
            raise ConfigError(f"URDF file {path} is larger than {MAX_BYTES >> 20} MiB; give the .urdf, not its meshes.")
        refuse_lfs_pointer(path)
        data, folder = path.read_bytes(), path.resolve().parent
    root = parse_xml(data, "the URDF")
    if root.tag != "robot":
        raise ConfigError(f"the XML describes a <{root.tag}>; expected a <robot>; convert it to URDF first.")
    _check_names(root, "the file")
    links = [_link(element) for element in root.findall("link")]
    joints = [_joint(element) for element in root.findall("joint")]
    for names in ([link.name for link in links], [joint.name for joint in joints]):
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ConfigError(f"the URDF uses the name '{twice[0]}' more than once; names must differ, rename one.")
    known = {link.name: link for link in links}
    for joint in joints:
        for name in (joint.parent, joint.child):
            if name not in known:
                raise ConfigError(
                    f"joint '{joint.name}' names a link '{name}'; expected one of {sorted(known)}; correct the name."
                )
    return UrdfFile(name=root.get("name") or "robot", links=known, joints={j.name: j for j in joints}, folder=folder)


def parse_xml(data: bytes, what: str) -> Element:
    """Return the root element; a document type, and with it every entity, is refused.

    Args:
        data: the file.
        what: its name in messages.

    Raises:
        ConfigError: a document type, or no well-formed XML.
    """
    builder = ElementTree.TreeBuilder()
    parser = expat.ParserCreate()

    def refuse(*_: object) -> None:
        raise ConfigError(f"{what} declares a document type or entities, which no robot needs; remove <!DOCTYPE ...>.")

    parser.StartDoctypeDeclHandler = refuse
    parser.EntityDeclHandler = refuse
    parser.StartElementHandler = builder.start
    parser.EndElementHandler = builder.end
    parser.CharacterDataHandler = builder.data
    try:
        parser.Parse(data, True)
    except expat.ExpatError as error:
        raise ConfigError(f"{what} is not well-formed XML ({error}); it may be truncated, write it again.") from error
    return builder.close()


def _check_names(element: Element, where: str) -> None:
    """Refuse misspelt attributes and children, and xacro, below `element`; what is unknown otherwise is left out.

    Readers of URDF ignore attributes and elements that are not theirs (`drake:acceleration`, `dont_collapse`). An
    attribute that is nearly one that is absent is a misspelling.
    """
    allowed = ATTRIBUTES.get(element.tag, set())
    for name in sorted(set(element.keys()) - allowed) if allowed else []:
        if ":" not in name and difflib.get_close_matches(name, allowed - set(element.keys()), 1, MISSPELT):
            raise ConfigError(
                f"{where}: <{element.tag}> has an attribute '{name}'; expected {sorted(allowed)}; correct the file."
            )
    expected = CHILDREN.get(element.tag)
    for child in element:
        if child.tag.startswith("xacro:"):
            raise ConfigError(f"{where} holds <{child.tag}>: it is xacro source; {EXPAND}.")
        near = difflib.get_close_matches(child.tag, expected, 1, 0.7) if expected and child.tag not in expected else []
        if near:
            raise ConfigError(f"{where}: unknown element <{child.tag}>; did you mean <{near[0]}>? Correct the file.")
        if expected and child.tag in expected and child.tag not in ("visual", "material", "transmission", "gazebo"):
            inside = f"{child.tag} '{child.get('name')}'" if element.tag == "robot" else where
            _check_names(child, inside)


def _numbers(element: Element, attribute: str, count: int, where: str, default: str | None = None) -> list[float]:
    """Return the `count` finite numbers of an attribute."""
    text = element.get(attribute, default)
    wanted = f"{count} finite number{'s' if count > 1 else ''}"
    if text is None:
        raise ConfigError(f"{where}: <{element.tag}> lacks '{attribute}'; expected {wanted}; correct the file.")
    try:
        values = [float(word) for word in text.split()]
    except ValueError:
        values = []
    largest = math.inf if element.tag in ("limit", "safety_controller") else LARGEST
    if len(values) != count or not all(math.isfinite(value) and abs(value) <= largest for value in values):
        advice = "run xacro first" if "${" in text or "$(" in text else "correct the file"
        raise ConfigError(f"{where}: {attribute} of <{element.tag}> is '{text[:60]}'; expected {wanted}; {advice}.")
    return values


def _length(element: Element, attribute: str, where: str) -> float:
    (value,) = _numbers(element, attribute, 1, where)
    if value < 0.0:
        raise ConfigError(f"{where}: {attribute} of <{element.tag}> is {value:g} m; expected 0 or more; correct it.")
    return value


def _child(element: Element, tag: str, where: str) -> Element:
    found = element.find(tag)
    if found is None:
        raise ConfigError(f"{where}: <{element.tag}> has no <{tag}>; expected one; complete the file.")
    return found


def _name(element: Element, attribute: str, where: str) -> str:
    value = element.get(attribute)
    if not value:
        raise ConfigError(f"{where}: <{element.tag}> has no {attribute}; expected a name; complete the file.")
    return value


def _origin(element: Element, where: str) -> Array:
    origin = element.find("origin")
    if origin is None:
        return np.eye(4)
    angles = _numbers(origin, "rpy", 3, where, "0 0 0")
    if np.abs(angles).max() > _LARGEST_ANGLE:
        raise ConfigError(
            f"{where}: rpy of <origin> is '{origin.get('rpy')}', {np.abs(angles).max() / (2 * np.pi):.0f} turns; "
            "expected radians; write pi/2 as 1.5708 in place of 90."
        )
    rotation = matrix_from_rpy(angles)
    return pose_matrix(_numbers(origin, "xyz", 3, where, "0 0 0"), rotation)


def _joint(element: Element) -> UrdfJoint:
    name = _name(element, "name", "a joint")
    where = f"joint '{name}'"
    kind = _name(element, "type", where)
    if kind not in KINDS:
        raise ConfigError(f"{where} is of type '{kind}'; expected one of {list(KINDS)}; correct the file.")
    axis, mimic = element.find("axis"), element.find("mimic")
    limit, safety = element.find("limit"), element.find("safety_controller")
    direction = np.array([1.0, 0.0, 0.0])
    if axis is not None and kind not in ("fixed", "floating"):
        direction = np.array(_numbers(axis, "xyz", 3, where))
        length = float(np.linalg.norm(direction))
        if length < 1e-6:
            raise ConfigError(f"{where}: its axis is zero; expected a direction; correct the file.")
        direction = direction / length
    limits = {
        key: _numbers(element, key, 1, where)[0]
        for element, keys in ((limit, ATTRIBUTES["limit"]), (safety, _SOFT))
        if element is not None
        for key in element.keys()  # noqa: SIM118
        if key in keys
    }
    return UrdfJoint(
        name=name,
        kind=kind,
        parent=_name(_child(element, "parent", where), "link", where),
        child=_name(_child(element, "child", where), "link", where),
        origin=_origin(element, where),
        axis=direction,
        limits=limits,
        mimic=None if mimic is None else mimic.get("joint", ""),
    )


def _link(element: Element) -> UrdfLink:
    name = _name(element, "name", "a link")
    where = f"link '{name}'"
    body = element.find("inertial")
    return UrdfLink(
        name=name,
        inertial=None if body is None else _inertial(body, where),
        shapes=tuple(_shape(collision, where) for collision in element.findall("collision")),
    )


def _inertial(element: Element, where: str) -> Inertial:
    (mass,) = _numbers(_child(element, "mass", where), "value", 1, where)
    terms = _child(element, "inertia", where)
    xx, yy, zz = (_numbers(terms, key, 1, where)[0] for key in ("ixx", "iyy", "izz"))
    xy, xz, yz = (_numbers(terms, key, 1, where, "0")[0] for key in ("ixy", "ixz", "iyz"))
    if mass < 0.0 or min(xx, yy, zz) < 0.0:
        raise ConfigError(f"{where}: a negative mass or moment of inertia; expected 0 or more; correct the file.")
    inertia = np.array([[xx, xy, xz], [xy, yy, yz], [xz, yz, zz]])
    pose = _origin(element, where)
    return Inertial(mass, np.zeros(3), inertia).moved(pose[:3, 3], pose[:3, :3])


def _shape(collision: Element, where: str) -> UrdfShape:
    """Return the shape of a `<collision>`; one without any is empty."""
    geometry, pose = collision.find("geometry"), _origin(collision, where)
    if geometry is None or len(geometry) == 0:
        return UrdfShape(kind="box", pose=pose, size=(0.0, 0.0, 0.0))
    for element in geometry:
        if element.tag == "sphere":
            return UrdfShape(kind="sphere", pose=pose, radius=_length(element, "radius", where))
        if element.tag in ("cylinder", "capsule"):
            radius, length = _length(element, "radius", where), _length(element, "length", where)
            return UrdfShape(kind=element.tag, pose=pose, radius=radius, length=length)
        if element.tag == "box":
            size = tuple(_numbers(element, "size", 3, where))
            if min(size) < 0.0:
                raise ConfigError(f"{where}: a box of size {size}; expected edges of 0 m or more; correct the file.")
            return UrdfShape(kind="box", pose=pose, size=size)
        if element.tag == "mesh":
            scale = tuple(_numbers(element, "scale", 3, where, "1 1 1"))
            if 0.0 in scale:
                raise ConfigError(f"{where}: a mesh of scale {scale}; expected no zero; correct the file.")
            return UrdfShape(kind="mesh", pose=pose, size=scale, filename=_name(element, "filename", where))
    raise ConfigError(f"{where}: a <collision> of unknown shape; expected one of {sorted(CHILDREN['geometry'])}.")
