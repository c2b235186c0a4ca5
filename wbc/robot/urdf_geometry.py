"""Cover the collision shapes of a URDF with capsules; find the mesh files that it names."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from urllib.parse import unquote, urlsplit

import numpy as np

from ...errors import ConfigError
from .capsule_fit import FittedCapsule, capsule_around_box, capsule_around_cylinder, read_vertices
from .mesh_cover import cover_mesh
from .robots import Capsule
from .transforms import Array
from .urdf_elements import UrdfLink, UrdfShape

SAME = 1e-6
"""Distance [m] below which a ball counts as the round end of a cylinder."""


def body_capsules(
    index: int, parts: Sequence[tuple[UrdfLink, Array]], package_dirs: Sequence[Path], folder: Path | None
) -> list[Capsule]:
    """Cover the collision shapes of all that is one link of the robot model.

    Args:
        index: of the link in the model.
        parts: URDF links with their poses `[4 4]` in the frame of the model's link.
        package_dirs, folder: where to look for meshes, as in `mesh_path`.
    """
    capsules = []
    for link, pose in parts:
        for start, end, radius in _cover_all(link, package_dirs, folder):
            (ax, ay, az), (bx, by, bz) = ((pose[:3, :3] @ p + pose[:3, 3]).tolist() for p in (start, end))
            capsules.append(Capsule(link=index, start=(ax, ay, az), end=(bx, by, bz), radius=radius))
    return capsules


def _cover_all(link: UrdfLink, package_dirs: Sequence[Path], folder: Path | None) -> list[FittedCapsule]:
    """Cover the shapes of a link, in its frame and order; a cylinder with a ball at each end is one capsule."""
    balls = {order: shape for order, shape in enumerate(link.shapes) if shape.kind == "sphere"}
    rounding: set[int] = set()
    found: list[tuple[int, FittedCapsule]] = []
    for order, shape in enumerate(link.shapes):
        if shape.kind != "cylinder":
            continue
        ends = [_ball_at(place, shape.radius, balls) for place in _cylinder_ends(shape)]
        if None in ends:
            found += [(order, capsule) for capsule in _cover(shape, link.name, package_dirs, folder)]
            continue
        first, last = (end for end in ends if end is not None)
        rounding |= {first, last}
        whole = FittedCapsule(balls[first].pose[:3, 3], balls[last].pose[:3, 3], shape.radius)
        found.append((min(first, last, order), whole))
    seen: list[UrdfShape] = []
    for order, shape in enumerate(link.shapes):
        if shape.kind == "sphere":
            twin = _ball_at(shape.pose[:3, 3], shape.radius, dict(enumerate(seen))) is not None
            if order in rounding or twin:
                continue
            seen.append(shape)
        if shape.kind != "cylinder":
            found += [(order, capsule) for capsule in _cover(shape, link.name, package_dirs, folder)]
    return [capsule for _, capsule in sorted(found, key=lambda item: item[0])]


def _cylinder_ends(shape: UrdfShape) -> tuple[Array, Array]:
    half = shape.length / 2 * shape.pose[:3, 2]
    return shape.pose[:3, 3] - half, shape.pose[:3, 3] + half


def _ball_at(place: Array, radius: float, balls: dict[int, UrdfShape]) -> int | None:
    """Return the key of a ball of this radius at this place, if there is one."""
    for key, ball in balls.items():
        if np.linalg.norm(ball.pose[:3, 3] - place) < SAME and abs(ball.radius - radius) < SAME:
            return key
    return None


def _cover(shape: UrdfShape, link: str, package_dirs: Sequence[Path], folder: Path | None) -> list[FittedCapsule]:
    """Return the capsules around one shape, in the frame of its link: several for a mesh, one for others."""
    if shape.kind == "sphere":
        return [FittedCapsule(shape.pose[:3, 3], shape.pose[:3, 3], shape.radius)]
    if shape.kind == "capsule":
        return [FittedCapsule(*_cylinder_ends(shape), shape.radius)]
    if shape.kind == "cylinder":
        around = [capsule_around_cylinder(shape.radius, shape.length)]
    elif shape.kind == "box":
        around = [capsule_around_box(np.array(shape.size))]
    else:
        path = mesh_path(shape.filename, link, package_dirs, folder)
        around = cover_mesh(read_vertices(path) * np.array(shape.size))
    rotation, position = shape.pose[:3, :3], shape.pose[:3, 3]
    return [FittedCapsule(rotation @ c.start + position, rotation @ c.end + position, c.radius) for c in around]


def mesh_path(filename: str, link: str, package_dirs: Sequence[Path], folder: Path | None) -> Path:
    """Find a mesh file on this machine.

    `package://name/rest` is looked for as `name/rest` and, in a folder that is the package itself, as `rest`:
    in `package_dirs`, then in the folder of the URDF and those above it. Other names are relative to the
    folder of the URDF; `file://` is understood, the network is not.

    Args:
        filename: as in the file.
        link: name of the link, for the message.
        package_dirs: folders that hold packages or are one.
        folder: of the URDF, None for text.

    Raises:
        ConfigError: no such file.
    """
    parts = urlsplit(filename)
    above = [] if folder is None else [folder, *folder.parents]
    if parts.scheme == "package":
        name, rest = unquote(parts.netloc), unquote(parts.path).lstrip("/")
        tried = [base / name / rest for base in (*package_dirs, *above)]
        tried += [base / rest for base in (*package_dirs, *above[:2])]
    elif parts.scheme in ("", "file"):
        place = Path(unquote(parts.path) if parts.scheme else filename)
        tried = [base / place for base in ([Path()] if place.is_absolute() else [*above[:1], *package_dirs])]
    else:
        raise ConfigError(
            f"link '{link}' names the mesh '{filename}'; expected a file; download it, or pass capsules=."
        )
    for path in tried:
        if path.is_file():
            return path
    raise ConfigError(
        f"link '{link}' names the mesh '{filename}', which is in none of {[str(p.parent) for p in tried[:4]]}; give "
        "its folder in package_dirs=, or pass capsules=."
    )
