"""Scenes for picking: a block, a tray and obstacles at random places, which an arm can reach in every one of them."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import NamedTuple, TypeAlias

import numpy as np

from ...errors import ConfigError
from ...wbc.collision import Box, CollisionConfig, CollisionModel, Plane, Rod, Sphere
from ...wbc.robot.kinematics import Kinematics
from ...wbc.robot.robots import Capsule, RobotModel, distant_pairs, kinova_gen3
from ...wbc.robot.transforms import (
    Array,
    matrix_from_quaternion,
    matrix_from_rpy,
    pose_matrix,
    rotation_exp,
    rotation_log,
)

Obstacle: TypeAlias = Box | Sphere | Rod

GRASP_Z, TIP = 0.048, 0.029
"""Height of the tool when it grasps [m]; how far the controller takes the fingers to reach beyond the tool [m]."""
FLOOR, WALL, TRAY_HALF, WALL_HEIGHT = 0.004, 0.006, 0.105, 0.025
"""The tray: thickness of its floor and walls, half its inner width, height of its walls above the table [m]."""
ROUTES = (0.22, 0.31, 0.40)
"""Heights [m] of the tool at which one may travel; the last one is above every obstacle."""
TALLEST = 0.28
"""Height [m] that no obstacle exceeds."""
HAND = 0.12
"""Radius [m] of the upright column around the block in which nothing else stands, for the hand to come down."""
APART = 0.02
"""Least distance [m] of things from each other in a scene, seen from above."""
REACHABLE_CLEARANCE = 0.015
"""Least distance [m] of the arm from everything in the postures that show that a scene can be solved."""
HOME_YAW = math.pi / 2
"""Direction [rad] along which the hand opens at the robot's home, which looks along x."""
HELD_MARGIN = 0.004
"""By how much more than the block the capsule covers that stands for it [m]: it may turn a little in the hand."""
MAX_DRAWS = 2000


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """One trial's world, base frame; the table is the plane z = 0.

    block: as it stands at the beginning; tray: position on the table `(x, y)` [m]; tray_yaw: [rad].
    mass: of the block [kg]; start: `[j]` joints at the beginning [rad].
    """

    block: Box
    mass: float
    tray: tuple[float, float]
    tray_yaw: float
    obstacles: tuple[Obstacle, ...]
    start: tuple[float, ...]

    def tray_parts(self) -> tuple[Box, ...]:
        """Return floor and walls."""
        outer = TRAY_HALF + WALL
        quaternion = yaw_quaternion(self.tray_yaw)
        rotation = matrix_from_quaternion(quaternion)[:2, :2]
        walls = [((s * (TRAY_HALF + WALL / 2), 0.0), (WALL / 2, outer)) for s in (1.0, -1.0)]
        walls += [((0.0, s * (TRAY_HALF + WALL / 2)), (TRAY_HALF, WALL / 2)) for s in (1.0, -1.0)]
        parts = [Box(center=(*self.tray, FLOOR / 2), half_extents=(outer, outer, FLOOR / 2), quaternion=quaternion)]
        for place, (hx, hy) in walls:
            x, y = (rotation @ np.array(place) + self.tray).tolist()
            half = (hx, hy, WALL_HEIGHT / 2)
            parts.append(Box(center=(x, y, WALL_HEIGHT / 2), half_extents=half, quaternion=quaternion))
        return tuple(parts)

    def collision(self, *, block: Box | None = None, held: Capsule | None = None) -> CollisionConfig:
        """Return what the controller knows: table, tray and obstacles, with the block where it is to be kept clear of.

        Args:
            block: the block standing free, None to leave it out.
            held: the block in the hand, in the tool frame.
        """
        boxes = [o for o in self.obstacles if isinstance(o, Box)]
        return CollisionConfig(
            plane=Plane(),
            boxes=(*self.tray_parts(), *boxes, *([block] if block else [])),
            spheres=tuple(o for o in self.obstacles if isinstance(o, Sphere)),
            rods=tuple(o for o in self.obstacles if isinstance(o, Rod)),
            attached=held,
        )

    def bare(self) -> CollisionConfig:
        """Return the obstacles alone."""
        return replace(self.collision(), self_collision=False, plane=None, boxes=self.collision().boxes[5:])


