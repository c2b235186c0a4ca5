"""The pieces of one control cycle: a controller tick, a simulator step, images, tokens, a chunk."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import numpy as np

Piece = Callable[[], Callable[[], object]]
"""Prepare a piece of work; the returned function is what is timed."""

IMAGE_PX = 64
TICK_HZ = 200


def _controller_tick() -> Callable[[], object]:
    from ...contracts import ActionTrajectory
    from ...wbc.controller import WholeBodyController
    from ..playtable.environment import PlayTable
    from ..simulation.control import controller_config

    env = PlayTable("D")
    env.reset()
    observation = env.observe("", images=False)
    env.close()
    controller = WholeBodyController(env.arm, controller_config())
    controller.reset(observation.joint_positions, 1.0, 0.0)
    ramp = np.linspace(0.0, 0.05, 10)[:, None] * np.array([[0.0, 1.0, 0.0]])
    tick = 0

    def step() -> object:
        nonlocal tick
        if tick % (TICK_HZ // 4) == 0:
            away = ramp if (tick // (TICK_HZ // 4)) % 2 == 0 else ramp[::-1]
            controller.accept(
                ActionTrajectory(
                    positions=observation.tool_position + away,
                    quaternions=np.repeat(observation.tool_quaternion[None], 10, axis=0),
                    gripper=np.ones(10),
                    dt=1 / 30,
                    start_time=tick / TICK_HZ,
                )
            )
        tick += 1
        return controller.step(tick / TICK_HZ)

    return step


def _simulator_step() -> Callable[[], object]:
    from ..playtable.environment import PlayTable

    env = PlayTable("D")
    env.reset()
    observation = env.observe("", images=False)
    return lambda: env.step_pose(observation.tool_position, observation.tool_quaternion, 1.0)


def _two_images() -> Callable[[], object]:
    from ..playtable.cameras import CameraConfig
    from ..playtable.environment import CAMERAS, PlayTable

    env = PlayTable("D", camera=CameraConfig(static_px=IMAGE_PX, gripper_px=IMAGE_PX))
    env.reset()
    return lambda: [env.draw(camera) for camera in CAMERAS]


def _tokenize_two_images() -> Callable[[], object]:
    from ...tokenizers.vqgan import VQGAN, small

    vqgan = VQGAN(small()).eval()
    frames = np.random.default_rng(0).integers(0, 256, (2, IMAGE_PX, IMAGE_PX, 3), dtype=np.uint8)
    return lambda: vqgan.encode_frames(frames)


def _decide() -> Callable[[], object]:
    import torch

    from ...gr_model.model.context import Context
    from ...gr_model.model.presets import tiny
    from ...gr_model.model.world_model import WorldModel

    config = tiny()
    model = WorldModel(config).eval()
    context = Context(
        codes={c.name: torch.zeros(1, 1, c.grid[0] * c.grid[1], dtype=torch.int64) for c in config.cameras},
        text=torch.zeros(1, config.text_length, config.text_dim),
        text_mask=torch.ones(1, config.text_length, dtype=torch.bool),
        states=torch.zeros(1, 1, 16),
    )

    def act() -> object:
        with torch.inference_mode():
            return model.act(context)

    return act


PIECES: dict[str, Piece] = {
    "controller tick (budget 5 ms)": _controller_tick,
    "simulator control step (1/30 s)": _simulator_step,
    f"two images of {IMAGE_PX} px": _two_images,
    "tokens of two images, small VQGAN": _tokenize_two_images,
    "one chunk, tiny model": _decide,
}


def time_control(seconds: float) -> dict[str, dict[str, float]]:
    """Repeat each piece for so long [s] and print as it goes; return median and 99th percentile [ms] and repeats."""
    print(f"{'control cycle':38}{'median':>9}{'p99':>9}  ms")
    metrics: dict[str, dict[str, float]] = {}
    for name, prepare in PIECES.items():
        milliseconds = _time(prepare(), seconds)
        p99 = float(np.percentile(milliseconds, 99))
        metrics[name] = {
            "median_ms": statistics.median(milliseconds),
            "p99_ms": p99,
            "repeats": len(milliseconds),
        }
        print(f"{name:38}{metrics[name]['median_ms']:9.2f}{p99:9.2f}")
    return metrics


def _time(work: Callable[[], object], seconds: float) -> list[float]:
    for _ in range(3):
        work()
    milliseconds: list[float] = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(milliseconds) < 10:
        begin = time.perf_counter()
        work()
        milliseconds.append((time.perf_counter() - begin) * 1e3)
    return milliseconds
