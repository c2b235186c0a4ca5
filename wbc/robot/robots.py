"""The arms as numbers: joint frames, limits, capsules and masses of the Kinova Gen3 and the Franka Panda.

Link l is the body that joint l moves (joints count from 1); link 0 is the base. The tool frame is fixed to
the last link.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from ...errors import ShapeError
from .inertia import Inertial, combined, from_rows, solid_rod, stacked
from .polytopes import Polytope
from .transforms import Array, matrix_from_rpy

DEFAULT_DENSITY = 1000.0
"""Density [kg/m^3] of the capsules of a link whose mass is not known."""

UNKNOWN_MASS = 1.0
"""Mass [kg] of a link of which neither mass nor capsules are known; its inertia is that of a 5 cm ball."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Capsule:
    """A segment with a radius, in the frame of a link.

    link: index of the link that carries it.
    start, end: ends of the segment [m].
    radius: [m].
    inside: convex hull of what the capsule covers, which tells more where two are near; None where it is not known.
    """

    link: int
    start: tuple[float, float, float]
    end: tuple[float, float, float]
    radius: float
    inside: Polytope | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RobotModel:
    """A serial arm whose joints all turn about the z axis of their frame.

    joint_positions, joint_rpys: `[j 3]` origin of joint frame i in frame i - 1 [m], fixed-axis angles [rad].
    tool_position, tool_rpy: `[3]` tool frame in the last joint frame.
    lower, upper: `[j]` position limits [rad]; infinite for joints without stops.
    velocity: `[j]` [rad/s]; acceleration: `[j]` nominal bound [rad/s^2].
    emergency_acceleration: `[j]` bound while braking in an emergency [rad/s^2], at least the nominal one.
    effort: `[j]` torque limit [N m], for simulators.
    masses: `[j+1]` masses of the links [kg], the base first; a tool belongs to the last link.
    mass_centers: `[j+1 3]` centers of mass, in link frames [m].
    inertias: `[j+1 3 3]` about the centers of mass, along the axes of the link frames [kg m^2].
    gripper_rate: fastest change of the opening (0 to 1) [1/s].
    home: `[j]` a comfortable posture [rad].
    self_pairs: pairs of capsules that are kept apart; self_margins: for each of them [m] that is added to their
        distance, above 0 where the capsules overlap without the bodies touching; zeros where left out.
    unwatched_pairs: pairs of capsules that are not kept apart although joints between them would let them meet.

    joint_names: `[j]` names of the joints, in this order; `joint_1` ... where none are given.
    notes: what a reader chose or repaired, one sentence each.

    Where masses, centers or inertias are left out, all three follow from the capsules at `DEFAULT_DENSITY`;
    a link without capsules gets `UNKNOWN_MASS`.
    """

    name: str
    joint_positions: Array
    joint_rpys: Array
    tool_position: Array
    tool_rpy: Array
    lower: Array
    upper: Array
    velocity: Array
    acceleration: Array
    emergency_acceleration: Array
    effort: Array
    gripper_rate: float
    home: Array
    capsules: tuple[Capsule, ...]
    self_pairs: tuple[tuple[int, int], ...]
    self_margins: tuple[float, ...] = ()
    unwatched_pairs: tuple[tuple[int, int], ...] = ()
    masses: Array = field(default_factory=lambda: np.empty(0))
    mass_centers: Array = field(default_factory=lambda: np.empty((0, 3)))
    inertias: Array = field(default_factory=lambda: np.empty((0, 3, 3)))
    joint_names: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Fill in names, margins and masses that were left out.

        Raises:
            ShapeError: names for another number of joints; masses, centers or inertias for another number of links.
        """
        count = self.num_joints + 1
        if not self.joint_names:
            object.__setattr__(self, "joint_names", tuple(f"joint_{number}" for number in range(1, count)))
        if len(self.joint_names) != self.num_joints:
            raise ShapeError(
                f"joint_names of robot '{self.name}' has {len(self.joint_names)} names; expected {self.num_joints}."
            )
        if len(self.self_margins) != len(self.self_pairs):
            # A copy with other pairs has none of the margins of the old ones.
            object.__setattr__(self, "self_margins", (0.0,) * len(self.self_pairs))
        if 0 in (len(self.masses), len(self.mass_centers), len(self.inertias)):
            bodies = [solid_capsules([c for c in self.capsules if c.link == link]) for link in range(count)]
            for name, values in zip(("masses", "mass_centers", "inertias"), stacked(bodies), strict=True):
                object.__setattr__(self, name, values)
        shapes = [self.masses.shape, self.mass_centers.shape, self.inertias.shape]
        if shapes != [(count,), (count, 3), (count, 3, 3)]:
            raise ShapeError(
                f"masses, mass_centers and inertias of robot '{self.name}' have shapes {shapes}; expected "
                f"{[(count,), (count, 3), (count, 3, 3)]}, one row for each link, the base first."
            )

    @property
    def num_joints(self) -> int:
        """Number of joints."""
        return len(self.lower)

    @property
    def reach(self) -> float:
        """Distance [m] from the first joint beyond which the tool cannot be: the lengths of all links and the tool."""
        links = float(np.linalg.norm(self.joint_positions[1:], axis=1).sum())
        return links + float(np.linalg.norm(self.tool_position))


def solid_capsules(capsules: Sequence[Capsule]) -> Inertial:
    """Return the inertial numbers of the capsules of one link at `DEFAULT_DENSITY`, overlaps counted twice.

    Without capsules, those of a ball of `UNKNOWN_MASS`.
    """
    if not capsules:
        return Inertial(UNKNOWN_MASS, np.zeros(3), 0.4 * UNKNOWN_MASS * 0.05**2 * np.eye(3))
    return combined(solid_rod(np.array(c.start), np.array(c.end), c.radius, DEFAULT_DENSITY) for c in capsules)


def distant_pairs(capsules: tuple[Capsule, ...], min_joints: int) -> tuple[tuple[int, int], ...]:
    """List the pairs of capsules with at least `min_joints` joints between them; nearer ones cannot meet."""
    count = len(capsules)
    return tuple(
        (i, k) for i in range(count) for k in range(i + 1, count) if capsules[k].link - capsules[i].link >= min_joints
    )


def _in_last_link(capsules: list[Capsule], position: Array, rpy: Array) -> tuple[Capsule, ...]:
    """Express capsules given in a frame fixed to the last link in that link's own frame."""
    rotation = matrix_from_rpy(rpy)

    def place(point: tuple[float, float, float]) -> tuple[float, float, float]:
        x, y, z = (rotation @ np.asarray(point) + position).tolist()
        return (x, y, z)

    return tuple(Capsule(link=c.link, start=place(c.start), end=place(c.end), radius=c.radius) for c in capsules)


