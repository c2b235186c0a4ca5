"""What is compared with the real future: samples of the model, the copied frame, the mean frame."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from ...contracts import Array
from ...data_pipeline.loading.loader import Batch
from ...gr_model.act.loading import Assembled
from ...gr_model.model.generation import imagine_frames
from ...gr_model.model.objectives import read_context
from ...gr_model.model.sampling import SamplingConfig
from ...gr_model.model.texts import TextTable
from ...gr_model.model.world_model import WorldModel
from .clips import VideoClips

_BY_FRAME = ("frame_mask", "states", "state_mask")


def set_captions(parts: Assembled, clips: VideoClips) -> None:
    """Give the model the features of the clips' captions; `text_id` of their batch counts them."""
    features, mask = parts.text.encode(list(clips.captions))
    parts.release.model.set_texts(TextTable(torch.as_tensor(features), torch.as_tensor(mask)))


def part_of(model: WorldModel, clips: VideoClips, rows: slice, *, start: int, num_frames: int) -> Batch:
    """Cut frames `start` to `start + num_frames` of some clips out, on the model's device.

    A model that never learned what states mean gets none.
    """
    frames, device = slice(start, start + num_frames), model.device
    batch: Batch = {"text_id": clips.batch["text_id"][rows].to(device)}
    batch["codes"] = {c: v[rows, frames].to(device) for c, v in clips.batch["codes"].items()}
    batch["camera_mask"] = {c: v[rows].to(device) for c, v in clips.batch["camera_mask"].items()}
    for name in _BY_FRAME if model.acts else _BY_FRAME[:1]:
        if name in clips.batch:
            batch[name] = clips.batch[name][rows, frames].to(device)
    if "embodiment" in clips.batch:
        batch["embodiment"] = clips.batch["embodiment"][rows].to(device)
    return batch


def slices(total: int, size: int) -> Iterator[slice]:
    """Yield the parts of `total` rows, `size` at a time."""
    yield from (slice(start, min(start + size, total)) for start in range(0, total, size))


def sampled_codes(
    parts: Assembled, clips: VideoClips, *, sampling: SamplingConfig, samples: int, batch_size: int
) -> dict[str, Array]:
    """Let the model continue the context of each clip: camera -> codes `[c s f n]`.

    A model that acts moves along its own trajectory; the real actions are not shown to it. Sample i of clip j has the
    seed `sampling.seed + i + samples * j`, whatever stands beside it in a batch.
    """
    model, done = parts.release.model, dict[str, list[Array]]()
    with tqdm(total=len(clips) * samples, desc="imagine", unit="clip", leave=False) as progress:
        for rows in slices(len(clips), batch_size):
            context, _ = read_context(model, part_of(model, clips, rows, start=0, num_frames=clips.context))
            robot = 0 if context.embodiment is None else int(context.embodiment.max())
            step = 0 if context.states is None else parts.release.clocks_of(robot)[0]
            sampled: dict[str, list[Tensor]] = {}
            for sample in range(samples):
                seeds = [sampling.seed + sample + samples * clip for clip in range(rows.start, rows.stop)]
                frames = imagine_frames(
                    model, context, num_frames=clips.num_frames, sampling=replace(sampling, seed=seeds[0]),
                    frame_step=step, seeds=seeds,
                )  # fmt: skip
                for camera, codes in frames.items():
                    sampled.setdefault(camera, []).append(codes.cpu())
                progress.update(rows.stop - rows.start)
            for camera, codes_by_sample in sampled.items():
                done.setdefault(camera, []).append(torch.stack(codes_by_sample, dim=1).numpy())
    return {camera: np.concatenate(codes) for camera, codes in done.items()}


def decoded(parts: Assembled, codes: Array) -> Array:
    """Decode codes `[... n]` into frames uint8 `[... h w 3]`."""
    frames = parts.vqgan.decode_frames(codes.reshape(-1, codes.shape[-1]))
    return frames.reshape(*codes.shape[:-1], *frames.shape[1:])


def mean_codes(parts: Assembled, means: Mapping[str, Array]) -> dict[str, Array]:
    """Encode the mean frame of each camera: camera -> codes `[n]`."""
    return {camera: parts.vqgan.encode_frames(frame[None])[0] for camera, frame in means.items()}
