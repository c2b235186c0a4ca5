"""CALVIN's own files as assets: found in the user's clone, checked, never copied."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from ...data_pipeline.files import write_bytes
from ...errors import ConfigError, SimulationError
from .assets import AssetFiles, cache_folder
from .scenes import SceneSpec

_CALVIN_SCALING = 0.8
_BLOCK_SIZES = {0.04: "small", 0.056: "middle", 0.08: "big"}


def block_file(color: str, length: float) -> str:
    """Return the name of the file of a block of this color and long side [m]."""
    return f"block_{color}_{_BLOCK_SIZES[length]}.urdf"


def calvin_assets(root: Path, spec: SceneSpec, *, light: bool = False) -> AssetFiles:
    """Return CALVIN's own files of a scene.

    Args:
        root: a clone of mees/calvin (with its submodule calvin_env) or of mees/calvin_env.
        light: draw the arm with its collision meshes, a fiftieth of the triangles; the physics stays the same.

    Raises:
        ConfigError: the folder is no such clone, or a file is missing.
        SimulationError: the cache folder cannot be written.
    """
    places = [root / "calvin_env" / "data", root / "data"]
    data = next((place for place in places if place.is_dir()), None)
    if data is None:
        raise ConfigError(
            f"--calvin-root {root}: expected a clone of mees/calvin or mees/calvin_env with its folder data, found "
            f"neither {places[0]} nor {places[1]}; clone it with --recurse-submodules."
        )
    blocks = tuple(
        data / "blocks" / block_file(color, length)
        for color, length in zip(spec.blocks, spec.block_lengths, strict=True)
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
    return replace(files, robot=_light_robot(files.robot)) if light else files


def _light_robot(urdf: Path) -> Path:
    """Write a copy of the arm's URDF that is drawn with the collision meshes, and return its place."""
    folder = urdf.parent.resolve()

    def visual(block: re.Match[str]) -> str:
        def mesh(name: re.Match[str]) -> str:
            light = f"meshes/collision/{name[1]}.obj"
            return f"package://{light}" if (folder / light).is_file() else name[0]

        return re.sub(r"package://meshes/visual/(\w+)\.(?:obj|OBJ)", mesh, block[0])

    text = re.sub(r"<visual>.*?</visual>", visual, urdf.read_text(), flags=re.DOTALL)
    text = text.replace("package://", f"{folder}/")
    target = cache_folder() / f"panda-light-{hashlib.sha256(text.encode()).hexdigest()[:12]}.urdf"
    try:
        if not target.is_file():
            write_bytes(target, text.encode())
    except OSError as error:
        raise SimulationError(
            f"Assets: cannot write {target} ({error}); set GR2_CACHE to a folder that can be written."
        ) from error
    return target


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
