"""Watch a policy at work: one task or a chain of them, as a video or in a window."""

from __future__ import annotations

import sys
import time
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from tqdm import tqdm

from ..contracts import Array, Chunking, Policy
from ..data_pipeline.video.reader import write_video
from ..errors import ConfigError
from ..gr_model.act.corrections import CorrectedPolicy
from ..gr_model.act.opening import EXECUTED_STEPS, open_policy
from .calvin.suite import CalvinSuite, ControlMode
from .playtable.cameras import CameraConfig
from .playtable.environment import PlayTable
from .playtable.tasks import task
from .simulation.control import make_control
from .simulation.episodes import TaskResult, check_latency, last_step, run_task
from .simulation.fit import check_fit, embodiment_of, show_what_it_sees
from .simulation.simulator import Simulator
from .simulation.suite import Suite

_SIDE, _BANNER, _STRIDE = 320, 34, 2


class _Video:
    """Collects frames: the cameras side by side, the instruction above."""

    def __init__(self) -> None:
        self.frames: list[Array] = []
        self.font = ImageFont.load_default(16)

    def shoot(self, simulator: Simulator, instruction: str) -> None:
        """Draw all cameras now."""
        sheet = Image.new("RGB", (len(simulator.cameras) * _SIDE, _SIDE + _BANNER), (22, 24, 28))
        for number, camera in enumerate(simulator.cameras):
            sheet.paste(Image.fromarray(simulator.draw(camera, px=_SIDE)), (number * _SIDE, _BANNER))
        ImageDraw.Draw(sheet).text((10, 8), instruction, fill=(235, 235, 235), font=self.font)
        self.frames.append(np.asarray(sheet))


def rollout(
    *,
    pretrained: bool = False,
    policy: str = "",
    tasks: str = "chain",
    scene: str = "D",
    video: Path = Path("runs/rollout.mp4"),
    window: bool = False,
    control: ControlMode = "wbc",
    executed_steps: int | None = None,
    chunking: Chunking = "independent",
    latency: float = 0.0,
    max_steps: int = 360,
    image_size: int = 64,
    correct: list[str] = [],  # noqa: B006  (only read)
    seed: int = 7,
) -> dict[str, Any]:
    """Let a policy act in the simulator and show it.

    Args:
        pretrained: use the shipped policy.
        policy: another policy instead of the shipped one, named as for `gr2 benchmark calvin`.
        tasks: "chain" for five tasks in a row, or comma-separated task names, each from a start of its own.
        scene: A, B, C or D.
        video: file to write.
        window: open PyBullet's viewer instead of writing a video.
        control: our whole-body controller or CALVIN's own control.
        executed_steps: control steps of each chunk carried out before the policy is asked again, if not as many as the
            policy says (5 for a released model).
        chunking: how a model's chunk relates to the running one: independent, averaged with it (ensemble), sampled as
            its continuation (inpaint: flow, diffusion), or what its head can (auto).
        latency: how long after its observation a chunk arrives [s]; the policy is not asked again before.
        max_steps: time limit for each task in control steps.
        image_size: image side [px] that the policy sees.
        correct: words at times [s] of each task in place of those that a policy with `--model.motions` says itself, as
            "1.5 move arm up" and "3 -" (docs/policies.md).
        seed: seed of the start.

    Raises:
        ConfigError: neither or both of `pretrained` and `policy`.
        PolicyError: the policy was trained on another robot.
    """
    if pretrained == bool(policy):
        raise ConfigError("rollout: expected either --pretrained or --policy FOLDER; give one of them.")
    check_latency(latency)
    camera = CameraConfig(static_px=image_size, gripper_px=image_size)
    names = [] if tasks == "chain" else [task(name.strip()).name for name in tasks.split(",")]
    recorder = None if window else _Video()
    with closing(CalvinSuite(PlayTable(scene, camera=camera, render_mode=None, window=window), seed=seed)) as suite:
        control_hz = suite.simulator.control_hz
        actor = open_policy(
            "pretrained" if pretrained else policy, executed_steps=executed_steps, chunking=chunking, latency=latency,
            expert=partial(suite.expert, control, last_step(executed_steps or EXECUTED_STEPS, latency, control_hz)),
            embodiment=embodiment_of(suite.simulator),
        )  # fmt: skip
        with closing(actor):
            actor = CorrectedPolicy(actor, correct) if correct else actor
            check_fit(actor, suite.simulator)
            show_what_it_sees(actor, suite.simulator)
            results, total = _act_out(suite, actor, names, control, recorder, executed_steps, max_steps, latency)
    if recorder is not None:
        write_video(video, np.stack(recorder.frames), control_hz / _STRIDE, crf=23, pixel_format="yuv420p")
        print(video)
    return {"success": sum(result.success for result in results), "tasks": total}


def _act_out(
    suite: Suite,
    policy: Policy,
    tasks: list[str],
    control: str,
    video: _Video | None,
    executed_steps: int | None,
    max_steps: int,
    latency: float,
) -> tuple[list[TaskResult], int]:
    """Let the policy act a chain, or each of `tasks` from a start of its own; return results and number of tasks."""
    simulator = suite.simulator
    names = tasks or suite.start("chain", 0)
    mode, results = make_control(control, simulator), []
    mode.reset()
    for number, name in enumerate(tqdm(names, desc="rollout", unit="task")):
        if tasks:
            suite.start(name, number)
            mode.reset()
        instruction = suite.instruction(name)

        def watch(step: int, instruction: str = instruction) -> None:
            if video is None:
                time.sleep(1 / simulator.control_hz)
            elif step % _STRIDE == 0:
                video.shoot(simulator, instruction)

        result = run_task(
            simulator, policy, mode, name, instruction=instruction, executed_steps=executed_steps,
            max_steps=max_steps, latency=latency, watch=watch,
        )  # fmt: skip
        results.append(result)
        done = "done" if result.success else "not done"
        print(f"{instruction}: {done} after {result.steps} steps", file=sys.stderr)
        if not tasks and not result.success:
            break
    return results, len(names)
