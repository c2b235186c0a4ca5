"""The vertices of a COLLADA (.dae) file, as tools of ROS read them: placed by its nodes, in meters.

The file's `<up_axis>` is left out of account and its `<unit>` is not: RViz, MoveIt and Gazebo do the same.
"""

from __future__ import annotations

import math
from xml.etree.ElementTree import Element

import numpy as np

from .transforms import Array, pose_matrix, rotation_exp
from .urdf_elements import parse_xml

MAX_DEPTH = 64
"""Nodes within nodes above which a file is refused; one that instances itself has no end."""


def collada_vertices(data: bytes) -> Array:
    """Return the vertices `[n 3]` [m] of all geometry in the scene; of all in the file where it has no scene.

    Raises:
        ConfigError: no well-formed XML.
        ValueError: a reference to nothing, or numbers that are none.
    """
    root = parse_xml(data, "the mesh file")
    named = {key: element for element in root.iter() if (key := element.get("id"))}
    scene = root.find("scene/instance_visual_scene")
    found: list[Array] = []
    if scene is None:
        found += [_points(geometry, named) for geometry in root.findall("library_geometries/geometry")]
    else:
        for node in _referred(scene, "url", named).findall("node"):
            _collect(node, np.eye(4), named, found, 0)
    unit = root.find("asset/unit")
    meters = 1.0 if unit is None else float(unit.get("meter", "1"))
    return meters * np.concatenate([np.empty((0, 3)), *found])


def _referred(element: Element, attribute: str, named: dict[str, Element]) -> Element:
    """Return the element that `attribute` refers to by `#id`."""
    reference = element.get(attribute, "").removeprefix("#")
    if reference not in named:
        raise ValueError(f"<{element.tag}> refers to '{reference}', which is not there")
    return named[reference]


def _collect(node: Element, above: Array, named: dict[str, Element], found: list[Array], depth: int) -> None:
    """Append the points of a node and of those below it."""
    if depth > MAX_DEPTH:
        raise ValueError(f"nodes more than {MAX_DEPTH} deep")
    pose = above
    for step in node:
        if step.tag in ("matrix", "translate", "rotate", "scale"):
            pose = pose @ _transform(step)
    for child in node:
        if child.tag == "node":
            _collect(child, pose, named, found, depth + 1)
        elif child.tag == "instance_node":
            _collect(_referred(child, "url", named), pose, named, found, depth + 1)
        elif child.tag in ("instance_geometry", "instance_controller"):
            shape = _referred(child, "url", named)
            skin = shape.find("skin")
            points = _points(shape if skin is None else _referred(skin, "source", named), named)
            found.append(points @ pose[:3, :3].T + pose[:3, 3])


def _numbers(text: str | None, count: int | None = None) -> Array:
    values = np.array((text or "").split(), dtype=np.float64)
    if count is not None and len(values) != count:
        raise ValueError(f"{len(values)} numbers instead of {count}")
    return values


def _transform(step: Element) -> Array:
    """Return the matrix `[4 4]` of one step that places a node."""
    if step.tag == "matrix":
        return _numbers(step.text, 16).reshape(4, 4)
    if step.tag == "translate":
        return pose_matrix(_numbers(step.text, 3), np.eye(3))
    if step.tag == "scale":
        return np.diag([*_numbers(step.text, 3), 1.0])
    x, y, z, degrees = _numbers(step.text, 4).tolist()
    length = math.sqrt(x * x + y * y + z * z)
    return pose_matrix(np.zeros(3), rotation_exp(math.radians(degrees) / max(length, 1e-12) * np.array([x, y, z])))


def _points(geometry: Element, named: dict[str, Element]) -> Array:
    """Return the vertices `[n 3]` of a geometry in its own unit; none where it is no mesh."""
    found = [np.empty((0, 3))]
    for given in geometry.findall("mesh/vertices/input"):
        if given.get("semantic") != "POSITION":
            continue
        source = _referred(given, "source", named)
        numbers = _numbers(source.findtext("float_array"))
        accessor = source.find("technique_common/accessor")
        stride = 3 if accessor is None else int(accessor.get("stride", "3"))
        if stride < 3 or len(numbers) % stride:
            raise ValueError(f"{len(numbers)} numbers for points of {stride}")
        found.append(numbers.reshape(-1, stride)[:, :3])
    return np.concatenate(found)