def _kinova_bodies(position: Array, rpy: Array) -> list[Inertial]:
    """Return the links' bodies of the Gen3 with a 2F-85 whose flange stands there in the last link."""
    links = from_rows(
        [
            (1.697, -0.000648, -0.000166, 0.084487, 0.004622, 0.004495, 0.002079, 9e-6, 6e-5, 9e-6),
            (1.3773, -2.3e-5, -0.010364, -0.07336, 0.00457, 0.004831, 0.001409, 1e-6, 2e-6, 0.000448),
            (1.1636, -4.4e-5, -0.09958, -0.013278, 0.011088, 0.001072, 0.011255, 5e-6, 0.0, -0.000691),
            (1.1636, -4.4e-5, -0.006641, -0.117892, 0.010932, 0.011127, 0.001043, 0.0, -7e-6, 0.000606),
            (0.9302, -1.8e-5, -0.075478, -0.015006, 0.008147, 0.000631, 0.008316, -1e-6, 0.0, -0.0005),
            (0.6781, 1e-6, -0.009432, -0.063883, 0.001596, 0.001607, 0.000399, 0.0, 0.0, 0.000256),
            (0.6781, 1e-6, -0.045483, -0.00965, 0.001641, 0.00041, 0.001641, 0.0, 0.0, -0.000278),
            (0.5, 0.000281, 0.011402, -0.029798, 0.000587, 0.000369, 0.000609, 3e-6, 3e-6, -0.000118),
        ]
    )
    hand = from_rows([(0.9, 0.0, 0.0, 0.053, 0.000563, 0.000903, 0.000473, 0.0, 0.0, 0.0)])[0]
    links[-1] = combined([links[-1], hand.moved(position, matrix_from_rpy(rpy))])
    return links


