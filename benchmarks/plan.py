"""The official path: CALVIN's own download to a row beside the published ones, and what each command takes.

`gr2 doctor --plan` prints it; docs/official.md explains it.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ..errors import ConfigError

if TYPE_CHECKING:
    from ..gr_model.model.presets import Size

CALVIN_HOURS, CALVIN_HZ, CALVIN_GB = 24, 30, 656
"""Play in the four scenes [h], its rate [Hz], the archive of all four [GB]. Source: mees/calvin, dataset/README.md."""

_SHARD_BYTES = 5100.0
"""H.264 of one frame, both cameras, in video shards [byte]. Source: `gr2 data shards` of CALVIN frames."""

_UTILIZATION = 0.35
"""Share of a GPU's dense bfloat16 peak that training and encoding are assumed to reach; not measured on a GPU."""

_CORE_SECONDS = 2 / 205
"""A core's time for a control step of an evaluation with CALVIN's files [s]. Source: docs/calvin.md, Speed."""


@dataclass(frozen=True, kw_only=True)
class PlanStep:
    """One command of the path; what it takes is an estimate.

    command: words of the command line; disk: what it leaves behind [GB]; gpu_hours: on the GPU that is planned for;
    core_hours: of the processor; memory: of the GPU [GiB].
    """

    command: tuple[str, ...]
    disk: float = 0.0
    gpu_hours: float = 0.0
    core_hours: float = 0.0
    memory: float = 0.0


@dataclass(frozen=True, kw_only=True)
class PlanScale:
    """How large the path is; the defaults are those of the report's size B.

    split: of CALVIN's download; target_fps: images a second that are encoded.
    """

    split: str = "task_ABCD_D"
    size: Size = "B"
    target_fps: int = 6
    pretrain_steps: int = 30_000
    finetune_steps: int = 60_000
    batch_size: int = 128
    sequences: int = 1000
    num_workers: int = 16
    device: str = "cuda"


def official_plan(
    *,
    calvin: str = "calvin",
    out: str = "runs/official",
    tokenizer: str = "vqgan_imagenet_f16_16384.ckpt",
    text: str = "ViT-B-32:openai",
    gpu: str = "A100",
    scale: PlanScale = PlanScale(),
) -> list[PlanStep]:
    """Return the commands in order, with estimates for a GPU.

    Args:
        calvin: where the clone of mees/calvin comes to lie; out: folder of everything else.
        tokenizer: the published VQGAN; text: the published CLIP.
        gpu: part of the GPU's name, as in "H100".

    Raises:
        ConfigError: the GPU's peak is not known.
    """
    from ..gr_model.train.throughput import device_peak

    peak = device_peak(gpu)
    if peak is None:
        raise ConfigError(f"--gpu {gpu}: its peak is not known; name one of the data centers', as A100 or H100.")
    s, frames = scale, CALVIN_HOURS * 3600 * CALVIN_HZ
    images = 2 * frames * s.target_fps / CALVIN_HZ
    hour = peak * _UTILIZATION * 3600
    frozen = ("--tokenizer", tokenizer, "--text", text)
    trained = ("--size", s.size, "--batch-size", str(s.batch_size), "--device", s.device)
    video, memory = _training(s, with_actions=False)
    acting, most = _training(s, with_actions=True)
    clone = ("git", "clone", "--recurse-submodules", "https://github.com/mees/calvin", calvin)
    evaluated = 2 * s.sequences * 5 * 360 * _CORE_SECONDS / 3600
    return [
        PlanStep(command=clone, disk=1),
        PlanStep(command=("sh", "-c", f"cd {calvin}/dataset && sh download_data.sh ABCD"), disk=CALVIN_GB),
        PlanStep(
            command=_gr2("data shards", source=f"{calvin}/dataset/{s.split}/training", out=f"{out}/shards",
                         num_workers=s.num_workers),
            disk=frames * _SHARD_BYTES / 1e9,
        ),
        PlanStep(
            command=(*_gr2("data tokens", shards=f"{out}/shards", out=f"{out}/tokens", target_fps=s.target_fps,
                           num_workers=s.num_workers, device=s.device), *frozen),
            disk=(images * 256 * 2 + frames * 24 * 4) / 1e9, gpu_hours=images * _encoding_flops() / hour,
        ),
        PlanStep(
            command=(*_gr2("pretrain", tokens=f'["{out}/tokens"]', out=f"{out}/pretrain", steps=s.pretrain_steps),
                     *trained, *frozen),
            disk=2, gpu_hours=s.pretrain_steps * s.batch_size * video / hour, memory=memory,
        ),
        PlanStep(
            command=(*_gr2("finetune", tokens=f'["{out}/tokens"]', init=f"{out}/pretrain", out=f"{out}/finetune",
                           steps=s.finetune_steps), "--head.kind", "flow", *trained, *frozen),
            disk=2, gpu_hours=s.finetune_steps * s.batch_size * acting / hour, memory=most,
        ),
        PlanStep(
            command=_gr2("benchmark calvin", policy=f"{out}/finetune", out=f"{out}/calvin", calvin_root=calvin,
                         renderer="egl" if s.device == "cuda" else "tiny", image_size=0, control="both",
                         sequences=s.sequences, num_workers=s.num_workers),
            core_hours=evaluated,
        ),
    ]  # fmt: skip


