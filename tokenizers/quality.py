"""How well a VQGAN gives images back: metrics and a sheet of images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from ..contracts import Array
from .losses import detail_weights
from .quantize import codebook_perplexity
from .vqgan import VQGAN, normalize_frames
from .weight_files import write_atomically


def psnr(
    a: Float[Tensor, "b c h w"], b: Float[Tensor, "b c h w"], weights: Float[Tensor, "b 1 h w"] | None = None
) -> Float[Tensor, ""]:
    """Return the mean over images of the peak signal-to-noise ratio [dB] of images in [-1, 1]."""
    squared = (a - b).square().mean(1, keepdim=True)
    if weights is not None:
        squared = squared * weights
    return (10.0 * torch.log10(4.0 / squared.mean((1, 2, 3)).clamp_min(1e-10))).mean()


def ssim(a: Float[Tensor, "b c h w"], b: Float[Tensor, "b c h w"]) -> Float[Tensor, ""]:
    """Return the mean structural similarity, at most 1, of images in [-1, 1].

    Images of fewer than 11 pixels a side get a smaller window.

    Source: Wang et al. 2004, "Image quality assessment: from error visibility to structural similarity", section
    III: Gaussian window of 11 x 11 with deviation 1.5, K1 = 0.01, K2 = 0.03.
    """
    channels = a.shape[1]
    radius = min(5, (min(a.shape[-2:]) - 1) // 2)
    line = torch.exp(-0.5 * (torch.arange(-radius, radius + 1, device=a.device, dtype=a.dtype) / 1.5).square())
    line = line / line.sum()
    window = (line[:, None] * line).expand(channels, 1, -1, -1)
    moments = torch.cat([a, b, a * a, b * b, a * b])
    mean_a, mean_b, aa, bb, ab = F.conv2d(moments, window, groups=channels).chunk(5)
    c1, c2 = (0.01 * 2.0) ** 2, (0.03 * 2.0) ** 2
    likeness = (2 * mean_a * mean_b + c1) * (2 * (ab - mean_a * mean_b) + c2)
    spread = (mean_a.square() + mean_b.square() + c1) * (aa - mean_a.square() + bb - mean_b.square() + c2)
    return (likeness / spread).mean()


@torch.inference_mode()
def measure_vqgan(model: VQGAN, frames: Array, *, batch_size: int = 64) -> dict[str, float]:
    """Return metrics of the reconstruction of uint8 frames `[f h w 3]`.

    `psnr`, `detail_psnr` (errors weighted by detail) [dB]; `ssim`; `l1`, of images in [-1, 1]; `codes_used`;
    `perplexity` of the codes.
    """
    totals = dict.fromkeys(("psnr", "detail_psnr", "ssim", "l1"), 0.0)
    codes = []
    for start in range(0, len(frames), batch_size):
        images = normalize_frames(torch.as_tensor(frames[start : start + batch_size])).to(model.codebook.device)
        codes.append(model.encode(images))
        reconstruction = model.decode(codes[-1])
        metrics = {
            "psnr": psnr(reconstruction, images),
            "detail_psnr": psnr(reconstruction, images, detail_weights(images, 1e3)),
            "ssim": ssim(reconstruction, images),
            "l1": (reconstruction - images).abs().mean(),
        }
        for name, value in metrics.items():
            totals[name] += float(value) * len(images)
    chosen = torch.cat(codes)
    return {k: v / len(frames) for k, v in totals.items()} | {
        "codes_used": float(len(chosen.unique())),
        "perplexity": float(codebook_perplexity(chosen, len(model.codebook))),
    }


def save_grid(model: VQGAN, frames: Array, path: Path, *, columns: int = 8) -> None:
    """Write a PNG: rows of real frames, each above its reconstruction."""
    frames = frames[: 4 * columns]
    again = model.decode_frames(model.encode_frames(frames))
    rows = []
    for start in range(0, len(frames) - len(frames) % columns or len(frames), columns):
        for images in (frames, again):
            rows.append(np.concatenate(list(images[start : start + columns]), axis=1))
    image = Image.fromarray(np.concatenate(rows, axis=0))
    write_atomically(path, lambda p: image.save(p, format="PNG"))
