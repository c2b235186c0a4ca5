"""Named model sizes: `tiny` for two CPU cores, `size_s` to `size_xl` with the published parameter counts.

GR-2 has 30, 95, 312 or 719 million trainable weights. These are the four GPT-2 bodies plus nine to ten million for
embeddings and heads. Source: arXiv 2410.06158; which bodies is our reading, the report does not state it.
"""

from __future__ import annotations

from typing import Literal

from ...cvae_head import kinds
from .config import CameraSpec, Decoding, ModelConfig

Size = Literal["tiny", "S", "B", "L", "XL"]

TWO_CAMERAS = ("static", "gripper")


def tiny(
    *,
    cameras: tuple[str, ...] = TWO_CAMERAS,
    grid: tuple[int, int] = (8, 8),
    codebook_size: int = 512,
    codebook_dim: int = 16,
    text_dim: int = 128,
    text_length: int = 20,
    chunk_length: int = 10,
    decoding: Decoding = "masked",
    state_dropout: float = 0.0,
    text_dropout: float = 0.0,
) -> ModelConfig:
    """Return the CPU preset: four layers of 128, 4 x 4 positions an image, about 2.2 million parameters in all."""
    return ModelConfig(
        width=128,
        depth=4,
        heads=4,
        cameras=tuple(CameraSpec(name=name, grid=grid) for name in cameras),
        codebook_size=codebook_size,
        codebook_dim=codebook_dim,
        token_packing=max(1, min(grid) // 4),
        head_dim=128,
        head_hidden=512,
        text_dim=text_dim,
        text_length=text_length,
        chunk_length=chunk_length,
        decoding=decoding,
        state_dropout=state_dropout,
        text_dropout=text_dropout,
        scored_share=0.25,
        head=kinds.small(),
    )


def _full(width: int, depth: int, heads: int, gradient_checkpointing: bool = False) -> ModelConfig:
    """Two cameras of 256 px through an f16 tokenizer of 16384 codes, CLIP ViT-B/32 text, chunks of 5."""
    return ModelConfig(
        width=width,
        depth=depth,
        heads=heads,
        cameras=tuple(CameraSpec(name=name, grid=(16, 16)) for name in TWO_CAMERAS),
        codebook_size=16384,
        codebook_dim=256,
        text_dim=512,
        text_length=77,
        max_context=4,
        chunk_length=5,
        dropout=0.1,
        gradient_checkpointing=gradient_checkpointing,
        head=kinds.reference(),
    )


def size_s() -> ModelConfig:
    """Return GR-2-S: 12 x 384, 30 million."""
    return _full(384, 12, 12)


def size_b() -> ModelConfig:
    """Return GR-2-B, the default of the report: 12 x 768, 95 million."""
    return _full(768, 12, 12)


def size_l() -> ModelConfig:
    """Return GR-2-L: 24 x 1024, 312 million."""
    return _full(1024, 24, 16, gradient_checkpointing=True)


def size_xl() -> ModelConfig:
    """Return GR-2-XL: 36 x 1280, 719 million."""
    return _full(1280, 36, 20, gradient_checkpointing=True)


def of_size(size: Size) -> ModelConfig:
    """Return the preset of a name."""
    presets = {"tiny": tiny, "S": size_s, "B": size_b, "L": size_l, "XL": size_xl}
    return presets[size]()
