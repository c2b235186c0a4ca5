"""A video of a run: the arm as its capsules, table and spheres, the way of the target and of the tool."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from tqdm import tqdm

from ...contracts import Array
from ...data_pipeline.video.reader import write_video
from ...wbc.robot.kinematics import Kinematics
from ...wbc.robot.robots import RobotModel
from ...wbc.robot.urdf import robot_urdf
from ..playtable.bullet import pybullet
from .feeding import Run
from .trajectories import TICK, TrackingCase

FPS = 25
SIZE = (640, 480)
"""Width and height of the image [px]."""

FIELD_OF_VIEW = 40.0
VIEW = (55.0, -22.0)
"""Yaw and pitch of the camera [deg]."""

TARGET_COLOR, TOOL_COLOR, INK = (150, 150, 160), (36, 97, 166), (27, 29, 32)
LINK_COLORS = ((0.86, 0.87, 0.88, 1.0), (0.62, 0.66, 0.71, 1.0))
HAND_COLOR, TABLE_COLOR, SPHERE_COLOR = (0.25, 0.27, 0.3, 1.0), (0.93, 0.91, 0.87, 1.0), (0.8, 0.35, 0.25, 1.0)


class _Camera(NamedTuple):
    """View and projection, as pybullet takes them, and their product `[4 4]`."""

    view: list[float]
    projection: list[float]
    matrix: Array

    def pixels(self, points: Array) -> list[tuple[float, float]]:
        """Project points `[n 3]` [m] to the image."""
        clip = np.concatenate([points, np.ones((len(points), 1))], axis=1) @ self.matrix.T
        flat = clip[:, :2] / np.maximum(clip[:, 3:], 1e-6)
        return [((x + 1) * SIZE[0] / 2, (1 - y) * SIZE[1] / 2) for x, y in flat.tolist()]


def write_tracking_video(path: Path, robot: RobotModel, case: TrackingCase, run: Run) -> None:
    """Draw the run at `FPS` and write it as MP4."""
    ticks = list(range(0, len(run.q), round(1.0 / FPS / TICK)))
    tools = Kinematics(robot).forward_many(run.q).tool[:, :3, 3]
    with _world(robot, case) as (client, body, spheres):
        camera = _camera_for(robot, case, run)
        frames = []
        for tick in tqdm(ticks, unit="frame", desc="video", disable=None, leave=False):
            for joint, angle in enumerate(run.q[tick].tolist()):
                pybullet.resetJointState(body, joint, angle, physicsClientId=client)
            for ball, sphere in zip(spheres, case.spheres, strict=True):
                center = np.add(sphere.center, tick * TICK * np.asarray(sphere.velocity)).tolist()
                pybullet.resetBasePositionAndOrientation(ball, center, (0, 0, 0, 1), physicsClientId=client)
            frames.append(_labeled(_drawn(client, camera), camera, case, run, tools, tick))
    write_video(path, np.stack(frames), FPS, crf=20, pixel_format="yuv420p")


@contextlib.contextmanager
def _world(robot: RobotModel, case: TrackingCase) -> Iterator[tuple[int, int, list[int]]]:
    """Open a world with the arm, the plane and the spheres; yield client, arm and spheres."""
    client = pybullet.connect(pybullet.DIRECT)
    try:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "robot.urdf"
            file.write_text(robot_urdf(robot), encoding="utf-8")
            body = pybullet.loadURDF(str(file), useFixedBase=True, physicsClientId=client)
        last = robot.num_joints - 1
        for link in range(-1, robot.num_joints):
            color = HAND_COLOR if link == last else LINK_COLORS[link % 2]
            pybullet.changeVisualShape(body, link, rgbaColor=color, physicsClientId=client)
        if case.plane is not None:
            normal = np.asarray(case.plane.normal)
            place = (case.plane.offset - 0.01) * normal
            turn = _turn_to(normal)
            _solid(client, pybullet.GEOM_BOX, TABLE_COLOR, place.tolist(), turn, half=(0.9, 0.9, 0.01))
        spheres = [
            _solid(client, pybullet.GEOM_SPHERE, SPHERE_COLOR, list(s.center), (0, 0, 0, 1), radius=s.radius)
            for s in case.spheres
        ]
        yield client, body, spheres
    finally:
        pybullet.disconnect(client)


def _turn_to(normal: Array) -> tuple[float, float, float, float]:
    """Return the shortest rotation xyzw that takes z to a unit normal."""
    x, y, z = normal.tolist()
    if z < -1.0 + 1e-9:
        return (1.0, 0.0, 0.0, 0.0)
    size = np.sqrt(2.0 * (1.0 + z))
    return (-y / size, x / size, 0.0, size / 2.0)


def _solid(
    client: int,
    shape: int,
    color: tuple[float, ...],
    place: list[float],
    turn: tuple[float, float, float, float],
    *,
    half: tuple[float, float, float] = (1.0, 1.0, 1.0),
    radius: float = 1.0,
) -> int:
    visual = pybullet.createVisualShape(shape, halfExtents=half, radius=radius, rgbaColor=color, physicsClientId=client)
    number: int = pybullet.createMultiBody(0, -1, visual, place, turn, physicsClientId=client)
    return number


def _camera_for(robot: RobotModel, case: TrackingCase, run: Run) -> _Camera:
    """Place the camera so that arm, targets and the spheres' first places are in the image."""
    joints = Kinematics(robot).forward_many(run.q).frames[..., :3, 3].reshape(-1, 3)
    centers = np.array([s.center for s in case.spheres]).reshape(-1, 3)
    points = np.concatenate([joints, case.poses[:, :3, 3], centers])
    low, high = points.min(axis=0), points.max(axis=0)
    distance = (0.5 * float(np.linalg.norm(high - low)) + 0.15) / np.tan(np.deg2rad(FIELD_OF_VIEW / 2))
    view = pybullet.computeViewMatrixFromYawPitchRoll((0.5 * (low + high)).tolist(), distance, *VIEW, 0.0, 2)
    projection = pybullet.computeProjectionMatrixFOV(FIELD_OF_VIEW, SIZE[0] / SIZE[1], 0.05, 20.0)
    matrix = np.reshape(projection, (4, 4)).T @ np.reshape(view, (4, 4)).T
    return _Camera(view=view, projection=projection, matrix=matrix)


