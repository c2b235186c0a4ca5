"""Write a robot model as URDF text, with its capsules as geometry and its masses, for simulators."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from .inertia import Inertial
from .robots import Capsule, RobotModel

CONTINUOUS_RANGE = 1e3
"""Limit [rad] written for joints without stops, which stay revolute: one number a joint in simulators."""

UNBOUNDED_EFFORT = 1e4
"""Torque [N m] written for joints whose limit is not known."""


def _numbers(values: npt.ArrayLike) -> str:
    return " ".join(f"{value:.17g}" for value in np.asarray(values, dtype=np.float64).tolist())


def _capsule_shapes(capsule: Capsule) -> list[tuple[str, str]]:
    """Return (geometry, origin) elements of a capsule: two spheres and a cylinder, known to all readers."""
    start, end = np.asarray(capsule.start), np.asarray(capsule.end)
    length = float(np.linalg.norm(end - start))
    radius = f"{capsule.radius:.17g}"
    shapes = [(f'<sphere radius="{radius}"/>', f'<origin xyz="{_numbers(p)}"/>') for p in (start, end)]
    if length > 1e-9:
        x, y, z = ((end - start) / length).tolist()
        rpy = (0.0, math.atan2(math.hypot(x, y), z), math.atan2(y, x))
        origin = f'<origin xyz="{_numbers((start + end) / 2)}" rpy="{_numbers(rpy)}"/>'
        shapes.append((f'<cylinder radius="{radius}" length="{length:.17g}"/>', origin))
    return shapes


def _inertial(body: Inertial) -> str:
    (xx, xy, xz), (_, yy, yz), (_, _, zz) = body.inertia.tolist()
    terms = zip(("ixx", "ixy", "ixz", "iyy", "iyz", "izz"), (xx, xy, xz, yy, yz, zz), strict=True)
    inertia = " ".join(f'{name}="{value:.17g}"' for name, value in terms)
    origin = f'<origin xyz="{_numbers(body.center)}"/>'
    return f'<inertial>{origin}<mass value="{body.mass:.17g}"/><inertia {inertia}/></inertial>'


def _link(name: str, body: Inertial, capsules: list[Capsule]) -> str:
    elements = [_inertial(body)]
    for capsule in capsules:
        for geometry, origin in _capsule_shapes(capsule):
            for element in ("visual", "collision"):
                elements.append(f"<{element}>{origin}<geometry>{geometry}</geometry></{element}>")
    return "\n".join([f'<link name="{name}">', *elements, "</link>"])


def robot_urdf(model: RobotModel) -> str:
    """Return the URDF of `model`: links `link_0` ... `link_j`, joints `joint_1` ... `joint_j`, and a link
    `tool` without mass.

    Joints without stops are written as revolute with limits of `CONTINUOUS_RANGE`. Each element has a line of its own:
    pybullet cuts lines of more than 8 KB.
    """
    parts = [f'<?xml version="1.0"?><robot name="{model.name}">']
    for link in range(model.num_joints + 1):
        body = Inertial(float(model.masses[link]), model.mass_centers[link], model.inertias[link])
        parts.append(_link(f"link_{link}", body, [c for c in model.capsules if c.link == link]))
    for index in range(model.num_joints):
        lower = max(float(model.lower[index]), -CONTINUOUS_RANGE)
        upper = min(float(model.upper[index]), CONTINUOUS_RANGE)
        effort = min(float(model.effort[index]), UNBOUNDED_EFFORT)
        parts.append(
            f'<joint name="joint_{index + 1}" type="revolute">'
            f'<parent link="link_{index}"/><child link="link_{index + 1}"/>'
            f'<origin xyz="{_numbers(model.joint_positions[index])}" '
            f'rpy="{_numbers(model.joint_rpys[index])}"/>'
            '<axis xyz="0 0 1"/>'
            f'<limit lower="{lower:.17g}" upper="{upper:.17g}" '
            f'velocity="{model.velocity[index]:.17g}" effort="{effort:.17g}"/></joint>'
        )
    parts.append(_link("tool", Inertial(0.0, np.zeros(3), np.zeros((3, 3))), []))
    parts.append(
        f'<joint name="tool_joint" type="fixed"><parent link="link_{model.num_joints}"/><child link="tool"/>'
        f'<origin xyz="{_numbers(model.tool_position)}" rpy="{_numbers(model.tool_rpy)}"/></joint></robot>'
    )
    return "\n".join(parts)