def picking_robot() -> RobotModel:
    """Return the Gen3 with capsules that cover its fingers at every opening: two, laid across the hand."""
    robot = kinova_gen3()
    rotation = matrix_from_rpy(robot.tool_rpy)

    def across(z: float) -> Capsule:
        ends = [(rotation @ np.array([x, 0.0, z]) + robot.tool_position).tolist() for x in (-0.055, 0.055)]
        return Capsule(link=robot.num_joints, start=tuple(ends[0]), end=tuple(ends[1]), radius=0.022)

    arm_and_palm = robot.capsules[: robot.num_joints + 2]
    capsules = (*arm_and_palm, across(TIP - 0.049), across(TIP - 0.022))
    return replace(robot, capsules=capsules, self_pairs=distant_pairs(capsules, 3))


def yaw_quaternion(yaw: float) -> tuple[float, float, float, float]:
    """Return the turn about the vertical by `yaw` [rad], xyzw."""
    return (0.0, 0.0, math.sin(yaw / 2), math.cos(yaw / 2))


def tool_down(yaw: float) -> Array:
    """Return the rotation `[3 3]` of a tool that points down and opens along `yaw` [rad]."""
    return rotation_exp([0.0, 0.0, yaw]) @ np.diag([1.0, -1.0, -1.0])


def held_capsule(block: Box, tool: Array) -> Capsule:
    """Return a capsule, in the frame of `tool` `[4 4]`, that covers a block wholly."""
    half = np.array([0.0, 0.0, block.half_extents[2]])
    rotation = matrix_from_quaternion(block.quaternion)
    ends = [
        (tool[:3, :3].T @ (np.array(block.center) + rotation @ end - tool[:3, 3])).tolist() for end in (-half, half)
    ]
    radius = math.hypot(*block.half_extents[:2]) + HELD_MARGIN
    return Capsule(link=0, start=tuple(ends[0]), end=tuple(ends[1]), radius=radius)


def grasp_yaw(block_yaw: float, bearing: float) -> float:
    """Return the yaw [rad] of a hand that grasps two opposite sides, nearest to the arm's own `bearing` [rad]."""
    wanted = bearing + HOME_YAW
    return block_yaw + round((wanted - block_yaw) / (math.pi / 2)) * math.pi / 2


def reach(kinematics: Kinematics, start: Array, position: Array, rotation: Array) -> Array | None:
    """Return joints `[j]` that bring the tool to a pose, by damped least squares from `start`; None if not found."""
    robot, q = kinematics.robot, start.copy()
    for _ in range(80):
        pose = kinematics.forward(q)
        error = np.concatenate([position - pose.tool[:3, 3], rotation_log(rotation @ pose.tool[:3, :3].T)])
        if float(np.abs(error).max()) < 1e-4:
            return q
        pinv = pose.jacobian.T @ np.linalg.inv(pose.jacobian @ pose.jacobian.T + 1e-5 * np.eye(6))
        spare = 0.05 * (np.eye(len(q)) - pinv @ pose.jacobian) @ (start - q)
        q = np.clip(q + np.clip(pinv @ error + spare, -0.3, 0.3), robot.lower + 0.03, robot.upper - 0.03)
    return None


def sample_scene(robot: RobotModel, seed: int, trial: int) -> Scene:
    """Return the scene of a trial: the first sampled one that can be solved, judged by kinematics alone.

    A scene is kept if nothing stands in anything else or in the column over the block; if there is a continuous row
    of postures, with `REACHABLE_CLEARANCE` from everything, from the start up and over the block, down to it, up, at
    the highest route over to the tray with the block in the hand, and down.

    Raises:
        ConfigError: no such scene in `MAX_DRAWS` samples.
    """
    rng = np.random.default_rng([seed, trial])
    kinematics = Kinematics(robot)
    count = int(rng.integers(2, 5))
    for _ in range(MAX_DRAWS):
        scene = _sample(rng, count)
        if apart(scene) and (found := _with_start(scene, kinematics, rng)) is not None and _solvable(found, kinematics):
            return found
    raise ConfigError(f"sample_scene: no solvable scene in {MAX_DRAWS} samples for seed {seed}, trial {trial}.")


