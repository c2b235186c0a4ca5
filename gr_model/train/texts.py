"""The captions of token shards for a model in training: a table of features, or the encoder that computes them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from ...errors import CheckpointError
from ...fingerprints import same_encoder
from ...tokenizers.text import TextEncoder
from ...tokenizers.text_weights import load_text_encoder
from ..model.encoded_texts import EncodedTexts
from ..model.texts import TextTable

if TYPE_CHECKING:
    from ...data_pipeline.loading.token_store import TokenStore
    from ..model.world_model import WorldModel


def load_encoder_of(tokens: Mapping[str, Any], text: str) -> TextEncoder:
    """Load the text encoder that token shards were made for.

    Args:
        tokens: facts of the tokenizers, as token shards keep them.
        text: the encoder's name, folder or file.

    Raises:
        CheckpointError: it is missing, damaged, or another one.
    """
    wanted = str(tokens.get("text_fingerprint"))
    encoder = load_text_encoder(text, fingerprint=wanted)
    if not same_encoder(encoder.fingerprint, wanted):
        raise CheckpointError(
            f"--text {text}: expected the text encoder of the tokens ({wanted[:16]}), whose texts have no features, "
            f"got another one ({encoder.fingerprint[:16]}); name the one that was given to `gr2 data tokens`, or "
            "encode the shards again."
        )
    return encoder


def give_texts(model: WorldModel, store: TokenStore, encoder: TextEncoder | None) -> None:
    """Give a model the texts that `text_id` counts: a table of their features, or an encoder that computes them.

    Args:
        encoder: of a store that lacks features in any of its folders; None where the table is complete.
    """
    if encoder is not None:
        model.set_texts(EncodedTexts(encoder, store.text))
        return
    features, mask = store.text_features
    model.set_texts(TextTable(torch.from_numpy(features), torch.from_numpy(mask)))
