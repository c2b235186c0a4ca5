"""Low-polygon meshes and procedural textures of the built-in assets, written as OBJ and PNG files.

TinyRenderer's time grows with the number of triangles, so every shape is as coarse as its image allows.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

Array = npt.NDArray[Any]


def box_obj(size: tuple[float, float, float], *, texture_scale: float = 2.0) -> str:
    """Return an OBJ text of an axis-aligned box centered at the origin, with texture coordinates in world scale.

    Args:
        size: full lengths [m].
        texture_scale: texture repeats a meter.
    """
    half = np.array(size) / 2
    lines: list[str] = []
    faces: list[str] = []
    count = 0
    for axis in range(3):
        u, v = [a for a in range(3) if a != axis]
        for sign in (-1.0, 1.0):
            normal = np.zeros(3)
            normal[axis] = sign
            corners = [(-1, -1), (1, -1), (1, 1), (-1, 1)]
            if (sign < 0) != (axis == 1):
                corners = corners[::-1]
            for cu, cv in corners:
                point = normal * half[axis]
                point[u] = cu * half[u]
                point[v] = cv * half[v]
                long, short = (u, v) if size[u] >= size[v] else (v, u)
                lines.append("v {:.6f} {:.6f} {:.6f}".format(*point))
                lines.append(f"vt {point[long] * texture_scale + 0.5:.5f} {point[short] * texture_scale + 0.5:.5f}")
            lines.append("vn {:.1f} {:.1f} {:.1f}".format(*normal))
            n = count // 4 + 1
            a, b, c, d = (f"{count + i}/{count + i}/{n}" for i in (1, 2, 3, 4))
            faces += [f"f {a} {b} {c}", f"f {a} {c} {d}"]
            count += 4
    return "\n".join([*lines, *faces]) + "\n"


def tube_obj(points: npt.ArrayLike, radii: Sequence[float], *, sides: int = 12) -> str:
    """Return an OBJ text of a tube with round ends along a poly-line.

    Args:
        points: `[n 3]` center line [m].
        radii: `[n]` radius at each point [m].
        sides: corners of a cross-section.
    """
    line: Array = np.asarray(points, float)
    start, end = line[1] - line[0], line[-1] - line[-2]
    start, end = start / np.linalg.norm(start), end / np.linalg.norm(end)
    rings: list[Array] = []
    sizes: list[float] = []
    for angle in (1.0, 0.5):
        rings.append(line[0] - start * radii[0] * np.sin(angle * np.pi / 2) * 0.98)
        sizes.append(max(radii[0] * np.cos(angle * np.pi / 2), 1e-4))
    rings += list(line)
    sizes += list(radii)
    for angle in (0.5, 1.0):
        rings.append(line[-1] + end * radii[-1] * np.sin(angle * np.pi / 2) * 0.98)
        sizes.append(max(radii[-1] * np.cos(angle * np.pi / 2), 1e-4))
    centers = np.array(rings)
    tangents = np.gradient(centers, axis=0)
    tangents /= np.linalg.norm(tangents, axis=1, keepdims=True)
    reference = np.eye(3)[np.argmin(np.abs(tangents).sum(0))]
    angles = np.linspace(0, 2 * np.pi, sides, endpoint=False)
    lines: list[str] = []
    for center, radius, tangent in zip(centers, sizes, tangents, strict=True):
        u = np.cross(tangent, reference)
        u /= np.linalg.norm(u)
        v = np.cross(tangent, u)
        for angle in angles:
            normal = np.cos(angle) * u + np.sin(angle) * v
            lines.append("v {:.5f} {:.5f} {:.5f}".format(*(center + radius * normal)))
            lines.append("vn {:.4f} {:.4f} {:.4f}".format(*normal))
            lines.append("vt 0.5 0.5")
    for ring in range(len(centers) - 1):
        for side in range(sides):
            a, b = ring * sides + side + 1, ring * sides + (side + 1) % sides + 1
            c, d = b + sides, a + sides
            lines.append(f"f {a}/{a}/{a} {b}/{b}/{b} {c}/{c}/{c}")
            lines.append(f"f {a}/{a}/{a} {c}/{c}/{c} {d}/{d}/{d}")
    return "\n".join(lines) + "\n"


def prism_obj(radius: float, height: float, *, sides: int = 16) -> str:
    """Return an OBJ text of an upright prism that stands for a cylinder, centered at the origin."""
    angles = np.linspace(0, 2 * np.pi, sides, endpoint=False)
    lines: list[str] = ["vt 0.5 0.5", "vn 0 0 1", "vn 0 0 -1"]
    faces: list[str] = []
    for side in range(sides):
        a, b = angles[side], angles[(side + 1) % sides]
        middle = (a + b) / 2 if b > a else (a + b + 2 * np.pi) / 2
        lines.append(f"vn {np.cos(middle):.4f} {np.sin(middle):.4f} 0")
        for z, angle in ((-1, a), (-1, b), (1, b), (1, a)):
            lines.append(f"v {radius * np.cos(angle):.5f} {radius * np.sin(angle):.5f} {z * height / 2:.5f}")
        for z in (-1, 1):
            lines.append(f"v 0 0 {z * height / 2:.5f}")
        i, n = 6 * side + 1, side + 3
        faces += [f"f {i}/1/{n} {i + 1}/1/{n} {i + 2}/1/{n}", f"f {i}/1/{n} {i + 2}/1/{n} {i + 3}/1/{n}"]
        faces += [f"f {i + 5}/1/1 {i + 3}/1/1 {i + 2}/1/1", f"f {i + 4}/1/2 {i + 1}/1/2 {i}/1/2"]
    return "\n".join([*lines, *faces]) + "\n"


def wood_texture(color: tuple[float, float, float], *, contrast: float, seed: int, side: int = 256) -> Image.Image:
    """Draw wood: long streaks along the first texture axis around a base color (RGB in [0, 1])."""
    rng = np.random.default_rng(seed)
    streaks = rng.normal(size=(side, 8)).repeat(side // 8, axis=1)
    kernel = np.ones(9) / 9
    for _ in range(2):
        streaks = np.apply_along_axis(lambda row: np.convolve(np.pad(row, 4, mode="wrap"), kernel, "valid"), 1, streaks)
    streaks = np.apply_along_axis(
        lambda col: np.convolve(np.pad(col, 1, mode="wrap"), np.ones(3) / 3, "valid"), 0, streaks
    )
    streaks /= np.abs(streaks).max()
    shade = 1.0 + contrast * streaks[..., None]
    return Image.fromarray((np.clip(np.array(color) * shade, 0, 1) * 255).astype(np.uint8))


def checker_texture(light: float, dark: float, *, side: int = 128) -> Image.Image:
    """Draw one gray checker period (two by two fields)."""
    field = np.kron([[light, dark], [dark, light]], np.ones((side // 2, side // 2)))
    return Image.fromarray((np.repeat(field[..., None], 3, 2) * 255).astype(np.uint8))


def write_textured_obj(folder: Path, name: str, obj: str, texture: str | None) -> str:
    """Write `name.obj`, with a material that shows the PNG `texture` of the same folder, and return its file name."""
    if texture is not None:
        (folder / f"{name}.mtl").write_text(f"newmtl wood\nKa 1 1 1\nKd 1 1 1\nKs 0 0 0\nmap_Kd {texture}\n")
        obj = f"mtllib {name}.mtl\nusemtl wood\n" + obj
    (folder / f"{name}.obj").write_text(obj)
    return f"{name}.obj"