def _sample(rng: np.random.Generator, count: int) -> Scene:
    """Sample block, tray and `count` obstacles, anywhere between them."""
    side = rng.choice([-1.0, 1.0])
    angle, distance = side * math.radians(rng.uniform(20.0, 60.0)), rng.uniform(0.36, 0.52)
    half = (rng.uniform(0.018, 0.026), rng.uniform(0.018, 0.026), rng.uniform(0.027, 0.032))
    block = Box(
        center=(distance * math.cos(angle), distance * math.sin(angle), half[2]),
        half_extents=half,
        quaternion=yaw_quaternion(rng.uniform(-math.pi, math.pi)),
    )
    angle, distance = -side * math.radians(rng.uniform(25.0, 60.0)), rng.uniform(0.38, 0.50)
    tray = np.array([distance * math.cos(angle), distance * math.sin(angle)])
    way = tray - block.center[:2]
    beside = np.array([-way[1], way[0]]) / np.linalg.norm(way)
    obstacles: list[Obstacle] = []
    for _ in range(count):
        place = block.center[:2] + rng.uniform(0.25, 0.75) * way + rng.normal(0.0, 0.06) * beside
        x, y = place.tolist()
        obstacles.append(_sample_obstacle(rng, x, y))
    return Scene(
        block=block,
        mass=rng.uniform(0.1, 0.2),
        tray=(float(tray[0]), float(tray[1])),
        tray_yaw=rng.uniform(-math.pi, math.pi),
        obstacles=tuple(obstacles),
        start=(),
    )


def _sample_obstacle(rng: np.random.Generator, x: float, y: float) -> Obstacle:
    """Sample a box or rod that stands at a place, or a ball over it, at most `TALLEST` high."""
    kind = rng.integers(3)
    if kind == 0:
        half = (rng.uniform(0.02, 0.05), rng.uniform(0.02, 0.05), rng.uniform(0.04, TALLEST / 2))
        return Box(center=(x, y, half[2]), half_extents=half, quaternion=yaw_quaternion(rng.uniform(0.0, math.pi)))
    if kind == 1:
        radius = rng.uniform(0.035, 0.06)
        return Sphere(center=(x, y, rng.uniform(radius, TALLEST - radius)), radius=radius)
    radius = rng.uniform(0.01, 0.02)
    return Rod(start=(x, y, 0.0), end=(x, y, rng.uniform(0.15, TALLEST) - radius), radius=radius)


def footprint(obstacle: Obstacle) -> tuple[Array, float]:
    """Return a circle on the table, center `[2]` and radius [m], over which an obstacle stays."""
    if isinstance(obstacle, Box):
        return np.array(obstacle.center[:2]), math.hypot(*obstacle.half_extents[:2])
    return np.array(obstacle.start[:2] if isinstance(obstacle, Rod) else obstacle.center[:2]), obstacle.radius


def apart(scene: Scene) -> bool:
    """Return whether all things keep `APART`, and obstacles and tray the column of the hand over the block."""
    circles = [footprint(o) for o in scene.obstacles]
    pairs = [(a, b) for i, a in enumerate(circles) for b in circles[:i]]
    turn = matrix_from_quaternion(yaw_quaternion(-scene.tray_yaw))[:2, :2]

    def from_tray(point: Array) -> float:
        beyond = np.maximum(np.abs(turn @ (point - scene.tray)) - TRAY_HALF - WALL, 0.0)
        return float(np.linalg.norm(beyond))

    block = np.array(scene.block.center[:2])
    return (
        all(float(np.linalg.norm(a[0] - b[0])) >= a[1] + b[1] + APART for a, b in pairs)
        and all(float(np.linalg.norm(c - block)) >= r + HAND for c, r in circles)
        and all(from_tray(c) >= r + APART for c, r in circles)
        and all(float(np.linalg.norm(c)) >= r + 0.15 for c, r in circles)
        and from_tray(block) >= HAND
    )


def _with_start(scene: Scene, kinematics: Kinematics, rng: np.random.Generator) -> Scene | None:
    """Return the scene with joints to start from, well clear; None where the sampled pose does not do."""
    angle, distance = math.radians(rng.uniform(-15.0, 15.0)), rng.uniform(0.36, 0.5)
    position = np.array([distance * math.cos(angle), distance * math.sin(angle), rng.uniform(0.28, 0.36)])
    joints = reach(kinematics, kinematics.robot.home, position, tool_down(angle + HOME_YAW))
    return None if joints is None else replace(scene, start=tuple(joints.tolist()))


