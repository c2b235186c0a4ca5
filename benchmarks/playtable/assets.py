"""The built-in assets: the table of a scene, the Panda with long fingers, blocks and floor, written as URDF files.

Same joints, limits and layout as CALVIN's, own shapes (boxes, tubes) and own textures. Files are made once in the
user's cache folder and found there again.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ...errors import SimulationError
from . import meshes
from .scenes import (
    BLOCK_COLORS,
    BUTTON_TRAVEL,
    DRAWER_TRAVEL,
    SWITCH_TRAVEL,
    SceneSpec,
)

Vector = tuple[float, float, float]
_ASSET_VERSION = "1"
_GRAY, _WHITE, _BLACK = (0.35, 0.35, 0.36), (0.93, 0.93, 0.94), (0.05, 0.05, 0.05)


@dataclass(frozen=True, kw_only=True)
class AssetFiles:
    """URDF files of one scene; `blocks` in the order of `scene_obs`.

    scaling: applied to table and blocks; official: they are CALVIN's own, loaded with its very calls.
    surfaces: CALVIN's areas `[2 3]` (low, high) [m] where blocks lie at first, by name, in its order.
    """

    robot: Path
    table: Path
    plane: Path
    blocks: tuple[Path, ...]
    scaling: float = 1.0
    official: bool = False
    surfaces: Mapping[str, list[list[float]]] = field(default_factory=dict)


@dataclass
class _Link:
    """Collects the shapes of one URDF link."""

    folder: Path
    name: str
    mass: float = 0.0
    inertia: float = 0.01
    contact: str = ""
    shapes: list[str] = field(default_factory=list)
    count: int = 0

    def add(
        self,
        obj: str,
        color: Vector,
        *,
        texture: str | None = None,
        collision: str | None = None,
        at: Vector = (0, 0, 0),
        rpy: Vector = (0, 0, 0),
    ) -> None:
        """Add a mesh as visual and, where `collision` holds a URDF geometry, the same place as collision shape."""
        name = f"{self.name}_{self.count}"
        self.count += 1
        file = meshes.write_textured_obj(self.folder, name, obj, texture)
        origin = f'<origin xyz="{_text(at)}" rpy="{_text(rpy)}"/>'
        rgba = "1 1 1 1" if texture else f"{_text(color)} 1"
        self.shapes.append(
            f'<visual>{origin}<geometry><mesh filename="{file}"/></geometry>'
            f'<material name="{name}"><color rgba="{rgba}"/></material></visual>'
        )
        if collision:
            self.shapes.append(f"<collision>{origin}<geometry>{collision}</geometry></collision>")

    def box(self, low: Vector, high: Vector, color: Vector, *, texture: str | None = None, solid: bool = True) -> None:
        """Add an axis-aligned box between two corners [m] of the link frame."""
        size = tuple(h - lo for lo, h in zip(low, high, strict=True))
        center = tuple((h + lo) / 2 for lo, h in zip(low, high, strict=True))
        shape = f'<box size="{_text(size)}"/>' if solid else None
        self.add(meshes.box_obj(size), color, texture=texture, collision=shape, at=center)  # type: ignore[arg-type]

    def tube(self, start: Vector, end: Vector, radius: float, color: Vector, *, solid: bool = False) -> None:
        """Add a round-ended tube; as collision shape it is its bounding sphere chain of two spheres."""
        self.add(meshes.tube_obj([start, end], [radius, radius], sides=10), color)
        if solid:
            for point in (start, end):
                sphere = f'<geometry><sphere radius="{radius}"/></geometry>'
                self.shapes.append(f'<collision><origin xyz="{_text(point)}"/>{sphere}</collision>')

    def xml(self) -> str:
        inertia = self.inertia
        return (
            f'<link name="{self.name}">{self.contact}<inertial><mass value="{self.mass}"/>'
            f'<inertia ixx="{inertia}" ixy="0" ixz="0" iyy="{inertia}" iyz="0" izz="{inertia}"/></inertial>'
            + "".join(self.shapes)
            + "</link>\n"
        )


def _text(values: tuple[float, ...]) -> str:
    return " ".join(f"{v:.6g}" for v in values)


def _joint(
    name: str,
    parent: str,
    child: str,
    at: Vector,
    *,
    rpy: Vector = (0, 0, 0),
    kind: str = "fixed",
    axis: Vector = (0, 0, 1),
    limits: tuple[float, float] = (0, 0),
    effort: float = 0,
    velocity: float = 0,
) -> str:
    text = f'<joint name="{name}" type="{kind}"><origin xyz="{_text(at)}" rpy="{_text(rpy)}"/>'
    text += f'<parent link="{parent}"/><child link="{child}"/>'
    if kind != "fixed":
        text += f'<axis xyz="{_text(axis)}"/>'
        text += f'<limit lower="{limits[0]}" upper="{limits[1]}" effort="{effort}" velocity="{velocity}"/>'
    return text + "</joint>\n"


def _table(folder: Path, spec: SceneSpec) -> None:
    wood, door = "table.png", "door.png"
    meshes.wood_texture(spec.table_color, contrast=0.1, seed=1).save(folder / wood)
    meshes.wood_texture(spec.door_color, contrast=0.1, seed=2).save(folder / door)
    links = [
        _base(folder, spec, wood),
        _button(folder),
        _switch(folder),
        _slide(folder, door),
        _drawer(folder, door),
    ]
    led = _Link(folder, "led_link", mass=0.204)
    led.box((-0.083, -0.023, -0.003), (0.083, 0.023, 0.019), _WHITE)
    light = _Link(folder, "light_link", mass=0.174)
    light.tube((0, 0.028, 0.022), (0, 0.028, 0.0225), 0.031, _WHITE)
    plank = _Link(folder, "plank_link", mass=2.84)
    plank.box((-0.26, -0.074, -0.004), (0.26, 0.074, 0.024), spec.table_color, texture=wood)
    plank_x = sum(spec.cabinet_x) / 2
    tilt_switch, tilt_slide = 2.61799387799149, 1.04719755119660
    joints = [
        _joint(
            "base__button",
            "base_link",
            "button_link",
            (spec.button_x, -0.12, 0.46),
            kind="prismatic",
            axis=(0, 0, -1),
            limits=(0, BUTTON_TRAVEL),
        ),
        _joint(
            "base__switch",
            "base_link",
            "switch_link",
            (spec.switch_x, 0.0609, 0.4949),
            rpy=(tilt_switch, 0, 0),
            kind="prismatic",
            axis=(0, 0, -1),
            limits=(0, SWITCH_TRAVEL),
        ),
        _joint(
            "base__slide",
            "base_link",
            "slide_link",
            (spec.slider_x, 0.075, 0.5353),
            rpy=(tilt_slide, 0, 0),
            kind="prismatic",
            axis=(-1, 0, 0),
            limits=(0, spec.slider_travel),
        ),
        _joint(
            "base__drawer",
            "base_link",
            "drawer_link",
            (spec.drawer_x, 0, 0.32),
            kind="prismatic",
            axis=(0, -1, 0),
            limits=(0, DRAWER_TRAVEL),
        ),
        _joint("base__led", "base_link", "led_link", (spec.led_x, 0.16, 0.6478)),
        _joint("base__light", "base_link", "light_link", (spec.bulb_x, 0.132, 0.6478)),
        _joint("base__plank", "base_link", "plank_link", (plank_x, 0.09, 0.42)),
    ]
    body = "".join(link.xml() for link in [*links, led, light, plank]) + "".join(joints)
    (folder / "table.urdf").write_text(f'<robot name="playtable">\n{body}</robot>\n')


def _base(folder: Path, spec: SceneSpec, wood: str) -> _Link:
    base = _Link(folder, "base_link")
    color = spec.table_color
    base.box((-0.44, -0.18, 0.42), (0.44, 0.18, 0.44), color, texture=wood)
    for x in (-0.41, 0.41):
        for y in (-0.15, 0.15):
            base.box((x - 0.025, y - 0.025, 0), (x + 0.025, y + 0.025, 0.42), color, texture=wood, solid=False)
    base.box((-0.44, 0.164, 0.44), (0.44, 0.18, 0.6478), color, texture=wood)
    base.box((-0.44, 0.125, 0.625), (0.44, 0.18, 0.6478), color, texture=wood)
    low, high = spec.cabinet_x
    for x in (low - 0.01, high):
        base.box((x, 0.06, 0.44), (x + 0.01, 0.164, 0.63), color, texture=wood)
    for left, right in ((-0.44, low), (high, 0.44)):
        if right - left > 0.01:
            size = (right - left, 0.24, 0.02)
            # The front is tilted by 30 degrees; its outer face passes through the switch's link frame.
            center = ((left + right) / 2, 0.0892 + 0.00866, 0.5439 - 0.005)
            base.add(
                meshes.box_obj(size),
                color,
                texture=wood,
                collision=f'<box size="{_text(size)}"/>',
                at=center,
                rpy=(1.0471975512, 0, 0),
            )
    base.add(meshes.prism_obj(0.042, 0.012), (0.2, 0.16, 0.12), at=(spec.button_x, -0.12, 0.446))
    return base


def _button(folder: Path) -> _Link:
    button = _Link(folder, "button_link", mass=0.154)
    button.add(
        meshes.prism_obj(0.035, 0.03),
        _BLACK,
        collision='<cylinder radius="0.035" length="0.03"/>',
        at=(0, 0, 0.012),
    )
    return button


def _switch(folder: Path) -> _Link:
    switch = _Link(folder, "switch_link", mass=0.239)
    switch.box((-0.06, 0.042, -0.024), (0.06, 0.064, 0.008), _GRAY)
    for x in (-0.06, 0.039):
        switch.box((x, 0, -0.024), (x + 0.021, 0.042, 0.008), _GRAY)
    return switch


def _slide(folder: Path, door: str) -> _Link:
    slide = _Link(folder, "slide_link", mass=1.543)
    slide.box((0, -0.11, 0), (0.28, 0.11, 0.02), _WHITE, texture=door)
    slide.box((0.122, -0.08, 0.058), (0.158, 0.08, 0.08), _GRAY)
    for y in (-0.08, 0.058):
        slide.box((0.122, y, 0.02), (0.158, y + 0.022, 0.058), _GRAY)
    return slide


def _drawer(folder: Path, door: str) -> _Link:
    drawer = _Link(folder, "drawer_link", mass=4.23)
    drawer.box((-0.22, -0.182, -0.02), (0.22, -0.158, 0.08), _WHITE, texture=door)
    drawer.box((-0.2, -0.158, -0.002), (0.2, 0.06, 0.018), _WHITE, texture=door)
    for x in (-0.2, 0.18):
        drawer.box((x, -0.158, 0.018), (x + 0.02, 0.06, 0.08), _WHITE, texture=door)
    drawer.box((-0.18, 0.04, 0.018), (0.18, 0.06, 0.08), _WHITE, texture=door)
    drawer.box((-0.12, -0.261, 0.019), (0.12, -0.239, 0.062), _GRAY)
    for x in (-0.12, 0.098):
        drawer.box((x, -0.239, 0.019), (x + 0.022, -0.182, 0.062), _GRAY)
    return drawer


_ARM_ORIGINS: tuple[tuple[Vector, Vector], ...] = (
    ((0, 0, 0.333), (0, 0, 0)),
    ((0, 0, 0), (-1.5707963267949, 0, 0)),
    ((0, -0.316, 0), (1.5707963267949, 0, 0)),
    ((0.0825, 0, 0), (1.5707963267949, 0, 0)),
    ((-0.0825, 0.384, 0), (-1.5707963267949, 0, 0)),
    ((0, 0, 0), (1.5707963267949, 0, 0)),
    ((0.088, 0, 0), (1.5707963267949, 0, 0)),
)
"""Origin of each arm joint in its parent: xyz [m], rpy [rad]. Source: Franka Emika's published kinematics."""

