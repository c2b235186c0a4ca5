"""How well a VQGAN gives pictures back: numbers and a picture of pictures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from ..gr_model.contracts import Array
from .losses import detail_weights
from .vqgan import VQGAN, normalize_frames
from .weight_files import write_atomically


def psnr(
    a: Float[Tensor, "b c h w"], b: Float[Tensor, "b c h w"], weights: Float[Tensor, "b 1 h w"] | None = None
) -> Float[Tensor, ""]:
    """Return the mean over pictures of the peak signal-to-noise ratio [dB] of pictures in [-1, 1]."""
    squared = (a - b).square().mean(1, keepdim=True)
    if weights is not None:
        squared = squared * weights
    return (10.0 * torch.log10(4.0 / squared.mean((1, 2, 3)).clamp_min(1e-10))).mean()


@torch.inference_mode()
def measure_vqgan(model: VQGAN, frames: Array, *, batch_size: int = 64) -> dict[str, float]:
    """Return `psnr`, `detail_psnr` (errors weighted by detail) [dB] and `codes_used` on uint8 frames."""
    totals = {"psnr": 0.0, "detail_psnr": 0.0}
    used: set[int] = set()
    for start in range(0, len(frames), batch_size):
        images = normalize_frames(torch.as_tensor(frames[start : start + batch_size])).to(model.codebook.device)
        codes = model.encode(images)
        reconstruction = model.decode(codes)
        used.update(codes.flatten().tolist())
        totals["psnr"] += float(psnr(reconstruction, images)) * len(images)
        weights = detail_weights(images, 1e3)
        totals["detail_psnr"] += float(psnr(reconstruction, images, weights)) * len(images)
    return {k: v / len(frames) for k, v in totals.items()} | {"codes_used": float(len(used))}


def save_grid(model: VQGAN, frames: Array, path: Path, *, columns: int = 8) -> None:
    """Write a PNG: rows of real frames, each above its reconstruction."""
    frames = frames[: 4 * columns]
    again = model.decode_frames(model.encode_frames(frames))
    rows = []
    for start in range(0, len(frames) - len(frames) % columns or len(frames), columns):
        for pictures in (frames, again):
            rows.append(np.concatenate(list(pictures[start : start + columns]), axis=1))
    picture = Image.fromarray(np.concatenate(rows, axis=0))
    write_atomically(path, lambda p: picture.save(p, format="PNG"))
