"""Frozen CLIP text: texts to per-token features."""

from __future__ import annotations

import hashlib
import multiprocessing
import re
import warnings
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..contracts import Array
from ..errors import ConfigError
from ..fingerprints import fingerprint_of

if TYPE_CHECKING:
    from open_clip.transformer import TextTransformer

BPE_SIZE = 49408
"""Entries of open_clip's byte-pair vocabulary; the last two are start and end of text."""

END_OF_TEXT = BPE_SIZE - 1
_PROBES = ("open the drawer", "A photo of 2 red blocks, 12 cm apart: push the left one!")
"""Texts whose features are part of an encoder's fingerprint."""

_TOLD: set[str] = set()
"""Texts whose unknown words were named already."""

_MOST_TOLD = 64
"""Texts whose unknown words are named in one program; a corpus may have millions."""

_NAMED = 8
"""Texts with unknown words that one warning lists."""

UNKNOWN_ROW = 0
"""Row of a small vocabulary that stands for every token outside it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TextConfig:
    """Shape of a small CLIP text tower; `embed_dim` is the length of the pooled, projected feature."""

    width: int = 128
    heads: int = 4
    layers: int = 3
    context_length: int = 20
    embed_dim: int = 64

    def __post_init__(self) -> None:
        if self.width % self.heads:
            raise ConfigError(
                f"TextConfig.heads: expected a divisor of the width {self.width}, got {self.heads}; change either."
            )


class Vocabulary:
    """A part of open_clip's byte-pair vocabulary: rows of a small embedding table.

    Row 0 stands for every token outside; it is trained by dropping words, so an unseen word reads as "some
    word". The order of tokens is kept, so that the end of text has the largest row (open_clip pools there).
    """

    def __init__(self, token_ids: Int[Array, " m"]) -> None:
        ids = np.unique(np.asarray(token_ids, np.int64))
        if not len(ids) or ids[0] < 0 or ids[-1] != END_OF_TEXT:
            raise ConfigError(
                f"Vocabulary: expected byte-pair tokens in [0, {BPE_SIZE}) with the end of text "
                f"{END_OF_TEXT}, got {len(ids)} others; make it with vocabulary_of."
            )
        self.token_ids = ids
        self.rows = torch.full((BPE_SIZE,), UNKNOWN_ROW, dtype=torch.int64)
        self.rows[torch.as_tensor(ids)] = torch.arange(1, len(ids) + 1)

    def __len__(self) -> int:
        return len(self.token_ids) + 1


def tokenize(texts: Sequence[str], context_length: int) -> Int[Tensor, "b l"]:
    """Return byte-pair tokens: start, words, end, then zeros; warn of texts that are cut."""
    tokenizer = _byte_pairs()
    long = [s for s in texts if len(tokenizer.encode(s)) + 2 > context_length]
    if long:
        warnings.warn(
            f"Text: {len(long)} texts are longer than {context_length} tokens and are cut, such as {long[0]!r}",
            stacklevel=2,
        )
    return tokenizer(list(texts), context_length=context_length)


def vocabulary_of(texts: Sequence[str]) -> Vocabulary:
    """Return the vocabulary of the tokens in `texts`, with start, end and padding."""
    tokenizer = _byte_pairs()
    seen = {token for text in texts for token in tokenizer.encode(text)}
    return Vocabulary(np.array(sorted(seen | {0, END_OF_TEXT - 1, END_OF_TEXT})))


@cache
def _byte_pairs() -> Any:
    """Return open_clip's tokenizer; its vocabulary takes a while to read, so it waits for the first use."""
    from open_clip.tokenizer import SimpleTokenizer

    return SimpleTokenizer()