def describe_plan(steps: Sequence[PlanStep], gpu: str) -> str:
    """Return the plan as text, one command each, with sums."""
    lines = []
    for number, step in enumerate(steps, 1):
        takes = [f"{step.disk:,.0f} GB"] if step.disk else []
        takes += [f"{step.gpu_hours:,.1f} h on one {gpu}"] if step.gpu_hours else []
        takes += [f"{step.memory:.0f} GiB of its memory"] if step.memory else []
        takes += [f"{step.core_hours:,.0f} core hours at most"] if step.core_hours else []
        lines += [f"{number}. {_shell(step.command)}", f"   about {', '.join(takes)}"]
    disk, hours = sum(step.disk for step in steps), sum(step.gpu_hours for step in steps)
    lines.append(f"in all about {disk:,.0f} GB and {hours:,.0f} h on one {gpu}, at {_UTILIZATION:.0%} of its peak")
    lines.append("Estimates: operations are counted, the share of the peak is assumed.")
    return "\n".join(lines)


def _gr2(words: str, **options: object) -> tuple[str, ...]:
    pairs = ((f"--{name.replace('_', '-')}", str(value)) for name, value in options.items())
    return ("gr2", *words.split(), *(word for pair in pairs for word in pair))


def _shell(command: Sequence[str]) -> str:
    return shlex.join(command) if command[0] != "sh" else command[-1]


def _training(scale: PlanScale, *, with_actions: bool) -> tuple[float, float]:
    """Return the operations of a training sequence [FLOP] and the memory of a batch [GiB]."""

    import torch

    from ..cvae_head import kinds
    from ..gr_model.model import presets
    from ..gr_model.model.world_model import WorldModel
    from ..gr_model.train.memory_estimate import estimate_memory
    from ..gr_model.train.throughput import step_cost

    config = replace(presets.of_size(scale.size), max_context=1, chunk_length=10, head=kinds.reference("flow"))
    with torch.device("meta"):
        model = WorldModel(config)
    cost = step_cost(model, text_length=config.text_length, with_frames=True, with_actions=with_actions)
    memory = estimate_memory(
        model, batch_size=scale.batch_size, text_length=config.text_length, with_actions=with_actions,
        weight_average=True, bfloat16=True, fused_attention=True,
    )  # fmt: skip
    return cost.flops, memory.total / 2**30


def _encoding_flops() -> float:
    """Count the operations of encoding one image with the published f16 VQGAN [FLOP]."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from ..tokenizers.vqgan import VQGAN, f16_16384

    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        VQGAN(f16_16384()).latents(torch.zeros(1, 3, 256, 256))
    return float(counter.get_total_flops())
