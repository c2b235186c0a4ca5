"""Images to codes and back: our VQGAN beside taming's own modules, with the same weights and without folding."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable
from dataclasses import replace

import torch
from jaxtyping import Float, Int
from taming.modules.diffusionmodules.model import Decoder, Encoder
from taming.modules.vqvae.quantize import VectorQuantizer
from torch import Tensor, nn
from torch.nn import functional as F

from ...tokenizers.vqgan import VQGAN, VQGANConfig, f16_1024, f16_16384, small
from .measure import Setting, Table, Work, measure
from .models import Size

OURS, TAMING, UNFOLDED = "ours", "taming, the same layers", "taming, whole images"


class TamingVQGAN(nn.Module):
    """Encoder, codebook and decoder put together from `taming.modules` alone; the state dict fits ours."""

    def __init__(self, config: VQGANConfig) -> None:
        super().__init__()
        self.config = config
        parts = VQGAN(config)
        self.encoder, self.decoder = parts.encoder, parts.decoder
        self.quant_conv, self.post_quant_conv = parts.quant_conv, parts.post_quant_conv
        self.quantize = VectorQuantizer(config.codebook_size, config.embed_dim, 0.25)
        assert isinstance(self.encoder, Encoder) and isinstance(self.decoder, Decoder)

    def encode(self, images: Float[Tensor, "b 3 h w"]) -> Int[Tensor, "b n"]:
        """Return the codes of images."""
        latents = self.quant_conv(self.encoder(F.pixel_unshuffle(images, self.config.patch_size)))
        return self.quantize(latents)[2][2].view(len(images), -1)

    def decode(self, codes: Int[Tensor, "b n"]) -> Float[Tensor, "b 3 h w"]:
        """Return the images of codes, clipped to [-1, 1]; taming looks codes up by a product with one-hot rows."""
        one_hot = F.one_hot(codes.flatten(), self.config.codebook_size).to(self.quantize.embedding.weight.dtype)
        rows, columns = self.config.grid
        vectors = (one_hot @ self.quantize.embedding.weight).view(len(codes), rows, columns, -1).permute(0, 3, 1, 2)
        images = self.decoder(self.post_quant_conv(vectors.contiguous()))
        return F.pixel_shuffle(images, self.config.patch_size).clamp(-1.0, 1.0)


def unfolded(config: VQGANConfig) -> VQGANConfig:
    """Return taming's usual network with as many codes: a level for each halving instead of folded pixels."""
    halvings = config.downsampling.bit_length() - 1
    return replace(config, patch_size=1, channel_mult=(1,) * (halvings + 1))


def time_tokenizer(size: Size, setting: Setting, batch_size: int | None = None) -> tuple[Table, Table, list[str]]:
    """Time encoding and decoding of images: two tables and remarks about what was compared."""
    config = {"tiny": small(), "S": f16_1024()}.get(size, f16_16384())
    torch.manual_seed(0)
    ours = VQGAN(config)
    taming = TamingVQGAN(config)
    taming.load_state_dict(ours.state_dict())
    with contextlib.redirect_stdout(io.StringIO()):  # taming prints the shape of z
        models: dict[str, VQGAN | TamingVQGAN] = {OURS: ours, TAMING: taming}
        if config.patch_size > 1:
            models[UNFOLDED] = TamingVQGAN(unfolded(config))
    for model in models.values():
        model.to(setting.device).eval()
    few = 8 if size == "tiny" else 1
    batch_size = batch_size or (64 if setting.device.type == "cuda" else few)
    side = config.resolution
    images = torch.rand(batch_size, 3, side, side, device=setting.device) * 2 - 1
    codes = torch.randint(config.codebook_size, (batch_size, config.grid[0] * config.grid[1]), device=setting.device)
    notes = [
        f"tokenizer: {side} px, {config.grid[0]} x {config.grid[1]} codes of {config.codebook_size}, batch {batch_size}"
    ]
    encoding = {name: Work(step=_no_gradient(model.encode, images, setting)) for name, model in models.items()}
    decoding = {name: Work(step=_no_gradient(model.decode, codes, setting)) for name, model in models.items()}
    return (
        measure(encoding, "images/s", TAMING, setting),
        measure(decoding, "images/s", TAMING, setting),
        notes,
    )


def _no_gradient(work: Callable[[Tensor], Tensor], values: Tensor, setting: Setting) -> Callable[[], int]:
    def step() -> int:
        with torch.inference_mode(), setting.autocast():
            work(values)
        return len(values)

    return step
