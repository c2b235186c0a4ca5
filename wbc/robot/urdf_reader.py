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
from .home import around_home, default_home
from .inertia import combined, stacked
from .never_meet import never_meeting
from .robots import Capsule, RobotModel, solid_capsules
from .self_pairs import with_self_pairs
from .transforms import Array, pose_matrix, rotation_exp
from .urdf import CONTINUOUS_RANGE
from .urdf_chain import find_arm, listed
from .urdf_elements import TURNING, UrdfFile, UrdfJoint, UrdfLink, read_urdf
from .urdf_geometry import Meshes, body_capsules

DEFAULT_ACCELERATION = 5.0
"""Acceleration bound [rad/s^2] of joints for which neither the caller nor the file gives one."""

DEFAULT_VELOCITY = 2.0
"""Velocity bound [rad/s] of joints whose file gives one above `FASTEST`, which is a placeholder."""

FASTEST = 4 * math.pi
"""Velocity limit [rad/s] above which a file is not believed: two turns a second."""

MOST_TURNS = 4
"""Turns beyond which a position limit in rad is taken for one in degrees."""

REACHES = (0.01, 30.0)
"""Least and greatest reach [m] of an arm whose lengths are believed."""

LARGEST_PART, SMALLEST_PART = 5.0, 0.005
"""Extent of a mesh, and of the largest one, beyond which its unit is not believed [reach of the arm]."""


@dataclass(frozen=True, kw_only=True)
class UrdfOptions:
    """How a .urdf file is read.

    Args:
        base_link: link 0; the root where none is given.
        tool_link: link whose frame is the tool; where none is given, the frame that is named as one (tcp, tool0, ee) on
            the last body of the branch with most turning joints, else the end of that body. Needed for two arms.
        package_dirs: folders that hold packages, or are one, for `package://` in mesh names; after them the folder of
            the file, those above it, and ROS_PACKAGE_PATH and AMENT_PREFIX_PATH are tried.
        mesh_scale: factor on every mesh, 0.001 for meshes in millimeters.
        limits_in_degrees: The position limits of the file are in degrees.
        lower: position limits [rad], a number or one for each joint; those of the file where none are given.
        upper: position limits [rad], a number or one for each joint; those of the file where none are given.
        velocity: bound [rad/s], a number or one for each joint; that of the file where none is given.
        acceleration: bound [rad/s^2], a number or one for each joint; that of the file, else 5 where none is given.
        effort: bound [N m], for simulators; that of the file where none is given, unbounded where it has none.
        home: posture to begin in [rad]; where none is given, a bent one is chosen by `default_home`.
        side_joints: places [rad or m] of joints on side branches, 0 where not named; geometry is taken there: open a
            gripper to cover what it sweeps. A sliding joint of the arm that is named is fixed there.
        capsules: bodies in place of the file's geometry, in the link frames of the model; meshes are not opened. [] is
            to go without.
        self_pairs: pairs of capsules to keep apart; those of `with_self_pairs` where none are given.
    """

    base_link: str | None = None
    tool_link: str | None = None
    package_dirs: Sequence[str | os.PathLike[str]] = ()
    mesh_scale: float = 1.0
    limits_in_degrees: bool = False
    lower: float | Sequence[float] | None = None
    upper: float | Sequence[float] | None = None
    velocity: float | Sequence[float] | None = None
    acceleration: float | Sequence[float] | None = None
    effort: float | Sequence[float] | None = None
    home: float | Sequence[float] | None = None
    side_joints: Mapping[str, float] | None = None
    capsules: Sequence[Capsule] | None = None
    self_pairs: Sequence[tuple[int, int]] | None = None


AS_IN_FILE = UrdfOptions()
"""Everything as the file has it."""


@dataclass(frozen=True, slots=True)
class _Bodies:
    """The chain, folded: joint frames `[4 4]` in one another, the tool, and what each body is made of.

    parts: for each body (the base first) its links, with their poses `[4 4]` in the frame of the body.
    """

    joints: list[UrdfJoint] = field(default_factory=list)
    frames: list[Array] = field(default_factory=list)
    tool: Array = field(default_factory=lambda: np.eye(4))
    parts: list[list[tuple[UrdfLink, Array]]] = field(default_factory=list)


