"""Watch a policy at work: one task or a chain of them, as a video or in a window."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from tqdm import tqdm

from ..contracts import Array
from ..data_pipeline.video.reader import write_video
from ..errors import ConfigError
from .calvin.episodes import chain_start, run_task, task_start
from .playtable.cameras import CameraConfig
from .playtable.environment import CONTROL_HZ, PlayTable
from .playtable.instructions import sentences
from .playtable.tasks import task
from .policies.opening import open_policy
from .simulation.control import ControlMode, make_control

_SIDE, _BANNER, _STRIDE = 320, 34, 2


class _Film:
    """Collects frames: static camera large, hand camera beside it, the sentence above."""

    def __init__(self) -> None:
        self.frames: list[Array] = []
        self.font = ImageFont.load_default(16)

    def shoot(self, env: PlayTable, sentence: str) -> None:
        """Draw both cameras now."""
        static, gripper = env.draw("static", px=_SIDE), env.draw("gripper", px=_SIDE)
        sheet = Image.new("RGB", (2 * _SIDE, _SIDE + _BANNER), (22, 24, 28))
        sheet.paste(Image.fromarray(static), (0, _BANNER))
        sheet.paste(Image.fromarray(gripper), (_SIDE, _BANNER))
        ImageDraw.Draw(sheet).text((10, 8), sentence, fill=(235, 235, 235), font=self.font)
        self.frames.append(np.asarray(sheet))


def rollout(
    *,
    pretrained: bool = False,
    policy: str = "",
    tasks: str = "chain",
    scene_name: str = "D",
    out: Path = Path("runs/rollout.mp4"),
    window: bool = False,
    control: ControlMode = "wbc",
    executed_steps: int = 5,
    max_steps: int = 360,
    image_px: int = 64,
    seed: int = 7,
) -> dict[str, Any]:
    """Let a policy act in the simulator and show it.

    Args:
        pretrained: use the shipped policy.
        policy: another policy instead of the shipped one, named as for `gr2 benchmark calvin`.
        tasks: "chain" for five tasks in a row, or comma-separated task names, each from a start of its own.
        scene_name: A, B, C or D.
        out: video to write.
        window: open PyBullet's viewer instead of writing a video.
        control: our whole-body controller or CALVIN's own control.
        executed_steps: control steps of each chunk carried out before the policy is asked again.
        max_steps: time limit for each task in control steps.
        image_px: picture side [px] that the policy sees.
        seed: seed of the start.

    Raises:
        ConfigError: neither or both of `pretrained` and `policy`.
    """
    if pretrained == bool(policy):
        raise ConfigError("rollout: expected either --pretrained or --policy FOLDER; give one of them.")
    env = PlayTable(
        scene_name,
        camera=CameraConfig(static_px=image_px, gripper_px=image_px),
        render_mode=None,
        window=window,
    )
    actor = open_policy("pretrained" if pretrained else policy, env, executed_steps=executed_steps)
    names = chain_start(env, seed, 0)[1] if tasks == "chain" else [task(n.strip()).name for n in tasks.split(",")]
    film, mode, results = _Film(), make_control(control, env), []
    mode.reset()
    for number, name in enumerate(tqdm(names, desc="rollout", unit="task")):
        if tasks != "chain":
            task_start(env, name, seed, number)
            mode.reset()
        sentence = sentences(name)[0]

        def watch(world: PlayTable, step: int, sentence: str = sentence) -> None:
            if window:
                time.sleep(1 / CONTROL_HZ)
            elif step % _STRIDE == 0:
                film.shoot(world, sentence)

        result = run_task(env, actor, mode, name, executed_steps=executed_steps, max_steps=max_steps, watch=watch)
        results.append(result)
        print(
            f"{sentence}: {'done' if result.success else 'not done'} after {result.steps} steps",
            file=sys.stderr,
        )
        if tasks == "chain" and not result.success:
            break
    env.close()
    if not window:
        write_video(out, np.stack(film.frames), CONTROL_HZ / _STRIDE, crf=23, pixel_format="yuv420p")
        print(out)
    return {"success": sum(r.success for r in results), "tasks": len(names)}
