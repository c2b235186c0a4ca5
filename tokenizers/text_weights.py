"""Load a frozen text encoder: the shipped one, one of our own, or any CLIP that open_clip can read."""

from __future__ import annotations

from dataclasses import fields
from importlib.resources import as_file, files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import CheckpointError, ConfigError, refuse_lfs_pointer
from ..fingerprints import same_encoder
from .clip_layout import is_transformers_folder, read_clip_tower
from .text import BPE_SIZE, TextConfig, TextEncoder, Vocabulary
from .weight_files import load_weights

if TYPE_CHECKING:
    from open_clip.transformer import TextTransformer

_SHIPPED = ("text", "text_17")
"""The shipped encoders, newest first: of the words of all 34 tasks, and of the first 17, which 0.1.0 had at first."""

_TORCH_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth")


def load_text_encoder(
    source: str | Path,
    *,
    fingerprint: str | None = None,
    architecture: str | None = None,
    quick_gelu: bool | None = None,
) -> TextEncoder:
    """Return a frozen text encoder; weights are always loaded, never left random.

    Args:
        source: one of
            "small" (shipped);
            a folder or `text.safetensors` of `train_text`;
            a folder with `open_clip_config.json` and weights (`local-dir:` before it is allowed);
            a folder with `config.json` and weights of transformers' CLIP;
            a weight file of open_clip, with `architecture` and `quick_gelu`;
            `name:tag` of open_clip, such as "ViT-B-32:openai";
            a hub name, such as "hf-hub:timm/vit_base_patch32_clip_224.openai".
        fingerprint: of the encoder that is expected, if any: "small" then also means a shipped one of before.
        architecture: open_clip's name of the model in a bare weight file.
        quick_gelu: whether a bare weight file was trained with QuickGELU (OpenAI's and MetaCLIP's were). A
            file does not state it, and the wrong one gives wrong features without an error.

    Raises:
        CheckpointError: if the weights are missing, damaged or do not fit.
        ConfigError: if the source is ambiguous or no CLIP text transformer.
    """
    text = str(source)
    if text == "small":
        return _shipped(fingerprint)
    path = Path(text.removeprefix("local-dir:"))
    if path.is_dir():
        if (path / "text.safetensors").is_file():
            return _read_own(path / "text.safetensors")
        if is_transformers_folder(path):
            return TextEncoder(read_clip_tower(path))
        return TextEncoder(_open_clip_tower(f"local-dir:{path}", None, False))
    if path.is_file():
        refuse_lfs_pointer(path)
        if path.with_suffix(".json").is_file() and architecture is None:
            return _read_own(path)
        return TextEncoder(_bare_file_tower(path, architecture, quick_gelu))
    if text.startswith(("local-dir:", "/", ".", "~")) or path.suffix in _TORCH_SUFFIXES:
        raise CheckpointError(f"{text}: expected a folder or weight file of a text encoder, got none; check the path.")
    return TextEncoder(_named_tower(text))


def _shipped(fingerprint: str | None) -> TextEncoder:
    """Return the shipped encoder of a fingerprint; the newest one where there is none of it, or none is wanted."""
    found = []
    for stem in _SHIPPED:
        with as_file(files("gr2.tokenizers") / "weights" / f"{stem}.safetensors") as path:
            if not path.is_file():
                raise CheckpointError(
                    f"Text encoder 'small': expected the shipped weights {path.name}, got none in this installation; "
                    "install a release or train one with `gr2 text train`."
                )
            found.append(_read_own(path))
        if fingerprint is None or same_encoder(fingerprint, found[-1].fingerprint):
            return found[-1]
    return found[0]


def build_text_tower(config: TextConfig, rows: int) -> TextTransformer:
    """Return open_clip's text transformer of a small shape, with random weights."""
    from open_clip.transformer import TextTransformer

    return TextTransformer(
        context_length=config.context_length,
        vocab_size=rows,
        width=config.width,
        heads=config.heads,
        layers=config.layers,
        output_dim=config.embed_dim,
    )