def kinova_gen3(*, tool_z: float = 0.12) -> RobotModel:
    """Describe the Kinova Gen3 with seven joints and a Robotiq 2F-85.

    The tool frame has its z axis out of the gripper and lies `tool_z` beyond the flange; the fingers open
    along its x axis. Capsules cover the public link hulls, the fingers where they are open. Continuous
    joints have infinite limits.

    Args:
        tool_z: distance from the flange to the tool center point [m].

    Source: Kinova Gen3 user guide (position limits, kinematics), ros2_kortex (joint frames, velocities,
    masses, centers and inertias, with the vision module), mujoco_menagerie robotiq_2f85 (the gripper, its
    fingers open; 0.90 kg, without the coupling).
    """
    half = math.pi / 2
    flange_position, flange_rpy = np.array([0.0, 0.0, -0.061525]), np.array([math.pi, 0.0, 0.0])
    gripper = [
        Capsule(link=7, start=(0.0, 0.0, 0.03), end=(0.0, 0.0, 0.075), radius=0.052),
        Capsule(link=7, start=(0.055, 0.0, 0.085), end=(0.055, 0.0, 0.127), radius=0.022),
        Capsule(link=7, start=(-0.055, 0.0, 0.085), end=(-0.055, 0.0, 0.127), radius=0.022),
    ]
    capsules = (
        Capsule(link=0, start=(0.0, 0.0, 0.0147), end=(0.0, 0.0, 0.145), radius=0.0563),
        Capsule(link=1, start=(0.0, 0.0, -0.0318), end=(0.0, -0.0076, -0.1285), radius=0.0534),
        Capsule(link=2, start=(0.0, 0.0036, -0.0194), end=(0.0, -0.2139, -0.0062), radius=0.0474),
        Capsule(link=3, start=(0.0, -0.0043, -0.2154), end=(0.0, 0.0, -0.0295), radius=0.0519),
        Capsule(link=4, start=(0.0, -0.1889, -0.0064), end=(0.0, 0.0032, -0.0202), radius=0.0474),
        Capsule(link=5, start=(0.0, -0.0129, -0.1059), end=(0.0, 0.0, -0.0297), radius=0.0431),
        Capsule(link=6, start=(0.0, -0.1011, 0.0), end=(0.0, -0.0012, -0.0201), radius=0.0391),
        Capsule(link=7, start=(0.0, -0.0538, -0.0548), end=(0.0, 0.0, -0.0359), radius=0.0471),
        *_in_last_link(gripper, flange_position, flange_rpy),
    )
    masses, mass_centers, inertias = stacked(_kinova_bodies(flange_position, flange_rpy))
    stops = np.array([np.inf, 2.2497, np.inf, 2.5796, np.inf, 2.0996, np.inf])
    acceleration = np.array([5.2, 5.2, 5.2, 5.2, 10.0, 10.0, 10.0])
    return RobotModel(
        name="kinova_gen3",
        joint_positions=np.array(
            [
                [0.0, 0.0, 0.15643],
                [0.0, 0.005375, -0.12838],
                [0.0, -0.21038, -0.006375],
                [0.0, 0.006375, -0.21038],
                [0.0, -0.20843, -0.006375],
                [0.0, 0.00017505, -0.10593],
                [0.0, -0.10593, -0.00017505],
            ]
        ),
        joint_rpys=np.array([[a, 0.0, 0.0] for a in (math.pi, half, -half, half, -half, half, -half)]),
        tool_position=flange_position + np.array([0.0, 0.0, -tool_z]),
        tool_rpy=flange_rpy,
        lower=-stops,
        upper=stops,
        velocity=np.array([1.3963, 1.3963, 1.3963, 1.3963, 1.2218, 1.2218, 1.2218]),
        acceleration=acceleration,
        emergency_acceleration=2.5 * acceleration,
        effort=np.array([39.0, 39.0, 39.0, 39.0, 9.0, 9.0, 9.0]),
        gripper_rate=1.0 / 0.57,
        home=np.array([0.0, 0.65, 0.0, 1.89, 0.0, 0.6, -half]),
        capsules=capsules,
        self_pairs=distant_pairs(capsules, 3),
        masses=masses,
        mass_centers=mass_centers,
        inertias=inertias,
    )