class TextEncoder:
    """A frozen CLIP text tower; features of each text are computed once and kept.

    The features are those after `ln_final`, one for each token. Features past the end of text are zero.
    """

    def __init__(
        self, tower: TextTransformer, *, vocabulary: Vocabulary | None = None, cache_texts: int = 2048
    ) -> None:
        """Freeze `tower`, an open_clip text transformer over `vocabulary` (default: all byte pairs)."""
        self.tower = tower.requires_grad_(False).eval()
        self.vocabulary = vocabulary
        self.cache_texts = cache_texts
        self._cache: OrderedDict[str, tuple[Array, Array]] = OrderedDict()

    @property
    def width(self) -> int:
        """Length of a token's feature."""
        return int(self.tower.positional_embedding.shape[1])

    @property
    def context_length(self) -> int:
        """Number of tokens of every text, padding included."""
        return int(self.tower.positional_embedding.shape[0])

    @cached_property
    def fingerprint(self) -> str:
        """Text that changes with any weight, token or activation of the encoder; compare by `same_encoder`."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.tower.state_dict().items()):
            digest.update(f"{name}{tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().to("cpu", torch.float32).numpy().tobytes())
        if self.vocabulary is not None:
            digest.update(self.vocabulary.token_ids.tobytes())
        tokens = _byte_pairs()(list(_PROBES), context_length=self.context_length)
        return fingerprint_of(digest.hexdigest()[:16], self.features(tokens).cpu().numpy())

    def to(self, device: str | torch.device) -> TextEncoder:
        """Move the tower to a device."""
        self.tower.to(device)
        return self

    def encode(self, texts: Sequence[str]) -> tuple[Array, Array]:
        """Return features, float32 `[b l d]`, and the mask, bool `[b l]`, True from start to end of text.

        Raises:
            ConfigError: if one string is passed instead of a sequence of strings.
        """
        if isinstance(texts, str):
            raise ConfigError("TextEncoder.encode: expected a sequence of texts, got one string; pass [text].")
        missing = list(dict.fromkeys(s for s in texts if s not in self._cache))
        found: dict[str, tuple[Array, Array]] = {s: self._cache[s] for s in texts if s in self._cache}
        for start in range(0, len(missing), 64):
            part = missing[start : start + 64]
            self._tell_unknown(part)
            tokens = tokenize(part, self.context_length)
            mask = token_mask(tokens)
            features = self.features(tokens).cpu().masked_fill(~mask[..., None], 0.0).numpy()
            found.update({s: (features[i], mask[i].numpy()) for i, s in enumerate(part)})
        for text, entry in found.items():
            self._cache[text] = entry
            self._cache.move_to_end(text)
        while len(self._cache) > self.cache_texts:
            self._cache.popitem(last=False)
        if not texts:
            empty = (0, self.context_length)
            return np.zeros((*empty, self.width), np.float32), np.zeros(empty, bool)
        return np.stack([found[s][0] for s in texts]), np.stack([found[s][1] for s in texts])

    @torch.inference_mode()
    def features(self, tokens: Int[Tensor, "b l"]) -> Float[Tensor, "b l d"]:
        """Return the features after `ln_final` of byte-pair tokens, padding included."""
        rows = tokens if self.vocabulary is None else self.vocabulary.rows[tokens]
        return token_features(self.tower, rows.to(self.tower.positional_embedding.device)).float()

    def words(self, text: str) -> list[str]:
        """Return the words of a text, in order."""
        return re.findall(r"\w+", text.lower())

    def unknown_words(self, text: str) -> list[str]:
        """Return the words of a text that the encoder was trained without; they read as an unknown word."""
        if self.vocabulary is None:
            return []
        rows, encode = self.vocabulary.rows, _byte_pairs().encode
        return [word for word in self.words(text) if any(rows[token] == UNKNOWN_ROW for token in encode(word))]

    def _tell_unknown(self, texts: Sequence[str]) -> None:
        """Warn of texts with unknown words: of each once in the life of the program, up to a number of texts.

        Processes that another one started are silent: that one names them.
        """
        if self.vocabulary is None or len(_TOLD) >= _MOST_TOLD or multiprocessing.parent_process() is not None:
            return
        found = {text: words for text in texts if text not in _TOLD and (words := self.unknown_words(text))}
        _TOLD.update(found)
        told = [f"{text!r} ({', '.join(words)})" for text, words in found.items()]
        if told:
            more = f" and {len(told) - _NAMED} more texts" if len(told) > _NAMED else ""
            end = "; further texts are not named" if len(_TOLD) >= _MOST_TOLD else ""
            warnings.warn(
                f"Text: words that the text encoder was not trained on, read as an unknown word: "
                f"{'; '.join(told[:_NAMED])}{more}; an encoder of all words is `--text ViT-B-32:openai` of `gr2 data "
                f"tokens`{end}",
                stacklevel=3,
            )


def note_as_named(texts: Iterable[str]) -> None:
    """Note that somebody else names the unknown words of texts, so that encoders need not."""
    _TOLD.update(texts)


def token_mask(tokens: Int[Tensor, "b l"]) -> Tensor:
    """Return bool `[b l]`, True up to and with the end of text."""
    end = (tokens == END_OF_TEXT).int().argmax(1, keepdim=True)
    return torch.arange(tokens.shape[1]) <= end


def token_features(tower: TextTransformer, rows: Int[Tensor, "b l"]) -> Float[Tensor, "b l d"]:
    """Run an open_clip text transformer up to and with `ln_final`."""
    dtype = tower.transformer.get_cast_dtype()
    x = tower.token_embedding(rows).to(dtype) + tower.positional_embedding.to(dtype)
    return tower.ln_final(tower.transformer(x, attn_mask=tower.attn_mask))