def _solvable(scene: Scene, kinematics: Kinematics) -> bool:
    """Return whether the row of postures exists that `sample_scene` describes."""
    free = CollisionModel(kinematics.robot, scene.collision())
    carrying = CollisionModel(kinematics.robot, scene.collision(held=_held_at_grasp(scene)))
    start, block, tray = _places(scene, kinematics)
    stations = [
        (start.at(ROUTES[-1]), free, 2),
        (block.at(ROUTES[-1]), free, 6),
        (block.at(GRASP_Z), free, 4),
        (block.at(ROUTES[-1]), free, 4),
        (tray.at(ROUTES[-1]), carrying, 10),
        (tray.at(GRASP_Z + FLOOR), free, 4),
    ]
    q, last = np.array(scene.start), start
    if float(free.clearances(kinematics.forward(q)).distances.min()) < REACHABLE_CLEARANCE:
        return False
    for station, model, steps in stations:
        row = _row(kinematics, q, last, station, steps)
        if len(row) < steps:
            return False
        for posture in row:
            if float(model.clearances(kinematics.forward(posture)).distances.min()) < REACHABLE_CLEARANCE:
                return False
        q, last = row[-1], station
    return True


def straight_way_blocked(scene: Scene, kinematics: Kinematics) -> bool:
    """Return whether an arm that follows the policy's straight lines at the lowest route runs into an obstacle."""
    free = CollisionModel(kinematics.robot, scene.bare())
    carrying = CollisionModel(kinematics.robot, replace(scene.bare(), attached=_held_at_grasp(scene)))
    start, block, tray = _places(scene, kinematics)
    there = _row(kinematics, np.array(scene.start), start, block.at(ROUTES[0]), 20)
    back = _row(kinematics, there[-1], block.at(ROUTES[0]), tray.at(ROUTES[0]), 40) if there else []
    touches = [float(free.clearances(kinematics.forward(q)).distances.min()) < 0.0 for q in there]
    touches += [float(carrying.clearances(kinematics.forward(q)).distances.min()) < 0.0 for q in back]
    return any(touches)


class _Station(NamedTuple):
    """A pose of the tool pointing down: position [m] and yaw [rad]."""

    x: float
    y: float
    z: float
    yaw: float

    def at(self, z: float) -> _Station:
        """Return the pose above or below at height `z` [m]."""
        return self._replace(z=z)


def _places(scene: Scene, kinematics: Kinematics) -> tuple[_Station, _Station, _Station]:
    """Return where the tool is at the start, at the block and at the tray."""
    tool = kinematics.forward(np.array(scene.start)).tool
    x, y, z = tool[:3, 3].tolist()
    start = _Station(x, y, z, math.atan2(tool[1, 0], tool[0, 0]))
    block = _Station(scene.block.center[0], scene.block.center[1], GRASP_Z, block_grasp_yaw(scene.block))
    return start, block, _Station(*scene.tray, GRASP_Z + FLOOR, place_yaw(scene))


def _row(kinematics: Kinematics, q: Array, begin: _Station, end: _Station, steps: int) -> list[Array]:
    """Return postures `[j]` along a straight line of the tool, up to the first that cannot be reached."""
    row: list[Array] = []
    for share in np.linspace(0.0, 1.0, steps + 1)[1:]:
        wanted = np.array(begin) + share * (np.array(end) - begin)
        found = reach(kinematics, q, wanted[:3], tool_down(float(wanted[3])))
        if found is None:
            break
        row.append(q := found)
    return row


def _held_at_grasp(scene: Scene) -> Capsule:
    place = np.array([*scene.block.center[:2], GRASP_Z])
    return held_capsule(scene.block, pose_matrix(place, tool_down(block_grasp_yaw(scene.block))))


def yaw_of(box: Box) -> float:
    """Return how far a box is turned about the vertical [rad]."""
    rotation = matrix_from_quaternion(box.quaternion)
    return math.atan2(rotation[1, 0], rotation[0, 0])


def block_grasp_yaw(block: Box) -> float:
    """Return the yaw of the hand [rad] with which a standing block is grasped."""
    return grasp_yaw(yaw_of(block), math.atan2(block.center[1], block.center[0]))


def place_yaw(scene: Scene) -> float:
    """Return the yaw of the hand [rad] over the tray: the arm turned from block to tray, the wrist as it was."""
    turned = math.atan2(scene.tray[1], scene.tray[0]) - math.atan2(scene.block.center[1], scene.block.center[0])
    return block_grasp_yaw(scene.block) + turned