def _panda_bodies(position: Array, rpy: Array) -> list[Inertial]:
    """Return the links' bodies of the Panda with its hand, which stands there in the last link."""
    links = from_rows(
        [
            (0.629769, -0.041018, -0.00014, 0.049974, 0.00315, 0.00388, 0.004285, 8.2904e-7, 0.00015, 8.2299e-6),
            (4.970684, 0.003875, 0.002081, -0.04762, 0.70337, 0.70661, 0.009117, -0.000139, 0.006772, 0.019169),
            (0.646926, -0.003141, -0.02872, 0.003495, 0.007962, 0.02811, 0.025995, -0.003925, 0.010254, 0.000704),
            (3.228604, 0.027518, 0.039252, -0.066502, 0.037242, 0.036155, 0.01083, -0.004761, -0.011396, -0.012805),
            (3.587895, -0.05317, 0.104419, 0.027454, 0.025853, 0.019552, 0.028323, 0.007796, -0.001332, 0.008641),
            (1.225946, -0.011953, 0.041065, -0.038437, 0.035549, 0.029474, 0.008627, -0.002117, -0.004037, 0.000229),
            (1.666555, 0.060149, -0.014117, -0.010517, 0.001964, 0.004354, 0.005433, 0.000109, -0.001158, 0.000341),
            (0.735522, 0.010517, -0.004252, 0.061597, 0.012516, 0.010027, 0.004815, -0.000428, -0.001196, -0.000741),
        ]
    )
    hand_parts = from_rows(
        [
            (0.73, -0.01, 0.0, 0.03, 0.001, 0.0025, 0.0017, 0.0, 0.0, 0.0),
            (0.015, 0.0, 0.04, 0.0584, 2.375e-6, 2.375e-6, 7.5e-7, 0.0, 0.0, 0.0),
            (0.015, 0.0, -0.04, 0.0584, 2.375e-6, 2.375e-6, 7.5e-7, 0.0, 0.0, 0.0),
        ]
    )
    rotation = matrix_from_rpy(rpy)
    links[-1] = combined([links[-1], *(part.moved(position, rotation) for part in hand_parts)])
    return links


