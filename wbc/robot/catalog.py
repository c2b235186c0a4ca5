"""Find the arm that a user names: one of ours, or any serial arm from a URDF file."""

from __future__ import annotations

import os

from ...errors import ConfigError
from .robots import RobotModel, kinova_gen3, panda
from .urdf_reader import robot_from_urdf


def load_robot(name_or_path: str | os.PathLike[str]) -> RobotModel:
    """Return the robot of a name (`kinova_gen3`, `panda`) or of a `.urdf` file.

    Raises:
        ConfigError: no such robot, or a file that cannot be read (see `robot_from_urdf`, which takes options).
    """
    known = {"kinova_gen3": kinova_gen3, "panda": panda}
    name = os.fspath(name_or_path)
    if name in known:
        return known[name]()
    if not name.lower().endswith(".urdf"):
        raise ConfigError(f"there is no robot '{name}'; expected one of {sorted(known)} or the path of a .urdf file.")
    return robot_from_urdf(name)
