"""Cover the collision shapes of a URDF with capsules; find the mesh files that it names."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from urllib.parse import unquote, urlsplit

import numpy as np

from ...errors import ConfigError
from .capsule_fit import FittedCapsule, capsule_around_box, capsule_around_cylinder, read_vertices
from .mesh_cover import cover_mesh
from .polytopes import polytope_around
from .robots import Capsule
from .transforms import Array
from .urdf_elements import UrdfLink, UrdfShape

SAME = 1e-6
"""Distance [m] below which a ball counts as the round end of a cylinder."""

PATH_VARIABLES = ("ROS_PACKAGE_PATH", "AMENT_PREFIX_PATH")
"""Environment variables in which ROS lists folders of packages."""

LEVELS_ABOVE = 5
"""Folders above that of the URDF in which packages are looked for."""

URDF_FOLDERS = ("urdf", "urdfs", "robot", "robots", "model", "models")
"""Names of folders inside a package that hold its URDF files."""

MOST_FILES = 50_000
"""Files and folders of a package that are searched for a mesh, at most."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Meshes:
    """Where mesh files are, and which sizes are believed.

    package_dirs, folder: where to look, as in `mesh_path`.
    scale: factor on every mesh beside that of the file, 0.001 for meshes in millimeters.
    largest: greatest extent of a mesh [m] that is believed, with the reach of the arm [m] for the message.
    """

    package_dirs: Sequence[Path] = ()
    folder: Path | None = None
    scale: float = 1.0
    largest: float = np.inf
    reach: float = np.inf


def body_capsules(
    index: int, parts: Sequence[tuple[UrdfLink, Array]], meshes: Meshes
) -> list[tuple[Capsule, Array | None]]:
    """Cover the collision shapes of all that is one link of the robot model.

    Args:
        index: of the link in the model.
        parts: URDF links with their poses `[4 4]` in the frame of the model's link.
        meshes: where to look for meshes.

    Returns:
        Each capsule with the triangles `[t 3 3]` [m] in it, in the frame of the model's link; None where the capsule is
        what it covers.
    """
    capsules: list[tuple[Capsule, Array | None]] = []
    for link, pose in parts:
        for start, end, radius, surface in _cover_all(link, meshes):
            (ax, ay, az), (bx, by, bz) = ((pose[:3, :3] @ p + pose[:3, 3]).tolist() for p in (start, end))
            inside = None if surface is None else surface @ pose[:3, :3].T + pose[:3, 3]
            hull = None if inside is None else polytope_around(inside.reshape(-1, 3))
            capsule = Capsule(link=index, start=(ax, ay, az), end=(bx, by, bz), radius=radius, inside=hull)
            capsules.append((capsule, inside))
    return capsules


def _cover_all(link: UrdfLink, meshes: Meshes) -> list[FittedCapsule]:
    """Cover the shapes of a link, in its frame and order; a cylinder with a ball at each end is one capsule."""
    shapes = [shape for shape in link.shapes if not shape.empty]
    points = {id(shape): _mesh_points(shape, link.name, meshes) for shape in shapes if shape.kind == "mesh"}
    shapes = [shape for shape in shapes if shape.kind != "mesh" or len(points[id(shape)])]
    balls = {order: shape for order, shape in enumerate(shapes) if shape.kind == "sphere"}
    rounding: set[int] = set()
    found: list[tuple[int, FittedCapsule]] = []
    for order, shape in enumerate(shapes):
        if shape.kind != "cylinder":
            continue
        ends = [_ball_at(place, shape.radius, balls) for place in _cylinder_ends(shape)]
        if None in ends:
            found += [(order, capsule) for capsule in _cover(shape, points)]
            continue
        first, last = (end for end in ends if end is not None)
        rounding |= {first, last}
        whole = FittedCapsule(balls[first].pose[:3, 3], balls[last].pose[:3, 3], shape.radius)
        found.append((min(first, last, order), whole))
    seen: list[UrdfShape] = []
    for order, shape in enumerate(shapes):
        if shape.kind == "sphere":
            twin = _ball_at(shape.pose[:3, 3], shape.radius, dict(enumerate(seen))) is not None
            if order in rounding or twin:
                continue
            seen.append(shape)
        if shape.kind != "cylinder":
            found += [(order, capsule) for capsule in _cover(shape, points)]
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


def _cover(shape: UrdfShape, points: Mapping[int, Array]) -> list[FittedCapsule]:
    """Return the capsules around one shape, in the frame of its link: several for a mesh, one for others.

    Args:
        points: vertices of mesh shapes by their id.
    """
    if shape.kind == "sphere":
        return [FittedCapsule(shape.pose[:3, 3], shape.pose[:3, 3], shape.radius)]
    if shape.kind == "capsule":
        return [FittedCapsule(*_cylinder_ends(shape), shape.radius)]
    if shape.kind == "cylinder":
        around = [capsule_around_cylinder(shape.radius, shape.length)]
    elif shape.kind == "box":
        around = [capsule_around_box(np.array(shape.size))]
    else:
        around = cover_mesh(points[id(shape)])
    rotation, position = shape.pose[:3, :3], shape.pose[:3, 3]
    return [
        FittedCapsule(
            rotation @ c.start + position,
            rotation @ c.end + position,
            c.radius,
            None if c.surface is None else c.surface @ rotation.T + position,
        )
        for c in around
    ]