_ARM_LIMITS = (
    (-2.9671, 2.9671),
    (-1.8326, 1.8326),
    (-2.9671, 2.9671),
    (-3.1416, 0.0),
    (-2.9671, 2.9671),
    (-0.0873, 3.8223),
    (-2.9671, 2.9671),
)
_ARM_TUBES: tuple[tuple[tuple[Vector, Vector, float], ...], ...] = (
    (((0, 0, -0.14), (0, 0, 0), 0.058), ((0, -0.07, 0), (0, 0.02, 0), 0.058)),
    (((0, 0, 0), (0, -0.14, 0), 0.056), ((0, 0, -0.02), (0, 0, 0.07), 0.056)),
    (((0, 0, -0.07), (0, 0, 0), 0.054), ((0, 0, 0), (0.0825, 0.05, 0), 0.052)),
    (((0, 0, -0.02), (0, 0, 0.055), 0.052), ((0, 0, 0), (-0.0825, 0.07, 0), 0.052)),
    (((0, 0, -0.22), (0, 0.02, -0.14), 0.055), ((0, 0.03, -0.16), (0, 0.07, 0), 0.042)),
    (((0, 0, 0), (0.088, 0.01, 0), 0.045), ((0, -0.02, 0), (0, 0.045, 0), 0.044)),
    (((0, 0, 0.04), (0, 0, 0.085), 0.042),),
)


