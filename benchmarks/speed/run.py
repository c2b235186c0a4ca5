"""The command `gr2 benchmark speed`: a control cycle, training, generation and the tokenizer on this machine."""

from __future__ import annotations

import os
import platform
from dataclasses import asdict
from json import dumps
from pathlib import Path
from typing import Any, Literal

from ...errors import ConfigError, did_you_mean
from .models import Size

PARTS = ("control", "training", "generation", "tokenizer")

TRAINING_BAR, RASTER_BAR, MASKED_BAR, TOKENIZER_BAR = 1.0, 1.5, 5.0, 1.0
"""What we ask of ourselves: training and raster decoding over HuggingFace's, masked over our raster decoding, images to
codes and back over taming's."""


def speed(
    *,
    size: Size = "tiny",
    rounds: int = 5,
    json: Path | None = None,
    only: str = ",".join(PARTS),
    policy: str | None = None,
    tokens: list[str] | None = None,
    seconds: float = 3.0,
    threads: int = 1,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    precision: Literal["auto", "bf16", "32"] = "auto",
    compile: Literal["none", "default", "reduce-overhead"] = "none",
) -> int:
    """Time our code beside HuggingFace's, PyTorch's and taming's in interleaved rounds.

    Args:
        size: Of the world model; `tiny` goes with the small tokenizer, S to L with the published one.
        rounds: Rounds counted; everything is timed once in each.
        json: File for the metrics; none is written where it is not given.
        only: Some of control, training, generation, tokenizer, separated by commas.
        policy: A trained model with raster decoding (a folder of `gr2 pretrain`), whose frames are timed with drafts,
            too; without, generation takes random weights, of which drafts mean nothing.
        tokens: Folders of token shards for its contexts.
        seconds: How long each piece of the control cycle is repeated [s].
        threads: Threads that torch may use.
        device: Where the networks compute; auto takes CUDA where there is a device.
        precision: Of matrix products; auto takes bfloat16 where it is fast.
        compile: Compile the trunks in training with this mode of torch.compile; reduce-overhead takes CUDA graphs.

    Raises:
        ConfigError: an unknown part, a number that is not positive, a policy without tokens or the other way round.
    """
    parts = _read_parts(only)
    trained = None if policy is None or tokens is None else (policy, tokens)
    if (policy is None) != (tokens is None) or (trained and "generation" not in parts):
        raise ConfigError(
            "benchmark speed: expected --policy and --tokens together, where generation is timed; give both or none."
        )
    if rounds < 1 or threads < 1 or not seconds > 0:
        raise ConfigError(
            f"benchmark speed: expected positive rounds, threads and seconds, got {rounds}, {threads} and {seconds}; "
            "change the options."
        )
    import torch

    from .control_cycle import time_control

    torch.set_num_threads(threads)
    setting = _setting(device, precision, compile, rounds)
    machine = f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}, {threads} thread(s)"
    if setting.device.type == "cuda":
        machine += f", {torch.cuda.get_device_name(setting.device)}"
    print(f"{machine}, load {os.getloadavg()[0]:.1f}")
    found: dict[str, Any] = {"machine": machine, "size": size, "rounds": rounds, "notes": []}
    if "control" in parts:
        found["metrics"] = time_control(seconds)
    for part in ("training", "generation", "tokenizer"):
        if part in parts:
            found |= _networks(part, size, trained, setting, found["notes"])
    if json is not None:
        _write(json, dumps(found, indent=1))
    return 0


def _read_parts(only: str) -> list[str]:
    parts = [part.strip() for part in only.split(",") if part.strip()]
    for part in parts:
        if part not in PARTS:
            raise ConfigError(f"--only: there is no part '{part}'{did_you_mean(part, PARTS)}")
    if not parts:
        raise ConfigError(f"--only: expected some of {', '.join(PARTS)}, got nothing; name what to time.")
    return parts


def _setting(device: Literal["auto", "cpu", "cuda"], precision: str, compile: str, rounds: int) -> Any:
    """Settle on device and precision."""
    import torch

    from ...gr_model.train.distributed import torch_device
    from ...layers import fast_bfloat16
    from .measure import Setting

    return Setting(
        device=torch.device(torch_device(device)),
        bfloat16=precision == "bf16" or (precision == "auto" and fast_bfloat16()),
        rounds=rounds,
        compile_mode=None if compile == "none" else compile,
    )


def _networks(
    part: str, size: Size, trained: tuple[str, list[str]] | None, setting: Any, notes: list[str]
) -> dict[str, Any]:
    """Time one part, print its tables and bars, and return them for the file."""
    tables: dict[str, Any] = {}
    if part == "training":
        from .training import HUGGINGFACE, OURS, time_training

        tables["training"], here = time_training(size, setting)
        bars = [("training", OURS, HUGGINGFACE, TRAINING_BAR)]
    elif part == "generation":
        from .generation import DRAFTED, MASKED, RASTER, time_generation, time_trained
        from .generation import HUGGINGFACE as GENERATE

        tables["generation"], here = time_trained(*trained, setting) if trained else time_generation(size, setting)
        bars = [
            ("generation", RASTER, GENERATE, RASTER_BAR),
            ("generation", DRAFTED, GENERATE, RASTER_BAR),
            ("generation", MASKED, RASTER, MASKED_BAR),
            ("generation", MASKED, DRAFTED, MASKED_BAR),
        ]
    else:
        from .tokenizer import OURS, TAMING, time_tokenizer

        tables["encoding"], tables["decoding"], here = time_tokenizer(size, setting)
        bars = [(title, OURS, TAMING, TOKENIZER_BAR) for title in tables]
    notes += here
    print("\n" + "\n".join(here))
    for title, table in tables.items():
        print(f"{title}: median (smallest to largest), ratio to the reference with its 95 % interval")
        for name, row in table.rows.items():
            print(f"  {name:28}{row.text()}")
    found: dict[str, Any] = {title: _as_json(table) for title, table in tables.items()}
    found[f"{part}_bars"] = []
    for title, name, other, bar in bars:
        if {name, other} <= tables[title].rows.keys():
            wall, processor = tables[title].ratio(name, other)
            verdict = "met" if wall[0] >= bar else "missed"
            text = f"{wall[0]:.2f} [{wall[1]:.2f}, {wall[2]:.2f}], by processor time {processor[0]:.2f}"
            what = f"{name} over {other}" if title == part else f"{title}, {name} over {other}"
            print(f"  {what}: {text} (bar {bar}: {verdict})")
            entry = {"what": what, "bar": bar, "wall": wall, "processor": processor}
            found[f"{part}_bars"].append(entry)
    return found


def _as_json(table: Any) -> dict[str, Any]:
    return {
        name: asdict(row) | {"wall_rates": table.wall[name], "processor_rates": table.processor[name]}
        for name, row in table.rows.items()
    }


def _write(out: Path, text: str) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = out.with_name(out.name + ".new")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, out)
