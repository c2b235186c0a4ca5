"""Find the arm that a user names: one of ours, or any serial arm from a URDF file."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ...errors import ConfigError
from .robots import Capsule, RobotModel, kinova_gen3, panda
from .urdf_elements import EXPAND
from .urdf_reader import AS_IN_FILE, UrdfOptions, read_robot


def load_robot(
    name_or_path: str | os.PathLike[str],
    options: UrdfOptions | None = None,
    *,
    base_link: str | None = None,
    tool_link: str | None = None,
    package_dirs: Sequence[str | os.PathLike[str]] = (),
    mesh_scale: float = 1.0,
    limits_in_degrees: bool = False,
    lower: npt.ArrayLike | None = None,
    upper: npt.ArrayLike | None = None,
    velocity: npt.ArrayLike | None = None,
    acceleration: npt.ArrayLike | None = None,
    effort: npt.ArrayLike | None = None,
    home: npt.ArrayLike | None = None,
    side_joints: Mapping[str, float] | None = None,
    capsules: Sequence[Capsule] | None = None,
    self_pairs: Sequence[tuple[int, int]] | None = None,
) -> RobotModel:
    """Return the robot of a name (`kinova_gen3`, `panda`) or of a URDF file.

    Args:
        name_or_path: the name, or the path of the file.
        options: how a file is read; in place of the keywords, which are the fields of `UrdfOptions`.

    Raises:
        ConfigError: no such robot, options for one that is known by name, or a file that cannot be read.
    """
    known = {"kinova_gen3": kinova_gen3, "panda": panda}
    name = os.fspath(name_or_path)
    if options is None:
        options = UrdfOptions(
            base_link=base_link,
            tool_link=tool_link,
            package_dirs=package_dirs,
            mesh_scale=mesh_scale,
            limits_in_degrees=limits_in_degrees,
            lower=_plain(lower),
            upper=_plain(upper),
            velocity=_plain(velocity),
            acceleration=_plain(acceleration),
            effort=_plain(effort),
            home=_plain(home),
            side_joints=side_joints,
            capsules=capsules,
            self_pairs=self_pairs,
        )
    if name in known:
        if replace(options, package_dirs=tuple(options.package_dirs)) != AS_IN_FILE:
            raise ConfigError(f"options are for .urdf files, and '{name}' is none; leave them out.")
        return known[name]()
    if name.lower().endswith(".xacro"):
        raise ConfigError(f"{name} is xacro source, which other programs turn into URDF; {EXPAND}.")
    if not name.lower().endswith(".urdf") and not Path(name).is_file():
        raise ConfigError(f"there is no robot '{name}'; expected one of {sorted(known)} or the path of a .urdf file.")
    return read_robot(Path(name), options)


def _plain(given: npt.ArrayLike | None) -> float | Sequence[float] | None:
    """Return an array as the list that `UrdfOptions` holds; anything else as it is, to be judged later."""
    plain: float | Sequence[float] | None = given.tolist() if isinstance(given, np.ndarray) else given  # type: ignore[assignment]
    return plain
