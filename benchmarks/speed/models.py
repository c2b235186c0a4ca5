"""The networks that are timed: our world model and, equally large, HuggingFace's GPT-2 and PyTorch's own layers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ...errors import EnvironmentMissing
from ...gr_model.model import presets
from ...gr_model.model.config import CameraSpec, Decoding, ModelConfig
from ...gr_model.model.sequence import SequenceLayout, make_layout
from ...gr_model.model.texts import TextTable
from ...gr_model.model.world_model import WorldModel

Size = Literal["tiny", "S", "B", "L"]


CPU_SIDE = 8
"""Most rows and columns of codes on a CPU: a frame of 16 x 16 takes it the better part of a minute."""


def comparable(size: Size, decoding: Decoding, *, num_context: int, most_side: int | None = None) -> ModelConfig:
    """Return a preset with one code a position, one layer as its frame head and nothing random.

    The trunk is the preset's, and so is the number of positions where `most_side` does not cut the images' grids:
    a GPT-2 of the same trunk does the same work.
    """
    config = presets.of_size(size)
    most = max(max(grid) for grid in config.packed_grids) if most_side is None else most_side
    grids = [(min(rows, most), min(columns, most)) for rows, columns in config.packed_grids]
    return replace(
        config,
        decoding=decoding,
        cameras=tuple(
            CameraSpec(name=camera.name, grid=grid) for camera, grid in zip(config.cameras, grids, strict=True)
        ),
        max_context=num_context,
        token_packing=1,
        head_hidden=0,
        head_dim=config.width,
        scored_share=1.0,
        dropout=0.0,
        token_dropout=0.0,
        state_dropout=0.0,
        text_dropout=0.0,
        gradient_checkpointing=False,
    )


def layout_of(config: ModelConfig) -> SequenceLayout:
    """Return the sequence of a forward pass that predicts a frame and does not act."""
    return make_layout(
        config,
        text_length=config.text_length,
        num_context=config.max_context,
        with_frames=True,
        with_action=False,
    )


def num_predicted(config: ModelConfig) -> int:
    """Count the positions of a frame that codes are predicted at, all cameras."""
    return sum(rows * columns for rows, columns in config.packed_grids)


def make_world_model(config: ModelConfig, device: torch.device, num_texts: int) -> WorldModel:
    """Make our model with random weights, codebook and texts of full length."""
    torch.manual_seed(0)
    model = WorldModel(config, codebook=torch.randn(config.codebook_size, config.codebook_dim)).to(device)
    features = torch.randn(num_texts, config.text_length, config.text_dim)
    model.set_texts(TextTable(features, torch.ones(features.shape[:2], dtype=torch.bool)))
    return model


def make_gpt2(config: ModelConfig, num_positions: int) -> Any:
    """Make HuggingFace's GPT-2 of the same width, depth, heads and vocabulary, without dropout, with fused attention.

    It has our exact GELU: the default `gelu_new` is slower.

    Raises:
        EnvironmentMissing: transformers is not installed.
    """
    try:
        from transformers import GPT2Config, GPT2LMHeadModel
    except ImportError as error:
        raise EnvironmentMissing(
            "HuggingFace GPT-2 is left out, the package transformers is missing; run `pip install 'gr2[peers]'` to "
            "measure it."
        ) from error
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=config.codebook_size,
            n_positions=num_positions,
            n_embd=config.width,
            n_layer=config.depth,
            n_head=config.heads,
            activation_function="gelu",
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            bos_token_id=0,
            eos_token_id=None,
            pad_token_id=0,
            attn_implementation="sdpa",  # type: ignore[call-arg]
        )
    )


class PlainTransformer(nn.Module):
    """The same network of PyTorch's own encoder layers with a causal mask."""

    def __init__(self, config: ModelConfig, num_positions: int) -> None:
        super().__init__()
        self.tokens = nn.Embedding(config.codebook_size, config.width)
        self.positions = nn.Embedding(num_positions, config.width)
        layer = nn.TransformerEncoderLayer(
            config.width,
            config.heads,
            4 * config.width,
            dropout=0.0,
            activation="gelu",
            batch_first=True,
            norm_first=True,
        )
        self.trunk = nn.TransformerEncoder(
            layer, config.depth, norm=nn.LayerNorm(config.width), enable_nested_tensor=False
        )
        self.codes = nn.Linear(config.width, config.codebook_size)

    def forward(self, tokens: Int[Tensor, "b n"], num_scored: int) -> Float[Tensor, "b m v"]:
        """Score the token after each of the last `num_scored` positions."""
        n = tokens.shape[1]
        x = self.tokens(tokens) + self.positions.weight[:n]
        mask = nn.Transformer.generate_square_subsequent_mask(n, device=tokens.device)
        return self.codes(self.trunk(x, mask=mask, is_causal=True)[:, -num_scored:])


def training_flops_per_position(config: ModelConfig, num_positions: int, num_scored: int) -> float:
    """Count the operations of forward and backward for a position: 6 a weight, and the attention's.

    Source: Chowdhery et al. 2022, "PaLM", arXiv 2204.02311, appendix B. The head counts for the share of
    positions that are scored, and attention as if every position saw every other.
    """
    trunk = 12 * config.depth * config.width**2
    head = config.width * config.codebook_size * num_scored / num_positions
    return 6.0 * (trunk + head) + 12.0 * config.depth * config.width * num_positions
