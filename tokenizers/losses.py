"""What a VQGAN is trained for: pixels, edges, small things, a critic, a perceptual distance."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float
from taming.modules.discriminator.model import NLayerDiscriminator, weights_init
from torch import Tensor, nn

from ..errors import CheckpointError
from .training_options import LossConfig
from .weight_files import read_state_dict


def detail_weights(images: Float[Tensor, "b c h w"], strength: float, window: int = 9) -> Float[Tensor, "b 1 h w"]:
    """Return pixel weights `1 + strength * contrast / mean contrast`, divided by their mean.

    Contrast is the distance of a pixel from the mean of the `window` x `window` pixels around it: large
    for objects much smaller than the window, near zero on even surfaces, whatever the scene and the camera.
    """
    around = F.avg_pool2d(images, window, stride=1, padding=window // 2, count_include_pad=False)
    contrast = (images - around).abs().mean(1, keepdim=True)
    # The cap keeps one bright spot from taking the whole weight of a plain image.
    relative = (contrast / (contrast.mean((1, 2, 3), keepdim=True) + 1e-3)).clamp_max(5.0)
    weights = 1.0 + strength * relative
    return weights / weights.mean((1, 2, 3), keepdim=True)


def gradient_loss(
    reconstruction: Float[Tensor, "b c h w"], images: Float[Tensor, "b c h w"], scales: int = 3
) -> Float[Tensor, ""]:
    """Return the mean L1 distance of horizontal and vertical differences, averaged over halved scales."""
    error = reconstruction - images
    total = error.new_zeros(())
    for scale in range(scales):
        total = total + error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
        if scale + 1 < scales:
            error = F.avg_pool2d(error, 2)
    return total / (2 * scales)


def reconstruction_loss(
    reconstruction: Float[Tensor, "b c h w"], images: Float[Tensor, "b c h w"], config: LossConfig
) -> Float[Tensor, ""]:
    """Return the weighted sum of the pixel and gradient terms."""
    error = reconstruction - images
    pixels = config.l1 * error.abs() + config.l2 * error.square()
    loss = (detail_weights(images, config.detail) * pixels).mean()
    if config.gradient > 0:
        loss = loss + config.gradient * gradient_loss(reconstruction, images)
    return loss


def make_critic(config: LossConfig) -> nn.Module:
    """Return taming's patch discriminator for images `[b 3 h w]`, freshly initialized."""
    return NLayerDiscriminator(input_nc=3, ndf=config.critic_channels, n_layers=config.critic_layers).apply(
        weights_init
    )


def hinge_loss(real: Tensor, fake: Tensor) -> Float[Tensor, ""]:
    """Return the critic's hinge loss.

    Source: Lim and Ye 2017, "Geometric GAN", equation 11.
    """
    return 0.5 * (F.relu(1.0 - real).mean() + F.relu(1.0 + fake).mean())


def adaptive_weight(reconstruction_loss: Tensor, adversarial_loss: Tensor, last_layer: Tensor) -> Float[Tensor, ""]:
    """Return the factor that gives both losses gradients of equal length at the decoder's last layer.

    Source: Esser et al. 2021, equation 7.
    """
    wanted = torch.autograd.grad(reconstruction_loss, last_layer, retain_graph=True)[0].norm()
    given = torch.autograd.grad(adversarial_loss, last_layer, retain_graph=True)[0].norm()
    return (wanted / (given + 1e-4)).clamp(0.0, 1e4).detach()


class PerceptualLoss(nn.Module):
    """Distance of unit-length VGG16 features of two images in [-1, 1], from weight files on this machine.

    Source: Zhang et al. 2018, "The Unreasonable Effectiveness of Deep Features as a Perceptual Metric".
    """

    TAPS = (3, 8, 15, 22, 29)
    mean: Tensor
    deviation: Tensor

    def __init__(self, *, vgg_file: Path | None, heads_file: Path | None = None) -> None:
        """Read `vgg_file` (torchvision's VGG16 state dict) and `heads_file` (LPIPS `lin{i}.model.1.weight`).

        Without `heads_file` all features count the same.

        Raises:
            CheckpointError: if a file is missing or holds other weights.
        """
        super().__init__()
        if vgg_file is None:
            raise CheckpointError(
                "Perceptual loss: expected LossConfig.vgg_file, the VGG16 weights on this machine, got "
                "none; give the file or set perceptual to 0."
            )
        with torch.device("meta"):  # the file fills the network, so sampling random weights is wasted
            self.features = _vgg16_features()
        state = {k.removeprefix("features."): v for k, v in read_state_dict(vgg_file).items()}
        known = {k: v for k, v in state.items() if k in self.features.state_dict()}
        if len(known) != len(self.features.state_dict()):
            raise CheckpointError(
                f"Perceptual loss: expected VGG16 features in {vgg_file}, got {len(known)} of "
                f"{len(self.features.state_dict())} tensors; give torchvision's vgg16 state dict."
            )
        self.features.load_state_dict(known, assign=True)
        heads = read_state_dict(heads_file) if heads_file is not None else {}
        self.heads = [heads.get(f"lin{i}.model.1.weight") for i in range(len(self.TAPS))]
        self.register_buffer("mean", torch.tensor([-0.030, -0.088, -0.188]).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("deviation", torch.tensor([0.458, 0.448, 0.450]).view(1, 3, 1, 1), persistent=False)
        self.requires_grad_(False).eval()

    def forward(self, a: Float[Tensor, "b 3 h w"], b: Float[Tensor, "b 3 h w"]) -> Float[Tensor, ""]:
        """Return the distance, averaged over images and positions, summed over five layers."""
        x = (torch.cat([a, b]) - self.mean) / self.deviation
        total = x.new_zeros(())
        for index, layer in enumerate(self.features):
            x = layer(x)
            if index not in self.TAPS:
                continue
            first, second = F.normalize(x, dim=1, eps=1e-8).chunk(2)
            squared = (first - second).square()
            head = self.heads[self.TAPS.index(index)]
            total = total + (squared.sum(1) if head is None else (squared * head.to(squared)).sum(1)).mean()
        return total


def _vgg16_features() -> nn.Sequential:
    """Return the convolutions of VGG16 up to the last tap, numbered as in torchvision."""
    layers: list[nn.Module] = []
    inputs = 3
    for width, repeats in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
        layers += [nn.MaxPool2d(2)] if layers else []
        for _ in range(repeats):
            layers += [nn.Conv2d(inputs, width, 3, padding=1), nn.ReLU()]
            inputs = width
    return nn.Sequential(*layers)
