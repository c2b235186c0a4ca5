"""Read any serial arm from URDF: joint axes, limits, capsules and masses become a `RobotModel`.

A link of the model is all that moves with one joint: what hangs on it by fixed joints, and by the joints of
side branches (a gripper), which stay where they are. The link's frame is the one of the file, turned by the
least angle that makes z the axis of the joint.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ...errors import ConfigError
from .inertia import combined, stacked
from .robots import Capsule, RobotModel, solid_capsules
from .self_pairs import with_self_pairs
from .transforms import Array, pose_matrix, rotation_exp
from .urdf import CONTINUOUS_RANGE
from .urdf_elements import TURNING, UrdfFile, UrdfJoint, UrdfLink, read_urdf
from .urdf_geometry import body_capsules

DEFAULT_ACCELERATION = 5.0
"""Acceleration bound [rad/s^2] of joints for which neither the caller nor the file gives one."""


@dataclass(frozen=True, slots=True)
class _Arm:
    """The chain, folded: joint frames `[4 4]` in one another, the tool, and what each body is made of.

    parts: for each body (the base first) its links, with their poses `[4 4]` in the frame of the body.
    """

    joints: list[UrdfJoint] = field(default_factory=list)
    frames: list[Array] = field(default_factory=list)
    tool: Array = field(default_factory=lambda: np.eye(4))
    parts: list[list[tuple[UrdfLink, Array]]] = field(default_factory=list)


def robot_from_urdf(
    path_or_text: str | os.PathLike[str],
    *,
    base_link: str | None = None,
    tool_link: str | None = None,
    package_dirs: Sequence[str | os.PathLike[str]] = (),
    velocity: npt.ArrayLike | None = None,
    acceleration: npt.ArrayLike | None = None,
    effort: npt.ArrayLike | None = None,
    home: npt.ArrayLike | None = None,
    side_joints: Mapping[str, float] | None = None,
    capsules: Sequence[Capsule] | None = None,
    self_pairs: Sequence[tuple[int, int]] | None = None,
) -> RobotModel:
    """Read the chain of revolute and continuous joints from `base_link` to `tool_link`.

    Spheres become capsules exactly, as does a cylinder with a ball at each end; another cylinder and a box get the
    least capsule around them, a mesh up to four that together cover it. A body without mass in the file gets
    that of its capsules. The emergency acceleration equals the acceleration and the gripper opens in 1 s:
    change either with `dataclasses.replace`.

    Args:
        path_or_text: a file, or the text itself (a string that contains `<`).
        base_link: link 0; by default the root.
        tool_link: the link whose frame is the tool; by default the end of the branch with most free joints
            (then with most joints). Needed where a gripper has revolute joints.
        package_dirs: folders that hold packages, or are one, for `package://` in mesh names; after them the
            folder of the file and those above it are tried.
        velocity, effort: bounds [rad/s], [N m], a number or `[j]`; by default the file's.
        acceleration: bound [rad/s^2], a number or `[j]`; by default the file's, else `DEFAULT_ACCELERATION`.
        home: `[j]` [rad]; by default the middle of the limits, 0 for joints without stops. Give a bent one
            for arms that would be stretched there.
        side_joints: places [rad or m] of joints on side branches; 0 where not named, `<mimic>` is not
            followed. Geometry is taken there: open a gripper to cover what it sweeps.
        capsules: instead of the file's geometry, in the link frames of the model; meshes are not opened.
        self_pairs: capsules to keep apart; by default those of `with_self_pairs`.

    Raises:
        ConfigError: no serial arm of this kind can be read; the message states where and what to do.
    """
    file = read_urdf(path_or_text)
    arm = _folded(file, _chain(file, base_link, tool_link), base_link, side_joints or {})
    if capsules is None:
        folders = [Path(folder) for folder in package_dirs]
        shapes = [c for link, parts in enumerate(arm.parts) for c in body_capsules(link, parts, folders, file.folder)]
        if not shapes:
            raise ConfigError("the URDF has no <collision> geometry; give capsules= (an empty list to go without).")
    else:
        shapes = list(capsules)
    model = _model(file.name, arm, shapes, velocity, acceleration, effort, home)
    if self_pairs is None:
        return with_self_pairs(model)
    pairs = tuple((a, b) for a, b in self_pairs)
    if any(not 0 <= index < len(shapes) for pair in pairs for index in pair):
        raise ConfigError(f"self_pairs {pairs} name capsules; expected indices below {len(shapes)}.")
    return replace(model, self_pairs=pairs)


def _chain(file: UrdfFile, base_link: str | None, tool_link: str | None) -> list[UrdfJoint]:
    """Return the joints from the base to the tool."""
    above = {}
    for joint in file.joints.values():
        if joint.child in above:
            raise ConfigError(f"link '{joint.child}' hangs on two joints; expected a tree; remove one of them.")
        above[joint.child] = joint
    for name in (base_link, tool_link):
        if name is not None and name not in file.links:
            raise ConfigError(f"the URDF has no link '{name}'; expected one of {sorted(file.links)}.")
    roots = sorted(set(file.links) - set(above))
    if base_link is None and len(roots) != 1:
        raise ConfigError(f"the URDF has {len(roots)} root links {roots}; expected one; give base_link=.")
    base = base_link or roots[0]

    def path(end: str) -> list[UrdfJoint] | None:
        joints: list[UrdfJoint] = []
        while end != base:
            if end not in above or len(joints) > len(above):
                return None
            joints.append(above[end])
            end = joints[-1].parent
        return joints[::-1]

    if tool_link is not None:
        chain = path(tool_link)
        if chain is None:
            raise ConfigError(f"link '{tool_link}' does not hang on '{base}'; give another base_link= or tool_link=.")
    else:
        chain = _longest([path(end) for end in sorted(set(file.links) - {j.parent for j in file.joints.values()})])
    for joint in chain:
        if joint.kind not in (*TURNING, "fixed") or (joint.mimics and joint.kind != "fixed"):
            kind = "mimic" if joint.mimics else joint.kind
            raise ConfigError(
                f"joint '{joint.name}' between '{base}' and the tool is {kind}; expected revolute, continuous or "
                "fixed joints only; choose base_link= and tool_link= around it, or make it fixed."
            )
    if not any(joint.kind in TURNING for joint in chain):
        raise ConfigError(f"no joint turns between '{base}' and the tool; give base_link= and tool_link=.")
    return chain


def _longest(paths: list[list[UrdfJoint] | None]) -> list[UrdfJoint]:
    """Return the one path of free and fixed joints with most free ones, then with most joints."""
    serial = [p for p in paths if p and all(j.kind in (*TURNING, "fixed") and not j.mimics for j in p)]
    if not serial:
        raise ConfigError("no branch of the URDF has revolute and fixed joints alone; give tool_link=.")

    def length(path: list[UrdfJoint]) -> tuple[int, int]:
        return sum(joint.kind in TURNING for joint in path), len(path)

    longest = [path for path in serial if length(path) == max(map(length, serial))]
    if len(longest) > 1:
        raise ConfigError(f"the arm may end at any of {[p[-1].child for p in longest]}; give one as tool_link=.")
    return longest[0]


def _turn_to(axis: Array) -> Array:
    """Return the rotation `[3 3]` of least angle that turns z to the unit vector `axis`."""
    across = np.array([-axis[1], axis[0], 0.0])
    sine = float(np.linalg.norm(across))
    if sine < 1e-12:
        return np.eye(3) if axis[2] > 0.0 else np.diag([1.0, -1.0, -1.0])
    return rotation_exp(across / sine * math.atan2(sine, float(axis[2])))


def _folded(file: UrdfFile, chain: list[UrdfJoint], base_link: str | None, side_joints: Mapping[str, float]) -> _Arm:
    """Merge fixed joints and side branches into the bodies, and turn every body so that its joint is about z."""
    moving = {joint.name for joint in chain if joint.kind in TURNING}
    for name in side_joints:
        if name not in file.joints or name in moving:
            raise ConfigError(f"side_joints names '{name}', which is no joint of a side branch; remove it.")
    arm, pose = _Arm(), np.eye(4)
    start = (file.links[chain[0].parent], pose)
    arm.parts.append([start])
    for joint in chain:
        pose = pose @ joint.origin
        if joint.kind in TURNING:
            turn = pose_matrix(np.zeros(3), _turn_to(joint.axis))
            arm.joints.append(joint)
            arm.frames.append(pose @ turn)
            arm.parts.append([])
            pose = turn.T
        arm.parts[-1].append((file.links[joint.child], pose))
    arm.tool[:] = pose
    below: dict[str, list[UrdfJoint]] = {}
    on_chain = {joint.name for joint in chain}
    for joint in file.joints.values():
        if joint.name not in on_chain:
            below.setdefault(joint.parent, []).append(joint)
    inner = {chain[0].parent, *(joint.child for joint in chain)}
    for parts in arm.parts:
        for link, place in parts:
            for joint in below.get(link.name, []):
                if joint.child not in inner:
                    parts.append((file.links[joint.child], place @ joint.placed(side_joints.get(joint.name, 0.0))))
    return arm


def _rpy_from_matrix(rotation: Array) -> Array:
    """Return roll, pitch, yaw [rad] of a rotation; exact at a pitch of 90 degrees too (yaw is taken off first)."""
    yaw = math.atan2(rotation[1, 0], rotation[0, 0])
    rest = rotation_exp([0.0, 0.0, -yaw]) @ rotation
    return np.array([math.atan2(-rest[1, 2], rest[1, 1]), math.atan2(-rest[2, 0], rest[0, 0]), yaw])


def _model(
    name: str,
    arm: _Arm,
    capsules: list[Capsule],
    velocity: npt.ArrayLike | None,
    acceleration: npt.ArrayLike | None,
    effort: npt.ArrayLike | None,
    home: npt.ArrayLike | None,
) -> RobotModel:
    """Assemble the model, its limits checked, without pairs."""
    count = len(arm.joints)
    for capsule in capsules:
        numbers = [*capsule.start, *capsule.end, capsule.radius]
        if not 0 <= capsule.link <= count or not np.isfinite(numbers).all() or capsule.radius <= 0.0:
            raise ConfigError(f"{capsule} cannot be; expected a link of 0 to {count}, finite ends, a radius above 0.")
    stops = np.array([_stops(joint) for joint in arm.joints])
    middle = np.where(np.isfinite(stops).all(1), np.nan_to_num(stops, posinf=0.0, neginf=0.0).sum(1) / 2, 0.0)
    neutral = middle if home is None else _per_joint("home", home, count)
    if not np.all((neutral >= stops[:, 0]) & (neutral <= stops[:, 1])):
        raise ConfigError(f"home is {neutral.tolist()}; expected angles within the limits {stops.tolist()} [rad].")
    bound = _bounds("acceleration", acceleration, arm.joints, DEFAULT_ACCELERATION)
    bodies = []
    for link, parts in enumerate(arm.parts):
        given = [body.inertial.moved(p[:3, 3], p[:3, :3]) for body, p in parts if body.inertial is not None]
        whole = combined(given)
        bodies.append(whole if whole.mass > 0.0 else solid_capsules([c for c in capsules if c.link == link]))
    masses, mass_centers, inertias = stacked(bodies)
    return RobotModel(
        name=name,
        joint_positions=np.stack([frame[:3, 3] for frame in arm.frames]),
        joint_rpys=np.stack([_rpy_from_matrix(frame[:3, :3]) for frame in arm.frames]),
        tool_position=arm.tool[:3, 3],
        tool_rpy=_rpy_from_matrix(arm.tool[:3, :3]),
        lower=stops[:, 0],
        upper=stops[:, 1],
        velocity=_bounds("velocity", velocity, arm.joints, None),
        acceleration=bound,
        emergency_acceleration=bound,
        effort=_bounds("effort", effort, arm.joints, None),
        gripper_rate=1.0,
        home=neutral,
        capsules=tuple(capsules),
        self_pairs=(),
        masses=masses,
        mass_centers=mass_centers,
        inertias=inertias,
    )


def _stops(joint: UrdfJoint) -> tuple[float, float]:
    """Return the position limits [rad]; infinite for continuous joints and beyond `CONTINUOUS_RANGE`."""
    if joint.kind == "continuous":
        return -math.inf, math.inf
    lower, upper = joint.limits.get("lower"), joint.limits.get("upper")
    if lower is None or upper is None or lower >= upper:
        raise ConfigError(
            f"joint '{joint.name}' has position limits {lower} to {upper}; expected lower < upper [rad] in its "
            "<limit>; complete the file, or make the joint continuous."
        )
    return (
        lower if lower > -CONTINUOUS_RANGE else -math.inf,
        upper if upper < CONTINUOUS_RANGE else math.inf,
    )


def _per_joint(name: str, given: npt.ArrayLike, count: int) -> Array:
    """Return finite numbers `[j]` from a number or `[j]`."""
    try:
        values = np.broadcast_to(np.asarray(given, dtype=np.float64), (count,)).copy()
    except (TypeError, ValueError):
        values = np.full(count, np.nan)
    if not np.isfinite(values).all():
        raise ConfigError(
            f"{name}={given!r} cannot be used; expected a finite number, or one for each of {count} joints."
        )
    return values


def _bounds(name: str, given: npt.ArrayLike | None, joints: list[UrdfJoint], default: float | None) -> Array:
    """Return positive bounds `[j]`: the caller's, else the file's, else the default."""
    if given is None:
        for joint in joints:
            if joint.limits.get(name, 0.0) <= 0.0 and default is None:
                raise ConfigError(
                    f"joint '{joint.name}' has no {name} limit above 0 in the URDF; give {name}= (a number, or one "
                    "for each joint), or complete its <limit>."
                )
        found = [joint.limits.get(name, 0.0) for joint in joints]
        return np.array([value if value > 0.0 else default for value in found], dtype=np.float64)
    values = _per_joint(name, given, len(joints))
    if values.min() <= 0.0:
        raise ConfigError(f"{name}={given!r} cannot be used; expected numbers above 0.")
    return values