def _robot(folder: Path) -> None:
    base = _Link(folder, "panda_link0", mass=2.9, inertia=0.1)
    base.tube((-0.06, 0, 0.05), (0, 0, 0.06), 0.075, _WHITE)
    base.tube((0, 0, 0.05), (0, 0, 0.16), 0.062, _WHITE)
    links, joints, parent = [base], [], "panda_link0"
    masses = (2.7, 2.73, 2.04, 2.08, 3.0, 1.3, 0.2)
    for i, ((xyz, rpy), limits, tubes) in enumerate(zip(_ARM_ORIGINS, _ARM_LIMITS, _ARM_TUBES, strict=True), 1):
        link = _Link(folder, f"panda_link{i}", mass=masses[i - 1], inertia=0.1)
        for number, (start, end, radius) in enumerate(tubes):
            link.tube(start, end, radius, _WHITE if number == 0 or i > 4 else (0.62, 0.63, 0.65), solid=i >= 4)
        links.append(link)
        velocity = 2.175 if i <= 4 else 2.61
        joints.append(
            _joint(
                f"panda_joint{i}",
                parent,
                link.name,
                xyz,
                rpy=rpy,
                kind="revolute",
                limits=limits,
                effort=87 if i <= 4 else 12,
                velocity=velocity,
            )
        )
        parent = link.name
    links.append(_Link(folder, "panda_link8", mass=1e-5, inertia=0.001))
    joints.append(_joint("panda_joint8", "panda_link7", "panda_link8", (0, 0, 0.107)))
    hand = _Link(folder, "panda_hand", mass=0.81, inertia=0.1)
    hand.box((-0.02, -0.1, -0.02), (0.03, 0.1, 0.055), _WHITE)
    links.append(hand)
    joints.append(_joint("panda_hand_joint", "panda_link8", "panda_hand", (0, 0, 0), rpy=(0, 0, -0.785398163397)))
    _fingers(folder, links, joints)
    for name, at, rpy in (("gripper_cam", (-0.1, 0, 0), (1.3, 0, -1.57)), ("tcp", (0, 0, 0.14), (0, 0, 0))):
        links.append(_Link(folder, name, mass=1e-5, inertia=0.1))
        joints.append(_joint(f"{name}_joint", "panda_hand", name, at, rpy=rpy))
    body = "".join(link.xml() for link in links) + "".join(joints)
    (folder / "panda.urdf").write_text(f'<robot name="panda">\n{body}</robot>\n')


