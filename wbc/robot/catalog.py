"""Find the arm that a user names: one of ours, or any serial arm from a URDF file."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from ...errors import ConfigError
from .robots import RobotModel, kinova_gen3, panda
from .urdf_elements import EXPAND
from .urdf_reader import UrdfOptions, robot_from_urdf


def load_robot(name_or_path: str | os.PathLike[str], options: UrdfOptions | None = None, **changes: Any) -> RobotModel:
    """Return the robot of a name (`kinova_gen3`, `panda`) or of a URDF file.

    Args:
        name_or_path: the name, or the path of the file.
        options: how a file is read.
        changes: fields of `UrdfOptions` by name, as in `load_robot("my_arm.urdf", tool_link="tool0")`.

    Raises:
        ConfigError: no such robot, options for one that is known by name, or a file that cannot be read.
        TypeError: no field of that name.
    """
    known = {"kinova_gen3": kinova_gen3, "panda": panda}
    name = os.fspath(name_or_path)
    if name in known:
        if changes or (options is not None and options != UrdfOptions()):
            raise ConfigError(f"options are for .urdf files, and '{name}' is none; leave them out.")
        return known[name]()
    if name.lower().endswith(".xacro"):
        raise ConfigError(f"{name} is xacro source, which other programs turn into URDF; {EXPAND}.")
    if not name.lower().endswith(".urdf") and not Path(name).is_file():
        raise ConfigError(f"there is no robot '{name}'; expected one of {sorted(known)} or the path of a .urdf file.")
    return robot_from_urdf(Path(name), options, **changes)