def read_robot(path_or_text: str | os.PathLike[str], options: UrdfOptions = AS_IN_FILE) -> RobotModel:
    """Read the chain of revolute and continuous joints from `base_link` to `tool_link`.

    Spheres become capsules exactly, as does a cylinder with a ball at each end; another cylinder and a box get the
    least capsule around them, a mesh several that together cover it. A body without mass in the file gets
    that of its capsules. The emergency acceleration equals the acceleration and the gripper opens in 1 s:
    change either with `dataclasses.replace`. What was chosen or repaired is in the model's `notes`.

    Args:
        path_or_text: a file, or the text itself (a string that contains `<`).
        options: how to read it.

    Raises:
        ConfigError: no serial arm of this kind can be read; the message states where and what to do.
    """
    file = read_urdf(path_or_text)
    held = options.side_joints or {}
    arm = find_arm(file, options.base_link, options.tool_link, held)
    bodies = _folded(file, list(arm.chain), held)
    notes = list(arm.notes)
    bare = _model(file.name, bodies, options, notes)
    _check_lengths(bare.reach, bodies.joints)
    covers = _capsules(file, bodies, options, bare.reach)
    capsules = [capsule for capsule, _ in covers]
    masses, centers, inertias = _masses(bodies, capsules)
    model = replace(bare, capsules=tuple(capsules), masses=masses, mass_centers=centers, inertias=inertias)
    never = never_meeting(model, [surface for _, surface in covers])
    if options.home is None:
        model = replace(model, home=default_home(model, never))
    model = replace(model, notes=tuple(notes))
    if options.self_pairs is None:
        return with_self_pairs(model, around_home(model), never)
    pairs = tuple((a, b) for a, b in options.self_pairs)
    if any(not 0 <= index < len(capsules) for pair in pairs for index in pair):
        raise ConfigError(f"self_pairs {pairs} name capsules; expected indices below {len(capsules)}.")
    return replace(model, self_pairs=pairs)


def _capsules(
    file: UrdfFile, bodies: _Bodies, options: UrdfOptions, reach: float
) -> list[tuple[Capsule, Array | None]]:
    """Return what covers the bodies, each with the triangles `[t 3 3]` [m] in it where it was fitted to some.

    Raises:
        ConfigError: no geometry, meshes that are missing or in another unit, or a capsule that cannot be.
    """
    count = len(bodies.joints)
    if options.capsules is not None:
        for capsule in options.capsules:
            numbers = [*capsule.start, *capsule.end, capsule.radius]
            if not 0 <= capsule.link <= count or not np.isfinite(numbers).all() or capsule.radius <= 0.0:
                raise ConfigError(
                    f"{capsule} cannot be; expected a link of 0 to {count}, finite ends, a radius above 0."
                )
        return [(capsule, None) for capsule in options.capsules]
    if not (math.isfinite(options.mesh_scale) and options.mesh_scale > 0.0):
        raise ConfigError(f"mesh_scale={options.mesh_scale!r} cannot be used; expected a number above 0.")
    meshes = Meshes(
        package_dirs=[Path(folder) for folder in options.package_dirs],
        folder=file.folder,
        scale=options.mesh_scale,
        largest=LARGEST_PART * max(reach, 0.5),
        reach=reach,
    )
    found = [c for link, parts in enumerate(bodies.parts) for c in body_capsules(link, parts, meshes)]
    if not found:
        raise ConfigError(
            "the URDF has no <collision> geometry on its arm; give capsules= (--urdf.capsules), [] to go without."
        )
    largest = max(float(np.linalg.norm(np.subtract(c.end, c.start))) + 2 * c.radius for c, _ in found)
    if largest < SMALLEST_PART * reach:
        raise ConfigError(
            f"the largest part of the arm is {1e3 * largest:.3g} mm long, but the arm reaches {reach:.3g} m; expected "
            "meshes in meters; give mesh_scale= (--urdf.mesh-scale), 1000 where a scale of 0.001 is one too many."
        )
    return found


