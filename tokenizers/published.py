"""Published image tokenizers: which family a file is of, LlamaGen's under our names, and who cannot be loaded."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..errors import CheckpointError
from .vqgan import VQGANConfig

LOADED = "taming's VQGAN, latent-diffusion's VQ models, LlamaGen's and IBQ"


@dataclass(frozen=True, kw_only=True)
class _Other:
    """A family that cannot be loaded: what it is called, what it is, and how its tensors or its record show."""

    name: str
    reason: str
    shows: Callable[[frozenset[str], str], bool]


def _any(pattern: str) -> Callable[[frozenset[str], str], bool]:
    return lambda names, record: any(re.search(pattern, name) for name in names)


_OTHERS = (
    _Other(
        name="Emu3's or Emu3.5's video tokenizer", reason="it encodes several frames together",
        shows=lambda names, record: "Emu3" in record or any("time_res_stack" in name for name in names),
    ),
    _Other(
        name="a Cosmos tokenizer", reason="it folds wavelets and quantizes number by number (FSQ)",
        shows=lambda names, record: "cosmos" in record.lower()
        or any(re.search(r"patcher|wavelets|quantizer\.(_levels|_basis|implicit_codebook)", name) for name in names),
    ),
    _Other(
        name="Open-MAGVIT2", reason="its codes are the signs of the latents (LFQ), without a codebook",
        shows=lambda names, record: "lfqgan" in record or "MAGVIT2" in record
        or any(re.search(r"mid_block\.\d|quantize\.(mask|basis|zero)$", name) for name in names),
    ),
    _Other(
        name="a KL autoencoder of latent diffusion", reason="it has no codes",
        shows=lambda names, record: "AutoencoderKL" in record,
    ),
    _Other(
        name="aMUSEd's tokenizer (or another VQModel of diffusers)", reason="its blocks are not those of taming",
        shows=_any(r"^(vqvae\.)?encoder\.down_blocks\.\d+\.(resnets|downsamplers)\."),
    ),
    _Other(
        name="MaskGIT's tokenizer", reason="its convolutions have no biases and its blocks no attention",
        shows=lambda names, record: "maskgit" in record.lower()
        or ("encoder.conv_in.weight" in names and "encoder.conv_in.bias" not in names)
        or any(re.search(r"ResBlock_\d|encoder/Conv_\d", name) for name in names),
    ),
)  # fmt: skip


def refuse_other(source: object, names: Mapping[str, Any], record: str = "") -> None:
    """Name the family of a file where it is one that cannot be loaded.

    Args:
        names: of its tensors.
        record: text of the configuration beside it, or its file name.

    Raises:
        CheckpointError: it is one of them.
    """
    for other in _OTHERS:
        if other.shows(frozenset(names), record):
            raise CheckpointError(
                f"{source}: this is {other.name}, which gr2 cannot load: {other.reason}; take {LOADED}."
            )


def is_llamagen(state: Mapping[str, Tensor]) -> bool:
    """Return whether tensors have the names of LlamaGen's VQ-8 or VQ-16."""
    return "encoder.conv_blocks.0.res.0.conv1.weight" in state


def llamagen_config(state: Mapping[str, Tensor], resolution: int = 256) -> VQGANConfig:
    """Return the shape of LlamaGen's tokenizer, which is published without a configuration.

    Attention is at the coarsest level, and codes are chosen by the angle between vectors.

    Raises:
        CheckpointError: tensors of the network are missing.
    """
    try:
        channels = len(state["encoder.conv_in.weight"])
        levels = 1 + max(int(found[1]) for name in state if (found := re.match(r"encoder\.conv_blocks\.(\d+)\.", name)))
        widths = [len(state[f"encoder.conv_blocks.{i}.res.0.conv1.weight"]) for i in range(levels)]
        blocks = sum(f"encoder.conv_blocks.0.res.{i}.conv1.weight" in state for i in range(64))
        codebook = state["quantize.embedding.weight"]
        return VQGANConfig(
            resolution=resolution,
            patch_size=1,
            channels=channels,
            channel_mult=tuple(width // channels for width in widths),
            num_res_blocks=blocks,
            attn_resolutions=(resolution // 2 ** (levels - 1),),
            z_channels=len(state["encoder.conv_out.weight"]),
            embed_dim=codebook.shape[1],
            codebook_size=len(codebook),
            quantizer="cosine",
        )
    except KeyError as error:
        raise CheckpointError(
            f"LlamaGen's tokenizer: expected the tensor {error}, got none; copy the file again."
        ) from error


def from_llamagen(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return LlamaGen's tensors under taming's names; its decoder counts levels from the coarsest."""
    levels = 1 + max(int(found[1]) for name in state if (found := re.match(r"decoder\.conv_blocks\.(\d+)\.", name)))
    middle = {"0": "block_1", "1": "attn_1", "2": "block_2"}

    def renamed(name: str) -> str:
        part, _, rest = name.partition(".")
        if found := re.match(r"conv_blocks\.(\d+)\.(.*)", rest):
            level = int(found[1]) if part == "encoder" else levels - 1 - int(found[1])
            inside = re.sub(r"^res\.", "block.", found[2])
            return f"{part}.{'down' if part == 'encoder' else 'up'}.{level}.{inside}"
        if found := re.match(r"mid\.(\d)\.(.*)", rest):
            return f"{part}.mid.{middle[found[1]]}.{found[2]}"
        return name

    return {renamed(name): value for name, value in state.items()}


def averaged(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors with the moving averages in place of the last weights, where a file holds averages (IBQ)."""
    average = {name.removeprefix("model_ema."): value for name, value in state.items() if name.startswith("model_ema.")}
    return {name: average.get(name.replace(".", ""), value) for name, value in state.items()}
