"""LPIPS frame by frame, from weight files on this machine."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from ...contracts import Array
from ...errors import CheckpointError
from ...tokenizers.losses import PerceptualLoss
from ...tokenizers.vqgan import normalize_frames


class FrameDistance:
    """LPIPS with the VGG16 network: 0 for equal frames, greater for frames that look more different.

    Args:
        weights: a folder with torchvision's `vgg16*` state dict and LPIPS's `vgg*` or `lpips*` heads.
        device: where the network runs.

    Raises:
        CheckpointError: a file is missing, damaged or holds other weights.
    """

    def __init__(self, weights: Path, *, device: torch.device) -> None:
        vgg, heads = _weight_files(weights)
        self.network = PerceptualLoss(vgg_file=vgg, heads_file=heads)
        missing = [i for i, head in enumerate(self.network.heads) if head is None]
        if missing:
            raise CheckpointError(
                f"{heads}: expected the five LPIPS heads `lin0.model.1.weight` to `lin4.model.1.weight`, lacking "
                f"{missing}; give the file `vgg.pth` of LPIPS 0.1. Without heads the distance is not LPIPS."
            )
        self.network.to(device)
        self.device = device

    @torch.inference_mode()
    def __call__(self, first: Array, second: Array) -> npt.NDArray[np.float64]:
        """Measure the distance `[f]` of frames uint8 `[f h w 3]`, each pair by itself."""
        pairs = zip(self._images(first), self._images(second), strict=True)
        return np.array([float(self.network(a[None], b[None])) for a, b in pairs])

    def _images(self, frames: Array) -> torch.Tensor:
        return normalize_frames(torch.as_tensor(np.array(frames))).to(self.device)


def _weight_files(folder: Path) -> tuple[Path, Path]:
    """Find the network and the heads in a folder."""
    files = sorted(folder.glob("*.*")) if folder.is_dir() else []
    networks = [file for file in files if file.name.startswith("vgg16")]
    heads = [file for file in files if file.name.startswith(("vgg", "lpips")) and file not in networks]
    if len(networks) != 1 or len(heads) != 1:
        raise CheckpointError(
            f"--lpips {folder}: expected a folder with one `vgg16*` file (torchvision's VGG16) and one `vgg*` or "
            f"`lpips*` file (the heads of LPIPS), got {[f.name for f in files]}; put both there."
        )
    return networks[0], heads[0]
