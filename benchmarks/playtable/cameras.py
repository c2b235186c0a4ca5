"""CALVIN's two cameras, drawn at any size by TinyRenderer or, through EGL, by OpenGL."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from typing import Literal

import numpy as np

from ...errors import EnvironmentMissing
from .bullet import pybullet

Renderer = Literal["tiny", "egl"]

CALVIN_PX = (200, 84)
"""Sides of CALVIN's own images, static and gripper [px]."""

STATIC_EYE = (2.871459009488717, -2.166602199425597, 2.555159848480571)
STATIC_TARGET = (-0.026242351159453392, -0.0302329882979393, 0.3920000493526459)
STATIC_UP = (0.4041403970338857, 0.22629790978217404, 0.8862616969685161)
STATIC_RANGE, GRIPPER_RANGE = (0.01, 10.0), (0.01, 2.0)
"""Near and far plane of each camera [m]."""


_PYBULLET_NAMES = {"tiny": "ER_TINY_RENDERER", "egl": "ER_BULLET_HARDWARE_OPENGL"}


@dataclass(frozen=True, kw_only=True)
class CameraConfig:
    """Image side [px] of each camera and how often each pixel is sampled along a side before averaging.

    CALVIN's own sizes are 200 (static) and 84 (gripper), one sample.

    fast: with CALVIN's files, draw the arm with its collision meshes and without shadows: other images, same physics.
    renderer: "tiny" draws on the CPU, the same everywhere; "egl" draws with OpenGL, as CALVIN's data were drawn.
    """

    static_px: int = CALVIN_PX[0]
    gripper_px: int = CALVIN_PX[1]
    supersample: int = 1
    fast: bool = False
    renderer: Renderer = "tiny"


def connect_egl(px: int) -> int:
    """Open a physics client that draws with OpenGL, without a screen, images of up to `px` pixels a side.

    Raises:
        EnvironmentMissing: PyBullet's plug-in is not there or finds no EGL.
    """
    found = importlib.util.find_spec("eglRenderer")
    client = pybullet.connect(pybullet.DIRECT, options=f"--width={px} --height={px}")
    for panel in ("GUI", "SEGMENTATION_MARK_PREVIEW", "DEPTH_BUFFER_PREVIEW", "RGB_BUFFER_PREVIEW"):
        pybullet.configureDebugVisualizer(getattr(pybullet, f"COV_ENABLE_{panel}"), 0, physicsClientId=client)
    place = found.origin if found is not None and found.origin else "eglRendererPlugin"
    if pybullet.loadPlugin(place, "_eglRendererPlugin", physicsClientId=client) < 0:
        pybullet.disconnect(client)
        raise EnvironmentMissing(
            "Renderer egl: expected PyBullet's plug-in and an EGL driver, found none that works; `gr2 doctor` reports "
            "what is missing, the renderer tiny needs nothing."
        )
    return client


def static_matrices() -> tuple[list[float], list[float]]:
    """Return view and projection matrix of the static camera (fov 10 deg, near 0.01 m, far 10 m)."""
    view = pybullet.computeViewMatrix(STATIC_EYE, STATIC_TARGET, STATIC_UP)
    return view, pybullet.computeProjectionMatrixFOV(10, 1, *STATIC_RANGE)


def static_pixels(points: np.ndarray, *, px: int = 64) -> np.ndarray:
    """Return where the static camera sees points of the world `[... 3]` [m]: column and row `[... 2]` [px]."""
    view, projection = (np.array(matrix).reshape(4, 4).T for matrix in static_matrices())
    clip = np.concatenate([points, np.ones_like(points[..., :1])], axis=-1) @ (projection @ view).T
    flat: np.ndarray = 0.5 * px * (1 + np.array([1.0, -1.0]) * clip[..., :2] / clip[..., 3:])
    return flat


def gripper_matrices(position: np.ndarray, quaternion: np.ndarray) -> tuple[list[float], list[float]]:
    """Return view and projection matrix of the hand camera (fov 75 deg, near 0.01 m, far 2 m) for its link pose."""
    rotation = np.array(pybullet.getMatrixFromQuaternion(quaternion)).reshape(3, 3)
    view = pybullet.computeViewMatrix(position, position + rotation[:, 1], -rotation[:, 2])
    return view, pybullet.computeProjectionMatrixFOV(75, 1, *GRIPPER_RANGE)


def draw(
    client: int,
    matrices: tuple[list[float], list[float]],
    px: int,
    *,
    supersample: int = 1,
    shadows: bool = False,
    renderer: Renderer = "tiny",
) -> np.ndarray:
    """Draw one image: uint8 `[px px 3]`; with shadows it is what CALVIN draws."""
    side = px * supersample
    rgb, _ = _shoot(client, matrices, side, shadows, renderer)
    if supersample == 1:
        return rgb.copy()
    blocks = rgb.reshape(px, supersample, px, supersample, 3).astype(np.uint16)
    return ((blocks.sum((1, 3)) + supersample**2 // 2) // supersample**2).astype(np.uint8)


def draw_with_depth(
    client: int,
    matrices: tuple[list[float], list[float]],
    px: int,
    near: float,
    far: float,
    *,
    shadows: bool = False,
    renderer: Renderer = "tiny",
) -> tuple[np.ndarray, np.ndarray]:
    """Draw one image, uint8 `[px px 3]`, and the distance along the camera's axis [m], float32 `[px px]`, in one go."""
    rgb, buffer = _shoot(client, matrices, px, shadows, renderer)
    return rgb.copy(), np.asarray(far * near / (far - (far - near) * buffer), np.float32)


def draw_parts(
    client: int, matrices: tuple[list[float], list[float]], px: int, *, renderer: Renderer = "tiny"
) -> np.ndarray:
    """Draw which part each pixel shows: int `[px px]`, a body's number plus its link's, from 1 on, times 2^24."""
    image = pybullet.getCameraImage(
        px, px, *matrices, shadow=0, flags=pybullet.ER_SEGMENTATION_MASK_OBJECT_AND_LINKINDEX,
        renderer=getattr(pybullet, _PYBULLET_NAMES[renderer]), physicsClientId=client,
    )  # fmt: skip
    return np.asarray(image[4], np.int64).reshape(px, px)


def _shoot(
    client: int, matrices: tuple[list[float], list[float]], side: int, shadows: bool, renderer: Renderer
) -> tuple[np.ndarray, np.ndarray]:
    """Return color, uint8 `[side side 3]`, and the depth buffer, float32 `[side side]`."""
    options = {} if shadows else {"shadow": 0, "flags": pybullet.ER_NO_SEGMENTATION_MASK}
    image = pybullet.getCameraImage(
        side, side, *matrices, renderer=getattr(pybullet, _PYBULLET_NAMES[renderer]), physicsClientId=client, **options
    )
    rgb = np.asarray(image[2], dtype=np.uint8).reshape(side, side, 4)[..., :3]
    return rgb, np.asarray(image[3], np.float32).reshape(side, side)
