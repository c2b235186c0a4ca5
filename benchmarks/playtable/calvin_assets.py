"""CALVIN's own files as assets: found in the user's clone, checked, never copied."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from ...gr_model.errors import ConfigError
from .assets import AssetFiles
from .scenes import SceneSpec

_CALVIN_SCALING = 0.8
_BLOCK_SIZES = {0.04: "small", 0.056: "middle", 0.08: "big"}


def calvin_assets(root: Path, spec: SceneSpec) -> AssetFiles:
    """Return CALVIN's own files of a scene.

    Args:
        root: a clone of mees/calvin (with its submodule calvin_env) or of mees/calvin_env.

    Raises:
        ConfigError: the folder is no such clone, or a file is missing.
    """
    places = [root / "calvin_env" / "data", root / "data"]
    data = next((place for place in places if place.is_dir()), None)
    if data is None:
        raise ConfigError(
            f"--calvin-root {root}: expected a clone of mees/calvin or mees/calvin_env with its folder data, found "
            f"neither {places[0]} nor {places[1]}; clone it with --recurse-submodules."
        )
    blocks = tuple(
        data / "blocks" / f"block_{colour}_{_BLOCK_SIZES[length]}.urdf"
        for colour, length in zip(spec.blocks, spec.block_lengths, strict=True)
    )
    table = f"calvin_table_{spec.name}"
    files = AssetFiles(
        robot=data / "franka_panda" / "panda_longer_finger.urdf",
        table=data / table / "urdf" / f"{table}.urdf",
        plane=data / "plane" / "plane.urdf",
        blocks=blocks,
        scaling=_CALVIN_SCALING,
        official=True,
        surfaces=_surfaces(data.parent / "conf" / "scene" / f"calvin_scene_{spec.name}.yaml"),
    )
    for file in (files.robot, files.table, files.plane, *blocks):
        missing = _first_missing(file)
        if missing is not None:
            raise ConfigError(f"--calvin-root {root}: expected the file {missing}, found none; clone CALVIN again.")
    return files


def _surfaces(file: Path) -> Mapping[str, list[list[float]]]:
    import yaml

    try:
        surfaces: Mapping[str, list[list[float]]] = yaml.safe_load(file.read_text())["surfaces"]
    except (OSError, yaml.YAMLError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{file}: expected CALVIN's scene file with its surfaces ({error}); clone CALVIN again."
        ) from error
    return surfaces


def _first_missing(urdf: Path) -> Path | None:
    """Return the URDF itself or the first mesh it names that is not there; names may begin with `package://`."""
    if not urdf.is_file():
        return urdf
    names = re.findall(r'<mesh\s[^>]*filename="(?:package://)?([^"]+)"', urdf.read_text())
    meshes = (urdf.parent / name for name in names)
    return next((mesh for mesh in meshes if not mesh.is_file()), None)