def _check_lengths(reach: float, joints: Sequence[UrdfJoint]) -> None:
    """Refuse an arm whose lengths are in another unit."""
    if len(joints) > 1 and not REACHES[0] <= reach <= REACHES[1]:
        raise ConfigError(
            f"the joints {listed(joint.name for joint in joints)} are {reach:.3g} m long together; expected "
            f"{REACHES[0]:g} to {REACHES[1]:g} m; the <origin> of URDF is in meters, export the file in meters."
        )


def _turn_to(axis: Array) -> Array:
    """Return the rotation `[3 3]` of least angle that turns z to the unit vector `axis`."""
    across = np.array([-axis[1], axis[0], 0.0])
    sine = float(np.linalg.norm(across))
    if sine < 1e-12:
        return np.eye(3) if axis[2] > 0.0 else np.diag([1.0, -1.0, -1.0])
    return rotation_exp(across / sine * math.atan2(sine, float(axis[2])))


def _folded(file: UrdfFile, chain: list[UrdfJoint], side_joints: Mapping[str, float]) -> _Bodies:
    """Merge fixed joints and side branches into the bodies, and turn every body so that its joint is about z."""
    moving = {joint.name for joint in chain if joint.kind in TURNING}
    for name in side_joints:
        if name not in file.joints or name in moving:
            raise ConfigError(f"side_joints names '{name}', which is no joint of a side branch; remove it.")
    arm, pose = _Bodies(), np.eye(4)
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


def _model(name: str, arm: _Bodies, options: UrdfOptions, notes: list[str]) -> RobotModel:
    """Assemble the model, its limits checked, without capsules, pairs and masses; append what was repaired to notes."""
    count = len(arm.joints)
    stops = np.array([_stops(joint, number, options, notes) for number, joint in enumerate(arm.joints)])
    middle = np.where(np.isfinite(stops).all(1), np.nan_to_num(stops, posinf=0.0, neginf=0.0).sum(1) / 2, 0.0)
    neutral = middle if options.home is None else _per_joint("home", options.home, count)
    if not np.all((neutral >= stops[:, 0]) & (neutral <= stops[:, 1])):
        raise ConfigError(f"home is {neutral.tolist()}; expected angles within the limits {stops.tolist()} [rad].")
    bound = _bounds("acceleration", options.acceleration, arm.joints, DEFAULT_ACCELERATION)
    velocity = _bounds("velocity", options.velocity, arm.joints, None)
    if options.velocity is None and np.any(velocity > FASTEST):
        placeholders = [joint.name for joint, limit in zip(arm.joints, velocity, strict=True) if limit > FASTEST]
        notes.append(
            f"velocity limits above {FASTEST:.3g} rad/s are not believed and {DEFAULT_VELOCITY:g} rad/s is kept "
            f"instead: {listed(placeholders)} (velocity)"
        )
        velocity = np.where(velocity > FASTEST, DEFAULT_VELOCITY, velocity)
    return RobotModel(
        name=name,
        joint_names=tuple(joint.name for joint in arm.joints),
        joint_positions=np.stack([frame[:3, 3] for frame in arm.frames]),
        joint_rpys=np.stack([_rpy_from_matrix(frame[:3, :3]) for frame in arm.frames]),
        tool_position=arm.tool[:3, 3],
        tool_rpy=_rpy_from_matrix(arm.tool[:3, :3]),
        lower=stops[:, 0],
        upper=stops[:, 1],
        velocity=velocity,
        acceleration=bound,
        emergency_acceleration=bound,
        effort=_bounds("effort", options.effort, arm.joints, math.inf),
        gripper_rate=1.0,
        home=neutral,
        capsules=(),
        self_pairs=(),
    )


