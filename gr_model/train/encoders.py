"""The frozen encoders of a training run: loaded, checked against the tokens, kept in the release."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import CheckpointError
from ...fingerprints import image_fingerprint, same_encoder

if TYPE_CHECKING:
    from ...data_pipeline.loading.token_store import TokenStore
    from ...tokenizers.text import TextEncoder
    from ...tokenizers.vqgan import VQGAN


@dataclass(frozen=True, kw_only=True)
class FrozenEncoders:
    """The image tokenizer of a token store, where it was loaded from, and the fingerprints of both encoders.

    text: the text encoder where some texts have no features yet, else None.
    """

    vqgan: VQGAN
    text: TextEncoder | None
    tokenizer_source: str
    text_source: str
    facts: Mapping[str, Any]


def load_encoders(store: TokenStore, tokenizer: str, text: str) -> FrozenEncoders:
    """Load the tokenizer, and the text encoder where it is needed; check that they are those of the tokens.

    Raises:
        CheckpointError: one is another one.
    """
    from ...tokenizers.weights import load_vqgan
    from .texts import load_encoder_of

    vqgan = load_vqgan(tokenizer)
    if not same_encoder(vqgan.fingerprint(), image_fingerprint(store.tokenizer)):
        raise CheckpointError(
            f"--tokenizer {tokenizer}: expected the tokenizer that made the tokens, got another one; name the one that "
            "was given to `gr2 data tokens`, or encode the shards again."
        )
    encoder = None if store.has_text_features else load_encoder_of(store.tokenizer, text)
    return FrozenEncoders(
        vqgan=vqgan, text=encoder, tokenizer_source=tokenizer, text_source=text, facts=store.tokenizer
    )


def keep_encoders(encoders: FrozenEncoders, out: Path) -> dict[str, str]:
    """Copy encoders of our own into the release, so that it works by itself; names of others are kept."""
    kept = {}
    for kind, stem, source in (
        ("tokenizer", "vqgan", encoders.tokenizer_source),
        ("text", "text", encoders.text_source),
    ):
        folder = Path(source)
        kept[f"{kind}_source"] = source
        if folder.is_dir() and (folder / f"{stem}.safetensors").is_file():
            target = out / kind
            target.mkdir(parents=True, exist_ok=True)
            for file in folder.glob(f"{stem}.*"):
                shutil.copyfile(file, target / file.name)
            kept[f"{kind}_source"] = kind
    return kept
