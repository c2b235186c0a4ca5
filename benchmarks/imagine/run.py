"""Predicted beside real: the model imagines futures of test episodes, the expert and the policy act them out."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from tqdm import tqdm

from ...data_pipeline.files import write_json
from ...data_pipeline.video.reader import write_video
from ...embodiment import TOOL_ARM
from ...errors import ConfigError
from ..playtable.environment import CAMERAS, CONTROL_HZ
from .agreement import Execution, execute, measure_agreement
from .drawing import Strip, write_sheet, write_strips
from .episodes import TestSet, act_out_all
from .imagination import Imagination
from .metrics import measure_futures
from .start import Start, read_start

if TYPE_CHECKING:
    from ...gr_model.act.loading import Assembled

Device = Literal["auto", "cpu", "cuda"]


def imagine(
    *,
    policy: str = "pretrained",
    out: Path = Path("runs/imagine"),
    image: Path | dict[str, Path] | None = None,
    clip: Path | dict[str, Path] | None = None,
    text: str = "",
    num_frames: int = 24,
    grid: bool = False,
    scene: str = "D",
    episodes: int = 8,
    metric_episodes: int = 34,
    horizon: int = 4,
    agreement_starts: int = 0,
    decoding_steps: int = 16,
    temperature: float = 0.8,
    choice_temperature: float = 8.0,
    top_k: int = 0,
    top_p: float = 0.8,
    guidance: float = 1.0,
    executed_steps: int = 5,
    image_size: int = 64,
    frame_stride: int = 5,
    device: Device = "auto",
    seed: int = 300,
) -> dict[str, Any]:
    """Imagine the future of an image or clip of yours, or of test episodes in the simulator; write videos and metrics.

    Args:
        policy: "pretrained" (shipped) or a folder with a released model.
        out: folder for the videos: `CAMERA.mp4` to look at and `CAMERA_predicted.mp4`, the frames alone; for test
            episodes three videos each, `episodes.json` and `metrics.json`.
        image: image to start from, of the model's first camera, or {camera: image}; other cameras are masked out.
        clip: video (or {camera: video}) whose first frames are the start; the others are shown beside the predicted.
        text: instruction or caption, what happens after `image` or the start of `clip`; empty for none.
        num_frames: frames to predict after them, any number.
        grid: also write `sheet.png`, a row of images for each camera.
        scene: scene of the test episodes.
        episodes: episodes shown as videos: predicted, real, and the policy's own rollout.
        metric_episodes: episodes from which the metrics are measured.
        horizon: predicted frames for the metrics.
        agreement_starts: starts of each of 17 tasks of which imagined and executed are compared (`agreement.json`).
        decoding_steps: of one frame of a video.
        temperature: of the codes of the videos; the metrics are those of the likeliest codes.
        choice_temperature: 0 samples the codes the model is surest of first, a large number samples them in any order.
        top_k: sample only the k likeliest codes; 0 for all.
        top_p: sample only the likeliest codes that hold this share of the probability; 1 for all.
        guidance: above 1, follow the text more than the model by itself does (trained with text dropout).
        executed_steps: control steps of each chunk in the policy's rollout.
        image_size: image side in the simulator [px].
        frame_stride: control steps from frame to frame in the simulator.
        device: where the networks run; auto takes a GPU where there is one.
        seed: seed of starts and sampling.
    """
    import torch

    from ...gr_model.act.loading import assemble, policy_of
    from ...gr_model.model.sampling import SamplingConfig
    from ...gr_model.train.distributed import torch_device

    if image is None and clip is None and (text or grid):
        raise ConfigError("imagine: expected --image or --clip with --text and --grid, got neither; name a file.")
    _check_numbers(num_frames=num_frames, episodes=episodes, metric_episodes=metric_episodes, image_size=image_size)
    torch.set_num_threads(min(2, torch.get_num_threads()))
    sampling = SamplingConfig(
        passes=decoding_steps, temperature=temperature, choice_temperature=choice_temperature, top_k=top_k,
        top_p=top_p, guidance=guidance, seed=seed,
    )  # fmt: skip
    parts = assemble(policy).to(torch_device(device))
    dream = Imagination(parts, sampling)
    if image is not None or clip is not None:
        start = read_start(parts, image, clip, num_frames)
        _warn_of_foreign(parts, start)
        return _go_on(out, dream, start, text, num_frames, grid)
    actor = policy_of(parts, executed_steps=executed_steps, embodiment=TOOL_ARM)
    common: dict[str, Any] = {"scene": scene, "image_size": image_size, "stride": frame_stride}
    if agreement_starts:
        _write_agreement(out, parts, execute(actor, starts=agreement_starts, seed=seed + 2, **common))
    common |= {"num_shown": episodes, "num_measured": metric_episodes, "executed_steps": executed_steps, "seed": seed}
    return _imagine_episodes(out, dream, parts, act_out_all(actor, **common), horizon, CONTROL_HZ / frame_stride)


def _write_agreement(out: Path, parts: Assembled, executions: Sequence[Execution]) -> None:
    write_json(out / "agreement.json", measure_agreement(Imagination(parts), executions))


def _check_numbers(**numbers: int) -> None:
    if min(numbers.values()) < 1:
        got = ", ".join(f"--{name.replace('_', '-')} {number}" for name, number in numbers.items())
        raise ConfigError(f"imagine: expected at least one frame, episode and pixel, got {got}.")


def _warn_of_foreign(parts: Assembled, start: Start) -> None:
    """Warn of images that the tokenizer cannot give back: what is imagined from them means little."""
    from ...tokenizers.fit import is_poor, reconstruction_psnr

    found = reconstruction_psnr(parts.vqgan, np.concatenate(list(start.images.values())))
    if is_poor(found, parts.vqgan.trained_psnr):
        own = "" if parts.vqgan.trained_psnr is None else f" ({parts.vqgan.trained_psnr:.1f} dB on its own)"
        warnings.warn(
            f"imagine: the model's image tokenizer gives these images back with {found:.1f} dB{own}: they are unlike "
            "what it was trained on, and so is what it imagines; train tokenizer and model on images like them",
            stacklevel=2,
        )


def _go_on(out: Path, dream: Imagination, start: Start, text: str, num_frames: int, grid: bool) -> dict[str, Any]:
    """Predict frames after a start and write a video of each camera, what really came beside it."""
    stream = dream.stream(start.images, text, num_frames)
    codes = list(tqdm(stream, desc="imagine", unit="frame", total=num_frames))
    out.mkdir(parents=True, exist_ok=True)
    sheet: list[Strip] = []
    for name, given in start.images.items():
        frames = dream.decode(np.stack([frame[name] for frame in codes])[None])[0]
        predicted = np.concatenate([given, frames])
        strips = [Strip(camera=name, kind="predicted", frames=predicted, num_given=len(given))]
        if len(start.real[name]):
            real = np.concatenate([given, start.real[name]])[: len(predicted)]
            strips.append(Strip(camera=name, kind="real", frames=real, num_given=len(given)))
        write_strips(out / f"{name}.mp4", strips, text=text, frame_s=start.frame_s)
        write_video(out / f"{name}_predicted.mp4", predicted, 1 / start.frame_s)
        sheet += strips
    if grid:
        write_sheet(out / "sheet.png", sheet, text=text, frame_s=start.frame_s)
    return {"cameras": list(start.images), "start_frames": start.num_frames, "predicted_frames": len(codes)}


def _imagine_episodes(
    out: Path, dream: Imagination, parts: Assembled, acted: TestSet, horizon: int, fps: float
) -> dict[str, Any]:
    """Write the videos of the episodes that are shown and the metrics of those that are measured."""
    out.mkdir(parents=True, exist_ok=True)
    rows = _write_videos(out, dream, acted, fps)
    metrics = measure_futures(Imagination(parts), acted.measured, horizon)
    write_json(out / "episodes.json", rows)
    write_json(out / "metrics.json", metrics)
    return {"episodes": len(rows), "metric_episodes": len(acted.measured)}


def _write_videos(out: Path, dream: Imagination, acted: TestSet, fps: float) -> list[dict[str, Any]]:
    """Write predicted, real and acted videos of each episode and camera; return the rows of `episodes.json`."""
    rows = []
    for number, (episode, attempt) in enumerate(zip(acted.shown, acted.attempts, strict=True)):
        first = {name: frames[0][None] for name, frames in episode.images.items()}
        num_frames = len(episode.images["static"]) - 1
        predicted = dream.futures(first, [episode.instruction], num_frames, episode.states[:1])
        for name in CAMERAS:
            row: dict[str, Any] = {
                "instruction": episode.instruction, "task": episode.task, "camera": name, "success": attempt.success
            }  # fmt: skip
            for kind, video in (
                ("predicted", np.concatenate([first[name], predicted.images[name][0]])),
                ("real", episode.images[name]),
                ("rollout", attempt.images[name]),
            ):
                row[kind] = f"{number:02d}_{name}_{kind}.mp4"
                write_video(out / str(row[kind]), video, fps)
            rows.append(row)
    return rows