def _masses(arm: _Bodies, capsules: Sequence[Capsule]) -> tuple[Array, Array, Array]:
    """Return masses, centers and inertias of the bodies, from their capsules where the file gives none."""
    bodies = []
    for link, parts in enumerate(arm.parts):
        given = [body.inertial.moved(p[:3, 3], p[:3, :3]) for body, p in parts if body.inertial is not None]
        whole = combined(given)
        bodies.append(whole if whole.mass > 0.0 else solid_capsules([c for c in capsules if c.link == link]))
    return stacked(bodies)


def _stops(joint: UrdfJoint, number: int, options: UrdfOptions, notes: list[str]) -> tuple[float, float]:
    """Return the position limits [rad]; infinite for continuous joints and beyond `CONTINUOUS_RANGE`.

    Those of a `<safety_controller>` within them count instead, as for the drivers that enforce it.

    Raises:
        ConfigError: no limits, none with lower < upper, or some in degrees.
    """
    limits = [joint.limits.get("lower"), joint.limits.get("upper")]
    if options.limits_in_degrees:
        limits = [None if limit is None else math.radians(limit) for limit in limits]
    given = [_at("lower", options.lower, number), _at("upper", options.upper, number)]
    if joint.kind == "continuous" and given == [None, None]:
        return -math.inf, math.inf
    lower, upper = (file if own is None else own for file, own in zip(limits, given, strict=True))
    if lower is None or upper is None or lower >= upper:
        raise ConfigError(
            f"joint '{joint.name}' has position limits {lower} to {upper}; expected lower < upper [rad] in its "
            "<limit>; complete the file, make the joint continuous, or give lower= and upper= (--urdf.lower)."
        )
    most = max((abs(limit) for limit in (lower, upper) if abs(limit) < CONTINUOUS_RANGE), default=0.0)
    if most > 2 * math.pi * MOST_TURNS and given == [None, None]:
        raise ConfigError(
            f"joint '{joint.name}' has position limits {lower:g} to {upper:g} rad, {most / math.tau:.0f} turns; "
            "expected radians; for limits in degrees give limits_in_degrees=True (--urdf.limits-in-degrees), else "
            "lower= and upper=."
        )
    soft = [math.radians(end) if options.limits_in_degrees else end for end in _soft(joint)] or [lower, upper]
    low = max(lower, soft[0]) if given[0] is None else lower
    high = min(upper, soft[1]) if given[1] is None else upper
    if (low, high) != (lower, upper) and low < high:
        lower, upper = low, high
        notes.append(
            f"joint '{joint.name}' is held in {lower:g} to {upper:g} rad, the soft limits of its <safety_controller> "
            "(lower, upper)"
        )
    return (
        lower if lower > -CONTINUOUS_RANGE else -math.inf,
        upper if upper < CONTINUOUS_RANGE else math.inf,
    )


def _soft(joint: UrdfJoint) -> list[float]:
    """Return the ends of the soft limits, none where there are not two in order (absent ones mean 0 to 0)."""
    ends = [joint.limits.get(f"soft_{end}_limit", 0.0) for end in ("lower", "upper")]
    return ends if ends[0] < ends[1] else []


def _at(name: str, given: npt.ArrayLike | None, number: int) -> float | None:
    """Return the number for one joint of an option that is a number or has one for each."""
    if given is None:
        return None
    try:
        values = np.asarray(given, dtype=np.float64)
        value = float(values if values.ndim == 0 else values[number])
    except (TypeError, ValueError, IndexError):
        value = math.nan
    if math.isnan(value):
        raise ConfigError(f"{name}={given!r} cannot be used; expected a number, or one for each joint.")
    return value


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
                    f"joint '{joint.name}' has no {name} limit above 0 in the URDF; give {name}= (--urdf.{name}), a "
                    "number or one for each joint, or complete its <limit>."
                )
        found = [joint.limits.get(name, 0.0) for joint in joints]
        return np.array([value if value > 0.0 else default for value in found], dtype=np.float64)
    values = _per_joint(name, given, len(joints))
    if values.min() <= 0.0:
        raise ConfigError(f"{name}={given!r} cannot be used; expected numbers above 0.")
    return values
