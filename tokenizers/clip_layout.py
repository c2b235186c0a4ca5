"""A CLIP text tower in the layout of transformers (`config.json` beside the weights), as open_clip's module."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..errors import CheckpointError, ConfigError
from .text import BPE_SIZE
from .weight_files import read_state_dict

if TYPE_CHECKING:
    from open_clip.transformer import TextTransformer

_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
_PLACES = {
    "embeddings.token_embedding.weight": "token_embedding.weight",
    "embeddings.position_embedding.weight": "positional_embedding",
    "final_layer_norm.weight": "ln_final.weight",
    "final_layer_norm.bias": "ln_final.bias",
}
_IN_LAYERS = {
    "layer_norm1": "ln_1", "layer_norm2": "ln_2", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}  # fmt: skip


def is_transformers_folder(folder: Path) -> bool:
    """Return whether a folder has a `config.json` of transformers and no configuration of open_clip."""
    return (folder / "config.json").is_file() and not (folder / "open_clip_config.json").is_file()


def read_clip_tower(folder: Path) -> TextTransformer:
    """Read the text tower of a CLIP that transformers saved; its activation is what `hidden_act` states.

    Raises:
        CheckpointError: weights are missing or do not fit the configuration.
        ConfigError: the folder holds another model than CLIP.
    """
    from open_clip.transformer import QuickGELU, TextTransformer

    stated = _configuration(folder)
    state = _text_tensors(_weights(folder))
    activations: dict[str, Any] = {"quick_gelu": QuickGELU, "gelu": nn.GELU}
    activation = str(stated.get("hidden_act", "quick_gelu"))
    if activation not in activations or stated.get("layer_norm_eps", 1e-5) != 1e-5:
        raise ConfigError(
            f"{folder / 'config.json'}: expected hidden_act quick_gelu or gelu and layer_norm_eps 1e-05, got "
            f"{activation} and {stated.get('layer_norm_eps')}; choose a published CLIP."
        )
    try:
        size, width = state["token_embedding.weight"].shape
        if size != BPE_SIZE:
            raise ConfigError(
                f"{folder}: expected CLIP's {BPE_SIZE} byte pairs, got a vocabulary of {size}; choose a CLIP such as "
                "openai/clip-vit-base-patch32."
            )
        if "text_projection" not in state:  # a text model without projection; features before it are what is used
            state["text_projection"] = torch.eye(width)
        tower = TextTransformer(
            context_length=len(state["positional_embedding"]),
            vocab_size=size,
            width=width,
            heads=int(stated.get("num_attention_heads", 8)),
            layers=int(stated.get("num_hidden_layers", 12)),
            mlp_ratio=int(stated.get("intermediate_size", 4 * width)) / width,
            output_dim=state["text_projection"].shape[1],
            act_layer=activations[activation],
        )
        tower.load_state_dict({name: value.float() for name, value in state.items()})
    except (KeyError, RuntimeError) as error:
        raise CheckpointError(
            f"{folder}: expected the tensors of the CLIP text model that config.json states, got others ({error}); "
            "copy the whole folder again."
        ) from error
    return tower


def _configuration(folder: Path) -> Mapping[str, Any]:
    """Return the configuration of the text model.

    Raises:
        CheckpointError: it is no JSON object.
        ConfigError: it is of another model.
    """
    file = folder / "config.json"
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
        kind = str(record.get("model_type", ""))
    except (ValueError, AttributeError) as error:
        raise CheckpointError(f"{file}: expected the configuration of a CLIP, got damaged text ({error}).") from error
    if kind.startswith("siglip"):
        raise ConfigError(
            f"{folder}: this is SigLIP, which gr2 cannot load: it reads texts by SentencePiece and attends to later "
            "words, too; take a CLIP such as openai/clip-vit-base-patch32."
        )
    if kind not in ("clip", "clip_text_model"):
        raise ConfigError(
            f"{file}: expected model_type clip or clip_text_model, got {kind or 'none'}; choose a CLIP such as "
            "openai/clip-vit-base-patch32."
        )
    text: Mapping[str, Any] = record.get("text_config") or record if kind == "clip" else record
    return text


def _weights(folder: Path) -> dict[str, Tensor]:
    for name in _WEIGHTS:
        if (folder / name).is_file():
            return read_state_dict(folder / name)
    raise CheckpointError(
        f"{folder}: expected {' or '.join(_WEIGHTS)} beside config.json, got neither; copy the whole folder."
    )


def _text_tensors(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of the text model under open_clip's names: query, key and value in one."""
    found: dict[str, Tensor] = {}
    for name, value in state.items():
        if name == "text_projection.weight":
            found["text_projection"] = value.t()
        inside = name.removeprefix("text_model.")
        if inside == name:
            continue
        if inside in _PLACES:
            found[_PLACES[inside]] = value
        elif layer := re.match(r"encoder\.layers\.(\d+)\.(.+)\.(weight|bias)$", inside):
            number, part, kind = layer.groups()
            block = f"transformer.resblocks.{number}"
            if part == "self_attn.q_proj":
                rows = [state[name.replace("q_proj", f"{letter}_proj")] for letter in "qkv"]
                found[f"{block}.attn.in_proj_{kind}"] = torch.cat(rows)
            elif part in _IN_LAYERS:
                found[f"{block}.{_IN_LAYERS[part]}.{kind}"] = value
    return found