def _fingers(folder: Path, links: list[_Link], joints: list[str]) -> None:
    contact = (
        '<contact><friction_anchor/><stiffness value="30000.0"/><damping value="1000.0"/>'
        '<spinning_friction value="0.1"/><lateral_friction value="1.0"/></contact>'
    )
    for number, (side, name) in enumerate(((1, "panda_leftfinger"), (-1, "panda_rightfinger")), 1):
        finger = _Link(folder, name, mass=0.1, inertia=0.1, contact=contact)
        near, far = sorted((0.0, side * 0.02))
        finger.box((-0.01, near, 0), (0.01, far, 0.096), (0.8, 0.8, 0.82))
        links.append(finger)
        joints.append(
            _joint(
                f"panda_finger_joint{number}",
                "panda_hand",
                name,
                (0, 0, 0.0584),
                kind="prismatic",
                axis=(0, side, 0),
                limits=(0, 0.04),
                effort=20,
                velocity=0.2,
            )
        )


def _block(folder: Path, name: str, color: Vector, length: float) -> None:
    size = (length, 0.04, 0.04)
    block = _Link(folder, name, mass=1.0, inertia=0.64)
    block.contact = '<contact><lateral_friction value="0.7"/><spinning_friction value=".001"/></contact>'
    block.add(meshes.box_obj(size), color, collision=f'<box size="{_text(size)}"/>')
    (folder / f"{name}.urdf").write_text(f'<robot name="{name}">\n{block.xml()}</robot>\n')