def panda(*, tool_z: float = 0.1034) -> RobotModel:
    """Describe the Franka Emika Panda with its hand.

    The hand sits on the flange, turned by -45 degrees; the tool frame has the hand's axes and lies `tool_z`
    beyond the hand's origin; the fingers open along its y axis. Capsules were fitted around the convex hulls
    of the public collision meshes.

    Args:
        tool_z: distance from the origin of the hand to the tool center point [m]; 0.14 in CALVIN.

    Source: Franka Control Interface documentation (joint frames, limits); C. Gaz et al., Dynamic
    identification of the Franka Emika Panda robot, 2019 (masses, centers and inertias: a feasible set that
    reproduces the joint torques, not the maker's data of each link), franka_ros (the same for base and hand,
    here with its fingers open).
    """
    half = math.pi / 2
    hand_position, hand_rpy = np.array([0.0, 0.0, 0.107]), np.array([0.0, 0.0, -math.pi / 4])
    finger_end = max(0.0997, tool_z - 0.012)
    hand = [
        Capsule(link=7, start=(0.0, -0.0758, 0.0212), end=(0.0, 0.06, 0.0314), radius=0.0493),
        Capsule(link=7, start=(0.0, 0.052, 0.0627), end=(0.0, 0.052, finger_end), radius=0.0165),
        Capsule(link=7, start=(0.0, -0.052, 0.0627), end=(0.0, -0.052, finger_end), radius=0.0165),
    ]
    capsules = (
        Capsule(link=0, start=(0.0, 0.0, 0.0514), end=(-0.0567, 0.0, 0.0155), radius=0.1045),
        Capsule(link=1, start=(0.0, -0.0534, 0.0009), end=(0.0, -0.0003, -0.1399), radius=0.0761),
        Capsule(link=2, start=(0.0, -0.1421, 0.0003), end=(0.0, 0.0018, 0.0536), radius=0.076),
        Capsule(link=3, start=(0.083, 0.0426, 0.0004), end=(0.0009, 0.0002, -0.0806), radius=0.0692),
        Capsule(link=4, start=(0.0003, -0.0002, 0.0426), end=(-0.082, 0.0827, 0.0002), radius=0.0693),
        Capsule(link=5, start=(0.0002, 0.0103, -0.2436), end=(0.0, 0.0639, 0.0029), radius=0.0673),
        Capsule(link=6, start=(0.0874, 0.0085, 0.0002), end=(0.0217, 0.0088, 0.0045), radius=0.0747),
        Capsule(link=7, start=(0.0331, 0.0335, 0.0797), end=(-0.0051, -0.0051, 0.0734), radius=0.0493),
        *_in_last_link(hand, hand_position, hand_rpy),
    )
    masses, mass_centers, inertias = stacked(_panda_bodies(hand_position, hand_rpy))
    acceleration = np.array([15.0, 7.5, 10.0, 12.5, 15.0, 20.0, 20.0])
    return RobotModel(
        name="panda",
        joint_positions=np.array(
            [
                [0.0, 0.0, 0.333],
                [0.0, 0.0, 0.0],
                [0.0, -0.316, 0.0],
                [0.0825, 0.0, 0.0],
                [-0.0825, 0.384, 0.0],
                [0.0, 0.0, 0.0],
                [0.088, 0.0, 0.0],
            ]
        ),
        joint_rpys=np.array([[a, 0.0, 0.0] for a in (0.0, -half, half, half, -half, half, half)]),
        tool_position=hand_position + np.array([0.0, 0.0, tool_z]),
        tool_rpy=hand_rpy,
        lower=np.array([-2.8973, -1.7628, -2.8973, -3.0718, -2.8973, -0.0175, -2.8973]),
        upper=np.array([2.8973, 1.7628, 2.8973, -0.0698, 2.8973, 3.7525, 2.8973]),
        velocity=np.array([2.175, 2.175, 2.175, 2.175, 2.61, 2.61, 2.61]),
        acceleration=acceleration,
        emergency_acceleration=acceleration,
        effort=np.array([87.0, 87.0, 87.0, 87.0, 12.0, 12.0, 12.0]),
        gripper_rate=1.25,
        home=np.array([0.0, -math.pi / 4, 0.0, -3 * math.pi / 4, 0.0, half, math.pi / 4]),
        capsules=capsules,
        self_pairs=distant_pairs(capsules, 3),
        masses=masses,
        mass_centers=mass_centers,
        inertias=inertias,
    )