def _read_own(path: Path) -> TextEncoder:
    tensors, record = load_weights(path, "text")
    stated = record.get("config", {})
    if set(stated) != {f.name for f in fields(TextConfig)} or "token_ids" not in tensors:
        raise CheckpointError(
            f"{path}: expected a text encoder of this version, got the configuration {sorted(stated)}; train it again."
        )
    vocabulary = Vocabulary(tensors.pop("token_ids").numpy().astype(np.int64))
    tower = build_text_tower(TextConfig(**stated), len(vocabulary))
    try:
        tower.load_state_dict({name: tensor.float() for name, tensor in tensors.items()})
    except RuntimeError as error:
        raise CheckpointError(
            f"{path}: expected the tensors of its configuration, got others ({error}); copy both files again."
        ) from error
    return TextEncoder(tower, vocabulary=vocabulary)


def _bare_file_tower(path: Path, architecture: str | None, quick_gelu: bool | None) -> TextTransformer:
    if path.suffix not in _TORCH_SUFFIXES:
        raise CheckpointError(
            f"{path}: expected one of {', '.join(_TORCH_SUFFIXES)}, got {path.suffix or 'no suffix'}; convert it first."
        )
    if architecture is None:
        raise ConfigError(
            f"{path}: expected the architecture of a bare weight file, got none; name it (ViT-B-32, "
            "ViT-L-14 ...) or put open_clip_config.json beside it and pass the folder."
        )
    named_quick = architecture.endswith("-quickgelu")
    if quick_gelu is None and not named_quick:
        raise ConfigError(
            f"{path}: expected quick_gelu for a bare weight file, got none; pass quick_gelu=True for "
            "OpenAI's and MetaCLIP's weights, False for LAION's and DataComp's."
        )
    if quick_gelu is False and named_quick:
        raise ConfigError(
            f"{path}: expected one activation, got architecture {architecture} with quick_gelu=False; choose either."
        )
    return _open_clip_tower(architecture, str(path), bool(quick_gelu))


def _named_tower(source: str) -> TextTransformer:
    import open_clip

    if source.startswith("hf-hub:"):
        return _open_clip_tower(source, None, False)
    if "/" in source:
        return _open_clip_tower(f"hf-hub:{source}", None, False)
    name, _, tag = source.partition(":")
    stated = open_clip.get_pretrained_cfg(name, tag) if tag else {}
    if not stated:
        raise ConfigError(
            f"Text encoder {source!r}: expected 'small', a folder, a file, name:tag or a hub name, got "
            f"none of them; open_clip's tags of {name!r} are "
            f"{open_clip.list_pretrained_tags_by_model(name) or 'none'}."
        )
    return _open_clip_tower(name, tag, bool(stated.get("quick_gelu", False)))


def _open_clip_tower(name: str, pretrained: str | None, quick_gelu: bool) -> TextTransformer:
    """Let open_clip build a model and load its weights; return the text tower alone."""
    import open_clip
    from open_clip.transformer import TextTransformer

    try:
        model: Any = open_clip.create_model(
            name,
            pretrained=pretrained,
            force_quick_gelu=quick_gelu,
            force_custom_text=True,
            require_pretrained=True,
            weights_only=True,
        )
    except Exception as error:  # open_clip, huggingface_hub and torch raise many kinds here
        raise CheckpointError(
            f"Text encoder {pretrained or name}: expected weights that open_clip can load into {name}, got "
            f"an error ({error}); without network give a local folder with open_clip_config.json and the "
            "weights."
        ) from error
    tower = getattr(model, "text", None)
    if not isinstance(tower, TextTransformer) or tower.cls_emb is not None or tower.vocab_size != BPE_SIZE:
        raise ConfigError(
            f"Text encoder {name}: expected a CLIP text transformer over open_clip's byte pairs, got "
            f"{type(tower).__name__}; choose a CLIP model such as ViT-B-32 or ViT-L-14."
        )
    return tower
