"""Find the arm in a URDF: where it begins, which joints are its own, and which link is its tool.

What turns or slides beyond the arm is its hand: joints named as fingers and jaws, joints that follow others, and the
branches of a link that fork late. Wheels end a branch. Where two arms remain, the caller must choose one.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from ...errors import ConfigError
from .urdf_elements import TURNING, UrdfFile, UrdfJoint

HAND = re.compile(r"finger|gripper|knuckle|thumb|claw|(?<![a-z])(jaws?|grip|pinky)(?![a-z])", re.IGNORECASE)
"""Names of joints that move a part of the hand."""

HAND_LINK = re.compile(r"finger|knuckle|thumb|claw|(?<![a-z])jaws?(?![a-z])", re.IGNORECASE)
"""Names of links that are a part of the hand; a link called gripper may be the palm, which the arm carries."""

WRIST = re.compile(r"wrist|roll|pitch|yaw|rotat|twist|tilt|flex", re.IGNORECASE)
"""Names of joints that move the whole hand, whatever else is in the name."""

WHEEL = re.compile(r"wheel|caster|castor|propeller", re.IGNORECASE)

SENSOR = re.compile(
    r"camera|cam_|optical|(?<![a-z])imu|sensor|laser|lidar|marker|realsense|inertia|_sc(?![a-z])|collision",
    re.IGNORECASE,
)
"""Names of links that a tool may carry and that are not the tool."""

TOOLS = (
    re.compile(r"tcp|grasp|gripper_frame|tool_?cent(er|re)", re.IGNORECASE),
    re.compile(r"(?<![a-z])tool(?![a-z])", re.IGNORECASE),
    re.compile(r"(?<![a-z])(eef?|end_?effector)(?![a-z])", re.IGNORECASE),
)
"""Names of tool frames, the most certain first."""

LEAST_JOINTS = 3
"""Turning joints below which the links beyond a fork are no hand: a torso forks into arms."""

MAX_NAMES = 6
"""Names in a message, at most."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """The joints from the base to the tool, fixed ones included, and what was decided, one sentence each."""

    chain: tuple[UrdfJoint, ...]
    tool_link: str
    notes: tuple[str, ...] = ()


def find_arm(
    file: UrdfFile, base_link: str | None, tool_link: str | None, side_joints: Mapping[str, float] | None = None
) -> Arm:
    """Return the arm between `base_link` and `tool_link`; where these are None, the one with most turning joints.

    Args:
        file: the whole URDF.
        base_link: link 0; None for the root, or for what hangs on the last joint that leaves the base free.
        tool_link: end of the chain; None for the frame of the last body that is named as a tool, else its end.
        side_joints: places [m] of sliding joints; one on the chain is fixed there.

    Raises:
        ConfigError: no arm, more than one, or one with a joint that is not supported; the message names the option.
    """
    tree = _Tree(file, base_link, tool_link)
    notes: list[str] = []
    if tool_link is None:
        chain, notes = tree.longest()
    else:
        chain = tree.path(tool_link)
    loose = [index for index, joint in enumerate(chain) if joint.kind in ("planar", "floating")]
    if loose and base_link is None:
        free = chain[loose[-1]]
        lost = [joint.name for joint in chain[: loose[-1]] if joint.kind in TURNING or _slides(joint)]
        base = free.child
        if lost:
            raise ConfigError(
                f"joint '{free.name}' between '{tree.base}' and the tool is {free.kind}, and {listed(lost)} would move "
                f"what it leaves free; give base_link='{base}' (--urdf.base-link) for the arm beyond it, "
                f"tool_link='{free.parent}' (--urdf.tool-link) for the one before it, or make it fixed."
            )
        notes.append(f"base link '{base}', which joint '{chain[loose[-1]].name}' leaves free (base_link)")
        chain = chain[loose[-1] + 1 :]
    held = side_joints or {}
    chain = [
        replace(joint, kind="fixed", origin=joint.placed(held[joint.name]), mimic=None)
        if joint.kind == "prismatic" and joint.name in held
        else joint
        for joint in chain
    ]
    base = chain[0].parent if chain else tree.base
    _check(chain, base)
    return Arm(chain=tuple(chain), tool_link=chain[-1].child, notes=tuple(notes))


def listed(names: Iterable[str]) -> str:
    """Return names for a message, the first of them where there are many."""
    every = list(names)
    shown = ", ".join(f"'{name}'" for name in every[:MAX_NAMES])
    return shown + (f" and {len(every) - MAX_NAMES} more" if len(every) > MAX_NAMES else "")


def _check(chain: Sequence[UrdfJoint], base: str) -> None:
    """Refuse joints that the model of a serial arm does not have.

    Raises:
        ConfigError: one slides, follows another or is free, or none turns.
    """
    sliding = [joint for joint in chain if _slides(joint)]
    if sliding:
        above = sum(joint.kind in TURNING for joint in chain[chain.index(sliding[-1]) :])
        first = (
            f"give base_link='{sliding[-1].child}' (--urdf.base-link) for the arm above it, or " if above > 1 else ""
        )
        places = ", ".join(f"'{joint.name}': 0.0" for joint in sliding)
        raise ConfigError(
            f"joint '{sliding[0].name}' between '{base}' and the tool is prismatic; expected joints that turn; {first}"
            f"hold it with side_joints={{{places}}} (--urdf.side-joints), in m."
        )
    for joint in chain:
        if joint.kind not in (*TURNING, "fixed") or (joint.mimics and joint.kind != "fixed"):
            kind = "mimic" if joint.mimics else joint.kind
            raise ConfigError(
                f"joint '{joint.name}' between '{base}' and the tool is {kind}; expected revolute, continuous or "
                "fixed joints only; choose base_link= and tool_link= around it, or make it fixed."
            )
    if not any(joint.kind in TURNING for joint in chain):
        raise ConfigError(f"no joint turns between '{base}' and the tool; give base_link= and tool_link=.")


class _Tree:
    """The joints of a file by the links that they join."""

    def __init__(self, file: UrdfFile, base_link: str | None, tool_link: str | None) -> None:
        """Find the root.

        Raises:
            ConfigError: no tree, no single root, or a link that is not in the file.
        """
        self.above: dict[str, UrdfJoint] = {}
        self.below: dict[str, list[UrdfJoint]] = {}
        for joint in file.joints.values():
            if joint.child in self.above:
                raise ConfigError(f"link '{joint.child}' hangs on two joints; expected a tree; remove one of them.")
            self.above[joint.child] = joint
            self.below.setdefault(joint.parent, []).append(joint)
        for name in (base_link, tool_link):
            if name is not None and name not in file.links:
                raise ConfigError(f"the URDF has no link '{name}'; expected one of {listed(sorted(file.links))}.")
        roots = sorted(set(file.links) - set(self.above))
        if base_link is None and len(roots) != 1:
            raise ConfigError(
                f"the URDF has {len(roots)} root links {roots[:MAX_NAMES]}; expected one; give base_link=."
            )
        self.base = base_link or roots[0]
        self.followed = {joint.mimic for joint in file.joints.values() if joint.mimic}
        self.ends = [name for name in file.links if name not in self.below]

    def path(self, end: str) -> list[UrdfJoint]:
        """Return the joints from the base to a link.

        Raises:
            ConfigError: the link does not hang on the base.
        """
        joints = self._path(end)
        if joints is None:
            raise ConfigError(f"link '{end}' does not hang on '{self.base}'; give another base_link= or tool_link=.")
        return joints

    def _path(self, end: str) -> list[UrdfJoint] | None:
        joints: list[UrdfJoint] = []
        while end != self.base:
            if end not in self.above or len(joints) > len(self.above):
                return None
            joints.append(self.above[end])
            end = joints[-1].parent
        return joints[::-1]

    def longest(self) -> tuple[list[UrdfJoint], list[str]]:
        """Return the chain with most joints that turn, up to its tool, and the sentences about it.

        Raises:
            ConfigError: no branch with a joint that turns, or several arms.
        """
        paths = [path for end in self.ends if (path := self._path(end))]
        arms = [arm for path in paths if (arm := self._without_hand(path))]
        most = max((_turning(arm) for arm in arms), default=0)
        if most == 0:
            raise ConfigError(self._no_arm(paths))
        tools = {arm[-1].child: self._tool(arm[-1].child) for arm in arms if _turning(arm) == most}
        if len(tools) > 1:
            raise ConfigError(
                f"the URDF has {len(tools)} limbs of {most} joints; give the end of one as tool_link= "
                f"(--urdf.tool-link), one of {listed(tools.values())}."
            )
        ((end, tool),) = tools.items()
        others = [name for name in self._rigid(end) if name != tool]
        notes = [f"tool link '{tool}' (tool_link; the last body also has {listed(others)})"] if others else []
        hand = [joint.name for joint in self._moving_beyond(end)]
        if hand:
            notes.append(f"joints of the hand, held at 0: {listed(hand)} (side_joints)")
        return self.path(tool), notes

    def _no_arm(self, paths: Sequence[Sequence[UrdfJoint]]) -> str:
        every = list(dict.fromkeys(joint.name for path in paths for joint in path if joint.kind != "fixed"))
        if not every:
            return f"no branch of the URDF that hangs on '{self.base}' has a joint that moves; give base_link=."
        return (
            f"no branch of the URDF is an arm: its joints {listed(every)} slide, follow others, or are those of "
            "wheels and hands; expected joints that turn; give tool_link= (--urdf.tool-link) to take them all the same."
        )

    def _without_hand(self, path: list[UrdfJoint]) -> list[UrdfJoint] | None:
        """Return a path up to its last joint that turns the arm; None where it leads over a wheel."""
        arm: list[UrdfJoint] = []
        turning = 0
        for joint in path:
            if joint.kind != "fixed" and (WHEEL.search(joint.name) or WHEEL.search(joint.child)):
                return None
            if self._of_hand(joint) or (joint.kind != "fixed" and self._forks(joint.parent, turning)):
                break
            arm.append(joint)
            turning += joint.kind in TURNING and not joint.mimics
        while arm and (arm[-1].kind not in TURNING or arm[-1].mimics) and not _slides(arm[-1]):
            arm.pop()
        return arm if turning else None

    def _of_hand(self, joint: UrdfJoint) -> bool:
        """Return whether a joint moves a part of the hand, by its name or by what moves with it."""
        if joint.kind == "fixed":
            return False
        if (HAND.search(joint.name) and not WRIST.search(joint.name)) or HAND_LINK.search(joint.child):
            return True
        if joint.kind != "prismatic":
            return False
        beside = [other for other in self.below[joint.parent] if other.kind == "prismatic" and other is not joint]
        return bool(beside) or joint.mimics or joint.name in self.followed

    def _forks(self, link: str, turning: int) -> bool:
        """Return whether a link, with `turning` joints before it, carries several fingers."""
        if turning < LEAST_JOINTS:
            return False
        lengths = [length for joint in self.below[link] if (length := self._moving_length(joint))]
        return len(lengths) > 1 and max(lengths) < turning

    def _moving_length(self, joint: UrdfJoint) -> int:
        """Return the most joints that move, of their own, on one way from a joint down."""
        own = joint.kind in (*TURNING, "prismatic") and not joint.mimics and not WHEEL.search(joint.name)
        return own + max((self._moving_length(below) for below in self.below.get(joint.child, [])), default=0)

    def _moving_beyond(self, link: str) -> list[UrdfJoint]:
        """Return the joints beyond a link that move."""
        found: list[UrdfJoint] = []
        for joint in self.below.get(link, []):
            found += [joint] * (joint.kind != "fixed") + self._moving_beyond(joint.child)
        return found

    def _rigid(self, link: str) -> list[str]:
        """Return a link and all that hangs on it by fixed joints."""
        return [
            link,
            *(name for j in self.below.get(link, []) if j.kind == "fixed" for name in self._rigid(j.child)),
        ]

    def _tool(self, link: str) -> str:
        """Return the tool frame of the body that begins with `link`.

        A frame named as a tool; else the end of the longest row of fixed joints that carries no sensor. Of several
        the last link that they share.
        """
        frames = {name: self.path(name)[len(self.path(link)) :] for name in self._rigid(link)}
        for pattern in TOOLS:
            named = [name for name in frames if pattern.search(name) and not SENSOR.search(name)]
            named = [name for name in named if not any(self._hangs(other, name) for other in named if other != name)]
            if named:
                return self._shared(named, link)
        plain = {name: path for name, path in frames.items() if not any(SENSOR.search(j.child) for j in path)}
        most = max(len(path) for path in plain.values())
        return self._shared([name for name, path in plain.items() if len(path) == most], link)

    def _hangs(self, link: str, on: str) -> bool:
        return any(joint.parent == on for joint in self.path(link))

    def _shared(self, names: Sequence[str], link: str) -> str:
        """Return the last link at or beyond `link` on the ways to all of `names`."""
        begin = len(self.path(link))
        ways = [[link, *(joint.child for joint in self.path(name)[begin:])] for name in names]
        return [steps[0] for steps in zip(*ways, strict=False) if len(set(steps)) == 1][-1]


def _turning(chain: Sequence[UrdfJoint]) -> int:
    return sum(joint.kind in TURNING and not joint.mimics for joint in chain)


def _slides(joint: UrdfJoint) -> bool:
    return joint.kind == "prismatic" and not joint.mimics
