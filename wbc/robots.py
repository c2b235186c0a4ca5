"""The arms as numbers: joint frames, limits and capsules of the Kinova Gen3 and the Franka Panda.

Link l is the body that joint l moves (joints count from 1); link 0 is the base. The tool frame is fixed to
the last link.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from .transforms import Array, matrix_from_rpy


@dataclass(frozen=True, slots=True, kw_only=True)
class Capsule:
    """A segment with a radius, in the frame of a link.

    link: index of the link that carries it.
    start, end: ends of the segment [m].
    radius: [m].
    """

    link: int
    start: tuple[float, float, float]
    end: tuple[float, float, float]
    radius: float


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RobotModel:
    """A serial arm whose joints all turn about the z axis of their frame.

    joint_positions, joint_rpys: `[j 3]` origin of joint frame i in frame i - 1 [m], fixed-axis angles [rad].
    tool_position, tool_rpy: `[3]` tool frame in the last joint frame.
    lower, upper: `[j]` position limits [rad]; infinite for joints without stops.
    velocity: `[j]` [rad/s]; acceleration: `[j]` nominal bound [rad/s^2].
    emergency_acceleration: `[j]` bound while braking in an emergency [rad/s^2], at least the nominal one.
    effort: `[j]` torque limit [N m], for simulators.
    gripper_rate: fastest change of the opening (0 to 1) [1/s].
    home: `[j]` a comfortable posture [rad].
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

    @property
    def num_joints(self) -> int:
        """Number of joints."""
        return len(self.lower)


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


def kinova_gen3(*, tool_z: float = 0.12) -> RobotModel:
    """Describe the Kinova Gen3 with seven joints and a Robotiq 2F-85.

    The tool frame has its z axis out of the gripper and lies `tool_z` beyond the flange; the fingers open
    along its x axis. Capsules cover the public link hulls. Continuous joints have infinite limits.

    Args:
        tool_z: distance from the flange to the tool centre point [m].

    Source: Kinova Gen3 user guide (position limits, kinematics), ros2_kortex (joint frames, velocities).
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
    )


def panda(*, tool_z: float = 0.1034) -> RobotModel:
    """Describe the Franka Emika Panda with its hand.

    The hand sits on the flange, turned by -45 degrees; the tool frame has the hand's axes and lies `tool_z`
    beyond the hand's origin; the fingers open along its y axis. Capsules were fitted around the convex hulls
    of the public collision meshes.

    Args:
        tool_z: distance from the origin of the hand to the tool centre point [m]; 0.14 in CALVIN.

    Source: Franka Control Interface documentation (joint frames, limits).
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
    )
