"""Random starts: scene states in CALVIN's manner, and arm poses around neutral."""

from __future__ import annotations

import numpy as np

from .scenes import NEUTRAL_JOINTS, SceneSpec, reachable

_TABLE_SLOT_Y, _CABINET_Y = -0.12, 0.0924


def sample_scene(spec: SceneSpec, rng: np.random.Generator, *, official_share: float = 0.35) -> np.ndarray:
    """Sample a `scene_obs` `[24]`: doors at an end, lights on or off, one to three blocks on the desk.

    Args:
        official_share: how often blocks lie in the two fixed desk slots instead of anywhere in the spawn area.
    """
    slider = rng.choice([0.0, spec.slider_travel])
    drawer = rng.choice([0.0, 0.22])
    bulb, led = rng.integers(2), rng.integers(2)
    scene = [slider, drawer, 0.0, 0.088 * bulb, float(bulb), float(led)]
    on_desk = rng.permutation(3)[: rng.choice([2, 3], p=[0.7, 0.3])]
    low, high = spec.spawn_x
    official = rng.random() < official_share and len(on_desk) == 2
    slots = [(low + 0.05, _TABLE_SLOT_Y), (high - 0.12, _TABLE_SLOT_Y)]
    cabinet = [spec.cabinet_x[0] + 0.12, spec.cabinet_x[1] - 0.10]
    rng.shuffle(slots)
    rng.shuffle(cabinet)
    placed: list[np.ndarray] = [np.array(spec.button_xy)]
    for index in range(3):
        yaw = rng.uniform(np.pi / 2 - np.pi / 8, np.pi / 2 + np.pi / 8)
        if index not in on_desk:
            xy = np.array([cabinet.pop(), _CABINET_Y])
        elif official:
            xy = np.array(slots.pop())
        else:
            xy = _free_place(spec, placed, rng)
            yaw = rng.uniform(np.pi / 2 - np.pi / 4, np.pi / 2 + np.pi / 4)
        placed.append(xy)
        scene += [*xy, 0.46, 0.0, 0.0, yaw]
    return np.array(scene)


def _free_place(spec: SceneSpec, placed: list[np.ndarray], rng: np.random.Generator) -> np.ndarray:
    for _ in range(200):
        xy = np.array([rng.uniform(*spec.spawn_x), rng.uniform(-0.15, -0.03)])
        if reachable(*xy) and all(np.linalg.norm(xy - other) > 0.095 for other in placed):
            return xy
    return xy


def sample_joints(rng: np.random.Generator, *, spread: float = 0.08) -> np.ndarray:
    """Sample arm joints `[7]` [rad] around CALVIN's neutral pose."""
    return np.array(NEUTRAL_JOINTS) + rng.uniform(-spread, spread, 7)
