"""Motions for a controller to follow: the type of a case, and cases read from .npz files."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from ...contracts import Array
from ...errors import DataError
from ...wbc.collision import CollisionConfig, Plane, Sphere

TICK = 0.005
"""Time between two poses of a case [s]."""

Group = Literal["smooth", "hard", "noisy"]
GROUPS: tuple[Group, ...] = ("smooth", "hard", "noisy")

TABLE = Plane()
"""The table that every case has: z = 0 of the base frame."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TrackingCase:
    """A motion that the tool is to make, and where.

    name: unique among the cases of a run.
    group: `smooth` can be followed exactly, `hard` cannot, `noisy` is shown to the controller with noise.
    poses: `[n 4 4]` `T_base_tool`, one for each tick of `TICK` seconds; the first belongs to the start.
    q0: `[j]` joint positions at the start [rad], at rest.
    spheres: obstacles; those with a velocity move from the first pose on.
    plane: a half-space to stay out of.
    noise_seed: seed of the noise with which chunks are shown; None for none. `poses` stay the truth.
    """

    name: str
    group: Group
    poses: Array
    q0: Array
    spheres: tuple[Sphere, ...] = ()
    plane: Plane | None = TABLE
    noise_seed: int | None = None

    @property
    def scene(self) -> CollisionConfig:
        """Return what the controller must keep clear of."""
        return CollisionConfig(plane=self.plane, spheres=self.spheres)

    @property
    def num_ticks(self) -> int:
        """Number of ticks from the first pose to the last."""
        return len(self.poses) - 1


def load_cases(path: Path) -> list[TrackingCase]:
    """Read the cases of an .npz file.

    Arrays: `T` `[c n 4 4]` and `q0` `[c j]` are the smooth cases, `kind` `[c]` their names; `hard_<name>_T` `[n 4 4]`
    with `hard_<name>_q0` `[j]` is a hard one, `hard_<name>_obs` `[s 4]` its spheres (x y z radius [m]; seven columns
    add a velocity [m/s]); `dt` is `TICK`. Either kind may be missing. Other arrays are ignored.

    Raises:
        DataError: the file is missing, no archive, truncated, or its arrays are not those.
    """
    arrays = _arrays(path)
    dt = arrays.get("dt")
    if dt is not None and not (dt.shape == () and abs(float(dt) - TICK) < 1e-9):
        raise DataError(f"{path}: expected dt = {TICK} s, got {dt}; sample the poses at {1 / TICK:.0f} Hz.")
    cases = _smooth_cases(path, arrays) if "T" in arrays or "q0" in arrays else []
    for name in [key[5:-2] for key in arrays if key.startswith("hard_") and key.endswith("_T")]:
        poses, q0 = _pick(path, arrays, f"hard_{name}_T"), _pick(path, arrays, f"hard_{name}_q0")
        spheres = _spheres(path, f"hard_{name}_obs", arrays)
        cases.append(_case(path, name=name, group="hard", poses=poses, q0=q0, spheres=spheres))
    if not cases:
        raise DataError(f"{path}: expected arrays T and q0 or hard_<name>_T, got {sorted(arrays)}; rename the arrays.")
    return cases


def _arrays(path: Path) -> dict[str, Array]:
    if not path.is_file():
        raise DataError(f"{path}: expected an .npz file, found no file; check the path.")
    try:
        with np.load(path, allow_pickle=False) as archive:
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise ValueError("a single array")
            return {name: archive[name] for name in archive.files}
    except (OSError, ValueError, EOFError, KeyError, TypeError, AttributeError, zipfile.BadZipFile) as error:
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        raise DataError(f"{path}: expected a whole .npz archive of arrays, got {reason}; write it again.") from error


def _pick(path: Path, arrays: Mapping[str, Array], name: str) -> Array:
    if name not in arrays:
        raise DataError(f"{path}: expected an array {name}, got {sorted(arrays)}; add it.")
    if arrays[name].dtype.kind not in "fiu":
        raise DataError(f"{path}: {name}: expected numbers, got {arrays[name].dtype}; write it as float64.")
    return np.asarray(arrays[name], dtype=np.float64)


def _smooth_cases(path: Path, arrays: Mapping[str, Array]) -> list[TrackingCase]:
    poses, q0 = _pick(path, arrays, "T"), _pick(path, arrays, "q0")
    if poses.ndim != 4 or q0.ndim != 2 or len(poses) != len(q0):
        raise DataError(
            f"{path}: expected T [c n 4 4] and q0 [c j] with the same c, got {poses.shape} and {q0.shape}; "
            "fix the axes."
        )
    kinds = arrays.get("kind", np.full(len(poses), "motion"))
    if kinds.shape != (len(poses),):
        raise DataError(f"{path}: expected kind [{len(poses)}], got {kinds.shape}; one name for each motion.")
    return [
        _case(path, name=f"{index:02d}_{kind}", group="smooth", poses=pose, q0=q, spheres=())
        for index, (pose, q, kind) in enumerate(zip(poses, q0, kinds, strict=True))
    ]


def _spheres(path: Path, name: str, arrays: Mapping[str, Array]) -> tuple[Sphere, ...]:
    rows = _pick(path, arrays, name) if name in arrays else np.empty((0, 4))
    if rows.ndim != 2 or rows.shape[1] not in (4, 7) or not np.all(np.isfinite(rows)) or np.any(rows[:, 3] <= 0.0):
        raise DataError(
            f"{path}: {name}: expected rows x y z radius or x y z radius vx vy vz of finite numbers, radius > 0, got "
            f"shape {rows.shape}; fix the rows."
        )
    spheres = []
    for x, y, z, radius, *velocity in rows.tolist():
        vx, vy, vz = velocity or (0.0, 0.0, 0.0)
        spheres.append(Sphere(center=(x, y, z), radius=radius, velocity=(vx, vy, vz)))
    return tuple(spheres)


def _case(path: Path, *, name: str, group: Group, poses: Array, q0: Array, spheres: tuple[Sphere, ...]) -> TrackingCase:
    if poses.ndim != 3 or poses.shape[1:] != (4, 4) or len(poses) < 2 or q0.ndim != 1:
        raise DataError(
            f"{path}: {name}: expected poses [n 4 4] with n > 1 and q0 [j], got {poses.shape} and {q0.shape}; "
            "fix the axes."
        )
    if not (np.all(np.isfinite(poses)) and np.all(np.isfinite(q0))):
        raise DataError(f"{path}: {name}: expected finite numbers, got NaN or infinity; leave the case out.")
    off = poses[:, :3, :3] @ poses[:, :3, :3].transpose(0, 2, 1) - np.eye(3)
    if np.abs(off).max() > 1e-6 or np.linalg.det(poses[:, :3, :3]).min() < 0 or np.any(poses[:, 3] != (0, 0, 0, 1)):
        raise DataError(f"{path}: {name}: expected rigid poses, got other matrices; orthonormalize the rotations.")
    return TrackingCase(name=name, group=group, poses=poses, q0=q0, spheres=spheres)