def _plane(folder: Path) -> None:
    meshes.checker_texture(0.93, 0.80).save(folder / "floor.png")
    plane = _Link(folder, "planeLink")
    plane.contact = '<contact><lateral_friction value="1"/></contact>'
    plane.add(
        meshes.box_obj((12.0, 12.0, 0.02), texture_scale=0.5),
        _WHITE,
        texture="floor.png",
        collision='<box size="12 12 0.02"/>',
        at=(0, 0, -0.01),
    )
    (folder / "plane.urdf").write_text(f'<robot name="plane">\n{plane.xml()}</robot>\n')


def cache_folder() -> Path:
    """Return the folder where files are made once."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("GR2_CACHE") or Path(home) / "gr2")


def builtin_assets(spec: SceneSpec) -> AssetFiles:
    """Make the built-in files of a scene, once, and return their places.

    Raises:
        SimulationError: the cache folder cannot be written.
    """
    sources = b"".join((Path(__file__).parent / name).read_bytes() for name in ("assets.py", "meshes.py", "scenes.py"))
    digest = hashlib.sha256(sources + _ASSET_VERSION.encode()).hexdigest()[:12]
    cache = cache_folder()
    folder = cache / f"playtable-{digest}-{spec.name}"
    try:
        if not folder.is_dir():
            cache.mkdir(parents=True, exist_ok=True)
            building = Path(tempfile.mkdtemp(dir=cache, prefix="building-"))
            _table(building, spec)
            _robot(building)
            _plane(building)
            for color, length in zip(spec.blocks, spec.block_lengths, strict=True):
                _block(building, f"block_{color}", BLOCK_COLORS[color], length)
            try:
                building.rename(folder)
            except OSError:
                shutil.rmtree(building)
    except OSError as error:
        raise SimulationError(
            f"Assets: cannot write {cache} ({error}); set GR2_CACHE to a folder that can be written."
        ) from error
    blocks = tuple(folder / f"block_{color}.urdf" for color in spec.blocks)
    return AssetFiles(
        robot=folder / "panda.urdf", table=folder / "table.urdf", plane=folder / "plane.urdf", blocks=blocks
    )