def _drawn(client: int, camera: _Camera) -> Image.Image:
    pixels = pybullet.getCameraImage(
        *SIZE,
        camera.view,
        camera.projection,
        lightDirection=(1.0, 0.6, 2.0),
        renderer=pybullet.ER_TINY_RENDERER,
        physicsClientId=client,
    )[2]
    return Image.fromarray(np.asarray(pixels, dtype=np.uint8).reshape(SIZE[1], SIZE[0], 4)[..., :3])


def _labeled(image: Image.Image, camera: _Camera, case: TrackingCase, run: Run, tools: Array, tick: int) -> Array:
    """Draw over the image: both ways, the axes of the target, time, error and status."""
    draw = ImageDraw.Draw(image)
    draw.line(camera.pixels(case.poses[:, :3, 3]), fill=TARGET_COLOR, width=1)
    if tick > 0:
        draw.line(camera.pixels(tools[: tick + 1]), fill=TOOL_COLOR, width=2)
    pose = case.poses[tick]
    for axis, color in enumerate(((190, 60, 50), (60, 140, 80), (50, 90, 180))):
        ends = np.stack([pose[:3, 3], pose[:3, 3] + 0.06 * pose[:3, axis]])
        draw.line(camera.pixels(ends), fill=color, width=2)
    error = float(np.linalg.norm(tools[tick] - pose[:3, 3])) * 1e3
    status = run.statuses[min(tick, len(run.statuses) - 1)] if run.statuses else ""
    words = f"{case.name}   {tick * TICK:5.2f} s   error {error:6.2f} mm   {status}"
    draw.text((12, 10), words, fill=INK, font=ImageFont.load_default(14))
    draw.line([(12, 36), (36, 36)], fill=TARGET_COLOR, width=2)
    draw.line([(90, 36), (114, 36)], fill=TOOL_COLOR, width=3)
    draw.text((40, 29), "target", fill=INK, font=ImageFont.load_default(12))
    draw.text((118, 29), "tool", fill=INK, font=ImageFont.load_default(12))
    return np.asarray(image)