def _mesh_points(shape: UrdfShape, link: str, meshes: Meshes) -> Array:
    """Return the vertices `[n 3]` [m] of a mesh shape, in its own frame.

    Raises:
        ConfigError: no such file, one that cannot be read, or one that is too large to be in meters.
    """
    path = mesh_path(shape.filename, link, meshes.package_dirs, meshes.folder)
    points = read_vertices(path) * np.array(shape.size) * meshes.scale
    extent = float(np.ptp(points, axis=0).max()) if len(points) else 0.0
    if extent > meshes.largest:
        raise ConfigError(
            f"mesh file '{path.name}' of link '{link}' is {extent:.3g} m long; expected less than "
            f"{meshes.largest:.3g} m for an arm that reaches {meshes.reach:.3g} m; for meshes in millimeters give "
            "mesh_scale=0.001 (--urdf.mesh-scale), or write their scale into the URDF."
        )
    return points


def mesh_path(filename: str, link: str, package_dirs: Sequence[Path], folder: Path | None) -> Path:
    """Find a mesh file on this machine.

    `package://name/rest` is looked for as `name/rest` and, in a folder that is the package itself, as `rest`:
    in `package_dirs`, in the folder of the URDF and those above it, and where ROS lists packages. `model://` is the
    same. Other names are relative to the folder of the URDF; `file://` is understood, the network is not. Where no
    file has the name, one that differs in the case of letters is taken; then the one file in the package of the URDF
    whose path ends in the most parts of the name, two at least.

    Args:
        filename: as in the file.
        link: name of the link, for the message.
        package_dirs: folders that hold packages or are one.
        folder: of the URDF, None for text.

    Raises:
        ConfigError: no such file.
    """
    name = filename.replace("\\", "/")
    parts = urlsplit(name)
    above = [] if folder is None else [folder, *folder.parents][: LEVELS_ABOVE + 1]
    if parts.scheme in ("package", "model"):
        tried = list(_package_places(unquote(parts.netloc), unquote(parts.path).lstrip("/"), package_dirs, above))
    elif parts.scheme in ("", "file") or (len(parts.scheme) == 1 and parts.scheme.isalpha()):
        place = Path(unquote(parts.path) if parts.scheme == "file" else name)
        tried = [base / place for base in ([Path()] if place.is_absolute() else [*above[:1], *package_dirs])]
    else:
        raise ConfigError(
            f"link '{link}' names the mesh '{filename}'; expected a file; download it, or pass capsules=."
        )
    for find in (_exact, _any_case):
        for path in tried:
            if (found := find(path)) is not None:
                return found
    if folder is not None and (beside := _most_alike(f"{parts.netloc}{parts.path}", folder)) is not None:
        return beside
    looked = list(dict.fromkeys(str(path.parent) for path in tried))
    raise ConfigError(
        f"link '{link}' names the mesh '{filename}', which is in none of {looked[:3]}; give the folder of its package "
        "as package_dirs= (--urdf.package-dirs), or go without meshes by capsules=[] (--urdf.capsules [])."
    )


def _package_places(name: str, rest: str, package_dirs: Sequence[Path], above: Sequence[Path]) -> Iterator[Path]:
    """Yield where a file of a ROS package may be, the likeliest place first."""
    listed = [
        Path(entry) / share
        for variable in PATH_VARIABLES
        for entry in os.environ.get(variable, "").split(os.pathsep)
        if entry
        for share in ("", "share")
    ]
    for base in (*package_dirs, *above, *listed):
        yield base / name / rest
    for base in (*package_dirs, *above):
        yield base / rest


def _most_alike(name: str, folder: Path) -> Path | None:
    """Return the one file in the package around `folder` whose path ends in the most parts of `name`, two at least.

    The package is the next folder above with a `package.xml`; without one, the folder of the URDF, or the one above
    where it is called as in a package.
    """
    above = [folder, *folder.parents][: LEVELS_ABOVE + 1]
    nearest = folder.parent if folder.name.lower() in URDF_FOLDERS else folder
    root = next((place for place in above if (place / "package.xml").is_file()), nearest)
    wanted = [part.lower() for part in Path(unquote(name)).parts]
    found: list[tuple[int, Path]] = []
    for number, path in enumerate(root.rglob("*")):
        if number == MOST_FILES:
            return None
        if path.name.lower() == wanted[-1] and path.is_file():
            pairs = zip(reversed(path.parts), reversed(wanted), strict=False)
            found.append((len(list(takewhile(lambda pair: pair[0].lower() == pair[1], pairs))), path))
    most = max((alike for alike, _ in found), default=0)
    best = [path for alike, path in found if alike == most]
    return best[0] if most >= 2 and len(best) == 1 else None


def _exact(path: Path) -> Path | None:
    return path if path.is_file() else None


def _any_case(path: Path) -> Path | None:
    """Return the one file whose name differs in the case of letters only."""
    if not path.parent.is_dir():
        return None
    near = [other for other in path.parent.iterdir() if other.name.lower() == path.name.lower() and other.is_file()]
    return near[0] if len(near) == 1 else None
