"""VQGAN: images to discrete codes and back, over taming-transformers' encoder and decoder."""

from __future__ import annotations

import contextlib
import hashlib
import io
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from taming.modules.diffusionmodules.model import Decoder, Encoder
from torch import Tensor, nn

from ..contracts import Array
from ..errors import ConfigError, ShapeError
from ..fingerprints import fingerprint_of, fixed_bytes
from .quantize import CosineQuantizer, DotQuantizer, GumbelQuantizer, VectorQuantizer


@dataclass(frozen=True, kw_only=True, slots=True)
class VQGANConfig:
    """Shape of a VQGAN.

    resolution: side of the images [pixels].
    patch_size: side of the square of pixels folded into channels before the first convolution; 1 is plain
        VQGAN. Folding loses nothing, and the costly full-resolution layers disappear.
    channels, channel_mult, num_res_blocks, attn_resolutions, z_channels: as in taming's `ddconfig`;
        `attn_resolutions` counts folded pixels.
    decoder_channels, decoder_res_blocks: of the decoder; `None` takes those of the encoder. As in taming,
        a level of the decoder has one block more.
    embed_dim, codebook_size: length and number of the codebook vectors.
    quantizer: how a code is chosen: the nearest vector, the one at the least angle (LlamaGen), or the one with the
        greatest product (IBQ).
    middle_attention: whether encoder and decoder attend at their coarsest level between blocks; without in
        latent-diffusion's `attn_type: none`.
    """

    resolution: int = 64
    patch_size: int = 4
    channels: int = 64
    channel_mult: tuple[int, ...] = (1, 1)
    num_res_blocks: int = 1
    attn_resolutions: tuple[int, ...] = ()
    z_channels: int = 64
    decoder_channels: int | None = None
    decoder_res_blocks: int | None = None
    embed_dim: int = 16
    codebook_size: int = 512
    quantizer: Literal["nearest", "cosine", "dot"] = "nearest"
    middle_attention: bool = True

    def __post_init__(self) -> None:
        if self.channels % 32 or (self.decoder_channels or 32) % 32:
            raise ConfigError(
                "VQGANConfig.channels: expected a multiple of 32 (group normalization), got "
                f"{self.channels} and {self.decoder_channels}; choose 32, 64, 96 ..."
            )
        if self.resolution % self.downsampling:
            raise ConfigError(
                f"VQGANConfig.resolution: expected a multiple of the downsampling {self.downsampling}, got "
                f"{self.resolution}; change the resolution, channel_mult or patch_size."
            )

    @property
    def downsampling(self) -> int:
        """Side of the square of pixels behind one code [pixels]."""
        return self.patch_size * 2 ** (len(self.channel_mult) - 1)

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of codes."""
        side = self.resolution // self.downsampling
        return side, side


def small() -> VQGANConfig:
    """Return the CPU preset: 64 pixels, 16 x 16 codes of 512, fine enough to show where a small block lies."""
    return VQGANConfig(channel_mult=(1,), embed_dim=8, codebook_size=512)


def f16_1024() -> VQGANConfig:
    """Return the shape of the published `vqgan_imagenet_f16_1024`.

    Source: `model.params` of its model.yaml, taming-transformers.
    """
    return VQGANConfig(
        resolution=256,
        patch_size=1,
        channels=128,
        channel_mult=(1, 1, 2, 2, 4),
        num_res_blocks=2,
        attn_resolutions=(16,),
        z_channels=256,
        embed_dim=256,
        codebook_size=1024,
    )


def f16_16384() -> VQGANConfig:
    """Return the shape of the published `vqgan_imagenet_f16_16384`."""
    return replace(f16_1024(), codebook_size=16384)


def gumbel_f8() -> VQGANConfig:
    """Return the shape of the published `vqgan_gumbel_f8`, the network of `GumbelVQGAN`.

    Source: `model.params` of its model.yaml, taming-transformers.
    """
    return replace(f16_1024(), channel_mult=(1, 1, 2, 4), attn_resolutions=(32,), codebook_size=8192)


def at_resolution(config: VQGANConfig, resolution: int) -> VQGANConfig:
    """Return the same network for images of another side; attention stays at the same layers."""
    attention = tuple(side * resolution // config.resolution for side in config.attn_resolutions)
    return replace(config, resolution=resolution, attn_resolutions=attention)


class VQGAN(nn.Module):
    """Encoder, codebook and decoder; images are `[b 3 h w]` in [-1, 1], codes are row-major `[b n]`.

    Source: Esser et al. 2021, "Taming Transformers for High-Resolution Image Synthesis"; the state dict
    has the keys of its published checkpoints.
    """

    trained_psnr: float | None = None
    """Reconstruction of held-out images of its own training data [dB], None where nobody stated it."""

    def __init__(self, config: VQGANConfig) -> None:
        super().__init__()
        self.config = config
        folded = 3 * config.patch_size**2
        side = config.resolution // config.patch_size
        attention, blocks = list(config.attn_resolutions), config.num_res_blocks
        with contextlib.redirect_stdout(io.StringIO()):  # taming prints the shape of z
            self.encoder = Encoder(
                ch=config.channels,
                out_ch=folded,
                ch_mult=config.channel_mult,
                num_res_blocks=blocks,
                attn_resolutions=attention,
                in_channels=folded,
                resolution=side,
                z_channels=config.z_channels,
                double_z=False,
            )
            self.decoder = Decoder(
                ch=config.decoder_channels or config.channels,
                out_ch=folded,
                ch_mult=config.channel_mult,
                num_res_blocks=blocks if config.decoder_res_blocks is None else config.decoder_res_blocks,
                attn_resolutions=attention,
                in_channels=folded,
                resolution=side,
                z_channels=config.z_channels,
            )
        self.quant_conv = nn.Conv2d(config.z_channels, config.embed_dim, 1)
        self.post_quant_conv = nn.Conv2d(config.embed_dim, config.z_channels, 1)
        kinds = {"nearest": VectorQuantizer, "cosine": CosineQuantizer, "dot": DotQuantizer}
        self.quantize = kinds[config.quantizer](codebook_size=config.codebook_size, embed_dim=config.embed_dim)
        if not config.middle_attention:
            self.encoder.mid.attn_1, self.decoder.mid.attn_1 = nn.Identity(), nn.Identity()

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of codes of one image."""
        return self.config.grid

    @property
    def codebook(self) -> Float[Tensor, "k d"]:
        """The codebook vectors."""
        return self.quantize.codebook

    def latents(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b d gh gw"]:
        """Return the vectors before quantization.

        Raises:
            ShapeError: if the images have another side than the configuration.
        """
        side = self.config.resolution
        if images.ndim != 4 or images.shape[1:] != (3, side, side):
            raise ShapeError(
                f"VQGAN images: expected shape (b, 3, {side}, {side}), got {tuple(images.shape)}; resize "
                "the images or load the tokenizer with another resolution."
            )
        return self._latents(images)

    def _latents(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b d gh gw"]:
        return self.quant_conv(self.encoder(F.pixel_unshuffle(images, self.config.patch_size)))

    def images(self, vectors: Float[Tensor, "b d gh gw"]) -> Float[Tensor, "b 3 h w"]:
        """Return the images of (quantized) vectors, not clipped."""
        return F.pixel_shuffle(self.decoder(self.post_quant_conv(vectors)), self.config.patch_size)

    def encode(self, images: Float[Tensor, "b 3 h w"]) -> Int[Tensor, "b n"]:
        """Return the codes of images."""
        return self.quantize.nearest(self.latents(images).permute(0, 2, 3, 1)).flatten(1)

    def decode(self, codes: Int[Tensor, "b n"]) -> Float[Tensor, "b 3 h w"]:
        """Return the images of codes, clipped to [-1, 1]."""
        return self.images(self.quantize.lookup(codes, self.grid)).clamp(-1.0, 1.0)

    def forward(
        self, images: Float[Tensor, "b 3 h w"]
    ) -> tuple[Float[Tensor, "b 3 h w"], Float[Tensor, ""], Int[Tensor, "b n"]]:
        """Return the reconstruction (not clipped), the codebook loss and the codes."""
        vectors, loss, codes = self.quantize(self.latents(images))
        return self.images(vectors), loss, codes

    @torch.inference_mode()
    def fingerprint(self) -> str:
        """Return a text that changes with any weight and with how they are used; compare by `same_encoder`.

        Latents and scores of a small fixed image and the image of fixed codes are part of it.
        """
        digest = hashlib.sha256()
        for name, tensor in sorted(self.state_dict().items()):
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
        rows, device = 4, self.codebook.device
        side = rows * self.config.downsampling
        pixels = fixed_bytes(side * side * 3, "gr2 image").reshape(1, side, side, 3)
        latents = self._latents(normalize_frames(torch.as_tensor(pixels.copy(), device=device)))
        codes = torch.arange(rows * rows, device=device)[None] * 7919 % len(self.codebook)
        computed = [
            latents, self.quantize.scores(latents.permute(0, 2, 3, 1)),
            self.images(self.quantize.lookup(codes, (rows, rows))),
        ]  # fmt: skip
        return fingerprint_of(digest.hexdigest(), *(values.float().cpu().numpy() for values in computed))

    @torch.inference_mode()
    def encode_frames(self, frames: Array, *, batch_size: int = 64) -> Array:
        """Return the codes, int64 `[f n]`, of uint8 frames `[f h w 3]`.

        Raises:
            ShapeError: if the frames are not uint8 `[f h w 3]` of the configured side.
        """
        frames = np.asarray(frames)
        if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3:
            raise ShapeError(
                f"VQGAN frames: expected uint8 of shape (f, h, w, 3), got {frames.dtype} of shape "
                f"{frames.shape}; pass RGB frames with values 0 to 255."
            )
        device = self.codebook.device
        codes = [
            self.encode(normalize_frames(torch.as_tensor(frames[i : i + batch_size], device=device))).cpu()
            for i in range(0, len(frames), batch_size)
        ]
        return torch.cat(codes).numpy() if codes else np.zeros((0, self.grid[0] * self.grid[1]), np.int64)

    @torch.inference_mode()
    def decode_frames(self, codes: Array, *, batch_size: int = 64) -> Array:
        """Return the frames, uint8 `[f h w 3]`, of codes `[f n]`."""
        device, side = self.codebook.device, self.config.resolution
        whole = torch.as_tensor(np.asarray(codes), dtype=torch.int64)
        frames = [
            _to_uint8(self.decode(whole[i : i + batch_size].to(device))) for i in range(0, len(whole), batch_size)
        ]
        return np.concatenate(frames) if frames else np.zeros((0, side, side, 3), np.uint8)


class GumbelVQGAN(VQGAN):
    """VQGAN whose codes are the likeliest by logits, as in the published `vqgan_gumbel_f8`."""

    def __init__(self, config: VQGANConfig) -> None:
        super().__init__(config)
        self.quantize = GumbelQuantizer(codebook_size=config.codebook_size, embed_dim=config.embed_dim)


def normalize_frames(frames: Int[Tensor, "b h w 3"]) -> Float[Tensor, "b 3 h w"]:
    """Map uint8 frames to contiguous images in [-1, 1]."""
    return frames.permute(0, 3, 1, 2).to(torch.float32).div(127.5).sub(1.0).contiguous()


def _to_uint8(images: Float[Tensor, "b 3 h w"]) -> Array:
    scaled = images.add(1.0).mul(127.5).round().clamp(0, 255).to(torch.uint8)
    return scaled.permute(0, 2, 3, 1).contiguous().cpu().numpy()
